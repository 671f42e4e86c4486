"""Rectangles in place of masks that are nearly rectangular, so that a correction moves a whole side.

SAM draws a roof with round corners and wavy walls, and a click repairs as much of its edge as it can see; of a
rectangle a few clicks say where all of it lies (docs/interactive.md). From when on masks of this image become
rectangles is learned from what was accepted (`RectangleChoice`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt, label

from ..prompts import FOREGROUND, LOW_RES_PX

Mask = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
_Values = TypeVar("_Values", float, npt.NDArray[np.float64])

USUAL_THRESHOLD = 0.88
"""IoU with its rectangle from which a mask becomes one. Discs and ellipses reach 0.83, the smallest 0.87."""

# Fewer cells have no direction.
_LEAST_CELLS = 12
# What fills less of the rectangle around it is none, and need not be fitted.
_LEAST_FILLED = 0.6
# Directions that the fit starts from, over a quarter turn.
_DIRECTIONS = 18
# Steps of the fit, in cells and in radians: from what a round corner costs to a fraction of a cell.
_STEPS = ((3.0, 0.12), (1.5, 0.06), (0.7, 0.03), (0.35, 0.015))
_PASSES = 3
# Of a mask that is longer every second, third... cell is compared while a rectangle is sought; around it so many
# cells and this part of its length, which the corners of a rectangle askew may reach.
_FINEST_CELLS, _MARGIN, _MARGIN_PART = 56, 8, 6
# Logits rise so steeply from a side, up to those of a mask that the user gives (`models.masks`).
_STEEPNESS, _MOST_LOGIT = 4.0, 8.0
# An answer that fits its rectangle so well was one. A mask may fit its own by so much less than others and still become
# one that the clicks agree with.
_WAS_RECTANGLE, _LEEWAY = 0.97, 0.2
# What the answer before is worth beside the mask, and by which part of that the mask is worth less with every click.
_TRUST, _DECAY = 0.1, 0.3
# What a cell costs, in IoU, by which a click lies too near to a side, from how many cells on it costs no more, and what
# a click on the wrong side of it costs besides.
_CLICK_COST, _MOST_LACKING, _CONTRADICTION_COST = 0.02, 8.0, 0.2
# A side that is moved beyond one click may lose another: in each of these turns it goes half as far beyond.
_TURNS = 4
# The middle of an error is as far from the true side as from the one before; farther than this is another object.
_LEAST_CLEARANCE, _MOST_CLEARANCE = 0.5, 12.0

_THRESHOLDS = (USUAL_THRESHOLD, 0.8, 0.94, math.inf)
_FEWEST, _MOST = 5, 60
# Mean IoU that another threshold than the usual must bring.
_GAIN = 0.005


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in cells of the window.

    `sides`: where they lie along its own axes, from (`x`, `y`): left and right along the axis at `angle` (radians),
    upper and lower along the one turned by a quarter.
    """

    x: float
    y: float
    angle: float
    sides: tuple[float, float, float, float]

    def distances(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """How far places lie inside each of the four sides, (4, ...) cells; negative is outside."""
        along, across = _turned(np.subtract(x, self.x), np.subtract(y, self.y), self.angle)
        left, right, upper, lower = self.sides
        return np.stack([along - left, right - along, across - upper, lower - across])

    def inside(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """How far places lie inside the nearest side, in cells; negative is outside."""
        nearest: npt.NDArray[np.float64] = self.distances(x, y).min(axis=0)
        return nearest

    @property
    def area(self) -> float:
        """In cells."""
        left, right, upper, lower = self.sides
        return (right - left) * (lower - upper)

    def logits(self) -> Logits:
        """The rectangle as logits (256, 256) of a mask, with sides between cells."""
        centres = np.arange(LOW_RES_PX) + 0.5
        inside = self.inside(*np.meshgrid(centres, centres))
        return (_STEEPNESS * inside).clip(-_MOST_LOGIT, _MOST_LOGIT).astype(np.float32)

    def agrees(self, points: Points, labels: Labels) -> Mask:
        """Which clicks (N, 2) in cells lie on their side: bool (N,)."""
        agrees: Mask = (self.inside(points[:, 0], points[:, 1]) > 0) == (labels == FOREGROUND)
        return agrees

    def moved(self, point: Points, *, is_foreground: bool, beyond: float = _LEAST_CLEARANCE) -> Rectangle:
        """Move the sides that a click contradicts `beyond` it (cells): all of them, for background the nearest."""
        inside = self.distances(*point)
        if bool((inside > 0).all()) == is_foreground:
            return self
        found = self
        for number in np.flatnonzero(inside <= 0) if is_foreground else [inside.argmin()]:
            step = abs(float(inside[number])) + beyond
            is_outwards = (number % 2 == 1) == is_foreground
            found = found.changed(int(number), step if is_outwards else -step)
        return found

    def obeying(self, points: Points, labels: Labels) -> Rectangle:
        """Move the sides that clicks (N, 2) contradict, in turn; not all clicks need agree with what comes of it."""
        found = self
        for turn in range(_TURNS):
            for n in np.flatnonzero(~found.agrees(points, labels)):
                is_foreground = bool(labels[n] == FOREGROUND)
                found = found.moved(points[n], is_foreground=is_foreground, beyond=_LEAST_CLEARANCE / 2**turn)
        return found

    def changed(self, number: int, by: float) -> Rectangle:
        """Move one side (`number` 0 to 3) along its axis by cells, or turn by radians (4)."""
        if number == len(self.sides):
            return replace(self, angle=self.angle + by)
        left, right, upper, lower = (side + by * (n == number) for n, side in enumerate(self.sides))
        return replace(self, sides=(left, right, upper, lower))


def fitted(mask: Mask) -> tuple[Rectangle | None, float]:
    """The rectangle for the largest part of a mask (rows, cols), and its IoU with all of it; None for a few cells."""
    parts, n_parts = label(mask)
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if n_parts > 1 else mask
    n_cells = np.count_nonzero(largest)
    if n_cells < _LEAST_CELLS:
        return None, 0.0
    # Of each row the ends: no cell between them is farther out in any direction.
    rows = np.flatnonzero(largest.any(axis=1))
    ends = np.concatenate([largest[rows].argmax(axis=1), mask.shape[1] - 1 - largest[rows, ::-1].argmax(axis=1)])
    x, y = ends + 0.5, np.tile(rows, 2) + 0.5
    around = (_around(x, y, angle) for angle in np.linspace(0, np.pi / 2, _DIRECTIONS, endpoint=False))
    start = min(around, key=lambda one: one.area)
    if n_cells < _LEAST_FILLED * start.area:
        return start, 0.0
    cells = _Cells(largest)
    best, _ = _climbed(start, lambda one: cells.ious(one)[0])
    return best, _Cells(mask, finest=max(mask.shape)).ious(best)[0]


def straightened(
    logits: Logits, previous: Logits | None, points: Points, labels: Labels, *, threshold: float
) -> Logits:
    """A rectangle in place of `logits` (256, 256) where they are one up to an IoU of `threshold`; else they stay.

    It is the one that fits them, the answer before if that was a rectangle (`previous`, None for the first), and the
    clicks: `points` (N, 2) in cells, the newest last, with `labels`. What contradicts a click is not taken. The model
    may be wrong again and again about a place that clicks have corrected: the more clicks, the less it is trusted.
    """
    mask = logits > 0
    # What the window cuts, or the raster's edge, may have any shape.
    if threshold == math.inf or mask[[0, -1]].any() or mask[:, [0, -1]].any():
        return logits
    before = None if previous is None else _rectangle(previous > 0)
    found, quality = fitted(mask)
    if found is None or quality < threshold - (0 if before is None else _LEEWAY):
        return logits
    cells = _Cells(mask, *(() if before is None or previous is None else (previous > 0,)))
    is_foreground = labels == FOREGROUND
    clearance = _clearance(previous, points)
    trust_in_mask = 1 / (1 + _DECAY * max(0, len(points) - 1))

    def worth(one: Rectangle) -> float:
        with_mask, *with_previous = cells.ious(one)
        inside = one.inside(points[:, 0], points[:, 1])
        inside = np.where(is_foreground, inside, -inside)
        cost = _CLICK_COST * float((clearance - inside).clip(0, _MOST_LACKING).sum())
        cost += _CONTRADICTION_COST * np.count_nonzero(inside <= 0)
        return trust_in_mask * with_mask + _TRUST * sum(with_previous) - cost

    # What fits the mask is near.
    climbed = [_climbed(found, worth, steps=_STEPS[1:])]
    if before is not None and len(points):
        moved = before.moved(points[-1], is_foreground=bool(is_foreground[-1]))
        climbed += [_climbed(moved, worth), _climbed(before, worth)]
    lost = [one for one, _ in climbed if not one.agrees(points, labels).all()]
    climbed += [_climbed(one.obeying(points, labels), worth, steps=_STEPS[1:]) for one in lost]
    agreeing = [(one, reached) for one, reached in climbed if one.agrees(points, labels).all()]
    best, _ = max(agreeing, key=lambda one: one[1], default=(None, 0.0))
    # A click far from the mask may have stretched it over all between them.
    return logits if best is None or cells.ious(best)[0] < threshold - _LEEWAY else best.logits()


def is_left_free(mask: Mask, *, threshold: float) -> bool:
    """Whether a drawn mask could be a rectangle, from an IoU of `threshold` on, but was wanted otherwise."""
    return threshold <= fitted(mask)[1] < _WAS_RECTANGLE


class RectangleChoice:
    """From which IoU with its rectangle on a mask becomes one: another than usual where accepted objects prove it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, ...]] = deque(maxlen=_MOST)
        self.threshold = USUAL_THRESHOLD

    def learn(self, mask: Mask, truth: Mask) -> None:
        """Take in a first answer and the accepted object, both (rows, cols) bool."""
        found, quality = fitted(mask)
        if found is not None and truth.any():
            cells = _Cells(truth, mask, finest=max(mask.shape))
            self._seen.append((quality, _iou(mask, truth), cells.ious(found)[0]))
        self._choose()

    def state(self) -> torch.Tensor:
        """What was learned, (N, 3): per object IoU of mask and rectangle, of mask and truth, of rectangle and truth."""
        return torch.tensor(np.reshape(list(self._seen), (-1, 3)), dtype=torch.float32)

    def load_state(self, state: torch.Tensor) -> None:
        """Take over what `state` gave, in place of what was learned here."""
        self._seen = deque((tuple(row) for row in state.double().tolist()), maxlen=_MOST)
        self._choose()

    def _choose(self) -> None:
        self.threshold = USUAL_THRESHOLD
        if len(self._seen) < _FEWEST:
            return
        quality, free, straight = np.array(self._seen).T

        def worth(threshold: float) -> float:
            margin = 0 if threshold == USUAL_THRESHOLD else _GAIN
            return float(np.where(quality >= threshold, straight, free).mean()) - margin

        self.threshold = max(_THRESHOLDS, key=worth)


def _around(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], angle: float) -> Rectangle:
    """The smallest rectangle in a direction around places."""
    start = Rectangle(float(x.mean()), float(y.mean()), angle, (0.0, 0.0, 0.0, 0.0))
    left, right, upper, lower = (float(nearest) for nearest in start.distances(x, y).min(axis=1))
    return replace(start, sides=(left - 0.5, 0.5 - right, upper - 0.5, 0.5 - lower))


class _Cells:
    """The cells on which rectangles are compared with masks (rows, cols): those around all of them, about `finest`."""

    def __init__(self, *masks: Mask, finest: int = _FINEST_CELLS) -> None:
        whole = np.logical_or.reduce(masks)
        rows, cols = (np.flatnonzero(whole.any(axis=axis)) for axis in (1, 0))
        extent = int(max(np.ptp(rows), np.ptp(cols)))
        stride, margin = max(1, math.ceil(extent / finest)), _MARGIN + extent // _MARGIN_PART
        part = tuple(slice(max(0, n.min() - margin), n.max() + margin + 1, stride) for n in (rows, cols))
        self._masks = [mask[part] for mask in masks]
        centres = (
            place.start + stride * np.arange(n) + 0.5 for place, n in zip(part, self._masks[0].shape, strict=True)
        )
        self._y, self._x = np.meshgrid(*centres, indexing="ij")
        self._n_cells = [np.count_nonzero(mask) for mask in self._masks]
        self._turn(0.0)

    def ious(self, one: Rectangle) -> list[float]:
        """IoU of a rectangle with each mask."""
        # Most rectangles that are compared in turn differ in one side.
        if one.angle != self._angle:
            self._turn(one.angle)
        along, across = _turned(one.x, one.y, one.angle)
        left, right, upper, lower = one.sides
        inside = (self._along > along + left) & (self._along < along + right)
        inside &= (self._across > across + upper) & (self._across < across + lower)
        n_inside = np.count_nonzero(inside)
        shared = [np.count_nonzero(inside & mask) for mask in self._masks]
        return [both / max(1, n_inside + n - both) for both, n in zip(shared, self._n_cells, strict=True)]

    def _turn(self, angle: float) -> None:
        self._angle, (self._along, self._across) = angle, _turned(self._x, self._y, angle)


def _climbed(
    start: Rectangle, worth: Callable[[Rectangle], float], *, steps: Sequence[tuple[float, float]] = _STEPS
) -> tuple[Rectangle, float]:
    """The rectangle that changes of one side, or of the direction, by `steps` make better no more, and its worth."""
    best, reached = start, worth(start)
    for cells, radians in steps:
        for _ in range(_PASSES):
            before = reached
            for number, step in enumerate((cells, cells, cells, cells, radians)):
                for by in (step, -step):
                    one = best.changed(number, by)
                    if (found := worth(one)) > reached:
                        best, reached = one, found
            if reached == before:
                break
    return best, reached


def _turned(x: _Values, y: _Values, angle: float) -> tuple[_Values, _Values]:
    """Places along the axis at an angle, and across it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _rectangle(mask: Mask) -> Rectangle | None:
    """The rectangle that a mask is, None where it is none."""
    found, quality = fitted(mask)
    return found if quality >= _WAS_RECTANGLE else None


def _clearance(previous: Logits | None, points: Points) -> npt.NDArray[np.float64]:
    """How far from a side clicks (N, 2) should lie at least, (N,) cells: the newest in the middle of an error."""
    clearance = np.full(len(points), _LEAST_CLEARANCE)
    if previous is None or not len(points) or not 0 < np.count_nonzero(previous > 0) < previous.size:
        return clearance
    col, row = np.floor(points[-1]).astype(int).clip(0, LOW_RES_PX - 1)
    mask = previous > 0
    to_side = float(distance_transform_edt(mask if mask[row, col] else ~mask)[row, col]) - 0.5
    clearance[-1] = min(max(_LEAST_CLEARANCE, to_side), _MOST_CLEARANCE)
    return clearance


def _iou(first: Mask, second: Mask) -> float:
    return float(np.count_nonzero(first & second) / max(1, np.count_nonzero(first | second)))
