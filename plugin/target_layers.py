"""New layers of objects, in memory or in a file."""

from __future__ import annotations

import re
from pathlib import Path

from qgis.core import QgsCoordinateReferenceSystem, QgsProject, QgsVectorFileWriter, QgsVectorLayer, QgsWkbTypes

from ..processing.algorithms.outputs import accepted_fields
from ..processing.algorithms.resources import style_path
from .feature_sink import SinkError


def new_scratch_layer(crs: QgsCoordinateReferenceSystem, *, name: str) -> QgsVectorLayer:
    """Return an empty layer in memory with the fields of an object, styled; not in the project yet."""
    layer = QgsVectorLayer("MultiPolygon", name, "memory")
    layer.setCrs(crs)
    layer.dataProvider().addAttributes(list(accepted_fields()))
    layer.updateFields()
    layer.dataProvider().createSpatialIndex()
    layer.loadNamedStyle(style_path("accepted"))
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
        accepted_fields(),
        QgsWkbTypes.Type.MultiPolygon,
        crs,
        QgsProject.instance().transformContext(),
        options,
    )
    error, reason = writer.hasError(), writer.errorMessage()
    del writer  # closes the file
    if error != QgsVectorFileWriter.WriterError.NoError:
        path.unlink(missing_ok=True)
        raise SinkError(f"Cannot create {path} ({reason}); choose a folder that you may write to.")
    layer = QgsVectorLayer(f"{path}|layername={options.layerName}", path.stem, "ogr")
    if not layer.isValid():
        path.unlink(missing_ok=True)  # the writer does not notice a full disk
        raise SinkError(f"Cannot create {path} (its table cannot be read); choose a folder that has room.")
    layer.loadNamedStyle(style_path("accepted"))
    return layer
