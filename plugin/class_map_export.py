"""What leaves the class map: rasters and polygons, written in the background, and what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsDataProvider,
    QgsProject,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QFileDialog, QWidget

from ..processing.algorithms.base import with_ending
from .actions import Actions
from .class_map_tasks import MapTask, SaveClassModel, WriteMap, WritePolygons, Written
from .class_style import OWN_LAYER, style_classes
from .engine_worker import EngineWorker
from .exchange import Failure

_GEOPACKAGE = "GeoPackage (*.gpkg)"
_WRITING = "map_raster", "map_all_polygons", "map_polygons"
"""Actions that take a while and can be stopped."""
MODEL_FILES = "Class map model (*.safetensors)"


class ClassMapExport(QObject):
    """Makes the actions that write files; what is written goes into the project.

    `do` hands the worker a task of a kind, with its values, and returns it, or None where that cannot be. `informed`
    carries a sentence about what is done, `notified` one about what cannot be, `progressed` how much is written, in
    percent; `changed`: something is written, or nothing any more. `window` is below the questions for files.
    """

    informed = pyqtSignal(str)
    notified = pyqtSignal(str)
    changed = pyqtSignal()
    progressed = pyqtSignal(int)

    def __init__(
        self,
        worker: EngineWorker,
        *,
        actions: Actions,
        do: Callable[..., MapTask | None],
        window: QWidget,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._worker, self._actions, self._do, self._window = worker, actions, do, window
        self._task: MapTask | None = None
        self._key = ""
        """Of the action that writes."""
        add = partial(actions.add, group="Class map")
        for key, text, label, kinds, write, tip in (
            ("map_raster", "Map the whole raster…", "Whole raster…", "GeoTIFF (*.tif)", self.write_raster,
             "Map the whole raster into a GeoTIFF"),
            ("map_all_polygons", "Polygons of the whole raster…", "Raster's polygons…", _GEOPACKAGE,
             self.write_all_polygons, "Write the areas of the whole raster into a GeoPackage"),
            ("map_polygons", "Polygons of the view…", "View's polygons…", _GEOPACKAGE, self.write_polygons,
             "Write the areas of the view into a GeoPackage"),
        ):  # fmt: skip
            add(key, text, partial(self._write_or_stop, text, kinds, write), tip=tip, label=label)
        text, tip = "Save class map model…", "Save what was learned, to map other rasters"
        save = partial(self._with_path, text, MODEL_FILES, self.save_model)
        add("map_save", text, save, tip=tip, label="Save model…")
        worker.worked.connect(self._on_worked)
        worker.done.connect(self._on_ended)
        worker.failed.connect(self._on_failed)

    def write_raster(self, path: Path) -> None:
        """Map the whole raster into a file."""
        self._write("map_raster", WriteMap, path=path)

    def write_polygons(self, path: Path) -> None:
        """Write the polygons of the view."""
        self._write("map_polygons", WritePolygons, path=path)

    def write_all_polygons(self, path: Path) -> None:
        """Write the polygons of the whole raster."""
        self._write("map_all_polygons", WritePolygons, path=path, is_whole=True)

    def save_model(self, path: Path) -> None:
        """Save what was learned."""
        self._do(SaveClassModel, path=path)

    def forget(self) -> None:
        """Forget what is written: the worker has dropped it."""
        self._task = None

    @property
    def is_writing(self) -> bool:
        """Whether something is being written."""
        return self._task is not None

    def show(self, *, has_map: bool) -> None:
        """Bring the actions up to date; `has_map`: there is something to write."""
        writing = self._key if self.is_writing else ""
        self._actions["map_save"].setEnabled(has_map)
        for key in _WRITING:
            self._actions[key].setEnabled(key == writing or (has_map and not writing))
            self._actions.offer_stop(key, "Stop writing" if key == writing else "")

    def _write(self, key: str, kind: type[MapTask], *, path: Path, **values: Any) -> None:
        kept = _own_layer_in(path)
        if kept is not None:
            self.notified.emit(
                f"The map would replace {path}, where the objects of '{kept.name()}' are kept; choose another name."
            )
            return
        self._task, self._key = self._do(kind, path=path, **values), key
        self.changed.emit()

    def _write_or_stop(self, title: str, kinds: str, write: Callable[[Path], None]) -> None:
        if self._task is not None:
            self._worker.cancel(self._task)
            self._on_ended(self._task)
        else:
            self._with_path(title, kinds, write)

    def _with_path(self, title: str, kinds: str, use: Callable[[Path], None]) -> None:
        path, _ = QFileDialog.getSaveFileName(self._window, title.rstrip("…"), "", kinds)
        if path:
            use(with_ending(path, kinds[kinds.index("*") + 1 : -1]))

    def _on_worked(self, task: Any, item: Any) -> None:
        if self._task is None or task is not self._task:
            return
        if isinstance(item, Written):
            _show(item)
            self.informed.emit(item.sentence)
        else:
            self.progressed.emit(round(100 * item))

    def _on_ended(self, task: Any) -> None:
        if self._task is not None and task is self._task:
            self._task = None
            self.changed.emit()

    def _on_failed(self, failure: Failure) -> None:
        self._on_ended(failure.task)


def _own_layer_in(path: Path) -> QgsVectorLayer | None:
    """Return the layer of accepted objects of the project that is kept in a file, None where none is."""
    for layer in _layers_in(path):
        if isinstance(layer, QgsVectorLayer) and layer.customProperty(OWN_LAYER):
            return layer
    return None


def _layers_in(path: Path) -> Iterator[QgsRasterLayer | QgsVectorLayer]:
    """The layers of the project that are kept in a file."""
    for layer in QgsProject.instance().mapLayers().values():
        if not isinstance(layer, QgsRasterLayer | QgsVectorLayer):
            continue
        parts = QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source())
        file = Path(parts.get("path") or "")
        if file.is_file() and path.exists() and path.samefile(file):
            yield layer


def _show(written: Written) -> None:
    """Add the file to the project; layers that show it already open it anew, as another file has its name now."""
    path = written.path
    shown = list(_layers_in(path))
    for layer in shown:
        layer.setDataSource(layer.source(), layer.name(), layer.providerType(), QgsDataProvider.ProviderOptions())
    if not shown:
        is_vector = path.suffix.lower() == ".gpkg"
        # The colours of a raster are in the file.
        layer = QgsVectorLayer(str(path), path.stem, "ogr") if is_vector else QgsRasterLayer(str(path), path.stem)
        shown.append(QgsProject.instance().addMapLayer(layer))
    for layer in shown:
        if isinstance(layer, QgsVectorLayer):
            layer.updateExtents(True)
            style_classes(layer, {name: QColor(*colour) for name, colour in written.colours.items()})
