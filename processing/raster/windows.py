"""Square windows on the raster's own grid, in integer pixels.

Every window is anchored at the raster's origin, never at the view or the extent, so that the same place
always gets the same window and its embedding can be reused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

from rasterio.windows import Window

from ..errors import RasterError

WINDOW_SIZES_PX = (256, 512, 1024, 2048)
"""Sides that a user can choose; an object too large for them gets a fitting one, up to 8192."""

_LARGEST_PX = 8192

Bounds = tuple[float, float, float, float]
"""Left, top, right, bottom in raster pixels, x right and y down."""

_AxisT = TypeVar("_AxisT")
_ItemT_co = TypeVar("_ItemT_co", covariant=True)


@dataclass(frozen=True, order=True)
class SquareWindow:
    """A square of `size_px` raster pixels whose first pixel is (`col_off`, `row_off`), both at least 0.

    It reaches beyond the right or bottom edge only where the raster is smaller than the window.
    """

    col_off: int
    row_off: int
    size_px: int

    def bounds(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in raster pixels; the part beyond the raster's edge counts."""
        return self.col_off, self.row_off, self.col_off + self.size_px, self.row_off + self.size_px

    def contains_bounds(self, bounds: Bounds, *, margin_px: float = 0) -> bool:
        """Say whether `bounds` (pixels) lie inside and stay `margin_px` away from every side."""
        left, top, right, bottom = self.bounds()
        return (
            bounds[0] >= left + margin_px
            and bounds[1] >= top + margin_px
            and bounds[2] <= right - margin_px
            and bounds[3] <= bottom - margin_px
        )

    def inside(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) of the window that lie inside a raster of `shape` (rows, cols)."""
        return (
            max(0, min(self.size_px, shape[0] - self.row_off)),
            max(0, min(self.size_px, shape[1] - self.col_off)),
        )

    def to_rasterio(self, shape: tuple[int, int]) -> Window:
        """The part inside a raster of `shape` (rows, cols), as rasterio takes it."""
        rows, cols = self.inside(shape)
        return Window(col_off=self.col_off, row_off=self.row_off, width=cols, height=rows)


@dataclass(frozen=True)
class CoreCell:
    """A cell of a whole-raster walk: `core_px` (left, top, right, bottom) and the window around it."""

    core_px: tuple[int, int, int, int]
    window: SquareWindow


class Grid(Sequence[_ItemT_co], Generic[_ItemT_co]):
    """A lazy row-major sequence over the product of rows and columns.

    It holds what is told per row and per column only, so that walking a raster of any size costs no memory.
    """

    def __init__(
        self, rows: Sequence[_AxisT], cols: Sequence[_AxisT], *, build: Callable[[_AxisT, _AxisT], _ItemT_co]
    ) -> None:
        self._n_cols = len(cols)
        self._n_items = len(rows) * len(cols)
        self._at: Callable[[int], _ItemT_co] = lambda index: build(
            rows[index // self._n_cols], cols[index % self._n_cols]
        )

    def __len__(self) -> int:
        """Number of items."""
        return self._n_items

    @overload
    def __getitem__(self, index: int) -> _ItemT_co: ...

    @overload
    def __getitem__(self, index: slice) -> list[_ItemT_co]: ...

    def __getitem__(self, index: int | slice) -> _ItemT_co | list[_ItemT_co]:
        """The item at `index`, or the list of a slice."""
        positions = range(self._n_items)[index]
        if isinstance(positions, range):
            return [self._at(position) for position in positions]
        return self._at(positions)


def lattice_window(x: float, y: float, *, size_px: int, shape: tuple[int, int]) -> SquareWindow:
    """The window that a prompt at (`x`, `y`) raster pixels gets in a raster of `shape` (rows, cols).

    Its origin is a multiple of half its side, chosen so that the point lies in the central half; then it is
    shifted inside the raster. A point outside the raster gets the window of the nearest edge. Raises
    `RasterError` for a side that is not an even positive number, and for a point that is not finite.
    """
    _check(size_px, shape)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise RasterError(f"Point ({x}, {y}) is not finite; give pixels of the raster.")
    row_off, col_off = (
        _lattice_origin(_lattice_index(value, size_px=size_px), size_px=size_px, length_px=length)
        for value, length in ((y, shape[0]), (x, shape[1]))
    )
    return SquareWindow(col_off, row_off, size_px)


def lattice_windows(bounds_px: Bounds, *, size_px: int, shape: tuple[int, int]) -> Sequence[SquareWindow]:
    """Every window that prompts inside `bounds_px` get from `lattice_window`, row-major, each once, lazily.

    `bounds_px` is (left, top, right, bottom) raster pixels: left <= x < right, top <= y < bottom; bounds
    without an area stand for their one point or line. Bounds are limited to the raster; outside it there is
    nothing.
    """
    _check(size_px, shape)
    limited = _limit(bounds_px, shape)
    if limited is None:
        return ()
    left, top, right, bottom = limited
    rows = _lattice_origins(top, bottom, size_px=size_px, length_px=shape[0])
    cols = _lattice_origins(left, right, size_px=size_px, length_px=shape[1])
    return Grid(rows, cols, build=lambda row_off, col_off: SquareWindow(col_off, row_off, size_px))


def fitting_size_px(extent_px: float) -> int:
    """Side of the window for an object: a power of two from 256 to 8192, at least twice `extent_px`.

    The lattice window of that side around the object's centre then contains the object; above 4096 px the
    limit wins and it may not.
    """
    size_px = WINDOW_SIZES_PX[0]
    while size_px < 2 * extent_px and size_px < _LARGEST_PX:
        size_px *= 2
    return size_px


def core_grid(
    shape: tuple[int, int], *, size_px: int, halo_px: int, bounds_px: Bounds | None = None
) -> Sequence[CoreCell]:
    """Cover a raster of `shape` (rows, cols) by cells without overlap, each in its window; row-major, lazily.

    Window k of an axis starts at k x (`size_px` - 2 x `halo_px`), whatever `bounds_px` says, so that an
    object found for one extent is found alike for another. A core keeps `halo_px` from every side of its
    window that is not the raster's edge. With `bounds_px` only the cells that meet these bounds are given,
    whole. Raises `RasterError` where the halo leaves no core.
    """
    _check(size_px, shape)
    if halo_px < 0 or 2 * halo_px >= size_px:
        raise RasterError(
            f"A halo of {halo_px} px leaves nothing of a window of {size_px} px; give less than half of it."
        )
    limited = _limit(bounds_px or (0, 0, shape[1], shape[0]), shape)
    if limited is None:
        return ()
    left, top, right, bottom = limited
    rows = _core_spans(top, bottom, size_px=size_px, halo_px=halo_px, length_px=shape[0])
    cols = _core_spans(left, right, size_px=size_px, halo_px=halo_px, length_px=shape[1])
    return Grid(
        rows,
        cols,
        build=lambda row, col: CoreCell((col[0], row[0], col[1], row[1]), SquareWindow(col[2], row[2], size_px)),
    )


def _check(size_px: int, shape: tuple[int, int]) -> None:
    if size_px < 2 or size_px % 2:
        raise RasterError(f"A window of {size_px} px has no lattice; give an even number of pixels.")
    if min(shape) < 1:
        raise RasterError(f"A raster of shape {shape} holds no pixel; give one with rows and columns.")


def _limit(bounds: Bounds, shape: tuple[int, int]) -> Bounds | None:
    """The part of `bounds` inside the raster, None where there is none."""
    left, top = max(bounds[0], 0), max(bounds[1], 0)
    right, bottom = min(bounds[2], shape[1]), min(bounds[3], shape[0])
    # Written so that NaN, which an empty extent brings, gives nothing as well.
    if not (left <= right and top <= bottom and left < shape[1] and top < shape[0]):
        return None
    # Bounds that only touch the raster from outside share a line with it, not a pixel.
    if (right == 0 and bounds[0] < 0) or (bottom == 0 and bounds[1] < 0):
        return None
    return left, top, right, bottom


def _lattice_index(value: float, *, size_px: int) -> int:
    return math.floor((value - size_px / 4) / (size_px // 2))


def _lattice_origin(index: int, *, size_px: int, length_px: int) -> int:
    return max(0, min(index * (size_px // 2), length_px - size_px))


def _lattice_origins(low: float, high: float, *, size_px: int, length_px: int) -> Sequence[int]:
    first = _lattice_index(low, size_px=size_px)
    last = max(first, math.ceil((high - size_px / 4) / (size_px // 2)) - 1)
    origins = (_lattice_origin(index, size_px=size_px, length_px=length_px) for index in range(first, last + 1))
    return list(dict.fromkeys(origins))


def _core_spans(
    low: float, high: float, *, size_px: int, halo_px: int, length_px: int
) -> Sequence[tuple[int, int, int]]:
    """(core start, core end, window offset) along one axis, for the cores that meet `low`..`high`."""
    step_px = size_px - 2 * halo_px
    n_cells = max(1, math.ceil((length_px - 2 * halo_px) / step_px)) if length_px > size_px else 1
    # The edge of the raster needs no halo, so the first and the last core reach it.
    first = min(n_cells - 1, max(0, math.floor((low - halo_px) / step_px)))
    last = max(first, min(n_cells - 1, math.ceil((high - halo_px) / step_px) - 1))
    spans = []
    for index in range(first, last + 1):
        start = index * step_px + halo_px if index else 0
        end = (index + 1) * step_px + halo_px if index < n_cells - 1 else length_px
        spans.append((start, end, max(0, min(index * step_px, length_px - size_px))))
    return spans
