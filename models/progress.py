"""How long work reports to whoever started it, without knowing QGIS.

The protocol lives in the lowest layer because downloads and training report as well as raster jobs do,
and imports only go down.
"""

from __future__ import annotations

from typing import Protocol

from .errors import Cancelled


class Progress(Protocol):
    """What a caller hands to long work. Implementations must be safe to call from a worker thread."""

    def set_fraction(self, fraction: float) -> None:
        """Report how much is done, 0 to 1."""

    def info(self, text: str) -> None:
        """Tell the user one sentence."""

    def is_cancelled(self) -> bool:
        """Say whether the user asked to stop."""


class NullProgress:
    """Progress for tests and scripts: silent and never cancelled."""

    def set_fraction(self, fraction: float) -> None:
        """Ignore the fraction."""

    def info(self, text: str) -> None:
        """Ignore the text."""

    def is_cancelled(self) -> bool:
        """Return False."""
        return False


class StepProgress:
    """The part `start`..`end` (fractions, 0 to 1) of another progress, as a progress of its own."""

    def __init__(self, progress: Progress, start: float, end: float) -> None:
        self._progress, self._start, self._end = progress, start, end

    def set_fraction(self, fraction: float) -> None:
        """Report `fraction` of this part to the whole."""
        self._progress.set_fraction(self._start + fraction * (self._end - self._start))

    def info(self, text: str) -> None:
        """Hand the text on."""
        self._progress.info(text)

    def is_cancelled(self) -> bool:
        """Ask the whole."""
        return self._progress.is_cancelled()


def raise_if_cancelled(progress: Progress) -> None:
    """Raise `Cancelled` when the user asked to stop; call it between batches."""
    if progress.is_cancelled():
        raise Cancelled("Stopped at the user's request.")


def duration(seconds: float) -> str:
    """A time in words, no finer than anybody wants to know: "80 s", "12 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
