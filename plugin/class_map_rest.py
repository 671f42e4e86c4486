"""The raster beyond the view is encoded for the class map while the user does nothing else with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from .class_map_tasks import MapRest, RestState
from .engine_worker import EngineWorker
from .exchange import Failure

# Who clicks does so every few seconds, and would wait for the step at hand.
_IDLE_MS = 4000


class RestOfMap(QObject):
    """Starts and stops `MapRest`; `do` hands the worker a task. `changed`: `status` says something else now."""

    changed = pyqtSignal()

    def __init__(self, worker: EngineWorker, *, do: Callable[[type[MapRest]], Any], parent: QObject) -> None:
        super().__init__(parent)
        self._worker, self._do = worker, do
        self._task: MapRest | None = None
        self._state: RestState | None = None
        self._idle = QTimer(self)
        self._idle.setSingleShot(True)
        self._idle.setInterval(_IDLE_MS)
        self._idle.timeout.connect(self._start)
        worker.worked.connect(self._on_worked)
        worker.done.connect(self._on_ended)
        worker.failed.connect(self._on_failed)

    @property
    def status(self) -> str:
        """How far it is, to be added to a sentence; "" where nothing is under way."""
        state = self._state
        if state is None:
            return ""
        return f" · beyond the view {state.n_done} of {state.n_windows} windows are described"

    def start_soon(self) -> None:
        """Begin when nothing else is done for a while."""
        self._idle.start()

    def stop(self) -> None:
        """Begin no more, and stop what is under way; what was encoded stays."""
        if self._task is not None:
            self._worker.cancel(self._task)
        self.forget()

    def forget(self) -> None:
        """Begin no more; the worker has dropped what was under way."""
        self._idle.stop()
        self._task = self._state = None

    def _start(self) -> None:
        self._task = self._do(MapRest)

    def _on_worked(self, task: Any, item: Any) -> None:
        if self._task is not None and task is self._task and item is not None:
            self._state = item
            self.changed.emit()

    def _on_ended(self, task: Any) -> None:
        if self._task is not None and task is self._task:
            self._task = self._state = None
            self.changed.emit()

    def _on_failed(self, failure: Failure) -> None:
        self._on_ended(failure.task)
