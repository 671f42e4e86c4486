"""Where the analyst should look next: places where the class map is uncertain, mixed and large.

In the manner of DIAL (Lenczner et al. 2022, https://arxiv.org/abs/2201.01047) and RIPU (Xie et al. 2022,
https://arxiv.org/abs/2111.12940): entropy of the prediction times impurity of the neighbourhood, here per segment,
times the square root of the size, since a large mistake costs more. And times the square root of what a click there
would cover: how much nearer, on average, the image's segments would be to what was clicked (facility location, as in
Wei et al. 2015, https://proceedings.mlr.press/v37/wei15.html), so that what is odd and rare waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from ...models.similarity import unit
from ..raster.windows import Bounds
from .class_map import ClassMapper, SegmentView
from .class_scores import overlap

# Of several uncertain segments side by side one is enough: its neighbours change with the next click.
_APART_SEGMENTS = 6.0
# A place that is uncertain but has neighbours of one class only still counts.
_LEAST_IMPURITY = 0.2
# Segments that stand for the image, and those of most value among which the choice is made.
_REFERENCES, _SHORTLIST = 600, 2000
# Where every segment is like one that was clicked, a place still counts.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class Region:
    """A place worth a look: `centre` (x, y) and `bounds` (left, top, right, bottom) in raster pixels, and its value."""

    centre: tuple[float, float]
    bounds: Bounds
    value: float


def uncertain_regions(
    mapper: ClassMapper,
    bounds_px: Bounds | None = None,
    *,
    visited_px: npt.ArrayLike = (),
    most: int = 20,
    only_encoded: bool = False,
) -> list[Region]:
    """The most valuable regions of an extent, best first.

    Regions near a click, near one of `visited_px` (N, 2) x, y, or near a better region are left out. Raises
    `ClassHeadError` before the first click.
    """
    views, values = [], []
    for view in mapper.segment_views(bounds_px, only_encoded=only_encoded):
        views.append(view)
        values.append(_values(view, None if bounds_px is None else mapper.limited(bounds_px)))
    if not views:
        return []
    value = np.concatenate(values)
    centre = np.concatenate([view.block.centres_px for view in views])
    apart = _APART_SEGMENTS * np.sqrt(np.concatenate([view.block.sizes_px for view in views]))
    starts = np.cumsum([0, *map(len, values)])
    known = np.concatenate([np.asarray(visited_px, np.float64).reshape(-1, 2), mapper.clicked_pixels() + 0.5])
    if len(known):
        # Before any choice: a click or a visit leaves its place worth most, and must not hide what is worth less.
        value[cKDTree(known).query(centre, p=np.inf)[0] < apart] = 0
    units = np.concatenate([view.block.segment_units for view in views])
    references = unit(units[:: max(1, len(units) // _REFERENCES)])
    shortlist = np.argsort(-value, kind="stable")[:_SHORTLIST]
    likeness = unit(units[shortlist]) @ references.T
    covered = np.max([np.zeros(len(references)), *(unit(said) @ references.T for said in mapper.said_units())], axis=0)
    left, found = value[shortlist], list[Region]()
    while len(found) < most and left.max() > 0:
        gain = np.maximum(likeness - covered, 0).mean(axis=1)
        worth = left * np.sqrt(gain + _LEAST_GAIN)
        best = int(worth.argmax())
        index = int(shortlist[best])
        number = int(np.searchsorted(starts, index, side="right")) - 1
        region = _region(views[number], index - int(starts[number]), value=float(worth[best]))
        left[best] = 0
        if bounds_px is None or _is_inside(region.centre, bounds_px):
            found.append(region)
            left[np.abs(centre[shortlist] - centre[index]).max(axis=1) < apart[shortlist]] = 0
            covered = np.maximum(covered, likeness[best])
    return found


def _values(view: SegmentView, limited: tuple[int, int, int, int] | None) -> npt.NDArray[np.float64]:
    """What a look at each segment is worth, (S,); nothing without data, nor outside an extent."""
    block = view.block
    value: npt.NDArray[np.float64] = view.entropy * (_LEAST_IMPURITY + impurity(view)) * np.sqrt(block.sizes_px)
    if block.valid is not None:
        share = np.bincount(block.segments.ravel(), block.valid.ravel()) / block.sizes_px
        value[share <= 0.5] = 0
    if limited is not None:
        inside = np.zeros(len(value), bool)
        inside[block.segments[overlap(block.core_px, limited)[0]]] = True
        value[~inside] = 0
    return value


def impurity(view: SegmentView) -> npt.NDArray[np.float32]:
    """How mixed the neighbourhood of each segment is, (S,), 0 to 1: entropy of the classes of it and around it."""
    labels, pairs = view.labels, view.block.neighbours
    classes, of_segments = np.unique(labels, return_inverse=True)
    n_classes = view.probabilities.shape[1]
    if n_classes < 2:
        return np.zeros(len(labels), np.float32)
    counts = np.zeros((len(labels), len(classes)), np.float32)
    counts[np.arange(len(labels)), of_segments] = 1
    for one, other in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
        np.add.at(counts, (one, of_segments[other]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    found = -(shares * np.log(np.maximum(shares, 1e-9))).sum(axis=1) / np.log(n_classes)
    limited: npt.NDArray[np.float32] = np.clip(found, 0, 1).astype(np.float32)
    return limited


def _region(view: SegmentView, index: int, *, value: float) -> Region:
    block = view.block
    rows, cols = np.nonzero(block.segments == index)
    left, top = block.core_px[:2]
    # The pixel of the segment nearest to its centre, which may lie outside a bent one.
    x, y = block.centres_px[index] - (left, top)
    nearest = int(np.argmin((cols + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2))
    bounds = (cols.min() + left, rows.min() + top, cols.max() + 1 + left, rows.max() + 1 + top)
    return Region(
        (float(cols[nearest] + left + 0.5), float(rows[nearest] + top + 0.5)),
        (float(bounds[0]), float(bounds[1]), float(bounds[2]), float(bounds[3])),
        value,
    )


def _is_inside(place: tuple[float, float], bounds: Bounds) -> bool:
    return bounds[0] <= place[0] < bounds[2] and bounds[1] <= place[1] < bounds[3]
