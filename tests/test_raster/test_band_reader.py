"""Any bands at any resolution, window by window without a seam."""

from __future__ import annotations

import numpy as np
import pytest
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
    assert reader.gsd_m / reader.scale == pytest.approx(gsd_m, rel=0.02)
    assert np.array_equal(part, whole[:, 11:26, 7:27])


def test_a_resolution_that_is_nearly_the_same_is_left_alone(raster_factory, noise):
    with open_bands(raster_factory(noise, photometric="minisblack"), gsd_m=0.52) as reader:
        assert reader.scale == 1


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
        factor = 1 / reader.scale

    def shares(place, length):
        ends = np.minimum(np.arange(length) + 1, (place + 1) * factor)
        return np.clip(ends - np.maximum(np.arange(length), place * factor), 0, 1)

    for row, col in [(0, 0), (29, 20), (10, 13), (20, 27), (22, 39)]:
        weights = np.outer(shares(row, 90), shares(col, 120)) * (noise[0] > 0)
        assert valid[row, col] == (weights.sum() > 1e-6)
        if valid[row, col]:
            assert pixels[:, row, col] == pytest.approx((noise * weights).sum(axis=(1, 2)) / weights.sum(), abs=0.51)


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
