"""What was found in one search for similar objects, and what was said of it; no canvas, no worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qgis.core import QgsGeometry

from .crs import geometry_from_wkb
from .similar_tasks import Found, SearchHandle

# What overlaps an object that is known already by more than this is that object.
_SAME_OBJECT_IOU = 0.5


@dataclass(eq=False)
class Review:
    """The candidates of one search, in the order of their finding, and what was said of them."""

    class_name: str
    handle: SearchHandle = field(default_factory=SearchHandle)
    candidates: dict[int, Found] = field(default_factory=dict)
    geometries: dict[int, QgsGeometry] = field(default_factory=dict)
    """Outlines in the raster's CRS."""
    probabilities: dict[int, float] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take in a candidate."""
        self.candidates[found.number], self.geometries[found.number] = found, geometry_from_wkb(found.wkb)
        self.probabilities[found.number] = found.probability

    def drop(self, number: int) -> None:
        """Forget a candidate without an answer."""
        for known in (self.candidates, self.geometries, self.probabilities):
            known.pop(number, None)

    def queue(self) -> list[int]:
        """Numbers of the candidates that nothing was said of, the likeliest first."""
        answered = {*self.accepted, *self.rejected}
        open_ones = [number for number in self.candidates if number not in answered]
        return sorted(open_ones, key=lambda number: (-self.probabilities[number], number))

    def above(self, probability: float) -> list[int]:
        """Numbers of the open candidates that are at least that likely, the likeliest first."""
        return [number for number in self.queue() if self.probabilities[number] >= probability]

    def under(self, place: QgsGeometry) -> list[int]:
        """Numbers of the open candidates at a place in the raster's CRS, the likeliest first."""
        return [number for number in self.queue() if self.geometries[number].intersects(place)]

    def text(self, *, current: int | None, is_searching: bool) -> str:
        """Say how far it is; `current`: number of the candidate that is asked about."""
        n_open = len(self.queue())
        counts = f"{n_open} to review, {len(self.accepted)} accepted, {len(self.rejected)} rejected"
        if current is not None:
            found = self.candidates[current]
            return (
                f"Probability {self.probabilities[current]:.2f} · score {found.score:.2f} · "
                f"{found.area_m2:,.0f} m² · {counts}."
            )
        if is_searching:
            return f"Looking for similar objects · {counts}."
        return f"{counts}." if n_open or not self.candidates else f"All reviewed: {counts}."


def is_known(geometry: QgsGeometry, known: Iterable[QgsGeometry]) -> bool:
    """Say whether an outline is that of an object that is known, in the same CRS."""
    return any(_iou(geometry, other) > _SAME_OBJECT_IOU for other in known)


def _iou(first: QgsGeometry, second: QgsGeometry) -> float:
    if not first.boundingBoxIntersects(second):
        return 0.0
    common = first.intersection(second).area()
    return float(common / max(first.area() + second.area() - common, 1e-12))
