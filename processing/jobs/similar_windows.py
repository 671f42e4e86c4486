"""What a search for similar objects sees in one window: features, examples, and the masks that points find there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.features import rasterize
from scipy.ndimage import maximum_filter
from shapely.geometry.base import BaseGeometry

from ...models.backbone import Backbone
from ...models.prompts import LOW_RES_PX
from ...models.similarity import CELLS, BoolArray, FeatureSpace, FloatArray, cell_shares, mask_descriptor, unit
from ..errors import JobError
from ..raster.windows import SquareWindow, lattice_window
from .scene import Scene

# An example fills about a quarter of its window, as large a chip of the backbone shows it at the size of things in
# photographs, and its cells of 4 px are those of SAM's embedding.
_BACKBONE_PX = 4 * CELLS
# What lies around a mask: as far as two cells, an eighth of an object that fills a quarter of the window.
_RING_CELLS = 2


@dataclass(frozen=True, eq=False)
class WindowFeatures:
    """Features of one window: `parts` (CELLS, CELLS, C_i) float32, SAM's first; `valid` bool (CELLS, CELLS)."""

    window: SquareWindow
    parts: tuple[FloatArray, ...]
    valid: BoolArray


class FeatureReader:
    """Reads the features of windows of a scene, with those of the backbone where there is one."""

    def __init__(self, scene: Scene, backbone: Backbone | None) -> None:
        self._scene, self._backbone = scene, backbone

    def read(self, window: SquareWindow) -> WindowFeatures:
        """Encode a window, or take its embedding from the cache; cells without any data are not valid."""
        embedding = self._scene.embedding(window)
        parts = [np.ascontiguousarray(embedding.permute(1, 2, 0).float().numpy())]
        if self._backbone is not None:
            parts.append(self._kinds(window, self._backbone))
        return WindowFeatures(window, tuple(parts), self._valid(window))

    def _kinds(self, window: SquareWindow, backbone: Backbone) -> FloatArray:
        chip = self._scene.reader.read_chip(window, out_px=_BACKBONE_PX)
        found = backbone.features(chip.pixels).permute(1, 2, 0).float().numpy()
        padded = np.zeros((CELLS, CELLS, found.shape[2]), np.float32)
        padded[: found.shape[0], : found.shape[1]] = found
        return padded

    def _valid(self, window: SquareWindow) -> BoolArray:
        valid = np.zeros((CELLS, CELLS), np.bool_)
        rows, cols = (-(-n * CELLS // window.size_px) for n in window.inside(self._scene.reader.shape))
        valid[:rows, :cols] = True
        pixels = self._scene.valid(window)
        if pixels is not None:
            centres = ((np.arange(CELLS) + 0.5) * window.size_px / CELLS).astype(int)
            inside = np.ix_(centres[:rows].clip(max=len(pixels) - 1), centres[:cols].clip(max=pixels.shape[1] - 1))
            valid[:rows, :cols] = pixels[inside]
        return valid


@dataclass(frozen=True, eq=False)
class MaskTraits:
    """What is measured of N masks once, whatever is looked for.

    `score`, `stability` (N,); `inside`, `around` (N, C) unit descriptors of the masks and of what lies around them;
    `log_area` (N,) of square pixels of the raster; `log_elongation` (N,), 0 for a square; `fill` (N,) 1 for a
    rectangle, less for what is spread out.
    """

    score: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]
    inside: FloatArray
    around: FloatArray
    log_area: npt.NDArray[np.float64]
    log_elongation: npt.NDArray[np.float64]
    fill: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.score)

    def pick(self, index: npt.ArrayLike) -> MaskTraits:
        """The traits of some of the masks, by index or bool."""
        chosen = np.asarray(index)
        return MaskTraits(
            self.score[chosen],
            self.stability[chosen],
            self.inside[chosen],
            self.around[chosen],
            self.log_area[chosen],
            self.log_elongation[chosen],
            self.fill[chosen],
        )

    @classmethod
    def joined(cls, some: Sequence[MaskTraits]) -> MaskTraits:
        """One after the other."""
        names = ("score", "stability", "inside", "around", "log_area", "log_elongation", "fill")
        return cls(*(np.concatenate([getattr(each, name) for each in some]) for name in names))


def mask_traits(
    masks: BoolArray,
    descriptors: FloatArray,
    window: SquareWindow,
    *,
    score: npt.ArrayLike,
    stability: npt.ArrayLike,
) -> MaskTraits:
    """Measure masks (N, 256, 256) of a window, none empty, on its descriptors (CELLS, CELLS, C)."""
    shares = np.stack([cell_shares(mask) for mask in masks])  # (N, CELLS, CELLS)
    reach = maximum_filter(shares > 0, size=(1, 2 * _RING_CELLS + 1, 2 * _RING_CELLS + 1))
    ring = (reach & (shares < 0.5)).astype(np.float32)
    cells = descriptors.reshape(CELLS * CELLS, -1)
    shapes = np.array([_shape(mask) for mask in masks])  # (N, 3)
    cell_px = window.size_px / LOW_RES_PX
    return MaskTraits(
        np.asarray(score, np.float64),
        np.asarray(stability, np.float64),
        unit(shares.reshape(len(masks), -1) @ cells),
        unit(ring.reshape(len(masks), -1) @ cells),
        shapes[:, 0] + 2 * np.log(cell_px),
        shapes[:, 1],
        shapes[:, 2],
    )


def _shape(mask: BoolArray) -> tuple[float, float, float]:
    """Log of the number of cells, log elongation and fill of a mask, from its second moments."""
    rows, cols = np.nonzero(mask)
    # A cell is not a point: its own spread of 1/12 keeps a line of cells from having none.
    across, along = np.linalg.eigvalsh(np.cov(np.stack([rows, cols]), bias=True) + np.eye(2) / 12)
    # The moments of a rectangle of sides a and b are a^2 / 12 and b^2 / 12.
    return np.log(len(rows)), 0.5 * np.log(along / across), len(rows) / (12 * np.sqrt(along * across))


@dataclass(frozen=True, eq=False)
class Example:
    """An object given as an example: polygon in raster pixels and its mask (256, 256) on `features.window`."""

    outline_px: BaseGeometry
    mask: BoolArray
    features: WindowFeatures

    @cached_property
    def shares(self) -> FloatArray:
        """Share (CELLS, CELLS) of each cell that it covers."""
        return cell_shares(self.mask)

    def descriptor(self, space: FeatureSpace) -> FloatArray:
        """Its unit descriptor (C,)."""
        return mask_descriptor(space.describe(self.features.parts), self.shares)

    def background(self, space: FeatureSpace, *, reach_cells: int, others: BoolArray) -> FloatArray:
        """Descriptors (N, C) of the cells within `reach_cells` around it that no example covers.

        `others` (CELLS, CELLS): cells of the window that examples cover.
        """
        near = maximum_filter(self.shares > 0, size=2 * reach_cells + 1)
        # The first cell around an object mixes both.
        touched = maximum_filter(others | (self.shares > 0), size=3)
        found: FloatArray = space.describe(self.features.parts)[near & ~touched & self.features.valid]
        return found


def extent_px(outline_px: BaseGeometry) -> float:
    """The longer side of the bounds of an outline in raster pixels."""
    left, top, right, bottom = outline_px.bounds
    return float(max(right - left, bottom - top))


def read_example(reader: FeatureReader, outline_px: BaseGeometry, *, window_px: int, shape: tuple[int, int]) -> Example:
    """The example under an outline, seen in the lattice window of `window_px` around its middle.

    Raises `JobError` for an outline that covers nothing of the raster.
    """
    visible = shapely.intersection(outline_px, shapely.box(0, 0, shape[1], shape[0]))
    if visible.is_empty or visible.area <= 0:
        raise JobError("An example lies outside the raster; choose examples on its image.")
    left, top, right, bottom = visible.bounds
    window = lattice_window((left + right) / 2, (top + bottom) / 2, size_px=window_px, shape=shape)
    mask = draw(visible, window)
    if not mask.any():
        raise JobError(f"An example covers {visible.area:.2g} pixels of the raster, too few to learn from.")
    return Example(visible, mask, reader.read(window))


def draw(outline_px: BaseGeometry, window: SquareWindow) -> BoolArray:
    """An outline in raster pixels as mask (256, 256) of a window."""
    step = window.size_px / LOW_RES_PX
    to_window = Affine.translation(window.col_off, window.row_off) @ Affine.scale(step)
    grid = (LOW_RES_PX, LOW_RES_PX)
    drawn: BoolArray = rasterize([outline_px], out_shape=grid, transform=to_window, all_touched=False).astype(np.bool_)
    if not drawn.any():
        drawn = rasterize([outline_px], out_shape=grid, transform=to_window, all_touched=True).astype(np.bool_)
    return drawn


def mask_box(mask: BoolArray) -> FloatArray:
    """Left, top, right, bottom (4,) of the set cells of a mask that is not empty, right and bottom excluded."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], np.float32)
