"""Numbers of clicks, means and intervals, against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.click_curves import ObjectCurve, difference, mean_curve, measure_names, summarise
from shapely.geometry import MultiPolygon, box

TARGETS = (0.80, 0.90)


def curve(*ious, index=0, area_px=100, seconds=0.1):
    return ObjectCurve(
        index=index,
        order=index,
        reference_id=str(index),
        class_name="",
        area_px=area_px,
        ious=ious,
        click_s=(seconds,) * len(set(ious)),
        learn_s=0.0,
        truth=box(0, 0, 1, 1),
        outline=MultiPolygon(),
    )


THREE = [
    curve(0.5, 0.85, 0.95, 0.95, 0.95, index=0, area_px=300, seconds=0.1),
    curve(0.7, 0.6, 0.8, 0.75, 0.7, index=1, area_px=100, seconds=0.2),
    curve(0.9, 0.9, 0.9, 0.9, 0.9, index=2, area_px=100, seconds=0.3),
]


def test_clicks_to_a_target_are_those_of_the_first_time():
    assert THREE[0].clicks_to(0.80) == 2
    assert THREE[1].clicks_to(0.80) == 3
    assert THREE[1].clicks_to(0.90) is None
    assert THREE[2].clicks_to(0.90) == 1


def test_measures():
    found = summarise(THREE, TARGETS)
    assert found.n_objects == 3
    assert list(found.measures) == measure_names(TARGETS, n_clicks=5)
    assert {name: found[name].value for name in found.measures} == pytest.approx(
        {
            "miou_1": 0.7,
            "miou_3": (0.95 + 0.8 + 0.9) / 3,
            "miou_5": 0.85,
            "noc_80": (2 + 3 + 1) / 3,
            "noc_90": (3 + 5 + 1) / 3,  # five clicks were allowed
            "nof_80": 0,
            "nof_90": 1,
            "noc_by_area_80": (2 * 3 + 3 + 1) / 5,
            "noc_by_area_90": (3 * 3 + 5 + 1) / 5,
            "click_median_s": 0.2,
            "click_p95_s": np.quantile([0.1] * 3 + [0.2] * 4 + [0.3], 0.95),
        }
    )


def test_intervals_are_those_of_resampled_objects():
    """Against a bootstrap written out: for many objects the interval is about two standard errors wide."""
    random = np.random.default_rng(1)
    values = random.uniform(0.3, 0.9, 200)
    curves = [curve(value, index=i) for i, value in enumerate(values)]
    found = summarise(curves, TARGETS, seed=3)["miou_1"]
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < found.value < found.high
    assert found.contains(found.value)
    assert not found.contains(found.high + 1e-6)
    assert summarise(curves, TARGETS, seed=3)["miou_1"] == found
    assert summarise(curves, TARGETS, seed=4)["miou_1"] != found


def test_equal_objects_have_no_width():
    found = summarise([curve(0.5, 0.9, index=i) for i in range(4)], TARGETS)
    assert (found["noc_80"].low, found["noc_80"].value, found["noc_80"].high) == (2, 2, 2)


def test_difference_is_paired():
    """A constant gain on very different objects is certain, however wide the two intervals themselves are."""
    values = np.linspace(0.1, 0.7, 30)
    before = [curve(value, index=i) for i, value in enumerate(values)]
    after = [curve(value + 0.05, index=i) for i, value in enumerate(values)]
    gain = difference(after, before, TARGETS)["miou_1"]
    assert (gain.low, gain.value, gain.high) == pytest.approx((0.05, 0.05, 0.05))
    own = summarise(after, TARGETS)["miou_1"]
    assert own.high - own.low > 0.1
    with pytest.raises(JobError, match="same objects"):
        difference(after[1:], before, TARGETS)


def test_mean_curve_has_a_band():
    mean, low, high = mean_curve(THREE)
    np.testing.assert_allclose(mean, np.mean([c.ious for c in THREE], axis=0))
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert high[0] > low[0]


def test_nothing_to_measure():
    with pytest.raises(JobError, match="no object to measure"):
        summarise([], TARGETS)


def test_an_object_without_a_click_has_no_seconds():
    silent = curve(0.5)
    object.__setattr__(silent, "click_s", ())
    assert np.isnan(summarise([silent], TARGETS)["click_median_s"].value)
