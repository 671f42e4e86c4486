"""From accepted objects to all objects like them: what to look for, and the review on the map."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from qgis.core import QgsGeometry, QgsPointXY
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor

from ..processing.algorithms.settings import read_settings
from .actions import Actions
from .classes import Classes
from .crs import CoordinateError, geometry_from_wkb
from .engine_worker import EngineWorker
from .exchange import Answer, Point
from .feature_sink import EditStep, SinkError
from .review_keys import ReviewKeys
from .scene_control import SceneControl
from .shaping import ShapeOptions, shaped
from .similar_examples import MOST_EXAMPLES, SimilarExamples
from .similar_panel import CandidateOverlay, SimilarPanel
from .similar_review import Review, is_known
from .similar_search import SearchRunner
from .similar_tasks import Found, Search
from .target import TargetChoice

# Redrawing thousands of outlines for each candidate that comes in would keep the GUI busy.
_REDRAW_MS = 150


class SimilarControl(QObject):
    """Owns the search and its review; `panel` is the page of the dock.

    `accepted` carries the outline (WKB, raster's CRS) of a candidate that was looked at, `notified` a sentence;
    `changed`: a click may mean something else now.

    F looks for objects like the examples: those chosen with X (`add_example`), else the objects of the class at hand
    in the target layer. While the review lasts, A and R answer for the candidate in white, clicks for the one under
    the mouse, and Esc leaves; F comes back to where it was left.
    """

    accepted = pyqtSignal(object)
    changed = pyqtSignal()
    notified = pyqtSignal(str)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        target: TargetChoice,
        actions: Actions,
        parent: QObject | None,
        classes: Classes | None = None,
        shape_options: Callable[[], ShapeOptions] = ShapeOptions,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._scene, self._target = canvas, scene, target
        self._classes, self._shape_options = classes, shape_options
        self._add_actions(actions)
        self.panel = SimilarPanel(actions)
        self.overlay = CandidateOverlay(canvas)
        self.review: Review | None = None
        self.current: int | None = None
        self._is_reviewing = False
        self._search = SearchRunner(worker, self)
        self._examples = SimilarExamples(scene=scene, target=target)
        self._known: list[QgsGeometry] = []
        self._asked_s = 0.0
        self._accepting: list[int] = []
        self._redraw = QTimer(self)
        self._redraw.setSingleShot(True)
        self._redraw.setInterval(_REDRAW_MS)
        self._keys = ReviewKeys(canvas, actions, self)
        self._connect()
        self._show()

    def dispose(self) -> None:
        """Leave the canvas, and the worker to its owner."""
        self._is_reviewing = False
        self._keys.dispose()
        self._canvas.destinationCrsChanged.disconnect(self._draw)
        self._canvas.destinationCrsChanged.disconnect(self._draw_examples)
        self._redraw.stop()
        self._accepting.clear()
        self.overlay.dispose()

    @property
    def n_examples(self) -> int:
        """How many examples were chosen with X."""
        return len(self._examples)

    @property
    def is_reviewing(self) -> bool:
        """Whether A, R, Esc and clicks belong to the review."""
        return self._is_reviewing

    def has_work(self) -> bool:
        """Say whether something is looked for, or to be reviewed."""
        return self.review is not None and (self._search.is_searching or bool(self.review.queue()))

    def add_example(self, wkb: bytes, class_name: str = "", _answer: Answer | None = None) -> None:
        """Take an outline (WKB, raster's CRS) as example; the signature is that of `exemplar_chosen`."""
        self._examples.add(wkb, class_name)
        self._draw_examples()
        self._show()

    def forget_examples(self) -> None:
        """Take back the examples chosen with X."""
        self._examples.clear()
        self._draw_examples()
        self._show()

    def start(self) -> None:
        """Look for similar objects, or come back to the review that was left."""
        if self.has_work() and not self._is_reviewing:
            self._begin_review()
            return
        if self._scene.mapping is None or not self._scene.is_ready:
            self.notified.emit("The raster is not open yet; choose one and wait until its view is encoded.")
            return
        try:
            examples, class_name = self._examples.newest(self._classes.current if self._classes is not None else "")
            bounds_map = self._scene.mapping.view() if self._is_view_only() else None
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if not examples:
            self.notified.emit(
                "There is no example; accept an object of the class first, or press X and click on a polygon."
            )
            return
        rejected = self._rejected_outlines(class_name)[-MOST_EXAMPLES:]
        self._known = [geometry_from_wkb(wkb) for wkb in (*examples, *rejected)]
        self.review = Review(class_name, rejected_before=rejected)
        self.current = None
        self._search.start(Search(self.review.handle, tuple(examples), read_settings(), rejected, bounds_map))
        self.panel.progress_bar.setValue(0)
        self._begin_review()

    def stop(self) -> None:
        """Stop looking; the candidates stay."""
        self._search.stop()
        self._show()

    def accept(self) -> None:
        """The candidate in white is one: it goes to the target layer, one step of undo."""
        if self.review is None or self.current is None:
            return
        if self._store(self.current, self._outline(self.current, self.review)):
            self.accepted.emit(self.review.candidates[self.current].wkb)
            self._go_on()

    def reject(self) -> None:
        """The candidate in white is none."""
        if self.review is not None and self.current is not None:
            self.review.say(self.current, is_accepted=False, step=self._target.history.newest)
            self._go_on()

    @property
    def undo_text(self) -> str:
        """What `undo` takes back, "" where the review is left or something was done to a layer since."""
        answers = self.review.answers if self.review is not None and self._is_reviewing else []
        if not answers or answers[-1].step is not self._target.history.newest:
            return ""
        return answers[-1].word

    @property
    def redo_text(self) -> str:
        """What `redo` brings back, "" for nothing."""
        taken_back = self.review.taken_back if self.review is not None and self._is_reviewing else []
        if not taken_back:
            return ""
        said, step = taken_back[-1], self._target.history.next
        return said.word if not said.is_accepted or (step is not None and said.step is step) else ""

    def undo(self) -> None:
        """Take the newest answer back, an accept with its object, and ask about that candidate again."""
        review, history = self.review, self._target.history
        if review is None or not self.undo_text:
            return
        self._accepting.clear()
        said, undone = review.answers[-1], None
        if said.is_accepted:
            before = history.next
            history.undo()
            if history.newest is said.step:
                return  # not now; the history says why
            undone = history.next if history.next is not before else None  # the object may be gone already
        if said in review.answers:
            review.take_back(undone)
        self._go_on()
        self._ask(said.number)
        self._draw()

    def redo(self) -> None:
        """Bring back the answer that was taken back last."""
        review, history = self.review, self._target.history
        if review is None or not self.redo_text:
            return
        said = review.taken_back[-1]
        if said.is_accepted:
            history.redo()
            if history.next is said.step:
                return  # not now; the history says why
        if said in review.taken_back:
            review.say_again(history.newest)
        self._go_on()

    def leave(self) -> None:
        """Leave the review: the search goes on, candidates and answers are kept until the next search."""
        self._is_reviewing = False
        self._accepting.clear()
        self._keys.set_on(False)
        self.current = None
        self._draw()

    def accept_all(self) -> None:
        """Accept all candidates above the slider, one step of undo each; Esc stops it."""
        if self.review is not None and not self._accepting:
            self._accepting = self.review.above(self.panel.above)
            self._accept_next()

    def wants_clicks(self) -> bool:
        """Say whether the next click answers for a candidate."""
        return self._is_reviewing and self.review is not None and bool(self.review.queue())

    def click(self, point_raster: Point, is_foreground: bool) -> None:
        """Accept, or reject, the candidate at a point in the raster's CRS."""
        review = self.review
        if review is None:
            return
        place = QgsGeometry.fromPointXY(QgsPointXY(*point_raster))
        under = review.under(place)
        if not under:
            self.notified.emit("No candidate is there; click inside one, or leave the review with Esc.")
            return
        self._answer(under[0], is_foreground)

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Answer for every candidate that a line in the raster's CRS crosses."""
        if self.review is not None:
            for number in self.review.under(
                QgsGeometry.fromPolylineXY([QgsPointXY(*point) for point in points_raster])
            ):
                self._answer(number, is_foreground)

    def _add_actions(self, actions: Actions) -> None:
        add = partial(actions.add, group="Find similar")
        tip = "Look for objects like the examples, or come back to the review"
        add("find_similar", "Find similar", self.start, tip=tip, shortcut="F", icon="findsimilar")
        tip = "Stop looking; what was found stays"
        add("stop_search", "Stop looking", self.stop, tip=tip, label="Stop")
        tip = "Take the examples back that were chosen with X"
        add("forget_examples", "Forget examples", self.forget_examples, tip=tip, label="Forget")
        tip = "Look where the map shows now, not in the whole raster"
        add("view_only", "Only in this view", None, tip=tip, checkable=True)
        tip = "The candidate in white is one: add it to the target layer"
        add("accept_candidate", "Accept candidate", self.accept, tip=tip, shortcut="A", label="Accept")
        tip = "The candidate in white is none; the ranking learns from it"
        add("reject_candidate", "Reject candidate", self.reject, tip=tip, shortcut="R", label="Reject")
        tip = "Leave the review, as Esc does; F comes back to it"
        add("leave_review", "Leave the review", self.leave, tip=tip, label="Leave")
        tip = "Accept all candidates above the slider"
        add("accept_all", "Accept all likely ones", self.accept_all, tip=tip)

    def _connect(self) -> None:
        panel = self.panel
        panel.above_changed.connect(lambda _probability: self._show())
        self._redraw.timeout.connect(self._draw)
        self._canvas.destinationCrsChanged.connect(self._draw)
        self._canvas.destinationCrsChanged.connect(self._draw_examples)
        self._keys.leave_wanted.connect(self.leave)
        # An accept may be undone after the review was left, too.
        self._target.history.undone.connect(self._on_undone)
        self._target.history.redone.connect(self._on_redone)
        if self._classes is not None:
            self._classes.renamed.connect(self._on_renamed)
        self._scene.changed.connect(self._forget_all)
        self._search.found.connect(self._on_found)
        self._search.ranked.connect(self._on_ranked)
        self._search.progressed.connect(lambda fraction: panel.progress_bar.setValue(round(1000 * fraction)))
        self._search.ended.connect(self._on_ended)
        self._search.failed.connect(self._on_failed)

    def _on_undone(self, step: EditStep) -> None:
        if self.review is not None:
            self.review.follow_undo(step, self._target.history.next)
            self._show()

    def _on_redone(self, step: EditStep) -> None:
        if self.review is not None:
            self.review.follow_redo(step, self._target.history.newest)
            self._show()

    def _on_renamed(self, old: str, new: str) -> None:
        self._examples.rename_class(old, new)
        if self.review is not None and self.review.class_name == old:
            self.review.class_name = new

    def _is_view_only(self) -> bool:
        """Whether to look in this view only: as wanted, and always on a map that is drawn, which has no end."""
        source = self._scene.source
        return self.panel.view_only_check.isChecked() or (source is not None and source.is_drawn)

    def _rejected_outlines(self, class_name: str) -> tuple[bytes, ...]:
        """What was rejected in the reviews before, if they were of the same class: no search offers it again."""
        review = self.review
        if review is None or review.class_name != class_name:
            return ()
        return *review.rejected_before, *(review.candidates[number].wkb for number in review.rejected)

    def _begin_review(self) -> None:
        self._is_reviewing = True
        self._keys.set_on(True)
        self._canvas.setFocus()
        self._next()
        self._draw()

    def _answer(self, number: int, is_yes: bool) -> None:
        self.current = number
        if is_yes:
            self.accept()
        else:
            self.reject()

    def _go_on(self) -> None:
        """After an answer: learn from all of them, and go to the next candidate."""
        if self.review is None:
            return
        self._search.learn(self.review)
        self.current = None
        self._next()
        self._draw()

    def _next(self) -> None:
        """Ask about the likeliest candidate, and let the canvas show it."""
        if self._is_reviewing and self.current is None and self.review is not None:
            queue = self.review.queue()
            if queue:
                self._ask(queue[0])

    def _ask(self, number: int) -> None:
        """Ask about a candidate, and let the canvas show it."""
        if self.review is None:
            return
        self.current = number
        self._asked_s = time.monotonic()
        try:
            self.overlay.look_at(self._on_canvas(self.review.geometries[number]).boundingBox())
        except CoordinateError as error:
            self.notified.emit(str(error))

    def _store(self, number: int, outline: QgsGeometry) -> bool:
        """Put a candidate into the target layer. Return False, and say why, where that cannot be."""
        review = self.review
        if review is None:
            return False
        found = review.candidates[number]
        answer = Answer(0, found.wkb, found.score, found.stability, found.area_m2, found.model)
        seconds = time.monotonic() - self._asked_s if number == self.current else 0.0
        colour = self._classes.colour(review.class_name) if self._classes is not None else QColor("#00b8d9")
        try:
            self._target.accept(
                answer,
                class_name=review.class_name,
                colour=colour,
                geometry=outline,
                n_clicks=1,
                seconds=seconds,
                on_top=self._shape_options().new_on_top,
            )
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return False
        review.say(number, is_accepted=True, step=self._target.history.newest)
        return True

    def _outline(self, number: int, review: Review) -> QgsGeometry:
        """The mask of a candidate as the shape options want it, in the raster's CRS."""
        mask, mapping = review.geometries[number], self._scene.mapping
        if mapping is None:
            return mask
        options, crs = self._shape_options(), mapping.raster_crs
        neighbours = self._target.neighbours(mask, crs, within_m=options.snap_m) if options.needs_neighbours else []
        return shaped(mask, crs, options, neighbours=neighbours)

    def _accept_next(self) -> None:
        """One of those to be accepted at once, then let the GUI breathe."""
        if not self._accepting or self.review is None:
            return
        number = self._accepting.pop(0)
        outline = self._outline(number, self.review)
        if outline.isEmpty():
            self.review.drop(number)  # Others have its ground already: no reason to stop.
        elif not self._store(number, outline):
            self._accepting.clear()
        if self.current == number:
            self.current = None
        if self._accepting:
            self._show()
            QTimer.singleShot(0, self._accept_next)
        else:
            self._go_on()

    def _forget_all(self) -> None:
        """Another raster, or none: the worker has dropped its tasks."""
        self._search.forget()
        self.review = None
        self._examples.clear()
        self.leave()
        self._draw_examples()

    def _on_found(self, found: Found) -> None:
        if self.review is None or self._is_known(geometry_from_wkb(found.wkb)):
            return
        self.review.add(found)
        if self.current is None:
            self._next()
            self._draw()
        elif not self._redraw.isActive():
            self._redraw.start()

    def _on_ranked(self, probabilities: dict[int, float]) -> None:
        if self.review is not None:
            known = self.review.candidates
            self.review.probabilities.update({n: p for n, p in probabilities.items() if n in known})
            self._draw()

    def _is_known(self, geometry: QgsGeometry) -> bool:
        """Whether an outline (raster's CRS) is that of an example, of a rejected object, or in the target layer."""
        crs = None if self._scene.mapping is None else self._scene.mapping.raster_crs
        stored = [] if crs is None else self._target.neighbours(geometry, crs)
        return is_known(geometry, (*self._known, *stored))

    def _on_ended(self) -> None:
        if self.review is not None and not self.review.candidates:
            self.notified.emit("Nothing similar was found; give another example, or more of them.")
        self._draw()

    def _on_failed(self, sentence: str) -> None:
        self.notified.emit(sentence)
        self._show()

    def _on_canvas(self, geometry: QgsGeometry) -> QgsGeometry:
        return geometry if self._scene.mapping is None else self._scene.mapping.to_canvas(geometry)

    def _draw_examples(self) -> None:
        geometries = []
        for outline in self._examples.outlines():
            try:
                geometries.append(self._on_canvas(outline))
            except CoordinateError:
                continue  # not on this map; the search finds it in the raster
        self.overlay.show_examples(geometries)

    def _draw(self) -> None:
        review = self.review if self._is_reviewing else None
        try:
            self.overlay.show_review(review, current=self.current, to_canvas=self._on_canvas)
        except CoordinateError as error:
            self.notified.emit(str(error))
        self._show()

    def _show(self) -> None:
        """Bring the page up to date."""
        self.panel.show_state(
            self.review,
            current=self.current if self._is_reviewing else None,
            n_examples=self.n_examples,
            is_reviewing=self._is_reviewing,
            is_searching=self._search.is_searching,
            is_accepting=bool(self._accepting),
        )
        self.changed.emit()
