"""IoU against clicks of many objects, and what is said of them: numbers of clicks, means, times, intervals.

The measures are those of RITM's `isegm/inference/utils.py` (NoC, NoF) and of the SAM papers (mIoU at 1, 3, 5).
Intervals are percentile bootstraps over objects, because the clicks of one object are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ..errors import JobError

AT_CLICKS = (1, 3, 5, 10)
_LEVEL = 0.95

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectCurve:
    """What happened to one object.

    `index`: its place among the references as they were given; `order`: when it was its turn, from 0. `area_px`:
    pixels of the truth. `ious`: IoU after each of the clicks that were allowed; behind the last click that was made
    it stays as it was. `click_s`: seconds from click to answer, one per click that was made, without encoding;
    `learn_s`: seconds of learning after it was accepted. `truth` and `outline` (the last answer) are in the raster's
    CRS.
    """

    index: int
    order: int
    reference_id: str
    class_name: str
    area_px: int
    ious: tuple[float, ...]
    click_s: tuple[float, ...]
    learn_s: float
    truth: BaseGeometry = field(repr=False)
    outline: MultiPolygon = field(repr=False)

    @property
    def n_clicks(self) -> int:
        """How many clicks were made."""
        return len(self.click_s)

    def clicks_to(self, target: float) -> int | None:
        """Number of the first click after which the IoU is at least `target`; None where none is."""
        return next((number for number, iou in enumerate(self.ious, 1) if iou >= target), None)


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; NaN where nothing was measured."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Say whether `value` lies in the interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True, eq=False)
class Summary:
    """All measures of `n_objects` objects, by name.

    `miou_K`: mean IoU after K clicks; `noc_Q`: mean number of clicks to an IoU of Q per cent, the most allowed where
    it was never reached; `nof_Q`: number of objects that never reached it; `noc_by_area_Q`: the same mean where each
    object counts by its area (area-normalised NoC: what a pixel of mapped object costs, not what an object costs);
    `click_median_s`, `click_p95_s`: seconds per click.
    """

    n_objects: int
    measures: Mapping[str, Interval]

    def __getitem__(self, name: str) -> Interval:
        """The measure `name`."""
        return self.measures[name]


def measure_names(targets: Sequence[float], *, n_clicks: int) -> list[str]:
    """Names of the measures for IoUs `targets` (0 to 1) and at most `n_clicks` clicks, in the order of a table."""
    percents = [percent(target) for target in targets]
    return [
        *(f"miou_{number}" for number in AT_CLICKS if number <= n_clicks),
        *(f"{kind}_{name}" for kind in ("noc", "nof", "noc_by_area") for name in percents),
        "click_median_s",
        "click_p95_s",
    ]


def percent(target: float) -> str:
    """A target as it appears in names: 0.85 is "85"."""
    return f"{100 * target:g}"


def summarise(
    curves: Sequence[ObjectCurve], targets: Sequence[float], *, seed: int = 0, n_resamples: int = 1000
) -> Summary:
    """Measure `curves`, with intervals from `n_resamples` resamples of the objects. Deterministic by `seed`.

    Raises `JobError` where there is no curve.
    """
    whole, resampled = _measured([curves], targets, seed=seed, n_resamples=n_resamples)
    return Summary(len(curves), {name: _interval(whole[0][name][0], resampled[0][name]) for name in whole[0]})


def difference(
    curves: Sequence[ObjectCurve],
    baseline: Sequence[ObjectCurve],
    targets: Sequence[float],
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Summary:
    """What `curves` have more than `baseline` of the same objects: each resample takes the same objects of both.

    Deterministic by `seed`. Raises `JobError` where the objects are not the same, or there are none.
    """
    if [curve.index for curve in curves] != [curve.index for curve in baseline]:
        raise JobError("Curves of different objects have no paired difference; evaluate both on the same objects.")
    whole, resampled = _measured([curves, baseline], targets, seed=seed, n_resamples=n_resamples)
    return Summary(
        len(curves),
        {
            name: _interval(whole[0][name][0] - whole[1][name][0], resampled[0][name] - resampled[1][name])
            for name in whole[0]
        },
    )


def mean_curve(
    curves: Sequence[ObjectCurve], *, seed: int = 0, n_resamples: int = 1000
) -> tuple[Values, Values, Values]:
    """Mean IoU after each click and the ends of its interval, each (n_clicks,)."""
    ious = np.array([curve.ious for curve in curves])
    means = _resamples(len(curves), seed=seed, n_resamples=n_resamples) @ ious / len(curves)
    low, high = np.quantile(means, _tails(), axis=0)
    return ious.mean(axis=0), low, high


_Measures = list[dict[str, Values]]


def _measured(
    groups: Sequence[Sequence[ObjectCurve]], targets: Sequence[float], *, seed: int, n_resamples: int
) -> tuple[_Measures, _Measures]:
    """Measures (1,) of each group as it is, and (n_resamples,) of its resamples, which all groups share."""
    n_objects = len(groups[0])
    if not n_objects:
        raise JobError("There is no object to measure; give references that lie inside the raster.")
    weights = _resamples(n_objects, seed=seed, n_resamples=n_resamples)
    once = np.ones((1, n_objects), np.int64)
    return [_measure(group, targets, once) for group in groups], [_measure(group, targets, weights) for group in groups]


def _resamples(n_objects: int, *, seed: int, n_resamples: int) -> npt.NDArray[np.int64]:
    """How often each object is in each resample: (n_resamples, n_objects)."""
    drawn: npt.NDArray[np.int64] = np.random.default_rng(seed).multinomial(
        n_objects, np.full(n_objects, 1 / n_objects), size=n_resamples
    )
    return drawn


def _measure(
    curves: Sequence[ObjectCurve], targets: Sequence[float], weights: npt.NDArray[np.int64]
) -> dict[str, Values]:
    """Measures by name, one value per row of `weights` (rows, objects)."""
    ious = np.array([curve.ious for curve in curves])
    n_objects, most = ious.shape
    areas = np.array([curve.area_px for curve in curves], np.float64)
    found: dict[str, Values] = {}
    for number in AT_CLICKS:
        if number <= most:
            found[f"miou_{number}"] = weights @ ious[:, number - 1] / n_objects
    reached = {percent(target): [curve.clicks_to(target) for curve in curves] for target in targets}
    clicks = {name: np.array([number or most for number in numbers], np.float64) for name, numbers in reached.items()}
    for name in reached:
        found[f"noc_{name}"] = weights @ clicks[name] / n_objects
    for name, numbers in reached.items():
        found[f"nof_{name}"] = weights @ np.array([float(number is None) for number in numbers])
    for name in reached:
        found[f"noc_by_area_{name}"] = weights @ (areas * clicks[name]) / (weights @ areas)
    seconds = np.concatenate([np.array(curve.click_s, np.float64) for curve in curves])
    per_click = weights.repeat([curve.n_clicks for curve in curves], axis=1)
    quantiles = np.array([_quantiles(seconds.repeat(row)) for row in per_click])
    found["click_median_s"], found["click_p95_s"] = quantiles[:, 0], quantiles[:, 1]
    return found


def _quantiles(seconds: Values) -> Values:
    return np.quantile(seconds, (0.5, 0.95)) if len(seconds) else np.full(2, np.nan)


def _interval(value: float, resampled: Values) -> Interval:
    low, high = np.quantile(resampled, _tails())
    return Interval(float(value), float(low), float(high))


def _tails() -> tuple[float, float]:
    return (1 - _LEVEL) / 2, (1 + _LEVEL) / 2
