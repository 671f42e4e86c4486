"""Bilinear enlargement of small chips, exact on the pixel grid whatever type the raster was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def enlarge(pixels: npt.NDArray[np.uint8], *, factor: int) -> npt.NDArray[np.uint8]:
    """Enlarge (bands, rows, cols) by a whole `factor`; pixel centres stay in place, edges are repeated.

    GDAL's own enlargement lets one NaN spread over its neighbours and cannot mix palette entries, so this
    comes after both have become colours.
    """
    bands, rows, cols = pixels.shape
    enlarged = np.empty((bands, rows * factor, cols * factor), np.uint8)
    for band, out in zip(pixels, enlarged, strict=True):
        tall = _enlarge_rows(band.astype(np.float32), factor=factor)
        wide = _enlarge_rows(np.ascontiguousarray(tall.T), factor=factor)
        out[...] = np.rint(wide).astype(np.uint8).T
    return enlarged


def _enlarge_rows(values: npt.NDArray[np.float32], *, factor: int) -> npt.NDArray[np.float32]:
    """(rows, cols) to (rows x factor, cols): each of the `factor` places inside a row has one pair of weights."""
    rows, cols = values.shape
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    steps = np.diff(padded, axis=0)
    enlarged = np.empty((rows * factor, cols), np.float32)
    for place in range(factor):
        offset = (place + 0.5) / factor - 0.5
        first = 1 if offset >= 0 else 0
        share = np.float32(offset % 1)
        enlarged[place::factor] = padded[first : first + rows] + share * steps[first : first + rows]
    return enlarged
