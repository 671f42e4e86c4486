"""How many clicks an object takes: the job behind `segadapt:evaluateinteractive`.

An analyst is simulated by the rule of `clicker.next_click` over reference polygons, one after another, through the
same `InteractiveSegmenter` that the map tool holds: answers are fed back, windows kept, accepted objects learned.
The mask is the one that the map tool shows (logits above 0), where RITM cuts probabilities at 0.49.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from shapely.geometry.base import BaseGeometry

from ...models.progress import NullProgress, Progress, duration, raise_if_cancelled
from ..errors import JobError
from ..raster.rasterize import PixelBounds, burn, pixel_bounds
from ..raster.reader import RasterReader
from ..raster.windows import SquareWindow
from .answers import LARGEST_WINDOW_PX
from .click_curves import ObjectCurve, Summary, difference, summarise
from .clicker import BoolMask
from .interactive import InteractiveOptions, InteractiveSegmenter
from .scene import Scene
from .simulated_analyst import ACCEPT_ANSWER, ACCEPT_REFERENCE, Reference, SimulatedAnalyst, Target, TimedScene

OUTSIDE, CUT, NODATA = "outside the raster", "cut by its edge", "on pixels without data"
SMALL, LARGE = "too small", "too large for a window"
"""Why a reference is not evaluated."""


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
        rectangles=False,
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
) -> tuple[list[Target], dict[str, int]]:
    """The references to evaluate in their random order, and how many were left out for what reason."""
    targets: list[Target] = []
    excluded: Counter[str] = Counter()
    for index, reference in enumerate(references):
        if index % 64 == 0:
            raise_if_cancelled(progress)
        bounds = pixel_bounds(reference.geometry, reader.transform)
        truth, reason = _truth_or_reason(reader, reference.geometry, bounds, job.min_area_px)
        if reason:
            excluded[reason] += 1
        else:
            targets.append(Target(index, reference, bounds, int(np.count_nonzero(truth))))
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
    scene: Scene, targets: Sequence[Target], configuration: Configuration, job: EvaluateInteractive, clock: _Clock
) -> ConfigurationResult:
    timed = TimedScene(scene)
    # The first answer of all loads adapters and wakes threads, for which no click is to be blamed; what it learns
    # goes with its segmenter.
    _analyst(timed, configuration, job).click_once(targets[0])
    analyst = _analyst(timed, configuration, job)
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


def _analyst(scene: TimedScene, configuration: Configuration, job: EvaluateInteractive) -> SimulatedAnalyst:
    return SimulatedAnalyst(
        InteractiveSegmenter(scene, configuration.options),
        scene,
        n_clicks=job.n_clicks,
        enough=max(job.targets),
        accepts=job.accepts,
        view_window_px=job.view_window_px,
    )


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
            self.progress.info(f"{self._n_done} of {self._n_steps} objects, about {duration(left_s)} left.")
