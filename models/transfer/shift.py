"""How far a target domain is from where a model comes from, without the source's images: numbers and a verdict.

The package knows enough of its source (`statistics`): quantiles of the bands, shares of the classes, mean and
covariance of the encoder's deepest features. Each measure sees another kind of shift, and each has a scale that means
something, so that one page can say how far the target is and what to try.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..progress import NullProgress, Progress, StepProgress
from ..semantic.segmenter import Segmenter
from .adapting import chips_of_network, whole_chips
from .agreement import Agreement, measure_agreement
from .base import TransferError
from .statistics import FEATURE_COVARIANCE, FEATURE_MEAN, band_quantiles, deep_features

Array = npt.NDArray[np.float64]

_PER_CHIP = 4
_MOST_AXES = 32
_KEPT_VARIANCE = 0.95
_SHRINKAGE = 0.1
_NEAR, _FAR = 0.25, 0.6
_STRONGEST = "masked_consistency"
_OTHER_LIGHT = 0.75
"""Deviations of the source by which bands may differ before mapping their values is worth a try.

Twice as much as on the pairs of the study, where it mostly lost (docs/adaptation.md).
"""
_MEASURED = (
    "On six real pairs of domains masked_consistency won on all where labelled rasters of the source were rehearsed "
    "(3.1 points of mean IoU in the mean), on five without them (2.6); self_training with them on all (2.2), with 240 "
    "steps in place of 80 on five (4.3), without them on four (0.8)."
)
"""Means of three seeds (docs/adaptation.md); a test compares it with docs/study."""
_OTHER_SHARES = 0.15


@dataclass(frozen=True)
class DomainShift:
    """What was measured; NaN where the package does not know what it takes.

    `frechet`: squared Frechet distance of deep features over the source's variance, 0 for the same domain.
    `frechet_halves`: the same between two halves of the target, which is what chance and the ground alone bring.
    `proxy_a`: proxy A-distance, 0 (no classifier tells source from target) to 2 (a linear one always does).
    `band_distances` (bands,): how far quantiles of each band lie apart as the network sees them, through its input map,
    in deviations of the source. `shares`: how much of the target the model would have to call something else to have
    the source's shares of classes, 0 to 1.
    `agreement`: of the model as it is on the target.
    """

    frechet: float
    frechet_halves: float
    proxy_a: float
    band_distances: tuple[float, ...]
    shares: float
    agreement: Agreement

    @property
    def bands(self) -> float:
        """Mean over the bands; NaN where the source's values are not known."""
        return float(np.mean(self.band_distances)) if self.band_distances else float("nan")

    @property
    def overall(self) -> float:
        """0 (as the source) to 1 (another world): the mean of what is known of bands, features and classes.

        Bands and features saturate: a distance of one deviation counts 0.63, of two 0.86.
        """
        beyond = np.maximum(0.0, self.frechet - self.frechet_halves)
        terms = [1 - np.exp(-self.bands), 1 - np.exp(-beyond), self.proxy_a / 2]
        if not np.isnan(self.shares):
            terms.append(min(1.0, 2 * self.shares))
        known = [float(term) for term in terms if np.isfinite(term)]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Advice:
    """What to do, in words: `level` (near, moderate, far, unknown), sentences, and methods to try, the best first.

    `methods` are chains of names as `chain.names_of` reads them.
    """

    level: str
    sentences: tuple[str, ...]
    methods: tuple[str, ...]


def measure_shift(
    model: Segmenter,
    chips: Chips,
    *,
    statistics: Mapping[str, torch.Tensor] | None = None,
    segments: npt.NDArray[np.int32] | None = None,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> DomainShift:
    """Measure how far unlabelled chips of a target are from the source of `model`.

    Features are compared on chips without missing data, unless these are few (`adapting.whole_chips`).
    `statistics`: the tensors beside the weights (`package.load_extra`). `segments`: as for `measure_agreement`. Raises
    `TransferError` where the target has no data or statistics do not fit the model, and `Cancelled`.
    """
    progress = progress or NullProgress()
    agreement = measure_agreement(
        model, chips, segments=segments, batch=batch, progress=StepProgress(progress, 0.0, 0.7)
    )
    whole = chips.take(whole_chips(chips))
    features = deep_features(model, whole, batch=batch, progress=StepProgress(progress, 0.7, 1.0))
    frechet = halves = proxy = float("nan")
    known = statistics or {}
    if FEATURE_MEAN in known and FEATURE_COVARIANCE in known:
        mean = known[FEATURE_MEAN].double().numpy()
        covariance = known[FEATURE_COVARIANCE].double().numpy()
        if mean.shape != features.shape[1:] or covariance.shape != (len(mean), len(mean)):
            raise TransferError(
                f"The package of '{model.card.name}' describes {len(mean)} features, the model has "
                f"{features.shape[1]}; train it anew with SegAdapt."
            )
        groups = np.repeat(_halves(whole), _PER_CHIP)
        frechet = _relative_frechet(mean, covariance, features)
        halves = _frechet_of_halves(covariance, features, groups)
        proxy = proxy_a_distance(mean, covariance, features, groups=groups, seed=seed)
    return DomainShift(
        frechet, halves, proxy, _band_distances(model, chips), _changed_shares(model, agreement), agreement
    )


def advise(model: Segmenter, shift: DomainShift) -> Advice:
    """Say how far the target is, which methods to try first, and how often they helped on real ground.

    The order is that of the study (docs/adaptation.md) for the same number of steps. Mapping values lost there; it
    comes first where values differ by more than the study knows: then a model may have nothing right to learn from.
    """
    if np.isnan(shift.overall):
        return Advice(
            "unknown",
            (
                "The model does not say what its source looked like; train it anew with SegAdapt to know more.",
                _MEASURED,
            ),
            (_STRONGEST, "self_training"),
        )
    level = "near" if shift.overall < _NEAR else "moderate" if shift.overall < _FAR else "far"
    said = {
        "near": "The target is near: use the model as it is, or adapt it with rasters of the source at hand.",
        "moderate": "The target is some way off: adapt the model before you rely on it.",
        "far": "The target is far: adapt the model, and label a few places to check and to fine-tune it.",
    }
    sentences = [said[level]]
    is_other_light = shift.bands >= _OTHER_LIGHT
    if is_other_light:
        sentences.append(
            f"Values differ by {shift.bands:.1f} deviations of the source: light, sensor or stretch. Map them first: "
            "that undid made-up haze; on real pairs, none of which differ by more than 0.4, quantile lost on five of "
            "six."
        )
    if shift.proxy_a > 1.0:
        sentences.append("The network sees source and target as different things, beyond what two places differ by.")
    if shift.shares > _OTHER_SHARES:
        sentences.append(
            f"The model finds other shares of classes than its source had ({100 * shift.shares:.0f} % would have to "
            "change): either the place is different, or the model is lost. Look at the map."
        )
    sentences.append(
        "How much accuracy that costs cannot be measured without labels: on real pairs the farthest target lost least. "
        "Evaluate the model on a few labels."
    )
    sentences.append(_MEASURED)
    mapped = ("quantile", f"quantile+{_STRONGEST}") if is_other_light else ()
    return Advice(level, tuple(sentences), (*mapped, _STRONGEST, "self_training"))


def frechet_distance(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Squared Frechet distance of two normal distributions (D,), (D, D); 0 for equal ones.

    Dowson & Landau 1982; of deep features as in Heusel et al. 2017, https://arxiv.org/abs/1706.08500.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ other_covariance @ root).clip(min=0)
    distance = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance)
    return float(max(0.0, distance - 2 * np.sqrt(cross).sum()))


def proxy_a_distance(
    mean: Array, covariance: Array, features: Array, *, groups: npt.NDArray[np.intp], seed: int = 0
) -> float:
    """2 (1 - 2 error) of a linear classifier between the source and the target, 0 to 2.

    Ben-David et al. 2007, "Analysis of Representations for Domain Adaptation". The source is a normal distribution,
    from which as many features are drawn as the target has (N, D); the classifier (linear discriminant, shrunk) learns
    on the `groups` (N,) 0 and judges on 1, and the reverse. Only the axes that matter in the source are looked at.
    """
    axes, _ = _axes(covariance, len(features))
    spread = np.sqrt(np.einsum("da,de,ea->a", axes, covariance, axes).clip(min=1e-12))
    target = (features - mean) @ axes / spread
    source = np.random.default_rng(seed).standard_normal(target.shape)
    errors = []
    for learn in (0, 1):
        is_learned = groups == learn
        if not is_learned.any() or is_learned.all():
            return float("nan")
        middles = source[is_learned].mean(axis=0), target[is_learned].mean(axis=0)
        within = (np.cov(source[is_learned], rowvar=False) + np.cov(target[is_learned], rowvar=False)) / 2
        within = np.atleast_2d(within)
        size = np.trace(within) / len(within)
        direction = np.linalg.solve(
            (1 - _SHRINKAGE) * within + _SHRINKAGE * size * np.eye(len(within)), middles[1] - middles[0]
        )
        limit = direction @ (middles[0] + middles[1]) / 2
        wrong = np.concatenate([source[~is_learned] @ direction > limit, target[~is_learned] @ direction <= limit])
        errors.append(wrong.mean())
    return float(np.clip(2 * (1 - 2 * np.mean(errors)), 0, 2))


def _axes(covariance: Array, n: int) -> tuple[Array, float]:
    """The source's principal axes (D, A) that `n` samples can fill, and its whole variance."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    total = float(values.sum())
    enough = int(np.searchsorted(np.cumsum(values) / max(total, 1e-12), _KEPT_VARIANCE)) + 1
    return vectors[:, : max(1, min(_MOST_AXES, enough, n // 4))], total


def _relative_frechet(mean: Array, covariance: Array, features: Array) -> float:
    """Along the source's main axes, with the whole distance of the means, over the source's variance."""
    axes, total = _axes(covariance, len(features))
    middle = features.mean(axis=0)
    inside = frechet_distance(
        mean @ axes,
        axes.T @ covariance @ axes,
        middle @ axes,
        np.atleast_2d(np.cov(features @ axes, rowvar=False)),
    )
    difference = middle - mean
    outside = float((difference**2).sum() - ((difference @ axes) ** 2).sum())
    return (inside + max(0.0, outside)) / max(total, 1e-12)


def _frechet_of_halves(covariance: Array, features: Array, groups: npt.NDArray[np.intp]) -> float:
    first, second = features[groups == 0], features[groups == 1]
    if min(len(first), len(second)) < 2:
        return 0.0
    axes, total = _axes(covariance, len(features))
    inside = frechet_distance(
        first.mean(axis=0) @ axes,
        np.atleast_2d(np.cov(first @ axes, rowvar=False)),
        second.mean(axis=0) @ axes,
        np.atleast_2d(np.cov(second @ axes, rowvar=False)),
    )
    # Both halves are as uncertain as a half: the whole is compared with a source that is known well.
    return inside / 2 / max(total, 1e-12)


def _halves(chips: Chips) -> npt.NDArray[np.intp]:
    """0 or 1 for each chip, whole blocks of ground together where there are some."""
    _, numbered = np.unique(chips.blocks, return_inverse=True)
    places = numbered if numbered.max() else np.arange(len(chips))
    return (places % 2).astype(np.intp)


def _band_distances(model: Segmenter, chips: Chips) -> tuple[float, ...]:
    known = np.array(model.card.statistics.get("band_quantiles", ()), np.float64)
    found = band_quantiles(chips_of_network(model, chips))
    if known.shape != found.shape or not np.isfinite(known).all():
        return ()
    # The mean distance of quantiles is the Wasserstein distance of the bands' histograms.
    fine = np.stack([np.interp(np.linspace(0, 1, 1025), np.linspace(0, 1, known.shape[1]), row) for row in known])
    return tuple(float(x) for x in np.abs(known - found).mean(axis=1) / np.maximum(fine.std(axis=1), 1.0))


def _changed_shares(model: Segmenter, agreement: Agreement) -> float:
    known = np.array(model.card.statistics.get("class_shares", ()), np.float64)
    if known.shape != (len(model.card.classes),) or not known.sum() > 0:
        return float("nan")
    return float(np.abs(known / known.sum() - np.array(agreement.shares)).sum() / 2)
