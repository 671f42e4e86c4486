"""Reinhard's transfer: each band gets the source's mean and deviation.

Reinhard et al. 2001, Color transfer between images, https://doi.org/10.1109/38.946629; there in the space of Ruderman,
here in the bands as they are, which may be more than three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..progress import Progress, raise_if_cancelled
from ..semantic.segmenter import LEVELS, Segmenter
from .base import Method, Problem, register_method
from .radiometric import histograms, set_map, source_quantiles
from .statistics import QUANTILES


@register_method("reinhard")
@dataclass(frozen=True)
class Reinhard(Method):
    """Give each band of the target the mean and the deviation of the source's."""

    title = "Mean and deviation (Reinhard)"
    summary = "Gives each band the source's mean and contrast; gentler than quantile mapping where contents differ."
    reference = "Reinhard et al. 2001, Color transfer between images, https://doi.org/10.1109/38.946629"

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Set the model's input map. Raises `TransferError` where the card does not know the source's values."""
        raise_if_cancelled(progress)
        source, counts = source_quantiles(model), histograms(problem.target)
        values = np.arange(LEVELS, dtype=np.float64)
        levels = []
        for quantiles, count in zip(source, counts, strict=True):
            mean = (count * values).sum() / count.sum()
            std = np.sqrt((count * (values - mean) ** 2).sum() / count.sum())
            fine = np.interp(np.linspace(0, 1, 1025), QUANTILES, quantiles)
            levels.append((values - mean) * (fine.std() / max(std, 1.0)) + fine.mean())
        set_map(model, np.stack(levels), progress)
