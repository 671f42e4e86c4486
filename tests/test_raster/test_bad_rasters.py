"""Bad input: each gives one sentence that names the file and what to do."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.shutil import copy
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.reader import open_raster
from segadapt.processing.raster.windows import SquareWindow


def _cut(path: str, share: float) -> str:
    with open(path, "r+b") as file:
        file.truncate(int(os.path.getsize(path) * share))
    return path


def _message(error: pytest.ExceptionInfo[RasterError]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "compress": "deflate"}, {"compress": "lzw"}])
def test_a_truncated_geotiff_names_the_file_and_the_remedy(raster_factory, layout):
    noise = np.random.default_rng(0).integers(0, 255, (3, 600, 600), dtype=np.uint8)
    path = _cut(raster_factory(noise, **layout), 0.6)
    with open_raster(path) as reader, pytest.raises(RasterError) as error:
        reader.read_chip(SquareWindow(0, 0, 1024))
    assert path in _message(error)
    assert "copy or download it again" in _message(error)
    assert isinstance(error.value.__cause__, rasterio.errors.RasterioIOError)


def test_a_truncated_raster_that_needs_a_stretch_fails_when_opened(raster_factory):
    noise = np.random.default_rng(0).integers(0, 9999, (1, 600, 600), dtype=np.uint16)
    path = _cut(raster_factory(noise), 0.6)
    with pytest.raises(RasterError) as error:
        open_raster(path)
    assert path in _message(error)
    assert "complete raster" in _message(error)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("JP2OpenJPEG", "a.jp2"),
        ("PNG", "a.png"),
        ("COG", "a.tif"),
        ("JPEG", "a.jpg"),
        ("EHdr", "a.bil"),
        ("HFA", "b.img"),
    ],
)
def test_other_truncated_formats(raster_factory, tmp_path, driver, name):
    noise = np.random.default_rng(0).integers(0, 255, (3, 600, 600), dtype=np.uint8)
    copy(raster_factory(noise, "source.tif"), tmp_path / name, driver=driver)
    path = _cut(str(tmp_path / name), 0.5)
    with pytest.raises(RasterError, match=name), open_raster(path) as reader:
        reader.read_chip(SquareWindow(0, 0, 1024))


@pytest.mark.parametrize("content", [b"", b"no raster at all", b"II*\x00\x08\x00\x00\x00"])
def test_a_file_that_is_no_raster(tmp_path, content):
    path = tmp_path / "wrong.tif"
    path.write_bytes(content)
    with pytest.raises(RasterError) as error:
        open_raster(str(path))
    assert str(path) in _message(error)


@pytest.mark.parametrize("path", ["", "missing.tif", "/vsizip/missing.zip/a.tif"])
def test_a_file_that_is_not_there(tmp_path, path):
    with pytest.raises(RasterError, match="cannot be opened"):
        open_raster(str(tmp_path / path) if path == "missing.tif" else path)


def test_a_vrt_whose_source_is_gone(raster_factory, tmp_path):
    source = raster_factory(np.ones((3, 50, 50), np.uint8))
    copy(source, tmp_path / "scene.vrt", driver="VRT")
    os.unlink(source)
    with pytest.raises(RasterError, match=r"scene\.vrt"), open_raster(str(tmp_path / "scene.vrt")) as reader:
        reader.read_chip(SquareWindow(0, 0, 256))


def test_complex_numbers(raster_factory):
    with pytest.raises(RasterError, match="convert it to amplitudes"):
        open_raster(raster_factory(np.ones((1, 8, 8), np.complex64)))


def test_a_container_of_rasters_names_one(tmp_path):
    path = tmp_path / "two.gpkg"
    profile = {
        "driver": "GPKG",
        "height": 300,
        "width": 300,
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32631",
    }
    for table, extra in (("first", {}), ("second", {"APPEND_SUBDATASET": "YES"})):
        with rasterio.open(
            path,
            "w",
            transform=Affine.translation(0, 150) @ Affine.scale(0.5, -0.5),
            RASTER_TABLE=table,
            **profile,
            **extra,
        ) as dataset:
            dataset.write(np.full((3, 300, 300), 90, np.uint8))
    with pytest.raises(RasterError, match=r"open one of its parts, for example GPKG:.*first"):
        open_raster(str(path))
    with open_raster(f"GPKG:{path}:second") as reader:
        assert abs(int(reader.read_chip(SquareWindow(0, 0, 256)).pixels[0, 50, 50]) - 90) <= 2


def test_ground_control_points_need_a_warp(tmp_path):
    corners = [GroundControlPoint(row, col, col * 2.0, 50 - row * 2.0) for row in (0, 8) for col in (0, 8)]
    path = tmp_path / "gcps.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=8,
            width=8,
            count=1,
            dtype="uint8",
            gcps=corners,
            crs="EPSG:32631",
        ) as dataset:
            dataset.write(np.ones((1, 8, 8), np.uint8))
    with pytest.raises(RasterError, match="gdalwarp"):
        open_raster(str(path))


@pytest.mark.parametrize("window", [SquareWindow(40, 0, 256), SquareWindow(0, 40, 256), SquareWindow(-1, 0, 256)])
def test_windows_outside_the_raster(raster_factory, window):
    with open_raster(raster_factory(np.ones((1, 40, 40), np.uint8))) as reader:
        for read in (reader.read_chip, reader.valid_mask):
            with pytest.raises(RasterError, match="choose an extent inside"):
                read(window)
        with pytest.raises(RasterError, match="powers of two"):
            reader.read_chip(SquareWindow(0, 0, 256), out_px=1000)


def test_a_closed_reader_says_so(raster_factory):
    reader = open_raster(raster_factory(np.ones((1, 40, 40), np.uint8)))
    reader.close()
    reader.close()
    with pytest.raises(RasterError, match="cannot be read"):
        reader.read_chip(SquareWindow(0, 0, 256))
