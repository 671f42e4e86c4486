"""Clicks are kept: what an analyst clicked is so in the answer, whatever the network says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, label

from ..prompts import FOREGROUND

# A clicked cell is certain by this logit; what is repaired around it gets the same.
_CERTAIN = 1.0
# Cells that the network held for nearly as likely as the clicked one belong to the same error.
_TOLERANCE = 0.5
_LEAST_RADIUS = 1.5
_CRUMB_CELLS, _CRUMB_PART = 40, 0.05


def contradicted(
    logits: npt.NDArray[np.float32], points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which clicks (N, 2) in cells the mask of `logits` (256, 256) gets wrong: bool (N,)."""
    rows, cols = _cells(points, logits.shape)
    wrong: npt.NDArray[np.bool_] = (logits[rows, cols] > 0) != (labels == FOREGROUND)
    return wrong


def respect_clicks(
    logits: npt.NDArray[np.float32], points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Repair `logits` (256, 256) where they contradict clicks, the oldest first; the rest stays as it is.

    A simulated or a careful analyst clicks the middle of an error: it reaches about as far beyond the click as the
    mask's edge is away on this side, but not as far as a click of the other kind. Inside that radius, the part
    connected with the click that the network held for as likely turns over (FocalClick's rule of pasting only the
    component with the click, https://arxiv.org/abs/2204.02574). All clicks hold afterwards; of two kinds in one cell
    the newest.
    """
    repaired = logits
    if not (logits > 0).any():
        return logits  # where the model finds nothing, a dot under the click would pretend that it does
    cells = np.stack(_cells(points, logits.shape), axis=1)
    for n, label_of_click in enumerate(labels):
        if not contradicted(repaired, points[n : n + 1], labels[n : n + 1])[0]:
            continue
        to_others = np.hypot(*(cells[labels != label_of_click] - cells[n]).T)
        reach = float(to_others[to_others > 0].min(initial=np.inf))
        repaired = _turned(repaired, points[n], is_foreground=bool(label_of_click == FOREGROUND), reach=reach)
    return repaired


def without_specks(
    logits: npt.NDArray[np.float32], points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Take out crumbs of the mask of `logits` (256, 256), and fill crumbs in it, where nobody clicked.

    A crumb has less than `_CRUMB_PART` of the mask and fewer than `_CRUMB_CELLS` cells: smaller than what a person
    would click. (segment-anything's generator does the same with `min_mask_region_area`.)
    """
    cleaned = logits
    for sign, clicked in ((1, labels == FOREGROUND), (-1, labels != FOREGROUND)):
        parts, n_parts = label(sign * cleaned > 0)
        if n_parts < 2:
            continue
        sizes = np.bincount(parts.ravel())
        limit = min(_CRUMB_CELLS, _CRUMB_PART * int((cleaned > 0).sum()))
        crumbs = np.flatnonzero(sizes < limit)
        rows, cols = _cells(points[clicked], logits.shape)
        crumbs = np.setdiff1d(crumbs, [0, *parts[rows, cols]])
        cleaned = np.where(np.isin(parts, crumbs), -sign * np.abs(cleaned), cleaned).astype(np.float32)
    return cleaned


def _turned(
    logits: npt.NDArray[np.float32], point: npt.NDArray[np.float32], *, is_foreground: bool, reach: float
) -> npt.NDArray[np.float32]:
    """Turn over the error around a click; what is `reach` cells away or farther stays."""
    # Background is the same with the signs turned.
    signed = logits if is_foreground else -logits
    (row,), (col,) = _cells(point[None], logits.shape)
    rows, cols = np.ogrid[: logits.shape[0], : logits.shape[1]]
    outside = signed <= 0
    to_edge = float(distance_transform_edt(outside)[row, col]) if not outside.all() else _LEAST_RADIUS
    distance = np.hypot(rows - row, cols - col)
    near = (distance <= max(to_edge, _LEAST_RADIUS)) & (distance < reach)
    parts, _ = label(near & (signed >= signed[row, col] - _TOLERANCE))
    part = ((parts == parts[row, col]) | (distance <= _LEAST_RADIUS)) & (distance < reach)
    turned = np.where(part, np.maximum(signed, _CERTAIN), signed).astype(np.float32)
    return turned if is_foreground else -turned


def _cells(
    points: npt.NDArray[np.float32], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    cells = np.floor(points).astype(np.intp).reshape(-1, 2)
    return cells[:, 1].clip(0, shape[0] - 1), cells[:, 0].clip(0, shape[1] - 1)
