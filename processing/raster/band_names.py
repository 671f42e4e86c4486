"""What the bands of a raster are called: how a new model names what it sees, and finds it again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from .access import gdal_access
from .reader import OPEN_REMEDY

_RGB = ("red", "green", "blue")
_COLOURS = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue", ColorInterp.gray: "gray"}


def has_palette(path: str) -> bool:
    """Whether the only band holds numbers of colours. Raises `RasterError` where the raster cannot be opened."""
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return bool(dataset.colorinterp[0] == ColorInterp.palette)


def has_bands(path: str, names: Sequence[str]) -> bool:
    """Whether a raster calls its bands so (`bands_called`). Raises `RasterError` where it cannot be opened."""
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return bands_called(dataset, names) is not None


def read_band_names(path: str, bands: Sequence[int]) -> tuple[str, ...]:
    """Names of `bands` (1-based): what the file calls a colour, its description, or "band 4".

    Bands 1, 2 and 3 of which the file says nothing are red, green and blue, as everywhere in SegAdapt.
    Raises `RasterError` where the raster cannot be opened.
    """
    with gdal_access(path, verb="opened", remedy=OPEN_REMEDY), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return names_of(dataset, bands)


def names_of(dataset: DatasetReader, bands: Sequence[int]) -> tuple[str, ...]:
    """The names that `read_band_names` gives, of an open raster."""
    meanings = [dataset.colorinterp[band - 1] for band in bands]
    described = [(dataset.descriptions[band - 1] or "").strip().lower() for band in bands]
    found = [text if text in _RGB else _COLOURS.get(kind, "") for kind, text in zip(meanings, described, strict=True)]
    if tuple(bands) == (1, 2, 3) and not set(found) & set(_RGB) and not any(described):
        return _RGB
    return tuple(
        name if name in _RGB else text or name or f"band {band}"
        for name, text, band in zip(found, described, bands, strict=True)
    )


def bands_called(dataset: DatasetReader, names: Sequence[str]) -> tuple[int, ...] | None:
    """The bands (1-based) of `names`; None unless each of them is the name of just one, alpha left out.

    "band 4" is the fourth where no band is called so.
    """
    data = [band for band in dataset.indexes if dataset.colorinterp[band - 1] != ColorInterp.alpha]
    own = names_of(dataset, data)
    found: list[int] = []
    for name in (name.strip().lower() for name in names):
        places = [band for band, called in zip(data, own, strict=True) if called == name]
        numbered = re.fullmatch(r"band (\d+)", name)
        if not places and numbered and int(numbered[1]) in data:
            places = [int(numbered[1])]
        if len(places) != 1:
            return None
        found += places
    return tuple(found)
