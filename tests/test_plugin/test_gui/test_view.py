"""What depends on the view: preview, encoding in the background, other CRS, rotation."""

from __future__ import annotations

from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsRectangle, QgsVector
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtTest import QTest


def test_hover_shows_a_preview_that_a_click_replaces(gui: Any, at: Any) -> None:
    gui.start()
    gui.move(at(500, 500))
    gui.wait_for(lambda: not gui.overlay.hover.isEmpty())
    assert gui.overlay.hover.area() == pytest.approx(400.0)
    assert gui.overlay.mask.isEmpty()
    assert gui.session.is_empty
    gui.click(at(500, 500))
    gui.wait_for_answer()
    assert gui.overlay.hover.isEmpty()
    n_previews = gui.backend.calls.count("preview")
    gui.move(at(600, 600))
    QTest.qWait(150)
    assert gui.backend.calls.count("preview") == n_previews  # an object in the making is not disturbed


def test_hovering_is_throttled(gui: Any, at: Any) -> None:
    gui.start()
    for step in range(60):
        gui.move(at(300 + 3 * step, 500))
        QTest.qWait(2)
    gui.wait_for(lambda: not gui.overlay.hover.isEmpty())
    assert 1 <= gui.backend.calls.count("preview") <= 15


def test_a_click_is_answered_between_chips(gui: Any, at: Any) -> None:
    gui.backend.encode_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "encode 0" in gui.backend.calls)
    gui.wait_for(lambda: "Encoding the view, 0 of 3" in gui.status)
    assert gui.dock.progress_bar.isVisible()
    gui.click(at(300, 400))
    gui.backend.encode_gate.set()
    gui.wait_for_answer()
    gui.wait_for(lambda: "is encoded" in gui.status)
    calls = gui.backend.calls
    assert calls.index("encode 0") < calls.index("answer") < calls.index("encode 1") < calls.index("encode 2")


def test_a_click_while_the_engine_loads_is_answered_when_it_is_there(gui: Any, at: Any) -> None:
    gui.backend.open_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "Fetching weights" in gui.status)
    assert gui.dock.progress_bar.value() == 50
    gui.click(at(300, 400))
    assert gui.overlay.n_markers == 1
    gui.backend.open_gate.set()
    gui.wait_for_answer()
    assert gui.backend.calls[:2] == ["open", "answer"]  # before anything is encoded


def test_panning_encodes_the_new_view_once_it_settles(gui: Any) -> None:
    gui.start()
    n_views = len(gui.backend.views)
    extent = gui.canvas.extent()
    for _ in range(5):
        extent = extent + QgsVector(10, 0)
        gui.canvas.setExtent(extent)
        QTest.qWait(20)
    assert len(gui.backend.views) == n_views
    gui.wait_for(lambda: len(gui.backend.views) == n_views + 1)
    assert gui.backend.views[-1][0] == pytest.approx(gui.canvas.extent().xMinimum())


def test_a_view_beside_the_raster_says_so_and_zooms_back(gui: Any) -> None:
    gui.start()
    n_views = len(gui.backend.views)
    gui.canvas.setExtent(QgsRectangle(600_000, 5_600_000, 600_100, 5_600_100))
    gui.wait_for(lambda: "not in the view" in gui.status)
    assert len(gui.backend.views) == n_views
    gui.dock.status_label.linkActivated.emit("zoom")
    gui.wait_for(lambda: "is encoded" in gui.status)
    assert gui.canvas.extent().contains(gui.layer.extent())


def test_canvas_in_another_crs(gui: Any, at: Any) -> None:
    gui.canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    gui.start()
    gui.controller.scene.zoom_to_layer()
    gui.wait_for(lambda: "is encoded" in gui.status)
    mapping = gui.controller.scene.mapping
    gui.click(mapping.point_to_canvas((at(300, 400).x(), at(300, 400).y())))
    gui.wait_for_answer()
    x, y = gui.backend.prompts[-1].points_map[0]
    assert (x, y) == pytest.approx((at(300, 400).x(), at(300, 400).y()), abs=2.5)
    assert gui.overlay.mask.boundingBox().width() < 0.001  # degrees
    gui.key(Qt.Key.Key_Return)
    layer = gui.controller.target.layer()
    assert layer.crs().authid() == "EPSG:32631"
    (feature,) = layer.getFeatures()
    assert feature.geometry().area() == pytest.approx(400.0)


def test_changing_the_canvas_crs_moves_what_is_drawn(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    assert gui.overlay.mask.boundingBox().xMinimum() > 500_000
    gui.canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    assert 3 < gui.overlay.mask.boundingBox().xMinimum() < 6


def test_rotated_canvas(gui: Any, at: Any) -> None:
    gui.canvas.setRotation(30.0)
    gui.start()
    gui.click(at(600, 400))
    gui.wait_for_answer()
    x, y = gui.backend.prompts[-1].points_map[0]
    assert (x, y) == pytest.approx((at(600, 400).x(), at(600, 400).y()), abs=2.5)
    gui.key(Qt.Key.Key_Escape)
    gui.drag(at(400, 400), at(600, 700))
    gui.wait_for_answer()
    left, bottom, right, top = gui.backend.prompts[-1].box_map
    box = QgsRectangle(left, bottom, right, top).buffered(2.5)
    assert box.contains(at(400, 400))
    assert box.contains(at(600, 700))
    view = gui.backend.views[-1]
    for corner in gui.canvas.mapSettings().visiblePolygon():
        assert QgsRectangle(*view).buffered(1).contains(corner.x(), corner.y())
