"""The one thread that computes: it owns the engine, takes work from a mailbox and answers by signal."""

from __future__ import annotations

import traceback
from threading import Event
from typing import Any

from qgis.core import Qgis, QgsMessageLog
from qgis.PyQt.QtCore import QObject, QThread, pyqtSignal

from ..models.errors import Cancelled, ModelError
from ..processing.environment import EnvironmentUnavailable
from ..processing.errors import JobError, RasterError
from .backend import Backend
from .exchange import Bounds, Failure, PromptInput, SceneSpec
from .mailbox import Kind, Mailbox, Message

_EXPECTED = (ModelError, RasterError, JobError, EnvironmentUnavailable)
# A chip or a kernel cannot be interrupted, a download stops at once: longer than this nothing should take.
_JOIN_MS = 20_000


class WorkerProgress:
    """Progress of opening a scene, as signals; cancelled when a newer scene or the end waits."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self._percent = -1

    def set_fraction(self, fraction: float) -> None:
        """Send the fraction; not more often than it can be seen."""
        percent = int(100 * fraction)
        if percent != self._percent:
            self._percent = percent
            self._worker.progressed.emit(fraction)

    def info(self, text: str) -> None:
        """Send the sentence."""
        self._worker.informed.emit(text)

    def is_cancelled(self) -> bool:
        """Say whether there is something newer to do."""
        return self._worker.is_overtaken()


class EngineWorker(QThread):
    """Takes work from a mailbox until it is told to stop. The newest request wins; chips yield to clicks.

    Signals carry: `opened` SceneSpec and SceneInfo; `answered` and `previewed` Answer; `encoded` chips done
    and planned in this view; `progressed` a fraction of opening; `informed` a sentence; `failed` Failure.
    """

    opened = pyqtSignal(object, object)
    answered = pyqtSignal(object)
    previewed = pyqtSignal(object)
    encoded = pyqtSignal(int, int)
    progressed = pyqtSignal(float)
    informed = pyqtSignal(str)
    failed = pyqtSignal(object)

    def __init__(self, backend: Backend, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._backend = backend
        self._mailbox = Mailbox()
        self._stopping = Event()
        self._n_planned = self._n_encoded = 0

    def open_scene(self, spec: SceneSpec) -> None:
        """Open a scene in place of the present one; what waits for the present one is forgotten."""
        self._mailbox.put(Kind.OPEN, spec)

    def close_scene(self) -> None:
        """Let go of the raster, so that its file can be replaced."""
        self._mailbox.put(Kind.OPEN, None)

    def ask(self, prompt: PromptInput) -> None:
        """Ask for a mask; an older question that waits is forgotten."""
        self._mailbox.put(Kind.PROMPT, prompt)

    def ask_preview(self, prompt: PromptInput) -> None:
        """Ask for a mask that is shown only if it costs nothing."""
        self._mailbox.put(Kind.HOVER, prompt)

    def encode_view(self, view_map: Bounds) -> None:
        """Encode what clicks in this view will need, in place of an older view."""
        self._mailbox.put(Kind.VIEW, view_map)

    def pause_encoding(self) -> None:
        """Stop encoding after the chip at hand."""
        self._mailbox.clear_chips()

    def is_overtaken(self) -> bool:
        """Say whether a newer scene or the end waits."""
        return self._stopping.is_set() or self._mailbox.is_waiting(Kind.OPEN, Kind.STOP)

    def stop(self) -> bool:
        """End the thread and wait for it; the engine is freed. Return False where it did not end in time."""
        self._stopping.set()
        self._mailbox.put(Kind.STOP)
        return bool(self.wait(_JOIN_MS))

    def run(self) -> None:
        """Work until told to stop. Runs in the worker thread; no exception may leave it."""
        try:
            while (message := self._mailbox.take()).kind is not Kind.STOP:
                self._handle(message)
        finally:
            self._backend.close()

    def _handle(self, message: Message) -> None:
        try:
            self._do(message)
        except Cancelled:
            return
        except _EXPECTED as error:
            self._fail(message, str(error))
        except MemoryError:
            self._fail(message, "Memory is used up; close other programs or choose a smaller model.")
        except Exception as error:
            # The thread must live on, and the user must hear of it: an exception that leaves run() ends QGIS.
            QgsMessageLog.logMessage(traceback.format_exc(), "SegAdapt", Qgis.MessageLevel.Critical)
            name = type(error).__name__
            self._fail(message, f"Unexpected {name}: {error}; the log messages panel, tab SegAdapt, says more.")

    def _do(self, message: Message) -> None:
        kind, content = message
        if kind is Kind.OPEN:
            self._open(content)
        elif kind is Kind.PROMPT:
            self.answered.emit(self._backend.answer(content))
        elif kind is Kind.HOVER:
            answer = self._backend.preview(content)
            if answer is not None:
                self.previewed.emit(answer)
        elif kind is Kind.VIEW:
            self._plan(self._backend.view_windows(content))
        else:
            self._backend.encode(content)
            self._n_encoded += 1
            self.encoded.emit(self._n_encoded, self._n_planned)

    def _open(self, spec: SceneSpec | None) -> None:
        self._n_planned = self._n_encoded = 0
        if spec is None:
            self._backend.close_scene()
        else:
            self.opened.emit(spec, self._backend.open(spec, WorkerProgress(self)))

    def _plan(self, windows: Any) -> None:
        chips = list(windows)
        self._n_planned, self._n_encoded = len(chips), 0
        self._mailbox.put_chips(chips)
        self.encoded.emit(0, len(chips))

    def _fail(self, message: Message, sentence: str) -> None:
        kind, content = message
        if kind is Kind.HOVER:
            return  # nobody asked for it; a click there gets the sentence
        if kind is Kind.OPEN:
            self._backend.close_scene()
            self.failed.emit(Failure(sentence, spec=content))
        elif kind is Kind.PROMPT:
            self.failed.emit(Failure(sentence, request_id=content.request_id))
        else:
            self._mailbox.clear_chips()
            self.failed.emit(Failure(sentence))
