"""A mask that knows its place in the raster, small enough that thousands can wait for their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from affine import Affine
from shapely.geometry import MultiPolygon

from ...models.masks import LocalMask
from ...models.prompts import LOW_RES_PX
from ..raster.vectorize import polygonize
from ..raster.windows import Bounds, SquareWindow


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask at row `row_off`, column `col_off` of the raster; `packed` has one bit per pixel, row-major."""

    row_off: int
    col_off: int
    shape: tuple[int, int]
    packed: npt.NDArray[np.uint8]

    @classmethod
    def from_pixels(cls, pixels: npt.NDArray[np.bool_], *, row_off: int, col_off: int) -> PlacedMask:
        """Crop `pixels` (rows, cols) to what is set and place it; an empty mask has the shape (0, 0)."""
        rows, cols = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return cls(row_off, col_off, (0, 0), np.zeros(0, np.uint8))
        crop = pixels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        n_rows, n_cols = crop.shape
        return cls(row_off + int(rows[0]), col_off + int(cols[0]), (n_rows, n_cols), np.packbits(crop))

    @classmethod
    def from_local(
        cls, local: LocalMask, window: SquareWindow, *, valid: npt.NDArray[np.bool_] | None = None
    ) -> PlacedMask:
        """Place a mask of a window; `valid` (rows, cols of the window) takes nodata out of it."""
        pixels = local.pixels
        if valid is not None and pixels.size:
            rows, cols = pixels.shape
            pixels = pixels & valid[local.row_off : local.row_off + rows, local.col_off : local.col_off + cols]
        return cls.from_pixels(pixels, row_off=window.row_off + local.row_off, col_off=window.col_off + local.col_off)

    @property
    def pixels(self) -> npt.NDArray[np.bool_]:
        """The mask, bool (rows, cols)."""
        rows, cols = self.shape
        return np.unpackbits(self.packed, count=rows * cols).view(np.bool_).reshape(rows, cols)

    @cached_property
    def n_pixels(self) -> int:
        """How many pixels are set."""
        return int(self.pixels.sum())

    @property
    def bounds(self) -> Bounds:
        """Left, top, right, bottom in raster pixels."""
        rows, cols = self.shape
        return self.col_off, self.row_off, self.col_off + cols, self.row_off + rows

    def overlap_px(self, other: PlacedMask) -> int:
        """Number of pixels that both masks hold."""
        common = intersection(self.bounds, other.bounds)
        if common[2] <= common[0] or common[3] <= common[1]:
            return 0
        return int(np.count_nonzero(self._inside(common) & other._inside(common)))

    def count_inside(self, bounds: Bounds) -> int:
        """Number of pixels of the mask inside whole-numbered `bounds`."""
        common = intersection(self.bounds, bounds)
        if common[2] <= common[0] or common[3] <= common[1]:
            return 0
        return int(np.count_nonzero(self._inside(common)))

    def _inside(self, bounds: Bounds) -> npt.NDArray[np.bool_]:
        left, top, right, bottom = (int(value) for value in bounds)
        rows = slice(top - self.row_off, bottom - self.row_off)
        return self.pixels[rows, left - self.col_off : right - self.col_off]

    def to_geometry(self, transform: Affine) -> MultiPolygon:
        """Outline on the pixel grid, with holes, in the CRS of the raster's `transform`."""
        return polygonize(self.pixels, transform @ Affine.translation(self.col_off, self.row_off))


def intersection(first: Bounds, second: Bounds) -> Bounds:
    """Common part of two bounds; right < left or bottom < top where there is none."""
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )


def touches_inner_side(bounds: Bounds, window: SquareWindow, shape: tuple[int, int]) -> bool:
    """Whether something reaches a side of its window behind which a raster of `shape` goes on."""
    rows, cols = shape
    reach = window.size_px / LOW_RES_PX  # one cell of the decoder: nearer than that is at the side
    right, bottom = window.col_off + window.size_px, window.row_off + window.size_px
    return (
        (window.col_off > 0 and bounds[0] < window.col_off + reach)
        or (window.row_off > 0 and bounds[1] < window.row_off + reach)
        or (right < cols and bounds[2] > right - reach)
        or (bottom < rows and bounds[3] > bottom - reach)
    )
