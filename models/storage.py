"""Where SegAdapt keeps what is heavy, always outside the plugin folder (an upgrade deletes that one)."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """Folder of what must stay: environments and checkpoints. `SEGADAPT_HOME` overrides it."""
    return _folder("XDG_DATA_HOME", ".local/share", "Application Support")


def cache_folder() -> Path:
    """Folder of what can be computed again: embeddings. `SEGADAPT_HOME` overrides it."""
    return _folder("XDG_CACHE_HOME", ".cache", "Caches")


def _folder(xdg_variable: str, linux_default: str, mac_default: str) -> Path:
    home = os.environ.get("SEGADAPT_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "segadapt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / mac_default / "segadapt"
    return Path(os.environ.get(xdg_variable) or Path.home() / linux_default) / "segadapt"
