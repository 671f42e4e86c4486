"""Ask the model about objects in one window, and find the window that an object needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from ...models.masks import logits_from_mask, mask_from_logits, stability_score
from ...models.prompts import LOW_RES_PX, Prompts
from ..errors import JobError
from ..raster.windows import SquareWindow, fitting_size_px, lattice_window
from .objects import ObjectPrompts
from .placed_mask import PlacedMask, touches_inner_side
from .scene import Scene

SMALLEST_WINDOW_PX, LARGEST_WINDOW_PX = 64, 8192
"""Sides of the smallest window that makes sense (a pixel to each of the embedding's cells) and of the largest
that an object can get, which is that of `windows.fitting_size_px`."""

# A click says where an object is, not how large: look at this much first.
CLICK_WINDOW_PX = 512
# The part of a cut mask that is seen says little of the rest: leave it half as much again.
_GROWTH = 1.5


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says of an object: mask, predicted IoU, stability, and logits (256, 256) of `window`."""

    window: SquareWindow
    mask: PlacedMask
    score: float
    stability: float
    logits: npt.NDArray[np.float32]

    def is_cut(self, shape: tuple[int, int]) -> bool:
        """Whether the mask reaches a side of its window behind which the raster of `shape` goes on."""
        return self.mask.n_pixels > 0 and touches_inner_side(self.mask.bounds, self.window, shape)


def check_window_px(window_px: int) -> None:
    """Raise `JobError` for the side of a window that chips cannot be made from."""
    if not (SMALLEST_WINDOW_PX <= window_px <= LARGEST_WINDOW_PX and window_px & (window_px - 1) == 0):
        raise JobError(
            f"A window of {window_px} px is not possible; choose a power of two "
            f"from {SMALLEST_WINDOW_PX} to {LARGEST_WINDOW_PX}."
        )


def answer_prompts(
    scene: Scene, window: SquareWindow, prompts: Sequence[Prompts], *, multimask: bool, refine: bool = False
) -> list[Answer]:
    """Answer for N objects in one window, in order.

    With `multimask` the objects with a single click get three masks, of which the one with the highest predicted
    IoU is the answer; with `refine` that one is given back to the model for a second look.
    """
    answers: dict[int, Answer] = {}
    ambiguous = [i for i, p in enumerate(prompts) if multimask and p.is_ambiguous]
    answers |= _predict(scene, window, {i: prompts[i] for i in ambiguous}, multimask=True)
    # Roofs of five scenes from one click each (190): mean IoU 0.634 at first and 0.664 at the second look, for
    # another 30 to 60 ms of decoding. Boxes and several points gain nothing (0.80 and 0.80).
    again = [i for i in ambiguous if refine and answers[i].mask.n_pixels]
    asked = {i: replace(prompts[i], mask_logits=answers[i].logits) for i in again}
    asked |= {i: prompts[i] for i in range(len(prompts)) if i not in answers}
    for i, answer in _predict(scene, window, asked, multimask=False).items():
        if answer.mask.n_pixels or i not in answers:
            answers[i] = answer
    return [answers[i] for i in range(len(prompts))]


def answer_options(scene: Scene, window: SquareWindow, prompts: Prompts, *, multimask: bool) -> list[Answer]:
    """All masks for one object in a window, the one with the highest predicted IoU first.

    Three for an ambiguous prompt with `multimask`, else one.
    """
    is_choice = multimask and prompts.is_ambiguous
    prediction = scene.engine.predict(scene.embedding(window), [prompts], multimask=is_choice)
    order = np.argsort(-prediction.iou[0], kind="stable")
    scores = prediction.iou[0]
    return [make_answer(scene, window, prediction.logits[0, n], score=float(scores[n])) for n in order]


def _predict(
    scene: Scene, window: SquareWindow, prompts: Mapping[int, Prompts], *, multimask: bool
) -> dict[int, Answer]:
    """The best mask of each object, under the object's number."""
    if not prompts:
        return {}
    prediction = scene.engine.predict(scene.embedding(window), list(prompts.values()), multimask=multimask)
    found = {}
    for i, logits, iou in zip(prompts, prediction.logits, prediction.iou, strict=True):
        best = int(iou.argmax())
        found[i] = make_answer(scene, window, logits[best], score=float(iou[best]))
    return found


def make_answer(scene: Scene, window: SquareWindow, logits: npt.NDArray[np.float32], *, score: float) -> Answer:
    """Bring logits (256, 256) of a window to the raster, without nodata; `score` is limited to 0 to 1."""
    local = mask_from_logits(logits, window_px=window.size_px, shape=window.inside(scene.reader.shape))
    mask = PlacedMask.from_local(local, window, valid=scene.valid(window))
    stability = stability_score(cells_inside(logits, window, scene.reader.shape))
    return Answer(window, mask, min(max(score, 0.0), 1.0), stability, logits)


def cells_inside(
    logits: npt.NDArray[np.float32], window: SquareWindow, shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The part of logits (..., 256, 256) of a window that lies inside a raster of `shape` (rows, cols)."""
    rows, cols = (math.ceil(n * LOW_RES_PX / window.size_px) for n in window.inside(shape))
    return logits[..., :rows, :cols]


def chip_prompts(
    prompts: ObjectPrompts,
    window: SquareWindow,
    *,
    scene: Scene,
    logits: npt.NDArray[np.float32] | None = None,
) -> Prompts:
    """Bring the prompts of an object to pixels of the window's chip.

    `logits` (256, 256) are those of an earlier answer in the same window; without them a drawn outline takes
    their place.
    """
    scale = scene.input_px / window.size_px
    origin = np.array([window.col_off, window.row_off], np.float64)
    box = None
    if prompts.box_xyxy is not None:
        corners = (np.reshape(prompts.box_xyxy, (2, 2)) - origin) * scale
        box = np.clip(corners, 0, scene.input_px).astype(np.float32).ravel()
    if logits is None and prompts.mask_polygon is not None:
        logits = _outline_logits(prompts.mask_polygon, window, scene=scene)
    return Prompts(
        points_xy=((prompts.points_xy - origin) * scale).astype(np.float32),
        labels=prompts.labels,
        box_xyxy=box,
        mask_logits=logits,
    )


def _outline_logits(outline: BaseGeometry, window: SquareWindow, *, scene: Scene) -> npt.NDArray[np.float32]:
    """Logits of an outline, drawn at the resolution of the chip: no finer than the model can see."""
    side_px = scene.input_px
    to_window = Affine.translation(window.col_off, window.row_off) @ Affine.scale(window.size_px / side_px)
    drawn = rasterize([outline], out_shape=(side_px, side_px), transform=to_window, all_touched=True)
    return logits_from_mask(drawn.astype(np.bool_), window_px=side_px)


def first_window(
    prompts: ObjectPrompts, shape: tuple[int, int], *, window_px: int | None = None
) -> SquareWindow | None:
    """The window in which an object is looked at first; None where no window holds all of its prompts.

    `window_px` is the side wanted; without it boxes and outlines decide, and points get at least
    `CLICK_WINDOW_PX`. Prompts that reach beyond one window get a larger one.
    """
    left, top, right, bottom = prompts.bounds_px
    size_px = fitting_size_px(max(right - left, bottom - top))
    if window_px is not None:
        size_px = window_px
    elif prompts.box_xyxy is None:
        size_px = max(size_px, CLICK_WINDOW_PX)
    return _holding_window(prompts, ((left + right) / 2, (top + bottom) / 2), size_px=size_px, shape=shape)


def next_window(answer: Answer, prompts: ObjectPrompts, shape: tuple[int, int]) -> SquareWindow | None:
    """The larger or shifted window for a mask that its window cuts; None where it is whole or none is."""
    if not answer.is_cut(shape):
        return None
    left, top, right, bottom = answer.mask.bounds
    size_px = max(answer.window.size_px, fitting_size_px(_GROWTH * max(right - left, bottom - top)))
    centre = ((left + right) / 2, (top + bottom) / 2)
    window = _holding_window(prompts, centre, size_px=size_px, shape=shape)
    if window == answer.window:
        window = _holding_window(prompts, centre, size_px=2 * size_px, shape=shape)
    return window


def _holding_window(
    prompts: ObjectPrompts, centre: tuple[float, float], *, size_px: int, shape: tuple[int, int]
) -> SquareWindow | None:
    """The smallest lattice window around `centre` from `size_px` on that holds all prompts."""
    while size_px <= LARGEST_WINDOW_PX:
        window = lattice_window(*centre, size_px=size_px, shape=shape)
        if window.contains_bounds(prompts.bounds_px):
            return window
        size_px *= 2
    return None
