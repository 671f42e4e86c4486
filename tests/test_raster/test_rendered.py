"""Rasters of blocks that are drawn on demand: what is missing is fetched before it is read, and only that."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.rendered import open_rendered, prune_rendered
from segadapt.processing.raster.windows import SquareWindow

UTM = rasterio.crs.CRS.from_epsg(32631).to_wkt()
SIDE = 512


@dataclass(frozen=True)
class Grid:
    """As the one of the plugin, without QGIS."""

    folder: Path
    key: str = "look"
    units_per_px: float = 0.5
    first_col: int = 10
    first_row: int = -20
    n_cols: int = 4
    n_rows: int = 3

    def path(self, block):
        return self.folder / f"{block[0]}_{block[1]}.tif"

    def blocks(self, left_px, top_px, right_px, bottom_px):
        for row in range(int(top_px // SIDE), int(-(-bottom_px // SIDE))):
            for col in range(int(left_px // SIDE), int(-(-right_px // SIDE))):
                yield self.first_col + col, self.first_row + row

    def draw(self, blocks):
        """Each block in a colour of its own; the upper left pixel is transparent."""
        for col, row in blocks:
            pixels = np.empty((4, SIDE, SIDE), np.uint8)
            pixels[:] = np.array([col * 10, -row * 10, 7, 255])[:, None, None]
            pixels[3, 0, 0] = 0
            profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 4, "dtype": "uint8"}
            transform = Affine(0.5, 0, col * SIDE * 0.5, 0, -0.5, -row * SIDE * 0.5)
            with rasterio.open(self.path((col, row)), "w", transform=transform, **profile) as dataset:
                dataset.write(pixels)


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path / "rendered" / "look")


def test_a_read_fetches_what_is_missing_and_lies_where_the_blocks_lie(grid):
    fetched = []
    window = SquareWindow(256, 256, 512)

    def fetch(blocks):
        fetched.append(list(blocks))
        grid.draw(blocks)

    with open_rendered(grid, crs_wkt=UTM, fetch=fetch) as reader:
        assert reader.shape == (3 * SIDE, 4 * SIDE)
        assert reader.to_map([(0, 0)]).tolist() == [[10 * SIDE * 0.5, 20 * SIDE * 0.5]]
        assert fetched == []  # opening needs no block
        corner = [(10, -20), (11, -20), (10, -19), (11, -19)]
        assert reader.missing_blocks(window) == corner
        chip = reader.read_chip(window, out_px=512)
        assert fetched == [corner]
        assert chip.pixels[:, 0, 0].tolist() == [100, 200, 7]
        assert chip.pixels[:, 255, 256].tolist() == [110, 200, 7]
        assert chip.pixels[:, 256, 255].tolist() == [100, 190, 7]
        assert np.argwhere(~chip.valid).tolist() == [[256, 256]]
        assert reader.missing_blocks(window) == []
        reader.read_chip(window, out_px=512)
        assert len(fetched) == 1
        # What came since is no change of the raster, and its embeddings stay valid.
        assert not reader.is_changed()
        identity = reader.identity
    with open_rendered(grid, crs_wkt=UTM, fetch=fetch) as reader:
        assert reader.identity == identity
        assert reader.read_chip(window, out_px=512).pixels[:, 0, 0].tolist() == [100, 200, 7]
    assert len(fetched) == 1


def test_what_cannot_be_drawn_leaves_the_read(grid):
    def fetch(_blocks):
        raise RasterError("The server is asleep; try again.")

    with open_rendered(grid, crs_wkt=UTM, fetch=fetch) as reader, pytest.raises(RasterError, match="asleep"):
        reader.read_chip(SquareWindow(0, 0, 256), out_px=256)


def test_what_another_window_prunes_is_drawn_again(grid):
    fetched, windows = [], [SquareWindow(512 * col, 0, 512) for col in range(4)]
    pruned_at_once = {3, 5, 6}

    def fetch(blocks):
        fetched.append(list(blocks))
        grid.folder.mkdir(exist_ok=True)
        grid.draw(blocks)
        if len(fetched) in pruned_at_once:  # before they are read
            shutil.rmtree(grid.folder)

    with open_rendered(grid, crs_wkt=UTM, fetch=fetch) as reader:
        reader.read_chip(windows[0])
        os.utime(grid.folder, (1, 1))
        reader.read_chip(windows[0])
        assert grid.folder.stat().st_mtime > 1  # what is in use is the last to be pruned
        fetch([(11, -20)])
        assert reader.missing_blocks(windows[1]) == []
        shutil.rmtree(grid.folder)
        assert reader.missing_blocks(windows[1]) == [(11, -20)]
        fetched.pop()
        assert reader.read_chip(windows[1]).pixels[:, 5, 5].tolist() == [110, 200, 7]
        assert reader.read_chip(windows[2]).pixels[:, 5, 5].tolist() == [120, 200, 7]
        assert fetched == [[(10, -20)], [(11, -20)], [(12, -20)], [(12, -20)]]
        with pytest.raises(RasterError, match="cannot be read"):
            reader.read_chip(windows[3])
        assert reader.read_chip(windows[3]).pixels[:, 5, 5].tolist() == [130, 200, 7]


def test_the_pictures_used_longest_ago_are_pruned(tmp_path):
    grids = [Grid(tmp_path / f"look {number}") for number in range(3)]
    for age, grid in enumerate(grids):
        grid.folder.mkdir()
        (grid.folder / "0_0.tif").write_bytes(bytes(1000))
        os.utime(grid.folder, (1000 + age, 1000 + age))
    prune_rendered(tmp_path, keep=grids[0].folder, limit_bytes=3000)
    assert len(list(tmp_path.iterdir())) == 3
    prune_rendered(tmp_path, keep=grids[0].folder, limit_bytes=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look 0", "look 2"]
    prune_rendered(tmp_path, keep=grids[0].folder, limit_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["look 0"]
    prune_rendered(tmp_path / "not there", keep=grids[0].folder)


def test_a_file_that_is_written_or_goes_is_a_change(raster_factory):
    from segadapt.processing.raster.reader import open_raster

    path = raster_factory(np.zeros((3, 32, 32), np.uint8))
    with open_raster(path) as reader:
        assert not reader.is_changed()
        Path(f"{path}.aux.xml").write_text("<PAMDataset/>")  # QGIS's statistics
        assert not reader.is_changed()
        os.utime(path, (1, 1))
        assert reader.is_changed()
    with open_raster(path) as reader:
        assert not reader.is_changed()
        Path(path).unlink()
        assert reader.is_changed()
