"""The page of the dock for the class map: widgets only."""

from __future__ import annotations

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QCheckBox, QComboBox, QGridLayout, QLabel, QProgressBar, QPushButton, QWidget

from ..processing.algorithms.class_map import HEADS
from .settings import SNAP, remember_box

WRITING = {"raster": "Whole raster…", "all_polygons": "Raster's polygons…", "polygons": "View's polygons…"}
"""What takes a while and can be stopped, by the name of its button."""


class ClassMapPanel(QWidget):
    """`ClassMapControl` fills and reads it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setMaximumHeight(8)
        self.progress_bar.hide()
        self.snap_box = QCheckBox("Snap to segments")
        self.snap_box.setToolTip("Whole segments of the image get one class, which draws clean borders")
        remember_box(self.snap_box, SNAP, default=True)
        self.head_combo = QComboBox()
        self.head_combo.setToolTip(
            "How classes are learned: ridge in closed form, logistic by a regression, tokens by a vector for each class"
        )
        for head in HEADS:
            self.head_combo.addItem(f"Head: {head}", head)
        self.buttons = {
            "undo": _button("Undo", "Take the last click or scribble of the class map back"),
            "raster": _button(WRITING["raster"], "Map the whole raster into a GeoTIFF"),
            "all_polygons": _button(WRITING["all_polygons"], "Write the areas of the whole raster into a GeoPackage"),
            "polygons": _button(WRITING["polygons"], "Write the areas of the view into a GeoPackage"),
            "save": _button("Save model…", "Save what was learned, to map other rasters"),
            "load": _button("Load model…", "Map with a saved model; possible before the first click"),
        }
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.status_label, 0, 0, 1, 2)
        grid.addWidget(self.progress_bar, 1, 0, 1, 2)
        grid.addWidget(self.snap_box, 2, 0)
        grid.addWidget(self.head_combo, 2, 1)
        for number, button in enumerate(self.buttons.values()):
            grid.addWidget(button, 3 + number // 2, number % 2)

    @property
    def head(self) -> str:
        """How classes are learned, one of `HEADS`."""
        return str(self.head_combo.currentData())

    def show_options(self, head: str, *, is_snapped: bool) -> None:
        """Show the options of a map that was not begun here. Emits and remembers nothing."""
        for widget in (self.head_combo, self.snap_box):
            widget.blockSignals(True)
        self.head_combo.setCurrentIndex(self.head_combo.findData(head))
        self.snap_box.setChecked(is_snapped)
        for widget in (self.head_combo, self.snap_box):
            widget.blockSignals(False)


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    # Keys belong to the canvas.
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return button
