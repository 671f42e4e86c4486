"""From the decoder's low-resolution logits to masks in pixels of the raster's window, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own custom

from .prompts import LOW_RES_PX

# Logit of a mask given by the user: certain, but within the range that the decoder itself produces.
_PRIOR_LOGIT = 8.0


@dataclass(frozen=True, eq=False)
class LocalMask:
    """A mask cut tightly: `pixels` bool (rows, cols), its top-left corner at (`row_off`, `col_off`) of the window.

    An empty mask has pixels of shape (0, 0).
    """

    row_off: int
    col_off: int
    pixels: npt.NDArray[np.bool_]


def mask_from_logits(logits: npt.NDArray[np.float32], *, window_px: int, shape: tuple[int, int]) -> LocalMask:
    """Upsample logits (256, 256) of a square window to its pixels and threshold at 0.

    `window_px` is the window's side, `shape` the (rows, cols) of it that lie inside the raster. Only the part
    around positive cells is computed: bilinear interpolation cannot be positive elsewhere.
    """
    rows, cols = np.nonzero(logits > 0)
    empty = LocalMask(0, 0, np.zeros((0, 0), np.bool_))
    if not len(rows):
        return empty
    scale = window_px / LOW_RES_PX
    first_row, last_row = _pixel_range(rows.min(), rows.max(), scale, shape[0])
    first_col, last_col = _pixel_range(cols.min(), cols.max(), scale, shape[1])
    if first_row >= last_row or first_col >= last_col:
        return empty
    by_row = _weights(first_row, last_row, scale)
    by_col = _weights(first_col, last_col, scale)
    pixels: npt.NDArray[np.bool_] = _interpolate(_interpolate(logits, by_row).T, by_col).T > 0
    kept_rows, kept_cols = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(kept_rows):
        return empty
    top, left = int(kept_rows[0]), int(kept_cols[0])
    tight = pixels[top : kept_rows[-1] + 1, left : kept_cols[-1] + 1]
    return LocalMask(first_row + top, first_col + left, np.ascontiguousarray(tight))


def stability_score(logits: npt.NDArray[np.float32], *, offset: float = 1.0) -> float:
    """IoU of the masks at thresholds `+offset` and `-offset`: 1 for a sharp edge (segment-anything, amg.py)."""
    union = np.count_nonzero(logits > -offset)
    return float(np.count_nonzero(logits > offset) / union) if union else 0.0


def logits_from_mask(pixels: npt.NDArray[np.bool_], *, window_px: int) -> npt.NDArray[np.float32]:
    """Turn a mask (rows, cols) of a window into a mask prompt, float32 (256, 256), between -8 and 8.

    The mask starts at the window's corner; what it does not reach is background.
    """
    padded = torch.zeros(1, 1, window_px, window_px)
    padded[0, 0, : pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(np.ascontiguousarray(pixels))
    share = F.interpolate(padded, size=(LOW_RES_PX, LOW_RES_PX), mode="area")[0, 0]
    logits: npt.NDArray[np.float32] = ((2 * share - 1) * _PRIOR_LOGIT).numpy()
    return logits


def _pixel_range(first_cell: int, last_cell: int, scale: float, n_pixels: int) -> tuple[int, int]:
    """Pixels that a run of cells can influence: half-open, one cell wider on either side."""
    return max(0, int((first_cell - 1) * scale)), min(n_pixels, int(np.ceil((last_cell + 2) * scale)))


_Weights = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]


def _weights(first: int, last: int, scale: float) -> _Weights:
    """Lower cell, upper cell and weight of the upper one for pixels first..last (align_corners=False)."""
    position = (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) / np.float32(scale) - np.float32(0.5)
    position = position.clip(0, LOW_RES_PX - 1)
    lower = np.floor(position).astype(np.intp)
    return lower, np.minimum(lower + 1, LOW_RES_PX - 1), position - lower.astype(np.float32)


def _interpolate(values: npt.NDArray[np.float32], weights: _Weights) -> npt.NDArray[np.float32]:
    # numpy, not torch: waking torch's threads costs more than interpolating the few pixels of an object.
    lower, upper, share = weights
    upper_share = share.reshape(-1, 1)
    mixed: npt.NDArray[np.float32] = np.add(values[lower] * (1 - upper_share), values[upper] * upper_share)
    return mixed
