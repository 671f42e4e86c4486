"""Rasters of classes, written block by block, with the colours of the classes in the file."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from .writer import LabelWriter

Colour = tuple[int, int, int]


class ClassWriter(LabelWriter):
    """A GeoTIFF of bytes: class ids, or another measure of 0 to 254; `nodata` where nothing is known.

    `colours` (red, green, blue, 0 to 255) become the colour table, `names` the metadata item CLASS_<id>. Otherwise as
    `LabelWriter`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shape: tuple[int, int],
        transform: Affine,
        crs: CRS | None,
        nodata: int = 0,
        colours: Mapping[int, Colour] | None = None,
        names: Mapping[int, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        named = {f"CLASS_{number}": name for number, name in (names or {}).items()}
        super().__init__(
            path,
            shape=shape,
            transform=transform,
            crs=crs,
            dtype="uint8",
            nodata=nodata,
            tags={**(tags or {}), **named},
        )
        if colours:
            with self._access():
                table = {number: (*colour, 255) for number, colour in colours.items()}
                self._dataset.write_colormap(1, {nodata: (0, 0, 0, 0), **table})

    def __enter__(self) -> ClassWriter:
        """Return the writer itself."""
        return self

    def write(self, values: npt.NDArray[np.uint8], *, row_off: int, col_off: int) -> None:
        """Put values (rows, cols) at (`row_off`, `col_off`), which must lie inside the raster."""
        window = Window(col_off, row_off, values.shape[1], values.shape[0])
        with self._access():
            self._dataset.write(values, 1, window=window)
