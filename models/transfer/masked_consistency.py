"""MIC: self-training whose student must also say what lies behind masks, from what is around them.

Hoyer et al. 2023, https://arxiv.org/abs/2212.01322.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from ..augmentation import STRONG, augment
from ..losses import segmentation_loss
from ..semantic.prediction import autocast
from ..semantic.segmenter import Segmenter
from .base import SHARE, Limits, register_method
from .self_training import SelfTraining


@register_method("masked_consistency")
@dataclass(frozen=True)
class MaskedConsistency(SelfTraining):
    """As `SelfTraining`, with a second batch of masked chips: patches of `patch_px`, the share `ratio` of them hidden.

    A patch is at most a quarter of a chip wide; hidden pixels show the mean colour.
    """

    title = "Masked consistency (MIC)"
    summary = (
        "Self-training that also learns from context, by hiding parts of the target; the strongest, and the slowest."
    )
    reference = "Hoyer et al. 2023, MIC, https://arxiv.org/abs/2212.01322"
    limits: ClassVar[Limits] = {**SelfTraining.limits, "ratio": SHARE}

    patch_px: int = 64
    ratio: float = 0.5

    def extra_loss(
        self, model: Segmenter, pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Loss on masked chips against the labels of whole ones."""
        pixels, labels = augment(pixels, labels, STRONG, generator=generator)
        is_hidden = patch_mask(
            (len(pixels), *pixels.shape[-2:]), patch_px=self.patch_px, ratio=self.ratio, generator=generator
        ).to(pixels.device)
        mean = torch.tensor(model.card.mean, device=pixels.device)[None, :, None, None]
        with autocast(pixels.device):
            logits = model(torch.where(is_hidden[:, None], mean, pixels))
        return segmentation_loss(logits.float(), labels)


def patch_mask(shape: tuple[int, int, int], *, patch_px: int, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Bool (B, rows, cols): True by the chance `ratio` for each patch of `patch_px`, at most a quarter of the side."""
    n, rows, cols = shape
    side = max(1, min(patch_px, rows // 4, cols // 4))
    cells = torch.rand(n, 1, -(-rows // side), -(-cols // side), generator=generator) < ratio
    grown = functional.interpolate(cells.float(), scale_factor=side, mode="nearest")
    return grown[:, 0, :rows, :cols] > 0.5
