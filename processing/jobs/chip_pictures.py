"""Chips and their labels as the pages of reports show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...models.semantic.card import SegmenterCard, SegmenterClass
from .page import plain

_LEGEND_COLUMNS = 6


def coloured(labels: npt.NDArray[np.uint8], card: SegmenterCard) -> npt.NDArray[np.uint8]:
    """Labels (rows, cols) in the colours of their classes, (rows, cols, 3); white where there is none."""
    colours = np.full((256, 3), 255, np.uint8)
    for one in card.classes:
        colours[one.class_id] = one.colour
    painted: npt.NDArray[np.uint8] = colours[labels]
    return painted


def shown(pixels: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """Pixels (bands, rows, cols) as a picture (rows, cols, 3): the first three bands, or the first in grey.

    White where they are not `valid` (rows, cols), if that is said.
    """
    chosen = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    picture = np.moveaxis(chosen, 0, -1).copy()
    if valid is not None:
        picture[~valid] = 255
    return picture


def draw(axes: Axes, image: npt.NDArray[np.uint8], *, title: str = "") -> None:
    """A picture (rows, cols, 3) without ticks, every pixel a square."""
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def legend(figure: Figure, classes: Sequence[SegmenterClass]) -> None:
    """Say below the pictures of a figure which colour is which class; its layout makes room."""
    handles = [
        Patch(facecolor=np.array(one.colour) / 255, edgecolor="#1a1a1a", label=plain(one.name)) for one in classes
    ]
    rows = -(-len(handles) // _LEGEND_COLUMNS)
    figure.get_layout_engine().set(rect=(0, (0.15 + 0.22 * rows) / figure.get_figheight(), 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=min(_LEGEND_COLUMNS, len(handles)), fontsize=8)
