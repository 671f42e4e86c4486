"""The dock's page about learning, with a fake engine that counts what it is taught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsGeometry, QgsSettings
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QFileDialog


@dataclass
class Report:
    sentence: str


class Learner:
    """The part of a segmenter that learns; mixed into the fake engine."""

    def __init__(self) -> None:
        self.lessons: list[Any] = []
        self.paths: list[Any] = []
        self.options = Options()
        self.n_learned, self.adapter_name, self.loaded_name = 0, "adapter of Banepa", ""
        self.knowledge: list[Any] = []
        self.is_encoded = True

    def answer(self, request: Any, *, only_if_encoded: bool = False) -> str | None:
        assert only_if_encoded
        return f"answer at {request.points_map}" if self.is_encoded else None

    def learning(self, result: Any, geometry: Any = None) -> Any:
        yield  # as between two steps
        self.lessons.append((result, geometry))
        self.n_learned += 1
        self.knowledge = [*self.knowledge, geometry]
        return Report(f"Learned from {self.n_learned} objects.")

    def take_over(self, knowledge: list[Any]) -> None:
        self.knowledge, self.n_learned = knowledge, len(knowledge)

    def reset(self) -> None:
        self.n_learned, self.loaded_name = 0, ""

    def save(self, path: Path) -> None:
        self.paths.append(("save", path))

    def load(self, path: Path) -> None:
        self.paths.append(("load", path))
        self.knowledge = []
        self.n_learned, self.loaded_name = 0, path.stem


@dataclass(frozen=True)
class Options:
    per_click: bool = True
    per_object: bool = True
    rectangles: bool = True


@pytest.fixture
def learner(gui: Any, monkeypatch: pytest.MonkeyPatch) -> Learner:
    learner = Learner()
    plain = gui.backend._answer
    monkeypatch.setattr(gui.backend, "_answer", lambda prompt: replace(plain(prompt), result=f"result {prompt.labels}"))
    monkeypatch.setattr(gui.backend, "run_task", lambda task, progress: iter(task.run(learner, progress)))
    return learner


def accept(gui: Any, at: Any) -> None:
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Return)


def test_an_accepted_object_is_learned_with_its_final_outline(gui: Any, at: Any, learner: Learner) -> None:
    gui.start()
    panel = gui.controller.learning.panel
    assert "Nothing learned yet" in panel.report.text()
    accept(gui, at)
    gui.wait_for(lambda: panel.report.text() == "Learned from 1 objects.")
    ((result, geometry),) = learner.lessons
    assert result == "result (1,)"
    assert geometry.area == pytest.approx(400.0)


def test_an_accepted_candidate_is_learned_where_its_window_is_encoded(gui: Any, at: Any, learner: Learner) -> None:
    gui.start()
    control, place = gui.controller.learning, at(300, 400)
    wkb = bytes(QgsGeometry.fromPointXY(place).buffer(10, 8).asWkb())
    gui.controller.similar.accepted.emit(wkb)
    gui.wait_for(lambda: control.panel.report.text() == "Learned from 1 objects.")
    ((result, geometry),) = learner.lessons
    assert result.startswith(f"answer at (({place.x():.0f}")
    assert geometry.area == pytest.approx(312, rel=0.01)
    learner.is_encoded = False
    gui.controller.similar.accepted.emit(wkb)
    control.panel.reset.click()  # done after it
    gui.wait_for(lambda: "forgotten" in control.panel.report.text())
    control.panel.is_on.click()
    gui.wait_for(lambda: not learner.options.per_object)
    learner.is_encoded = True
    gui.controller.similar.accepted.emit(wkb)
    control.panel.is_on.click()
    gui.wait_for(lambda: learner.options.per_object)
    assert len(learner.lessons) == 1


def test_undoing_an_accept_takes_back_what_it_taught(gui: Any, at: Any, learner: Learner) -> None:
    gui.start()
    control, known = gui.controller.learning, [learner.knowledge]
    undo, redo = (gui.controller.actions[key].trigger for key in ("undo", "redo"))
    for n in (1, 2):
        accept(gui, at)
        gui.wait_for(lambda n=n: learner.n_learned == n)
        known.append(learner.knowledge)
    for again in (1, 0):
        undo()
        gui.wait_for(lambda again=again: learner.knowledge is known[again])
        undo()  # its click, which was in hand again
    gui.wait_for(lambda: control.panel.report.text() == "What that object taught is taken back.")
    for _ in ("click", "accept"):
        redo()
    gui.wait_for(lambda: learner.knowledge is known[1])
    assert len(learner.lessons) == 2  # nothing is learned twice
    for _ in ("click", "accept"):
        redo()
    gui.wait_for(lambda: learner.knowledge is known[2])
    learner.load(Path("other.safetensors"))
    undo()
    gui.wait_for(lambda: "has changed since" in control.panel.report.text())
    assert learner.knowledge == []


@pytest.mark.parametrize("is_queued", [False, True])
def test_undoing_an_accept_while_the_raster_is_opened_anew_waits_for_it(
    gui: Any, at: Any, learner: Learner, is_queued: bool
) -> None:
    gui.start()
    scene, known = gui.controller.scene, learner.knowledge
    accept(gui, at)
    gui.wait_for(lambda: learner.n_learned == 1)
    if is_queued:
        gui.backend.gate.clear()
        gui.click(at(500, 400))
        gui.wait_for(lambda: len(gui.backend.prompts) == 2)  # the worker is busy
        gui.key(Qt.Key.Key_Escape)
    gui.backend.open_gate.clear()
    if is_queued:
        gui.controller.actions["undo"].trigger()
        scene.reset()
        gui.backend.gate.set()
    else:
        scene.reset()
        gui.controller.actions["undo"].trigger()
    gui.backend.open_gate.set()
    gui.wait_for(lambda: learner.knowledge is known)
    report = gui.controller.learning.panel.report
    gui.wait_for(lambda: report.text() == "What that object taught is taken back.")
    n_tasks = gui.backend.calls.count("run_task")
    scene.reset()
    gui.wait_for(lambda: scene.is_ready)
    gui.wait_for(lambda: "is encoded" in gui.status)
    assert gui.backend.calls.count("run_task") == n_tasks  # once is enough


def test_undoing_what_taught_nothing_changes_no_model(gui: Any, at: Any, learner: Learner) -> None:
    gui.start()
    control = gui.controller.learning
    accept(gui, at)
    gui.wait_for(lambda: learner.n_learned == 1)
    control.panel.is_on.click()
    accept(gui, at)
    gui.wait_for(lambda: gui.session.is_empty)
    gui.controller.actions["undo"].trigger()
    control.panel.is_on.click()  # done after it
    gui.wait_for(lambda: learner.options.per_object)
    assert learner.n_learned == 1


def test_learning_can_be_switched_off_and_stays_off(gui: Any, at: Any, learner: Learner, make_gui: Any) -> None:
    gui.start()
    gui.controller.learning.panel.is_on.click()
    gui.wait_for(lambda: not learner.options.per_object)
    assert not learner.options.per_click
    accept(gui, at)
    gui.wait_for(lambda: gui.session.is_empty)
    assert learner.lessons == []
    assert QgsSettings().value("segadapt/learning", type=bool) is False
    learner.options = Options()
    gui.controller.scene.reset()  # another scene begins anew
    gui.wait_for(lambda: not learner.options.per_object)
    gui.controller.learning.panel.is_on.click()
    gui.wait_for(lambda: learner.options.per_object)


def test_rectangles_can_be_switched_off_and_stay_off(gui: Any, learner: Learner) -> None:
    gui.start()
    box = gui.controller.learning.panel.rectangles
    assert box.isChecked()
    box.click()
    gui.wait_for(lambda: not learner.options.rectangles)
    assert learner.options.per_object  # that is another question
    learner.options = Options()
    gui.controller.scene.reset()  # another scene begins anew
    gui.wait_for(lambda: not learner.options.rectangles)
    box.click()
    gui.wait_for(lambda: learner.options.rectangles)


@pytest.mark.parametrize(
    ("n_learned", "loaded_name", "text"),
    [
        (0, "", "Nothing learned yet: every accepted object teaches the model a little."),
        (1, "", "Goes on with what 1 accepted object taught the model."),
        (0, "my_city", "Goes on with my_city."),
        (5, "my_city", "Goes on with my_city and what 5 accepted objects taught the model."),
    ],
)
def test_the_page_says_what_the_model_goes_on_with(
    gui: Any, monkeypatch: pytest.MonkeyPatch, n_learned: int, loaded_name: str, text: str
) -> None:
    opened = gui.backend.open
    monkeypatch.setattr(
        gui.backend, "open", lambda *spec: replace(opened(*spec), n_learned=n_learned, loaded_name=loaded_name)
    )
    gui.start()
    assert gui.controller.learning.panel.report.text() == text


def test_page_and_status_line_tell_what_is_in_use_after_every_change(
    gui: Any, at: Any, learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    panel, line = gui.controller.learning.panel, gui.dock.learning_label
    monkeypatch.setattr(gui.controller.learning, "_ask_open", lambda: tmp_path / "my_city.safetensors")
    assert line.text() == "Learning is on"
    gui.start()
    accept(gui, at)
    taught = "what 1 accepted object taught the model"
    gui.wait_for(lambda: line.text() == f"Learning is on · {taught}")
    panel.is_on.click()
    assert panel.report.text() == f"Goes on with {taught}. The model stays as it is, whatever is accepted."
    assert line.text() == f"Learning is off · {taught}"
    panel.is_on.click()
    assert panel.report.text() == f"Goes on with {taught}."
    panel.reset.click()
    gui.wait_for(lambda: line.text() == "Learning is on")
    assert "forgotten" in panel.report.text()
    for text in ("The model stays as it is, whatever is accepted.", "Nothing learned yet: every accepted"):
        panel.is_on.click()
        assert panel.report.text().startswith(text)
    panel.load.click()
    gui.wait_for(lambda: line.text() == "Learning is on · my_city")


def test_what_was_learned_is_saved_loaded_and_forgotten(
    gui: Any, at: Any, learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    control, panel = gui.controller.learning, gui.controller.learning.panel
    monkeypatch.setattr(control, "_ask_save", lambda: tmp_path / "a.safetensors")
    monkeypatch.setattr(control, "_ask_open", lambda: None)
    assert not panel.save.isEnabled()
    gui.start()
    accept(gui, at)
    gui.wait_for(lambda: learner.n_learned == 1)
    panel.save.click()
    gui.wait_for(lambda: learner.paths == [("save", tmp_path / "a.safetensors")])
    gui.wait_for(lambda: "is saved in" in panel.report.text())
    panel.load.click()  # cancelled
    monkeypatch.setattr(control, "_ask_open", lambda: tmp_path / "b.safetensors")
    panel.load.click()
    gui.wait_for(lambda: learner.paths[1:] == [("load", tmp_path / "b.safetensors")])
    panel.reset.click()
    gui.wait_for(lambda: "forgotten" in panel.report.text())
    assert learner.n_learned == 0


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("roofs_0.5m", "roofs_0.5m.safetensors"),
        ("roofs.safetensors", "roofs.safetensors"),
        ("roofs.SafeTensors", "roofs.SafeTensors"),
    ],
)
def test_an_adapter_keeps_the_name_that_was_typed(
    gui: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, name: str
) -> None:
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_arguments: (str(tmp_path / typed), ""))
    assert gui.controller.learning._ask_save() == tmp_path / name
