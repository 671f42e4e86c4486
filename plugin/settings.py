"""Writes what the user chose to QgsSettings; the algorithms' `read_settings` reads it."""

from __future__ import annotations

from typing import Literal

from qgis.core import QgsSettings

Key = Literal["environment", "checkpoint_folder", "cache_folder", "cache_gb", "device", "offline"]


def write_setting(key: Key, value: str | float | bool) -> None:
    """Store one value under `segadapt/`; empty text stands for the default."""
    QgsSettings().setValue(f"segadapt/{key}", value)
