"""Overlapping windows to one seamless answer: where windows lie, how they are weighted, and the way back to pixels.

Windows are anchored at the raster's origin, so that the answer at a place never depends on which part was asked for.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from .resample import area_weights, linear_weights

FloatArray = npt.NDArray[np.float32]
Bounds = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels."""
Part = tuple[slice, slice]
"""Rows and columns."""

_LEAST_WEIGHT = 1e-3
_MARGIN_PX = 2
"""Grid pixels that the way back looks at beyond a block."""


@dataclass(frozen=True)
class Windows:
    """Square windows of `chip_px` grid pixels whose neighbours share `overlap_px`, over a grid (rows, cols).

    The last window of each axis ends with the grid, so that all of it is image; only a grid smaller than a window is
    exceeded.
    """

    chip_px: int
    overlap_px: int
    grid_shape: tuple[int, int]

    def starts(self, axis: int) -> npt.NDArray[np.int64]:
        """First pixels of the windows along `axis` (0 rows, 1 columns), ascending."""
        last = max(0, self.grid_shape[axis] - self.chip_px)
        step = max(1, self.chip_px - self.overlap_px)
        return np.minimum(np.arange(math.ceil(last / step) + 1) * step, last).astype(np.int64)

    def over(self, bounds: Bounds) -> list[tuple[int, int]]:
        """(column, row) of the windows that share a pixel with a part of the grid, row by row."""
        left, top, right, bottom = bounds
        rows, cols = self.starts(0), self.starts(1)
        rows = rows[(rows < bottom) & (rows + self.chip_px > top)]
        cols = cols[(cols < right) & (cols + self.chip_px > left)]
        return [(int(col), int(row)) for row in rows for col in cols]

    def taper(self) -> FloatArray:
        """Weights (chip_px, chip_px), 0 < w <= 1: 1 inside, falling as a raised cosine over the overlap.

        A Tukey window (Harris 1978, doi:10.1109/PROC.1978.10837), moved inwards: the outer quarter of an overlap,
        where a network saw least around a pixel, counts only where no other window says anything. Neighbours sum to 1
        in what they share.
        """
        ramp = min(self.overlap_px, self.chip_px // 2)
        side = np.ones(self.chip_px)
        place = np.clip((np.arange(ramp) + 0.5) / max(1, ramp) * 2 - 0.5, 0, 1)
        rise = np.maximum(np.sin(place * np.pi / 2) ** 2, _LEAST_WEIGHT)
        side[:ramp], side[self.chip_px - ramp :] = rise, rise[::-1]
        return np.outer(side, side).astype(np.float32)


@dataclass(frozen=True)
class Block:
    """A part of the raster that is worked out on its own: `pixels` on the raster, and what of the `grid` it needs."""

    name: str
    pixels: Bounds
    grid: Bounds

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) in raster pixels."""
        return self.pixels[3] - self.pixels[1], self.pixels[2] - self.pixels[0]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, cols) in grid pixels."""
        return self.grid[3] - self.grid[1], self.grid[2] - self.grid[0]

    def shared_with(self, shape: tuple[int, int], *, col_off: int, row_off: int) -> tuple[Part, Part]:
        """Rows and columns that the block and a rectangle of the grid (rows, cols) share: of the block, and of that."""
        left, top, right, bottom = self.grid
        x0, x1 = max(left, col_off), min(right, col_off + shape[1])
        y0, y1 = max(top, row_off), min(bottom, row_off + shape[0])
        in_block = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        return in_block, (slice(y0 - row_off, y1 - row_off), slice(x0 - col_off, x1 - col_off))


def plan_blocks(windows: Windows, *, scale: tuple[float, float], bounds: Bounds, side_px: int) -> list[Block]:
    """Cut `bounds` (raster pixels) into blocks of at most about `side_px` grid pixels, row by row.

    Their borders depend on the windows alone, `bounds` only cuts them: blocks of another extent have the same. They
    lie where a window just ended, so that the fewest windows are needed by two blocks. `scale`: grid pixels per raster
    pixel, down the rows and across the columns.
    """
    columns = _spans(windows, 1, scale=scale[1], first=bounds[0], last=bounds[2], side_px=side_px)
    rows = _spans(windows, 0, scale=scale[0], first=bounds[1], last=bounds[3], side_px=side_px)
    return [
        Block(f"{top}_{left}", (left, top, right, bottom), (grid_left, grid_top, grid_right, grid_bottom))
        for (top, bottom), (grid_top, grid_bottom) in rows
        for (left, right), (grid_left, grid_right) in columns
    ]


def _spans(
    windows: Windows, axis: int, *, scale: float, first: int, last: int, side_px: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Raster pixels from and to, and grid pixels from and to, of the blocks along one axis."""
    starts = windows.starts(axis)
    step = max(1, windows.chip_px - windows.overlap_px)
    edges = starts[:: max(1, side_px // step)][1:] + windows.overlap_px + _MARGIN_PX
    cuts = np.ceil(edges / scale - 0.5).astype(int)
    inside = sorted({int(cut) for cut in cuts if first < cut < last})
    ends = [first, *inside, last]
    return [
        ((start, stop), _grid_span(start, stop, scale=scale, size=windows.grid_shape[axis]))
        for start, stop in itertools.pairwise(ends)
    ]


def _grid_span(start: int, stop: int, *, scale: float, size: int) -> tuple[int, int]:
    """Grid pixels that raster pixels `start` to `stop` are made of."""
    low = math.floor(min(start * scale, (start + 0.5) * scale - 0.5))
    high = math.ceil(max(stop * scale, (stop - 0.5) * scale + 0.5))
    # An axis of one pixel, or a raster that is not a whole number of grid pixels.
    low = min(max(0, low), size - 1)
    return low, min(max(low + 1, high), size)


def way_back(start: int, stop: int, low: int, high: int, *, scale: float) -> csr_matrix:
    """Weights (raster pixels start..stop, grid pixels low..high) of one axis; rows sum to 1."""
    if scale < 1:
        return linear_weights(start, stop, scale=scale, low=low, high=high)
    weights = area_weights(start, stop, scale=scale, low=low, high=high)
    # Not all sum to `scale`: a raster may end within a grid pixel.
    return weights.multiply(1 / weights.sum(axis=1)).tocsr()
