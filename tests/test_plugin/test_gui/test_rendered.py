"""Layers that are no file: drawn by QGIS block by block, read and segmented as rasters."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsFillSymbol,
    QgsGeometry,
    QgsMapSettings,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QObject, QSize
from qgis.PyQt.QtTest import QTest
from segadapt.models.errors import Cancelled
from segadapt.plugin.block_renderer import BlockRenderer
from segadapt.plugin.prompt_tool import Command
from segadapt.plugin.rendered_source import (
    Look,
    layer_source,
    map_source,
    note_reload,
    offered_looks,
    read_layer_source,
    snapped_scale,
)
from segadapt.processing.errors import RasterError


def _tile_server() -> Any:
    path = Path(__file__).with_name("tile_server.py")
    spec = importlib.util.spec_from_file_location("segadapt_tile_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tile_server = _tile_server()
LEFT, TOP, RIGHT, BOTTOM = tile_server.LEFT, tile_server.TOP, tile_server.RIGHT, tile_server.BOTTOM
HALF_WORLD, ZOOM = tile_server.HALF_WORLD, tile_server.ZOOM
# A pixel of zoom 19: 0.299 m on the equator; the tiles' grid begins at the upper left of the world.
SCALE = 2 * HALF_WORLD / 256 / 2**ZOOM
PLACE = QgsPointXY(498_000.0, 6_783_000.0)  # Rotterdam
TILE = (int((PLACE.x() + HALF_WORLD) / SCALE / 256), int((HALF_WORLD - PLACE.y()) / SCALE / 256))


class TileServer:
    """Tiles on this machine; `fail` and `slow` are files that make it so while they exist."""

    def __init__(self, folder: Path) -> None:
        self._asked, self.fail, self.slow = folder / "asked", folder / "fail", folder / "slow"
        self._asked.touch()
        self._process = subprocess.Popen(
            [sys.executable, tile_server.__file__, str(folder)], stdout=subprocess.PIPE, text=True
        )
        self._port = int(self._process.stdout.readline())

    @property
    def asked(self) -> list[list[int]]:
        """Zoom, x and y of every tile that was asked for."""
        return [[int(number) for number in line.split()] for line in self._asked.read_text().splitlines()]

    @property
    def uri(self) -> str:
        """Of the tiles as XYZ."""
        return f"type=xyz&url=http://127.0.0.1:{self._port}/{{z}}/{{x}}/{{y}}.png&zmax=22&zmin=0"

    def service_uri(self, service: str) -> str:
        """Of the tiles as "wms" or "wmts"."""
        layer = "crs=EPSG:3857&format=image/png&layers=tiles"
        more = {"wms": "styles=", "wmts": "styles=default&tileMatrixSet=web"}[service]
        return f"{layer}&{more}&url=http://127.0.0.1:{self._port}/{service}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TileServer]:
    (tmp_path / "server").mkdir()
    server = TileServer(tmp_path / "server")
    yield server
    server.close()


@pytest.fixture
def tiles(server: TileServer, qgis_new_project: None, request: pytest.FixtureRequest) -> QgsRasterLayer:
    """The tiles as XYZ, or as the service that a test names as parameter."""
    service = getattr(request, "param", "xyz")
    uri = server.uri if service == "xyz" else server.service_uri(service)
    layer = QgsRasterLayer(uri, "tiles", "wms")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    return layer


def settings_for(crs: str = "EPSG:3857") -> QgsMapSettings:
    settings = QgsMapSettings()
    settings.setDestinationCrs(QgsCoordinateReferenceSystem(crs))
    settings.setOutputSize(QSize(100, 100))
    return settings


class Drawn:
    """A picture that is drawn, and a reader of it in another thread."""

    def __init__(
        self, source: Any, settings: QgsMapSettings, *, centre: QgsPointXY, scale: float, folder: Path
    ) -> None:
        from segadapt.processing.raster.rendered import open_rendered

        self.raster = read_layer_source(source, centre=centre, units_per_px=scale, folder=folder)
        assert self.raster.blocks is not None
        self.grid = self.raster.blocks
        self.owner = QObject()
        self.renderer = BlockRenderer(self.grid, source, settings=settings, parent=self.owner)
        self.failures: list[str] = []
        self.renderer.failed.connect(self.failures.append)
        self.is_cancelled = False
        self.fetched: list[Any] = []
        self.reader = open_rendered(self.grid, crs_wkt=self.raster.crs_wkt, fetch=self._fetch)
        self._pool = ThreadPoolExecutor(1)

    def _fetch(self, blocks: Any) -> None:
        self.fetched += blocks
        self.renderer.demand.wait(blocks, lambda: self.is_cancelled)

    def window(self, point: QgsPointXY, size_px: int = 512) -> Any:
        from segadapt.processing.raster.windows import SquareWindow

        col, row = self.reader.to_pixels([(point.x(), point.y())])[0]
        return SquareWindow(int(col) - size_px // 2, int(row) - size_px // 2, size_px)

    def start(self, point: QgsPointXY, size_px: int = 512) -> Future[Any]:
        return self._pool.submit(self.reader.read_chip, self.window(point, size_px))

    def read(self, point: QgsPointXY, size_px: int = 512) -> Any:
        future = self.start(point, size_px)
        for _ in range(2000):
            if future.done():
                break
            QTest.qWait(5)
        return future.result(0)

    def close(self) -> None:
        self.renderer.dispose()
        self._pool.shutdown()
        self.reader.close()


@pytest.fixture
def draw(tmp_path: Path, qgis_app: Any) -> Iterator[Callable[..., Drawn]]:
    made: list[Drawn] = []

    def make(source: Any, settings: QgsMapSettings | None = None, **values: Any) -> Drawn:
        values = {"centre": PLACE, "scale": SCALE * 1.2, "folder": tmp_path / "rendered", **values}
        made.append(Drawn(source, settings or settings_for(), **values))
        return made[-1]

    yield make
    for drawn in made:
        drawn.close()


@pytest.mark.parametrize(("tiles", "zooms"), [("xyz", {ZOOM}), ("wmts", {ZOOM}), ("wms", set())], indirect=["tiles"])
def test_a_pixel_of_a_tile_lies_where_the_tile_lies_on_the_map(
    tiles: Any, zooms: set[int], server: TileServer, draw: Any
) -> None:
    drawn = draw(layer_source(tiles))
    assert drawn.grid.units_per_px == pytest.approx(SCALE, rel=1e-12)
    chip = drawn.read(PLACE, 1024)
    window = drawn.window(PLACE, 1024)
    x, y = drawn.reader.to_map([(window.col_off, window.row_off)])[0]
    # The chip as the formula of the tiles says it, pixel by pixel: nothing is resampled.
    col, row = round((x + HALF_WORLD) / SCALE), round((HALF_WORLD - y) / SCALE)
    wanted = np.empty((1024, 1024, 3), np.uint8)
    for tile_row in range(row // 256, (row + 1023) // 256 + 1):
        for tile_col in range(col // 256, (col + 1023) // 256 + 1):
            rgb = tile_server.tile(tile_col, tile_row)
            top, left = tile_row * 256 - row, tile_col * 256 - col
            rows, cols = slice(max(0, top), min(1024, top + 256)), slice(max(0, left), min(1024, left + 256))
            wanted[rows, cols] = rgb[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    assert np.array_equal(chip.pixels, np.moveaxis(wanted, -1, 0))
    assert chip.valid.all()
    assert {z for z, _, _ in server.asked} == zooms
    assert drawn.reader.gsd_m == pytest.approx(SCALE * math.cos(math.radians(51.9)), rel=0.02)


def test_a_block_is_drawn_once_also_by_the_next_session(tiles: Any, server: TileServer, draw: Any) -> None:
    drawn = draw(layer_source(tiles))
    drawn.read(PLACE)
    n_asked = len(server.asked)
    drawn.read(PLACE)
    assert len(server.asked) == n_asked
    again = draw(layer_source(QgsRasterLayer(server.uri, "by another name", "wms")))
    assert again.reader.identity == drawn.reader.identity
    assert np.array_equal(again.read(PLACE).pixels, drawn.read(PLACE).pixels)
    assert len(server.asked) == n_asked
    assert again.fetched == []
    # Near by, where another part is laid, the blocks are the same ones.
    moved = draw(layer_source(tiles), centre=QgsPointXY(PLACE.x() + 5000 * SCALE, PLACE.y()))
    assert moved.grid.first_col != drawn.grid.first_col
    moved.read(PLACE)
    assert len(server.asked) == n_asked


def test_tiles_that_fail_are_a_sentence_and_can_be_tried_again(
    tiles: Any, server: TileServer, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segadapt.plugin.block_renderer._RETRY_S", 0.0)
    server.fail.touch()
    drawn = draw(layer_source(tiles))
    with pytest.raises(RasterError, match=r"'tiles' cannot be drawn here \(.*\); check the connection"):
        drawn.read(PLACE)
    assert drawn.failures
    assert list(drawn.grid.folder.glob("*.tif")) == []
    while drawn.renderer._jobs:
        QTest.qWait(5)
    server.fail.unlink()
    assert drawn.read(PLACE).pixels.max() == 220


def test_a_folder_of_tiles_is_empty_where_it_holds_none(draw: Any, tmp_path: Path, qgis_new_project: None) -> None:
    column, row = TILE
    path = tmp_path / "tiles" / str(ZOOM) / str(column) / f"{row}.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(tile_server.png(tile_server.tile(column, row)))
    url = (tmp_path / "tiles").as_uri() + "/{z}/{x}/{y}.png"
    layer = QgsRasterLayer(f"type=xyz&url={url}&zmax=22&zmin=0", "folder", "wms")
    QgsProject.instance().addMapLayer(layer)
    drawn = draw(layer_source(layer))
    chip = drawn.read(PLACE, 1024)
    assert chip.pixels.max() == 220
    assert chip.valid.sum() == 256 * 256
    assert drawn.failures == []


def test_a_read_ends_when_it_is_wanted_no_more(tiles: Any, server: TileServer, draw: Any) -> None:
    server.slow.touch()
    drawn = draw(layer_source(tiles))
    future = drawn.start(PLACE)
    QTest.qWait(100)
    drawn.is_cancelled = True
    with pytest.raises(Cancelled):
        future.result(1)
    drawn.is_cancelled = False
    future = drawn.start(PLACE)
    QTest.qWait(50)
    started = time.perf_counter()
    drawn.renderer.dispose()
    assert time.perf_counter() - started < 0.2  # it waits for no tile
    with pytest.raises(Cancelled):
        future.result(1)


def test_drawing_does_not_hold_up_the_gui(tiles: Any, draw: Any) -> None:
    drawn = draw(layer_source(tiles))
    future = drawn.start(PLACE, 2048)
    # Time of the processor, not of the clock: other programs on a busy machine are not our fault.
    last, spent_s = time.thread_time(), []
    while not future.done():
        QTest.qWait(1)
        now = time.thread_time()
        spent_s.append(now - last)
        last = now
    future.result()
    print(f"{len(drawn.fetched)} blocks; longest work in the GUI thread {1000 * max(spent_s):.0f} ms")
    assert len(drawn.fetched) >= 16
    assert max(spent_s) < 0.05


@pytest.fixture
def red_square(qgis_new_project: None) -> QgsVectorLayer:
    """100 m square around PLACE, red."""
    layer = QgsVectorLayer("Polygon?crs=EPSG:3857", "square", "memory")
    feature = QgsFeature()
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle.fromCenterAndSize(PLACE, 100, 100)))
    layer.dataProvider().addFeatures([feature])
    symbol = QgsFillSymbol.createSimple({"color": "255,0,0,255", "outline_style": "no"})
    layer.setRenderer(QgsSingleSymbolRenderer(symbol))
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_vector_layer_is_drawn_with_nothing_where_there_is_nothing(red_square: Any, draw: Any) -> None:
    assert offered_looks(red_square) == (Look.RENDERED,)
    red_square.selectAll()  # which would be yellow on the canvas
    drawn = draw(layer_source(red_square))
    chip = drawn.read(PLACE, 1024)
    area_px = chip.valid.sum()
    assert area_px * SCALE**2 == pytest.approx(100 * 100, rel=0.02)
    assert (chip.pixels[:, 512, 512] == (255, 0, 0)).all()
    rows, cols = np.nonzero(chip.valid)
    assert abs(rows.mean() - 511.5) < 1.5
    assert abs(cols.mean() - 511.5) < 1.5


def test_the_map_as_shown_is_its_visible_layers_in_its_crs(tiles: Any, red_square: Any, draw: Any) -> None:
    settings = settings_for("EPSG:32631")
    settings.setRotation(30.0)
    with pytest.raises(RasterError, match="no layer"):
        map_source(settings)
    own = red_square.clone()
    own.setCustomProperty("segadapt/is_own", True)
    settings.setLayers([own, red_square, tiles])
    source = map_source(settings)
    assert (source.layers, source.layer, source.name) == ((red_square, tiles), None, "The map as shown")
    transform = QgsCoordinateTransform(tiles.crs(), settings.destinationCrs(), QgsProject.instance())
    centre = transform.transform(PLACE)
    drawn = draw(source, settings, centre=centre, scale=0.25)
    assert drawn.grid.units_per_px == pytest.approx(2 * HALF_WORLD / 256 / 2**19)
    chip = drawn.read(centre, 1024)
    assert (chip.pixels[:, 512, 512] == (255, 0, 0)).all()
    assert chip.valid.all()
    # The corner of the square, transformed, is where red ends; beyond it are the tiles.
    corner = transform.transform(QgsPointXY(PLACE.x() - 50, PLACE.y() + 50))
    col, row = drawn.reader.to_pixels([(corner.x(), corner.y())])[0]
    window = drawn.window(centre, 1024)
    x, y = round(col - window.col_off), round(row - window.row_off)
    is_red = (chip.pixels[1] < 5) & (chip.pixels[0] > 250)
    assert is_red[y + 4, x + 4]
    assert not is_red[y - 4, x - 4]
    assert not is_red[y + 4, x - 4]


def test_another_style_scale_source_or_order_is_another_picture(tiles: Any, red_square: Any, tmp_path: Path) -> None:
    def key(source: Any, scale: float = SCALE) -> str:
        raster = read_layer_source(source, centre=PLACE, units_per_px=scale, folder=tmp_path)
        return str(raster.blocks.key)

    first = key(layer_source(tiles))
    assert key(layer_source(tiles), SCALE * 1.1) == first
    assert key(layer_source(tiles), SCALE * 2) != first
    assert key(layer_source(red_square)) != first
    settings = settings_for()
    settings.setLayers([red_square, tiles])
    stack = key(map_source(settings))
    settings.setLayers([tiles, red_square])
    assert key(map_source(settings)) != stack
    red = key(layer_source(red_square))
    red_square.setOpacity(0.5)
    assert key(layer_source(red_square)) != red


def test_a_raster_is_drawn_no_finer_than_it_is_and_keeps_its_three_looks(raster_layer: Any, tmp_path: Path) -> None:
    assert offered_looks(raster_layer) == (Look.FILE, Look.BANDS, Look.RENDERED)
    centre = raster_layer.extent().center()
    drawn = read_layer_source(
        layer_source(raster_layer, Look.RENDERED), centre=centre, units_per_px=0.01, folder=tmp_path
    )
    assert drawn.blocks.units_per_px == pytest.approx(0.597, abs=0.001)
    file = read_layer_source(layer_source(raster_layer), centre=centre, units_per_px=0.01, folder=tmp_path)
    assert (file.blocks, file.bands, file.ranges) == (None, None, None)
    shown = read_layer_source(layer_source(raster_layer, Look.BANDS), centre=centre, units_per_px=0.01, folder=tmp_path)
    assert (shown.blocks, shown.bands) == (None, (1, 2, 3))


def test_the_scale_is_a_power_of_two_times_fifteen_centimetres() -> None:
    metres = QgsCoordinateReferenceSystem("EPSG:32631")
    assert snapped_scale(0.3, metres) == pytest.approx(0.2986, abs=1e-4)
    assert snapped_scale(1.0, metres) == pytest.approx(1.194, abs=1e-3)
    assert snapped_scale(1e-9, metres) == pytest.approx(0.1493 / 8, abs=1e-4)
    degrees = snapped_scale(3e-6, QgsCoordinateReferenceSystem("EPSG:4326"))
    assert degrees == pytest.approx(0.2986 / 111_319.5, rel=1e-3)
    feet = snapped_scale(1.0, QgsCoordinateReferenceSystem("EPSG:2263"))
    assert feet == pytest.approx(0.2986 / 0.3048, rel=1e-3)


def _fake_engine() -> Any:
    path = Path(__file__).parents[2] / "test_jobs" / "fake_engine.py"
    spec = importlib.util.spec_from_file_location("fake_engine_of_jobs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine = module.FakeEngine()
    engine.device, engine.device_reason = "cpu", "CPU, as asked for."
    return engine


@pytest.fixture
def drawn_gui(tiles: Any, make_gui: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dock with the real backend, a fake engine, and a canvas that shows the tiles."""
    import segadapt.models.engine
    from segadapt.plugin.backend import SceneBackend
    from segadapt.processing.jobs import interactive
    from segadapt.processing.jobs.evaluate_interactive import plain_options

    engine = _fake_engine()
    # What learns and refines on top of the model is not in question here, and would see a network that is none.
    plain = plain_options(window_px=None)
    segmenter = interactive.InteractiveSegmenter
    monkeypatch.setattr(interactive, "InteractiveSegmenter", lambda scene, _options=None: segmenter(scene, plain))
    monkeypatch.setattr(segadapt.models.engine, "open_engine", lambda *_args, **_more: engine)
    gui = make_gui(SceneBackend())
    gui.engine = engine
    gui.canvas.setDestinationCrs(tiles.crs())
    gui.canvas.setLayers([tiles])
    gui.canvas.setExtent(QgsRectangle.fromCenterAndSize(PLACE, 150, 100))
    return gui


def bright_rectangle() -> QgsGeometry:
    """The bright rectangle of the tile around PLACE, on the map."""
    x, y = -HALF_WORLD + TILE[0] * 256 * SCALE, HALF_WORLD - TILE[1] * 256 * SCALE
    return QgsGeometry.fromRect(QgsRectangle(x + LEFT * SCALE, y - BOTTOM * SCALE, x + RIGHT * SCALE, y - TOP * SCALE))


def iou(first: QgsGeometry, second: QgsGeometry) -> float:
    shared = first.intersection(second).area()
    return float(shared / (first.area() + second.area() - shared))


@pytest.mark.parametrize(
    ("tiles", "rotation"), [("xyz", 0.0), ("xyz", 30.0), ("wms", 0.0), ("wmts", 0.0)], indirect=["tiles"]
)
def test_a_click_on_tiles_gives_what_is_seen_there(drawn_gui: Any, tiles: Any, rotation: float) -> None:
    gui = drawn_gui
    gui.canvas.setRotation(rotation)
    bright = bright_rectangle()
    centre = bright.centroid().asPoint()
    gui.canvas.setCenter(centre)
    gui.canvas.zoomScale(gui.canvas.scale() * SCALE / gui.canvas.mapUnitsPerPixel())
    gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    gui.wait_for(lambda: "is encoded" in gui.status)
    assert gui.engine.n_embedded == gui.controller.scene.status.n_windows > 0
    gui.click(centre)
    answer = gui.wait_for_answer()
    geometry = QgsGeometry()
    geometry.fromWkb(answer.wkb)
    assert iou(geometry, bright) > 0.93
    assert gui.notices == []


def test_a_click_is_answered_before_its_tiles_are_there_and_panning_far_goes_on(drawn_gui: Any, tiles: Any) -> None:
    gui = drawn_gui
    gui.canvas.zoomScale(gui.canvas.scale() * SCALE / gui.canvas.mapUnitsPerPixel())
    gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    gui.wait_for(lambda: "is encoded" in gui.status)
    area = gui.controller.scene.extent
    far = QgsPointXY(area.xMaximum() + 100, PLACE.y())
    gui.canvas.setCenter(far)
    gui.wait_for(lambda: gui.controller.scene.extent != area and gui.controller.scene.is_ready)
    assert gui.controller.scene.extent.contains(far)
    x = -HALF_WORLD + (math.floor((far.x() + HALF_WORLD) / SCALE / 256) * 256 + (LEFT + RIGHT) / 2) * SCALE
    y = HALF_WORLD - (math.floor((HALF_WORLD - far.y()) / SCALE / 256) * 256 + (TOP + BOTTOM) / 2) * SCALE
    gui.canvas.setCenter(QgsPointXY(x, y))
    gui.click(QgsPointXY(x, y))
    geometry = QgsGeometry()
    geometry.fromWkb(gui.wait_for_answer().wkb)
    assert geometry.contains(QgsGeometry.fromPointXY(QgsPointXY(x, y)))
    assert geometry.area() == pytest.approx((RIGHT - LEFT) * (BOTTOM - TOP) * SCALE**2, rel=0.05)


def test_dead_tiles_are_one_sentence_and_the_raster_stays(drawn_gui: Any, tiles: Any, server: TileServer) -> None:
    gui = drawn_gui
    server.fail.touch()
    gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: gui.notices)
    assert "check the connection" in gui.notices[0]
    assert gui.controller.scene.is_ready


def test_reloaded_tiles_are_drawn_anew_in_later_sessions_too(tiles: Any, server: TileServer, draw: Any) -> None:
    first = draw(layer_source(tiles))
    first.read(PLACE)
    folder = first.grid.folder.parent
    note_reload(layer_source(tiles), folder=folder)
    second = draw(layer_source(tiles))
    assert second.reader.identity != first.reader.identity  # embeddings are those of the new picture
    second.read(PLACE)
    assert second.fetched == first.fetched
    again = draw(layer_source(QgsRasterLayer(server.uri, "by another name", "wms")))
    again.read(PLACE)
    assert again.reader.identity == second.reader.identity
    assert again.fetched == []


def test_a_reload_leaves_what_is_no_online_layer(raster_layer: Any, red_square: Any, tmp_path: Path) -> None:
    for layer in (raster_layer, red_square):
        note_reload(layer_source(layer, Look.RENDERED), folder=tmp_path / "rendered")
    assert not (tmp_path / "rendered").exists()
    (tmp_path / "rendered").touch()  # no folder can be made there
    with pytest.raises(RasterError, match="choose another cache folder"):
        note_reload(
            layer_source(QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/{z}/{x}/{y}.png", "dead", "wms")),
            folder=tmp_path / "rendered",
        )


@pytest.mark.parametrize("is_map", [False, True])
def test_refreshing_the_map_opens_its_tiles_again(drawn_gui: Any, tiles: Any, is_map: bool) -> None:
    gui = drawn_gui
    scene = gui.controller.scene
    if is_map:
        scene.choose_map()
        gui.controller.activate_tool(True)
    else:
        gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: "is encoded" in gui.status)
    key = scene._spec.source.blocks.key
    tiles.triggerRepaint()  # as QGIS does for many a reason
    QTest.qWait(50)
    assert scene._spec.source.blocks.key == key
    n_embedded = gui.engine.n_embedded
    gui.canvas.refreshAllLayers()
    gui.wait_for(lambda: scene._spec is not None and scene._spec.source.blocks.key != key)
    gui.wait_for(lambda: "is encoded" in gui.status)
    assert gui.engine.n_embedded > n_embedded
    key = scene._spec.source.blocks.key
    QTest.qWait(300)
    assert scene._spec.source.blocks.key == key  # drawing is no reload
    assert gui.notices == []


def test_refreshing_the_map_keeps_what_is_begun(drawn_gui: Any, tiles: Any) -> None:
    gui = drawn_gui
    scene = gui.controller.scene
    gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: "is encoded" in gui.status)
    spec = scene._spec
    gui.click(bright_rectangle().centroid().asPoint())
    gui.wait_for_answer()
    gui.canvas.refreshAllLayers()
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == [
        "'tiles' is not drawn anew, for the sake of what you have begun; finish that and move the map."
    ]
    assert scene._spec is spec
    assert not gui.prompts.session.is_empty
    gui.prompts.command(Command.DROP)
    gui.canvas.setCenter(QgsPointXY(PLACE.x() + 5, PLACE.y()))
    gui.wait_for(lambda: scene._spec is not None and scene._spec is not spec)


def test_a_closer_look_is_drawn_finer(drawn_gui: Any, tiles: Any) -> None:
    gui = drawn_gui
    scene, canvas = gui.controller.scene, gui.canvas
    canvas.zoomScale(canvas.scale() * 16 * SCALE / canvas.mapUnitsPerPixel())
    gui.dock.raster_combo.setLayer(tiles)
    gui.wait_for(lambda: "is encoded" in gui.status)
    assert scene._spec.source.blocks.units_per_px == pytest.approx(16 * SCALE)
    gui.prompts.session.add_point((PLACE.x(), PLACE.y()), is_foreground=True)  # something begun
    canvas.zoomScale(canvas.scale() / 16)
    gui.wait_for(lambda: gui.notices)
    assert "is not drawn anew for this view" in gui.notices[0]
    canvas.setCenter(QgsPointXY(PLACE.x() + 5, PLACE.y()))
    QTest.qWait(400)
    assert len(gui.notices) == 1  # once is enough
    assert scene._spec.source.blocks.units_per_px == pytest.approx(16 * SCALE)
    gui.prompts.command(Command.DROP)
    canvas.setCenter(PLACE)
    gui.wait_for(lambda: scene._spec.source.blocks.units_per_px == pytest.approx(SCALE))
    gui.wait_for(lambda: "is encoded" in gui.status)


def test_refreshing_the_map_leaves_a_file_open(gui: Any) -> None:
    scene = gui.controller.scene
    for n_opened, look in enumerate((Look.FILE, Look.BANDS, Look.RENDERED), 1):
        scene.choose_layer(gui.layer, look)
        gui.controller.activate_tool(True)
        gui.wait_for(lambda: scene.is_ready)
        gui.canvas.refreshAllLayers()
        QTest.qWait(50)
        assert gui.backend.calls.count("open") == n_opened


def test_another_style_of_a_drawn_layer_opens_it_again(gui: Any) -> None:
    scene = gui.controller.scene
    scene.choose_layer(gui.layer, Look.RENDERED)
    gui.controller.activate_tool(True)
    gui.wait_for(lambda: scene.is_ready)
    assert gui.backend.calls.count("open") == 1
    gui.layer.emitStyleChanged()  # nothing looks otherwise
    gui.layer.renderer().setOpacity(0.5)
    gui.layer.emitStyleChanged()
    gui.wait_for(lambda: gui.backend.calls.count("open") == 2)
    scene.choose_layer(gui.layer, Look.FILE)
    gui.wait_for(lambda: gui.backend.calls.count("open") == 3)
    gui.layer.renderer().setOpacity(0.7)
    gui.layer.emitStyleChanged()
    QTest.qWait(50)
    assert gui.backend.calls.count("open") == 3


@pytest.mark.parametrize("look", [Look.RENDERED, Look.BANDS])
def test_another_style_waits_for_what_is_begun(gui: Any, at: Any, look: Look) -> None:
    scene = gui.controller.scene
    scene.choose_layer(gui.layer, look)
    gui.controller.activate_tool(True)
    gui.wait_for(lambda: scene.is_ready)
    gui.click(at(300, 400))
    gui.wait_for_answer()
    if look is Look.RENDERED:
        gui.layer.renderer().setOpacity(0.5)
    else:
        gui.layer.renderer().setRedBand(2)
    gui.layer.emitStyleChanged()
    assert gui.notices == [
        "'scene' is not drawn anew, for the sake of what you have begun; finish that and move the map."
    ]
    gui.canvas.setCenter(at(520, 512))
    QTest.qWait(400)
    assert not gui.session.is_empty
    assert gui.backend.calls.count("open") == 1
    gui.prompts.command(Command.DROP)
    gui.canvas.setCenter(at(512, 512))
    gui.wait_for(lambda: gui.backend.calls.count("open") == 2)
    assert len(gui.notices) == 1


def test_the_map_goes_with_one_of_its_layers(gui: Any) -> None:
    scene = gui.controller.scene
    scene.choose_map()
    gui.controller.activate_tool(True)
    gui.wait_for(lambda: scene.is_ready)
    assert (scene.layer, scene.name) == (None, "The map as shown")
    assert scene.extent.contains(gui.canvas.extent())
    QgsProject.instance().removeMapLayer(gui.layer.id())
    assert scene.source is None
    assert gui.notices == ["A layer of the map that is segmented was removed; choose the map again."]
