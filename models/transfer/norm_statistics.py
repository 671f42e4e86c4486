"""AdaBN: the averages of batch normalisation estimated anew on the target, mixed with the source's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..chips import Chips
from ..progress import Progress, raise_if_cancelled
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from .adapting import usable_chips
from .base import Method, Problem, TransferError, register_method

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

    alpha: float = 0.8
    n_passes: int = 1

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Estimate. Raises `TransferError` for a model without batch normalisation."""
        if not has_batch_norm(model):
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


def has_batch_norm(model: Segmenter) -> bool:
    """Whether any layer keeps averages."""
    return bool(_layers(model))


def estimate(model: Segmenter, chips: Chips, *, alpha: float, batch: int, seed: int, progress: Progress) -> None:
    """Replace the share `alpha` of the averages by those of `chips`; the model is left in evaluation mode.

    The averages are the means over batches of `batch` chips, each normalised by its own. Raises `Cancelled` between
    batches, with the averages as they were.
    """
    layers = _layers(model)
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
    momenta = [layer.momentum for layer in layers]
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    usable = usable_chips(chips)
    order = [usable[n] for n in torch.randperm(len(usable), generator=generator).tolist()]
    model.eval()
    is_done = False
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        for start in range(0, len(order), batch):
            raise_if_cancelled(progress)
            pixels = torch.from_numpy(chips.pixels[order[start : start + batch]]).to(device).float()
            with torch.no_grad(), autocast(device):
                model(pixels)
            progress.set_fraction(min(1.0, (start + batch) / len(order)))
        is_done = True
    finally:
        share = alpha if is_done else 0.0
        for layer, momentum, (mean, variance) in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            layer.running_mean = mean.lerp(layer.running_mean, share)  # type: ignore[arg-type]
            layer.running_var = variance.lerp(layer.running_var, share)  # type: ignore[arg-type]
        model.eval()


def _layers(model: Segmenter) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm) and module.running_mean is not None]
