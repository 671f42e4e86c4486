"""FDA: labelled chips of the source in the target's style, by exchange of low frequencies' amplitudes.

Yang & Soatto 2020, https://arxiv.org/abs/2004.05498.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..augmentation import USUAL
from ..losses import class_weights_of, segmentation_loss
from ..progress import Progress
from ..semantic.card import IGNORE
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from ..training import draw, set_training
from .adapting import (
    drawn,
    entropy_of,
    learning_parts,
    mean_where,
    network_values,
    seeded,
    steps_left,
    whole_chips,
    with_data_as_labels,
)
from .base import Limits, Method, Problem, TransferError, register_method


@register_method("fourier")
@dataclass(frozen=True)
class Fourier(Method):
    """Train on restyled chips of the source, and a little on the entropy of the target.

    `beta`: half side of the exchanged square of frequencies, relative to the chip's side (0.01 to 0.05 in the paper;
    at least the mean is exchanged). `entropy_weight`: weight of the target's robust entropy (the paper's equation 4
    with exponent 2). `rate` and `encoder_rate` as in `training.TrainingOptions`.
    """

    title = "Fourier style (FDA)"
    summary = "Trains on source chips with the target's colours and light; needs labelled chips of the source."
    reference = "Yang & Soatto 2020, FDA, https://arxiv.org/abs/2004.05498"
    rehearses = True
    limits: ClassVar[Limits] = {"beta": (0.0, 0.5)}

    beta: float = 0.02
    entropy_weight: float = 0.05
    rate: float = 5e-4
    encoder_rate: float = 0.3

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt. Raises `TransferError` without labelled chips of the source."""
        if problem.source is None or not problem.source.n_labelled_px():
            raise TransferError(
                "Fourier style trains on labelled chips of the source, and there are none; give rasters and labels of "
                "the source, or choose quantile or self_training."
            )
        device = device_of(model)
        weights = class_weights_of(problem.source.labels, len(model.card.classes)).to(device)
        with network_values(model, problem) as seen, seeded(problem.seed, device) as generator:
            source, target = problem.source, with_data_as_labels(seen.target)
            descent = learning_parts(model, rate=self.rate, encoder_rate=self.encoder_rate)
            usable, n_half = whole_chips(target), max(1, problem.batch // 2)
            for _ in steps_left(
                problem, progress, n_steps=problem.n_steps, model=model, generator=generator, descent=descent
            ):
                set_training(model)
                pixels, labels = draw(source, drawn(n_half, range(len(source)), generator), USUAL, generator, device)
                styles, has_data = draw(target, drawn(n_half, usable, generator), None, generator, device)
                styled = restyled(pixels, styles, beta=self.beta)
                with autocast(device):
                    logits = model(torch.cat([styled, styles])).float()
                loss = segmentation_loss(logits[:n_half], labels, class_weights=weights)
                robust = (entropy_of(logits[n_half:]).square() + 1e-6).square()
                descent.step(loss + self.entropy_weight * mean_where(robust, has_data != IGNORE))


def restyled(pixels: torch.Tensor, styles: torch.Tensor, *, beta: float) -> torch.Tensor:
    """`pixels` (B, bands, rows, cols) with the low frequencies' amplitudes of `styles`, of any size; 0 to 255."""
    size = pixels.shape[-2:]
    if styles.shape[-2:] != size:
        styles = torch.nn.functional.interpolate(styles, size=size, mode="bilinear", align_corners=False)
    own, other = torch.fft.fft2(pixels), torch.fft.fft2(styles)
    amplitude = own.abs()
    half = int(beta * min(size))
    rows = [*range(half + 1), *range(size[0] - half, size[0])]
    cols = [*range(half + 1), *range(size[1] - half, size[1])]
    low = torch.zeros(size, dtype=torch.bool, device=pixels.device)
    low[torch.tensor(rows)[:, None], torch.tensor(cols)] = True
    amplitude = torch.where(low, other.abs(), amplitude)
    # Zero has no phase: a band that is 0 everywhere takes the style's mean.
    restored: torch.Tensor = torch.fft.ifft2(torch.polar(amplitude, own.angle())).real
    return restored.clamp(0, 255)
