"""A class map against polygons of the truth: what an analyst is compared with, and the page that tells of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from affine import Affine

from ...models.metrics import Confusion, bootstrap_interval, confusion_matrix, mean_iou
from ...models.semantic.card import IGNORE
from ..errors import JobError
from ..raster.rasterize import burn
from ..raster.reader import RasterReader
from ..raster.windows import SquareWindow
from .class_map import ClassMapper
from .evaluate_class_map import ClassMapCurve, Labels
from .page import heading, look, machine_facts, new_figure, note, page, picture, table
from .simulated_analyst import Reference

MOST_PX = 1_000_000
"""Larger rasters are compared at every second, third, ... pixel: after each click the whole map is searched."""
AT_CLICKS = (1, 3, 5, 10, 20, 30, 50, 100)
_BLOCKS = 6
"""Blocks along each side, which are drawn with replacement for the interval."""


class Thinned:
    """A class map seen at every `step`-th pixel; a `Mapper` for `evaluate_class_map`."""

    def __init__(self, mapper: ClassMapper, step: int) -> None:
        self._mapper, self._step = mapper, step

    def click(self, x: int, y: int, class_id: int) -> None:
        """Click the pixel behind (x, y)."""
        self._mapper.click(x * self._step, y * self._step, class_id)

    def labels(self) -> Labels:
        """Labels at every `step`-th pixel, uint8 (rows, cols)."""
        return self._mapper.labels()[:: self._step, :: self._step]


def thinning(shape: tuple[int, int], *, most_px: int = MOST_PX) -> int:
    """Every how many-th pixel of a raster (rows, cols) is compared."""
    return max(1, math.ceil(math.sqrt(shape[0] * shape[1] / most_px)))


def drawn_truth(references: Sequence[Reference], ids: Mapping[str, int], reader: RasterReader, *, step: int) -> Labels:
    """Class ids at every `step`-th pixel, uint8 (rows, cols): the last polygon counts, 0 is unknown or without data.

    Raises `JobError` where no polygon with a class lies on the raster.
    """
    rows, cols = reader.shape
    shape = -(-rows // step), -(-cols // step)
    truth = np.zeros(shape, np.uint8)
    # The centre of a thinned pixel is that of the pixel it stands for.
    shift = (1 - step) / 2
    transform = reader.transform @ Affine.translation(shift, shift) @ Affine.scale(step)
    for one in references:
        if one.class_name in ids:
            truth[burn(one.geometry, transform, bounds_px=(0, 0, shape[1], shape[0]))] = ids[one.class_name]
    valid = reader.valid_mask(SquareWindow(0, 0, max(rows, cols)))[:rows:step, :cols:step]
    truth[~valid] = 0
    if not truth.any():
        raise JobError(
            f"None of the {len(references)} reference polygons has a class and lies on pixels with data; check the "
            "class field and the CRS."
        )
    return truth


def interval_of(truth: Labels, labels: Labels, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean IoU of a map: blocks of the image, six along a side, are drawn with replacement."""
    known = np.where(truth == 0, IGNORE, truth).astype(np.uint8)
    n_classes = int(max(truth.max(), labels.max())) + 1
    confusions: list[Confusion] = []
    for rows in np.array_split(np.arange(truth.shape[0]), _BLOCKS):
        for cols in np.array_split(np.arange(truth.shape[1]), _BLOCKS):
            part = np.ix_(rows, cols)
            confusion = confusion_matrix(known[part], labels[part], n_classes=n_classes)
            if not math.isnan(mean_iou(confusion)):
                confusions.append(confusion)
    return bootstrap_interval(confusions, seed=seed)


def class_map_page(
    curve: ClassMapCurve,
    names: Mapping[int, str],
    facts: Sequence[tuple[str, str]],
    *,
    title: str,
    interval: tuple[float, float],
    device: str,
) -> str:
    """The page of an evaluation: HTML text. `names`: of the classes by id; `facts`: rows of what was run."""
    n = len(curve.mious)
    low, high = interval
    seconds = np.array(curve.click_s)
    figure, axes = new_figure("Clicks on all classes together", "Mean IoU of the image")
    colour, dash = look(0)
    axes.plot(range(1, n + 1), curve.mious, color=colour, linestyle=dash)
    axes.set_ylim(0, 1)
    at = [number for number in AT_CLICKS if number < n] + [n]
    return page(
        title,
        [
            heading("What was run"),
            table([*facts, *machine_facts(device)]),
            heading("Mean IoU of the image"),
            table([("clicks", "mean IoU"), *((str(k), f"{curve.mious[k - 1]:.3f}") for k in at)], has_head=True),
            note(
                f"After the last click {curve.mious[-1]:.3f}"
                + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")
                + ", with its 95 % interval (blocks of the image drawn with replacement). The analyst clicks each "
                "class once in its middle, then the deepest pixel of the largest error. Pixels without a reference do "
                "not count."
            ),
            picture(figure, "Mean IoU after each click"),
            heading("Classes after the last click"),
            table(
                [("class", "IoU"), *((names[number], f"{iou:.3f}") for number, iou in curve.class_ious.items())],
                has_head=True,
            ),
            heading("Seconds per click"),
            table([("median", f"{np.median(seconds):.3f}"), ("95th percentile", f"{np.percentile(seconds, 95):.3f}")]),
            note("From the click to the map of the whole image, which was encoded before."),
        ],
    )
