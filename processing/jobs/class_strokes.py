"""What the analyst said with clicks and scribbles, and what that settles around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ...models.class_head import FloatArray
from ..errors import JobError
from .class_blocks import Block

_SCRIBBLE_UNITS = 40


@dataclass(frozen=True, eq=False)
class Stroke:
    """What was said with one gesture.

    `points`: of the line as it was drawn, raster pixels; `pixels` int64 (N, 2) x, y, all along it; `segment_units` and
    `cell_units` the features found there, one row per unit.
    """

    points: tuple[tuple[float, float], ...]
    pixels: npt.NDArray[np.int64]
    class_id: int
    segment_units: FloatArray
    cell_units: FloatArray


def pixels_along(points: Sequence[tuple[float, float]], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Every pixel on a line, int64 (N, 2) x, y, each once; those outside a raster of `shape` (rows, cols) are left out.

    Raises `JobError` where none is left.
    """
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    if not len(xy) or not np.isfinite(xy).all():
        raise JobError("A scribble without places says nothing; draw it again.")
    along = [xy[:1]]
    for start, end in pairwise(xy):
        n_steps = max(1, int(np.ceil(2 * np.abs(end - start).max())))
        along.append(start + (end - start) * (np.arange(1, n_steps + 1) / n_steps)[:, None])
    pixels = np.unique(np.floor(np.concatenate(along)).astype(np.int64), axis=0)
    rows, cols = shape
    inside: npt.NDArray[np.int64] = pixels[((pixels >= 0) & (pixels < (cols, rows))).all(axis=1)]
    if not len(inside):
        raise JobError("That place lies outside the raster; click on its image.")
    return inside


def thinned(parts: Sequence[npt.NDArray[Any]]) -> FloatArray:
    """Units of a stroke, at most a few dozen: a long scribble says one thing, and not everything."""
    units: FloatArray = np.concatenate(parts).astype(np.float32)
    return units[:: max(1, -(-len(units) // _SCRIBBLE_UNITS))]


def said_in(block: Block, strokes: Sequence[Stroke], *, is_snapped: bool) -> npt.NDArray[np.uint8] | None:
    """What the analyst said, uint8 (rows, cols) of a block, 0 where nothing: the unit around each clicked pixel.

    None where nothing was said in all of the block. Where two classes were clicked in one unit, each of its pixels goes
    to the nearest click; the pixels themselves have their own class, the last one said.
    """
    left, top, right, bottom = block.core_px
    places: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for stroke in strokes:
        inside = ((stroke.pixels >= (left, top)) & (stroke.pixels < (right, bottom))).all(axis=1)
        for x, y in stroke.pixels[inside] - (left, top):
            unit: tuple[int, ...] = (
                (int(block.segments[y, x]),) if is_snapped else (int(y) // block.cell_px, int(x) // block.cell_px)
            )
            places.setdefault(unit, []).append((int(x), int(y), stroke.class_id))
    if not places:
        return None
    said = np.zeros(block.segments.shape, np.uint8)
    for unit, clicks in places.items():
        rows, cols = _pixels_of(block, unit, clicks, is_snapped=is_snapped)
        nearest = (
            np.argmin([(cols - x) ** 2 + (rows - y) ** 2 for x, y, _ in clicks], axis=0)
            if len({c for *_, c in clicks}) > 1
            else np.zeros(len(rows), np.intp)
        )
        said[rows, cols] = np.array([c for *_, c in clicks], np.uint8)[nearest]
        for x, y, class_id in clicks:
            said[y, x] = class_id
    return said


def _pixels_of(
    block: Block, unit: tuple[int, ...], clicks: Sequence[tuple[int, int, int]], *, is_snapped: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    if not is_snapped:
        side = block.cell_px
        rows, cols = np.mgrid[unit[0] * side : (unit[0] + 1) * side, unit[1] * side : (unit[1] + 1) * side]
        inside = (rows < block.segments.shape[0]) & (cols < block.segments.shape[1])
        return rows[inside], cols[inside]
    # A segment is small: look for its pixels around the click only.
    x, y, _ = clicks[0]
    reach = 8 * int(np.sqrt(block.sizes_px[unit[0]])) + 8
    top, left = max(0, y - reach), max(0, x - reach)
    rows, cols = np.nonzero(block.segments[top : y + reach, left : x + reach] == unit[0])
    return rows + top, cols + left
