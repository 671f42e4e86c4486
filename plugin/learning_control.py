"""Learning from accepted objects: on or off, what was learned, forgotten, saved, loaded; a page of the dock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QObject, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from .engine_worker import EngineWorker
from .exchange import Answer, SceneInfo, Task
from .scene_control import SceneControl
from .settings import LEARNING, RECTANGLES, write_setting
from .tasks import Learn, LearnOutline, LoadAdapter, ResetLearning, SaveAdapter, SetLearning, SetRectangles

_NOTHING = "Nothing learned yet: every accepted object teaches the model a little."
_OFF = "The model stays as it is, whatever is accepted."

AskPath = Callable[[], "Path | None"]


class LearningPanel(QWidget):
    """Widgets only."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.is_on = QCheckBox("Learn from what I accept")
        self.is_on.setToolTip("Adapt the model to this image with every click and every accepted object")
        self.rectangles = QCheckBox("Rectangles where masks nearly are")
        self.rectangles.setToolTip(
            "Masks that are nearly rectangular become rectangles, of which a click moves whole sides; from which "
            "likeness on is learned from what you accept. Holds from the next click on"
        )
        self.report = QLabel(_NOTHING)
        self.report.setWordWrap(True)
        self.reset = _button("Reset", "Forget what was learned")
        self.save = _button("Save adapter…", "Write what was learned to a file, for other projects and batch jobs")
        self.load = _button("Load…", "Go on with what was learned elsewhere, from its adapter file")
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
    """`notified` carries a sentence for the message bar."""

    notified = pyqtSignal(str)

    def __init__(
        self, worker: EngineWorker, *, scene: SceneControl, ask_open: AskPath, ask_save: AskPath, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._worker, self._scene, self._ask_open, self._ask_save = worker, scene, ask_open, ask_save
        self.panel = LearningPanel()
        for key, box in ((LEARNING, self.panel.is_on), (RECTANGLES, self.panel.rectangles)):
            box.setChecked(QgsSettings().value(f"segadapt/{key}", True, type=bool))
        self.panel.is_on.toggled.connect(self._on_toggled)
        self.panel.rectangles.toggled.connect(self._on_rectangles)
        self.panel.reset.clicked.connect(lambda: self._do(ResetLearning()))
        self.panel.save.clicked.connect(self._save)
        self.panel.load.clicked.connect(self._load)
        scene.ready.connect(self._on_ready)
        scene.changed.connect(self._show)
        worker.worked.connect(self._on_worked)
        self._show()

    def learn(self, answer: Answer, wkb: bytes) -> None:
        """Learn from an object that was accepted; `wkb` is its outline in the raster's CRS."""
        if self.panel.is_on.isChecked() and answer.result is not None:
            self._worker.do(Learn(answer, wkb))

    def learn_outline(self, wkb: bytes) -> None:
        """Learn from an outline (raster's CRS) that was accepted without prompts."""
        if self.panel.is_on.isChecked():
            self._worker.do(LearnOutline(wkb))

    def _on_toggled(self, is_on: bool) -> None:
        write_setting(LEARNING, is_on)
        self._show()
        self._do(SetLearning(is_on))

    def _on_rectangles(self, is_on: bool) -> None:
        write_setting(RECTANGLES, is_on)
        self._do(SetRectangles(is_on))

    def _on_ready(self) -> None:
        # A scene that was just opened learns and makes rectangles, unless it is told not to.
        if not self.panel.is_on.isChecked():
            self._worker.do(SetLearning(False))
        if not self.panel.rectangles.isChecked():
            self._worker.do(SetRectangles(False))
        self._show()

    def _save(self) -> None:
        path = self._ask_save() if self._scene.is_ready else None
        if path is not None:
            self._do(SaveAdapter(path))

    def _load(self) -> None:
        path = self._ask_open() if self._scene.is_ready else None
        if path is not None:
            self._do(LoadAdapter(path))

    def _do(self, task: Task) -> None:
        if self._scene.is_ready:
            self._worker.do(task)

    def _on_worked(self, task: Task, item: Any) -> None:
        if isinstance(task, (Learn, LearnOutline)):
            if item is not None:  # a step on the way
                self.panel.report.setText(item.sentence)
        elif isinstance(task, (ResetLearning, SaveAdapter, LoadAdapter)):
            self.panel.report.setText(item)

    def _show(self) -> None:
        is_on = self.panel.is_on.isChecked()
        self.panel.report.setText(_kept(self._scene.status.info) if is_on else _OFF)
        for button in (self.panel.reset, self.panel.save, self.panel.load):
            button.setEnabled(self._scene.is_ready)


def _kept(info: SceneInfo | None) -> str:
    """Say what the model goes on with in a scene."""
    if info is None or not (info.n_learned or info.loaded_name):
        return _NOTHING
    objects = "1 accepted object" if info.n_learned == 1 else f"{info.n_learned} accepted objects"
    taught = f"what {objects} taught the model" if info.n_learned else ""
    return f"Goes on with {' and '.join(filter(None, (info.loaded_name, taught)))}."


def _button(text: str, tip: str) -> QToolButton:
    button = QToolButton()
    button.setText(text)
    button.setToolTip(tip)
    button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    # Keys belong to the canvas.
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return button
