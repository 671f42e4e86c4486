"""Polygons of the class map, of the view and of the whole raster, written in the background."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
from affine import Affine
from qgis.core import Qgis, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QFileDialog
from rasterio.crs import CRS
from segadapt.models.progress import NullProgress
from segadapt.plugin.actions import Actions
from segadapt.plugin.class_map_control import ClassMapControl
from segadapt.plugin.class_map_tasks import AddStroke, MapPicture, WriteMap, WritePolygons, Written
from segadapt.plugin.class_style import symbol_colour
from segadapt.plugin.exchange import Failure
from segadapt.plugin.prompt_tool import Command
from segadapt.processing.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator


BLUE, GREEN = (30, 30, 200), (30, 200, 30)


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


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def control(gui: Any, worker: FakeWorker) -> Iterator[Any]:
    """A class map with one click on it."""
    gui.start()
    control = ClassMapControl(
        gui.canvas,
        worker,
        scene=gui.controller.scene,
        actions=Actions(gui.window),
        class_choice=lambda: ("water", QColor(200, 30, 30)),
        parent=gui.window,
    )
    control.said, control.told = [], []
    control.notified.connect(control.said.append)
    control.informed.connect(control.told.append)
    control.mode_action.trigger()
    control.click((1.0, 2.0), True)
    corners = ((0.0, 0.0), (1.0, 0.0), (1.0, -1.0), (0.0, -1.0))
    stroke = next(task for task in worker.tasks if isinstance(task, AddStroke))
    worker.worked.emit(stroke, MapPicture(np.ones((4, 4), np.uint8), corners, {1: (200, 30, 30)}, 0, 1))
    yield control
    control.dispose()


@pytest.mark.parametrize(("button", "is_whole"), [("map_polygons", False), ("map_all_polygons", True)])
def test_polygons_are_written_with_progress_and_can_be_stopped(
    control: Any, worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, button: str, is_whole: bool
) -> None:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "areas"), ""))
    buttons = control.panel.buttons
    text = buttons[button].text()
    buttons[button].click()
    task = worker.tasks[-1]
    assert isinstance(task, WritePolygons)
    assert (task.path, task.is_whole) == (tmp_path / "areas.gpkg", is_whole)
    worker.worked.emit(task, 0.25)
    assert control.panel.progress_bar.value() == 25
    writing = ("map_raster", "map_all_polygons", "map_polygons")
    assert [name for name in writing if buttons[name].isEnabled()] == [button]
    assert buttons[button].text() == "Stop"
    buttons[button].click()
    assert worker.cancelled[-1] is task
    assert all(buttons[name].isEnabled() for name in writing)
    assert buttons[button].text() == text
    buttons[button].click()
    worker.done.emit(worker.tasks[-1])
    assert not control.panel.progress_bar.isVisibleTo(control.panel)
    buttons["map_raster"].click()
    assert isinstance(worker.tasks[-1], WriteMap)
    worker.failed.emit(Failure("The disk is full; free some space.", task=worker.tasks[-1]))
    assert buttons["map_raster"].text() == "Whole raster…"


class FakeMapper:
    """Two classes side by side on 40 x 60 pixels of a metre, in windows of 20."""

    is_fitted = True
    classes = (
        SimpleNamespace(class_id=1, name="water", colour=BLUE), SimpleNamespace(class_id=2, name="wood", colour=GREEN)
    )  # fmt: skip

    def __init__(self) -> None:
        reader = SimpleNamespace(
            transform=Affine(1, 0, 600_000, 0, -1, 5_750_000),
            crs=CRS.from_epsg(32631),
            shape=(40, 60),
            to_pixels=lambda xy: np.array(xy) * (1, -1) + (-600_000, 5_750_000),
        )
        self.scene = SimpleNamespace(reader=reader)

    def check_output(self, path: Path) -> None:
        """The raster is no file."""

    def as_now(self) -> FakeMapper:
        return self

    def limited(self, bounds: Any) -> Any:
        return bounds or (0, 0, 60, 40)

    def rows(self, bounds: Any) -> Iterator[list[Any]]:
        left, top, right, bottom = bounds
        for y in range(top, bottom, 20):
            yield [(x, y, min(x + 20, right), min(y + 20, bottom)) for x in range(left, right, 20)]

    def labels(self, bounds: Any) -> Any:
        left, top, right, bottom = bounds
        return np.where(np.arange(left, right) < 30, 1, 2).astype(np.uint8)[None].repeat(bottom - top, axis=0)


VIEW = (600_010.0, 5_749_990.0, 600_040.0, 5_750_000.0)


def written(path: Path, *, mapper: FakeMapper, view: Any = VIEW, is_whole: bool = False) -> list[Any]:
    handle: Any = SimpleNamespace(mapper=lambda _segmenter, _progress: mapper)
    task = WritePolygons(handle, view, path=path, is_whole=is_whole)
    segmenter: Any = SimpleNamespace(scene=mapper.scene)
    return list(task.run(segmenter, NullProgress()))


def test_the_view_and_the_whole_raster(tmp_path: Path) -> None:
    *fractions, all_of_it = written(tmp_path / "all.gpkg", mapper=FakeMapper(), is_whole=True)
    assert fractions[-1] == 1
    assert all_of_it.sentence == f"2 polygons of the whole raster are in {tmp_path / 'all.gpkg'}."
    frame = geopandas.read_file(tmp_path / "all.gpkg")
    assert dict(zip(frame["class"], frame.area, strict=True)) == {"water": 1200, "wood": 1200}
    assert list(frame["area_m2"]) == pytest.approx([1200, 1200], rel=2e-3)  # on the ellipsoid
    *_, view = written(tmp_path / "view.gpkg", mapper=FakeMapper())
    assert "of the view" in view.sentence
    left, bottom, right, top = geopandas.read_file(tmp_path / "view.gpkg").total_bounds
    assert (left, top) == (600_010, 5_750_000)
    assert right <= 600_041
    assert bottom >= 5_749_989


def test_polygons_come_into_the_project_in_the_colours_of_their_classes(
    control: Any, worker: FakeWorker, tmp_path: Path
) -> None:
    path = tmp_path / "all.gpkg"
    *_, item = written(path, mapper=FakeMapper(), is_whole=True)
    control.export.write_all_polygons(path)
    worker.worked.emit(worker.tasks[-1], item)
    assert control.told == [item.sentence]
    assert control.said == []
    (layer,) = QgsProject.instance().mapLayersByName("all")
    for one in (layer, QgsVectorLayer(str(path), "elsewhere", "ogr")):
        shown = {category.value(): symbol_colour(category.symbol()) for category in one.renderer().categories()}
        assert {name: colour.getRgb()[:3] for name, colour in shown.items()} == {"water": BLUE, "wood": GREEN}


def test_writing_a_file_again_shows_it_anew_in_its_layer(control: Any, worker: FakeWorker, tmp_path: Path) -> None:
    path = tmp_path / "all.gpkg"
    *_, item = written(path, mapper=FakeMapper(), is_whole=True)
    control.export.write_all_polygons(path)
    worker.worked.emit(worker.tasks[-1], item)
    (layer,) = QgsProject.instance().mapLayersByName("all")
    layer.setName("my map")
    whole = layer.extent()
    *_, item = written(path, mapper=FakeMapper())
    worker.worked.emit(worker.tasks[-1], item)
    assert [one.name() for one in QgsProject.instance().mapLayers().values() if one.type() == layer.type()] == [
        "my map"
    ]
    assert layer.isValid()
    assert layer.extent().width() < whole.width()
    assert {category.value() for category in layer.renderer().categories()} == {"water", "wood"}


def test_a_written_raster_comes_into_the_project(
    control: Any, worker: FakeWorker, raster_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "classes.tif"
    copyfile(raster_path, path)
    control.export.write_raster(path)
    worker.worked.emit(worker.tasks[-1], Written(path, "The class map is there.", {}))
    assert control.told == ["The class map is there."]
    (layer,) = QgsProject.instance().mapLayersByName("classes")
    assert isinstance(layer, QgsRasterLayer)
    assert layer.isValid()


def test_what_is_done_is_no_warning(gui: Any) -> None:
    gui.controller.class_map.informed.emit("7 polygons are there.")
    (item,) = gui.message_bar.items()
    assert (item.text(), item.level()) == ("7 polygons are there.", Qgis.MessageLevel.Info)


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="zoom to it"):
        written(tmp_path / "a.gpkg", mapper=FakeMapper(), view=(0.0, 0.0, 5.0, 5.0))
    mapper = FakeMapper()
    mapper.is_fitted = False
    with pytest.raises(JobError, match="click on places"):
        written(tmp_path / "a.gpkg", mapper=mapper, is_whole=True)
    assert list(tmp_path.iterdir()) == []


def test_polygons_never_replace_the_accepted_objects(gui: Any, control: Any, worker: FakeWorker, at: Any) -> None:
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.prompts.command(Command.ACCEPT)
    layer = gui.controller.target.layer()
    path = Path(layer.source().partition("|")[0])
    control.export.write_all_polygons(path)
    assert not any(isinstance(task, WritePolygons) for task in worker.tasks)
    assert not control.export.is_writing
    assert f"'{layer.name()}' are kept; choose another name" in control.said[-1]
