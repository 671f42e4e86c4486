"""From one object to all of them: the job behind `segadapt:findsimilar` and the review in the map window.

The raster is walked in cells on its own grid, each with a window around it in which an example fills about a quarter.
Where the features resemble the examples, points are asked; of the masks they find, those that are most likely objects
of the kind looked for are refined twice and judged. PerSAM and PerSAM-F remain selectable (`persam.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import shapely
from scipy.special import expit
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ...models.backbone import Backbone
from ...models.masks import stability_score
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.prompts import LOW_RES_PX, Prompts
from ...models.similarity import CELLS, CentreEstimate, FeatureSpace, FloatArray, Judge, representatives
from ..errors import JobError
from ..raster.windows import Bounds, CoreCell, SquareWindow, core_grid
from .answers import check_window_px, make_answer
from .duplicates import Candidate, PendingObjects, without_duplicates
from .encode import no_pixels, whole_raster
from .persam import OneShot, personalise
from .placed_mask import intersection
from .scene import Scene
from .segment import outline_mask
from .similar_look import Look, LookedMasks
from .similar_points import points_to_ask
from .similar_target import GENERAL_JUDGE, Target
from .similar_windows import (
    Example,
    FeatureReader,
    MaskTraits,
    WindowFeatures,
    extent_px,
    mask_box,
    mask_traits,
    read_example,
)

METHODS = ("segadapt", "persam", "persam_f")
"""This method, and the two baselines, which know one example: the first."""

_SMALLEST_WINDOW_PX, _LARGEST_WINDOW_PX = 256, 8192
# Windows that tell what the raster looks like on average.
_SAMPLE_WINDOWS = 9
_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class SimilarJob:
    """How to look, and where.

    `method`: one of `METHODS`. `bounds_px`: left, top, right, bottom in raster pixels, None for the whole raster;
    objects that begin inside and end outside are given whole. `window_px`: side of a window, None to let the examples
    decide. `threshold`: least probability, 0 to 1. `nms_threshold`: masks whose IoU is higher show one object.
    `tolerance` (map units) and `min_area_m2` as in `SegmentOptions`. Raises `JobError` for numbers that make no sense.
    """

    method: str = "segadapt"
    bounds_px: Bounds | None = None
    window_px: int | None = None
    threshold: float = 0.5
    nms_threshold: float = _SAME_OBJECT_IOU
    tolerance: float = 0.0
    min_area_m2: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.method not in METHODS:
            raise JobError(f"'{self.method}' is no method; choose {', '.join(METHODS)}.")
        if self.window_px is not None:
            check_window_px(self.window_px)
        for name in ("threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise JobError(f"{name} is {getattr(self, name)}; choose a number from 0 to 1.")
        if self.tolerance < 0 or self.min_area_m2 < 0:
            raise JobError(
                f"Tolerance {self.tolerance} and minimum area {self.min_area_m2} m2 must not be negative; "
                "give 0 or more."
            )


@dataclass(eq=False)
class SimilarCandidate(Candidate):
    """A mask that may be an object of the kind looked for.

    `number`: 1, 2, ... in the order of finding. `similarity`: to the examples, in standard deviations of the raster
    above its mean. `probability`: 0 to 1, what candidates are ranked by. `traits`: of this one mask, for `judge_again`.
    """

    traits: MaskTraits | None = None
    similarity: float = 0.0
    probability: float = 0.0
    number: int = field(default=0)

    @property
    def rank(self) -> tuple[float, float, float, float, int]:
        """Orders candidates, the likelier one higher; between equals the place decides."""
        return self.probability, self.score, -self.y, -self.x, self.mask.n_pixels


@dataclass(frozen=True, eq=False)
class SimilarObject:
    """An object that was found and its outline in the raster's CRS; the fields are those of `SimilarCandidate`."""

    geometry: MultiPolygon
    area_m2: float
    score: float
    stability: float
    similarity: float
    probability: float
    number: int


class SimilarSearch:
    """A search that stays: candidates, what is known of the target, and what accepts and rejects taught.

    `examples`, `rejected`: polygons in the raster's CRS, of objects looked for (at least one) and of objects that are
    not, both of an earlier search, too: what is likely is learned from them. Opening encodes the windows of the
    examples and some of the raster. Raises `JobError` for examples that are not on the raster and `Cancelled`.
    """

    def __init__(
        self,
        scene: Scene,
        examples: Sequence[BaseGeometry],
        *,
        rejected: Sequence[BaseGeometry] = (),
        job: SimilarJob | None = None,
        backbone: Backbone | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.scene, self.job = scene, job or SimilarJob()
        progress = progress or NullProgress()
        outlines = [_to_pixels(scene, geometry) for geometry in examples]
        if not outlines:
            raise JobError("There is no example; select at least one polygon of an object to look for.")
        self.window_px = self.job.window_px or _window_px(outlines)
        self._reader = FeatureReader(scene, backbone)
        self._examples = self._read_examples(outlines, progress)
        self._rejected = self._read_examples([_to_pixels(scene, geometry) for geometry in rejected], progress)
        self._cells = self._grid()
        sample = self._sample(progress)
        self._space = _space(sample)
        self._sample_descriptors = np.concatenate(
            [self._space.describe(seen.parts)[seen.valid][::4] for seen in sample]
        )
        self._example_traits = _example_traits(self._examples, self._space)
        # Once: answers do not change it, and k-means is what takes time in `update`.
        self._background = representatives(self._read_background())
        self._one_shot: OneShot | None = None
        if self.job.method != "segadapt":
            self._one_shot = personalise(scene, self._examples[0], is_trained=self.job.method == "persam_f")
            cosines = [self._one_shot.similarity(seen.parts[0][seen.valid]) for seen in sample]
            self._one_shot_spread = float(np.concatenate(cosines).mean()), float(np.concatenate(cosines).std()) + 1e-6
        self.candidates: list[SimilarCandidate] = []
        self._target = self._aim([], [])
        self._first_judge = self._calibrated()
        self.judge = self._first_judge

    def run(self, *, progress: Progress | None = None) -> Iterator[SimilarCandidate]:
        """Walk the raster and yield each candidate once, numbered; they are kept in `candidates` as well.

        Every candidate is given, whatever its probability. Raises `Cancelled` between windows.
        """
        return (candidate for candidate in self.steps(progress=progress) if candidate is not None)

    def steps(self, *, progress: Progress | None = None) -> Iterator[SimilarCandidate | None]:
        """Do what `run` does, and yield None after each short piece of work, so that others get their turn."""
        progress = progress or NullProgress()
        self.candidates = []
        bounds = intersection(self.job.bounds_px or whole_raster(self.scene), whole_raster(self.scene))
        pending = PendingObjects(iou_threshold=self.job.nms_threshold, bucket_px=self.window_px // 2)
        for position, cell in enumerate(self._cells, 1):
            raise_if_cancelled(progress)
            core = intersection(bounds, cell.core_px)
            if core[2] > core[0] and core[3] > core[1] and self._has_data(core):
                for found in self._find(cell.window, core):
                    if found is None:
                        raise_if_cancelled(progress)
                        yield None
                    else:
                        pending.add_cell(found)
            progress.set_fraction(position / len(self._cells))
            if position < len(self._cells) and self._cells[position].core_px[1] > cell.core_px[1]:
                yield from self._number(pending.release(above_px=self._cells[position].window.row_off))
        yield from self._number(pending.release())

    def update(self, accepted: Iterable[int], rejected: Iterable[int]) -> list[SimilarCandidate]:
        """Learn from all answers so far, given by numbers of candidates, and return the candidates best first.

        Nothing is computed anew on the raster: it takes milliseconds. `run` after this looks with what was learned.
        The baselines know one example and learn nothing.
        """
        if self._one_shot is not None:
            return self.ranked()
        by_number = {candidate.number: candidate for candidate in self.candidates}
        yes = [by_number[number].traits for number in accepted if number in by_number]
        no = [by_number[number].traits for number in rejected if number in by_number]
        self._target = self._aim([t for t in yes if t is not None], [t for t in no if t is not None])
        answered = [traits for traits in (*yes, *no) if traits is not None]
        if answered:
            is_wanted = np.array([True] * len(yes) + [False] * len(no))
            self.judge = self._first_judge.learn(self._target.measures(MaskTraits.joined(answered)), is_wanted)
        else:
            self.judge = self._first_judge
        self._judge_candidates(self.candidates)
        return self.ranked()

    def ranked(self) -> list[SimilarCandidate]:
        """The candidates, best first."""
        return sorted(self.candidates, key=lambda candidate: candidate.rank, reverse=True)

    def outline(self, candidate: SimilarCandidate) -> SimilarObject:
        """A candidate as polygons in the raster's CRS; empty where all parts are below the minimum area."""
        geometry, area = outline_mask(
            self.scene, candidate.mask, tolerance=self.job.tolerance, min_area_m2=self.job.min_area_m2
        )
        return SimilarObject(
            geometry,
            area,
            candidate.score,
            candidate.stability,
            candidate.similarity,
            candidate.probability,
            candidate.number,
        )

    def _number(self, found: Iterable[Candidate]) -> Iterator[SimilarCandidate]:
        for candidate in cast("Iterable[SimilarCandidate]", found):  # what went into the pending ones
            candidate.number = len(self.candidates) + 1
            self.candidates.append(candidate)
            self._judge_candidates([candidate])  # answers may have come since it was found
            yield candidate

    def _judge_candidates(self, candidates: Sequence[SimilarCandidate]) -> None:
        """Give candidates the probability that the present target and judge say; baselines keep theirs."""
        traits = [candidate.traits for candidate in candidates if candidate.traits is not None]
        if self._one_shot is None and traits:
            measures = self._target.measures(MaskTraits.joined(traits))
            probabilities = self.judge.probability(measures)
            for candidate, row, probability in zip(candidates, measures, probabilities, strict=True):
                candidate.similarity, candidate.probability = float(row[2]), float(probability)

    def _read_examples(self, outlines: Sequence[BaseGeometry], progress: Progress) -> list[Example]:
        examples = []
        for outline in outlines:
            raise_if_cancelled(progress)
            examples.append(
                read_example(self._reader, outline, window_px=self.window_px, shape=self.scene.reader.shape)
            )
        return examples

    def _grid(self) -> Sequence[CoreCell]:
        bounds = intersection(self.job.bounds_px or whole_raster(self.scene), whole_raster(self.scene))
        shape, halo_px = self.scene.reader.shape, self.window_px // 4
        cells = core_grid(shape, size_px=self.window_px, halo_px=halo_px, bounds_px=bounds)
        if not len(cells) or bounds[2] <= bounds[0] or bounds[3] <= bounds[1]:
            raise no_pixels(self.scene, self.job.bounds_px)
        return cells

    def _sample(self, progress: Progress) -> list[WindowFeatures]:
        """Windows spread over the extent, and those of the examples, each once."""
        # Multiples of the golden section fall neither into one column nor into one row.
        n = min(_SAMPLE_WINDOWS, len(self._cells))
        places = sorted({int(len(self._cells) * (0.5 + i * 0.618034 % 1) % len(self._cells)) for i in range(n)})
        seen = {example.features.window: example.features for example in self._examples}
        for place in places:
            raise_if_cancelled(progress)
            window = self._cells[place].window
            if window not in seen:
                seen[window] = self._reader.read(window)
        return list(seen.values())

    def _read_background(self) -> FloatArray:
        """Cells (N, C) around the examples, as far as half their size."""
        found = []
        for example in self._examples:
            window = example.features.window
            others = np.zeros((CELLS, CELLS), np.bool_)
            for other in self._examples:
                if other.features.window == window:
                    others |= other.shares > 0
            reach = math.ceil(extent_px(example.outline_px) / 2 * CELLS / window.size_px)
            found.append(example.background(self._space, reach_cells=max(2, reach), others=others))
        return np.concatenate(found)

    def _aim(self, accepted: Sequence[MaskTraits], rejected: Sequence[MaskTraits]) -> Target:
        """The target from the examples and from what was accepted and rejected of the candidates."""
        wanted = MaskTraits.joined([self._example_traits, *accepted])
        refused = [example.descriptor(self._space)[None] for example in self._rejected]
        refused += [traits.inside for traits in rejected]
        return Target.fit(
            wanted,
            rejected=np.concatenate(refused) if refused else np.zeros((0, wanted.inside.shape[1]), np.float32),
            background=self._background,
            at_large=self._sample_descriptors,
        )

    def _calibrated(self) -> Judge:
        """The judge after examples and rejected objects, as if they had been candidates that were answered for."""
        if not self._rejected or self._one_shot is not None:
            return GENERAL_JUDGE
        given = [*self._examples, *self._rejected]
        measures = self._target.measures(MaskTraits.joined([self._asked_about(example) for example in given]))
        is_wanted = np.arange(len(given)) < len(self._examples)
        return GENERAL_JUDGE.learn(measures, is_wanted)

    def _asked_about(self, example: Example) -> MaskTraits:
        """The traits of an example, with what the model says of the mask that it finds in its box."""
        window = example.features.window
        box = mask_box(example.mask) * (self.scene.input_px / LOW_RES_PX)
        prompts = Prompts(points_xy=np.zeros((0, 2), np.float32), labels=np.zeros(0, np.int64), box_xyxy=box)
        found = self.scene.engine.predict(self.scene.embedding(window), [prompts], multimask=False)
        return mask_traits(
            example.mask[None],
            self._space.describe(example.features.parts),
            window,
            score=found.iou[:, 0].clip(0, 1),
            stability=[stability_score(found.logits[0, 0])],
        )

    def _find(self, window: SquareWindow, core: Bounds) -> Iterator[list[Candidate] | None]:
        """Candidates of one window whose points lie in `core`, each object once; None before they are all there."""
        seen = self._reader.read(window)
        yield None
        look = Look(self.scene, window, self._space.describe(seen.parts), self._target, self.judge)
        if self._one_shot is None:
            similarity = self._target.similarity(look.descriptors)
            masks = yield from look.refined(self._points(seen, similarity, core))
        else:
            mean, deviation = self._one_shot_spread
            similarity = (self._one_shot.similarity(seen.parts[0]) - mean) / deviation
            points_xy = self._points(seen, similarity, core)
            masks = yield from look.personalised(self._one_shot, seen.parts[0], points_xy)
        found = [self._candidate(window, masks, i) for i in range(len(masks))]
        whole: list[Candidate] = [candidate for candidate in found if candidate.mask.n_pixels]
        yield without_duplicates(whole, iou_threshold=self.job.nms_threshold)

    def _points(self, seen: WindowFeatures, similarity: FloatArray, core: Bounds) -> npt.NDArray[np.float64]:
        of_examples = float(self._target.similarity(self._example_traits.inside).mean())
        side_px = math.exp(self._target.shape[0] / 2)
        return points_to_ask(seen, similarity, core, side_px=side_px, of_examples=of_examples)

    def _candidate(self, window: SquareWindow, masks: LookedMasks, i: int) -> SimilarCandidate:
        answer = make_answer(self.scene, window, masks.logits[i], score=float(masks.traits.score[i]))
        x, y = masks.points_xy[i]
        return SimilarCandidate(
            answer.mask,
            answer.score,
            answer.stability,
            float(x),
            float(y),
            traits=masks.traits.pick([i]),
            similarity=float(masks.similarity[i]),
            probability=float(expit(masks.odds[i])),
        )

    def _has_data(self, core: Bounds) -> bool:
        left, top = int(core[0]), int(core[1])
        side = math.ceil(max(core[2] - left, core[3] - top))
        return bool(self.scene.reader.valid_mask(SquareWindow(left, top, side)).any())


def find_similar(
    scene: Scene,
    examples: Sequence[BaseGeometry],
    *,
    rejected: Sequence[BaseGeometry] = (),
    job: SimilarJob | None = None,
    backbone: Backbone | None = None,
    progress: Progress | None = None,
) -> Iterator[SimilarObject]:
    """Yield every object whose probability is at least the threshold, once and whole, window by window.

    The arguments are those of `SimilarSearch`. Raises `JobError` and `Cancelled`.
    """
    search = SimilarSearch(scene, examples, rejected=rejected, job=job, backbone=backbone, progress=progress)
    for candidate in search.run(progress=progress):
        if candidate.probability >= search.job.threshold:
            found = search.outline(candidate)
            if not found.geometry.is_empty:
                yield found
        search.candidates.clear()


def _to_pixels(scene: Scene, geometry: BaseGeometry) -> BaseGeometry:
    return shapely.make_valid(shapely.transform(geometry, scene.reader.to_pixels))


def _window_px(outlines: Sequence[BaseGeometry]) -> int:
    """Side of the window, a power of two, that is at least three times as long as half of the examples."""
    size_px, wanted_px = _SMALLEST_WINDOW_PX, 3 * float(np.median([extent_px(outline) for outline in outlines]))
    while size_px < wanted_px and size_px < _LARGEST_WINDOW_PX:
        size_px *= 2
    return size_px


def _space(sample: Sequence[WindowFeatures]) -> FeatureSpace:
    centre = CentreEstimate()
    for seen in sample:
        centre.add(seen.parts, seen.valid)
    return centre.space()


def _example_traits(examples: Sequence[Example], space: FeatureSpace) -> MaskTraits:
    ones = np.ones(1)
    return MaskTraits.joined(
        [
            mask_traits(
                each.mask[None], space.describe(each.features.parts), each.features.window, score=ones, stability=ones
            )
            for each in examples
        ]
    )
