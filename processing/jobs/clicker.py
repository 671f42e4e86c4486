"""The simulated analyst: where the next click goes, by the rule with which click models are compared.

The rule is that of RITM (Sofiiuk et al. 2021, `isegm/inference/clicker.py`), which FocalClick, SimpleClick and
MFP use as it is; numbers of clicks are comparable only where exactly this rule made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from ..errors import JobError

BoolMask = npt.NDArray[np.bool_]


class NoErrorLeftError(JobError):
    """A mask without an error that has not been clicked: there is nothing left to say."""


@dataclass(frozen=True)
class Click:
    """A click on a pixel: `x` is its column, `y` its row."""

    x: int
    y: int
    is_foreground: bool


def next_click(truth: BoolMask, mask: BoolMask, *, clicked: BoolMask, ignore: BoolMask | None = None) -> Click:
    """Click the pixel that lies deepest in an error of `mask`, in a missed part or in a part too many.

    All arrays are (rows, cols). `clicked` marks earlier clicks, which are not repeated; the caller adds the new
    one. `ignore` marks pixels that are no error whatever the mask says. Depth is the exact Euclidean distance to
    the nearest pixel that is no error of the same kind, beyond the array none is. The click is foreground only
    where the missed part is strictly deeper; among equally deep pixels the first in row-major order is taken.
    Raises `NoErrorLeftError` where no error is left that was not clicked (RITM's own loop has stopped by then),
    and `JobError` for arrays of different shapes.
    """
    _check_shapes(truth, mask=mask, clicked=clicked, ignore=ignore)
    depths = {
        True: _deepest(_unless_ignored(truth & ~mask, ignore), clicked=clicked),
        False: _deepest(_unless_ignored(~truth & mask, ignore), clicked=clicked),
    }
    is_foreground = depths[True][0] > depths[False][0]
    depth, x, y = depths[is_foreground]
    if depth <= 0:
        raise NoErrorLeftError("The mask has no error that was not clicked; stop here.")
    return Click(x, y, is_foreground)


def iou(truth: BoolMask, mask: BoolMask, *, ignore: BoolMask | None = None) -> float:
    """Intersection over union of two masks (rows, cols) outside `ignore`; 1 where both are empty."""
    _check_shapes(truth, mask=mask, ignore=ignore)
    union = np.count_nonzero(_unless_ignored(truth | mask, ignore))
    return float(np.count_nonzero(_unless_ignored(truth & mask, ignore)) / union) if union else 1.0


@dataclass(frozen=True)
class ClassClick:
    """A click on a pixel of a class map: `x` is its column, `y` its row, `class_id` what is really there."""

    x: int
    y: int
    class_id: int


def next_class_click(
    truth: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], *, clicked: BoolMask, ignore: BoolMask | None = None
) -> ClassClick:
    """Do as `next_click` does for a map of classes: the deepest pixel of the missed parts of all classes.

    `truth` and `labels` are uint8 (rows, cols). A part that is missed of one class is too much of another, so the
    missed parts alone hold every error; among equally deep ones the lowest class is taken. Raises as `next_click`.
    """
    _check_shapes(truth, labels=labels, clicked=clicked, ignore=ignore)
    wrong = _unless_ignored(truth != labels, ignore)
    classes = np.unique(truth[wrong])
    depths = {int(class_id): _deepest(wrong & (truth == class_id), clicked=clicked) for class_id in classes}
    best = max(depths, key=lambda class_id: (depths[class_id][0], -class_id), default=None)
    if best is None or depths[best][0] <= 0:
        raise NoErrorLeftError("The class map has no error that was not clicked; stop here.")
    return ClassClick(*depths[best][1:], best)


def _deepest(error: BoolMask, *, clicked: BoolMask) -> tuple[float, int, int]:
    """Depth, column and row of the deepest pixel that was not clicked; (0, 0, 0) where there is none."""
    rows, cols = np.flatnonzero(error.any(axis=1)), np.flatnonzero(error.any(axis=0))
    if not len(rows):
        return 0.0, 0, 0
    # The error's own rectangle and one pixel around it give the same distances as the whole array.
    part = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    depth = distance_transform_edt(np.pad(error[part], 1))[1:-1, 1:-1] * ~clicked[part]
    row, col = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(depth[row, col]), int(col + cols[0]), int(row + rows[0])


def _unless_ignored(mask: BoolMask, ignore: BoolMask | None) -> BoolMask:
    return mask if ignore is None else mask & ~ignore


def _check_shapes(truth: npt.NDArray[Any], **arrays: npt.NDArray[Any] | None) -> None:
    for name, array in arrays.items():
        if array is not None and array.shape != truth.shape:
            raise JobError(f"'{name}' has the shape {array.shape}, the truth {truth.shape}; give arrays of one shape.")
