"""Adapters on disk: a small safetensors file whose metadata say what it is, what it fits and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError

_KEY = "segadapt_adapter"
_FORMAT = 1
SUFFIX = ".safetensors"
"""Ending of an adapter's file."""


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter is.

    `base_model` and `base_sha256` name the weights that it belongs to; `method` how it was made; `trained_on` the
    places or the raster; `n_objects` accepted or labelled objects; `licence` of the adapter; `metrics` what was
    measured, in words or numbers; `made_on` ISO date; `raster` a digest that tells the raster that it was learned on
    from others, "" for several or where it is not known.
    """

    name: str
    base_model: str
    base_sha256: str
    method: str
    trained_on: tuple[str, ...]
    n_objects: int
    licence: str
    made_on: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    raster: str = ""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A card and the tensors that are laid over the base model."""

    card: AdapterCard
    tensors: dict[str, torch.Tensor]


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write an adapter in half precision, complete or not at all. Raises `CheckpointError` where that fails."""
    metadata = {_KEY: json.dumps({"format": _FORMAT, **asdict(adapter.card)}, sort_keys=True)}
    unfinished = path.with_name(f".{path.name}.unfinished")
    tensors = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in adapter.tensors.items()}
    try:
        save_file(tensors, unfinished, metadata=metadata)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the adapter {path} ({error}); choose another folder.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_adapter(path: Path, *, base_model: str, base_sha256: str) -> Adapter:
    """Read an adapter for the given base weights, tensors as float32.

    Raises `CheckpointError` for a file that is no adapter, is damaged, or belongs to other weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as an adapter ({error}); choose a file that SegAdapt saved."
        ) from error
    card = _card(metadata.get(_KEY, ""), path)
    if card.base_sha256 != base_sha256:
        raise CheckpointError(
            f"The adapter {path} was made for {card.base_model} with weights {card.base_sha256[:12]}…; the model here "
            f"is {base_model} with weights {base_sha256[:12]}…. Choose that model, or another adapter."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"The adapter {path} holds numbers that are not finite; it is damaged, save it again.")
    return Adapter(card, tensors)


def _card(text: str, path: Path) -> AdapterCard:
    try:
        values = json.loads(text)
        if values.pop("format") != _FORMAT:
            raise CheckpointError(f"The adapter {path} has a format that this version does not know; update SegAdapt.")
        values["trained_on"] = tuple(values["trained_on"])
        return AdapterCard(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no adapter of SegAdapt; choose a file that SegAdapt saved.") from error
