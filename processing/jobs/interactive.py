"""One click, one answer: what the map tool asks of a raster while the user draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ...models.prompts import FOREGROUND
from ..errors import JobError
from ..raster.reader import RasterReader
from ..raster.windows import WINDOW_SIZES_PX, Bounds, SquareWindow, fitting_size_px, lattice_windows
from .answers import Answer, answer_prompts, chip_prompts, first_window, next_window
from .objects import ObjectPrompts
from .placed_mask import intersection
from .scene import Scene
from .segment import outline_mask

# A view zoomed far out needs more windows than anyone waits for; the ones around its centre come first.
_MOST_VIEW_WINDOWS = 16
_MOST_WINDOWS = 6


@dataclass(frozen=True, eq=False)
class PreviousAnswer:
    """The answer that the user is refining: its window and low-resolution logits, float32 (256, 256)."""

    window: SquareWindow
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRequest:
    """What the user has drawn for one object so far.

    `points_map`: (x, y) in the raster's CRS; `labels`: 1 foreground, 0 background, one per point. `box_map`:
    xmin, ymin, xmax, ymax in the raster's CRS, or None. `window_px`: side of the window for a new object,
    from `window_px_for_view`. `previous`: the answer to the prompts before the last one, None for a new
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
    window_px: int = 1024
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


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptResult:
    """The answer to the request of the same id.

    `geometry` is in the raster's CRS and empty where the model found nothing. `score`: predicted IoU;
    `stability`: IoU of the mask between thresholds one above and one below; `area_m2`: on the ellipsoid, NaN
    without a CRS. `window` and `logits` make the `PreviousAnswer` of the next request.
    """

    request_id: int
    geometry: MultiPolygon
    score: float
    stability: float
    area_m2: float
    window: SquareWindow
    logits: npt.NDArray[np.float32]
    options: tuple[MaskOption, ...] = ()
    adapter: str = ""


@dataclass(frozen=True, kw_only=True)
class InteractiveOptions:
    """What may help to answer; each can be left out, which the evaluation does in turn."""

    window_px: int | None = None
    fixed_window: bool = False
    adapter: bool = True
    cascade: int = 2
    repair: bool = True
    per_click: bool = True
    per_object: bool = True


@dataclass(frozen=True)
class LearningReport:
    """What became of an accepted object: `iou_before` and `iou_after` are of the objects remembered."""

    is_kept: bool
    n_objects: int
    iou_before: float
    iou_after: float
    sentence: str


class InteractiveSegmenter:
    """Answers prompts on one scene and learns from what the analyst accepts."""

    def __init__(self, scene: Scene, options: InteractiveOptions | None = None) -> None:
        self.scene, self.options = scene, options or InteractiveOptions()
        self.n_learned = 0
        self.adapter_name = ""

    def answer(self, request: PromptRequest, *, only_if_encoded: bool = False) -> PromptResult | None:
        """Answer a request."""
        return segment_prompts(self.scene, request, only_if_encoded=only_if_encoded, options=self.options)

    def learn(self, result: PromptResult, geometry: BaseGeometry | None = None) -> LearningReport:
        """Take an accepted object in."""
        self.n_learned += 1
        return LearningReport(False, self.n_learned, 1.0, 1.0, "Nothing was learned.")

    def reset(self) -> None:
        """Forget what was learned."""
        self.n_learned = 0

    def save(self, path: Path) -> None:
        """Write what was learned as an adapter."""
        raise JobError(f"Nothing was learned yet that could go to {path}; accept some objects first.")

    def load(self, path: Path) -> None:
        """Use an adapter that was saved."""
        raise JobError(f"{path} is no adapter of SegAdapt.")


def segment_prompts(
    scene: Scene,
    request: PromptRequest,
    *,
    only_if_encoded: bool = False,
    options: InteractiveOptions | None = None,
) -> PromptResult | None:
    """Answer a request.

    The window of the previous answer is used again while all prompts lie inside it, and its logits are fed
    back. An object that its window cuts is looked at again in a larger one. With `only_if_encoded`, for the
    preview under the mouse, the answer comes from one window that is in the cache already, or is None where
    it is not or where the prompts lie outside the raster. Raises `JobError` for prompts outside the raster or
    without a foreground.
    """
    prompts = _prompts_inside(scene, request, is_preview=only_if_encoded)
    if prompts is None:
        return None
    options = options or InteractiveOptions()
    if options.window_px is not None:
        request = replace(request, window_px=options.window_px)
    window, logits = _window(scene, request, prompts)
    if only_if_encoded and not scene.is_encoded(window):
        return None
    answer = _answer(scene, window, prompts, request, logits)
    if not only_if_encoded and not options.fixed_window:
        answer = _whole_answer(scene, answer, prompts, request)
    geometry, area = outline_mask(scene, answer.mask, tolerance=request.tolerance, min_area_m2=request.min_area_m2)
    return PromptResult(
        request_id=request.request_id,
        geometry=geometry,
        score=answer.score,
        stability=answer.stability,
        area_m2=area,
        window=answer.window,
        logits=answer.logits,
    )


def window_px_for_view(reader: RasterReader, view_bounds_map: Bounds) -> int:
    """Side of the windows for a view (as in `view_windows`): about half of the view's longer side."""
    left, top, right, bottom = _pixel_bounds(reader, view_bounds_map)
    half_px = max(right - left, bottom - top) / 2
    return next((size_px for size_px in WINDOW_SIZES_PX if size_px >= half_px), WINDOW_SIZES_PX[-1])


def view_windows(reader: RasterReader, view_bounds_map: Bounds) -> list[SquareWindow]:
    """The windows that clicks in a view can get, those in its centre first, to be encoded before a click.

    `view_bounds_map`: xmin, ymin, xmax, ymax in the raster's CRS. Empty where the view shows none of the
    raster; at most 16, for a view zoomed far out.
    """
    bounds = _pixel_bounds(reader, view_bounds_map)
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


def _prompts_inside(scene: Scene, request: PromptRequest, *, is_preview: bool) -> ObjectPrompts | None:
    """The prompts in raster pixels; None for a preview that cannot be given."""
    rows, cols = scene.reader.shape
    points_xy = scene.reader.to_pixels(np.reshape(request.points_map, (-1, 2)))
    labels = np.array(request.labels, np.int64)
    inside = ((points_xy >= 0) & (points_xy < (cols, rows))).all(axis=1)
    box = None
    if request.box_map is not None:
        clipped = intersection(_pixel_bounds(scene.reader, request.box_map), (0, 0, cols, rows))
        box = clipped if clipped[2] > clipped[0] and clipped[3] > clipped[1] else None
    if box is not None or FOREGROUND in labels[inside]:
        return ObjectPrompts("", "", points_xy[inside], labels[inside], box)
    if is_preview:
        return None
    if FOREGROUND in labels or request.box_map is not None:
        raise JobError("The prompt lies outside the raster; click on its image.")
    raise JobError("Background points alone do not say what the object is; add a foreground point or a box.")


def _pixel_bounds(reader: RasterReader, bounds_map: Bounds) -> Bounds:
    """Bounds in raster pixels of a rectangle in map coordinates, which a rotated raster turns."""
    xmin, ymin, xmax, ymax = bounds_map
    corners = reader.to_pixels([(xmin, ymin), (xmin, ymax), (xmax, ymin), (xmax, ymax)])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _window(
    scene: Scene, request: PromptRequest, prompts: ObjectPrompts
) -> tuple[SquareWindow, npt.NDArray[np.float32] | None]:
    previous = request.previous
    if previous is not None and previous.window.contains_bounds(prompts.bounds_px):
        return previous.window, previous.logits
    left, top, right, bottom = prompts.bounds_px
    extent_px = max(right - left, bottom - top)
    size_px = request.window_px if extent_px <= request.window_px / 2 else fitting_size_px(extent_px)
    window = first_window(prompts, scene.reader.shape, window_px=size_px)
    if window is None:
        raise JobError(f"The prompts lie {extent_px:.0f} px apart, too far for one window; start a new object.")
    return window, None


def _answer(
    scene: Scene,
    window: SquareWindow,
    prompts: ObjectPrompts,
    request: PromptRequest,
    logits: npt.NDArray[np.float32] | None = None,
) -> Answer:
    asked = chip_prompts(prompts, window, scene=scene, logits=logits)
    return answer_prompts(scene, window, [asked], multimask=request.multimask)[0]


def _whole_answer(scene: Scene, answer: Answer, prompts: ObjectPrompts, request: PromptRequest) -> Answer:
    """Follow an object that its window cuts into larger windows."""
    for _ in range(_MOST_WINDOWS):
        window = next_window(answer, prompts, scene.reader.shape)
        if window is None:
            break
        larger = _answer(scene, window, prompts, request)
        if not larger.mask.n_pixels:
            break
        answer = larger
    return answer
