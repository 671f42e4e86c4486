"""Edits of the layer of objects: a new one, merge, cut, subtract, another class or outline; each returns one step.

Every function takes the target layer, saves as an accept does, and raises `SinkError` (also for what makes no sense, in
a sentence) or `CoordinateError`; the layer is then as it was. The caller pushes the step to the `EditHistory`
(`TargetChoice.do` does both).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsExpression,
    QgsFeatureRequest,
    QgsGeometry,
    QgsPointXY,
    QgsVectorLayer,
)

from .feature_outlines import (
    NEW,
    cut_out,
    fitted,
    near,
    new_states,
    placed,
    polygons_only,
    valid_polygons,
    with_geometry,
)
from .feature_sink import (
    EditStep,
    FeatureChange,
    FeatureState,
    SinkError,
    check_polygons,
    is_same_value,
    state_of,
    states_of,
    write,
)
from .field_mapping import attributes_for, field_of

_ADDED_UP = ("clicks", "seconds")


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


def add_copies(layer: QgsVectorLayer, other: QgsVectorLayer) -> EditStep | None:
    """Add the features of another layer, with the attributes that both have; None where it has none."""
    check_polygons(layer)
    states = [state_of(other, feature) for feature in other.getFeatures()]
    changes = [
        FeatureChange(None, replace(state, fid=NEW, geometry=placed(state.geometry, other.crs(), layer=layer)))
        for state in states
    ]
    return write(layer, f"add {_counted(len(states))}", changes) if changes else None


def merge(layer: QgsVectorLayer, feature_ids: Iterable[int]) -> EditStep:
    """Make one feature of several; the largest keeps its id and attributes, clicks and seconds add up, holes stay."""
    states = _states(layer, feature_ids)
    if len(states) < 2:
        raise SinkError("A merge takes two objects or more; select them, or point at one that touches another.")
    union = polygons_only(QgsGeometry.unaryUnion([valid_polygons(state.geometry) for state in states]))
    if len(fitted(layer, union)) > 1:
        raise SinkError(
            f"The objects do not touch, and '{layer.name()}' holds no multipart features; choose objects that touch."
        )
    states.sort(key=lambda state: state.geometry.area(), reverse=True)
    largest, others = states[0], states[1:]
    sums, _ = attributes_for(layer, _sums(layer, states))
    changes = [replace(change, after=_with(change.after, sums)) for change in with_geometry(layer, largest, union)]
    return write(layer, f"merge {len(states)} objects", [*changes, *(FeatureChange(state, None) for state in others)])


def cut(layer: QgsVectorLayer, line: QgsGeometry, *, crs: QgsCoordinateReferenceSystem) -> EditStep:
    """Split the features that a line (in `crs`) crosses; attributes are copied, areas computed anew.

    The largest piece keeps the feature's id. Parts that the line does not cross stay with it. A line may cut a piece
    out of the middle by crossing itself.
    """
    check_polygons(layer)
    blade = placed(line, crs, layer=layer)
    changes: list[FeatureChange] = []
    n_cut = 0
    for feature in near(layer, blade.boundingBox()):
        if not blade.intersects(feature.geometry()):
            continue
        state = state_of(layer, feature)
        first, *others = _pieces(valid_polygons(state.geometry), blade)
        if not others:
            continue
        n_cut += 1
        changes += with_geometry(layer, state, first)
        for piece in others:
            added = with_geometry(layer, replace(state, fid=NEW), piece)
            changes += [FeatureChange(None, change.after) for change in added]
    if not changes:
        raise SinkError("The line crosses no object from side to side; draw it across one.")
    return write(layer, f"cut {_counted(n_cut)}", changes)


def subtract(
    layer: QgsVectorLayer, geometry: QgsGeometry, *, crs: QgsCoordinateReferenceSystem, keep: Sequence[int] = ()
) -> EditStep:
    """Take an area (in `crs`) away from the features that it overlaps, except those of ids `keep`.

    Features that it covers are removed.
    """
    check_polygons(layer)
    changes = cut_out(layer, placed(geometry, crs, layer=layer), keep=keep)
    if not changes:
        raise SinkError(f"Nothing in '{layer.name()}' overlaps that area; draw it over an object.")
    return write(layer, f"subtract from {_counted(len(changes))}", changes)


def set_class(layer: QgsVectorLayer, feature_ids: Iterable[int], name: str) -> EditStep:
    """Give features another class."""
    states = _states(layer, feature_ids)
    if not states:
        raise SinkError("No object is selected; select those that get the class.")
    if field_of(layer, "class") is None:
        raise SinkError(f"No field of '{layer.name()}' holds the class; choose one in the field mapping.")
    attributes, problems = attributes_for(layer, {"class": name})
    if problems:
        raise SinkError(problems[0])
    others = [state for state in states if not _has(state, attributes)]
    if not others:
        whose = f"of class '{name}'" if name else "without a class"
        verb = "is" if len(states) == 1 else "are"
        raise SinkError(f"{_counted(len(states))} {verb} {whose} already; choose another class first.")
    changes = [FeatureChange(state, _with(state, attributes)) for state in others]
    return write(layer, f"class {name or '(none)'} for {_counted(len(others))}", changes)


def rename_class(layer: QgsVectorLayer, old: str, new: str) -> EditStep | None:
    """Give all features of a class its new name; None where there are none."""
    field = field_of(layer, "class")
    if field is None:
        return None
    request = QgsFeatureRequest().setFilterExpression(QgsExpression.createFieldEqualityExpression(field, old))
    feature_ids = [feature.id() for feature in layer.getFeatures(request)]
    return set_class(layer, feature_ids, new) if feature_ids else None


def remove(layer: QgsVectorLayer, feature_ids: Iterable[int]) -> EditStep:
    """Delete features."""
    states = _states(layer, feature_ids)
    if not states:
        raise SinkError("No object is selected; select those that go.")
    return write(layer, f"delete {_counted(len(states))}", [FeatureChange(state, None) for state in states])


def set_outline(
    layer: QgsVectorLayer,
    feature_id: int,
    geometry: QgsGeometry,
    *,
    crs: QgsCoordinateReferenceSystem,
    on_top: bool = False,
) -> EditStep:
    """Give a feature a refined outline (in `crs`) and measure it; its other attributes stay.

    `on_top`: the features that the outline overlaps lose what it covers.
    """
    (state,) = _states(layer, [feature_id])
    outline = placed(geometry, crs, layer=layer)
    changes = with_geometry(layer, state, outline)
    if on_top:
        changes = [*cut_out(layer, outline, keep=[feature_id]), *changes]
    return write(layer, "refine 1 object", changes)


def feature_at(layer: QgsVectorLayer, point: QgsPointXY, *, crs: QgsCoordinateReferenceSystem) -> int | None:
    """Return the id of the smallest feature at a point (in `crs`), None where there is none."""
    place = placed(QgsGeometry.fromPointXY(point), crs, layer=layer)
    hits = [feature for feature in near(layer, place.boundingBox()) if feature.geometry().intersects(place)]
    return min(hits, key=lambda feature: feature.geometry().area()).id() if hits else None


def with_touching(layer: QgsVectorLayer, feature_id: int) -> list[int]:
    """Return a feature and those that touch or overlap it: what a merge without selection takes."""
    (state,) = _states(layer, [feature_id])
    others = [
        feature.id()
        for feature in near(layer, state.geometry.boundingBox())
        if feature.id() != feature_id and feature.geometry().intersects(state.geometry)
    ]
    return [feature_id, *others]


def _states(layer: QgsVectorLayer, feature_ids: Iterable[int]) -> list[FeatureState]:
    check_polygons(layer)
    return states_of(layer, feature_ids)


def _pieces(geometry: QgsGeometry, blade: QgsGeometry) -> list[QgsGeometry]:
    """Return what a line makes of a polygon, the largest piece first, with the parts that it does not cut."""
    whole: list[QgsGeometry] = []
    pieces: list[QgsGeometry] = []
    for part in geometry.asGeometryCollection():
        boundary = QgsGeometry(part.constGet().boundary())
        noded = QgsGeometry.unaryUnion([boundary, blade])
        faces = QgsGeometry.polygonize([noded]).asGeometryCollection()
        # Holes are faces too.
        inside = [face for face in faces if part.contains(face.pointOnSurface())]
        if len(inside) > 1:
            pieces += inside
        else:
            whole.append(part)
    pieces.sort(key=lambda piece: piece.area(), reverse=True)
    if not pieces:
        return [geometry]
    return [QgsGeometry.collectGeometry([pieces[0], *whole]), *pieces[1:]]


def _sums(layer: QgsVectorLayer, states: Iterable[FeatureState]) -> dict[str, float]:
    sums = {}
    for name in _ADDED_UP:
        field = field_of(layer, name)
        if field is not None:
            given = [state.attributes.get(field) for state in states]
            sums[name] = sum(value for value in given if isinstance(value, int | float))
    return sums


def _has(state: FeatureState, attributes: Mapping[str, Any]) -> bool:
    return all(is_same_value(state.attributes.get(name), value) for name, value in attributes.items())


def _with(state: FeatureState | None, attributes: Mapping[str, Any]) -> FeatureState | None:
    return state and replace(state, attributes={**state.attributes, **attributes})


def _counted(n: int) -> str:
    return "1 object" if n == 1 else f"{n} objects"
