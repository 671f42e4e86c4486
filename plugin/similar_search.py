"""The searches of a review in the worker: one at a time, and what is learned from answers."""

from __future__ import annotations

from qgis.PyQt.QtCore import QObject, pyqtSignal

from .engine_worker import EngineWorker
from .exchange import Failure, Task
from .similar_review import Review
from .similar_tasks import Found, LearnAnswers, Search


class SearchRunner(QObject):
    """Hands searches and answers to the worker, and what comes of the newest ones to the review.

    `found` carries a `Found`; `ranked` probabilities by number of the candidate; `progressed` a fraction of the search;
    `ended`: the search is through; `failed` a sentence.
    """

    found = pyqtSignal(object)
    ranked = pyqtSignal(object)
    progressed = pyqtSignal(float)
    ended = pyqtSignal()
    failed = pyqtSignal(str)

    def __init__(self, worker: EngineWorker, parent: QObject) -> None:
        super().__init__(parent)
        self._worker = worker
        self._search: Search | None = None
        self._learning: LearnAnswers | None = None
        self._handed_out: set[int] = set()
        worker.worked.connect(self._on_worked)
        worker.done.connect(self._on_done)
        worker.task_progressed.connect(self._on_progressed)
        worker.failed.connect(self._on_failed)

    @property
    def is_searching(self) -> bool:
        """Whether candidates may still come."""
        return self._search is not None

    def start(self, search: Search) -> None:
        """Search, in place of what is searched now."""
        self.stop()
        self._stop_learning()
        self._search = search
        self._handed_out.clear()
        self._worker.do(search)

    def stop(self) -> None:
        """Stop the search; what was found stays."""
        if self._search is not None:
            self._worker.cancel(self._search)
            self._search = None

    def learn(self, review: Review) -> None:
        """Rank the candidates by all answers; what was learned from fewer comes no more."""
        self._stop_learning()
        accepted, rejected = tuple(review.accepted), tuple(review.rejected)
        self._learning = LearnAnswers(review.handle, accepted, rejected, known=frozenset(self._handed_out))
        self._worker.do(self._learning)

    def forget(self) -> None:
        """Forget all: the worker has dropped its tasks."""
        self._search = self._learning = None

    def _stop_learning(self) -> None:
        if self._learning is not None:
            self._worker.cancel(self._learning)
            self._learning = None

    def _on_worked(self, task: Task, item: object) -> None:
        if task in (self._search, self._learning) and isinstance(item, Found):
            self._handed_out.add(item.number)
            self.found.emit(item)
        elif task is self._learning and isinstance(item, dict):
            self.ranked.emit(item)

    def _on_done(self, task: Task) -> None:
        if task is self._search:
            self._search = None
            self.ended.emit()
        elif task is self._learning:
            self._learning = None

    def _on_progressed(self, task: Task, fraction: float) -> None:
        if task is self._search:
            self.progressed.emit(fraction)

    def _on_failed(self, failure: Failure) -> None:
        if failure.task is None or failure.task not in (self._search, self._learning):
            return
        if failure.task is self._search:
            self._search = None
        else:
            self._learning = None
        self.failed.emit(failure.sentence)
