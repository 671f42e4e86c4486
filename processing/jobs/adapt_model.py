"""Adapt a segmentation model to rasters without labels, and keep what came of it only if it does no harm."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...models.chips import Chips, split_by_block
from ...models.device import choose_device
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.semantic.card import SegmenterCard, replaces, with_event
from ...models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
from ...models.semantic.prediction import predict_labels
from ...models.training_state import Keeper
from ...models.transfer.agreement import Agreement, Verdict, judge, measure_agreement, surest_kept
from ...models.transfer.base import Problem
from ...models.transfer.chain import SEPARATOR, adapt_in_order, is_rehearsed, names_of, source_weight
from ...models.transfer.statistics import band_quantiles, lasting_tensors
from ..errors import JobError
from .chip_segments import SegmentEngine, SegmentKind, Segments, model_segments, superpixels
from .model_rasters import TargetRaster, read_target_chips
from .page import version
from .unchanged_model import save_unchanged

CHAINS = (
    "masked_consistency",
    "quantile+masked_consistency",
    "self_training",
    "quantile+self_training",
    "norm_statistics+self_training",
    "quantile",
    "reinhard",
    "norm_statistics",
    "quantile+norm_statistics",
    "entropy",
    "entropy_diversity",
    "quantile+entropy_diversity",
    "masked_image+self_training",
    "fourier",
    "fourier+self_training",
)
"""Usual methods and chains of methods by name, the default first."""

_FEWEST_CHIPS = 2


@dataclass(frozen=True, kw_only=True)
class AdaptJob:
    """What is to be done.

    `model`: package of the source model. `output`: where the result goes. `methods`: names, in order, with options as
    `make_method` reads them. `n_steps` batches of `batch` chips for each method that learns. `segments`: what cleans
    pseudo-labels. `held_out`: share of the target's chips that decide whether the result is kept. `source_weight`: as
    for `Problem`. `is_temporary`: every run has another output, so that none can go on with what another learned.
    `device`: as `choose_device` takes it. Raises `JobError` for numbers that make no sense, `TransferError` for methods
    that do not exist.
    """

    model: Path
    output: Path
    methods: tuple[str, ...] = (CHAINS[0],)
    n_steps: int = 200
    batch: int = 8
    segments: SegmentKind = "none"
    held_out: float = 0.2
    source_weight: float | None = None
    is_temporary: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what goes together."""
        names_of(SEPARATOR.join(self.methods))
        if min(self.n_steps, self.batch) < 1 or not 0 < self.held_out < 1:
            raise JobError(
                f"{self.n_steps} steps of {self.batch} chips with the share {self.held_out} held out; give at least "
                "one of each and a share between 0 and 1."
            )
        if replaces(self.output, self.model):
            raise JobError(f"{self.output} is the model that is to be adapted; save the result in another file.")


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """What was done: `is_adapted` as `verdict` says; everything measured on the chips `held_out`.

    `labels_before`, `labels_after`: uint8 (N, rows, cols) of the source model and of what the methods made of it, kept
    or not. `kept` (C,): as `surest_kept` measures it, which decides unless labels of the source were rehearsed
    (`is_rehearsed`). `n_chips`: chips that were learned from. `source_weight`: how far weights were taken back to the
    source model's, 0 to 1. `seconds`: how long the methods took.
    """

    card: SegmenterCard
    source_card: SegmenterCard
    job: AdaptJob
    verdict: Verdict
    before: Agreement
    after: Agreement
    held_out: Chips
    labels_before: npt.NDArray[np.uint8]
    labels_after: npt.NDArray[np.uint8]
    kept: tuple[float, ...]
    is_rehearsed: bool
    n_chips: int
    source_weight: float
    seconds: float
    device: str

    @property
    def is_adapted(self) -> bool:
        """Whether the adapted model was saved, and not the source model."""
        return self.verdict.is_kept


def adapt_model(
    targets: Sequence[TargetRaster],
    job: AdaptJob,
    *,
    source: Chips | None = None,
    engine: SegmentEngine | None = None,
    progress: Progress | None = None,
) -> AdaptResult:
    """Adapt, judge on chips that were held out, and save: the adapted model, or the source model unchanged.

    `source`: labelled chips of the source to rehearse, as the model sees them. `engine`: promptable model where
    `job.segments` asks for it. After a kill or an error a call for the same job with the same inputs goes on with what
    was learned. Raises `JobError` where the target has too few chips, `RasterError`, `TransferError`, `PackageError`,
    and `Cancelled`; then no model is written.
    """
    progress = progress or NullProgress()
    if job.segments == "model" and engine is None:
        raise JobError("Segments of a promptable model need one; choose superpixels, or no segments.")
    model = load_segmenter(job.model)
    source_card = model.card
    chips = read_target_chips(targets, source_card, seed=job.seed, progress=StepProgress(progress, 0.0, 0.08))
    learned, held_out = _split(chips, job, progress)
    device = choose_device(job.device)
    progress.info(device.reason)
    model.to(device.name)
    progress.info(f"{len(learned)} chips to learn from, {len(held_out)} held out to judge by.")
    judging = superpixels(held_out, progress=StepProgress(progress, 0.08, 0.1))
    before = measure_agreement(
        model, held_out, segments=judging, batch=job.batch, progress=StepProgress(progress, 0.1, 0.14)
    )
    segments = _segments(learned, job, engine, StepProgress(progress, 0.14, 0.25))
    problem = Problem(
        target=learned,
        source=source,
        statistics=load_extra(job.model),
        segments=segments,
        n_steps=job.n_steps,
        batch=job.batch,
        seed=job.seed,
        source_weight=job.source_weight,
    )
    weight = source_weight(problem, job.methods)
    adapted = copy.deepcopy(model)
    with Keeper(job.output, version=version(), is_temporary=job.is_temporary, progress=progress) as keeper:
        start = time.perf_counter()
        adapt_in_order(adapted, problem, job.methods, StepProgress(progress, 0.25, 0.92), keeper=keeper)
        seconds = time.perf_counter() - start
        after = measure_agreement(
            adapted, held_out, segments=judging, batch=job.batch, progress=StepProgress(progress, 0.92, 0.97)
        )
        kept = surest_kept(model, adapted, held_out, batch=job.batch, progress=StepProgress(progress, 0.97, 0.98))
        has_rehearsed = is_rehearsed(problem, job.methods)
        verdict = judge(before, after, source_card, is_rehearsed=has_rehearsed, kept=kept)
        progress.info(
            verdict.reason
            if verdict.is_kept
            else f"{verdict.reason} The source model is saved as it was, to do no harm."
        )
        labels = [predict_labels(one, held_out, batch=job.batch) for one in (model, adapted)]
        raise_if_cancelled(progress)
        if verdict.is_kept:
            adapted.card = _adapted_card(source_card, job, targets, learned, before, after, weight, seconds)
            lasting = lasting_tensors(model, adapted, problem.statistics)
            save_segmenter(adapted.cpu(), job.output, extra=lasting)
        else:
            save_unchanged(model, job.model, job.output, extra=problem.statistics)
    progress.set_fraction(1.0)
    return AdaptResult(
        adapted.card if verdict.is_kept else source_card,
        source_card,
        job,
        verdict,
        before,
        after,
        held_out,
        labels[0],
        labels[1],
        kept,
        has_rehearsed,
        len(learned),
        weight,
        seconds,
        device.name,
    )


def _split(chips: Chips, job: AdaptJob, progress: Progress) -> tuple[Chips, Chips]:
    if len(chips) < _FEWEST_CHIPS:
        raise JobError(
            f"The target gives {len(chips)} chip of the model's {chips.pixels.shape[-1]} px, too few to adapt and to "
            "judge; give a larger raster, or more of them."
        )
    if len(np.unique(chips.blocks)) > 1:
        return split_by_block(chips, held_out=job.held_out, seed=job.seed)
    progress.info("The target is one block of ground: chips that decide lie beside chips that are learned from.")
    every = max(2, round(1 / job.held_out))
    is_held = np.arange(len(chips)) % every == every - 1
    return chips.take(np.flatnonzero(~is_held)), chips.take(np.flatnonzero(is_held))


def _segments(chips: Chips, job: AdaptJob, engine: SegmentEngine | None, progress: Progress) -> Segments | None:
    if job.segments == "none":
        return None
    progress.info("Segments of the target ...")
    if engine is None or job.segments == "superpixels":
        return superpixels(chips, progress=progress)
    return model_segments(chips, engine, progress=progress)


def _adapted_card(
    card: SegmenterCard,
    job: AdaptJob,
    targets: Sequence[TargetRaster],
    chips: Chips,
    before: Agreement,
    after: Agreement,
    weight: float,
    seconds: float,
) -> SegmenterCard:
    """The card with what was done; statistics stay the source's, which values are mapped to."""
    details: dict[str, Any] = {
        "methods": SEPARATOR.join(job.methods),
        "target": [Path(target.path).name for target in targets],
        "n_chips": len(chips),
        "n_steps": job.n_steps,
        "segments": job.segments,
        "seed": job.seed,
        "source_weight": weight,
        "seconds": round(seconds, 1),
        "source_sha256": package_sha256(job.model),
        "agreement_before": round(before.score, 4),
        "agreement_after": round(after.score, 4),
        "target_band_quantiles": [[round(float(value), 2) for value in row] for row in band_quantiles(chips)],
        "target_class_shares": [round(share, 5) for share in after.shares],
    }
    return with_event(card, "adapted without labels", **details)
