"""From what a head says of the segments and cells of a block to its pixels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ...models.class_head import FittedHead, FloatArray
from .class_blocks import Block

Part = tuple[slice, slice]
"""Rows and columns of a block."""

_AROUND = tuple((down, right) for down in range(3) for right in range(3))


def overlap(core_px: tuple[int, int, int, int], bounds: tuple[int, int, int, int]) -> tuple[Part, Part]:
    """Where a core and an extent, both (left, top, right, bottom), meet: in the core's array and in the extent's."""
    left, top = max(core_px[0], bounds[0]), max(core_px[1], bounds[1])
    right, bottom = min(core_px[2], bounds[2]), min(core_px[3], bounds[3])

    def within(origin: tuple[int, ...]) -> tuple[slice, slice]:
        return slice(top - origin[1], max(top, bottom) - origin[1]), slice(
            left - origin[0], max(left, right) - origin[0]
        )

    return within(core_px), within(bounds)


def labels_of(head: FittedHead, block: Block, part: Part, *, is_snapped: bool) -> npt.NDArray[np.uint8]:
    """Class ids of a part of a block, uint8 (rows, cols); `is_snapped`: whole segments get one class."""
    if is_snapped:
        of_segments = head.classes[scores_of(head, block, "segments").argmax(axis=1)]
        labels: npt.NDArray[np.uint8] = of_segments.take(block.segments[part])
        return labels
    return enlarged_labels(scores_of(head, block, "cells"), head.classes, block, part)


def probabilities_of(head: FittedHead, block: Block, part: Part, *, is_snapped: bool) -> FloatArray:
    """Probabilities (rows, cols, K) of a part of a block, as `labels_of` gives its labels."""
    if is_snapped:
        probabilities = head.probabilities(scores_of(head, block, "segments"))
        of_pixels: FloatArray = probabilities[block.segments[part]]
        return of_pixels
    return head.probabilities(enlarged(scores_of(head, block, "cells"), block, part))


def scores_of(head: FittedHead, block: Block, what: Literal["segments", "cells"]) -> FloatArray:
    """Scores (S, K) of segments or (r + 2, c + 2, K) of cells; columns of earlier supports are kept."""
    known = block.kept.get(what)
    if known is not None and known[0] is head:
        return known[2]  # type: ignore[no-any-return]  # kept by this function
    units = block.segment_units if what == "segments" else block.cell_units
    flat = units.reshape(-1, units.shape[-1])
    columns = _columns(head, flat, known)
    scores = head.scores(columns).reshape(*units.shape[:-1], -1)
    block.kept[what] = (head, columns, scores)
    return scores


def enlarged(scores: FloatArray, block: Block, part: Part) -> FloatArray:
    """Bilinear scores (rows, cols, K) of a part of a block, from cells with a margin of one."""
    side = block.cell_px
    first, share = _weights(side)

    def axis(values: FloatArray, span: slice) -> FloatArray:
        pixel = np.arange(span.start, span.stop)
        cell, place = pixel // side + 1 + first[pixel % side], share[pixel % side]
        shape_ = (-1, *([1] * (values.ndim - 1)))
        mixed: FloatArray = values[cell] * (1 - place).reshape(shape_) + values[cell + 1] * place.reshape(shape_)
        return mixed

    tall = axis(scores, part[0])
    return np.ascontiguousarray(axis(tall.swapaxes(0, 1), part[1]).swapaxes(0, 1))


def enlarged_labels(
    scores: FloatArray, class_ids: npt.NDArray[np.uint8], block: Block, part: Part
) -> npt.NDArray[np.uint8]:
    """The class of the highest of `enlarged(...)`, exactly, at a fraction of its cost: uint8 (rows, cols).

    Where a class leads in a cell and in its eight neighbours it leads everywhere between them, so that only cells at
    borders are interpolated.
    """
    side = block.cell_px
    leading = class_ids[torch.from_numpy(scores).argmax(dim=2).numpy()]
    inner = leading[1:-1, 1:-1]
    rows, cols = inner.shape
    same = np.ones(inner.shape, np.bool_)
    for down, right in _AROUND:
        same &= leading[down : down + rows, right : right + cols] == inner
    labels = inner.repeat(side, axis=0).repeat(side, axis=1)
    row, col = np.nonzero(~same)
    if len(row):
        around = np.stack([scores[row + down, col + right] for down, right in _AROUND])
        first, share = _weights(side)
        line = np.zeros((side, 3), np.float32)
        line[np.arange(side), 1 + first] += 1 - share
        line[np.arange(side), 2 + first] += share
        weights = np.einsum("ad,be->abde", line, line).reshape(side * side, 9)
        mixed = torch.from_numpy(weights) @ torch.from_numpy(around.reshape(9, -1))
        highest = mixed.reshape(side * side, len(row), -1).argmax(dim=2).numpy()
        tiles = labels.reshape(rows, side, cols, side).transpose(0, 2, 1, 3)
        tiles[row, col] = class_ids[highest.T].reshape(-1, side, side)
    return np.ascontiguousarray(labels[part])


def _columns(head: FittedHead, units: npt.NDArray[Any], known: Any) -> FloatArray:
    if known is None or head.kind == "tokens" or known[0].kind == "tokens":
        return head.columns(units)
    earlier = known[0].supports
    n_common = min(len(earlier), len(head.supports))
    if not n_common or not np.array_equal(earlier[:n_common], head.supports[:n_common]):
        return head.columns(units)
    more = head.columns(units, start=n_common)
    return np.concatenate([known[1][:, :n_common], more], axis=1)


def _weights(side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of the `side` pixels of a cell: the first of two cells it lies between (-1 or 0), and its share."""
    offset = (np.arange(side) + 0.5) / side - 0.5
    return np.floor(offset).astype(np.intp), (offset % 1).astype(np.float32)
