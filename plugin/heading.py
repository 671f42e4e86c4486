"""Which part of the raster is likely to be looked at next, to be encoded ahead; no Qt."""

from __future__ import annotations

from .exchange import Bounds, Point

# A view that moved further than this many of its sides was not panned but jumped.
_MOST_PAN_SIDES = 1.5
# How much a pan counts once the next one is made.
_MEMORY = 0.5


class Heading:
    """Where the user is panning to, from one settled view to the next. All in map units of the raster's CRS."""

    def __init__(self) -> None:
        self._view: Bounds | None = None
        self._sides = (0.0, 0.0)

    def forget(self) -> None:
        """Start anew, in another scene."""
        self._view, self._sides = None, (0.0, 0.0)

    def ahead(self, view: Bounds) -> Point | None:
        """Note a view and return (dx, dy) to the one beside it that comes next, None after a jump or a zoom."""
        before, self._view = self._view, view
        width, height = view[2] - view[0], view[3] - view[1]
        if before is None or not width > 0 or not height > 0:
            return None
        moved = (
            (view[0] + view[2] - before[0] - before[2]) / 2 / width,
            (view[1] + view[3] - before[1] - before[3]) / 2 / height,
        )
        is_zoomed = abs((before[2] - before[0]) / width - 1) > 0.01
        if is_zoomed or max(map(abs, moved)) > _MOST_PAN_SIDES:
            self._sides = (0.0, 0.0)
            return None
        self._sides = (_MEMORY * self._sides[0] + moved[0], _MEMORY * self._sides[1] + moved[1])
        length = max(map(abs, self._sides))
        if length < 0.01:  # nothing moved: a window was resized, a layer added
            return None
        return self._sides[0] / length * width, self._sides[1] / length * height
