"""Clicks against the mIoU of a whole class map, with a mapper whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.class_map_truth import drawn_truth, interval_of, thinning
from segadapt.processing.jobs.clicker import ClassClick
from segadapt.processing.jobs.evaluate_class_map import EvaluateClassMap, class_ious, evaluate_class_map
from segadapt.processing.jobs.simulated_analyst import Reference
from segadapt.processing.raster.reader import open_raster


class NearestClick:
    """Every pixel has the class of the nearest click."""

    def __init__(self, shape):
        self.rows, self.cols = np.indices(shape)
        self.clicks = []

    def click(self, x, y, class_id):
        self.clicks.append((x, y, class_id))

    def labels(self):
        distances = [np.hypot(self.cols - x, self.rows - y) for x, y, _ in self.clicks]
        return np.array([class_id for *_, class_id in self.clicks], np.uint8)[np.argmin(distances, axis=0)]


@pytest.fixture
def truth():
    """Three classes in blocks, and a strip that is not labelled."""
    truth = np.full((40, 60), 1, np.uint8)
    truth[:15, :25] = 2
    truth[25:, 35:] = 3
    truth[:, 58:] = 0
    return truth


def run(truth, **options):
    mapper = NearestClick(truth.shape)
    guide, progress = options.pop("guide", None), options.pop("progress", None)
    return mapper, evaluate_class_map(mapper, truth, EvaluateClassMap(**options), guide=guide, progress=progress)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_truth_that_is_drawn_coarser_is_that_of_every_so_many_th_pixel(raster_factory, step):
    """The last polygon counts; what has no data is unknown, and so is a class that is not asked for."""
    pixels = np.full((3, 41, 62), 9, np.uint8)
    pixels[:, :, 50:] = 0
    reader = open_raster(raster_factory(pixels, nodata=0))
    expected = np.zeros((41, 62), np.uint8)
    references = []
    for number, (top, left, bottom, right) in enumerate(((0, 0, 20, 62), (10, 7, 31, 40), (5, 5, 9, 9))):
        corners = reader.to_map([(left, top), (right, bottom)])
        references.append(Reference(shapely.box(*np.ravel(corners)), str(number), "abx"[number]))
        if number < 2:
            expected[top:bottom, left:right] = number + 1
    expected[:, 50:] = 0
    truth = drawn_truth(references, {"a": 1, "b": 2}, reader, step=step)
    np.testing.assert_array_equal(truth, expected[::step, ::step])
    with pytest.raises(JobError, match="None of the 3 reference polygons"):
        drawn_truth(references, {"c": 1}, reader, step=step)


def test_large_rasters_are_thinned_to_what_can_be_searched():
    assert [thinning(shape) for shape in ((1000, 1000), (1000, 1001), (10_000, 9_000))] == [1, 2, 10]


def test_a_map_has_an_interval_by_blocks_of_the_image(truth):
    """None of a map that is right everywhere; unknown pixels do not count."""
    assert interval_of(truth, np.where(truth == 0, 3, truth).astype(np.uint8)) == (1, 1)
    low, high = interval_of(truth, np.where(truth == 2, 1, truth).astype(np.uint8))
    assert 0 < low < high < 1


def test_classes_come_first_then_the_largest_error(truth):
    mapper, curve = run(truth, n_clicks=30)
    assert sorted(class_id for *_, class_id in mapper.clicks[:3]) == [1, 2, 3]
    for x, y, class_id in mapper.clicks:
        assert truth[y, x] == class_id
    assert [(c.x, c.y, c.class_id) for c in curve.clicks] == mapper.clicks
    assert len(curve.mious) == len(curve.click_s) == 30
    assert curve.mious[-1] > 0.9
    assert curve.mious[-1] > curve.mious[2]
    assert curve.mious[-1] == pytest.approx(np.mean(list(curve.class_ious.values())))
    assert curve.clicks_to(curve.mious[-1]) <= 30
    assert curve.clicks_to(1.01) is None


def test_largest_errors_beat_random_ones(truth):
    """The reason for clicking where it is worst; over several seeds."""
    _, largest = run(truth, n_clicks=15)
    randoms = [run(truth, n_clicks=15, where="random error", seed=seed)[1] for seed in range(5)]
    assert largest.mious[-1] > np.mean([curve.mious[-1] for curve in randoms])
    for curve in randoms:
        assert curve.clicks[:3] == largest.clicks[:3]
    assert randoms[0].clicks != randoms[1].clicks
    assert run(truth, n_clicks=15, where="random error", seed=0)[1].mious == randoms[0].mious


def test_a_guide_decides_and_unlabelled_places_cost_nothing(truth):
    places = iter([(59, 3), (40, 5), (59, 20), (5, 30)])
    seen = []

    def guide(clicked):
        seen.append(int(clicked.sum()))
        return next(places, None)

    _, curve = run(truth, n_clicks=20, guide=guide)
    assert curve.clicks[3:] == (ClassClick(40, 5, 1), ClassClick(5, 30, 1))
    assert curve.n_skipped == 2
    assert seen == [3, 4, 5, 6, 7]
    with pytest.raises(JobError, match=r"points at \(60, 2\)"):
        run(truth, guide=lambda clicked: (60, 2))
    endless = run(truth, guide=lambda clicked: (59, 2))[1]
    assert len(endless.clicks) == 3


def test_it_stops_when_nothing_is_wrong():
    truth = np.repeat(np.array([[1, 2]], np.uint8), 4, axis=0)
    _, curve = run(truth, n_clicks=10)
    assert curve.mious == (pytest.approx(0.25), 1.0)


def test_class_zero_is_a_class_where_nothing_is_ignored():
    truth = np.zeros((6, 12), np.uint8)
    truth[:, 6:] = 1
    _, curve = run(truth, n_clicks=10, ignore_id=None)
    assert set(curve.class_ious) == {0, 1}
    assert curve.mious[-1] == 1


def test_class_ious_by_hand():
    truth = np.array([[1, 1, 2, 0]], np.uint8)
    labels = np.array([[1, 2, 2, 1]], np.uint8)
    assert class_ious(truth, labels, [1, 2], ignore=truth == 0) == {1: 0.5, 2: 0.5}
    assert class_ious(truth, labels, [1, 7]) == {1: pytest.approx(1 / 3), 7: 1.0}
    with pytest.raises(JobError, match="arrays of one shape"):
        class_ious(truth, labels.T, [1])


def test_wrong_input_and_cancel(truth, recorder):
    with pytest.raises(JobError, match="nothing but 0"):
        run(np.zeros((4, 4), np.uint8))
    with pytest.raises(JobError, match="fewer than the 3 classes"):
        run(truth, n_clicks=2)
    with pytest.raises(JobError, match="'here' is no place"):
        EvaluateClassMap(where="here")
    with pytest.raises(JobError, match="0 clicks"):
        EvaluateClassMap(n_clicks=0)
    with pytest.raises(Cancelled):
        run(truth, progress=recorder(cancel_after=3))
    progress = recorder()
    run(truth, n_clicks=4, progress=progress)
    assert progress.fractions == pytest.approx([0.25, 0.5, 0.75, 1])
