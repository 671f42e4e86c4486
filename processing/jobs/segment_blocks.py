"""The blocks of a raster that is segmented: what one is, and how many are worked out in a row.

A block's answer depends on nothing but its task and its place, so that a run that goes on after a kill, and one on a
cluster, give what one run gives. A thread reads and a thread writes beside the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...models.device import choose_device
from ...models.progress import Progress, raise_if_cancelled
from ...models.semantic.package import load_segmenter
from ...models.semantic.prediction import BatchPredictor, device_of
from ...models.semantic.segmenter import Segmenter
from ..errors import JobError
from ..raster.band_reader import BandReader, open_bands
from ..raster.blend import Block, Bounds, Windows, plan_blocks
from ..raster.stretch import Stretch
from ..raster.tile_store import NODATA, encode_tile
from .block_answer import BlockAnswer, entropy_of
from .block_reader import Batch, End, read_blocks
from .lanes import Lanes

PER_CENT = 100
"""Largest value of confidence, entropy and probabilities, which are whole per cent."""
EXTRAS = ("confidence", "entropy", "probabilities")
"""What a block may hold beside its labels, in this order."""

# Two blocks are in memory: the model looks at one, another is written.
_BLOCK_BYTES = 128 * 2**20
# A kill costs at most one block, and a cluster wants many; larger ones save the windows that two blocks need.
_BLOCK_WINDOWS = 24
_WAITING = 2
"""Batches between two threads."""


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
    to_model: Queue[Batch | End | None] = Queue(_WAITING)
    to_writer: Queue[_Done | None] = Queue(1)
    predict = BatchPredictor(model, batch=task.batch, flips=task.flips)
    answer: BlockAnswer | None = None

    def read() -> None:
        is_cuda = device.type == "cuda"
        with closing(read_blocks(blocks, reader, windows, batch=task.batch, is_pinned=is_cuda)) as items:
            for item in items:
                lanes.put(to_model, item)
        lanes.put(to_model, None)

    with Lanes() as lanes:
        lanes.start(read)
        answers = lanes.items(to_writer)
        lanes.start(lambda: _write(task, items=answers, keep=keep))
        for item in lanes.items(to_model):
            raise_if_cancelled(progress)
            start = time.perf_counter()
            if isinstance(item, End):
                lanes.put(to_writer, _Done(item, answer))
                answer = None
                n_done += item.n_blank
            else:
                with _memory_told(item):
                    answer = answer or BlockAnswer(
                        item.block, windows, n_classes=task.n_classes, scale=reader.scale, device=device
                    )
                    answer.add(item.places, predict(item.pixels))
                model_s += time.perf_counter() - start
                n_windows += len(item.places)
                n_done += len(item.places)
            progress.set_fraction(n_done / total)
        lanes.put(to_writer, None)
    return Spent(n_windows, model_s)


class _Done(NamedTuple):
    """All that is known of a block; no answer where it has no data."""

    end: End
    answer: BlockAnswer | None


@contextmanager
def _memory_told(batch: Batch) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        n, *_, side = batch.pixels.shape
        raise JobError(
            f"The device has no memory for {n} windows of {side} px at once; choose a smaller batch, or another device."
        ) from error


def _write(task: SegmentTask, *, items: Iterable[_Done], keep: Callable[[Block, bytes], None]) -> None:
    for end, answer in items:
        keep(end.block, b"" if answer is None else _tile(task, end, answer))


def _tile(task: SegmentTask, end: End, answer: BlockAnswer) -> bytes:
    if end.valid is None or not end.valid.any():
        return b""
    answer.check()
    pixels = np.full((task.n_bands, *end.block.shape), NODATA, np.uint8)
    for part, labels in answer.labels():
        np.copyto(pixels[0, part], labels.cpu().numpy(), where=end.valid[part])
    if task.extras:
        for part, values in answer.probabilities():
            for band, extra in zip(pixels[1:], _extras(task, values), strict=True):
                np.copyto(band[part], _per_cent(extra), where=end.valid[part])
    return encode_tile(pixels)


def _extras(task: SegmentTask, values: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bands of a block beside its labels, (rows, cols) of 0 to 1 each, of probabilities (C, rows, cols)."""
    if "confidence" in task.extras:
        yield values.amax(dim=0)
    if "entropy" in task.extras:
        yield entropy_of(values)
    if "probabilities" in task.extras:
        yield from values


def _per_cent(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    whole: npt.NDArray[np.uint8] = (values.clamp(0, 1) * PER_CENT).round().to(torch.uint8).cpu().numpy()
    return whole
