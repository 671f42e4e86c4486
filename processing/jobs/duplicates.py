"""Find the same object among masks that were found more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .placed_mask import PlacedMask

# Two masks of nearly one size, of which one holds nearly all of the other, show one object even where a
# ragged outline keeps their IoU below the threshold.
_CONTAINED = 0.9
_SAME_SIZE = 0.6


@dataclass(eq=False)
class Candidate:
    """A mask found from the point (`x`, `y`) in raster pixels, with its predicted IoU and stability."""

    mask: PlacedMask
    score: float
    stability: float
    x: float
    y: float
    is_duplicate: bool = field(default=False)

    @property
    def rank(self) -> tuple[float, float, float, float, int]:
        """Orders candidates, the better one higher; between equals the place decides, not their order."""
        return self.score, self.stability, -self.y, -self.x, self.mask.n_pixels


def is_same_object(first: PlacedMask, second: PlacedMask, *, iou_threshold: float) -> bool:
    """Whether two masks overlap by more than `iou_threshold`, or are of one size and one holds the other."""
    small, large = sorted((first.n_pixels, second.n_pixels))
    if small < min(iou_threshold, _SAME_SIZE) * large:
        return False
    common = first.overlap_px(second)
    if common > iou_threshold * (small + large - common):
        return True
    return small >= _SAME_SIZE * large and common >= _CONTAINED * small


def without_duplicates(candidates: Sequence[Candidate], *, iou_threshold: float) -> list[Candidate]:
    """The best of each object, best first (non-maximum suppression on masks)."""
    if not candidates:
        return []
    ranked = sorted(candidates, key=lambda candidate: candidate.rank, reverse=True)
    bounds = np.array([candidate.mask.bounds for candidate in ranked])  # (N, 4)
    kept: list[int] = []
    for i, candidate in enumerate(ranked):
        others = bounds[kept]
        near = (np.maximum(others[:, :2], bounds[i, :2]) < np.minimum(others[:, 2:], bounds[i, 2:])).all(axis=1)
        rivals = (ranked[kept[k]].mask for k in np.flatnonzero(near))
        if not any(is_same_object(candidate.mask, rival, iou_threshold=iou_threshold) for rival in rivals):
            kept.append(i)
    return [ranked[i] for i in kept]


class PendingObjects:
    """Candidates of cells already walked, for as long as a cell to come could still find the same object.

    A candidate is a duplicate where a better one of another cell shows the same object. The better one may be
    a duplicate itself: whether a candidate stays then depends on its neighbours only, never on a chain that
    starts far away, and an object comes out the same for every extent that holds its surroundings.
    """

    def __init__(self, *, iou_threshold: float, bucket_px: int) -> None:
        self._iou_threshold = iou_threshold
        self._bucket_px = bucket_px
        self._buckets: dict[tuple[int, int], list[Candidate]] = defaultdict(list)
        self._waiting: list[Candidate] = []

    def add_cell(self, candidates: Sequence[Candidate]) -> None:
        """Take what one cell found, already free of duplicates within the cell."""
        for candidate in candidates:
            for rival in self._near(candidate):
                if is_same_object(candidate.mask, rival.mask, iou_threshold=self._iou_threshold):
                    worse = min(candidate, rival, key=lambda either: either.rank)
                    worse.is_duplicate = True
        # Only now, so that candidates of one cell do not meet each other.
        for candidate in candidates:
            self._waiting.append(candidate)
            for place in self._places(candidate):
                self._buckets[place].append(candidate)

    def release(self, above_px: float = float("inf")) -> list[Candidate]:
        """Take out what ends above row `above_px` of the raster and return it, less the duplicates."""
        done = [candidate for candidate in self._waiting if candidate.mask.bounds[3] <= above_px]
        if done:
            self._waiting = [candidate for candidate in self._waiting if candidate.mask.bounds[3] > above_px]
            self._buckets.clear()
            for candidate in self._waiting:
                for place in self._places(candidate):
                    self._buckets[place].append(candidate)
        done.sort(key=lambda candidate: (candidate.mask.row_off, candidate.mask.col_off, candidate.mask.n_pixels))
        return [candidate for candidate in done if not candidate.is_duplicate]

    def __len__(self) -> int:
        """How many candidates wait."""
        return len(self._waiting)

    def _near(self, candidate: Candidate) -> Iterable[Candidate]:
        found = {id(rival): rival for place in self._places(candidate) for rival in self._buckets.get(place, ())}
        return found.values()

    def _places(self, candidate: Candidate) -> Iterator[tuple[int, int]]:
        left, top, right, bottom = (int(value) for value in candidate.mask.bounds)
        for row in range(top // self._bucket_px, (bottom - 1) // self._bucket_px + 1):
            for col in range(left // self._bucket_px, (right - 1) // self._bucket_px + 1):
                yield row, col
