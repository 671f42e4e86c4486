"""The page of the dock for the class map: widgets only."""

from __future__ import annotations

from qgis.core import QgsSettings
from qgis.PyQt.QtWidgets import QComboBox, QGridLayout, QLabel, QProgressBar, QWidget

from ..processing.algorithms.class_map import HEADS
from .actions import Actions
from .buttons import ActionBox, action_button
from .settings import HEAD, SNAP, remember_box, write_setting

_BUTTONS = "map_undo", "map_clear", "map_raster", "map_all_polygons", "map_polygons", "map_save", "map_load"


class ClassMapPanel(QWidget):
    """`ClassMapControl` fills and reads it; its buttons are actions of that and of `ClassMapExport`."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setMaximumHeight(8)
        self.progress_bar.hide()
        self.snap_box = ActionBox(actions["map_snap"])
        remember_box(self.snap_box, SNAP, default=True)
        self.head_combo = QComboBox()
        self.head_combo.setToolTip(
            "How classes are learned: ridge in closed form, logistic by a regression, tokens by a vector for each class"
        )
        for head in HEADS:
            self.head_combo.addItem(f"Head: {head}", head)
        chosen = self.head_combo.findData(QgsSettings().value(f"segadapt/{HEAD}", ""))
        self.head_combo.setCurrentIndex(max(0, chosen))
        self.head_combo.currentIndexChanged.connect(lambda _index: write_setting(HEAD, self.head))
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.status_label, 0, 0, 1, 2)
        grid.addWidget(self.progress_bar, 1, 0, 1, 2)
        grid.addWidget(self.snap_box, 2, 0)
        grid.addWidget(self.head_combo, 2, 1)
        self.buttons = {key: action_button(actions[key]) for key in _BUTTONS}
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
