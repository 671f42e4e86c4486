"""From features that a user drew to the prompts of each object, in raster pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.prompts import BACKGROUND, FOREGROUND
from ..errors import JobError
from ..raster.reader import RasterReader
from ..raster.windows import Bounds
from .placed_mask import intersection

_SCRIBBLE_STEP_PX = 8.0
_SCRIBBLE_POINTS = 10
_SMALLEST_BOX_PX = 0.01
# A box drawn in a projection that is turned by up to three degrees against the raster's still fills this much
# of its envelope; what fills less is an outline.
_BOX_FILL = 0.9


@dataclass(frozen=True)
class PromptGeometry:
    """One feature that the user drew: a shapely geometry in the raster's CRS, and what it belongs to."""

    geometry: BaseGeometry
    object_id: str
    class_name: str = ""
    is_foreground: bool = True


@dataclass(frozen=True, eq=False)
class ObjectPrompts:
    """All prompts of one object, in raster pixels (x right, y down).

    `points_xy`: (N, 2) float64; `labels`: (N,) int64, 1 foreground, 0 background; `box_xyxy`: left, top,
    right, bottom or None; `mask_polygon`: a rough outline (shapely polygon or multipolygon) or None.
    """

    object_id: str
    class_name: str
    points_xy: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    box_xyxy: Bounds | None = None
    mask_polygon: BaseGeometry | None = None

    @property
    def bounds_px(self) -> Bounds:
        """Left, top, right, bottom of all prompts."""
        corners = [self.points_xy]
        if self.box_xyxy is not None:
            corners.append(np.reshape(self.box_xyxy, (2, 2)))
        xy = np.concatenate(corners)
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(eq=False)
class _Collected:
    """Prompts of an object while its features are still being read."""

    class_name: str = ""
    points: list[npt.NDArray[np.float64]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[BaseGeometry] = field(default_factory=list)
    outlines: list[BaseGeometry] = field(default_factory=list)

    def add(self, geometry: BaseGeometry, *, is_foreground: bool) -> None:
        """Take one simple geometry in raster pixels."""
        if geometry.geom_type != "Polygon":
            self._add_points(_places(geometry), is_foreground=is_foreground)
        elif not is_foreground:
            # The model knows no background areas, so an area that is not the object becomes a point inside
            # it.
            self._add_points(_coordinates(geometry.representative_point()), is_foreground=False)
        else:
            (self.boxes if _is_box(geometry) else self.outlines).append(geometry)

    def _add_points(self, points_xy: npt.NDArray[np.float64], *, is_foreground: bool) -> None:
        self.points.append(points_xy)
        self.labels += [FOREGROUND if is_foreground else BACKGROUND] * len(points_xy)

    @property
    def has_foreground(self) -> bool:
        """Whether anything says what the object is, not only what it is not."""
        return bool(self.boxes or self.outlines) or FOREGROUND in self.labels

    def limited(self, object_id: str, shape: tuple[int, int]) -> ObjectPrompts | None:
        """The prompts inside a raster of `shape` (rows, cols); None where no foreground is left."""
        rows, cols = shape
        points_xy = np.concatenate(self.points) if self.points else np.zeros((0, 2))
        labels = np.array(self.labels, np.int64)
        inside = ((points_xy >= 0) & (points_xy < (cols, rows))).all(axis=1)
        points_xy, labels = points_xy[inside], labels[inside]
        box = self._box(shape)
        if box is None and FOREGROUND not in labels:
            return None
        # Put together without a union, which would refuse an outline that crosses itself.
        outline = shapely.multipolygons([*self.outlines, *self.boxes]) if self.outlines and box else None
        return ObjectPrompts(object_id, self.class_name, points_xy, labels, box, outline)

    def _box(self, shape: tuple[int, int]) -> Bounds | None:
        areas = [*self.boxes, *self.outlines]
        if not areas:
            return None
        left, top, right, bottom = intersection(_bounds(areas), (0, 0, shape[1], shape[0]))
        return (left, top, right, bottom) if min(right - left, bottom - top) >= _SMALLEST_BOX_PX else None


def gather_prompts(
    geometries: Iterable[PromptGeometry], reader: RasterReader, *, progress: Progress | None = None
) -> list[ObjectPrompts]:
    """Join features of the same object id, in order of first appearance, and bring them to raster pixels.

    Points stay points. A line is a scribble: points along it, about every eight pixels, ten at most. A
    rectangle along the raster's axes is a box; any other polygon is a rough outline, given to the model as
    mask and as box. A background polygon becomes one background point inside it. Prompts outside the raster
    are left out; an object without any foreground inside is skipped, and `progress.info` names it. Raises
    `JobError` where there are no prompts at all, no foreground, or none inside the raster; and `Cancelled`.
    """
    progress = progress or NullProgress()
    collected = _collect(geometries, reader, progress)
    if not collected:
        raise JobError("The prompts hold no geometry; add points, boxes, lines or outlines of the objects.")
    named = {name: prompts for name, prompts in collected.items() if prompts.has_foreground}
    if not named:
        raise JobError(
            f"Object '{next(iter(collected))}' has background prompts only, and so have all objects; "
            "add a foreground point, a box or an outline to each."
        )
    limited = {name: prompts.limited(name, reader.shape) for name, prompts in named.items()}
    objects = [prompts for prompts in limited.values() if prompts is not None]
    if not objects:
        raise JobError(_no_overlap(named, reader))
    for name in collected:
        if name not in named:
            progress.info(f"Object '{name}' was skipped: it has background prompts only; add a foreground prompt.")
        elif limited[name] is None:
            progress.info(f"Object '{name}' was skipped: its prompts lie outside the raster.")
    return objects


def _collect(geometries: Iterable[PromptGeometry], reader: RasterReader, progress: Progress) -> dict[str, _Collected]:
    to_pixels: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = reader.to_pixels
    collected: dict[str, _Collected] = {}
    for number, feature in enumerate(geometries):
        if number % 256 == 0:
            raise_if_cancelled(progress)
        for part in _simple_parts(feature.geometry):
            prompts = collected.setdefault(feature.object_id, _Collected())
            prompts.class_name = prompts.class_name or feature.class_name
            if not np.isfinite(_coordinates(part)).all():
                raise JobError(
                    f"A prompt of object '{feature.object_id}' has no finite place in the raster's CRS; "
                    "check the CRS of the prompts."
                )
            part_px = shapely.transform(shapely.force_2d(part), to_pixels)
            prompts.add(part_px, is_foreground=feature.is_foreground)
    return collected


def _simple_parts(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """Points, lines and polygons of a geometry, however it nests them."""
    if hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _simple_parts(part)
    elif not geometry.is_empty:
        yield geometry


def _places(geometry: BaseGeometry) -> npt.NDArray[np.float64]:
    """Points (N, 2) of a point, or along a scribble."""
    return _coordinates(geometry) if geometry.geom_type == "Point" else scribble_points(geometry)


def scribble_points(geometry: BaseGeometry) -> npt.NDArray[np.float64]:
    """Points (N, 2) along a line in raster pixels: about every eight pixels, ten at most."""
    step_px = max(_SCRIBBLE_STEP_PX, geometry.length / _SCRIBBLE_POINTS)
    n_points = min(_SCRIBBLE_POINTS, max(1, round(geometry.length / step_px)))
    distances = (np.arange(n_points) + 0.5) / n_points
    return _coordinates(shapely.line_interpolate_point(geometry, distances, normalized=True))


def _coordinates(geometry: Any) -> npt.NDArray[np.float64]:
    """Corners (N, 2) of a geometry or an array of them."""
    coordinates: npt.NDArray[np.float64] = shapely.get_coordinates(geometry)
    return coordinates


def _is_box(polygon: BaseGeometry) -> bool:
    """Whether a polygon in pixels is a rectangle along the axes, or nearly one after a reprojection."""
    n_corners = len(_coordinates(polygon)) - 1
    return n_corners == 4 and bool(polygon.area >= _BOX_FILL * polygon.envelope.area)


def _bounds(geometries: Iterable[BaseGeometry]) -> Bounds:
    left, top, right, bottom = shapely.total_bounds(list(geometries))
    return float(left), float(top), float(right), float(bottom)


def _no_overlap(collected: dict[str, _Collected], reader: RasterReader) -> str:
    prompts = next(iter(collected.values()))
    where = prompts.points[0][0] if prompts.points else np.array(_bounds([*prompts.boxes, *prompts.outlines])[:2])
    x, y = reader.to_map(where.reshape(1, 2))[0]
    crs = reader.crs.to_string() if reader.crs is not None else "no CRS"
    return (
        f"None of the {len(collected)} prompted objects overlaps {reader.path}: the first prompt lies "
        f"at ({x:.6g}, {y:.6g}) in {crs}; check that both layers have the right CRS and cover the same place."
    )
