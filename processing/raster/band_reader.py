"""Read any bands of a raster at any resolution: what segmentation models are shown.

A reader has a grid: the raster's own pixels, or, where a model wants another resolution, pixels of that size from the
same corner, square on the ground also where the raster's are not. Places are (column, row) of the grid.
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
from scipy.sparse import csr_matrix, identity

from ..errors import RasterError
from .access import gdal_access
from .band_names import bands_called, names_of
from .bands import choose_bands, read_palette
from .geodesy import GroundPixel, ground_pixel, pixel_side_m
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
    pixel, down the rows and across the columns.
    """

    def __init__(
        self,
        dataset: DatasetReader,
        path: str,
        *,
        bands: Sequence[int],
        stretch: Stretch,
        crs: CRS | None,
        scale: tuple[float, float],
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
        rows, cols = (max(1, math.ceil(n * times - 1e-6)) for n, times in zip(self.shape, scale, strict=True))
        self.grid_shape = (rows, cols)
        self.grid_transform = self.transform @ Affine.scale(1 / scale[1], 1 / scale[0])

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
        if self.scale == (1, 1):
            return self._read_raw(Window(left, top, cols, rows))
        down = _Axis(top, top + rows, scale=self.scale[0], size=self.shape[0])
        across = _Axis(left, left + cols, scale=self.scale[1], size=self.shape[1])
        window = Window(across.low, down.low, across.high - across.low, down.high - down.low)
        pixels, valid = self._read_raw(window)
        # The last plane says how much of each place is valid: only that counts.
        planes = [*(np.multiply(band, valid, dtype=np.float32) for band in pixels), valid.astype(np.float32)]
        if down.is_reduced or across.is_reduced:
            areas = down.areas(), across.areas()
            planes = [resampled(plane, *areas) for plane in planes]
            valid = planes[-1] > 0
        values = across.between(down.between(np.stack(planes), axis=1), axis=2)
        sums, weights = values[:-1], values[-1]
        means = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
        return np.rint(means).astype(np.uint8), valid[np.ix_(down.nearest(), across.nearest())]

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
    without a number). `gsd_m`: None for the raster's own pixels, which are also kept where the raster has no scale, and
    along a side that differs by less than a tenth. `stretch`: None estimates it from the whole raster. Raises
    `RasterError` where the raster cannot be opened, has too few bands, or is far too coarse or too fine.
    """
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        # A plain picture is welcome; it has no scale.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
        try:
            check_usable(dataset, path)
            chosen = _choose(dataset, path, bands=bands, names=names, n_bands=len(names) if names else n_bands)
            crs = parse_crs(crs_wkt) if crs_wkt else dataset.crs
            own = ground_pixel(map_transform(dataset), shape=dataset.shape, crs=crs)
            scale = _scales(own, gsd_m, path=path)
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


class _Axis:
    """The way from raster pixels to the grid pixels `start` to `stop` of one axis.

    By the whole grid's geometry, so that windows join without a seam: over the area of each grid pixel where the grid
    is coarser (`is_reduced`; GDAL's average weights the edges of every window in another way), linear between pixel
    centres where it is finer. `low` to `high` are the raster pixels, of `size`, that are needed.
    """

    def __init__(self, start: int, stop: int, *, scale: float, size: int) -> None:
        self._start, self._stop, self._factor = start, stop, 1 / scale
        self.is_reduced, self._is_enlarged = scale < 1, scale > 1
        if self._is_enlarged:
            self._places = (np.arange(start, stop) + 0.5) / scale - 0.5
            self.low = max(0, math.floor(self._places[0]) - _MARGIN_PX)
            self.high = min(size, math.floor(self._places[-1]) + 1 + _MARGIN_PX)
        else:
            self.low, self.high = math.floor(start * self._factor), min(size, math.ceil(stop * self._factor))

    def areas(self) -> csr_matrix:
        """Weights (cells, high - low) of what is reduced; other pixels stay for `between`."""
        if not self.is_reduced:
            return identity(self.high - self.low, np.float32, "csr")
        return area_weights(self._start, self._stop, scale=self._factor, low=self.low, high=self.high)

    def between(self, planes: npt.NDArray[np.float32], *, axis: int) -> npt.NDArray[np.float32]:
        """Planes with this axis, low to high, enlarged; beyond the raster's last pixel centre its value."""
        return _between(planes, self._places - self.low, axis=axis) if self._is_enlarged else planes

    def nearest(self) -> npt.NDArray[np.intp]:
        """For each cell the place of the pixel, after `areas`, whose validity is its own."""
        if not self._is_enlarged:
            return np.arange(self._stop - self._start)
        return _nearest(self._places - self.low, self.high - self.low)


def _scales(own: GroundPixel | None, wanted_m: float | None, *, path: str) -> tuple[float, float]:
    """Grid pixels per raster pixel, down and across; the same where pixels are about square."""
    if own is None or wanted_m is None:
        return 1.0, 1.0
    if abs(math.log(own.height / own.width)) < math.log1p(_SAME_SCALE):
        scale = _scale(own.side, wanted_m, path=path)
        return scale, scale
    return _scale(own.height, wanted_m, path=path), _scale(own.width, wanted_m, path=path)


def _scale(own_m: float, wanted_m: float, *, path: str) -> float:
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
