"""Segments of chips: pieces of an image that look like one thing, which classes are cleaned and judged by."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from skimage.segmentation import slic
from torch.nn import functional

from ...models.card import ModelCard
from ...models.chips import Chips
from ...models.engine import MaskPrediction
from ...models.masks import stability_score
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.prompts import FOREGROUND, Prompts
from ..errors import JobError

SegmentKind = Literal["superpixels", "model", "none"]
KINDS: tuple[SegmentKind, ...] = ("none", "superpixels", "model")
"""No segments, SLIC's superpixels, or the masks of a promptable model; the default first."""

Segments = npt.NDArray[np.int32]

_SUPERPIXEL_PX = 100
"""Pixels of a superpixel: about a room at 30 cm, so that a small house still has some of its own."""
_POINTS_PER_SIDE = 16
# The rules of segment-anything's automatic mask generator, a little wider: segments only clean labels.
_LEAST_IOU, _LEAST_STABILITY = 0.8, 0.9
_LARGEST_SHARE = 0.5


class SegmentEngine(Protocol):
    """What is asked of a promptable model (`models.engine.InferenceEngine`)."""

    @property
    def card(self) -> ModelCard:
        """What is known of it."""

    def embed(self, chips: list[npt.NDArray[np.uint8]]) -> list[torch.Tensor]:
        """Encode chips (3, rows, cols)."""

    def predict(self, embedding: torch.Tensor, prompts: list[Prompts], *, multimask: bool) -> MaskPrediction:
        """Decode prompts."""


def superpixels(chips: Chips, *, size_px: float = _SUPERPIXEL_PX, progress: Progress | None = None) -> Segments:
    """Superpixels int32 (N, rows, cols), numbered from 1 within each chip; 0 without data. Raises `Cancelled`.

    `size_px`: about how many pixels each has.

    SLIC on the bands as they are, each stretched to the chip's own range (Achanta et al. 2012,
    https://doi.org/10.1109/TPAMI.2012.120).
    """
    progress = progress or NullProgress()
    found = np.zeros(chips.labels.shape, np.int32)
    for number, (pixels, valid) in enumerate(zip(chips.pixels, chips.valid, strict=True)):
        raise_if_cancelled(progress)
        if valid.any():
            values = np.moveaxis(pixels, 0, -1).astype(np.float32)
            spread = values[valid].std(axis=0)
            values /= np.maximum(spread, 1.0)
            # Compactness 0.4: space decides where bands differ by less than half of their usual spread.
            found[number] = slic(
                values,
                n_segments=max(2, int(pixels[0].size // size_px)),
                compactness=0.4,
                sigma=1.0,
                start_label=1,
                convert2lab=False,
                channel_axis=-1,
            )
            found[number][~valid] = 0
        progress.set_fraction((number + 1) / len(chips))
    return found


def model_segments(chips: Chips, engine: SegmentEngine, *, progress: Progress | None = None) -> Segments:
    """Masks that a promptable model finds from a lattice of points, int32 (N, rows, cols); 0 where it finds none.

    Small masks lie on top of large ones, and masks of more than half of a chip are no objects. Raises `JobError` for
    chips of other than three bands, and `Cancelled`.
    """
    progress = progress or NullProgress()
    if chips.n_bands != 3:
        raise JobError(
            f"{engine.card.name} sees three bands, the model {chips.n_bands}; choose superpixels, or no segments."
        )
    found = np.zeros(chips.labels.shape, np.int32)
    for number, (pixels, valid) in enumerate(zip(chips.pixels, chips.valid, strict=True)):
        raise_if_cancelled(progress)
        found[number] = np.where(valid, _masks(pixels, engine), 0)
        progress.set_fraction((number + 1) / len(chips))
    return found


def _masks(pixels: npt.NDArray[np.uint8], engine: SegmentEngine) -> Segments:
    rows, cols = pixels.shape[1:]
    zoom = engine.card.input_px / max(rows, cols)
    size = (round(rows * zoom), round(cols * zoom))
    image = functional.interpolate(torch.from_numpy(pixels)[None].float(), size=size, mode="bilinear")[0]
    embedding = engine.embed([image.round().to(torch.uint8).numpy()])[0]
    steps = (np.arange(_POINTS_PER_SIDE) + 0.5) / _POINTS_PER_SIDE
    points = np.stack(np.meshgrid(steps * size[1], steps * size[0]), axis=-1).reshape(-1, 1, 2).astype(np.float32)
    label = np.array([FOREGROUND])
    answer = engine.predict(embedding, [Prompts(points_xy=point, labels=label) for point in points], multimask=True)
    side = max(rows, cols)
    masks = []
    for i, m in np.argwhere(answer.iou >= _LEAST_IOU):
        logits = torch.from_numpy(answer.logits[i, m])[None, None]
        enlarged = functional.interpolate(logits, size=(side, side), mode="bilinear")[0, 0, :rows, :cols].numpy()
        mask = enlarged > 0
        if 0 < mask.mean() <= _LARGEST_SHARE and stability_score(enlarged) >= _LEAST_STABILITY:
            masks.append(mask)
    painted = np.zeros((rows, cols), np.int32)
    for number, mask in enumerate(sorted(masks, key=np.count_nonzero, reverse=True), 1):
        painted[mask] = number
    return painted
