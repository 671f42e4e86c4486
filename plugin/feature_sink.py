"""Accepted objects become features: one edit command each, in a layer that the user can go on editing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsProject,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsVectorLayerUtils,
    QgsWkbTypes,
)

from ..processing.algorithms.outputs import object_fields
from ..processing.algorithms.resources import style_path
from .crs import transformed


class SinkError(RuntimeError):
    """A layer that cannot be made or written; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class SegmentedFeature:
    """An accepted object: multipolygon `wkb` in the raster's CRS and its attributes."""

    object_id: str
    class_name: str
    wkb: bytes
    score: float
    stability: float
    area_m2: float
    model: str

    def attributes(self) -> dict[str, str | float]:
        """Values by the public names of the fields."""
        return {
            "object_id": self.object_id,
            "class": self.class_name,
            "score": self.score,
            "stability": self.stability,
            "area_m2": self.area_m2,
            "model": self.model,
        }


def new_scratch_layer(crs: QgsCoordinateReferenceSystem, *, name: str) -> QgsVectorLayer:
    """Return an empty layer in memory with the fields of an object, styled; not in the project yet."""
    layer = QgsVectorLayer("MultiPolygon", name, "memory")
    layer.setCrs(crs)
    layer.dataProvider().addAttributes(list(object_fields()))
    layer.updateFields()
    layer.loadNamedStyle(style_path("objects"))
    return layer


def new_geopackage_layer(path: Path, crs: QgsCoordinateReferenceSystem) -> QgsVectorLayer:
    """Create a GeoPackage with an empty layer of objects and return that layer, not in the project yet.

    Raises `SinkError` for a file that exists, which may hold somebody's work, and for a place that
    cannot be written.
    """
    if path.suffix.lower() != ".gpkg":
        path = path.with_name(f"{path.name}.gpkg")
    if path.exists():
        raise SinkError(f"{path} exists already; choose its layer as target, or another file name.")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName, options.layerName = "GPKG", re.sub(r"\W+", "_", path.stem)
    writer = QgsVectorFileWriter.create(
        str(path),
        object_fields(),
        QgsWkbTypes.Type.MultiPolygon,
        crs,
        QgsProject.instance().transformContext(),
        options,
    )
    error, reason = writer.hasError(), writer.errorMessage()
    del writer  # closes the file
    if error != QgsVectorFileWriter.WriterError.NoError:
        raise SinkError(f"Cannot create {path} ({reason}); choose a folder that you may write to.")
    layer = QgsVectorLayer(f"{path}|layername={options.layerName}", path.stem, "ogr")
    if not layer.isValid():
        raise SinkError(f"Cannot open {path} after creating it; choose another folder.")
    layer.loadNamedStyle(style_path("objects"))
    return layer


def add_object(layer: QgsVectorLayer, found: SegmentedFeature, *, crs: QgsCoordinateReferenceSystem) -> list[str]:
    """Add an object as one undo step, and start editing where the layer is not edited yet.

    `crs` is that of `found.wkb`. A layer of single polygons gets one feature per part, attributes alike.
    Returns the names of the fields that the layer lacks, whose values are not stored. Raises `SinkError` and
    `CoordinateError`; the layer is then as it was.
    """
    values = found.attributes()
    indexes = {name: layer.fields().lookupField(name) for name in values}
    geometry = QgsGeometry()
    geometry.fromWkb(found.wkb)
    geometry = transformed(geometry, crs, destination=layer.crs())
    if not layer.isEditable() and not layer.startEditing():
        raise SinkError(f"'{layer.name()}' cannot be edited; choose another target layer.")
    layer.beginEditCommand(f"SegAdapt: accept {found.class_name or 'object'}")
    attributes = {index: values[name] for name, index in indexes.items() if index >= 0}
    if not layer.addFeatures(_features(layer, geometry, attributes)):
        layer.destroyEditCommand()
        raise SinkError(f"'{layer.name()}' refused the object; look at its geometry type and constraints.")
    layer.endEditCommand()
    return [name for name, index in indexes.items() if index < 0]


def _features(layer: QgsVectorLayer, geometry: QgsGeometry, attributes: dict[int, str | float]) -> list[QgsFeature]:
    parts = geometry.coerceToType(layer.wkbType())
    return [QgsVectorLayerUtils.createFeature(layer, part, attributes) for part in parts]
