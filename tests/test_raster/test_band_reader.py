"""Any bands at any resolution, window by window without a seam."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from segadapt.processing.errors import RasterError
from segadapt.processing.raster import band_reader
from segadapt.processing.raster.band_names import read_band_names
from segadapt.processing.raster.band_reader import open_bands


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(1, 255, (4, 90, 120)).astype(np.uint8)


def test_own_pixels_come_as_they_are(raster_factory, noise):
    with open_bands(raster_factory(noise, photometric="minisblack"), bands=(4, 1)) as reader:
        pixels, valid = reader.read(10, 20, 30, 40)
    assert np.array_equal(pixels, noise[[3, 0], 20:60, 10:40])
    assert valid.all()


@pytest.mark.parametrize("gsd_m", [0.2, 0.33, 0.8, 1.0])
def test_a_window_is_a_part_of_the_whole(raster_factory, noise, gsd_m):
    with open_bands(raster_factory(noise, photometric="minisblack"), gsd_m=gsd_m) as reader:
        rows, cols = reader.grid_shape
        whole, _ = reader.read(0, 0, cols, rows)
        part, _ = reader.read(7, 11, 20, 15)
    assert reader.gsd_m / reader.scale[0] == pytest.approx(gsd_m, rel=0.02)
    assert reader.scale[0] == reader.scale[1]
    assert np.array_equal(part, whole[:, 11:26, 7:27])


def test_a_resolution_that_is_nearly_the_same_is_left_alone(raster_factory, noise):
    with open_bands(raster_factory(noise, photometric="minisblack"), gsd_m=0.52) as reader:
        assert reader.scale == (1, 1)


@pytest.mark.parametrize("gsd_m", [0.5, 0.7, 1.0, 2.5])
@pytest.mark.parametrize(
    ("crs", "width", "height"),
    [("EPSG:32631", 0.5, 1.0), ("EPSG:32631", 2.0, 0.3), ("EPSG:4326", 1e-5, 1e-5)],
)
def test_a_circle_stays_a_circle_where_pixels_are_not_square(raster_factory, crs, width, height, gsd_m):
    """Of 40 m, 20 m beside a stripe without data; a pixel of 1e-5 degrees at 60 N is 0.56 m wide and 1.11 m high."""
    in_degrees = crs == "EPSG:4326"
    across_m, down_m = (0.55800, 1.11412) if in_degrees else (width, height)
    x, y = (np.arange(round(100 / side)) * side + side / 2 - 50 for side in (across_m, down_m))
    pixels = np.where(np.hypot(x[None], y[:, None]) < 20, 200, 50)[None].astype(np.uint8)
    pixels[:, :, np.abs(x + 44) < 4] = 0
    place = (10.0, 60.0) if in_degrees else (590_000.0, 6_650_000.0)
    path = raster_factory(pixels, crs=crs, transform=Affine(width, 0, place[0], 0, -height, place[1]), nodata=0)
    with open_bands(path, gsd_m=gsd_m) as reader:
        rows, cols = reader.grid_shape
        whole, valid = reader.read(0, 0, cols, rows)
        part, part_valid = reader.read(7, 5, 25, 20)
    assert np.array_equal(part, whole[:, 5:25, 7:32])
    assert np.array_equal(part_valid, valid[5:25, 7:32])
    assert (rows * gsd_m, cols * gsd_m) == pytest.approx((100, 100), abs=11)
    circle = whole[0] > 125
    for axis in (0, 1):
        assert circle.any(axis=axis).sum() * gsd_m == pytest.approx(40, abs=4.5)
    assert not valid[:, round(6 / gsd_m)].any()
    assert set(np.unique(whole[0][valid])) <= set(range(50, 201))


def test_beyond_the_edge_nothing_is_valid(raster_factory, noise):
    with open_bands(raster_factory(noise, photometric="minisblack")) as reader:
        pixels, valid = reader.read(-10, 80, 30, 20)
    assert valid[:10, 10:].all()
    assert not valid[10:].any()
    assert not valid[:, :10].any()
    assert np.array_equal(pixels[:, 0, 0], noise[:, 80, 0])


def test_nodata_is_not_valid(raster_factory, noise):
    noise[:, 30:50, 40:60] = 0
    with open_bands(raster_factory(noise, nodata=0, photometric="minisblack")) as reader:
        _, valid = reader.read(0, 0, 120, 90)
    assert np.array_equal(valid, ~(noise == 0).all(axis=0))


@pytest.mark.parametrize("gsd_m", [0.66, 1.0, 1.5])
def test_coarser_pixels_are_means_of_what_is_valid(raster_factory, noise, gsd_m):
    noise[:, 30:51, 40:63] = 0
    with open_bands(raster_factory(noise, nodata=0, photometric="minisblack"), gsd_m=gsd_m) as reader:
        pixels, valid = reader.read(0, 0, *reader.grid_shape[::-1])
        factor = 1 / reader.scale[0]

    def shares(place, length):
        ends = np.minimum(np.arange(length) + 1, (place + 1) * factor)
        return np.clip(ends - np.maximum(np.arange(length), place * factor), 0, 1)

    for row, col in [(0, 0), (29, 20), (10, 13), (20, 27), (22, 39)]:
        weights = np.outer(shares(row, 90), shares(col, 120)) * (noise[0] > 0)
        assert valid[row, col] == (weights.sum() > 1e-6)
        if valid[row, col]:
            assert pixels[:, row, col] == pytest.approx((noise * weights).sum(axis=(1, 2)) / weights.sum(), abs=0.51)


@pytest.mark.parametrize("nodata", [0, 255])
def test_finer_pixels_are_made_of_what_is_valid(raster_factory, nodata):
    pixels = np.full((1, 20, 30), 170, np.uint8)
    pixels[:, :, 12:] = nodata
    with open_bands(raster_factory(pixels, nodata=nodata), gsd_m=0.25) as reader:
        found, valid = reader.read(0, 0, *reader.grid_shape[::-1])
    assert valid.sum() == 40 * 24
    assert set(found[0][valid]) == {170}


@pytest.mark.parametrize("nodata", [0, None])
@pytest.mark.parametrize("gsd_m", [None, 1.0, 0.2])
def test_validity_of_the_rasters_own_pixels(raster_factory, noise, nodata, gsd_m, monkeypatch):
    monkeypatch.setattr(band_reader, "_PART_PX", 700)
    noise[:, 30:50, 40:60] = 0
    with open_bands(raster_factory(noise, nodata=nodata, photometric="minisblack"), gsd_m=gsd_m) as reader:
        valid = reader.read_valid((10, 20, 110, 87))
    assert np.array_equal(valid, (noise[0] > 0)[20:87, 10:110] | (nodata is None))


@pytest.mark.parametrize(
    ("descriptions", "names", "bands"),
    [
        (("red", "green", "blue", "NIR"), ("nir", "red", "green"), (4, 1, 2)),
        (("blue", "green", "red", "nir"), ("red", "green", "blue", "nir"), (3, 2, 1, 4)),
        (("a", "b", "c", "d"), ("band 4", "b", "Band 1"), (4, 2, 1)),
        (("a", "band 4", "c", "d"), ("band 4", "d"), (2, 4)),
        (("a", "b", "c", "d"), ("d", "d", "d"), (4, 4, 4)),
        # Not all of them, not one of each, beyond the last: the usual ones.
        (("a", "b", "c", "d"), ("d", "x", "a"), (1, 2, 3)),
        (("a", "d", "c", "d"), ("d", "c", "a"), (1, 2, 3)),
        (("a", "b", "c", "d"), ("band 5", "a"), (1, 2)),
        ((), ("nir", "red", "green"), (1, 2, 3)),
    ],
)
def test_bands_are_found_by_name(raster_factory, noise, descriptions, names, bands):
    path = raster_factory(noise, photometric="minisblack", descriptions=descriptions)
    with open_bands(path, names=names) as reader:
        assert reader.bands == bands
        pixels, _ = reader.read(0, 0, 120, 90)
    assert np.array_equal(pixels, noise[[band - 1 for band in bands]])
    with open_bands(path, names=names, bands=(2,) * len(names)) as reader:
        assert set(reader.bands) == {2}


def test_bands_without_a_name_are_found_again(raster_factory, noise):
    path = raster_factory(noise, photometric="minisblack")
    for bands in ((4, 1, 2), (1, 2, 3), (2, 4)):
        with open_bands(path, names=read_band_names(path, bands)) as reader:
            assert reader.bands == bands


def test_alpha_has_no_name_of_a_band(raster_factory, noise):
    path = raster_factory(noise, photometric="rgb", alpha="yes")
    with pytest.raises(RasterError, match="3 band"):
        open_bands(path, names=("red", "green", "blue", "band 4"))


def test_what_does_not_fit_is_said(raster_factory, noise):
    path = raster_factory(noise, photometric="minisblack")
    with pytest.raises(RasterError, match="Band 5"):
        open_bands(path, bands=(5,))
    with pytest.raises(RasterError, match="4 band"):
        open_bands(path, n_bands=6)
    with pytest.raises(RasterError, match=r"0\.5 m"):
        open_bands(path, gsd_m=30.0)
    with open_bands(path) as reader, pytest.raises(RasterError, match="no pixel"):
        reader.read(500, 0, 10, 10)
