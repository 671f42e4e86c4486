"""The cheat sheet and the dock can be read, whatever the theme of QGIS and whatever the map below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from qgis.PyQt.QtCore import QPoint
from qgis.PyQt.QtGui import QColor, QPalette
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QApplication, QLabel
from segadapt.plugin.cheat_sheet import CheatSheet

# As in QGIS's "Night Mapping" and "Blend of Gray": what is not named is transparent.
DARK = """
QWidget { background: transparent; }
QLabel { color: #aaaaaa; }
QMainWindow, QDockWidget, QAbstractScrollArea { background-color: #323232; color: #aaaaaa; }
"""
LEAST_CONTRAST, LEAST_OF_SIGNS = 4.5, 3.0
"""Of text that is to be read, and of signs, by WCAG 2."""


def luminance(colour: QColor) -> float:
    """Relative luminance by WCAG 2, 0 to 1."""
    parts = (colour.redF(), colour.greenF(), colour.blueF())
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: QColor, second: QColor) -> float:
    """1 to 21 by WCAG 2."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["", DARK], ids=["default", "dark"])
def test_the_letters_stand_out_and_the_map_does_not_shine_through(gui: Any, theme: str) -> None:
    gui.start()
    gui.window.setStyleSheet(theme)
    gui.controller.show_cheat_sheet()
    QTest.qWait(50)
    sheet = gui.canvas.findChild(CheatSheet)
    letters = sheet.findChild(QLabel).palette().color(QPalette.ColorRole.WindowText)
    picture = gui.window.grab().toImage()
    places = [QPoint(4, 4), QPoint(sheet.width() - 5, 4), QPoint(4, sheet.height() - 5)]
    behind = {picture.pixelColor(sheet.mapTo(gui.window, place)).name() for place in places}
    assert len(behind) == 1, "the map shines through"
    assert contrast(letters, QColor(behind.pop())) >= LEAST_CONTRAST


@pytest.fixture
def dark_desktop(qgis_app: Any) -> Iterator[None]:
    """The palette that a dark desktop gives every program."""
    before = QApplication.palette()
    palette = QPalette(QColor("#353535"))
    palette.setColor(QPalette.ColorRole.Highlight, QColor("#2a82da"))
    QApplication.setPalette(palette)
    yield
    QApplication.setPalette(before)


def test_the_labels_of_the_dock_stand_out_from_a_dark_window(dark_desktop: None, gui: Any) -> None:
    """None has a colour of its own that only reads on a light one."""
    gui.start()
    labels = [label for label in gui.dock.findChildren(QLabel) if label.text()]
    assert len(labels) > 20
    for label in labels:
        window, text = (label.palette().color(role) for role in (label.backgroundRole(), label.foregroundRole()))
        least = LEAST_OF_SIGNS if label.styleSheet() else LEAST_CONTRAST
        assert window.lightness() < 80, label.text()
        assert contrast(text, window) >= least, label.text()
