"""One stretch per raster: the value range of each band that becomes 0..255, the same in every window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader

from ..errors import RasterError
from .sampling import sample_values

_UINT8_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Stretch:
    """Per band, the stored value that becomes 0 (`low`) and that which becomes 255 (`high`); linear between.

    Equal `low` and `high` (a constant band) give mid-grey at that value. Raises `RasterError` for ranges that
    are not finite or upside down.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.low) != len(self.high) or not self.low:
            raise RasterError(f"Stretch {self.low} to {self.high}; give one low and one high value for each band.")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise RasterError(f"Stretch from {low} to {high} is no range; give finite values with low <= high.")

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Map `values` (bands, rows, cols) of any real dtype to uint8; NaN becomes 0, infinities 0 or 255."""
        if len(values) != len(self.low):
            raise RasterError(f"{len(values)} bands for a stretch of {len(self.low)}; give as many bands as ranges.")
        stretched = np.empty(values.shape, np.uint8)
        for band, low, high, out in zip(values, self.low, self.high, stretched, strict=True):
            if band.dtype == np.uint8 and (low, high) == _UINT8_RANGE:
                out[...] = band
                continue
            # float32 holds every value of 16-bit data exactly; wider types may differ only in later digits.
            wide = band.astype(np.float32 if band.dtype.itemsize <= 2 else np.float64)
            start, span = (low, high - low) if high > low else (low - 0.5, 1.0)
            wide -= start
            wide *= 255.0
            wide /= span
            out[...] = np.rint(np.nan_to_num(wide, copy=False, nan=0.0).clip(0, 255, out=wide))
        return stretched

    def as_key(self) -> tuple[float, ...]:
        """All lows, then all highs: what cache keys and results store."""
        return self.low + self.high


def estimate_stretch(
    dataset: DatasetReader, bands: Sequence[int], *, percentiles: tuple[float, float] = (2, 98)
) -> Stretch:
    """Find the stretch of `bands` (1-based) from a bounded sample of the whole raster, never from a window.

    8-bit bands keep 0..255. Elsewhere NaN, infinities, nodata and masked pixels are ignored, and so are
    pixels that are zero in every band, which is what unwritten blocks and undeclared nodata read as. Where
    the sample holds nothing else, integers get 0..65535 (or their type's maximum) and floats 0..1.
    """
    unique = sorted(set(bands))
    ranges: dict[int, tuple[float, float]] = {band: _UINT8_RANGE for band in unique}
    wide = [band for band in unique if dataset.dtypes[band - 1] != "uint8"]
    if wide:
        samples = sample_values(dataset, wide)
        for band, sample in zip(wide, samples, strict=True):
            ranges[band] = _range(sample, dtype=np.dtype(dataset.dtypes[band - 1]), percentiles=percentiles)
    return Stretch(tuple(ranges[band][0] for band in bands), tuple(ranges[band][1] for band in bands))


def _range(
    sample: npt.NDArray[np.float64], *, dtype: np.dtype[Any], percentiles: tuple[float, float]
) -> tuple[float, float]:
    if sample.size:
        low, high = np.percentile(sample, percentiles)
        return float(low), float(high)
    if dtype.kind == "f":
        return 0.0, 1.0
    return 0.0, float(min(np.iinfo(dtype).max, 65535))
