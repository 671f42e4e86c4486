"""Writes what the user chose to QgsSettings; the algorithms' `read_settings` reads what concerns the engine."""

from __future__ import annotations

from typing import Literal

from qgis.core import QgsSettings

Key = Literal[
    "environment",
    "checkpoint_folder",
    "cache_folder",
    "cache_gb",
    "device",
    "offline",
    "learning",
    "mode",
    "coverage",
    "model",
    "rectangles",
]

COVERAGE: Key = "coverage"
LEARNING: Key = "learning"
MODE: Key = "mode"
MODEL: Key = "model"
RECTANGLES: Key = "rectangles"


def write_setting(key: Key, value: str | float | bool) -> None:
    """Store one value under `segadapt/`; empty text stands for the default."""
    QgsSettings().setValue(f"segadapt/{key}", value)


def read_page(title: str, *, default: bool) -> bool:
    """Return whether a page of the dock was open last."""
    return bool(QgsSettings().value(f"segadapt/pages/{title}", default, type=bool))


def write_page(title: str, *, is_open: bool) -> None:
    """Remember whether a page of the dock is open."""
    QgsSettings().setValue(f"segadapt/pages/{title}", is_open)
