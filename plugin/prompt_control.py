"""From prompts to an accepted feature: joins map tool, session, worker, overlay and target layer."""

from __future__ import annotations

from collections.abc import Callable

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsPointXY,
)
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .batch import Batch, Seed, seeds_of
from .classes import Classes
from .click_takers import ClickTakers
from .crs import CoordinateError
from .engine_worker import EngineWorker
from .exchange import Answer, Failure
from .feature_sink import SinkError
from .gestures import Gestures
from .hints import hint_text
from .hover_control import HoverControl
from .modes import Mode
from .object_text import area_text, object_text
from .polygon_picker import selected_features
from .prompt_tool import Command, PromptTool
from .rubber_bands import Overlay
from .scene_control import SceneControl
from .session import Session
from .session_drawing import draw_session
from .shaped_object import ShapedObject
from .shaping import ShapeOptions
from .target import TargetChoice
from .undo_control import UndoControl

_BATCH_RUNS = "A batch is running; Esc stops it."


class PromptControl(QObject):
    """`object_changed` carries a description of the object, `hinted` that `hint`, what the next click does, is new.

    `accepted` carries answer, outline (WKB, raster's CRS) and class; `notified` a sentence for the message bar;
    `exemplar_chosen` an outline (WKB, raster's CRS), the class it has and the answer it comes from or None;
    `batch_progressed` objects done and planned.
    """

    object_changed = pyqtSignal(str)
    hinted = pyqtSignal()
    accepted = pyqtSignal(object, object, str)
    exemplar_chosen = pyqtSignal(object, str, object)
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
        self._classes, self._actions = classes, actions
        self.session = Session()
        self.tool = PromptTool(canvas, actions)
        self.overlay = Overlay(canvas)
        self.batch = Batch(self)
        self.click_takers = ClickTakers()
        self.hint = ""
        """What the next click does, a sentence."""
        self._accept_as: str | None = None
        self._later: list[Callable[[], None]] = []
        self._object = ShapedObject(
            self.session, scene=scene, target=target, classes=classes, shape_options=shape_options
        )
        self._undo = UndoControl(
            self.session,
            history=target.history,
            classes=classes,
            click_takers=self.click_takers,
            actions=actions,
            parent=self,
        )
        self.gestures = Gestures(
            canvas,
            tool=self.tool,
            overlay=self.overlay,
            scene=scene,
            target=target,
            session=self.session,
            click_takers=self.click_takers,
            parent=self,
        )
        self._hover = HoverControl(
            canvas,
            worker,
            scene=scene,
            target=target,
            tool=self.tool,
            overlay=self.overlay,
            session=self.session,
            batch=self.batch,
            click_takers=self.click_takers,
            parent=self,
        )
        self._connect()

    def dispose(self) -> None:
        """Leave the canvas."""
        self._hover.dispose()
        self._canvas.destinationCrsChanged.disconnect(self._draw)
        self._canvas.unsetMapTool(self.tool)
        self.tool.dispose()
        self.tool.deleteLater()
        self.overlay.dispose()

    @property
    def mouse_at(self) -> QgsPointXY | None:
        """Where the mouse is, in the CRS of the canvas; None where it is elsewhere."""
        return self._hover.mouse_at

    @property
    def raster_crs(self) -> QgsCoordinateReferenceSystem | None:
        """The CRS of the raster, None without one."""
        return None if self._scene.mapping is None else self._scene.mapping.raster_crs

    def has_work(self) -> bool:
        """Say whether there is an object in hand, or a batch that makes them."""
        return not self.session.is_empty or self.batch.is_running

    def command(self, command: Command) -> None:
        """Do what a key or a button asks for."""
        if command is Command.ACCEPT:
            self._accept()
            return
        if command is Command.UNDO and self._later:
            self._later.pop()
            return
        self._forget_accept()
        if command is Command.DROP:
            self._drop()
        elif self.batch.is_running:
            self.notified.emit(_BATCH_RUNS)
        elif command is Command.UNDO:
            self._undo.undo()
        else:
            self._undo.redo()

    def set_mode(self, mode: Mode) -> None:
        """Let clicks mean something else. What a mode can do with what is under the mouse, it does at once.

        While somebody else has the clicks, nothing is refined: an object would begin that no click corrects.
        An answer that becomes an exemplar is all that was wanted: the mode stays as it was.
        """
        if mode is Mode.EXEMPLAR and self.session.answer is not None and self.session.answer.wkb:
            self._give_exemplar()
            return
        self.tool.set_mode(mode)
        self._hover.hide()
        is_lent = self.click_takers.present is not None
        if self.mouse_at is not None and (mode is Mode.EXEMPLAR or (mode is Mode.REFINE and not is_lent)):
            self.gestures.pick(self.mouse_at, is_quiet=True)
        self._draw()

    def next_mask(self, n_steps: int = 1) -> None:
        """Take another of the masks that the prompts may mean."""
        if self.session.choose_next(n_steps):
            self._draw()

    def start_batch(self) -> None:
        """Make an object of every selected feature."""
        if self.batch.is_running:
            self.batch.stop()
            return
        mapping = self.gestures.mapping()
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
        self._canvas.destinationCrsChanged.connect(self._draw)
        self.gestures.prompted.connect(self._prompt)
        self.gestures.exemplar_chosen.connect(lambda wkb, name: self.exemplar_chosen.emit(wkb, name, None))
        self.gestures.notified.connect(self.notified)
        self.tool.cycled.connect(self.next_mask)
        self.tool.drawing_changed.connect(self.show_hint)
        self.batch.next.connect(self._ask_seed)
        self.batch.progressed.connect(self.batch_progressed)
        self.batch.finished.connect(self._on_batch_finished)
        self._scene.changed.connect(self._on_scene_changed)
        self._scene.ready.connect(self._go_on)
        self._worker.answered.connect(self._on_answered)
        self._worker.failed.connect(self._on_failed)
        self._target.history.changed.connect(self._on_layer_edited)
        self._undo.prompts_changed.connect(self._go_on)
        self._undo.edited.connect(self._tell_edit)
        # Who takes the clicks changes without our doing.
        self._hover.looked.connect(self.show_hint)

    def _on_layer_edited(self) -> None:
        self._object.forget_neighbours()
        # What was done before is not what was done last any more; who did something says so after this.
        self.object_changed.emit(self._description())
        self.show_possible()

    def _prompt(self, add: Callable[[], None]) -> None:
        """Let the session take a prompt, and ask."""
        if self.batch.is_running:
            self.notified.emit(_BATCH_RUNS)
            return
        if self._accept_as is not None:
            self._later.append(add)  # It belongs to the next object.
            return
        self._undo.forget_undone()
        add()
        self._go_on()

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
        seed.enter(self.session)
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
        elif self._accept_as is not None:
            later = list(self._later)
            is_over = self._accept()
            self._forget_accept()
            if later and not answer.wkb:
                # What was clicked since then is not to be lost for an object that is none.
                self.notified.emit("No object was found before your Enter; what you clicked since begins the next one.")
                self.reset()
                is_over = True
            for add in later if is_over else ():
                self._prompt(add)

    def _on_failed(self, failure: Failure) -> None:
        if failure.request_id is not None and self.session.refuse(failure.request_id):
            self._forget_accept()
            if self.batch.is_running:
                self.batch.go_on(is_accepted=False)
            else:
                self._go_on()

    def _on_scene_changed(self) -> None:
        self.batch.stop()
        self._undo.forget_accepted()
        self.reset()

    def _accept(self) -> bool:
        """Store the outline in the target layer. Return False where there is none, or not yet."""
        if self.session.is_waiting:
            # Enter may come before the answer to the last click: it means that answer, and the class of this moment.
            if self._accept_as is None:
                self._accept_as = self._classes.current
            return False
        answer, outline = self.session.answer, self.outline()
        if answer is None or outline is None:
            return False
        class_name = self._classes.current if self._accept_as is None else self._accept_as
        source, is_correction = self.session.step.source, self._object.is_correction
        try:
            layer = self._object.store(answer, outline, class_name=class_name)
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return False
        self._undo.keep_accepted(class_name)
        self.reset()
        self.accepted.emit(answer, bytes(outline.asWkb()), class_name)
        if is_correction:
            self.object_changed.emit(f"The polygon in '{layer.name()}' is corrected.")
        else:
            what = f"{class_name or 'Object'} of {area_text(answer.area_m2)}"
            why = "" if source is None else "; the polygon's own layer is read-only"
            self.object_changed.emit(f"{what} is now in '{layer.name()}'{why}.")
        return True

    def _drop(self) -> None:
        """Forget the object; where there is none, go back to clicks."""
        if self.batch.is_running:
            self.batch.stop()
        elif not self.session.is_empty or self.session.can_redo:
            self.reset()
        elif self.tool.can_leave_mode:
            self._actions[Mode.POINT.value.name].trigger()

    def _tell_edit(self, sentence: str) -> None:
        self._draw()
        if sentence:
            self.object_changed.emit(sentence)

    def reset(self) -> None:
        """Forget the object in the making."""
        self._forget_accept()
        self._undo.forget_undone()
        self.session.drop()
        self._hover.drop_question()
        self._draw()

    def _forget_accept(self) -> None:
        """Forget that the next answer is to be accepted, and the prompts that were to follow."""
        self._accept_as = None
        self._later.clear()

    def outline(self) -> QgsGeometry | None:
        """The mask as the shape options want it, in the raster's CRS; None without a mask. Raises nothing."""
        return self._object.outline()

    def _draw(self) -> None:
        mapping = self._scene.mapping
        if mapping is None:
            self.overlay.clear()
        else:
            try:
                draw_session(self.session, self.overlay, mask=self.outline(), mapping=mapping)
            except CoordinateError as error:
                self.overlay.clear()
                self.notified.emit(str(error))
        self._scene.set_waiting(self.session.is_waiting and self._scene.is_ready)
        self.object_changed.emit(self._description())
        self.show_possible()

    def _description(self) -> str:
        if self.batch.is_running:
            return f"Object {self.batch.n_done + 1} of {self.batch.n_planned} from the selection · Esc stops"
        return object_text(self.session)

    def show_possible(self) -> None:
        """Enable what can be done, and let undo and redo say what they will do."""
        self.show_hint()
        session, answer = self.session, self.session.answer
        has_mask = session.is_waiting or (answer is not None and bool(answer.wkb))
        can_drop = not session.is_empty or session.can_redo or self.batch.is_running
        self._actions["accept"].setEnabled(has_mask)
        self._actions["drop"].setEnabled(can_drop or self.tool.can_leave_mode)
        self._actions["next_mask"].setEnabled(session.step.n_options > 1)
        self._undo.show()

    def show_hint(self) -> None:
        """Say what the next click does, where that is another thing than before, and let the tool follow."""
        self.tool.set_lent(self.click_takers.present is not None)
        hint = self._next_hint()
        if hint != self.hint:
            self.hint = hint
            self.hinted.emit()

    def _next_hint(self) -> str:
        target, guest = self._target.layer(), self.click_takers.present
        return hint_text(
            self.tool.mode,
            is_begun=not self.session.is_empty,
            is_drawing=self.tool.is_drawing,
            is_correction=self._object.is_correction,
            class_name=self._classes.current,
            raster_name=self._scene.name,
            target_name="" if target is None else f"'{target.name()}'",
            is_batch=self.batch.is_running,
            taken_hint="" if guest is None else guest.hint,
        )
