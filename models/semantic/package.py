"""Model packages: one safetensors file with the weights and the card, whole models and small adapters alike.

Nothing is pickled. The card's text and every tensor are covered by one sha256, so that a changed byte is noticed. An
adapter holds only what differs from the weights that it is laid over: whole tensors, or low-rank products
(`NAME.lora_a`, `NAME.lora_b`) that are added to a weight.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import ModelError
from .card import CARD_KEY, PackageError, SegmenterCard, base_files, card_from_json
from .segmenter import Segmenter, build_segmenter

Tensors = Mapping[str, torch.Tensor]

LORA_A, LORA_B = ".lora_a", ".lora_b"
"""Endings of the two factors: `NAME.lora_b @ NAME.lora_a` is added to the weight NAME, flattened to (out, in)."""

_DIGEST_KEY = "sha256"
_EXTRA = "extra."
_STALE_S = 3600.0
"""Nobody writes a package for so long: who began it was killed."""


def save_segmenter(
    model: Segmenter, path: Path, *, extra: Tensors | None = None, adapter: Tensors | None = None
) -> str:
    """Write a package, whole or not at all, and return the sha256 of its content.

    `extra`: tensors that go with the model but are not weights (statistics of the source domain). `adapter`: write
    these tensors instead of the model's own; its card then must name `base_sha256`. Raises `PackageError` where the
    file cannot be written.
    """
    if adapter is not None and not model.card.base_sha256:
        raise PackageError("An adapter needs the sha256 of the model that it is laid over; name it on the card.")
    weights = model.state_dict() if adapter is None else adapter
    tensors = {name: _plain(value) for name, value in weights.items()}
    tensors |= {_EXTRA + name: _plain(value) for name, value in (extra or {}).items()}
    text = model.card.to_json()
    digest = content_sha256(text, tensors)
    part = part_of(path)
    try:
        part.write_bytes(save(tensors, metadata={CARD_KEY: text, _DIGEST_KEY: digest}))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PackageError(
            f"{path} cannot be written ({error.strerror or error}); choose a folder that you may write to, with space."
        ) from error
    return digest


def part_of(path: Path) -> Path:
    """A hidden file of its own beside `path` to write to; those that killed runs left of this name are removed."""
    left = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{8}}\.part")
    # One that another program holds does no harm but the space that it takes.
    with suppress(OSError):
        for other in path.absolute().parent.iterdir():
            if left.fullmatch(other.name) and time.time() - other.stat().st_mtime > _STALE_S:
                other.unlink()
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")


def load_segmenter(path: Path, *, base: Path | None = None) -> Segmenter:
    """The model of a package, in evaluation mode on the CPU.

    `base`: the model that an adapter is laid over; without it the file that the adapter names is looked for beside the
    adapter and where it was. Raises `PackageError` for a file that is no package, is damaged, or whose base is not
    found or another one.
    """
    card, tensors, _ = _read(path)
    if card.base_sha256 is None:
        model = build_segmenter(card)
        _fill(model, {name: value for name, value in tensors.items() if not name.startswith(_EXTRA)}, path)
        return model
    base_tensors = _read_base(card, path, [base] if base else [file for file in base_files(path) if file.is_file()])
    model = build_segmenter(replace(card, base_file=None, base_sha256=None))
    whole = {name: value for name, value in base_tensors.items() if not name.startswith(_EXTRA)}
    _fill(model, merged(whole, {n: v for n, v in tensors.items() if not n.startswith(_EXTRA)}), path)
    return model


def load_extra(path: Path) -> dict[str, torch.Tensor]:
    """The tensors beside the weights; of an adapter those that it brings itself. Raises `PackageError`."""
    return {name[len(_EXTRA) :]: value for name, value in _read(path)[1].items() if name.startswith(_EXTRA)}


def package_sha256(path: Path) -> str:
    """The sha256 of a package's content, checked against it. Raises `PackageError`."""
    return _read(path)[2]


def content_sha256(text: str, tensors: Tensors) -> str:
    """One digest of a text and of tensors with their names, in any order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def merged(base: Tensors, adapter: Tensors) -> dict[str, torch.Tensor]:
    """The weights of `base` with an adapter laid over: replaced, and low-rank products added."""
    result = dict(base)
    for name, value in adapter.items():
        if name.endswith(LORA_A):
            target = name[: -len(LORA_A)]
            if target not in result or target + LORA_B not in adapter:
                raise PackageError(f"The adapter changes '{target}', which the model does not have; get its own base.")
            weight = result[target]
            product = adapter[target + LORA_B].float() @ value.float()
            result[target] = (weight.float() + product.reshape(weight.shape)).to(weight.dtype)
        elif not name.endswith(LORA_B):
            result[name] = value
    return result


def changed_tensors(before: Tensors, after: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of `after` that are new or differ from `before`."""
    return {
        name: value
        for name, value in after.items()
        if name not in before or before[name].shape != value.shape or not bool(torch.equal(before[name], value))
    }


def _read_base(card: SegmenterCard, path: Path, candidates: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of the first of `candidates` that the adapter `path` was made for."""
    named, digest = Path(card.base_file or ""), str(card.base_sha256)
    failures = []
    for candidate in candidates:
        try:
            _, tensors, found = _read(candidate)
        except PackageError as error:
            failures.append(error)
            continue
        if found == digest:
            return tensors
        failures.append(
            PackageError(
                f"{path} was made for a model with the sha256 {digest[:12]}…, but that of {candidate} is "
                f"{found[:12]}…; put the right '{named.name}' beside it."
            )
        )
    if failures:
        raise failures[0]
    raise PackageError(
        f"{path} is an adapter for '{named.name}' (sha256 {digest[:12]}…), which is neither beside it nor at {named}; "
        "put that model beside it."
    )


def _read(path: Path) -> tuple[SegmenterCard, dict[str, torch.Tensor], str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise PackageError(f"There is no file {path}; choose a segmentation model that SegAdapt saved.") from None
    except (OSError, SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise PackageError(
            f"{path} cannot be read as a segmentation model ({error}); choose one that SegAdapt saved."
        ) from error
    text = metadata.get(CARD_KEY, "")
    card = card_from_json(text, path=path)
    digest = content_sha256(text, tensors)
    if metadata.get(_DIGEST_KEY) != digest:
        raise PackageError(f"{path} is damaged: its content is not what was saved. Get another copy of the model.")
    return card, tensors, digest


def _fill(model: Segmenter, tensors: Tensors, path: Path) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except (RuntimeError, ModelError) as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise PackageError(f"The weights in {path} do not fit its card ({first[:300]}); get another copy.") from error
    model.eval()


def _plain(value: torch.Tensor) -> torch.Tensor:
    # Views and channels_last layouts would be refused, or change the digest.
    return value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
