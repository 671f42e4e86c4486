"""The inference engine: one model on one device, one caller at a time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .checkpoints import fetch_checkpoint, load_state_dict
from .device import DTYPES, choose_device, choose_precision, cpu_threads
from .errors import EngineError
from .progress import NullProgress, Progress, raise_if_cancelled
from .promptable.decode import DecodedFeatures
from .prompts import LOW_RES_PX, Prompts
from .registry import create_promptable, get_card

_LOG = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Unit = Literal["chips", "objects"]

# Chips per encoder call and objects per decoder call. On the CPU one at a time was measured fastest
# (the activations of one chip fill the caches); a GPU wants more work per launch.
_PER_CALL: dict[str, dict[_Unit, int]] = {
    "cpu": {"chips": 1, "objects": 1},
    "mps": {"chips": 2, "objects": 16},
    "cuda": {"chips": 8, "objects": 64},
}


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """Answers for N objects: `logits` float32 (N, M, 256, 256) over the padded chip, `iou` float32 (N, M) predicted.

    M is 1, or 3 where several masks were asked for.
    """

    logits: npt.NDArray[np.float32]
    iou: npt.NDArray[np.float32]


class InferenceEngine:
    """A promptable model, loaded and ready.

    `card`, `device` ("cpu", "cuda:0", "mps"), `device_reason` (a sentence), `precision` of the encoder ("fp32",
    "bf16", "fp16"; the decoder always computes in fp32, where bf16 was measured to change masks) and
    `checkpoint_sha256` are for reading. Safe to call from several threads; they take turns.

    Raises `CheckpointError` for weights that do not fit, `EngineError` for a device that does not work.
    """

    def __init__(
        self,
        model_name: str,
        *,
        checkpoint: Path,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.card = get_card(model_name)
        self.checkpoint_sha256 = self.card.checkpoint.sha256
        choice = choose_device(device)
        self.device, self.device_reason = choice.name, choice.reason
        torch.set_num_threads(threads or cpu_threads())
        self.precision = choose_precision(precision, self.device)
        self._lock = RLock()
        model = create_promptable(model_name)
        model.load_weights(load_state_dict(checkpoint))
        model.prepare_for_inference(torch.device(self.device), DTYPES[self.precision])
        self._model: Any = model
        kind = self.device.split(":")[0]
        self._per_call = dict(_PER_CALL[kind])

    def embed(self, chips: Sequence[npt.NDArray[np.uint8]], *, progress: Progress | None = None) -> list[torch.Tensor]:
        """Encode chips, each (3, rows, cols) uint8 with rows, cols <= card.input_px.

        Returns one float16 tensor (256, 64, 64) on the CPU per chip. Rounding to float16 here and not in the cache
        makes cached and fresh embeddings the same. Raises `Cancelled` between batches, `EngineError` when memory
        does not suffice for one chip.
        """
        for chip in chips:
            self._check_chip(chip)

        def encode(batch: Sequence[npt.NDArray[np.uint8]]) -> list[torch.Tensor]:
            embedding = self._running_model().embed([torch.from_numpy(np.ascontiguousarray(c)) for c in batch])
            return list(embedding.to("cpu", torch.float16).contiguous())

        with self._lock, torch.inference_mode():
            return self._in_batches(encode, chips, "chips", progress or NullProgress())

    def predict(
        self, embedding: torch.Tensor, prompts: Sequence[Prompts], *, multimask: bool = False
    ) -> MaskPrediction:
        """Decode the prompts of N objects against one embedding (256, 64, 64).

        Three masks per object with `multimask`, else one. An answer does not depend on the other objects.
        Raises `EngineError` when memory does not suffice for one object.
        """
        n_masks = 3 if multimask else 1
        logits = np.empty((len(prompts), n_masks, LOW_RES_PX, LOW_RES_PX), np.float32)
        iou = np.empty((len(prompts), n_masks), np.float32)
        with self._lock, torch.inference_mode():
            on_device = embedding.to(self.device)

            def decode(batch: Sequence[int]) -> list[None]:
                chosen = [prompts[i] for i in batch]
                some_logits, some_iou = self._running_model().predict(on_device, chosen, multimask=multimask)
                logits[batch], iou[batch] = some_logits.cpu().numpy(), some_iou.cpu().numpy()
                return [None] * len(batch)

            for same_kind in _group_by_kind(prompts):
                self._in_batches(decode, same_kind, "objects", NullProgress())
        return MaskPrediction(logits, iou)

    def predict_features(self, embedding: torch.Tensor, prompts: Prompts) -> DecodedFeatures:
        """Decode one object's prompts down to what its four masks are made of (on the CPU, usable in gradients).

        `embedding`: (256, 64, 64). Raises `EngineError` when memory does not suffice.
        """

        def decode(objects: Sequence[Prompts]) -> list[DecodedFeatures]:
            decoded = self._running_model().predict_features(embedding.to(self.device), objects[0])
            return [DecodedFeatures(*(part.cpu() for part in decoded))]

        with self._lock, torch.no_grad():
            return self._in_batches(decode, [prompts], "objects", NullProgress())[0]

    @contextmanager
    def borrowed_model(self) -> Iterator[Any]:
        """Hand out the promptable model itself, in inference mode, for a method that decodes in its own way.

        Everybody else waits meanwhile, so keep it short. Raises `EngineError` where the engine is closed.
        """
        with self._lock, torch.inference_mode():
            yield self._running_model()

    def close(self) -> None:
        """Free the device's memory. Calls after this raise `EngineError`."""
        with self._lock:
            self._model = None
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    def _running_model(self) -> Any:
        if self._model is None:
            raise EngineError(f"The engine of {self.card.name} is closed; open a new one.")
        return self._model

    def _check_chip(self, chip: npt.NDArray[np.uint8]) -> None:
        side = self.card.input_px
        fits = chip.ndim == 3 and chip.shape[0] == len(self.card.bands) and chip.dtype == np.uint8
        if not fits or not 0 < min(chip.shape) <= max(chip.shape) <= side:
            raise EngineError(
                f"A chip of shape {chip.shape} and type {chip.dtype}; {self.card.name} takes "
                f"({len(self.card.bands)}, rows, cols) uint8 of at most {side} px a side."
            )

    def _in_batches(
        self,
        work: Callable[[Sequence[_Item]], list[_Result]],
        items: Sequence[_Item],
        unit: _Unit,
        progress: Progress,
    ) -> list[_Result]:
        """Run `work` over `items`; on lack of memory halve the batch, remember that, and go on."""
        results: list[_Result] = []
        while len(results) < len(items):
            raise_if_cancelled(progress)
            n = self._per_call[unit]
            try:
                results += work(items[len(results) : len(results) + n])
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if n == 1:
                    raise EngineError(
                        f"{self.device} has not enough memory for {self.card.name}; close other programs, "
                        "choose a lighter model or the device 'cpu'."
                    ) from error
                _LOG.warning("Out of memory with %d %s on %s; going on with %d.", n, unit, self.device, n // 2)
                self._per_call[unit] = n // 2
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
            progress.set_fraction(len(results) / len(items))
        return results


def open_engine(
    model_name: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> InferenceEngine:
    """Find or download the weights of a model, verify them and return the engine.

    Raises `UnknownModelError`, `CheckpointError`, `EngineError`, or `Cancelled` during a download.
    """
    card = get_card(model_name)
    checkpoint = fetch_checkpoint(card, folder=checkpoint_folder, offline=offline, progress=progress or NullProgress())
    return InferenceEngine(model_name, checkpoint=checkpoint, device=device, precision=precision)


def _group_by_kind(prompts: Sequence[Prompts]) -> list[list[int]]:
    """Indices of prompts that give the same kinds and numbers: only those can share a decoder call unpadded."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, p in enumerate(prompts):
        kind = (len(p.points_xy), p.box_xyxy is not None, p.mask_logits is not None)
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator and MPS raise a plain RuntimeError; its text is the only sign.
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )
