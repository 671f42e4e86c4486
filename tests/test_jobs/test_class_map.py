"""A class map from clicks: learned, exact where something was said, seamless, saved, written, guided."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from segadapt.models import backbone
from segadapt.models.backbone import CHANNELS
from segadapt.models.class_head import HEADS, ClassHeadError, load_class_model
from segadapt.models.errors import Cancelled
from segadapt.models.progress import NullProgress
from segadapt.plugin.class_map_tasks import (
    AddStroke,
    LoadClassModel,
    MapHandle,
    MapStroke,
    MapView,
    RedoStroke,
    SetOptions,
    TakeUpStrokes,
    UndoStroke,
)
from segadapt.processing.errors import JobError, RasterError
from segadapt.processing.jobs import class_blocks
from segadapt.processing.jobs.class_blocks import Block
from segadapt.processing.jobs.class_map import (
    ENTROPY_NODATA,
    ClassMapOptions,
    ClassMapper,
    MapClass,
    SegmentView,
)
from segadapt.processing.jobs.class_map_model import load_mapper, save_mapper
from segadapt.processing.jobs.class_polygons import class_polygons, write_class_polygons
from segadapt.processing.jobs.class_raster import write_class_map
from segadapt.processing.jobs.class_scores import enlarged, scores_of
from segadapt.processing.jobs.guidance import uncertain_regions
from segadapt.processing.raster.windows import SquareWindow

ROWS, COLS = 200, 240


class FakeBackbone:
    """Features are colours, repeated: what is alike looks alike."""

    checkpoint_sha256 = "b" * 64

    def features(self, chip):
        cells = torch.from_numpy(chip[:, ::4, ::4].astype(np.float32) / 255)
        return cells.repeat(CHANNELS // 3, 1, 1).to(torch.float16)


class FakeEngine:
    card = SimpleNamespace(name="fake", input_px=1024)
    checkpoint_sha256 = "0" * 64
    precision = "fp32"

    def embed(self, chips, *, progress=None):
        return [torch.zeros(256, 64, 64, dtype=torch.float16) for _ in chips]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def truth():
    """Water (1) on the left, wood (2) on the right, a field (3) in a corner."""
    classes = np.full((ROWS, COLS), 2, np.uint8)
    classes[:, : COLS // 2] = 1
    classes[140:, 170:] = 3
    return classes


@pytest.fixture
def scene(truth, raster_factory, open_scene):
    colours = np.array([[0, 0, 0], [30, 40, 120], [40, 110, 40], [200, 190, 120]], float)
    pixels = colours[truth] + np.random.RandomState(0).normal(0, 6, (ROWS, COLS, 3))
    path = raster_factory(np.clip(pixels, 1, 255).astype(np.uint8).transpose(2, 0, 1))
    return open_scene(path, FakeEngine())


def mapped(scene, **options):
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(**options))
    for x, y, class_id in ((60, 100, 1), (150, 60, 2), (210, 180, 3), (20, 20, 1), (200, 30, 2)):
        mapper.click(x, y, class_id)
    return mapper


@pytest.mark.parametrize("is_snapped", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_five_clicks_map_three_classes(scene, truth, head, is_snapped):
    labels = mapped(scene, head=head, is_snapped=is_snapped).labels()
    assert labels.dtype == np.uint8
    assert (labels == truth).mean() > 0.95


@pytest.mark.parametrize("is_snapped", [True, False])
def test_what_was_said_always_holds(scene, truth, is_snapped):
    mapper = mapped(scene, is_snapped=is_snapped)
    # Contradictions side by side, in one segment too, and a scribble across the border.
    said = {(60, 101): 2, (61, 101): 3, (62, 100): 1, (150, 61): 3}
    for (x, y), class_id in said.items():
        mapper.click(x, y, class_id)
    mapper.scribble([(100, 50), (140, 50)], 3)
    labels, (block,) = mapper.labels(), mapper.blocks()
    assert {place: labels[place[1], place[0]] for place in said} == said
    assert (labels[50, 100:141] == 3).all()
    assert block.entropy[50, 120] == 0
    assert mapper.undo()
    assert not (mapper.labels()[50, 100:141] == 3).any()


def test_strokes_come_back_until_there_is_a_new_one(scene):
    mapper = mapped(scene)
    whole, n_strokes = mapper.labels(), mapper.n_strokes
    assert not mapper.redo()
    assert mapper.undo()
    assert mapper.undo()
    assert mapper.n_undone == 2
    assert mapper.redo()
    assert mapper.redo()
    assert (mapper.n_strokes, mapper.n_undone) == (n_strokes, 0)
    assert np.array_equal(mapper.labels(), whole)
    mapper.undo()
    mapper.click(60, 101, 2)
    assert not mapper.redo()
    assert mapper.n_strokes == n_strokes


def test_parts_equal_the_whole(scene):
    for is_snapped in (True, False):
        mapper = mapped(scene, is_snapped=is_snapped)
        whole = mapper.labels()
        assert np.array_equal(mapper.labels((33, 41, 107, 95)), whole[41:95, 33:107])


def test_fast_labels_are_those_of_the_bilinear_scores(scene):
    mapper = mapped(scene, is_snapped=False)
    labels = mapper.labels()
    head, block = mapper._fitted(), next(iter(mapper._blocks))
    whole = (slice(0, ROWS), slice(0, COLS))
    slow = head.classes[enlarged(scores_of(head, block, "cells"), block, whole).argmax(axis=2)]
    said = mapper._said(block) > 0
    assert (slow == labels)[~said].mean() > 0.9999


def test_windows_leave_no_seam(scene, truth):
    """Cores of small windows meet inside one colour: nothing changes there."""
    mapper = mapped(scene, is_snapped=False, window_px=64)
    assert len(mapper._reader.grid(None)) > 12
    labels = mapper.labels()
    assert (labels == truth).mean() > 0.95
    assert len(np.unique(labels[10:130, 10:100])) == 1


def test_memory_is_bounded(scene):
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64), memory_bytes=600_000)
    for x, y, class_id in ((60, 100, 1), (150, 60, 2)):
        mapper.click(x, y, class_id)
    before = mapper.labels()
    assert sum(block.n_bytes for block in mapper._blocks) < 700_000
    assert mapper.missing()
    assert np.array_equal(before, mapper.labels())


def test_only_encoded_windows_are_asked(scene):
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64))
    mapper.click(10, 10, 1)
    missing = mapper.missing()
    labels = mapper.labels(only_encoded=True)
    assert missing
    assert 0 < (labels > 0).mean() < 1
    for cell in missing:
        mapper.encode(cell)
    assert (mapper.labels(only_encoded=True) == 1).all()


def test_what_lies_beyond_an_extent_comes_nearest_first_and_as_far_as_memory_holds_it(scene):
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64), memory_bytes=600_000)
    assert mapper.beyond((0, 0, 20, 20)) == []  # nothing says yet how much a window takes
    mapper.click(10, 10, 1)
    cells = mapper.beyond((0, 0, 20, 20))
    assert 0 < len(cells) < len(mapper.missing())
    reach = [max(cell.core_px[2:]) for cell in cells]
    assert reach == sorted(reach)
    for cell in cells:
        mapper.encode(cell)
    assert not mapper.missing((0, 0, 20, 20))  # nothing had to go for it
    assert mapper.beyond((0, 0, 20, 20)) == []


def test_the_first_window_tells_whether_memory_holds_the_raster(scene):
    for memory_bytes, is_too_large in ((2_000_000, True), (10_000_000, False)):
        mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64), memory_bytes=memory_bytes)
        mapper.click(10, 10, 1)
        assert mapper.is_too_large() is is_too_large
        for cell in mapper.missing():
            mapper.encode(cell)
        assert mapper.is_too_large() is is_too_large
        assert bool(mapper.missing()) is is_too_large


def test_mapping_the_whole_raster_leaves_the_view_as_it_is(scene, tmp_path):
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64), memory_bytes=1_200_000)
    view = (0, 0, 90, 90)
    mapper.click(10, 10, 1)
    mapper.click(80, 80, 2)
    for cell in mapper.missing(view):
        mapper.encode(cell)
    before = mapper.labels(view, only_encoded=True)
    list(write_class_map(mapper, tmp_path / "map.tif"))
    list(write_class_polygons(mapper, tmp_path / "areas.gpkg"))
    assert mapper.missing()  # more than memory holds
    assert not mapper.missing(view)
    assert np.array_equal(mapper.labels(view, only_encoded=True), before)
    assert sum(block.n_bytes for block in mapper._blocks) <= 1_200_000


def test_a_window_is_described_in_steps_between_which_the_map_is_clicked_on(scene):
    mapper, alone = (ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64)) for _ in range(2))
    for one in (mapper, alone):
        one.click(10, 10, 1)
    cell = mapper.missing()[0]
    steps = mapper.encoding(cell)
    for _ in range(2):
        next(steps)
    mapper.click(*cell.core_px[:2], 2)  # describes the very window
    alone.click(*cell.core_px[:2], 2)
    assert len(list(steps)) > 0
    assert cell not in mapper.missing()
    assert np.array_equal(mapper.labels(), alone.labels())


def test_a_map_is_not_begun_where_the_raster_has_no_data(raster_factory, open_scene):
    pixels = np.full((3, ROWS, COLS), 90, np.uint8)
    scene = open_scene(raster_factory(pixels, mask=np.zeros((ROWS, COLS), bool)), FakeEngine())
    mapper = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64))
    with pytest.raises(JobError, match="no data here to begin a class map with"):
        mapper.encode(mapper.missing()[0])


def test_nodata_stays_nodata(truth, raster_factory, open_scene):
    pixels = np.random.RandomState(0).randint(40, 200, (3, ROWS, COLS)).astype(np.uint8)
    mask = np.ones((ROWS, COLS), bool)
    mask[:, :50] = False
    scene = open_scene(raster_factory(pixels, mask=mask), FakeEngine())
    mapper = ClassMapper(scene, FakeBackbone())
    mapper.click(100, 100, 1)
    mapper.click(200, 20, 2)
    labels = mapper.labels()
    assert (labels[:, :50] == 0).all()
    assert (labels[:, 50:] > 0).all()
    assert all(region.centre[0] >= 50 for region in uncertain_regions(mapper))


def test_classes_can_be_added_at_any_time(scene):
    mapper = ClassMapper(scene, FakeBackbone(), classes=[MapClass(4, "water", (0, 0, 255))])
    wood = mapper.add_class("wood", (0, 99, 0))
    assert wood.class_id == 5
    assert mapper.add_class("wood", (0, 50, 0)).class_id == 5
    mapper.click(60, 100, 4)
    assert set(np.unique(mapper.labels())) == {4}
    mapper.click(150, 60, wood.class_id)
    assert set(np.unique(mapper.labels())) == {4, 5}


def test_a_class_that_is_renamed_stays_one_class(scene, truth):
    mapper = mapped(scene)
    mapper.rename_class("2", "wood")
    assert mapper.add_class("wood").class_id == 2
    before = mapper.labels()
    mapper.rename_class("nobody", "knows")
    assert [one.name for one in mapper.classes] == ["1", "wood", "3"]
    assert mapper.undo()
    mapper.rename_class("3", "wood")  # as where 'wood' was removed from the panel and its name given to another
    assert [one.name for one in mapper.classes] == ["1", "wood"]
    assert mapper.redo()  # what was taken back is of the same class now
    assert np.array_equal(mapper.labels(), np.where(before == 3, 2, before))
    assert mapper.undo()
    assert mapper.learned().history[-1]["strokes"] == {"1": 2, "wood": 2}


def test_bad_input_gets_a_sentence(scene):
    mapper = ClassMapper(scene, FakeBackbone())
    with pytest.raises(JobError, match="outside the raster"):
        mapper.click(-1, 5, 1)
    with pytest.raises(JobError, match="Class 255"):
        mapper.click(1, 5, 255)
    with pytest.raises(JobError, match="ridge"):
        ClassMapOptions(head="forest")
    with pytest.raises(ClassHeadError, match="click"):
        next(mapper.blocks())
    assert not mapper.undo()
    assert not mapper.labels().any()


def test_saved_map_is_the_same_elsewhere(scene, tmp_path):
    mapper = mapped(scene)
    mapper.add_class("water")
    path = tmp_path / "map.safetensors"
    save_mapper(mapper, path)
    again = load_mapper(path, scene, FakeBackbone())
    assert (again.labels() == mapper.labels()).mean() > 0.999
    card = load_class_model(path).card
    assert card["backbone_sha256"] == FakeBackbone.checkpoint_sha256
    assert card["gsd_m"] == pytest.approx(0.5, rel=0.01)
    assert card["history"][-1]["strokes"] == {"1": 2, "2": 2, "3": 1}
    other = FakeBackbone()
    other.checkpoint_sha256 = "c" * 64
    with pytest.raises(JobError, match="another backbone"):
        load_mapper(path, scene, other)


def test_a_task_of_the_window_maps_with_a_saved_model(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "open_backbone", lambda **_options: FakeBackbone())
    scene.engine.device = "cpu"
    mapper = mapped(scene, head="logistic", is_snapped=False)
    labels = mapper.labels()
    save_mapper(mapper, tmp_path / "lakes.safetensors")
    (left, top), (right, bottom) = scene.reader.to_map([(0, 0), (COLS, ROWS)])
    handle = MapHandle(SimpleNamespace(checkpoint_folder=None, offline=True), head="ridge", is_snapped=True)
    segmenter, view = SimpleNamespace(scene=scene), (left, bottom, right, top)
    loaded, picture = LoadClassModel(handle, view, path=tmp_path / "lakes.safetensors").run(segmenter, NullProgress())
    assert (loaded.head, loaded.is_snapped) == ("logistic", False)
    assert loaded.sentence == "lakes maps these classes: 1, 2, 3."
    assert picture.is_loaded
    *_, picture = MapView(handle, view).run(segmenter, NullProgress())
    assert (picture.labels == labels).mean() > 0.999
    (picture,) = AddStroke(handle, view, MapStroke(((left + 10, top - 10),), "1", (0, 0, 0))).run(
        segmenter, NullProgress()
    )
    assert not picture.is_loaded
    (_,) = SetOptions(handle, view, head="tokens", is_snapped=True).run(segmenter, NullProgress())
    options = handle.mapper(segmenter, NullProgress()).options
    assert (options.head, options.is_snapped) == ("tokens", True)


def test_while_the_view_is_encoded_a_click_waits_for_one_network_at_most(scene, monkeypatch):
    runs = []

    class CountingBackbone(FakeBackbone):
        def features(self, chip):
            runs.append("backbone")
            return super().features(chip)

    monkeypatch.setattr(backbone, "open_backbone", lambda **_options: CountingBackbone())
    monkeypatch.setattr(class_blocks, "_LARGEST_WINDOW_PX", 64)
    embed = scene.engine.embed
    monkeypatch.setattr(scene.engine, "embed", lambda *chips, **more: (runs.append("sam"), embed(*chips, **more))[1])
    scene.engine.device = "cpu"
    (left, top), (right, bottom) = scene.reader.to_map([(0, 0), (COLS, ROWS)])
    handle = MapHandle(SimpleNamespace(checkpoint_folder=None, offline=True), head="ridge", is_snapped=True)
    segmenter, view = SimpleNamespace(scene=scene), (left, bottom, right, top)
    n_before, space = 0, None
    for number, item in enumerate(MapView(handle, view).run(segmenter, NullProgress())):
        assert len(runs) <= n_before + 1
        if number == 3:  # in the middle of the first windows, of which the features are learned
            stroke = MapStroke(((left + 10, top - 10),), "wood", (0, 0, 0))
            list(AddStroke(handle, view, stroke).run(segmenter, NullProgress()))
            space = handle.mapper(segmenter, NullProgress())._blocks.space
        n_before, n_missing = len(runs), getattr(item, "n_missing", None)
    assert n_missing == 0
    assert handle.mapper(segmenter, NullProgress())._blocks.space is space is not None


def test_strokes_of_another_session_make_the_same_map(scene, monkeypatch):
    monkeypatch.setattr(backbone, "open_backbone", lambda **_options: FakeBackbone())
    scene.engine.device = "cpu"
    (left, top), (right, bottom) = scene.reader.to_map([(0, 0), (COLS, ROWS)])
    view, segmenter = (left, bottom, right, top), SimpleNamespace(scene=scene)

    def begun():
        return MapHandle(SimpleNamespace(checkpoint_folder=None, offline=True), head="ridge", is_snapped=True)

    def last(task):
        return list(task.run(segmenter, NullProgress()))[-1]

    first = begun()
    for points, name in ((((60.5, 100.5),), "water"), (((150.5, 60.5), (160.25, 70.75)), "wood")):
        places = tuple(map(tuple, scene.reader.to_map(points)))
        said = last(AddStroke(first, view, MapStroke(places, name, (1, 2, 3))))
    assert [len(stroke.points_map) for stroke in said.strokes] == [1, 2]
    outside = MapStroke(((left - 100, top),), "water", (1, 2, 3))
    second = begun()
    taken = last(TakeUpStrokes(second, view, (*said.strokes, outside)))
    assert [(stroke.class_name, stroke.colour) for stroke in taken.strokes] == [
        ("water", (1, 2, 3)),
        ("wood", (1, 2, 3)),
    ]
    assert np.array_equal(taken.labels, said.labels)
    none = last(UndoStroke(second, view, is_all=True))
    assert (none.n_strokes, none.n_undone, none.strokes) == (0, 2, ())
    again = last(RedoStroke(second, view, n_strokes=2))
    assert (again.n_strokes, again.n_undone, again.strokes) == (2, 0, taken.strokes)


def test_written_raster_has_grid_colours_and_names(scene, tmp_path):
    mapper = mapped(scene, window_px=64)
    path, entropy = tmp_path / "map.tif", tmp_path / "entropy.tif"
    fractions = list(write_class_map(mapper, path, entropy_path=entropy, bounds_px=(20, 30, 200, 180)))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    with rasterio.open(path) as dataset, rasterio.open(entropy) as doubt:
        assert np.array_equal(dataset.read(1), mapper.labels((20, 30, 200, 180)))
        assert dataset.transform @ (0, 0) == pytest.approx(tuple(scene.reader.to_map([(20, 30)])[0]))
        assert dataset.colormap(1)[1][:3] == mapper.classes[0].colour
        assert dataset.tags()["CLASS_1"] == "1"
        assert doubt.nodata == ENTROPY_NODATA
        assert doubt.read(1).max() <= 100


def test_what_is_clicked_while_the_map_is_written_comes_too_late(scene, tmp_path):
    mapper = mapped(scene, window_px=64)
    before = mapper.labels()
    work = write_class_map(mapper, tmp_path / "map.tif")
    next(work)
    mapper.click(100, 100, mapper.add_class("sand").class_id)
    mapper.set_options(ClassMapOptions(window_px=64, is_snapped=False))
    list(work)
    polygons = write_class_polygons(mapper, tmp_path / "areas.gpkg")
    next(polygons)
    mapper.undo()
    list(polygons)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert np.array_equal(dataset.read(1), before)
        assert "sand" not in dataset.tags().values()
    assert "sand" in set(geopandas.read_file(tmp_path / "areas.gpkg")["class"])


def test_clicks_go_along_where_a_device_is_replaced(scene, truth, open_scene):
    mapper = mapped(scene, window_px=64)
    other = open_scene(scene.reader.path, FakeEngine())
    moved = mapper.moved_to(other, FakeBackbone())
    assert np.array_equal(moved.labels(), mapper.labels())
    assert moved.undo()
    assert moved.n_strokes == mapper.n_strokes - 1
    again = moved.moved_to(other, FakeBackbone())
    assert again.redo()
    assert moved.n_undone == 1
    assert moved.scene is other


def test_cancelled_raster_leaves_nothing(scene, tmp_path, recorder):
    mapper = mapped(scene, window_px=64)
    with pytest.raises(Cancelled):
        list(write_class_map(mapper, tmp_path / "map.tif", entropy_path=tmp_path / "e.tif", progress=recorder(3)))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tif" and path.name != "scene.tif"] == []


@pytest.mark.parametrize("bounds", [None, (20, 30, 200, 180)])
def test_polygons_cover_each_class(scene, tmp_path, bounds):
    mapper = mapped(scene, window_px=64)
    labels, path = mapper.labels(bounds), tmp_path / "map.gpkg"
    path.write_bytes(b"an older file")
    written = write_class_polygons(mapper, path, bounds_px=bounds)
    fractions = []
    while True:
        try:
            fractions.append(next(written))
        except StopIteration as end:
            n_written = end.value
            break
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    frame = geopandas.read_file(path)
    assert len(frame) == n_written
    assert frame.crs == scene.reader.crs
    assert set(zip(frame["class"], frame["class_id"], strict=True)) == {("1", 1), ("2", 2), ("3", 3)}
    area = frame.dissolve("class_id").area.to_dict()
    assert area == {class_id: pytest.approx((labels == class_id).sum() * 0.25) for class_id in (1, 2, 3)}
    assert list(frame["area_m2"]) == pytest.approx(list(frame.area), rel=5e-3)  # on the ellipsoid
    assert [one.name for one in tmp_path.glob("*gpkg*")] == ["map.gpkg"]


def test_polygons_of_a_written_map_are_those_of_the_mapper(scene, tmp_path):
    mapper = mapped(scene, window_px=64)
    list(write_class_map(mapper, tmp_path / "map.tif"))
    list(write_class_polygons(mapper, tmp_path / "map.gpkg"))
    frame = geopandas.read_file(tmp_path / "map.gpkg")
    found = list(class_polygons(tmp_path / "map.tif", mapper.classes))
    assert len(found) == len(frame)
    written = {polygon.normalize().wkb for polygon in frame.geometry}
    assert {polygon.normalize().wkb for polygon, _ in found} == written


def test_cancelled_polygons_leave_what_was_there(scene, tmp_path, recorder):
    mapper = mapped(scene, window_px=64)
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"an older file")
    with pytest.raises(Cancelled):
        list(write_class_polygons(mapper, path, progress=recorder(3)))
    assert [one.name for one in tmp_path.glob("*gpkg*")] == ["map.gpkg"]
    assert path.read_bytes() == b"an older file"


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_raster_is_not_replaced_by_its_own_map(scene, tmp_path, is_linked):
    mapper, path = mapped(scene, window_px=64), Path(scene.reader.path)
    before = path.read_bytes()
    if is_linked:
        path = tmp_path / "link.tif"
        path.symlink_to(scene.reader.path)
    for written in (
        write_class_map(mapper, path),
        write_class_map(mapper, tmp_path / "map.tif", entropy_path=path),
        write_class_polygons(mapper, path),
    ):
        with pytest.raises(JobError, match="from which the raster is read; choose another name"):
            next(written)
    assert path.read_bytes() == before
    assert not (tmp_path / "map.tif").exists()


def test_polygons_without_a_place_are_a_sentence(scene, tmp_path):
    with pytest.raises(RasterError, match="choose a folder"):
        next(write_class_polygons(mapped(scene), tmp_path / "missing" / "map.gpkg"))
    with pytest.raises(RasterError, match="map the raster again"):
        list(class_polygons(tmp_path / "missing.tif", []))


def test_guidance_points_at_what_is_in_doubt(truth, raster_factory, open_scene):
    """A colour between two classes, never clicked, is where to look."""
    classes = truth.copy()
    classes[classes == 3] = 2
    colours = np.array([[0, 0, 0], [30, 40, 120], [40, 110, 40]], float)[classes]
    colours[80:120, 100:140] = (35, 75, 80)
    pixels = np.clip(colours + np.random.RandomState(0).normal(0, 4, colours.shape), 1, 255).astype(np.uint8)
    mapper = ClassMapper(open_scene(raster_factory(pixels.transpose(2, 0, 1)), FakeEngine()), FakeBackbone())
    mapper.click(30, 30, 1)
    mapper.click(200, 30, 2)
    regions = uncertain_regions(mapper, most=5)
    x, y = regions[0].centre
    assert 90 <= x <= 150
    assert 70 <= y <= 130 or 115 <= x <= 125
    assert [region.value for region in regions] == sorted((r.value for r in regions), reverse=True)
    left, top, right, bottom = regions[0].bounds
    assert left <= x < right
    assert top <= y < bottom
    seen = uncertain_regions(mapper, visited_px=[regions[0].centre], most=1)[0]
    assert seen.centre != regions[0].centre
    assert uncertain_regions(mapper, (0, 0, 60, 60), most=3) == [] or all(
        region.centre[0] < 60 for region in uncertain_regions(mapper, (0, 0, 60, 60), most=3)
    )


def test_guidance_asks_for_what_is_typical():
    """Of what is in doubt that comes first which many places are like, though an odd one is doubted more."""
    kinds = np.zeros(100, int)  # of squares of 20 px, ten in a row
    kinds[[3, 15, 27, 51, 63, 75, 87, 99, 8]], kinds[44] = 1, 2
    numbers = np.arange(100, dtype=np.int32).reshape(10, 10)
    rows, cols = np.divmod(np.arange(100), 10)
    block = Block(
        core_px=(0, 0, 200, 200),
        cell_px=20,
        segments=numbers.repeat(20, 0).repeat(20, 1),
        segment_units=np.eye(3, dtype=np.float16)[kinds],
        cell_units=np.zeros((12, 12, 3), np.float16),
        sizes_px=np.full(100, 400),
        centres_px=(20 * np.stack([cols, rows], axis=1) + 10).astype(np.float32),
        neighbours=np.zeros((0, 2), np.int32),
        valid=None,
    )
    first = np.array([0.99, 0.55, 0.5], np.float32)[kinds]
    view = SegmentView(block, np.stack([first, 1 - first], axis=1), np.ones(100, np.uint8))
    mapper = SimpleNamespace(
        segment_views=lambda *_, **__: [view],
        clicked_pixels=lambda: np.array([[1000, 1000]]),
        said_units=lambda: [np.array([1.0, 0, 0], np.float32)],
    )
    x, y = uncertain_regions(mapper, most=1)[0].centre
    assert kinds[numbers[int(y) // 20, int(x) // 20]] == 1


@pytest.mark.parametrize("bounds", [None, (50, 30, 170, 150)])
def test_no_place_is_left_only_where_all_are_known(scene, bounds):
    """However many of the best places were clicked or visited, those that are worth less are found after them."""
    mapper, visited = mapped(scene), []
    while regions := uncertain_regions(mapper, bounds, visited_px=visited, most=1):
        visited.append(regions[0].centre)
    known = np.concatenate([visited, mapper.clicked_pixels() + 0.5])
    (view,) = mapper.segment_views()
    centres, sizes = view.block.centres_px, view.block.sizes_px
    nearest = np.abs(centres[:, None] - known).max(axis=2).min(axis=1)
    # Segments across the edge of an extent may be looked at from outside.
    left, top, right, bottom = bounds or (0, 0, COLS, ROWS)
    inside = ((centres >= (left + 10, top + 10)) & (centres < (right - 10, bottom - 10))).all(axis=1)
    assert (view.entropy > 0).all()
    assert (nearest < 6 * np.sqrt(sizes))[inside].all()
    assert (np.array(visited) >= (left, top)).all()
    assert (np.array(visited) < (right, bottom)).all()


def test_features_do_not_depend_on_the_extent(scene):
    """The same core from its whole window, whichever extent asked for it."""
    small = ClassMapper(scene, FakeBackbone(), options=ClassMapOptions(window_px=64))
    cells = small._reader.grid((100, 100, 110, 110))
    assert {cell.core_px for cell in cells} <= {cell.core_px for cell in small._reader.grid(None)}
    assert all(isinstance(cell.window, SquareWindow) for cell in cells)


def test_path_is_a_path(scene, tmp_path):
    mapper = mapped(scene)
    with pytest.raises(ClassHeadError, match="cannot be written"):
        save_mapper(mapper, Path(tmp_path / "none" / "x.safetensors"))
