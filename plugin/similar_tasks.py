"""What the worker does to find similar objects: the search, piece by piece, and what answers teach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..models.errors import CheckpointError
from .exchange import Bounds, Task

if TYPE_CHECKING:
    from ..models.backbone import Backbone
    from ..models.progress import Progress
    from ..processing.algorithms.settings import EngineSettings
    from ..processing.jobs.interactive import InteractiveSegmenter
    from ..processing.jobs.similar import SimilarCandidate, SimilarSearch

# Candidates that are less likely are handed out once answers make them likelier.
_LEAST_PROBABILITY = 0.05


@dataclass(frozen=True)
class Found:
    """A candidate: `wkb` its multipolygon in the raster's CRS; the numbers are those of `SimilarCandidate`."""

    number: int
    wkb: bytes
    score: float
    stability: float
    area_m2: float
    probability: float
    model: str


@dataclass(eq=False)
class SearchHandle:
    """The search of a review. Only the worker touches `search` (`SimilarSearch`); the GUI hands the handle around."""

    search: Any = None


@dataclass(frozen=True, eq=False)
class Search(Task):
    """Look for objects like the examples (WKB, raster's CRS) in `bounds_map`, None for the whole raster.

    Yields `Found`, and None after each short piece of work.
    """

    handle: SearchHandle
    examples: tuple[bytes, ...]
    settings: EngineSettings
    rejected: tuple[bytes, ...] = ()
    bounds_map: Bounds | None = None

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[Found | None]:
        """Search."""
        import shapely

        from ..processing.jobs.similar import SimilarJob, SimilarSearch

        scene = segmenter.scene
        bounds_px = None
        if self.bounds_map is not None:
            left, bottom, right, top = self.bounds_map
            corners = scene.reader.to_pixels([(left, bottom), (left, top), (right, bottom), (right, top)])
            (first, second), (third, fourth) = corners.min(axis=0), corners.max(axis=0)
            bounds_px = (float(first), float(second), float(third), float(fourth))
        backbone = self._backbone(scene.engine.device, progress)
        yield None
        search = SimilarSearch(
            scene,
            [shapely.from_wkb(wkb) for wkb in self.examples],
            rejected=[shapely.from_wkb(wkb) for wkb in self.rejected],
            job=SimilarJob(bounds_px=bounds_px),
            backbone=backbone,
            progress=progress,
        )
        self.handle.search = search
        yield None
        for candidate in search.steps(progress=progress):
            yield None if candidate is None else _found(search, candidate, segmenter)

    def _backbone(self, device: str, progress: Progress) -> Backbone | None:
        from ..models.backbone import open_backbone

        try:
            return open_backbone(
                device=device,
                checkpoint_folder=self.settings.checkpoint_folder,
                offline=self.settings.offline,
                progress=progress,
            )
        except CheckpointError as error:
            progress.info(f"{error} The search goes on with the features of the model alone.")
            return None


@dataclass(frozen=True, eq=False)
class LearnAnswers(Task):
    """Rank the candidates again, after these answers (numbers of candidates).

    Yields probabilities by number, and as `Search` does what has become likely, unless it is among the `known`.
    """

    handle: SearchHandle
    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    known: frozenset[int] = frozenset()
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[dict[int, float] | Found | None]:
        """Rank."""
        search = self.handle.search
        if search is None:
            return
        ranked = search.update(self.accepted, self.rejected)
        yield {candidate.number: candidate.probability for candidate in ranked}
        for candidate in ranked:
            if candidate.number not in self.known:
                yield _found(search, candidate, segmenter)


def _found(search: SimilarSearch, candidate: SimilarCandidate, segmenter: InteractiveSegmenter) -> Found | None:
    """Outline a candidate; None for an unlikely one and where nothing is left of it."""
    import shapely

    if candidate.probability < _LEAST_PROBABILITY:
        return None
    found = search.outline(candidate)
    if found.geometry.is_empty:
        return None
    return Found(
        found.number,
        bytes(shapely.to_wkb(found.geometry)),
        found.score,
        found.stability,
        found.area_m2,
        found.probability,
        segmenter.scene.engine.card.name,
    )
