"""Finding similar objects in the map window: examples, the queue, answers by key and click, and what is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsField,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QObject, Qt, QVariant, pyqtSignal
from qgis.PyQt.QtGui import QKeySequence
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.actions import Actions
from segadapt.plugin.crs import geometry_from_wkb
from segadapt.plugin.editing import remove
from segadapt.plugin.exchange import Failure
from segadapt.plugin.field_mapping import FieldSource, remember_mapping
from segadapt.plugin.qt_compat import QAction
from segadapt.plugin.shaping import ShapeOptions
from segadapt.plugin.similar_control import SimilarControl
from segadapt.plugin.similar_examples import MOST_EXAMPLES
from segadapt.plugin.similar_tasks import Found, LearnAnswers, Search, SearchHandle

A, R, Z, ESCAPE = Qt.Key.Key_A, Qt.Key.Key_R, Qt.Key.Key_Z, Qt.Key.Key_Escape
CTRL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


class FakeWorker(QObject):
    """Remembers tasks; the test says what comes of them."""

    worked = pyqtSignal(object, object)
    done = pyqtSignal(object)
    task_progressed = pyqtSignal(object, float)
    failed = pyqtSignal(object)

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []
        self.cancelled: list[Any] = []

    def do(self, task: Any) -> None:
        self.tasks.append(task)

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task)

    @property
    def search(self) -> Search:
        return next(task for task in reversed(self.tasks) if isinstance(task, Search))

    @property
    def learned(self) -> LearnAnswers:
        return next(task for task in reversed(self.tasks) if isinstance(task, LearnAnswers))


def square(point: QgsPointXY, half_m: float = 10.0) -> bytes:
    x, y = point.x(), point.y()
    geometry = QgsGeometry.fromRect(QgsRectangle(x - half_m, y - half_m, x + half_m, y + half_m))
    geometry.convertToMultiType()
    return bytes(geometry.asWkb())


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def review(gui: Any, worker: FakeWorker) -> Any:
    """A control on the real canvas, scene and target, and the sentences it said."""
    gui.start()
    gui.controller.classes.choose("building")
    control = SimilarControl(
        gui.canvas,
        worker,
        scene=gui.controller.scene,
        target=gui.controller.target,
        actions=Actions(gui.window),
        classes=gui.controller.classes,
        parent=gui.window,
    )
    control.said, control.taught = [], []
    control.notified.connect(control.said.append)
    control.accepted.connect(control.taught.append)
    yield control
    control.dispose()


def begin(review: Any, worker: FakeWorker, at: Any, probabilities: tuple[float, ...] = (0.4, 0.9, 0.6)) -> None:
    """Search with one example; candidate n is a square at (100 n, 300) px of the given probability."""
    review.add_example(square(at(512, 800)), "building")
    review.start()
    for number, probability in enumerate(probabilities, 1):
        found = Found(number, square(at(100 * number, 300)), 0.9, 0.95, 400.0, probability, "fake")
        worker.worked.emit(worker.search, found)
    worker.done.emit(worker.search)


def features(gui: Any) -> list[Any]:
    layer = gui.controller.target.layer()
    return [] if layer is None else list(layer.getFeatures())


def test_the_likeliest_comes_first_and_answers_go_to_the_worker(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    begin(review, worker, at)
    # The first one to come in is asked about; it does not change under the user's eyes.
    assert review.current == 1
    gui.key(R)
    assert review.current == 2
    assert review.overlay.current.intersects(QgsGeometry.fromPointXY(at(200, 300)))
    assert (worker.learned.accepted, worker.learned.rejected) == ((), (1,))
    assert worker.learned.handle is worker.search.handle
    gui.key(A)
    assert (worker.learned.accepted, worker.learned.rejected) == ((2,), (1,))
    assert review.taught == [review.review.candidates[2].wkb]
    assert review.current == 3
    (feature,) = features(gui)
    assert feature["class"] == "building"
    assert feature.geometry().area() == pytest.approx(400)
    gui.key(A)
    assert review.current is None
    assert "All reviewed: 0 to review, 2 accepted, 1 rejected" in review.panel.status_label.text()


def test_what_answers_make_likely_comes_to_the_review(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, (0.9,))
    gui.key(A)
    assert worker.learned.known == {1}
    assert review.current is None
    worker.worked.emit(worker.learned, {1: 0.95, 2: 0.3})
    worker.worked.emit(worker.learned, Found(2, square(at(500, 300)), 0.9, 0.95, 400.0, 0.3, "fake"))
    assert review.current == 2
    gui.key(R)
    learned = worker.learned
    assert (learned.known, learned.rejected) == ({1, 2}, (2,))
    review.start()
    assert learned in worker.cancelled
    worker.worked.emit(learned, Found(3, square(at(600, 300)), 0.9, 0.95, 400.0, 0.3, "fake"))
    assert review.review.candidates == {}


def test_the_keys_of_a_review_are_those_that_the_user_chose(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    for key, shortcut in (("accept", "Space"), ("reject", "Shift+J")):
        gui.window.findChild(QAction, f"SegAdapt_{key}_candidate").setShortcut(QKeySequence(shortcut))
    gui.key(A)
    gui.key(R)
    assert review.review.answers == []
    gui.key(Qt.Key.Key_Space)
    gui.key(Qt.Key.Key_J, SHIFT)
    assert (review.review.accepted, review.review.rejected) == ([1], [2])


def test_where_to_look_and_what_to_accept_at_once_are_remembered(gui: Any, make_gui: Any) -> None:
    panel = gui.controller.similar.panel
    assert (panel.view_only_check.isChecked(), panel.above) == (False, 0.8)
    panel.view_only_check.click()
    panel.above_slider.setValue(65)
    gui.dispose()
    panel = make_gui(type(gui.backend)()).controller.similar.panel
    assert (panel.view_only_check.isChecked(), panel.above) == (True, 0.65)


def test_an_accept_is_one_step_of_undo(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.key(A)
    gui.key(A)
    assert len(features(gui)) == 2
    gui.controller.target.history.undo()
    assert len(features(gui)) == 1


@pytest.fixture
def undoable(gui: Any, review: Any) -> Any:
    """The review, to which undo and redo of the window go."""
    gui.prompts.click_takers.add(review, hint="Review.")
    review.changed.connect(gui.prompts.show_possible)
    return review


def test_undo_takes_the_newest_answer_back_and_redo_brings_it(
    gui: Any, undoable: Any, worker: FakeWorker, at: Any
) -> None:
    undo, redo = gui.controller.actions["undo"], gui.controller.actions["redo"]
    begin(undoable, worker, at, (0.9, 0.8))
    gui.key(A)
    gui.key(R)
    assert undoable.current is None  # all are reviewed: the last answer can be taken back all the same
    assert undo.text() == "Undo reject"
    gui.key(Z, CTRL)
    assert len(features(gui)) == 1
    assert undoable.current == 2
    assert (worker.learned.accepted, worker.learned.rejected) == ((1,), ())
    assert (undo.text(), redo.text()) == ("Undo accept", "Redo reject")
    gui.key(Z, CTRL)
    assert features(gui) == []
    assert undoable.current == 1
    assert (worker.learned.accepted, worker.learned.rejected) == ((), ())
    assert not undo.isEnabled()
    assert redo.text() == "Redo accept"
    gui.key(Z, CTRL | SHIFT)
    gui.key(Z, CTRL | SHIFT)
    assert len(features(gui)) == 1
    assert (worker.learned.accepted, worker.learned.rejected) == ((1,), (2,))
    assert not redo.isEnabled()
    gui.key(Z, CTRL)
    gui.key(A)  # another answer instead
    assert undoable.redo_text == ""
    assert undoable.review.accepted == [1, 2]


def test_undo_takes_back_first_what_was_done_to_the_layer_after_an_answer(
    gui: Any, undoable: Any, worker: FakeWorker, at: Any
) -> None:
    begin(undoable, worker, at, (0.9, 0.8, 0.7))
    gui.key(A)
    gui.key(R)
    gui.controller.target.do(lambda layer: remove(layer, [feature.id() for feature in layer.getFeatures()]))
    assert gui.controller.actions["undo"].text() == "Undo delete 1 object"
    gui.key(Z, CTRL)
    assert len(features(gui)) == 1
    assert undoable.review.rejected == [2]
    gui.key(Z, CTRL)
    assert undoable.review.rejected == []
    gui.key(ESCAPE)
    gui.key(Z, CTRL)  # the review is left: only the layer has something
    assert features(gui) == []
    undoable.start()
    assert (undoable.undo_text, undoable.redo_text) == ("", "accept")
    gui.key(Z, CTRL | SHIFT)
    assert len(features(gui)) == 1
    assert (undoable.undo_text, undoable.redo_text) == ("accept", "reject")


def test_an_accepted_object_that_is_gone_is_a_candidate_again(
    gui: Any, undoable: Any, worker: FakeWorker, at: Any
) -> None:
    begin(undoable, worker, at, (0.9, 0.8))
    gui.key(A)
    layer = gui.controller.target.layer()
    layer.dataProvider().deleteFeatures([feature.id() for feature in layer.getFeatures()])
    gui.key(Z, CTRL)
    assert (undoable.current, undoable.review.accepted) == (1, [])
    assert any("was deleted or changed elsewhere" in notice for notice in gui.notices)
    assert undoable.redo_text == ""


def test_undo_stops_an_accept_of_all(gui: Any, undoable: Any, worker: FakeWorker, at: Any) -> None:
    begin(undoable, worker, at, (0.9, 0.95, 0.85))
    undoable.accept_all()
    assert len(features(gui)) == 1
    gui.key(Z, CTRL)
    QTest.qWait(50)
    assert features(gui) == []
    assert undoable.current == 2


def test_answers_change_the_order(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, (0.9, 0.8, 0.7, 0.6))
    gui.key(R)
    assert review.current == 2
    worker.worked.emit(worker.learned, {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.95, 77: 0.5})
    assert review.current == 2  # not taken away from under the user's eyes
    assert review.review.queue() == [4, 2, 3]
    assert review.overlay.n_parts == [0, 2, 0, 0, 1]
    gui.key(R)
    assert review.current == 4


def test_an_older_ranking_is_not_taken(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, (0.9, 0.8, 0.7))
    gui.key(R)
    old = worker.learned
    gui.key(R)
    assert worker.cancelled == [old]
    worker.worked.emit(old, {3: 0.01})
    assert review.review.probabilities[3] == 0.7


def test_accept_all_above_the_slider(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, (0.4, 0.9, 0.6, 0.85))
    review.panel.above_slider.setValue(60)
    assert "(3)" in review.panel.buttons["accept_all"].text()
    review.panel.above_slider.setValue(80)
    assert review.panel.buttons["accept_all"].text() == "Accept all from 0.80 (2)"
    review.panel.buttons["accept_all"].click()
    gui.wait_for(lambda: len(features(gui)) == 2)
    gui.wait_for(lambda: worker.learned.accepted == (2, 4))
    assert "(0)" in review.panel.buttons["accept_all"].text()
    assert not review.panel.buttons["accept_all"].isEnabled()


def test_leaving_loses_nothing(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.key(R)
    gui.key(ESCAPE)
    assert not review.is_reviewing
    assert not review.wants_clicks()
    assert review.overlay.current.isEmpty()
    assert sum(review.overlay.n_parts) == 0
    gui.key(A)
    assert features(gui) == []  # the key is not ours any more
    n_tasks = len(worker.tasks)
    review.start()
    assert len(worker.tasks) == n_tasks  # no new search
    assert review.is_reviewing
    assert (review.current, review.review.rejected) == (2, [1])


def test_keys_are_ours_before_the_tool_takes_them(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.controller.activate_tool(False)
    gui.controller.activate_tool(True)  # installs its filter anew
    QTest.qWait(20)
    gui.key(ESCAPE)
    assert not review.is_reviewing


def test_clicks_answer_for_what_is_under_them(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    assert review.wants_clicks()
    third, first, nowhere = at(300, 300), at(100, 300), at(700, 700)
    review.click((third.x(), third.y()), True)
    review.click((first.x(), first.y()), False)
    assert (review.review.accepted, review.review.rejected) == ([3], [1])
    review.click((nowhere.x(), nowhere.y()), True)
    assert review.said == ["No candidate is there; click inside one, or leave the review with Esc."]
    assert len(features(gui)) == 1


def test_a_scribble_answers_once_for_each_candidate_that_it_crosses(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    begin(review, worker, at, (0.5, 0.6, 0.7, 0.8, 0.9, 0.4))
    line = [(point.x(), point.y()) for point in (at(60, 300), at(100, 300), at(105, 300), at(510, 300))]
    review.scribble(line[1:], True)
    assert sorted(review.review.accepted) == [1, 2, 3, 4, 5]
    assert len(features(gui)) == 5
    assert review.review.queue() == [6]
    review.scribble(line, False)
    assert review.review.rejected == []
    assert review.said == []


def test_a_lesson_that_is_done_is_not_cancelled(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.key(R)
    worker.worked.emit(worker.learned, {2: 0.5})
    worker.done.emit(worker.learned)
    gui.key(R)
    worker.failed.emit(Failure("The device failed; start it again.", task=worker.learned))
    gui.key(R)
    assert worker.cancelled == []


def test_the_canvas_goes_to_the_next_one(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    corner = at(900, 100)
    gui.canvas.setExtent(QgsRectangle(corner.x() - 30, corner.y() - 30, corner.x() + 30, corner.y() + 30))
    scale = gui.canvas.scale()
    begin(review, worker, at)
    assert gui.canvas.extent().contains(at(100, 300))
    assert gui.canvas.scale() == pytest.approx(scale)


def test_accepted_objects_of_the_class_are_the_examples(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    review.start()
    assert "There is no example" in review.said[-1]
    assert worker.tasks == []
    for class_name, x_px in (("building", 100), ("tank", 300), ("building", 500)):
        answer = SimpleNamespace(wkb=square(at(x_px, 200)), score=0.9, stability=0.9, area_m2=400.0, model="fake")
        answer.adapter = ""
        colour = gui.controller.classes.colour(class_name)
        gui.controller.target.accept(answer, class_name=class_name, colour=colour)
    review.start()
    assert len(worker.search.examples) == 2
    assert worker.search.bounds_map is None
    assert review.review.class_name == "building"


def parcels(gui: Any, outlines: list[QgsGeometry], *, kind: str = "MultiPolygon", crs: str = "EPSG:32631") -> None:
    """Let a layer without classes be the target."""
    layer = QgsVectorLayer(f"{kind}?crs={crs}", "parcels", "memory")
    for outline in outlines:
        feature = QgsFeature(layer.fields())
        feature.setGeometry(outline)
        assert layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    gui.controller.target.set_layer(layer)


def test_newer_objects_of_another_raster_leave_the_examples_of_this_one(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    here = [geometry_from_wkb(square(at(100 * n, 200))) for n in range(1, 4)]
    parcels(gui, here + [geometry_from_wkb(square(at(5000 + 50 * n, 200))) for n in range(MOST_EXAMPLES)])
    review.start()
    assert worker.search.examples == tuple(square(at(100 * n, 200)) for n in range(1, 4))


def test_an_object_without_a_place_in_the_rasters_crs_is_no_example(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    transform = QgsCoordinateTransform(
        gui.layer.crs(), QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    )
    here, nowhere = (
        geometry_from_wkb(square(at(100, 200))),
        QgsGeometry.fromWkt("POLYGON((0 200, 1 200, 1 201, 0 200))"),
    )
    here.transform(transform)
    parcels(gui, [here, nowhere], crs="EPSG:4326")
    review.start()
    assert review.said == []
    assert len(worker.search.examples) == 1


def test_examples_are_polygons_that_the_search_takes(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    import shapely

    (x, y), right, up = (at(300, 300).x(), at(300, 300).y()), at(320, 300).x(), at(300, 280).y()
    crossing = QgsGeometry.fromWkt(f"Polygon(({x} {y}, {right} {up}, {right} {y}, {x} {up}, {x} {y}))")
    arc = QgsGeometry.fromWkt(
        f"CurvePolygon(CompoundCurve(CircularString({x} {y}, {right} {up}, {right} {y}), ({right} {y}, {x} {y})))"
    )
    parcels(gui, [crossing, arc], kind="CurvePolygon")
    review.start()
    examples = [shapely.from_wkb(wkb) for wkb in worker.search.examples]
    assert [example.is_valid for example in examples] == [True, True]
    assert examples[0].area == pytest.approx((right - x) * (up - y) / 2)


def test_what_an_example_without_class_finds_is_of_the_class_at_hand(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    review.add_example(square(at(512, 800)), "")
    review.start()
    worker.worked.emit(worker.search, Found(1, square(at(100, 300)), 0.9, 0.95, 400.0, 0.9, "fake"))
    gui.key(A)
    assert [feature["class"] for feature in features(gui)] == ["building"]


def test_only_in_this_view(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    corner, opposite = at(100, 400), at(300, 300)
    gui.canvas.setExtent(QgsRectangle(corner, opposite))
    review.panel.view_only_check.setChecked(True)
    review.add_example(square(at(512, 800)))
    review.start()
    left, bottom, right, top = worker.search.bounds_map
    assert QgsRectangle(left, bottom, right, top).contains(QgsRectangle(corner, opposite))
    assert right - left < gui.layer.extent().width()


def test_examples_can_be_forgotten(gui: Any, review: Any, at: Any) -> None:
    review.add_example(square(at(100, 100)), "building")
    review.add_example(square(at(300, 100)), "building")
    assert review.panel.example_label.text() == "2 examples chosen with X."
    review.panel.buttons["forget_examples"].click()
    assert review.n_examples == 0
    assert not review.panel.buttons["forget_examples"].isEnabled()


def test_the_next_search_knows_what_was_rejected(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, (0.9,))
    gui.key(R)
    first = worker.search
    review.start()  # nothing is left to review: a new search
    second = worker.search
    assert second is not first
    assert second.rejected == (square(at(100, 300)),)
    worker.worked.emit(second, Found(1, square(at(200, 300)), 0.9, 0.95, 400.0, 0.9, "fake"))
    worker.done.emit(second)
    gui.key(R)
    review.start()
    assert worker.search.rejected == (square(at(100, 300)), square(at(200, 300)))


def test_what_is_known_is_not_offered_again(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    """Neither the example, nor what is in the target layer, nor what was rejected."""
    begin(review, worker, at, (0.9, 0.8))
    gui.key(A)
    gui.key(R)
    review.start()
    for number, place in enumerate((at(512, 800), at(100, 300), at(200, 300), at(500, 500)), 1):
        worker.worked.emit(worker.search, Found(number, square(place, 9.5), 0.9, 0.9, 361.0, 0.8, "fake"))
    assert review.review.queue() == [4]


def test_stop_keeps_what_was_found(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    review.add_example(square(at(512, 800)))
    review.start()
    worker.task_progressed.emit(worker.search, 0.25)
    assert review.panel.progress_bar.value() == 250
    worker.worked.emit(worker.search, None)
    worker.worked.emit(worker.search, Found(1, square(at(100, 300)), 0.9, 0.9, 400.0, 0.7, "fake"))
    review.panel.buttons["stop_search"].click()
    assert worker.cancelled == [worker.search]
    assert review.review.queue() == [1]
    assert not review.panel.buttons["stop_search"].isEnabled()


def test_failures_and_empty_results_are_sentences(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at, ())
    assert "Nothing similar was found" in review.said[-1]
    review.start()
    worker.failed.emit(Failure("The example lies outside.", task=worker.search))
    assert review.said[-1] == "The example lies outside."
    assert not review.panel.buttons["stop_search"].isEnabled()
    worker.failed.emit(Failure("Of somebody else.", task=LearnAnswers(SearchHandle())))
    assert "somebody" not in review.said[-1]


def test_a_target_that_refuses_keeps_the_candidate(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    from segadapt.plugin.feature_sink import SinkError

    begin(review, worker, at)

    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise SinkError("The disk is full; make room.")

    review._target = SimpleNamespace(accept=refuse, neighbours=lambda *_arguments: [])
    gui.key(A)
    assert review.said == ["The disk is full; make room."]
    assert review.current == 1
    assert review.review.accepted == []


def test_another_raster_ends_the_review(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.controller.scene.choose_layer(None)
    assert review.review is None
    assert not review.is_reviewing
    review.start()
    assert "not open yet" in review.said[-1]


def test_a_canvas_in_another_crs_draws_in_the_right_place(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    degrees = QgsCoordinateReferenceSystem("EPSG:4326")
    there = QgsCoordinateTransform(gui.layer.crs(), degrees, QgsProject.instance()).transform(at(100, 300))
    gui.canvas.setDestinationCrs(degrees)
    assert review.overlay.current.intersects(QgsGeometry.fromPointXY(there))


@pytest.mark.slow
def test_with_the_real_model(make_gui: Any, real_backend: Any, at: Any) -> None:
    """From the worker's own thread, beside a canvas that is drawn: the building's like is found and ranked again."""
    gui = make_gui(real_backend)
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: gui.controller.scene.is_ready, seconds=120)
    review = gui.controller.similar
    corners = at(300, 420), at(460, 540)
    # Half of the building is the example, so that the whole of it is something new.
    example = QgsGeometry.fromRect(QgsRectangle(corners[0].x(), corners[1].y(), corners[1].x() - 45, corners[0].y()))
    example.convertToMultiType()
    review.add_example(bytes(example.asWkb()), "building")
    gui.controller.actions["find_similar"].trigger()
    gui.wait_for(lambda: review.review.candidates and not review.panel.buttons["stop_search"].isEnabled(), seconds=240)
    assert review.is_reviewing
    truth = QgsGeometry.fromRect(QgsRectangle(corners[0], corners[1]))
    found = review.review.geometries.values()
    assert max(g.intersection(truth).area() / g.combine(truth).area() for g in found) > 0.85
    before = dict(review.review.probabilities)
    rejected = review.current
    gui.key(R)
    gui.wait_for(lambda: review.review.probabilities != before, seconds=60)
    assert review.review.probabilities[rejected] < before[rejected]


def test_classes_are_read_from_the_field_that_is_mapped(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    layer = QgsVectorLayer("MultiPolygon?crs=EPSG:32631", "parcels", "memory")
    layer.dataProvider().addAttributes([QgsField("landuse", QVariant.String)])
    layer.updateFields()
    for name, x_px in (("building", 100), ("lake", 300), ("lake", 500)):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(geometry_from_wkb(square(at(x_px, 200))))
        feature["landuse"] = name
        layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    remember_mapping(layer, {"landuse": FieldSource("class")})
    gui.controller.target.set_layer(layer)
    review.start()
    assert worker.search.examples == (square(at(100, 200)),)
    # What is not saved yet is the newest.
    layer.startEditing()
    for x_px in (700, 800, 900):
        feature["landuse"] = "building"
        feature.setGeometry(geometry_from_wkb(square(at(x_px, 200))))
        layer.addFeature(QgsFeature(feature))
    review.start()
    assert worker.search.examples[-1] == square(at(900, 200))
    layer.rollBack()


def test_candidates_get_the_shape_that_is_wanted(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    review._shape_options = lambda: ShapeOptions(no_overlaps=True)
    review.add_example(square(at(512, 800)), "building")
    review.start()
    candidates = (square(at(100, 300)), square(at(120, 300)), square(at(105, 300), 4.0))
    for number, wkb in enumerate(candidates, 1):
        worker.worked.emit(worker.search, Found(number, wkb, 0.9, 0.95, 400.0, 1 - number / 10, "fake"))
    review.panel.above_slider.setValue(50)
    review.accept_all()
    gui.wait_for(lambda: len(features(gui)) == 2)
    gui.wait_for(lambda: not review.review.queue())
    first, second = (feature.geometry() for feature in features(gui))
    assert (first.area(), second.area()) == pytest.approx((400.0, 200.0), abs=0.1)
    assert first.intersection(second).area() < 1e-3
    assert review.said == []


def test_accepts_that_are_undone_after_the_review_was_left_are_asked_about_again(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    begin(review, worker, at, (0.9, 0.8, 0.7, 0.6))
    for key in (A, R, A, ESCAPE):
        gui.key(key)
    gui.key(Z, CTRL)
    gui.key(Z, CTRL)
    assert features(gui) == []
    assert (review.review.accepted, review.review.rejected) == ([], [2])
    gui.key(Z, CTRL | SHIFT)
    assert len(features(gui)) == 1
    assert sorted([*review.review.accepted, *review.review.rejected]) == [1, 2]
    review.start()
    assert review.current == 3
    gui.key(R)
    assert (worker.learned.accepted, worker.learned.rejected) == ((1,), (2, 3))


def test_a_review_follows_a_class_that_is_renamed(gui: Any, review: Any, worker: FakeWorker, at: Any) -> None:
    begin(review, worker, at)
    gui.key(A)
    gui.controller.classes.rename("building", "house")
    gui.key(A)
    assert [feature["class"] for feature in features(gui)] == ["house", "house"]
    gui.key(ESCAPE)
    review.review.candidates.clear()
    review.start()
    assert review.review.class_name == "house"


def test_what_was_done_last_to_a_layer_is_not_said_after_an_accept_of_the_review(
    gui: Any, review: Any, worker: FakeWorker, at: Any
) -> None:
    gui.click(at(600, 600))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)
    gui.key(Z, CTRL)
    assert "Undone" in gui.dock.object_label.text()
    gui.prompts.reset()
    gui.key(Z, CTRL | SHIFT)
    assert gui.dock.object_label.text() == "Done again: accept building."
    begin(review, worker, at)
    gui.key(A)
    assert gui.dock.object_label.text() == "No prompt yet."
