"""Which windows a click gets: what the map tool encodes ahead is what answers look at."""

from __future__ import annotations

import math

from ..raster.reader import RasterReader
from ..raster.windows import WINDOW_SIZES_PX, Bounds, SquareWindow, lattice_window, lattice_windows
from .placed_mask import intersection

# A view zoomed far out needs more windows than anyone waits for; the ones around its centre come first.
_MOST_VIEW_WINDOWS = 48
# What a roof and its surroundings need.
_CLICK_WINDOW_M = 77.0
# A window so many times as wide as an object leaves it room to grow.
_ROOM = 4


def click_window_px(reader: RasterReader) -> int:
    """Side of the window in which a new object is looked at first: about 77 m, the power of two nearest to it.

    Measured on roofs at 30 cm: an IoU of 0.9 takes 10.7 clicks in windows of 256 px and 11.6 in windows of 1024 px
    (docs/interactive.md). Without a known scale it is 512 px.
    """
    if reader.gsd_m is None or not math.isfinite(reader.gsd_m):
        return 2 * WINDOW_SIZES_PX[0]
    steps = round(math.log2(_CLICK_WINDOW_M / reader.gsd_m / WINDOW_SIZES_PX[0]))
    return WINDOW_SIZES_PX[min(max(steps, 0), len(WINDOW_SIZES_PX) - 1)]


def correction_window(
    reader: RasterReader, window: SquareWindow, object_bounds_px: Bounds, prompts_bounds_px: Bounds
) -> SquareWindow:
    """The window in which the answer in `window` is corrected: a closer one for a small object, else the same.

    The first click needs the surroundings to tell what is meant; later ones need finer cells. Of roofs below 36 m2 at
    30 cm a correction in windows of 128 px in place of 256 saves more than three clicks to an IoU of 0.9
    (docs/interactive.md).
    """
    left, top, right, bottom = object_bounds_px
    size_px = click_window_px(reader) // 2
    if size_px >= window.size_px or max(right - left, bottom - top) * _ROOM > size_px:
        return window
    closer = lattice_window((left + right) / 2, (top + bottom) / 2, size_px=size_px, shape=reader.shape)
    return closer if closer.contains_bounds(prompts_bounds_px) else window


def window_px_for_view(reader: RasterReader, view_bounds_map: Bounds) -> int:
    """Side of the windows for a view (as in `view_windows`).

    `click_window_px`, unless the view is so wide that what is clicked must be large: then an eighth of it.
    """
    left, top, right, bottom = map_bounds_px(reader, view_bounds_map)
    least_px = max(click_window_px(reader), max(right - left, bottom - top) / 8)
    return next((size_px for size_px in WINDOW_SIZES_PX if size_px >= least_px), WINDOW_SIZES_PX[-1])


def view_windows(reader: RasterReader, view_bounds_map: Bounds) -> list[SquareWindow]:
    """The windows that clicks in a view can get, those in its centre first, to be encoded before a click.

    `view_bounds_map`: xmin, ymin, xmax, ymax in the raster's CRS. Empty where the view shows none of the
    raster; at most 48, for a view zoomed far out.
    """
    bounds = map_bounds_px(reader, view_bounds_map)
    if not all(math.isfinite(value) for value in bounds):
        return []
    size_px = window_px_for_view(reader, view_bounds_map)
    seen = intersection(bounds, (0, 0, reader.shape[1], reader.shape[0]))
    x, y = (seen[0] + seen[2]) / 2, (seen[1] + seen[3]) / 2
    # Only the neighbourhood of the centre is listed, since a view of a whole mosaic has millions of windows.
    reach = math.isqrt(_MOST_VIEW_WINDOWS) * size_px
    near = intersection(seen, (x - reach, y - reach, x + reach, y + reach))
    windows = lattice_windows(near, size_px=size_px, shape=reader.shape)

    def distance(window: SquareWindow) -> tuple[float, SquareWindow]:
        half = window.size_px / 2
        return math.hypot(window.col_off + half - x, window.row_off + half - y), window

    return sorted(windows, key=distance)[:_MOST_VIEW_WINDOWS]


def map_bounds_px(reader: RasterReader, bounds_map: Bounds) -> Bounds:
    """Bounds in raster pixels of a rectangle in map coordinates, which a rotated raster turns."""
    xmin, ymin, xmax, ymax = bounds_map
    corners = reader.to_pixels([(xmin, ymin), (xmin, ymax), (xmax, ymin), (xmax, ymax)])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)
