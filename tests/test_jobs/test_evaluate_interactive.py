"""The simulated analyst on scenes whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import evaluate_interactive as module
from segadapt.processing.jobs.evaluate_interactive import (
    CUT,
    LARGE,
    NODATA,
    OUTSIDE,
    SMALL,
    Configuration,
    EvaluateInteractive,
    evaluate_interactive,
    plain_options,
)
from segadapt.processing.jobs.interactive import LearningReport
from segadapt.processing.jobs.simulated_analyst import Reference
from shapely.geometry import MultiPolygon, box

HOUSES = [box(40 + 60 * i, 40 + 60 * j, 72 + 60 * i, 64 + 60 * j) for i in range(4) for j in range(3)]
PLAIN = Configuration("plain", plain_options(window_px=512))


@pytest.fixture
def scene(paint_scene, open_scene, fake_engine):
    return open_scene(paint_scene((512, 512), HOUSES), fake_engine)


def references(scene, outlines):
    return [
        Reference(shapely.transform(outline, scene.reader.to_map), f"house {i}", "house")
        for i, outline in enumerate(outlines)
    ]


def evaluate(scene, outlines, *configurations, progress=None, **options):
    job = EvaluateInteractive(configurations=configurations or (PLAIN,), **options)
    return evaluate_interactive(scene, references(scene, outlines), job, progress)


def test_perfect_answers_take_one_click(scene):
    found = evaluate(scene, HOUSES)
    (result,) = found.results
    assert found.n_references == len(result.curves) == 12
    assert found.excluded == {}
    assert found.provenance["SEGADAPT_MODEL"] == "fake"
    for curve in result.curves:
        assert curve.ious == (1.0,) * 20
        assert curve.n_clicks == 1
        assert curve.area_px == 32 * 24
        assert curve.outline.symmetric_difference(curve.truth).area < 1e-6
    assert result.summary["noc_90"].value == 1
    assert result.summary["miou_10"].value == 1
    assert result.after_first is None
    assert result.n_encoded == 1
    assert result.encode_s > 0


def test_first_click_is_deepest_and_prompts_go_through_the_session(scene, fake_engine):
    """The second request holds both clicks and the logits of the first answer, in the same window."""
    half = box(40, 40, 72, 52)  # the upper half of the first house: the answer is the whole, IoU 0.5
    (result,) = evaluate(scene, [half], n_clicks=3).results
    assert result.curves[0].ious == (0.5, 0.5, 0.5)
    assert result.curves[0].n_clicks == 3
    assert result.curves[0].clicks_to(0.8) is None
    first, second, third = fake_engine.prompts[-3:]
    # Depth 6 in rows 45 and 46 from column 45 to 66: the first of them, at its centre, in chip pixels of half a pixel.
    np.testing.assert_allclose(first.points_xy, [(91, 91)], atol=1e-3)
    assert first.mask_logits is None
    # Then the lower half, which is too much: depth 6 in row 57 from column 45.
    np.testing.assert_allclose(second.points_xy, [(91, 91), (91, 115)], atol=1e-3)
    assert second.labels.tolist() == [1, 0]
    assert (second.mask_logits > 0).any()
    # The same place is not clicked twice.
    np.testing.assert_allclose(third.points_xy[2], (93, 115), atol=1e-3)


def test_the_answer_counts_wherever_it_reaches(scene):
    """The truth is a corner of a house: the rest of the answer, outside the truth's bounds, is error all the same."""
    (result,) = evaluate(scene, [box(40, 40, 48, 48)], n_clicks=1, min_area_px=1).results
    assert result.curves[0].ious[0] == pytest.approx(64 / (32 * 24))


def test_nothing_found_is_clicked_again_where_it_was_not(scene, fake_engine):
    ground = box(300, 300, 340, 340)
    (result,) = evaluate(scene, [ground], n_clicks=4).results
    assert result.curves[0].ious == (0, 0, 0, 0)
    assert result.curves[0].outline.is_empty
    last = fake_engine.prompts[-1]
    assert last.labels.tolist() == [1, 1, 1, 1]
    assert len(np.unique(last.points_xy, axis=0)) == 4


def test_order_is_random_by_seed_and_limited(scene):
    orders = [[c.index for c in evaluate(scene, HOUSES, seed=seed).results[0].curves] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(12))
    assert orders[0] != sorted(orders[0])
    limited = evaluate(scene, HOUSES, max_objects=5)
    assert [curve.index for curve in limited.results[0].curves] == orders[0][:5]
    assert [curve.order for curve in limited.results[0].curves] == list(range(5))


def test_excluded_references_are_counted(paint_scene, open_scene, fake_engine):
    mask = np.ones((200, 200), bool)
    mask[150:, 100:] = False
    scene = open_scene(paint_scene((200, 200), [box(20, 20, 60, 60)], mask=mask), fake_engine)
    outlines = [
        box(20, 20, 60, 60),
        box(-100, 20, -60, 60),
        box(-10, 100, 30, 140),
        box(160, 0, 190, 30),
        box(90, 140, 120, 170),
        box(100, 100, 103, 103),
        shapely.Polygon(),
    ]
    found = evaluate(scene, outlines)
    assert found.excluded == {OUTSIDE: 1, CUT: 2, NODATA: 1, SMALL: 2}
    assert [curve.index for curve in found.results[0].curves] == [0]
    with pytest.raises(JobError, match=r"None of the 1 reference polygons can be evaluated \(1 too small\)"):
        evaluate(scene, outlines[5:6])


def test_references_larger_than_any_window_are_left_out(scene, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_WINDOW_PX", 32)
    found = evaluate(scene, [HOUSES[0], box(100, 100, 133, 110)])
    assert found.excluded == {LARGE: 1}


def test_configurations_meet_the_same_objects_and_are_compared(scene):
    """In windows of 64 px half of the houses are cut, which in larger windows are whole."""
    small = Configuration("small", plain_options(window_px=64))
    found = evaluate(scene, HOUSES, PLAIN, small, n_clicks=2)
    first, second = found.results
    assert [c.index for c in first.curves] == [c.index for c in second.curves]
    assert list(found.differences) == ["small"]
    lost = found.differences["small"]["miou_1"]
    assert lost.value == pytest.approx(second.summary["miou_1"].value - 1)
    assert lost.low <= lost.value < 0
    with pytest.raises(JobError, match="names of their own"):
        evaluate(scene, HOUSES, PLAIN, PLAIN)


class LearningSegmenter(module.InteractiveSegmenter):
    """Notes what it is taught; keeps every second object."""

    taught: list = []  # noqa: RUF012 - emptied by the test

    def learn(self, result, geometry=None):
        self.taught.append((self, result.geometry, geometry))
        return LearningReport(len(self.taught) % 2 == 0, len(self.taught), 0.5, 0.6, "")


@pytest.fixture
def taught(monkeypatch):
    monkeypatch.setattr(module, "InteractiveSegmenter", LearningSegmenter)
    LearningSegmenter.taught = []
    return LearningSegmenter.taught


LEARNING = Configuration("learning", replace(plain_options(), per_object=True))


def test_learning_carries_over_from_object_to_object(scene, taught):
    """One segmenter for all objects of a configuration; the answer is what is accepted."""
    found = evaluate(scene, [*HOUSES[:4], box(300, 300, 340, 340)], LEARNING, n_clicks=2, n_first=3)
    assert len(taught) == 4  # of nothing nothing is learned
    assert len({id(segmenter) for segmenter, _, _ in taught}) == 1
    assert {geometry for _, _, geometry in taught} == {None}
    assert (found.results[0].n_kept, found.results[0].n_undone) == (2, 2)
    assert found.results[0].after_first.n_objects == 2


def test_the_reference_can_be_accepted_instead(scene, taught):
    found = evaluate(scene, HOUSES[:2], LEARNING, accepts="reference")
    accepted = [geometry for _, _, geometry in taught]
    assert accepted == [curve.truth for curve in found.results[0].curves]


def test_nothing_is_taught_where_learning_is_off(scene, taught):
    evaluate(scene, HOUSES[:2], PLAIN)
    assert taught == []


def test_a_click_that_cannot_be_answered_is_taken_back(scene, monkeypatch, fake_engine):
    class Refusing(module.InteractiveSegmenter):
        def answer(self, request, **more):
            if len(request.points_map) == 2:
                raise JobError("too far")
            return super().answer(request, **more)

    monkeypatch.setattr(module, "InteractiveSegmenter", Refusing)
    (result,) = evaluate(scene, [box(40, 40, 72, 52)], n_clicks=4).results
    assert result.curves[0].ious == (0.5,) * 4
    assert result.curves[0].n_clicks == 4
    assert max(len(prompt.labels) for prompt in fake_engine.prompts) == 1


def test_progress_tells_the_time_left_and_can_be_cancelled(scene, recorder):
    progress = recorder()
    evaluate(scene, HOUSES, progress=progress)
    assert progress.fractions == pytest.approx([(i + 1) / 12 for i in range(12)])
    assert any("of 12 objects, about" in text and "left." in text for text in progress.texts)
    with pytest.raises(Cancelled):
        evaluate(scene, HOUSES, progress=recorder(cancel_after=4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_clicks": 0}, "0 clicks"),
        ({"max_objects": 0}, "0 objects"),
        ({"targets": (0.8, 85)}, "are no IoUs"),
        ({"accepts": "hope"}, "'hope' cannot be accepted"),
        ({"configurations": ()}, "need names"),
    ],
)
def test_numbers_that_make_no_sense(options, sentence):
    with pytest.raises(JobError, match=sentence):
        EvaluateInteractive(**options)


def test_plain_options_switch_everything_off():
    options = plain_options()
    assert (options.window_px, options.fixed_window) == (1024, True)
    assert not any(value for name, value in vars(options).items() if name not in ("window_px", "fixed_window"))
    assert options.is_plain
    assert not plain_options(window_px=None).fixed_window


def test_mobile_sam_on_the_sample(engine, open_scene):
    """Real weights on real roofs: better with each click, and roughly as good as one would expect."""
    import geopandas

    sample = Path(module.__file__).parents[2] / "plugin/resources/sample"
    scene = open_scene(str(sample / "rotterdam_50cm.tif"), engine)
    table = geopandas.read_file(sample / "rotterdam.gpkg", layer="reference")
    given = [Reference(geometry, name) for geometry, name in zip(table.geometry, table["object_id"], strict=True)]
    # A window of 1024 px holds the whole scene: one embedding, the only slow step.
    plain = Configuration("plain", plain_options(window_px=1024))
    job = EvaluateInteractive(configurations=(plain,), n_clicks=5, max_objects=4, min_area_px=400)
    (result,) = evaluate_interactive(scene, given, job).results
    assert result.summary["miou_5"].value > 0.7
    assert result.summary["miou_5"].value > result.summary["miou_1"].value
    assert 0 < result.summary["click_median_s"].value < result.summary["click_p95_s"].value
    assert all(isinstance(curve.outline, MultiPolygon) for curve in result.curves)
