"""Who has the tool's clicks and scribbles instead of the object in hand: the class map, find similar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .exchange import Point


class ClickTaker(Protocol):
    """What can have clicks and scribbles, and takes its own back; coordinates are in the raster's CRS."""

    def wants_clicks(self) -> bool:
        """Say whether the next click is its own."""

    def click(self, point_raster: Point, is_foreground: bool) -> None:
        """Take a click."""

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Take a line."""

    @property
    def undo_text(self) -> str:
        """What `undo` takes back, in a word; "" where undo is not its business, or there is nothing."""

    @property
    def redo_text(self) -> str:
        """What `redo` brings back, as `undo_text` says it."""

    def undo(self) -> None:
        """Take the newest thing back."""

    def redo(self) -> None:
        """Bring back what was taken back last."""


class Guest(NamedTuple):
    """A click taker, and what clicks do there in a sentence."""

    taker: ClickTaker
    hint: str


class ClickTakers:
    """All that may have clicks, in the order of their right to them."""

    def __init__(self) -> None:
        self._guests: list[Guest] = []

    def add(self, taker: ClickTaker, *, hint: str) -> None:
        """Let clicks and scribbles go elsewhere while `taker` wants them; the first that wants them gets them."""
        self._guests.append(Guest(taker, hint))

    @property
    def present(self) -> Guest | None:
        """Who has the clicks now, None where they mean the object."""
        return next((guest for guest in self._guests if guest.taker.wants_clicks()), None)

    @property
    def undoing(self) -> ClickTaker | None:
        """Who has something to take back, None for nobody."""
        return next((guest.taker for guest in self._guests if guest.taker.undo_text), None)

    @property
    def redoing(self) -> ClickTaker | None:
        """Who has something to bring back, None for nobody."""
        return next((guest.taker for guest in self._guests if guest.taker.redo_text), None)
