"""Read any bands of a raster at any resolution: what segmentation models are shown.

A reader has a grid: the raster's own pixels, or, where a model wants another resolution, pixels of that size from the
same corner. Places are (column, row) of the grid.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ..errors import RasterError
from .access import gdal_access
from .band_names import bands_called, names_of
from .bands import choose_bands, read_palette
from .geodesy import pixel_side_m
from .identity import raster_identity
from .reader import OPEN_REMEDY, READ_REMEDY, check_usable, colours_of, map_transform, parse_crs
from .resample import area_weights, resampled
from .sampling import always_valid, valid_bands
from .stretch import Stretch, estimate_stretch

_SAME_SCALE = 0.1
"""Resolutions that differ by less are the same to a model: resampling would cost more than it gains."""
_NEARLY_WHOLE = 0.02
"""Factors this close to a whole number are made whole: no grid pixel then cuts a raster pixel."""
_MARGIN_PX = 2
"""Raster pixels around a window that bilinear enlargement looks at."""
_LARGEST_SCALE = 16.0
"""How many times a raster is enlarged or reduced at the most; beyond it nothing could be recognised."""
_PART_PX = 2**22
"""Pixels that are read at once to see which are valid."""

Pixels = npt.NDArray[np.uint8]
Valid = npt.NDArray[np.bool_]


class BandReader:
    """An open raster; make it with `open_bands`. Reading is safe from several threads, one at a time.

    `bands`: 1-based, as the model sees them; `band_names`: what the raster calls them (`read_band_names`). `shape` and
    `transform` are the raster's, `grid_shape` and `grid_transform` those of the grid; `scale`: grid pixels per raster
    pixel.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        path: str,
        *,
        bands: Sequence[int],
        stretch: Stretch,
        crs: CRS | None,
        scale: float,
    ) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._palette = read_palette(dataset, bands) if len(bands) == 3 else None
        # Then validity is known without a look at the pixels.
        self._is_all_valid = self._palette is None and always_valid(dataset, bands)
        self.path = path
        self.identity = raster_identity(dataset, path)
        self.bands = tuple(bands)
        self.band_names = names_of(dataset, bands)
        self.stretch = stretch
        self.crs = crs
        self.scale = scale
        self.shape: tuple[int, int] = dataset.shape
        self.transform = map_transform(dataset)
        self.gsd_m = pixel_side_m(self.transform, shape=self.shape, crs=crs)
        rows, cols = (max(1, math.ceil(side * scale - 1e-6)) for side in self.shape)
        self.grid_shape = (rows, cols)
        self.grid_transform = self.transform @ Affine.scale(1 / scale)

    def __enter__(self) -> BandReader:
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

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> tuple[Pixels, Valid]:
        """Pixels uint8 (bands, rows, cols) and valid bool (rows, cols) of a window of the grid.

        Valid is a pixel with data in any of the bands. The part beyond the raster is not valid and repeats its edge;
        inside, pixels without data are 0. Raises `RasterError` for a window without a pixel of the raster, and where
        the file cannot be read.
        """
        left, top = max(0, col_off), max(0, row_off)
        right, bottom = min(self.grid_shape[1], col_off + cols), min(self.grid_shape[0], row_off + rows)
        if left >= right or top >= bottom:
            raise RasterError(
                f"The window at column {col_off}, row {row_off} holds no pixel of {self.path}; choose one inside it."
            )
        pixels, valid = self._read_inside(left, top, right - left, bottom - top)
        if not valid.all():
            pixels[:, ~valid] = 0
        before, after = (top - row_off, left - col_off), (row_off + rows - bottom, col_off + cols - right)
        if not any((*before, *after)):
            return pixels, valid
        around = ((before[0], after[0]), (before[1], after[1]))
        return np.pad(pixels, ((0, 0), *around), mode="edge"), np.pad(valid, around)

    def read_valid(self, bounds: tuple[int, int, int, int]) -> Valid:
        """Valid of the raster's own pixels in (left, top, right, bottom), bool (rows, cols).

        Raises `RasterError` where the file cannot be read.
        """
        left, top, right, bottom = bounds
        valid = np.ones((bottom - top, right - left), np.bool_)
        if self._is_all_valid:
            return valid
        step = max(1, _PART_PX // (right - left))
        for row in range(top, bottom, step):
            stop = min(bottom, row + step)
            valid[row - top : stop - top] = self._read_raw(Window(left, row, right - left, stop - row))[1]
        return valid

    def _read_inside(self, left: int, top: int, cols: int, rows: int) -> tuple[Pixels, Valid]:
        if self.scale == 1:
            return self._read_raw(Window(left, top, cols, rows))
        return (self._read_enlarged if self.scale > 1 else self._read_reduced)(left, top, cols, rows)

    def _read_reduced(self, left: int, top: int, cols: int, rows: int) -> tuple[Pixels, Valid]:
        """Means over the area of each grid pixel, of what is valid there.

        Not GDAL's average: with a scale that is not whole it weights the edges of every window in another way.
        """
        factor = 1 / self.scale
        x0, y0 = math.floor(left * factor), math.floor(top * factor)
        x1 = min(self.shape[1], math.ceil((left + cols) * factor))
        y1 = min(self.shape[0], math.ceil((top + rows) * factor))
        pixels, valid = self._read_raw(Window(x0, y0, x1 - x0, y1 - y0))
        across = area_weights(left, left + cols, scale=factor, low=x0, high=x1)
        down = area_weights(top, top + rows, scale=factor, low=y0, high=y1)
        weights = resampled(valid.astype(np.float32), down, across)
        masked = (np.multiply(band, valid, dtype=np.float32) for band in pixels)
        sums = np.stack([resampled(band, down, across) for band in masked])
        means = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
        return np.rint(means).astype(np.uint8), weights > 0

    def _read_enlarged(self, left: int, top: int, cols: int, rows: int) -> tuple[Pixels, Valid]:
        """Bilinear between pixel centres, by the whole grid's geometry, so that windows join without a seam."""
        x = (np.arange(left, left + cols) + 0.5) / self.scale - 0.5
        y = (np.arange(top, top + rows) + 0.5) / self.scale - 0.5
        x0, y0 = max(0, math.floor(x[0]) - _MARGIN_PX), max(0, math.floor(y[0]) - _MARGIN_PX)
        x1 = min(self.shape[1], math.floor(x[-1]) + 1 + _MARGIN_PX)
        y1 = min(self.shape[0], math.floor(y[-1]) + 1 + _MARGIN_PX)
        pixels, valid = self._read_raw(Window(x0, y0, x1 - x0, y1 - y0))
        near_x, near_y = _nearest(x - x0, x1 - x0), _nearest(y - y0, y1 - y0)
        values = _between(pixels.astype(np.float32), y - y0, axis=1)
        values = _between(values, x - x0, axis=2)
        return np.rint(values).astype(np.uint8), valid[np.ix_(near_y, near_x)]

    def _read_raw(self, window: Window) -> tuple[Pixels, Valid]:
        unique = sorted(set(self.bands))
        order = [unique.index(band) for band in self.bands]
        out_shape = (window.height, window.width)
        with self._lock, gdal_access(self.path, verb="read", remedy=READ_REMEDY):
            data = self._dataset.read(unique, window=window)
            valid = valid_bands(self._dataset, unique, window=window, out_shape=out_shape, data=data)[order]
        if self._palette is None:
            return self.stretch.apply(data[order]), valid.any(axis=0)
        pixels, valid = colours_of(data[0], palette=self._palette, valid=valid)
        return pixels, valid.any(axis=0)


def open_bands(
    path: str,
    *,
    n_bands: int | None = None,
    names: Sequence[str] | None = None,
    bands: Sequence[int] | None = None,
    gsd_m: float | None = None,
    stretch: Stretch | None = None,
    crs_wkt: str | None = None,
) -> BandReader:
    """Open `path`, anything GDAL takes, to read some of its bands on a grid of `gsd_m` metres.

    `bands`: 1-based; None takes those that the raster calls by `names`, if it has each of these just once, else red,
    green and blue where three are wanted, else the first `n_bands` (as many as `names`) that are not alpha (all,
    without a number). `gsd_m`: None for the raster's own pixels, which are also kept where the raster has
    no scale or differs by less than a tenth. `stretch`: None estimates it from the whole raster. Raises `RasterError`
    where the raster cannot be opened, has too few bands, or is far too coarse or too fine.
    """
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        # A plain picture is welcome; it has no scale.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
        try:
            check_usable(dataset, path)
            chosen = _choose(dataset, path, bands=bands, names=names, n_bands=len(names) if names else n_bands)
            crs = parse_crs(crs_wkt) if crs_wkt else dataset.crs
            own_m = pixel_side_m(map_transform(dataset), shape=dataset.shape, crs=crs)
            scale = _scale(own_m, gsd_m, path=path)
            used = stretch or _own_stretch(dataset, chosen)
            return BandReader(dataset, path, bands=chosen, stretch=used, crs=crs, scale=scale)
        except BaseException:
            dataset.close()
            raise


def _choose(
    dataset: DatasetReader,
    path: str,
    *,
    bands: Sequence[int] | None,
    names: Sequence[str] | None,
    n_bands: int | None,
) -> tuple[int, ...]:
    if bands:
        missing = [band for band in bands if not 1 <= band <= dataset.count]
        if missing:
            raise RasterError(f"Band {missing[0]} is not in {path}; choose from 1 to {dataset.count}.")
        if n_bands is not None and len(bands) != n_bands:
            raise RasterError(f"{len(bands)} bands are chosen of {path}, the model sees {n_bands}; choose {n_bands}.")
        return tuple(bands)
    called = bands_called(dataset, names) if names else None
    if called is not None:
        return called
    data = [band for band in dataset.indexes if dataset.colorinterp[band - 1] != ColorInterp.alpha] or [1]
    wanted = len(data) if n_bands is None else n_bands
    if wanted == 3 and (len(data) >= 3 or dataset.colorinterp[0] == ColorInterp.palette):
        return choose_bands(dataset, None)
    if len(data) < wanted:
        raise RasterError(
            f"{path} has {len(data)} band(s) of data, the model sees {wanted}; choose another raster, or name a band "
            "for each of the model's, with repeats."
        )
    return tuple(data[:wanted])


def _own_stretch(dataset: DatasetReader, bands: Sequence[int]) -> Stretch:
    if len(bands) == 3 and read_palette(dataset, bands) is not None:
        return Stretch((0.0,) * 3, (255.0,) * 3)
    return estimate_stretch(dataset, bands)


def _scale(own_m: float | None, wanted_m: float | None, *, path: str) -> float:
    if own_m is None or wanted_m is None:
        return 1.0
    scale = own_m / wanted_m
    if abs(math.log(scale)) < math.log1p(_SAME_SCALE):
        return 1.0
    if not 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE:
        raise RasterError(
            f"{path} has pixels of {own_m:.3g} m, the model was made for {wanted_m:.3g} m; choose a raster or a model "
            f"within {_LARGEST_SCALE:.0f} times of the other."
        )
    factor = round(max(scale, 1 / scale))
    if abs(max(scale, 1 / scale) / factor - 1) < _NEARLY_WHOLE:
        return float(factor) if scale > 1 else 1 / factor
    return scale


def _nearest(places: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.intp]:
    whole: npt.NDArray[np.intp] = np.clip(np.floor(places + 0.5), 0, length - 1).astype(np.intp)
    return whole


def _between(values: npt.NDArray[np.float32], places: npt.NDArray[np.float64], *, axis: int) -> npt.NDArray[np.float32]:
    """Linear along one axis; beyond the last pixel centre its value."""
    last = values.shape[axis] - 1
    places = np.clip(places, 0, last)
    low = np.floor(places).astype(np.intp)
    share = (places - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
    first = np.take(values, low, axis=axis)
    between: npt.NDArray[np.float32] = first + share * (np.take(values, np.minimum(low + 1, last), axis=axis) - first)
    return between
