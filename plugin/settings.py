"""Writes what the user chose to QgsSettings; the algorithms' `read_settings` reads what concerns the engine."""

from __future__ import annotations

from functools import partial
from typing import Literal

from qgis.core import QgsSettings
from qgis.PyQt.QtWidgets import QCheckBox

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
    "view_only",
    "accept_above",
    "snap_to_segments",
    "class_map_head",
]

ACCEPT_ABOVE: Key = "accept_above"
COVERAGE: Key = "coverage"
HEAD: Key = "class_map_head"
LEARNING: Key = "learning"
MODE: Key = "mode"
MODEL: Key = "model"
RECTANGLES: Key = "rectangles"
SNAP: Key = "snap_to_segments"
VIEW_ONLY: Key = "view_only"


def write_setting(key: Key, value: str | float | bool) -> None:
    """Store one value under `segadapt/`; empty text stands for the default."""
    QgsSettings().setValue(f"segadapt/{key}", value)


def remember_box(box: QCheckBox, key: Key, *, default: bool) -> None:
    """Tick a box as it was left last, and remember from now on how it is left."""
    box.setChecked(QgsSettings().value(f"segadapt/{key}", default, type=bool))
    box.toggled.connect(partial(write_setting, key))


def read_page(title: str, *, default: bool) -> bool:
    """Return whether a page of the dock was open last."""
    return bool(QgsSettings().value(f"segadapt/pages/{title}", default, type=bool))


def write_page(title: str, *, is_open: bool) -> None:
    """Remember whether a page of the dock is open."""
    QgsSettings().setValue(f"segadapt/pages/{title}", is_open)
