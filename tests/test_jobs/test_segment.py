"""One polygon per prompted object: whole, without nodata, each window encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.answers import first_window
from segadapt.processing.jobs.objects import PromptGeometry, gather_prompts
from segadapt.processing.jobs.segment import SegmentOptions, segment_objects
from segadapt.processing.raster.windows import SquareWindow
from shapely.geometry import LineString, Point, box

TURNED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
DISC, TANK, HALL, SHED = (
    Point(150, 130).buffer(40),
    Point(420, 140).buffer(25),
    box(90, 300, 260, 400),
    box(400, 330, 450, 370),
)


def objects_of(scene, *features, progress=None):
    """Features are (geometry in pixels, object id, class, foreground), the last two optional."""
    prompts = [PromptGeometry(shapely.transform(geometry, scene.reader.to_map), *rest) for geometry, *rest in features]
    return gather_prompts(prompts, scene.reader, progress=progress)


def segment(scene, *features, progress=None, **options):
    found = segment_objects(scene, objects_of(scene, *features), options=SegmentOptions(**options), progress=progress)
    return {segmented.object_id: segmented for segmented in found}


@pytest.mark.parametrize("transform", [Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000), TURNED], ids=["north up", "turned"])
def test_real_model_outlines_objects(paint_scene, open_scene, engine, iou, transform):
    """Clicks, boxes, an outline and a scribble, on a raster smaller than the window."""
    path = paint_scene((512, 512), [DISC, TANK, HALL, SHED], transform=transform)
    scene = open_scene(path, engine)
    found = segment(
        scene,
        (DISC.centroid, "disc", "tank", True),
        (box(*TANK.bounds), "tank"),
        (shapely.affinity.rotate(HALL, 4).buffer(3), "hall"),
        (LineString([(408, 336), (442, 364)]), "shed"),
    )
    for name, truth in {"disc": DISC, "tank": TANK, "hall": HALL, "shed": SHED}.items():
        assert iou(scene, found[name].geometry, truth) > 0.9, name
        assert 0.8 < found[name].score <= 1
        assert 0.8 < found[name].stability <= 1
        assert found[name].area_m2 == pytest.approx(truth.area * 0.25, rel=0.1)
        assert found[name].model == "mobile_sam"
    assert found["disc"].class_name == "tank"


def test_cached_and_fresh_results_are_equal(paint_scene, open_scene, engine, tmp_path):
    path = paint_scene((300, 300), [DISC])
    features = [(DISC.centroid, "point"), (box(*DISC.bounds), "box")]
    fresh = segment(open_scene(path, engine, cache_folder=tmp_path / "one"), *features)
    from_disk = segment(open_scene(path, engine, cache_folder=tmp_path / "one"), *features)
    elsewhere = segment(open_scene(path, engine, cache_folder=tmp_path / "two"), *features)
    for name, expected in fresh.items():
        for again in (from_disk[name], elsewhere[name]):
            assert again.geometry.equals_exact(expected.geometry)
            assert (again.score, again.stability) == (expected.score, expected.stability)


def test_background_point_takes_an_area_away(paint_scene, open_scene, engine):
    """One box around two sheds holds both; a background point on the second leaves the first."""
    first, second = box(100, 100, 150, 200), box(158, 100, 208, 200)
    scene = open_scene(paint_scene((300, 300), [first, second]), engine)
    around = box(95, 95, 213, 205)
    found = segment(
        scene,
        (around, "both"),
        (around, "one", "", True),
        (Point(125, 150), "one", "", True),
        (Point(183, 150), "one", "", False),
    )

    def share(name, truth_px):
        truth = shapely.transform(truth_px, scene.reader.to_map)
        return found[name].geometry.intersection(truth).area / truth.area

    assert share("both", first) > 0.9
    assert share("both", second) > 0.9
    assert share("one", first) > 0.9
    assert share("one", second) < 0.1


@pytest.mark.parametrize("side", [8, 100])
def test_raster_smaller_than_the_models_input(paint_scene, open_scene, engine, iou, side):
    truth = box(side * 0.25, side * 0.25, side * 0.75, side * 0.75)
    scene = open_scene(paint_scene((side, side), [truth], texture=0), engine)
    (found,) = segment(scene, (truth, "a")).values()
    assert iou(scene, found.geometry, truth) > 0.9


@pytest.mark.parametrize(
    ("truth", "click"),
    [
        (box(500, 480, 560, 530), (505, 485)),
        (box(104, 704, 1304, 768), (110, 730)),
        (box(20, 20, 1480, 1480), (30, 30)),
        (box(-50, 300, 200, 420), (5, 310)),
    ],
    ids=["over a lattice line", "far longer than the window", "nearly the raster", "at the raster's edge"],
)
def test_objects_are_whole(paint_scene, open_scene, fake_engine, iou, truth, click):
    scene = open_scene(paint_scene((1500, 1500), [truth]), fake_engine)
    (found,) = segment(scene, (Point(click), "a")).values()
    assert iou(scene, found.geometry, truth.intersection(box(0, 0, 1500, 1500))) > 0.97


def test_larger_window_without_an_answer_loses_nothing(paint_scene, open_scene, fake_engine):
    truth = box(104, 704, 1304, 768)
    scene = open_scene(paint_scene((1500, 1500), [truth]), fake_engine)
    embed = fake_engine.embed
    fake_engine.embed = lambda chips, **options: [
        embedding * (fake_engine.n_embedded == 1) for embedding in embed(chips, **options)
    ]
    (found,) = segment(scene, (Point(110, 730), "a")).values()
    assert fake_engine.n_embedded == 2
    assert 0 < found.geometry.area < 0.5 * truth.area * 0.25


def test_a_larger_window_is_not_used_without_need(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((1500, 1500), [box(600, 600, 640, 640)]), fake_engine)
    segment(scene, (Point(620, 620), "a"))
    assert fake_engine.n_embedded == 1


@pytest.mark.parametrize(
    ("feature", "window_px", "size_px"),
    [
        (Point(700, 700), None, 512),
        (Point(700, 700), 256, 256),
        (box(700, 700, 800, 750), None, 256),
        (box(500, 700, 900, 750), None, 1024),
        (LineString([(200, 700), (1000, 700)]), None, 2048),
        (box(400, 700, 1000, 750), 256, 1024),
    ],
)
def test_window_follows_the_prompts(paint_scene, open_scene, fake_engine, feature, window_px, size_px):
    scene = open_scene(paint_scene((3000, 3000), []), fake_engine)
    (prompts,) = objects_of(scene, (feature, "a"))
    window = first_window(prompts, scene.reader.shape, window_px=window_px)
    assert window.size_px == size_px
    assert window.contains_bounds(feature.bounds)


def test_prompts_too_far_apart_are_skipped_and_named(paint_scene, open_scene, fake_engine, recorder, raster_factory):
    path = raster_factory(np.zeros((1, 16, 16), np.uint8), "wide.tif")
    scene = open_scene(path, fake_engine)
    scene.reader.shape = (20_000, 20_000)  # as wide as no window; nothing is read
    progress = recorder()
    assert segment(scene, (Point(1, 1), "far"), (Point(19_000, 5), "far"), progress=progress) == {}
    assert "'far' was skipped: its prompts are too far apart" in progress.texts[0]


@pytest.mark.slow
def test_ten_thousand_prompts(paint_scene, open_scene, fake_engine, recorder):
    """Every object is answered, progress only grows, and each window is encoded once."""
    side = 2000
    centres = [(x, y) for y in range(10, side, 20) for x in range(10, side, 20)]
    scene = open_scene(paint_scene((side, side), [box(x - 6, y - 6, x + 6, y + 6) for x, y in centres]), fake_engine)
    progress = recorder()
    found = segment(scene, *((Point(xy), str(i)) for i, xy in enumerate(centres)), progress=progress)
    assert len(found) == len(centres) == 10_000
    assert fake_engine.n_embedded == 7 * 7  # windows of 512 px every 256 px
    assert progress.fractions[-1] == 1
    assert progress.fractions == sorted(progress.fractions)
    for i, (x, y) in enumerate(centres):
        where = scene.reader.to_pixels([found[str(i)].geometry.centroid.coords[0]])[0]
        assert np.hypot(*(where - (x, y))) < 1.5


def test_nodata_is_never_in_a_mask(raster_factory, open_scene, fake_engine):
    """An object that lies half on nodata ends there."""
    pixels = np.full((1, 300, 300), 60, np.uint8)
    pixels[0, 100:200, 100:200] = 200
    valid = np.ones((300, 300), bool)
    valid[:, 150:] = False
    scene = open_scene(raster_factory(pixels, mask=valid), fake_engine)
    (found,) = segment(scene, (Point(120, 150), "a")).values()
    right = scene.reader.to_pixels([(found.geometry.bounds[2], found.geometry.bounds[1])])[0, 0]
    assert right == pytest.approx(150, abs=1e-6)


def test_nothing_found_is_said(paint_scene, open_scene, fake_engine, recorder):
    scene = open_scene(paint_scene((300, 300), []), fake_engine)
    progress = recorder()
    assert segment(scene, (Point(120, 150), "ghost"), progress=progress) == {}
    assert progress.texts == ["Object 'ghost': the model found nothing there; add a point or a box."]
    assert progress.fractions == [1]


@pytest.mark.parametrize(("multimask", "n_masks"), [(True, [3, 1]), (False, [1])])
def test_best_of_three_masks_is_looked_at_again(paint_scene, open_scene, fake_engine, multimask, n_masks):
    """Only for a single click; the best of its three masks, here the last one, is fed back."""
    scene = open_scene(paint_scene((300, 300), [DISC]), fake_engine)
    asked = []
    predict = fake_engine.predict

    def count_masks(*args, **options):
        prediction = predict(*args, **options)
        asked.append(prediction.iou.shape[1])
        return prediction

    fake_engine.predict = count_masks
    features = [(DISC.centroid, "click"), (box(*DISC.bounds), "box")]
    assert segment(scene, features[0], multimask=multimask)["click"].score == pytest.approx(0.95)
    assert asked == n_masks
    assert [prompt.mask_logits is not None for prompt in fake_engine.prompts] == [False, True][: len(n_masks)]
    if multimask:
        assert (fake_engine.prompts[1].mask_logits > 0).any()
    segment(scene, features[1], multimask=multimask)
    assert asked == [*n_masks, 1]


def test_minimum_area_and_simplification(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((600, 600), [DISC, SHED]), fake_engine)
    features = [(DISC.centroid, "disc"), (SHED.centroid, "shed")]
    assert set(segment(scene, *features, min_area_m2=600)) == {"disc"}
    exact, simple = (segment(scene, *features, tolerance=tolerance)["disc"].geometry for tolerance in (0, 1))
    assert len(shapely.get_coordinates(simple)) < len(shapely.get_coordinates(exact)) / 2
    assert simple.symmetric_difference(exact).area < 0.05 * exact.area


def test_cancel_stops_between_batches(paint_scene, open_scene, fake_engine, recorder):
    scene = open_scene(paint_scene((2000, 2000), []), fake_engine)
    features = [(Point(x, y), f"{x} {y}") for x in range(100, 2000, 300) for y in range(100, 2000, 300)]
    with pytest.raises(Cancelled):
        segment(scene, *features, progress=recorder(cancel_after=3))
    assert fake_engine.n_embedded == 3


@pytest.mark.parametrize("options", [{"window_px": 700}, {"window_px": 16384}, {"tolerance": -1}, {"min_area_m2": -1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(JobError, match=str(next(iter(options.values())))):
        SegmentOptions(**options)


def test_embedding_is_found_again_for_a_window(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((600, 600), [DISC]), fake_engine)
    window = SquareWindow(0, 0, 512)
    assert not scene.is_encoded(window)
    first = scene.embedding(window)
    assert scene.is_encoded(window)
    assert scene.embedding(window) is not None
    assert bool((scene.embedding(window) == first).all())
    assert fake_engine.n_embedded == 1
