"""What leaves the class map: rasters and polygons, written in the background, and what was learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qgis.core import QgsMapLayer, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QFileDialog

from ..processing.algorithms.base import with_ending
from .class_map_panel import WRITING, ClassMapPanel
from .class_map_tasks import MapTask, SaveClassModel, WriteMap, WritePolygons, Written
from .class_style import style_classes
from .engine_worker import EngineWorker
from .exchange import Failure

_POLYGONS = ("Polygons of the class map", "GeoPackage (*.gpkg)")
MODEL_FILES = "Class map model (*.safetensors)"


class ClassMapExport(QObject):
    """Gives the panel's buttons for files their meaning; what is written goes into the project.

    `do` hands the worker a task of a kind, with its values, and returns it, or None where that cannot be. `informed`
    carries a sentence; `changed`: something is written, or nothing any more.
    """

    informed = pyqtSignal(str)
    changed = pyqtSignal()

    def __init__(
        self, panel: ClassMapPanel, worker: EngineWorker, *, do: Callable[..., MapTask | None], parent: QObject
    ) -> None:
        super().__init__(parent)
        self._panel, self._worker, self._do = panel, worker, do
        self._task: MapTask | None = None
        self._button = ""
        """The name of the button of what is written."""
        for name, title, kinds, write in (
            ("raster", "Class map", "GeoTIFF (*.tif)", self.write_raster),
            ("all_polygons", *_POLYGONS, self.write_all_polygons),
            ("polygons", *_POLYGONS, self.write_polygons),
        ):
            panel.buttons[name].clicked.connect(partial(self._write_or_stop, title, kinds, write))
        panel.buttons["save"].clicked.connect(lambda: self._with_path("Class map model", MODEL_FILES, self.save_model))
        worker.worked.connect(self._on_worked)
        worker.done.connect(self._on_ended)
        worker.failed.connect(self._on_failed)

    def write_raster(self, path: Path) -> None:
        """Map the whole raster into a file."""
        self._write("raster", WriteMap, path=path)

    def write_polygons(self, path: Path) -> None:
        """Write the polygons of the view."""
        self._write("polygons", WritePolygons, path=path)

    def write_all_polygons(self, path: Path) -> None:
        """Write the polygons of the whole raster."""
        self._write("all_polygons", WritePolygons, path=path, is_whole=True)

    def save_model(self, path: Path) -> None:
        """Save what was learned."""
        self._do(SaveClassModel, path=path)

    def forget(self) -> None:
        """Forget what is written: the worker has dropped it."""
        self._task = None

    def show(self, *, has_map: bool) -> None:
        """Bring the buttons and the progress bar up to date; `has_map`: there is something to write."""
        writing = "" if self._task is None else self._button
        self._panel.buttons["save"].setEnabled(has_map)
        for name, text in WRITING.items():
            button = self._panel.buttons[name]
            button.setEnabled(name == writing or (has_map and not writing))
            button.setText("Stop" if name == writing else text)
        self._panel.progress_bar.setVisible(self._task is not None)

    def _write(self, button: str, kind: type[MapTask], **values: Any) -> None:
        self._task, self._button = self._do(kind, **values), button
        self.changed.emit()

    def _write_or_stop(self, title: str, kinds: str, write: Callable[[Path], None], _checked: bool = False) -> None:
        if self._task is not None:
            self._worker.cancel(self._task)
            self._on_ended(self._task)
        else:
            self._with_path(title, kinds, write)

    def _with_path(self, title: str, kinds: str, use: Callable[[Path], None]) -> None:
        path, _ = QFileDialog.getSaveFileName(self._panel, title, "", kinds)
        if path:
            use(with_ending(path, kinds[kinds.index("*") + 1 : -1]))

    def _on_worked(self, task: Any, item: Any) -> None:
        if self._task is None or task is not self._task:
            return
        if isinstance(item, Written):
            QgsProject.instance().addMapLayer(_layer(item))
            self.informed.emit(item.sentence)
        else:
            self._panel.progress_bar.setValue(round(100 * item))

    def _on_ended(self, task: Any) -> None:
        if self._task is not None and task is self._task:
            self._task = None
            self.changed.emit()

    def _on_failed(self, failure: Failure) -> None:
        self._on_ended(failure.task)


def _layer(written: Written) -> QgsMapLayer:
    path = written.path
    if path.suffix.lower() != ".gpkg":
        return QgsRasterLayer(str(path), path.stem)  # its colours are in the file
    layer = QgsVectorLayer(str(path), path.stem, "ogr")
    style_classes(layer, {name: QColor(*colour) for name, colour in written.colours.items()})
    return layer
