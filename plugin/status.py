"""What the status line says. Pure text, no Qt."""

from __future__ import annotations

import html
from dataclasses import dataclass
from enum import Enum, auto

from .exchange import SceneInfo

SETTINGS_LINK, RETRY_LINK, TOOL_LINK, CANCEL_LINK, ZOOM_LINK = "settings", "retry", "tool", "cancel", "zoom"


class Phase(Enum):
    """How far a raster is from being clickable."""

    NO_RASTER = auto()
    CLOSED = auto()
    OPENING = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Status:
    """Everything that the status line depends on.

    `sentence` is what the worker said last while opening, or why it failed; `n_encoded` of the `n_windows` of the
    view are encoded; the worker still has `n_waiting` to do, None where it looked at no view or failed there;
    `fraction` (0 to 1) of opening or None; `n_cached` files of `cached_bytes` in all are in the cache on disk.
    """

    phase: Phase = Phase.NO_RASTER
    raster_name: str = ""
    model_title: str = ""
    info: SceneInfo | None = None
    sentence: str = ""
    fraction: float | None = None
    n_encoded: int = 0
    n_windows: int = 0
    n_waiting: int | None = None
    is_tool_active: bool = False
    is_waiting: bool = False
    is_in_view: bool = True
    n_cached: int = 0
    cached_bytes: int = 0

    def headline(self) -> str:
        """Return what is going on, as HTML with links to what can be done about it."""
        if self.phase is Phase.NO_RASTER:
            return "Choose a raster layer to begin, or load the sample scene from the SegAdapt menu."
        if self.phase is Phase.FAILED:
            remedies = f"{_link(SETTINGS_LINK, 'Settings')} · {_link(RETRY_LINK, 'Try again')}"
            return f"{html.escape(self.sentence)} {remedies}"
        if self.phase is Phase.CLOSED:
            return f"{_link(TOOL_LINK, 'Start segmenting')} {html.escape(self.raster_name)}."
        if self.phase is Phase.OPENING:
            sentence = self.sentence or f"Loading {self.model_title} for {self.raster_name}…"
            return f"{html.escape(sentence)} {_link(CANCEL_LINK, 'Cancel')}"
        return self._ready_headline()

    def device_line(self) -> str:
        """Return the model, where it runs and why, as plain text; empty before it does."""
        if self.info is None or self.phase is not Phase.READY:
            return ""
        return f"{self.info.model} on {self.info.reason}"

    def cache_line(self) -> str:
        """Return what the cache on disk holds, as plain text; empty where it is empty or not known yet."""
        if not self.n_cached:
            return ""
        windows = "1 window" if self.n_cached == 1 else f"{self.n_cached:,} windows"
        return f"Cache: {windows}, {_size_text(self.cached_bytes)}"

    def bar(self) -> tuple[int, int] | None:
        """Return value and maximum of the progress bar, maximum 0 for "busy", None for no bar."""
        if self.phase is Phase.OPENING:
            return (0, 0) if self.fraction is None else (round(100 * self.fraction), 100)
        if self.phase is Phase.READY and self._is_encoding():
            return self.n_encoded, self.n_windows
        return None

    def _is_encoding(self) -> bool:
        return bool(self.n_waiting) and self.n_encoded < self.n_windows and self.is_tool_active

    def _ready_headline(self) -> str:
        if self.is_waiting:
            return "Segmenting…"
        if not self.is_tool_active:
            return f"{_link(TOOL_LINK, 'Go on segmenting')} {html.escape(self.raster_name)}."
        if not self.is_in_view:
            return f"{html.escape(self.raster_name)} is not in the view. {_link(ZOOM_LINK, 'Zoom to it')}"
        if self.n_waiting is None:
            return "Ready: click on an object."
        if self._is_encoding():
            return f"Encoding the view, {self.n_encoded} of {self.n_windows}; a click is answered in between."
        return "The view is encoded: masks appear under the mouse, clicks are answered at once."


def _link(target: str, text: str) -> str:
    return f'<a href="{target}">{html.escape(text)}</a>'


def _size_text(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
