"""Who has the tool's clicks and scribbles instead of the object in hand: the class map, find similar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .exchange import Point


class ClickTaker(Protocol):
    """What can have clicks and scribbles; coordinates are in the raster's CRS."""

    def wants_clicks(self) -> bool:
        """Say whether the next click is its own."""

    def click(self, point_raster: Point, is_foreground: bool) -> None:
        """Take a click."""

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Take a line."""


class Guest(NamedTuple):
    """A click taker, what clicks do there in a sentence, and what takes the newest one back, if anything does."""

    taker: ClickTaker
    hint: str
    undo: Callable[[], None] | None


class ClickTakers:
    """All that may have clicks, in the order of their right to them."""

    def __init__(self) -> None:
        self._guests: list[Guest] = []

    def add(self, taker: ClickTaker, *, hint: str, undo: Callable[[], None] | None = None) -> None:
        """Let clicks and scribbles go elsewhere while `taker` wants them; the first that wants them gets them."""
        self._guests.append(Guest(taker, hint, undo))

    @property
    def present(self) -> Guest | None:
        """Who has the clicks now, None where they mean the object."""
        return next((guest for guest in self._guests if guest.taker.wants_clicks()), None)
