"""Without QGIS only the pure parts of the plugin are tested."""

from __future__ import annotations

import importlib.util
import os

collect_ignore: list[str] = []
if importlib.util.find_spec("qgis") is None:
    if os.environ.get("REQUIRE_QGIS") == "1":
        raise RuntimeError("REQUIRE_QGIS=1, but this Python has no QGIS; run the tests with QGIS's Python.")
    collect_ignore = ["test_gui"]
