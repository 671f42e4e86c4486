"""Threads that work for one job and end with it, whoever fails first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")
_POLL_S = 0.1


class _Stopped(Exception):  # noqa: N818 - no error: another thread failed
    """The job ends early."""


class Lanes:
    """Threads joined by queues of bounded size: `with Lanes() as lanes: lanes.start(...)`.

    Leaving the block waits for the threads. What one of them raises is raised there, and ends the others.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None

    def __enter__(self) -> Lanes:
        """Return the lanes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the threads; stop them where the body failed."""
        if error is not None:
            self._stop.set()
        for thread in self._threads:
            thread.join()
        first, self._error = self._error, None
        if first is not None and (error is None or isinstance(error, _Stopped)):
            raise first

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own."""

        def run() -> None:
            try:
                work()
            except _Stopped:
                pass
            except BaseException as error:
                self._error = self._error or error
                self._stop.set()

        thread = threading.Thread(target=run, name="SegAdapt", daemon=True)
        self._threads.append(thread)
        thread.start()

    def put(self, queue: Queue[_T], item: _T) -> None:
        """Put an item into a queue once there is room."""
        while not self._stop.is_set():
            try:
                return queue.put(item, timeout=_POLL_S)
            except Full:
                continue
        raise _Stopped

    def items(self, queue: Queue[Any]) -> Iterator[Any]:
        """Yield what is put into a queue until None comes."""
        while not self._stop.is_set():
            try:
                item = queue.get(timeout=_POLL_S)
            except Empty:
                continue
            if item is None:
                return
            yield item
        raise _Stopped
