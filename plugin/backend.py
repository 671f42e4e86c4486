"""The engine as the worker thread sees it: a scene is opened, its view encoded, prompts answered, all closed.

Everything here runs in the worker thread. torch and rasterio are imported when the first scene is opened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..models.errors import ModelError
from ..models.progress import Progress
from ..processing.environment import activate
from ..processing.errors import JobError, RasterError
from .exchange import (
    Answer,
    Bounds,
    Coverage,
    Demand,
    MaskOptionAnswer,
    Point,
    PromptInput,
    SceneInfo,
    SceneSpec,
    Task,
    ViewWindow,
)

if TYPE_CHECKING:
    from ..models.engine import InferenceEngine
    from ..processing.algorithms.raster_source import Block, RasterSource
    from ..processing.jobs.interactive import InteractiveSegmenter, Knowledge
    from ..processing.jobs.prompt_request import MaskOption, PromptRequest, PromptResult
    from ..processing.jobs.scene import Scene
    from ..processing.raster.reader import RasterReader
    from ..processing.raster.windows import SquareWindow

# Windows encoded ahead of a pan: what two cores encode while the user looks at the view.
_MOST_AHEAD = 6
# Rasters that were left, of which is kept what was learned: with remembered answers up to 50 MB each.
_MOST_LEFT = 4
# What libraries say of a device that is used up or gone; they have no type of error in common.
_DEVICE_SIGNS = ("CUDA", "cuDNN", "CUBLAS", "MPS", "HIP", "out of memory", "not enough memory", "can't allocate memory")


class RasterChangedError(RasterError):
    """The raster's file is not the one that was opened; open it again."""


class Backend(Protocol):
    """What `EngineWorker` needs. Windows are opaque to the caller."""

    def open(self, spec: SceneSpec, progress: Progress) -> SceneInfo:
        """Open a scene in place of the present one; downloads weights where they are missing."""

    def view_windows(self, view_map: Bounds) -> Sequence[Any]:
        """Windows that clicks in the view will need and that are not encoded, the view's centre first."""

    def ahead_windows(self, view_map: Bounds, ahead_map: Point) -> Sequence[Any]:
        """Windows that are not encoded of the view moved by (dx, dy) map units, few and the nearest first."""

    def next_windows(self, answer: Answer) -> Sequence[Any]:
        """Windows that the next click about an answer will need and that are not encoded."""

    def encode(self, window: Any) -> bool | None:
        """Compute the embedding of one window, or find it in the cache. False: its pixels are still to come."""

    def coverage(self, view_map: Bounds) -> Coverage:
        """Say which windows of the view are encoded."""

    def answer(self, prompt: PromptInput) -> Answer:
        """Segment what the prompts mean."""

    def preview(self, prompt: PromptInput) -> Answer | None:
        """Answer at once from an encoded window, or not at all."""

    def run_task(self, task: Task, progress: Progress) -> Iterator[Any]:
        """Start a task on the open scene."""

    def fall_back(self, error: Exception, progress: Progress) -> SceneInfo | None:
        """Let the CPU go on after a failure of the device; None where the error is another one."""

    def close_scene(self) -> None:
        """Let go of the raster; the engine stays."""

    def close(self) -> None:
        """Let go of raster, engine and device memory."""


class SceneBackend:
    """The real engine on a real raster."""

    def __init__(self) -> None:
        self._spec: SceneSpec | None = None
        self._reader: RasterReader | None = None
        self._engine: InferenceEngine | None = None
        self._engine_key: tuple[Any, ...] | None = None
        self._segmenter: InteractiveSegmenter | None = None
        self._is_overtaken: Callable[[], bool] = lambda: False
        self._left: OrderedDict[object, Knowledge] = OrderedDict()

    def open(self, spec: SceneSpec, progress: Progress) -> SceneInfo:
        """Open a scene in place of the present one; the engine stays where model and device do.

        What was learned and loaded stays, too, where one of the last rasters is opened again for the same model.
        """
        self.close_scene()
        activate(spec.settings.environment)
        from ..models.embeddings import EmbeddingCache
        from ..processing.jobs.interactive import InteractiveSegmenter  # all at once: an import stops every thread
        from ..processing.jobs.scene import Scene

        self._is_overtaken = progress.is_cancelled
        # The raster first: it takes milliseconds, and a wrong file should not cost the loading of a model.
        self._reader = self._open_reader(spec)
        self._spec = spec
        engine = self._open_engine(spec, progress)
        settings = spec.settings
        cache = EmbeddingCache(settings.cache_folder, disk_bytes=int(settings.cache_gb * 2**30))
        self._segmenter = InteractiveSegmenter(Scene(self._reader, engine, cache))
        if (left := self._left.pop(_ground(spec), None)) is not None:
            self._segmenter.take_over(left)
        return _info(spec, self._segmenter, engine.device_reason)

    def view_windows(self, view_map: Bounds) -> Sequence[SquareWindow]:
        """Windows that clicks in the view will need and that are not encoded, the view's centre first."""
        from ..processing.jobs.click_windows import view_windows

        scene = self._opened().scene
        if self._demand is not None:
            self._demand.forget()
        return [window for window in view_windows(scene.reader, view_map) if not scene.is_encoded(window)]

    def ahead_windows(self, view_map: Bounds, ahead_map: Point) -> Sequence[SquareWindow]:
        """Windows that are not encoded of the view moved by (dx, dy) map units, few and the nearest first."""
        from ..processing.jobs.click_windows import view_windows

        scene = self._opened().scene
        moved = _moved(view_map, ahead_map)
        seen = set(view_windows(scene.reader, view_map))
        # Cheap before dear: whether a window is encoded is asked of a file.
        new = [window for window in view_windows(scene.reader, moved) if window not in seen]
        middle = (view_map[0] + view_map[2]) / 2, (view_map[1] + view_map[3]) / 2
        x, y = scene.reader.to_pixels([middle])[0]

        def distance(window: SquareWindow) -> float:
            half = window.size_px / 2
            return float(max(abs(window.col_off + half - x), abs(window.row_off + half - y)))

        return [window for window in sorted(new, key=distance) if not scene.is_encoded(window)][:_MOST_AHEAD]

    def next_windows(self, answer: Answer) -> Sequence[SquareWindow]:
        """Windows that the next click about an answer will need and that are not encoded."""
        segmenter = self._opened()
        if answer.result is None:
            return []
        window = segmenter.next_window(answer.result)
        return [] if segmenter.scene.is_encoded(window) else [window]

    def encode(self, window: SquareWindow) -> bool:
        """Compute the embedding of one window, or find it in the cache."""
        scene = self._opened().scene
        self._check_unchanged()
        if self._demand is not None and not scene.is_encoded(window):
            missing = self._missing_blocks(window)
            if missing:
                self._demand.order(missing)
                return False
        scene.embedding(window)
        return True

    def coverage(self, view_map: Bounds) -> Coverage:
        """Say which windows of the view are encoded."""
        from ..processing.jobs.click_windows import view_windows

        scene = self._opened().scene
        windows = [
            ViewWindow(_outline(scene.reader, window), scene.is_encoded(window))
            for window in view_windows(scene.reader, view_map)
        ]
        usage = scene.cache.usage()
        return Coverage(tuple(windows), usage.n_files, usage.n_bytes)

    def answer(self, prompt: PromptInput) -> Answer:
        """Segment what the prompts mean."""
        self._check_unchanged()
        answer = self._segment(prompt, only_if_encoded=False)
        if answer is None:
            raise JobError("The prompts got no answer; drop them and click again.")
        return answer

    def preview(self, prompt: PromptInput) -> Answer | None:
        """Answer at once from an encoded window, or not at all."""
        return self._segment(prompt, only_if_encoded=True)

    def run_task(self, task: Task, progress: Progress) -> Iterator[Any]:
        """Start a task on the open scene."""
        segmenter = self._opened()
        self._check_unchanged()
        return iter(task.run(segmenter, progress))

    def fall_back(self, error: Exception, progress: Progress) -> SceneInfo | None:
        """Open the engine again on the CPU after a failure of the device; None where the error is another one.

        What was learned and loaded is taken along.
        """
        if self._engine is None or self._segmenter is None or self._spec is None or self._engine.device == "cpu":
            return None
        if not is_device_failure(error):
            return None
        spec, failed, device = self._spec, self._segmenter, self._engine.device
        self._close_engine()
        from ..processing.jobs.interactive import InteractiveSegmenter
        from ..processing.jobs.scene import Scene

        engine = self._load_engine(spec, "cpu", progress)
        self._segmenter = InteractiveSegmenter(Scene(failed.scene.reader, engine, failed.scene.cache), failed.options)
        self._segmenter.take_over(failed.knowledge)
        return _info(spec, self._segmenter, f"CPU, because {device} failed.")

    def close_scene(self) -> None:
        """Let go of the raster; the engine stays."""
        if self._segmenter is not None and self._spec is not None:
            if self._segmenter.n_learned or self._segmenter.loaded_name:
                self._left[_ground(self._spec)] = self._segmenter.knowledge
            if len(self._left) > _MOST_LEFT:
                self._left.popitem(last=False)
            self._segmenter.scene.cache.clear_memory()
        self._segmenter = self._spec = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Let go of raster, engine and device memory."""
        self.close_scene()
        self._close_engine()

    def _open_engine(self, spec: SceneSpec, progress: Progress) -> InferenceEngine:
        key = (spec.model, spec.settings.device, spec.settings.checkpoint_folder)
        if self._engine is not None and key == self._engine_key:
            return self._engine
        self._close_engine()
        try:
            engine = self._load_engine(spec, spec.settings.device, progress)
        except RuntimeError as error:
            # Without a name for the device that was tried: a message of the CPU's would lead here as well.
            if spec.settings.device == "cpu" or not is_device_failure(error):
                raise
            progress.info("The graphics device failed; the CPU takes over.")
            engine = self._load_engine(spec, "cpu", progress)
        self._engine_key = key
        return engine

    def _load_engine(self, spec: SceneSpec, device: str, progress: Progress) -> InferenceEngine:
        from ..models.engine import open_engine

        settings = spec.settings
        self._engine = open_engine(
            spec.model,
            device=device,
            checkpoint_folder=settings.checkpoint_folder,
            offline=settings.offline,
            progress=progress,
        )
        return self._engine

    def _close_engine(self) -> None:
        engine, self._engine, self._engine_key = self._engine, None, None
        if engine is not None:
            # A device that is lost cannot even be tidied up.
            with suppress(RuntimeError):
                engine.close()

    def _open_reader(self, spec: SceneSpec) -> RasterReader:
        blocks, demand = spec.source.blocks, spec.demand
        if blocks is None or demand is None:
            return _open_file(spec.source)
        from ..processing.raster.rendered import open_rendered, prune_rendered

        prune_rendered(blocks.folder.parent, keep=blocks.folder)
        return open_rendered(
            blocks, crs_wkt=spec.source.crs_wkt, fetch=lambda missing: demand.wait(missing, self._is_overtaken)
        )

    @property
    def _demand(self) -> Demand | None:
        return None if self._spec is None else self._spec.demand

    def _missing_blocks(self, window: SquareWindow) -> list[Block]:
        from ..processing.raster.rendered import RenderedReader

        return self._reader.missing_blocks(window) if isinstance(self._reader, RenderedReader) else []

    def _opened(self) -> InteractiveSegmenter:
        if self._segmenter is None:
            raise JobError("No raster is open; choose a raster layer.")
        return self._segmenter

    def _check_unchanged(self) -> None:
        if self._reader is not None and self._spec is not None and self._reader.is_changed():
            raise RasterChangedError(
                f"{self._spec.source.name} changed on disk; it is opened again, and the prompts are dropped."
            )

    def _segment(self, prompt: PromptInput, *, only_if_encoded: bool) -> Answer | None:
        segmenter = self._opened()
        request = _request(segmenter.scene, prompt)
        result = segmenter.answer(request, only_if_encoded=only_if_encoded)
        return None if result is None else _answer(result, segmenter.scene.engine.card.name)


def _ground(spec: SceneSpec) -> object:
    """What must be the same for what was learned to hold: model and raster, a web map at whatever scale it is drawn.

    What the layer is called does not count: two web maps may have one name, and a layer may get another.
    """
    return spec.model, replace(spec.source, name="", blocks=None)


def _info(spec: SceneSpec, segmenter: InteractiveSegmenter, reason: str) -> SceneInfo:
    from ..models.registry import get_card

    title, device = get_card(spec.model).title.partition(" (")[0], segmenter.scene.engine.device
    return SceneInfo(spec.source.name, title, device, reason, segmenter.n_learned, segmenter.loaded_name)


def is_device_failure(error: Exception) -> bool:
    """Say whether an error tells of a device without memory, or of one that is lost, rather than of bad input."""
    if isinstance(error, (JobError, RasterError)) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    if isinstance(error, ModelError):
        return "not enough memory" in text or "out of memory" in text
    return type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") or any(
        sign in text for sign in _DEVICE_SIGNS
    )


def _answer(result: PromptResult, model: str) -> Answer:
    return Answer(
        request_id=result.request_id,
        wkb=_wkb(result.geometry),
        score=result.score,
        stability=result.stability,
        area_m2=result.area_m2,
        model=model,
        previous=result.as_previous(),
        options=tuple(_option(option) for option in result.options),
        adapter=result.adapter,
        result=result,
    )


def _option(option: MaskOption) -> MaskOptionAnswer:
    return MaskOptionAnswer(
        wkb=_wkb(option.geometry),
        score=option.score,
        stability=option.stability,
        area_m2=option.area_m2,
        previous=option.as_previous(),
    )


def _wkb(geometry: Any) -> bytes:
    import shapely

    return b"" if geometry.is_empty else bytes(shapely.to_wkb(geometry))


def _request(scene: Scene, prompt: PromptInput) -> PromptRequest:
    import shapely

    from ..processing.jobs.click_windows import window_px_for_view
    from ..processing.jobs.prompt_request import PromptRequest

    return PromptRequest(
        request_id=prompt.request_id,
        points_map=prompt.points_map,
        labels=prompt.labels,
        box_map=prompt.box_map,
        scribbles_map=prompt.scribbles_map,
        scribble_labels=prompt.scribble_labels,
        outline=shapely.from_wkb(prompt.outline_wkb) if prompt.outline_wkb else None,
        window_px=window_px_for_view(scene.reader, prompt.view_map),
        previous=prompt.previous,
    )


def _moved(view_map: Bounds, by: Point) -> Bounds:
    left, bottom, right, top = view_map
    return left + by[0], bottom + by[1], right + by[0], top + by[1]


def _outline(reader: RasterReader, window: SquareWindow) -> tuple[Point, ...]:
    """Corners of the part of a window inside the raster, in map units of the raster's CRS."""
    rows, cols = window.inside(reader.shape)
    left, top = window.col_off, window.row_off
    corners = [(left, top), (left + cols, top), (left + cols, top + rows), (left, top + rows)]
    return tuple((float(x), float(y)) for x, y in reader.to_map(corners))


def _open_file(source: RasterSource) -> RasterReader:
    from ..processing.raster.reader import open_raster
    from ..processing.raster.stretch import Stretch

    stretch = None
    if source.ranges is not None:
        stretch = Stretch(low=tuple(low for low, _ in source.ranges), high=tuple(high for _, high in source.ranges))
    return open_raster(source.path, bands=source.bands, stretch=stretch, crs_wkt=source.crs_wkt)
