"""What the map tool asks of a raster and what it is answered: prompts of one object, and masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import affine_transform
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ...models.adaptation.refiner import RefinerInput
from ...models.prompts import FOREGROUND, LOW_RES_PX
from ..errors import JobError
from ..raster.reader import RasterReader
from ..raster.windows import Bounds, SquareWindow
from .click_windows import map_bounds_px
from .objects import ObjectPrompts, scribble_points
from .placed_mask import intersection
from .scene import Scene


@dataclass(frozen=True, eq=False)
class Seen:
    """What the refiner saw of an answer, in which window, and whether it was one of three for a single click."""

    window: SquareWindow
    seen: RefinerInput
    is_choice: bool


@dataclass(frozen=True, eq=False)
class PreviousAnswer:
    """The answer that the user is refining: its window and low-resolution logits, float32 (256, 256).

    `trail`: what the refiner saw on the way, which `InteractiveSegmenter.learn` needs; empty elsewhere. `is_free`: it
    was chosen, or drawn, instead of a rectangle; what follows it is none either.
    """

    window: SquareWindow
    logits: npt.NDArray[np.float32]
    trail: tuple[Seen, ...] = ()
    is_free: bool = False

    def seen_from(self, window: SquareWindow) -> PreviousAnswer:
        """The same answer in a closer window inside its own; between cells logits are interpolated."""
        scale, here = window.size_px / LOW_RES_PX, self.window.size_px / LOW_RES_PX
        # Cells have their values in their middles.
        offset = [
            ((start + 0.5 * scale) - own) / here - 0.5
            for start, own in ((window.row_off, self.window.row_off), (window.col_off, self.window.col_off))
        ]
        logits = affine_transform(self.logits, np.diag([scale / here] * 2), offset, order=1, mode="nearest")
        return replace(self, window=window, logits=logits)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRequest:
    """What the user has drawn for one object so far.

    `points_map`: (x, y) in the raster's CRS; `labels`: 1 foreground, 0 background, one per point. `box_map`:
    xmin, ymin, xmax, ymax in the raster's CRS, or None. `scribbles_map`: lines along the object or beside it, with
    `scribble_labels`. `outline`: a polygon in the raster's CRS to start from. `window_px`: side of the window for a new
    object, None for `click_window_px`. `previous`: the answer to the prompts before the last one, None for a new
    object or after an undo. `multimask`: take the best of three masks for a single click. `tolerance` in map
    units and `min_area_m2` as in `SegmentOptions`.
    """

    request_id: int
    points_map: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box_map: Bounds | None = None
    scribbles_map: tuple[tuple[tuple[float, float], ...], ...] = ()
    scribble_labels: tuple[int, ...] = ()
    outline: BaseGeometry | None = None
    window_px: int | None = None
    previous: PreviousAnswer | None = None
    multimask: bool = True
    tolerance: float = 0.0
    min_area_m2: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskOption:
    """One of the masks that the model offers for an ambiguous prompt; fields as in `PromptResult`."""

    geometry: MultiPolygon
    score: float
    stability: float
    area_m2: float
    window: SquareWindow
    logits: npt.NDArray[np.float32]
    trail: tuple[Seen, ...] = ()
    is_free: bool = False

    def as_previous(self) -> PreviousAnswer:
        """What the next request about the same object takes along."""
        return PreviousAnswer(self.window, self.logits, self.trail, self.is_free)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptResult(MaskOption):
    """The answer to the request of the same id.

    `geometry` is in the raster's CRS and empty where the model found nothing. `score`: predicted IoU;
    `stability`: IoU of the mask between thresholds one above and one below; `area_m2`: on the ellipsoid, NaN
    without a CRS. `window` and `logits` make the `PreviousAnswer` of the next request. `options`: all masks that the
    model offers, the answer first, for an ambiguous prompt; else empty. `adapter`: name of what was laid over the
    model, "" for nothing.
    """

    request_id: int
    options: tuple[MaskOption, ...] = ()
    adapter: str = ""


def prompts_inside(scene: Scene, request: PromptRequest, *, is_preview: bool) -> ObjectPrompts | None:
    """The prompts in raster pixels, without those beside the raster; None for a preview that cannot be given.

    Raises `JobError` for prompts outside the raster or without a foreground.
    """
    rows, cols = scene.reader.shape
    points_xy, labels = _points(scene.reader, request)
    inside = ((points_xy >= 0) & (points_xy < (cols, rows))).all(axis=1)
    outline: Any = None
    if request.outline is not None and not request.outline.is_empty:
        outline = shapely.transform(request.outline, scene.reader.to_pixels)
    box = None
    if request.box_map is not None or outline is not None:
        drawn = map_bounds_px(scene.reader, request.box_map) if request.box_map is not None else outline.bounds
        clipped = intersection(drawn, (0, 0, cols, rows))
        box = clipped if clipped[2] > clipped[0] and clipped[3] > clipped[1] else None
    if box is not None or FOREGROUND in labels[inside]:
        return ObjectPrompts("", "", points_xy[inside], labels[inside], box, outline if box is not None else None)
    if is_preview:
        return None
    if FOREGROUND in labels or request.box_map is not None or outline is not None:
        raise JobError("The prompt lies outside the raster; click on its image.")
    raise JobError("Background prompts alone do not say what the object is; add a foreground point or a box.")


def _points(reader: RasterReader, request: PromptRequest) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Clicks and points along scribbles in raster pixels (N, 2), and their labels (N,)."""
    parts = [reader.to_pixels(np.reshape(request.points_map, (-1, 2)))]
    labels = list(request.labels)
    for line_map, label in zip(request.scribbles_map, request.scribble_labels, strict=True):
        places = scribble_points(shapely.LineString(reader.to_pixels(line_map)))
        parts.append(places)
        labels += [label] * len(places)
    return np.concatenate(parts), np.array(labels, np.int64)
