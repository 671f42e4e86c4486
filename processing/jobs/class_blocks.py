"""What a class map knows of a part of the raster before any click: cells and segments with their features.

A raster is cut into the cores of overlapping windows. Cores do not overlap and each is described from its whole window,
so that a place has the same features whichever extent is mapped, and neighbours see nearly the same surroundings.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_matrix
from skimage.segmentation import slic
from torch.nn import functional

from ...models.backbone import STRIDE_PX, Backbone
from ...models.class_head import FeatureSpace, FloatArray, fit_feature_space
from ..errors import JobError
from ..raster.windows import WINDOW_SIZES_PX, Bounds, CoreCell, core_grid
from .scene import Scene

# Raw colours, their shares of the brightness, mean and deviation around a cell, deviation within it.
_COLOUR_CHANNELS = 15
_AROUND_CELLS = 5
# Relative weights of the groups, chosen with the head's constants.
_COLOUR_WEIGHT = 0.7
_BACKBONE_GROUPS = (16, 24, 40, 112)
_SAM_CHANNELS = 256
_LARGEST_WINDOW_PX = 1024
_HALO_FRACTION = 8
# A segment of 100 px at cells of 4 px: at most 85 % mIoU can be drawn with these on Dubai, 75 % with four times more.
_SEGMENT_CELLS = 6.25
_COMPACTNESS, _SLIC_STEPS = 10.0, 5
_SAMPLE_CELLS = 4000


@dataclass(eq=False)
class Block:
    """One core: `core_px` (left, top, right, bottom) raster pixels.

    `segments`: int32 (rows, cols), numbers from 0. `segment_units` float16 (S, D), `cell_units` float16
    (r + 2, c + 2, D), a cell of margin on each side, for squares of `cell_px`. `sizes_px` (S,), `centres_px` float32
    (S, 2) x, y in raster pixels. `valid`: bool (rows, cols), None where all is data. `kept` is for whoever maps.
    """

    core_px: tuple[int, int, int, int]
    cell_px: int
    segments: npt.NDArray[np.int32]
    segment_units: npt.NDArray[np.float16]
    cell_units: npt.NDArray[np.float16]
    sizes_px: npt.NDArray[np.int64]
    centres_px: FloatArray
    neighbours: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_] | None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays; a quarter more for what is kept."""
        arrays = (self.segments, self.segment_units, self.cell_units, self.neighbours)
        return sum(array.nbytes for array in arrays) * 5 // 4


@dataclass(frozen=True, eq=False)
class RawBlock:
    """What a block is made from: `cells` float16 (r + 2, c + 2, C), `pixels` uint8 (3, rows, cols) of the core."""

    core_px: tuple[int, int, int, int]
    cells: npt.NDArray[np.float16]
    pixels: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_] | None


class BlockReader:
    """Describes the blocks of a scene; without a `backbone`, or without SAM's neck, with less."""

    def __init__(
        self, scene: Scene, backbone: Backbone | None, *, window_px: int | None = None, with_sam: bool = True
    ) -> None:
        self._scene, self._backbone, self._with_sam = scene, backbone, with_sam
        self.window_px = window_px or _window_px(scene.reader.shape)
        # A small raster is worth a closer look: two pixels a cell, seen twice as large by the backbone.
        self.cell_px = 4 if self.window_px >= 512 else 2
        self.segment_px = _SEGMENT_CELLS * self.cell_px**2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster."""
        return self._scene.reader.shape

    def grid(self, bounds_px: Bounds | None = None) -> Sequence[CoreCell]:
        """The cores that meet the bounds, or all."""
        return core_grid(
            self.shape,
            size_px=self.window_px,
            halo_px=self.window_px // _HALO_FRACTION,
            bounds_px=bounds_px,
        )

    @property
    def groups(self) -> list[tuple[int, float]]:
        """Channels and weight of each group of features."""
        groups = [(_COLOUR_CHANNELS, _COLOUR_WEIGHT)]
        if self._backbone is not None:
            groups += [(channels, 1.0 / np.sqrt(len(_BACKBONE_GROUPS))) for channels in _BACKBONE_GROUPS]
        if self._with_sam:
            groups.append((_SAM_CHANNELS, 1.0))
        return groups

    def reading(self, cell: CoreCell) -> Generator[None, None, RawBlock]:
        """Read and encode one window, in steps: each network is one. Raises what reading and encoding raise."""
        scene, window = self._scene, cell.window
        left, top, right, bottom = cell.core_px
        core = np.s_[top - window.row_off : bottom - window.row_off, left - window.col_off : right - window.col_off]
        chip = scene.reader.read_chip(window, out_px=window.size_px)
        rows, cols = -(-(bottom - top) // self.cell_px), -(-(right - left) // self.cell_px)
        # Centres of the cells and of one more around them, in pixels of the window.
        y = (np.arange(-1, rows + 1) + 0.5) * self.cell_px + top - window.row_off
        x = (np.arange(-1, cols + 1) + 0.5) * self.cell_px + left - window.col_off
        parts = [_sampled(_colours(chip.pixels, self.cell_px), y, x, step_px=self.cell_px)]
        if self._backbone is not None:
            yield
            zoom = STRIDE_PX // self.cell_px
            closer = chip if zoom == 1 else scene.reader.read_chip(window, out_px=zoom * window.size_px)
            described = self._backbone.features(closer.pixels).float()
            parts.append(_sampled(described, y, x, step_px=self.cell_px))
        if self._with_sam:
            yield
            embedding = scene.embedding(window).float()
            parts.append(_sampled(embedding, y, x, step_px=window.size_px / embedding.shape[-1]))
        valid = None if chip.valid.all() else chip.valid[core]
        cells = np.concatenate(parts, axis=2)
        return RawBlock(cell.core_px, cells, chip.pixels[:, core[0], core[1]], valid)

    def fit_space(self, raws: Sequence[RawBlock]) -> FeatureSpace:
        """The feature space of these blocks, from an even sample of their cells that hold data.

        Raises `JobError` where they hold none.
        """
        samples = []
        for raw in raws:
            cells = raw.cells[1:-1, 1:-1]
            if raw.valid is not None:
                inside = raw.valid[:: self.cell_px, :: self.cell_px][: cells.shape[0], : cells.shape[1]]
                cells = cells[: inside.shape[0], : inside.shape[1]][inside]
            flat = cells.reshape(-1, cells.shape[-1])
            samples.append(flat[:: max(1, len(flat) // _SAMPLE_CELLS)])
        sample = np.concatenate(samples)
        if len(sample) < 2:
            raise JobError("The raster has no data here to begin a class map with; go where it has, and click there.")
        return fit_feature_space(sample, self.groups)

    def make_block(self, raw: RawBlock, space: FeatureSpace) -> Block:
        """Cut a core into segments and project all features."""
        shape = raw.cells.shape
        units = space.project(raw.cells.reshape(-1, shape[-1])).reshape(*shape[:2], -1)
        segments = _segments(raw.pixels, self.segment_px)
        n_segments = int(segments.max()) + 1
        inner = units[1:-1, 1:-1]
        pooled, sizes, centres = _pooled(segments, inner, n_segments, cell_px=self.cell_px)
        left, top = raw.core_px[:2]
        return Block(
            core_px=raw.core_px,
            cell_px=self.cell_px,
            segments=segments,
            segment_units=pooled.astype(np.float16),
            cell_units=units.astype(np.float16),
            sizes_px=sizes,
            centres_px=centres + np.array([left, top], np.float32),
            neighbours=_neighbours(segments),
            valid=raw.valid,
        )


def _window_px(shape: tuple[int, int]) -> int:
    """The model's own scale for large rasters, a closer look for those that are smaller than it sees."""
    longest = max(shape)
    return (
        next((size for size in WINDOW_SIZES_PX if size >= longest), _LARGEST_WINDOW_PX)
        if longest <= (_LARGEST_WINDOW_PX)
        else _LARGEST_WINDOW_PX
    )


def _sampled(features: torch.Tensor, y: Any, x: Any, *, step_px: float) -> npt.NDArray[np.float16]:
    """Features (C, r, c) on a grid of `step_px`, read at window pixels `y` x `x`, bilinear: float16 (Y, X, C)."""
    rows, cols = features.shape[1:]
    grid_y = torch.as_tensor(y, dtype=torch.float32) / (step_px * rows) * 2 - 1
    grid_x = torch.as_tensor(x, dtype=torch.float32) / (step_px * cols) * 2 - 1
    shape = (len(grid_y), len(grid_x))
    grid = torch.stack([grid_x.expand(shape), grid_y[:, None].expand(shape)], dim=-1)[None]
    read = functional.grid_sample(features[None], grid, padding_mode="border", align_corners=False)[0]
    return read.permute(1, 2, 0).to(torch.float16).contiguous().numpy()


def _colours(pixels: npt.NDArray[np.uint8], cell_px: int) -> torch.Tensor:
    """Colour of cells, (15, r, c): mean, shares of the brightness, mean and deviation around, deviation within."""
    bands, rows, cols = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, -rows % cell_px), (0, -cols % cell_px)), mode="edge")
    values = padded.astype(np.float32) / 255
    cells = values.reshape(bands, values.shape[1] // cell_px, cell_px, values.shape[2] // cell_px, cell_px)
    mean, deviation = cells.mean(axis=(2, 4)), cells.std(axis=(2, 4))
    around = np.stack([uniform_filter(band, _AROUND_CELLS) for band in mean])
    squares = np.stack([uniform_filter(band * band, _AROUND_CELLS) for band in mean])
    spread = np.sqrt(np.maximum(squares - around**2, 0))
    shares = mean / (mean.sum(axis=0, keepdims=True) + 1e-3)
    return torch.from_numpy(np.concatenate([mean, shares, around, spread, deviation]))


def _segments(pixels: npt.NDArray[np.uint8], segment_px: float) -> npt.NDArray[np.int32]:
    rows, cols = pixels.shape[1:]
    n_segments = max(1, round(rows * cols / segment_px))
    if n_segments == 1:
        return np.zeros((rows, cols), np.int32)
    found = slic(
        pixels.transpose(1, 2, 0),
        n_segments=n_segments,
        compactness=_COMPACTNESS,
        max_num_iter=_SLIC_STEPS,
        sigma=1.0,
        start_label=0,
        channel_axis=-1,
    )
    # Without gaps, whatever SLIC merged.
    numbered: npt.NDArray[np.int32] = np.unique(found, return_inverse=True)[1].reshape(rows, cols).astype(np.int32)
    return numbered


def _pooled(
    segments: npt.NDArray[np.int32], units: FloatArray, n_segments: int, *, cell_px: int
) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
    """Mean features (S, D) over the pixels of each segment, their number (S,), their centres (S, 2) x, y."""
    rows, cols = segments.shape
    row, col = np.mgrid[:rows, :cols]
    cell = (row // cell_px) * units.shape[1] + col // cell_px
    flat = segments.ravel()
    sizes = np.bincount(flat, minlength=n_segments)
    shares = coo_matrix(
        (np.ones(flat.size, np.float32), (flat, cell.ravel())), shape=(n_segments, units.shape[0] * units.shape[1])
    ).tocsr()
    pooled = (shares @ units.reshape(-1, units.shape[2])) / sizes[:, None]
    centres = np.stack([np.bincount(flat, place.ravel() + 0.5, n_segments) / sizes for place in (col, row)], axis=1)
    return pooled.astype(np.float32), sizes, centres.astype(np.float32)


def _neighbours(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Pairs (P, 2) of segments that share a side, each once."""
    right = np.stack([segments[:, :-1].ravel(), segments[:, 1:].ravel()], axis=1)
    below = np.stack([segments[:-1].ravel(), segments[1:].ravel()], axis=1)
    pairs = np.concatenate([right, below])
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1).astype(np.int64)
    codes = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    unique: npt.NDArray[np.int32] = np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1).astype(np.int32)
    return unique
