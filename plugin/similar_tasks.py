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
    least_probability: float = 0.05

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
            if candidate is None or candidate.probability < self.least_probability:
                yield None
                continue
            found = search.outline(candidate)
            if not found.geometry.is_empty:
                yield Found(
                    found.number,
                    bytes(shapely.to_wkb(found.geometry)),
                    found.score,
                    found.stability,
                    found.area_m2,
                    found.probability,
                    scene.engine.card.name,
                )

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
    """Rank the candidates again, after these answers (numbers of candidates). Yields probabilities by number."""

    handle: SearchHandle
    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[dict[int, float]]:
        """Rank."""
        if self.handle.search is not None:
            ranked = self.handle.search.update(self.accepted, self.rejected)
            yield {candidate.number: candidate.probability for candidate in ranked}
