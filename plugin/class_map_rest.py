"""The raster beyond the view is encoded for the class map while the user does nothing else with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal

from .class_map_tasks import MapTask, view_px
from .engine_worker import EngineWorker
from .exchange import Failure

if TYPE_CHECKING:
    from ..models.progress import Progress
    from ..processing.jobs.interactive import InteractiveSegmenter

# Who clicks does so every few seconds, and would wait for the step at hand.
_IDLE_MS = 4000


@dataclass(frozen=True)
class RestState:
    """How far the raster beyond the view is encoded: `n_done` of `n_windows`, as many as memory holds."""

    n_done: int
    n_windows: int


@dataclass(frozen=True, eq=False)
class MapRest(MapTask):
    """Encode the raster beyond the view, nearest first. Yields None between steps, a `RestState` for each window.

    Of what is drawn for the window (an online layer) nothing beyond the view is asked for.
    """

    is_urgent: ClassVar[bool] = False
    is_idle: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[RestState | None]:
        """Encode."""
        from ..models.progress import raise_if_cancelled
        from ..processing.raster.rendered import RenderedReader

        if isinstance(segmenter.scene.reader, RenderedReader):
            return
        mapper = self.handle.mapper(segmenter, progress)
        bounds = view_px(mapper, self.view_map)
        if bounds is None:
            return
        cells = mapper.beyond(bounds)
        for n_done, cell in enumerate(cells):
            yield RestState(n_done, len(cells))
            for _ in mapper.encoding(cell):
                raise_if_cancelled(progress)
                yield None


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
