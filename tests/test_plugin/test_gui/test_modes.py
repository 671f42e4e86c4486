"""What the mouse means in each mode, on a real canvas, with an engine that answers in squares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsFeature,
    QgsField,
    QgsGeometry,
    QgsProject,
    QgsRectangle,
    QgsSettings,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QPoint, QPointF, Qt, QVariant
from qgis.PyQt.QtGui import QMouseEvent, QWheelEvent
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.exchange import Answer, MaskOptionAnswer
from segadapt.plugin.modes import Mode

LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
NO_KEYS, SHIFT = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ShiftModifier
CTRL, ALT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.AltModifier


def trace(gui: Any, points: list[Any], button: Any = LEFT, keys: Any = NO_KEYS) -> None:
    """Drag along points of the map."""
    viewport = gui.canvas.viewport()
    first, *rest = [gui.pixel(point) for point in points]
    QTest.mousePress(viewport, button, keys, first)
    for place in rest:
        event = QMouseEvent(QEvent.Type.MouseMove, QPointF(place), button, button, keys)
        QCoreApplication.sendEvent(viewport, event)
    QTest.mouseRelease(viewport, button, keys, rest[-1])


def square(at: Any, left: float, top: float, side: float) -> QgsGeometry:
    """A square of the raster, in pixels."""
    return QgsGeometry.fromRect(QgsRectangle(at(left, top), at(left + side, top + side)))


@pytest.fixture
def parcels(gui: Any, at: Any) -> QgsVectorLayer:
    """Two polygons side by side in a visible layer that is not the target."""
    layer = QgsVectorLayer("Polygon?crs=EPSG:32631", "parcels", "memory")
    layer.dataProvider().addAttributes([QgsField("owner", QVariant.String), QgsField("class", QVariant.String)])
    layer.updateFields()
    for owner, left in (("Ada", 300), ("Ben", 400)):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(square(at, left, 400, 100))
        feature.setAttributes([owner, "field"])
        layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    gui.canvas.setLayers([layer, gui.layer])
    return layer


@pytest.fixture
def target(gui: Any, parcels: QgsVectorLayer) -> QgsVectorLayer:
    """The parcels as target layer."""
    gui.controller.target.set_layer(parcels)
    return parcels


def owners(layer: QgsVectorLayer) -> dict[str, float]:
    return {feature["owner"]: round(feature.geometry().area()) for feature in layer.getFeatures()}


@pytest.mark.parametrize("key", [Qt.Key.Key_B, None])
def test_two_clicks_make_a_box_in_box_mode_only(gui: Any, at: Any, key: Any) -> None:
    gui.start()
    if key is not None:
        gui.key(key)
    gui.click(at(200, 300))
    assert gui.session.is_empty == (key is not None)
    gui.click(at(400, 500))
    gui.wait_for_answer()
    box = gui.session.step.box_map
    if key is None:
        assert box is None
        assert len(gui.session.step.points_map) == 2
    else:
        tolerance = 2 * gui.canvas.mapUnitsPerPixel()
        assert box == pytest.approx((at(200, 0).x(), at(0, 500).y(), at(400, 0).x(), at(0, 300).y()), abs=tolerance)
        assert gui.session.step.points_map == ()


@pytest.mark.parametrize("keys", [(Qt.Key.Key_Z, CTRL), (Qt.Key.Key_Backspace, NO_KEYS)])
def test_undo_takes_the_first_corner_of_a_box_back_before_what_was_accepted(gui: Any, at: Any, keys: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)
    gui.key(Qt.Key.Key_B)
    gui.click(at(200, 300))
    gui.key(*keys)
    assert not gui.prompts.tool.is_drawing
    assert gui.controller.target.layer().featureCount() == 1


def test_the_first_corner_of_a_box_stays_on_the_map_while_the_view_moves(gui: Any, at: Any) -> None:
    gui.start()
    gui.key(Qt.Key.Key_B)
    gui.click(at(200, 300))
    gui.canvas.zoomByFactor(0.5)
    gui.click(at(400, 500))
    tolerance = 2 * gui.canvas.mapUnitsPerPixel()
    assert gui.session.step.box_map == pytest.approx(
        (at(200, 0).x(), at(0, 500).y(), at(400, 0).x(), at(0, 300).y()), abs=tolerance + 1.0
    )


@pytest.mark.parametrize(("button", "keys", "label"), [(LEFT, NO_KEYS, 1), (LEFT, SHIFT, 0), (RIGHT, NO_KEYS, 0)])
def test_scribbles_are_foreground_or_background(gui: Any, at: Any, button: Any, keys: Any, label: int) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_S)
    trace(gui, [at(x, 400 + 20 * (x // 40 % 2)) for x in range(200, 500, 40)], button, keys)
    gui.wait_for_answer()
    prompt = gui.backend.prompts[-1]
    assert prompt.scribble_labels == (label,)
    (line,) = prompt.scribbles_map
    tolerance = 2 * gui.canvas.mapUnitsPerPixel()
    assert line[0] == pytest.approx((at(200, 0).x(), at(0, 420).y()), abs=tolerance)
    assert line[-1] == pytest.approx((at(480, 0).x(), at(0, 400).y()), abs=tolerance)
    assert len(line) > 5  # not only its ends
    drawn = gui.overlay.scribbles
    assert [geometry.isEmpty() for geometry in drawn] == [label == 0, label == 1]
    assert prompt.box_map is None


@pytest.mark.parametrize("how", ["enter", "right", "double"])
def test_a_drawn_polygon_is_where_the_mask_starts(gui: Any, at: Any, how: str) -> None:
    gui.start()
    gui.key(Qt.Key.Key_G)
    for x, y in ((300, 300), (500, 300), (500, 500)):
        gui.click(at(x, y))
    assert gui.session.is_empty
    if how == "enter":
        gui.key(Qt.Key.Key_Return)
    elif how == "right":
        gui.click(at(480, 480), RIGHT)
    else:
        QTest.mouseDClick(gui.canvas.viewport(), LEFT, NO_KEYS, gui.pixel(at(500, 500)))
        QTest.mouseRelease(gui.canvas.viewport(), LEFT, NO_KEYS, gui.pixel(at(500, 500)))
    gui.wait_for(lambda: not gui.session.is_empty)
    outline = QgsGeometry()
    outline.fromWkb(gui.session.step.outline_wkb)
    assert outline.area() == pytest.approx(100 * 100 / 2, rel=0.05)
    assert not gui.overlay.outline.isEmpty()


def test_vertices_can_be_taken_back_and_the_polygon_dropped(gui: Any, at: Any) -> None:
    gui.start()
    gui.key(Qt.Key.Key_G)
    for x, y in ((300, 300), (500, 300), (900, 900)):
        gui.click(at(x, y))
    gui.key(Qt.Key.Key_Backspace)
    gui.key(Qt.Key.Key_Z, CTRL)
    gui.click(at(500, 500))
    gui.key(Qt.Key.Key_Return)
    assert gui.session.is_empty  # two vertices are no polygon
    gui.click(at(300, 300))
    gui.key(Qt.Key.Key_Escape)
    assert not gui.prompts.tool.is_drawing
    assert gui.prompts.tool.mode is Mode.POLYGON


def test_refining_the_polygon_under_the_mouse_replaces_its_geometry_and_keeps_the_rest(
    gui: Any, at: Any, parcels: QgsVectorLayer
) -> None:
    gui.start()
    gui.controller.classes.choose("building")
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    gui.wait_for_answer()
    prompt = gui.backend.prompts[-1]
    outline = QgsGeometry()
    outline.fromWkb(prompt.outline_wkb)
    assert outline.equals(square(at, 300, 400, 100)) or outline.area() == pytest.approx(2500.0)
    gui.click(at(350, 450))  # now a click is a prompt
    gui.wait_for_answer()
    assert gui.backend.prompts[-1].labels == (1,)
    gui.key(Qt.Key.Key_Return)
    assert owners(parcels) == {"Ada": 400, "Ben": 2500}
    assert {feature["class"] for feature in parcels.getFeatures()} == {"field"}
    assert gui.controller.target.layer() is None  # nothing was made elsewhere
    gui.key(Qt.Key.Key_Z, CTRL)
    assert owners(parcels) == {"Ada": 2500, "Ben": 2500}
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert owners(parcels) == {"Ada": 400, "Ben": 2500}


def test_in_refine_mode_a_click_picks_and_a_click_beside_says_so(gui: Any, at: Any, parcels: QgsVectorLayer) -> None:
    gui.start()
    gui.controller.actions["refine"].trigger()
    gui.click(at(700, 700))
    assert gui.notices == ["No polygon of a visible layer is there; click inside one."]
    gui.move(at(450, 450))
    gui.wait_for(lambda: not gui.overlay.highlight.isEmpty())
    gui.click(at(450, 450))
    source = gui.session.step.source
    assert (source.layer_id, source.state.fid) == (parcels.id(), 2)
    assert gui.overlay.highlight.isEmpty()
    assert "Enter corrects the polygon" in gui.dock.hint_label.text()


def test_a_refined_polygon_whose_id_shifts_is_found_again(
    gui: Any, at: Any, parcels: QgsVectorLayer, tmp_path: Path
) -> None:
    """A shapefile numbers its features anew when one is deleted."""
    path = str(tmp_path / "parcels.shp")
    feature = QgsFeature(parcels.fields())
    feature.setGeometry(square(at, 500, 400, 100))
    feature.setAttributes(["Cem", "field"])
    parcels.dataProvider().addFeature(feature)
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "ESRI Shapefile"
    QgsVectorFileWriter.writeAsVectorFormatV3(parcels, path, QgsProject.instance().transformContext(), options)
    shapefile = QgsVectorLayer(path, "shapefile", "ogr")
    QgsProject.instance().addMapLayer(shapefile)
    gui.canvas.setLayers([shapefile, gui.layer])
    gui.controller.target.set_layer(shapefile)
    gui.start()
    gui.move(at(450, 450))
    gui.key(Qt.Key.Key_E)
    gui.click(at(450, 450))
    gui.wait_for_answer()
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_Delete)
    assert owners(shapefile) == {"Ben": 2500, "Cem": 2500}
    gui.key(Qt.Key.Key_Return)
    assert owners(shapefile) == {"Ben": 400, "Cem": 2500}


@pytest.mark.parametrize("is_deleted", [False, True])
def test_what_was_edited_elsewhere_is_not_overwritten_by_a_refined_outline(
    gui: Any, at: Any, parcels: QgsVectorLayer, is_deleted: bool
) -> None:
    gui.start()
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    gui.click(at(350, 450))
    gui.wait_for_answer()
    if is_deleted:
        parcels.dataProvider().deleteFeatures([1])
    else:
        parcels.dataProvider().changeGeometryValues({1: square(at, 300, 400, 96)})
    before = owners(parcels)
    gui.key(Qt.Key.Key_Return)
    assert "The polygon in 'parcels' was deleted or edited since you picked it" in gui.notices[-1]
    assert owners(parcels) == before
    assert not gui.session.is_empty  # the object is still in hand


def test_a_refined_outline_is_cut_out_of_the_others_of_its_layer(gui: Any, at: Any, parcels: QgsVectorLayer) -> None:
    gui.start()
    gui.controller.shape_panel.no_overlaps.click()
    gui.controller.shape_panel.new_on_top.click()
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    gui.click(at(400, 450))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)
    assert owners(parcels) == {"Ada": 400, "Ben": pytest.approx(2300, abs=20)}


def test_a_refined_polygon_of_a_read_only_layer_becomes_a_new_object(
    gui: Any, at: Any, parcels: QgsVectorLayer
) -> None:
    parcels.setReadOnly(True)
    gui.start()
    gui.controller.classes.choose("building")
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    gui.click(at(350, 450))
    gui.wait_for_answer()
    assert "as a 'building' into a new layer" in gui.dock.hint_label.text()
    gui.key(Qt.Key.Key_Return)
    assert owners(parcels) == {"Ada": 2500, "Ben": 2500}
    (feature,) = gui.controller.target.layer().getFeatures()
    assert (feature["class"], round(feature.geometry().area())) == ("building", 400)
    assert "the polygon's own layer is read-only" in gui.dock.object_label.text()


def test_an_outline_that_is_taken_back_makes_a_new_object(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.controller.actions["refine"].trigger()
    gui.click(at(450, 450))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Z, CTRL)
    gui.key(Qt.Key.Key_P)
    gui.click(at(800, 800))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)
    assert target.featureCount() == 3


def three_masks(gui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine offer three masks for a single click: as ever, 5 m wider, 5 m narrower."""
    plain = gui.backend._answer

    def offering(prompt: Any) -> Answer:
        answer = plain(prompt)
        if len(prompt.points_map) != 1 or prompt.previous is not None:
            return answer
        outline = QgsGeometry()
        outline.fromWkb(answer.wkb)
        options = tuple(
            MaskOptionAnswer(bytes(outline.buffer(by, 1).asWkb()), 0.9 - by / 100, 0.9, 400.0, f"option {by:g}")
            for by in (0.0, 5.0, -5.0)
        )
        return replace(answer, options=options)

    monkeypatch.setattr(gui.backend, "_answer", offering)


def test_tab_and_wheel_go_through_the_masks_and_the_choice_is_fed_back_and_accepted(
    gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui.start()
    three_masks(gui, monkeypatch)
    gui.click(at(300, 400))
    gui.wait_for_answer()
    assert "mask 1 of 3 (Tab)" in gui.dock.object_label.text()
    gui.key(Qt.Key.Key_Tab)
    assert gui.canvas.hasFocus()
    assert "mask 2 of 3" in gui.dock.object_label.text()
    larger = gui.overlay.mask.area()
    assert larger > 800.0
    place = QPointF(gui.pixel(at(300, 400)))
    wheel = QWheelEvent(
        place, place, QPoint(), QPoint(0, -120), Qt.MouseButton.NoButton, ALT, Qt.ScrollPhase.NoScrollPhase, False
    )
    scale = gui.canvas.scale()
    QCoreApplication.sendEvent(gui.canvas.viewport(), wheel)
    assert "mask 3 of 3" in gui.dock.object_label.text()
    assert gui.overlay.mask.area() == pytest.approx(100.0)
    assert gui.canvas.scale() == scale  # it did not zoom
    gui.key(Qt.Key.Key_Tab)
    gui.key(Qt.Key.Key_Tab)
    gui.click(at(310, 400))
    gui.wait_for_answer()
    assert gui.backend.prompts[-1].previous == "option 5"
    assert not gui.controller.actions["next_mask"].isEnabled()
    gui.key(Qt.Key.Key_Z, CTRL)
    assert "mask 2 of 3" in gui.dock.object_label.text()  # undo brings the choice back too
    gui.key(Qt.Key.Key_Return)
    (feature,) = gui.controller.target.layer().getFeatures()
    assert feature.geometry().area() == pytest.approx(larger)
    assert feature["score"] == pytest.approx(0.85)


def test_undo_goes_on_with_the_layer_where_prompts_end_and_says_so(gui: Any, at: Any) -> None:
    gui.start()
    undo, redo = gui.controller.actions["undo"], gui.controller.actions["redo"]
    assert not undo.isEnabled()
    gui.controller.classes.choose("tank")
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)
    layer = gui.controller.target.layer()
    gui.click(at(600, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_B)
    assert undo.text() == "Undo click"
    gui.key(Qt.Key.Key_Z, CTRL)
    assert undo.text() == "Undo accept tank"
    assert undo.iconText() == "Undo"  # what the button shows
    assert redo.text() == "Redo click"
    gui.key(Qt.Key.Key_Z, CTRL)
    assert layer.featureCount() == 0
    assert redo.text() == "Redo accept tank"
    gui.key(Qt.Key.Key_Z, CTRL)
    assert redo.text() == "Redo click"  # of the object that is in hand again
    assert not undo.isEnabled()
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert redo.text() == "Redo accept tank"
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert layer.featureCount() == 1
    assert redo.text() == "Redo click"
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert gui.session.step.labels == (1,)
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert layer.featureCount() == 1


def test_cut_and_merge_with_the_mouse(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.key(Qt.Key.Key_C)
    trace(gui, [at(350, y) for y in range(380, 521, 10)])
    areas = sorted(feature.geometry().area() for feature in target.getFeatures())
    assert areas == pytest.approx([1250, 1250, 2500], abs=50 * gui.canvas.mapUnitsPerPixel())
    assert gui.session.is_empty
    gui.key(Qt.Key.Key_M)
    gui.click(at(320, 450))
    assert "merge it with" in gui.dock.object_label.text()
    gui.click(at(380, 450))
    assert owners(target) == {"Ada": 2500, "Ben": 2500}
    gui.click(at(350, 420), RIGHT)  # with all that touch it
    assert [round(feature.geometry().area()) for feature in target.getFeatures()] == [5000]
    for _ in range(3):
        gui.key(Qt.Key.Key_Z, CTRL)
    assert owners(target) == {"Ada": 2500, "Ben": 2500}


def test_merge_takes_the_selection(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    target.selectAll()
    gui.key(Qt.Key.Key_M)
    assert target.featureCount() == 1


def test_class_and_delete_act_on_the_polygon_under_the_mouse(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.controller.classes.choose("pond")
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_K)
    assert {feature["owner"]: feature["class"] for feature in target.getFeatures()} == {"Ada": "pond", "Ben": "field"}
    gui.key(Qt.Key.Key_Delete)
    assert owners(target) == {"Ben": 2500}
    gui.move(at(800, 800))
    gui.key(Qt.Key.Key_Delete)
    assert "No polygon of 'parcels' is selected or under the mouse." in gui.notices


def test_subtracting_the_mask_ends_the_object(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.click(at(400, 450))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_D)
    assert sum(owners(target).values()) == 5000 - 400
    assert gui.session.is_empty


def test_a_mask_that_is_being_corrected_is_not_subtracted(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.click(at(400, 450))
    gui.wait_for_answer()
    gui.backend.gate.clear()
    gui.click(at(405, 450), RIGHT)
    gui.key(Qt.Key.Key_D)
    assert sum(owners(target).values()) == 5000
    assert "The answer to the last prompt is still to come; subtract when the mask has changed." in gui.notices
    gui.backend.gate.set()
    gui.wait_for(lambda: not gui.session.is_waiting)
    gui.key(Qt.Key.Key_D)
    assert sum(owners(target).values()) == 5000 - 225


def test_no_overlaps_is_drawn_and_accepted(gui: Any, at: Any, target: QgsVectorLayer) -> None:
    gui.start()
    gui.click(at(300, 450))
    gui.wait_for_answer()
    assert gui.overlay.mask.area() == pytest.approx(400.0)
    gui.key(Qt.Key.Key_O)
    assert gui.overlay.mask.area() == pytest.approx(200.0, rel=0.02)
    gui.key(Qt.Key.Key_Return)
    assert sorted(round(feature.geometry().area(), -1) for feature in target.getFeatures()) == [200, 2500, 2500]


def test_number_keys_choose_the_class_and_its_colour(gui: Any, at: Any) -> None:
    gui.start()
    for name in ("tank", "building"):
        gui.controller.classes.choose(name)
    gui.key(Qt.Key.Key_1)
    assert gui.controller.classes.current == "tank"
    assert gui.controller.actions["class_2"].text() == "building"
    assert "'tank'" in gui.dock.hint_label.text()
    gui.key(Qt.Key.Key_7)
    assert gui.notices == ["There is no class 7; add one in the SegAdapt panel."]


def test_keys_are_ours_only_while_the_canvas_has_the_focus(gui: Any, at: Any) -> None:
    gui.start()
    edit = gui.controller.class_panel.name_edit
    edit.setFocus()
    QTest.keyClicks(edit, "bs1")
    assert edit.text() == "bs1"
    assert gui.prompts.tool.mode is Mode.POINT
    QTest.keyClick(edit, Qt.Key.Key_Return)
    assert gui.controller.classes.current == "bs1"
    assert gui.canvas.hasFocus()
    gui.key(Qt.Key.Key_B)
    assert gui.prompts.tool.mode is Mode.BOX


def test_the_mode_is_remembered_and_has_a_cursor_of_its_own(gui: Any, make_gui: Any, backend: Any) -> None:
    gui.start()
    plain = gui.canvas.cursor().pixmap().isNull()
    gui.key(Qt.Key.Key_S)
    assert plain
    assert not gui.canvas.cursor().pixmap().isNull()
    assert QgsSettings().value("segadapt/mode") == "scribble"
    gui.key(Qt.Key.Key_M)
    gui.dispose()
    again = make_gui(backend)
    assert again.prompts.tool.mode is Mode.SCRIBBLE
    assert again.controller.actions["scribble"].isChecked()


def test_escape_without_an_object_goes_back_to_clicks(gui: Any) -> None:
    gui.start()
    gui.key(Qt.Key.Key_X)
    assert gui.prompts.tool.mode is Mode.EXEMPLAR
    gui.key(Qt.Key.Key_Escape)
    assert gui.prompts.tool.mode is Mode.POINT
    assert gui.controller.actions["point"].isChecked()


def test_exemplars_are_the_answer_or_the_polygon_that_is_clicked(gui: Any, at: Any, parcels: QgsVectorLayer) -> None:
    given = []
    gui.prompts.exemplar_chosen.connect(lambda *exemplar: given.append(exemplar))
    gui.start()
    gui.controller.classes.choose("tank")
    gui.click(at(700, 700))
    answer = gui.wait_for_answer()
    gui.key(Qt.Key.Key_X)
    assert given == [(answer.wkb, "tank", answer)]
    assert gui.prompts.tool.mode is Mode.POINT
    assert gui.controller.actions["point"].isChecked()
    gui.key(Qt.Key.Key_Escape)
    gui.key(Qt.Key.Key_X)
    gui.click(at(350, 450))
    wkb, class_name, source = given[1]
    outline = QgsGeometry()
    outline.fromWkb(wkb)
    assert (round(outline.area()), class_name, source) == (2500, "field", None)
    assert gui.session.is_empty


def test_a_ghost_of_another_place_does_not_stand_in_for_the_answer(gui: Any, at: Any) -> None:
    gui.start()
    gui.move(at(300, 400))
    gui.wait_for(lambda: not gui.overlay.hover.isEmpty())
    gui.backend.gate.clear()
    gui.click(at(310, 400))
    assert not gui.overlay.hover.isEmpty()
    gui.key(Qt.Key.Key_Escape)
    gui.backend.gate.set()
    gui.move(at(300, 410))
    gui.wait_for(lambda: not gui.overlay.hover.isEmpty())
    gui.backend.gate.clear()
    QTest.mouseClick(gui.canvas.viewport(), LEFT, NO_KEYS, gui.pixel(at(700, 700)))
    assert gui.overlay.hover.isEmpty()


class Taker:
    """Something that wants the clicks."""

    undo_text = redo_text = ""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.is_there = True

    def wants_clicks(self) -> bool:
        return self.is_there

    def click(self, point_raster: Any, is_foreground: bool) -> None:
        self.got.append((point_raster, is_foreground))

    def scribble(self, points_raster: Any, is_foreground: bool) -> None:
        self.got.append((points_raster, is_foreground))


def test_clicks_and_scribbles_go_to_who_wants_them(gui: Any, at: Any) -> None:
    gui.start()
    taker = Taker()
    gui.prompts.click_takers.add(taker, hint="Paint the map.")
    gui.move(at(300, 400))
    gui.wait_for(lambda: gui.dock.hint_label.text() == "Paint the map.")
    gui.click(at(300, 400))
    gui.key(Qt.Key.Key_S)
    trace(gui, [at(x, 400 + x // 10) for x in range(300, 400, 10)], LEFT, SHIFT)
    tolerance = 2 * gui.canvas.mapUnitsPerPixel()
    (point, is_on), (line, is_line_on) = taker.got
    assert point == pytest.approx((at(300, 400).x(), at(300, 400).y()), abs=tolerance)
    assert (is_on, is_line_on) == (True, False)
    assert line[-1] == pytest.approx((at(390, 439).x(), at(390, 439).y()), abs=tolerance)
    assert gui.session.is_empty


@pytest.mark.parametrize("mode", list(Mode))
def test_no_mode_keeps_clicks_and_lines_from_who_wants_them(gui: Any, at: Any, target: Any, mode: Mode) -> None:
    gui.start()
    taker = Taker()
    taker.is_there = False
    gui.prompts.click_takers.add(taker, hint="Paint the map.")
    action = gui.controller.actions[mode.value.name]
    action.trigger()
    taker.is_there = True
    gui.prompts.show_possible()
    gui.click(at(350, 450))
    trace(gui, [at(x, 450) for x in range(320, 480, 20)])
    gui.click(at(450, 450), RIGHT)
    assert [is_foreground for _, is_foreground in taker.got] == [True, True, False]
    assert len(taker.got[1][0]) > 1
    assert gui.session.is_empty
    assert owners(target) == {"Ada": 2500, "Ben": 2500}
    gui.key(Qt.Key.Key_Escape)
    taker.is_there = False
    gui.prompts.show_possible()
    assert gui.prompts.tool.mode is mode
    assert action.isChecked()


def test_a_polygon_that_was_begun_does_not_take_clicks_from_who_wants_them(gui: Any, at: Any) -> None:
    gui.start()
    gui.key(Qt.Key.Key_G)
    gui.click(at(300, 300))
    assert gui.prompts.tool.is_drawing
    taker = Taker()
    gui.prompts.click_takers.add(taker, hint="Paint the map.")
    gui.prompts.show_possible()
    gui.click(at(500, 300))
    assert len(taker.got) == 1


def test_e_over_a_polygon_waits_for_the_tool_to_be_free(gui: Any, at: Any, parcels: Any) -> None:
    gui.start()
    gui.prompts.click_takers.add(Taker(), hint="Paint the map.")
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    assert gui.session.is_empty
    assert gui.prompts.tool.chosen_mode is Mode.REFINE
