"""One polygon per prompted object, with what the map tool learned: `segadapt:segmentfromprompts` with an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import shapely

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.reader import RasterReader
from .interactive import InteractiveSegmenter
from .objects import ObjectPrompts
from .prompt_request import PromptRequest
from .segment import SegmentedObject, SegmentOptions

# Neighbours after one another share embeddings in the cache's memory.
_NEIGHBOURHOOD_PX = 4096


def segment_adapted(
    segmenter: InteractiveSegmenter,
    objects: Sequence[ObjectPrompts],
    *,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[SegmentedObject]:
    """Yield the outline of each object as the map tool would show it, near ones after one another.

    `segmenter` holds the adapter and the side of the window; nothing is learned here. Objects are answered one by one,
    which takes longer than `segment_objects`. A box becomes upright in map units, which on a rotated raster makes it
    larger. Objects for which the model finds nothing, or less than the minimum area, are left out; `progress.info`
    names them. Raises `Cancelled` between objects.
    """
    options, progress = options or SegmentOptions(), progress or NullProgress()
    for n_done, prompts in enumerate(sorted(objects, key=_visiting_order), 1):
        raise_if_cancelled(progress)
        try:
            result = segmenter.answer(_request(prompts, segmenter.scene.reader, options))
        except JobError as error:
            progress.info(f"Object '{prompts.object_id}' was skipped: {error}")
            result = None
        progress.set_fraction(n_done / len(objects))
        if result is None:
            continue
        if result.geometry.is_empty:
            progress.info(f"Object '{prompts.object_id}': nothing was found there; add a point or a box.")
            continue
        yield SegmentedObject(
            object_id=prompts.object_id,
            class_name=prompts.class_name,
            geometry=result.geometry,
            score=result.score,
            stability=result.stability,
            area_m2=result.area_m2,
            model=segmenter.scene.engine.card.name,
        )


def _visiting_order(prompts: ObjectPrompts) -> tuple[int, int, float, float]:
    left, top, _, _ = prompts.bounds_px
    return int(top // _NEIGHBOURHOOD_PX), int(left // _NEIGHBOURHOOD_PX), top, left


def _request(prompts: ObjectPrompts, reader: RasterReader, options: SegmentOptions) -> PromptRequest:
    box = outline = None
    if prompts.mask_polygon is not None:
        outline = shapely.transform(prompts.mask_polygon, reader.to_map)
    elif prompts.box_xyxy is not None:
        left, top, right, bottom = prompts.box_xyxy
        corners = reader.to_map([(left, top), (left, bottom), (right, bottom), (right, top)])
        (xmin, ymin), (xmax, ymax) = corners.min(axis=0), corners.max(axis=0)
        box = (float(xmin), float(ymin), float(xmax), float(ymax))
    return PromptRequest(
        request_id=0,
        points_map=tuple((float(x), float(y)) for x, y in reader.to_map(prompts.points_xy)),
        labels=tuple(int(label) for label in prompts.labels),
        box_map=box,
        outline=outline,
        multimask=options.multimask,
        tolerance=options.tolerance,
        min_area_m2=options.min_area_m2,
    )
