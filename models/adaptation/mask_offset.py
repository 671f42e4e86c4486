"""Where an analyst draws an object beside where SAM sees it: learned from what was accepted.

Reference outlines often lie off the roofs by the same vector all over an image: footprints under an oblique view, or
maps that were registered to another image. SAM finds the roof, and without this every object costs the same clicks.
Of another image it says nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own custom

# Vectors of at most so many raster pixels along each axis are tried: 1.5 m at 30 cm.
_REACH_PX = 5
_SIDE = 2 * _REACH_PX + 1
# Objects before anything is learned, and that are remembered.
_FEWEST, _MOST = 5, 60
# Mean IoU that a vector must bring on each object when it is learned from the others.
_MARGIN = 0.01
# A mask that is another object than the accepted one says nothing about its place.
_LEAST_IOU = 0.2


class MaskOffset:
    """One vector for the image that moves SAM's first answers, if it proved itself on what was accepted."""

    def __init__(self) -> None:
        self._ious: deque[npt.NDArray[np.float64]] = deque(maxlen=_MOST)
        self._offset_px = (0, 0)

    @property
    def offset_px(self) -> tuple[int, int]:
        """How far first answers are moved, (x, y) in raster pixels; (0, 0) trusts SAM."""
        return self._offset_px

    def moved(self, logits: torch.Tensor, *, cell_px: float) -> torch.Tensor:
        """Move `logits` (256, 256), whose cells have a side of `cell_px` pixels, by the offset; edges repeat."""
        x, y = (round(value / cell_px) for value in self._offset_px)
        return _moved(logits, x, y) if x or y else logits

    def learn(self, mask: torch.Tensor, truth: torch.Tensor, *, pixel_px: float) -> None:
        """Take in a first answer and the accepted object, both (rows, cols) bool with pixels of `pixel_px`."""
        ious = np.array(
            [[_iou(_moved(mask, round(x / pixel_px), round(y / pixel_px)), truth) for x in _steps()] for y in _steps()]
        )
        if ious.max() >= _LEAST_IOU:
            self._ious.append(ious)
        self._choose()

    def state(self) -> torch.Tensor:
        """What was learned, (N, 121): per object the IoU for each vector, x fastest, both from -5 to 5 pixels."""
        return torch.tensor(np.reshape(list(self._ious), (-1, _SIDE**2)), dtype=torch.float32)

    def load_state(self, state: torch.Tensor) -> None:
        """Take over what `state` gave, in place of what was learned here."""
        self._ious = deque(state.double().numpy().reshape(-1, _SIDE, _SIDE), maxlen=_MOST)
        self._choose()

    def _choose(self) -> None:
        self._offset_px = (0, 0)
        if len(self._ious) < _FEWEST:
            return
        ious = np.stack(self._ious)
        total = ious.sum(axis=0)
        # Each object is moved by what the others say.
        by_others = [one.flat[int((total - one).argmax())] for one in ious]
        if np.mean(by_others) >= ious[:, _REACH_PX, _REACH_PX].mean() + _MARGIN:
            row, col = np.unravel_index(int(total.argmax()), total.shape)
            self._offset_px = int(col) - _REACH_PX, int(row) - _REACH_PX


def _steps() -> range:
    return range(-_REACH_PX, _REACH_PX + 1)


def _moved(picture: torch.Tensor, x: int, y: int) -> torch.Tensor:
    rows, cols = picture.shape
    padding = (max(x, 0), max(-x, 0), max(y, 0), max(-y, 0))
    padded = F.pad(picture[None, None].float(), padding, mode="replicate")[0, 0]
    return padded[max(-y, 0) : max(-y, 0) + rows, max(-x, 0) : max(-x, 0) + cols].to(picture.dtype)


def _iou(mask: torch.Tensor, truth: torch.Tensor) -> float:
    return float((mask & truth).sum() / (mask | truth).sum().clamp(min=1))
