"""Quantile mapping: each band's histogram is matched to the source's.

Histogram specification: Gonzalez & Woods, Digital Image Processing, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..progress import Progress, raise_if_cancelled
from ..semantic.segmenter import LEVELS, Segmenter
from .base import SHARE, Limits, Method, Problem, register_method
from .radiometric import histograms, set_map, source_quantiles
from .statistics import QUANTILES


@register_method("quantile")
@dataclass(frozen=True)
class Quantile(Method):
    """Send each value of the target to the source's value at the same share of pixels.

    `strength`: 1 maps fully, 0 not at all, between them the mean of both.
    """

    title = "Quantile mapping"
    summary = "Matches the histogram of each band to the source's; quick, for other light, sensor or stretch."
    reference = "Histogram specification: Gonzalez & Woods, Digital Image Processing, section 3.3"
    limits: ClassVar[Limits] = {"strength": SHARE}

    strength: float = 1.0

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Set the model's input map. Raises `TransferError` where the card does not know the source's values."""
        raise_if_cancelled(progress)
        source, counts = source_quantiles(model), histograms(problem.target)
        levels = np.tile(np.arange(LEVELS, dtype=np.float64), (len(counts), 1))
        for band, count in enumerate(counts):
            # The middle of a value's ranks, so that saturated values go to the middle of what they stand for.
            ranks = (np.cumsum(count) - count / 2) / count.sum()
            levels[band] += self.strength * (np.interp(ranks, QUANTILES, source[band]) - levels[band])
        set_map(model, levels, progress)
