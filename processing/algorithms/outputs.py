"""Polygons into whatever the user chose as output, complete or not at all."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsDataSourceUri,
    QgsDistanceArea,
    QgsFeature,
    QgsFeatureSink,
    QgsField,
    QgsFields,
    QgsGeometry,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputLayerDefinition,
    QgsProperty,
    QgsProviderConnectionException,
    QgsProviderRegistry,
    QgsUnitTypes,
    QgsVectorFileWriter,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QMetaType, QVariant

from ..errors import JobError
from .base import check_folder
from .input_files import check_inputs

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from ..jobs.segment import SegmentedObject

# QGIS 3.38 moved fields from QVariant's types to QMetaType's; Qt 6 knows only the latter.
_NEW_TYPES = Qgis.versionInt() >= 33800
TEXT = QMetaType.Type.QString if _NEW_TYPES else QVariant.String
DOUBLE = QMetaType.Type.Double if _NEW_TYPES else QVariant.Double
INTEGER = QMetaType.Type.Int if _NEW_TYPES else QVariant.Int

_KINDS = {
    "object_id": TEXT,
    "class": TEXT,
    "score": DOUBLE,
    "stability": DOUBLE,
    "area_m2": DOUBLE,
    "perimeter_m": DOUBLE,
    "clicks": INTEGER,
    "seconds": DOUBLE,
    "model": TEXT,
    "adapter": TEXT,
    "date": TEXT,
}
# The first six have been there since 0.1.0, in this order.
_OBJECT_FIELDS = ("object_id", "class", "score", "stability", "area_m2", "model", "perimeter_m", "adapter", "date")
# After a day without a change a result was left by a run that was killed; one that goes on may be silent for hours.
_STALE_S = 86400.0


def object_fields(more: Mapping[str, Any] | None = None) -> QgsFields:
    """Return the fields of every polygon output, then `more` (name and type); their names are public."""
    return make_fields({name: _KINDS[name] for name in _OBJECT_FIELDS} | dict(more or {}))


def accepted_fields() -> QgsFields:
    """Return the fields of objects that a person accepted: those of the outputs, the clicks and the seconds."""
    return make_fields(_KINDS)


def make_fields(kinds: Mapping[str, Any]) -> QgsFields:
    """Return fields by name and type (`TEXT`, `DOUBLE`, `INTEGER`), in this order."""
    fields = QgsFields()
    for name, kind in kinds.items():
        fields.append(QgsField(name, kind))
    return fields


def now() -> str:
    """Return the date for the field `date`: ISO 8601 to the second, local time with its offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class Ellipsoid:
    """Measures polygons of one CRS on its ellipsoid, in any unit of that CRS."""

    def __init__(self, crs: QgsCoordinateReferenceSystem, context: QgsCoordinateTransformContext) -> None:
        self._is_known = crs.isValid()
        self._measure = QgsDistanceArea()
        self._measure.setSourceCrs(crs, context)
        self._measure.setEllipsoid(crs.ellipsoidAcronym())
        # An engineering CRS has no ellipsoid: plane, in its own unit.
        self._unit_m = 1.0
        if self._is_known and not self._measure.willUseEllipsoid():
            self._unit_m = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), QgsUnitTypes.DistanceMeters)

    def area_m2(self, geometry: QgsGeometry) -> float | None:
        """Return the area in m2, None without a CRS."""
        return self._measure.measureArea(geometry) * self._unit_m**2 if self._is_known else None

    def perimeter_m(self, geometry: QgsGeometry) -> float | None:
        """Return the length of all rings in metres, None without a CRS."""
        return self._measure.measurePerimeter(geometry) * self._unit_m if self._is_known else None


class FeatureOutput:
    """An open sink for polygons: where it writes to, and how many it got."""

    def __init__(self, sink: QgsFeatureSink, destination: str, *, fields: QgsFields) -> None:
        self._sink, self._fields = sink, fields
        self.destination = destination
        self.n_written = 0

    def add(self, geometry: QgsGeometry, values: Mapping[str, Any]) -> None:
        """Add a feature with values by name of the field. Raises `JobError` where the file takes no more."""
        feature = QgsFeature(self._fields)
        feature.setGeometry(geometry)
        feature.setAttributes([values[name] for name in self._fields.names()])
        if not self._sink.addFeature(feature, QgsFeatureSink.FastInsert):
            raise JobError(f"Cannot write to {self.destination} ({self._sink.lastError()}); check space and rights.")
        self.n_written += 1

    def close(self) -> None:
        """Let go of the sink, which completes the file."""
        del self._sink


class ObjectOutput:
    """Segmented objects into an open sink; `adapter` goes into the field of that name."""

    def __init__(self, output: FeatureOutput, *, ellipsoid: Ellipsoid, adapter: str) -> None:
        self._output, self._ellipsoid, self._adapter = output, ellipsoid, adapter

    @property
    def destination(self) -> str:
        """What the sink writes to: a file, a table, the id of a layer in memory."""
        return self._output.destination

    @property
    def n_written(self) -> int:
        """How many objects were written."""
        return self._output.n_written

    def write(self, found: SegmentedObject, more: Mapping[str, Any] | None = None) -> None:
        """Add one object, with values for `more_fields`. Raises `JobError` where the file takes no more."""
        geometry = from_shapely(found.geometry)
        values = {
            "object_id": found.object_id,
            "class": found.class_name,
            "score": found.score,
            "stability": found.stability,
            "area_m2": found.area_m2,
            "model": found.model,
            "perimeter_m": self._ellipsoid.perimeter_m(geometry),
            "adapter": self._adapter,
            "date": now(),
        }
        self._output.add(geometry, values | dict(more or {}))


def from_shapely(geometry: BaseGeometry) -> QgsGeometry:
    """Return QGIS's copy of a geometry."""
    import shapely

    copy = QgsGeometry()
    copy.fromWkb(shapely.to_wkb(geometry))
    return copy


@contextmanager
def object_output(
    algorithm: QgsProcessingAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    *,
    name: str,
    crs: QgsCoordinateReferenceSystem,
    provenance: Mapping[str, str],
    adapter: str = "",
    more_fields: Mapping[str, Any] | None = None,
) -> Iterator[ObjectOutput]:
    """Open the sink `name` for objects, as `feature_output` does; `more_fields`: those of `object_fields`."""
    fields, ellipsoid = object_fields(more_fields), Ellipsoid(crs, context.transformContext())
    with feature_output(
        algorithm, parameters, context, name=name, crs=crs, fields=fields, provenance=provenance
    ) as output:
        yield ObjectOutput(output, ellipsoid=ellipsoid, adapter=adapter)


@contextmanager
def feature_output(
    algorithm: QgsProcessingAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    *,
    name: str,
    crs: QgsCoordinateReferenceSystem,
    fields: QgsFields,
    provenance: Mapping[str, str],
    kind: QgsWkbTypes.Type = QgsWkbTypes.MultiPolygon,
) -> Iterator[FeatureOutput]:
    """Open the sink `name` for features of a `kind`; if the work inside fails or is cancelled, what it wrote goes.

    A file comes to its name when the work is done; until then an older one stays there, also where the program is
    killed. `provenance` goes into the metadata of the layer or of the GeoPackage's table. Open it before the work, so
    that an output that cannot be written is known at once. Raises `JobError` where it cannot, and where it would
    replace what the algorithm reads.
    """
    path, table = _file_and_table(parameters.get(name), context)
    check_inputs(algorithm, parameters, context, path=path, table=table)
    # A table goes into the file that is there; what is no path, into memory or to a server.
    is_file = path.is_absolute() and not table
    if is_file:
        check_folder(path, "polygons")
    with _taking_the_place_of(path) if is_file else nullcontext(path) as file:
        given = parameters if file == path else {**parameters, name: _written_to(file, parameters[name])}
        try:
            sink, made = algorithm.parameterAsSink(given, name, context, fields, kind, crs)
        except QgsProcessingException as error:
            if not is_file:
                raise
            raise JobError(f"{path} cannot be written; check space and rights ({error}).") from error
        if sink is None:
            raise QgsProcessingException(algorithm.invalidSinkError(parameters, name))
        destination = made if file == path else _moved(made, path.parent, context)
        output = FeatureOutput(sink, destination, fields=fields)
        del sink  # the output holds the only reference, so that closing it completes the file
        try:
            yield output
        except BaseException:
            output.close()
            _remove(made, context, is_table=bool(table))
            raise
        output.close()
        try:
            _record(made, context, provenance)
        except JobError:
            _remove(made, context, is_table=bool(table))
            raise


def _file_and_table(chosen: Any, context: QgsProcessingContext) -> tuple[Path, str]:
    """The file of a sink, and the table where it is one in a database; a name without a file for other sinks."""
    if isinstance(chosen, QgsProcessingOutputLayerDefinition):
        chosen = chosen.sink
    if isinstance(chosen, QgsProperty):
        chosen, _ = chosen.valueAsString(context.expressionContext(), "")
    text = str(chosen or "")
    if text.startswith("ogr:"):
        uri = QgsDataSourceUri(text[len("ogr:") :])
        return Path(uri.database()), uri.table()
    path = Path(QgsProviderRegistry.instance().decodeUri("ogr", text).get("path") or text)
    if path.name and not QgsVectorFileWriter.driverForExtension(path.suffix[1:]):
        # As QGIS does with a name that tells no format.
        path = path.with_name(f"{path.name}.gpkg")
    return path, ""


@contextmanager
def _taking_the_place_of(path: Path) -> Iterator[Path]:
    """A file in a hidden folder beside `path`, of the same name (that of its table), which takes its place in the end.

    Not where the body fails. What killed runs left there goes. Raises `JobError`.
    """
    folder = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    try:
        _remove_remains(path)
        # Changes nothing, but Windows refuses it where another program holds the file: known now, not after the work.
        if path.exists():
            path.replace(path)
        folder.mkdir()
    except OSError as error:
        raise JobError(
            f"{path} cannot be replaced ({error.strerror or error}); close the program that holds it, or choose "
            "another file for the result."
        ) from error
    try:
        yield folder / path.name
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        made = {file.name for file in folder.iterdir()}
        # First what would be read with the new file: journals of the older one.
        for file in _files(path)[1:]:
            if file.name not in made:
                file.unlink(missing_ok=True)
        for name in made:
            (folder / name).replace(path.with_name(name))
        folder.rmdir()
    except OSError as error:
        raise JobError(
            f"{path} cannot be replaced ({error.strerror or error}), and the result lies in {folder}; close the "
            "program that holds the older file, and move the result there."
        ) from error


def _remove_remains(path: Path) -> None:
    """Remove what runs that were killed long ago left beside `path`."""
    left = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{8}}\.part")
    for folder in path.absolute().parent.iterdir():
        # One that another program holds does no harm but the space that it takes.
        with suppress(OSError):
            if left.fullmatch(folder.name) and time.time() - _last_change(folder) > _STALE_S:
                shutil.rmtree(folder)


def _last_change(folder: Path) -> float:
    return max(file.stat().st_mtime for file in (folder, *folder.iterdir()))


def _written_to(file: Path, chosen: Any) -> Any:
    """A sink that writes to `file`, with all else that was chosen."""
    if not isinstance(chosen, QgsProcessingOutputLayerDefinition):
        return str(file)
    moved = QgsProcessingOutputLayerDefinition(chosen)
    moved.sink = QgsProperty.fromValue(str(file))
    return moved


def _moved(made: str, folder: Path, context: QgsProcessingContext) -> str:
    """The destination of a sink once its file has come to `folder`; QGIS loads it from there."""
    parts = QgsProviderRegistry.instance().decodeUri("ogr", made)
    path = folder / Path(parts["path"]).name
    destination = str(QgsProviderRegistry.instance().encodeUri("ogr", {**parts, "path": str(path)}))
    layers = context.layersToLoadOnCompletion()
    if made in layers:
        layers[destination] = layers.pop(made)
        context.setLayersToLoadOnCompletion(layers)
    return destination


def _files(path: Path) -> list[Path]:
    """A file of polygons, and what may lie beside it as a part of it."""
    files = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))]
    if path.suffix == ".shp":
        files += [path.with_suffix(suffix) for suffix in (".shx", ".dbf", ".prj", ".cpg", ".qmd")]
    return files


def _record(destination: str, context: QgsProcessingContext, provenance: Mapping[str, str]) -> None:
    """Write how a result was made where it stays with it; formats without metadata do without."""
    layer = context.temporaryLayerStore().mapLayer(destination)
    if layer is not None:
        metadata = layer.metadata()
        metadata.setHistory([f"{key}={value}" for key, value in provenance.items()])
        layer.setMetadata(metadata)
        return
    parts = QgsProviderRegistry.instance().decodeUri("ogr", destination)
    path = Path(parts.get("path") or destination)
    if path.suffix != ".gpkg":
        return
    from osgeo import gdal  # QGIS's own

    dataset = gdal.OpenEx(str(path), gdal.OF_VECTOR | gdal.OF_UPDATE)
    name = parts.get("layerName")
    # A file of its own holds one table, which QGIS calls by its name up to the first dot.
    table = None if dataset is None else dataset.GetLayerByName(name) if name else dataset.GetLayer(0)
    if table is None or table.SetMetadata(dict(provenance)) != gdal.CE_None:
        raise JobError(f"Cannot write the metadata of {destination}; check space and rights.")


def class_output(
    algorithm: QgsProcessingAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    *,
    name: str,
    crs: QgsCoordinateReferenceSystem,
    provenance: Mapping[str, str],
) -> AbstractContextManager[FeatureOutput | None]:
    """Open the sink `name` for polygons of classes (class, class_id, area_m2) as `feature_output` does, if wanted."""
    if not parameters.get(name):
        return nullcontext()
    return feature_output(
        algorithm,
        parameters,
        context,
        name=name,
        crs=crs,
        fields=make_fields({"class": TEXT, "class_id": INTEGER, "area_m2": DOUBLE}),
        provenance=provenance,
        kind=QgsWkbTypes.Polygon,
    )


def _remove(destination: str, context: QgsProcessingContext, *, is_table: bool) -> None:
    """Remove what a sink wrote: a layer in memory, a table of a database, or a file with its companions."""
    if context.takeResultLayer(destination) is not None:
        return
    parts = QgsProviderRegistry.instance().decodeUri("ogr", destination)
    path = Path(parts.get("path") or destination)
    metadata = QgsProviderRegistry.instance().providerMetadata("ogr")
    try:
        connection = metadata.createConnection(str(path), {}) if is_table and path.suffix == ".gpkg" else None
        if connection is not None and len(connection.tables()) > 1:
            connection.dropVectorTable("", parts.get("layerName") or path.stem)
            return
    except QgsProviderConnectionException as error:
        raise JobError(f"Cannot remove the unfinished table of {path} ({error}); delete it yourself.") from error
    for file in _files(path):
        file.unlink(missing_ok=True)
