"""True sizes on the ground, for any CRS: degrees, feet, Web Mercator, other planets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS


def apply_affine(transform: Affine, xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Send (N, 2) points through `transform`, rotation and shear included."""
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    moved: npt.NDArray[np.float64] = xy @ matrix.T + (transform.c, transform.f)
    return moved


@dataclass(frozen=True, eq=False)
class GroundFrame:
    """The ellipsoid of a CRS and the way onto it.

    `to_lonlat` is None for a CRS without a place on the globe (a site's local grid); `unit_m` then is the
    length of its unit in metres.
    """

    geod: pyproj.Geod | None
    to_lonlat: pyproj.Transformer | None
    unit_m: float

    def lonlat(self, map_xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn (N, 2) map coordinates into (N, 2) degrees, longitude first; infinite where impossible."""
        if self.to_lonlat is None:
            return np.full(map_xy.shape, np.inf)
        lon, lat = self.to_lonlat.transform(map_xy[:, 0], map_xy[:, 1])
        return np.stack([lon, lat], axis=1)


def ground_frame(crs: CRS) -> GroundFrame:
    """Find the ground frame of `crs`."""
    return _ground_frame(crs.to_wkt())


@lru_cache(maxsize=32)
def _ground_frame(wkt: str) -> GroundFrame:
    crs = pyproj.CRS.from_wkt(wkt)
    unit_m = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    geod = crs.get_geod()
    if geod is None:
        return GroundFrame(None, None, unit_m)
    # Degrees from Greenwich on the CRS's own ellipsoid: no datum shift, and grads or a Paris meridian come
    # out right.
    lonlat = pyproj.CRS.from_dict({"proj": "longlat", "a": geod.a, "b": geod.b})
    try:
        return GroundFrame(geod, pyproj.Transformer.from_crs(crs, lonlat, always_xy=True), unit_m)
    except ProjError:
        return GroundFrame(None, None, unit_m)


class GroundPixel(NamedTuple):
    """A pixel in metres on the ground: `height` to the next row, `width` to the next column.

    `side`: of a square as large.
    """

    height: float
    width: float
    side: float


def pixel_side_m(transform: Affine, *, shape: tuple[int, int], crs: CRS | None) -> float | None:
    """Side in metres of a square as large as the pixel that `ground_pixel` finds, None where there is none."""
    pixel = ground_pixel(transform, shape=shape, crs=crs)
    return None if pixel is None else pixel.side


def ground_pixel(transform: Affine, *, shape: tuple[int, int], crs: CRS | None) -> GroundPixel | None:
    """The centre pixel of a raster of `shape`.

    None where it cannot be known: no CRS, or a centre that the CRS has no place for.
    """
    if crs is None:
        return None
    frame = ground_frame(crs)
    if frame.geod is None:
        height, width = math.hypot(transform.b, transform.e), math.hypot(transform.a, transform.d)
        side = math.sqrt(abs(transform.determinant))
        return GroundPixel(height * frame.unit_m, width * frame.unit_m, side * frame.unit_m)
    x, y = shape[1] / 2, shape[0] / 2
    lonlat = frame.lonlat(apply_affine(transform, np.array([(x, y), (x + 1, y), (x, y + 1)])))
    if not np.isfinite(lonlat).all():
        return None
    (lon, lat), ends = lonlat[0], lonlat[1:]
    azimuths, _, lengths = frame.geod.inv([lon, lon], [lat, lat], ends[:, 0], ends[:, 1])
    turn = math.radians(azimuths[1] - azimuths[0])
    side_m = math.sqrt(abs(lengths[0] * lengths[1] * math.sin(turn)))
    return GroundPixel(lengths[1], lengths[0], side_m) if math.isfinite(side_m) and side_m > 0 else None
