"""A bounded sample of a whole raster, the same on every call: what its stretch is estimated from.

A decimated read of a raster without overviews decodes all of it (100,000 x 100,000 pixels take minutes), and
one with a few overview levels still much of it. So: small levels are read whole, and of larger ones a fixed
number of blocks spread over the raster. Where the file says which blocks were never written (a sparse
GeoTIFF), those are left out, or the few written ones would be missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

_SAMPLE_PX = 2**20
"""Pixels per band that are kept."""
_WHOLE_READ_PX = 2**24
"""Levels up to this many pixels are decoded whole."""
_BLOCK_PX = 2**18
"""Pixels per band that are read of one block."""
_MIN_LEVEL_PX = 2**18
"""An overview smaller than this has lost the tails of the histogram."""
_MAX_LOOKUPS = 2**20
"""Blocks that the file is asked about (under a microsecond each)."""


def sample_values(dataset: DatasetReader, bands: Sequence[int]) -> list[npt.NDArray[np.float64]]:
    """For each of `bands` (1-based) a 1-D array of valid finite values; all-zero pixels are left out."""
    reads = _plan(dataset)
    parts: list[list[npt.NDArray[np.float64]]] = [[] for _ in bands]
    keep_px = max(1, _SAMPLE_PX // max(1, len(reads)))
    for window, out_shape in reads:
        data = dataset.read(list(bands), window=window, out_shape=(len(bands), *out_shape))
        valid = valid_bands(dataset, bands, window=window, out_shape=out_shape, data=data)
        valid &= (data != 0).any(axis=0)
        step = max(1, math.ceil(data[0].size / keep_px))
        for band_parts, band, ok in zip(parts, data, valid, strict=True):
            band_parts.append(band[ok][::step].astype(np.float64))
    return [np.concatenate(band_parts) if band_parts else np.zeros(0) for band_parts in parts]


def valid_bands(
    dataset: DatasetReader,
    bands: Sequence[int],
    *,
    window: Window,
    out_shape: tuple[int, int],
    data: npt.NDArray[Any],
) -> npt.NDArray[np.bool_]:
    """(bands, rows, cols): True where a pixel is not nodata, masked, transparent, NaN or inf in `data`."""
    if _is_unmasked(dataset, bands):
        valid = np.ones((len(bands), *out_shape), np.bool_)
    else:
        valid = dataset.read_masks(list(bands), window=window, out_shape=(len(bands), *out_shape)) > 0
    if data.dtype.kind == "f":
        valid &= np.isfinite(data)
    return valid


def always_valid(dataset: DatasetReader, bands: Sequence[int]) -> bool:
    """Whether `valid_bands` is True for every pixel, whatever is read."""
    return _is_unmasked(dataset, bands) and all(np.dtype(dataset.dtypes[band - 1]).kind != "f" for band in bands)


def _is_unmasked(dataset: DatasetReader, bands: Sequence[int]) -> bool:
    flags = dataset.mask_flag_enums
    return all(MaskFlags.all_valid in flags[band - 1] for band in bands)


def _plan(dataset: DatasetReader) -> list[tuple[Window, tuple[int, int]]]:
    """What to read: windows in raster pixels, each with the (rows, cols) to read it at."""
    rows, cols = dataset.shape
    factor = _level_factor(dataset)
    level_px = math.ceil(rows / factor) * math.ceil(cols / factor)
    if level_px <= _WHOLE_READ_PX:
        shrink = max(float(factor), math.sqrt(rows * cols / _SAMPLE_PX))
        return [(Window(0, 0, cols, rows), (max(1, round(rows / shrink)), max(1, round(cols / shrink))))]
    block_rows, block_cols = _block_shape(dataset, factor=factor)
    reads = []
    for block_row, block_col in _choose_blocks(dataset, block_rows * factor, block_cols * factor):
        window = Window(block_col, block_row, block_cols * factor, block_rows * factor)
        window = window.intersection(Window(0, 0, cols, rows))
        reads.append((window, (math.ceil(window.height / factor), math.ceil(window.width / factor))))
    return reads


def _level_factor(dataset: DatasetReader) -> int:
    """Decimation of the coarsest overview that is still large enough; 1 for the raster itself."""
    rows, cols = dataset.shape
    factors = [factor for factor in dataset.overviews(1) if rows * cols / factor**2 >= _MIN_LEVEL_PX]
    return int(max(factors, default=1))


def _block_shape(dataset: DatasetReader, *, factor: int) -> tuple[int, int]:
    """(rows, cols) of what is read at one place of a level, aligned with the file's blocks where possible."""
    rows, cols = dataset.block_shapes[0]
    # Overviews are tiled whatever the raster itself is.
    if factor > 1 and cols >= dataset.width:
        return 512, 512
    rows = max(1, min(rows, _BLOCK_PX // min(cols, _BLOCK_PX)))
    return rows, min(cols, _BLOCK_PX)


def _choose_blocks(dataset: DatasetReader, rows_px: int, cols_px: int) -> Iterator[tuple[int, int]]:
    """Yield (row, col) of the first pixel of blocks of `rows_px` x `cols_px`, spread over what there is.

    The row-major list of blocks is cut into equal strata with one pseudo-random block from each: a fixed step
    could fall into one column. The seed is fixed and `RandomState`'s stream frozen, so every machine chooses
    alike.
    """
    n_cols = math.ceil(dataset.width / cols_px)
    n_blocks = math.ceil(dataset.height / rows_px) * n_cols
    written = _written_blocks(dataset)
    if written is not None:
        places = np.unique(written[:, 0] // rows_px * n_cols + written[:, 1] // cols_px)
        n_blocks = len(places)
    n_chosen = min(n_blocks, _blocks_to_read(dataset, rows_px * cols_px))
    offsets = np.random.RandomState(0).random_sample(n_chosen)
    strata = ((np.arange(n_chosen) + offsets) * n_blocks / max(1, n_chosen)).astype(np.int64)
    for place in strata if written is None else places[strata]:
        yield int(place) // n_cols * rows_px, int(place) % n_cols * cols_px


def _blocks_to_read(dataset: DatasetReader, block_px: int) -> int:
    n_blocks = max(64, min(512, _WHOLE_READ_PX // block_px))
    # A part of a block costs its whole: a file of huge blocks gets fewer reads.
    stored_rows, stored_cols = dataset.block_shapes[0]
    return min(n_blocks, max(4, 4 * _WHOLE_READ_PX // int(stored_rows * stored_cols)))


def _written_blocks(dataset: DatasetReader) -> npt.NDArray[np.int64] | None:
    """(N, 2) row and col of the first pixel of each block in the file; None where all may be there."""
    block_rows, block_cols = dataset.block_shapes[0]
    n_rows, n_cols = math.ceil(dataset.height / block_rows), math.ceil(dataset.width / block_cols)
    is_local_tiff = dataset.driver == "GTiff" and not dataset.name.startswith("/vsi")
    if not is_local_tiff or n_rows * n_cols > _MAX_LOOKUPS:
        return None
    written = [
        (row * block_rows, col * block_cols)
        for row in range(n_rows)
        for col in range(n_cols)
        if dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", dm="TIFF", bidx=1) is not None
    ]
    if len(written) == n_rows * n_cols:
        return None
    return np.array(written, np.int64).reshape(-1, 2)
