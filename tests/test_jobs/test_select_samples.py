"""Regions to label: where the model wavers, within the budget, on the raster's grid, and never twice."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.models.semantic.package import save_segmenter
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.select_samples import SampleRaster, SelectSamples, select_samples

CHIP_PX, SQUARE_M = 32, 4.0
ROOFS = [(12, 10, 30, 26), (70, 40, 88, 58)]  # left, top, right, bottom in pixels of half a metre
LEFT, TOP = 590_000, 5_750_000


def ground(rows, cols, roofs, seed=0):
    random = np.random.default_rng(seed)
    labels = np.zeros((rows, cols), np.uint8)
    for left, top, right, bottom in roofs:
        labels[top:bottom, left:right] = 1
    pixels = np.where(labels == 1, 200, 70)[None] + random.integers(-8, 8, (3, rows, cols))
    return pixels.astype(np.uint8), labels


@pytest.fixture(scope="module")
def model_path(train_roofs, tmp_path_factory):
    model, _ = train_roofs(chip_px=CHIP_PX, n_steps=40)
    path = tmp_path_factory.mktemp("models") / "roofs.safetensors"
    save_segmenter(model, path)
    return path


@pytest.fixture
def scene(raster_factory):
    pixels, _ = ground(80, 112, ROOFS)
    return SampleRaster(path=raster_factory(pixels))


def in_pixels(polygon):
    left, bottom, right, top = polygon.bounds
    return [round(2 * value, 6) for value in (left - LEFT, TOP - top, right - LEFT, TOP - bottom)]


def job(**changes):
    return SelectSamples(**({"budget": 5, "region_m": SQUARE_M, "device": "cpu"} | changes))


def test_squares_are_square_on_the_ground_whatever_the_pixels_are(model_path, raster_factory):
    pixels, _ = ground(160, 112, ROOFS)
    tall = pixels.reshape(3, 80, 2, 112).mean(axis=2).astype(np.uint8)
    path = raster_factory(tall, transform=Affine(0.5, 0, LEFT, 0, -1, TOP))
    for one in select_samples(model_path, [SampleRaster(path=path)], job()).samples:
        left, bottom, right, top = one.polygon.bounds
        assert (right - left, top - bottom) == pytest.approx((SQUARE_M, SQUARE_M))


@pytest.mark.parametrize("strategy", ["impurity", "hybrid"])
def test_squares_lie_where_classes_meet(model_path, scene, strategy):
    result = select_samples(model_path, [scene], job(strategy=strategy))
    walls = shapely.union_all([shapely.box(*roof).exterior for roof in ROOFS]).buffer(1.5)
    assert [one.rank for one in result.samples] == [1, 2, 3, 4, 5]
    at_walls = [walls.intersects(shapely.box(*in_pixels(one.polygon))) for one in result.samples]
    # The second looks for what is unlike, too.
    assert sum(at_walls) >= {"impurity": 5, "hybrid": 3}[strategy]
    for one in result.samples:
        left, top, right, bottom = in_pixels(one.polygon)
        assert (right - left, bottom - top) == (8, 8)
        assert left % 8 == top % 8 == 0
        assert 0 < one.score <= 1
        assert one.class_name in ("background", "roof")
    # 80 x 112 pixels in squares of 8.
    assert (result.n_regions, result.total_px, result.n_px) == (140, 80 * 112, 5 * 64)
    if strategy == "impurity":
        scores = [one.score for one in result.samples]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("unit", "budget", "n"), [("clicks", 3, 3), ("m2", 50, 3), ("m2", 16, 1), ("percent", 5, 7), ("percent", 100, 140)]
)
def test_the_budget_is_kept_in_its_unit(model_path, scene, unit, budget, n):
    result = select_samples(model_path, [scene], job(budget=budget, unit=unit, strategy="entropy"))
    assert len(result.samples) == n
    assert shapely.union_all([one.polygon for one in result.samples]).area == pytest.approx(n * 16)
    if unit == "m2":
        assert n * 16 <= budget


def test_the_size_is_a_whole_part_of_the_chip(model_path, scene, recorder):
    progress = recorder()
    result = select_samples(model_path, [scene], job(region_m=9.0, budget=2), progress=progress)
    assert "Squares of 16 pixels (8 m)." in progress.texts
    assert progress.fractions
    assert all(0 <= fraction <= 1 for fraction in progress.fractions)
    assert {one.polygon.area for one in result.samples} <= {64.0}
    # Without a size 32 pixels; the raster's edge cuts them, and a quarter is not worth a gesture.
    result = select_samples(model_path, [scene], job(region_m=None, budget=11))
    assert sorted({one.polygon.area for one in result.samples}) == [128.0, 256.0]


def test_another_round_asks_for_other_places(model_path, scene):
    first = select_samples(model_path, [scene], job())
    labelled = tuple(one.polygon for one in first.samples)
    again = SampleRaster(path=scene.path, labelled=labelled)
    second = select_samples(model_path, [again], job())
    done = shapely.union_all(labelled)
    assert len(second.samples) == 5
    assert all(one.polygon.intersection(done).area == 0 for one in second.samples)
    assert second.n_regions == first.n_regions - 5
    elsewhere = SampleRaster(path=scene.path, labelled=(shapely.box(0, 0, 1, 1),))
    assert select_samples(model_path, [elsewhere], job()).samples == first.samples


def test_segments_follow_the_image(model_path, scene):
    result = select_samples(model_path, [scene], job(kind="segments", budget=6, strategy="entropy"))
    raster = shapely.box(LEFT, TOP - 40, LEFT + 56, TOP)
    polygons = [one.polygon for one in result.samples]
    assert all(polygon.is_valid and raster.covers(polygon) for polygon in polygons)
    assert shapely.union_all(polygons).area == pytest.approx(sum(polygon.area for polygon in polygons))
    assert sum(polygon.area for polygon in polygons) == pytest.approx(result.n_px * 0.25)
    assert any(len(polygon.geoms[0].exterior.coords) > 5 for polygon in polygons)
    assert 40 < np.mean([polygon.area for polygon in polygons]) / 0.25 < 90
    large = select_samples(model_path, [scene], job(kind="segments", region_m=8.0))
    assert large.n_regions < result.n_regions / 2
    again = SampleRaster(path=scene.path, labelled=tuple(polygons))
    second = select_samples(model_path, [again], job(kind="segments", budget=6, strategy="entropy"))
    assert not {one.polygon.wkt for one in second.samples} & {polygon.wkt for polygon in polygons}


def test_no_data_is_never_asked_for_and_rasters_share_the_budget(model_path, scene, raster_factory):
    pixels, _ = ground(64, 64, [(40, 12, 56, 28)], seed=5)
    pixels[:, :, :32] = 0
    other = SampleRaster(path=raster_factory(pixels, "other.tif", nodata=0))
    result = select_samples(model_path, [scene, other], job(budget=100, unit="percent"))
    assert result.total_px == 80 * 112 + 64 * 32
    of_other = [one.polygon for one in result.samples if one.raster == 1]
    assert len(of_other) == 8 * 4
    assert all(in_pixels(polygon)[0] >= 32 for polygon in of_other)
    few = select_samples(model_path, [scene, other], job(budget=20, strategy="impurity"))
    assert {one.raster for one in few.samples} == {0, 1}


def test_the_same_seed_gives_the_same_samples(model_path, scene):
    one, same, other = (
        select_samples(model_path, [scene], job(strategy="random", seed=seed)).samples for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_what_cannot_be_done_is_told(model_path, scene, raster_factory):
    for changes, words in (
        ({"budget": 141}, "141 clicks is larger than the image: only 140 regions"),
        ({"budget": 2300, "unit": "m2"}, "2300 m2 is larger than the image: only 2241 m2"),
        ({"budget": 15, "unit": "m2"}, "15 m2 is smaller than a region of 16 m2"),
        ({"budget": 15, "unit": "m2", "region_m": 16}, "15 m2 is smaller than a region of 128 m2"),
        ({"region_m": 1e5}, "Regions of 100000 m are 200000 pixels of the model wide"),
        ({"budget": 0.1, "unit": "percent"}, "0.1 per cent is smaller than a region"),
        ({"region_m": 40}, "80 pixels of the model"),
        ({"region_m": 0.2}, "give 1 to 32 pixels, which are 0.5 to 16 m"),
    ):
        with pytest.raises(JobError, match=words):
            select_samples(model_path, [scene], job(**changes))
    for changes, words in (
        ({"budget": 101, "unit": "percent"}, "101 per cent is larger than the image"),
        ({"budget": 0}, "budget of 0 clicks"),
        ({"budget": 0.5}, "budget of 0.5 clicks"),
        ({"strategy": "best"}, "'best'"),
        ({"region_m": 0}, "Regions of 0 m"),
    ):
        with pytest.raises(JobError, match=words):
            job(**changes)
    with pytest.raises(JobError, match="No raster"):
        select_samples(model_path, [], job())
    everything = SampleRaster(path=scene.path, labelled=(shapely.box(LEFT, TOP - 40, LEFT + 56, TOP),))
    with pytest.raises(JobError, match="left to label"):
        select_samples(model_path, [everything], job())
    picture = SampleRaster(path=raster_factory(ground(64, 64, [])[0], "picture.tif", crs=None))
    with pytest.raises(JobError, match="no scale"):
        select_samples(model_path, [picture], job())
    with pytest.raises(JobError, match="no scale"):
        select_samples(model_path, [picture], job(region_m=None, budget=20, unit="m2"))
    assert len(select_samples(model_path, [picture], job(region_m=None, budget=2)).samples) == 2
