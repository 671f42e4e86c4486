"""The worker thread: tasks between clicks, failures of the device, and nothing stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any, ClassVar

import pytest
from qgis.PyQt.QtTest import QTest
from segadapt.models.errors import EngineError
from segadapt.models.progress import raise_if_cancelled
from segadapt.plugin.engine_worker import EngineWorker
from segadapt.plugin.exchange import Failure, PromptInput, SceneInfo, Task
from segadapt.processing.errors import JobError

VIEW = (590_000.0, 5_749_500.0, 590_500.0, 5_750_000.0)


@dataclass(frozen=True, eq=False)
class Count(Task):
    """Yields 0..n-1; waits for `gate` before each, and notes when it is closed."""

    n_items: int = 3
    gate: Event = field(default_factory=Event)
    ended: list[str] = field(default_factory=list)

    def run(self, segmenter: Any, progress: Any) -> Iterator[int]:
        try:
            for number in range(self.n_items):
                while not self.gate.wait(0.005):
                    raise_if_cancelled(progress)
                progress.set_fraction(number / self.n_items)
                yield number
        finally:
            self.ended.append("ended")


@dataclass(frozen=True, eq=False)
class Quick(Task):
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: Any, progress: Any) -> Iterator[str]:
        yield "quick"


@dataclass(frozen=True, eq=False)
class Broken(Task):
    error: Exception

    def run(self, segmenter: Any, progress: Any) -> Iterator[int]:
        yield 1
        raise self.error


class Log:
    """What the worker said, in its order."""

    def __init__(self, worker: EngineWorker) -> None:
        self.items: list[tuple[Any, ...]] = []
        for name in ("answered", "previewed", "worked", "done", "failed", "opened", "fell_back", "task_progressed"):
            getattr(worker, name).connect(self._slot(name))

    def _slot(self, name: str) -> Callable[..., None]:
        return lambda *values: self.items.append((name, *values))

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [item for item in self.items if item[0] in names]


def prompt(request_id: int) -> PromptInput:
    return PromptInput(request_id, ((590_100.0, 5_749_900.0),), (1,), None, VIEW)


def wait_for(is_true: Callable[[], Any], seconds: float = 30.0) -> None:
    for _ in range(int(seconds / 0.005)):
        if is_true():
            return
        QTest.qWait(5)
    raise AssertionError("Waited in vain.")


@pytest.fixture
def worker(backend: Any, qgis_app: Any) -> Iterator[EngineWorker]:
    worker = EngineWorker(backend)
    worker.start()
    yield worker
    for gate in (backend.gate, backend.encode_gate, backend.open_gate):
        gate.set()
    assert worker.stop()


@pytest.fixture
def log(worker: EngineWorker) -> Log:
    return Log(worker)


def opened_task(**values: Any) -> Count:
    task = Count(**values)
    task.gate.set()
    return task


def test_tasks_run_in_their_order_and_none_is_lost(worker: EngineWorker, log: Log) -> None:
    tasks = [opened_task(n_items=n) for n in (2, 0, 3)]
    for task in tasks:
        worker.do(task)
    wait_for(lambda: len(log.of("done")) == 3)
    first, second, third = tasks
    assert log.of("worked", "done") == [
        ("worked", first, 0), ("worked", first, 1), ("done", first), ("done", second),
        ("worked", third, 0), ("worked", third, 1), ("worked", third, 2), ("done", third),
    ]  # fmt: skip
    assert ("task_progressed", third, pytest.approx(2 / 3)) in log.items


def test_a_click_and_an_urgent_task_go_between_two_items(worker: EngineWorker, log: Log) -> None:
    task = Count(n_items=3)
    quick = Quick()
    worker.do(task)
    wait_for(lambda: task in worker._running)
    worker.ask(prompt(1))
    worker.ask_preview(prompt(2))
    worker.do(quick)
    task.gate.set()
    wait_for(lambda: ("done", task) in log.items)
    names = [
        item[:2] if item[0] in ("worked", "done") else item[0]
        for item in log.of("answered", "previewed", "worked", "done")
    ]
    assert names == [
        ("worked", task), "answered", "previewed", ("worked", quick), ("done", quick),
        ("worked", task), ("worked", task), ("done", task),
    ]  # fmt: skip


def test_a_cancelled_task_says_nothing_more_and_the_next_one_runs(worker: EngineWorker, log: Log) -> None:
    running, waiting, last = Count(), Count(), opened_task(n_items=1)
    for task in (running, waiting, last):
        worker.do(task)
    wait_for(lambda: running in worker._running)
    worker.cancel(running)
    worker.cancel(waiting)
    wait_for(lambda: ("done", last) in log.items)
    assert {item[1] for item in log.of("worked", "done", "failed")} == {last}
    assert running.ended == ["ended"]
    assert waiting.ended == []  # it never began
    wait_for(lambda: not worker._cancelled)  # nothing is kept of them
    assert worker._running == {}


def test_another_scene_drops_the_tasks_of_the_old_one(worker: EngineWorker, log: Log) -> None:
    running, waiting = Count(), Count()
    worker.do(running)
    worker.do(waiting)
    wait_for(lambda: running in worker._running)
    worker.close_scene()
    wait_for(lambda: running.ended)
    fresh = opened_task(n_items=1)
    worker.do(fresh)
    wait_for(lambda: ("done", fresh) in log.items)
    assert {item[1] for item in log.of("worked", "done", "failed")} == {fresh}
    assert waiting.ended == []


def test_what_was_under_way_when_its_scene_was_closed_is_never_said(
    worker: EngineWorker, log: Log, backend: Any
) -> None:
    backend.gate.clear()
    worker.ask(prompt(1))
    wait_for(lambda: backend.prompts)
    worker.close_scene()
    backend.gate.set()
    wait_for(lambda: "close_scene" in backend.calls)
    QTest.qWait(30)
    assert log.items == []
    # Also where the answer was on its way already: the worker is done, and the GUI has not looked yet.
    worker.ask(prompt(2))
    while backend.calls.count("answer") < 2:
        worker.msleep(1)
    worker.msleep(30)
    worker.close_scene()
    QTest.qWait(30)
    assert log.items == []
    worker.ask(prompt(3))
    wait_for(lambda: log.of("answered"))
    assert [item[1].request_id for item in log.of("answered")] == [3]


@pytest.mark.parametrize("error", [JobError("No objects yet; accept one."), ValueError("odd"), MemoryError()])
def test_a_task_that_fails_says_so_and_ends(worker: EngineWorker, log: Log, error: Exception) -> None:
    broken, fresh = Broken(error), opened_task(n_items=1)
    worker.do(broken)
    worker.do(fresh)
    wait_for(lambda: ("done", fresh) in log.items)
    (failed,) = log.of("failed")
    assert failed[1].task is broken
    assert failed[1].sentence == str(error) or failed[1].sentence.startswith(("Unexpected ValueError: odd", "Memory"))
    assert ("done", broken) not in log.items


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device lost"), EngineError("CUDA has not enough memory")])
def test_a_device_that_fails_in_mid_click_is_replaced_and_the_click_answered(
    worker: EngineWorker, log: Log, backend: Any, error: Exception
) -> None:
    backend.fallback = SceneInfo("scene", "Fake", "cpu", "CPU, because cuda:0 failed.")
    backend.fail["answer"] = error
    worker.ask(prompt(7))
    wait_for(lambda: log.of("answered"))
    fell_back, answered = log.items
    assert fell_back[:2] == ("fell_back", backend.fallback)
    assert fell_back[2] == f"{error}. SegAdapt goes on on the CPU."
    assert answered[1].request_id == 7


def test_a_device_that_fails_twice_is_a_sentence(worker: EngineWorker, log: Log, backend: Any) -> None:
    backend.fallback = SceneInfo("scene", "Fake", "cpu", "CPU, because cuda:0 failed.")
    answer = backend.answer

    def fail(prompt: Any) -> Any:
        answer(prompt)
        raise RuntimeError("CUDA error: gone")

    backend.answer = fail
    worker.ask(prompt(7))
    wait_for(lambda: log.of("failed"))
    assert backend.calls.count("answer") == 2
    failure = log.of("failed")[0][1]
    assert isinstance(failure, Failure)
    assert failure.request_id == 7


def test_a_device_that_fails_in_a_task_ends_the_task_only(worker: EngineWorker, log: Log, backend: Any) -> None:
    backend.fallback = SceneInfo("scene", "Fake", "cpu", "CPU, because cuda:0 failed.")
    broken = Broken(RuntimeError("CUDA error: device lost"))
    worker.do(broken)
    worker.ask(prompt(1))
    wait_for(lambda: log.of("failed") and log.of("answered"))
    assert log.of("failed")[0][1] == Failure("The device failed in the middle of this; start it again.", task=broken)
    assert len(log.of("fell_back")) == 1


def test_a_chip_that_waits_for_its_pixels_is_encoded_when_they_are_there(worker: EngineWorker, backend: Any) -> None:
    missing, encoded, said = {1}, [], []

    def encode(window: int) -> bool:
        if window in missing:
            return False
        encoded.append(window)
        return True

    backend.encode = encode
    worker.covered.connect(lambda _coverage, n_waiting: said.append(n_waiting))
    worker.encode_view(VIEW)
    wait_for(lambda: 1 in said)
    QTest.qWait(20)
    assert encoded == [0, 2]
    missing.clear()
    worker.resume_encoding()
    wait_for(lambda: 0 in said)
    assert encoded == [0, 2, 1]


def test_windows_ahead_come_after_those_of_the_view_and_do_not_count(worker: EngineWorker, backend: Any) -> None:
    said: list[tuple[int, int]] = []
    worker.covered.connect(lambda coverage, n_waiting: said.append((coverage.n_encoded, n_waiting)))
    worker.encode_view(VIEW, ahead_map=(100.0, 0.0))
    wait_for(lambda: "encode ahead 1" in backend.calls)
    QTest.qWait(20)
    encodes = [call for call in backend.calls if call.startswith("encode")]
    assert encodes == ["encode 0", "encode 1", "encode 2", "encode ahead 0", "encode ahead 1"]
    assert said == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert backend.ahead == [(100.0, 0.0)]


def test_nothing_is_said_after_the_end(backend: Any, qgis_app: Any) -> None:
    worker = EngineWorker(backend)
    log = Log(worker)
    worker.start()
    task = Count()
    worker.do(task)
    wait_for(lambda: task in worker._running)
    assert worker.stop()
    assert task.ended == ["ended"]
    QTest.qWait(20)
    assert log.items == []
