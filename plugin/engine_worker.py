"""The one thread that computes: it owns the engine, takes work from a mailbox and answers by signal."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from threading import Event
from typing import Any

from qgis.core import Qgis, QgsMessageLog
from qgis.PyQt.QtCore import QObject, QThread, pyqtSignal

from ..models.errors import Cancelled, ModelError
from ..processing.environment import EnvironmentUnavailable
from ..processing.errors import JobError, RasterError
from .backend import Backend, RasterChangedError
from .exchange import Bounds, Failure, Point, PromptInput, SceneSpec, Task
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
            self._send_fraction(fraction)

    def info(self, text: str) -> None:
        """Send the sentence."""
        self._worker.send("informed", text)

    def is_cancelled(self) -> bool:
        """Say whether there is something newer to do."""
        return self._worker.is_overtaken()

    def _send_fraction(self, fraction: float) -> None:
        self._worker.send("progressed", fraction)


class TaskProgress(WorkerProgress):
    """Progress of a task; cancelled as well when the task is."""

    def __init__(self, worker: EngineWorker, task: Task) -> None:
        super().__init__(worker)
        self._task = task

    def is_cancelled(self) -> bool:
        """Say whether the task is wanted no more."""
        return super().is_cancelled() or self._worker.is_cancelled(self._task)

    def _send_fraction(self, fraction: float) -> None:
        self._worker.send("task_progressed", self._task, fraction)


class EngineWorker(QThread):
    """Takes work from a mailbox until it is told to stop. The newest request wins; chips and tasks yield to clicks.

    Signals carry: `opened` SceneSpec and SceneInfo; `answered` and `previewed` Answer; `covered` Coverage of the
    view and how many of its chips are still to be encoded, None after a failure; `worked` a task and one of its
    items, `done` a task at its end, `task_progressed` a task and a fraction; `progressed` a fraction of opening;
    `informed` a sentence; `fell_back` SceneInfo and a sentence, when the device failed and the CPU goes on;
    `outdated` a sentence, when the raster changed on disk; `failed` Failure.

    All are emitted in the thread of this object (the GUI's), and none for a scene that was closed or replaced,
    for a task that was cancelled, or after `stop`: such results are dropped on the way.
    """

    opened = pyqtSignal(object, object)
    answered = pyqtSignal(object)
    previewed = pyqtSignal(object)
    covered = pyqtSignal(object, object)
    worked = pyqtSignal(object, object)
    done = pyqtSignal(object)
    task_progressed = pyqtSignal(object, float)
    progressed = pyqtSignal(float)
    informed = pyqtSignal(str)
    fell_back = pyqtSignal(object, str)
    outdated = pyqtSignal(str)
    failed = pyqtSignal(object)

    _sent = pyqtSignal(int, str, object)

    def __init__(self, backend: Backend, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._backend = backend
        self._mailbox = Mailbox()
        self._stopping = Event()
        self._n_waiting: int | None = None
        self._view: Bounds | None = None
        self._wanted = 0  # number of the scene that the GUI wants; written by the GUI thread only
        self._present = 0  # number of the scene that is open; written by the worker only
        self._cancelled: set[Task] = set()
        self._running: dict[Task, Iterator[Any]] = {}
        self._sent.connect(self._deliver)

    def open_scene(self, spec: SceneSpec) -> None:
        """Open a scene in place of the present one; what waits for the present one is forgotten."""
        self._put_scene(spec)

    def close_scene(self) -> None:
        """Let go of the raster, so that its file can be replaced."""
        self._put_scene(None)

    def ask(self, prompt: PromptInput) -> None:
        """Ask for a mask; an older question that waits is forgotten."""
        self._mailbox.put(Kind.PROMPT, prompt)

    def ask_preview(self, prompt: PromptInput) -> None:
        """Ask for a mask that is shown only if it costs nothing."""
        self._mailbox.put(Kind.HOVER, prompt)

    def do(self, task: Task) -> None:
        """Queue a task. It ends with `done` or `failed`, or is dropped with its scene or by `cancel`."""
        self._mailbox.put_task(task, is_urgent=task.is_urgent, is_idle=task.is_idle)

    def cancel(self, task: Task) -> None:
        """Stop a task or take it out of the queue; nothing of it is emitted from now on."""
        self._cancelled.add(task)
        if not self.isRunning():
            self._mailbox.finish(task)
            self._cancelled.discard(task)

    def encode_view(self, view_map: Bounds, *, ahead_map: Point | None = None) -> None:
        """Encode what clicks in this view will need, in place of an older view.

        `ahead_map`: (dx, dy) in map units from this view to where the user is panning; some of what a view
        there needs is encoded afterwards.
        """
        self._mailbox.put(Kind.VIEW, (view_map, ahead_map))

    def resume_encoding(self) -> None:
        """Encode what had to wait for its pixels, which are there now."""
        self._mailbox.resume_chips()

    def pause_encoding(self) -> None:
        """Stop encoding after the chip at hand."""
        self._mailbox.clear_chips()

    def is_overtaken(self) -> bool:
        """Say whether a newer scene or the end waits."""
        return self._stopping.is_set() or self._wanted != self._present

    def is_cancelled(self, task: Task) -> bool:
        """Say whether a task is wanted no more."""
        return task in self._cancelled

    def send(self, name: str, *values: Any) -> None:
        """Have the signal of that name emitted in the GUI thread, unless its scene is closed by then."""
        self._sent.emit(self._present, name, values)

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
            self._drop_tasks()
            self._backend.close()

    def _put_scene(self, spec: SceneSpec | None) -> None:
        self._wanted += 1
        self._cancelled.clear()  # all tasks are void now
        self._mailbox.put(Kind.OPEN, (self._wanted, spec))

    def _deliver(self, number: int, name: str, values: tuple[Any, ...]) -> None:
        """Emit a signal for the worker, in the GUI thread: only here it is known what is still wanted."""
        if self._stopping.is_set() or number != self._wanted:
            return
        if name == "dropped":
            self._cancelled.discard(values[0])  # nothing of it can come after this
            return
        if name in ("worked", "done", "task_progressed") and values[0] in self._cancelled:
            return
        if name == "failed" and values[0].task in self._cancelled:
            return
        getattr(self, name).emit(*values)

    def _handle(self, message: Message, *, is_second_try: bool = False) -> None:
        try:
            self._do(message)
        except Cancelled:
            self._end_task(message)
        except RasterChangedError as error:
            self._end_task(message)
            self._mailbox.clear_chips()
            self.send("outdated", str(error))
        except (*_EXPECTED, RuntimeError, MemoryError) as error:
            if not is_second_try and self._falls_back(error):
                self._try_again(message)
            elif isinstance(error, MemoryError):
                self._fail(message, "Memory is used up; close other programs or choose a smaller model.")
            elif isinstance(error, _EXPECTED):
                self._fail(message, str(error))
            else:
                self._fail_unexpectedly(message, error)
        except Exception as error:
            self._fail_unexpectedly(message, error)

    def _falls_back(self, error: Exception) -> bool:
        """Let the CPU go on where the device failed, and say so."""
        try:
            info = self._backend.fall_back(error, WorkerProgress(self))
        except Exception:
            # The first failure is the one that the user can do something about.
            QgsMessageLog.logMessage(traceback.format_exc(), "SegAdapt", Qgis.MessageLevel.Critical)
            return False
        if info is None:
            return False
        self.send("fell_back", info, f"{_sentence(error)} SegAdapt goes on on the CPU.")
        return True

    def _try_again(self, message: Message) -> None:
        if message.kind is Kind.TASK:
            # What it has handed out already would come twice.
            self._fail(message, "The device failed in the middle of this; start it again.")
        else:
            self._handle(message, is_second_try=True)

    def _fail_unexpectedly(self, message: Message, error: Exception) -> None:
        # The thread must live on, and the user must hear of it: an exception that leaves run() ends QGIS.
        QgsMessageLog.logMessage(traceback.format_exc(), "SegAdapt", Qgis.MessageLevel.Critical)
        name = type(error).__name__
        self._fail(message, f"Unexpected {name}: {error}; the log messages panel, tab SegAdapt, says more.")

    def _do(self, message: Message) -> None:
        kind, content = message
        if kind is Kind.OPEN:
            self._open(*content)
        elif kind is Kind.PROMPT:
            found = self._backend.answer(content)
            self.send("answered", found)
            self._show_coverage()
            for window in self._backend.next_windows(found):
                self._mailbox.put_chip((window, False))
        elif kind is Kind.HOVER:
            answer = self._backend.preview(content)
            if answer is not None:
                self.send("previewed", answer)
        elif kind is Kind.TASK:
            self._step(content)
        elif kind is Kind.VIEW:
            self._plan(*content)
        else:
            self._encode(*content)

    def _open(self, number: int, spec: SceneSpec | None) -> None:
        self._present = number
        self._drop_tasks()
        self._n_waiting = self._view = None
        if spec is None:
            self._backend.close_scene()
        else:
            self.send("opened", spec, self._backend.open(spec, WorkerProgress(self)))

    def _step(self, task: Task) -> None:
        """Take a task to its next item, or to its end."""
        message = Message(Kind.TASK, task)
        if task in self._cancelled:
            raise Cancelled
        if task not in self._running:
            self._running[task] = self._backend.run_task(task, TaskProgress(self, task))
        try:
            item = next(self._running[task])
        except StopIteration:
            self._end_task(message)
            self.send("done", task)
        else:
            self.send("worked", task, item)

    def _end_task(self, message: Message) -> None:
        if message.kind is Kind.TASK:
            self._mailbox.finish(message.content)
            _close(self._running.pop(message.content, None))
            if message.content in self._cancelled:
                self.send("dropped", message.content)

    def _drop_tasks(self) -> None:
        while self._running:
            _close(self._running.popitem()[1])

    def _plan(self, view_map: Bounds, ahead_map: Point | None) -> None:
        windows = list(self._backend.view_windows(view_map))
        ahead = [] if ahead_map is None else list(self._backend.ahead_windows(view_map, ahead_map))
        self._view, self._n_waiting = view_map, len(windows)
        self._mailbox.put_chips(
            [(window, True) for window in windows] + [(window, False) for window in ahead if window not in windows]
        )
        self._show_coverage()

    def _encode(self, window: Any, is_in_view: bool) -> None:
        if self._backend.encode(window) is False:
            self._mailbox.put_off((window, is_in_view))
            return
        if is_in_view and self._n_waiting is not None:
            self._n_waiting -= 1
            self._show_coverage()

    def _show_coverage(self) -> None:
        if self._view is not None:
            self.send("covered", self._backend.coverage(self._view), self._n_waiting)

    def _fail(self, message: Message, sentence: str) -> None:
        kind, content = message
        if kind is Kind.HOVER:
            return  # nobody asked for it; a click there gets the sentence
        if kind is Kind.OPEN:
            self._backend.close_scene()
            self.send("failed", Failure(sentence, spec=content[1]))
        elif kind is Kind.PROMPT:
            self.send("failed", Failure(sentence, request_id=content.request_id))
        elif kind is Kind.TASK:
            self._end_task(message)
            self.send("failed", Failure(sentence, task=content))
        else:
            self._mailbox.clear_chips()
            self._n_waiting = None
            self.send("failed", Failure(sentence))


def _close(running: Iterator[Any] | None) -> None:
    """Let a task that is dropped clean up (its `finally`); whatever goes wrong there concerns nobody any more."""
    close = getattr(running, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            QgsMessageLog.logMessage(traceback.format_exc(), "SegAdapt", Qgis.MessageLevel.Warning)


def _sentence(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"{first}."
