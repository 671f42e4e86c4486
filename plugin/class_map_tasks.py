"""What the worker does for the live class map; all state stays in the handle, which only the worker touches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .exchange import Bounds, Point, Task

if TYPE_CHECKING:
    from ..models.backbone import Backbone
    from ..models.progress import Progress
    from ..processing.algorithms.settings import EngineSettings
    from ..processing.jobs.class_map import ClassMapper
    from ..processing.jobs.interactive import InteractiveSegmenter
    from ..processing.jobs.scene import Scene

# A view of more pixels is drawn coarser; the screen shows no more.
_MOST_PICTURE_PX = 4_000_000
# A view of more of the raster is mapped in its middle: encoding more takes minutes.
_MOST_VIEW_PX = 40_000_000


class MapHandle:
    """The class map of one scene: made in the worker thread, opaque elsewhere. It begins with `head` and snapping."""

    def __init__(self, settings: EngineSettings, *, head: str, is_snapped: bool) -> None:
        self.settings, self._head, self._is_snapped = settings, head, is_snapped
        self._mapper: ClassMapper | None = None

    def mapper(self, segmenter: InteractiveSegmenter, progress: Progress) -> ClassMapper:
        """Return the mapper of the segmenter's scene; a new one where the scene is another, with all that was clicked.

        A handle lasts as long as the raster is open: another scene of it means that the device failed.
        """
        from ..processing.jobs.class_map import ClassMapOptions, ClassMapper

        scene, before = segmenter.scene, self._mapper
        if before is not None and before.scene is scene:
            return before
        backbone = self._backbone(scene, progress)
        if before is None:
            options = ClassMapOptions(head=self._head, is_snapped=self._is_snapped)
            self._mapper = ClassMapper(scene, backbone, options=options)
        else:
            self._mapper = before.moved_to(scene, backbone)
        return self._mapper

    def load(self, path: Path, segmenter: InteractiveSegmenter, progress: Progress) -> ClassMapper:
        """Begin anew with a saved model, and return its mapper. Raises what `load_mapper` does."""
        from ..processing.jobs.class_map_model import load_mapper

        self._mapper = load_mapper(path, segmenter.scene, self._backbone(segmenter.scene, progress))
        return self._mapper

    def _backbone(self, scene: Scene, progress: Progress) -> Backbone:
        from ..models.backbone import open_backbone

        return open_backbone(
            device=scene.engine.device,
            checkpoint_folder=self.settings.checkpoint_folder,
            offline=self.settings.offline,
            progress=progress,
        )


@dataclass(frozen=True)
class MapStroke:
    """A click (one point) or a scribble of a class, in the raster's CRS; `colour` red, green, blue 0 to 255."""

    points_map: tuple[Point, ...]
    class_name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class MapPicture:
    """Labels of part of a raster, to be drawn.

    `labels`: uint8 (rows, cols), 0 nothing; `corners_map`: upper left, upper right, lower right, lower left in the
    raster's CRS; `colours` by class id; `n_missing`: windows of the view that are not encoded yet; `n_undone`: clicks
    and scribbles that were taken back and can come again; `is_loaded`: a saved model maps, until the first click;
    `strokes`: all clicks and scribbles, the first one first.
    """

    labels: Any
    corners_map: tuple[Point, Point, Point, Point]
    colours: dict[int, tuple[int, int, int]]
    n_missing: int
    n_strokes: int
    n_undone: int = 0
    is_loaded: bool = False
    strokes: tuple[MapStroke, ...] = ()

    @property
    def has_map(self) -> bool:
        """Whether there is a map to be looked at and written."""
        return self.n_strokes > 0 or self.is_loaded


@dataclass(frozen=True, eq=False)
class NextPlace:
    """Where to look next: `bounds_map` in the raster's CRS, `outline_map` its four corners."""

    centre_map: Point
    outline_map: tuple[Point, Point, Point, Point]


@dataclass(frozen=True, eq=False)
class MapTask(Task):
    """A task on the class map; `view_map` is what the user sees, in the raster's CRS."""

    handle: MapHandle
    view_map: Bounds
    is_urgent: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class AddStroke(MapTask):
    """Learn from a click or a scribble. Yields the picture of what is encoded."""

    stroke: MapStroke

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Learn and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        _add(self.stroke, mapper)
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class TakeUpStrokes(MapTask):
    """Learn from the clicks and scribbles of an earlier session. Yields None between steps, and the picture at last.

    Those outside a raster that was replaced since are left out.
    """

    strokes: tuple[MapStroke, ...]

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture | None]:
        """Encode where they lie, learn and draw."""
        from ..models.progress import raise_if_cancelled
        from ..processing.errors import JobError

        mapper = self.handle.mapper(segmenter, progress)
        for stroke in self.strokes:
            places = segmenter.scene.reader.to_pixels(stroke.points_map)
            bounds = (*places.min(axis=0), *(places.max(axis=0) + 1))
            for cell in mapper.missing(bounds):
                for _ in mapper.encoding(cell):
                    raise_if_cancelled(progress)
                    yield None
            with suppress(JobError):
                _add(stroke, mapper)
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class UndoStroke(MapTask):
    """Take the last click or scribble back, or `is_all` of them, one by one. Yields the picture."""

    is_all: bool = False

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Forget and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        while mapper.undo() and self.is_all:
            pass
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class RedoStroke(MapTask):
    """Bring back what was taken back last, `n_strokes` clicks and scribbles. Yields the picture."""

    n_strokes: int = 1

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Learn again and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        for _ in range(self.n_strokes):
            mapper.redo()
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class SetColours(MapTask):
    """Draw classes in the colours that they have by name. Yields the picture."""

    colours: Mapping[str, tuple[int, int, int]]

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Recolour and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        for one in mapper.classes:
            mapper.add_class(one.name, self.colours.get(one.name))
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class RenameClass(MapTask):
    """Give a class another name, so that later strokes of that name are of the same class. Yields the picture."""

    old: str
    new: str

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Rename and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        mapper.rename_class(self.old, self.new)
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class SetOptions(MapTask):
    """Learn with another head, snap to segments or not. Yields the picture."""

    head: str
    is_snapped: bool

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture]:
        """Set the options and draw."""
        mapper = self.handle.mapper(segmenter, progress)
        mapper.set_options(replace(mapper.options, head=self.head, is_snapped=self.is_snapped))
        yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class MapView(MapTask):
    """Encode what the view lacks. Yields None between steps, the picture after each window."""

    is_urgent: ClassVar[bool] = False

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[MapPicture | None]:
        """Encode and draw."""
        from ..models.progress import raise_if_cancelled

        mapper = self.handle.mapper(segmenter, progress)
        bounds = view_px(mapper, self.view_map)
        if bounds is None:
            return
        yield picture(mapper, self.view_map)
        for cell in mapper.missing(bounds):
            for _ in mapper.encoding(cell):
                raise_if_cancelled(progress)
                yield None
            yield picture(mapper, self.view_map)


@dataclass(frozen=True, eq=False)
class FindNext(MapTask):
    """Where to look next; yields a `NextPlace`, or None. `visited_map`: places shown before."""

    visited_map: tuple[Point, ...]

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[NextPlace | None]:
        """Look in all that is encoded."""
        from ..processing.jobs.guidance import uncertain_regions

        mapper, reader = self.handle.mapper(segmenter, progress), segmenter.scene.reader
        visited = reader.to_pixels(self.visited_map or [])
        regions = uncertain_regions(mapper, None, visited_px=visited, most=1, only_encoded=True)
        if not regions:
            yield None
            return
        left, top, right, bottom = regions[0].bounds
        corners = reader.to_map([(left, top), (right, top), (right, bottom), (left, bottom)])
        yield NextPlace(_point(reader.to_map([regions[0].centre])[0]), _corners(corners))


@dataclass(frozen=True, eq=False)
class Written:
    """A file that is complete: `sentence` says so; `colours` of its classes, red, green, blue, by name."""

    path: Path
    sentence: str
    colours: dict[str, tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class WriteMap(MapTask):
    """Map the whole raster into a GeoTIFF. Yields the fraction done after each window, and `Written` at last."""

    path: Path
    is_urgent: ClassVar[bool] = False

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[float | Written]:
        """Map and write."""
        from ..processing.jobs.class_raster import write_class_map

        mapper = self.handle.mapper(segmenter, progress)
        colours = _colours(mapper)
        yield from write_class_map(mapper, self.path, progress=progress)
        yield Written(self.path, f"The class map of the whole raster is in {self.path}.", colours)


@dataclass(frozen=True, eq=False)
class WritePolygons(MapTask):
    """Write the areas of the classes into a GeoPackage. Yields the fraction done, and `Written` at last.

    `is_whole`: of the whole raster, and not only of the view.
    """

    path: Path
    is_whole: bool = False
    is_urgent: ClassVar[bool] = False

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[float | Written]:
        """Map, outline and write."""
        from ..processing.errors import JobError
        from ..processing.jobs.class_polygons import write_class_polygons

        mapper = self.handle.mapper(segmenter, progress)
        if not mapper.is_fitted:
            raise JobError("There is no class map yet; click on places of each class first.")
        bounds = None if self.is_whole else view_px(mapper, self.view_map)
        if bounds is None and not self.is_whole:
            raise JobError("The view shows nothing of the raster; zoom to it.")
        colours = _colours(mapper)
        n_written = yield from write_class_polygons(mapper, self.path, bounds_px=bounds, progress=progress)
        where = "whole raster" if self.is_whole else "view"
        yield Written(self.path, f"{n_written} polygons of the {where} are in {self.path}.", colours)


@dataclass(frozen=True, eq=False)
class SaveClassModel(MapTask):
    """Save what was learned. Yields a sentence."""

    path: Path

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[str]:
        """Write the file."""
        from ..processing.jobs.class_map_model import save_mapper

        save_mapper(self.handle.mapper(segmenter, progress), self.path)
        yield f"The class map model is saved in {self.path}."


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What a saved model maps with; `sentence` says what it knows."""

    sentence: str
    head: str
    is_snapped: bool


@dataclass(frozen=True, eq=False)
class LoadClassModel(MapTask):
    """Map with what was learned elsewhere, in place of what was clicked. Yields a `LoadedModel` and the picture."""

    path: Path

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LoadedModel | MapPicture]:
        """Read the file and draw."""
        mapper = self.handle.load(self.path, segmenter, progress)
        names = ", ".join(one.name for one in mapper.classes)
        sentence = f"{self.path.stem} maps these classes: {names}."
        yield LoadedModel(sentence, mapper.options.head, mapper.options.is_snapped)
        yield picture(mapper, self.view_map)


def view_px(mapper: ClassMapper, view_map: Bounds) -> tuple[int, int, int, int] | None:
    """Bounds in raster pixels of what a view shows of the raster, its middle where that is too much; None for none."""
    reader = mapper.scene.reader
    left, bottom, right, top = view_map
    corners = reader.to_pixels([(left, bottom), (left, top), (right, bottom), (right, top)])
    rows, cols = reader.shape
    (x0, y0), (x1, y1) = corners.min(axis=0).clip(0, (cols, rows)), corners.max(axis=0).clip(0, (cols, rows))
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    area = (x1 - x0) * (y1 - y0)
    if area > _MOST_VIEW_PX:
        shrink = (1 - (_MOST_VIEW_PX / area) ** 0.5) / 2
        x0, x1 = x0 + shrink * (x1 - x0), x1 - shrink * (x1 - x0)
        y0, y1 = y0 + shrink * (y1 - y0), y1 - shrink * (y1 - y0)
    return int(x0), int(y0), min(cols, int(x1) + 1), min(rows, int(y1) + 1)


def picture(mapper: ClassMapper, view_map: Bounds) -> MapPicture:
    """What the view shows of the map at present."""
    import numpy as np

    bounds = view_px(mapper, view_map)
    colours = {one.class_id: one.colour for one in mapper.classes}
    counts = mapper.n_strokes, mapper.n_undone, mapper.is_fitted and not mapper.n_strokes, _strokes(mapper)
    if bounds is None:
        nowhere = (0.0, 0.0)
        empty = np.zeros((0, 0), np.uint8)
        return MapPicture(empty, (nowhere, nowhere, nowhere, nowhere), colours, 0, *counts)
    left, top, right, bottom = bounds
    labels = mapper.labels(bounds, only_encoded=True)
    step = max(1, int(np.ceil((labels.size / _MOST_PICTURE_PX) ** 0.5)))
    labels = np.ascontiguousarray(labels[step // 2 :: step, step // 2 :: step])
    # The pixels of the picture stand for whole steps, the last of which may reach beyond the view.
    right, bottom = left + step * labels.shape[1], top + step * labels.shape[0]
    corners = mapper.scene.reader.to_map([(left, top), (right, top), (right, bottom), (left, bottom)])
    return MapPicture(labels, _corners(corners), colours, len(mapper.missing(bounds)), *counts)


def _add(stroke: MapStroke, mapper: ClassMapper) -> None:
    one = mapper.add_class(stroke.class_name, stroke.colour)
    places = mapper.scene.reader.to_pixels(stroke.points_map)
    mapper.scribble([(float(x), float(y)) for x, y in places], one.class_id)


def _strokes(mapper: ClassMapper) -> tuple[MapStroke, ...]:
    to_map = mapper.scene.reader.to_map
    return tuple(MapStroke(tuple(map(_point, to_map(points))), one.name, one.colour) for points, one in mapper.strokes)


def _colours(mapper: ClassMapper) -> dict[str, tuple[int, int, int]]:
    return {one.name: one.colour for one in mapper.classes}


def _corners(xy: Any) -> tuple[Point, Point, Point, Point]:
    first, second, third, fourth = map(_point, xy)
    return first, second, third, fourth


def _point(xy: Any) -> Point:
    return float(xy[0]), float(xy[1])
