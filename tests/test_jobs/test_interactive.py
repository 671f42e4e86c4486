"""Click, answer, next click."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.models.adaptation.rectangles import Rectangle
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import interactive
from segadapt.processing.jobs.click_windows import view_windows, window_px_for_view
from segadapt.processing.jobs.interactive import InteractiveOptions, InteractiveSegmenter, segment_prompts
from segadapt.processing.jobs.prompt_request import PreviousAnswer, PromptRequest
from segadapt.processing.raster.windows import lattice_window
from shapely.geometry import Point, box

TURNED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
DISC, HALL = Point(700, 640).buffer(40), box(300, 300, 500, 420)


@pytest.fixture
def scene(paint_scene, open_scene, fake_engine):
    return open_scene(paint_scene((1500, 1500), [DISC, HALL]), fake_engine)


def on_map(scene, *points_px):
    return tuple(tuple(xy) for xy in scene.reader.to_map(points_px))


def click(scene, *points_px, labels=None, request_id=1, **options):
    labels = labels or (1,) * len(points_px)
    return PromptRequest(request_id=request_id, points_map=on_map(scene, *points_px), labels=labels, **options)


def view(scene, left, top, right, bottom):
    """Bounds on the map of a rectangle in raster pixels."""
    (x0, y0), (x1, y1) = scene.reader.to_map([(left, bottom), (right, top)])
    return x0, y0, x1, y1


def test_a_click_is_answered(scene, iou):
    result = segment_prompts(scene, click(scene, (700, 640), request_id=7, window_px=512))
    assert result.request_id == 7
    assert iou(scene, result.geometry, DISC) > 0.95
    assert result.area_m2 == pytest.approx(DISC.area * 0.25, rel=0.05)
    assert (result.score, result.stability) == (pytest.approx(0.95), 1)
    assert result.window == lattice_window(700, 640, size_px=512, shape=(1500, 1500))
    assert result.logits.shape == (256, 256)


def test_next_click_uses_window_and_logits_again(scene, fake_engine):
    first = segment_prompts(scene, click(scene, (700, 640), window_px=512))
    previous = PreviousAnswer(first.window, first.logits)
    second = segment_prompts(
        scene, click(scene, (700, 640), (600, 520), labels=(1, 0), window_px=512, previous=previous)
    )
    assert second.window == first.window
    assert fake_engine.n_embedded == 1
    np.testing.assert_array_equal(fake_engine.prompts[-1].mask_logits, first.logits)
    assert fake_engine.prompts[-1].labels.tolist() == [1, 0]
    np.testing.assert_allclose(fake_engine.prompts[-1].points_xy[1], ((600 - 512) * 2, (520 - 512) * 2), atol=0.01)


def test_click_outside_the_previous_window_gets_one_that_holds_all(scene, fake_engine):
    first = segment_prompts(scene, click(scene, (700, 640), window_px=512))
    previous = PreviousAnswer(first.window, first.logits)
    second = segment_prompts(
        scene, click(scene, (700, 640), (100, 640), labels=(1, 0), window_px=512, previous=previous)
    )
    assert second.window.size_px > 512
    assert second.window.contains_bounds((100, 640, 700, 640))
    assert fake_engine.prompts[-1].mask_logits is None


def test_a_small_object_is_corrected_in_a_closer_window(paint_scene, open_scene, fake_engine, iou):
    hut = box(700, 640, 724, 660)
    scene = open_scene(paint_scene((1500, 1500), [hut]), fake_engine)
    segmenter = InteractiveSegmenter(scene)
    first = segmenter.answer(click(scene, (710, 648)))
    assert first.window.size_px == 256
    closer = segmenter.next_window(first)
    assert closer.size_px == 128
    request = click(scene, (710, 648), (730, 650), labels=(1, 0), previous=first.as_previous())
    # A preview does not wait for it.
    assert segmenter.answer(request, only_if_encoded=True).window == first.window
    second = segmenter.answer(request)
    assert second.window == segmenter.next_window(second) == closer
    assert iou(scene, second.geometry, hut) > 0.9
    assert len(second.trail) == len(first.trail) + 1
    fed_back = fake_engine.prompts[-1].mask_logits > 0
    rows, cols = np.flatnonzero(fed_back.any(axis=1)), np.flatnonzero(fed_back.any(axis=0))
    left, top = (np.array([cols[0], rows[0]]) / 2 + (closer.col_off, closer.row_off)).tolist()
    assert (left, top) == pytest.approx(hut.bounds[:2], abs=1)
    assert (len(cols) / 2, len(rows) / 2) == pytest.approx((24, 20), abs=1.5)
    # What lies beyond the closer window is looked at in the one before.
    beyond = click(scene, (710, 648), (closer.col_off + 136, 650), labels=(1, 0), previous=first.as_previous())
    assert segmenter.answer(beyond).window == first.window
    fixed = InteractiveSegmenter(scene, InteractiveOptions(fixed_window=True))
    assert fixed.answer(request).window == first.window


def test_a_large_object_is_corrected_in_its_window(scene):
    first = segment_prompts(scene, click(scene, (700, 640), window_px=256))
    assert InteractiveSegmenter(scene).next_window(first) == first.window


def test_box_gets_a_window_that_holds_it(scene, iou):
    left, top, right, bottom = HALL.bounds
    request = PromptRequest(request_id=1, box_map=view(scene, left, top, right, bottom), window_px=256)
    result = segment_prompts(scene, request)
    assert result.window.size_px == 512
    assert iou(scene, result.geometry, HALL) > 0.95


def test_object_cut_by_the_views_window_is_whole(scene, iou, paint_scene, open_scene, fake_engine):
    """The hall crosses the border of the window around the click: shifted where that will do, else larger."""
    shifted = segment_prompts(scene, click(scene, (310, 310), window_px=256))
    assert shifted.window == lattice_window(400, 360, size_px=256, shape=(1500, 1500))
    assert shifted.window != lattice_window(310, 310, size_px=256, shape=(1500, 1500))
    assert iou(scene, shifted.geometry, HALL) > 0.95
    large = box(300, 900, 800, 1200)
    scene = open_scene(paint_scene((1500, 1500), [large], name="large.tif"), fake_engine)
    result = segment_prompts(scene, click(scene, (310, 910), window_px=256))
    assert result.window.size_px == 1024
    assert iou(scene, result.geometry, large) > 0.95


def test_single_click_is_ambiguous_unless_told_otherwise(scene, fake_engine):
    offered = segment_prompts(scene, click(scene, (700, 640))).options
    assert len(offered) == 3
    assert [option.score for option in offered] == sorted((option.score for option in offered), reverse=True)
    assert segment_prompts(scene, click(scene, (700, 640), multimask=False)).options == ()
    assert segment_prompts(scene, click(scene, (700, 640), (690, 640))).options == ()


def test_the_mask_that_became_a_rectangle_is_offered_last(scene, fake_engine, monkeypatch):
    wedge = Rectangle(128.0, 128.0, 0.0, (-40.0, 40.0, -30.0, 30.0)).logits()
    monkeypatch.setattr(interactive, "straightened", lambda logits, *_args, **_more: wedge)
    request = click(scene, (700, 640))
    *rectangles, free = segment_prompts(scene, request).options
    drawn = segment_prompts(scene, request, options=InteractiveOptions(rectangles=False)).options
    assert len(rectangles) == len(drawn) == 3
    assert free.geometry.equals(drawn[0].geometry)
    assert not free.geometry.equals(rectangles[0].geometry)


def test_what_was_chosen_or_drawn_free_stays_free(scene, monkeypatch):
    wedge = Rectangle(128.0, 128.0, 0.0, (-40.0, 40.0, -30.0, 30.0)).logits()
    monkeypatch.setattr(interactive, "straightened", lambda logits, *_args, **_more: wedge)
    request = click(scene, (700, 640))
    *rectangles, free = segment_prompts(scene, request).options
    more = replace(request, points_map=request.points_map * 2, labels=(1, 1))
    after_rectangle = segment_prompts(scene, replace(more, previous=rectangles[0].as_previous()))
    after_free = segment_prompts(scene, replace(more, previous=free.as_previous()))
    # Clicks are respected in both.
    assert np.mean(after_rectangle.logits == wedge) > 0.97
    assert np.mean(after_free.logits == wedge) < 0.95
    assert after_free.as_previous().is_free
    # Another window brings no rectangle either.
    elsewhere = click(scene, (700, 640), (100, 640), labels=(1, 0), previous=after_free.as_previous())
    assert segment_prompts(scene, elsewhere).is_free


@pytest.mark.parametrize(
    ("outline", "is_free"), [(DISC, False), (HALL, False), (HALL.difference(box(440, 300, 500, 320)), True)]
)
def test_an_outline_that_is_nearly_a_rectangle_stays_one_that_is_none(scene, outline, is_free):
    drawn = shapely.transform(outline, scene.reader.to_map)
    assert segment_prompts(scene, PromptRequest(request_id=1, outline=drawn)).is_free == is_free


def test_preview_only_where_encoded(scene, fake_engine):
    request = click(scene, (700, 640), window_px=512)
    assert segment_prompts(scene, request, only_if_encoded=True) is None
    assert fake_engine.n_embedded == 0
    full = segment_prompts(scene, request)
    preview = segment_prompts(scene, request, only_if_encoded=True)
    assert preview.geometry.equals_exact(full.geometry)
    assert fake_engine.n_embedded == 1
    assert segment_prompts(scene, click(scene, (-5, 640), window_px=512), only_if_encoded=True) is None


def test_nothing_there_is_an_empty_geometry(scene):
    result = segment_prompts(scene, click(scene, (1200, 1200)))
    assert result.geometry.is_empty
    assert result.area_m2 == 0


def test_prompts_that_cannot_be_answered(scene):
    with pytest.raises(JobError, match="outside the raster; click on its image"):
        segment_prompts(scene, click(scene, (-10, 20)))
    with pytest.raises(JobError, match="add a foreground point or a box"):
        segment_prompts(scene, click(scene, (10, 20), labels=(0,)))


@pytest.mark.parametrize(
    ("side_px", "size_px"), [(100, 256), (2000, 256), (3000, 512), (8000, 1024), (9000, 2048), (90_000, 2048)]
)
def test_window_follows_the_view(scene, side_px, size_px):
    assert window_px_for_view(scene.reader, view(scene, 0, 0, side_px, side_px / 2)) == size_px


@pytest.mark.parametrize("transform", [Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000), TURNED], ids=["north up", "turned"])
def test_clicks_in_an_encoded_view_need_no_encoding(paint_scene, open_scene, fake_engine, transform):
    scene = open_scene(paint_scene((1500, 1500), [], transform=transform), fake_engine)
    x, y = scene.reader.to_map([(700, 640)])[0]
    bounds = (x - 60, y - 40, x + 60, y + 40)
    windows = view_windows(scene.reader, bounds)
    size_px = window_px_for_view(scene.reader, bounds)
    for px in scene.reader.to_pixels([(x + dx, y + dy) for dx in range(-60, 61, 5) for dy in range(-40, 41, 5)]):
        assert lattice_window(*px, size_px=size_px, shape=(1500, 1500)) in windows
    assert windows[0] == lattice_window(700, 640, size_px=size_px, shape=(1500, 1500))
    assert len(windows) == len(set(windows)) <= 48


def test_a_view_of_everything_gives_few_windows_around_its_centre(raster_factory, open_scene, fake_engine):
    scene = open_scene(raster_factory(np.zeros((1, 16, 16), np.uint8)), fake_engine)
    scene.reader.shape = (1_000_000, 1_000_000)  # nothing is read
    windows = view_windows(scene.reader, view(scene, -5e5, -5e5, 1.5e6, 1.5e6))
    assert len(windows) == 48
    assert {window.size_px for window in windows} == {2048}
    assert all(abs(window.col_off + 1024 - 500_000) < 9000 for window in windows)


@pytest.mark.parametrize("bounds_px", [(-500, -500, -100, -100), (2000, 0, 2500, 100)])
def test_view_beside_the_raster(scene, bounds_px):
    assert view_windows(scene.reader, view(scene, *bounds_px)) == []


def test_view_without_a_place(scene):
    assert view_windows(scene.reader, (np.nan, 0, 1, 1)) == []


def test_refined_by_clicks_with_the_real_model(paint_scene, open_scene, engine, iou):
    scene = open_scene(paint_scene((400, 400), [box(60, 60, 200, 150)]), engine)
    first = segment_prompts(scene, click(scene, (100, 100), window_px=512))
    previous = PreviousAnswer(first.window, first.logits)
    second = segment_prompts(scene, click(scene, (100, 100), (180, 130), window_px=512, previous=previous))
    assert iou(scene, second.geometry, box(60, 60, 200, 150)) > 0.9
    assert second.window == first.window


def test_a_small_object_in_a_wide_view_is_looked_at_closer(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((1500, 1500), [box(700, 640, 720, 655)]), fake_engine)
    wide = segment_prompts(scene, click(scene, (710, 648), window_px=1024))
    assert wide.window.size_px == 256
    kept = segment_prompts(scene, click(scene, (710, 648), window_px=512))
    assert kept.window.size_px == 512  # not coarse enough to be worth an encoding
    fixed = segment_prompts(
        scene, click(scene, (710, 648), window_px=1024), options=InteractiveOptions(fixed_window=True)
    )
    assert fixed.window.size_px == 1024
