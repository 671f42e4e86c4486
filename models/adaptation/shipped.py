"""The adapters that come with SegAdapt."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ..errors import CheckpointError
from .adapter import SUFFIX, Adapter, load_adapter
from .refiner import MaskRefiner

SHIPPED_NAME = "eo"
"""Name of the adapter for Earth observation; its file is `eo_<model>.safetensors` beside this module."""

SIZES_M2, SIZES_PX, OFFSETS, RECTANGLES = "sizes_m2", "sizes_px", "offsets", "rectangles"
"""Tensors of an adapter: states of `MaskChoice` (one of the two), `MaskOffset` and `RectangleChoice`."""
# Sizes in pixels of an unknown size, of adapters that were saved before: they say nothing.
_OLD_SIZES = "choices"
_CHOICES = (SIZES_M2, SIZES_PX, OFFSETS, RECTANGLES, _OLD_SIZES)


@lru_cache(maxsize=4)
def shipped_refiner(model: str, checkpoint_sha256: str) -> MaskRefiner | None:
    """The refiner that ships for a model with these weights; None where there is none. Not to be changed: copy it."""
    path = Path(__file__).with_name(f"{SHIPPED_NAME}_{model}{SUFFIX}")
    if not path.is_file():
        return None
    return refiner_of(load_adapter(path, base_model=model, base_sha256=checkpoint_sha256))


def refiner_of(adapter: Adapter) -> MaskRefiner | None:
    """The refiner of an adapter; None where it holds choices of masks only.

    Raises `CheckpointError` for an adapter of another kind.
    """
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if name not in _CHOICES}
    if not tensors and adapter.tensors:
        return None
    refiner = MaskRefiner()
    try:
        refiner.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The adapter '{adapter.card.name}' is not a mask refiner; choose another one."
        ) from error
    return refiner.eval()
