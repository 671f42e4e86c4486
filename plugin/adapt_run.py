"""Runs a Processing algorithm in the background, or lets the user change its parameters first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
)
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .adapt_words import IS_STOPPED

PROVIDER = "segadapt"
STOPPED = "Stopped; everything is as it was."

_END_S = 5.0
# A run that its page has left behind must outlive its task.
_running: set[AlgorithmRun] = set()


class AlgorithmRun(QObject):
    """One run. `progressed` carries 0 to 1, `informed` a line of the log, `ended` the results and a sentence.

    The sentence is "" where the run was good, or was stopped and saved the best so far (`IS_STOPPED`); else it says why
    there are no results.
    """

    progressed = pyqtSignal(float)
    informed = pyqtSignal(str)
    ended = pyqtSignal(dict, str)

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        self._name, self._parameters = name, dict(parameters)
        self._task: QgsProcessingAlgRunnerTask | None = None
        self._feedback = _Feedback()
        self._feedback.progressChanged.connect(self._on_progress)
        self._feedback.said.connect(self.informed)
        self._context = QgsProcessingContext()
        self._context.setProject(QgsProject.instance())
        self._context.setFeedback(self._feedback)

    def start(self) -> None:
        """Check the parameters and begin; what is wrong with them is said at once."""
        algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"{PROVIDER}:{self._name}")
        if algorithm is None:
            self.ended.emit({}, f"Processing does not know {PROVIDER}:{self._name}; switch its provider on again.")
            return
        for check in (algorithm.canExecute, lambda: algorithm.checkParameterValues(self._parameters, self._context)):
            is_good, why = check()
            if not is_good:
                self.ended.emit({}, why)
                return
        self._task = QgsProcessingAlgRunnerTask(algorithm, self._parameters, self._context, self._feedback)
        self._task.executed.connect(self._on_executed)
        _running.add(self)
        QgsApplication.taskManager().addTask(self._task)

    def stop(self) -> None:
        """Ask it to end; `ended` follows."""
        self._feedback.cancel()

    def abandon(self) -> None:
        """End it without a word, and wait for that a little: its provider may be about to go."""
        self.blockSignals(True)
        self.stop()
        deadline = time.monotonic() + _END_S
        while self in _running and time.monotonic() < deadline:
            QgsApplication.processEvents()
            time.sleep(0.01)  # lets the thread of the task have Python

    def _on_progress(self, per_cent: float) -> None:
        self.progressed.emit(per_cent / 100)

    def _on_executed(self, is_good: bool, results: dict[str, Any]) -> None:
        _running.discard(self)
        self._task = None
        found = _taken(is_good, results)
        if found is not None:
            self.ended.emit(found, "")
        elif self._feedback.isCanceled():
            self.ended.emit({}, STOPPED)
        else:
            self.ended.emit({}, self._feedback.error or "It failed; Processing's log says more.")


def _taken(is_good: bool, results: dict[str, Any]) -> dict[str, Any] | None:
    """What came of a run, None for nothing: QGIS calls none good that was cancelled, but some saved the best so far."""
    if is_good:
        return results
    return {**results, IS_STOPPED: True} if Path(str(results.get("OUTPUT", ""))).is_file() else None


class _Feedback(QgsProcessingFeedback):
    """Called from the thread of the task; `said` reaches the page's thread."""

    said = pyqtSignal(str)

    def __init__(self) -> None:
        super().__init__(False)  # the page shows what is said
        self.error = ""

    def pushInfo(self, info: str) -> None:
        """Pass a line on."""
        self.said.emit(info)

    def reportError(self, error: str, fatalError: bool = False) -> None:  # noqa: N803 - QGIS
        """Keep the last error."""
        self.error = error


def open_dialog(name: str, parameters: Mapping[str, Any], on_results: Callable[[dict[str, Any]], None]) -> None:
    """Open the dialog of an algorithm, filled in; `on_results` is called after each run that saved something."""
    from qgis import processing

    def take(is_good: bool, results: dict[str, Any]) -> None:
        found = _taken(is_good, results)
        if found is not None:
            on_results(found)

    dialog = processing.createAlgorithmDialog(f"{PROVIDER}:{name}", dict(parameters))
    if dialog is not None:
        dialog.algorithmFinished.connect(take)
        dialog.finished.connect(dialog.deleteLater)
        dialog.show()
