"""Every selected feature becomes an object, without clicks."""

from __future__ import annotations

from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsFeature, QgsGeometry, QgsProject, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from segadapt.plugin.batch import seed_of
from segadapt.plugin.crs import CoordinateError, transformed
from segadapt.plugin.prompt_tool import Command
from segadapt.processing.errors import JobError

SHIFT, CTRL = Qt.KeyboardModifier.ShiftModifier, Qt.KeyboardModifier.ControlModifier


def layer_of(kind: str, *wkts: str, crs: str = "EPSG:32631") -> QgsVectorLayer:
    """A layer of the project with all its features selected."""
    layer = QgsVectorLayer(f"{kind}?crs={crs}", kind, "memory")
    for wkt in wkts:
        feature = QgsFeature()
        feature.setGeometry(QgsGeometry.fromWkt(wkt))
        layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    layer.selectAll()
    return layer


def points(at: Any, *places: tuple[float, float]) -> list[str]:
    return [QgsGeometry.fromPointXY(at(*place)).asWkt() for place in places]


def start_batch(gui: Any) -> None:
    gui.key(Qt.Key.Key_Return, SHIFT)


def n_objects(gui: Any) -> int:
    layer = gui.controller.target.layer()
    return 0 if layer is None else int(layer.featureCount())


def test_selected_points_become_objects_one_undo_step_each(gui: Any, at: Any) -> None:
    gui.start()
    gui.controller.classes.choose("tank")
    layer_of("Point", *points(at, (200, 200), (400, 400), (600, 600)))
    start_batch(gui)
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    layer = gui.controller.target.layer()
    assert {feature["class"] for feature in layer.getFeatures()} == {"tank"}
    assert layer.featureCount() == 3
    assert gui.dock.object_label.text() == "3 of 3 selected features became objects."
    assert gui.session.is_empty
    assert not gui.dock.batch_bar.isVisible()
    gui.key(Qt.Key.Key_Z, CTRL)
    assert layer.featureCount() == 2


def test_lines_rectangles_and_polygons_become_scribbles_boxes_and_outlines(gui: Any, at: Any) -> None:
    gui.start()
    x, y = at(300, 500).x(), at(300, 500).y()
    layer_of("LineString", f"LineString({x} {y}, {x + 20} {y})")
    layer_of(
        "Polygon",
        f"Polygon(({x} {y}, {x + 30} {y}, {x + 30} {y + 30}, {x} {y + 30}, {x} {y}))",
        f"Polygon(({x} {y}, {x + 30} {y}, {x + 30} {y + 30}, {x} {y}))",
    )
    start_batch(gui)
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    prompts = gui.backend.prompts
    assert sorted(len(prompt.scribbles_map) for prompt in prompts) == [0, 0, 1]
    assert [prompt.box_map for prompt in prompts if prompt.box_map] == [(x, y, x + 30, y + 30)]
    assert sorted(bool(prompt.outline_wkb) for prompt in prompts) == [False, False, True]
    assert all(prompt.previous is None for prompt in prompts)
    assert n_objects(gui) == 3


def test_the_current_layers_selection_goes_before_all_others(gui: Any, at: Any) -> None:
    gui.start()
    layer_of("Point", *points(at, (200, 200), (400, 400)))
    current = layer_of("Point", *points(at, (600, 600)))
    gui.canvas.setCurrentLayer(current)
    start_batch(gui)
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    assert n_objects(gui) == 1


def test_features_in_another_crs_land_where_they_are(gui: Any, at: Any) -> None:
    gui.start()
    place, utm = QgsGeometry.fromPointXY(at(400, 400)), gui.layer.crs()
    degrees = transformed(place, utm, destination=QgsCoordinateReferenceSystem("EPSG:4326"))
    layer_of("Point", degrees.asWkt(12), crs="EPSG:4326")
    start_batch(gui)
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    ((x, y),) = gui.backend.prompts[-1].points_map
    assert (x, y) == pytest.approx((at(400, 400).x(), at(400, 400).y()), abs=0.01)


def test_a_feature_without_an_outline_is_counted_and_the_others_go_on(gui: Any, at: Any) -> None:
    gui.start()
    layer_of("Point", *points(at, (200, 200), (400, 400), (600, 600)))
    gui.backend.fail["answer"] = JobError("The prompt lies outside the raster; click on its image.")
    start_batch(gui)
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    assert n_objects(gui) == 2
    assert gui.dock.object_label.text() == "2 of 3 selected features became objects; 1 gave no outline."


def test_escape_stops_and_what_was_accepted_stays(gui: Any, at: Any) -> None:
    gui.start()
    layer_of("Point", *points(at, *((100 + 10 * n, 500) for n in range(40))))
    gui.prompts.batch_progressed.connect(lambda n_done, _n: n_done == 2 and gui.backend.gate.clear())
    start_batch(gui)
    gui.wait_for(lambda: gui.prompts.batch.n_done == 2)
    assert gui.dock.batch_bar.isVisible()
    assert "Object 3 of 40" in gui.dock.object_label.text()
    gui.click(at(800, 800))
    assert "A batch is running; Esc stops it." in gui.notices
    gui.key(Qt.Key.Key_Escape)
    gui.backend.gate.set()
    assert not gui.prompts.batch.is_running
    assert gui.dock.object_label.text().startswith("Stopped: 2 of 40 selected features became objects")
    gui.click(at(800, 800))
    gui.wait_for_answer()
    assert n_objects(gui) == 2


def test_undo_does_not_stall_a_batch(gui: Any, at: Any) -> None:
    gui.start()
    layer_of("Point", *points(at, (200, 200), (400, 400), (600, 600)))
    gui.backend.gate.clear()
    start_batch(gui)
    gui.wait_for(lambda: gui.backend.prompts)
    gui.prompts.command(Command.UNDO)
    assert "A batch is running; Esc stops it." in gui.notices
    gui.backend.gate.set()
    gui.wait_for(lambda: not gui.prompts.batch.is_running)
    assert n_objects(gui) == 3


def test_a_batch_without_a_selection_is_a_sentence(gui: Any) -> None:
    gui.start()
    start_batch(gui)
    assert gui.notices == ["No feature is selected; select points, lines or polygons of a vector layer first."]
    assert not gui.prompts.batch.is_running


def test_a_view_without_coordinates_ends_the_batch(gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gui.start()
    layer_of("Point", *points(at, (200, 200), (400, 400)))

    def nowhere() -> Any:
        raise CoordinateError("This place has no coordinates.")

    monkeypatch.setattr(gui.controller.scene.mapping, "view", nowhere)
    start_batch(gui)
    assert not gui.prompts.batch.is_running
    assert gui.notices == ["This place has no coordinates."]


def test_removing_the_raster_ends_the_batch(gui: Any, at: Any) -> None:
    gui.start()
    layer_of("Point", *points(at, (200, 200), (400, 400)))
    gui.backend.gate.clear()
    start_batch(gui)
    QgsProject.instance().removeMapLayer(gui.layer.id())
    gui.backend.gate.set()
    assert not gui.prompts.batch.is_running
    gui.wait_for(lambda: not gui.backend.is_open)


@pytest.mark.parametrize(
    ("wkt", "seed"),
    [
        ("MultiPoint((1 2), (3 4))", {"points_map": ((1.0, 2.0), (3.0, 4.0))}),
        (
            "MultiLineString((1 2, 3 4), (5 6, 7 8))",
            {"lines_map": (((1.0, 2.0), (3.0, 4.0)), ((5.0, 6.0), (7.0, 8.0)))},
        ),
        ("Polygon((0 0, 4 0, 4 3, 0 3, 0 0))", {"box_map": (0.0, 0.0, 4.0, 3.0)}),
    ],
)
def test_what_a_geometry_stands_for(wkt: str, seed: dict[str, Any]) -> None:
    found = seed_of(QgsGeometry.fromWkt(wkt))
    assert found is not None
    assert {name: value for name, value in vars(found).items() if value} == seed


def test_a_polygon_with_a_hole_is_no_box_and_an_empty_one_nothing() -> None:
    ring = QgsGeometry.fromWkt("Polygon((0 0, 9 0, 9 9, 0 9, 0 0), (2 2, 2 5, 5 5, 5 2, 2 2))")
    found = seed_of(ring)
    assert found is not None
    assert found.box_map is None
    assert found.outline_wkb
    assert seed_of(QgsGeometry.fromWkt("Polygon EMPTY")) is None
