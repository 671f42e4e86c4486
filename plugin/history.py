"""Undo and redo of what was done to layers: accepts, merges, cuts, class changes; each one step, saved at once."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from qgis.core import QgsFeature, QgsProject, QgsVectorLayer
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .feature_outlines import near
from .feature_sink import (
    EditStep,
    FeatureChange,
    FeatureState,
    SinkError,
    is_same_value,
    state_of,
    write,
)
from .field_mapping import field_of

# A day's work; more than anybody takes back, and some 10 MB of outlines.
_MOST_STEPS = 1000
# Below this overlap an outline that was edited elsewhere is no longer the object that was accepted.
_SAME_OBJECT_IOU = 0.5


class _ConflictError(Exception):
    """A feature is not what the step left; the message says so."""


class EditHistory(QObject):
    """`changed`: what can be undone is different. `failed`: why a step could not be undone or redone, a sentence.

    `undone`, `redone` carry the step.

    What was edited elsewhere since is never overwritten: a step that meets such an edit is passed over. An object
    whose outline was edited goes with an undone accept as it is then, and comes back like that.
    """

    changed = pyqtSignal()
    failed = pyqtSignal(str)
    undone = pyqtSignal(object)
    redone = pyqtSignal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._done: deque[EditStep] = deque(maxlen=_MOST_STEPS)
        self._undone: list[EditStep] = []
        self._successors: dict[tuple[str, int], int] = {}
        """Id of a feature that came back under another one, by layer and earlier id."""
        QgsProject.instance().cleared.connect(self.clear)

    def dispose(self) -> None:
        """Let go of the project."""
        QgsProject.instance().cleared.disconnect(self.clear)

    @property
    def can_undo(self) -> bool:
        """True where a step can be taken back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """True where a step was taken back and nothing was done since."""
        return bool(self._undone)

    @property
    def newest(self) -> EditStep | None:
        """The step that `undo` would take back."""
        return self._done[-1] if self._done else None

    @property
    def next(self) -> EditStep | None:
        """The step that `redo` would do again."""
        return self._undone[-1] if self._undone else None

    @property
    def undo_text(self) -> str:
        """What `undo` would take back, e.g. "merge 2 objects", "" for nothing."""
        return self._done[-1].label if self._done else ""

    @property
    def redo_text(self) -> str:
        """What `redo` would do again, "" for nothing."""
        return self._undone[-1].label if self._undone else ""

    def push(self, step: EditStep) -> None:
        """Remember what was just done; what was undone before cannot be redone any more."""
        self._done.append(step)
        self._undone.clear()
        self.changed.emit()

    def undo(self) -> str:
        """Take the newest step back and save. Return what was done, or why not, in a sentence ("" for nothing)."""
        if not self._done:
            return ""
        step = self._done[-1]
        backwards = [FeatureChange(change.after, change.before) for change in reversed(step.changes)]
        return self._go(step, backwards, verb="undone")

    def redo(self) -> str:
        """Do the step again that was undone last, and save. Return a sentence as `undo` does."""
        if not self._undone:
            return ""
        step = self._undone[-1]
        return self._go(step, step.changes, verb="done again")

    def unedited(self, layer: QgsVectorLayer, expected: FeatureState) -> FeatureState | None:
        """Return what a feature is now, whatever its id; None where it is gone or its outline was edited since."""
        now = self._find(layer, expected)
        return now if now is not None and _is_same_outline(now, expected) else None

    def clear(self) -> None:
        """Forget everything (another project)."""
        self._done.clear()
        self._undone.clear()
        self._successors.clear()
        self.changed.emit()

    def _go(self, step: EditStep, changes: tuple[FeatureChange, ...] | list[FeatureChange], *, verb: str) -> str:
        is_undo = verb == "undone"
        layer = QgsProject.instance().mapLayer(step.layer_id)
        try:
            if not isinstance(layer, QgsVectorLayer):
                raise _ConflictError("its layer is not in the project any more")
            present = [self._present(layer, change) for change in changes]
            written = write(layer, f"{'undo' if is_undo else 'redo'} {step.label}", present)
        except _ConflictError as error:
            # For good: the next undo goes on with the step before.
            (self._done if is_undo else self._undone).pop()
            self.changed.emit()
            return self._fail(f"'{step.label}' cannot be {verb}: {error}. Nothing was changed.")
        except SinkError as error:
            return self._fail(f"'{step.label}' cannot be {verb} now: {error}")
        self._remember_ids(changes, written)
        if is_undo:
            self._done.pop()
            forwards = tuple(FeatureChange(change.after, change.before) for change in reversed(written.changes))
            self._undone.append(replace(step, changes=forwards))
        else:
            self._undone.pop()
            self._done.append(replace(step, changes=written.changes))
        self.changed.emit()
        (self.undone if is_undo else self.redone).emit(step)
        return f"{verb.capitalize()}: {step.label}."

    def _fail(self, sentence: str) -> str:
        self.failed.emit(sentence)
        return sentence

    def _present(self, layer: QgsVectorLayer, change: FeatureChange) -> FeatureChange:
        """Return a change as it applies to what is in the layer now. Raises `_ConflictError`."""
        expected, wanted = change.before, change.after
        if expected is None:
            # A rollback of the edit session, or QGIS's own undo, may have brought it back already.
            if wanted is not None and self._find(layer, wanted) is not None:
                raise _ConflictError(f"the object is there again, in '{layer.name()}'")
            return change
        now = self._find(layer, expected)
        if now is None:
            raise _ConflictError(f"the object was deleted or changed elsewhere, in '{layer.name()}'")
        if wanted is None:
            return FeatureChange(now, None)
        after = replace(now, geometry=now.geometry, attributes=dict(now.attributes))
        if not wanted.geometry.equals(expected.geometry):
            if not _is_same_outline(now, expected):
                raise _ConflictError(f"the outline of the object was edited since, in '{layer.name()}'")
            after = replace(after, geometry=wanted.geometry)
        for name, value in wanted.attributes.items():
            if is_same_value(value, expected.attributes.get(name)):
                continue
            if not is_same_value(now.attributes.get(name), expected.attributes.get(name)):
                raise _ConflictError(f"field '{name}' of the object was edited since, in '{layer.name()}'")
            after = replace(after, attributes={**after.attributes, name: value})
        return FeatureChange(now, after)

    def _find(self, layer: QgsVectorLayer, expected: FeatureState) -> FeatureState | None:
        """Return what a feature is now: by its id, else by its outline, since saving may give it another id."""
        feature = layer.getFeature(self._id_now(layer, expected.fid))
        if feature.isValid() and _is_same_object(layer, feature, expected):
            return state_of(layer, feature)
        for other in near(layer, expected.geometry.boundingBox()):
            state = state_of(layer, other)
            if _is_same_outline(state, expected) and _has_same_id(layer, state, expected):
                return state
        return None

    def _id_now(self, layer: QgsVectorLayer, fid: int) -> int:
        seen = set()
        while (layer.id(), fid) in self._successors and fid not in seen:
            seen.add(fid)
            fid = self._successors[layer.id(), fid]
        return fid

    def _remember_ids(self, changes: tuple[FeatureChange, ...] | list[FeatureChange], written: EditStep) -> None:
        for asked, done in zip(changes, written.changes, strict=True):
            if asked.before is None and asked.after is not None and done.after is not None:
                self._successors[written.layer_id, asked.after.fid] = done.after.fid


def _is_same_object(layer: QgsVectorLayer, feature: QgsFeature, expected: FeatureState) -> bool:
    state = state_of(layer, feature)
    if not _has_same_id(layer, state, expected):
        return False
    if _is_same_outline(state, expected):
        return True
    common = state.geometry.intersection(expected.geometry).area()
    union = state.geometry.area() + expected.geometry.area() - common
    return bool(union > 0 and common / union >= _SAME_OBJECT_IOU)


def _has_same_id(layer: QgsVectorLayer, state: FeatureState, expected: FeatureState) -> bool:
    field = field_of(layer, "object_id")
    return field is None or is_same_value(state.attributes.get(field), expected.attributes.get(field))


def _is_same_outline(state: FeatureState, expected: FeatureState) -> bool:
    # Some formats turn rings or start them elsewhere.
    one, other = state.geometry, expected.geometry
    return bool(one.equals(other) or one.isGeosEqual(other))
