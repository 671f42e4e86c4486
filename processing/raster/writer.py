"""Label rasters written object by object, where memory does not grow with the raster."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from ..errors import RasterError
from .access import gdal_access

_REMEDY = "choose a folder that you may write to, with space left"
_NO_AREA = np.iinfo(np.int64).max


class LabelWriter:
    """A GeoTIFF of object numbers: sparse, tiled, compressed; `nodata` where no object is.

    It grows under a temporary name beside `path`. `commit` puts it in place; leaving the `with` block without
    it, by an error or a cancel, removes it and leaves an older file at `path` as it was. Raises `RasterError`
    where the file cannot be written. `tags` go into the file's metadata.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shape: tuple[int, int],
        transform: Affine,
        crs: CRS | None,
        dtype: str = "uint32",
        nodata: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".tif", ".tiff"):
            raise RasterError(f"{path} would hold a GeoTIFF; give a name that ends in .tif.")
        self._nodata = nodata
        self._largest = int(np.iinfo(dtype).max)
        self._areas_px = np.full(1024, _NO_AREA, np.int64)
        # Hidden and unique: a second run must not write into the first one's file.
        self._part = self.path.with_name(f".{self.path.stem}-{secrets.token_hex(4)}.part.tif")
        with self._access(), warnings.catch_warnings():
            # A plain picture has no georeference to lose.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._dataset = rasterio.open(
                self._part,
                "w+",
                driver="GTiff",
                height=shape[0],
                width=shape[1],
                count=1,
                dtype=dtype,
                nodata=nodata,
                crs=crs,
                transform=transform,
                tiled=True,
                blockxsize=512,
                blockysize=512,
                compress="DEFLATE",  # ZSTD is not in every GDAL that may read this
                zlevel=1,  # labels are flat: higher levels only cost time
                bigtiff="IF_SAFER",
                sparse_ok=True,
            )
            self._dataset.update_tags(**(tags or {}))

    def __enter__(self) -> LabelWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written, unless `commit` put it in place."""
        self.discard()

    def paint(self, pixels: npt.NDArray[np.bool_], *, row_off: int, col_off: int, value: int, area_px: int) -> None:
        """Give the True pixels of `pixels` (rows, cols), placed at (`row_off`, `col_off`), to object `value`.

        A pixel belongs to the smallest object that covers it (of two alike, the lower number), whatever the
        order of painting. `area_px` is the size of the whole object, the same in each of its parts; numbers
        are 1..n without gaps, since one size per number is kept. Parts beyond the raster's edge are left out.
        """
        self._remember(value, area_px=area_px)
        top, left = max(0, -row_off), max(0, -col_off)
        rows = min(pixels.shape[0], self._dataset.height - row_off) - top
        cols = min(pixels.shape[1], self._dataset.width - col_off) - left
        if rows <= 0 or cols <= 0:
            return
        pixels = pixels[top : top + rows, left : left + cols]
        window = Window(col_off + left, row_off + top, cols, rows)
        with self._access():
            labels = self._dataset.read(1, window=window)
            wins = pixels & self._is_beaten(labels, value=value, area_px=area_px)
            if wins.any():
                labels[wins] = value
                self._dataset.write(labels, 1, window=window)

    def commit(self) -> Path:
        """Finish the file and put it at `path`, replacing what was there; return the path."""
        with self._access():
            self._flush()
            self._dataset.close()
            self._check_complete()
            self._part.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Remove the unfinished file; does nothing after `commit`."""
        # What cannot be flushed any more is not wanted either.
        with suppress(RasterError), self._access():
            self._dataset.close()
        self._part.unlink(missing_ok=True)

    def _access(self) -> AbstractContextManager[None]:
        return gdal_access(str(self.path), verb="written", remedy=_REMEDY)

    def _flush(self) -> None:
        """Write what GDAL still holds, now: a full disk that it meets while closing goes unreported."""
        with rasterio.Env(GDAL_CACHEMAX=0):
            corner = Window(0, 0, 1, 1)
            # A failed flush is only told by the next access.
            self._dataset.write(self._dataset.read(1, window=corner), 1, window=corner)

    def _check_complete(self) -> None:
        """Raise where a block lies beyond the end of the closed file."""
        n_bytes = self._part.stat().st_size
        with rasterio.open(self._part) as dataset:
            for (row, col), _ in dataset.block_windows(1):
                place = [
                    dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", dm="TIFF", bidx=1) for what in ("OFFSET", "SIZE")
                ]
                if None not in place and sum(int(value) for value in place) > n_bytes:
                    raise OSError("the file ends too early")

    def _is_beaten(self, labels: npt.NDArray[Any], *, value: int, area_px: int) -> npt.NDArray[np.bool_]:
        painted = labels != self._nodata
        areas_px = np.where(painted, self._areas_px[np.where(painted, labels, 0)], _NO_AREA)
        beaten: npt.NDArray[np.bool_] = (areas_px > area_px) | ((areas_px == area_px) & (labels > value))
        return beaten

    def _remember(self, value: int, *, area_px: int) -> None:
        if not 0 < value <= self._largest or value == self._nodata:
            raise RasterError(
                f"Object number {value} does not fit {self.path}; use 1 to {self._largest}, or a wider type."
            )
        if value >= len(self._areas_px):
            more = np.full(max(value + 1, 2 * len(self._areas_px)), _NO_AREA, np.int64)
            more[: len(self._areas_px)] = self._areas_px
            self._areas_px = more
        if self._areas_px[value] not in (_NO_AREA, area_px):
            raise RasterError(
                f"Object {value} has {self._areas_px[value]} px, not {area_px}; give the whole area each time."
            )
        self._areas_px[value] = area_px
