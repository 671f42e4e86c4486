"""From prompts to an accepted feature: joins map tool, session, worker, overlay and target layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .actions import Actions
from .batch import Batch, Seed, seeds_of
from .classes import Classes
from .crs import CanvasToRaster, CoordinateError, geometry_from_wkb, transformed
from .editing import set_outline
from .engine_worker import EngineWorker
from .exchange import Answer, Failure, Point, PromptInput
from .feature_sink import SinkError
from .hints import hint_text
from .modes import Mode
from .polygon_picker import flat_geometry, polygon_under, selected_features
from .prompt_tool import Command, PromptTool
from .rubber_bands import Overlay
from .scene_control import SceneControl
from .session import FeatureRef, Session
from .shaping import ShapeOptions, shaped
from .target import TargetChoice

# As often as the decoder answers on two cores; faster only heats.
_HOVER_MS = 40
# Lines are thinned to about the pixels of the screen before they travel.
_THINNING_PX = 1.5


ClassChoice = Callable[[], "tuple[str, QColor]"]
"""The class of the next object and its colour."""


class ClickTaker(Protocol):
    """What can have the tool's clicks and scribbles instead of the object: the class map, find similar."""

    def wants_clicks(self) -> bool:
        """Say whether the next click is its own."""

    def click(self, point_raster: Point, is_foreground: bool) -> None:
        """Take a click; coordinates in the raster's CRS."""

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Take a line; coordinates in the raster's CRS."""


class _Guest(NamedTuple):
    taker: ClickTaker
    hint: str
    undo: Callable[[], None] | None


class PromptControl(QObject):
    """`object_changed` carries a description of the object, `hinted` that `hint`, what the next click does, is new.

    `accepted` carries answer, outline (WKB, raster's CRS) and class; `notified` a sentence for the message bar;
    `exemplar_chosen` an outline (WKB, raster's CRS), the class it has and the answer it comes from or None;
    `line_drawn` a line and `polygon_clicked` a point (and whether the left button clicked there) in the CRS of
    the canvas, in the modes for edits; `batch_progressed` objects done and planned.
    """

    object_changed = pyqtSignal(str)
    hinted = pyqtSignal()
    accepted = pyqtSignal(object, object, str)
    exemplar_chosen = pyqtSignal(object, str, object)
    line_drawn = pyqtSignal(object)
    polygon_clicked = pyqtSignal(QgsPointXY, bool)
    batch_progressed = pyqtSignal(int, int)
    notified = pyqtSignal(str)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        target: TargetChoice,
        classes: Classes,
        shape_options: Callable[[], ShapeOptions],
        actions: Actions,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._worker, self._scene, self._target = canvas, worker, scene, target
        self._classes, self._shape_options, self._actions = classes, shape_options, actions
        self.session = Session()
        self.tool = PromptTool(canvas, actions)
        self.overlay = Overlay(canvas)
        self.batch = Batch(self)
        self._click_takers: list[_Guest] = []
        self.hint = ""
        """What the next click does, a sentence."""
        self._mouse_at: QgsPointXY | None = None
        self._has_moved = False
        self._hover_id = 0
        self._accepts_next = False
        self._started_s = 0.0
        self._shaped_from: tuple[object, ...] = ()
        self._shaped = QgsGeometry()
        self._n_undone_edits = 0
        """Steps of the layer that were undone after all prompts of the object: redo begins with them."""
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

    @property
    def mouse_at(self) -> QgsPointXY | None:
        """Where the mouse is, in the CRS of the canvas; None where it is elsewhere."""
        return self._mouse_at

    @property
    def raster_crs(self) -> QgsCoordinateReferenceSystem | None:
        """The CRS of the raster, None without one."""
        return None if self._scene.mapping is None else self._scene.mapping.raster_crs

    def command(self, command: Command) -> None:
        """Do what a key or a button asks for."""
        self._accepts_next = False
        if command is Command.ACCEPT:
            self._accept()
        elif command is Command.DROP:
            self._drop()
        elif command is Command.UNDO:
            self._undo()
        else:
            self._redo()

    def set_mode(self, mode: Mode) -> None:
        """Let clicks mean something else. What a mode can do with what is under the mouse, it does at once.

        An answer that becomes an exemplar is all that was wanted: the mode stays as it was.
        """
        if mode is Mode.EXEMPLAR and self.session.answer is not None and self.session.answer.wkb:
            self._give_exemplar()
            return
        self.tool.set_mode(mode)
        self._hover_id = 0
        self.overlay.show_hover(None)
        self.overlay.show_highlight(None)
        if self._mouse_at is not None and mode in (Mode.REFINE, Mode.EXEMPLAR):
            self._pick(self._mouse_at, is_quiet=True)
        self._draw()

    def add_click_taker(self, taker: ClickTaker, *, hint: str, undo: Callable[[], None] | None = None) -> None:
        """Let clicks and scribbles go elsewhere while `taker` wants them.

        `hint` says what they do there, `undo` takes the newest one back; the first that wants them gets them.
        """
        self._click_takers.append(_Guest(taker, hint, undo))

    def next_mask(self, n_steps: int = 1) -> None:
        """Take another of the masks that the prompts may mean."""
        if self.session.choose_next(n_steps):
            self._draw()

    def start_batch(self) -> None:
        """Make an object of every selected feature."""
        if self.batch.is_running:
            self.batch.stop()
            return
        mapping = self._usable_mapping()
        if mapping is None:
            return
        if not self._scene.is_ready:
            self.notified.emit("The model is not loaded yet; wait for it, and start the batch again.")
            return
        seeds = seeds_of(selected_features(self._canvas), destination=mapping.raster_crs)
        if not seeds:
            self.notified.emit("No feature is selected; select points, lines or polygons of a vector layer first.")
            return
        self.reset()
        self.batch.start(seeds)

    def redraw(self) -> None:
        """Draw anew what depends on class, shape options or target."""
        self.overlay.set_colour(self._classes.colour(self._classes.current))
        self._draw()

    def _connect(self) -> None:
        self._hover_timer.timeout.connect(self._look_under_mouse)
        self._canvas.destinationCrsChanged.connect(self._draw)
        self.tool.clicked.connect(self._on_clicked)
        self.tool.boxed.connect(self._on_boxed)
        self.tool.scribbled.connect(self._on_scribbled)
        self.tool.outlined.connect(self._on_outlined)
        self.tool.hovered.connect(self._on_hovered)
        self.tool.left.connect(self._forget_hover)
        self.tool.cycled.connect(self.next_mask)
        self.batch.next.connect(self._ask_seed)
        self.batch.progressed.connect(self.batch_progressed)
        self.batch.finished.connect(self._on_batch_finished)
        self._scene.changed.connect(self._on_scene_changed)
        self._scene.ready.connect(self._go_on)
        self._worker.answered.connect(self._on_answered)
        self._worker.previewed.connect(self._on_previewed)
        self._worker.failed.connect(self._on_failed)
        self._target.history.changed.connect(self._on_edited)

    def _on_edited(self) -> None:
        # Other neighbours shape another outline.
        self._shaped_from = ()
        self._show_possible()

    def _on_clicked(self, point: QgsPointXY, is_foreground: bool) -> None:
        mode = self.tool.mode
        if mode is Mode.MERGE:
            self.polygon_clicked.emit(point, is_foreground)
            return
        if is_foreground and (mode is Mode.EXEMPLAR or (mode is Mode.REFINE and self.session.is_empty)):
            self._pick(point)
            return
        place = self._on_raster(QgsGeometry.fromPointXY(point))
        if place is None:
            return
        at = (place.asPoint().x(), place.asPoint().y())
        taker = self._click_taker()
        if taker is not None:
            taker.click(at, is_foreground)
            return
        # A ghost of somewhere else would seem to be the answer.
        if not self.overlay.hover.isEmpty() and not self.overlay.hover.contains(point):
            self.overlay.show_hover(None)
        self._prompt(lambda: self.session.add_point(at, is_foreground=is_foreground))

    def _on_boxed(self, corners: list[QgsPointXY]) -> None:
        place = self._on_raster(QgsGeometry.fromPolygonXY([corners]))
        if place is not None:
            box = place.boundingBox()
            bounds = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
            self._prompt(lambda: self.session.set_box(bounds))

    def _on_scribbled(self, points: list[QgsPointXY], is_foreground: bool) -> None:
        line = QgsGeometry.fromPolylineXY(points)
        if self.tool.mode is Mode.CUT:
            self.line_drawn.emit(line)
            return
        place = self._on_raster(line.simplify(_THINNING_PX * self._canvas.mapUnitsPerPixel()))
        if place is None:
            return
        scribble = tuple((vertex.x(), vertex.y()) for vertex in place.vertices())
        taker = self._click_taker()
        if taker is not None:
            taker.scribble(scribble, is_foreground)
        else:
            self._prompt(lambda: self.session.add_scribble(scribble, is_foreground=is_foreground))

    def _on_outlined(self, points: list[QgsPointXY]) -> None:
        place = self._on_raster(QgsGeometry.fromPolygonXY([points]))
        if place is None:
            return
        # A figure of eight is two areas.
        place = place.makeValid()
        self._prompt(lambda: self.session.set_outline(bytes(place.asWkb())))

    def _prompt(self, add: Callable[[], None]) -> None:
        """Let the session take a prompt, and ask."""
        if self.batch.is_running:
            self.notified.emit("A batch is running; Esc stops it.")
            return
        self._accepts_next = False
        if not self.session.can_undo:
            self._started_s = time.monotonic()
        self._n_undone_edits = 0
        add()
        self._go_on()

    def _click_taker(self) -> ClickTaker | None:
        guest = self._guest()
        return None if guest is None else guest.taker

    def _guest(self) -> _Guest | None:
        return next((guest for guest in self._click_takers if guest.taker.wants_clicks()), None)

    def _usable_mapping(self) -> CanvasToRaster | None:
        if self._scene.mapping is None:
            self.notified.emit("No raster is chosen; choose one in the SegAdapt panel.")
        return self._scene.mapping

    def _on_raster(self, geometry: QgsGeometry) -> QgsGeometry | None:
        """Return what was drawn on the canvas in the raster's CRS; None, and a sentence, where it is not there."""
        mapping = self._usable_mapping()
        if mapping is None:
            return None
        try:
            place = transformed(geometry, self._canvas.mapSettings().destinationCrs(), destination=mapping.raster_crs)
        except CoordinateError as error:
            self.notified.emit(str(error))
            return None
        if self._scene.extent.intersects(place.boundingBox()):
            return place
        self.notified.emit(f"That is outside the raster '{self._scene.name}'; prompt inside it.")
        return None

    def _pick(self, point: QgsPointXY, *, is_quiet: bool = False) -> None:
        """Begin with the polygon at a point, or make it an exemplar; `is_quiet`: no sentence where there is none."""
        mapping = self._scene.mapping
        if mapping is None or (self.tool.mode is Mode.REFINE and not self.session.is_empty):
            return
        found = polygon_under(self._canvas, point, first=self._target.layer())
        if found is None:
            if not is_quiet:
                self.notified.emit("No polygon of a visible layer is there; click inside one.")
            return
        layer, feature = found
        try:
            wkb = bytes(flat_geometry(feature, layer, destination=mapping.raster_crs).asWkb())
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if self.tool.mode is Mode.EXEMPLAR:
            index = layer.fields().lookupField("class")
            self.exemplar_chosen.emit(wkb, str(feature[index] or "") if index >= 0 else "", None)
        else:
            self.overlay.show_highlight(None)
            self._prompt(lambda: self.session.set_outline(wkb, source=(layer.id(), feature.id())))

    def _give_exemplar(self) -> None:
        answer, outline = self.session.answer, self.outline()
        if answer is not None and outline is not None:
            self.exemplar_chosen.emit(bytes(outline.asWkb()), self._classes.current, answer)

    def _go_on(self) -> None:
        """Ask what is not answered yet, and draw what is known."""
        if self._scene.is_ready and self._scene.mapping is not None:
            try:
                prompt = self.session.request(self._scene.mapping.view())
            except CoordinateError as error:
                self.notified.emit(str(error))
                self.batch.stop()
                return
            if prompt is not None:
                self._worker.ask(prompt)
        self._draw()

    def _ask_seed(self, seed: Seed) -> None:
        self.session.drop()
        self._started_s = time.monotonic()
        if seed.points_map:
            self.session.add_points(seed.points_map, labels=[1] * len(seed.points_map))
        elif seed.lines_map:
            self.session.add_scribbles(seed.lines_map, is_foreground=True)
        elif seed.box_map is not None:
            self.session.set_box(seed.box_map)
        else:
            self.session.set_outline(seed.outline_wkb)
        self._go_on()

    def _on_batch_finished(self, sentence: str) -> None:
        self.reset()
        self.object_changed.emit(sentence)

    def _on_answered(self, answer: Answer) -> None:
        if not self.session.take(answer):
            return
        self._draw()
        if self.batch.is_running:
            self.batch.go_on(is_accepted=self._accept())
        elif self._accepts_next:
            self._accepts_next = False
            self._accept()

    def _on_failed(self, failure: Failure) -> None:
        if failure.request_id is not None and self.session.refuse(failure.request_id):
            self._accepts_next = False
            if self.batch.is_running:
                self.batch.go_on(is_accepted=False)
            else:
                self._go_on()

    def _on_scene_changed(self) -> None:
        self.batch.stop()
        self.reset()

    def _accept(self) -> bool:
        """Store the outline in the target layer. Return False where there is none, or not yet."""
        if self.session.is_waiting:
            # Enter may come before the answer to the last click: it means that answer.
            self._accepts_next = True
            return False
        answer, outline = self.session.answer, self.outline()
        if answer is None or outline is None or outline.isEmpty():
            return False
        class_name, source = self._classes.current, self.session.step.source
        try:
            layer = self._store(answer, outline, class_name) if source is None else self._correct(source, outline)
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return False
        self.reset()
        self.accepted.emit(answer, bytes(outline.asWkb()), class_name)
        if source is None:
            what = f"{class_name or 'Object'} of {_area_text(answer.area_m2)}"
            self.object_changed.emit(f"{what} is now in '{layer.name()}'.")
        else:
            self.object_changed.emit(f"The polygon in '{layer.name()}' is corrected.")
        return True

    def _store(self, answer: Answer, outline: QgsGeometry, class_name: str) -> QgsVectorLayer:
        """Add a feature to the target layer. Raises `SinkError` and `CoordinateError`."""
        return self._target.accept(
            answer,
            class_name=class_name,
            colour=self._classes.colour(class_name),
            geometry=outline,
            n_clicks=self.session.step.n_prompts,
            seconds=time.monotonic() - self._started_s,
            on_top=self._shape_options().new_on_top,
        )

    def _correct(self, source: FeatureRef, outline: QgsGeometry) -> QgsVectorLayer:
        """Give an existing feature the outline; its other attributes stay. Raises `SinkError`, `CoordinateError`."""
        layer_id, feature_id = source
        layer, crs = QgsProject.instance().mapLayer(layer_id), self.raster_crs
        if not isinstance(layer, QgsVectorLayer) or crs is None:
            raise SinkError("The layer of this polygon is not in the project any more; Esc drops the outline.")
        self._target.history.push(set_outline(layer, feature_id, outline, crs=crs, values={}))
        return layer

    def _drop(self) -> None:
        """Forget the object; where there is none, go back to clicks."""
        if self.batch.is_running:
            self.batch.stop()
        elif not self.session.is_empty or self.session.can_redo:
            self.reset()
        elif self.tool.mode is not Mode.POINT:
            self._actions[Mode.POINT.value.name].trigger()

    def _undo(self) -> None:
        guest = self._guest()
        if self.session.can_undo:
            self.session.undo()
            self._go_on()
        elif guest is not None and guest.undo is not None:
            guest.undo()
        else:
            self._n_undone_edits += 1
            self._tell_edit(self._target.history.undo())

    def _redo(self) -> None:
        history = self._target.history
        if self.session.is_empty and history.can_redo and (self._n_undone_edits or not self.session.can_redo):
            self._n_undone_edits = max(0, self._n_undone_edits - 1)
            self._tell_edit(history.redo())
        elif self.session.can_redo:
            self.session.redo()
            self._go_on()

    def _tell_edit(self, sentence: str) -> None:
        self._draw()
        if sentence:
            self.object_changed.emit(sentence)

    def reset(self) -> None:
        """Forget the object in the making."""
        self._accepts_next = False
        self._n_undone_edits = 0
        self.session.drop()
        self._hover_id = 0
        self._draw()

    def outline(self) -> QgsGeometry | None:
        """The mask as the shape options want it, in the raster's CRS; None without a mask. Raises nothing."""
        answer, mapping = self.session.shown_answer, self._scene.mapping
        if answer is None or not answer.wkb or mapping is None:
            return None
        options, layer, source = self._shape_options(), self._target.layer(), self.session.step.source
        key = (answer.wkb, options, layer, source)
        if key != self._shaped_from:
            geometry = QgsGeometry()
            geometry.fromWkb(answer.wkb)
            self._shaped = shaped(geometry, mapping.raster_crs, options, neighbours=self._neighbours(geometry, mapping))
            self._shaped_from = key
        return QgsGeometry(self._shaped)

    def _neighbours(self, geometry: QgsGeometry, mapping: CanvasToRaster) -> list[QgsGeometry]:
        options, layer, source = self._shape_options(), self._target.layer(), self.session.step.source
        if layer is None or not (options.no_overlaps or options.snap_m):
            return []
        but = source[1] if source is not None and source[0] == layer.id() else None
        return self._target.neighbours(geometry, mapping.raster_crs, within_m=options.snap_m, but=but)

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
        self.object_changed.emit(self._description())
        self._show_possible()

    def _draw_session(self, mapping: CanvasToRaster) -> None:
        step, answer = self.session.step, self.session.shown_answer
        points = [
            (mapping.point_to_canvas(point), bool(label))
            for point, label in zip(step.points_map, step.labels, strict=True)
        ]
        scribbles = [
            (mapping.to_canvas(QgsGeometry.fromPolylineXY([QgsPointXY(*point) for point in line])), bool(label))
            for line, label in zip(step.scribbles_map, step.scribble_labels, strict=True)
        ]
        box = outline = None
        if step.box_map is not None:
            box = mapping.to_canvas(QgsGeometry.fromRect(QgsRectangle(*step.box_map)).densifyByCount(8))
        if step.outline_wkb:
            outline = mapping.to_canvas(geometry_from_wkb(step.outline_wkb))
        self.overlay.show_prompts(points, box=box, scribbles=scribbles, outline=outline)
        mask = self.outline()
        self.overlay.show_mask(None if mask is None else mapping.to_canvas(mask))
        # The preview stays until the answer to the click on it is there: no flicker.
        if answer is not None or self.session.is_empty:
            self.overlay.show_hover(None)

    def _description(self) -> str:
        session, answer = self.session, self.session.answer
        if self.batch.is_running:
            return f"Object {self.batch.n_done + 1} of {self.batch.n_planned} from the selection · Esc stops"
        if session.is_empty:
            return "No prompt yet."
        if answer is None:
            return f"{_prompts_text(session)} · …"
        if not answer.wkb:
            return "The model finds no object here; click elsewhere, or drag a box."
        parts = [_prompts_text(session), f"score {answer.score:.2f}", _area_text(answer.area_m2)]
        n_options = session.step.n_options
        if n_options > 1:
            parts.insert(1, f"mask {session.step.chosen + 1} of {n_options} (Tab)")
        return " · ".join(parts)

    def _show_possible(self) -> None:
        """Enable what can be done, and let undo and redo say what they will do."""
        session, history, answer = self.session, self._target.history, self.session.answer
        has_mask = session.is_waiting or (answer is not None and bool(answer.wkb))
        undo, redo = session.newest_prompt, session.next_prompt
        guest = self._guest()
        if not undo and guest is not None and guest.undo is not None:
            undo = "click"
        can_redo_edit = session.is_empty and history.can_redo and (self._n_undone_edits > 0 or not redo)
        enabled = {
            "accept": has_mask,
            "undo": bool(undo) or history.can_undo,
            "redo": bool(redo) or can_redo_edit,
            "drop": not session.is_empty or session.can_redo or self.batch.is_running or self._is_in_other_mode(),
            "next_mask": session.step.n_options > 1,
        }
        for key, is_possible in enabled.items():
            self._actions[key].setEnabled(is_possible)
        self._actions["undo"].setText(_doing("Undo", undo or history.undo_text))
        self._actions["redo"].setText(_doing("Redo", (history.redo_text if can_redo_edit else "") or redo))
        self.show_hint()

    def show_hint(self) -> None:
        """Say what the next click does, where that is another thing than before."""
        hint = self._next_hint()
        if hint != self.hint:
            self.hint = hint
            self.hinted.emit()

    def _is_in_other_mode(self) -> bool:
        return self.tool.mode is not Mode.POINT

    def _next_hint(self) -> str:
        target, guest = self._target.layer(), self._guest()
        return hint_text(
            self.tool.mode,
            is_begun=not self.session.is_empty,
            class_name=self._classes.current,
            raster_name=self._scene.name,
            target_name="a new layer" if target is None else f"'{target.name()}'",
            is_batch=self.batch.is_running,
            taken_hint="" if guest is None else guest.hint,
        )

    def _on_hovered(self, point: QgsPointXY) -> None:
        self._mouse_at = point
        self._has_moved = True
        if not self._hover_timer.isActive():
            self._look_under_mouse()

    def _look_under_mouse(self) -> None:
        """Ask at once for the first move, then no more often than the timer runs."""
        is_idle = self.session.is_empty and self._scene.is_ready and not self.batch.is_running
        if self._mouse_at is None or not self._has_moved or not is_idle:
            return
        self._has_moved = False
        self._hover_timer.start()
        # Who takes the clicks changes without our doing.
        self.show_hint()
        if not self.tool.mode.has_preview:
            self._show_polygon_under_mouse(self._mouse_at)
        elif self._click_taker() is None:
            self._ask_preview(self._mouse_at)
        else:
            self.overlay.show_hover(None)

    def _show_polygon_under_mouse(self, point: QgsPointXY) -> None:
        """Mark the polygon that a click would take."""
        if self.tool.mode not in (Mode.REFINE, Mode.EXEMPLAR, Mode.MERGE):
            return
        found = polygon_under(self._canvas, point, first=self._target.layer())
        try:
            canvas_crs = self._canvas.mapSettings().destinationCrs()
            outline = None if found is None else flat_geometry(found[1], found[0], destination=canvas_crs)
        except CoordinateError:
            outline = None
        self.overlay.show_highlight(outline)

    def _ask_preview(self, point: QgsPointXY) -> None:
        mapping = self._scene.mapping
        if mapping is None:
            return
        try:
            place, view = mapping.point(point), mapping.view()
        except CoordinateError:
            return  # a click there gets the sentence
        if self._scene.extent.contains(QgsPointXY(*place)):
            self._hover_id = self.session.new_request_id()
            self._worker.ask_preview(PromptInput(self._hover_id, (place,), (1,), None, view))
        else:
            self._forget_hover()

    def _on_previewed(self, answer: Answer) -> None:
        mapping = self._scene.mapping
        if answer.request_id != self._hover_id or not self.session.is_empty or mapping is None:
            return
        try:
            self.overlay.show_hover(mapping.to_canvas(geometry_from_wkb(answer.wkb)) if answer.wkb else None)
        except CoordinateError:
            self.overlay.show_hover(None)

    def _forget_hover(self) -> None:
        self._mouse_at, self._hover_id = None, 0
        self._hover_timer.stop()
        self.overlay.show_hover(None)
        self.overlay.show_highlight(None)


def _doing(verb: str, what: str) -> str:
    return f"{verb} {what}" if what else verb


def _area_text(area_m2: float) -> str:
    text = f"{area_m2 / 1e4:,.2f} ha" if area_m2 >= 1e5 else f"{area_m2:,.0f} m²"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _prompts_text(session: Session) -> str:
    step = session.step
    n_on = sum(step.labels) + sum(step.scribble_labels)
    n_off = len(step.labels) + len(step.scribble_labels) - n_on
    parts = ["polygon"] if step.outline_wkb else []
    parts += ["box"] if step.box_map is not None else []
    parts += [f"{n_on} on the object"] if n_on else []
    parts += [f"{n_off} off it"] if n_off else []
    return ", ".join(parts)
