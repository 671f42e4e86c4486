"""Class probabilities of many chips: in batches, in the precision that is fastest, with flips where wanted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ..chips import Chips
from ..device import DTYPES, choose_precision
from ..metrics import Confusion, confusion_matrix
from ..progress import NullProgress, Progress, raise_if_cancelled
from .card import SegmenterCard
from .segmenter import Segmenter

FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Axes of (B, C, rows, cols) that are mirrored at test time: none, columns, rows, both."""

# As https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs does it.
_CALLS_BEFORE_RECORD = 3


def device_of(model: Segmenter) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where it is faster on this device: bf16 or fp16 for convolutions, weights stay fp32."""
    precision = precision_of(str(device))
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


@lru_cache(maxsize=8)
def precision_of(device: str) -> str:
    """What `autocast` computes in there: "fp32", "bf16" or "fp16", found out once."""
    return choose_precision("auto", device)


def probabilities(model: Segmenter, pixels: torch.Tensor, *, flips: bool = False) -> torch.Tensor:
    """Softmax (B, C, rows, cols) float32 of pixels (B, bands, rows, cols) of 0 to 255, on the model's device.

    With `flips` the mean over the four mirror images (test-time augmentation).
    """
    device = device_of(model)
    pixels = pixels.to(device, torch.float32)
    axes = FLIPS if flips else FLIPS[:1]
    with torch.inference_mode(), autocast(device):
        answers = (torch.softmax(model(torch.flip(pixels, flip)).float(), dim=1) for flip in axes)
        turned = (torch.flip(answer, flip) for answer, flip in zip(answers, axes, strict=True))
        return functools.reduce(torch.add, turned) / len(axes)


def windows_at_once(card: SegmenterCard, side_px: int, *, batch: int) -> int:
    """How many windows of `side_px` have the pixels of a `batch` of chips that a model was trained on; at least 1."""
    return max(1, batch * card.chip_px**2 // side_px**2)


class BatchPredictor:
    """`probabilities` of many batches of chips of one shape, on the model's device.

    A CUDA card gets `batch` chips every time, as choosing kernels for another number takes seconds, and one batch more
    than it is at. Where it can, it repeats a record of all kernels of a batch (a CUDA graph): small networks are
    faster than Python can start their kernels one by one, the more so beside threads that read and write.
    """

    def __init__(self, model: Segmenter, *, batch: int, flips: bool = False) -> None:
        self._model, self._batch, self._flips = model, batch, flips
        self._device = device_of(model)
        self._before: torch.cuda.Event | None = None
        self._record: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None
        self._whole: torch.Tensor | None = None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Softmax (B, C, rows, cols) float32 of pixels uint8 (B, bands, rows, cols), B at most `batch`.

        On a CUDA card it is being worked out when this returns, and holds until the next call.
        """
        if self._device.type != "cuda":
            return probabilities(self._model, pixels.to(self._device), flips=self._flips)
        if self._whole is None:
            self._whole = torch.zeros((self._batch, *pixels.shape[1:]), dtype=torch.uint8, device=self._device)
            self._record = self._recorded(self._whole)
        self._whole[: len(pixels)].copy_(pixels, non_blocking=True)
        if self._record is None:
            answer = probabilities(self._model, self._whole, flips=self._flips)
        else:
            graph, answer = self._record
            graph.replay()
        if self._before is not None:
            self._before.synchronize()
        self._before = torch.cuda.current_stream(self._device).record_event()
        return answer[: len(pixels)]

    def _recorded(self, whole: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor] | None:
        """The kernels that answer what lies in `whole`, and where their answer will lie; None where they vary."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Kernels are chosen and memory is laid out in the first calls, which no record may hold.
            aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(aside):
                for _ in range(_CALLS_BEFORE_RECORD):
                    probabilities(self._model, whole, flips=self._flips)
            torch.cuda.current_stream(self._device).wait_stream(aside)
            # The reader's thread asks for memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                answer = probabilities(self._model, whole, flips=self._flips)
        except RuntimeError:
            return None
        return graph, answer


def predict_chips(
    model: Segmenter,
    chips: Chips,
    *,
    batch: int = 8,
    flips: bool = False,
    coarser: float = 1.0,
    progress: Progress | None = None,
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield (chips, probabilities (b, C, rows, cols)) batch by batch. Raises `Cancelled` between batches.

    `coarser`: the model's pixels are so many times as large as those of the chips: it sees means, and its answers are
    enlarged.
    """
    progress = progress or NullProgress()
    model.eval()
    for start in range(0, len(chips), batch):
        raise_if_cancelled(progress)
        part = slice(start, min(start + batch, len(chips)))
        pixels = torch.from_numpy(chips.pixels[part])
        size = pixels.shape[2:]
        if coarser != 1:
            reduced = [max(1, round(side / coarser)) for side in size]
            pixels = functional.interpolate(pixels.float(), size=reduced, mode="area")
        answer = probabilities(model, pixels, flips=flips)
        if answer.shape[2:] != size:
            answer = functional.interpolate(answer, size=size, mode="bilinear", align_corners=False)
        yield part, answer.cpu().numpy()
        progress.set_fraction(part.stop / len(chips))


def predict_labels(model: Segmenter, chips: Chips, *, batch: int = 8) -> npt.NDArray[np.uint8]:
    """Class ids uint8 (N, rows, cols)."""
    labels = np.empty(chips.labels.shape, np.uint8)
    for part, answer in predict_chips(model, chips, batch=batch):
        labels[part] = answer.argmax(axis=1)
    return labels


def evaluate_chips(model: Segmenter, chips: Chips, *, batch: int = 8) -> Confusion:
    """The confusion matrix (C, C) over all labelled pixels."""
    return confusion_matrix(chips.labels, predict_labels(model, chips, batch=batch), n_classes=len(model.card.classes))
