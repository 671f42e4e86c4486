"""The source model in the place of a result that would do harm."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from ...models.semantic.card import read_card
from ...models.semantic.package import part_of, save_segmenter
from ...models.semantic.segmenter import Segmenter
from ..errors import JobError


def save_unchanged(
    model: Segmenter, source: Path, output: Path, *, extra: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Save the package `source`, which holds `model` and `extra`, as `output`: byte for byte, or whole for an adapter.

    Whole or not at all. Raises `JobError` where it cannot be written, `PackageError` as `save_segmenter` does.
    """
    if read_card(source).base_sha256 is not None:
        # An adapter would not find its base from another folder.
        save_segmenter(model, output, extra=extra)
        return
    part = part_of(output)
    try:
        shutil.copyfile(source, part)
        part.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise JobError(
            f"{output} cannot be written ({error.strerror or error}); choose a folder that you may write to, "
            "with space."
        ) from error
