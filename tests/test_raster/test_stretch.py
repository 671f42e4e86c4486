"""The stretch: values, stability over the scene, and an estimate that stays cheap on any raster."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from segadapt.processing.errors import RasterError
from segadapt.processing.raster import sampling
from segadapt.processing.raster.reader import open_raster
from segadapt.processing.raster.stretch import Stretch, estimate_stretch
from segadapt.processing.raster.windows import SquareWindow, lattice_window


def _estimate(path: str, bands: tuple[int, ...] = (1,)) -> Stretch:
    with rasterio.open(path) as dataset:
        return estimate_stretch(dataset, bands)


def test_apply_maps_low_to_black_high_to_white_and_clips():
    stretch = Stretch((100.0,), (200.0,))
    values = np.array([[[0, 100, 150, 200, 999]]], np.uint16)
    assert stretch.apply(values).tolist() == [[[0, 0, 128, 255, 255]]]
    wild = np.array([[[np.nan, -np.inf, np.inf, 150.0]]])
    assert stretch.apply(wild).tolist() == [[[0, 0, 255, 128]]]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_apply_agrees_for_every_dtype(dtype):
    values = np.linspace(-100, 127, 50).clip(0 if dtype.startswith("u") else -100).reshape(1, 5, 10).astype(dtype)
    expected = np.rint((values.astype(np.float64) - 10) * 255 / 90).clip(0, 255)
    assert np.array_equal(Stretch((10.0,), (100.0,)).apply(values), expected)


def test_large_integers_keep_their_difference():
    values = np.array([[[4_000_000_000, 4_000_000_050, 4_000_000_100]]], np.uint32)
    assert Stretch((4e9,), (4e9 + 100,)).apply(values).tolist() == [[[0, 128, 255]]]


def test_a_constant_band_becomes_grey():
    assert Stretch((7.0,), (7.0,)).apply(np.array([[[6, 7, 8]]], np.int16)).tolist() == [[[0, 128, 255]]]


def test_key_and_refusals():
    assert Stretch((1.0, 2.0), (3.0, 4.0)).as_key() == (1.0, 2.0, 3.0, 4.0)
    for low, high in [
        ((1.0,), (0.0,)),
        ((np.nan,), (1.0,)),
        ((0.0,), (np.inf,)),
        ((), ()),
        ((0.0,), (1.0, 2.0)),
    ]:
        with pytest.raises(RasterError):
            Stretch(low, high)
    with pytest.raises(RasterError, match="2 bands for a stretch of 1"):
        Stretch((0.0,), (1.0,)).apply(np.zeros((2, 1, 1)))


def test_eight_bit_keeps_its_values(raster_factory):
    pixels = np.random.default_rng(0).integers(30, 60, (3, 50, 40), dtype=np.uint8)
    with open_raster(raster_factory(pixels)) as reader:
        assert reader.stretch == Stretch((0.0,) * 3, (255.0,) * 3)
        assert np.array_equal(reader.read_chip(SquareWindow(0, 0, 256), out_px=256).pixels, pixels)


def test_percentiles_ignore_nodata_nan_and_infinities(raster_factory):
    good = np.random.default_rng(0).normal(1000, 100, (1, 400, 500)).astype(np.float32)
    low, high = np.percentile(good[good != -9999], (2, 98))
    pixels = good.copy()
    pixels[0, :100] = -9999
    pixels[0, 100:150] = np.nan
    pixels[0, 150:160, ::2] = np.inf
    stretch = _estimate(raster_factory(pixels, nodata=-9999))
    assert stretch.low[0] == pytest.approx(low, abs=3)
    assert stretch.high[0] == pytest.approx(high, abs=3)


def test_percentiles_ignore_transparent_and_masked_pixels(raster_factory):
    colour = np.random.default_rng(0).integers(1000, 2000, (1, 300, 300), dtype=np.uint16)
    colour[0, :150] = 60_000
    shown = np.zeros((300, 300), bool)
    shown[150:] = True
    alpha = (shown * 65535).astype(np.uint16)[None]
    with_alpha = raster_factory(
        np.concatenate([colour, alpha]), "alpha.tif", colorinterp=[ColorInterp.gray, ColorInterp.alpha]
    )
    masked = raster_factory(colour, "mask.tif", mask=shown)
    for path in (with_alpha, masked):
        stretch = _estimate(path)
        assert 1000 <= stretch.low[0] < 1030
        assert 1970 < stretch.high[0] < 2000


def test_undeclared_black_border_is_left_out(raster_factory):
    pixels = np.zeros((1, 400, 400), np.uint16)
    pixels[0, 150:200, 150:200] = np.random.default_rng(0).integers(300, 900, (50, 50))
    assert _estimate(raster_factory(pixels)).low[0] > 300


@pytest.mark.parametrize(
    ("dtype", "high"), [("uint16", 65535), ("int16", 32767), ("int32", 65535), ("float32", 1), ("float64", 1)]
)
@pytest.mark.parametrize("nodata", [None, 0])
def test_nothing_but_zeros_or_nodata_keeps_a_usable_range(raster_factory, dtype, high, nodata):
    stretch = _estimate(raster_factory(np.zeros((1, 60, 60), dtype), nodata=nodata))
    assert stretch == Stretch((0.0,), (float(high),))


def test_one_stretch_for_every_window(raster_factory):
    """Dark on the left and bright on the right: a stretch taken from a window would differ between both."""
    pixels = np.linspace(200, 3000, 700).astype(np.uint16)[None, None].repeat(700, axis=1).repeat(3, axis=0)
    path = raster_factory(pixels)
    chips, stretches = [], []
    for centre in (130, 250, 560):
        with open_raster(path) as reader:
            chips.append(reader.read_chip(lattice_window(centre, 300, size_px=256, shape=reader.shape), out_px=256))
            stretches.append(reader.stretch)
    assert len(set(stretches)) == 1
    # The same place seen through two windows, in columns 128..256 of the raster, is the same chip.
    assert np.array_equal(chips[0].pixels[:, :, 128:256], chips[1].pixels[:, :, :128])
    assert chips[0].pixels.mean() < 100 < 150 < chips[2].pixels.mean()


def test_overviews_give_nearly_the_same_stretch(raster_factory):
    ramp = np.add.outer(np.arange(3000), np.arange(2000)).astype(np.uint16)[None]
    plain = _estimate(raster_factory(ramp, "plain.tif", tiled=True))
    with_overviews = _estimate(raster_factory(ramp, "overviews.tif", tiled=True, overviews=[2, 4]))
    assert with_overviews.low[0] == pytest.approx(plain.low[0], abs=20)
    assert with_overviews.high[0] == pytest.approx(plain.high[0], abs=20)


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 256, "blockysize": 256}, {"blockysize": 1}])
def test_a_large_raster_is_sampled_by_blocks(raster_factory, monkeypatch, layout):
    """With limits made small, the sample must still show the whole raster, and be the same each time."""
    monkeypatch.setattr(sampling, "_WHOLE_READ_PX", 2**18)
    ramp = np.add.outer(np.arange(3000), np.arange(2000)).astype(np.uint16)[None]
    path = raster_factory(ramp, **layout)
    stretch = _estimate(path)
    low, high = np.percentile(ramp, (2, 98))
    assert stretch.low[0] == pytest.approx(low, abs=0.15 * ramp.max())
    assert stretch.high[0] == pytest.approx(high, abs=0.15 * ramp.max())
    assert _estimate(path) == stretch
    with rasterio.open(path) as dataset:
        reads = sampling._plan(dataset)
        assert sum(rows * cols for _, (rows, cols) in reads) < ramp.size * 0.8


def test_overviews_of_a_raster_in_strips_are_read_by_tiles(raster_factory, monkeypatch):
    """A strip of an overview would cost all the tiles that it crosses."""
    monkeypatch.setattr(sampling, "_WHOLE_READ_PX", 2**18)
    path = raster_factory(np.zeros((1, 2000, 3000), np.uint16), overviews=[2])
    with rasterio.open(path) as dataset:
        shapes = [shape for _, shape in sampling._plan(dataset)]
    assert len(shapes) == 6
    assert max(shapes) == (512, 512)


def test_the_few_written_blocks_of_a_sparse_raster_are_found(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {
        "driver": "GTiff",
        "height": 40_000,
        "width": 40_000,
        "count": 1,
        "dtype": "uint16",
        "tiled": True,
    }
    with rasterio.open(path, "w", sparse_ok=True, crs="EPSG:32631", transform=rasterio.Affine.scale(2), **profile) as d:
        values = np.random.default_rng(0).integers(500, 1500, (1, 300, 300), dtype=np.uint16)
        d.write(values, window=((31_000, 31_300), (7_000, 7_300)))
    stretch = _estimate(str(path))
    assert stretch.low[0] == pytest.approx(520, abs=10)
    assert stretch.high[0] == pytest.approx(1480, abs=10)
