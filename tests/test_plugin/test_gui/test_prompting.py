"""Mouse and keys on a real canvas, with an engine that answers in squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from qgis.core import QgsGeometry, QgsProject, QgsRectangle
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QKeySequence
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QShortcut
from segadapt.plugin.prompt_tool import Command

LEFT, NO_KEYS = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
CTRL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


def target_layer(gui: Any) -> Any:
    return gui.controller.target.layer()


def test_choosing_a_raster_activates_the_tool_and_encodes_the_view(gui: Any) -> None:
    assert "Choose a raster" in gui.status
    gui.start()
    assert gui.canvas.mapTool() is gui.prompts.tool
    assert gui.dock.tool_button.isChecked()
    assert gui.backend.calls == ["open", "view_windows", "encode 0", "encode 1", "encode 2"]
    left, bottom, right, top = gui.backend.views[-1]
    assert QgsRectangle(left, bottom, right, top).contains(gui.layer.extent())
    assert gui.dock.device_label.text() == "Fake on CPU, as asked for."


def test_left_click_is_foreground_and_lands_where_it_was_made(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    answer = gui.wait_for_answer()
    prompt = gui.backend.prompts[-1]
    x, y = prompt.points_map[0]
    pixel_m = gui.canvas.mapUnitsPerPixel()
    assert abs(x - at(300, 400).x()) <= pixel_m
    assert abs(y - at(300, 400).y()) <= pixel_m
    assert prompt.labels == (1,)
    assert gui.overlay.mask.area() == pytest.approx(400.0)
    assert gui.overlay.n_markers == 1
    assert gui.dock.object_label.text() == "1 on the object · score 0.90 · 400\N{NO-BREAK SPACE}m²"
    assert answer.score == 0.9


@pytest.mark.parametrize(
    ("button", "keys"),
    [
        (Qt.MouseButton.RightButton, NO_KEYS),
        (LEFT, SHIFT),
        (LEFT, CTRL),
    ],
)
def test_background_click_shrinks_the_mask(gui: Any, at: Any, button: Any, keys: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    before = gui.wait_for_answer()
    assert gui.overlay.mask.area() == pytest.approx(400.0)
    gui.click(at(320, 400), button, keys)
    gui.wait_for_answer()
    assert gui.backend.prompts[-1].labels == (1, 0)
    assert gui.backend.prompts[-1].previous == before.previous
    assert gui.overlay.mask.area() == pytest.approx(225.0)
    assert gui.overlay.n_markers == 2


def test_dragging_makes_a_box(gui: Any, at: Any) -> None:
    gui.start()
    gui.drag(at(200, 300), at(500, 600))
    gui.wait_for_answer()
    box = gui.backend.prompts[-1].box_map
    tolerance = 2 * gui.canvas.mapUnitsPerPixel()
    assert box == pytest.approx((at(200, 600).x(), at(200, 600).y(), at(500, 300).x(), at(500, 300).y()), abs=tolerance)
    assert gui.backend.prompts[-1].points_map == ()
    assert gui.overlay.mask.area() == pytest.approx(150.0 * 150.0, rel=0.03)


def test_undo_and_redo_with_keys(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.click(at(320, 400), Qt.MouseButton.RightButton)
    gui.wait_for_answer()
    n_questions = len(gui.backend.prompts)
    gui.key(Qt.Key.Key_Z, CTRL)
    assert gui.overlay.mask.area() == pytest.approx(400.0)
    assert gui.overlay.n_markers == 1
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)
    assert gui.overlay.mask.area() == pytest.approx(225.0)
    assert gui.overlay.n_markers == 2
    gui.key(Qt.Key.Key_Z, CTRL)
    gui.key(Qt.Key.Key_Z, CTRL)
    assert gui.session.is_empty
    assert gui.overlay.n_markers == 0
    assert gui.overlay.mask.isEmpty()
    assert len(gui.backend.prompts) == n_questions  # the answers were known


def test_ctrl_z_does_not_reach_the_main_window_while_the_tool_is_active(gui: Any, at: Any) -> None:
    fired = []
    QShortcut(QKeySequence("Ctrl+Z"), gui.window).activated.connect(lambda: fired.append("undo"))
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Z, CTRL)
    assert gui.session.is_empty
    assert fired == []
    gui.controller.activate_tool(False)
    gui.key(Qt.Key.Key_Z, CTRL)
    assert fired == ["undo"]


def test_escape_drops_the_object(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Escape)
    assert gui.session.is_empty
    assert not gui.session.can_undo
    assert gui.overlay.mask.isEmpty()
    assert target_layer(gui) is None


def test_escape_in_mid_drag_takes_only_the_box_back(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    viewport = gui.canvas.viewport()
    QTest.mousePress(viewport, LEFT, NO_KEYS, gui.pixel(at(100, 100)))
    gui.move_pressed(gui.pixel(at(300, 300)))
    gui.key(Qt.Key.Key_Escape)
    QTest.mouseRelease(viewport, LEFT, NO_KEYS, gui.pixel(at(300, 300)))
    assert gui.session.step.box_map is None
    assert gui.session.step.points_map != ()


@pytest.mark.parametrize("key", [Qt.Key.Key_Return, Qt.Key.Key_Enter])
def test_enter_accepts_and_saves_in_one_step(gui: Any, at: Any, key: Any) -> None:
    gui.start()
    gui.controller.classes.choose("building")
    gui.click(at(300, 400))
    answer = gui.wait_for_answer()
    gui.key(key)
    layer = target_layer(gui)
    assert not layer.isEditable()  # it is saved
    (feature,) = layer.getFeatures()
    assert feature["class"] == "building"
    assert feature["model"] == "fake"
    assert (feature["score"], feature["stability"], feature["clicks"]) == (0.9, 0.95, 1)
    assert feature["area_m2"] == pytest.approx(400.0, rel=0.01)
    assert 0.0 <= feature["seconds"] < 10.0
    assert len(feature["object_id"]) == 12
    truth = QgsGeometry()
    truth.fromWkb(answer.wkb)
    assert feature.geometry().symDifference(truth).area() == pytest.approx(0.0, abs=1e-6)
    assert gui.session.is_empty
    assert gui.overlay.mask.isEmpty()
    assert "building" in gui.controller.classes.names()
    assert f"is now in '{layer.name()}'" in gui.dock.object_label.text()
    gui.key(Qt.Key.Key_Z, CTRL)
    assert layer.featureCount() == 0


def test_objects_go_to_the_same_layer_with_their_class(gui: Any, at: Any) -> None:
    gui.start()
    for name, x in (("tank", 300), ("building", 600)):
        gui.controller.classes.choose(name)
        gui.click(at(x, 400))
        gui.wait_for_answer()
        gui.key(Qt.Key.Key_Return)
    layer = target_layer(gui)
    assert sorted(feature["class"] for feature in layer.getFeatures()) == ["building", "tank"]
    colours = {
        category.value(): category.symbol().symbolLayer(0).strokeColor().name()
        for category in layer.renderer().categories()
    }
    assert {"building", "tank"} <= colours.keys()
    assert colours["building"] != colours["tank"]


def test_enter_before_the_answer_accepts_the_answer(gui: Any, at: Any) -> None:
    gui.start()
    gui.backend.gate.clear()
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.backend.prompts)
    gui.key(Qt.Key.Key_Return)
    assert target_layer(gui) is None
    gui.backend.gate.set()
    gui.wait_for(lambda: target_layer(gui) is not None)
    assert target_layer(gui).featureCount() == 1


def test_what_follows_an_early_enter_belongs_to_the_next_object(gui: Any, at: Any) -> None:
    gui.start()
    classes = gui.controller.classes
    classes.add("road")
    classes.choose("building")
    gui.backend.gate.clear()
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.backend.prompts)
    gui.key(Qt.Key.Key_Return)
    classes.choose("road")
    gui.click(at(700, 400))
    gui.click(at(800, 400))
    gui.prompts.command(Command.UNDO)  # the second of them
    gui.backend.gate.set()
    gui.wait_for(lambda: len(gui.backend.prompts) == 2)
    answer = gui.wait_for_answer()
    assert [feature["class"] for feature in target_layer(gui).getFeatures()] == ["building"]
    (point,) = gui.session.step.points_map
    assert point == pytest.approx((at(700, 400).x(), at(700, 400).y()), abs=0.5)
    assert answer.request_id == gui.backend.prompts[-1].request_id
    gui.key(Qt.Key.Key_Return)
    assert sorted(feature["class"] for feature in target_layer(gui).getFeatures()) == ["building", "road"]


def test_what_follows_an_early_enter_is_not_lost_where_no_object_was_found(
    gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui.start()
    plain = gui.backend._answer
    nowhere = at(500, 400).x()
    monkeypatch.setattr(
        gui.backend,
        "_answer",
        lambda prompt: replace(plain(prompt), wkb=b"" if prompt.points_map[0][0] < nowhere else plain(prompt).wkb),
    )
    gui.backend.gate.clear()
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.backend.prompts)
    gui.key(Qt.Key.Key_Return)
    gui.click(at(700, 400))
    gui.backend.gate.set()
    gui.wait_for(lambda: len(gui.backend.prompts) == 2)
    gui.wait_for_answer()
    assert "No object was found before your Enter" in gui.notices[-1]
    (point,) = gui.session.step.points_map
    assert point == pytest.approx((at(700, 400).x(), at(700, 400).y()), abs=0.5)
    gui.key(Qt.Key.Key_Return)
    assert target_layer(gui).featureCount() == 1


def test_escape_after_an_early_enter_keeps_nothing(gui: Any, at: Any) -> None:
    gui.start()
    gui.backend.gate.clear()
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.backend.prompts)
    gui.key(Qt.Key.Key_Return)
    gui.click(at(700, 400))
    gui.key(Qt.Key.Key_Escape)
    gui.backend.gate.set()
    QTest.qWait(100)
    assert gui.session.is_empty
    assert target_layer(gui) is None


def test_a_stale_answer_is_dropped_and_the_newest_question_wins(gui: Any, at: Any) -> None:
    gui.start()
    gui.backend.gate.clear()
    gui.click(at(200, 200))
    gui.wait_for(lambda: len(gui.backend.prompts) == 1)
    for x in (210, 220, 230):
        gui.click(at(x, 200), Qt.MouseButton.RightButton)
    assert "Segmenting" in gui.status
    gui.backend.gate.set()
    gui.wait_for_answer()
    # The first was under way, the last replaced those between.
    assert [prompt.labels for prompt in gui.backend.prompts] == [(1,), (1, 0, 0, 0)]
    assert gui.overlay.mask.area() == pytest.approx(25.0)


def test_two_fast_clicks_are_two_clicks(gui: Any, at: Any) -> None:
    gui.start()
    viewport = gui.canvas.viewport()
    gui.click(at(300, 400))
    # What Qt sends for the second press, which QTest leaves without its release.
    QTest.mouseDClick(viewport, LEFT, NO_KEYS, gui.pixel(at(302, 400)))
    QTest.mouseRelease(viewport, LEFT, NO_KEYS, gui.pixel(at(302, 400)))
    gui.wait_for_answer()
    assert len(gui.session.step.points_map) == 2


def test_a_click_outside_the_raster_is_refused_with_a_sentence(gui: Any, at: Any) -> None:
    gui.start()
    gui.canvas.setExtent(gui.layer.extent().buffered(400))
    gui.click(at(-200, 500))
    assert gui.session.is_empty
    assert gui.notices == ["That is outside the raster 'scene'; prompt inside it."]


def test_a_question_that_fails_is_taken_back_with_a_sentence(gui: Any, at: Any, errors: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.backend.fail["answer"] = errors["job"]("The prompts lie 9000 px apart; start a new object.")
    gui.click(at(320, 400))
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == ["The prompts lie 9000 px apart; start a new object."]
    assert gui.overlay.n_markers == 1
    assert gui.overlay.mask.area() == pytest.approx(400.0)


def test_an_unexpected_error_is_a_sentence_and_the_worker_lives_on(gui: Any, at: Any) -> None:
    gui.start()
    gui.backend.fail["answer"] = ZeroDivisionError("division by zero")
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.notices)
    assert "ZeroDivisionError" in gui.notices[0]
    gui.click(at(300, 400))
    assert gui.wait_for_answer().score == 0.9


def test_buttons_do_what_keys_do(gui: Any, at: Any) -> None:
    gui.start()
    buttons = gui.dock.buttons
    assert not any(button.isEnabled() for button in buttons.values())
    gui.click(at(300, 400))
    gui.wait_for_answer()
    assert {command for command, button in buttons.items() if button.isEnabled()} == {
        Command.ACCEPT, Command.UNDO, Command.DROP,
    }  # fmt: skip
    QTest.mouseClick(buttons[Command.UNDO], LEFT)
    assert gui.session.is_empty
    QTest.mouseClick(buttons[Command.REDO], LEFT)
    assert not gui.session.is_empty
    QTest.mouseClick(buttons[Command.ACCEPT], LEFT)
    assert target_layer(gui).featureCount() == 1


def test_the_tool_can_be_switched_off_and_on_from_the_dock(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    QTest.mouseClick(gui.dock.tool_button, LEFT)
    assert gui.canvas.mapTool() is not gui.prompts.tool
    assert "Go on segmenting" in gui.status
    assert gui.overlay.n_markers == 1  # the object waits
    gui.dock.status_label.linkActivated.emit("tool")
    assert gui.canvas.mapTool() is gui.prompts.tool


def test_project_is_left_as_it_was(gui: Any) -> None:
    gui.start()
    assert [layer.name() for layer in QgsProject.instance().mapLayers().values()] == ["scene"]
