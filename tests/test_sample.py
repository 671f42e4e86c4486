"""The sample scene: what it promises to the demo, the menu and the README; and the demo's own judgement."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import ModuleType

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.features import geometry_mask
from segadapt.tools import make_sample
from shapely.geometry import box

SCENE = make_sample.SAMPLE_FOLDER / make_sample.SCENE_NAME
PROMPTS = make_sample.SAMPLE_FOLDER / make_sample.PROMPTS_NAME
LAYERS = ("prompt_points", "prompt_boxes", "reference")
MAX_BYTES = 11_000_000


@pytest.fixture(scope="module")
def layers() -> dict[str, gpd.GeoDataFrame]:
    return {name: gpd.read_file(PROMPTS, layer=name) for name in LAYERS}


@pytest.fixture
def demo() -> ModuleType:
    pytest.importorskip("qgis.core")
    from segadapt.tools import demo

    return demo


def test_the_folder_is_small_and_names_source_licence_and_changes() -> None:
    assert sum(file.stat().st_size for file in make_sample.SAMPLE_FOLDER.iterdir()) < MAX_BYTES
    text = (make_sample.SAMPLE_FOLDER / "README.md").read_text(encoding="utf-8")
    for needed in (
        "https://creativecommons.org/licenses/by-sa/4.0/",
        "SpaceNet 6",
        "Maxar",
        "solaris 0.4.0",
        "What was changed",
        "tools/make_sample.py",
        SCENE.name,
        PROMPTS.name,
    ):
        assert needed in text


def test_the_scene_is_a_tiled_16_bit_geotiff_at_50_cm() -> None:
    with rasterio.open(SCENE) as scene:
        assert (scene.count, scene.shape, scene.crs.to_epsg()) == (4, (600, 600), 32631)
        assert set(scene.dtypes) == {"uint16"}
        assert scene.res == pytest.approx((0.5, 0.5), abs=1e-4)
        assert scene.descriptions == ("red", "green", "blue", "near infrared")
        assert scene.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert scene.colorinterp[3] is ColorInterp.undefined  # not alpha, which would hide pixels
        assert scene.block_shapes == [(256, 256)] * 4
        assert scene.overviews(1) == [2, 4]
        assert scene.compression.name == "deflate"  # also in a GDAL that was built without ZSTD
        assert scene.read().min() > 0
        assert "CC BY-SA 4.0" in scene.tags()["TIFFTAG_COPYRIGHT"]


def test_plants_are_bright_in_near_infrared_and_orange_roofs_in_red(layers: dict[str, gpd.GeoDataFrame]) -> None:
    def mean(object_id: str) -> np.ndarray:
        reference = layers["reference"].set_index("object_id").geometry
        with rasterio.open(SCENE) as scene:
            inside = geometry_mask([reference[object_id]], scene.shape, scene.transform, invert=True)
            return scene.read()[:, inside].mean(axis=1)

    def ndvi(object_id: str) -> float:
        red, _, _, infrared = mean(object_id)
        return float((infrared - red) / (infrared + red))

    assert min(ndvi("lawn_east"), ndvi("lawn_court")) > 0.6
    assert max(ndvi("hall_white"), ndvi("hall_grey"), ndvi("church_roof")) < 0.2
    red, green, blue, _ = mean("terrace_orange")
    assert red > 1.5 * green > 1.5 * blue


def test_the_geopackage_is_one_that_qgis_3_22_reads_in_silence(layers: dict[str, gpd.GeoDataFrame]) -> None:
    with sqlite3.connect(PROMPTS) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (10200,)
    connection.close()
    columns = {name: list(layer.columns.drop("geometry")) for name, layer in layers.items()}
    assert columns == {
        "prompt_points": ["object_id", "class", "label"],
        "prompt_boxes": ["object_id", "class"],
        "reference": ["object_id", "class"],
    }
    assert {layer.crs.to_epsg() for layer in layers.values()} == {32631}


def test_every_object_has_prompts_and_one_outline_of_its_class(layers: dict[str, gpd.GeoDataFrame]) -> None:
    reference = layers["reference"]
    assert 12 <= len(reference) <= 15
    assert reference["class"].nunique() >= 4
    classes = dict(zip(reference["object_id"], reference["class"], strict=True))
    for name, layer in layers.items():
        assert dict(zip(layer["object_id"], layer["class"], strict=True)) == classes, name
        assert name == "prompt_points" or layer["object_id"].is_unique
    positive = layers["prompt_points"].query("label == 1")
    assert set(positive["object_id"]) == set(classes)
    assert set(layers["prompt_points"]["label"]) == {0, 1}


def test_outlines_are_valid_apart_and_inside_the_scene(layers: dict[str, gpd.GeoDataFrame]) -> None:
    outlines = layers["reference"].geometry
    assert outlines.is_valid.all()
    with rasterio.open(SCENE) as scene:
        assert outlines.within(box(*scene.bounds).buffer(1e-6)).all()
    assert outlines.area.sum() - outlines.union_all().area == pytest.approx(0, abs=1e-6)
    assert outlines.area.min() < 40 < 1000 < outlines.area.max()  # vehicles and lawns, m2


def test_prompts_lie_where_their_label_says(layers: dict[str, gpd.GeoDataFrame]) -> None:
    outlines = layers["reference"].set_index("object_id").geometry
    for point in layers["prompt_points"].itertuples():
        assert outlines[point.object_id].contains(point.geometry) == bool(point.label), point.object_id
    for prompt in layers["prompt_boxes"].itertuples():
        outline, by_hand = outlines[prompt.object_id], prompt.geometry
        assert by_hand.equals(by_hand.envelope), prompt.object_id
        assert by_hand.covers(outline), prompt.object_id
        west, south, east, north = np.abs(np.subtract(by_hand.bounds, outline.bounds))
        assert max(west, south, east, north) < 3.0, prompt.object_id  # a little larger, in metres


def test_the_layers_are_those_of_the_source_in_pixels(tmp_path: Path, layers: dict[str, gpd.GeoDataFrame]) -> None:
    with rasterio.open(SCENE) as scene:
        make_sample.write_prompts(tmp_path / "again.gpkg", transform=scene.transform, crs=scene.crs)
        back = ~scene.transform
    for name in LAYERS:
        again = gpd.read_file(tmp_path / "again.gpkg", layer=name)
        assert again.drop(columns="geometry").equals(layers[name].drop(columns="geometry")), name
        assert again.geometry.geom_equals_exact(layers[name].geometry, 1e-6).all(), name
    first = json.loads(make_sample.OBJECTS_FILE.read_text(encoding="utf-8"))["objects"][0]
    corner = layers["reference"].geometry[0].exterior.coords[0]
    assert back @ corner == pytest.approx(first["outline"][0], abs=1e-4)


def test_pansharpening_keeps_colours_gains_detail_and_bounds_ratios() -> None:
    coarse = np.full((4, 2, 3), 0.0)
    coarse[:] = np.array([82.0, 182.0, 282.0, 482.0])[:, None, None]  # blue, green, red, near infrared
    grey = np.dot(make_sample.PAN_WEIGHTS, (100.0, 200.0, 300.0, 500.0))  # with the haze of 18
    pan = np.full((2, 3), grey)
    pan[0] = grey * np.array([0.5, 2.0, 100.0])
    sharp = make_sample.pansharpen(pan, coarse)
    assert sharp.dtype == np.uint16
    assert sharp[:, 1, 0].tolist() == [300, 200, 100, 500]
    assert sharp[:, 0, 0].tolist() == [150, 100, 50, 250]
    assert sharp[:, 0, 1].tolist() == [600, 400, 200, 1000]
    assert sharp[:, 0, 2].tolist() == [750, 500, 250, 1250]


def test_undershoot_is_filled_in_all_bands_and_nothing_else_changes() -> None:
    bands = np.arange(50.0).reshape(2, 5, 5) + 200
    rung = bands.copy()
    rung[0, 2, 2] = 3
    filled = make_sample.fill_undershoot(rung)
    assert filled[:, 2, 2].tolist() == [211.0, 237.0]
    filled[:, 2, 2] = bands[:, 2, 2]
    assert np.array_equal(filled, bands)


@pytest.mark.qgis
def test_the_demo_refuses_missing_and_poor_results(tmp_path: Path, demo: ModuleType) -> None:
    enough = demo.Step("Everything", 1.0, demo.FEWEST_MASKS, ())
    good = dict(demo.FLOOR)
    maps = [demo.Mapped("before", 0.3, 0.84), demo.Mapped("after", 0.4, 0.85)]
    with pytest.raises(demo.DemoError, match=r"from_points\.gpkg was not written"):
        demo.check(good, [enough], maps, tmp_path)
    for name in (*demo.RESULTS, *demo.ADAPTED):
        (tmp_path / name).write_bytes(b"x")
    demo.check(good, [enough], maps, tmp_path)
    with pytest.raises(demo.DemoError, match=r"from boxes is 0\.79"):
        demo.check({**good, "boxes": 0.79}, [enough], maps, tmp_path)
    with pytest.raises(demo.DemoError, match="from points is nan"):
        demo.check({**good, "points": float("nan")}, [enough], maps, tmp_path)
    with pytest.raises(demo.DemoError, match="found 3 objects"):
        demo.check(good, [demo.Step("Everything", 1.0, 3, ())], maps, tmp_path)
    with pytest.raises(demo.DemoError, match=r"worse: 0\.62 before, 0\.57 after"):
        demo.check(good, [enough], [maps[1], maps[0]], tmp_path)


@pytest.mark.qgis
def test_the_demo_measures_overlap_and_counts_a_lost_object_as_zero(
    tmp_path: Path, demo: ModuleType, layers: dict[str, gpd.GeoDataFrame]
) -> None:
    reference = layers["reference"]
    reference.to_file(tmp_path / "from_points.gpkg")
    boxes = layers["prompt_boxes"].to_crs(4326)
    boxes[boxes["object_id"] != "hall_grey"].to_file(tmp_path / "from_boxes.gpkg")
    table = {row.object_id: row for row in demo.measure(tmp_path)}
    assert [row.points for row in table.values()] == pytest.approx([1.0] * len(reference))
    assert table["hall_grey"].boxes == 0
    island = reference.set_index("object_id").geometry["roundabout_island"]
    drawn = layers["prompt_boxes"].set_index("object_id").geometry["roundabout_island"]
    assert table["roundabout_island"].boxes == pytest.approx(island.area / drawn.area, abs=1e-3)
