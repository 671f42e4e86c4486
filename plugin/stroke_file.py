"""The clicks and scribbles of a class map on the disk: neither a crash nor another raster costs them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from qgis.PyQt.QtGui import QColor

from .class_map_tasks import MapStroke
from .rendered_source import LayerSource
from .save_places import folders


class StrokeFileError(RuntimeError):
    """Strokes that cannot be read or written; the message is one sentence with the remedy."""


class StrokeFile:
    """A hidden GeoJSON for one raster, where new objects go: points and lines in the raster's CRS with their classes.

    It is found again by the data source of the raster, whatever its layer is called.
    """

    def __init__(self, source: LayerSource) -> None:
        self._raster, self._crs_wkt = source.name, source.crs.toWkt()
        what = "\n".join([self._crs_wkt, *(layer.source() for layer in source.layers)])
        self._name = f".segadapt_classes_{hashlib.sha256(what.encode()).hexdigest()[:16]}.geojson"
        self._path = next((path for path in self._places() if path.exists()), None)
        self._written: tuple[MapStroke, ...] = ()

    def read(self) -> tuple[MapStroke, ...]:
        """Return what was stored, the first stroke first; nothing where nothing was. Raises `StrokeFileError`."""
        if self._path is None:
            return ()
        try:
            features = json.loads(self._path.read_text(encoding="utf-8"))["features"]
            self._written = tuple(map(_stroke, features))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StrokeFileError(
                f"The clicks of the class map in {self._path} cannot be read ({error}); copy the file away before the "
                "next click, which replaces it."
            ) from error
        return self._written

    def write(self, strokes: Sequence[MapStroke]) -> None:
        """Store all strokes in place of those before; no file is left for none. Raises `StrokeFileError`."""
        if tuple(strokes) == self._written:
            return
        reasons: list[str] = []
        for path in self._places() if self._path is None else [self._path]:
            try:
                self._replace(path, strokes)
            except OSError as error:
                reasons.append(f"{path.parent}: {error.strerror or error}")
                continue
            self._path, self._written = path, tuple(strokes)
            return
        raise StrokeFileError(
            f"The clicks of the class map cannot be stored ({reasons[0]}), and a crash would lose them; check space "
            "and rights there."
        )

    def _places(self) -> list[Path]:
        return [folder / self._name for folder in folders()]

    def _replace(self, path: Path, strokes: Sequence[MapStroke]) -> None:
        """Write the file whole or not at all. Raises OSError."""
        if not strokes:
            path.unlink(missing_ok=True)
            return
        content = {
            "type": "FeatureCollection",
            "name": self._raster,
            "crs_wkt": self._crs_wkt,
            "features": [_feature(stroke, order) for order, stroke in enumerate(strokes, 1)],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def _feature(stroke: MapStroke, order: int) -> dict[str, Any]:
    points = stroke.points_map
    geometry = (
        {"type": "Point", "coordinates": points[0]}
        if len(points) == 1
        else {"type": "LineString", "coordinates": points}
    )
    properties = {"order": order, "class": stroke.class_name, "colour": QColor(*stroke.colour).name()}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _stroke(feature: dict[str, Any]) -> MapStroke:
    """Raises LookupError, TypeError and ValueError for what `_feature` did not write."""
    geometry, properties = feature["geometry"], feature["properties"]
    points = [geometry["coordinates"]] if geometry["type"] == "Point" else geometry["coordinates"]
    places = tuple((float(x), float(y)) for x, y in points)
    if not places or not all(map(math.isfinite, chain(*places))):
        raise ValueError(f"'{geometry['coordinates']}' is no place")
    red, green, blue, _ = QColor(properties["colour"]).getRgb()
    return MapStroke(places, str(properties["class"]), (red, green, blue))
