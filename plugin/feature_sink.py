"""The one place that writes to layers: features added, changed and removed as one step, saved at once or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureRequest,
    QgsGeometry,
    QgsProject,
    QgsProviderRegistry,
    QgsRectangle,
    QgsVectorDataProvider,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)

from ..processing.algorithms.outputs import Ellipsoid, accepted_fields
from ..processing.algorithms.resources import style_path
from .class_style import OWN_LAYER
from .crs import CoordinateError, transformed
from .field_mapping import attributes_for

OWN_COMMAND = "SegAdapt: "
"""How the names of our edit commands begin, in QGIS's undo history."""

_NEW = 0
"""Id of a feature that is not in the layer yet; the layer gives it one."""


class SinkError(RuntimeError):
    """A layer that cannot be made or written; the message is one sentence with the remedy."""


@dataclass(frozen=True, kw_only=True)
class SegmentedFeature:
    """An accepted object: multipolygon `wkb` in the raster's CRS and its attributes.

    `area_m2` and `perimeter_m` are ellipsoidal, None without a CRS. `seconds`: from the first prompt to the accept.
    `date`: ISO 8601 with time and offset from UTC.
    """

    object_id: str
    class_name: str
    wkb: bytes
    score: float
    stability: float
    area_m2: float | None
    perimeter_m: float | None
    n_clicks: int
    seconds: float
    model: str
    adapter: str
    date: str

    def values(self) -> dict[str, Any]:
        """Values by the public names of the fields, in their order."""
        return {
            "object_id": self.object_id,
            "class": self.class_name,
            "score": self.score,
            "stability": self.stability,
            "area_m2": self.area_m2,
            "perimeter_m": self.perimeter_m,
            "clicks": self.n_clicks,
            "seconds": self.seconds,
            "model": self.model,
            "adapter": self.adapter,
            "date": self.date,
        }


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

    `note`: a sentence that the user should read, "" for none.
    """

    layer_id: str
    label: str
    changes: tuple[FeatureChange, ...]
    is_saved: bool
    note: str = ""


def new_scratch_layer(crs: QgsCoordinateReferenceSystem, *, name: str) -> QgsVectorLayer:
    """Return an empty layer in memory with the fields of an object, styled; not in the project yet."""
    layer = QgsVectorLayer("MultiPolygon", name, "memory")
    layer.setCrs(crs)
    layer.dataProvider().addAttributes(list(accepted_fields()))
    layer.updateFields()
    layer.dataProvider().createSpatialIndex()
    layer.loadNamedStyle(style_path("accepted"))
    return layer


def new_geopackage_layer(path: Path, crs: QgsCoordinateReferenceSystem) -> QgsVectorLayer:
    """Create a GeoPackage with an empty layer of objects and return that layer, not in the project yet.

    Raises `SinkError` for a file that exists, which may hold somebody's work, and for a place that
    cannot be written.
    """
    if path.suffix.lower() != ".gpkg":
        path = path.with_name(f"{path.name}.gpkg")
    if path.exists():
        raise SinkError(f"{path} exists already; choose its layer as target, or another file name.")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName, options.layerName = "GPKG", re.sub(r"\W+", "_", path.stem)
    writer = QgsVectorFileWriter.create(
        str(path),
        accepted_fields(),
        QgsWkbTypes.Type.MultiPolygon,
        crs,
        QgsProject.instance().transformContext(),
        options,
    )
    error, reason = writer.hasError(), writer.errorMessage()
    del writer  # closes the file
    if error != QgsVectorFileWriter.WriterError.NoError:
        path.unlink(missing_ok=True)
        raise SinkError(f"Cannot create {path} ({reason}); choose a folder that you may write to.")
    layer = QgsVectorLayer(f"{path}|layername={options.layerName}", path.stem, "ogr")
    if not layer.isValid():
        path.unlink(missing_ok=True)  # the writer does not notice a full disk
        raise SinkError(f"Cannot create {path} (its table cannot be read); choose a folder that has room.")
    layer.loadNamedStyle(style_path("accepted"))
    return layer


def add_object(
    layer: QgsVectorLayer, found: SegmentedFeature, *, crs: QgsCoordinateReferenceSystem, on_top: bool = False
) -> EditStep:
    """Add an object and save it; a layer of single polygons gets one feature per part, attributes alike.

    `crs` is that of `found.wkb`. `on_top`: the features that it overlaps lose what it covers. Raises `SinkError` and
    `CoordinateError`; the layer is then as it was.
    """
    check_polygons(layer)
    geometry = QgsGeometry()
    geometry.fromWkb(found.wkb)
    geometry = placed(geometry, crs, layer=layer)
    attributes, problems = attributes_for(layer, found.values())
    changes = [FeatureChange(None, state) for state in new_states(layer, geometry, attributes)]
    if on_top:
        changes = [*cut_out(layer, geometry), *changes]
    return write(layer, f"accept {found.class_name or 'object'}", changes, note=" ".join(problems))


def placed(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem, *, layer: QgsVectorLayer) -> QgsGeometry:
    """Return a geometry of `crs` in the layer's CRS. Raises `CoordinateError` where there is no way between them."""
    return moved(geometry, crs, destination=layer.crs())


def moved(
    geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem, *, destination: QgsCoordinateReferenceSystem
) -> QgsGeometry:
    """Return a geometry in another CRS. Raises `CoordinateError`, also where QGIS would leave it as it is."""
    transform = QgsCoordinateTransform(crs, destination, QgsProject.instance())
    if crs.isValid() and destination.isValid() and not transform.isValid():
        raise CoordinateError(
            f"There is no transformation from {_crs_name(crs)} to {_crs_name(destination)}; choose a target layer in "
            "another CRS."
        )
    return transformed(geometry, crs, destination=destination)


def new_states(layer: QgsVectorLayer, geometry: QgsGeometry, attributes: Mapping[str, Any]) -> list[FeatureState]:
    """Return the features of a geometry in the layer's CRS: one, or one per part where the layer holds single ones."""
    parts = fitted(layer, geometry)
    return [FeatureState(fid=_NEW, geometry=part, attributes=dict(attributes)) for part in parts]


def fitted(layer: QgsVectorLayer, geometry: QgsGeometry) -> list[QgsGeometry]:
    """Return a geometry as the layer's type wants it: multi, single, with z."""
    return list(geometry.coerceToType(layer.wkbType()))


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


def near(layer: QgsVectorLayer, bounds: QgsRectangle) -> Iterator[QgsFeature]:
    """Yield the features whose bounds meet a rectangle in the layer's CRS, found by its spatial index."""
    for feature in layer.getFeatures(QgsFeatureRequest().setFilterRect(bounds)):
        if feature.hasGeometry():
            yield feature


def with_geometry(layer: QgsVectorLayer, state: FeatureState, geometry: QgsGeometry) -> list[FeatureChange]:
    """Give a feature another outline and measure it; further parts, where its layer holds single ones, are new."""
    outlines = fitted(layer, geometry)
    outlines.sort(key=lambda part: part.area(), reverse=True)
    changes = []
    for number, outline in enumerate(outlines):
        measures, _ = attributes_for(layer, measured(outline, layer.crs()))
        after = FeatureState(
            fid=state.fid if number == 0 else _NEW, geometry=outline, attributes={**state.attributes, **measures}
        )
        changes.append(FeatureChange(state if number == 0 else None, after))
    return changes


def cut_out(layer: QgsVectorLayer, geometry: QgsGeometry, *, keep: Sequence[int] = ()) -> list[FeatureChange]:
    """Return the changes that take an area in the layer's CRS away from the features which overlap it."""
    changes: list[FeatureChange] = []
    engine = QgsGeometry.createGeometryEngine(geometry.constGet())
    engine.prepareGeometry()
    for feature in near(layer, geometry.boundingBox()):
        if feature.id() in keep or not engine.intersects(feature.geometry().constGet()):
            continue
        if engine.touches(feature.geometry().constGet()):
            continue
        state = state_of(layer, feature)
        rest = polygons_only(state.geometry.difference(geometry))
        if rest.isEmpty():
            changes.append(FeatureChange(state, None))
        else:
            changes += with_geometry(layer, state, rest)
    return changes


def polygons_only(geometry: QgsGeometry) -> QgsGeometry:
    """Return the polygons of what an overlay left, which may hold points and lines where borders touch."""
    polygons = [part for part in geometry.asGeometryCollection() if _is_polygon(part) and part.area() > 0]
    if not polygons:
        return QgsGeometry.fromWkt("MultiPolygon EMPTY")
    return QgsGeometry.unaryUnion(polygons) if len(polygons) > 1 else polygons[0]


def measured(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem) -> dict[str, float | None]:
    """Return area and perimeter on the ellipsoid by the public names of their fields."""
    ellipsoid = Ellipsoid(crs, QgsProject.instance().transformContext())
    return {"area_m2": ellipsoid.area_m2(geometry), "perimeter_m": ellipsoid.perimeter_m(geometry)}


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
        raise SinkError(f"'{layer.name()}' could not be saved ({reason}); check space and rights, then accept again.")
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


def _is_polygon(geometry: QgsGeometry) -> bool:
    return bool(QgsWkbTypes.geometryType(geometry.wkbType()) == QgsWkbTypes.geometryType(QgsWkbTypes.Type.Polygon))


def _crs_name(crs: QgsCoordinateReferenceSystem) -> str:
    return str(crs.authid() or crs.description() or "a CRS of its own")
