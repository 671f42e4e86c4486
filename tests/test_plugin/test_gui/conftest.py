"""A real canvas on a synthetic raster, real mouse and key events, and a fake engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from threading import Event
from traceback import format_exception
from typing import Any

import numpy as np
import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsSettings,
    QgsVectorLayer,
)
from qgis.gui import QgsMapCanvas, QgsMessageBar
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QPoint, QPointF, QSettings, Qt
from qgis.PyQt.QtGui import QMouseEvent
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QMainWindow
from segadapt.models.progress import raise_if_cancelled
from segadapt.plugin.controller import Controller
from segadapt.plugin.dock import SegAdaptDock
from segadapt.plugin.exchange import Answer, Coverage, SceneInfo, ViewWindow
from segadapt.processing.errors import JobError, RasterError

SAMPLE = Path(__file__).resolve().parents[3] / "plugin" / "resources" / "sample"
CRS = "EPSG:32631"
LEFT, TOP, GSD_M = 590_000.0, 5_750_000.0, 0.5
SIDE_PX = 1024
LEFT_BUTTON, NO_BUTTON, NO_KEYS = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
# Objects of the synthetic raster, in pixels: (left, top, right, bottom).
BUILDING = (300, 420, 460, 540)
ROUND = (720, 520, 90)  # x, y, radius


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.qgis)


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qgis_app: Any) -> Iterator[None]:
    """Forget what a test stored, touch nothing of the user's, and stay off the network."""
    monkeypatch.setenv("SEGADAPT_OFFLINE", "1")
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path / "home"))
    # A file of its own: sessions that run at the same time would forget each other's.
    for kind in (QSettings.Format.NativeFormat, QSettings.Format.IniFormat):
        QSettings.setPath(kind, QSettings.Scope.UserScope, str(tmp_path / "settings"))
    QgsSettings().remove("segadapt")
    yield
    QgsSettings().remove("segadapt")


@pytest.fixture(autouse=True)
def _no_error_in_a_slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An exception in a slot has no caller that could see it: fail the test."""
    errors: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: errors.append("".join(format_exception(*error))))
    yield
    assert errors == [], errors[0]


def scene_pixels() -> np.ndarray:
    """(3, rows, cols) uint8: grass, a light building with a straight outline, and a dark round tank."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:SIDE_PX, :SIDE_PX]
    pixels = np.stack([np.full((SIDE_PX, SIDE_PX), value, float) for value in (70, 110, 60)])
    left, top, right, bottom = BUILDING
    pixels[:, top:bottom, left:right] = np.array([210, 200, 190])[:, None, None]
    x, y, radius = ROUND
    pixels[:, (cols - x) ** 2 + (rows - y) ** 2 < radius**2] = np.array([40, 45, 60])[:, None]
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def raster_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import rasterio
    from affine import Affine

    path = tmp_path_factory.mktemp("raster") / "scène 50 cm.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=3, dtype="uint8", crs=CRS,
        transform=Affine(GSD_M, 0.0, LEFT, 0.0, -GSD_M, TOP),
    ) as dataset:  # fmt: skip
        dataset.write(scene_pixels())
    return path


def map_point(x_px: float, y_px: float) -> QgsPointXY:
    """Raster pixels to map units of the raster's CRS."""
    return QgsPointXY(LEFT + x_px * GSD_M, TOP - y_px * GSD_M)


def square_wkb(x: float, y: float, half_m: float) -> bytes:
    corners = [
        (x - half_m, y - half_m),
        (x + half_m, y - half_m),
        (x + half_m, y + half_m),
        (x - half_m, y + half_m),
    ]
    geometry = QgsGeometry.fromMultiPolygonXY([[[QgsPointXY(*corner) for corner in corners]]])
    return bytes(geometry.asWkb())


class FakeBackend:
    """Answers with a square of 20 m around the first foreground click, 5 m smaller for each background click.

    A box is answered with the box, an outline with the outline, a scribble with a square around its first point;
    points go before both. `gate` holds answers back, `fail` makes the next call of a name raise. Of `n_windows` of
    each view `n_known` are encoded before.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.prompts: list[Any] = []
        self.views: list[Any] = []
        self.gate, self.encode_gate, self.open_gate = Event(), Event(), Event()
        for gate in (self.gate, self.encode_gate, self.open_gate):
            gate.set()
        self.fail: dict[str, Exception] = {}
        self.n_windows, self.n_known = 3, 0
        self.n_ahead = 2
        self.ahead: list[Any] = []
        self.next: list[str] = []
        self.encoded: set[Any] = set()
        self.covered: Coverage | None = None
        self.fallback: SceneInfo | None = None
        self.is_open = self.is_closed = False

    def open(self, spec: Any, progress: Any) -> SceneInfo:
        self._call("open")
        progress.info("Fetching weights.")
        progress.set_fraction(0.5)
        while not self.open_gate.wait(0.01):
            raise_if_cancelled(progress)
        self.is_open = True
        return SceneInfo(spec.source.name, "Fake", "cpu", "CPU, as asked for.")

    def view_windows(self, view_map: Any) -> list[int]:
        self._call("view_windows")
        self.views.append(view_map)
        self.encoded = set(range(self.n_known))
        return list(range(self.n_known, self.n_windows))

    def ahead_windows(self, view_map: Any, ahead_map: Any) -> list[str]:
        self.ahead.append(ahead_map)
        return [f"ahead {number}" for number in range(self.n_ahead)]

    def next_windows(self, answer: Any) -> list[str]:
        return self.next

    def coverage(self, view_map: Any) -> Coverage:
        if self.covered is not None:
            return self.covered
        left, bottom, right, top = view_map
        xs = np.linspace(left, right, self.n_windows + 1)
        strips = [((x0, top), (x1, top), (x1, bottom), (x0, bottom)) for x0, x1 in pairwise(xs)]
        return Coverage(tuple(ViewWindow(strip, n in self.encoded) for n, strip in enumerate(strips)), 0, 0)

    def run_task(self, task: Any, progress: Any) -> Iterator[Any]:
        self._call("run_task")
        return iter(task.run(self, progress))

    def fall_back(self, error: Exception, progress: Any) -> SceneInfo | None:
        return self.fallback if isinstance(error, RuntimeError) and "CUDA" in str(error) else None

    def encode(self, window: Any) -> None:
        self._call(f"encode {window}")
        self.encode_gate.wait(10)
        self.encoded.add(window)

    def answer(self, prompt: Any) -> Answer:
        self._call("answer")
        self.prompts.append(prompt)
        self.gate.wait(10)
        return self._answer(prompt)

    def preview(self, prompt: Any) -> Answer | None:
        self._call("preview")
        return self._answer(prompt)

    def close_scene(self) -> None:
        self._call("close_scene")
        self.is_open = False

    def close(self) -> None:
        self._call("close")
        self.is_closed = True

    def _call(self, name: str) -> None:
        self.calls.append(name)
        error = self.fail.pop(name.split(maxsplit=1)[0], None)
        if error is not None:
            raise error

    def _answer(self, prompt: Any) -> Answer:
        if prompt.box_map is not None:
            wkb = bytes(QgsGeometry.fromWkt(_box_wkt(prompt.box_map)).asWkb())
        elif prompt.outline_wkb and 1 not in prompt.labels:
            wkb = prompt.outline_wkb
        elif 1 in prompt.scribble_labels and 1 not in prompt.labels:
            wkb = square_wkb(*prompt.scribbles_map[prompt.scribble_labels.index(1)][0], 10.0)
        else:
            if 1 not in prompt.labels:
                raise JobError("Background points alone do not say what the object is; add a foreground point.")
            x, y = prompt.points_map[prompt.labels.index(1)]
            wkb = square_wkb(x, y, 10.0 - 2.5 * prompt.labels.count(0))
        return Answer(prompt.request_id, wkb, 0.9, 0.95, 400.0, "fake", previous=f"logits {prompt.request_id}")


def _box_wkt(box: Any) -> str:
    left, bottom, right, top = box
    ring = f"{left} {bottom},{right} {bottom},{right} {top},{left} {top},{left} {bottom}"
    return f"MultiPolygon((({ring})))"


class Gui:
    """A main window with a canvas and the dock, and hands for its mouse and keyboard."""

    def __init__(self, backend: Any, layer: QgsRasterLayer) -> None:
        self.backend, self.layer = backend, layer
        self.window = QMainWindow()
        self.canvas = QgsMapCanvas()
        self.window.setCentralWidget(self.canvas)
        self.message_bar = QgsMessageBar(self.window)
        self.dock = SegAdaptDock(("auto", "cpu"), self.window)
        self.window.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self.canvas.setDestinationCrs(layer.crs())
        self.canvas.setLayers([layer])
        self.canvas.setExtent(layer.extent())
        self.window.resize(1000, 640)
        self.window.show()
        QTest.qWaitForWindowExposed(self.window)
        self.window.activateWindow()
        QTest.qWaitForWindowActive(self.window)
        self.controller = Controller(self.canvas, self.dock, backend=backend, message_bar=self.message_bar)
        self.is_disposed = False

    @property
    def prompts(self) -> Any:
        return self.controller.prompts

    @property
    def session(self) -> Any:
        return self.controller.prompts.session

    @property
    def overlay(self) -> Any:
        return self.controller.prompts.overlay

    def start(self) -> None:
        """Choose the raster and wait until the view is encoded."""
        self.dock.raster_combo.setLayer(self.layer)
        self.wait_for(lambda: self.controller.scene.is_ready)
        self.wait_for(lambda: "is encoded" in self.status)

    @property
    def status(self) -> str:
        return self.dock.status_label.text()

    @property
    def notices(self) -> list[str]:
        return [item.text() for item in self.message_bar.items()]

    def pixel(self, point: QgsPointXY) -> QPoint:
        """Where a point of the canvas's CRS is on the screen."""
        place = self.canvas.getCoordinateTransform().transform(point)
        return QPoint(round(place.x()), round(place.y()))

    def click(
        self,
        point: QgsPointXY,
        button: Any = Qt.MouseButton.LeftButton,
        keys: Any = Qt.KeyboardModifier.NoModifier,
    ) -> None:
        QTest.mouseClick(self.canvas.viewport(), button, keys, self.pixel(point))

    def move(self, point: QgsPointXY) -> None:
        place = self.pixel(point)
        QTest.mouseMove(self.canvas.viewport(), place)
        # That moves the cursor, of which a busy display tells the canvas late or, for the same place, never.
        event = QMouseEvent(QEvent.Type.MouseMove, QPointF(place), NO_BUTTON, NO_BUTTON, NO_KEYS)
        QCoreApplication.sendEvent(self.canvas.viewport(), event)

    def move_pressed(self, place: QPoint) -> None:
        """Move with the left button down, which QTest.mouseMove forgets on some platforms."""
        event = QMouseEvent(QEvent.Type.MouseMove, QPointF(place), LEFT_BUTTON, LEFT_BUTTON, NO_KEYS)
        QCoreApplication.sendEvent(self.canvas.viewport(), event)

    def drag(self, start: QgsPointXY, end: QgsPointXY) -> None:
        viewport, left = self.canvas.viewport(), LEFT_BUTTON
        first, last = self.pixel(start), self.pixel(end)
        QTest.mousePress(viewport, left, NO_KEYS, first)
        self.move_pressed((first + last) / 2)
        self.move_pressed(last)
        QTest.mouseRelease(viewport, left, NO_KEYS, last)

    def key(self, key: Any, keys: Any = NO_KEYS) -> None:
        QTest.keyClick(self.canvas, key, keys)

    def wait_for(self, is_true: Callable[[], Any], *, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > deadline:
                raise AssertionError(f"Waited {seconds} s in vain; status: {self.status!r}, notices: {self.notices}")
            QTest.qWait(5)

    def wait_for_answer(self) -> Answer:
        self.wait_for(lambda: self.session.answer is not None)
        return self.session.answer

    def dispose(self) -> None:
        if not self.is_disposed:
            self.is_disposed = True
            self.controller.dispose()
            self.window.close()
            self.window.deleteLater()


@pytest.fixture
def raster_layer(raster_path: Path, qgis_new_project: None) -> QgsRasterLayer:
    layer = QgsRasterLayer(str(raster_path), "scene", "gdal")
    QgsProject.instance().addMapLayer(layer)
    QgsProject.instance().setCrs(QgsCoordinateReferenceSystem(CRS))
    return layer


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def gui(backend: FakeBackend, raster_layer: QgsRasterLayer) -> Iterator[Gui]:
    gui = Gui(backend, raster_layer)
    yield gui
    for gate in (backend.gate, backend.encode_gate, backend.open_gate):
        gate.set()
    gui.dispose()


@pytest.fixture
def make_gui(raster_layer: QgsRasterLayer) -> Iterator[Callable[[Any], Gui]]:
    made: list[Gui] = []

    def make(backend: Any) -> Gui:
        made.append(Gui(backend, raster_layer))
        return made[-1]

    yield make
    for gui in made:
        gui.dispose()


@pytest.fixture(scope="session")
def mobile_sam_weights() -> Path:
    """The verified weights of the machine, looked up where SEGADAPT_HOME is not moved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SEGADAPT_HOME", raising=False)
        from segadapt.models.checkpoints import fetch_checkpoint
        from segadapt.models.registry import get_card

        return fetch_checkpoint(get_card("mobile_sam"))


@pytest.fixture(scope="session")
def engine(mobile_sam_weights: Path) -> Iterator[Any]:
    """MobileSAM on the CPU, loaded once."""
    from segadapt.processing.environment import activate

    activate(None)  # before torch: its libraries and those of QGIS do not go together by themselves
    from segadapt.models.engine import InferenceEngine

    engine = InferenceEngine("mobile_sam", checkpoint=mobile_sam_weights, device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def real_backend(engine: Any) -> Any:
    """The real backend with the engine of all tests, which it neither loads nor closes."""
    import torch
    from segadapt.models.device import cpu_threads
    from segadapt.plugin.backend import SceneBackend

    class SharedEngineBackend(SceneBackend):
        def _load_engine(self, *_arguments: Any) -> Any:
            torch.set_num_threads(cpu_threads())  # holds for this thread only
            self._engine = engine
            return engine

        def _close_engine(self) -> None:
            self._engine = self._engine_key = None

    return SharedEngineBackend()


@pytest.fixture(scope="session")
def sample_buildings(qgis_app: Any) -> dict[str, Any]:
    """Outlines of the buildings of the sample scene by name, all there are, as shapely polygons in its CRS."""
    import rasterio
    import shapely
    from segadapt.processing.raster.geodesy import apply_affine

    with rasterio.open(SAMPLE / "rotterdam_50cm.tif") as dataset:
        transform = dataset.transform
    outlines = {}
    for feature in QgsVectorLayer(f"{SAMPLE / 'rotterdam.gpkg'}|layername=reference").getFeatures():
        if feature["class"] == "building":
            outlines[feature["object_id"]] = shapely.from_wkb(bytes(feature.geometry().asWkb()))
    drawn = json.loads(Path(__file__).with_name("sample_buildings.json").read_text())
    for one in drawn["objects"]:
        outlines[one["object_id"]] = shapely.Polygon(apply_affine(transform, np.array(one["outline"])))
    return outlines


@pytest.fixture
def at() -> Callable[[float, float], QgsPointXY]:
    """Raster pixels to map units."""
    return map_point


@pytest.fixture
def errors() -> dict[str, type[Exception]]:
    return {"job": JobError, "raster": RasterError}
