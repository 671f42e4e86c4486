"""Every mask that a cell's points find: decoded, filtered, and whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...models.masks import stability_score
from ...models.progress import Progress, raise_if_cancelled
from ...models.prompts import FOREGROUND, LOW_RES_PX, Prompts
from ..raster.windows import SquareWindow, lattice_window
from .answers import Answer, cells_inside, make_answer
from .duplicates import Candidate, without_duplicates
from .placed_mask import PlacedMask, touches_inner_side
from .scene import Scene

_BATCH = 64
# An object seen again in a larger window must agree with its visible part, or it is another object.
_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class CandidateRules:
    """What makes a mask worth keeping: the rules of segment-anything's automatic mask generator.

    `iou_threshold`: least predicted IoU; `stability_threshold`: least IoU of the mask between thresholds one
    above and one below; `nms_threshold`: masks that overlap more show one object; `largest_window_px`: side
    of the largest window in which an object cut by its own window is looked at again.
    """

    iou_threshold: float
    stability_threshold: float
    nms_threshold: float
    largest_window_px: int


@dataclass(frozen=True, eq=False)
class _Seen:
    """A mask on the decoder's own grid, before it is brought to pixels."""

    candidate: Candidate
    logits: npt.NDArray[np.float32]


def find_candidates(
    scene: Scene,
    window: SquareWindow,
    points_xy: npt.NDArray[np.float64],
    *,
    rules: CandidateRules,
    progress: Progress,
) -> tuple[list[Candidate], int]:
    """Decode points (N, 2; raster pixels) in a window.

    Returns the objects found, each once, best first, and the number of those left out because even the
    largest window cuts them. Raises `Cancelled` between batches.
    """
    seen: dict[bool, list[_Seen]] = {False: [], True: []}
    for start in range(0, len(points_xy), _BATCH):
        raise_if_cancelled(progress)
        for found, is_cut in _decode(scene, window, points_xy[start : start + _BATCH], rules):
            seen[is_cut].append(found)
    answers = {is_cut: _answers(scene, window, found, rules) for is_cut, found in seen.items()}
    whole, n_left_out = _look_again(scene, answers[True], rules, progress)
    whole += [(point, answer) for point, answer in answers[False] if answer.mask.n_pixels]
    candidates = [Candidate(answer.mask, answer.score, answer.stability, *point) for point, answer in whole]
    return without_duplicates(candidates, iou_threshold=rules.nms_threshold), n_left_out


_Point = tuple[float, float]


def _decode(
    scene: Scene, window: SquareWindow, points_xy: npt.NDArray[np.float64], rules: CandidateRules
) -> Iterator[tuple[_Seen, bool]]:
    """Masks that the rules allow, and whether the window cuts them."""
    shape = scene.reader.shape
    cell_px = window.size_px / LOW_RES_PX
    for (x, y), logits, score, stability in _good_masks(scene, window, points_xy, rules):
        mask = PlacedMask.from_pixels(cells_inside(logits, window, shape) > 0, row_off=0, col_off=0)
        left, top, right, bottom = (value * cell_px for value in mask.bounds)
        col, row = window.col_off, window.row_off
        is_cut = touches_inner_side((left + col, top + row, right + col, bottom + row), window, shape)
        yield _Seen(Candidate(mask, score, stability, x, y), logits), is_cut


def _good_masks(
    scene: Scene, window: SquareWindow, points_xy: npt.NDArray[np.float64], rules: CandidateRules
) -> Iterator[tuple[_Point, npt.NDArray[np.float32], float, float]]:
    """Point, logits (256, 256), predicted IoU and stability of the masks that the rules allow."""
    scale = scene.input_px / window.size_px
    chip_xy = ((points_xy - (window.col_off, window.row_off)) * scale).astype(np.float32)
    label = np.array([FOREGROUND])
    prompts = [Prompts(points_xy=xy[None], labels=label) for xy in chip_xy]
    prediction = scene.engine.predict(scene.embedding(window), prompts, multimask=True)
    for i, m in np.argwhere(prediction.iou >= rules.iou_threshold):
        logits = prediction.logits[i, m]
        inside = cells_inside(logits, window, scene.reader.shape)
        stability = stability_score(inside)
        if stability >= rules.stability_threshold and (inside > 0).any():
            point = (float(points_xy[i, 0]), float(points_xy[i, 1]))
            # A copy, so that one mask does not keep the logits of its whole batch in memory.
            yield point, logits.copy(), float(prediction.iou[i, m]), stability


def _answers(
    scene: Scene, window: SquareWindow, seen: Sequence[_Seen], rules: CandidateRules
) -> list[tuple[_Point, Answer]]:
    """Bring each object of one window once to raster pixels; most are found from several points."""
    logits = {id(found.candidate): found.logits for found in seen}
    best = without_duplicates([found.candidate for found in seen], iou_threshold=rules.nms_threshold)
    return [((kept.x, kept.y), make_answer(scene, window, logits[id(kept)], score=kept.score)) for kept in best]


def _look_again(
    scene: Scene, cut: Sequence[tuple[_Point, Answer]], rules: CandidateRules, progress: Progress
) -> tuple[list[tuple[_Point, Answer]], int]:
    """Decode cut objects in ever larger windows; returns those that are whole then, and how many stay cut."""
    whole: list[tuple[_Point, Answer]] = []
    still_cut = [(point, answer) for point, answer in cut if answer.mask.n_pixels]
    while still_cut and 2 * still_cut[0][1].window.size_px <= rules.largest_window_px:
        by_window: dict[SquareWindow, list[tuple[_Point, Answer]]] = defaultdict(list)
        for point, answer in still_cut:
            window = _window_around(answer, 2 * answer.window.size_px, scene.reader.shape)
            if window.contains_bounds((*point, *point)):
                by_window[window].append((point, answer))
        still_cut = []
        for window, held in by_window.items():
            raise_if_cancelled(progress)
            for point, answer in held:
                again = _same_object(scene, window, point, answer, rules)
                if again is not None:
                    (still_cut if again.is_cut(scene.reader.shape) else whole).append((point, again))
    return whole, len(still_cut)


def _window_around(answer: Answer, size_px: int, shape: tuple[int, int]) -> SquareWindow:
    left, top, right, bottom = answer.mask.bounds
    return lattice_window((left + right) / 2, (top + bottom) / 2, size_px=size_px, shape=shape)


def _same_object(
    scene: Scene, window: SquareWindow, point: _Point, earlier: Answer, rules: CandidateRules
) -> Answer | None:
    """The mask in a larger window that agrees best with the part seen before; None where none does."""
    best, best_iou = None, _SAME_OBJECT_IOU
    for _, logits, score, _ in _good_masks(scene, window, np.array([point]), rules):
        answer = make_answer(scene, window, logits, score=score)
        common = answer.mask.overlap_px(earlier.mask)
        seen_part = answer.mask.count_inside(earlier.window.bounds())
        iou = common / max(1, seen_part + earlier.mask.n_pixels - common)
        if iou > best_iou:
            best, best_iou = answer, iou
    return best
