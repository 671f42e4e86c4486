"""No harm without labels: how well a model agrees with itself and with the image, and whether to keep an adapted one.

What can be measured on the target without labels is gamed easily: a model that calls everything ground is sure, agrees
with itself perfectly and has smooth answers. So both measures here are corrected for chance, and such a model gets 0:

- consistency: Cohen's kappa between the answers to a chip and to the same chip mirrored or in slightly other light.
  Neither changes the truth, so a model that understands the place gives the same answer, and one that guesses does not
  (Sajjadi et al. 2016, https://arxiv.org/abs/1606.04586; Cohen 1960, https://doi.org/10.1177/001316446002000104).
- alignment: Goodman and Kruskal's tau, the share of the classes' variety that is gone once one knows the segment. The
  segments come from the image alone, so answers whose edges are edges of the image score, whatever the method made of
  them (Goodman & Kruskal 1954, https://doi.org/10.1080/01621459.1954.10501231).

The score is the geometric mean of both. Learning to be consistent raises the first a little even where the answer gets
worse; what a method does to a class as a whole is therefore judged apart (`judge`): the odds of no class may leave the
range between what the source model finds on the target and what the source domain had by more than a factor. Without
labels of the source a class can keep its size and its edges and become another (docs/adaptation.md); so what the source
model is surest of has to stay what it is (`surest_kept`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ..chips import Chips
from ..progress import NullProgress, Progress, raise_if_cancelled
from ..semantic.card import SegmenterCard
from ..semantic.prediction import device_of, predict_chips, predict_labels, probabilities
from ..semantic.segmenter import Segmenter
from .base import TransferError

_Counts = npt.NDArray[np.float64]

_VIEWS: tuple[tuple[tuple[int, ...], float, float], ...] = (
    ((3,), 1.0, 1.0),
    ((2,), 1.0, 1.0),
    ((), 0.92, 1.0),
    ((2, 3), 1.0, 1.12),
)
"""Axes that are mirrored, gain, gamma: as much as two flights of a day differ."""
_EDGE_PX = 8
"""So near to missing data an answer is about the edge, which looks the same in every view, and not about the place."""
_LEAST_INNER = 0.1
"""Share of the valid pixels that must be left; of fewer, nothing could be said."""
_MOST_ODDS, _MOST_ODDS_REHEARSED = 2.0, 3.0
"""Labelled chips of the source keep what each class means, so that its share may move further."""
_SUREST = 0.25
"""Share of a class's pixels, those with the highest confidence, whose answer the adapted model has to keep."""
LEAST_KEPT = 0.9
"""In so many of these pixels at least. Between 0.8 and 0.95 the study's verdicts hardly differ."""
_RARE = 0.003
"""Classes that both the source and the source's answer hold less of do not decide: a few objects would."""


@dataclass(frozen=True)
class Agreement:
    """What was measured on chips of the target.

    `consistency` and `alignment`: 1 at best, 0 by chance, below 0 if worse than chance; `alignment` is NaN without
    segments. `shares` (C,): share of each class among the answers.
    """

    consistency: float
    alignment: float
    shares: tuple[float, ...]

    @property
    def score(self) -> float:
        """The criterion, 0 to 1: the geometric mean of both, or the consistency alone where there are no segments."""
        if math.isnan(self.alignment):
            return max(0.0, self.consistency)
        return math.sqrt(max(0.0, self.consistency) * max(0.0, self.alignment))


@dataclass(frozen=True)
class Verdict:
    """Whether an adapted model is kept, and why, in a sentence."""

    is_kept: bool
    reason: str


def measure_agreement(
    model: Segmenter,
    chips: Chips,
    *,
    segments: npt.NDArray[np.int32] | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Agreement:
    """Measure a model on chips whose labels are not looked at; the same chips give the same numbers.

    `segments`: int32 (N, rows, cols), numbers of segments of the image within each chip (0: none). Pixels without data
    do not count, nor do those close to them, unless there are few others. Raises `TransferError` where no pixel has
    data or segments of another shape are given, and `Cancelled` between batches.
    """
    progress, n_classes = progress or NullProgress(), len(model.card.classes)
    if not chips.valid.any():
        raise TransferError("The target has no pixel with data; choose another extent.")
    if segments is not None and segments.shape != chips.labels.shape:
        raise TransferError(
            f"Segments of shape {segments.shape} for chips of shape {chips.labels.shape}; give one map per chip."
        )
    model.eval()
    counted = _away_from_edges(chips.valid)
    counts = np.zeros(n_classes)
    pairs = np.zeros((n_classes, n_classes))
    in_segments = np.zeros(n_classes)
    pure = 0.0
    for start in range(0, len(chips), batch):
        raise_if_cancelled(progress)
        part = slice(start, min(start + batch, len(chips)))
        pixels = torch.from_numpy(chips.pixels[part]).to(device_of(model)).float()
        valid = counted[part]
        labels = _answer(model, pixels)
        counts += np.bincount(labels[valid], minlength=n_classes)
        for axes, gain, gamma in _VIEWS:
            view = torch.flip(255 * (gain * pixels / 255) ** gamma, axes)
            other = np.flip(_answer(model, view), tuple(axis - 1 for axis in axes))
            places = labels[valid].astype(np.intp) * n_classes + other[valid]
            pairs += np.bincount(places, minlength=n_classes**2).reshape(n_classes, n_classes)
        if segments is not None:
            of_class, of_segments = _purity(labels, segments[part], valid, n_classes=n_classes)
            in_segments += of_class
            pure += of_segments
        progress.set_fraction(part.stop / len(chips))
    alignment = float("nan") if segments is None else _tau(pure, in_segments)
    return Agreement(_kappa(pairs), alignment, tuple(float(share) for share in counts / counts.sum()))


def surest_kept(
    source: Segmenter, adapted: Segmenter, chips: Chips, *, batch: int = 8, progress: Progress | None = None
) -> tuple[float, ...]:
    """Of the quarter of each class's pixels that `source` is surest of, the share that `adapted` calls the same: (C,).

    Both see values through the input map of `adapted`: what a mapping of the values changes was not learned from own
    answers. NaN for classes of which the source model finds less than 0.3 % of the pixels. Raises `Cancelled` between
    batches.
    """
    n_classes = len(source.card.classes)
    source = copy.deepcopy(source)
    source.set_input_map(adapted.input_map)
    labels = np.zeros(chips.labels.shape, np.uint8)
    confidence = np.zeros(chips.labels.shape, np.float32)
    for part, answer in predict_chips(source, chips, batch=batch, progress=progress):
        labels[part], confidence[part] = answer.argmax(axis=1), answer.max(axis=1)
    is_same = labels == predict_labels(adapted, chips, batch=batch)
    kept = []
    for class_id in range(n_classes):
        here = chips.valid & (labels == class_id)
        if here.sum() < max(1.0, _RARE * chips.valid.sum()):
            kept.append(float("nan"))
            continue
        surest = here & (confidence >= np.quantile(confidence[here], 1 - _SUREST))
        kept.append(float(is_same[surest].mean()))
    return tuple(kept)


def judge(
    before: Agreement,
    after: Agreement,
    card: SegmenterCard,
    *,
    is_rehearsed: bool = False,
    kept: Sequence[float] = (),
) -> Verdict:
    """Whether the model that was measured `after` is at least as good as the one `before`; `card` is the source's.

    It is not where a class vanished or took over, or where the criterion fell. A class may have any share between what
    the source model finds on the target and what the source domain had (on the card; an equal share of all classes
    where the card does not know it), and beyond it as far as its odds change by less than a factor of two, or of three
    where labels of the source were rehearsed (`is_rehearsed`). Where they were not, nine tenths of what the source
    model was surest of have to stay what they were (`kept`, from `surest_kept`).
    """
    change = moved_too_far(before.shares, after.shares, card, is_rehearsed=is_rehearsed)
    if change:
        return Verdict(False, change)
    for one, share in () if is_rehearsed or not kept else zip(card.classes, kept, strict=True):
        if share < LEAST_KEPT:
            return Verdict(
                False,
                f"Of what the source model was surest to be '{one.name}', the adapted one calls only {_percent(share)} "
                "so.",
            )
    if not after.score > 0:
        return Verdict(False, "The adapted model finds nothing that agrees with itself and with the image.")
    if after.score < before.score:
        return Verdict(False, f"The agreement fell from {before.score:.3f} to {after.score:.3f}.")
    return Verdict(True, f"The agreement went from {before.score:.3f} to {after.score:.3f}, and no class was lost.")


def moved_too_far(
    before: Sequence[float], after: Sequence[float], card: SegmenterCard, *, is_rehearsed: bool = False
) -> str:
    """Which class vanished or took over, in a sentence, by its share before and after, (C,) each; "" where none did.

    How far shares may move: `judge`.
    """
    known = np.array(card.statistics.get("class_shares", ()), np.float64)
    n_classes = len(card.classes)
    of_source = known if known.shape == (n_classes,) and known.sum() > 0 else np.full(n_classes, 1 / n_classes)
    worst, change = (_MOST_ODDS_REHEARSED if is_rehearsed else _MOST_ODDS, False), ""
    for one, was, source, now in zip(card.classes, before, of_source, after, strict=True):
        low, high = sorted((was, float(source)))
        fallen = _odds(low) / _odds(now) if low >= _RARE else 0.0
        risen = _odds(now) / _odds(max(high, _RARE))
        # Of two classes, what one gains is what the other loses: then the loss is told.
        rank = (round(max(fallen, risen), 3), fallen > risen)
        if rank > worst:
            moved = "fell" if fallen > risen else "rose"
            worst = rank
            change = f"'{one.name}' {moved} from {_percent(was)} to {_percent(now)} of the target, too much to trust."
    return change


def changed_most(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], *, n: int) -> Sequence[int]:
    """Numbers of the `n` chips whose labels (N, rows, cols) differ most, the most changed first; none unchanged."""
    shares = (before != after).mean(axis=(1, 2))
    return [int(number) for number in np.argsort(-shares, kind="stable")[:n] if shares[number] > 0]


def _away_from_edges(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Bool (N, rows, cols): valid pixels at some distance from missing data; all valid ones where few are."""
    if valid.all():
        return valid
    side = 2 * _EDGE_PX + 1
    inner: npt.NDArray[np.bool_] = ndimage.minimum_filter(valid, (1, side, side), mode="constant", cval=True)
    return inner if inner.sum() > _LEAST_INNER * valid.sum() else valid


def _answer(model: Segmenter, pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    labels: npt.NDArray[np.uint8] = probabilities(model, pixels).argmax(1).cpu().numpy().astype(np.uint8)
    return labels


def _purity(
    labels: npt.NDArray[np.uint8], segments: npt.NDArray[np.int32], valid: npt.NDArray[np.bool_], *, n_classes: int
) -> tuple[_Counts, float]:
    """Pixels of each class (C,) in segments, and the sum over segments of squared counts over the segment's size."""
    is_counted = valid & (segments > 0)
    chip_numbers = np.broadcast_to(np.arange(len(labels))[:, None, None], labels.shape)[is_counted]
    keys = chip_numbers.astype(np.int64) * (int(segments.max()) + 1) + segments[is_counted]
    _, places = np.unique(keys, return_inverse=True)
    n = int(places.max(initial=-1)) + 1
    table = np.bincount(places * n_classes + labels[is_counted], minlength=n * n_classes).reshape(n, n_classes)
    sums = table.sum(axis=1)
    return table.sum(axis=0).astype(np.float64), float(((table.astype(np.float64) ** 2).sum(axis=1) / sums).sum())


def _tau(pure: float, counts: _Counts) -> float:
    total = counts.sum()
    expected = float(((counts / max(1.0, total)) ** 2).sum())
    return (pure / total - expected) / (1 - expected) if total and expected < 1 else 0.0


def _kappa(pairs: _Counts) -> float:
    total = pairs.sum()
    observed = float(np.trace(pairs) / total)
    expected = float((pairs.sum(axis=0) * pairs.sum(axis=1)).sum() / total**2)
    return (observed - expected) / (1 - expected) if expected < 1 else 0.0


def _odds(share: float) -> float:
    kept = min(max(share, 1e-4), 1 - 1e-4)
    return kept / (1 - kept)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
