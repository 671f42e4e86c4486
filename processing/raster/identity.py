"""What tells one raster's content from another's in cache keys, without reading all of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rasterio.io import DatasetReader
from rasterio.windows import Window

_PROBE_PX = 64


def raster_identity(dataset: DatasetReader, path: str) -> str:
    """`path` (absolute where it is a file) and a digest that changes with the content.

    For files the digest covers name, size and time of modification of all that the dataset consists of: the
    sources of a VRT, external overviews and masks. Where none can be asked (/vsicurl, /vsimem) it covers the
    grid and a probe of pixels from the centre, the best that is known without reading everything.
    """
    states = file_states(files_of(dataset, path))
    digest = hashlib.sha256()
    for state in states:
        digest.update(f"{state}\n".encode())
    if not states:
        digest.update(repr((dataset.shape, dataset.dtypes, tuple(dataset.transform), dataset.nodatavals)).encode())
        row, col = max(0, dataset.height - _PROBE_PX) // 2, max(0, dataset.width - _PROBE_PX) // 2
        window = Window(col, row, min(_PROBE_PX, dataset.width), min(_PROBE_PX, dataset.height))
        digest.update(dataset.read(window=window).tobytes())
    shown = str(Path(path).absolute()) if Path(path).exists() else path
    return f"{shown}|{digest.hexdigest()[:32]}"


def files_of(dataset: DatasetReader, path: str) -> tuple[str, ...]:
    """Files on disk that a dataset consists of, sorted; without the statistics that QGIS may add at any time."""
    names = {name for file in (path, *dataset.files) if (name := _file_behind(file)) and not name.endswith(".aux.xml")}
    return tuple(sorted(names))


def file_states(names: tuple[str, ...]) -> tuple[str, ...]:
    """Name, size and time of modification of each file. Raises `OSError` where one is gone."""
    states = []
    for name in names:
        stat = Path(name).stat()
        states.append(f"{name}|{stat.st_size}|{stat.st_mtime_ns}")
    return tuple(states)


def _file_behind(name: str) -> str | None:
    """The file on disk that `name` reads from, an archive's for a path into it; None where there is none."""
    path = Path(re.sub(r"^(/vsi(zip|tar|gzip)/)+", "", name)).absolute()
    for candidate in (path, *path.parents):
        if candidate.is_file():
            return str(candidate)
    return None
