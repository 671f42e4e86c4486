"""The shape options inside the dock: widgets that remember what was chosen last."""

from __future__ import annotations

from functools import partial

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QDoubleSpinBox, QFormLayout, QWidget

from .actions import Actions
from .buttons import ActionBox
from .shaping import ShapeOptions

_PREFIX = "segadapt/shape/"


class ShapePanel(QWidget):
    """`changed` carries the new `ShapeOptions`."""

    changed = pyqtSignal(object)

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        add = partial(actions.add, slot=None, group="Shape", checkable=True)
        self.simplify_m = _metres("Off", maximum=100.0)
        self.simplify_m.setToolTip("Fewer corners: how far the outline may move, in metres on the ground")
        tip = "Straight walls at right angles, along the object's own direction"
        self.right_angles = ActionBox(add("right_angles", "Right angles", tip=tip))
        self.min_area_m2 = _metres("Off", maximum=1e6, suffix=" m²")
        self.min_area_m2.setToolTip("Parts and holes that are smaller go")
        tip = "The object leaves to its neighbours in the target layer what they cover"
        self.no_overlaps = ActionBox(add("no_overlaps", "No overlaps", tip=tip, shortcut="O", icon="no_overlaps"))
        tip = "When it is accepted, the new object is cut out of those that it overlaps"
        self.new_on_top = ActionBox(add("new_on_top", "Cut the others instead", tip=tip))
        self.snap_m = _metres("Off", maximum=100.0)
        self.snap_m.setToolTip("Borders that are nearer to a neighbour's than this become one, in metres")
        form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self.right_angles)
        form.addRow("Simplify by", self.simplify_m)
        form.addRow("Smallest part or hole", self.min_area_m2)
        form.addRow(self.no_overlaps)
        form.addRow(self.new_on_top)
        form.addRow("Share borders within", self.snap_m)
        self._read()
        for box in self._boxes():
            box.toggled.connect(self._on_changed)
        for spin in self._spins():
            spin.valueChanged.connect(self._on_changed)

    @property
    def options(self) -> ShapeOptions:
        """What is chosen, and has a meaning: a tick at a box that is greyed out counts for nothing."""
        return ShapeOptions(
            simplify_m=self.simplify_m.value(),
            right_angles=self.right_angles.isChecked(),
            min_area_m2=self.min_area_m2.value(),
            no_overlaps=self.no_overlaps.isChecked(),
            snap_m=self.snap_m.value(),
            new_on_top=self.no_overlaps.isChecked() and self.new_on_top.isChecked(),
        )

    def _boxes(self) -> tuple[ActionBox, ...]:
        return self.right_angles, self.no_overlaps, self.new_on_top

    def _spins(self) -> tuple[QDoubleSpinBox, ...]:
        return self.simplify_m, self.min_area_m2, self.snap_m

    def _read(self) -> None:
        settings = QgsSettings()
        for name in ("right_angles", "no_overlaps", "new_on_top"):
            getattr(self, name).setChecked(settings.value(_PREFIX + name, False, type=bool))
        for name in ("simplify_m", "min_area_m2", "snap_m"):
            getattr(self, name).setValue(settings.value(_PREFIX + name, 0.0, type=float))
        self.new_on_top.action.setEnabled(self.no_overlaps.isChecked())

    def _on_changed(self) -> None:
        self.new_on_top.action.setEnabled(self.no_overlaps.isChecked())
        options = self.options
        settings = QgsSettings()
        # The tick itself, which comes back with "No overlaps".
        for name, value in {**vars(options), "new_on_top": self.new_on_top.isChecked()}.items():
            settings.setValue(_PREFIX + name, value)
        self.changed.emit(options)


def _metres(off: str, *, maximum: float, suffix: str = " m") -> QDoubleSpinBox:
    spin = QDoubleSpinBox()
    spin.setRange(0.0, maximum)
    spin.setDecimals(2)
    spin.setSingleStep(0.25)
    spin.setSuffix(suffix)
    spin.setSpecialValueText(off)
    # Typing "12" must not act on "1" first.
    spin.setKeyboardTracking(False)
    return spin
