"""An accept that is undone: its prompts are in hand again, with their answer, on a real canvas."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from qgis.core import QgsFeature, QgsGeometry, QgsProject, QgsRectangle, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from segadapt.plugin.exchange import MaskOptionAnswer

RIGHT = Qt.MouseButton.RightButton
CTRL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


def undo(gui: Any) -> None:
    gui.key(Qt.Key.Key_Z, CTRL)


def redo(gui: Any) -> None:
    gui.key(Qt.Key.Key_Z, CTRL | SHIFT)


def accept(gui: Any) -> None:
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)


def features(gui: Any) -> list[QgsFeature]:
    return list(gui.controller.target.layer().getFeatures())


def test_one_more_click_and_enter_store_a_better_object(gui: Any, at: Any) -> None:
    gui.start()
    gui.drag(at(250, 350), at(350, 450))
    gui.wait_for_answer()
    gui.click(at(300, 400))
    accept(gui)
    accepted, n_asked = features(gui)[0], len(gui.backend.prompts)
    undo(gui)
    assert features(gui) == []
    assert gui.dock.object_label.text() == "Undone: accept object. Its prompts are in hand again."
    assert gui.session.step.box_map is not None
    assert gui.session.step.labels == (1,)
    assert gui.overlay.n_markers == 1
    assert gui.overlay.mask.equals(accepted.geometry())
    assert len(gui.backend.prompts) == n_asked  # the answer is known
    gui.click(at(320, 400), RIGHT)
    accept(gui)
    assert gui.backend.prompts[-1].labels == (1, 0)
    assert gui.backend.prompts[-1].previous == f"logits {gui.backend.prompts[-2].request_id}"
    (feature,) = features(gui)
    assert feature["clicks"] == accepted["clicks"] + 1
    redo(gui)
    assert len(features(gui)) == 1  # another object was stored instead


def test_redo_stores_it_again_and_undo_brings_it_back_again(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    accept(gui)
    for _ in range(2):
        undo(gui)
        assert features(gui) == []
        assert not gui.session.is_empty
        redo(gui)
        assert len(features(gui)) == 1
        assert gui.session.is_empty
        assert gui.overlay.mask.isEmpty()
        assert not gui.controller.actions["redo"].isEnabled()


def test_everything_goes_back_and_forth_in_the_order_in_which_it_was_done(gui: Any, at: Any) -> None:
    gui.start()
    undone = []
    for x in (300, 600):
        gui.click(at(x, 400))
        gui.wait_for_answer()
        gui.click(at(x + 20, 400), RIGHT)
        accept(gui)
    gui.click(at(800, 400))
    gui.wait_for_answer()
    actions = gui.controller.actions
    while actions["undo"].isEnabled():
        undone.append(actions["undo"].text().removeprefix("Undo "))
        undo(gui)
    assert undone == ["click", "accept object", "click", "click", "accept object", "click", "click"]
    assert features(gui) == []
    for what in reversed(undone):
        assert actions["redo"].text() == f"Redo {what}"
        redo(gui)
    assert not actions["redo"].isEnabled()
    assert len(features(gui)) == 2
    assert gui.session.step.points_map[0][0] == pytest.approx(at(800, 400).x(), abs=1)


def test_an_object_that_is_dropped_after_undo_comes_back_by_redo(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    accept(gui)
    undo(gui)
    gui.key(Qt.Key.Key_Escape)
    assert gui.session.is_empty
    redo(gui)
    assert len(features(gui)) == 1


def test_a_click_that_got_no_answer_leaves_redo_as_it_was(gui: Any, at: Any, errors: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    accept(gui)
    undo(gui)
    gui.backend.fail["answer"] = errors["job"]("The prompts lie 9000 px apart; start a new object.")
    gui.click(at(320, 400))
    gui.wait_for(lambda: any("9000 px" in notice for notice in gui.notices))
    redo(gui)
    assert len(features(gui)) == 1
    assert gui.session.is_empty


def test_class_seconds_and_chosen_mask_come_back(gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gui.backend._answer

    def offering(prompt: Any) -> Any:
        answer = plain(prompt)
        wider = bytes(QgsGeometry.fromRect(QgsRectangle(at(200, 500), at(400, 300))).asWkb())
        options = tuple(MaskOptionAnswer(wkb, 0.9, 0.9, 400.0, "option") for wkb in (answer.wkb, wider))
        return replace(answer, options=options)

    monkeypatch.setattr(gui.backend, "_answer", offering)
    gui.start()
    gui.controller.classes.choose("tank")
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Tab)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 60)
    accept(gui)
    gui.controller.classes.choose("building")
    undo(gui)
    assert gui.controller.classes.current == "tank"
    assert "mask 2 of 2" in gui.prompts._description()
    gui.key(Qt.Key.Key_Return)
    (feature,) = features(gui)
    assert feature["class"] == "tank"
    assert feature.geometry().area() == pytest.approx(10_000)
    assert 60 <= feature["seconds"] < 100
    undo(gui)
    redo(gui)
    assert gui.controller.classes.current == "tank"


def test_undo_of_a_renaming_renames_the_class_too(gui: Any, at: Any) -> None:
    gui.start()
    classes, actions = gui.controller.classes, gui.controller.actions
    classes.choose("tank")
    gui.click(at(300, 400))
    accept(gui)
    classes.rename("tank", "silo")
    assert features(gui)[0]["class"] == "silo"
    undo(gui)
    assert (features(gui)[0]["class"], classes.names(), classes.current) == ("tank", ["tank"], "tank")
    undo(gui)
    assert (features(gui), classes.names(), classes.current) == ([], ["tank"], "tank")
    redo(gui)
    redo(gui)
    assert (features(gui)[0]["class"], classes.names(), classes.current) == ("silo", ["silo"], "silo")
    assert not actions["redo"].isEnabled()
    undo(gui)
    classes.add("silo")
    redo(gui)  # a class has that name already: the features are of it
    assert (features(gui)[0]["class"], classes.names()) == ("silo", ["tank", "silo"])


def test_a_corrected_polygon_gets_its_outline_back_and_the_correction_goes_on(gui: Any, at: Any) -> None:
    layer = QgsVectorLayer("Polygon?crs=EPSG:32631", "parcels", "memory")
    feature = QgsFeature()
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(at(300, 500), at(400, 400))))
    layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    gui.canvas.setLayers([layer, gui.layer])
    gui.start()
    gui.move(at(350, 450))
    gui.key(Qt.Key.Key_E)
    gui.click(at(350, 450))
    accept(gui)
    assert [one.geometry().area() for one in layer.getFeatures()] == [pytest.approx(400)]
    undo(gui)
    assert [one.geometry().area() for one in layer.getFeatures()] == [pytest.approx(2500)]
    assert gui.session.step.outline_wkb
    gui.click(at(370, 450), RIGHT)
    accept(gui)
    assert [one.geometry().area() for one in layer.getFeatures()] == [pytest.approx(225)]


def test_prompts_of_a_raster_that_was_left_do_not_come_back(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    accept(gui)
    gui.controller.scene.reset()
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    undo(gui)
    assert features(gui) == []
    assert gui.session.is_empty


def test_nothing_is_in_hand_again_while_the_class_map_has_the_clicks(
    gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui.start()
    gui.click(at(300, 400))
    accept(gui)
    monkeypatch.setattr(gui.backend, "run_task", lambda task, progress: iter(()))
    gui.key(Qt.Key.Key_L)
    undo(gui)
    assert features(gui) == []
    assert gui.session.is_empty
    redo(gui)
    assert len(features(gui)) == 1
