"""From accepted objects to all objects like them: the search in the worker, and the review on the map."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qgis.core import QgsFeature, QgsFeatureRequest, QgsGeometry, QgsPointXY, QgsVectorLayer
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QEvent, QObject, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor

from ..processing.algorithms.settings import read_settings
from .actions import Actions
from .classes import Classes
from .crs import CoordinateError, geometry_from_wkb, transformed
from .engine_worker import EngineWorker
from .exchange import Answer, Failure, Point, Task
from .feature_sink import SinkError
from .scene_control import SceneControl
from .similar_panel import CandidateOverlay, SimilarPanel
from .similar_tasks import Found, LearnAnswers, Search, SearchHandle
from .target import TargetChoice

# More examples say little more, and each costs a window to encode.
_MOST_EXAMPLES = 20
# Redrawing thousands of outlines for each candidate that comes in would keep the GUI busy.
_REDRAW_MS = 150
# What overlaps an object that is known already by more than this is that object.
_SAME_OBJECT_IOU = 0.5
# A candidate is in sight where it lies in this much of the view.
_SIGHT = 0.8
# An object that is larger than the view is shown with this much around it.
_SURROUNDINGS = 3.0
_KEYS = {Qt.Key.Key_A: "accept", Qt.Key.Key_R: "reject", Qt.Key.Key_Escape: "leave"}


@dataclass(eq=False)
class Review:
    """The candidates of one search, in the order of their finding, and what was said of them."""

    class_name: str
    handle: SearchHandle = field(default_factory=SearchHandle)
    candidates: dict[int, Found] = field(default_factory=dict)
    geometries: dict[int, QgsGeometry] = field(default_factory=dict)
    """Outlines in the raster's CRS."""
    probabilities: dict[int, float] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take in a candidate."""
        self.candidates[found.number], self.geometries[found.number] = found, geometry_from_wkb(found.wkb)
        self.probabilities[found.number] = found.probability

    def queue(self) -> list[int]:
        """Numbers of the candidates that nothing was said of, the likeliest first."""
        answered = {*self.accepted, *self.rejected}
        open_ones = [number for number in self.candidates if number not in answered]
        return sorted(open_ones, key=lambda number: (-self.probabilities[number], number))

    def above(self, probability: float) -> list[int]:
        """Numbers of the open candidates that are at least that likely, the likeliest first."""
        return [number for number in self.queue() if self.probabilities[number] >= probability]


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
    ) -> None:
        super().__init__(parent)
        self._canvas, self._worker, self._scene, self._target = canvas, worker, scene, target
        self._classes = classes
        self.panel = SimilarPanel()
        self.overlay = CandidateOverlay(canvas)
        self.review: Review | None = None
        self.current: int | None = None
        self._is_reviewing = False
        self._examples: list[tuple[bytes, str]] = []
        self._known: list[QgsGeometry] = []
        self._task: Search | None = None
        self._learning: LearnAnswers | None = None
        self._asked_s = 0.0
        self._accepting: list[int] = []
        self._redraw = QTimer(self)
        self._redraw.setSingleShot(True)
        self._redraw.setInterval(_REDRAW_MS)
        self._add_actions(actions)
        self._connect()
        self._show()

    def dispose(self) -> None:
        """Leave the canvas, and the worker to its owner."""
        self._is_reviewing = False
        self._canvas.removeEventFilter(self)
        self._canvas.mapToolSet.disconnect(self._on_tool_set)
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

    def add_example(self, wkb: bytes, class_name: str = "", _answer: Answer | None = None) -> None:
        """Take an outline (WKB, raster's CRS) as example; the signature is that of `exemplar_chosen`."""
        self._examples.append((bytes(wkb), class_name))
        self._draw_examples()
        self._show()

    def forget_examples(self) -> None:
        """Take back the examples chosen with X."""
        self._examples.clear()
        self._draw_examples()
        self._show()

    def start(self) -> None:
        """Look for similar objects, or come back to the review that was left."""
        if self.review is not None and not self._is_reviewing and (self._task is not None or self.review.queue()):
            self._begin_review()
            return
        if self._scene.mapping is None or not self._scene.is_ready:
            self.notified.emit("The raster is not open yet; choose one and wait until its view is encoded.")
            return
        try:
            examples, class_name = self._chosen_examples()
            bounds_map = self._scene.mapping.view() if self._is_view_only() else None
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if not examples:
            self.notified.emit(
                "There is no example; accept an object of the class first, or press X and click on a polygon."
            )
            return
        self._cancel_search()
        rejected = self._rejected_outlines(class_name)
        self._known = [geometry_from_wkb(wkb) for wkb in (*examples, *rejected)]
        self.review = Review(class_name)
        self.current = None
        self._task = Search(self.review.handle, tuple(examples), read_settings(), rejected, bounds_map)
        self._worker.do(self._task)
        self.panel.progress_bar.setValue(0)
        self._begin_review()

    def stop(self) -> None:
        """Stop looking; the candidates stay."""
        self._cancel_search()
        self._show()

    def accept(self) -> None:
        """The candidate in white is one: it goes to the target layer, one step of undo."""
        if self.review is not None and self.current is not None and self._store(self.current):
            self.accepted.emit(self.review.candidates[self.current].wkb)
            self._go_on()

    def reject(self) -> None:
        """The candidate in white is none."""
        if self.review is not None and self.current is not None:
            self.review.rejected.append(self.current)
            self._go_on()

    def leave(self) -> None:
        """Leave the review: the search goes on, candidates and answers are kept until the next search."""
        self._is_reviewing = False
        self._accepting.clear()
        self._canvas.removeEventFilter(self)
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
        under = [number for number in review.queue() if review.geometries[number].intersects(place)]
        if not under:
            self.notified.emit("No candidate is there; click inside one, or leave the review with Esc.")
            return
        self.current = under[0]
        if is_foreground:
            self.accept()
        else:
            self.reject()

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Answer for every candidate that a line in the raster's CRS crosses."""
        for point in points_raster:
            review = self.review
            place = QgsGeometry.fromPointXY(QgsPointXY(*point))
            if review is not None and any(review.geometries[n].intersects(place) for n in review.queue()):
                self.click(point, is_foreground)

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Claim A, R and Esc while the review lasts."""
        if event.type() not in (QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride) or event.modifiers():
            return False
        name = _KEYS.get(event.key())
        if name is None or not self._is_reviewing:
            return False
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
        elif name == "leave":
            self.leave()
        elif not event.isAutoRepeat():
            (self.accept if name == "accept" else self.reject)()
        return True

    def _add_actions(self, actions: Actions) -> None:
        actions.add(
            "find_similar",
            "Find similar",
            self.start,
            tip="Look for objects like the accepted ones, or come back to the review",
            shortcut="F",
            group="Find similar",
            icon="findsimilar",
        )
        review: tuple[tuple[str, str, Callable[[], None], str, str], ...] = (
            (
                "accept_candidate",
                "Accept candidate",
                self.accept,
                "Add the candidate in white to the target layer",
                "A",
            ),
            ("reject_candidate", "Reject candidate", self.reject, "The candidate in white is none; learn from it", "R"),
            ("accept_all", "Accept all likely ones", self.accept_all, "Accept all candidates above the slider", ""),
        )
        for key, text, slot, tip, shortcut in review:
            actions.add(key, text, slot, tip=tip, shortcut=shortcut, group="Find similar")

    def _connect(self) -> None:
        panel = self.panel
        panel.search_wanted.connect(self.start)
        panel.stop_wanted.connect(self.stop)
        panel.forget_wanted.connect(self.forget_examples)
        panel.accept_wanted.connect(self.accept)
        panel.reject_wanted.connect(self.reject)
        panel.leave_wanted.connect(self.leave)
        panel.accept_all_wanted.connect(self.accept_all)
        panel.above_changed.connect(lambda _probability: self._show())
        self._redraw.timeout.connect(self._draw)
        self._canvas.destinationCrsChanged.connect(self._draw)
        self._canvas.destinationCrsChanged.connect(self._draw_examples)
        self._canvas.mapToolSet.connect(self._on_tool_set)
        self._scene.changed.connect(self._forget_all)
        self._worker.worked.connect(self._on_worked)
        self._worker.done.connect(self._on_done)
        self._worker.task_progressed.connect(self._on_progressed)
        self._worker.failed.connect(self._on_failed)

    def _chosen_examples(self) -> tuple[list[bytes], str]:
        """Outlines (WKB, raster's CRS) and their class: those chosen with X, else those of the target layer."""
        if self._examples:
            return [wkb for wkb, _ in self._examples[-_MOST_EXAMPLES:]], self._examples[-1][1]
        layer, class_name = self._target.layer(), self._classes.current if self._classes is not None else ""
        if layer is None or self._scene.mapping is None:
            return [], class_name
        newest = _features_of_class(layer, class_name)[-_MOST_EXAMPLES:]
        crs = self._scene.mapping.raster_crs
        found = [transformed(feature.geometry(), layer.crs(), destination=crs) for feature in newest]
        extent = QgsGeometry.fromRect(self._scene.extent)
        return [bytes(geometry.asWkb()) for geometry in found if geometry.intersects(extent)], class_name

    def _is_view_only(self) -> bool:
        """Whether to look in this view only: as wanted, and always on a map that is drawn, which has no end."""
        source = self._scene.source
        return self.panel.view_only_check.isChecked() or (source is not None and source.is_drawn)

    def _rejected_outlines(self, class_name: str) -> tuple[bytes, ...]:
        """What was rejected in the review before, if that was of the same class: no search offers it again."""
        if self.review is None or self.review.class_name != class_name:
            return ()
        return tuple(self.review.candidates[number].wkb for number in self.review.rejected[-_MOST_EXAMPLES:])

    def _begin_review(self) -> None:
        self._is_reviewing = True
        self._claim_keys()
        self._canvas.setFocus()
        self._next()
        self._draw()

    def _claim_keys(self) -> None:
        # The filter that was installed last is asked first: before the tool, to which Esc means something else.
        self._canvas.removeEventFilter(self)
        if self._is_reviewing:
            self._canvas.installEventFilter(self)

    def _on_tool_set(self, *_tools: object) -> None:
        # The canvas tells of a tool before it activates it, and activating installs the tool's filter.
        QTimer.singleShot(0, self._claim_keys)

    def _go_on(self) -> None:
        """After an answer: learn from all of them, and go to the next candidate."""
        if self.review is None:
            return
        if self._learning is not None:
            self._worker.cancel(self._learning)  # a newer one knows more
        review = self.review
        self._learning = LearnAnswers(review.handle, tuple(review.accepted), tuple(review.rejected))
        self._worker.do(self._learning)
        self.current = None
        self._next()
        self._draw()

    def _next(self) -> None:
        """Ask about the likeliest candidate, and let the canvas show it."""
        if self._is_reviewing and self.current is None and self.review is not None:
            queue = self.review.queue()
            if queue:
                self.current = queue[0]
                self._asked_s = time.monotonic()
                self._look_at(self.review.geometries[self.current])

    def _look_at(self, geometry: QgsGeometry) -> None:
        try:
            bounds = self._on_canvas(geometry).boundingBox()
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        view = self._canvas.extent()
        if max(bounds.width() / view.width(), bounds.height() / view.height()) > _SIGHT:
            bounds.scale(_SURROUNDINGS)
            self._canvas.setExtent(bounds)
        else:
            view.scale(_SIGHT)
            if view.contains(bounds):
                return
            self._canvas.setCenter(bounds.center())
        self._canvas.refresh()

    def _store(self, number: int) -> bool:
        """Put a candidate into the target layer. Return False, and say why, where that cannot be."""
        review = self.review
        if review is None:
            return False
        found = review.candidates[number]
        answer = Answer(0, found.wkb, found.score, found.stability, found.area_m2, found.model)
        seconds = time.monotonic() - self._asked_s if number == self.current else 0.0
        colour = self._classes.colour(review.class_name) if self._classes is not None else QColor("#00b8d9")
        try:
            self._target.accept(answer, class_name=review.class_name, colour=colour, n_clicks=1, seconds=seconds)
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return False
        review.accepted.append(number)
        return True

    def _accept_next(self) -> None:
        """One of those to be accepted at once, then let the GUI breathe."""
        if not self._accepting:
            return
        number = self._accepting.pop(0)
        if not self._store(number):
            self._accepting.clear()
        if self.current == number:
            self.current = None
        if self._accepting:
            self._show()
            QTimer.singleShot(0, self._accept_next)
        else:
            self._go_on()

    def _cancel_search(self) -> None:
        if self._task is not None:
            self._worker.cancel(self._task)
            self._task = None

    def _forget_all(self) -> None:
        """Another raster, or none: the worker has dropped its tasks."""
        self._task = self._learning = self.review = None
        self._examples.clear()
        self.leave()
        self._draw_examples()

    def _on_worked(self, task: Task, item: object) -> None:
        if self.review is None:
            return
        if task is self._task and isinstance(item, Found):
            if self._is_known(geometry_from_wkb(item.wkb)):
                return
            self.review.add(item)
            if self.current is None:
                self._next()
                self._draw()
            elif not self._redraw.isActive():
                self._redraw.start()
        elif task is self._learning and isinstance(item, dict):
            self.review.probabilities.update(
                {number: probability for number, probability in item.items() if number in self.review.candidates}
            )
            self._draw()

    def _is_known(self, geometry: QgsGeometry) -> bool:
        """Whether an outline (raster's CRS) is that of an example, of a rejected object, or in the target layer."""
        crs = None if self._scene.mapping is None else self._scene.mapping.raster_crs
        stored = [] if crs is None else self._target.neighbours(geometry, crs)
        return any(_iou(geometry, other) > _SAME_OBJECT_IOU for other in (*self._known, *stored))

    def _on_done(self, task: Task) -> None:
        if task is self._task:
            self._task = None
            if self.review is not None and not self.review.candidates:
                self.notified.emit("Nothing similar was found; give another example, or more of them.")
            self._draw()

    def _on_progressed(self, task: Task, fraction: float) -> None:
        if task is self._task:
            self.panel.progress_bar.setValue(round(1000 * fraction))

    def _on_failed(self, failure: Failure) -> None:
        if failure.task is None or failure.task not in (self._task, self._learning):
            return
        if failure.task is self._task:
            self._task = None
        self.notified.emit(failure.sentence)
        self._show()

    def _on_canvas(self, geometry: QgsGeometry) -> QgsGeometry:
        return geometry if self._scene.mapping is None else self._scene.mapping.to_canvas(geometry)

    def _draw_examples(self) -> None:
        geometries = []
        for wkb, _ in self._examples:
            try:
                geometries.append(self._on_canvas(geometry_from_wkb(wkb)))
            except CoordinateError:
                continue  # not on this map; the search finds it in the raster
        self.overlay.show_examples(geometries)

    def _draw(self) -> None:
        review = self.review
        if review is None or not self._is_reviewing:
            self.overlay.show([])
            self.overlay.show_current(None)
        else:
            try:
                self.overlay.show(
                    (self._on_canvas(review.geometries[n]), review.probabilities[n]) for n in review.queue()
                )
                current = None if self.current is None else self._on_canvas(review.geometries[self.current])
                self.overlay.show_current(current)
            except CoordinateError as error:
                self.notified.emit(str(error))
        self._show()

    def _show(self) -> None:
        """Bring the page up to date."""
        panel, review = self.panel, self.review
        if self._examples:
            count = "1 example" if self.n_examples == 1 else f"{self.n_examples} examples"
            panel.example_label.setText(f"{count} chosen with X.")
        else:
            panel.example_label.setText("Examples: the accepted objects of the class, or what you choose with X.")
        panel.forget_button.setEnabled(bool(self._examples))
        panel.stop_button.setEnabled(self._task is not None)
        panel.progress_bar.setVisible(self._task is not None)
        has_current = self._is_reviewing and self.current is not None
        for button in (panel.accept_button, panel.reject_button):
            button.setEnabled(has_current)
        panel.leave_button.setEnabled(self._is_reviewing)
        n_above = 0 if review is None else len(review.above(panel.above))
        panel.accept_all_button.setText(f"Accept all from {panel.above:.2f} ({n_above})")
        panel.accept_all_button.setEnabled(n_above > 0 and not self._accepting)
        panel.status_label.setText(self._status())
        self.changed.emit()

    def _status(self) -> str:
        review = self.review
        if review is None:
            return ""
        n_open = len(review.queue())
        counts = f"{n_open} to review, {len(review.accepted)} accepted, {len(review.rejected)} rejected"
        if self._is_reviewing and self.current is not None:
            found = review.candidates[self.current]
            return (
                f"Probability {review.probabilities[self.current]:.2f} · score {found.score:.2f} · "
                f"{found.area_m2:,.0f} m² · {counts}."
            )
        if self._task is not None:
            return f"Looking for similar objects · {counts}."
        return f"{counts}." if n_open or not review.candidates else f"All reviewed: {counts}."


def _iou(first: QgsGeometry, second: QgsGeometry) -> float:
    if not first.boundingBoxIntersects(second):
        return 0.0
    common = first.intersection(second).area()
    return float(common / max(first.area() + second.area() - common, 1e-12))


def _features_of_class(layer: QgsVectorLayer, class_name: str) -> list[QgsFeature]:
    """Features of a class in the order of their ids; all of them for no class or in a layer without classes."""
    index = layer.fields().lookupField("class")
    features = sorted(layer.getFeatures(QgsFeatureRequest()), key=lambda feature: feature.id())
    with_outline = [feature for feature in features if feature.hasGeometry()]
    if not class_name or index < 0:
        return with_outline
    return [feature for feature in with_outline if feature[index] == class_name]
