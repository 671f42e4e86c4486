"""From one object to all of them: the job behind `segadapt:findsimilar` and the review in the map window.

The raster is walked in cells on its own grid, each with a window around it in which an example fills about a quarter.
Where the features resemble the examples, points are asked; of the masks they find, those that are most likely objects
of the kind looked for are refined twice and judged. PerSAM and PerSAM-F remain selectable (`persam.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry
from skimage.feature import peak_local_max

from ...models.backbone import Backbone
from ...models.masks import stability_score
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.prompts import FOREGROUND, LOW_RES_PX, Prompts
from ...models.similarity import (
    CELLS,
    BoolArray,
    CentreEstimate,
    FeatureSpace,
    FloatArray,
    Judge,
    Prototypes,
    cell_shares,
    representatives,
)
from ..errors import JobError
from ..raster.windows import Bounds, CoreCell, SquareWindow, core_grid
from .answers import cells_inside, check_window_px, make_answer
from .duplicates import Candidate, PendingObjects, without_duplicates
from .encode import no_pixels, whole_raster
from .persam import OneShot, persam_masks, personalise
from .placed_mask import intersection, touches_inner_side
from .scene import Scene
from .segment import outline_mask
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
# Peaks are looked for where the similarity is at least this far from the raster's mean to that of the examples.
_PEAK_SHARE = 0.3
# ... or this many standard deviations above the mean, whichever is less: a single example resembles itself too well.
_PEAK_DEVIATIONS = 0.4
# Distance between two points that are asked, in sides of a square of the examples' area.
_POINT_SPACING = 0.35
# The similarity is smoothed by this much of such a side, so that it peaks in an object and not on a chimney.
_SMOOTHING = 0.15
# Times that a mask is given back to the model.
_CASCADE = 2
# Objects per call of the decoder: a click waits for one such call at most, and a GPU is busy with as many.
_BATCH = 4
# Log odds below which a mask is not looked at again.
_HOPELESS = -3.0
_LEAST_SCORE = 1e-6
# Above any predicted IoU, so that its shortfall has a logarithm.
_SCORE_CEILING = 1.02
# Masks of a first look that overlap more lead to the same object.
_SAME_LOOK_IOU = 0.7
# Spread of the logarithms of area and elongation, and of the fill, among objects of one kind, before enough examples
# tell: half to twice the area and more. It counts as much as this many examples.
_SPREADS = (0.7, 0.35, 0.12)
_PRIOR_EXAMPLES = 5
# Deviations beyond this many standard deviations are equally wrong.
_LARGEST_DEVIATION = 3.0
MEASURES = ("score", "stability", "similarity", "contrast", "smaller", "larger", "elongation", "fill", "rejected")
"""What a candidate is judged by; see `_Target.measures`."""


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


@dataclass(frozen=True, eq=False)
class _Target:
    """What is looked for: prototypes, the similarity of the raster at large, and the examples' size and shape."""

    prototypes: Prototypes
    mean: float
    deviation: float
    shape: npt.NDArray[np.float64]  # (3,) means of log area, log elongation, fill
    spread: npt.NDArray[np.float64]  # (3,)

    def similarity(self, descriptors: FloatArray) -> FloatArray:
        """Similarity of descriptors (..., C) in standard deviations of the raster above its mean."""
        found: FloatArray = (self.prototypes.similarity(descriptors) - self.mean) / self.deviation
        return found

    def measures(self, traits: MaskTraits) -> npt.NDArray[np.float64]:
        """`MEASURES` of N masks, (N, 9).

        Predicted IoU (its shortfall, logarithmically: 0.98 and 0.96 differ more than 0.6 and 0.5); stability;
        similarity; how much more similar than what lies around; how much smaller and how much larger than the
        examples, differently elongated and filled, in squared spreads; likeness to the rejected.
        """
        similarity = self.similarity(traits.inside)
        shapes = np.stack([traits.log_area, traits.log_elongation, traits.fill], axis=1)
        off = ((shapes - self.shape) / self.spread).clip(-_LARGEST_DEVIATION, _LARGEST_DEVIATION)
        columns: npt.NDArray[np.float64] = np.stack(
            [
                -np.log(_SCORE_CEILING - traits.score),
                traits.stability,
                similarity,
                similarity - self.similarity(traits.around),
                np.minimum(off[:, 0], 0) ** 2,
                np.maximum(off[:, 0], 0) ** 2,
                off[:, 1] ** 2,
                off[:, 2] ** 2,
                self.prototypes.resemblance_to_rejected(traits.inside),
            ],
            axis=1,
        ).astype(np.float64)
        return columns


# Began as a logistic regression of masks around peaks (IoU with a building at least 0.5) on two places of the reference
# data, Kampala and Nairobi at 30 cm, with 1 to 10 examples each; rounded, and the weights of similarity and size raised
# by hand after trials on Kampala, as was that of the rejected, which no batch knows. Banepa and Zanzibar had no part.
GENERAL_JUDGE = Judge(np.array([0.6, 3.5, 0.7, 0.4, -0.35, -0.05, -0.15, -0.1, -6.0]), -5.7)


class SimilarSearch:
    """A search that stays: candidates, what is known of the target, and what accepts and rejects taught.

    `examples`, `rejected`: polygons in the raster's CRS, of objects looked for (at least one) and of objects that are
    not. Opening encodes the windows of the examples and some of the raster. Raises `JobError` for examples that are
    not on the raster and `Cancelled`.
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
        self.judge = GENERAL_JUDGE
        self._one_shot: OneShot | None = None
        if self.job.method != "segadapt":
            self._one_shot = personalise(scene, self._examples[0], is_trained=self.job.method == "persam_f")
            cosines = [self._one_shot.similarity(seen.parts[0][seen.valid]) for seen in sample]
            self._one_shot_spread = float(np.concatenate(cosines).mean()), float(np.concatenate(cosines).std()) + 1e-6
        self.candidates: list[SimilarCandidate] = []
        self._target = self._aim([], [])

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
            self.judge = GENERAL_JUDGE.learn(self._target.measures(MaskTraits.joined(answered)), is_wanted)
        else:
            self.judge = GENERAL_JUDGE
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

    def _aim(self, accepted: Sequence[MaskTraits], rejected: Sequence[MaskTraits]) -> _Target:
        """The target from the examples and from what was accepted and rejected of the candidates."""
        wanted = MaskTraits.joined([self._example_traits, *accepted])
        refused = [example.descriptor(self._space)[None] for example in self._rejected]
        refused += [traits.inside for traits in rejected]
        n_channels = wanted.inside.shape[1]
        prototypes = Prototypes.fit(
            wanted.inside,
            background=self._background,
            rejected=np.concatenate(refused) if refused else np.zeros((0, n_channels), np.float32),
        )
        shapes = np.stack([wanted.log_area, wanted.log_elongation, wanted.fill], axis=1)
        centre = shapes.mean(axis=0)
        squares = _PRIOR_EXAMPLES * np.square(_SPREADS) + np.square(shapes - centre).sum(axis=0)
        at_large = prototypes.similarity(self._sample_descriptors)
        return _Target(
            prototypes,
            float(at_large.mean()),
            float(at_large.std()) + 1e-6,
            centre,
            np.sqrt(squares / (_PRIOR_EXAMPLES + len(shapes))),
        )

    def _find(self, window: SquareWindow, core: Bounds) -> Iterator[list[Candidate] | None]:
        """Candidates of one window whose points lie in `core`, each object once; None before they are all there."""
        seen = self._reader.read(window)
        yield None
        look = _Look(self.scene, window, self._space.describe(seen.parts), self._target, self.judge)
        if self._one_shot is None:
            points_xy = self._points(seen, self._target.similarity(look.descriptors), core)
            masks = yield from self._looked(look, points_xy)
        else:
            masks = yield from self._personalised(self._one_shot, look, seen, core)
        found = [self._candidate(window, masks, i) for i in range(len(masks))]
        whole: list[Candidate] = [candidate for candidate in found if candidate.mask.n_pixels]
        yield without_duplicates(whole, iou_threshold=self.job.nms_threshold)

    def _looked(self, look: _Look, points_xy: npt.NDArray[np.float64]) -> Generator[None, None, _Masks]:
        """What the points find: the likeliest of three masks each, distinct, refined twice."""
        masks = yield from _in_batches(look.first, points_xy, empty=look.nothing())
        masks = look.distinct(look.best_of_points(masks), iou_threshold=_SAME_LOOK_IOU)
        for _ in range(_CASCADE):
            masks = look.best_of_points((yield from _in_batches(look.again, masks, empty=look.nothing())))
        return masks

    def _personalised(
        self, one_shot: OneShot, look: _Look, seen: WindowFeatures, core: Bounds
    ) -> Generator[None, None, _Masks]:
        """What a baseline finds; the log odds are those of its score, predicted IoU times cosine."""
        cosine = one_shot.similarity(seen.parts[0])
        mean, deviation = self._one_shot_spread
        points_xy = self._points(seen, (cosine - mean) / deviation, core)
        for step in persam_masks(self.scene, look.window, points_xy, one_shot=one_shot, features=seen.parts[0]):
            if step is None:
                yield None
                continue
            masks = look.judged(step.logits, step.iou, step.points_xy)
            shares = np.array([cell_shares(mask > 0).ravel() for mask in masks.logits], np.float32)
            inside = shares.reshape(len(masks), CELLS * CELLS) @ seen.parts[0].reshape(CELLS * CELLS, -1)
            score = masks.traits.score * one_shot.similarity(inside)
            return replace(masks, odds=logit(score.clip(_LEAST_SCORE, 1 - _LEAST_SCORE)))
        return look.nothing()

    def _candidate(self, window: SquareWindow, masks: _Masks, i: int) -> SimilarCandidate:
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

    def _points(self, seen: WindowFeatures, similarity: FloatArray, core: Bounds) -> npt.NDArray[np.float64]:
        """Places (N, 2; raster pixels) in `core` to ask at: peaks of the similarity (CELLS, CELLS)."""
        cell_px = seen.window.size_px / CELLS
        side = math.exp(self._target.shape[0] / 2) / cell_px  # of a square as large as an example, in cells
        smooth = gaussian_filter(np.where(seen.valid, similarity, similarity.min()), side * _SMOOTHING)
        of_examples = float(self._target.similarity(self._example_traits.inside).mean())
        least = min(_PEAK_SHARE * of_examples, _PEAK_DEVIATIONS)
        peaks = peak_local_max(  # type: ignore[no-untyped-call]  # without types
            smooth, min_distance=max(1, round(_POINT_SPACING * side)), threshold_abs=least, exclude_border=False
        )
        rows, cols = peaks[seen.valid[peaks[:, 0], peaks[:, 1]]].T
        xy = np.stack([cols + 0.5, rows + 0.5], axis=1) * cell_px + (seen.window.col_off, seen.window.row_off)
        found: npt.NDArray[np.float64] = xy[(xy >= core[:2]).all(axis=1) & (xy < core[2:]).all(axis=1)]
        return found


@dataclass(frozen=True, eq=False)
class _Masks:
    """N masks of a window: logits (N, 256, 256), points (N, 2; raster pixels), what is measured, log odds (N,)."""

    logits: FloatArray
    points_xy: npt.NDArray[np.float64]
    traits: MaskTraits
    similarity: npt.NDArray[np.float64]
    odds: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.logits)

    def pick(self, index: npt.ArrayLike) -> _Masks:
        """Some of the masks, by index."""
        i = np.asarray(index, np.intp)
        return _Masks(self.logits[i], self.points_xy[i], self.traits.pick(i), self.similarity[i], self.odds[i])

    def __getitem__(self, part: slice) -> _Masks:
        return self.pick(range(len(self))[part])

    @staticmethod
    def joined(*some: _Masks) -> _Masks:
        """One after the other."""
        return _Masks(
            np.concatenate([each.logits for each in some]),
            np.concatenate([each.points_xy for each in some]),
            MaskTraits.joined([each.traits for each in some]),
            np.concatenate([each.similarity for each in some]),
            np.concatenate([each.odds for each in some]),
        )


@dataclass(frozen=True, eq=False)
class _Look:
    """Asks the model in one window and judges what it answers; `descriptors` (CELLS, CELLS, C) of the window."""

    scene: Scene
    window: SquareWindow
    descriptors: FloatArray
    target: _Target
    judge: Judge

    def first(self, points_xy: npt.NDArray[np.float64]) -> _Masks:
        """Three masks for every point (N, 2), less those that are empty or that the window cuts."""
        prompts = [Prompts(points_xy=xy[None], labels=np.array([FOREGROUND])) for xy in self._on_chip(points_xy)]
        logits, iou = self._predict(prompts, multimask=True)
        return self.judged(logits, iou, points_xy.repeat(3, axis=0))

    def best_of_points(self, masks: _Masks) -> _Masks:
        """The likeliest mask of each point, best first, less those that are hopeless."""
        order = [i for i in np.argsort(-masks.odds, kind="stable") if masks.odds[i] > _HOPELESS]
        _, first = np.unique(masks.points_xy[order], axis=0, return_index=True)
        return masks.pick([order[i] for i in sorted(first)])

    def distinct(self, masks: _Masks, *, iou_threshold: float) -> _Masks:
        """Masks without those that overlap a better one, which comes earlier, by more than `iou_threshold`."""
        flat = (masks.logits > 0).reshape(len(masks), LOW_RES_PX**2).astype(np.float32)
        common, sizes = flat @ flat.T, flat.sum(axis=1)
        overlap = common / np.maximum(sizes[:, None] + sizes - common, 1)
        kept: list[int] = []
        for i in range(len(masks)):
            if not (overlap[i, kept] > iou_threshold).any():
                kept.append(i)
        return masks.pick(kept)

    def again(self, masks: _Masks) -> _Masks:
        """The masks, and the answers to each of them given back to the model with its point and its box."""
        step = self.scene.input_px / LOW_RES_PX
        prompts = [
            Prompts(
                points_xy=xy[None], labels=np.array([FOREGROUND]), box_xyxy=mask_box(mask > 0) * step, mask_logits=mask
            )
            for xy, mask in zip(self._on_chip(masks.points_xy), masks.logits, strict=True)
        ]
        logits, iou = self._predict(prompts, multimask=False)
        return masks.joined(masks, self.judged(logits, iou, masks.points_xy))

    def nothing(self) -> _Masks:
        """No masks."""
        none, vectors = np.zeros(0), np.zeros((0, self.descriptors.shape[-1]), np.float32)
        traits = MaskTraits(none, none, vectors, vectors, none, none, none)
        return _Masks(np.zeros((0, LOW_RES_PX, LOW_RES_PX), np.float32), np.zeros((0, 2)), traits, none, none)

    def _predict(self, prompts: Sequence[Prompts], *, multimask: bool) -> tuple[FloatArray, FloatArray]:
        if not prompts:
            return np.zeros((0, LOW_RES_PX, LOW_RES_PX), np.float32), np.zeros(0, np.float32)
        found = self.scene.engine.predict(self.scene.embedding(self.window), prompts, multimask=multimask)
        return found.logits.reshape(-1, LOW_RES_PX, LOW_RES_PX), found.iou.reshape(-1)

    def judged(self, logits: FloatArray, iou: FloatArray, points_xy: npt.NDArray[np.float64]) -> _Masks:
        shape = self.scene.reader.shape
        rows, cols = cells_inside(logits, self.window, shape).shape[1:]
        masks = np.zeros(logits.shape, np.bool_)
        masks[:, :rows, :cols] = logits[:, :rows, :cols] > 0
        kept = [i for i, mask in enumerate(masks) if mask.any() and not self._is_cut(mask)]
        if not kept:
            return self.nothing()
        traits = mask_traits(
            masks[kept],
            self.descriptors,
            self.window,
            score=iou[kept].clip(0, 1),
            stability=[stability_score(logits[i, :rows, :cols]) for i in kept],
        )
        measures = self.target.measures(traits)
        return _Masks(logits[kept], points_xy[kept], traits, measures[:, 2], self.judge.logit(measures))

    def _is_cut(self, mask: BoolArray) -> bool:
        step = self.window.size_px / LOW_RES_PX
        left, top, right, bottom = mask_box(mask) * step
        x, y = self.window.col_off, self.window.row_off
        return touches_inner_side((x + left, y + top, x + right, y + bottom), self.window, self.scene.reader.shape)

    def _on_chip(self, points_xy: npt.NDArray[np.float64]) -> FloatArray:
        scale = self.scene.input_px / self.window.size_px
        found: FloatArray = ((points_xy - (self.window.col_off, self.window.row_off)) * scale).astype(np.float32)
        return found


_BatchT = TypeVar("_BatchT", _Masks, npt.NDArray[np.float64])


def _in_batches(work: Callable[[_BatchT], _Masks], items: _BatchT, *, empty: _Masks) -> Generator[None, None, _Masks]:
    """Work on a few items at a time and give way in between."""
    done = [empty]
    for start in range(0, len(items), _BATCH):
        done.append(work(items[start : start + _BATCH]))
        yield None
    return _Masks.joined(*done)


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
