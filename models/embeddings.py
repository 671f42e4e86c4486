"""Keeps the embeddings of chips, in memory and on disk, so that a chip is encoded once.

An embedding is found by everything that it depends on (`EmbeddingKey`). A file carries its whole key and a
checksum; what does not match, or is damaged, is dropped and computed again. Several processes may share a
folder: files appear whole under their name or not at all, and a file that another process dropped is a miss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .storage import cache_folder

_logger = logging.getLogger(__name__)

MIB, GIB = 1 << 20, 1 << 30

_SUFFIX = ".safetensors"
_TEMPORARY_SUFFIX = ".tmp"
# A temporary file this old was left by a process that died; younger ones may be being written.
_STALE_S = 3600.0
# Room made at once when the folder is full, so that it is not listed again for every file; and what a process writes
# until it looks again at what others have written, so that N of them stay within 1 + N * this of the limit.
_SPARE_FRACTION = 0.05


@dataclass(frozen=True)
class EmbeddingKey:
    """Everything that an embedding depends on.

    `raster`: identity of the raster (path, length, time of change). `bands`: 1-based, in the order of the
    model. `window`: (col_off, row_off, size_px) in raster pixels. `stretch`: the numbers that map values to
    0..255. `checkpoint_sha256`: of the weights. `precision`: that of the encoder, such as "fp32".
    """

    raster: str
    bands: tuple[int, ...]
    window: tuple[int, int, int]
    stretch: tuple[float, ...]
    checkpoint_sha256: str
    precision: str

    @cached_property
    def text(self) -> str:
        """The whole key as JSON; equal keys and no others have equal texts."""
        # Not by `asdict`, which copies every number: keys of a whole view are asked for at every click.
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """The sha256 of `text` in hex: the name of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class CacheUsage:
    """What a cache folder holds: files and their bytes."""

    n_files: int
    n_bytes: int


class EmbeddingCache:
    """Embeddings by key: the latest in memory, more of them on disk, the least recently used dropped first.

    Safe to use from several threads, and from several processes on one folder (each counts what it wrote
    itself, and lists the folder whenever that is a twentieth of the limit). A folder that cannot be written
    leaves the cache in memory only, with one warning in the log.
    """

    def __init__(
        self, folder: Path | None = None, *, memory_bytes: int = 512 * MIB, disk_bytes: int = 10 * GIB
    ) -> None:
        """Use `folder` (default: `embeddings` in the cache folder) within two limits; 0 switches one off."""
        self.folder = folder if folder is not None else cache_folder() / "embeddings"
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._memory: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._memory_used = 0
        self._disk_used: int | None = None  # not known before the folder was listed
        self._n_files = 0  # as of then, and what was written since
        self._written_bytes = 0  # since then
        self._is_writable = disk_bytes > 0
        self._lock = threading.Lock()

    def get(self, key: EmbeddingKey) -> torch.Tensor | None:
        """Return the embedding, float16 on the CPU, shape as it was put; None where it is not known.

        The tensor is the cache's own: do not write to it.
        """
        with self._lock:
            found = self._memory.get(key.text)
            if found is not None:
                self._memory.move_to_end(key.text)
                return found
        found = self._read(key)
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, key: EmbeddingKey, embedding: torch.Tensor) -> None:
        """Keep an embedding, any shape, as float16 on the CPU; an older one of the same key is replaced."""
        kept = torch.from_numpy(embedding.detach().to("cpu", torch.float16).numpy().copy(order="C"))
        self._remember(key, kept)
        if not self._is_writable:
            return
        try:
            self._write(key, kept)
        except OSError as error:
            with self._lock:
                is_first, self._is_writable = self._is_writable, False
            if is_first:
                _logger.warning(
                    "Embeddings are kept in memory only, because %s cannot be written (%s); "
                    "choose another cache folder in Settings.",
                    self.folder,
                    error.strerror or error,
                )

    def __contains__(self, key: EmbeddingKey) -> bool:
        """Say whether `get` would find the embedding; reads only the head of its file."""
        with self._lock:
            if key.text in self._memory:
                return True
        try:
            with safe_open(self._path(key), framework="numpy") as file:
                return (file.metadata() or {}).get("key") == key.text
        except (OSError, SafetensorError) as error:
            _logger.debug("No embedding in %s: %s", self._path(key), error)
            return False

    def usage(self) -> CacheUsage:
        """Say what the folder holds; other processes' latest files may be missing. Lists it the first time."""
        with self._lock:
            if self._disk_used is None:
                self._list()
            return CacheUsage(self._n_files, self._disk_used or 0)

    def clear_memory(self) -> None:
        """Free the memory; the disk keeps its files."""
        with self._lock:
            self._memory.clear()
            self._memory_used = 0

    def _remember(self, key: EmbeddingKey, embedding: torch.Tensor) -> None:
        with self._lock:
            replaced = self._memory.pop(key.text, None)
            if replaced is not None:
                self._memory_used -= _n_bytes(replaced)
            if _n_bytes(embedding) > self._memory_bytes:
                return
            self._memory[key.text] = embedding
            self._memory_used += _n_bytes(embedding)
            while self._memory_used > self._memory_bytes:
                self._memory_used -= _n_bytes(self._memory.popitem(last=False)[1])

    def _path(self, key: EmbeddingKey) -> Path:
        return self.folder / key.digest[:2] / f"{key.digest}{_SUFFIX}"

    def _read(self, key: EmbeddingKey) -> torch.Tensor | None:
        """Read the file of a key; one that is damaged or of another key is removed."""
        path = self._path(key)
        try:
            # As numpy, because that copies out of the mapped file at once, without torch's threads: on a busy
            # machine waking those takes ten times as long as the copy.
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                embedding = torch.from_numpy(file.get_tensor("embedding"))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            self._drop(path, str(error))
            return None
        if metadata.get("key") != key.text:
            self._drop(path, "it belongs to another key")
            return None
        if embedding.dtype != torch.float16 or metadata.get("crc32") != _crc32(embedding):
            self._drop(path, "its content changed")
            return None
        _touch(path)
        return embedding

    def _drop(self, path: Path, reason: str) -> None:
        _logger.debug("Embedding %s is dropped: %s", path, reason)
        with self._lock:
            freed = _remove(path)
            if self._disk_used is not None and freed:
                self._disk_used -= freed
                self._n_files -= 1

    def _write(self, key: EmbeddingKey, embedding: torch.Tensor) -> None:
        data = save({"embedding": embedding}, metadata={"key": key.text, "crc32": _crc32(embedding)})
        if len(data) > self._disk_bytes:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(_TEMPORARY_SUFFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            with self._lock:
                replaced = _file_bytes(path)
                os.replace(temporary, path)
                if self._disk_used is not None:
                    self._disk_used += len(data) - replaced
                    self._n_files += not replaced
                    self._written_bytes += len(data)
        except PermissionError:
            _remove(Path(temporary))
            # On Windows a file that another process reads cannot be replaced; it holds the same embedding.
            if not path.exists():
                raise
        except OSError:
            _remove(Path(temporary))
            raise
        self._limit_disk(newest=path)

    def _limit_disk(self, *, newest: Path) -> None:
        """Remove what was not used for longest where there is more than the limit, never `newest`."""
        with self._lock:
            is_known = self._disk_used is not None and self._written_bytes <= self._disk_bytes * _SPARE_FRACTION
            if is_known and (self._disk_used or 0) <= self._disk_bytes:
                return
            # Listed anew, because other processes write to and remove from the folder as well.
            entries, used = self._list()
            if used <= self._disk_bytes:
                return
            for _, n_bytes, path in entries:
                if used <= self._disk_bytes * (1 - _SPARE_FRACTION):
                    break
                if path != newest:
                    _remove(path)
                    used -= n_bytes
                    self._n_files -= 1
            self._disk_used = used

    def _list(self) -> tuple[list[tuple[int, int, Path]], int]:
        """Entries of the folder, the least recently used first, and their bytes; both are noted."""
        entries = sorted(_list_entries(self.folder))
        used = sum(n_bytes for _, n_bytes, _ in entries)
        self._disk_used, self._n_files, self._written_bytes = used, len(entries), 0
        return entries, used


def _list_entries(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield (time of use in ns, bytes, path) of every file; temporary ones that a dead process left go."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue  # another process was faster
        if path.suffix == _SUFFIX:
            yield state.st_mtime_ns, state.st_size, path
        elif path.suffix == _TEMPORARY_SUFFIX and time.time() - state.st_mtime > _STALE_S:
            _remove(path)


def _remove(path: Path) -> int:
    """Remove a file where that is possible; return the bytes that it freed."""
    n_bytes = _file_bytes(path)
    try:
        path.unlink()
    except OSError as error:  # gone already, or open in another process on Windows
        _logger.debug("%s is not removed: %s", path, error)
        return 0
    return n_bytes


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _touch(path: Path) -> None:
    """Note the use of a file; a read-only folder has none."""
    now = time.time_ns()  # the file system's own clock ticks too slowly to order two reads
    with suppress(OSError):
        os.utime(path, ns=(now, now))


def _n_bytes(embedding: torch.Tensor) -> int:
    return embedding.element_size() * embedding.nelement()


def _crc32(embedding: torch.Tensor) -> str:
    return str(zlib.crc32(embedding.numpy().data))
