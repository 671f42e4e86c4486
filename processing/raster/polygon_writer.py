"""Polygons written as they come, where memory does not grow with their number."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import geopandas
import numpy as np
import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from rasterio.crs import CRS
from shapely.geometry import Polygon

from ..errors import RasterError

_BATCH = 5000
_PROBLEMS = (DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError, OSError)


class PolygonWriter:
    """A GeoPackage with one table of polygons, named after the file.

    It grows under a temporary name beside `path`. `commit` puts it in place; leaving the `with` block without it, by an
    error or a cancel, removes it and leaves an older file at `path` as it was. `fields`: numpy types by name, `object`
    for text. Raises `RasterError` where the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, crs: CRS | None, fields: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".gpkg":
            raise RasterError(f"{path} would hold a GeoPackage; give a name that ends in .gpkg.")
        self.n_written = 0
        self._crs, self._fields = crs, dict(fields)
        # Hidden and unique: a second run must not write into the first one's file.
        self._part = self.path.with_name(f".{self.path.stem}-{secrets.token_hex(4)}.part.gpkg")
        self._polygons: list[Polygon] = []
        self._rows: list[tuple[Any, ...]] = []
        # At once, so that a place that cannot be written is known before the work.
        self._flush()

    def __enter__(self) -> PolygonWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written, unless `commit` put it in place."""
        self.discard()

    def add(self, polygon: Polygon, values: Mapping[str, Any]) -> None:
        """Add a polygon in the file's CRS with a value for every field."""
        self._polygons.append(polygon)
        self._rows.append(tuple(values[name] for name in self._fields))
        self.n_written += 1
        if len(self._polygons) >= _BATCH:
            self._flush()

    def commit(self) -> Path:
        """Finish the file and put it at `path`, replacing what was there; return the path."""
        self._flush()
        with self._access():
            n_in_file = int(pyogrio.read_info(self._part)["features"])
            if n_in_file != self.n_written:
                raise OSError(f"it holds {n_in_file} of {self.n_written} polygons")
            self._part.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Remove the unfinished file; does nothing after `commit`."""
        for end in ("", "-journal", "-wal", "-shm"):
            self._part.with_name(self._part.name + end).unlink(missing_ok=True)

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._fields)
        table = {
            name: np.array(column, kind) for (name, kind), column in zip(self._fields.items(), columns, strict=True)
        }
        frame = geopandas.GeoDataFrame(table, geometry=self._polygons, crs=self._crs)
        with self._access(), warnings.catch_warnings():
            # A plain picture has no CRS to lose.
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            frame.to_file(
                self._part,
                driver="GPKG",
                engine="pyogrio",
                layer=self.path.stem,
                geometry_type="Polygon",
                mode="a" if self._part.exists() else "w",
            )
        self._polygons.clear()
        self._rows.clear()

    @contextmanager
    def _access(self) -> Iterator[None]:
        try:
            yield
        except _PROBLEMS as error:
            self.discard()
            reason = str(error).strip().rstrip(".").replace("\n", " ")
            raise RasterError(
                f"{self.path} cannot be written ({reason}); choose a folder that you may write to, with space left."
            ) from error
