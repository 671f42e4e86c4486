"""TENT: the normalisation layers are tuned until the model is sure of what it says on the target.

Wang et al. 2021, https://arxiv.org/abs/2006.10726.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..progress import Progress, StepProgress
from ..semantic.prediction import device_of
from ..semantic.segmenter import Segmenter
from ..training import Descent
from .adapting import answers, entropy_of, network_values, norm_parameters, seeded
from .base import SHARE, Limits, Method, Problem, register_method
from .norm_statistics import estimate_first


@register_method("entropy")
@dataclass(frozen=True)
class Entropy(Method):
    """Minimise the entropy of the answers over scales and offsets of the normalisation layers alone.

    `alpha`: share of the target in the averages of batch normalisation (`norm_statistics`), which are estimated
    first; models with layer or group normalisation need none. `rate`: learning rate. `margin`: pixels with a relative
    entropy above it do not count, as Niu et al. 2022 (https://arxiv.org/abs/2204.02610) found unsure ones to mislead.
    """

    title = "Entropy (TENT)"
    summary = "Tunes the normalisation layers until the answers are sure; few parameters, little time."
    reference = "Wang et al. 2021, Tent, https://arxiv.org/abs/2006.10726"
    limits: ClassVar[Limits] = {"alpha": SHARE, "margin": SHARE}

    alpha: float = 0.8
    rate: float = 3e-4
    margin: float = 0.6

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt. Raises `TransferError` for a model without normalisation layers, and as `estimate_first` does."""
        parameters = norm_parameters(model)
        device = device_of(model)
        with network_values(model, problem) as seen, seeded(problem.seed, device) as generator:
            estimate_first(model, seen.target, problem, alpha=self.alpha, progress=StepProgress(progress, 0.0, 0.1))
            descent = Descent(torch.optim.Adam(parameters, lr=self.rate), model)
            tuning = StepProgress(progress, 0.1, 1.0)
            for logits, has_data in answers(model, seen, tuning, generator=generator, descent=descent):
                entropy = entropy_of(logits)
                is_counted = (entropy.detach() < self.margin) & has_data
                weight = _balance(logits.detach(), has_data) * is_counted
                descent.step((entropy * weight).sum() / weight.sum().clamp(min=1))


def _balance(logits: torch.Tensor, has_data: torch.Tensor) -> torch.Tensor:
    """Weights (B, rows, cols) that keep rare classes from being swallowed: one over the square root of the share."""
    labels, n_classes = logits.argmax(1), logits.shape[1]
    shares = torch.bincount(labels[has_data], minlength=n_classes) / max(1, int(has_data.sum()))
    return shares.clamp(min=1e-3).rsqrt()[labels]
