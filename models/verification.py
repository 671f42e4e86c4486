"""Is a weights file what its card says? Cheap at every start, and sure whenever the file changed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .card import ModelCard
from .errors import CheckpointError
from .progress import NullProgress, Progress, raise_if_cancelled

_logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
"""How much is hashed or copied between two looks at `Progress.is_cancelled`."""

_SPARE_BYTES = 16 << 20
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def file_sha256(path: Path, *, progress: Progress) -> str:
    """Return the sha256 of a file in hex. Raises `Cancelled` between chunks and `OSError`."""
    digest, done, n_bytes = hashlib.sha256(), 0, max(path.stat().st_size, 1)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            raise_if_cancelled(progress)
            digest.update(chunk)
            done += len(chunk)
            progress.set_fraction(done / n_bytes)
    return digest.hexdigest()


def verify_checkpoint(path: Path, card: ModelCard, *, progress: Progress | None = None) -> None:
    """Check that `path` holds the weights of `card`.

    A file that was verified before and has the same length and time of change is not hashed again.
    Raises `CheckpointError` for another content or an unreadable file, and `Cancelled`.
    """
    try:
        require_length(path, card)
        if _read_record(path) == _record(path, card):
            return
        sha256 = file_sha256(path, progress=progress or NullProgress())
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); give yourself permission to read it."
        ) from error
    require_sha256(path, card, sha256)
    remember_verified(path, card)


def require_length(path: Path, card: ModelCard) -> None:
    """Raise `CheckpointError` where `path` is not as long as the weights of `card`, as after truncation."""
    n_bytes = path.stat().st_size
    if n_bytes != card.checkpoint.n_bytes:
        raise _mismatch(path, card, f"it has {n_bytes} bytes instead of {card.checkpoint.n_bytes}")


def require_sha256(path: Path, card: ModelCard, sha256: str) -> None:
    """Raise `CheckpointError` where `sha256`, found for `path`, is not that of the weights of `card`."""
    if sha256 != card.checkpoint.sha256:
        raise _mismatch(path, card, f"its sha256 is {sha256[:12]}... instead of {card.checkpoint.sha256[:12]}...")


def remember_verified(path: Path, card: ModelCard) -> None:
    """Note beside `path` that its content was verified, so that it need not be hashed again."""
    try:
        _record_path(path).write_text(json.dumps(_record(path, card)), encoding="utf-8")
    except OSError as error:  # a read-only folder of a network drive: the file is hashed at every start
        _logger.debug("No record beside %s: %s", path, error)


def _mismatch(path: Path, card: ModelCard, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the published file of '{card.name}', because {reason}; "
        f"move it away so that SegAdapt can fetch them, or import the right {card.checkpoint.file_name}."
    )


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise `CheckpointError` where the disk of `folder` cannot take `n_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE_BYTES:
        raise CheckpointError(
            f"The weights need {n_bytes / 1e6:.0f} MB in {folder} but {free / 1e6:.0f} MB are free; "
            "free some space, or set SEGADAPT_HOME to a folder on another disk."
        )


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn what goes wrong when writing to `folder` into a `CheckpointError` with a remedy."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            message = f"The disk of {folder} is full; free some space, or"
        else:
            message = f"{folder} cannot be written ({error.strerror or error}); give yourself permission, or"
        raise CheckpointError(f"{message} set SEGADAPT_HOME to a folder on another disk.") from error


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified.json")


def _record(path: Path, card: ModelCard) -> dict[str, object]:
    state = path.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": card.checkpoint.sha256}


def _read_record(path: Path) -> object:
    try:
        return json.loads(_record_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # hashing again is always right
        _logger.debug("Unreadable record of %s: %s", path, error)
        return None
