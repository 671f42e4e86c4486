"""What was found in one search for similar objects, and what was said of it; no canvas, no worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from qgis.core import QgsGeometry

from .crs import geometry_from_wkb
from .feature_sink import EditStep
from .similar_tasks import Found, SearchHandle

# What overlaps an object that is known already by more than this is that object.
_SAME_OBJECT_IOU = 0.5


class Said(NamedTuple):
    """An answer for a candidate, and the step of the layers' history that says whether it is its turn.

    Nothing was done to a layer since the answer while that step is the newest one done, or since an accept was taken
    back while it is the newest one undone.
    """

    number: int
    is_accepted: bool
    step: EditStep | None

    @property
    def word(self) -> str:
        """What it is, for undo and redo."""
        return "accept" if self.is_accepted else "reject"


@dataclass(eq=False)
class Review:
    """The candidates of one search, in the order of their finding, and what was said of them, the newest last.

    `rejected_before`: outlines (WKB, raster's CRS) that were rejected in earlier reviews of the class.
    """

    class_name: str
    handle: SearchHandle = field(default_factory=SearchHandle)
    candidates: dict[int, Found] = field(default_factory=dict)
    geometries: dict[int, QgsGeometry] = field(default_factory=dict)
    """Outlines in the raster's CRS."""
    probabilities: dict[int, float] = field(default_factory=dict)
    answers: list[Said] = field(default_factory=list)
    taken_back: list[Said] = field(default_factory=list)
    rejected_before: tuple[bytes, ...] = ()

    @property
    def accepted(self) -> list[int]:
        """Numbers of the candidates that were accepted."""
        return [said.number for said in self.answers if said.is_accepted]

    @property
    def rejected(self) -> list[int]:
        """Numbers of the candidates that were rejected."""
        return [said.number for said in self.answers if not said.is_accepted]

    def say(self, number: int, *, is_accepted: bool, step: EditStep | None) -> None:
        """Answer for a candidate; what was taken back before does not come again."""
        self.answers.append(Said(number, is_accepted, step))
        self.taken_back.clear()

    def take_back(self, step: EditStep | None) -> None:
        """Take the newest answer back; `step`: what the history undid for that."""
        self.taken_back.append(self.answers.pop()._replace(step=step))

    def say_again(self, step: EditStep | None) -> None:
        """Bring back the answer that was taken back last; `step`: the newest of the history now."""
        self.answers.append(self.taken_back.pop()._replace(step=step))

    def follow_undo(self, done: EditStep, undone: EditStep | None) -> None:
        """Take back the accept that was undone as a step of a layer; `undone`: what the history can do again."""
        for said in self.answers:
            if said.is_accepted and said.step is not None and said.step.key is done.key:
                self.answers.remove(said)
                self.taken_back.append(said._replace(step=undone))
                return

    def follow_redo(self, redone: EditStep, newest: EditStep | None) -> None:
        """Bring back the accept that was done again as a step of a layer; `newest`: that step of the history."""
        for said in self.taken_back:
            if said.is_accepted and said.step is not None and said.step.key is redone.key:
                self.taken_back.remove(said)
                self.answers.append(said._replace(step=newest))
                return

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
        answered = {said.number for said in self.answers}
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
