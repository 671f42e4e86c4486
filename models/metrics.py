"""How good labels are: confusion matrix, IoU, F1, boundary F-score, calibration, intervals by block.

`labels` and `truth` are uint8 class ids of one shape; pixels whose truth is `IGNORE` never count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .errors import ModelError
from .semantic.card import IGNORE

Labels = npt.NDArray[np.uint8]
Confusion = npt.NDArray[np.int64]
"""(C, C): rows are the truth, columns the answer."""


def confusion_matrix(truth: Labels, labels: Labels, *, n_classes: int) -> Confusion:
    """Count pixels by truth and answer, (C, C). Raises `ModelError` for other shapes and for unknown classes."""
    if truth.shape != labels.shape:
        raise ModelError(f"Labels of shape {labels.shape} for a truth of shape {truth.shape}; give one shape.")
    counted = truth != IGNORE
    true, said = truth[counted].astype(np.int64), labels[counted].astype(np.int64)
    if true.size and max(int(true.max()), int(said.max())) >= n_classes:
        raise ModelError(f"Class {max(int(true.max()), int(said.max()))} is none of {n_classes}; give 0 to C-1.")
    return np.bincount(true * n_classes + said, minlength=n_classes**2).reshape(n_classes, n_classes)


def class_ious(confusion: Confusion) -> npt.NDArray[np.float64]:
    """IoU of each class (C,); NaN for a class that the truth does not hold.

    Of such a class a single stray pixel would make 0, and two models would be averaged over different classes; pixels
    that are taken for it count against the classes that they belong to.
    """
    both, truth = np.diagonal(confusion).astype(np.float64), confusion.sum(axis=1)
    union = confusion.sum(axis=0) + truth - both
    return np.divide(both, union, out=np.full(len(both), np.nan), where=truth > 0)


def class_f1(confusion: Confusion) -> npt.NDArray[np.float64]:
    """F1 of each class (C,); NaN for a class that the truth does not hold."""
    both, truth = np.diagonal(confusion).astype(np.float64), confusion.sum(axis=1)
    total = (confusion.sum(axis=0) + truth).astype(np.float64)
    return np.divide(2 * both, total, out=np.full(len(both), np.nan), where=truth > 0)


def mean_iou(confusion: Confusion) -> float:
    """Mean IoU over the classes of the truth; NaN where nothing is labelled."""
    ious = class_ious(confusion)
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else float("nan")


def overall_accuracy(confusion: Confusion) -> float:
    """Share of pixels with the right class; NaN where nothing is labelled."""
    total = int(confusion.sum())
    return float(np.diagonal(confusion).sum() / total) if total else float("nan")


def boundary_f1(truth: Labels, labels: Labels, *, class_id: int, tolerance_px: int = 3) -> tuple[float, int]:
    """F-score of the outlines of a class within `tolerance_px`, and the number of outline pixels it rests on.

    Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?". Outlines are pixels of the
    class that touch another class; pixels next to `IGNORE` are left out. NaN where neither has an outline.
    """
    counted = truth != IGNORE
    inner = ndimage.binary_erosion(counted, np.ones((3, 3)))

    def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        edge: npt.NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask, border_value=1) & inner
        return edge

    of_truth, of_labels = outline((truth == class_id) & counted), outline((labels == class_id) & counted)
    n_truth, n_labels = int(of_truth.sum()), int(of_labels.sum())
    if n_truth + n_labels == 0:
        return float("nan"), 0
    if not n_truth or not n_labels:
        return 0.0, n_truth + n_labels
    recall = (ndimage.distance_transform_edt(~of_labels)[of_truth] <= tolerance_px).mean()
    precision = (ndimage.distance_transform_edt(~of_truth)[of_labels] <= tolerance_px).mean()
    score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return float(score), n_truth + n_labels


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error (0 to 1) and what it comes from, one entry per bin of confidence.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599: `confidence` and `accuracy` are the bins' means, `counts` their
    pixels; bins without pixels have NaN.
    """

    error: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]


def calibration(truth: Labels, labels: Labels, confidence: npt.NDArray[np.float32], *, n_bins: int = 15) -> Calibration:
    """How well `confidence` (0 to 1, the winner's probability) tells how often `labels` are right."""
    counted = truth != IGNORE
    right = (truth == labels)[counted]
    sure = confidence[counted].astype(np.float64)
    place = np.clip((sure * n_bins).astype(np.intp), 0, n_bins - 1)
    counts = np.bincount(place, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        mean_sure = np.bincount(place, weights=sure, minlength=n_bins) / counts
        mean_right = np.bincount(place, weights=right, minlength=n_bins) / counts
    total = counts.sum()
    gap = np.nansum(np.abs(mean_sure - mean_right) * counts) / total if total else float("nan")
    return Calibration(float(gap), tuple(mean_sure), tuple(mean_right), tuple(int(count) for count in counts))


def bootstrap_interval(
    confusions: Sequence[Confusion], *, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean IoU: blocks of ground are drawn with replacement. NaN for fewer than two blocks.

    `confusions`: one matrix per block; pixels of one block are not independent, blocks nearly are. Draws that lack a
    class are left out (`holds_all`).
    """
    if len(confusions) < 2:
        return float("nan"), float("nan")
    whole = np.sum(confusions, axis=0)
    resampled = _resampled(confusions, n_resamples=n_resamples, seed=seed)
    values = [mean_iou(one) for one in resampled if holds_all(one, whole)]
    if not values:
        return float("nan"), float("nan")
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def holds_all(drawn: Confusion, whole: Confusion) -> bool:
    """Whether the truth of what was drawn has all classes of the whole; without one its mean is of other classes."""
    return bool((drawn.any(axis=1) | ~whole.any(axis=1)).all())


def class_intervals(
    confusions: Sequence[Confusion], *, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> npt.NDArray[np.float64]:
    """Low and high of each class's IoU, (C, 2), drawn as for `bootstrap_interval`.

    NaN for fewer than two blocks, and for a class that the truth does not hold.
    """
    intervals = np.full((len(confusions[0]), 2), np.nan)
    if len(confusions) < 2:
        return intervals
    ious = np.stack([class_ious(one) for one in _resampled(confusions, n_resamples=n_resamples, seed=seed)])
    is_known = np.isfinite(ious).any(axis=0)
    tail = 50 * (1 - level)
    intervals[is_known] = np.nanpercentile(ious[:, is_known], [tail, 100 - tail], axis=0).T
    return intervals


def _resampled(confusions: Sequence[Confusion], *, n_resamples: int, seed: int) -> Iterator[Confusion]:
    """Sums over as many blocks as there are, drawn with replacement."""
    stacked, random = np.stack(confusions), np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield stacked[random.integers(0, len(stacked), len(stacked))].sum(axis=0)
