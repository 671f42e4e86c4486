"""The engine as the worker thread sees it: a scene is opened, its view encoded, prompts answered, all closed.

Everything here runs in the worker thread. torch and rasterio are imported when the first scene is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..models.progress import Progress
from ..processing.environment import activate
from .exchange import Answer, Bounds, PromptInput, SceneInfo, SceneSpec

if TYPE_CHECKING:
    from ..models.engine import InferenceEngine
    from ..processing.algorithms.raster_source import RasterSource
    from ..processing.jobs.interactive import PromptRequest
    from ..processing.jobs.scene import Scene
    from ..processing.raster.reader import RasterReader
    from ..processing.raster.windows import SquareWindow


class Backend(Protocol):
    """What `EngineWorker` needs. Windows are opaque to the caller."""

    def open(self, spec: SceneSpec, progress: Progress) -> SceneInfo:
        """Open a scene in place of the present one; downloads weights where they are missing."""

    def view_windows(self, view_map: Bounds) -> Sequence[Any]:
        """Windows that clicks in the view will need and that are not encoded, the view's centre first."""

    def encode(self, window: Any) -> None:
        """Compute the embedding of one window, or find it in the cache."""

    def answer(self, prompt: PromptInput) -> Answer:
        """Segment what the prompts mean."""

    def preview(self, prompt: PromptInput) -> Answer | None:
        """Answer at once from an encoded window, or not at all."""

    def close_scene(self) -> None:
        """Let go of the raster; the engine stays."""

    def close(self) -> None:
        """Let go of raster, engine and device memory."""


class SceneBackend:
    """The real engine on a real raster."""

    def __init__(self) -> None:
        self._reader: RasterReader | None = None
        self._engine: InferenceEngine | None = None
        self._engine_key: tuple[Any, ...] | None = None
        self._scene: Scene | None = None

    def open(self, spec: SceneSpec, progress: Progress) -> SceneInfo:
        """Open a scene in place of the present one; the engine stays where model and device do."""
        self.close_scene()
        activate(spec.settings.environment)
        from ..models.embeddings import EmbeddingCache
        from ..models.registry import get_card
        from ..processing.jobs import interactive  # noqa: F401 - all at once: an import stops every thread
        from ..processing.jobs.scene import Scene

        # The raster first: it takes milliseconds, and a wrong file should not cost the loading of a model.
        self._reader = _open_reader(spec.source)
        engine = self._open_engine(spec, progress)
        settings = spec.settings
        cache = EmbeddingCache(settings.cache_folder, disk_bytes=int(settings.cache_gb * 2**30))
        self._scene = Scene(self._reader, engine, cache)
        title = get_card(spec.model).title.partition(" (")[0]
        return SceneInfo(spec.source.name, title, engine.device, engine.device_reason)

    def view_windows(self, view_map: Bounds) -> Sequence[SquareWindow]:
        """Windows that clicks in the view will need and that are not encoded, the view's centre first."""
        from ..processing.jobs.interactive import view_windows

        scene = self._opened()
        return [window for window in view_windows(scene.reader, view_map) if not scene.is_encoded(window)]

    def encode(self, window: SquareWindow) -> None:
        """Compute the embedding of one window, or find it in the cache."""
        self._opened().embedding(window)

    def answer(self, prompt: PromptInput) -> Answer:
        """Segment what the prompts mean."""
        answer = self._segment(prompt, only_if_encoded=False)
        if answer is None:
            from ..processing.errors import JobError

            raise JobError("The prompts got no answer; drop them and click again.")
        return answer

    def preview(self, prompt: PromptInput) -> Answer | None:
        """Answer at once from an encoded window, or not at all."""
        return self._segment(prompt, only_if_encoded=True)

    def close_scene(self) -> None:
        """Let go of the raster; the engine stays."""
        self._scene = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Let go of raster, engine and device memory."""
        self.close_scene()
        if self._engine is not None:
            self._engine.close()
            self._engine, self._engine_key = None, None

    def _open_engine(self, spec: SceneSpec, progress: Progress) -> InferenceEngine:
        from ..models.engine import open_engine

        settings = spec.settings
        key = (spec.model, settings.device, settings.checkpoint_folder)
        if self._engine is None or key != self._engine_key:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = open_engine(
                spec.model,
                device=settings.device,
                checkpoint_folder=settings.checkpoint_folder,
                offline=settings.offline,
                progress=progress,
            )
            self._engine_key = key
        return self._engine

    def _opened(self) -> Scene:
        if self._scene is None:
            from ..processing.errors import JobError

            raise JobError("No raster is open; choose a raster layer.")
        return self._scene

    def _segment(self, prompt: PromptInput, *, only_if_encoded: bool) -> Answer | None:
        import shapely

        from ..processing.jobs.interactive import PreviousAnswer, segment_prompts

        scene = self._opened()
        result = segment_prompts(scene, _request(scene, prompt), only_if_encoded=only_if_encoded)
        if result is None:
            return None
        return Answer(
            request_id=result.request_id,
            wkb=b"" if result.geometry.is_empty else shapely.to_wkb(result.geometry),
            score=result.score,
            stability=result.stability,
            area_m2=result.area_m2,
            model=scene.engine.card.name,
            previous=PreviousAnswer(result.window, result.logits),
        )


def _request(scene: Scene, prompt: PromptInput) -> PromptRequest:
    from ..processing.jobs.interactive import PromptRequest, window_px_for_view

    return PromptRequest(
        request_id=prompt.request_id,
        points_map=prompt.points_map,
        labels=prompt.labels,
        box_map=prompt.box_map,
        window_px=window_px_for_view(scene.reader, prompt.view_map),
        previous=prompt.previous,
    )


def _open_reader(source: RasterSource) -> RasterReader:
    from ..processing.raster.reader import open_raster
    from ..processing.raster.stretch import Stretch

    stretch = None
    if source.ranges is not None:
        stretch = Stretch(low=tuple(low for low, _ in source.ranges), high=tuple(high for _, high in source.ranges))
    return open_raster(source.path, bands=source.bands, stretch=stretch, crs_wkt=source.crs_wkt)
