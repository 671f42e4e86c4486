"""The one place that knows where Qt 5 and Qt 6 disagree."""

from __future__ import annotations

try:  # Qt 6 moved QAction
    from qgis.PyQt.QtGui import QAction
except ImportError:
    from qgis.PyQt.QtWidgets import QAction

__all__ = ["QAction"]
