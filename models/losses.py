"""Losses: of masks against labels that are a little off, as hand-drawn outlines are, and of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own custom

from .semantic.card import IGNORE

Loss = Literal["cross_entropy_dice", "cross_entropy", "focal"]
LOSSES: Mapping[Loss, Mapping[str, float]] = {
    "cross_entropy_dice": {"dice": 0.5, "focus": 0.0},
    "cross_entropy": {"dice": 0.0, "focus": 0.0},
    "focal": {"dice": 0.0, "focus": 2.0},
}
"""Losses to train with, the default first: what each is for `segmentation_loss`."""

# Outlines of buildings in OpenStreetMap lie a pixel or two beside the roof at 30 cm: what is learned there is blur.
_EDGE_WEIGHT = 0.4
# Pixels far from the object are easy and many; within this distance (pixels) they count in full.
_NEAR_PX, _FAR_WEIGHT = 15, 0.3
# A click is where the analyst looked: its disc counts five times.
_CLICK_WEIGHT = 4.0


def click_loss(logits: torch.Tensor, truth: torch.Tensor, clicks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus dice, tolerant at the edge of `truth`, strict at the clicks: one value per object (B,).

    All are (B, 1, rows, cols) float; `truth` is 0 or 1, `clicks` 1 inside the discs of the clicks, 0 elsewhere.
    Dice: Milletari et al. 2016 (https://arxiv.org/abs/1606.04797); the weights at clicks follow the click-centred
    loss of "You Point, I Learn" (https://arxiv.org/abs/2503.06717).
    """
    weight = _weights(truth) * (1 + _CLICK_WEIGHT * clicks)
    entropy = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).mean((1, 2, 3))
    probability = logits.sigmoid()
    overlap = (probability * truth * weight).sum((1, 2, 3))
    total = ((probability + truth) * weight).sum((1, 2, 3))
    return entropy + 1 - (2 * overlap + 1) / (total + 1)


def _weights(truth: torch.Tensor) -> torch.Tensor:
    grown = F.max_pool2d(truth, 3, 1, 1)
    shrunk = 1 - F.max_pool2d(1 - truth, 3, 1, 1)
    near = F.max_pool2d(truth, 2 * _NEAR_PX + 1, 1, _NEAR_PX) > 0
    weight = torch.where(near, 1.0, _FAR_WEIGHT)
    weight = torch.where(grown > shrunk, _EDGE_WEIGHT * weight, weight)
    return weight / weight.mean((1, 2, 3), keepdim=True)


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    dice: float = 0.5,
    focus: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy plus `dice` times soft dice over the classes present; pixels labelled `IGNORE` do not count.

    `focus` makes it the focal loss with this exponent (Lin et al. 2017, https://arxiv.org/abs/1708.02002, who take 2):
    the surer a pixel's right answer, the less it counts. `logits` (B, C, rows, cols) float, `labels` (B, rows, cols)
    integer, `class_weights` (C,). 0 where nothing is labelled, with a gradient of 0: what an optimiser does of itself
    (momentum, weight decay) goes on.
    """
    counted = labels != IGNORE
    if not bool(counted.any()):
        return logits.sum() * 0
    if focus:
        entropy = _focal(logits, labels.long(), class_weights, focus)
    else:
        entropy = F.cross_entropy(logits, labels.long(), weight=class_weights, ignore_index=IGNORE)
    if not dice:
        return entropy
    truth = F.one_hot(torch.where(counted, labels.long(), 0), logits.shape[1]).movedim(-1, 1) * counted[:, None]
    guess = logits.softmax(1) * counted[:, None]
    sums = (0, 2, 3)
    overlap, total = (guess * truth).sum(sums), (guess + truth).sum(sums)
    is_present = truth.sum(sums) > 0
    return entropy + dice * (1 - (2 * overlap[is_present] + 1) / (total[is_present] + 1)).mean()


def _focal(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None, focus: float
) -> torch.Tensor:
    """Mean over the labelled pixels, weighted by class as torch weighs cross-entropy."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    counted = labels != IGNORE
    weight = counted.float() if class_weights is None else class_weights[torch.where(counted, labels, 0)] * counted
    return ((1 - (-entropy).exp()) ** focus * entropy * weight).sum() / weight.sum()


def class_weights_of(labels: npt.NDArray[np.uint8], n_classes: int) -> torch.Tensor:
    """Weights (C,) that lift rare classes: one over the square root of the share, with mean 1 over the pixels.

    The square root is between no balance and full balance, which makes rare classes swallow their surroundings.
    Classes that do not occur get 1.
    """
    counts = np.bincount(labels[labels != IGNORE].ravel(), minlength=n_classes)[:n_classes].astype(np.float64)
    if not counts.sum():
        return torch.ones(n_classes)
    shares = counts / counts.sum()
    weights = np.divide(1, np.sqrt(shares), out=np.ones(n_classes), where=shares > 0)
    return torch.tensor(np.where(shares > 0, weights / (weights * shares).sum(), 1.0), dtype=torch.float32)
