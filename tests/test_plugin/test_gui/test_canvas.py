"""Prompts, view and what is encoded ahead, with a rotated canvas and with a canvas in another CRS."""

from __future__ import annotations

import math
from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsGeometry, QgsPointXY, QgsRectangle
from qgis.PyQt.QtCore import QPoint
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.heading import Heading

# In degrees a pixel of the screen is no square on the ground; EPSG:3035 turns north by five degrees here.
CANVASES = [("EPSG:32631", 30.0), ("EPSG:4326", 0.0), ("EPSG:4326", 30.0), ("EPSG:3035", -75.0)]


@pytest.fixture(params=CANVASES, ids=lambda canvas: f"{canvas[0]} turned {canvas[1]:.0f}")
def turned_gui(gui: Any, request: pytest.FixtureRequest) -> Any:
    crs, rotation = request.param
    gui.canvas.setDestinationCrs(QgsCoordinateReferenceSystem(crs))
    gui.canvas.setRotation(rotation)
    gui.start()
    gui.controller.scene.zoom_to_layer()
    gui.canvas.zoomByFactor(0.25)
    QTest.qWait(400)
    gui.wait_for(lambda: "is encoded" in gui.status)
    return gui


def on_canvas(gui: Any, point: QgsPointXY) -> QgsPointXY:
    return gui.controller.scene.mapping.point_to_canvas((point.x(), point.y()))


def on_raster(gui: Any, place: QPoint) -> QgsPointXY:
    """Where a pixel of the screen lies in the raster, by the canvas's own transform."""
    point = gui.canvas.getCoordinateTransform().toMapCoordinates(place)
    return QgsPointXY(*gui.controller.scene.mapping.point(point))


def metres_per_px(gui: Any) -> float:
    return on_raster(gui, QPoint(100, 100)).distance(on_raster(gui, QPoint(200, 100))) / 100


def test_a_click_is_where_the_raster_is_under_it(turned_gui: Any, at: Any) -> None:
    gui = turned_gui
    gui.click(on_canvas(gui, at(500, 530)))
    gui.wait_for_answer()
    x, y = gui.backend.prompts[-1].points_map[0]
    assert QgsPointXY(x, y).distance(at(500, 530)) < metres_per_px(gui)


def test_a_box_holds_what_was_dragged_over_and_no_more_than_its_corners(turned_gui: Any, at: Any) -> None:
    gui = turned_gui
    size = gui.canvas.viewport().size()
    first, last = QPoint(size.width() // 3, size.height() // 3), QPoint(size.width() // 2, size.height() // 2)
    corners = [first, QPoint(last.x(), first.y()), last, QPoint(first.x(), last.y())]
    # Before the drag: the answer's text in the dock may make the canvas narrower.
    wanted = QgsGeometry.fromMultiPointXY([on_raster(gui, corner) for corner in corners]).boundingBox()
    slack = 2 * metres_per_px(gui)
    gui.drag(*(gui.canvas.getCoordinateTransform().toMapCoordinates(place) for place in (first, last)))
    gui.wait_for_answer()
    box = QgsRectangle(*gui.backend.prompts[-1].box_map)
    for side in ("xMinimum", "yMinimum", "xMaximum", "yMaximum"):
        assert getattr(box, side)() == pytest.approx(getattr(wanted, side)(), abs=slack)


def test_the_view_holds_every_pixel_of_the_screen_and_little_else(turned_gui: Any) -> None:
    gui = turned_gui
    view = QgsRectangle(*gui.backend.views[-1])
    size = gui.canvas.viewport().size()
    edge = [QPoint(x, y) for x in range(0, size.width(), 50) for y in (0, size.height())]
    edge += [QPoint(x, y) for x in (0, size.width()) for y in range(0, size.height(), 50)]
    seen = QgsGeometry.fromMultiPointXY([on_raster(gui, place) for place in edge]).boundingBox()
    slack = 2 * metres_per_px(gui)
    assert view.buffered(slack).contains(seen)
    assert seen.buffered(slack + 0.1 * seen.width()).contains(view)


@pytest.mark.parametrize(("x", "y"), [(200, 0), (0, -150), (150, 150)])
def test_what_is_encoded_ahead_lies_where_the_screen_is_panned_to(turned_gui: Any, x: int, y: int) -> None:
    gui = turned_gui
    size = gui.canvas.viewport().size()
    middle = QPoint(size.width() // 2, size.height() // 2)
    before = on_raster(gui, middle)
    target = middle + QPoint(x, y)
    there = on_raster(gui, target)
    n_views = len(gui.backend.views)
    gui.canvas.setCenter(gui.canvas.getCoordinateTransform().toMapCoordinates(target))
    gui.wait_for(lambda: len(gui.backend.views) == n_views + 1)
    dx, dy = gui.backend.ahead[-1]
    turned = math.degrees(math.atan2(dy, dx) - math.atan2(there.y() - before.y(), there.x() - before.x()))
    assert (turned + 180) % 360 - 180 == pytest.approx(0.0, abs=3.0)
    left, bottom, right, top = gui.backend.views[-1]
    assert max(abs(dx) / (right - left), abs(dy) / (top - bottom)) == pytest.approx(1.0)


def test_the_window_of_a_correction_is_encoded_before_the_click(gui: Any) -> None:
    gui.start()
    gui.backend.next = ["closer"]
    gui.click(QgsPointXY(590_100, 5_749_900))
    gui.wait_for(lambda: "encode closer" in gui.backend.calls)


def test_a_jump_forgets_where_the_user_was_panning_to(gui: Any) -> None:
    gui.start()
    gui.canvas.setExtent(QgsRectangle.fromCenterAndSize(QgsPointXY(590_100, 5_749_900), 60, 40))
    gui.wait_for(lambda: len(gui.backend.views) == 2)
    assert gui.backend.ahead == []  # zoomed, not panned
    gui.canvas.setCenter(QgsPointXY(590_130, 5_749_900))
    gui.wait_for(lambda: len(gui.backend.ahead) == 1)
    gui.wait_for(lambda: "encode ahead 1" in gui.backend.calls)
    gui.backend.calls.clear()
    gui.canvas.setCenter(QgsPointXY(590_400, 5_749_600))
    gui.wait_for(lambda: len(gui.backend.views) == 4)
    gui.wait_for(lambda: "is encoded" in gui.status)
    QTest.qWait(50)
    assert len(gui.backend.ahead) == 1
    assert not any("ahead" in call for call in gui.backend.calls)


def test_a_heading_remembers_pans_and_is_bounded() -> None:
    heading = Heading()
    assert heading.ahead((0, 0, 100, 50)) is None
    assert heading.ahead((20, 0, 120, 50)) == pytest.approx((100, 0))
    # Now upwards: the pan before still counts half.
    dx, dy = heading.ahead((20, 20, 120, 70))
    assert dy == pytest.approx(50)
    assert 0 < dx < 50
    assert heading.ahead((20, 20, 120, 70.0001)) is not None  # a repeated view is no new pan
    assert heading.ahead((20, 20, 70, 45)) is None  # zoomed
    assert heading.ahead((500, 20, 550, 45)) is None  # jumped
    assert heading.ahead((500, 20, 550, 45)) is None  # did not move since
    heading.forget()
    assert heading.ahead((510, 20, 560, 45)) is None
