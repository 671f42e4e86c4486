"""How many clicks an object takes: the job behind `segadapt:evaluateinteractive`.

An analyst is simulated by the rule of `clicker.next_click` over reference polygons, one after another, through the
same `InteractiveSegmenter` that the map tool holds: answers are fed back, windows kept, accepted objects learned.
The mask is the one that the map tool shows (logits above 0), where RITM cuts probabilities at 0.49.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.rasterize import PixelBounds, burn, joined, pixel_bounds
from ..raster.reader import RasterReader
from ..raster.windows import SquareWindow
from .answers import LARGEST_WINDOW_PX
from .click_curves import ObjectCurve, Summary, difference, summarise
from .clicker import BoolMask, NoErrorLeftError, iou, next_click
from .interactive import InteractiveOptions, InteractiveSegmenter, PromptRequest, PromptResult
from .scene import Scene

ACCEPT_ANSWER, ACCEPT_REFERENCE = "answer", "reference"
OUTSIDE, CUT, NODATA = "outside the raster", "cut by its edge", "on pixels without data"
SMALL, LARGE = "too small", "too large for a window"
"""Why a reference is not evaluated."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A polygon or multipolygon in the raster's CRS that is taken for the truth."""

    geometry: BaseGeometry
    reference_id: str
    class_name: str = ""


@dataclass(frozen=True)
class Configuration:
    """A way of answering under the name that it has in tables."""

    name: str
    options: InteractiveOptions = field(default_factory=InteractiveOptions)


def plain_options(*, window_px: int | None = 1024) -> InteractiveOptions:
    """The model as it was published: no adaptation, no second look; in windows of one size, or as objects need."""
    return InteractiveOptions(
        window_px=window_px,
        fixed_window=window_px is not None,
        adapter=False,
        cascade=0,
        repair=False,
        per_click=False,
        per_object=False,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateInteractive:
    """What to evaluate, and how.

    `configurations` meet the same objects in the same order, each with a segmenter of its own that has learned
    nothing yet. `n_clicks`: an object is given up after so many. `targets`: IoUs (0 to 1) for which clicks are
    counted; at the highest one the analyst accepts and goes on. `max_objects`: the first so many of the random
    order, None for all. `min_area_px`: references with fewer pixels are left out, because an outline drawn one pixel
    off decides their IoU. `seed`: order of the objects, and resamples. `accepts`: what the segmenter learns from:
    `"answer"`, the last answer, reached or not, or `"reference"`, an analyst who corrects each outline by hand before
    it is accepted. `n_first`: the measures are given again for the objects after the first so many.
    `view_window_px`: side of the window that the map tool would propose for the analyst's view, None for the
    segmenter's own choice; only configurations without a window of their own use it.
    Raises `JobError` for numbers that make no sense.
    """

    configurations: tuple[Configuration, ...] = (Configuration("adapting"),)
    n_clicks: int = 20
    targets: tuple[float, ...] = (0.80, 0.85, 0.90)
    max_objects: int | None = None
    min_area_px: int = 64
    seed: int = 0
    accepts: str = ACCEPT_ANSWER
    n_first: int = 20
    n_resamples: int = 1000
    view_window_px: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        names = [configuration.name for configuration in self.configurations]
        if not names or len(set(names)) < len(names):
            raise JobError(f"Configurations {names} need names of their own; give one or more.")
        if self.n_clicks < 1 or (self.max_objects is not None and self.max_objects < 1) or self.n_resamples < 1:
            raise JobError(
                f"{self.n_clicks} clicks, {self.max_objects} objects and {self.n_resamples} resamples are too few; "
                "give at least 1 of each."
            )
        if not self.targets or not all(0 < target <= 1 for target in self.targets):
            raise JobError(f"Targets {self.targets} are no IoUs; give numbers above 0, at most 1.")
        if self.accepts not in (ACCEPT_ANSWER, ACCEPT_REFERENCE):
            raise JobError(f"'{self.accepts}' cannot be accepted; choose '{ACCEPT_ANSWER}' or '{ACCEPT_REFERENCE}'.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfigurationResult:
    """The curves of one configuration, in the order of the objects, and what they say.

    `after_first`: the measures of the objects after the first `n_first`, None where there are none. `n_encoded` and
    `encode_s`: windows that the model had to encode, and the seconds that took; windows that a cache held already
    are not among them. `n_kept`: accepted objects from which the segmenter learned; `n_undone`: those that would
    have done harm.
    """

    configuration: Configuration
    curves: tuple[ObjectCurve, ...]
    summary: Summary
    after_first: Summary | None
    n_encoded: int
    encode_s: float
    n_kept: int
    n_undone: int


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractiveEvaluation:
    """All results. `differences` are those of each configuration but the first to the first, by name.

    `excluded`: how many references were left out, by reason; `provenance` as `Scene.provenance` tells it.
    """

    job: EvaluateInteractive
    results: tuple[ConfigurationResult, ...]
    differences: Mapping[str, Summary]
    n_references: int
    excluded: Mapping[str, int]
    provenance: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _Target:
    """A reference that is evaluated, and its place in the raster."""

    index: int
    reference: Reference
    bounds_px: PixelBounds
    area_px: int


def evaluate_interactive(
    scene: Scene, references: Sequence[Reference], job: EvaluateInteractive, progress: Progress | None = None
) -> InteractiveEvaluation:
    """Simulate the analyst on every configuration. Deterministic by the job's seed, but for seconds.

    Raises `JobError` where no reference can be evaluated, and `Cancelled` between objects.
    """
    progress = progress or NullProgress()
    targets, excluded = _targets(scene.reader, references, job, progress)
    if not targets:
        reasons = ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "there is none"
        raise JobError(
            f"None of the {len(references)} reference polygons can be evaluated ({reasons}); give polygons of whole "
            f"objects inside the raster, of at least {job.min_area_px} pixels."
        )
    clock = _Clock(progress, n_steps=len(targets) * len(job.configurations))
    results = tuple(_evaluate(scene, targets, configuration, job, clock) for configuration in job.configurations)
    first, *others = results
    return InteractiveEvaluation(
        job=job,
        results=results,
        differences={
            other.configuration.name: difference(
                other.curves, first.curves, job.targets, seed=job.seed, n_resamples=job.n_resamples
            )
            for other in others
        },
        n_references=len(references),
        excluded=excluded,
        provenance=scene.provenance(),
    )


def _targets(
    reader: RasterReader, references: Sequence[Reference], job: EvaluateInteractive, progress: Progress
) -> tuple[list[_Target], dict[str, int]]:
    """The references to evaluate in their random order, and how many were left out for what reason."""
    targets: list[_Target] = []
    excluded: Counter[str] = Counter()
    for index, reference in enumerate(references):
        if index % 64 == 0:
            raise_if_cancelled(progress)
        bounds = pixel_bounds(reference.geometry, reader.transform)
        truth, reason = _truth_or_reason(reader, reference.geometry, bounds, job.min_area_px)
        if reason:
            excluded[reason] += 1
        else:
            targets.append(_Target(index, reference, bounds, int(np.count_nonzero(truth))))
    order = np.random.default_rng(job.seed).permutation(len(targets))
    return [targets[i] for i in order[: job.max_objects]], dict(excluded)


def _truth_or_reason(
    reader: RasterReader, geometry: BaseGeometry, bounds: PixelBounds, min_area_px: int
) -> tuple[BoolMask, str]:
    """The truth inside `bounds` and "", or an empty mask and why it cannot be evaluated."""
    nothing = np.zeros((0, 0), np.bool_)
    (rows, cols), (left, top, right, bottom) = reader.shape, bounds
    if right <= 0 or bottom <= 0 or left >= cols or top >= rows:
        return nothing, SMALL if right <= left else OUTSIDE
    # What ends exactly at the edge has been cut there by whoever drew it.
    if left <= 0 or top <= 0 or right >= cols or bottom >= rows:
        return nothing, CUT
    if max(right - left, bottom - top) > LARGEST_WINDOW_PX:
        return nothing, LARGE
    truth = burn(geometry, reader.transform, bounds_px=bounds)
    if np.count_nonzero(truth) < max(1, min_area_px):
        return nothing, SMALL
    side_px = max(right - left, bottom - top)
    valid = reader.valid_mask(SquareWindow(left, top, side_px))[: bottom - top, : right - left]
    return (nothing, NODATA) if (truth & ~valid).any() else (truth, "")


def _evaluate(
    scene: Scene, targets: Sequence[_Target], configuration: Configuration, job: EvaluateInteractive, clock: _Clock
) -> ConfigurationResult:
    timed = _TimedScene(scene)
    # The first answer of all loads adapters and wakes threads, for which no click is to be blamed; what it learns
    # goes with its segmenter.
    _Analyst(InteractiveSegmenter(timed, configuration.options), job, timed).click_once(targets[0])
    analyst = _Analyst(InteractiveSegmenter(timed, configuration.options), job, timed)
    curves = []
    for order, target in enumerate(targets):
        raise_if_cancelled(clock.progress)
        curves.append(analyst.segment(target, order))
        clock.step()
    after = curves[job.n_first :]
    return ConfigurationResult(
        configuration=configuration,
        curves=tuple(curves),
        summary=summarise(curves, job.targets, seed=job.seed, n_resamples=job.n_resamples),
        after_first=summarise(after, job.targets, seed=job.seed, n_resamples=job.n_resamples) if after else None,
        n_encoded=timed.n_encoded,
        encode_s=timed.encode_s,
        n_kept=analyst.n_kept,
        n_undone=analyst.n_undone,
    )


class _Analyst:
    """Clicks on one object after another, as the map tool's session would hand the clicks on."""

    def __init__(self, segmenter: InteractiveSegmenter, job: EvaluateInteractive, scene: _TimedScene) -> None:
        self._segmenter, self._job, self._scene = segmenter, job, scene
        self._n_requests = 0
        self.n_kept = self.n_undone = 0

    def click_once(self, target: _Target) -> None:
        """Make the first click on an object, and forget it."""
        attempt = _Attempt(target, self._scene.reader)
        attempt.click()
        self._answer(attempt)

    def segment(self, target: _Target, order: int) -> ObjectCurve:
        """Click until the object is good enough or given up, then let the segmenter learn."""
        attempt = _Attempt(target, self._scene.reader)
        ious: list[float] = []
        click_s: list[float] = []
        while len(ious) < self._job.n_clicks and (not ious or ious[-1] < max(self._job.targets)):
            try:
                attempt.click()
            except NoErrorLeftError:  # every wrong pixel was clicked, so the model will not have it
                break
            click_s.append(self._answer(attempt))
            ious.append(attempt.iou())
        ious += ious[-1:] * (self._job.n_clicks - len(ious))
        return ObjectCurve(
            index=target.index,
            order=order,
            reference_id=target.reference.reference_id,
            class_name=target.reference.class_name,
            area_px=target.area_px,
            ious=tuple(ious),
            click_s=tuple(click_s),
            learn_s=self._learn(attempt),
            truth=target.reference.geometry,
            outline=attempt.outline,
        )

    def _answer(self, attempt: _Attempt) -> float:
        """Have the present clicks answered; the seconds that took, without encoding."""
        self._n_requests += 1
        options = self._segmenter.options
        request = PromptRequest(
            request_id=self._n_requests,
            points_map=tuple(attempt.points_map),
            labels=tuple(attempt.labels),
            window_px=options.window_px or self._job.view_window_px,
            previous=None if attempt.result is None else attempt.result.as_previous(),
        )
        encoded_before_s, start = self._scene.encode_s, time.perf_counter()
        try:
            attempt.result = self._segmenter.answer(request)
        except JobError:
            # A click too far away for any window: the map tool says so and takes it back.
            attempt.take_back()
        return max(0.0, time.perf_counter() - start - (self._scene.encode_s - encoded_before_s))

    def _learn(self, attempt: _Attempt) -> float:
        """Accept the object; the seconds of learning from it."""
        accepts_reference = self._job.accepts == ACCEPT_REFERENCE
        if not self._segmenter.options.per_object or attempt.result is None:
            return 0.0
        if attempt.outline.is_empty and not accepts_reference:
            return 0.0  # nothing to accept
        start = time.perf_counter()
        report = self._segmenter.learn(attempt.result, attempt.truth_geometry if accepts_reference else None)
        if math.isfinite(report.iou_before):  # or nothing was tried
            self.n_kept += report.is_kept
            self.n_undone += not report.is_kept
        return time.perf_counter() - start


class _Attempt:
    """One object: the truth, the clicks so far and the answer to them."""

    def __init__(self, target: _Target, reader: RasterReader) -> None:
        self._target, self._reader = target, reader
        self._clicked_px: list[tuple[int, int]] = []
        self.points_map: list[tuple[float, float]] = []
        self.labels: list[int] = []
        self.result: PromptResult | None = None

    @property
    def truth_geometry(self) -> BaseGeometry:
        """The reference."""
        return self._target.reference.geometry

    @property
    def outline(self) -> MultiPolygon:
        """The present answer in the raster's CRS."""
        return MultiPolygon() if self.result is None else self.result.geometry

    def click(self) -> None:
        """Add the next click. Raises `NoErrorLeftError` where there is none."""
        truth, mask, (left, top, _, _) = self._masks()
        clicked = np.zeros(truth.shape, np.bool_)
        for x, y in self._clicked_px:
            # Outside the crop, which holds truth and answer, there is no error.
            if 0 <= y - top < truth.shape[0] and 0 <= x - left < truth.shape[1]:
                clicked[y - top, x - left] = True
        click = next_click(truth, mask, clicked=clicked)
        x, y = click.x + left, click.y + top
        self._clicked_px.append((x, y))
        x_map, y_map = self._reader.to_map([(x + 0.5, y + 0.5)])[0]
        self.points_map.append((float(x_map), float(y_map)))
        self.labels.append(int(click.is_foreground))

    def take_back(self) -> None:
        """Forget the last click as a prompt; it is not made again."""
        self.points_map.pop()
        self.labels.pop()

    def iou(self) -> float:
        """IoU of the present answer with the truth, wherever the answer reaches."""
        truth, mask, _ = self._masks()
        return iou(truth, mask)

    def _masks(self) -> tuple[BoolMask, BoolMask, PixelBounds]:
        """Truth and answer on the raster's pixels in bounds that hold both whole."""
        transform = self._reader.transform
        bounds = joined(self._target.bounds_px, pixel_bounds(self.outline, transform))
        return (
            burn(self.truth_geometry, transform, bounds_px=bounds),
            burn(self.outline, transform, bounds_px=bounds),
            bounds,
        )


class _TimedScene(Scene):
    """A scene that knows how long it encoded: that is the wait for a view, not for a click."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.reader, scene.engine, scene.cache)
        self.n_encoded, self.encode_s = 0, 0.0

    def embedding(self, window: SquareWindow) -> torch.Tensor:
        """The embedding of a window, timed where it must be computed."""
        if self.is_encoded(window):
            return super().embedding(window)
        start = time.perf_counter()
        embedding = super().embedding(window)
        self.n_encoded += 1
        self.encode_s += time.perf_counter() - start
        return embedding


class _Clock:
    """Progress over equal steps, with a word on the time left now and then."""

    _N_WORDS = 10

    def __init__(self, progress: Progress, *, n_steps: int) -> None:
        self.progress = progress
        self._n_steps, self._n_done = n_steps, 0
        self._start = time.perf_counter()

    def step(self) -> None:
        """One more object is done."""
        self._n_done += 1
        self.progress.set_fraction(self._n_done / self._n_steps)
        is_tenth = self._n_done * self._N_WORDS // self._n_steps > (self._n_done - 1) * self._N_WORDS // self._n_steps
        if is_tenth and self._n_done < self._n_steps:
            left_s = (time.perf_counter() - self._start) / self._n_done * (self._n_steps - self._n_done)
            self.progress.info(f"{self._n_done} of {self._n_steps} objects, about {_duration(left_s)} left.")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
