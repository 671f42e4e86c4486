"""Make the target's values look like the source's, band by band: nothing is learned, and no source image needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..progress import Progress, raise_if_cancelled
from ..semantic.segmenter import LEVELS, Segmenter
from .base import SHARE, Limits, Method, Problem, TransferError, register_method
from .statistics import QUANTILES

Values = npt.NDArray[np.float64]


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
        source, counts = source_quantiles(model), _histograms(problem.target)
        levels = np.tile(np.arange(LEVELS, dtype=np.float64), (len(counts), 1))
        for band, count in enumerate(counts):
            # The middle of a value's ranks, so that saturated values go to the middle of what they stand for.
            ranks = (np.cumsum(count) - count / 2) / count.sum()
            levels[band] += self.strength * (np.interp(ranks, QUANTILES, source[band]) - levels[band])
        _set_map(model, levels, progress)


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
        source, counts = source_quantiles(model), _histograms(problem.target)
        values = np.arange(LEVELS, dtype=np.float64)
        levels = []
        for quantiles, count in zip(source, counts, strict=True):
            mean = (count * values).sum() / count.sum()
            std = np.sqrt((count * (values - mean) ** 2).sum() / count.sum())
            fine = np.interp(np.linspace(0, 1, 1025), QUANTILES, quantiles)
            levels.append((values - mean) * (fine.std() / max(std, 1.0)) + fine.mean())
        _set_map(model, np.stack(levels), progress)


def source_quantiles(model: Segmenter) -> Values:
    """The source's values (bands, 33) at the shares `QUANTILES`. Raises `TransferError` where they are not known."""
    known = np.array(model.card.statistics.get("band_quantiles", ()), np.float64)
    if known.shape != (len(model.card.bands), len(QUANTILES)) or not np.isfinite(known).all():
        raise TransferError(
            f"The model '{model.card.name}' does not say which values its source had; train it anew with SegAdapt, or "
            "choose norm_statistics."
        )
    return known


def _histograms(chips: Chips) -> Values:
    counts = [np.bincount(chips.pixels[:, band][chips.valid], minlength=LEVELS) for band in range(chips.n_bands)]
    if not chips.valid.any():
        raise TransferError("The target has no pixel with data; choose another extent.")
    return np.stack(counts).astype(np.float64)


def _set_map(model: Segmenter, levels: Values, progress: Progress) -> None:
    model.set_input_map(torch.from_numpy(levels.clip(0, 255).astype(np.float32)))
    model.eval()
    progress.set_fraction(1.0)
