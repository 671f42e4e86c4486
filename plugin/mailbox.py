"""How the GUI thread hands work to the worker: the newest of a kind wins, tasks queue, urgent kinds go first."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from threading import Condition
from typing import Any, NamedTuple


class Kind(IntEnum):
    """Kinds of work, the most urgent first."""

    STOP = 0
    OPEN = 1
    PROMPT = 2
    HOVER = 3
    TASK = 4
    VIEW = 5
    CHIP = 6


class Message(NamedTuple):
    """A piece of work: its kind and what it is about."""

    kind: Kind
    content: Any


class Mailbox:
    """At most one message per kind, a queue of tasks and one of chips. Thread-safe; `take` blocks until work is there.

    Urgent tasks go before the others, idle ones after all else; among themselves tasks are taken in the order in which
    they came. A task stays at the head of its queue until `finish` takes it out, so that longer ones are taken again
    and again.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._newest: dict[Kind, Any] = {}
        self._urgent_tasks: deque[Any] = deque()
        self._tasks: deque[Any] = deque()
        self._idle_tasks: deque[Any] = deque()
        self._chips: deque[Any] = deque()
        self._put_off: deque[Any] = deque()

    def put(self, kind: Kind, content: Any = None) -> None:
        """Leave a message in place of an older one of its kind. Opening a scene makes all else pointless."""
        with self._changed:
            if kind in (Kind.OPEN, Kind.STOP):
                self._newest.clear()
                for tasks in (self._urgent_tasks, self._tasks, self._idle_tasks):
                    tasks.clear()
            if kind in (Kind.OPEN, Kind.STOP, Kind.VIEW):
                self._forget_chips()
            self._newest[kind] = content
            self._changed.notify()

    def put_task(self, task: Any, *, is_urgent: bool = False, is_idle: bool = False) -> None:
        """Queue a task behind those of its urgency."""
        with self._changed:
            (self._urgent_tasks if is_urgent else self._idle_tasks if is_idle else self._tasks).append(task)
            self._changed.notify()

    def finish(self, task: Any) -> bool:
        """Take a task out of its queue. Return False where it is in none (any more)."""
        with self._changed:
            for queue in (self._urgent_tasks, self._tasks, self._idle_tasks):
                for position, queued in enumerate(queue):
                    if queued is task:
                        del queue[position]
                        return True
            return False

    def put_chips(self, chips: list[Any]) -> None:
        """Queue chips in place of the ones before; a newer view or scene that waits makes them void."""
        with self._changed:
            if not {Kind.STOP, Kind.OPEN, Kind.VIEW} & self._newest.keys():
                self._forget_chips()
                self._chips.extend(chips)
                self._changed.notify()

    def put_chip(self, chip: Any) -> None:
        """Let a chip be the next one; void where a newer view or scene waits."""
        with self._changed:
            if not {Kind.STOP, Kind.OPEN, Kind.VIEW} & self._newest.keys():
                self._chips.appendleft(chip)
                self._changed.notify()

    def put_off(self, chip: Any) -> None:
        """Keep a chip that cannot be done yet until `resume_chips`; void where a newer view or scene waits."""
        with self._changed:
            if not {Kind.STOP, Kind.OPEN, Kind.VIEW} & self._newest.keys():
                self._put_off.append(chip)

    def resume_chips(self) -> None:
        """Queue the chips that were put off again."""
        with self._changed:
            self._chips.extend(self._put_off)
            self._put_off.clear()
            self._changed.notify()

    def clear_chips(self) -> int:
        """Forget the chips that were not taken yet, and return how many they were."""
        with self._changed:
            return self._forget_chips()

    def take(self) -> Message:
        """Wait for work and return the most urgent piece."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            task = next(iter(self._urgent_tasks or self._tasks), None)
            kind = min(self._newest, default=Kind.CHIP)
            if task is not None and kind > Kind.TASK:
                return Message(Kind.TASK, task)
            if self._newest:
                return Message(kind, self._newest.pop(kind))
            if self._chips:
                return Message(Kind.CHIP, self._chips.popleft())
            return Message(Kind.TASK, self._idle_tasks[0])

    def is_waiting(self, *kinds: Kind) -> bool:
        """Say whether a message of one of these kinds waits (those that replace each other)."""
        with self._changed:
            return any(kind in self._newest for kind in kinds)

    def _has_work(self) -> bool:
        return bool(self._newest or self._urgent_tasks or self._tasks or self._chips or self._idle_tasks)

    def _forget_chips(self) -> int:
        n_chips = len(self._chips) + len(self._put_off)
        self._chips.clear()
        self._put_off.clear()
        return n_chips
