"""Which of SAM's three masks an analyst means by a click: learned from the sizes of what was accepted.

For a click SAM offers a part, the object and its surroundings, and ranks them by the IoU that it predicts of itself. On
30 cm roofs that ranking gives away 5 to 15 points of IoU against the best of the three (docs/interactive.md), while
the objects of one class in one image are alike in size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Values = npt.NDArray[np.float64]

# How much predicted IoU a mask loses per e-fold that its size is outside the usual range; what is tried, and by how
# much mean IoU a weight must be better than trusting SAM.
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4)
_MARGIN = 0.02
_FEWEST, _MOST = 5, 60
# A size within one standard deviation, at least this (in e-folds), costs nothing; beyond three e-folds no more.
_LEAST_SPREAD, _LARGEST_DISTANCE = 0.3, 3.0
# An empty mask has a logarithm, too, far below that of any object in m2 or in pixels.
_LEAST_SIZE = 1e-3


@dataclass(frozen=True, eq=False)
class Choice:
    """One click in hindsight: for each mask its predicted IoU, size and true IoU; and the accepted object's size.

    Sizes in m2, or in pixels of a raster whose pixels have no known size; never both in one `MaskChoice`.
    """

    scores: Values
    sizes: Values
    ious: Values
    accepted_size: float


class MaskChoice:
    """Ranks masks by predicted IoU and size, with a weight that proved itself on what was accepted."""

    def __init__(self) -> None:
        self._choices: deque[Choice] = deque(maxlen=_MOST)
        self._weight = 0.0

    @property
    def weight(self) -> float:
        """How much sizes count; 0 trusts SAM."""
        return self._weight

    def order(self, scores: Sequence[float], sizes: Sequence[float]) -> list[int]:
        """Indices of masks with these predicted IoUs and sizes, the likeliest first."""
        cost = self._weight * _cost(np.array(sizes, float), self._accepted_sizes()) if self._weight else 0.0
        return [int(index) for index in np.argsort(-(np.array(scores, float) - cost), kind="stable")]

    def learn(self, choice: Choice) -> None:
        """Take in a click in hindsight, and weigh sizes anew: each object is ranked by the sizes of the others."""
        self._choices.append(choice)
        if len(self._choices) < _FEWEST:
            return
        worth = {weight: self._mean_iou(weight) - (_MARGIN if weight else 0) for weight in _WEIGHTS}
        self._weight = max(_WEIGHTS, key=lambda weight: (worth[weight], -weight))

    def state(self) -> torch.Tensor:
        """What was learned, (N, 10): per click three predicted IoUs, log sizes and true IoUs, log accepted size."""
        rows = [
            [*one.scores, *_logs(one.sizes), *one.ious, _logs(np.array(one.accepted_size))] for one in self._choices
        ]
        return torch.tensor(np.reshape(rows, (-1, 10)), dtype=torch.float32)

    def load_state(self, state: torch.Tensor) -> None:
        """Take over what `state` gave, in place of what was learned here."""
        self._choices.clear()
        self._weight = 0.0
        for row in state.double().numpy():
            self.learn(Choice(row[:3], np.exp(row[3:6]), row[6:9], float(np.exp(row[9]))))

    def _mean_iou(self, weight: float) -> float:
        sizes = self._accepted_sizes()
        ious = []
        for n, choice in enumerate(self._choices):
            ranked = choice.scores - weight * _cost(choice.sizes, np.delete(sizes, n))
            ious.append(choice.ious[int(ranked.argmax())])
        return float(np.mean(ious))

    def _accepted_sizes(self) -> Values:
        return np.array([choice.accepted_size for choice in self._choices])


def _cost(sizes: Values, accepted: Values) -> Values:
    """How far each size lies outside the usual range of `accepted`, in e-folds."""
    usual = _logs(accepted)
    spread = max(_LEAST_SPREAD, float(usual.std()))
    outside: Values = (np.abs(_logs(sizes) - np.median(usual)) - spread).clip(0, _LARGEST_DISTANCE)
    return outside


def _logs(sizes: Values) -> Values:
    logs: Values = np.log(sizes.clip(_LEAST_SIZE))
    return logs
