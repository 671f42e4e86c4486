"""Asking the model in one window: masks for points, given back to it, judged, and the best of them kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from ...models.masks import stability_score
from ...models.prompts import FOREGROUND, LOW_RES_PX, Prompts
from ...models.similarity import CELLS, BoolArray, FloatArray, Judge, cell_shares
from ..raster.windows import SquareWindow
from .answers import cells_inside
from .persam import OneShot, persam_masks
from .placed_mask import touches_inner_side
from .scene import Scene
from .similar_target import Target
from .similar_windows import MaskTraits, mask_box, mask_traits

# Objects per call of the decoder: a click waits for one such call at most, and a GPU is busy with as many.
_BATCH = 4
# Times that a mask is given back to the model.
_CASCADE = 2
# Masks of a first look that overlap more lead to the same object.
_SAME_LOOK_IOU = 0.7
_LEAST_SCORE = 1e-6
# Log odds below which a mask is not looked at again.
_HOPELESS = -3.0


@dataclass(frozen=True, eq=False)
class LookedMasks:
    """N masks of a window: logits (N, 256, 256), points (N, 2; raster pixels), what is measured, log odds (N,)."""

    logits: FloatArray
    points_xy: npt.NDArray[np.float64]
    traits: MaskTraits
    similarity: npt.NDArray[np.float64]
    odds: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.logits)

    def pick(self, index: npt.ArrayLike) -> LookedMasks:
        """Some of the masks, by index."""
        i = np.asarray(index, np.intp)
        return LookedMasks(self.logits[i], self.points_xy[i], self.traits.pick(i), self.similarity[i], self.odds[i])

    def __getitem__(self, part: slice) -> LookedMasks:
        return self.pick(range(len(self))[part])

    @staticmethod
    def joined(*some: LookedMasks) -> LookedMasks:
        """One after the other."""
        return LookedMasks(
            np.concatenate([each.logits for each in some]),
            np.concatenate([each.points_xy for each in some]),
            MaskTraits.joined([each.traits for each in some]),
            np.concatenate([each.similarity for each in some]),
            np.concatenate([each.odds for each in some]),
        )


@dataclass(frozen=True, eq=False)
class Look:
    """Asks the model in one window and judges what it answers; `descriptors` (CELLS, CELLS, C) of the window."""

    scene: Scene
    window: SquareWindow
    descriptors: FloatArray
    target: Target
    judge: Judge

    def refined(self, points_xy: npt.NDArray[np.float64]) -> Generator[None, None, LookedMasks]:
        """What the points (N, 2) find: the likeliest of three masks each, distinct, refined twice; gives way often."""
        masks = yield from _in_batches(self.first, points_xy, empty=self.nothing())
        masks = self.distinct(self.best_of_points(masks), iou_threshold=_SAME_LOOK_IOU)
        for _ in range(_CASCADE):
            masks = self.best_of_points((yield from _in_batches(self.again, masks, empty=self.nothing())))
        return masks

    def personalised(
        self, one_shot: OneShot, features: FloatArray, points_xy: npt.NDArray[np.float64]
    ) -> Generator[None, None, LookedMasks]:
        """What a baseline finds, from SAM's `features` (CELLS, CELLS, C) of the window.

        The log odds are those of its score, predicted IoU times cosine.
        """
        for step in persam_masks(self.scene, self.window, points_xy, one_shot=one_shot, features=features):
            if step is None:
                yield None
                continue
            masks = self.judged(step.logits, step.iou, step.points_xy)
            shares = np.array([cell_shares(mask > 0).ravel() for mask in masks.logits], np.float32)
            inside = shares.reshape(len(masks), CELLS * CELLS) @ features.reshape(CELLS * CELLS, -1)
            score = masks.traits.score * one_shot.similarity(inside)
            return replace(masks, odds=logit(score.clip(_LEAST_SCORE, 1 - _LEAST_SCORE)))
        return self.nothing()

    def first(self, points_xy: npt.NDArray[np.float64]) -> LookedMasks:
        """Three masks for every point (N, 2), less those that are empty or that the window cuts."""
        prompts = [Prompts(points_xy=xy[None], labels=np.array([FOREGROUND])) for xy in self._on_chip(points_xy)]
        logits, iou = self._predict(prompts, multimask=True)
        return self.judged(logits, iou, points_xy.repeat(3, axis=0))

    def best_of_points(self, masks: LookedMasks) -> LookedMasks:
        """The likeliest mask of each point, best first, less those that are hopeless."""
        order = [i for i in np.argsort(-masks.odds, kind="stable") if masks.odds[i] > _HOPELESS]
        _, first = np.unique(masks.points_xy[order], axis=0, return_index=True)
        return masks.pick([order[i] for i in sorted(first)])

    def distinct(self, masks: LookedMasks, *, iou_threshold: float) -> LookedMasks:
        """Masks without those that overlap a better one, which comes earlier, by more than `iou_threshold`."""
        flat = (masks.logits > 0).reshape(len(masks), LOW_RES_PX**2).astype(np.float32)
        common, sizes = flat @ flat.T, flat.sum(axis=1)
        overlap = common / np.maximum(sizes[:, None] + sizes - common, 1)
        kept: list[int] = []
        for i in range(len(masks)):
            if not (overlap[i, kept] > iou_threshold).any():
                kept.append(i)
        return masks.pick(kept)

    def again(self, masks: LookedMasks) -> LookedMasks:
        """The masks, and the answers to each of them given back to the model with its point and its box."""
        step = self.scene.input_px / LOW_RES_PX
        prompts = [
            Prompts(
                points_xy=xy[None], labels=np.array([FOREGROUND]), box_xyxy=mask_box(mask > 0) * step, mask_logits=mask
            )
            for xy, mask in zip(self._on_chip(masks.points_xy), masks.logits, strict=True)
        ]
        logits, iou = self._predict(prompts, multimask=False)
        return masks.joined(masks, self.judged(logits, iou, masks.points_xy))

    def nothing(self) -> LookedMasks:
        """No masks."""
        none, vectors = np.zeros(0), np.zeros((0, self.descriptors.shape[-1]), np.float32)
        traits = MaskTraits(none, none, vectors, vectors, none, none, none)
        return LookedMasks(np.zeros((0, LOW_RES_PX, LOW_RES_PX), np.float32), np.zeros((0, 2)), traits, none, none)

    def judged(self, logits: FloatArray, iou: FloatArray, points_xy: npt.NDArray[np.float64]) -> LookedMasks:
        """Measure masks, logits (N, 256, 256), and judge them; those that are empty or that the window cuts go."""
        shape = self.scene.reader.shape
        rows, cols = cells_inside(logits, self.window, shape).shape[1:]
        masks = np.zeros(logits.shape, np.bool_)
        masks[:, :rows, :cols] = logits[:, :rows, :cols] > 0
        kept = [i for i, mask in enumerate(masks) if mask.any() and not self._is_cut(mask)]
        if not kept:
            return self.nothing()
        traits = mask_traits(
            masks[kept],
            self.descriptors,
            self.window,
            score=iou[kept].clip(0, 1),
            stability=[stability_score(logits[i, :rows, :cols]) for i in kept],
        )
        measures = self.target.measures(traits)
        return LookedMasks(logits[kept], points_xy[kept], traits, measures[:, 2], self.judge.logit(measures))

    def _predict(self, prompts: Sequence[Prompts], *, multimask: bool) -> tuple[FloatArray, FloatArray]:
        if not prompts:
            return np.zeros((0, LOW_RES_PX, LOW_RES_PX), np.float32), np.zeros(0, np.float32)
        found = self.scene.engine.predict(self.scene.embedding(self.window), prompts, multimask=multimask)
        return found.logits.reshape(-1, LOW_RES_PX, LOW_RES_PX), found.iou.reshape(-1)

    def _is_cut(self, mask: BoolArray) -> bool:
        step = self.window.size_px / LOW_RES_PX
        left, top, right, bottom = mask_box(mask) * step
        x, y = self.window.col_off, self.window.row_off
        return touches_inner_side((x + left, y + top, x + right, y + bottom), self.window, self.scene.reader.shape)

    def _on_chip(self, points_xy: npt.NDArray[np.float64]) -> FloatArray:
        scale = self.scene.input_px / self.window.size_px
        found: FloatArray = ((points_xy - (self.window.col_off, self.window.row_off)) * scale).astype(np.float32)
        return found


_BatchT = TypeVar("_BatchT", LookedMasks, npt.NDArray[np.float64])


def _in_batches(
    work: Callable[[_BatchT], LookedMasks], items: _BatchT, *, empty: LookedMasks
) -> Generator[None, None, LookedMasks]:
    """Work on a few items at a time and give way in between."""
    done = [empty]
    for start in range(0, len(items), _BATCH):
        done.append(work(items[start : start + _BATCH]))
        yield None
    return LookedMasks.joined(*done)
