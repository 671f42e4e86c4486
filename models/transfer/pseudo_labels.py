"""Pseudo-labels of a teacher: thresholds per class, cleaned by segments, mixed between chips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..progress import Progress
from ..semantic.card import IGNORE
from ..semantic.prediction import predict_chips
from ..semantic.segmenter import Segmenter
from .base import TransferError

_N_BINS = 256
_MOST_LIFT = 8.0
"""A class's probability is lifted or lowered by so much at the most."""
Bounds = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Survey(NamedTuple):
    """What a teacher says of all target chips.

    `thresholds` (C,): the confidence from which a pixel of a class counts. `shares` (N, C): shares of the classes in
    each chip, of valid pixels.
    """

    thresholds: torch.Tensor
    shares: npt.NDArray[np.float64]


def aligned(answer: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, C, rows, cols) whose classes are lifted or lowered by `factors` (C,)."""
    lifted = answer * factors.to(answer.device)[None, :, None, None]
    return lifted / lifted.sum(1, keepdim=True)


def survey(
    teacher: Segmenter,
    chips: Chips,
    *,
    keep: float,
    most: float,
    factors: torch.Tensor,
    batch: int,
    progress: Progress,
) -> Survey:
    """Look at all chips once. Raises `Cancelled`, and `TransferError` for a teacher whose answers are no numbers.

    Class-balanced thresholds (Zou et al. 2018, CBST, https://arxiv.org/abs/1810.07911): of every class the share
    `keep` of its most confident pixels counts; pixels surer than `most` always do. `factors` (C,): what its
    probabilities are multiplied by (`aligned`).
    """
    n_classes = len(teacher.card.classes)
    lifts = factors.numpy()[None, :, None, None]
    counts = np.zeros((n_classes, _N_BINS))
    shares = np.zeros((len(chips), n_classes))
    for part, raw in predict_chips(teacher, chips, batch=batch, progress=progress):
        answer = raw * lifts
        answer /= answer.sum(axis=1, keepdims=True)
        valid = chips.valid[part]
        labels, sure = answer.argmax(axis=1), answer.max(axis=1)
        if not np.isfinite(sure[valid]).all():
            raise TransferError("What learned gives no numbers any more; choose a smaller rate, or another method.")
        place = np.minimum((sure * _N_BINS).astype(np.intp), _N_BINS - 1) + labels * _N_BINS
        counts += np.bincount(place[valid], minlength=n_classes * _N_BINS).reshape(n_classes, _N_BINS)
        for number, (of_chip, is_valid) in enumerate(zip(labels, valid, strict=True), part.start):
            found = np.bincount(of_chip[is_valid], minlength=n_classes)
            shares[number] = found / max(1, found.sum())
    from_top = np.cumsum(counts[:, ::-1], axis=1) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    # The highest edge above which at least `keep` of the class lies.
    edges = 1 - ((from_top >= keep).argmax(axis=1) + 1) / _N_BINS
    thresholds = torch.tensor(np.where(counts.sum(axis=1) > 0, np.minimum(edges, most), most), dtype=torch.float32)
    return Survey(thresholds, shares)


def share_bounds(shares: npt.NDArray[np.float64], known: npt.NDArray[np.float64], *, odds: float) -> Bounds:
    """Least and largest share (C,) that a class may come to have among the pseudo-labels.

    Self-training feeds on itself, so that one class can swallow the rest. How much there is of a class on the target
    nobody knows; it is taken to lie between what the source model finds there, `shares` (C,), and what the source had,
    `known` (C,; empty where the card does not say), or beyond by a factor of `odds` in its odds.
    """
    low, high = (shares, shares) if known.shape != shares.shape else np.sort([shares, known], axis=0)

    def moved(share: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.float64]:
        ratio = factor * share / np.maximum(1 - share, 1e-9)
        bounded: npt.NDArray[np.float64] = ratio / (1 + ratio)
        return bounded

    return moved(low, 1 / odds), moved(high, odds)


def factors_into(bounds: Bounds, found: npt.NDArray[np.float64]) -> torch.Tensor:
    """What brings classes of the shares `found` (C,) back into their bounds (`aligned`); 1 where they are inside."""
    ratio = (np.clip(found, *bounds) + 1e-3) / (found + 1e-3)
    return torch.tensor(np.clip(ratio, 1 / _MOST_LIFT, _MOST_LIFT), dtype=torch.float32)


def rare_first(shares: npt.NDArray[np.float64], *, temperature: float) -> npt.NDArray[np.float64]:
    """Chances (N,) to draw each chip, so that rare classes come often.

    Hoyer et al. 2022 (DAFormer, https://arxiv.org/abs/2111.14887): a class is drawn with the chance
    softmax((1 - share) / temperature), then a chip by how much of the class it holds.
    """
    overall = shares.mean(axis=0)
    wanted = np.where(overall > 0, np.exp((1 - overall) / temperature), 0)
    if not wanted.sum():
        return np.full(len(shares), 1 / len(shares))
    wanted /= wanted.sum()
    # The square root: chips with much of a class come more often, but not alone.
    held = np.sqrt(shares)
    chances: npt.NDArray[np.float64] = (held / np.maximum(held.sum(axis=0), 1e-12)) @ wanted
    chances /= chances.sum()
    return chances


def pseudo_labels(
    answer: torch.Tensor,
    thresholds: torch.Tensor,
    *,
    valid: torch.Tensor,
    segments: torch.Tensor | None = None,
    purity: float = 0.8,
) -> torch.Tensor:
    """Labels int64 (B, rows, cols) of probabilities (B, C, rows, cols); `IGNORE` where unsure or not `valid`.

    `segments` integer (B, rows, cols): all pixels of a segment (0: none) get its majority's label where the mean
    probability of that class over the segment reaches half way from chance (one over C) to the class's threshold;
    segments of which the majority holds less than `purity` are mixed, and dropped.
    """
    sure, labels = answer.max(1)
    limits = thresholds.to(answer.device)
    kept = torch.where(sure >= limits[labels], labels, IGNORE)
    if segments is not None:
        kept = _cleaned(answer, labels, kept, segments.to(answer.device), limits, purity)
    return torch.where(valid.to(answer.device), kept, IGNORE)


def _cleaned(
    answer: torch.Tensor,
    labels: torch.Tensor,
    kept: torch.Tensor,
    segments: torch.Tensor,
    limits: torch.Tensor,
    purity: float,
) -> torch.Tensor:
    n, n_classes = answer.shape[:2]
    n_segments = int(segments.max()) + 1
    # One number for each segment of each chip.
    places = (segments.long() + n_segments * torch.arange(n, device=answer.device)[:, None, None]).flatten()
    sizes = torch.bincount(places, minlength=n * n_segments).clamp(min=1)
    votes = torch.bincount(places * n_classes + labels.flatten(), minlength=n * n_segments * n_classes)
    most, winner = votes.view(-1, n_classes).max(1)
    won = winner[places]
    chance = answer.movedim(1, -1).reshape(-1, n_classes).gather(1, won[:, None])[:, 0]
    mean = torch.zeros(n * n_segments, device=answer.device).index_add_(0, places, chance) / sizes
    # The mean over a segment is below the confidence of its best pixels: half way to chance will do.
    is_good = (most / sizes >= purity) & (mean >= 0.5 * (limits[winner] + 1 / n_classes))
    of_segment = torch.where(is_good, winner, IGNORE)[places].view_as(labels)
    return torch.where(segments > 0, of_segment, kept)


def class_mix(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    other_pixels: torch.Tensor,
    other_labels: torch.Tensor,
    *,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste half of the classes of each of `other_pixels` onto `pixels`; labels likewise.

    Olsson et al. 2021, ClassMix, https://arxiv.org/abs/2007.07936. Pixels float (B, bands, rows, cols), labels int64
    (B, rows, cols). What has no label is not pasted; a chip of one class is pasted whole in every other case.
    """
    mixed, mixed_labels = pixels.clone(), labels.clone()
    for number in range(len(pixels)):
        present = torch.unique(other_labels[number])
        present = present[present != IGNORE]
        order = present[torch.randperm(len(present), generator=generator).to(present.device)]
        # Of an odd number, one more in half of the cases.
        n = (len(order) + int(torch.randint(2, (1,), generator=generator))) // 2
        is_pasted = torch.isin(other_labels[number], order[:n])
        mixed[number] = torch.where(is_pasted, other_pixels[number], mixed[number])
        mixed_labels[number] = torch.where(is_pasted, other_labels[number], mixed_labels[number])
    return mixed, mixed_labels
