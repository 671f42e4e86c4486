"""SegAdapt: a foundation model, made an analyst's own segmenter. QGIS loads the plugin through `classFactory`."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:  # noqa: N802 - the name that QGIS calls
    """Return the plugin. `iface` is None in `qgis_process`."""
    from .plugin.plugin import SegAdaptPlugin

    return SegAdaptPlugin(iface)
