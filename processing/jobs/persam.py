"""PerSAM and PerSAM-F, the baselines of the search for similar objects, one example each.

Zhang et al. 2023, "Personalize Segment Anything Model with One Shot" (https://arxiv.org/abs/2305.03048), written from
the paper and the behaviour of the authors' `persam.py` and `persam_f.py`. They segment one object of one photograph at
the place that resembles the example most; here every peak of the resemblance in a window is such a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...models.prompts import BACKGROUND, FOREGROUND, LOW_RES_PX, Prompts
from ...models.similarity import (
    CELLS,
    FloatArray,
    guided_decode,
    mixing_weights,
    persam_target,
    unit,
)
from ..raster.windows import SquareWindow
from .scene import Scene
from .similar_windows import Example, mask_box


@dataclass(frozen=True, eq=False)
class OneShot:
    """What PerSAM knows of the example: `target`, a unit vector (C,), and `feature` (C,), the mean that it is made of.

    `weights` (3,): how PerSAM-F mixes the three masks; None for PerSAM, which needs no training.
    """

    target: FloatArray
    feature: FloatArray
    weights: FloatArray | None

    def similarity(self, features: FloatArray) -> FloatArray:
        """Cosine (...) of SAM's features (..., C) to the example."""
        found: FloatArray = unit(features) @ self.target
        return found


def personalise(scene: Scene, example: Example, *, is_trained: bool) -> OneShot:
    """Learn from the example; `is_trained` for PerSAM-F, whose two parameters take some seconds."""
    features = example.features.parts[0]
    target = persam_target(features, example.shares, with_maximum=is_trained)
    feature = features[example.shares > 0].mean(axis=0)
    one_shot = OneShot(target, feature, None)
    if not is_trained:
        return one_shot
    similarity = one_shot.similarity(features)
    row, col = np.unravel_index(int(similarity.argmax()), similarity.shape)
    step = scene.input_px / CELLS
    at = np.array([[(col + 0.5) * step, (row + 0.5) * step]], np.float32)
    prompts = [Prompts(points_xy=at, labels=np.array([FOREGROUND]))]
    offered = scene.engine.predict(scene.embedding(example.features.window), prompts, multimask=True)
    return OneShot(target, feature, mixing_weights(offered.logits[0], example.mask))


@dataclass(frozen=True, eq=False)
class PersamMasks:
    """Logits (N, 256, 256), predicted IoU (N,) and points (N, 2; raster pixels)."""

    logits: FloatArray
    iou: FloatArray
    points_xy: npt.NDArray[np.float64]


def persam_masks(
    scene: Scene, window: SquareWindow, points_xy: npt.NDArray[np.float64], *, one_shot: OneShot, features: FloatArray
) -> Iterator[PersamMasks | None]:
    """The masks at the points (N, 2; raster pixels), after two cascaded refinements; `features` (CELLS, CELLS, C).

    Yields None after each step of the work, and the masks at its end.
    """
    similarity = one_shot.similarity(features)
    scale = scene.input_px / window.size_px
    logits, iou, kept = [], [], []
    for point in points_xy:
        at = ((point - (window.col_off, window.row_off)) * scale).astype(np.float32)[None]
        prompts = _first_prompts(at, similarity, scene.input_px, one_shot)
        mask, score = _first_mask(scene, window, prompts, one_shot, similarity), 0.0
        yield None
        for with_box in (one_shot.weights is not None, True):
            if not (mask > 0).any():
                break
            box = mask_box(mask > 0) * (scene.input_px / LOW_RES_PX) if with_box else None
            again = Prompts(points_xy=prompts.points_xy, labels=prompts.labels, box_xyxy=box, mask_logits=mask)
            answer = scene.engine.predict(scene.embedding(window), [again], multimask=True)
            best = int(answer.iou[0].argmax())
            mask, score = answer.logits[0, best], float(answer.iou[0, best])
            yield None
        if (mask > 0).any():
            logits.append(mask)
            iou.append(score)
            kept.append(point)
    empty = np.zeros((0, LOW_RES_PX, LOW_RES_PX), np.float32)
    yield PersamMasks(
        np.stack(logits) if logits else empty, np.array(iou, np.float32), np.reshape(kept, (-1, 2)).astype(np.float64)
    )


def _first_prompts(at: FloatArray, similarity: FloatArray, input_px: int, one_shot: OneShot) -> Prompts:
    """The point; PerSAM adds the least similar place of the window as background."""
    if one_shot.weights is not None:
        return Prompts(points_xy=at, labels=np.array([FOREGROUND]))
    row, col = np.unravel_index(int(similarity.argmin()), similarity.shape)
    step = input_px / CELLS
    unlike = np.array([[(col + 0.5) * step, (row + 0.5) * step]], np.float32)
    return Prompts(points_xy=np.concatenate([at, unlike]), labels=np.array([FOREGROUND, BACKGROUND]))


def _first_mask(
    scene: Scene, window: SquareWindow, prompts: Prompts, one_shot: OneShot, similarity: FloatArray
) -> FloatArray:
    if one_shot.weights is not None:
        offered = scene.engine.predict(scene.embedding(window), [prompts], multimask=True)
        mixed: FloatArray = np.tensordot(one_shot.weights, offered.logits[0], axes=1)
        return mixed
    deviation = (similarity - similarity.mean()) / similarity.std(ddof=1)
    embedding = scene.embedding(window)
    with scene.engine.borrowed_model() as model:
        device = model.cells_pe.device
        logits, _ = guided_decode(
            model,
            embedding,
            [prompts],
            guidance=torch.from_numpy(deviation.ravel()).to(device).sigmoid(),
            target=torch.from_numpy(one_shot.feature).to(device),
        )
        found: FloatArray = logits[0, 0].float().cpu().numpy()
        return found
