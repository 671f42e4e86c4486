"""The blocks of a raster that is segmented: what one is, and how many are worked out in a row.

A block's answer depends on nothing but its task and its place, so that a run that goes on after a kill, and one on a
cluster, give what one run gives. A thread reads and a thread writes beside the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...models.device import choose_device
from ...models.progress import Progress, raise_if_cancelled
from ...models.semantic.package import load_segmenter
from ...models.semantic.prediction import device_of, probabilities
from ...models.semantic.segmenter import Segmenter
from ..errors import JobError
from ..raster.band_reader import BandReader, open_bands
from ..raster.blend import Blend, Block, Bounds, FloatArray, Windows, plan_blocks
from ..raster.stretch import Stretch
from ..raster.tile_store import NODATA, encode_tile
from .class_map import entropy_of
from .lanes import Lanes

PER_CENT = 100
"""Largest value of confidence, entropy and probabilities, which are whole per cent."""
EXTRAS = ("confidence", "entropy", "probabilities")
"""What a block may hold beside its labels, in this order."""

# Two blocks are in memory: the model looks at one, another is written.
_BLOCK_BYTES = 128 * 2**20
# A kill costs at most one block, and a cluster wants many; larger ones save the windows that two blocks need.
_BLOCK_WINDOWS = 24
# Few enough that what is worked out of them stays near the processor.
_PART_VALUES = 2**20
_READERS = max(1, min(4, (os.cpu_count() or 1) - 1))
_WAITING = 2
"""Batches between two threads."""

Valid = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SegmentTask:
    """All that a block's answer depends on, small enough to be sent to a worker.

    `raster`, `bands`, `low`, `high` (the stretch), `crs_wkt` and `gsd_m` say what is read, `identity` what the raster
    was like; `package` and `sha256` which model answers, on `device`. `overlap`: the share of a window that the next
    one sees too, 0 to 0.75. `batch`: windows at once. `extras`: which of `EXTRAS` are wanted.
    `version`: of SegAdapt.
    """

    raster: str
    identity: str
    bands: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    crs_wkt: str | None
    gsd_m: float | None
    package: str
    sha256: str
    device: str
    chip_px: int
    n_classes: int
    overlap: float
    flips: bool
    batch: int
    extras: tuple[str, ...]
    version: str

    def key(self, bounds: Bounds) -> str:
        """A digest of the task in an extent: two with the same give the same result."""
        text = json.dumps({**asdict(self), "bounds": bounds}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def n_bands(self) -> int:
        """Bands of a block: the labels, then the extras."""
        return 1 + sum(self.n_classes if name == "probabilities" else 1 for name in self.extras)

    def bands_of(self, extra: str) -> tuple[int, ...]:
        """Which bands of a block, 1-based, hold one of the extras."""
        before = 2 + sum(1 for name in EXTRAS[: EXTRAS.index(extra)] if name in self.extras)
        return tuple(range(before, before + (self.n_classes if extra == "probabilities" else 1)))

    def windows(self, reader: BandReader) -> Windows:
        """Where the model looks."""
        overlap_px = min(self.chip_px - 1, round(self.overlap * self.chip_px))
        return Windows(self.chip_px, overlap_px, reader.grid_shape)

    def blocks(self, reader: BandReader, bounds: Bounds) -> list[Block]:
        """The blocks of an extent (left, top, right, bottom, raster pixels), each of bounded memory."""
        windows = self.windows(reader)
        step = windows.chip_px - windows.overlap_px
        bytes_per_px = 4 * self.n_classes + self.n_bands / (reader.scale[0] * reader.scale[1])
        side_px = min(_BLOCK_WINDOWS * step, int(math.sqrt(_BLOCK_BYTES / bytes_per_px)))
        return plan_blocks(windows, scale=reader.scale, bounds=bounds, side_px=side_px)


class Spent(NamedTuple):
    """Windows that the model saw, and the seconds that it took."""

    n_windows: int
    model_s: float


@contextmanager
def open_task(task: SegmentTask) -> Iterator[BandReader]:
    """The task's raster on the model's grid."""
    reader = open_bands(
        task.raster,
        bands=task.bands,
        gsd_m=task.gsd_m,
        stretch=Stretch(low=task.low, high=task.high),
        crs_wkt=task.crs_wkt,
    )
    with reader:
        yield reader


def open_model(package: Path, device: str) -> Segmenter:
    """The model of a package on a device: a torch name, or auto."""
    # Its name, not auto: a kill and a changed device must not mix.
    return load_segmenter(package).to(choose_device(device).name)


def run_blocks(
    task: SegmentTask,
    blocks: Sequence[Block],
    model: Segmenter,
    reader: BandReader,
    *,
    keep: Callable[[Block, bytes], None],
    progress: Progress,
) -> Spent:
    """Work blocks out, one after the other; `keep` gets each as `encode_tile` makes it, in a thread of its own.

    A block without data is given as no bytes. Raises `Cancelled`, and what reading, the model or `keep` raise; then
    no thread goes on.
    """
    windows, device = task.windows(reader), device_of(model)
    total = sum(len(windows.over(block.grid)) for block in blocks)
    n_windows, n_done, model_s = 0, 0, 0.0
    to_model: Queue[_Read | _End | None] = Queue(_WAITING)
    to_writer: Queue[_Done | None] = Queue(1)
    sums: _Sums | None = None
    with Lanes() as lanes:
        lanes.start(lambda: _read(task, blocks, reader, windows, put=lambda item: lanes.put(to_model, item)))
        answers = lanes.items(to_writer)
        lanes.start(lambda: _write(task, reader.scale, items=answers, keep=keep))
        for item in lanes.items(to_model):
            raise_if_cancelled(progress)
            start = time.perf_counter()
            if isinstance(item, _End):
                if sums is not None:
                    sums.wait()
                    model_s += time.perf_counter() - start
                lanes.put(to_writer, _Done(item, sums))
                sums = None
                n_done += item.n_blank
            else:
                with _memory_told(item):
                    sums = sums or _Sums(item.block, windows, n_classes=task.n_classes, device=device)
                    # As bytes to the device, where they become numbers.
                    pixels = torch.from_numpy(item.pixels).to(device)
                    sums.add(item, probabilities(model, pixels, flips=task.flips))
                model_s += time.perf_counter() - start
                n_windows += len(item.places)
                n_done += len(item.places)
            progress.set_fraction(n_done / total)
        lanes.put(to_writer, None)
    return Spent(n_windows, model_s)


class _Read(NamedTuple):
    """A batch of windows: (column, row) each, pixels (B, bands, rows, cols), valid (B, rows, cols)."""

    block: Block
    places: list[tuple[int, int]]
    pixels: npt.NDArray[np.uint8]
    valid: Valid


class _End(NamedTuple):
    """A block is complete; `valid` (rows, cols) of the raster's pixels where those are not the grid's."""

    block: Block
    valid: Valid | None
    n_blank: int


class _Sums:
    """What the windows say of one block, weighted and added up on the model's device: only the sums leave it."""

    def __init__(self, block: Block, windows: Windows, *, n_classes: int, device: torch.device) -> None:
        self._block, self._device = block, device
        self._taper = torch.from_numpy(windows.taper()).to(device)
        self._values = torch.zeros((n_classes, *block.grid_shape), device=device)
        self.valid: Valid = np.zeros(block.grid_shape, np.bool_)
        """Grid pixels (rows, cols) that some window had data for."""

    def add(self, batch: _Read, answers: torch.Tensor) -> None:
        """Add probabilities (B, C, rows, cols)."""
        for (col_off, row_off), answer, valid in zip(batch.places, answers, batch.valid, strict=True):
            here, there = self._block.shared_with(len(self._taper), col_off=col_off, row_off=row_off)
            self._values[:, here[0], here[1]].addcmul_(answer[:, there[0], there[1]], self._taper[there])
            self.valid[here] |= valid[there]

    def wait(self) -> None:
        """Wait until the device has added everything."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def values(self) -> FloatArray:
        """The sums (C, rows, cols). Raises `JobError` where they are no numbers."""
        values: FloatArray = self._values.cpu().numpy()
        if not np.isfinite(values).all():
            raise JobError("The model answers with numbers that are not finite; its training failed, use another one.")
        return values


class _Done(NamedTuple):
    """All that is known of a block; no sums where it has no data."""

    end: _End
    sums: _Sums | None


def _read(
    task: SegmentTask,
    blocks: Iterable[Block],
    reader: BandReader,
    windows: Windows,
    *,
    put: Callable[[Any], None],
) -> None:
    side = windows.chip_px
    with ThreadPoolExecutor(_READERS) as pool:
        for block in blocks:
            places = windows.over(block.grid)
            batch: list[tuple[tuple[int, int], npt.NDArray[np.uint8], Valid]] = []
            n_blank = 0
            for start in range(0, len(places), task.batch):
                part = places[start : start + task.batch]
                found = pool.map(lambda place: reader.read(place[0], place[1], side, side), part)
                for place, (pixels, valid) in zip(part, found, strict=True):
                    if not valid.any():
                        n_blank += 1
                        continue
                    batch.append((place, pixels, valid))
                    if len(batch) == task.batch:
                        put(_batch(block, batch))
                        batch = []
            if batch:
                put(_batch(block, batch))
            is_known = reader.scale == (1, 1) or n_blank == len(places)
            put(_End(block, None if is_known else reader.read_valid(block.pixels), n_blank))
    put(None)


def _batch(block: Block, batch: Sequence[tuple[tuple[int, int], npt.NDArray[np.uint8], Valid]]) -> _Read:
    places, pixels, valid = zip(*batch, strict=True)
    return _Read(block, list(places), np.stack(pixels), np.stack(valid))


@contextmanager
def _memory_told(batch: _Read) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        n, *_, side = batch.pixels.shape
        raise JobError(
            f"The device has no memory for {n} windows of {side} px at once; choose a smaller batch, or another device."
        ) from error


def _write(
    task: SegmentTask, scale: tuple[float, float], *, items: Iterable[_Done], keep: Callable[[Block, bytes], None]
) -> None:
    for end, sums in items:
        keep(end.block, b"" if sums is None else _tile(task, scale, end, sums))


def _tile(task: SegmentTask, scale: tuple[float, float], end: _End, sums: _Sums) -> bytes:
    valid = sums.valid if end.valid is None else end.valid
    if not valid.any():
        return b""
    blend = Blend(end.block, sums.values(), scale=scale)
    pixels = np.full((task.n_bands, *end.block.shape), NODATA, np.uint8)
    rows = max(1, _PART_VALUES // (task.n_classes * end.block.shape[1]))
    labels, extras = pixels[0], pixels[1:]
    for part, answer in blend.labels(rows):
        np.copyto(labels[part], answer, where=valid[part])
    if len(extras):
        for part, values in blend.probabilities(rows):
            for band, answer in zip(extras, _extras(task, values), strict=True):
                np.copyto(band[part], answer, where=valid[part])
    return encode_tile(pixels)


def _extras(task: SegmentTask, values: FloatArray) -> Iterator[npt.NDArray[np.uint8]]:
    """The bands of a block beside its labels, uint8 (rows, cols) each, of probabilities (C, rows, cols)."""
    if "confidence" in task.extras:
        yield _per_cent(values.max(axis=0))
    if "entropy" in task.extras:
        yield _per_cent(entropy_of(np.moveaxis(values, 0, -1)))
    if "probabilities" in task.extras:
        yield from (_per_cent(value) for value in values)


def _per_cent(values: FloatArray) -> npt.NDArray[np.uint8]:
    whole: npt.NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * PER_CENT).astype(np.uint8)
    return whole
