"""Teach a segmentation model a new domain with few labels, and keep what came of it only if it does no harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...models.chips import Chips, joined_chips
from ...models.device import choose_device
from ...models.errors import Cancelled
from ...models.progress import NullProgress, Progress, StepProgress
from ...models.semantic.card import IGNORE, SegmenterCard, read_card, replaces, with_event
from ...models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
from ...models.training import Training
from ...models.training_state import Keeper
from ...models.transfer.fine_tuning import FineTuned, FineTuning, fine_tune, usual_training
from ...models.transfer.statistics import source_statistics
from ..errors import JobError
from .class_scheme import ClassScheme, background_of
from .evaluate_model import Evaluation, EvaluationOptions, judge
from .model_rasters import read_labelled_chips
from .page import version
from .training_data import LabelledRaster, split_chips
from .unchanged_model import save_unchanged

_READ, _TUNED = 0.1, 0.95
"""Shares of the progress at which chips are read, and at which tuning is over."""
_FEWEST_BLOCKS = 4
"""Of ground that is held out, so that two choose the best state and two others judge it."""


@dataclass(frozen=True, kw_only=True)
class FineTuneJob:
    """What is to be done.

    `model`: package of the source model. `output`: where the result goes. `tuning`: which layers learn. `n_steps`
    batches of `batch` chips. `held_out`: share of the labelled chips that choose the best state and, where they are
    enough for that other ones, decide whether it is kept.
    `n_most`: at most about so many labelled chips, those with nothing but background only where there is room.
    `is_adapter_only`: save what changed, to be laid over the source model, and not the whole. `is_temporary`: every run
    has another output, so that none can go on with the training of another. Raises `JobError` for values that make no
    sense.
    """

    model: Path
    output: Path
    tuning: FineTuning = field(default_factory=FineTuning)
    n_steps: int = 200
    batch: int = 8
    held_out: float = 0.3
    n_most: int = 4000
    is_adapter_only: bool = False
    is_temporary: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.n_steps < 1 or self.batch < 2 or not 0 < self.held_out <= 0.9:
            raise JobError(
                f"{self.n_steps} steps of {self.batch} chips with the share {self.held_out:g} held out; give at "
                "least 1 step, 2 chips and a share above 0, at most 0.9."
            )
        if replaces(self.output, self.model):
            raise JobError(f"{self.output} is the model that is to be fine-tuned; save the result in another file.")
        if not self.output.parent.is_dir():
            raise JobError(f"The folder of {self.output} does not exist; choose another one for the model.")


@dataclass(frozen=True, eq=False)
class FineTuneResult:
    """What was done.

    `card`: as saved, that of the source model where the result was not kept. `is_adapted`: whether it was kept.
    `mean_iou_before`, `mean_iou_after`: on the `n_held_out` chips that judge, of the source model and of the best state
    reached, kept or not; `before`, `after`: everything measured there, `after` None where it was not kept. `n_choosing`
    chips chose that state, 0 where the same ones did both. `known`: names of the classes that no chip held out has, so
    that chips with them that were learned from judge, too. `n_trainable` of `n_parameters` parameters learned.
    `n_chips` with `n_labelled_px` labelled pixels were learned from, `n_rehearsed` chips of the source rehearsed.
    `n_bytes`: size of the file written, of `n_bytes_before` of the source model.
    """

    card: SegmenterCard
    source_card: SegmenterCard
    job: FineTuneJob
    is_adapted: bool
    mean_iou_before: float
    mean_iou_after: float
    before: Evaluation
    after: Evaluation | None
    training: Training
    n_trainable: int
    n_parameters: int
    n_chips: int
    n_choosing: int
    n_held_out: int
    known: tuple[str, ...]
    n_labelled_px: int
    n_rehearsed: int
    n_bytes: int
    n_bytes_before: int
    seconds: float
    rasters: tuple[str, ...]
    device: str


def fine_tune_model(
    rasters: Sequence[LabelledRaster],
    scheme: ClassScheme,
    job: FineTuneJob,
    *,
    source: Chips | None = None,
    progress: Progress | None = None,
) -> FineTuneResult:
    """Fine-tune on labelled rasters, judge on chips that were held out, and save: the result, or the source unchanged.

    What is saved remembers the ground that it was tuned on, in place of the source's: a whole model all of it, an
    adapter the values and the shares of classes, on its card.

    `scheme`: how the labels name the classes of the model (`class_scheme.scheme_of_card`). `source`: labelled chips of
    the source to rehearse, as the model sees them. A cancel during training saves the best state so far if it is better
    than the source model; else `Cancelled` is raised and no model written. After a kill or an error a call for the same
    job with the same inputs goes on with training. Raises `JobError` for labels that do not reach for a split, and for
    an adapter that is to be laid over an adapter; `RasterError`, `TransferError` and `PackageError`.
    """
    progress = progress or NullProgress()
    source_card = read_card(job.model)
    if job.is_adapter_only and source_card.base_sha256 is not None:
        raise JobError(
            f"{job.model} is an adapter itself, which no other can be laid over; save the whole model instead."
        )
    model = load_segmenter(job.model)
    choice = choose_device(job.device)
    progress.info(f"Device: {choice.reason}")
    chips = read_labelled_chips(
        rasters,
        scheme,
        source_card,
        n_most=job.n_most,
        least_wanted=background_of(source_card),
        seed=job.seed,
        progress=StepProgress(progress, 0, _READ),
    )
    learned, held_out = _split(chips, job, progress)
    known = _only_in(learned, held_out)
    if known:
        choosing = judging = _with_classes(held_out, learned, known, source_card, progress)
    else:
        choosing, judging = _parted(held_out, job, progress)
    n_choosing = 0 if choosing is judging else len(choosing)
    progress.info(
        f"{len(learned)} chips with {learned.n_labelled_px()} labelled pixels to learn from, {len(held_out)} held out"
        + (f": {n_choosing} to choose the best state, {len(judging)} others to judge it by." if n_choosing else ".")
    )
    model.to(choice.name)
    with Keeper(job.output, version=version(), is_temporary=job.is_temporary, progress=progress) as keeper:
        tuned = fine_tune(
            model,
            learned,
            choosing,
            job.tuning,
            usual_training(job.tuning.layers, n_steps=job.n_steps, batch=job.batch, seed=job.seed),
            judging=judging,
            replay=source,
            keeper=keeper,
            progress=StepProgress(progress, _READ, _TUNED),
            on_check=lambda check: progress.info(check.told(job.n_steps)),
        )
        if tuned.training.is_cancelled:
            if not tuned.is_accepted:
                raise Cancelled("Stopped before anything better than the source model was reached; nothing was saved.")
            progress.info(f"Stopped: the best state so far, of step {tuned.training.best_step}, is saved.")
        n_rehearsed = 0 if source is None else len(source)
        # From here on a cancel is not asked for: what was learned is to be saved.
        seconds = tuned.training.checks[-1].seconds
        options = EvaluationOptions(batch=job.batch, seed=job.seed)
        before = judge(model, judging, name="source model", options=options)
        after = judge(tuned.model, judging, name="fine-tuned model", options=options) if tuned.is_accepted else None
        progress.info(verdict(tuned.before, tuned.after, is_adapted=tuned.is_accepted))
        if after is not None:
            card = _card(job, tuned, after, rasters, learned, n_choosing, len(judging), n_rehearsed, seconds)
            card = _save(tuned, card, learned, job)
        else:
            card = source_card
            save_unchanged(model, job.model, job.output, extra=load_extra(job.model))
    progress.set_fraction(1.0)
    progress.info(f"Saved {job.output}.")
    return FineTuneResult(
        card,
        source_card,
        job,
        tuned.is_accepted,
        tuned.before,
        tuned.after,
        before,
        after,
        tuned.training,
        tuned.n_trainable,
        tuned.n_parameters,
        len(learned),
        n_choosing,
        len(judging),
        tuple(source_card.class_names[class_id] for class_id in known),
        learned.n_labelled_px(),
        n_rehearsed,
        job.output.stat().st_size,
        job.model.stat().st_size,
        seconds,
        tuple(Path(raster.path).name for raster in rasters),
        choice.name,
    )


def verdict(before: float, after: float, *, is_adapted: bool) -> str:
    """What came of it, in a sentence."""
    numbers = f"{before:.3f} before, {after:.3f} after, on the chips held out"
    if is_adapted:
        return f"The fine-tuned model is kept: mean IoU {numbers}."
    return f"Mean IoU did not rise ({numbers}): the source model is saved as it was, to do no harm."


def _split(chips: Chips, job: FineTuneJob, progress: Progress) -> tuple[Chips, Chips]:
    """Chips to learn from and to hold out, in blocks of ground where there are several."""
    if len(chips) < 2:
        raise JobError(
            f"The labels lie in one window of {chips.pixels.shape[-1]} px, too few to learn from some and to judge by "
            "others; label another place, too."
        )
    if len(np.unique(chips.blocks)) > 1:
        return split_chips(chips, held_out=job.held_out, seed=job.seed)
    progress.info("The labels lie in one block of ground: chips that decide lie beside chips that are learned from.")
    apart = Chips(chips.pixels, chips.labels, chips.valid, np.arange(len(chips), dtype=np.int64), chips.origins)
    return split_chips(apart, held_out=job.held_out, seed=job.seed)


def _only_in(learned: Chips, held_out: Chips) -> list[int]:
    """Ids of the classes that chips to learn from have, and none that is held out."""
    return sorted({int(class_id) for class_id in np.setdiff1d(learned.labels, held_out.labels)} - {IGNORE})


def _with_classes(
    held_out: Chips, learned: Chips, class_ids: Sequence[int], card: SegmenterCard, progress: Progress
) -> Chips:
    """The chips held out and those learned from that have these classes.

    Without them a model that forgets such a class would be judged by the others alone, and win.
    """
    names = ", ".join(f"'{card.class_names[class_id]}'" for class_id in class_ids)
    progress.info(
        f"No label held out is of {names}: what is learned from judges there, too, which flatters. Label more places "
        "with it."
    )
    has_one = np.isin(learned.labels, class_ids).any(axis=(1, 2))
    return joined_chips([held_out, learned.take(np.flatnonzero(has_one))])


def _parted(held_out: Chips, job: FineTuneJob, progress: Progress) -> tuple[Chips, Chips]:
    """Chips that choose the best state, and others that judge it; the same ones for both where they are few."""
    if len(np.unique(held_out.blocks)) >= _FEWEST_BLOCKS:
        choosing, judging = split_chips(held_out, held_out=0.5, seed=job.seed)
        of_choosing, of_judging = (set(np.unique(part.labels)) - {IGNORE} for part in (choosing, judging))
        if of_choosing == of_judging:
            return choosing, judging
    progress.info(
        "The labels held out are too few to choose the best state by some of them and to judge it by others: the same "
        "ones do both, so that the gain is a little flattered. Label more places, or hold more out."
    )
    return held_out, held_out


def _card(
    job: FineTuneJob,
    tuned: FineTuned,
    after: Evaluation,
    rasters: Sequence[LabelledRaster],
    learned: Chips,
    n_choosing: int,
    n_held_out: int,
    n_rehearsed: int,
    seconds: float,
) -> SegmenterCard:
    """The card of the tuned model, whole or an adapter, with what was done."""
    tuning = job.tuning
    details: dict[str, Any] = {"layers": tuning.layers}
    if tuning.layers == "lora":
        details |= {"rank": tuning.rank, "lora_layers": tuning.lora_layers}
    if tuning.layers == "tokens":
        details |= {"rank": tuning.rank, "n_tokens": tuning.n_tokens}
    if tuning.layers == "last_blocks" or (tuning.layers, tuning.lora_layers) == ("lora", "last"):
        details["n_blocks"] = tuning.n_blocks
    card = with_event(
        replace(tuned.model.card, metrics={"held_out": after.metrics()}),
        "fine-tuned",
        rasters=[Path(raster.path).name for raster in rasters],
        n_chips=len(learned),
        n_labelled_px=learned.n_labelled_px(),
        n_choosing=n_choosing,
        n_held_out=n_held_out,
        n_rehearsed=n_rehearsed,
        n_steps=tuned.training.checks[-1].step if tuned.training.checks else 0,
        best_step=tuned.training.best_step,
        is_cancelled=tuned.training.is_cancelled,
        n_trainable=tuned.n_trainable,
        mean_iou_before=round(tuned.before, 4),
        mean_iou_after=round(tuned.after, 4),
        batch=job.batch,
        seed=job.seed,
        seconds=round(seconds, 1),
        source_sha256=package_sha256(job.model),
        **details,
    )
    if job.is_adapter_only:
        return replace(card, base_file=str(job.model.resolve()), base_sha256=package_sha256(job.model))
    return card


def _save(tuned: FineTuned, card: SegmenterCard, learned: Chips, job: FineTuneJob) -> SegmenterCard:
    """Save the tuned model with what it knows of the ground that it was tuned on, and return its card."""
    statistics, tensors = source_statistics(tuned.model, learned, seed=job.seed)
    tuned.model.card = replace(card, statistics=statistics)
    if job.is_adapter_only:
        # Small: the features would outweigh what learned.
        save_segmenter(tuned.model, job.output, adapter=tuned.adapter)
    else:
        save_segmenter(tuned.model, job.output, extra=tensors)
    return tuned.model.card
