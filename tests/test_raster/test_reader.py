"""Reading: bands, scale, masks, georeference and identity, with values that are known."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.shutil import copy
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.reader import open_raster
from segadapt.processing.raster.stretch import Stretch
from segadapt.processing.raster.windows import SquareWindow, lattice_window

RNG = np.random.default_rng(0)
ROTATED = Affine.translation(590_000, 5_750_000) @ Affine.rotation(30) @ Affine.shear(10, 0) @ Affine.scale(0.5, -0.6)
WHOLE = SquareWindow(0, 0, 256)
FILL = [124, 116, 104]


def _scene(bands: int = 3, rows: int = 200, cols: int = 240, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(1, 250, (bands, rows, cols)).astype(dtype)


@pytest.mark.parametrize(
    ("count", "colours", "names", "expected"),
    [
        (1, None, (), (1, 1, 1)),
        (2, None, (), (1, 1, 1)),
        (2, [ColorInterp.alpha, ColorInterp.gray], (), (2, 2, 2)),
        (3, None, (), (1, 2, 3)),
        (4, [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined], (), (3, 2, 1)),
        (4, [ColorInterp.alpha, *[ColorInterp.undefined] * 3], (), (2, 3, 4)),
        (4, [ColorInterp.gray, *[ColorInterp.undefined] * 3], ("Blue", "Green", "Red", "NIR"), (3, 2, 1)),
        (13, None, (), (1, 2, 3)),
    ],
)
def test_default_bands(tmp_path, count, colours, names, expected):
    # A VRT stores any interpretation of any band.
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{i + 1}">'
        + (f"<Description>{names[i]}</Description>" if names else "")
        + (f"<ColorInterp>{colours[i].name.title()}</ColorInterp>" if colours else "")
        + "</VRTRasterBand>"
        for i in range(count)
    )
    path = tmp_path / "bands.vrt"
    path.write_text(f'<VRTDataset rasterXSize="10" rasterYSize="10">{bands}</VRTDataset>')
    with open_raster(str(path)) as reader:
        assert reader.bands == expected


def test_bands_in_any_order_and_one_band_three_times(raster_factory):
    pixels = _scene(13)
    path = raster_factory(pixels)
    with open_raster(path, bands=[12, 3, 8]) as reader:
        assert np.array_equal(reader.read_chip(WHOLE, out_px=256).pixels, pixels[[11, 2, 7]])
    with open_raster(path, bands=[5]) as reader:
        assert reader.bands == (5, 5, 5)
        assert np.array_equal(reader.read_chip(WHOLE, out_px=256).pixels, pixels[[4, 4, 4]])


@pytest.mark.parametrize(
    ("bands", "message"), [([14], "choose from 1 to 13"), ([0, 1, 2], "Band 0"), ([1, 2], "three")]
)
def test_wrong_bands_are_refused(raster_factory, bands, message):
    with pytest.raises(RasterError, match=message):
        open_raster(raster_factory(_scene(13, 8, 8)), bands=bands)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_every_dtype_with_the_layers_own_stretch(raster_factory, dtype):
    pixels = RNG.integers(0, 128, (3, 30, 40)).astype(dtype)
    stretch = Stretch((0.0, 10.0, 0.0), (127.0, 100.0, 255.0))
    with open_raster(raster_factory(pixels), stretch=stretch) as reader:
        assert reader.stretch == stretch
        assert np.array_equal(reader.read_chip(WHOLE, out_px=256).pixels, stretch.apply(pixels))
    with open_raster(raster_factory(pixels), bands=[2], stretch=Stretch((0.0,), (100.0,))) as reader:
        assert reader.stretch == Stretch((0.0,) * 3, (100.0,) * 3)


@pytest.mark.parametrize("overviews", [(), (2, 4)])
def test_shrinking_averages_whole_cells(raster_factory, overviews):
    pixels = _scene(3, 512, 512)
    path = raster_factory(pixels, tiled=True, blockxsize=128, blockysize=128, overviews=overviews)
    expected = pixels.reshape(3, 128, 4, 128, 4).mean(axis=(2, 4))
    with open_raster(path) as reader:
        chip = reader.read_chip(SquareWindow(0, 0, 512), out_px=128)
    assert chip.pixels.shape == (3, 128, 128)
    assert np.abs(chip.pixels - expected).max() <= 1
    assert chip.valid.all()


def test_scale_is_exact_where_the_edge_cuts_the_last_cell(raster_factory):
    """101 x 63 pixels shrunk by 2: a scale fitted to the cut cell would shift every pixel."""
    pixels = _scene(3, 101, 63)
    with open_raster(raster_factory(pixels)) as reader:
        chip = reader.read_chip(SquareWindow(0, 0, 2048), out_px=1024)
    assert chip.pixels.shape == (3, 51, 32)
    whole = pixels[:, :100, :62].reshape(3, 50, 2, 31, 2).mean(axis=(2, 4))
    assert np.abs(chip.pixels[:, :50, :31] - whole).max() <= 1
    assert np.abs(chip.pixels[:, 50, :31] - pixels[:, 100, :62].reshape(3, 31, 2).mean(axis=2)).max() <= 1
    assert np.abs(chip.pixels[:, :50, 31] - pixels[:, :100, 62].reshape(3, 50, 2).mean(axis=2)).max() <= 1
    assert np.array_equal(chip.pixels[:, 50, 31], pixels[:, 100, 62])


def test_enlarging_keeps_places(raster_factory):
    pixels = np.zeros((1, 200, 240), np.uint8)
    pixels[0, 60, 90] = 240
    with open_raster(raster_factory(pixels)) as reader:
        chip = reader.read_chip(SquareWindow(0, 0, 256), out_px=1024)
    assert chip.pixels.shape == (3, 800, 960)
    weights = chip.pixels[0].astype(float)
    rows, cols = np.indices(weights.shape)
    centre = (
        ((cols + 0.5) * weights).sum() / weights.sum() / 4,
        ((rows + 0.5) * weights).sum() / weights.sum() / 4,
    )
    assert centre == pytest.approx((90.5, 60.5))
    assert weights.sum() == pytest.approx(240 * 16, rel=0.02)


def test_a_raster_of_8_by_8(raster_factory):
    pixels = _scene(3, 8, 8)
    with open_raster(raster_factory(pixels)) as reader:
        chip = reader.read_chip(lattice_window(4, 4, size_px=256, shape=reader.shape))
        assert chip.pixels.shape == (3, 32, 32)
        assert reader.valid_mask(WHOLE).shape == (8, 8)
        assert reader.read_chip(SquareWindow(0, 0, 2048)).pixels.shape == (3, 4, 4)


def test_nodata_of_all_kinds_is_not_valid_and_grey(raster_factory):
    pixels, hole = _scene(3, 64, 64), np.zeros((64, 64), bool)
    hole[10:30, 20:50] = True
    alpha = np.where(hole, 0, 255).astype(np.uint8)[None]
    floats = pixels.astype(np.float32)
    infinite = np.where(hole, np.inf, floats).astype(np.float32)
    variants = {
        "nodata": raster_factory(np.where(hole, 0, pixels), "nodata.tif", nodata=0),
        "mask": raster_factory(pixels, "mask.tif", mask=~hole),
        "alpha": raster_factory(np.concatenate([pixels, alpha]), "alpha.tif", photometric="rgb", alpha="yes"),
        "nan": raster_factory(np.where(hole, np.nan, floats).astype(np.float32), "nan.tif"),
        "nan nodata": raster_factory(np.where(hole, np.nan, floats).astype(np.float32), "nn.tif", nodata=np.nan),
        "infinite": raster_factory(infinite, "inf.tif"),
    }
    for kind, path in variants.items():
        with open_raster(path, stretch=Stretch((0.0,) * 3, (255.0,) * 3)) as reader:
            assert np.array_equal(reader.valid_mask(WHOLE), ~hole), kind
            for out_px, factor in ((256, 1), (1024, 4)):
                chip = reader.read_chip(WHOLE, out_px=out_px)
                large = hole.repeat(factor, axis=0).repeat(factor, axis=1)
                assert np.array_equal(chip.valid, ~large), kind
                assert (chip.pixels[:, large].T == FILL).all(), kind
            assert np.array_equal(reader.read_chip(WHOLE, out_px=256).pixels[:, ~hole], pixels[:, ~hole]), kind
            shrunk = reader.read_chip(WHOLE, out_px=128)
            assert np.array_equal(shrunk.valid, ~hole[::2, ::2]), kind
            # Data beside the hole must not be mixed with what is in it.
            expected = pixels.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
            assert np.abs(shrunk.pixels - expected)[:, shrunk.valid].max() <= 1, kind


def test_a_black_value_in_one_band_is_data(raster_factory):
    pixels = _scene(3, 20, 20)
    pixels[1, 5, 5] = 0
    pixels[:, 7, 7] = 0
    with open_raster(raster_factory(pixels, nodata=0)) as reader:
        assert np.argwhere(~reader.valid_mask(WHOLE)).tolist() == [[7, 7]]
        assert np.argwhere(~reader.read_chip(WHOLE, out_px=256).valid).tolist() == [[7, 7]]
        assert reader.read_chip(WHOLE, out_px=256).pixels[:, 5, 5].tolist() == [
            pixels[0, 5, 5],
            116,
            pixels[2, 5, 5],
        ]


def test_nodata_everywhere(raster_factory):
    path = raster_factory(np.full((3, 40, 40), -1, np.int16), nodata=-1)
    with open_raster(path) as reader:
        chip = reader.read_chip(WHOLE)
        assert not chip.valid.any()
        assert not reader.valid_mask(WHOLE).any()
        assert (chip.pixels == np.array(FILL, np.uint8)[:, None, None]).all()
        assert reader.stretch.low < reader.stretch.high


def test_a_palette_becomes_colours(raster_factory):
    colours = {0: (255, 0, 0, 255), 1: (0, 0, 255, 255), 2: (9, 8, 7, 0)}
    entries = RNG.integers(0, 3, (1, 50, 60), dtype=np.uint8)
    entries[0, 0, 0] = 200  # an entry that the palette below leaves black
    with open_raster(raster_factory(entries, photometric="palette", colormap=colours)) as reader:
        chip = reader.read_chip(WHOLE, out_px=256)
        table = np.zeros((256, 4), np.uint8)
        table[:, 3] = 255
        for entry, colour in colours.items():
            table[entry] = colour
        # GeoTIFF palettes have no transparency, so entry 2 is a colour as well.
        assert np.array_equal(chip.pixels, np.moveaxis(table[entries[0]][..., :3], -1, 0))
        assert reader.bands == (1, 1, 1)
        assert reader.read_chip(WHOLE).pixels.shape == (3, 200, 240)
        assert set(np.unique(reader.read_chip(WHOLE, out_px=128).pixels[0])) <= {0, 9, 255}


@pytest.mark.parametrize("transform", [ROTATED, Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000)])
def test_pixels_and_map_coordinates_go_round(raster_factory, transform):
    with open_raster(raster_factory(_scene(), transform=transform)) as reader:
        pixel_xy = RNG.uniform(-10, 300, (50, 2))
        map_xy = reader.to_map(pixel_xy)
        assert np.allclose(reader.to_pixels(map_xy), pixel_xy, atol=1e-6)
        assert map_xy[0] == pytest.approx(transform @ tuple(pixel_xy[0]))
        with rasterio.open(reader.path) as dataset:
            assert reader.to_map([[7.5, 3.5]])[0] == pytest.approx(dataset.xy(3, 7))
        assert reader.to_map(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        # 100 px of 0.5 m; the scale of UTM at 3 degrees east, its central meridian, is 0.9996.
        ("EPSG:32631", Affine(0.5, 0, 500_000, 0, -0.5, 5_750_000), 0.5 / 0.9996),
        # Web Mercator at 60 degrees north: half, but for the radii of the ellipsoid there (N and M of WGS 84).
        ("EPSG:3857", Affine(1, 0, 0, 0, -1, 8_399_737.89), (0.501260 * 0.500417) ** 0.5),
        # One arc second at the equator: 30.922 m east, 30.715 m north.
        ("EPSG:4326", Affine(1 / 3600, 0, 10, 0, -1 / 3600, 0), (30.9221 * 30.7150) ** 0.5),
        # US survey feet.
        ("EPSG:2263", Affine(1, 0, 984_250, 0, -1, 200_000), 0.3048006),
        (
            "EPSG:32631",
            Affine(0.5, 0, 500_000, 0, -0.5, 5_750_000) @ Affine.rotation(30) @ Affine.shear(20, 0),
            0.5002,
        ),
    ],
)
def test_ground_sample_distance(raster_factory, crs, transform, expected):
    with open_raster(raster_factory(_scene(1, 10, 10), crs=crs, transform=transform)) as reader:
        assert reader.gsd_m == pytest.approx(expected, rel=3e-4)


def test_without_crs_there_is_no_ground_distance_until_one_is_given(raster_factory):
    path = raster_factory(_scene(1, 10, 10), crs=None)
    with open_raster(path) as reader:
        assert reader.crs is None
        assert reader.gsd_m is None
    with open_raster(path, crs_wkt=rasterio.CRS.from_epsg(32631).to_wkt()) as reader:
        assert reader.crs.to_epsg() == 32631
        assert reader.gsd_m == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(RasterError, match="choose another CRS"):
        open_raster(path, crs_wkt="nonsense")


def test_a_plain_picture_lies_where_qgis_shows_it(raster_factory, tmp_path):
    path = str(tmp_path / "picture.png")
    copy(raster_factory(_scene(), crs=None), path, driver="PNG")
    (tmp_path / "picture.png.aux.xml").unlink()
    with open_raster(path) as reader:
        assert reader.to_map([[10, 20]]).tolist() == [[10, -20]]
        assert reader.read_chip(WHOLE).valid.all()


class _OneAtATime:
    """A dataset that notes when a read starts while another is going on: GDAL's handles are not thread-safe."""

    def __init__(self, dataset: object) -> None:
        self._dataset, self._n_readers, self.was_shared = dataset, 0, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._dataset, name)

    def read(self, *args: object, **kwargs: object) -> np.ndarray:
        self._n_readers += 1
        self.was_shared |= self._n_readers > 1
        time.sleep(0.005)
        pixels = self._dataset.read(*args, **kwargs)
        self._n_readers -= 1
        return pixels


def test_threads_may_share_a_reader(raster_factory):
    pixels, wrong = _scene(3, 600, 600), []
    with open_raster(raster_factory(pixels, tiled=True, blockxsize=64, blockysize=64)) as reader:
        reader._dataset = watched = _OneAtATime(reader._dataset)

        def read(offset: int) -> None:
            for step in range(5):
                expected = pixels[:, 30 * step : 30 * step + 256, offset : offset + 256]
                chip = reader.read_chip(SquareWindow(offset, 30 * step, 256), out_px=256)
                if not np.array_equal(chip.pixels, expected):
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(offset,)) for offset in (0, 50, 200, 340)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert not watched.was_shared


def test_reading_leaves_the_environment_alone(raster_factory):
    before = dict(os.environ)
    with open_raster(raster_factory(_scene(3, 20, 20))) as reader:
        reader.read_chip(WHOLE)
    assert dict(os.environ) == before
