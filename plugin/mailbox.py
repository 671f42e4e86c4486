"""How the GUI thread hands work to the worker: one place per kind, the newest wins, urgent kinds go first."""

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
    VIEW = 4
    CHIP = 5


class Message(NamedTuple):
    """A piece of work: its kind and what it is about."""

    kind: Kind
    content: Any


class Mailbox:
    """At most one message per kind, and a queue of chips. Thread-safe; `take` blocks until work is there."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._newest: dict[Kind, Any] = {}
        self._chips: deque[Any] = deque()

    def put(self, kind: Kind, content: Any = None) -> None:
        """Leave a message in place of an older one of its kind. Opening a scene makes all else pointless."""
        with self._changed:
            if kind in (Kind.OPEN, Kind.STOP):
                self._newest.clear()
                self._chips.clear()
            elif kind is Kind.VIEW:
                self._chips.clear()
            self._newest[kind] = content
            self._changed.notify()

    def put_chips(self, chips: list[Any]) -> None:
        """Queue chips in place of the ones before; a newer view or scene that waits makes them void."""
        with self._changed:
            if not {Kind.STOP, Kind.OPEN, Kind.VIEW} & self._newest.keys():
                self._chips = deque(chips)
                self._changed.notify()

    def clear_chips(self) -> int:
        """Forget the chips that were not taken yet, and return how many they were."""
        with self._changed:
            n_chips = len(self._chips)
            self._chips.clear()
            return n_chips

    def take(self) -> Message:
        """Wait for work and return the most urgent piece."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._chips)
            if self._newest:
                kind = min(self._newest)
                return Message(kind, self._newest.pop(kind))
            return Message(Kind.CHIP, self._chips.popleft())

    def is_waiting(self, *kinds: Kind) -> bool:
        """Say whether a message of one of these kinds waits."""
        with self._changed:
            return any(kind in self._newest for kind in kinds)
