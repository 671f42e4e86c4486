"""The overlay of the cache: what is encoded is drawn where it lies."""

from __future__ import annotations

import time
from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem
from qgis.PyQt.QtGui import QImage, QPainter
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.cache_overlay import CacheOverlay
from segadapt.plugin.exchange import Coverage, ViewWindow


def corners(at: Any, left: float, top: float, right: float, bottom: float) -> Any:
    points = [at(left, top), at(right, top), at(right, bottom), at(left, bottom)]
    return tuple((point.x(), point.y()) for point in points)


@pytest.fixture
def coverage(at: Any) -> Coverage:
    return Coverage(
        (ViewWindow(corners(at, 0, 0, 512, 512), True), ViewWindow(corners(at, 512, 0, 1024, 512), False)),
        7,
        14_700_000,
    )


@pytest.fixture
def overlay(gui: Any, coverage: Coverage) -> Any:
    gui.backend.covered = coverage
    overlay = CacheOverlay(gui.canvas, gui.controller.scene, gui.canvas)
    yield overlay
    overlay.dispose()


def drawn(gui: Any, overlay: CacheOverlay) -> QImage:
    image = QImage(gui.canvas.viewport().size(), QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(0)
    painter = QPainter(image)
    overlay.item.paint(painter)
    painter.end()
    return image


@pytest.mark.parametrize(("crs", "rotation"), [("EPSG:32631", 0.0), ("EPSG:32631", 30.0), ("EPSG:3857", 30.0)])
def test_what_is_encoded_is_tinted_where_it_lies(gui: Any, overlay: Any, at: Any, crs: str, rotation: float) -> None:
    gui.canvas.setDestinationCrs(QgsCoordinateReferenceSystem(crs))
    gui.canvas.setRotation(rotation)
    gui.start()
    gui.controller.scene.zoom_to_layer()
    gui.canvas.zoomByFactor(1.6)  # the corners of the raster too
    overlay.set_shown(True)
    gui.wait_for(overlay.item.isVisible)
    image = drawn(gui, overlay)
    mapping = gui.controller.scene.mapping

    def colour(x: float, y: float) -> Any:
        place = gui.pixel(mapping.point_to_canvas((at(x, y).x(), at(x, y).y())))
        return image.pixelColor(place)

    for x, y in ((20, 20), (256, 256), (490, 490)):
        assert colour(x, y).alpha() > 0
        assert colour(x, y).green() > colour(x, y).red()
    for x, y in ((540, 30), (1000, 480), (256, 540), (800, 800)):
        assert colour(x, y).alpha() == 0
    assert overlay.item.badge == "1 of 2 encoded"
    corner = image.pixelColor(image.width() - 14, image.height() - 14)
    assert corner.alpha() > 100


def test_it_is_hidden_until_it_is_wanted_and_goes_with_the_scene(gui: Any, overlay: Any) -> None:
    gui.start()
    QTest.qWait(250)
    assert not overlay.item.isVisible()
    overlay.set_shown(True)
    assert overlay.item.isVisible()
    gui.controller.scene.close()
    assert not overlay.item.isVisible()
    gui.controller.scene.open()
    gui.wait_for(overlay.item.isVisible)
    overlay.set_shown(False)
    assert not overlay.item.isVisible()


def test_it_is_drawn_anew_five_times_a_second_at_most(gui: Any, overlay: Any, coverage: Coverage) -> None:
    gui.start()
    overlay.set_shown(True)
    shown: list[float] = []
    show = overlay.item.show_windows
    overlay.item.show_windows = lambda *args, **more: (shown.append(time.monotonic()), show(*args, **more))
    started = time.monotonic()
    while time.monotonic() - started < 0.7:
        gui.controller.scene.covered.emit(coverage)
        QTest.qWait(5)
    assert 2 <= len(shown) <= 4


def test_the_status_counts_the_windows_as_the_map_does(gui: Any) -> None:
    """A view of four of which one was encoded before, as after zooming; the others come one by one."""
    gui.backend.n_windows, gui.backend.n_known = 4, 1
    gui.backend.encode_gate.clear()
    gui.controller.actions["coverage"].trigger()
    gui.dock.raster_combo.setLayer(gui.layer)
    item = gui.controller.coverage.item
    gui.wait_for(item.isVisible)
    assert item.badge == "1 of 4 encoded"
    assert "Encoding the view, 1 of 4;" in gui.status
    assert (gui.dock.progress_bar.value(), gui.dock.progress_bar.maximum()) == (1, 4)
    gui.backend.encode_gate.set()
    gui.wait_for(lambda: item.badge == "4 of 4 encoded")
    assert "is encoded" in gui.status
    assert not gui.dock.progress_bar.isVisible()


def test_it_is_cheap(gui: Any, overlay: Any, at: Any) -> None:
    windows = tuple(
        ViewWindow(corners(at, 64 * i, 64 * j, 64 * i + 64, 64 * j + 64), bool(i % 2))
        for i in range(4)
        for j in range(4)
    )
    gui.backend.covered = Coverage(windows, 16, 1)
    gui.start()
    overlay.set_shown(True)
    drawn(gui, overlay)
    started = time.thread_time()
    for _ in range(10):
        overlay._redraw()
        drawn(gui, overlay)
    assert (time.thread_time() - started) / 10 < 0.02


def test_the_cache_is_in_the_status(gui: Any, overlay: Any) -> None:
    assert gui.controller.scene.status.cache_line() == ""
    gui.start()
    gui.wait_for(lambda: gui.controller.scene.status.n_cached)
    assert gui.controller.scene.status.cache_line() == "Cache: 7 windows, 15 MB"
