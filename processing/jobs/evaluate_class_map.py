"""How many clicks a class map takes: total clicks against the mIoU of the whole image.

An analyst is simulated on anything that takes clicks of classes and gives labels. The first clicks are the same for
every strategy, one in the middle of each class, so that curves differ by what comes after.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from .clicker import BoolMask, ClassClick, NoErrorLeftError, next_class_click

LARGEST_ERROR, RANDOM_ERROR = "largest error", "random error"
# A guide that keeps to places of which the truth says nothing has no more to offer.
_MOST_SKIPPED = 100

Labels = npt.NDArray[np.uint8]


class Mapper(Protocol):
    """A class map in the making. Pixels are array pixels, `x` the column, `y` the row."""

    def click(self, x: int, y: int, class_id: int) -> None:
        """Say that the pixel is of the class."""

    def labels(self) -> Labels:
        """Classes of all pixels, uint8 (rows, cols)."""


class Guide(Protocol):
    """Says where an analyst should look next, without knowing the truth."""

    def __call__(self, clicked: BoolMask) -> tuple[int, int] | None:
        """Return the pixel (x, y) to be clicked, or None for no more; `clicked` (rows, cols) marks earlier clicks."""


@dataclass(frozen=True, kw_only=True)
class EvaluateClassMap:
    """How the analyst clicks.

    `n_clicks`: all clicks together, the first ones of the classes among them. `where`: `"largest error"`, the deepest
    pixel of the largest missed part (`next_class_click`), or `"random error"`, any wrong pixel; a guide, if one is
    given, decides instead. `ignore_id`: the value of the truth that says nothing, None where all pixels count.
    `seed`: of the random pixels. Raises `JobError` for numbers that make no sense.
    """

    n_clicks: int = 100
    where: str = LARGEST_ERROR
    ignore_id: int | None = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.n_clicks < 1:
            raise JobError(f"{self.n_clicks} clicks are too few; give at least 1.")
        if self.where not in (LARGEST_ERROR, RANDOM_ERROR):
            raise JobError(f"'{self.where}' is no place to click; choose '{LARGEST_ERROR}' or '{RANDOM_ERROR}'.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMapCurve:
    """What the clicks did.

    `mious`: mean IoU over the classes of the truth after each click, one per click that was made; `class_ious`: IoU
    of each class after the last one; `click_s`: seconds from click to labels; `clicks`: where they went;
    `n_skipped`: places of the guide of which the truth says nothing, which cost no click.
    """

    mious: tuple[float, ...]
    class_ious: dict[int, float]
    click_s: tuple[float, ...]
    clicks: tuple[ClassClick, ...]
    n_skipped: int

    def clicks_to(self, target: float) -> int | None:
        """Number of the first click after which the mIoU is at least `target`; None where none is."""
        return next((number for number, miou in enumerate(self.mious, 1) if miou >= target), None)


def evaluate_class_map(
    mapper: Mapper,
    truth: Labels,
    job: EvaluateClassMap | None = None,
    *,
    guide: Guide | None = None,
    progress: Progress | None = None,
) -> ClassMapCurve:
    """Click until the clicks are used up or nothing is wrong. `truth`: uint8 (rows, cols).

    Raises `JobError` for a truth without classes, fewer clicks than classes, labels of another shape, or a guide
    that points outside; and `Cancelled` between clicks.
    """
    job, progress = job or EvaluateClassMap(), progress or NullProgress()
    ignore = np.zeros(truth.shape, np.bool_) if job.ignore_id is None else truth == job.ignore_id
    classes = [int(class_id) for class_id in np.unique(truth[~ignore])]
    if not classes:
        raise JobError(f"The truth holds nothing but {job.ignore_id}, which is ignored; give a raster of classes.")
    if job.n_clicks < len(classes):
        raise JobError(f"{job.n_clicks} clicks are fewer than the {len(classes)} classes; give at least one each.")
    analyst = _ClassAnalyst(truth, ignore, job, guide)
    pending = analyst.first_clicks(classes)
    labels = np.zeros_like(truth)
    mious: list[float] = []
    click_s: list[float] = []
    while len(mious) < job.n_clicks:
        raise_if_cancelled(progress)
        click = pending.pop(0) if pending else analyst.next_click(labels)
        if click is None:
            break
        start = time.perf_counter()
        mapper.click(click.x, click.y, click.class_id)
        labels = mapper.labels()
        click_s.append(time.perf_counter() - start)
        analyst.note(click)
        mious.append(float(np.mean(list(class_ious(truth, labels, classes, ignore=ignore).values()))))
        progress.set_fraction(len(mious) / job.n_clicks)
    return ClassMapCurve(
        mious=tuple(mious),
        class_ious=class_ious(truth, labels, classes, ignore=ignore),
        click_s=tuple(click_s),
        clicks=tuple(analyst.clicks),
        n_skipped=analyst.n_skipped,
    )


def class_ious(
    truth: Labels, labels: Labels, classes: Sequence[int], *, ignore: BoolMask | None = None
) -> dict[int, float]:
    """IoU of each of `classes`; 1 for a class that neither of both holds. Pixels of `ignore` do not count."""
    if labels.shape != truth.shape:
        raise JobError(f"Labels of shape {labels.shape} for a truth of shape {truth.shape}; give arrays of one shape.")
    counted = np.ones(truth.shape, np.bool_) if ignore is None else ~ignore
    pairs = truth[counted].astype(np.intp) * 256 + labels[counted]
    confusion = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
    both, of_truth, of_labels = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    union = of_truth + of_labels - both
    return {class_id: float(both[class_id] / union[class_id]) if union[class_id] else 1.0 for class_id in classes}


class _ClassAnalyst:
    """Knows the truth and where the clicks went."""

    def __init__(self, truth: Labels, ignore: BoolMask, job: EvaluateClassMap, guide: Guide | None) -> None:
        self._truth, self._ignore, self._job, self._guide = truth, ignore, job, guide
        self._random = np.random.default_rng(job.seed)
        self._clicked = np.zeros(truth.shape, np.bool_)
        self.clicks: list[ClassClick] = []
        self.n_skipped = 0

    def first_clicks(self, classes: Sequence[int]) -> list[ClassClick]:
        """The deepest pixel of each class, the class that has the deepest one first."""
        clicks, left = [], self._ignore.copy()
        # Of a map that is all wrong the deepest missed part is clicked, class by class; the class itself is the one
        # value that its own pixels must not have.
        for _ in classes:
            nowhere = np.where(self._truth == 0, 1, 0).astype(np.uint8)
            click = next_class_click(self._truth, nowhere, clicked=self._clicked, ignore=left)
            clicks.append(click)
            left |= self._truth == click.class_id
        return clicks

    def next_click(self, labels: Labels) -> ClassClick | None:
        """Where the strategy or the guide says; None where nothing is left to click."""
        if self._guide is not None:
            return self._guided_click(self._guide)
        if self._job.where == RANDOM_ERROR:
            return self._random_click(labels)
        try:
            return next_class_click(self._truth, labels, clicked=self._clicked, ignore=self._ignore)
        except NoErrorLeftError:
            return None

    def note(self, click: ClassClick) -> None:
        """Remember a click that was made."""
        self._clicked[click.y, click.x] = True
        self.clicks.append(click)

    def _random_click(self, labels: Labels) -> ClassClick | None:
        wrong = np.flatnonzero((self._truth != labels) & ~self._ignore & ~self._clicked)
        if not len(wrong):
            return None
        row, col = np.unravel_index(int(self._random.choice(wrong)), self._truth.shape)
        return ClassClick(int(col), int(row), int(self._truth[row, col]))

    def _guided_click(self, guide: Guide) -> ClassClick | None:
        for _ in range(_MOST_SKIPPED):
            place = guide(self._clicked.copy())
            if place is None:
                return None
            x, y = place
            rows, cols = self._truth.shape
            if not (0 <= x < cols and 0 <= y < rows):
                raise JobError(f"The guide points at ({x}, {y}), outside the {cols} x {rows} pixels; correct it.")
            if not self._ignore[y, x]:
                return ClassClick(x, y, int(self._truth[y, x]))
            self._clicked[y, x] = True
            self.n_skipped += 1
        return None
