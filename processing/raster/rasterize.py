"""Polygons back to masks, on the raster's own pixels: what `vectorize.polygonize` undoes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from ..errors import RasterError
from .geodesy import apply_affine

PixelBounds = tuple[int, int, int, int]
"""Left, top, right, bottom in whole raster pixels, right and bottom excluded."""


def burn(geometry: BaseGeometry, transform: Affine, *, bounds_px: PixelBounds) -> npt.NDArray[np.bool_]:
    """The pixels whose centres lie in `geometry`: bool (bottom - top, right - left) of `bounds_px`.

    `transform` sends raster pixels (x, y) to the CRS of `geometry` and may rotate and shear. `bounds_px` may reach
    beyond the raster, parts of `geometry` beyond `bounds_px` are left out. The outline of a mask gives exactly
    that mask back. Raises `RasterError` for bounds that turn round.
    """
    left, top, right, bottom = bounds_px
    if right < left or bottom < top:
        raise RasterError(f"Bounds {bounds_px} hold no pixel; give left < right and top < bottom.")
    shape = (bottom - top, right - left)
    if geometry.is_empty or 0 in shape:
        return np.zeros(shape, np.bool_)
    # In pixels, where the corners of a mask's outline are integers: in map units of ten digits the last one decides
    # on which side of a pixel's centre an edge lies.
    outline = shapely.transform(geometry, lambda xy: apply_affine(~transform, xy) - (left, top))
    drawn: npt.NDArray[np.bool_] = rasterize([outline], out_shape=shape, dtype="uint8").astype(np.bool_)
    return drawn


def pixel_bounds(geometry: BaseGeometry, transform: Affine) -> PixelBounds:
    """The whole pixels that hold `geometry`; (0, 0, 0, 0) for an empty one.

    Raises `RasterError` for coordinates that are not finite.
    """
    if geometry.is_empty:
        return 0, 0, 0, 0
    xy = shapely.get_coordinates(geometry)
    if not np.isfinite(xy).all():
        raise RasterError("A polygon has no finite place in the raster's CRS; check the CRS of the polygons.")
    xy = apply_affine(~transform, xy)
    # Corners of a mask's outline are whole pixels up to the last digits, which must not add a row.
    (left, top), (right, bottom) = np.round(xy.min(axis=0), 6), np.round(xy.max(axis=0), 6)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def joined(first: PixelBounds, second: PixelBounds) -> PixelBounds:
    """The smallest bounds around two; bounds without a pixel add nothing."""
    if first[2] <= first[0] or first[3] <= first[1]:
        return second
    if second[2] <= second[0] or second[3] <= second[1]:
        return first
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )
