"""A lock between processes, so that two of them never write the same download."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .progress import Progress, raise_if_cancelled

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_S = 0.2
# What some network drives answer: they cannot lock at all, and working unlocked beats not working.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def file_lock(path: Path, *, progress: Progress) -> Iterator[None]:
    """Hold the lock file `path`, waiting while another thread or process holds it; removed afterwards.

    The operating system frees the lock of a process that dies. Raises `Cancelled` when the user stops the
    wait, and `OSError` where the file cannot be made.
    """
    descriptor = _acquire(path)
    if descriptor is None:
        progress.info(f"Waiting for another SegAdapt that works on {path.stem}.")
    while descriptor is None:
        raise_if_cancelled(progress)
        time.sleep(_POLL_S)
        descriptor = _acquire(path)
    try:
        yield
    finally:
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(descriptor)
            with suppress(OSError):  # the next process opened it already and will remove it
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """Open and lock `path`; None where another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        # The holder before us removes the file: then we locked a file that nobody else can find.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except FileNotFoundError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return None
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
