"""Where a search asks the model: peaks of the similarity to the examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max

from ...models.similarity import CELLS, FloatArray
from ..raster.windows import Bounds
from .similar_windows import WindowFeatures

# Peaks are looked for where the similarity is at least this far from the raster's mean to that of the examples.
_PEAK_SHARE = 0.3
# ... or this many standard deviations above the mean, whichever is less: a single example resembles itself too well.
_PEAK_DEVIATIONS = 0.4
# Distance between two points that are asked, in sides of a square of the examples' area.
_POINT_SPACING = 0.35
# The similarity is smoothed by this much of such a side, so that it peaks in an object and not on a chimney.
_SMOOTHING = 0.15


def points_to_ask(
    seen: WindowFeatures, similarity: FloatArray, core: Bounds, *, side_px: float, of_examples: float
) -> npt.NDArray[np.float64]:
    """Places (N, 2; raster pixels) in `core` to ask at.

    `similarity` (CELLS, CELLS) of the window and `of_examples`, their own, in standard deviations above the raster's
    mean; `side_px` of a square as large as an example.
    """
    cell_px = seen.window.size_px / CELLS
    side = side_px / cell_px
    smooth = gaussian_filter(np.where(seen.valid, similarity, similarity.min()), side * _SMOOTHING)
    least = min(_PEAK_SHARE * of_examples, _PEAK_DEVIATIONS)
    peaks = peak_local_max(  # type: ignore[no-untyped-call]  # without types
        smooth, min_distance=max(1, round(_POINT_SPACING * side)), threshold_abs=least, exclude_border=False
    )
    rows, cols = peaks[seen.valid[peaks[:, 0], peaks[:, 1]]].T
    xy = np.stack([cols + 0.5, rows + 0.5], axis=1) * cell_px + (seen.window.col_off, seen.window.row_off)
    found: npt.NDArray[np.float64] = xy[(xy >= core[:2]).all(axis=1) & (xy < core[2:]).all(axis=1)]
    return found
