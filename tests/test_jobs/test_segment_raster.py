"""Whole rasters through a segmentation model: no seams, the raster's own pixels, and the same result however run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio._err import CPLE_AppDefinedError
from scipy.ndimage import binary_erosion, gaussian_filter
from segadapt.models.errors import Cancelled
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass, read_card
from segadapt.models.semantic.package import save_segmenter
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter
from segadapt.processing.errors import JobError, RasterError
from segadapt.processing.jobs import block_reader, segment_blocks, segment_distributed, segment_raster
from segadapt.processing.jobs.block_answer import BlockAnswer
from segadapt.processing.jobs.model_rasters import open_for_model
from segadapt.processing.jobs.segment_raster import SegmentOptions, SegmentOutputs, label_polygons
from segadapt.processing.raster import tile_store
from segadapt.processing.raster.blend import Windows, plan_blocks
from segadapt.processing.raster.tile_store import TileStore
from torch import nn
from torch.nn import functional

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
CHIP = 64
CLASSES = (SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof & <wall>", (230, 85, 13)))


def make_card(**changes):
    values = {
        "name": "test",
        "decoder": "fpn",
        "encoder": DEFAULT_ENCODER,
        "bands": ("red",),
        "classes": CLASSES,
        "gsd_m": 0.5,
        "chip_px": CHIP,
        "mean": (127.0,),
        "std": (128.0,),
        "licence": "test",
        "made_on": "2026-01-01",
        "segadapt_version": "0",
    }
    return SegmenterCard(**(values | changes))


class Neighbourhood(nn.Module):
    """Says class 1 where the mean of a neighbourhood is bright: at the edge of a window it sees less of it."""

    def __init__(self, side=15):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.side = side
        self.checked = []
        self.seen = []

    def check_chips(self, px):
        self.checked.append(px)

    def forward(self, pixels):
        # Zeros beyond the window, as networks pad: the answer at a window's edge is wrong on purpose.
        self.seen.append(tuple(pixels.shape))
        mean = functional.avg_pool2d(pixels[:, :1], self.side, stride=1, padding=self.side // 2)
        logit = (mean - 127) / 4
        return torch.cat([-logit, logit], dim=1)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A real package; its network is only used where a test says so."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("package") / "model.safetensors"
    save_segmenter(build_segmenter(make_card()), path)
    return path


@pytest.fixture
def model(monkeypatch):
    """The network of the package is replaced by one whose answer is known; small blocks."""
    model = Neighbourhood()
    for module in (segment_raster, segment_distributed):
        monkeypatch.setattr(module, "open_model", lambda _path, _device: model)
    monkeypatch.setattr(segment_blocks, "_BLOCK_WINDOWS", 2)
    return model


def scene(rows, cols, *, sigma=9.0, seed=0):
    """(1, rows, cols) uint8: smooth hills around the threshold."""
    hills = gaussian_filter(np.random.default_rng(seed).normal(size=(rows, cols)), sigma)
    return np.clip(127 + 40 * hills / hills.std(), 1, 255).astype(np.uint8)[None]


def run(path, package, outputs, *, card=None, bounds=None, progress=None, **options):
    outputs = SegmentOutputs(labels=outputs) if isinstance(outputs, Path) else outputs
    with open_for_model(card or make_card(), str(path)) as reader:
        return segment_raster.segment_raster(
            reader,
            package,
            outputs,
            bounds=bounds,
            options=SegmentOptions(device="cpu", **options),
            progress=progress,
        )


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def direct(pixels):
    """What the model says of the whole picture at once."""
    with torch.inference_mode():
        return Neighbourhood()(torch.from_numpy(pixels)[None].float())[0].argmax(0).numpy()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize(("size", "overlap"), [(200, 16), (64, 16), (30, 16), (1, 16), (129, 0), (200, 40)])
def test_windows_cover_the_grid_and_weigh_one(size, overlap):
    windows = Windows(CHIP, overlap, (size, size))
    assert windows.starts(0)[0] == 0
    assert windows.starts(0)[-1] == max(0, size - CHIP)
    total = np.zeros(max(size, CHIP))
    for start in windows.starts(0):
        total[start : start + CHIP] += windows.taper()[CHIP // 2]
    assert (total[:size] > 0).all()
    regular = Windows(CHIP, 16, (CHIP + 48 * 3, CHIP))
    total = np.zeros(regular.grid_shape[0])
    for start in regular.starts(0):
        total[start : start + CHIP] += regular.taper()[CHIP // 2]
    assert total[16:-16] == pytest.approx(1, abs=2e-3)


def test_larger_windows_are_asked_for_and_as_many_pixels_at_once(model, package, raster_factory, tmp_path):
    pixels = scene(300, 260)
    path = raster_factory(pixels)
    usual = run(path, package, tmp_path / "usual.tif", batch=4)
    assert not model.checked
    model.seen.clear()
    assert run(path, package, tmp_path / "large.tif", batch=4, window_px=2 * CHIP).n_windows < usual.n_windows
    assert model.checked == [2 * CHIP]
    assert {shape[0] for shape in model.seen} == {1}
    assert {shape[2] for shape in model.seen} == {2 * CHIP}
    wrong = [(read(tmp_path / f"{name}.tif") != direct(pixels)).mean() for name in ("usual", "large")]
    assert wrong[1] < wrong[0] < 0.02


@pytest.mark.parametrize("window_px", [CHIP - 1, segment_raster.MOST_WINDOW_PX + 1])
def test_windows_of_a_size_that_cannot_be_are_refused(model, package, raster_factory, tmp_path, window_px):
    with pytest.raises(JobError, match=rf"Windows of {window_px} px are asked for; choose {CHIP}, .* to 4096"):
        run(raster_factory(scene(100, 100)), package, tmp_path / "labels.tif", window_px=window_px)
    assert not (tmp_path / "labels.tif").exists()


@pytest.mark.parametrize(
    "scale", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.37, 0.37), (3.3, 3.3), (0.5, 2.0), (1.0, 0.4)]
)
def test_blocks_cut_the_extent_without_gaps_and_at_the_same_places(scale):
    shape = (300, 411)
    grid = tuple(int(np.ceil(side * times)) for side, times in zip(shape, scale, strict=True))
    windows = Windows(CHIP, 16, grid)
    blocks = plan_blocks(windows, scale=scale, bounds=(0, 0, shape[1], shape[0]), side_px=100)
    times = np.zeros(shape, int)
    for block in blocks:
        left, top, right, bottom = block.pixels
        times[top:bottom, left:right] += 1
    assert (times == 1).all()
    cuts = {block.pixels[0] for block in blocks}
    part = plan_blocks(windows, scale=scale, bounds=(50, 40, 380, 290), side_px=100)
    assert {block.pixels[0] for block in part} - {50} <= cuts


def test_labels_are_those_of_the_whole_picture(model, package, raster_factory, tmp_path):
    pixels = scene(300, 260)
    out = tmp_path / "out" / "labels.tif"
    out.parent.mkdir()
    done = run(raster_factory(pixels), package, out)
    assert done.n_blocks > 4
    assert (read(out) == direct(pixels))[8:-8, 8:-8].mean() > 0.998
    assert sorted(path.name for path in out.parent.iterdir()) == ["labels.qml", "labels.tif"]


def test_a_shifted_grid_changes_next_to_nothing(model, package, raster_factory, tmp_path):
    pixels = scene(320, 330)
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    changed = {}
    for overlap in (0.0, 0.25):
        run(raster_factory(pixels), package, first, overlap=overlap)
        run(raster_factory(pixels[:, 13:, 21:], "shifted.tif"), package, second, overlap=overlap)
        inside = np.s_[CHIP:-CHIP, CHIP:-CHIP]
        changed[overlap] = (read(first)[13:, 21:] != read(second))[inside].mean()
    assert changed[0.25] < 0.005
    assert changed[0.0] > 2 * changed[0.25]


def test_flips_make_an_answer_symmetric(model, package, raster_factory, tmp_path):
    """A model that looks to the left only is balanced by its mirror images."""
    model.forward = lambda pixels: torch.cat([0 * pixels, torch.roll(pixels, 8, dims=3) / 64 - 2], dim=1)
    pixels = scene(64, 64)
    run(raster_factory(pixels), package, tmp_path / "plain.tif", overlap=0)
    run(raster_factory(pixels[:, :, ::-1], "other.tif"), package, tmp_path / "mirrored.tif", overlap=0)
    assert (read(tmp_path / "plain.tif") != read(tmp_path / "mirrored.tif")[:, ::-1]).mean() > 0.05
    run(raster_factory(pixels), package, tmp_path / "plain.tif", overlap=0, flips=True)
    run(raster_factory(pixels[:, :, ::-1], "other.tif"), package, tmp_path / "mirrored.tif", overlap=0, flips=True)
    assert (read(tmp_path / "plain.tif") == read(tmp_path / "mirrored.tif")[:, ::-1]).mean() > 0.99


def test_without_data_there_is_no_label(model, package, raster_factory, tmp_path):
    pixels = scene(200, 210)
    pixels[0, 40:90, 30:170] = 0
    pixels[0, 195:] = 0
    run(raster_factory(pixels, nodata=0), package, tmp_path / "labels.tif")
    labels = read(tmp_path / "labels.tif")
    assert ((labels == 255) == (pixels[0] == 0)).all()
    assert set(np.unique(labels)) == {0, 1, 255}


@pytest.mark.parametrize(("pixel_m", "scale"), [(1.0, 2), (0.25, 0.5), (0.18, 0.36)])
def test_labels_lie_on_the_rasters_own_pixels(model, package, raster_factory, tmp_path, pixel_m, scale):
    """The model sees 0.5 m; a stripe of nodata and a bright square stay where they are."""
    rows, cols = round(180 / scale), round(150 / scale)
    pixels = np.full((1, rows, cols), 60, np.uint8)
    top, left, side = round(50 / scale), round(40 / scale), round(60 / scale)
    pixels[0, top : top + side, left : left + side] = 200
    pixels[0, : round(7 / scale)] = 0
    path = raster_factory(pixels, nodata=0, transform=Affine(pixel_m, 0, 590_000, 0, -pixel_m, 5_750_000))
    run(path, package, tmp_path / "labels.tif")
    labels = read(tmp_path / "labels.tif")
    assert labels.shape == (rows, cols)
    assert ((labels == 255) == (pixels[0] == 0)).all()
    roof = np.argwhere(labels == 1)
    # The mean over 15 px loses the corners of the square, not its sides.
    assert abs(roof.min(axis=0) - (top, left)).max() <= max(1, 1 / scale)
    assert abs(roof.max(axis=0) - (top + side - 1, left + side - 1)).max() <= max(1, 1 / scale)
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.transform.a == pixel_m


def test_theway_back_is_exact_where_the_answer_is_linear():
    """Half-sized grid pixels are averaged, double ones interpolated between their centres."""
    from segadapt.processing.raster.blend import way_back

    grid = np.arange(40, dtype=np.float32)
    assert way_back(3, 9, 4, 24, scale=2.0) @ grid[4:24] == pytest.approx(2 * np.arange(3, 9) + 0.5)
    assert way_back(6, 30, 2, 20, scale=0.5) @ grid[2:20] == pytest.approx((np.arange(6, 30) + 0.5) / 2 - 0.5)
    assert way_back(0, 5, 0, 17, scale=3.3) @ np.ones(17) == pytest.approx(1)


@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize(
    "scale", [(1.0, 1.0), (0.5, 0.5), (0.37, 0.37), (2.0, 2.0), (3.3, 3.3), (0.37, 2.0), (3.3, 1.0)]
)
def test_labels_are_the_most_probable_classes(scale, n_classes):
    """Labels are worked out without probabilities, part by part, and must be what these say."""
    shape = (210, 230)
    windows = Windows(CHIP, 16, tuple(int(np.ceil(side * n)) for side, n in zip(shape, scale, strict=True)))
    rng = np.random.default_rng(0)
    for block in plan_blocks(windows, scale=scale, bounds=(0, 0, shape[1], shape[0]), side_px=200):
        answer = BlockAnswer(block, windows, n_classes=n_classes, scale=scale, device=torch.device("cpu"))
        for col_off, row_off in windows.over(block.grid):
            answer.add([(col_off, row_off)], torch.from_numpy(rng.random((1, n_classes, CHIP, CHIP), np.float32)))
        labels = np.concatenate([part for _, part in answer.labels(17)])
        likely = np.concatenate([part for _, part in answer.probabilities(23)], axis=1)
        assert labels.shape == block.shape
        assert likely.sum(axis=0) == pytest.approx(1, abs=1e-5)
        chosen = np.take_along_axis(likely, labels[None].astype(int), axis=0)[0]
        assert chosen == pytest.approx(likely.max(axis=0), abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.37, 0.37), (3.3, 1.0)])
def test_a_card_says_of_a_block_what_the_cpu_says(scale):
    shape = (210, 230)
    windows = Windows(CHIP, 16, tuple(int(np.ceil(side * n)) for side, n in zip(shape, scale, strict=True)))
    block = plan_blocks(windows, scale=scale, bounds=(0, 0, shape[1], shape[0]), side_px=200)[0]
    places = windows.over(block.grid)
    values = torch.rand((len(places), 3, CHIP, CHIP), generator=torch.Generator().manual_seed(0))
    found = []
    for device in map(torch.device, ("cpu", "cuda")):
        answer = BlockAnswer(block, windows, n_classes=3, scale=scale, device=device)
        answer.add(places, values.to(device))
        found.append([torch.cat([part.cpu() for _, part in answer.labels()])])
        found[-1].append(torch.cat([part.cpu() for _, part in answer.probabilities()], dim=1))
    assert (found[0][0] == found[1][0]).float().mean() > 0.999
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("piece_px", [2**19, 100 * CHIP])
@pytest.mark.parametrize("gsd_m", [0.5, 0.9, 0.3, 8.0])
def test_windows_read_in_rows_are_those_read_one_by_one(raster_factory, monkeypatch, gsd_m, piece_px):
    """With parts without data, and on grids that are smaller than a window."""
    monkeypatch.setattr(block_reader, "_PIECE_PX", piece_px)
    pixels = scene(260, 410)
    pixels[:, :70, :90] = 0
    pixels[:, 100:110] = 0
    with open_for_model(make_card(gsd_m=gsd_m), raster_factory(pixels, nodata=0)) as reader:
        windows = Windows(CHIP, 16, reader.grid_shape)
        blocks = plan_blocks(windows, scale=reader.scale, bounds=(0, 0, 410, 260), side_px=150)
        found, n_blank, ended = {}, 0, []
        for item in block_reader.read_blocks(blocks, reader, windows, batch=3, is_pinned=False):
            if isinstance(item, block_reader.Batch):
                assert len(item.places) == len(item.pixels) <= 3
                found |= {(item.block, place): one for place, one in zip(item.places, item.pixels, strict=True)}
                continue
            ended.append(item.block)
            n_blank += item.n_blank
            if item.valid is not None:
                assert (item.valid == reader.read_valid(item.block.pixels)).all()
        assert ended == blocks
        wanted = [(block, place) for block in blocks for place in windows.over(block.grid)]
        assert len(found) + n_blank == len(wanted)
        for block, (col_off, row_off) in wanted:
            chip, valid = reader.read(col_off, row_off, CHIP, CHIP)
            assert valid.any() == ((block, (col_off, row_off)) in found)
            if valid.any():
                assert (found[block, (col_off, row_off)].numpy() == chip).all()


def test_files_hold_classes_colours_style_and_overviews(model, package, raster_factory, tmp_path):
    (tmp_path / "labels.tif").write_bytes(b"older")
    run(raster_factory(scene(700, 640)), package, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.colormap(1)[1][:3] == (230, 85, 13)
        assert dataset.nodata == 255
        assert dataset.tags()["CLASS_1"] == "roof & <wall>"
        assert dataset.tags()["SEGADAPT_MODEL"] == "test"
        assert dataset.crs.to_epsg() == 32631
        assert dataset.overviews(1)
    entries = ElementTree.parse(tmp_path / "labels.qml").getroot().iter("paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        ("0", "#5a5a5a", "other"),
        ("1", "#e6550d", "roof & <wall>"),
    ]


def test_confidence_entropy_and_probabilities_agree_with_the_labels(model, package, raster_factory, tmp_path):
    pixels = scene(150, 140)
    pixels[0, :20] = 0
    names = ("labels", "confidence", "entropy", "probabilities")
    outputs = SegmentOutputs(**{name: tmp_path / f"{name}.tif" for name in names})
    run(raster_factory(pixels, nodata=0), package, outputs)
    labels, confidence, entropy = (read(tmp_path / f"{name}.tif") for name in names[:3])
    with rasterio.open(tmp_path / "probabilities.tif") as dataset:
        shares = dataset.read().astype(int)
        assert dataset.descriptions == ("other", "roof & <wall>")
    for values in (confidence, entropy, *shares):
        assert ((values == 255) == (pixels[0] == 0)).all()
    known = pixels[0] != 0
    assert abs(shares.sum(axis=0)[known] - 100).max() <= 1
    assert (confidence == shares.max(axis=0))[known].all()
    sure = known & (confidence > 50)
    assert (labels == shares.argmax(axis=0))[sure].all()
    p = shares[:, known] / 100
    expected = -(p * np.log2(np.maximum(p, 1e-6))).sum(axis=0) * 100
    assert abs(entropy[known] - expected).max() < 8
    assert abs(entropy[known] - expected).mean() < 1.5


def test_pixels_that_are_not_square_are_seen_as_squares(model, package, raster_factory, tmp_path):
    """Pixels of 0.5 x 1 m are halved for the model; the labels come back on the raster's own."""
    square = scene(400, 260)
    pixels = square.reshape(1, 200, 2, 260).mean(axis=2).astype(np.uint8)
    path = raster_factory(pixels, transform=Affine(0.5, 0, 590_000, 0, -1, 5_750_000))
    run(path, package, tmp_path / "labels.tif")
    run(path, package, tmp_path / "part.tif", bounds=(61.0, 50.0, 190.0, 202.0))
    labels, wanted = read(tmp_path / "labels.tif"), direct(square)
    assert labels.shape == (200, 260)
    agreeing = (labels == wanted[::2]) | (labels == wanted[1::2])
    assert agreeing[8:-8, 8:-8].mean() > 0.99
    assert np.array_equal(read(tmp_path / "part.tif"), labels[25:101, 61:190])


def test_an_extent_gives_the_same_as_the_whole(model, package, raster_factory, tmp_path):
    path = raster_factory(scene(260, 270))
    run(path, package, tmp_path / "whole.tif")
    run(path, package, tmp_path / "part.tif", bounds=(61.0, 50.2, 190.0, 201.9))
    whole, part = read(tmp_path / "whole.tif"), read(tmp_path / "part.tif")
    assert (part == whole[50:202, 61:190]).all()
    with rasterio.open(tmp_path / "part.tif") as dataset:
        assert dataset.transform.c == 590_000 + 61 * 0.5
        assert dataset.transform.f == 5_750_000 - 50 * 0.5


class StopAt(NullProgress):
    """Cancels after a fraction."""

    def __init__(self, fraction):
        self.fraction, self.seen = fraction, []

    def set_fraction(self, fraction):
        self.seen.append(fraction)

    def is_cancelled(self):
        return bool(self.seen) and self.seen[-1] >= self.fraction


def test_cancel_leaves_nothing(model, package, raster_factory, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Cancelled):
        run(raster_factory(scene(300, 300)), package, out / "labels.tif", progress=StopAt(0.5))
    assert list(out.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "SegAdapt"]


def test_progress_rises_to_one(model, package, raster_factory, tmp_path):
    progress = StopAt(2)
    run(raster_factory(scene(200, 200)), package, tmp_path / "labels.tif", progress=progress)
    assert progress.seen == sorted(progress.seen)
    assert progress.seen[-1] == 1
    assert len(progress.seen) > 4


def test_a_full_disk_keeps_the_older_file_and_the_finished_blocks(
    model, package, raster_factory, tmp_path, monkeypatch
):
    path, out = raster_factory(scene(300, 260)), tmp_path / "out"
    out.mkdir()
    run(path, package, tmp_path / "expected.tif")
    (out / "labels.tif").write_bytes(b"older")
    n_written = []

    def full(descriptor):
        n_written.append(descriptor)
        if len(n_written) > 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RasterError, match=r"No space left on device.*the same output file, which goes on"):
            run(path, package, out / "labels.tif")
    assert (out / "labels.tif").read_bytes() == b"older"
    assert not [thread for thread in threading.enumerate() if thread.name == "SegAdapt"]
    done = run(path, package, out / "labels.tif")
    assert done.n_found == 3
    assert (read(out / "labels.tif") == read(tmp_path / "expected.tif")).all()
    assert hidden(out) == []


@pytest.mark.parametrize("is_temporary", [True, False])
def test_blocks_are_kept_only_where_another_run_finds_them(
    model, package, raster_factory, tmp_path, monkeypatch, recorder, is_temporary
):
    """A temporary output has another name each time."""
    path, out, progress = raster_factory(scene(100, 100)), tmp_path / "out", recorder()
    out.mkdir()

    def full(*_arguments, **_options):
        raise CPLE_AppDefinedError(1, 1, "TIFFAppendToStrip: Write error")

    monkeypatch.setattr(rasterio.shutil, "copy", full)
    outputs = SegmentOutputs(labels=out / "labels.tif", is_temporary=is_temporary)
    with pytest.raises(RasterError, match="free space there") as caught:
        run(path, package, outputs, progress=progress)
    assert ("the same output file" in str(caught.value)) is not is_temporary
    assert any("the same output file" in text for text in progress.texts) is not is_temporary
    assert bool(hidden(out)) is not is_temporary


def test_a_style_that_cannot_be_written_is_told(model, package, raster_factory, tmp_path):
    out = tmp_path / "out"
    (out / "labels.qml").mkdir(parents=True)
    with pytest.raises(RasterError, match=r"The style of .*labels.tif cannot be written .*the same output file"):
        run(raster_factory(scene(100, 100)), package, out / "labels.tif")


def test_a_full_disk_at_the_end_leaves_no_part_of_a_file(model, package, raster_factory, tmp_path, monkeypatch):
    path, out = raster_factory(scene(100, 100)), tmp_path / "out"
    out.mkdir()
    outputs = SegmentOutputs(labels=out / "labels.tif", entropy=out / "entropy.tif")
    copy, n_copied = rasterio.shutil.copy, []

    def full(source, target, **options):
        copy(source, target, **options)
        n_copied.append(target)
        if len(n_copied) == 2:
            raise CPLE_AppDefinedError(1, 1, "TIFFAppendToStrip: Write error")

    with monkeypatch.context() as patch:
        patch.setattr(rasterio.shutil, "copy", full)
        with pytest.raises(RasterError, match=r"Write error.*free space there"):
            run(path, package, outputs)
    assert not list(out.glob("*.tif"))
    assert not list(out.glob(".*.part*"))
    assert run(path, package, outputs).n_windows == 0
    assert hidden(out) == []


_KILLED = """
import os, runpy, signal, sys
runpy.run_path(sys.argv[1])
from pathlib import Path
from segadapt.processing.jobs import segment_blocks
from segadapt.processing.jobs.model_rasters import open_for_model
from segadapt.processing.jobs.segment_raster import *
from segadapt.models.semantic.card import read_card
from segadapt.processing.raster.tile_store import TileStore
segment_blocks._BLOCK_WINDOWS = 2
put, n = TileStore.put, []
def kill(self, block, tile):
    if len(n) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    n.append(block)
    put(self, block, tile)
TileStore.put = kill
package = Path(sys.argv[3])
with open_for_model(read_card(package), sys.argv[2]) as reader:
    segment_raster(reader, package, SegmentOutputs(labels=Path(sys.argv[4])), options=SegmentOptions(device="cpu"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_after_a_kill_the_result_is_the_same(package, raster_factory, tmp_path, monkeypatch):
    """With the real network, in a process that is killed while it writes its third block."""
    monkeypatch.setattr(segment_blocks, "_BLOCK_WINDOWS", 2)
    path, out = raster_factory(scene(220, 210)), tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", _KILLED, str(CONFTEST), path, str(package), str(out / "labels.tif")]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (out / "labels.tif").exists()
    done = run(path, package, out / "labels.tif")
    assert done.n_found == 2
    whole = run(path, package, tmp_path / "whole.tif")
    assert whole.n_found == 0
    assert (read(out / "labels.tif") == read(tmp_path / "whole.tif")).all()
    assert sorted(file.name for file in out.iterdir()) == ["labels.qml", "labels.tif"]


def test_blocks_of_other_inputs_are_not_taken(model, package, raster_factory, tmp_path, monkeypatch):
    path, out = raster_factory(scene(300, 260)), tmp_path / "out"
    out.mkdir()
    put = TileStore.put

    def fail(self, block, tile):
        if block.pixels[1] > 0:
            raise RuntimeError("ended")
        put(self, block, tile)

    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "put", fail)
        with pytest.raises(RuntimeError, match="ended"):
            run(path, package, out / "labels.tif")
    assert len(hidden(out)) == 1
    assert run(path, package, out / "labels.tif", overlap=0.4).n_found == 0
    assert hidden(out) == []


@pytest.mark.parametrize("overlap", [0.25, 0.4])
def test_results_that_a_killed_run_was_putting_together_are_removed(
    model, package, raster_factory, tmp_path, monkeypatch, overlap
):
    """Whether the next run has the same inputs or others; what belongs to other outputs stays."""
    path, out = raster_factory(scene(90, 90)), tmp_path / "out"
    files = {"labels": out / "labels.tif", "confidence": tmp_path / "elsewhere" / "sure.tif"}
    others = [out / ".labels.tif-b.tif-0123456789ab.blocks.part.tif", out / ".labels.tiff-0123456789ab.blocks.part.tif"]
    for file in files.values():
        file.parent.mkdir()
    killed = []

    def copy(source, target, **_named):
        target.write_bytes(b"half")
        target.with_name(f"{target.name}.ovr.tmp").write_bytes(b"half")
        killed.append(target)
        if len(killed) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tile_store, "_copy", copy)
        # What a kill leaves: nothing is tidied up.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            run(path, package, SegmentOutputs(**files))
    assert all(file.exists() for file in killed)
    for other in others:
        other.touch()
    run(path, package, SegmentOutputs(**files), overlap=overlap)
    assert hidden(out) == sorted(other.name for other in others)
    assert hidden(files["confidence"].parent) == []


@pytest.fixture
def cluster():
    from distributed import LocalCluster

    # Any free port: another cluster on this machine may have the usual one.
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        yield cluster
    segment_distributed._model.cache_clear()


def test_a_cluster_gives_the_same_labels(package, raster_factory, tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(segment_blocks, "_BLOCK_WINDOWS", 2)
    path = raster_factory(scene(200, 210))
    here = run(path, package, tmp_path / "here.tif")
    there = run(path, package, tmp_path / "there.tif", scheduler=cluster.scheduler_address)
    assert there.n_windows == here.n_windows > 0
    assert (read(tmp_path / "there.tif") == read(tmp_path / "here.tif")).all()
    assert hidden(tmp_path) == []


def test_lost_workers_are_survived(model, package, raster_factory, tmp_path, monkeypatch, cluster):
    """The first blocks fail where they run, and a worker goes away meanwhile."""
    path = raster_factory(scene(300, 260))
    run(path, package, tmp_path / "here.tif")
    run_blocks, calls = segment_distributed.run_blocks, []

    def unsure(*values, **named):
        calls.append(values[1])
        if len(calls) <= 2:
            raise ConnectionError("the worker is gone")
        return run_blocks(*values, **named)

    def lose(self, block, tile):
        put(self, block, tile)
        if len(cluster.workers) == 2:
            cluster.scale(1)

    put = TileStore.put
    monkeypatch.setattr(segment_distributed, "run_blocks", unsure)
    monkeypatch.setattr(TileStore, "put", lose)
    done = run(path, package, tmp_path / "there.tif", scheduler=cluster.scheduler_address)
    assert len(calls) >= done.n_blocks + 2
    assert (read(tmp_path / "there.tif") == read(tmp_path / "here.tif")).all()


@pytest.fixture
def worker_processes(tmp_path):
    """A scheduler with two workers in processes of their own, by name."""
    from distributed import LocalCluster

    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "segadapt").symlink_to(CONFTEST.parents[1])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "OMP_NUM_THREADS": "1"}
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        # Without the nannies, which would start another worker for the one that is killed.
        command += ["--no-nanny", "--no-dashboard", "--nthreads", "1", "--local-directory", str(tmp_path), "--name"]
        workers = {name: subprocess.Popen([*command, name], env=environment) for name in ("first", "second")}
        try:
            cluster.wait_for_workers(len(workers), timeout=60)
            yield cluster, workers
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_a_worker_that_is_killed_changes_nothing(raster_factory, tmp_path, monkeypatch, worker_processes):
    """The one that has blocks to work out while the first is written."""
    cluster, workers = worker_processes
    torch.manual_seed(0)
    package = tmp_path / "model.safetensors"
    save_segmenter(build_segmenter(make_card(encoder="lcnet_035", decoder="unet")), package)
    monkeypatch.setattr(segment_blocks, "_BLOCK_WINDOWS", 1)
    path = raster_factory(scene(140, 150))
    run(path, package, tmp_path / "here.tif")
    put, killed = TileStore.put, []

    def kill_once(self, block, tile):
        put(self, block, tile)
        if not killed:
            killed.append(next(one.name for one in cluster.scheduler.workers.values() if one.processing))
            workers[killed[0]].kill()

    monkeypatch.setattr(TileStore, "put", kill_once)
    there = run(path, package, tmp_path / "there.tif", scheduler=cluster.scheduler_address)
    assert there.n_blocks > 4
    assert [name for name, worker in workers.items() if worker.poll() is not None] == killed
    assert (read(tmp_path / "there.tif") == read(tmp_path / "here.tif")).all()


def test_a_cluster_whose_workers_all_ended_is_told(model, package, raster_factory, tmp_path, monkeypatch, cluster):
    class Reviving(Heard):
        def info(self, text):
            super().info(text)
            if "has no workers; waiting" in text:
                cluster.scale(1)

    def lose_all(self, block, tile):
        put(self, block, tile)
        if len(list(self.folder.iterdir())) == 1:
            cluster.scale(0)

    put, heard = TileStore.put, Reviving()
    monkeypatch.setattr(TileStore, "put", lose_all)
    monkeypatch.setattr(segment_blocks, "_BLOCK_WINDOWS", 1)
    path = raster_factory(scene(300, 260))
    run(path, package, tmp_path / "there.tif", scheduler=cluster.scheduler_address, progress=heard)
    assert sum("has no workers; waiting" in text for text in heard.texts) == 1


@pytest.mark.parametrize("statuses", [["pending"], ["finished", "finished", "lost"]])
def test_an_answer_that_is_lost_with_its_worker_is_not_waited_for(statuses):
    """It seemed to be there when the workers were asked; without workers nobody would ever find it again."""

    class Future:
        @property
        def status(self):
            return statuses[0] if len(statuses) == 1 else statuses.pop(0)

        def result(self, timeout):
            raise TimeoutError

    assert segment_distributed._result(Future(), "tcp://there", NullProgress()) is None


def test_a_block_that_fails_for_want_of_time_is_no_lost_answer():
    class Future:
        status = "error"

        def result(self, timeout):
            raise TimeoutError("the disk was asleep")

    with pytest.raises(JobError, match=r"A worker of tcp://there failed \(TimeoutError: the disk was asleep\)"):
        segment_distributed._result(Future(), "tcp://there", NullProgress())


def test_a_cluster_can_be_cancelled_and_must_be_there(model, package, raster_factory, tmp_path, monkeypatch, cluster):
    out = tmp_path / "out"
    out.mkdir()
    path = raster_factory(scene(300, 260))
    with pytest.raises(Cancelled):
        run(path, package, out / "labels.tif", scheduler=cluster.scheduler_address, progress=StopAt(0.3))
    assert list(out.iterdir()) == []
    monkeypatch.setattr(segment_distributed, "_CONNECT_S", 1)
    with pytest.raises(JobError, match=r"No Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        run(path, package, out / "labels.tif", scheduler="tcp://127.0.0.1:9")
    assert list(out.iterdir()) == []


def test_no_block_that_is_finished_yet_is_no_error(monkeypatch):
    """Before Python 3.11 the time-out of distributed is not the builtin one."""
    import distributed

    class OlderTimeoutError(Exception):
        pass

    def wait(*_values, **_named):
        raise OlderTimeoutError

    monkeypatch.setattr(distributed, "TimeoutError", OlderTimeoutError)
    monkeypatch.setattr(distributed, "wait", wait)
    assert segment_distributed._finished({"future": "block"}) == []


def test_polygons_cover_the_labels(model, package, raster_factory, tmp_path):
    pixels = scene(200, 180)
    pixels[0, :30] = 0
    run(raster_factory(pixels, nodata=0), package, tmp_path / "labels.tif")
    labels = read(tmp_path / "labels.tif")
    areas = {0: 0.0, 1: 0.0}
    for polygon, one in label_polygons(tmp_path / "labels.tif", CLASSES):
        assert polygon.is_valid
        areas[one.class_id] += polygon.area
    assert areas == {0: 0.25 * (labels == 0).sum(), 1: 0.25 * (labels == 1).sum()}


class Heard(NullProgress):
    """Keeps what is said."""

    def __init__(self):
        self.texts = []

    def info(self, text):
        self.texts.append(text)


def test_far_resolutions_and_none_are_told(model, package, raster_factory, tmp_path):
    heard = Heard()
    far = raster_factory(scene(40, 40), transform=Affine(3, 0, 590_000, 0, -3, 5_750_000))
    run(far, package, tmp_path / "labels.tif", progress=heard)
    assert any("scene.tif has pixels of 3 m, and 'test' was made for 0.5 m" in text for text in heard.texts)
    heard = Heard()
    run(raster_factory(scene(40, 40), crs=None), package, tmp_path / "labels.tif", progress=heard)
    assert any("no scale" in text for text in heard.texts)


def test_bad_input_is_said_in_a_sentence(model, package, raster_factory, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    nothing = raster_factory(np.zeros((1, 90, 90), np.uint8), "nothing.tif", nodata=0)
    with pytest.raises(JobError, match="has no data in this extent"):
        run(nothing, package, out / "labels.tif")
    path = raster_factory(scene(90, 90))
    with pytest.raises(RasterError, match=r"1 band.*the model sees 4"):
        run(path, package, out / "labels.tif", card=make_card(bands=tuple("rgbn"), mean=(1,) * 4, std=(1,) * 4))
    with pytest.raises(JobError, match="holds no pixel"):
        run(path, package, out / "labels.tif", bounds=(20.0, 20.0, 20.0, 20.0))
    with pytest.raises(JobError, match="replace the raster"):
        run(path, package, Path(path))
    with pytest.raises(RasterError, match=r"ends in \.tif"):
        SegmentOutputs(labels=out / "labels.png")
    with pytest.raises(JobError, match="same name"):
        SegmentOutputs(labels=out / "labels.tif", entropy=out / "labels.tif")
    with pytest.raises(RasterError, match="does not exist"):
        SegmentOutputs(labels=out / "none" / "labels.tif")
    with pytest.raises(JobError, match=r"overlap of 0\.9"):
        SegmentOptions(overlap=0.9)
    model.forward = lambda pixels: torch.full((len(pixels), 2, CHIP, CHIP), torch.nan)
    with pytest.raises(JobError, match="not finite"):
        run(path, package, out / "labels.tif")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (30, 40), (65, 64)])
def test_small_rasters(model, package, raster_factory, tmp_path, shape):
    pixels = np.full((1, *shape), 255, np.uint8)
    run(raster_factory(pixels), package, tmp_path / "labels.tif")
    assert read(tmp_path / "labels.tif").shape == shape
    assert (read(tmp_path / "labels.tif") == 1).mean() > 0.5 or shape == (1, 1)


def test_a_turned_raster_keeps_its_place(model, package, raster_factory, tmp_path):
    turned = Affine.translation(590_000, 5_750_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    pixels = scene(150, 160)
    run(raster_factory(pixels, transform=turned), package, tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.transform.almost_equals(turned, 1e-6)
    assert (read(tmp_path / "labels.tif") == direct(pixels))[8:-8, 8:-8].mean() > 0.995


_PEAK = """
import runpy, sys
runpy.run_path(sys.argv[1])
from pathlib import Path
import numpy as np, rasterio, torch
from affine import Affine
from rasterio._err import CPLE_AppDefinedError
from segadapt.processing.jobs import segment_blocks, segment_raster
from segadapt.processing.jobs.model_rasters import open_for_model
from segadapt.models.semantic.card import read_card
class Fast(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
    def forward(self, pixels):
        return torch.cat([127 - pixels, pixels - 127], dim=1)
segment_raster.open_model = lambda *_: Fast()
segment_blocks._BLOCK_WINDOWS = 10
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
package, folder = Path(sys.argv[2]), Path(sys.argv[3])
for side in (1000, 1000, 3200):
    path = folder / f"{side}.tif"
    profile = dict(driver="GTiff", count=1, height=side, width=side, dtype="uint8", tiled=True, crs="EPSG:32631")
    with rasterio.open(path, "w", transform=Affine(0.5, 0, 0, 0, -0.5, 0), compress="deflate", **profile) as dataset:
        for row in range(0, side, 100):
            dataset.write(np.full((100, side), row // 9 % 255 + 1, np.uint8), 1, window=((row, row + 100), (0, side)))
    with open_for_model(read_card(package), str(path)) as reader:
        outputs = segment_raster.SegmentOutputs(labels=folder / "labels.tif")
        options = segment_raster.SegmentOptions(device="cpu", overlap=0)
        segment_raster.segment_raster(reader, package, outputs, options=options)
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_raster(package, tmp_path):
    """Sums of all classes over the larger raster would take 82 MB, over the smaller one 8 MB."""
    command = [sys.executable, "-c", _PEAK, str(CONFTEST), str(package), str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    _, small, large = map(float, ended.stdout.split())
    assert large - small < 60


@pytest.mark.parametrize("options", [{"overlap": 0.75}, {"overlap": 0.5, "flips": True}, {"window_px": 512}])
def test_the_shipped_model_maps_the_same_wherever_windows_lie(raster_factory, tmp_path, options):
    """Below 0.5 % of the labels away from edges change with the grid: 0.2 to 0.4 %, with the usual windows 0.9 %."""
    folder = Path(segment_raster.__file__).parents[2] / "plugin/resources/sample"
    package = folder / "buildings_60cm.safetensors"
    with rasterio.open(folder / "rotterdam_50cm.tif") as dataset:
        pixels = dataset.read()
    labels = []
    for number, (col, row) in enumerate(((0, 0), (37, 23))):
        path = raster_factory(pixels[:, row:, col:], transform=Affine(0.6, 0, 590_000, 0, -0.6, 5_750_000))
        found = tmp_path / f"{number}.tif"
        run(path, package, found, card=read_card(package), **options)
        labels.append(read(found))
    whole, shifted = labels[0][23:, 37:], labels[1]
    is_inner = sum(binary_erosion(whole == value, iterations=2) for value in np.unique(whole)).astype(bool)
    # At the raster's own edges there is another surrounding, whatever the windows.
    is_inner[:64] = is_inner[-64:] = is_inner[:, :64] = is_inner[:, -64:] = False
    assert is_inner.mean() > 0.5
    assert (whole != shifted)[is_inner].mean() < 0.005
