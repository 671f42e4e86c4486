"""Outlines as a map wants them: right angles, fewer corners, no overlaps, shared borders; tolerances in metres.

All of it happens in a plane frame around the object whose unit is the metre on the ground, so that a right angle is one
there, whatever the CRS. Overlays, simplification (Douglas-Peucker that keeps the topology) and snapping are QGIS's and
GEOS's. Right angles are not `QgsGeometry.orthogonalize`, which needs an outline that has nearly right angles already:
of a traced mask, corner by corner, it makes steps; `processing.raster.right_angles` fits walls to the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qgis.analysis import QgsGeometrySnapper
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsDistanceArea,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsUnitTypes,
)
from qgis.PyQt.QtGui import QTransform

from .feature_outlines import polygons_only, valid_polygons

# Below this overlap with the mask, right angles are not what the object has.
_LEAST_IOU = 0.9


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """What is done to an outline, all off by default.

    `simplify_m`: largest deviation of the simplified outline. `right_angles`: walls at right angles where the mask
    allows it. `min_area_m2`: parts and holes below it go. `no_overlaps`: what other objects cover is left to them, or,
    with `new_on_top`, taken from them when the object is accepted. `snap_m`: borders nearer than this are shared.
    """

    simplify_m: float = 0.0
    right_angles: bool = False
    min_area_m2: float = 0.0
    no_overlaps: bool = False
    snap_m: float = 0.0
    new_on_top: bool = False

    @property
    def needs_neighbours(self) -> bool:
        """True where the outline depends on other objects."""
        return self.snap_m > 0 or (self.no_overlaps and not self.new_on_top)


def shaped(
    geometry: QgsGeometry,
    crs: QgsCoordinateReferenceSystem,
    options: ShapeOptions,
    *,
    neighbours: Iterable[QgsGeometry] = (),
) -> QgsGeometry:
    """Return the outline as `options` want it, a multipolygon in the same CRS, empty where nothing is left.

    `neighbours`: polygons of the target layer near it, in the same CRS (`TargetChoice.neighbours`). Right angles that
    would not look like the mask (IoU below 0.9) are not taken; the outline is then simplified only.
    """
    if geometry.isEmpty() or options in (ShapeOptions(), ShapeOptions(no_overlaps=True, new_on_top=True)):
        return QgsGeometry(geometry)
    to_metres = metric_frame(geometry, crs)
    outline = _transformed(geometry, to_metres)
    near = [valid_polygons(_transformed(other, to_metres)) for other in neighbours] if options.needs_neighbours else []
    outline = _without_small(outline, options.min_area_m2)
    if options.right_angles:
        parts = [_regular(part, options.simplify_m) for part in outline.asGeometryCollection()]
        outline = polygons_only(QgsGeometry.unaryUnion(parts)) if len(parts) > 1 else _first(parts)
    elif options.simplify_m > 0:
        outline = _simplified(outline, options.simplify_m)
    if options.snap_m > 0 and near and not outline.isEmpty():
        outline = _snapped(outline, near, options.snap_m)
    if options.no_overlaps and not options.new_on_top:
        touching = [other for other in near if outline.intersects(other)]
        if touching:
            left = outline.difference(QgsGeometry.unaryUnion(touching))
            outline = outline if left.isNull() else polygons_only(left)  # Null: the overlay failed.
    outline = _without_small(outline, options.min_area_m2)
    back, _ = to_metres.inverted()
    result = _transformed(outline, back)
    result.convertToMultiType()
    return result


def metric_frame(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem) -> QTransform:
    """Return the affine transform from map units to metres east and north of the middle of a geometry.

    From the lengths and bearings, on the ellipsoid, of one short step along each axis: exact for objects of up to some
    kilometres. Without a CRS map units count as metres.
    """
    centre = geometry.boundingBox().center()
    if not crs.isValid():
        return QTransform.fromTranslate(-centre.x(), -centre.y())
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, QgsProject.instance().transformContext())
    measure.setEllipsoid(crs.ellipsoidAcronym())
    unit_m = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), QgsUnitTypes.DistanceMeters)
    if not measure.willUseEllipsoid():
        return QTransform.fromTranslate(-centre.x(), -centre.y()) * QTransform.fromScale(unit_m, unit_m)
    step = 1e-4 if crs.isGeographic() else 10.0 / unit_m
    east, north = [], []
    for dx, dy in ((step, 0.0), (0.0, step)):
        end = QgsPointXY(centre.x() + dx, centre.y() + dy)
        length, bearing = measure.measureLine(centre, end) / step, measure.bearing(centre, end)
        east.append(length * math.sin(bearing))
        north.append(length * math.cos(bearing))
    turn = QTransform(east[0], north[0], east[1], north[1], 0.0, 0.0)
    return QTransform.fromTranslate(-centre.x(), -centre.y()) * turn


def _transformed(geometry: QgsGeometry, transform: QTransform) -> QgsGeometry:
    copy = QgsGeometry(geometry)
    copy.transform(transform)
    return copy


def _without_small(outline: QgsGeometry, min_area_m2: float) -> QgsGeometry:
    if min_area_m2 <= 0:
        return outline
    filled = outline.removeInteriorRings(min_area_m2)
    return polygons_only(
        QgsGeometry.collectGeometry([part for part in filled.asGeometryCollection() if part.area() >= min_area_m2])
    )


def _snapped(outline: QgsGeometry, near: list[QgsGeometry], snap_m: float) -> QgsGeometry:
    mode = QgsGeometrySnapper.SnapMode.PreferNodes
    return valid_polygons(QgsGeometrySnapper.snapGeometry(outline, snap_m, near, mode))


def _regular(part: QgsGeometry, simplify_m: float) -> QgsGeometry:
    """Return a polygon with right angles, or simplified where it has none."""
    from ..processing.raster.right_angles import own_tolerance_m, regular_rings, rings_from_wkb, rings_to_wkb

    tolerance_m = max(simplify_m, own_tolerance_m(rings_from_wkb(_wkb(part))[0], part.area()))
    simplified = _simplified(part, tolerance_m)
    simple = simplified.asGeometryCollection()
    if len(simple) != 1:
        return simplified
    traced = rings_from_wkb(_wkb(part.densifyByDistance(tolerance_m)))
    regular = regular_rings(rings_from_wkb(_wkb(simple[0])), traced, tolerance_m=tolerance_m)
    if regular is None:
        return simplified
    result = valid_polygons(_polygon(rings_to_wkb(regular)))
    return result if _iou(result, part) >= _LEAST_IOU else simplified


def _simplified(geometry: QgsGeometry, tolerance_m: float) -> QgsGeometry:
    from ..processing.raster.right_angles import from_a_corner, rings_from_wkb, rings_to_wkb

    parts = [
        _polygon(rings_to_wkb(from_a_corner(rings_from_wkb(_wkb(part))))) for part in geometry.asGeometryCollection()
    ]
    turned = QgsGeometry.collectGeometry(parts) if len(parts) > 1 else _first(parts)
    return valid_polygons(turned.simplify(tolerance_m))


def _wkb(polygon: QgsGeometry) -> bytes:
    return bytes(polygon.asWkb())


def _polygon(wkb: bytes) -> QgsGeometry:
    polygon = QgsGeometry()
    polygon.fromWkb(wkb)
    return polygon


def _iou(one: QgsGeometry, other: QgsGeometry) -> float:
    common = one.intersection(other).area()
    union = one.area() + other.area() - common
    return float(common / union) if union > 0 else 0.0


def _first(parts: list[QgsGeometry]) -> QgsGeometry:
    return parts[0] if parts else QgsGeometry.fromWkt("MultiPolygon EMPTY")
