"""From clicks to an accepted feature: joins map tool, session, worker, overlay and target layer."""

from __future__ import annotations

from collections.abc import Callable

from qgis.core import QgsGeometry, QgsPointXY, QgsRectangle
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .crs import CanvasToRaster, CoordinateError
from .engine_worker import EngineWorker
from .exchange import Answer, Failure, PromptInput
from .feature_sink import SinkError
from .prompt_tool import Command, PromptTool
from .rubber_bands import Overlay
from .scene_control import SceneControl
from .session import Session
from .target import TargetChoice

# As often as the decoder answers on two cores; faster only heats.
_HOVER_MS = 40

ClassChoice = Callable[[], "tuple[str, QColor]"]


class PromptControl(QObject):
    """`object_changed` carries a description of the object and the commands that make sense now.

    `accepted` carries the name of the class; `notified` a sentence for the message bar.
    """

    object_changed = pyqtSignal(str, object)
    accepted = pyqtSignal(str)
    notified = pyqtSignal(str)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        target: TargetChoice,
        class_choice: ClassChoice,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._worker, self._scene, self._target = canvas, worker, scene, target
        self._class_choice = class_choice
        self.session = Session()
        self.tool = PromptTool(canvas)
        self.overlay = Overlay(canvas)
        self._mouse_at: QgsPointXY | None = None
        self._hover_id = 0
        self._accepts_next = False
        self._hover_timer = QTimer(self)
        self._hover_timer.setSingleShot(True)
        self._hover_timer.setInterval(_HOVER_MS)
        self._connect()

    def dispose(self) -> None:
        """Leave the canvas."""
        self._hover_timer.stop()
        self._canvas.destinationCrsChanged.disconnect(self._draw)
        self._canvas.unsetMapTool(self.tool)
        self.tool.dispose()
        self.tool.deleteLater()
        self.overlay.dispose()

    def command(self, command: Command) -> None:
        """Do what a key or a button asks for."""
        self._accepts_next = False
        if command is Command.ACCEPT:
            self._accept()
        elif command is Command.DROP:
            self._reset()
        elif command is Command.UNDO:
            self.session.undo()
            self._go_on()
        else:
            self.session.redo()
            self._go_on()

    def show_class(self) -> None:
        """Draw in the colour of the chosen class."""
        self.overlay.set_colour(self._class_choice()[1])

    def _connect(self) -> None:
        self._hover_timer.timeout.connect(self._ask_preview)
        self._canvas.destinationCrsChanged.connect(self._draw)
        self.tool.clicked.connect(self._on_clicked)
        self.tool.boxed.connect(self._on_boxed)
        self.tool.hovered.connect(self._on_hovered)
        self.tool.left.connect(self._forget_hover)
        self.tool.commanded.connect(self.command)
        self._scene.changed.connect(self._reset)
        self._scene.ready.connect(self._go_on)
        self._worker.answered.connect(self._on_answered)
        self._worker.previewed.connect(self._on_previewed)
        self._worker.failed.connect(self._on_failed)

    def _on_clicked(self, point: QgsPointXY, is_foreground: bool) -> None:
        mapping = self._usable_mapping()
        if mapping is None:
            return
        try:
            place = mapping.point(point)
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if self._meets_raster(QgsRectangle(place[0], place[1], place[0], place[1])):
            self._accepts_next = False
            self.session.add_point(place, is_foreground=is_foreground)
            self._go_on()

    def _on_boxed(self, corners: list[QgsPointXY]) -> None:
        mapping = self._usable_mapping()
        if mapping is None:
            return
        try:
            box = mapping.box(corners)
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if self._meets_raster(QgsRectangle(*box)):
            self._accepts_next = False
            self.session.set_box(box)
            self._go_on()

    def _usable_mapping(self) -> CanvasToRaster | None:
        if self._scene.mapping is None:
            self.notified.emit("No raster is chosen; choose one in the SegAdapt panel.")
        return self._scene.mapping

    def _meets_raster(self, rectangle: QgsRectangle) -> bool:
        layer = self._scene.layer
        if layer is not None and layer.extent().intersects(rectangle):
            return True
        self.notified.emit(f"That is outside the raster '{layer.name() if layer else ''}'; prompt inside it.")
        return False

    def _go_on(self) -> None:
        """Ask what is not answered yet, and draw what is known."""
        if self._scene.is_ready and self._scene.mapping is not None:
            try:
                prompt = self.session.request(self._scene.mapping.view())
            except CoordinateError as error:
                self.notified.emit(str(error))
                return
            if prompt is not None:
                self._worker.ask(prompt)
        self._draw()

    def _on_answered(self, answer: Answer) -> None:
        if not self.session.take(answer):
            return
        self._draw()
        if self._accepts_next:
            self._accepts_next = False
            self._accept()

    def _on_failed(self, failure: Failure) -> None:
        if failure.request_id is not None and self.session.refuse(failure.request_id):
            self._accepts_next = False
            self._go_on()

    def _accept(self) -> None:
        if self.session.is_waiting:
            # Enter may come before the answer to the last click: it means that answer.
            self._accepts_next = True
            return
        answer = self.session.answer
        if answer is None or not answer.wkb:
            return
        class_name, colour = self._class_choice()
        try:
            layer = self._target.accept(answer, class_name=class_name, colour=colour)
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return
        self._reset()
        self.accepted.emit(class_name)
        what = class_name or "Object"
        self.object_changed.emit(f"{what} of {_area_text(answer.area_m2)} is now in '{layer.name()}'.", set())

    def _reset(self) -> None:
        self._accepts_next = False
        self.session.drop()
        self._hover_id = 0
        self._draw()

    def _draw(self) -> None:
        mapping = self._scene.mapping
        if mapping is None:
            self.overlay.clear()
        else:
            try:
                self._draw_session(mapping)
            except CoordinateError as error:
                self.overlay.clear()
                self.notified.emit(str(error))
        self._scene.set_waiting(self.session.is_waiting and self._scene.is_ready)
        self.object_changed.emit(self._description(), self._possible())

    def _draw_session(self, mapping: CanvasToRaster) -> None:
        step, answer = self.session.step, self.session.shown_answer
        points = [
            (mapping.point_to_canvas(point), bool(label))
            for point, label in zip(step.points_map, step.labels, strict=True)
        ]
        box = None
        if step.box_map is not None:
            box = mapping.to_canvas(QgsGeometry.fromRect(QgsRectangle(*step.box_map)).densifyByCount(8))
        self.overlay.show_prompts(points, box=box)
        self.overlay.show_mask(_on_canvas(answer, mapping))
        # The preview stays until the answer to the click on it is there: no flicker.
        if answer is not None or self.session.is_empty:
            self.overlay.show_hover(None)

    def _description(self) -> str:
        answer = self.session.answer
        if self.session.is_empty:
            return "No prompt yet."
        if answer is None:
            return f"{_prompts_text(self.session)} · …"
        if not answer.wkb:
            return "The model finds no object here; click elsewhere, or drag a box."
        return f"{_prompts_text(self.session)} · score {answer.score:.2f} · {_area_text(answer.area_m2)}"

    def _possible(self) -> set[Command]:
        session = self.session
        answer = session.answer
        checks = {
            Command.ACCEPT: session.is_waiting or (answer is not None and bool(answer.wkb)),
            Command.UNDO: session.can_undo,
            Command.REDO: session.can_redo,
            Command.DROP: not session.is_empty or session.can_redo,
        }
        return {command for command, is_possible in checks.items() if is_possible}

    def _on_hovered(self, point: QgsPointXY) -> None:
        self._mouse_at = point
        if self.session.is_empty and self._scene.is_ready and not self._hover_timer.isActive():
            self._hover_timer.start()

    def _ask_preview(self) -> None:
        mapping, layer = self._scene.mapping, self._scene.layer
        if self._mouse_at is None or mapping is None or layer is None or not self.session.is_empty:
            return
        try:
            place, view = mapping.point(self._mouse_at), mapping.view()
        except CoordinateError:
            return  # a click there gets the sentence
        if layer.extent().contains(QgsPointXY(*place)):
            self._hover_id = self.session.new_request_id()
            self._worker.ask_preview(PromptInput(self._hover_id, (place,), (1,), None, view))
        else:
            self._forget_hover()

    def _on_previewed(self, answer: Answer) -> None:
        if answer.request_id == self._hover_id and self.session.is_empty and self._scene.mapping is not None:
            try:
                self.overlay.show_hover(_on_canvas(answer, self._scene.mapping))
            except CoordinateError:
                self.overlay.show_hover(None)

    def _forget_hover(self) -> None:
        self._mouse_at, self._hover_id = None, 0
        self._hover_timer.stop()
        self.overlay.show_hover(None)


def _on_canvas(answer: Answer | None, mapping: CanvasToRaster) -> QgsGeometry | None:
    if answer is None or not answer.wkb:
        return None
    geometry = QgsGeometry()
    geometry.fromWkb(answer.wkb)
    return mapping.to_canvas(geometry)


def _area_text(area_m2: float) -> str:
    return f"{area_m2 / 1e4:,.2f} ha" if area_m2 >= 1e5 else f"{area_m2:,.0f} m²"


def _prompts_text(session: Session) -> str:
    labels = session.step.labels
    n_background = len(labels) - sum(labels)
    parts = [f"{sum(labels)} on the object"] if sum(labels) else []
    parts += [f"{n_background} off it"] if n_background else []
    return ", ".join((["box"] if session.step.box_map is not None else []) + parts)
