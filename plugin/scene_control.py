"""From the chosen raster to an encoded view: opens scenes, follows the canvas, says how far it is."""

from __future__ import annotations

from dataclasses import replace

from qgis.core import QgsGeometry, QgsProject, QgsRasterLayer, QgsRectangle
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from ..processing.algorithms.raster_source import read_source
from ..processing.algorithms.settings import read_settings
from ..processing.errors import RasterError
from .crs import CanvasToRaster, CoordinateError
from .engine_worker import EngineWorker
from .exchange import Failure, SceneInfo, SceneSpec
from .status import Phase, Status

# The view has settled when nothing moved for this long: shorter encodes what the user only pans across.
_SETTLE_MS = 250


class SceneControl(QObject):
    """Owns what is open. `changed`: another scene or none, prompts are void. `ready`: questions get answers.

    `status_changed`: the status line is to be written again; `notified` carries a sentence to be shown.
    """

    changed = pyqtSignal()
    ready = pyqtSignal()
    status_changed = pyqtSignal()
    notified = pyqtSignal(str)

    def __init__(self, canvas: QgsMapCanvas, worker: EngineWorker, parent: QObject) -> None:
        super().__init__(parent)
        self._canvas, self._worker = canvas, worker
        self._layer: QgsRasterLayer | None = None
        self._model = self._model_title = ""
        self._spec: SceneSpec | None = None
        self.mapping: CanvasToRaster | None = None
        self.status = Status()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self._encode_view)
        canvas.extentsChanged.connect(self._settle.start)
        canvas.destinationCrsChanged.connect(self._settle.start)
        worker.opened.connect(self._on_opened)
        worker.encoded.connect(self._on_encoded)
        worker.progressed.connect(lambda fraction: self._update(fraction=fraction))
        worker.informed.connect(lambda sentence: self._update(sentence=sentence))
        worker.failed.connect(self._on_failed)
        QgsProject.instance().layersWillBeRemoved.connect(self._on_layers_going)

    @property
    def layer(self) -> QgsRasterLayer | None:
        """The raster layer that is segmented."""
        return self._layer

    @property
    def is_ready(self) -> bool:
        """True where the worker answers questions about the layer."""
        return self.status.phase is Phase.READY

    def dispose(self) -> None:
        """Let go of layer, project and canvas; the worker is stopped by its owner."""
        QgsProject.instance().layersWillBeRemoved.disconnect(self._on_layers_going)
        self._canvas.extentsChanged.disconnect(self._settle.start)
        self._canvas.destinationCrsChanged.disconnect(self._settle.start)
        self._settle.stop()
        self._follow_layer(None)

    def choose_layer(self, layer: QgsRasterLayer | None) -> None:
        """Segment another raster, None for none; it is opened when the tool is active."""
        if layer is self._layer:
            return
        self._follow_layer(layer)
        self.reset()

    def choose_model(self, name: str, *, title: str) -> None:
        """Let another model look at the raster."""
        self._model, self._model_title = name, title
        self.reset()

    def set_tool_active(self, is_active: bool) -> None:
        """Follow the tool: opening and encoding cost time that is spent only for its sake."""
        self._update(is_tool_active=is_active)
        if not is_active:
            self._settle.stop()
            self._worker.pause_encoding()
        elif self.status.phase in (Phase.CLOSED, Phase.FAILED):
            self.open()
        else:
            self._encode_view()

    def set_waiting(self, is_waiting: bool) -> None:
        """Say whether a question is under way."""
        self._update(is_waiting=is_waiting)

    def reset(self) -> None:
        """Start over with the present choices and settings."""
        self.close()
        if self.status.is_tool_active:
            self.open()

    def close(self) -> None:
        """Let go of the scene, or stop opening it; the choices stay."""
        if self._spec is not None:
            self._spec = None
            self._worker.close_scene()
        phase = Phase.NO_RASTER if self._layer is None else Phase.CLOSED
        name = "" if self._layer is None else self._layer.name()
        is_active = self.status.is_tool_active
        self.status = Status(phase, name, self._model_title, is_tool_active=is_active)
        self.changed.emit()
        self.status_changed.emit()

    def open(self) -> None:
        """Open the chosen raster with the chosen model and the present settings."""
        if self._layer is None:
            return
        try:
            # No bands named: the same choice, and so the same cached embeddings, as in the algorithms.
            source = read_source(self._layer, [], use_layer_stretch=False)
        except RasterError as error:
            self._fail(str(error))
            return
        self._spec = SceneSpec(source, self._model, read_settings())
        self._update(phase=Phase.OPENING, sentence="", fraction=None)
        self._worker.open_scene(self._spec)
        if not self._worker.isRunning():
            self._worker.start()

    def zoom_to_layer(self) -> None:
        """Show the whole raster."""
        if self.mapping is None or self._layer is None:
            return
        try:
            outline = self.mapping.to_canvas(QgsGeometry.fromRect(self._layer.extent()))
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        self._canvas.setExtent(outline.boundingBox())
        self._canvas.refresh()

    def _follow_layer(self, layer: QgsRasterLayer | None) -> None:
        if self._layer is not None:
            self._layer.crsChanged.disconnect(self._on_layer_altered)
            self._layer.dataSourceChanged.disconnect(self._on_layer_altered)
        self._layer = layer
        self.mapping = None
        if layer is not None:
            self.mapping = CanvasToRaster(self._canvas, layer.crs())
            layer.crsChanged.connect(self._on_layer_altered)
            layer.dataSourceChanged.connect(self._on_layer_altered)

    def _on_layer_altered(self) -> None:
        self._follow_layer(self._layer)
        self.reset()

    def _on_layers_going(self, layer_ids: list[str]) -> None:
        if self._layer is not None and self._layer.id() in layer_ids:
            self.choose_layer(None)

    def _encode_view(self) -> None:
        if not self.is_ready or not self.status.is_tool_active or self.mapping is None or self._layer is None:
            return
        try:
            view = self.mapping.view()
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        is_in_view = self._layer.extent().intersects(QgsRectangle(*view))
        self._update(is_in_view=is_in_view)
        if is_in_view:
            self._worker.encode_view(view)

    def _on_opened(self, spec: SceneSpec, info: SceneInfo) -> None:
        if spec is self._spec:
            self._update(phase=Phase.READY, info=info, n_planned=None, n_encoded=0)
            # The click that waits goes first; the view is encoded after it.
            self.ready.emit()
            self._encode_view()

    def _on_encoded(self, n_encoded: int, n_planned: int) -> None:
        self._update(n_encoded=n_encoded, n_planned=n_planned)

    def _on_failed(self, failure: Failure) -> None:
        if failure.spec is None:
            self._update(n_planned=None)
            self.notified.emit(failure.sentence)
        elif failure.spec is self._spec:
            self._fail(failure.sentence)

    def _fail(self, sentence: str) -> None:
        self._spec = None
        self._update(phase=Phase.FAILED, sentence=sentence)
        self.notified.emit(sentence)

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]  # names are those of Status
        self.status_changed.emit()
