"""Prompts from a selection: every selected feature becomes one object, accepted one after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qgis.core import QgsCoordinateReferenceSystem, QgsFeature, QgsGeometry, QgsVectorLayer, QgsWkbTypes
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .crs import CoordinateError
from .exchange import Bounds, Point
from .polygon_picker import flat_geometry
from .session import FOREGROUND, Session

# A polygon that fills so much of its bounds was drawn as a rectangle.
_RECTANGLE_FILL = 0.999


@dataclass(frozen=True)
class Seed:
    """The prompts of one object of a batch, in the raster's CRS: points, lines, a box, or an outline."""

    points_map: tuple[Point, ...] = ()
    lines_map: tuple[tuple[Point, ...], ...] = ()
    box_map: Bounds | None = None
    outline_wkb: bytes = b""

    def enter(self, session: Session) -> None:
        """Begin an object with these prompts."""
        session.drop()
        if self.points_map:
            session.add_points(self.points_map, labels=[FOREGROUND] * len(self.points_map))
        elif self.lines_map:
            session.add_scribbles(self.lines_map, is_foreground=True)
        elif self.box_map is not None:
            session.set_box(self.box_map)
        else:
            session.set_outline(self.outline_wkb)


def seed_of(geometry: QgsGeometry) -> Seed | None:
    """Return the prompts that a geometry stands for, None for one that is empty.

    Points are points on the object, lines are scribbles, a rectangle is a box, any other polygon the outline
    to start from.
    """
    if geometry.isEmpty():
        return None
    kind = geometry.type()
    if kind == QgsWkbTypes.GeometryType.PointGeometry:
        return Seed(points_map=tuple((vertex.x(), vertex.y()) for vertex in geometry.vertices()))
    if kind == QgsWkbTypes.GeometryType.LineGeometry:
        parts = geometry.asGeometryCollection() if geometry.isMultipart() else [geometry]
        return Seed(lines_map=tuple(tuple((point.x(), point.y()) for point in part.asPolyline()) for part in parts))
    bounds = geometry.boundingBox()
    if geometry.area() >= _RECTANGLE_FILL * bounds.width() * bounds.height():
        return Seed(box_map=(bounds.xMinimum(), bounds.yMinimum(), bounds.xMaximum(), bounds.yMaximum()))
    return Seed(outline_wkb=bytes(geometry.asWkb()))


def seeds_of(
    features: Iterable[tuple[QgsVectorLayer, QgsFeature]], *, destination: QgsCoordinateReferenceSystem
) -> list[Seed]:
    """Return the prompts of features in the CRS of the raster, without those that have no place there."""
    seeds: list[Seed] = []
    for layer, feature in features:
        try:
            seed = seed_of(flat_geometry(feature, layer, destination=destination))
        except CoordinateError:
            continue
        if seed is not None:
            seeds.append(seed)
    return seeds


class Batch(QObject):
    """A queue of seeds. `next` carries the seed to be asked; whoever asked says how it ended with `go_on`.

    `progressed` carries how many are done and planned; `finished` a sentence.
    """

    next = pyqtSignal(object)
    progressed = pyqtSignal(int, int)
    finished = pyqtSignal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._seeds: list[Seed] = []
        self._n_done, self._n_accepted = 0, 0
        self.is_running = False

    @property
    def n_planned(self) -> int:
        """Number of objects of this batch."""
        return len(self._seeds)

    @property
    def n_done(self) -> int:
        """Number of objects that were looked at."""
        return self._n_done

    def start(self, seeds: list[Seed]) -> None:
        """Ask for the first."""
        self._seeds, self._n_done, self._n_accepted = seeds, 0, 0
        self.is_running = bool(seeds)
        if seeds:
            self._ask()

    def go_on(self, *, is_accepted: bool) -> None:
        """Ask for the next one, or finish."""
        if not self.is_running:
            return
        self._n_done += 1
        self._n_accepted += is_accepted
        if self._n_done < len(self._seeds):
            self._ask()
        else:
            self._finish("")

    def stop(self) -> None:
        """End before the last one; what was accepted stays."""
        if self.is_running:
            self._finish("Stopped: ")

    def _ask(self) -> None:
        self.progressed.emit(self._n_done, len(self._seeds))
        self.next.emit(self._seeds[self._n_done])

    def _finish(self, how: str) -> None:
        self.is_running = False
        self.progressed.emit(self._n_done, len(self._seeds))
        n_failed = self._n_done - self._n_accepted
        rest = f"; {n_failed} gave no outline" if n_failed else ""
        self.finished.emit(f"{how}{self._n_accepted} of {len(self._seeds)} selected features became objects{rest}.")
