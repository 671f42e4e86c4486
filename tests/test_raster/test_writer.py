"""The label raster: who gets a pixel, and that a file is whole or not there."""

from __future__ import annotations

import itertools
import resource
import signal

import numpy as np
import pytest
import rasterio
from affine import Affine
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.writer import LabelWriter

GRID = {
    "shape": (700, 900),
    "transform": Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000),
    "crs": rasterio.CRS.from_epsg(32631),
}


def _read(path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def _squares() -> list[dict]:
    """Four overlapping squares; 3 and 4 are alike in size."""
    squares = [(300, 100, 100), (150, 200, 220), (80, 250, 300), (80, 300, 330)]
    return [
        {"pixels": np.ones((side, side), bool), "row_off": row, "col_off": col, "value": number, "area_px": side * side}
        for number, (side, row, col) in enumerate(squares, 1)
    ]


def test_the_smallest_object_wins_in_every_order(tmp_path):
    expected = np.zeros(GRID["shape"], np.uint32)
    for square in sorted(_squares(), key=lambda square: (-square["area_px"], -square["value"])):
        rows, cols = square["pixels"].shape
        top, left = square["row_off"], square["col_off"]
        expected[top : top + rows, left : left + cols] = square["value"]
    assert set(np.unique(expected)) == {0, 1, 2, 3, 4}
    for order in itertools.permutations(_squares()):
        with LabelWriter(tmp_path / "labels.tif", **GRID) as writer:
            for square in order:
                writer.paint(**square)
            assert writer.commit() == tmp_path / "labels.tif"
        assert np.array_equal(_read(tmp_path / "labels.tif"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]


def test_the_file_carries_its_georeference_and_layout(tmp_path):
    with LabelWriter(tmp_path / "ünï label.tif", **GRID) as writer:
        writer.paint(np.ones((3, 3), bool), row_off=600, col_off=600, value=1, area_px=9)
        writer.commit()
    with rasterio.open(tmp_path / "ünï label.tif") as dataset:
        assert (dataset.shape, dataset.transform, dataset.crs) == (GRID["shape"], GRID["transform"], GRID["crs"])
        assert dataset.dtypes == ("uint32",)
        assert dataset.nodata == 0
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.compression.name == "deflate"
        assert dataset.get_tag_item("BLOCK_OFFSET_0_0", dm="TIFF", bidx=1) is None
        assert dataset.read(1).sum() == 9


def test_pixels_outside_the_raster_are_left_out(tmp_path):
    with LabelWriter(tmp_path / "labels.tif", **GRID) as writer:
        for number, (row, col) in enumerate([(-5, -5), (695, 895), (-20, 50), (50, 2000)], 1):
            writer.paint(np.ones((10, 10), bool), row_off=row, col_off=col, value=number, area_px=100)
        writer.paint(np.zeros((0, 0), bool), row_off=0, col_off=0, value=5, area_px=0)
        writer.commit()
    labels = _read(tmp_path / "labels.tif")
    assert np.array_equal(np.argwhere(labels == 1), np.argwhere(np.ones((5, 5))))
    assert (labels[695:, 895:] == 2).all()
    assert np.count_nonzero(labels) == 50


def test_a_plain_picture_has_labels_too(tmp_path):
    with LabelWriter(tmp_path / "labels.tif", shape=(20, 20), transform=Affine.scale(1, -1), crs=None) as writer:
        writer.paint(np.ones((2, 2), bool), row_off=0, col_off=0, value=1, area_px=4)
        writer.commit()
    assert (tmp_path / "labels.tif").exists()


def test_an_error_leaves_nothing_and_keeps_the_older_file(tmp_path):
    path = tmp_path / "labels.tif"
    path.write_bytes(b"older")

    def fail_half_way() -> None:
        with LabelWriter(path, **GRID) as writer:
            writer.paint(np.ones((3, 3), bool), row_off=0, col_off=0, value=1, area_px=9)
            assert len(list(tmp_path.iterdir())) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [file.name for file in tmp_path.iterdir()] == ["labels.tif"]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize(("value", "area"), [(0, 1), (-3, 1), (256, 1), (7, 99)])
def test_numbers_that_do_not_fit(tmp_path, value, area):
    with LabelWriter(tmp_path / "labels.tif", dtype="uint8", **GRID) as writer:
        writer.paint(np.ones((1, 1), bool), row_off=0, col_off=0, value=7, area_px=1)
        with pytest.raises(RasterError, match="Object"):
            writer.paint(np.ones((1, 1), bool), row_off=0, col_off=0, value=value, area_px=area)


def test_many_objects(tmp_path):
    """More than the writer's first list of areas holds."""
    with LabelWriter(tmp_path / "labels.tif", **GRID) as writer:
        for number in range(1, 2501):
            writer.paint(
                np.ones((1, 2), bool), row_off=number // 100, col_off=number % 100, value=number, area_px=number
            )
        writer.commit()
    labels = _read(tmp_path / "labels.tif")
    assert labels[20, 50] == 2049
    assert labels.max() == 2500


@pytest.mark.parametrize("path", ["missing folder/labels.tif", "labels.png", "/dev/null/labels.tif"])
def test_where_nothing_can_be_written(tmp_path, path):
    with pytest.raises(RasterError, match="labels") as error:
        LabelWriter(tmp_path / path, **GRID)
    assert str(error.value).endswith(".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit_bytes", "n_objects"), [(300, 0), (300, 30), (30_000, 30), (200_000, 30)])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, limit_bytes, n_objects):
    """A limit on the size of a file stands for the disk; GDAL notes most of it only when it closes the file."""
    noise = np.random.default_rng(0).random((500, 800)) < 0.5
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))

    def write() -> None:
        with LabelWriter(tmp_path / "labels.tif", **GRID) as writer:
            for number in range(1, n_objects + 1):
                writer.paint(noise, row_off=number * 3, col_off=number, value=number, area_px=1000 - number)
            writer.commit()

    try:
        with pytest.raises(RasterError, match="space left"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
