"""The class map on a real canvas: clicks become tasks, pictures become an overlay that lies where the raster does."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor, QImage, QPainter
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QFileDialog
from segadapt.models.progress import NullProgress
from segadapt.models.storage import data_folder
from segadapt.plugin import class_map_tasks
from segadapt.plugin.actions import Actions
from segadapt.plugin.class_map_control import ClassMapControl
from segadapt.plugin.class_map_rest import MapRest, RestState
from segadapt.plugin.class_map_tasks import (
    AddStroke,
    FindNext,
    LoadClassModel,
    LoadedModel,
    MapPicture,
    MapStroke,
    MapView,
    NextPlace,
    RedoStroke,
    SetOptions,
    TakeUpStrokes,
    UndoStroke,
    WriteMap,
)
from segadapt.plugin.exchange import Failure
from segadapt.plugin.prompt_tool import Command
from segadapt.plugin.rendered_source import LayerSource
from segadapt.plugin.stroke_file import StrokeFile, StrokeFileError
from segadapt.processing.raster.rendered import RenderedReader

RED, BLUE = (200, 30, 30), (30, 30, 200)


class FakeWorker(QObject):
    """Remembers tasks; the test says what comes of them."""

    worked = pyqtSignal(object, object)
    done = pyqtSignal(object)
    failed = pyqtSignal(object)

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []
        self.cancelled: list[Any] = []

    def do(self, task: Any) -> None:
        self.tasks.append(task)

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task)

    def last(self, kind: type[Any]) -> Any:
        return next(task for task in reversed(self.tasks) if isinstance(task, kind))


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def control(gui: Any, worker: FakeWorker) -> Any:
    gui.start()
    control = ClassMapControl(
        gui.canvas,
        worker,
        scene=gui.controller.scene,
        actions=Actions(gui.window),
        class_choice=lambda: (control.class_name, QColor(*RED)),
        parent=gui.window,
    )
    control.class_name = "water"
    control.said = []
    control.notified.connect(control.said.append)
    yield control
    control.dispose()


def halves(
    at: Any, *, n_strokes: int = 1, n_missing: int = 0, n_undone: int = 0, is_loaded: bool = False
) -> MapPicture:
    """The whole raster: class 1 on the left half, class 2 on the right."""
    labels = np.ones((64, 64), np.uint8)
    labels[:, 32:] = 2
    corners = tuple((p.x(), p.y()) for p in (at(0, 0), at(1024, 0), at(1024, 1024), at(0, 1024)))
    return MapPicture(labels, corners, {1: RED, 2: BLUE}, n_missing, n_strokes, n_undone, is_loaded)


def painted(gui: Any, control: Any, point: Any) -> QColor:
    """Colour of the overlay alone at a point of the canvas's CRS."""
    image = QImage(gui.canvas.size(), QImage.Format.Format_ARGB32)
    image.fill(QColor(0, 0, 0, 0))
    painter = QPainter(image)
    control.item.paint(painter)
    painter.end()
    place = gui.pixel(point)
    return image.pixelColor(place)


def test_a_click_names_a_place_and_the_map_is_drawn(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    assert not control.wants_clicks()
    control.mode_action.trigger()
    assert control.wants_clicks()
    control.click((1.0, 2.0), True)
    task = worker.last(AddStroke)
    assert task.stroke == MapStroke(((1.0, 2.0),), "water", RED)
    worker.worked.emit(task, halves(at, n_missing=2))
    assert "1 click" in control.panel.status_label.text()
    assert "2 windows" in control.panel.status_label.text()
    left, right = painted(gui, control, at(300, 500)), painted(gui, control, at(700, 500))
    assert left.red() > 150 > left.blue()
    assert right.blue() > 150 > right.red()
    assert 0 < left.alpha() < 255


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segadapt.plugin.class_map_rest._IDLE_MS", 1)


@pytest.mark.usefixtures("at_once")
def test_the_rest_of_the_raster_is_described_while_nothing_else_is_done(
    gui: Any, control: Any, worker: FakeWorker, at: Any
) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at, n_missing=1))
    QTest.qWait(50)
    assert not any(isinstance(task, MapRest) for task in worker.tasks)  # the view comes first
    worker.worked.emit(worker.last(MapView), halves(at))
    gui.wait_for(lambda: isinstance(worker.tasks[-1], MapRest))
    rest = worker.tasks[-1]
    worker.worked.emit(rest, RestState(3, 12))
    worker.worked.emit(rest, None)
    assert "3 of 12 windows" in control.panel.status_label.text()
    control.click((3.0, 4.0), True)
    assert rest in worker.cancelled
    assert "of 12" not in control.panel.status_label.text()
    worker.worked.emit(worker.last(AddStroke), halves(at, n_strokes=2))
    gui.wait_for(lambda: isinstance(worker.tasks[-1], MapRest))
    rest = worker.tasks[-1]
    worker.failed.emit(Failure("The disk is full.", task=rest))
    assert control.said == []  # nobody asked for it
    worker.worked.emit(worker.last(MapView), halves(at, n_strokes=2))
    gui.wait_for(lambda: isinstance(worker.tasks[-1], MapRest) and worker.tasks[-1] is not rest)
    control.mode_action.trigger()
    assert worker.tasks[-1] in worker.cancelled


def test_of_an_online_layer_nothing_beyond_the_view_is_asked_for() -> None:
    reader = object.__new__(RenderedReader)
    segmenter = SimpleNamespace(scene=SimpleNamespace(reader=reader))
    task = MapRest(Mock(), (0.0, 0.0, 1.0, 1.0))
    assert list(task.run(segmenter, NullProgress())) == []
    task.handle.mapper.assert_not_called()


@pytest.mark.parametrize("rotation", [0.0, 33.0])
@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:3857"])
def test_the_picture_lies_on_the_raster(
    gui: Any, control: Any, worker: FakeWorker, at: Any, rotation: float, crs: str
) -> None:
    gui.canvas.setDestinationCrs(QgsCoordinateReferenceSystem(crs))
    gui.canvas.setRotation(rotation)
    gui.controller.scene.zoom_to_layer()
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    mapping = gui.controller.scene.mapping
    for x in (450, 495, 529, 575):
        place = at(x, 512)
        colour = painted(gui, control, mapping.point_to_canvas((place.x(), place.y())))
        assert (colour.red() > colour.blue()) == (x < 512), x
    outside = at(1060, 512)
    assert painted(gui, control, mapping.point_to_canvas((outside.x(), outside.y()))).alpha() == 0


def test_clicks_and_scribbles_are_drawn_on_the_map(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    green, places = (20, 200, 20), [(at(x, y).x(), at(x, y).y()) for x, y in ((300, 500), (600, 300), (800, 300))]
    strokes = MapStroke((places[0],), "grass", green), MapStroke((places[1], places[2]), "grass", green)
    worker.worked.emit(worker.last(AddStroke), replace(halves(at), strokes=strokes))
    for x, y in ((300, 500), (700, 300)):
        colour = painted(gui, control, at(x, y))
        assert colour.green() > 150 > max(colour.red(), colour.blue())  # lines are smooth
    assert painted(gui, control, at(300, 300)).red() > 150
    worker.worked.emit(worker.last(AddStroke), halves(at))
    assert painted(gui, control, at(300, 500)).red() > 150


def test_leaving_hides_the_map_and_coming_back_shows_it(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    view = worker.last(MapView)
    control.mode_action.trigger()
    assert control.item.image is None
    assert view in worker.cancelled
    control.mode_action.trigger()
    assert control.item.image is not None


def test_what_makes_no_sense_is_said(control: Any, worker: FakeWorker) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), False)
    assert "choose the class" in control.said[-1]
    control.class_name = ""
    control.click((1.0, 2.0), True)
    assert "No class" in control.said[-1]
    control.show_next()
    assert "no class map" in control.said[-1]
    assert not any(isinstance(task, (AddStroke, FindNext)) for task in worker.tasks)


def test_next_place_moves_the_canvas_and_is_not_shown_twice(
    gui: Any, control: Any, worker: FakeWorker, at: Any
) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    control.next_action.trigger()
    corners = tuple((p.x(), p.y()) for p in (at(800, 800), at(820, 800), at(820, 820), at(800, 820)))
    centre = at(810, 810)
    worker.worked.emit(worker.last(FindNext), NextPlace((centre.x(), centre.y()), corners))
    assert gui.canvas.center().distance(centre) < 1
    control.next_action.trigger()
    assert worker.last(FindNext).visited_map == ((centre.x(), centre.y()),)
    worker.worked.emit(worker.last(FindNext), None)
    assert "No place is left" in control.said[-1]


def test_buttons(control: Any, worker: FakeWorker, at: Any, tmp_path: Any) -> None:
    assert not control.panel.buttons["map_undo"].isEnabled()
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    control.panel.buttons["map_undo"].click()
    assert worker.last(UndoStroke)
    control.panel.snap_box.click()
    assert (worker.last(SetOptions).head, worker.last(SetOptions).is_snapped) == ("ridge", False)
    control.panel.head_combo.setCurrentText("Head: tokens")
    assert (worker.last(SetOptions).head, worker.last(SetOptions).is_snapped) == ("tokens", False)
    control.export.write_raster(tmp_path / "map.tif")
    task = worker.last(WriteMap)
    worker.worked.emit(task, 0.5)
    assert control.panel.progress_bar.value() == 50
    control.panel.buttons["map_raster"].click()
    assert task in worker.cancelled
    control.export.write_raster(tmp_path / "map.tif")
    worker.done.emit(worker.last(WriteMap))
    assert not control.panel.progress_bar.isVisibleTo(control.panel)
    worker.failed.emit(Failure("The disk is full; free some space.", task=worker.last(AddStroke)))
    assert control.said[-1].startswith("The disk is full")


def test_a_saved_model_maps_until_the_first_click(
    control: Any, worker: FakeWorker, at: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel, told = control.panel, []
    control.informed.connect(told.append)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "my_city.safetensors"), ""))
    panel.buttons["map_load"].click()
    assert control.wants_clicks()
    load, view = worker.tasks[-2:]
    assert (type(load), load.path.stem, type(view)) == (LoadClassModel, "my_city", MapView)
    assert all(task in worker.cancelled for task in worker.tasks[:-2])  # of the map before
    worker.worked.emit(load, LoadedModel("my_city maps these classes: water.", "logistic", False))
    worker.worked.emit(load, halves(at, n_strokes=0, is_loaded=True))
    assert told == ["my_city maps these classes: water."]
    assert (panel.head, panel.snap_box.isChecked(), panel.head_combo.isEnabled()) == ("logistic", False, False)
    assert worker.tasks[-1] is view  # options that were only shown
    assert "saved model" in panel.status_label.text()
    assert panel.buttons["map_raster"].isEnabled()
    assert not panel.buttons["map_undo"].isEnabled()
    control.show_next()
    assert worker.last(FindNext)
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    assert panel.head_combo.isEnabled()
    assert not panel.buttons["map_load"].isEnabled()  # its clicks would be lost


def test_a_map_begins_as_box_and_head_were_left_in_the_session_before(
    gui: Any, make_gui: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segadapt.models import backbone
    from segadapt.processing.jobs import class_map

    monkeypatch.setattr(backbone, "open_backbone", lambda **_options: None)
    monkeypatch.setattr(class_map, "ClassMapper", lambda _scene, _backbone, options: options)
    gui.controller.class_map.panel.snap_box.click()
    gui.controller.class_map.panel.head_combo.setCurrentText("Head: logistic")
    assert gui.notices == []  # no map is begun
    gui.dispose()
    later = make_gui(type(gui.backend)())
    later.start()
    control, tasks = later.controller.class_map, []
    assert not control.panel.snap_box.isChecked()
    monkeypatch.setattr(later.controller.worker, "do", tasks.append)
    later.controller.classes.choose("water")
    control.click((1.0, 2.0), True)
    segmenter = SimpleNamespace(scene=SimpleNamespace(engine=SimpleNamespace(device="cpu")))
    options = tasks[0].handle.mapper(segmenter, NullProgress())
    assert (options.head, options.is_snapped) == ("logistic", False)


def test_the_map_follows_names_and_colours_of_the_panel(gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gui.start()
    control, classes, tasks = gui.controller.class_map, gui.controller.classes, []
    monkeypatch.setattr(gui.controller.worker, "do", tasks.append)
    classes.choose("roof")
    assert tasks == []  # no map is begun
    control.click((1.0, 2.0), True)
    handle = tasks[0].handle
    classes.rename("roof", "house")
    classes.set_colour("house", QColor(*BLUE))
    renamed, recoloured = tasks[-2:]
    assert (renamed.handle, renamed.old, renamed.new) == (handle, "roof", "house")
    assert recoloured.colours == {"house": BLUE}
    mapper = Mock(classes=[SimpleNamespace(name="house"), SimpleNamespace(name="removed")])
    monkeypatch.setattr(handle, "mapper", lambda _segmenter, _progress: mapper)
    monkeypatch.setattr(class_map_tasks, "picture", lambda _mapper, _view: "picture")
    assert [*renamed.run(None, None), *recoloured.run(None, None)] == ["picture", "picture"]
    assert mapper.mock_calls == [
        call.rename_class("roof", "house"), call.add_class("house", BLUE), call.add_class("removed", None),
    ]  # fmt: skip
    gui.controller.scene.reset()
    tasks.clear()
    classes.rename("house", "roof")
    assert tasks == []


def test_undo_and_redo_of_clicks(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    gui.prompts.click_takers.add(control, hint="Class map.")
    control.changed.connect(gui.prompts.show_possible)
    undo, redo = gui.controller.actions["undo"], gui.controller.actions["redo"]

    def possible() -> tuple[str, str]:
        return tuple(action.text() if action.isEnabled() else "" for action in (undo, redo))

    control.mode_action.trigger()
    assert possible() == ("", "")  # so that Ctrl+Z reaches the layer
    control.click((1.0, 2.0), True)
    assert possible() == ("Undo click", "")  # before the picture is there
    worker.worked.emit(worker.last(AddStroke), halves(at))
    undo.trigger()
    assert possible() == ("Undo click", "Redo click")
    assert isinstance(worker.tasks[-1], MapView)  # what memory lost of the view comes back
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=0, n_undone=1))
    assert possible() == ("", "Redo click")
    redo.trigger()
    assert isinstance(worker.tasks[-1], MapView)
    worker.worked.emit(worker.last(RedoStroke), halves(at))
    assert possible() == ("Undo click", "")
    control.click((1.0, 2.0), True)
    worker.failed.emit(Failure("The device failed; click again.", task=worker.last(AddStroke)))
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=0))
    assert possible() == ("", "")
    control.mode_action.trigger()
    assert possible() == ("", "")


def test_undo_after_begin_anew_brings_all_clicks_back(
    gui: Any, control: Any, worker: FakeWorker, at: Any, accepted_before: Any
) -> None:
    gui.prompts.click_takers.add(control, hint="Class map.")
    control.changed.connect(gui.prompts.show_possible)
    control.mode_action.trigger()
    for n_strokes in (1, 2, 3):
        control.click((1.0, 2.0), True)
        worker.worked.emit(worker.last(AddStroke), halves(at, n_strokes=n_strokes))
    gui.prompts.command(Command.UNDO)
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=2, n_undone=1))
    control.panel.buttons["map_clear"].click()
    control.panel.buttons["map_clear"].click()
    worker.worked.emit(worker.tasks[-2], halves(at, n_strokes=0, n_undone=3))
    worker.worked.emit(worker.tasks[-1], halves(at, n_strokes=0, n_undone=3))
    assert gui.controller.actions["undo"].text() == "Undo beginning anew"
    assert control.panel.buttons["map_undo"].isEnabled()
    gui.prompts.command(Command.UNDO)
    assert accepted_before.featureCount() == 1
    assert worker.last(RedoStroke).n_strokes == 2  # the third was taken back before
    worker.worked.emit(worker.last(RedoStroke), halves(at, n_strokes=2, n_undone=1))
    assert gui.controller.actions["undo"].text() == "Undo click"


def test_a_click_after_begin_anew_is_what_undo_takes_back(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    control.panel.buttons["map_clear"].click()
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=0, n_undone=1))
    control.click((1.0, 2.0), True)
    worker.worked.emit(worker.last(AddStroke), halves(at))
    control.undo()
    assert not worker.last(UndoStroke).is_all
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=0, n_undone=1))
    assert control.undo_text == ""


@pytest.fixture
def accepted_before(gui: Any, control: Any, at: Any) -> QgsVectorLayer:
    """The layer of an object that was accepted before the class map was begun."""
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.prompts.command(Command.ACCEPT)
    return gui.controller.target.layer()


def test_redo_of_layers_waits_for_that_of_clicks(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    gui.prompts.click_takers.add(control, hint="Class map.")
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.prompts.command(Command.ACCEPT)
    layer = gui.controller.target.layer()
    gui.prompts.command(Command.UNDO)
    control.mode_action.trigger()
    worker.worked.emit(worker.last(MapView), halves(at, n_strokes=0, n_undone=1))
    gui.prompts.reset()  # what was undone of the layer is not what redo begins with any more
    gui.prompts.command(Command.REDO)
    assert worker.last(RedoStroke)
    worker.worked.emit(worker.last(RedoStroke), halves(at))
    assert layer.featureCount() == 0
    gui.prompts.command(Command.REDO)
    assert layer.featureCount() == 1


CLICK = MapStroke(((590_100.0, 5_749_900.0),), "water", RED)
LINE = MapStroke(((590_200.0, 5_749_900.0), (590_210.5, 5_749_880.25)), "wörd", BLUE)


def test_clicks_are_stored_and_taken_up_again(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    told, found = [], []
    control.informed.connect(told.append)
    control.classes_found.connect(found.append)
    control.mode_action.trigger()
    control.click(CLICK.points_map[0], True)
    worker.worked.emit(worker.last(AddStroke), replace(halves(at), strokes=(CLICK,)))
    worker.worked.emit(worker.last(MapView), replace(halves(at, n_strokes=2), strokes=(CLICK, LINE)))
    worker.tasks.clear()
    gui.controller.scene.reset()  # as a crash, or another raster in between
    gui.wait_for(lambda: worker.tasks)
    assert control.wants_clicks()
    first = worker.tasks[0]
    assert (type(first), first.strokes) == (TakeUpStrokes, (CLICK, LINE))
    assert control.undo_text == "click"
    assert control.redo_text == ""
    worker.failed.emit(Failure("The device failed; start again.", task=first))
    worker.worked.emit(worker.last(MapView), halves(at, n_strokes=0))  # which must not be stored in their place
    control.click((1.0, 2.0), True)
    again = worker.last(TakeUpStrokes)
    assert again is not first
    assert again.strokes == (CLICK, LINE)
    worker.worked.emit(again, replace(halves(at, n_strokes=2), strokes=(CLICK, LINE)))
    assert "2 clicks and scribbles" in told[-1]
    assert found == [{"water": QColor(*RED), "wörd": QColor(*BLUE)}]
    control.panel.buttons["map_clear"].click()
    assert worker.last(UndoStroke).is_all
    worker.worked.emit(worker.last(UndoStroke), halves(at, n_strokes=0, n_undone=2))
    gui.controller.scene.reset()
    worker.tasks.clear()
    gui.wait_for(lambda: worker.tasks)
    assert not any(isinstance(task, TakeUpStrokes) for task in worker.tasks)


@pytest.mark.parametrize(
    ("n_taken_up", "sentence"),
    [
        (1, "; 'Begin anew' takes them back; 1 click or scribble outside the raster as it is now is dropped."),
        (0, "nothing is left: 2 clicks and scribbles outside the raster as it is now are dropped."),
    ],
)
def test_clicks_that_a_replaced_raster_has_no_place_for_are_told(
    gui: Any, control: Any, worker: FakeWorker, at: Any, n_taken_up: int, sentence: str
) -> None:
    told = []
    control.informed.connect(told.append)
    StrokeFile(gui.controller.scene.source).write([CLICK, LINE])
    control.mode_action.trigger()
    worker.worked.emit(worker.last(TakeUpStrokes), halves(at, n_strokes=n_taken_up))
    assert sentence in told[-1]


def test_a_model_does_not_replace_clicks_from_before(
    gui: Any, control: Any, worker: FakeWorker, at: Any, tmp_path: Any
) -> None:
    StrokeFile(gui.controller.scene.source).write([CLICK])
    control.load_model(tmp_path / "my_city.safetensors")
    assert not any(isinstance(task, LoadClassModel) for task in worker.tasks)
    assert "begin anew" in control.said[-1]


def test_classes_of_clicks_from_before_come_into_the_list(gui: Any) -> None:
    classes = gui.controller.classes
    classes.add("water", QColor(*BLUE))
    gui.controller.class_map.classes_found.emit({"water": QColor(*RED), "wood": QColor(*RED)})
    assert {name: classes.colour(name).getRgb()[:3] for name in classes.names()} == {"water": BLUE, "wood": RED}


def test_a_file_of_strokes_is_whole_or_a_sentence(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    source, folder = gui.controller.scene.source, data_folder() / "objects"
    file = StrokeFile(source)
    assert file.read() == ()
    file.write([CLICK, LINE])
    (path,) = folder.iterdir()
    layer = QgsVectorLayer(str(path), "strokes", "ogr")
    assert layer.isValid()
    assert StrokeFile(source).read() == (CLICK, LINE)
    other = QgsRasterLayer(str(path.with_name("other.tif")), gui.layer.name(), "gdal")
    assert StrokeFile(LayerSource((other,), source.look, source.crs)).read() == ()
    content = path.read_text()
    for damaged in ("{", re.sub(r"\[\[.*?\]\]", "[]", content), re.sub(r"590100\.0", "NaN", content)):
        path.write_text(damaged)
        with pytest.raises(StrokeFileError, match="copy the file away"):
            StrokeFile(source).read()
    file.write([])
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("in the way")
    control.mode_action.trigger()
    control.click(CLICK.points_map[0], True)
    for n_strokes in (1, 2):
        worker.worked.emit(worker.last(AddStroke), replace(halves(at), strokes=(CLICK,) * n_strokes))
    assert len(control.said) == 1
    assert "cannot be stored" in control.said[0]


def test_another_scene_begins_anew(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    old = worker.last(AddStroke)
    worker.worked.emit(old, halves(at))
    gui.controller.scene.reset()
    assert control.picture is None
    worker.worked.emit(old, halves(at))
    assert control.picture is None
