"""Learning from accepted objects: on or off, what was learned, forgotten, saved, loaded; a page of the dock."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from ..processing.algorithms.base import with_ending
from .actions import Actions
from .buttons import ActionBox, action_button
from .engine_worker import EngineWorker
from .exchange import Answer, Failure, Task
from .feature_sink import EditStep
from .history import EditHistory
from .scene_control import SceneControl
from .settings import LEARNING, RECTANGLES, remember_box
from .tasks import (
    Learn,
    LearningState,
    LearnOutline,
    Lesson,
    LoadAdapter,
    ResetLearning,
    SaveAdapter,
    SetLearning,
    SetRectangles,
    Unlearn,
)

_TEACHES = "Every accepted object teaches the model a little."
_NOTHING = "Nothing learned yet: every accepted object teaches the model a little."
_OFF = "The model stays as it is, whatever is accepted."
_ADAPTER_FILES = "Adapter (*.safetensors)"
# Accepts whose teaching can be taken back: each holds a network of 1 MB.
_MOST_LESSONS = 20
_BUTTONS = "reset_learning", "save_adapter", "load_adapter"


class LearningPanel(QWidget):
    """Widgets only, of the actions of `LearningControl`."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.is_on, self.rectangles = ActionBox(actions["learning"]), ActionBox(actions["rectangles"])
        self.report = QLabel()
        self.report.setWordWrap(True)
        self.reset, self.save, self.load = (action_button(actions[key]) for key in _BUTTONS)
        row = QHBoxLayout()
        for button in (self.reset, self.save, self.load):
            row.addWidget(button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.is_on)
        column.addWidget(self.rectangles)
        column.addWidget(self.report)
        column.addLayout(row)


class LearningControl(QObject):
    """Owns the page; `line` is a label elsewhere that says in short what the page says.

    An accept that is undone in the `history` takes back what it taught, as long as it is one of the last; where the
    raster is being opened anew, as soon as it is open.
    `notified` carries a sentence for the message bar.
    """

    notified = pyqtSignal(str)

    def __init__(
        self,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        history: EditHistory,
        actions: Actions,
        line: QLabel,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._worker, self._scene, self._actions, self._line = worker, scene, actions, line
        self._history = history
        self._lessons: deque[tuple[object, Lesson]] = deque(maxlen=_MOST_LESSONS)
        self._unlearning: list[Task] = []
        """What is not done yet: the worker forgets its tasks with the scene."""
        self._state: LearningState | None = None
        self._add_actions()
        self.panel = LearningPanel(actions)
        for key, box in ((LEARNING, self.panel.is_on), (RECTANGLES, self.panel.rectangles)):
            remember_box(box, key, default=True)
        self.panel.is_on.toggled.connect(self._on_toggled)
        self.panel.rectangles.toggled.connect(lambda is_on: self._do(SetRectangles(is_on)))
        scene.ready.connect(self._on_ready)
        scene.changed.connect(self._on_scene_changed)
        worker.worked.connect(self._on_worked)
        worker.done.connect(self._on_ended)
        worker.failed.connect(self._on_failed)
        history.undone.connect(lambda step: self._on_step(step, is_redo=False))
        history.redone.connect(lambda step: self._on_step(step, is_redo=True))
        self._show()

    def learn(self, answer: Answer, wkb: bytes) -> None:
        """Learn from an object whose accept is the newest step; `wkb` is its outline in the raster's CRS."""
        if answer.result is not None:
            self._teach(Learn(answer, wkb))

    def learn_outline(self, wkb: bytes) -> None:
        """Learn from an outline (raster's CRS) that was accepted without prompts, as the newest step."""
        self._teach(LearnOutline(wkb))

    def _teach(self, task: Learn | LearnOutline) -> None:
        if not self.panel.is_on.isChecked():
            return
        if self._history.newest is not None:
            self._lessons.append((self._history.newest.key, task.lesson))
        self._worker.do(task)

    def _on_step(self, step: EditStep, *, is_redo: bool) -> None:
        for key, lesson in self._lessons:
            if key is step.key:
                self._unlearning.append(Unlearn(lesson, is_redo=is_redo))
                self._do(self._unlearning[-1])

    def _add_actions(self) -> None:
        add = partial(self._actions.add, group="Learning")
        tip = "Adapt the model to this image with every click and every accepted object"
        add("learning", "Learn from what I accept", None, tip=tip, checkable=True)
        tip = (
            "Masks that are nearly rectangular become rectangles, of which a click moves whole sides; from which "
            "likeness on is learned from what you accept. Holds from the next click on"
        )
        add("rectangles", "Rectangles where masks nearly are", None, tip=tip, checkable=True)
        tip = "Forget what was learned"
        add("reset_learning", "Reset learning", lambda: self._do(ResetLearning()), tip=tip, label="Reset")
        tip = "Write what was learned to a file, for other projects and batch jobs"
        add("save_adapter", "Save adapter…", self._save, tip=tip)
        tip = "Go on with what was learned elsewhere, from its adapter file"
        add("load_adapter", "Load adapter…", self._load, tip=tip, label="Load…")

    def _on_toggled(self, is_on: bool) -> None:
        self._show()
        self._do(SetLearning(is_on))

    def _on_scene_changed(self) -> None:
        self._state = None
        self._show()

    def _on_ready(self) -> None:
        info = self._scene.status.info
        if info is not None:
            self._state = LearningState("", info.n_learned, info.loaded_name)
        # A scene that was just opened learns and makes rectangles, unless it is told not to.
        if not self.panel.is_on.isChecked():
            self._worker.do(SetLearning(False))
        if not self.panel.rectangles.isChecked():
            self._worker.do(SetRectangles(False))
        for task in self._unlearning:
            self._worker.do(task)
        self._show()

    def _save(self) -> None:
        path = self._ask_save() if self._scene.is_ready else None
        if path is not None:
            self._do(SaveAdapter(path))

    def _load(self) -> None:
        path = self._ask_open() if self._scene.is_ready else None
        if path is not None:
            self._do(LoadAdapter(path))

    def _ask_open(self) -> Path | None:
        path, _ = QFileDialog.getOpenFileName(self.panel, "Load adapter", "", _ADAPTER_FILES)
        return Path(path) if path else None

    def _ask_save(self) -> Path | None:
        path, _ = QFileDialog.getSaveFileName(self.panel, "Save adapter", "", _ADAPTER_FILES)
        return with_ending(path, ".safetensors") if path else None

    def _do(self, task: Task) -> None:
        if self._scene.is_ready:
            self._worker.do(task)

    def _on_worked(self, task: Task, item: Any) -> None:
        if not isinstance(item, LearningState):
            return
        self._state = item
        self._show()
        if not isinstance(task, SetLearning):
            self.panel.report.setText(item.sentence)

    def _on_ended(self, task: Task) -> None:
        if task in self._unlearning:
            self._unlearning.remove(task)

    def _on_failed(self, failure: Failure) -> None:
        if failure.task is not None:
            self._on_ended(failure.task)

    def _show(self) -> None:
        is_on, kept = self.panel.is_on.isChecked(), _kept(self._state)
        report = f"Goes on with {kept}." if kept else ""
        if not is_on:
            report = f"{report} {_OFF}".strip()
        elif not report:
            report = _TEACHES if self._state is None else _NOTHING
        self.panel.report.setText(report)
        self._line.setText(" · ".join(filter(None, (f"Learning is {'on' if is_on else 'off'}", kept))))
        for key in _BUTTONS:
            self._actions[key].setEnabled(self._scene.is_ready)


def _kept(state: LearningState | None) -> str:
    """Name what the model goes on with; empty for nothing, or without a scene."""
    if state is None:
        return ""
    objects = "1 accepted object" if state.n_learned == 1 else f"{state.n_learned} accepted objects"
    taught = f"what {objects} taught the model" if state.n_learned else ""
    return " and ".join(filter(None, (state.loaded_name, taught)))
