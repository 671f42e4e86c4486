"""What is under the mouse: the mask that a click would get, or the polygon that it would take."""

from __future__ import annotations

from qgis.core import QgsPointXY
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from .batch import Batch
from .click_takers import ClickTakers
from .crs import CoordinateError, geometry_from_wkb
from .engine_worker import EngineWorker
from .exchange import Answer, PromptInput
from .modes import Mode
from .polygon_picker import flat_geometry, polygon_under
from .prompt_tool import PromptTool
from .rubber_bands import Overlay
from .scene_control import SceneControl
from .session import Session
from .target import TargetChoice

# As often as the decoder answers on two cores; faster only heats.
_HOVER_MS = 40


class HoverControl(QObject):
    """Shows what a click would do while no object is in hand. `looked`: the mouse is somewhere else."""

    looked = pyqtSignal()

    def __init__(
        self,
        canvas: QgsMapCanvas,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        target: TargetChoice,
        tool: PromptTool,
        overlay: Overlay,
        session: Session,
        batch: Batch,
        click_takers: ClickTakers,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._worker, self._scene, self._target = canvas, worker, scene, target
        self._tool, self._overlay, self._session = tool, overlay, session
        self._batch, self._click_takers = batch, click_takers
        self.mouse_at: QgsPointXY | None = None
        """Where the mouse is, in the CRS of the canvas; None where it is elsewhere."""
        self._has_moved = False
        self._request_id = 0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_HOVER_MS)
        self._timer.timeout.connect(self._look)
        tool.hovered.connect(self._on_hovered)
        tool.left.connect(self._forget)
        worker.previewed.connect(self._on_previewed)

    def dispose(self) -> None:
        """Look no more."""
        self._timer.stop()

    def hide(self) -> None:
        """Show nothing until the mouse moves."""
        self.drop_question()
        self._overlay.show_hover(None)
        self._overlay.show_highlight(None)

    def drop_question(self) -> None:
        """Want no answer any more that is under way."""
        self._request_id = 0

    def _on_hovered(self, point: QgsPointXY) -> None:
        self.mouse_at = point
        self._has_moved = True
        if not self._timer.isActive():
            self._look()

    def _look(self) -> None:
        """Ask at once for the first move, then no more often than the timer runs."""
        is_idle = self._session.is_empty and self._scene.is_ready and not self._batch.is_running
        if self.mouse_at is None or not self._has_moved or not is_idle:
            return
        self._has_moved = False
        self._timer.start()
        self.looked.emit()
        if not self._tool.mode.has_preview:
            self._show_polygon(self.mouse_at)
        elif self._click_takers.present is None:
            self._ask_preview(self.mouse_at)
        else:
            self._overlay.show_hover(None)
            self._overlay.show_highlight(None)

    def _show_polygon(self, point: QgsPointXY) -> None:
        """Mark the polygon that a click would take."""
        if self._tool.mode not in (Mode.REFINE, Mode.EXEMPLAR, Mode.MERGE):
            return
        found = polygon_under(self._canvas, point, first=self._target.layer())
        try:
            canvas_crs = self._canvas.mapSettings().destinationCrs()
            outline = None if found is None else flat_geometry(found[1], found[0], destination=canvas_crs)
        except CoordinateError:
            outline = None
        self._overlay.show_highlight(outline)

    def _ask_preview(self, point: QgsPointXY) -> None:
        mapping = self._scene.mapping
        if mapping is None:
            return
        try:
            place, view = mapping.point(point), mapping.view()
        except CoordinateError:
            return  # a click there gets the sentence
        if self._scene.extent.contains(QgsPointXY(*place)):
            self._request_id = self._session.new_request_id()
            self._worker.ask_preview(PromptInput(self._request_id, (place,), (1,), None, view))
        else:
            self._forget()

    def _on_previewed(self, answer: Answer) -> None:
        mapping = self._scene.mapping
        if answer.request_id != self._request_id or not self._session.is_empty or mapping is None:
            return
        try:
            self._overlay.show_hover(mapping.to_canvas(geometry_from_wkb(answer.wkb)) if answer.wkb else None)
        except CoordinateError:
            self._overlay.show_hover(None)

    def _forget(self) -> None:
        self.mouse_at = None
        self._timer.stop()
        self.hide()
