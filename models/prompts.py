"""Prompts for one object, in pixels of the chip that the model sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PromptError

LOW_RES_PX = 256
"""Side of the decoder's logits and of the mask prompt it takes, in low-resolution cells (segment-anything)."""

FOREGROUND, BACKGROUND = 1, 0


def _no_points() -> npt.NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


def _no_labels() -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the user gave for one object.

    `points_xy`: (N, 2) float32 pixels of the chip, x right, y down, the centre of the first pixel is (0.5, 0.5).
    `labels`: (N,) int, 1 foreground, 0 background. `box_xyxy`: (4,) float32 left, top, right, bottom, or None.
    `mask_logits`: (256, 256) float32, logits of the previous answer in the same window, or None.
    Raises `PromptError` where shapes disagree, a number is not finite, or nothing at all is given.
    """

    points_xy: npt.NDArray[np.float32] = field(default_factory=_no_points)
    labels: npt.NDArray[np.int64] = field(default_factory=_no_labels)
    box_xyxy: npt.NDArray[np.float32] | None = None
    mask_logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Bring the arrays to their types and check them."""
        points = _array(self.points_xy, np.float32)
        labels = _array(self.labels, np.int64)
        if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
            raise PromptError(
                f"Points of shape {points.shape} with labels of shape {labels.shape}; give (N, 2) and (N,)."
            )
        if not np.isin(labels, (FOREGROUND, BACKGROUND)).all():
            raise PromptError(f"Labels {sorted(set(labels.tolist()))}; use 1 for foreground and 0 for background.")
        object.__setattr__(self, "points_xy", points)
        object.__setattr__(self, "labels", labels)
        _check_finite("Points", points)
        if self.box_xyxy is not None:
            box = _array(self.box_xyxy, np.float32)
            _check_finite("Box", box)
            if box.shape != (4,) or box[2] <= box[0] or box[3] <= box[1]:
                raise PromptError(f"Box {box.tolist()} is empty; give left < right and top < bottom.")
            object.__setattr__(self, "box_xyxy", box)
        if self.mask_logits is not None and self.mask_logits.shape != (LOW_RES_PX, LOW_RES_PX):
            raise PromptError(f"Mask logits of shape {self.mask_logits.shape}; give ({LOW_RES_PX}, {LOW_RES_PX}).")
        if not len(points) and self.box_xyxy is None and self.mask_logits is None:
            raise PromptError("No prompt given; add a point, a box or a mask.")

    @property
    def is_ambiguous(self) -> bool:
        """True for a single click without box or mask: the case in which the model offers three masks."""
        return len(self.points_xy) == 1 and self.box_xyxy is None and self.mask_logits is None

    def in_cells(self, input_px: int) -> Prompts:
        """The same prompts in cells of the logits (0 to 256) instead of pixels of a chip of `input_px`."""
        scale = LOW_RES_PX / input_px
        box = None if self.box_xyxy is None else self.box_xyxy * scale
        return Prompts(self.points_xy * scale, self.labels, box, self.mask_logits)


def _array(values: Any, dtype: type) -> npt.NDArray[Any]:
    return np.asarray(values, dtype=dtype)


def _check_finite(what: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise PromptError(f"{what} {values.tolist()} hold a number that is not finite; give pixels of the chip.")
