"""The one way to read a raster: whatever GDAL opens becomes 8-bit chips of three bands and a mask of data."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ..errors import RasterError
from .access import gdal_access
from .bands import choose_bands, read_palette
from .geodesy import apply_affine, pixel_side_m
from .identity import file_states, files_of, raster_identity
from .resample import enlarge
from .sampling import valid_bands
from .stretch import Stretch, estimate_stretch
from .windows import SquareWindow

_FILL = np.array([124, 116, 104], np.uint8)
"""Colour of pixels without data: the mean that the models subtract, so that they see nothing there."""
_STRIP_ROWS = 256
OPEN_REMEDY = "check the path and that the file is a complete raster"
READ_REMEDY = "the file seems damaged or incomplete: copy or download it again"


@dataclass(frozen=True, eq=False)
class Chip:
    """What a model sees of a window.

    `pixels`: uint8 (3, rows, cols). `valid`: bool (rows, cols), False where there is no data. Pixels
    that are not valid hold the models' mean colour.
    """

    pixels: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]


class RasterReader:
    """An open raster; make it with `open_raster`. Reading is safe from several threads, one at a time.

    Raster pixels are (x, y), x right and y down; (0.5, 0.5) is the centre of the first pixel.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        path: str,
        *,
        bands: tuple[int, int, int],
        stretch: Stretch,
        crs: CRS | None,
    ) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._palette = read_palette(dataset, bands)
        self.path = path
        self.identity = raster_identity(dataset, path)
        self._files = files_of(dataset, path)
        self._states = file_states(self._files)
        self.bands = bands
        self.stretch = stretch
        self.crs = crs
        self.shape: tuple[int, int] = dataset.shape
        self.transform = map_transform(dataset)
        self.gsd_m = pixel_side_m(self.transform, shape=self.shape, crs=crs)

    def __enter__(self) -> RasterReader:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the raster."""
        self.close()

    def close(self) -> None:
        """Close the file; waits for a read that is going on."""
        with self._lock:
            self._dataset.close()

    def is_changed(self) -> bool:
        """Whether a file of the raster was written or removed since it was opened; False where there is no file."""
        try:
            return file_states(self._files) != self._states
        except OSError:
            return True

    def is_read_from(self, path: Path) -> bool:
        """Whether a file is one that the raster consists of: it must not be written."""
        return path.exists() and any(path.samefile(file) for file in self._files if Path(file).exists())

    def to_pixels(self, map_xy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(N, 2) map coordinates in the raster's CRS to (N, 2) raster pixels."""
        return apply_affine(~self.transform, _points(map_xy))

    def to_map(self, pixel_xy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(N, 2) raster pixels to (N, 2) map coordinates in the raster's CRS."""
        return apply_affine(self.transform, _points(pixel_xy))

    def read_chip(self, window: SquareWindow, *, out_px: int = 1024) -> Chip:
        """Read the part of `window` inside the raster, scaled by exactly `out_px` / `window.size_px`.

        Shrinking averages from GDAL's overviews where there are any; a last pixel that the raster's edge cuts
        averages what there is. Enlarging is bilinear. Raises `RasterError` for a window outside the raster,
        for sides of which neither divides the other, and where the file cannot be read.
        """
        if max(window.size_px, out_px) % min(window.size_px, out_px):
            raise RasterError(
                f"A window of {window.size_px} px does not fit a chip of {out_px} px; choose powers of two."
            )
        self._check_inside(window)
        pixels, valid = self._read_shrunk(window, factor=max(1, window.size_px // out_px))
        factor = max(1, out_px // window.size_px)
        if factor > 1:
            valid = valid.repeat(factor, axis=0).repeat(factor, axis=1)
            pixels = enlarge(pixels, factor=factor)
            pixels[:, ~valid] = _FILL[:, None]
        return Chip(pixels, valid)

    def valid_mask(self, window: SquareWindow) -> npt.NDArray[np.bool_]:
        """Bool (rows, cols) at the raster's resolution: True where any of the chosen bands holds data."""
        self._check_inside(window)
        whole = window.to_rasterio(self.shape)
        valid = np.ones((whole.height, whole.width), np.bool_)
        if self._palette is None and self._is_always_valid():
            return valid
        for row in range(0, whole.height, _STRIP_ROWS):
            n_rows = min(_STRIP_ROWS, whole.height - row)
            strip = Window(whole.col_off, whole.row_off + row, whole.width, n_rows)
            _, valid_strip = self._read(strip, out_shape=(n_rows, whole.width))
            valid[row : row + n_rows] = valid_strip.any(axis=0)
        return valid

    def _check_inside(self, window: SquareWindow) -> None:
        if min(window.col_off, window.row_off) < 0 or not all(window.inside(self.shape)):
            raise RasterError(
                f"Window {window.bounds()} lies outside {self.path} of {self.shape[1]} x {self.shape[0]} px; "
                "choose an extent inside the raster."
            )

    def _is_always_valid(self) -> bool:
        flags, dtypes = self._dataset.mask_flag_enums, self._dataset.dtypes
        return any(
            MaskFlags.all_valid in flags[band - 1] and np.dtype(dtypes[band - 1]).kind != "f" for band in self.bands
        )

    def _read_shrunk(self, window: SquareWindow, *, factor: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Pixels uint8 (3, rows, cols) and valid bool (rows, cols), shrunk `factor` times and rounded up."""
        rows, cols = window.inside(self.shape)
        pixels = np.empty((3, -(-rows // factor), -(-cols // factor)), np.uint8)
        valid = np.empty(pixels.shape[1:], np.bool_)
        for row, n_rows in _spans(rows, factor=factor):
            for col, n_cols in _spans(cols, factor=factor):
                part = Window(window.col_off + col, window.row_off + row, n_cols, n_rows)
                out_shape = (-(-n_rows // factor), -(-n_cols // factor))
                data, data_valid = self._read(part, out_shape=out_shape)
                data[~data_valid] = np.broadcast_to(_FILL[:, None, None], data.shape)[~data_valid]
                top, left = row // factor, col // factor
                into = np.s_[top : top + out_shape[0], left : left + out_shape[1]]
                pixels[:, into[0], into[1]] = data
                valid[into] = data_valid.any(axis=0)
        return pixels, valid

    def _read(
        self, window: Window, *, out_shape: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Stretched pixels and validity, both (3, rows, cols)."""
        unique = sorted(set(self.bands))
        order = [unique.index(band) for band in self.bands]
        with self._lock, gdal_access(self.path, verb="read", remedy=READ_REMEDY):
            data = self._dataset.read(
                unique, window=window, out_shape=(len(unique), *out_shape), resampling=Resampling.average
            )
            valid = valid_bands(self._dataset, unique, window=window, out_shape=out_shape, data=data)[order]
        if self._palette is None:
            return self.stretch.apply(data[order]), valid
        return colours_of(data[0], palette=self._palette, valid=valid)


def open_raster(
    path: str,
    *,
    bands: Sequence[int] | None = None,
    stretch: Stretch | None = None,
    crs_wkt: str | None = None,
) -> RasterReader:
    """Open `path`, anything GDAL takes (files, VRT, /vsi..., subdatasets), to read three of its bands.

    `bands`: one or three, 1-based; None chooses (`choose_bands`). `stretch`: one range or three; None
    estimates it from the whole raster. `crs_wkt` replaces the file's CRS. Raises `RasterError` where the
    raster cannot be opened or used.
    """
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        # A plain picture is welcome; whoever needs a CRS asks the reader.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
        try:
            check_usable(dataset, path)
            chosen = choose_bands(dataset, bands)
            crs = parse_crs(crs_wkt) if crs_wkt else dataset.crs
            return RasterReader(
                dataset, path, bands=chosen, stretch=_stretch_for(dataset, chosen, stretch=stretch), crs=crs
            )
        except BaseException:
            dataset.close()
            raise


def _stretch_for(dataset: DatasetReader, bands: tuple[int, int, int], *, stretch: Stretch | None) -> Stretch:
    if read_palette(dataset, bands) is not None:
        return Stretch((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    if stretch is None:
        return estimate_stretch(dataset, bands)
    if len(stretch.low) == 1:
        return Stretch(stretch.low * 3, stretch.high * 3)
    if len(stretch.low) != len(bands):
        raise RasterError(f"A stretch of {len(stretch.low)} bands for {dataset.name}; give one range, or three.")
    return stretch


def check_usable(dataset: DatasetReader, path: str) -> None:
    """Raise `RasterError` for a raster that no model can be shown."""
    if not dataset.count:
        example = dataset.subdatasets[0] if dataset.subdatasets else "another file"
        raise RasterError(f"{path} holds no band of its own; open one of its parts, for example {example}.")
    if any(np.dtype(dtype).kind == "c" for dtype in dataset.dtypes if not dtype.startswith("complex_int")):
        raise RasterError(f"{path} holds complex numbers; convert it to amplitudes first.")
    if dataset.transform.is_degenerate:
        raise RasterError(f"{path} has a pixel without an area; assign its extent with gdal_edit.")
    if dataset.transform == Affine.identity() and (dataset.gcps[0] or dataset.rpcs):
        raise RasterError(f"{path} is placed by control points or a sensor model; warp it with gdalwarp first.")


def parse_crs(wkt: str) -> CRS:
    """The CRS of a text. Raises `RasterError` for one that is not understood."""
    try:
        return CRS.from_wkt(wkt)
    except CRSError as error:
        raise RasterError(f"CRS {wkt[:80]!r} is not understood; choose another CRS for the layer.") from error


def map_transform(dataset: DatasetReader) -> Affine:
    """Where pixels lie on the map, as QGIS shows it."""
    # QGIS shows a raster without georeference with y up from -rows to 0, and prompts come from there.
    if dataset.transform == Affine.identity():
        return Affine(1, 0, 0, 0, -1, 0)
    transform: Affine = dataset.transform
    return transform


def _points(xy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(xy, np.float64).reshape(-1, 2)


def _spans(length: int, *, factor: int) -> list[tuple[int, int]]:
    """(start, length) of the part that `factor` divides and of the rest, so that the scale stays exact."""
    whole = length - length % factor
    return [span for span in ((0, whole), (whole, length - whole)) if span[1]]


def colours_of(
    entries: npt.NDArray[Any], *, palette: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Palette entries (rows, cols) to colours (3, rows, cols); unknown and transparent ones are not valid."""
    known = entries < len(palette)
    rgba = palette[np.where(known, entries, 0)]
    return np.moveaxis(rgba[..., :3], -1, 0).copy(), valid & known & (rgba[..., 3] > 0)
