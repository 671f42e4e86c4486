"""Rasters that are drawn while they are read: blocks as files, asked for when a window needs them."""

from __future__ import annotations

import html
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ..errors import RasterError
from .access import gdal_access
from .reader import RasterReader
from .stretch import Stretch
from .windows import SquareWindow

_BLOCK_PX = 512
_LIMIT_BYTES = 2 * 2**30
_COLOURS = ("Red", "Green", "Blue", "Alpha")

Block = tuple[int, int]


class Grid(Protocol):
    """What is read of a grid of blocks; the grid itself is described where it is made, among QGIS's things."""

    @property
    def folder(self) -> Path:
        """Where the blocks lie."""

    @property
    def key(self) -> str:
        """Name of what the blocks look like."""

    @property
    def units_per_px(self) -> float:
        """Side of a pixel in map units."""

    @property
    def first_col(self) -> int:
        """Column of the first block, from the origin of the CRS."""

    @property
    def first_row(self) -> int:
        """Row of the first block, downwards from the origin of the CRS."""

    @property
    def n_cols(self) -> int:
        """Blocks side by side."""

    @property
    def n_rows(self) -> int:
        """Blocks one below the other."""

    def path(self, block: Block) -> Path:
        """Where a block lies once it is drawn."""

    def blocks(self, left_px: float, top_px: float, right_px: float, bottom_px: float) -> Iterator[Block]:
        """Yield the blocks that meet a rectangle in pixels."""


Fetch = Callable[[Sequence[Block]], None]
"""Has blocks drawn, and returns when all of them are there."""


class RenderedReader(RasterReader):
    """A raster of blocks; whatever a read needs is there before it, since `fetch` draws it and waits.

    It never changes: what looks otherwise has another key. Make it with `open_rendered`.
    """

    def __init__(self, dataset: DatasetReader, grid: Grid, *, crs_wkt: str, fetch: Fetch) -> None:
        stretch = Stretch((0.0,) * 3, (255.0,) * 3)
        super().__init__(dataset, dataset.name, bands=(1, 2, 3), stretch=stretch, crs=CRS.from_wkt(crs_wkt))
        # Not of the file, which names blocks that are still to come.
        self.identity = f"rendered|{grid.key}|{grid.first_col}|{grid.first_row}"
        self._grid, self._crs_wkt, self._fetch = grid, crs_wkt, fetch

    def missing_blocks(self, window: SquareWindow) -> list[Block]:
        """Blocks that reading a window would have to wait for."""
        rows, cols = window.inside(self.shape)
        return self._missing(Window(window.col_off, window.row_off, cols, rows))

    def is_changed(self) -> bool:
        """Return False."""
        return False

    def _missing(self, window: Window) -> list[Block]:
        wanted = self._grid.blocks(
            window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height
        )
        # Looked up each time: another window of QGIS may prune what was there.
        return [block for block in wanted if not self._grid.path(block).exists()]

    def _read(
        self, window: Window, *, out_shape: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        missing = self._missing(window)
        if missing:
            self._fetch(missing)
        with suppress(OSError):  # pruned at this moment
            os.utime(self._grid.folder)
        try:
            return self._read_there(window, out_shape=out_shape)
        except RasterError:
            missing = self._missing(window)
            if not missing:
                raise
        self._fetch(missing)
        return self._read_there(window, out_shape=out_shape)

    def _read_there(
        self, window: Window, *, out_shape: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        try:
            return super()._read(window, out_shape=out_shape)
        except RasterError:
            # GDAL takes a block that it did not find once for an empty one from then on.
            with self._lock:
                self._dataset.close()
                self._dataset = _open_vrt(self._grid, self._crs_wkt)
            raise


def open_rendered(grid: Grid, *, crs_wkt: str, fetch: Fetch) -> RenderedReader:
    """Open a grid of blocks, none of which need be there.

    `fetch` is called with the blocks that a read lacks and returns when all of them are there; what it raises
    leaves the read. Raises `RasterError` where the folder cannot be written.
    """
    return RenderedReader(_open_vrt(grid, crs_wkt), grid, crs_wkt=crs_wkt, fetch=fetch)


def prune_rendered(folder: Path, *, keep: Path, limit_bytes: int = _LIMIT_BYTES) -> None:
    """Remove the grids that were used longest ago where all in `folder` hold more than the limit, never `keep`."""
    try:
        grids = sorted((grid.stat().st_mtime_ns, grid) for grid in folder.iterdir() if grid.is_dir())
        sizes = {grid: sum(file.stat().st_size for file in grid.iterdir()) for _, grid in grids}
    except OSError:  # another process prunes, or there is nothing yet
        return
    used = sum(sizes.values())
    for _, grid in grids:
        if used <= limit_bytes:
            return
        if grid != keep:
            shutil.rmtree(grid, ignore_errors=True)
            used -= sizes[grid]


def _open_vrt(grid: Grid, crs_wkt: str) -> DatasetReader:
    path = grid.folder / f"part_{grid.first_col}_{grid.first_row}_{grid.n_cols}_{grid.n_rows}.vrt"
    with gdal_access(str(path), verb="written", remedy="choose another cache folder in Settings"):
        grid.folder.mkdir(parents=True, exist_ok=True)
        os.utime(grid.folder)  # the folder used last is the last to be pruned
        part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part")
        part.write_text(_vrt(grid, crs_wkt), encoding="utf-8")
        part.replace(path)
        return rasterio.open(path)


def _vrt(grid: Grid, crs_wkt: str) -> str:
    side = _BLOCK_PX * grid.units_per_px
    left, top = grid.first_col * side, -grid.first_row * side
    bands = "\n".join(_band_xml(grid, band, colour) for band, colour in enumerate(_COLOURS, 1))
    return (
        f'<VRTDataset rasterXSize="{grid.n_cols * _BLOCK_PX}" rasterYSize="{grid.n_rows * _BLOCK_PX}">\n'
        f"<SRS>{html.escape(crs_wkt)}</SRS>\n"
        f"<GeoTransform>{left!r}, {grid.units_per_px!r}, 0.0, {top!r}, 0.0, {-grid.units_per_px!r}</GeoTransform>\n"
        f"{bands}\n</VRTDataset>\n"
    )


def _band_xml(grid: Grid, band: int, colour: str) -> str:
    rectangle = f'xSize="{_BLOCK_PX}" ySize="{_BLOCK_PX}"'
    sources = "\n".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1" shared="0">{grid.path((col, row)).name}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{_BLOCK_PX}" RasterYSize="{_BLOCK_PX}" DataType="Byte" '
        f'BlockXSize="{_BLOCK_PX}" BlockYSize="{_BLOCK_PX}"/>'
        f'<SrcRect xOff="0" yOff="0" {rectangle}/>'
        f'<DstRect xOff="{(col - grid.first_col) * _BLOCK_PX}" yOff="{(row - grid.first_row) * _BLOCK_PX}" '
        f"{rectangle}/></SimpleSource>"
        for row in range(grid.first_row, grid.first_row + grid.n_rows)
        for col in range(grid.first_col, grid.first_col + grid.n_cols)
    )
    return (
        f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp>\n{sources}\n</VRTRasterBand>'
    )
