"""Every object once and whole, whatever the windows and the extent."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import shapely
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.everything import EverythingJob, segment_everything
from shapely.geometry import Point, box

SIDE = 1500


def town():
    """Discs and boxes of 20 to 200 px all over, many of them across cells and windows of 512 px."""
    discs = [Point(x, y).buffer(r) for x, y, r in ((256, 256, 40), (640, 130, 22), (900, 900, 90), (1440, 60, 30))]
    boxes = [
        box(100, 600, 300, 640),
        box(500, 500, 540, 700),
        box(1100, 300, 1180, 420),
        box(60, 1200, 120, 1240),
        box(1240, 1240, 1320, 1300),
        box(700, 1380, 900, 1440),
        box(0, 900, 50, 960),
    ]
    return discs + boxes


def everything(scene, progress=None, **options):
    options = {"window_px": 512, "points_per_side": 16, "largest_window_px": 2048} | options
    return list(segment_everything(scene, EverythingJob(**options), progress=progress))


def match(scene, found, truth_px, iou):
    """The found object with the best IoU, and that IoU."""
    return max(((iou(scene, segmented.geometry, truth_px), segmented) for segmented in found), key=lambda pair: pair[0])


def test_every_object_once_and_whole(paint_scene, open_scene, fake_engine, iou, recorder):
    scene = open_scene(paint_scene((SIDE, SIDE), town()), fake_engine)
    progress = recorder()
    found = everything(scene, progress)
    assert len(found) == len(town())
    for truth in town():
        assert match(scene, found, truth, iou)[0] > 0.95
    assert [segmented.object_id for segmented in found] == [str(i + 1) for i in range(len(found))]
    assert {(segmented.class_name, segmented.model) for segmented in found} == {("", "fake")}
    assert progress.fractions == sorted(progress.fractions)
    assert progress.fractions[-1] == 1
    assert progress.texts == []


def test_objects_larger_than_a_window(paint_scene, open_scene, fake_engine, iou, recorder):
    """Looked at again in larger windows, up to the limit; beyond it they are left out, and that is said."""
    hall, small = box(200, 240, 1200, 800), box(1300, 1300, 1360, 1340)
    scene = open_scene(paint_scene((SIDE, SIDE), [hall, small]), fake_engine)
    found = everything(scene)
    assert len(found) == 2
    assert match(scene, found, hall, iou)[0] > 0.95
    progress = recorder()
    (only,) = everything(scene, progress, largest_window_px=1024)
    assert iou(scene, only.geometry, small) > 0.95
    assert "reach beyond windows of 1024 px" in progress.texts[0]


def test_same_objects_for_any_extent(paint_scene, open_scene, fake_engine):
    """Away from the borders of two extents, both give the same outlines."""
    random = np.random.default_rng(1)
    discs = [Point(*random.uniform(0, SIDE, 2)).buffer(random.uniform(8, 25)) for _ in range(150)]
    scene = open_scene(paint_scene((SIDE, SIDE), discs), fake_engine)
    shared = shapely.transform(box(450, 450, 1000, 1000), scene.reader.to_map)

    def inside(found):
        return sorted(shapely.to_wkt(each.geometry) for each in found if shared.contains(each.geometry))

    whole, left, right = (
        inside(everything(scene, bounds_px=bounds, points_per_side=32))
        for bounds in (None, (0, 0, 1210, 1300), (130, 205, SIDE, SIDE))
    )
    assert len(whole) > 10
    assert whole == left == right


def test_points_lie_on_one_lattice_for_any_extent(paint_scene, open_scene, fake_engine):
    """Every 16 px from the raster's origin, each asked once, whatever the bounds."""
    scene = open_scene(paint_scene((512, 512), []), fake_engine)
    everything(scene, bounds_px=(100, 37, 300.5, 411), points_per_side=32)
    asked = np.concatenate([prompt.points_xy for prompt in fake_engine.prompts]) / 2  # the chip has 1024 px
    expected = [(x, y) for y in range(40, 411, 16) for x in range(104, 300, 16)]
    assert sorted(map(tuple, asked.tolist())) == sorted(expected)


def test_unstable_masks_are_left_out(paint_scene, open_scene, fake_engine):
    """A mask whose outline moves with the threshold is no object."""
    scene = open_scene(paint_scene((512, 512), [box(100, 100, 200, 200)]), fake_engine)
    predict = fake_engine.predict

    def predict_soft(embedding, prompts, *, multimask):
        prediction = predict(embedding, prompts, multimask=multimask)
        prediction.logits[:, :, 90:110][prediction.logits[:, :, 90:110] > 0] = 0.5
        return prediction

    fake_engine.predict = predict_soft
    assert everything(scene, stability_threshold=0.9) == []
    (found,) = everything(scene, stability_threshold=0.7)
    assert found.stability == pytest.approx(0.8)


def test_extent_limits_the_search_but_cuts_nothing(paint_scene, open_scene, fake_engine, iou):
    crossing, outside = box(260, 300, 420, 360), box(700, 700, 760, 760)
    scene = open_scene(paint_scene((SIDE, SIDE), [crossing, outside]), fake_engine)
    (found,) = everything(scene, bounds_px=(100, 100, 320, 500))
    assert iou(scene, found.geometry, crossing) > 0.95
    assert fake_engine.n_embedded < 10


def test_labels_hold_the_numbers_of_the_objects(paint_scene, open_scene, fake_engine, tmp_path):
    scene = open_scene(paint_scene((SIDE, SIDE), town()), fake_engine)
    path = tmp_path / "Namen mit ä.tif"
    found = everything(scene, labels_path=path)
    with rasterio.open(path) as labels:
        assert (labels.dtypes[0], labels.nodata, labels.transform) == ("uint32", 0, scene.reader.transform)
        values = labels.read(1)
    assert set(np.unique(values)) == set(range(len(found) + 1))
    for segmented in found:
        assert (values == int(segmented.object_id)).sum() == pytest.approx(segmented.geometry.area / 0.25)
    assert list(tmp_path.glob("*.part*")) == list(tmp_path.glob(".*.part*")) == []


def test_small_object_lies_on_top_of_the_large_one(paint_scene, open_scene, fake_engine, tmp_path):
    """A shed inside a yard is an object of its own; the yard as a whole covers its pixels as well."""
    yard = box(100, 100, 400, 400)
    scene = open_scene(paint_scene((512, 512), [yard]), fake_engine)
    predict = fake_engine.predict

    def predict_both(embedding, prompts, *, multimask):
        prediction = predict(embedding, prompts, multimask=multimask)
        for logits, iou, prompt in zip(prediction.logits, prediction.iou, prompts, strict=True):
            x, y = prompt.points_xy[0] / 2
            if 200 <= x < 260 and 200 <= y < 260:
                logits[0, 100:130, 100:130] = 8
                iou[0] = 0.99
        return prediction

    fake_engine.predict = predict_both
    path = tmp_path / "labels.tif"
    first, second = everything(scene, labels_path=path)
    assert first.geometry.area > second.geometry.area
    with rasterio.open(path) as labels:
        values = labels.read(1)
    assert values[230, 230] == int(second.object_id)
    assert values[150, 150] == int(first.object_id)


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_no_labels_without_the_end(paint_scene, open_scene, fake_engine, recorder, tmp_path, how):
    scene = open_scene(paint_scene((SIDE, SIDE), town()), fake_engine)
    folder = tmp_path / "out"
    folder.mkdir()
    job = EverythingJob(window_px=512, largest_window_px=512, labels_path=folder / "labels.tif")
    if how == "cancelled":
        with pytest.raises(Cancelled):
            list(segment_everything(scene, job, progress=recorder(cancel_after=30)))
    else:
        objects = segment_everything(scene, job)
        next(objects)
        assert len(list(folder.iterdir())) == 1
        objects.close()
    assert list(folder.iterdir()) == []


def test_cancel_stops_at_once(paint_scene, open_scene, fake_engine, recorder):
    scene = open_scene(paint_scene((SIDE, SIDE), town()), fake_engine)
    with pytest.raises(Cancelled):
        everything(scene, recorder(cancel_after=0))
    assert fake_engine.n_embedded == 0


def test_nodata_everywhere_finds_nothing_and_encodes_nothing(raster_factory, open_scene, fake_engine):
    scene = open_scene(raster_factory(np.zeros((1, 1000, 1000), np.uint8), nodata=0), fake_engine)
    assert everything(scene) == []
    assert fake_engine.n_embedded == 0


def test_nodata_is_cut_out_and_its_points_not_asked(raster_factory, open_scene, fake_engine):
    pixels = np.full((1, 512, 512), 60, np.uint8)
    pixels[0, 100:200, 100:300] = 200
    valid = np.ones((512, 512), bool)
    valid[:, 200:] = False
    scene = open_scene(raster_factory(pixels, mask=valid), fake_engine)
    (found,) = everything(scene, points_per_side=32)
    assert found.geometry.area == pytest.approx(100 * 100 * 0.25, rel=0.03)
    assert len(fake_engine.prompts) == 12 * 32  # of points every 16 px twelve columns lie left of pixel 200


def test_thresholds_and_minimum_area(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((SIDE, SIDE), town()), fake_engine)
    assert everything(scene, iou_threshold=0.96) == []
    areas = [truth.area * 0.25 for truth in town()]
    found = everything(scene, min_area_m2=1000)
    assert len(found) == sum(area > 1000 for area in areas)
    assert [segmented.object_id for segmented in found] == [str(i + 1) for i in range(len(found))]


@pytest.mark.parametrize(
    "options",
    [
        {"window_px": 1000},
        {"points_per_side": 0},
        {"iou_threshold": 1.5},
        {"stability_threshold": -0.5},
        {"nms_threshold": 7},
        {"min_area_m2": -2},
        {"largest_window_px": 3},
    ],
)
def test_job_that_makes_no_sense(options):
    with pytest.raises(JobError, match=str(next(iter(options.values())))):
        EverythingJob(**options)


@pytest.mark.parametrize("bounds", [(-50, -50, -10, -10), (1500, 0, 1600, 100), (300, 300, 300, 300)])
def test_empty_extent(paint_scene, open_scene, fake_engine, bounds):
    scene = open_scene(paint_scene((SIDE, SIDE), []), fake_engine)
    with pytest.raises(JobError, match="choose an extent inside the raster"):
        everything(scene, bounds_px=bounds)


def test_real_model_finds_the_objects(paint_scene, open_scene, engine, iou):
    truths = [Point(150, 130).buffer(40), Point(420, 140).buffer(25), box(90, 300, 260, 400), box(400, 330, 450, 370)]
    scene = open_scene(paint_scene((512, 512), truths), engine)
    found = everything(scene, points_per_side=8)
    for truth in truths:
        score, segmented = match(scene, found, truth, iou)
        assert score > 0.9
        assert segmented.score >= 0.88
        assert segmented.stability >= 0.95
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            shared = first.geometry.intersection(second.geometry).area
            assert shared <= 0.72 * first.geometry.union(second.geometry).area
