"""The one place that writes to layers: features added, changed and removed as one step, saved at once or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qgis.core import (
    NULL,
    QgsFeature,
    QgsFeatureRequest,
    QgsGeometry,
    QgsProviderRegistry,
    QgsVectorDataProvider,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)

from .class_style import OWN_LAYER

OWN_COMMAND = "SegAdapt: "
"""How the names of our edit commands begin, in QGIS's undo history."""


class SinkError(RuntimeError):
    """A layer that cannot be made or written; the message is one sentence with the remedy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureState:
    """A feature at one moment: `geometry` in the layer's CRS, `attributes` by name without what the provider makes."""

    fid: int
    geometry: QgsGeometry
    attributes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FeatureChange:
    """A feature before and after; None where it was not there yet, or is no more."""

    before: FeatureState | None
    after: FeatureState | None


@dataclass(frozen=True, kw_only=True, eq=False)
class EditStep:
    """What one action did to a layer. `is_saved`: it is on the disk, and not only in an edit buffer of the user's.

    `note`: a sentence that the user should read, "" for none. `key` stays the same when it is undone and redone.
    """

    layer_id: str
    label: str
    changes: tuple[FeatureChange, ...]
    is_saved: bool
    note: str = ""
    key: object = field(default_factory=object)


def state_of(layer: QgsVectorLayer, feature: QgsFeature) -> FeatureState:
    """Return what a feature is now."""
    attributes = {
        field.name(): feature.attribute(index)
        for index, field in enumerate(layer.fields())
        if index in _writable(layer)
    }
    return FeatureState(fid=feature.id(), geometry=QgsGeometry(feature.geometry()), attributes=attributes)


def states_of(layer: QgsVectorLayer, feature_ids: Iterable[int]) -> list[FeatureState]:
    """Return what features are now. Raises `SinkError` where one is gone."""
    wanted = list(dict.fromkeys(feature_ids))
    found = {feature.id(): feature for feature in layer.getFeatures(QgsFeatureRequest().setFilterFids(wanted))}
    if missing := [fid for fid in wanted if fid not in found]:
        raise SinkError(f"Feature {missing[0]} of '{layer.name()}' is gone; choose again.")
    return [state_of(layer, found[fid]) for fid in wanted]


def write(layer: QgsVectorLayer, label: str, changes: Sequence[FeatureChange], *, note: str = "") -> EditStep:
    """Do all changes as one edit command and save them; the step returned has the ids that the layer gave.

    A layer that is being edited already, or that shares a transaction with others, is the user's to save: the changes
    go into its edit buffer. Raises `SinkError`; the layer is then as it was.
    """
    check_writable(layer, changes)
    is_users = layer.isEditable()
    if not is_users and not layer.startEditing():
        raise SinkError(f"'{layer.name()}' cannot be edited; choose another target layer.")
    layer.beginEditCommand(f"{OWN_COMMAND}{label}")
    try:
        done = [_apply(layer, change) for change in changes]
    except SinkError:
        layer.destroyEditCommand()
        if not is_users:
            layer.rollBack()
        raise
    layer.endEditCommand()
    is_shared = layer.dataProvider().transaction() is not None and not layer.customProperty(OWN_LAYER)
    if not is_users and not is_shared:
        done = _commit(layer, done)
    layer.triggerRepaint()
    return EditStep(
        layer_id=layer.id(),
        label=label,
        changes=tuple(done),
        is_saved=not is_users and not is_shared,
        note=note,
    )


def check_polygons(layer: QgsVectorLayer) -> None:
    """Raise `SinkError` for a layer that cannot be read, or whose features are no polygons."""
    if not layer.isValid():
        raise SinkError(f"'{layer.name()}' cannot be read any more; choose another target layer.")
    parts = QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source())
    if layer.providerType() == "ogr" and parts.get("path") and not Path(parts["path"]).exists():
        # On some systems a deleted file still takes features, which nobody would ever see again.
        raise SinkError(f"The file {parts['path']} of '{layer.name()}' is gone; put it back or choose another target.")
    if layer.geometryType() != QgsWkbTypes.geometryType(QgsWkbTypes.Type.Polygon):
        kind = QgsWkbTypes.displayString(layer.wkbType())
        raise SinkError(f"'{layer.name()}' holds {kind}, not polygons; choose a polygon layer.")


def takes_outlines(layer: QgsVectorLayer) -> bool:
    """Return whether features of a layer may get other outlines; False for files and formats that are only read."""
    has = layer.dataProvider().capabilities()
    return bool(not layer.readOnly() and has & QgsVectorDataProvider.Capability.ChangeGeometries)


def check_writable(layer: QgsVectorLayer, changes: Sequence[FeatureChange]) -> None:
    """Raise `SinkError` where the layer cannot take such changes."""
    check_polygons(layer)
    capability = QgsVectorDataProvider.Capability
    needed = {
        capability.AddFeatures: any(change.before is None for change in changes),
        capability.DeleteFeatures: any(change.after is None for change in changes),
        capability.ChangeGeometries: any(change.before and change.after for change in changes),
    }
    has = layer.dataProvider().capabilities()
    if layer.readOnly() or any(is_needed and not has & wanted for wanted, is_needed in needed.items()):
        raise SinkError(f"'{layer.name()}' is read-only and cannot be edited; choose another target layer.")


def _apply(layer: QgsVectorLayer, change: FeatureChange) -> FeatureChange:
    before, after = change.before, change.after
    if after is None:
        if before is not None and not layer.deleteFeature(before.fid):
            raise SinkError(f"'{layer.name()}' does not let go of feature {before.fid}; look at its constraints.")
        return change
    if before is None:
        attributes = {layer.fields().lookupField(name): value for name, value in after.attributes.items()}
        feature = QgsVectorLayerUtils.createFeature(
            layer, after.geometry, {index: value for index, value in attributes.items() if index >= 0}
        )
        if not layer.addFeature(feature):
            raise SinkError(f"'{layer.name()}' refused the object; look at its geometry type and constraints.")
        return FeatureChange(None, state_of(layer, feature))
    is_done = after.geometry.equals(before.geometry) or layer.changeGeometry(after.fid, after.geometry)
    for name, value in after.attributes.items():
        index = layer.fields().lookupField(name)
        if index >= 0 and not is_same_value(value, before.attributes.get(name)):
            is_done = is_done and layer.changeAttributeValue(after.fid, index, value, before.attributes.get(name))
    if not is_done:
        raise SinkError(f"'{layer.name()}' refused to change feature {after.fid}; look at its constraints.")
    return change


def _commit(layer: QgsVectorLayer, changes: Sequence[FeatureChange]) -> list[FeatureChange]:
    """Save, end editing, and return the changes with the ids that new features have in the file."""
    added: list[QgsFeature] = []

    def on_added(_layer_id: str, features: Iterable[QgsFeature]) -> None:
        added.extend(QgsFeature(feature) for feature in features)

    layer.committedFeaturesAdded.connect(on_added)
    try:
        is_saved = layer.commitChanges()
    finally:
        layer.committedFeaturesAdded.disconnect(on_added)
    if not is_saved:
        reason = _reason(layer.commitErrors())
        layer.rollBack()
        remedy = "let the program finish that has it open" if "is locked" in reason else "check space and rights"
        raise SinkError(f"'{layer.name()}' could not be saved ({reason}); {remedy}, then accept again.")
    return [_with_new_id(change, added) for change in changes]


def _reason(errors: Iterable[str]) -> str:
    """What the provider says, without QGIS's headings and said once."""
    lines = [line.strip() for error in errors for line in error.splitlines()]
    said = dict.fromkeys(line for line in lines if line and not line.startswith(("ERROR:", "SUCCESS:", "Provider err")))
    return "; ".join(said) or "; ".join(filter(None, lines)) or "no reason given"


def _with_new_id(change: FeatureChange, added: list[QgsFeature]) -> FeatureChange:
    if change.before is not None or change.after is None:
        return change
    for feature in added:
        if feature.geometry().equals(change.after.geometry):
            added.remove(feature)
            return FeatureChange(None, replace(change.after, fid=feature.id()))
    return change


def _writable(layer: QgsVectorLayer) -> set[int]:
    """Fields that the provider does not make itself, of the layer and not of a join or an expression."""
    provider = layer.dataProvider()
    keys = set(provider.pkAttributeIndexes())
    fields = enumerate(layer.fields())
    return {index for index, field in fields if index not in keys and provider.fieldNameIndex(field.name()) >= 0}


def is_same_value(one: Any, other: Any) -> bool:
    """Return whether two attributes are equal; the nulls of Python and of QGIS are one."""
    if one in (None, NULL) or other in (None, NULL):
        return one in (None, NULL) and other in (None, NULL)
    return bool(one == other)
