"""The one place that knows where Qt 5 and Qt 6 disagree."""

from __future__ import annotations

try:  # Qt 6 moved both
    from qgis.PyQt.QtGui import QAction, QActionGroup
except ImportError:
    from qgis.PyQt.QtWidgets import QAction, QActionGroup

__all__ = ["QAction", "QActionGroup"]
