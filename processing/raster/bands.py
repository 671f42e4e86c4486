"""Which bands become red, green and blue, and how a palette becomes colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from ..errors import RasterError

_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def choose_bands(dataset: DatasetReader, bands: Sequence[int] | None) -> tuple[int, int, int]:
    """Three bands (1-based) for red, green, blue.

    `bands` names one, which is then used three times, or three, in any order and with repeats. None chooses
    by colour interpretation, then by band names, then the first three that are not alpha; with one or two
    such bands the first. Raises `RasterError` for a wrong number of bands or a band that is not there.
    """
    if bands is None:
        return _default_bands(dataset)
    chosen = tuple(int(band) for band in bands)
    missing = [band for band in chosen if not 1 <= band <= dataset.count]
    if missing:
        raise RasterError(f"Band {missing[0]} is not in {dataset.name}; choose from 1 to {dataset.count}.")
    if len(chosen) == 1:
        return chosen * 3
    if len(chosen) != 3:
        raise RasterError(f"Bands {list(chosen)}; give one band, or three for red, green and blue.")
    return chosen


def _default_bands(dataset: DatasetReader) -> tuple[int, int, int]:
    meanings = list(dataset.colorinterp)
    if all(colour in meanings for colour in _COLOURS):
        red, green, blue = (meanings.index(colour) + 1 for colour in _COLOURS)
        return red, green, blue
    names = [(name or "").strip().lower() for name in dataset.descriptions]
    if all(colour.name in names for colour in _COLOURS):
        red, green, blue = (names.index(colour.name) + 1 for colour in _COLOURS)
        return red, green, blue
    data = [band for band in dataset.indexes if meanings[band - 1] != ColorInterp.alpha] or [1]
    if len(data) < 3:
        return data[0], data[0], data[0]
    return data[0], data[1], data[2]


def read_palette(dataset: DatasetReader, bands: Sequence[int]) -> npt.NDArray[np.uint8] | None:
    """(entries, 4) red, green, blue, alpha where `bands` all are one band with a palette, else None."""
    band = bands[0]
    if len(set(bands)) > 1 or dataset.colorinterp[band - 1] != ColorInterp.palette:
        return None
    try:
        colours = dataset.colormap(band)
    except ValueError:  # rasterio's word for a band that calls itself palette and brings none
        return None
    palette = np.zeros((max(colours) + 1, 4), np.uint8)
    for entry, colour in colours.items():
        palette[entry] = colour
    return palette
