"""The windows of a block, read in rows of windows: no pixel of a block is read twice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from ..raster.band_reader import BandReader, Pixels, Valid
from ..raster.blend import Block, Windows

_READERS = max(1, min(4, (os.cpu_count() or 1) - 1))
# Reading wide rows saves calls; resampling needs several floats for each of them.
_PIECE_PX = 2**19


class Batch(NamedTuple):
    """Windows of a block with data: (column, row) each, pixels uint8 (B, bands, rows, cols)."""

    block: Block
    places: list[tuple[int, int]]
    pixels: torch.Tensor


class End(NamedTuple):
    """A block is complete; `valid` (rows, cols) of its pixels on the raster, None where it has no data at all."""

    block: Block
    valid: Valid | None
    n_blank: int


def read_blocks(
    blocks: Iterable[Block], reader: BandReader, windows: Windows, *, batch: int, is_pinned: bool
) -> Generator[Batch | End, None, None]:
    """Yield the windows of each block in batches of at most `batch`, then its end.

    `is_pinned`: the pixels lie where a CUDA card fetches them on its own. Raises what reading raises.
    """
    side = windows.chip_px
    with ThreadPoolExecutor(_READERS) as pool:
        for block in blocks:
            places = windows.over(block.grid)
            cols = sorted({col for col, _ in places})
            grid_valid = np.zeros(block.grid_shape, np.bool_)
            found: list[tuple[int, int]] = []
            pixels = _empty(batch, reader, side, is_pinned=is_pinned)
            n_blank = 0
            for row, strip, valid in _strips(pool, reader, places, side):
                here, there = block.shared_with((side, strip.shape[2]), col_off=cols[0], row_off=row)
                grid_valid[here] = valid[there]
                for col in cols:
                    part = slice(col - cols[0], col - cols[0] + side)
                    if not valid[:, part].any():
                        n_blank += 1
                        continue
                    pixels.numpy()[len(found)] = strip[:, :, part]
                    found.append((col, row))
                    if len(found) == batch:
                        yield Batch(block, found, pixels)
                        found, pixels = [], _empty(batch, reader, side, is_pinned=is_pinned)
            if found:
                yield Batch(block, found, pixels[: len(found)])
            if n_blank == len(places):
                yield End(block, None, n_blank)
            else:
                yield End(block, grid_valid if reader.scale == (1, 1) else reader.read_valid(block.pixels), n_blank)


def _empty(batch: int, reader: BandReader, side: int, *, is_pinned: bool) -> torch.Tensor:
    return torch.empty((batch, len(reader.bands), side, side), dtype=torch.uint8, pin_memory=is_pinned)


def _strips(
    pool: ThreadPoolExecutor, reader: BandReader, places: Sequence[tuple[int, int]], side: int
) -> Iterator[tuple[int, Pixels, Valid]]:
    """Yield (first row, pixels (bands, side, cols), valid (side, cols)) of each row of windows, over all its columns.

    Only the rows that the last one did not have are read, in pieces, a few of them ahead.
    """
    rows = sorted({row for _, row in places})
    cols = sorted({col for col, _ in places})
    firsts = [rows[0], *(row + side for row in rows[:-1])]
    ends = [row + side for row in rows]
    wide = max(side, _PIECE_PX // side)
    right = cols[-1] + side
    lefts = range(cols[0], right, wide)
    pieces = (
        (left, first, min(wide, right - left), end - first)
        for first, end in zip(firsts, ends, strict=True)
        for left in lefts
    )
    found = _ahead(pool, reader.read, pieces)
    last: tuple[Pixels, Valid] | None = None
    for row, first in zip(rows, firsts, strict=True):
        parts = [next(found) for _ in lefts]
        pixels = np.concatenate([part for part, _ in parts], axis=2)
        valid = np.concatenate([part for _, part in parts], axis=1)
        if last is not None:
            n_shared = first - row
            pixels = np.concatenate([last[0][:, side - n_shared :], pixels], axis=1)
            valid = np.concatenate([last[1][side - n_shared :], valid])
        last = pixels, valid
        yield row, pixels, valid


def _ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[int, int, int, int], tuple[Pixels, Valid]],
    pieces: Iterable[tuple[int, int, int, int]],
) -> Iterator[tuple[Pixels, Valid]]:
    """Yield what `read` gives of each piece, in their order, while the next ones are read."""
    waiting: deque[Future[tuple[Pixels, Valid]]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(read, *piece))
        if len(waiting) > _READERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
