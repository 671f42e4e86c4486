"""From the chosen raster to an encoded view: opens scenes, follows the canvas, says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qgis.core import (
    QgsGeometry,
    QgsMapLayer,
    QgsPointXY,
    QgsProject,
    QgsRasterDataProvider,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.gui import QgsMapCanvas
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from ..processing.algorithms.raster_source import RasterSource
from ..processing.algorithms.settings import read_settings
from ..processing.errors import RasterError
from .block_renderer import BlockRenderer
from .crs import CanvasToRaster, CoordinateError
from .engine_worker import EngineWorker
from .exchange import Coverage, Failure, SceneInfo, SceneSpec
from .heading import Heading
from .rendered_source import (
    LayerSource,
    Look,
    drawn_units_per_px,
    layer_source,
    map_source,
    note_reload,
    read_layer_source,
    rendered_folder,
)
from .status import Phase, Status

# The view has settled when nothing moved for this long: shorter encodes what the user only pans across.
_SETTLE_MS = 250
# Blocks of a picture come one by one; the worker looks for complete windows this often.
_RESUME_MS = 100
# A picture whose pixels are this much wider than those of the screen is drawn anew: small objects are lost in it.
_COARSER = 4


class SceneControl(QObject):
    """Owns what is open. `changed`: another scene or none, prompts are void. `ready`: questions get answers.

    `status_changed`: the status line is to be written again; `notified` carries a sentence to be shown;
    `covered` what of the view is encoded, None where nothing is open.
    """

    changed = pyqtSignal()
    ready = pyqtSignal()
    status_changed = pyqtSignal()
    notified = pyqtSignal(str)
    covered = pyqtSignal(object)

    def __init__(self, canvas: QgsMapCanvas, worker: EngineWorker, parent: QObject) -> None:
        super().__init__(parent)
        self._canvas, self._worker = canvas, worker
        self._source: LayerSource | None = None
        self._renderer: BlockRenderer | None = None
        self._model = self._model_title = ""
        self._spec: SceneSpec | None = None
        self._heading = Heading()
        self.mapping: CanvasToRaster | None = None
        self.status = Status()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self._encode_view)
        # QGIS reloads all layers of the map in one go.
        self._reload = QTimer(self)
        self._reload.setSingleShot(True)
        self._reload.timeout.connect(self._on_reloaded)
        self._providers: list[QgsRasterDataProvider] = []
        self._works: list[Callable[[], bool]] = []
        self._is_told = self._is_due = False
        self._resume = QTimer(self)
        self._resume.setSingleShot(True)
        self._resume.setInterval(_RESUME_MS)
        self._resume.timeout.connect(worker.resume_encoding)
        canvas.extentsChanged.connect(self._settle.start)
        canvas.destinationCrsChanged.connect(self._settle.start)
        worker.opened.connect(self._on_opened)
        worker.covered.connect(self._on_covered)
        worker.progressed.connect(lambda fraction: self._update(fraction=fraction))
        worker.informed.connect(lambda sentence: self._update(sentence=sentence))
        worker.failed.connect(self._on_failed)
        worker.fell_back.connect(self._on_fell_back)
        worker.outdated.connect(self._on_outdated)
        QgsProject.instance().layersWillBeRemoved.connect(self._on_layers_going)

    @property
    def layer(self) -> QgsMapLayer | None:
        """The layer that is segmented; None where none is, and for the map as shown."""
        return None if self._source is None else self._source.layer

    @property
    def source(self) -> LayerSource | None:
        """What is segmented, and how it is looked at."""
        return self._source

    @property
    def extent(self) -> QgsRectangle:
        """Where prompts can be given, in the raster's CRS; empty where nothing is chosen."""
        if self._source is None:
            return QgsRectangle()
        layer = self._source.layer
        blocks = None if self._spec is None else self._spec.source.blocks
        if blocks is None:
            return QgsRectangle() if layer is None else layer.extent()
        area = QgsRectangle(*blocks.bounds_map)
        return area if layer is None else area.intersect(layer.extent())

    @property
    def name(self) -> str:
        """What the user calls that which is segmented; empty for nothing."""
        return "" if self._source is None else self._source.name

    @property
    def has_work(self) -> bool:
        """True where something is begun that would be lost if the scene were opened anew."""
        return any(has_work() for has_work in self._works)

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
        self._follow(None)
        self._reload.stop()
        self._drop_renderer()

    def choose_layer(self, layer: QgsMapLayer | None, look: Look | None = None) -> None:
        """Segment another layer, None for none; it is opened when the tool is active.

        `look`: which of `offered_looks` to take; None leaves it as it is, and takes the usual one for another
        layer. Rasters of any provider and any other layer can be chosen: what is no file is segmented as rendered.
        """
        if layer is None:
            if self._source is not None:
                self._choose(None)
        elif layer is not self.layer or (self._source is not None and look not in (None, self._source.look)):
            self._choose(layer_source(layer, look))

    def choose_map(self) -> None:
        """Segment the map as it is shown at this moment: all visible layers, in the CRS of the canvas."""
        try:
            self._choose(map_source(self._canvas.mapSettings()))
        except RasterError as error:
            self.notified.emit(str(error))

    def choose_model(self, name: str, *, title: str) -> None:
        """Let another model look at the raster, at once where that costs no work."""
        self._model, self._model_title = name, title
        self.reset_when_free(f"{title} does not answer yet")

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

    def protect(self, has_work: Callable[[], bool]) -> None:
        """Let no mere refresh or move of the map end the scene while there is work that would end with it."""
        self._works.append(has_work)

    def set_waiting(self, is_waiting: bool) -> None:
        """Say whether a question is under way."""
        self._update(is_waiting=is_waiting)

    def reset(self) -> None:
        """Start over with the present choices and settings."""
        self.close()
        # Whoever heard of it may have opened it already.
        if self.status.is_tool_active and self.status.phase is Phase.CLOSED:
            self.open()

    def reset_when_free(self, waiting: str) -> None:
        """Start over, or say what is `waiting` for a move of the map after the work that would be lost is finished."""
        if self._spec is None or not self.has_work:
            self.reset()
        else:
            self._is_due = True
            self._tell(waiting)

    def close(self) -> None:
        """Let go of the scene, or stop opening it; the choices stay."""
        if self._spec is not None:
            self._spec = None
            self._worker.close_scene()
        self._drop_renderer()
        self._heading.forget()
        phase = Phase.NO_RASTER if self._source is None else Phase.CLOSED
        is_active = self.status.is_tool_active
        self.status = Status(phase, self.name, self._model_title, is_tool_active=is_active)
        self.changed.emit()
        self.covered.emit(None)
        self.status_changed.emit()

    def open(self) -> None:
        """Open the chosen layer with the chosen model and the present settings."""
        if self._source is None:
            return
        self._drop_renderer()
        self._is_told = self._is_due = False
        try:
            self._spec = self._new_spec(self._source)
        except (RasterError, CoordinateError) as error:
            self._fail(str(error))
            return
        self._update(phase=Phase.OPENING, sentence="", fraction=None)
        self._worker.open_scene(self._spec)
        if not self._worker.isRunning():
            self._worker.start()

    def zoom_to_layer(self) -> None:
        """Show the whole raster."""
        if self.mapping is None or self._source is None:
            return
        layer = self._source.layer
        try:
            outline = self.mapping.to_canvas(QgsGeometry.fromRect(self.extent if layer is None else layer.extent()))
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        self._canvas.setExtent(outline.boundingBox())
        self._canvas.refresh()

    def _choose(self, source: LayerSource | None) -> None:
        self._follow(source)
        self.reset()

    def _follow(self, source: LayerSource | None) -> None:
        if self._source is not None:
            for layer in self._source.layers:
                layer.crsChanged.disconnect(self._on_layer_altered)
                layer.dataSourceChanged.disconnect(self._on_layer_altered)
                layer.styleChanged.disconnect(self._on_style_changed)
        for provider in self._providers:
            if not sip.isdeleted(provider):  # another data source brings another one
                provider.dataChanged.disconnect(self._reload.start)
        self._providers = []
        self._source = source
        self.mapping = None
        if source is not None:
            self.mapping = CanvasToRaster(self._canvas, source.crs)
            for layer in source.layers:
                layer.crsChanged.connect(self._on_layer_altered)
                layer.dataSourceChanged.connect(self._on_layer_altered)
                layer.styleChanged.connect(self._on_style_changed)
                if isinstance(layer, QgsRasterLayer):
                    # The layer itself keeps quiet about a reload. Vector layers say this at every edit.
                    self._providers.append(layer.dataProvider())
                    layer.dataProvider().dataChanged.connect(self._reload.start)

    def _new_spec(self, source: LayerSource) -> SceneSpec:
        """What to open, with somebody who draws it where it is no file. Raises `RasterError`, `CoordinateError`."""
        settings = read_settings()
        raster = self._read(source)
        if raster.blocks is None:
            return SceneSpec(raster, self._model, settings)
        self._renderer = BlockRenderer(raster.blocks, source, settings=self._canvas.mapSettings(), parent=self)
        self._renderer.rendered.connect(self._on_rendered)
        self._renderer.failed.connect(self.notified)
        return SceneSpec(raster, self._model, settings, self._renderer.demand)

    def _read(self, source: LayerSource, *, units_per_px: float = 0.0) -> RasterSource:
        """Describe a source; a picture is laid around the view, at the scale of the view where none is given."""
        centre = QgsPointXY()
        if source.is_drawn and self.mapping is not None:
            centre = self.mapping.centre()
            units_per_px = units_per_px or self.mapping.units_per_px()
        folder = rendered_folder(read_settings().cache_folder)
        return read_layer_source(source, centre=centre, units_per_px=units_per_px, folder=folder)

    def _drop_renderer(self) -> None:
        self._resume.stop()
        if self._renderer is not None:
            self._renderer.dispose()
            self._renderer.deleteLater()
            self._renderer = None

    def _on_layer_altered(self) -> None:
        source = self._source
        if source is None:
            return
        if source.layer is not None:
            # Its CRS may be another one, and what it offers too.
            source = layer_source(source.layer, source.look)
        self._choose(source)

    def _on_style_changed(self) -> None:
        """Open a layer again that looks otherwise now; the file's own bands look the same in every style."""
        if self._source is None or self._spec is None or self._source.look is Look.FILE:
            return
        before = self._spec.source
        scale = before.blocks.units_per_px if before.blocks is not None else 0.0
        try:
            raster = self._read(self._source, units_per_px=scale)
        except (RasterError, CoordinateError) as error:
            self._worker.close_scene()
            self._fail(str(error))
            return
        keys = [None if one.blocks is None else one.blocks.key for one in (raster, before)]
        if keys[0] != keys[1] or (raster.blocks is None and raster != before):
            self.reset_when_free(f"'{self.name}' is not drawn anew")

    def _on_reloaded(self) -> None:
        """Draw online layers anew that the user reloads: QGIS may show something else of them today."""
        if self._source is None or not self._source.is_drawn:
            return
        try:
            note_reload(self._source, folder=rendered_folder(read_settings().cache_folder))
        except RasterError as error:
            self.notified.emit(str(error))
        else:
            self._on_style_changed()

    def _on_layers_going(self, layer_ids: list[str]) -> None:
        if self._source is None or not any(layer.id() in layer_ids for layer in self._source.layers):
            return
        if self._source.look is Look.MAP:
            self.notified.emit("A layer of the map that is segmented was removed; choose the map again.")
        self._choose(None)

    def _on_rendered(self) -> None:
        if not self._resume.isActive():
            self._resume.start()

    def _encode_view(self) -> None:
        if not self.is_ready or not self.status.is_tool_active or self.mapping is None:
            return
        try:
            view = self.mapping.view()
            if self._is_due or self._is_outgrown():
                if not self.has_work:
                    self.reset()
                    return
                if not self._is_told:
                    self._tell(f"'{self.name}' is not drawn anew for this view")
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        is_in_view = self.extent.intersects(QgsRectangle(*view))
        self._update(is_in_view=is_in_view)
        if is_in_view:
            self._worker.encode_view(view, ahead_map=self._heading.ahead(view))

    def _tell(self, waiting: str) -> None:
        self._is_told = True
        self.notified.emit(f"{waiting}, for the sake of what you have begun; finish that and move the map.")

    def _is_outgrown(self) -> bool:
        """Say whether the user looks at what the picture that is open does not show, or shows much coarser."""
        blocks = None if self._spec is None else self._spec.source.blocks
        if blocks is None or self.mapping is None or self._source is None:
            return False
        wanted = drawn_units_per_px(self._source, self.mapping.units_per_px())
        is_inside = QgsRectangle(*blocks.bounds_map).contains(self.mapping.centre())
        return not is_inside or _COARSER * wanted <= blocks.units_per_px

    def _on_opened(self, spec: SceneSpec, info: SceneInfo) -> None:
        if spec is self._spec:
            self._update(phase=Phase.READY, info=info, n_waiting=None)
            # The click that waits goes first; the view is encoded after it.
            self.ready.emit()
            self._encode_view()

    def _on_covered(self, coverage: Coverage, n_waiting: int | None) -> None:
        self._update(
            n_waiting=n_waiting,
            # Counted as the overlay counts them, with what was encoded before: one number in both places.
            n_encoded=coverage.n_encoded,
            n_windows=len(coverage.windows),
            n_cached=coverage.n_cached,
            cached_bytes=coverage.cached_bytes,
        )
        self.covered.emit(coverage)

    def _on_failed(self, failure: Failure) -> None:
        if failure.spec is None:
            if failure.task is None and failure.request_id is None:
                self._update(n_waiting=None)
            self.notified.emit(failure.sentence)
        elif failure.spec is self._spec:
            self._fail(failure.sentence)

    def _on_fell_back(self, info: SceneInfo, sentence: str) -> None:
        self._update(info=info)
        self.notified.emit(sentence)

    def _on_outdated(self, sentence: str) -> None:
        self.notified.emit(sentence)
        self.reset()

    def _fail(self, sentence: str) -> None:
        self._spec = None
        self._drop_renderer()
        self._update(phase=Phase.FAILED, sentence=sentence)
        self.notified.emit(sentence)

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]  # names are those of Status
        self.status_changed.emit()
