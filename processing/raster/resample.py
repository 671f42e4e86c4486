"""From one resolution to another, exact on the pixel grid whatever type the raster was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix


def linear_weights(start: int, stop: int, *, scale: float, low: int, high: int) -> csr_matrix:
    """Weights float32 (stop - start, high - low) that bring pixels low..high of one axis to start..stop of a finer one.

    `scale` < 1: pixels of the source per pixel of the target. Linear between pixel centres; the first and last pixel
    are repeated beyond their centres. Rows sum to 1.
    """
    centres = (np.arange(start, stop) + 0.5) * scale - 0.5
    near = np.floor(centres)[:, None] + np.arange(2)
    return _rows(near, 1 - np.abs(near - centres[:, None]), low=low, high=high)


def area_weights(start: int, stop: int, *, scale: float, low: int, high: int) -> csr_matrix:
    """How much of each pixel low..high of one axis lies in start..stop of a coarser one: float32, as above.

    `scale` >= 1: pixels of the source per pixel of the target. Rows sum to `scale`, less at the source's end.
    """
    first, last = np.arange(start, stop) * scale, np.minimum(np.arange(start + 1, stop + 1) * scale, high)
    near = np.floor(first)[:, None] + np.arange(math.ceil(scale) + 1)
    shares = np.minimum(near + 1, last[:, None]) - np.maximum(near, first[:, None])
    return _rows(near, np.maximum(shares, 0), low=low, high=high)


def resampled(values: npt.NDArray[Any], down: csr_matrix, across: csr_matrix) -> npt.NDArray[np.float32]:
    """A plane (rows, cols) with the weights of both axes applied."""
    # Planes are turned over while they are small: turning takes longer than the products.
    is_smaller = down.shape[0] < down.shape[1]
    plane: npt.NDArray[np.float32] = (across @ (down @ values).T).T if is_smaller else down @ (across @ values.T).T
    return plane


def _rows(near: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], *, low: int, high: int) -> csr_matrix:
    columns = np.clip(near, low, high - 1).astype(np.int32) - low
    ends = np.arange(len(near) + 1, dtype=np.int32) * near.shape[1]
    matrix = csr_matrix((weights.ravel().astype(np.float32), columns.ravel(), ends), shape=(len(near), high - low))
    matrix.eliminate_zeros()
    return matrix


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
