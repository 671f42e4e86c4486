"""Information maximisation: sure answers for each pixel, and all classes among them.

The loss of SHOT (Liang et al. 2020, https://arxiv.org/abs/2002.08546), without its pseudo-labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..progress import Progress, StepProgress
from ..semantic.prediction import device_of
from ..semantic.segmenter import Segmenter
from .adapting import answers, entropy_of, learning_parts, mean_where, network_values, seeded
from .base import SHARE, Limits, Method, Problem, register_method
from .norm_statistics import estimate_first


@register_method("entropy_diversity")
@dataclass(frozen=True)
class EntropyDiversity(Method):
    """Maximise information: sure answers for each pixel, and all classes among them; the head stays as it is.

    The shares of classes are pulled to those of the source where the card knows them (`pull` times the
    Kullback-Leibler divergence), to equal shares otherwise, as SHOT does. `rate` is for all parts but the encoder,
    which gets `encoder_rate` times it; `alpha` as in `Entropy`.
    """

    title = "Entropy and diversity (SHOT-IM)"
    summary = "Tunes everything but the head to sure answers that keep all classes; source-free."
    reference = "Liang et al. 2020, https://arxiv.org/abs/2002.08546"
    limits: ClassVar[Limits] = {"alpha": SHARE}

    alpha: float = 0.8
    rate: float = 1e-4
    encoder_rate: float = 0.5
    pull: float = 1.0

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt. Raises `TransferError` as `estimate_first` does."""
        device = device_of(model)
        n_classes = len(model.card.classes)
        shares = np.array(model.card.statistics.get("class_shares", ()), np.float64)
        if shares.shape != (n_classes,) or not shares.sum() > 0:
            shares = np.full(n_classes, 1 / n_classes)
        # A class that the source hardly had may be there all the same.
        prior = torch.tensor(shares.clip(min=1e-3) / shares.clip(min=1e-3).sum(), dtype=torch.float32, device=device)
        with network_values(model, problem) as seen, seeded(problem.seed, device) as generator:
            estimate_first(model, seen.target, problem, alpha=self.alpha, progress=StepProgress(progress, 0.0, 0.1))
            descent = learning_parts(model, rate=self.rate, encoder_rate=self.encoder_rate, has_head=False)
            tuning = StepProgress(progress, 0.1, 1.0)
            for logits, has_data in answers(model, seen, tuning, generator=generator, descent=descent):
                marginal = mean_where(logits.softmax(1), has_data)
                divergence = (marginal * (marginal.clamp(min=1e-6) / prior).log()).sum()
                descent.step(mean_where(entropy_of(logits), has_data) + self.pull * divergence)
