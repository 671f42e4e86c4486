"""Chips of a raster with labels from polygons or from a label raster: what models are trained and judged on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from ...models.chips import Chips
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.semantic.card import IGNORE
from ..errors import JobError
from ..raster.access import gdal_access
from ..raster.band_reader import BandReader
from ..raster.geodesy import apply_affine
from ..raster.reader import parse_crs

Labels = npt.NDArray[np.uint8]

_LEAST_VALID = 0.1
"""A chip with a smaller share of data is left out."""
_BLOCKS_WANTED, _LARGEST_BLOCK_CHIPS = 8, 4


class LabelSource(Protocol):
    """Where labels come from."""

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> Labels:
        """Class ids uint8 (rows, cols) of a window of the grid; `IGNORE` where nothing is known."""


class PolygonLabels:
    """Labels drawn as polygons on a reader's grid; a later polygon covers an earlier one.

    `polygons` are in the raster's CRS, `class_ids` name the class of each. `background`: class of what no polygon
    covers; None leaves it unknown. Raises `JobError` where no polygon meets the raster.
    """

    def __init__(
        self,
        reader: BandReader,
        polygons: Sequence[BaseGeometry],
        class_ids: Sequence[int],
        *,
        background: int | None = None,
    ) -> None:
        usable = [
            (polygon, class_id)
            for polygon, class_id in zip(polygons, class_ids, strict=True)
            if polygon is not None and not polygon.is_empty
        ]
        if not usable:
            raise JobError("The labels hold no polygon; draw some, or choose another layer.")
        to_grid = ~reader.grid_transform
        self._outlines = shapely.transform(
            np.array([polygon for polygon, _ in usable], object), lambda xy: apply_affine(to_grid, xy)
        )
        self._class_ids = np.array([class_id for _, class_id in usable], np.uint8)
        self._background = IGNORE if background is None else background
        self._tree = shapely.STRtree(self._outlines)
        rows, cols = reader.grid_shape
        if not len(self._tree.query(shapely.box(0, 0, cols, rows), predicate="intersects")):
            raise JobError(
                f"None of the {len(usable)} label polygons lies on {Path(reader.path).name}; check the CRS of both."
            )

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> Labels:
        """Class ids of a window; a pixel belongs to the polygon that holds its centre."""
        window = shapely.box(col_off, row_off, col_off + cols, row_off + rows)
        found = np.sort(self._tree.query(window, predicate="intersects"))
        if not len(found):
            return np.full((rows, cols), self._background, np.uint8)
        drawn: Labels = rasterize(
            [(self._outlines[n], int(self._class_ids[n])) for n in found],
            out_shape=(rows, cols),
            fill=self._background,
            transform=Affine.translation(col_off, row_off),
            dtype="uint8",
        )
        return drawn

    def conflicts(self) -> int:
        """How many pairs of polygons of different classes overlap by more than a hundredth of the smaller one."""
        left, right = self._tree.query(self._outlines, predicate="overlaps")
        pairs = [(a, b) for a, b in zip(left, right, strict=True) if a < b and self._class_ids[a] != self._class_ids[b]]
        return sum(
            shapely.area(shapely.intersection(self._outlines[a], self._outlines[b]))
            > 0.01 * min(shapely.area(self._outlines[a]), shapely.area(self._outlines[b]))
            for a, b in pairs
        )


class RasterLabels:
    """Labels from a raster of class values, brought to a reader's grid by nearest neighbour.

    `classes` maps stored values to class ids; other values, nodata and the ground beyond are `IGNORE`. `crs_wkt`
    replaces the file's CRS where the file says how its pixels lie on a map. A label raster without CRS must have the
    raster's own shape. Raises `JobError` for one that cannot be placed, `RasterError` for a CRS that is not understood
    and a file that cannot be read. Close it after use.
    """

    def __init__(
        self, reader: BandReader, path: Path, classes: Mapping[int, int], *, crs_wkt: str | None = None
    ) -> None:
        self._path = path
        self._table = np.full(256, IGNORE, np.uint8)
        for value, class_id in classes.items():
            if not 0 <= value <= 255:
                raise JobError(f"The label raster {path} has the value {value}; use values of 0 to 255.")
            self._table[value] = class_id
        self._shape, self._scale = reader.grid_shape, reader.scale
        with self._access(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._dataset = rasterio.open(path)
            self._nodata = self._dataset.nodata
            if self._dataset.dtypes[0] not in ("uint8", "int8", "int16", "uint16", "int32", "uint32"):
                self._dataset.close()
                raise JobError(f"The label raster {path} holds {self._dataset.dtypes[0]} values; use whole class ids.")
            # A plain picture lies where its raster does, whatever CRS QGIS gave it.
            is_placed = self._dataset.transform != Affine.identity()
            self._crs = parse_crs(crs_wkt) if crs_wkt and is_placed else self._dataset.crs
            self._is_plain = self._crs is None or reader.crs is None
            if self._is_plain and self._dataset.shape != reader.shape:
                self._dataset.close()
                raise JobError(
                    f"The label raster {path} has no CRS and {self._dataset.shape[1]} x {self._dataset.shape[0]} px, "
                    f"the raster {reader.shape[1]} x {reader.shape[0]}; give it a CRS or the same pixels."
                )
            self._warped = (
                self._dataset
                if self._is_plain
                else WarpedVRT(
                    self._dataset,
                    src_crs=self._crs,
                    crs=reader.crs,
                    transform=reader.grid_transform,
                    width=self._shape[1],
                    height=self._shape[0],
                    resampling=Resampling.nearest,
                    nodata=self._nodata,
                    # Without nodata nothing else tells the ground beyond from the value 0.
                    add_alpha=self._nodata is None,
                )
            )
        if not self._is_plain and not self._meets(reader):
            self.close()
            raise JobError(f"The label raster {path} does not lie on {Path(reader.path).name}; check the CRS of both.")

    def __enter__(self) -> RasterLabels:
        """Return the source itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the raster."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._warped is not self._dataset:
            self._warped.close()
        self._dataset.close()

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> Labels:
        """Class ids of a window of the grid."""
        labels = np.full((rows, cols), IGNORE, np.uint8)
        left, top = max(0, col_off), max(0, row_off)
        right, bottom = min(self._shape[1], col_off + cols), min(self._shape[0], row_off + rows)
        if left >= right or top >= bottom:
            return labels
        covered: npt.NDArray[np.bool_] | bool
        with self._access():
            if self._is_plain:
                # Nearest neighbour by the grid's own geometry.
                x = np.clip(
                    ((np.arange(left, right) + 0.5) / self._scale[1]).astype(np.intp), 0, self._dataset.width - 1
                )
                y = np.clip(
                    ((np.arange(top, bottom) + 0.5) / self._scale[0]).astype(np.intp), 0, self._dataset.height - 1
                )
                part = Window(x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1)
                stored = self._dataset.read(1, window=part)[np.ix_(y - y[0], x - x[0])]
                covered = True
            else:
                part = Window(left, top, right - left, bottom - top)
                stored = self._warped.read(1, window=part)
                # The alpha band itself: as a mask it is 255 everywhere in signed and in 32-bit rasters.
                covered = self._nodata is not None or self._warped.read(2, window=part) > 0
        known = covered & (stored >= 0) & (stored <= 255)
        if self._nodata is not None:
            known &= stored != self._nodata
        inside = labels[top - row_off : bottom - row_off, left - col_off : right - col_off]
        inside[known] = self._table[stored[known].astype(np.intp)]
        return labels

    def _access(self) -> AbstractContextManager[None]:
        return gdal_access(str(self._path), verb="read", remedy="check the path and the file")

    def _meets(self, reader: BandReader) -> bool:
        from rasterio.warp import transform_bounds

        left, bottom, right, top = transform_bounds(self._crs, reader.crs, *self._dataset.bounds)
        rows, cols = reader.shape
        corners = apply_affine(reader.transform, np.array([(0.0, 0), (cols, 0), (0, rows), (cols, rows)]))
        return bool(
            left < corners[:, 0].max()
            and right > corners[:, 0].min()
            and bottom < corners[:, 1].max()
            and top > corners[:, 1].min()
        )


def count_chips(
    reader: BandReader,
    *,
    chip_px: int,
    labels: LabelSource | None = None,
    n_most: int,
    progress: Progress | None = None,
) -> int:
    """How many chips `cut_chips` would look at, only those with a label where `labels` are given; `n_most` at the most.

    Whether they hold data is not looked at. Raises `Cancelled`.
    """
    progress = progress or NullProgress()
    rows, cols = reader.grid_shape
    places = _places((0, 0, cols, rows), chip_px=chip_px, step=chip_px)
    if labels is None:
        return min(n_most, len(places))
    n = 0
    for col, row in places:
        raise_if_cancelled(progress)
        n += bool((labels.read(col, row, chip_px, chip_px) != IGNORE).any())
        if n == n_most:
            break
    return n


def cut_chips(
    reader: BandReader,
    *,
    chip_px: int,
    labels: LabelSource | None = None,
    bounds_px: tuple[float, float, float, float] | None = None,
    stride_px: int | None = None,
    block_px: int | None = None,
    n_most: int | None = None,
    only_labelled: bool = False,
    least_wanted: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chips:
    """Cut a raster into chips of `chip_px` grid pixels, row by row; those with less than a tenth data are left out.

    `bounds_px`: left, top, right, bottom in grid pixels (the whole raster without); beyond it nothing is valid.
    `stride_px`: distance of neighbours, `chip_px` by default (no overlap). `block_px`: side of the blocks that are held
    out together; by default the largest of 4, 2 or 1 chips that gives at least 8 blocks. `n_most`: keep at most so many
    chips, drawn by `seed`, those whose labels are all of the class `least_wanted` last. `only_labelled`: leave out
    chips without a label; what `n_most` leaves out of the others is said to `progress`. Raises `JobError` where no chip
    is left, and `Cancelled`.
    """
    progress = progress or NullProgress()
    cols = reader.grid_shape[1]
    left, top, right, bottom = _inside(bounds_px, reader)
    places = _places((left, top, right, bottom), chip_px=chip_px, step=stride_px or chip_px)
    queue = (np.random.default_rng(seed).permutation(len(places)) if n_most else np.arange(len(places))).tolist()
    kept: list[int] = []
    pixels, valids, drawn = [], [], []
    for number, n in enumerate(queue, 1):
        raise_if_cancelled(progress)
        col, row = places[n]
        label = (
            np.full((chip_px, chip_px), IGNORE, np.uint8) if labels is None else labels.read(col, row, chip_px, chip_px)
        )
        if only_labelled and (label == IGNORE).all():
            continue
        is_first_look = number <= len(places)
        if n_most and is_first_look and least_wanted is not None and np.isin(label, (IGNORE, least_wanted)).all():
            queue.append(n)
            continue
        chip, valid = reader.read(col, row, chip_px, chip_px)
        # What hangs over the extent is other ground, and may be what others are judged on.
        valid[bottom - row :] = False
        valid[:, right - col :] = False
        if valid.mean() < _LEAST_VALID:
            continue
        label[~valid] = IGNORE
        if only_labelled and (label == IGNORE).all():
            continue
        if n_most and len(kept) == n_most:
            if only_labelled:
                progress.info(
                    f"More than {n_most} windows of {Path(reader.path).name} have labels; {n_most} are taken, the "
                    "others left out."
                )
            break
        kept.append(n)
        pixels.append(chip)
        valids.append(valid)
        drawn.append(label)
        progress.set_fraction(number / len(queue))
    if not kept:
        what = ", and a label there" if only_labelled else ""
        raise JobError(
            f"No window of {chip_px} px on {Path(reader.path).name} has data on a tenth of it{what}; check the raster, "
            "the labels and the extent."
        )
    in_order = np.argsort(kept).tolist()
    origins = np.array([places[kept[n]] for n in in_order], np.int64)
    block = block_px or _block_px(chip_px, height=bottom - top, width=right - left)
    centres = origins + chip_px // 2
    across = math.ceil(cols / block) + 1
    return Chips(
        np.stack([pixels[n] for n in in_order]),
        np.stack([drawn[n] for n in in_order]),
        np.stack([valids[n] for n in in_order]),
        centres[:, 1] // block * across + centres[:, 0] // block,
        origins,
    )


def _inside(bounds_px: tuple[float, float, float, float] | None, reader: BandReader) -> tuple[int, int, int, int]:
    rows, cols = reader.grid_shape
    if bounds_px is None:
        return 0, 0, cols, rows
    left, top = max(0, math.floor(bounds_px[0])), max(0, math.floor(bounds_px[1]))
    right, bottom = min(cols, math.ceil(bounds_px[2])), min(rows, math.ceil(bounds_px[3]))
    if left >= right or top >= bottom:
        raise JobError(f"The extent holds no pixel of {Path(reader.path).name}; choose one that meets it.")
    return left, top, right, bottom


def _places(bounds_px: tuple[int, int, int, int], *, chip_px: int, step: int) -> list[tuple[int, int]]:
    """Column and row of every chip within left, top, right, bottom, row by row."""
    left, top, right, bottom = bounds_px
    return [
        (col, row)
        for row in _starts(top, bottom, chip_px=chip_px, step=step)
        for col in _starts(left, right, chip_px=chip_px, step=step)
    ]


def _starts(first: int, last: int, *, chip_px: int, step: int) -> list[int]:
    """Where chips begin along an axis, so that they cover it: the last one may hang over the end."""
    n = max(0, math.ceil((last - first - chip_px) / step)) + 1
    return [first + index * step for index in range(n)]


def _block_px(chip_px: int, *, height: int, width: int) -> int:
    n_chips = _LARGEST_BLOCK_CHIPS
    while n_chips > 1:
        side = n_chips * chip_px
        if math.ceil(height / side) * math.ceil(width / side) >= _BLOCKS_WANTED:
            break
        n_chips //= 2
    return n_chips * chip_px
