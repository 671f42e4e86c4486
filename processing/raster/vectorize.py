"""Masks to polygons and back to numbers: exact outlines on the pixel grid, cleaning, true areas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

from .geodesy import apply_affine, ground_frame

_AREA_STEPS = 64
"""Edges longer than a 64th of the extent are cut for the area: they are straight in the CRS only."""


def polygonize(pixels: npt.NDArray[np.bool_], transform: Affine) -> MultiPolygon:
    """Outline the True pixels of `pixels` (rows, cols) exactly on the grid, with holes; empty for no pixels.

    `transform` sends pixels (x, y) of the array to map coordinates and may rotate and shear. Pixels that
    touch only at a corner are apart. Burning the result with the same transform gives `pixels` back.
    """
    if not pixels.any():
        return MultiPolygon()
    outlines = shapes(np.ascontiguousarray(pixels, np.uint8), mask=pixels, connectivity=4)
    polygons = [Polygon(rings["coordinates"][0], rings["coordinates"][1:]) for rings, _ in outlines]
    # In pixels first, where corners are integers: neighbours share corners to the last digit after the
    # transform too.
    return _moved(MultiPolygon(polygons), transform)


def clean(
    geometry: MultiPolygon, *, tolerance: float = 0.0, min_area_m2: float = 0.0, crs: CRS | None = None
) -> MultiPolygon:
    """Drop parts and fill holes smaller than `min_area_m2`, then simplify (Douglas-Peucker) by `tolerance`.

    `tolerance` is in map units of `crs` (degrees where it has them). Without a CRS map units count as metres.
    The result is valid; it is empty where nothing is large enough.
    """

    def is_small(polygon: Polygon) -> bool:
        # An area that is not known (NaN) is no reason to drop an object.
        return (float(polygon.area) if crs is None else area_m2(polygon, crs)) < min_area_m2

    polygons: list[Polygon] = list(geometry.geoms)
    if min_area_m2 > 0:
        filled = (
            Polygon(part.exterior, [ring for ring in part.interiors if not is_small(Polygon(ring))])
            for part in polygons
        )
        polygons = [part for part in filled if not is_small(part)]
    if tolerance <= 0:
        return MultiPolygon(polygons)
    simplified = shapely.simplify(MultiPolygon(polygons), tolerance, preserve_topology=True)
    if simplified.is_valid:
        return simplified
    # Rings that touched at a corner may cross now: repair each part, then join parts that overlap.
    return _as_multipolygon(shapely.union_all(shapely.buffer(simplified.geoms, 0)))


def area_m2(geometry: Any, crs: CRS | None) -> float:
    """Area on the ellipsoid of `crs`, in square metres, of a polygon or multipolygon in any CRS.

    NaN without a CRS, or where the CRS has no place for a corner.
    """
    if crs is None:
        return math.nan
    if geometry.is_empty:
        return 0.0
    frame = ground_frame(crs)
    if frame.geod is None:
        return float(geometry.area) * frame.unit_m**2
    left, bottom, right, top = geometry.bounds
    dense = shapely.segmentize(geometry, max(right - left, top - bottom) / _AREA_STEPS)
    lonlat = shapely.transform(dense, frame.lonlat)
    if not np.isfinite(shapely.get_coordinates(lonlat)).all():
        return math.nan
    # One ring's sign says on which side its inside is, so all have to turn alike.
    areas = (frame.geod.geometry_area_perimeter(orient(part))[0] for part in _polygons(lonlat))
    return float(sum(abs(area) for area in areas))


def _moved(geometry: MultiPolygon, transform: Affine) -> MultiPolygon:
    moved: MultiPolygon = shapely.transform(geometry, lambda xy: apply_affine(transform, xy))
    return moved


def _polygons(geometry: Any) -> Iterable[Polygon]:
    return [part for part in shapely.get_parts(geometry) if isinstance(part, Polygon)]


def _as_multipolygon(geometry: Any) -> MultiPolygon:
    return MultiPolygon(_polygons(geometry))
