"""The one way to GDAL: bounded memory, and errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio.errors import RasterioError

from ..errors import RasterError

_BLOCK_CACHE_BYTES = 16 * 2**20
"""Enough for a window of 1024 px over 3 x 3 tiles of 512 px with three 16-bit bands; GDAL's own limit is 5 % of the
machine's memory, which a large raster fills."""


@contextmanager
def gdal_access(path: str, *, verb: str, remedy: str) -> Iterator[None]:
    """Run the body with a small block cache and turn GDAL's errors into `RasterError`.

    The sentence reads "`path` cannot be `verb` (what GDAL said); `remedy`."
    """
    try:
        # Options of this context, never environment variables: QGIS may share the process's GDAL. The fast path for
        # whole PNG images takes the missing part of a truncated one for data.
        with rasterio.Env(GDAL_CACHEMAX=_BLOCK_CACHE_BYTES, GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
            yield
    except (RasterioError, OSError) as error:
        reason = str(error.__cause__ or error).strip().rstrip(".").replace("\n", " ")
        raise RasterError(f"{path} cannot be {verb} ({reason}); {remedy}.") from error
