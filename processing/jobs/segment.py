"""One polygon per prompted object: the job behind `segadapt:segmentfromprompts`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from shapely.geometry import MultiPolygon

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.vectorize import area_m2, clean
from ..raster.windows import SquareWindow
from .answers import (
    LARGEST_WINDOW_PX,
    Answer,
    answer_prompts,
    check_window_px,
    chip_prompts,
    first_window,
    next_window,
)
from .objects import ObjectPrompts
from .placed_mask import PlacedMask
from .scene import Scene

_BATCH = 64
# Objects are visited in squares of this side, so that windows which neighbours share are still in the cache's
# memory.
_NEIGHBOURHOOD_PX = 4096
# Doubling from 256 to 8192 px takes five steps, each of which can need a shift as well.
_MOST_WINDOWS = 10


@dataclass(frozen=True)
class SegmentOptions:
    """How to segment.

    `window_px`: side of the window in raster pixels, None to let the prompts decide. `multimask`: take the
    best of three masks for a single click. `tolerance`: simplification in map units. `min_area_m2`: parts,
    holes and objects below it are dropped. Raises `JobError` for numbers that make no sense.
    """

    window_px: int | None = None
    multimask: bool = True
    tolerance: float = 0.0
    min_area_m2: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.window_px is not None:
            check_window_px(self.window_px)
        if self.tolerance < 0 or self.min_area_m2 < 0:
            raise JobError(
                f"Tolerance {self.tolerance} and minimum area {self.min_area_m2} m2 must not be negative; "
                "give 0 or more."
            )


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """An object and its outline in the raster's CRS.

    `score`: predicted IoU, 0 to 1. `stability`: IoU of the mask between thresholds one above and one below, 0
    to 1. `area_m2`: on the ellipsoid, NaN where the raster has no CRS. `model`: name of the model.
    """

    object_id: str
    class_name: str
    geometry: MultiPolygon
    score: float
    stability: float
    area_m2: float
    model: str


def segment_objects(
    scene: Scene,
    objects: Sequence[ObjectPrompts],
    *,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[SegmentedObject]:
    """Yield the outline of each object, near ones after one another.

    Objects that share a window share its embedding and are decoded in batches. A mask that its window cuts is
    segmented again in a larger or shifted window. Objects for which the model finds nothing, or less than the
    minimum area, are left out; `progress.info` names the former. Raises `Cancelled` between batches.
    """
    options, progress = options or SegmentOptions(), progress or NullProgress()
    groups: dict[SquareWindow, list[ObjectPrompts]] = defaultdict(list)
    for prompts in objects:
        window = first_window(prompts, scene.reader.shape, window_px=options.window_px)
        if window is None:
            progress.info(
                f"Object '{prompts.object_id}' was skipped: its prompts are too far apart for a window of "
                f"{LARGEST_WINDOW_PX} px; split it into several objects."
            )
        else:
            groups[window].append(prompts)
    n_done = len(objects) - sum(map(len, groups.values()))
    for window in sorted(groups, key=_visiting_order):
        pending = [(prompts, None) for prompts in groups[window]]
        for prompts, answer in _segment_group(scene, window, pending, options, progress):
            segmented = _outline(scene, prompts, answer, options, progress)
            n_done += 1
            progress.set_fraction(n_done / len(objects))
            if segmented is not None:
                yield segmented


def outline_mask(scene: Scene, mask: PlacedMask, *, tolerance: float, min_area_m2: float) -> tuple[MultiPolygon, float]:
    """Polygons of a mask in the raster's CRS, cleaned, and their area in m2 (NaN without a CRS)."""
    reader = scene.reader
    geometry = mask.to_geometry(reader.transform)
    if tolerance or min_area_m2:
        geometry = clean(geometry, tolerance=tolerance, min_area_m2=min_area_m2, crs=reader.crs)
    return geometry, area_m2(geometry, reader.crs)


def _visiting_order(window: SquareWindow) -> tuple[int, int, int, int, int]:
    row, col = window.row_off // _NEIGHBOURHOOD_PX, window.col_off // _NEIGHBOURHOOD_PX
    return row, col, window.size_px, window.row_off, window.col_off


def _segment_group(
    scene: Scene,
    window: SquareWindow,
    pending: Iterable[tuple[ObjectPrompts, Answer | None]],
    options: SegmentOptions,
    progress: Progress,
    *,
    n_windows: int = 1,
) -> Iterator[tuple[ObjectPrompts, Answer]]:
    """Answer the objects of a window, each with its answer in the window before, if there was one.

    Cut objects go on to further windows batch by batch, so that few wait at a time.
    """
    waiting = iter(pending)
    while batch := list(islice(waiting, _BATCH)):
        raise_if_cancelled(progress)
        asked = [chip_prompts(prompts, window, scene=scene) for prompts, _ in batch]
        answers = answer_prompts(scene, window, asked, multimask=options.multimask, refine=True)
        cut: dict[SquareWindow, list[tuple[ObjectPrompts, Answer | None]]] = defaultdict(list)
        for (prompts, earlier), answer in zip(batch, answers, strict=True):
            # A larger window in which the model finds nothing must not lose what was found.
            best = earlier if earlier is not None and not answer.mask.n_pixels else answer
            further = next_window(answer, prompts, scene.reader.shape) if n_windows < _MOST_WINDOWS else None
            if further is None:
                yield prompts, best
            else:
                cut[further].append((prompts, best))
        for further, held in cut.items():
            yield from _segment_group(scene, further, held, options, progress, n_windows=n_windows + 1)


def _outline(
    scene: Scene, prompts: ObjectPrompts, answer: Answer, options: SegmentOptions, progress: Progress
) -> SegmentedObject | None:
    if not answer.mask.n_pixels:
        progress.info(f"Object '{prompts.object_id}': the model found nothing there; add a point or a box.")
        return None
    geometry, area = outline_mask(scene, answer.mask, tolerance=options.tolerance, min_area_m2=options.min_area_m2)
    if geometry.is_empty:
        return None
    return SegmentedObject(
        object_id=prompts.object_id,
        class_name=prompts.class_name,
        geometry=geometry,
        score=answer.score,
        stability=answer.stability,
        area_m2=area,
        model=scene.engine.card.name,
    )
