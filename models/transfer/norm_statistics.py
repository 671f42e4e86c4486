"""AdaBN: the averages of batch normalisation estimated anew on the target, mixed with the source's.

Li et al. 2016, https://arxiv.org/abs/1603.04779; the mixing: Schneider et al. 2020, https://arxiv.org/abs/2006.16971.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..chips import Chips
from ..progress import Progress, raise_if_cancelled
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from .adapting import whole_chips
from .base import SHARE, Limits, Method, Problem, TransferError, register_method

BatchNorm = nn.modules.batchnorm._BatchNorm


@register_method("norm_statistics")
@dataclass(frozen=True)
class NormStatistics(Method):
    """Estimate means and variances anew.

    `alpha`: share of the target's in the result, 1 as in AdaBN; Schneider et al. 2020 mix both. `n_passes`: how often
    the target is looked at.
    """

    title = "Normalisation statistics (AdaBN)"
    summary = "Estimates the network's inner averages anew; quick, learns nothing, a good first step."
    reference = "Li et al. 2016, https://arxiv.org/abs/1603.04779; mixing: Schneider et al. 2020, arXiv 2006.16971"
    limits: ClassVar[Limits] = {"alpha": SHARE}

    alpha: float = 0.8
    n_passes: int = 1

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Estimate. Raises `TransferError` for a model without batch normalisation, and as `estimate` does."""
        if not _layers(model):
            raise TransferError(
                f"'{model.card.name}' ({model.card.encoder}) has no batch normalisation whose averages could be "
                "estimated anew; choose quantile, entropy or self_training."
            )
        for number in range(self.n_passes):
            estimate(
                model,
                problem.target,
                alpha=self.alpha,
                batch=problem.batch,
                seed=problem.seed + number,
                progress=progress,
            )


def estimate_first(model: Segmenter, chips: Chips, problem: Problem, *, alpha: float, progress: Progress) -> None:
    """The averages of `chips`, for methods that learn from there; a model that keeps none needs none. As `estimate`."""
    if _layers(model):
        estimate(model, chips, alpha=alpha, batch=problem.batch, seed=problem.seed, progress=progress)


def estimate(model: Segmenter, chips: Chips, *, alpha: float, batch: int, seed: int, progress: Progress) -> None:
    """Replace the share `alpha` of the averages by those of `chips`; the model is left in evaluation mode.

    The averages are the means over equal batches of at most `batch` chips (two or three where it is 2), each normalised
    by its own. Raises `TransferError` where a layer sees a single value per channel of a batch of one chip, and
    `Cancelled` between batches, both with the averages as they were.
    """
    layers = _layers(model)
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
    momenta = [layer.momentum for layer in layers]
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    usable = whole_chips(chips)
    order = [usable[n] for n in torch.randperm(len(usable), generator=generator).tolist()]
    model.eval()
    is_done = False
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        parts = _parts(order, batch)
        for number, part in enumerate(parts, 1):
            raise_if_cancelled(progress)
            pixels = torch.from_numpy(chips.pixels[part]).to(device).float()
            with torch.no_grad(), autocast(device):
                _look(model, pixels)
            progress.set_fraction(number / len(parts))
        is_done = True
    finally:
        share = alpha if is_done else 0.0
        for layer, momentum, (mean, variance) in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            layer.running_mean = mean.lerp(layer.running_mean, share)  # type: ignore[arg-type]
            layer.running_var = variance.lerp(layer.running_var, share)  # type: ignore[arg-type]
        model.eval()


def _parts(order: list[int], batch: int) -> list[npt.NDArray[np.intp]]:
    """Equal batches, as each counts the same; none of one chip, which may be too little for an average."""
    n_parts = -(-len(order) // batch)
    if batch > 1:
        n_parts = max(1, min(n_parts, len(order) // 2))
    return np.array_split(np.array(order, np.intp), n_parts)


def _look(model: Segmenter, pixels: torch.Tensor) -> None:
    try:
        model(pixels)
    except ValueError as error:
        if len(pixels) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise TransferError(
            f"One chip of {pixels.shape[3]} x {pixels.shape[2]} px at a time is too little to estimate the averages of "
            f"'{model.card.name}' from; give more chips with data and a batch of 2 or more."
        ) from error


def _layers(model: Segmenter) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm) and module.running_mean is not None]
