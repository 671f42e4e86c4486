"""Outlines of features: brought into the layer's CRS and type, cut out of each other, measured; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsFeatureRequest,
    QgsGeometry,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
    QgsWkbTypes,
)

from ..processing.algorithms.outputs import Ellipsoid
from .crs import CoordinateError, transformed
from .feature_sink import FeatureChange, FeatureState, SinkError, state_of
from .field_mapping import attributes_for

NEW = 0
"""Id of a feature that is not in the layer yet; the layer gives it one."""


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
    return [FeatureState(fid=NEW, geometry=part, attributes=dict(attributes)) for part in parts]


def fitted(layer: QgsVectorLayer, geometry: QgsGeometry) -> list[QgsGeometry]:
    """Return a geometry as the layer's type wants it: multi, single, with z."""
    return list(geometry.coerceToType(layer.wkbType()))


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
            fid=state.fid if number == 0 else NEW, geometry=outline, attributes={**state.attributes, **measures}
        )
        changes.append(FeatureChange(state if number == 0 else None, after))
    return changes


def cut_out(layer: QgsVectorLayer, geometry: QgsGeometry, *, keep: Sequence[int] = ()) -> list[FeatureChange]:
    """Return the changes that take an area in the layer's CRS away from the features which overlap it.

    Raises `SinkError` for a feature that the area cannot be taken from.
    """
    changes: list[FeatureChange] = []
    area = valid_polygons(geometry)
    engine = QgsGeometry.createGeometryEngine(area.constGet())
    engine.prepareGeometry()
    for feature in near(layer, area.boundingBox()):
        if feature.id() in keep:
            continue
        outline = valid_polygons(feature.geometry())
        if not engine.intersects(outline.constGet()) or engine.touches(outline.constGet()):
            continue
        state = state_of(layer, feature)
        left = outline.difference(area)
        if left.isNull():  # An overlay that failed leaves no geometry; one that leaves nothing, an empty one.
            raise SinkError(
                f"Nothing can be cut out of feature {feature.id()} of '{layer.name()}' ({left.lastError()}); mend it "
                "with Fix Geometries."
            )
        rest = polygons_only(left)
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


def valid_polygons(geometry: QgsGeometry) -> QgsGeometry:
    """Return polygons that overlays take: edited by hand, a ring may cross itself."""
    return geometry if geometry.isGeosValid() else polygons_only(geometry.makeValid())


def measured(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem) -> dict[str, float | None]:
    """Return area and perimeter on the ellipsoid by the public names of their fields."""
    ellipsoid = Ellipsoid(crs, QgsProject.instance().transformContext())
    return {"area_m2": ellipsoid.area_m2(geometry), "perimeter_m": ellipsoid.perimeter_m(geometry)}


def _is_polygon(geometry: QgsGeometry) -> bool:
    return bool(QgsWkbTypes.geometryType(geometry.wkbType()) == QgsWkbTypes.geometryType(QgsWkbTypes.Type.Polygon))


def _crs_name(crs: QgsCoordinateReferenceSystem) -> str:
    return str(crs.authid() or crs.description() or "a CRS of its own")
