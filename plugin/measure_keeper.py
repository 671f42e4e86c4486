"""Area and perimeter of objects, measured anew while their outlines are edited with QGIS's own tools."""

from __future__ import annotations

from qgis.core import QgsVectorLayer
from qgis.PyQt.QtCore import QObject

from .feature_outlines import measured
from .feature_sink import OWN_COMMAND, is_same_value
from .field_mapping import attributes_for, field_of


class MeasureKeeper(QObject):
    """Keeps area and perimeter of one layer's features true, in whatever fields its mapping names.

    QGIS tells of a changed outline while the step that changes it is still being put together: the new measures go into
    that very step, and one undo takes both back. They follow as a step of their own where that cannot be: for features
    that a tool adds (the pieces of a split), whose undo would meet the measures of what is gone already; for outlines
    that a script changes outside of any edit command; and for layers in a transaction, whose savepoints hold whole
    steps. SegAdapt's own writes measure for themselves, and undo and redo bring the measures along.
    """

    def __init__(self, layer: QgsVectorLayer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._layer, self._stack = layer, layer.undoStack()
        self._is_own_command = False
        self._to_measure: set[int] = set()
        self._connections = (
            (layer.editCommandStarted, self._on_command_started),
            (layer.editCommandEnded, self._on_command_ended),
            (layer.editCommandDestroyed, self._on_command_destroyed),
            (layer.geometryChanged, self._on_geometry_changed),
            (layer.featureAdded, self._on_feature_added),
            (self._stack.indexChanged, self._on_step),
        )
        for signal, slot in self._connections:
            signal.connect(slot)

    def dispose(self) -> None:
        """Let go of the layer, which must still be there."""
        for signal, slot in self._connections:
            signal.disconnect(slot)

    def _on_command_started(self, text: str) -> None:
        self._is_own_command = text.startswith(OWN_COMMAND)

    def _on_command_ended(self) -> None:
        self._is_own_command = False
        self._measure_waiting()

    def _on_command_destroyed(self) -> None:
        self._is_own_command = False
        self._to_measure.clear()

    def _on_geometry_changed(self, feature_id: int, _geometry: object) -> None:
        if self._is_own_command:
            return
        if self._is_step_open() and self._layer.dataProvider().transaction() is None:
            self._measure(feature_id)
        elif not self._stack.canRedo():  # else it is a redo, which has its measures
            self._to_measure.add(feature_id)

    def _on_feature_added(self, feature_id: int) -> None:
        # Outside of a step it is an undone deletion, or a feature that was saved and has another id now.
        if self._is_step_open() and not self._is_own_command:
            self._to_measure.add(feature_id)

    def _on_step(self, _index: int) -> None:
        if self._stack.canRedo():
            self._to_measure.clear()  # an undo, which took the measures back as well
        elif not self._layer.isEditCommandActive():
            self._measure_waiting()

    def _is_step_open(self) -> bool:
        """Say whether an edit command is being put together; false while one is undone, even as it is given up."""
        # A stack that is not empty says no to both only then.
        return bool(self._stack.count()) and not self._stack.canUndo() and not self._stack.canRedo()

    def _measure_waiting(self) -> None:
        waiting, self._to_measure = self._to_measure, set()
        if not waiting or not self._layer.isEditable():
            return
        self._layer.beginEditCommand(f"{OWN_COMMAND}area and perimeter")
        n_changed = sum(self._measure(feature_id) for feature_id in sorted(waiting))
        if n_changed:
            self._layer.endEditCommand()
        else:
            self._layer.destroyEditCommand()  # an empty step would be an undo that does nothing

    def _measure(self, feature_id: int) -> bool:
        """Give a feature its measures; return whether it had others."""
        layer = self._layer
        if field_of(layer, "area_m2") is None and field_of(layer, "perimeter_m") is None:
            return False
        feature = layer.getFeature(feature_id)
        if not feature.hasGeometry():
            return False
        measures, _ = attributes_for(layer, measured(feature.geometry(), layer.crs()))
        is_changed = False
        for name, value in measures.items():
            index = layer.fields().lookupField(name)
            before = feature.attribute(index)
            if not is_same_value(value, before):
                is_changed |= layer.changeAttributeValue(feature_id, index, value, before)
        return is_changed
