"""Every object of a raster, without prompts: the job behind `segadapt:segmenteverything`.

The raster is walked in cells on its own grid, each with a window around it. A lattice of points, anchored at
the raster's origin, is shared out among the cells; each point is a click whose masks are filtered by the
rules of segment-anything's automatic mask generator. What two cells both found is given once, as soon as no
cell to come could find it again, so that memory grows with the width of the extent at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from os import PathLike

import numpy as np
import numpy.typing as npt

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.windows import Bounds, CoreCell, SquareWindow, core_grid
from ..raster.writer import LabelWriter
from .answers import check_window_px
from .candidates import CandidateRules, find_candidates
from .duplicates import Candidate, PendingObjects
from .encode import no_pixels, whole_raster
from .placed_mask import intersection
from .scene import Scene
from .segment import SegmentedObject, outline_mask


@dataclass(frozen=True, kw_only=True)
class EverythingJob:
    """What to look for, and where.

    `bounds_px`: left, top, right, bottom in raster pixels, None for the whole raster; objects that begin
    inside and end outside are given whole. `window_px`: side of a window. `points_per_side`: points per side
    of a window. `iou_threshold`, `stability_threshold`: least predicted IoU and stability, 0 to 1.
    `nms_threshold`: masks whose IoU is higher show one object. `min_area_m2`: parts, holes and objects below
    it are dropped. `tolerance`: simplification in map units. `largest_window_px`: an object cut by its window
    is looked at again in windows up to this side; what that cuts as well is left out. `labels_path`: GeoTIFF
    of object numbers to write, the smallest object on top. Raises `JobError` for numbers that make no sense.
    """

    bounds_px: Bounds | None = None
    window_px: int = 1024
    points_per_side: int = 32
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    nms_threshold: float = 0.7
    min_area_m2: float = 0.0
    tolerance: float = 0.0
    largest_window_px: int = 4096
    labels_path: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_window_px(self.window_px)
        check_window_px(self.largest_window_px)
        if not 1 <= self.points_per_side <= self.window_px:
            raise JobError(f"{self.points_per_side} points per side; choose 1 to {self.window_px}, 32 is usual.")
        for name in ("iou_threshold", "stability_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise JobError(f"{name} is {getattr(self, name)}; choose a number from 0 to 1.")
        if self.tolerance < 0 or self.min_area_m2 < 0:
            raise JobError(
                f"Tolerance {self.tolerance} and minimum area {self.min_area_m2} m2 must not be negative; "
                "give 0 or more."
            )

    @property
    def rules(self) -> CandidateRules:
        """What makes a mask worth keeping."""
        return CandidateRules(
            iou_threshold=self.iou_threshold,
            stability_threshold=self.stability_threshold,
            nms_threshold=self.nms_threshold,
            largest_window_px=max(self.window_px, self.largest_window_px),
        )


def segment_everything(
    scene: Scene, job: EverythingJob, *, progress: Progress | None = None
) -> Iterator[SegmentedObject]:
    """Yield every object found, each once and whole, numbered from 1 from top to bottom.

    The label raster is in place when the iterator is exhausted; it is removed where that does not happen, by
    an error, a cancel or a caller who stops early. Raises `JobError` where the bounds and the raster share no
    pixel, `RasterError` where labels cannot be written, and `Cancelled` between batches.
    """
    progress = progress or NullProgress()
    numbers = count(1)
    with _label_writer(scene, job) as labels:
        for candidate in _distinct_candidates(scene, job, progress):
            geometry, area = outline_mask(scene, candidate.mask, tolerance=job.tolerance, min_area_m2=job.min_area_m2)
            if geometry.is_empty:
                continue
            number = next(numbers)
            if labels is not None:
                _paint(labels, candidate, number)
            yield SegmentedObject(
                object_id=str(number),
                class_name="",
                geometry=geometry,
                score=candidate.score,
                stability=candidate.stability,
                area_m2=area,
                model=scene.engine.card.name,
            )
        raise_if_cancelled(progress)
        if labels is not None:
            labels.commit()


def _label_writer(scene: Scene, job: EverythingJob) -> LabelWriter | nullcontext[None]:
    if job.labels_path is None:
        return nullcontext()
    reader = scene.reader
    return LabelWriter(
        job.labels_path, shape=reader.shape, transform=reader.transform, crs=reader.crs, tags=scene.provenance()
    )


def _paint(labels: LabelWriter, candidate: Candidate, number: int) -> None:
    mask = candidate.mask
    labels.paint(mask.pixels, row_off=mask.row_off, col_off=mask.col_off, value=number, area_px=mask.n_pixels)


def _distinct_candidates(scene: Scene, job: EverythingJob, progress: Progress) -> Iterator[Candidate]:
    """Walk the cells row by row and give what no later cell can find again."""
    bounds = intersection(job.bounds_px or whole_raster(scene), whole_raster(scene))
    cells = core_grid(scene.reader.shape, size_px=job.window_px, halo_px=job.window_px // 4, bounds_px=bounds)
    if not len(cells) or bounds[2] <= bounds[0] or bounds[3] <= bounds[1]:
        raise no_pixels(scene, job.bounds_px)
    pending = PendingObjects(iou_threshold=job.nms_threshold, bucket_px=job.window_px // 2)
    n_left_out = 0
    for position, cell in enumerate(cells, 1):
        raise_if_cancelled(progress)
        points_xy = _points_with_data(scene, cell, bounds, job)
        if len(points_xy):
            found, n_cut = find_candidates(scene, cell.window, points_xy, rules=job.rules, progress=progress)
            pending.add_cell(found)
            n_left_out += n_cut
        progress.set_fraction(position / len(cells))
        if position < len(cells) and cells[position].core_px[1] > cell.core_px[1]:
            yield from pending.release(above_px=_reach(cells[position], job))
    yield from pending.release()
    if n_left_out:
        progress.info(
            f"{n_left_out} masks reach beyond windows of {job.rules.largest_window_px} px and were left out; "
            "choose a larger window for objects of that size."
        )


def _reach(cell: CoreCell, job: EverythingJob) -> float:
    """The topmost row that this cell and those after it can find an object in."""
    if job.largest_window_px <= job.window_px:
        return cell.window.row_off
    # Larger windows hold the point that the object was found from.
    return cell.core_px[1] - job.largest_window_px


def _points_with_data(scene: Scene, cell: CoreCell, bounds: Bounds, job: EverythingJob) -> npt.NDArray[np.float64]:
    """The lattice's points (N, 2; raster pixels) in the core of a cell, inside the bounds, and on data."""
    left, top, right, bottom = intersection(bounds, cell.core_px)
    step_px = job.window_px / job.points_per_side
    xs, ys = _lattice(left, right, step_px=step_px), _lattice(top, bottom, step_px=step_px)
    if not len(xs) or not len(ys):
        return np.zeros((0, 2))
    core_left, core_top, core_right, core_bottom = cell.core_px
    # Of the core only, so that a walk over nodata reads every pixel once.
    core = SquareWindow(core_left, core_top, max(core_right - core_left, core_bottom - core_top))
    valid = scene.reader.valid_mask(core)
    points_xy = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    cols, rows = np.floor(points_xy).astype(int).T - np.array([[core_left], [core_top]])
    on_data: npt.NDArray[np.float64] = points_xy[valid[rows, cols]]
    return on_data


def _lattice(low: float, high: float, *, step_px: float) -> npt.NDArray[np.float64]:
    """Places (i + 1/2) `step_px` along one axis with low <= place < high."""
    first, end = math.ceil(low / step_px - 0.5), math.ceil(high / step_px - 0.5)
    return (np.arange(first, max(first, end)) + 0.5) * step_px
