"""Which layers and which method: the question answered on the user's own labelled rasters, within a time limit.

Blocks of ground are split once. Those held out judge every run and are never learned from. Of the others, methods
without labels see the pixels, and fine-tuning sees as many labels as its budget allows; small budgets are parts of the
large ones. A quarter of a budget's own labels decides which state of the training is kept, as it would be in earnest.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from ...models.chips import Chips, split_by_block
from ...models.errors import Cancelled, ModelError
from ...models.metrics import Confusion, bootstrap_interval, confusion_matrix, mean_iou
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.semantic.card import IGNORE, with_event
from ...models.semantic.package import Tensors
from ...models.semantic.prediction import device_of, predict_labels
from ...models.semantic.segmenter import Segmenter
from ...models.transfer.base import Problem
from ...models.transfer.chain import adapt_in_order, names_of
from ...models.transfer.fine_tuning import FineTuning, fine_tune, usual_training
from ...models.transfer.statistics import lasting_tensors, source_statistics
from ..errors import JobError
from .comparison_runs import METHOD, SOURCE, TUNING, CompareAdaptation, Run, RunQueue, title_of
from .peak_memory import PeakMemory
from .training_data import split_chips

_CHECKING = 0.25


@dataclass(frozen=True, eq=False)
class Comparison:
    """All `runs` in the order in which they were made, the source model first, and what there was no time for.

    `model`: that of the best run, on the CPU; the source model where none is better. `statistics`: the tensors to save
    beside its weights. `n_rehearsed`: chips of the source that methods and fine-tuning rehearsed. `unjudged`: names of
    classes that labels have, but none that is held out. `is_cancelled`: the user had no time for what was left out.
    """

    job: CompareAdaptation
    runs: tuple[Run, ...]
    left_out: tuple[str, ...]
    model: Segmenter
    statistics: Tensors
    n_parameters: int
    n_pool: int
    n_held_out: int
    n_held_out_blocks: int
    n_rehearsed: int
    device: str
    unjudged: tuple[str, ...] = ()
    is_cancelled: bool = False

    @property
    def source(self) -> Run:
        """The model as it was."""
        return self.runs[0]

    @property
    def finished(self) -> list[Run]:
        """Runs that came to a result, the source model among them."""
        return [run for run in self.runs if not math.isnan(run.miou)]

    @property
    def best(self) -> Run:
        """The run with the largest mean IoU; the source model where none beats it."""
        return max(self.finished, key=lambda run: run.miou)


def compare_adaptation(
    model: Segmenter,
    chips: Chips,
    job: CompareAdaptation | None = None,
    *,
    statistics: Tensors | None = None,
    source: Chips | None = None,
    source_sha256: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Try methods and layers on labelled chips of the target, the most promising first; `model` is not changed.

    `statistics`: what the model's package knows of its source (`package.load_extra`). `source`: labelled chips of the
    source to rehearse, as the model sees them. `source_sha256`: of that package, for the history of the best model.
    Runs that cannot be made are reported, not raised. Raises `JobError` for labels in one block of ground, and where
    those held out have no class, or one of several alone. A cancel keeps the runs that are finished; before the first
    of them it raises `Cancelled`.
    """
    job, progress = job or CompareAdaptation(), progress or NullProgress()
    pool, held_out = split_chips(chips, held_out=job.held_out, seed=job.seed)
    if not held_out.n_labelled_px() or not pool.n_labelled_px():
        raise JobError("The blocks of ground that are split hold no label on one side; label more places.")
    unjudged = _unjudged(pool, held_out, model, progress)
    n_rehearsed = 0 if source is None else len(source)
    runner = _Runner(model, pool, held_out, job, dict(statistics or {}), source, progress)
    waiting = RunQueue(job)
    runs = [runner.source()]
    progress.info(_line(runs[0]))
    best = (runs[0].miou, model)
    n_all = len(waiting)
    stopped: list[str] = []
    while waiting and not stopped and time.perf_counter() < runner.deadline:
        kind, name, budget = waiting.next(runs)
        part = StepProgress(progress, 1 - (len(waiting) + 1) / n_all, 1 - len(waiting) / n_all)
        try:
            run, adapted = runner.run(kind, name, budget, part)
        except Cancelled:
            if len(runs) == 1:
                raise
            stopped = [title_of(kind, name, budget)]
            continue
        runs.append(run)
        progress.info(_line(run))
        if adapted is not None and run.miou > best[0]:
            best = run.miou, adapted
    left_out = (*stopped, *waiting.titles(runs))
    if left_out:
        why = "Cancelled; what is finished is kept. Left out" if stopped else "The time was not enough for"
        progress.info(f"{why}: {', '.join(left_out)}.")
    progress.set_fraction(1.0)
    chosen = copy.deepcopy(best[1]).cpu()
    won = max((run for run in runs if not math.isnan(run.miou)), key=lambda run: run.miou)
    tensors: Tensors = statistics or {}
    if best[1] is not model:
        card = chosen.card
        if won.kind == TUNING:
            on_card, tensors = source_statistics(best[1], runner.learned(won.budget)[0], seed=job.seed)
            card = replace(card, statistics=on_card)
        else:
            tensors = lasting_tensors(model, best[1], tensors)
        chosen.card = with_event(
            card,
            "adapted, best of a comparison",
            what=won.title,
            miou=round(won.miou, 4),
            miou_of_source=round(runs[0].miou, 4),
            n_runs=len(runs),
            n_rehearsed=n_rehearsed,
            seed=job.seed,
            **({"source_sha256": source_sha256} if source_sha256 else {}),
        )
    return Comparison(
        job=job,
        runs=tuple(runs),
        left_out=left_out,
        model=chosen,
        statistics=tensors,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_pool=len(pool),
        n_held_out=len(held_out),
        n_held_out_blocks=len(np.unique(held_out.blocks)),
        n_rehearsed=n_rehearsed,
        device=str(device_of(model)),
        unjudged=unjudged,
        is_cancelled=bool(stopped),
    )


def _unjudged(pool: Chips, held_out: Chips, model: Segmenter, progress: Progress) -> tuple[str, ...]:
    """Names of the classes that no label held out is of; told. Raises `JobError` where there is one class left."""
    of_held, of_pool = (set(np.unique(part.labels).tolist()) - {IGNORE} for part in (held_out, pool))
    missing = tuple(model.card.class_names[class_id] for class_id in sorted(of_pool - of_held))
    names = ", ".join(f"'{name}'" for name in missing)
    if missing and len(of_held) < 2:
        raise JobError(
            f"No label held out is of {names}, so that a model that finds nothing else than the rest would win; label "
            "more places with it, or hold more out."
        )
    if missing:
        progress.info(f"No label held out is of {names}: whether a run loses it is not measured. Label more places.")
    return missing


def budget_of(pool: Chips, share: float, *, seed: int) -> Chips:
    """The chips whose labels a budget may use: whole blocks in a random order, until `share` of the chips is reached.

    A smaller share is a part of a larger one with the same seed; at least one chip.
    """
    random = np.random.default_rng(seed)
    numbers = random.permutation(np.unique(pool.blocks))
    # In the order of the blocks, and within one at random.
    rank = np.argsort(numbers)[np.searchsorted(np.sort(numbers), pool.blocks)]
    order = np.lexsort((random.permutation(len(pool)), rank))
    return pool.take(np.sort(order[: max(1, round(share * len(pool)))]))


class _Deadline:
    """A progress that is cancelled by the user or by the clock."""

    def __init__(self, progress: Progress, deadline: float) -> None:
        self._progress, self._deadline = progress, deadline

    def set_fraction(self, fraction: float) -> None:
        self._progress.set_fraction(fraction)

    def info(self, text: str) -> None:
        """Keep to the lines of the comparison."""

    def is_cancelled(self) -> bool:
        return self._progress.is_cancelled() or self.is_over()

    def is_over(self) -> bool:
        return time.perf_counter() >= self._deadline


@dataclass
class _Runner:
    """Makes runs and judges them."""

    model: Segmenter
    pool: Chips
    held_out: Chips
    job: CompareAdaptation
    statistics: dict[str, object]
    rehearsed: Chips | None
    progress: Progress
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.perf_counter() + self.job.limit_s

    def source(self) -> Run:
        start = time.perf_counter()
        with PeakMemory(device_of(self.model)) as memory:
            score = self._score(self.model)
        return Run(SOURCE, SOURCE, 0.0, 0, *score, 0, time.perf_counter() - start, memory.peak_mb)

    def run(self, kind: str, name: str, budget: float, progress: Progress) -> tuple[Run, Segmenter | None]:
        raise_if_cancelled(self.progress)
        watched = _Deadline(progress, self.deadline)
        start, n_trainable, n_px, remark = time.perf_counter(), None, 0, ""
        adapted: Segmenter | None = None
        with PeakMemory(device_of(self.model)) as memory:
            try:
                if kind == METHOD:
                    adapted = self._adapted(name, watched)
                else:
                    n_px = budget_of(self.pool, budget, seed=self.job.seed).n_labelled_px()
                    adapted, n_trainable, remark = self._tuned(name, budget, watched)
            except Cancelled:
                raise_if_cancelled(self.progress)
                remark = "not finished in time"
            except ModelError as error:
                remark = str(error)
        seconds = time.perf_counter() - start
        score = (math.nan,) * 3 if adapted is None else self._score(adapted)
        return Run(kind, name, budget, n_px, *score, n_trainable, seconds, memory.peak_mb, remark), adapted

    def _adapted(self, name: str, progress: Progress) -> Segmenter:
        adapted = copy.deepcopy(self.model)
        problem = Problem(
            target=self.pool.unlabelled(),
            source=self.rehearsed,
            statistics=self.statistics,  # type: ignore[arg-type]
            n_steps=self.job.n_steps,
            batch=self.job.batch,
            seed=self.job.seed,
        )
        adapt_in_order(adapted, problem, names_of(name), progress)
        return adapted

    def learned(self, budget: float) -> tuple[Chips, Chips]:
        """What fine-tuning with a share of the labels learns from, and what decides which state is kept."""
        return _checking(budget_of(self.pool, budget, seed=self.job.seed), seed=self.job.seed)

    def _tuned(self, layers: str, budget: float, progress: _Deadline) -> tuple[Segmenter, int, str]:
        learned, checking = self.learned(budget)
        training = usual_training(layers, n_steps=self.job.n_steps, batch=self.job.batch, seed=self.job.seed)
        tuned = fine_tune(
            self.model,
            learned,
            checking,
            FineTuning(layers=layers),
            training,
            replay=self.rehearsed,
            progress=progress,
        )
        raise_if_cancelled(self.progress)
        remarks = ["cut short by the time limit"] if tuned.training.is_cancelled else []
        if not tuned.is_accepted:
            remarks.append("no better on its own labels, so the source model was kept")
        return tuned.model, tuned.n_trainable, "; ".join(remarks)

    def _score(self, model: Segmenter) -> tuple[float, float, float]:
        """Mean IoU on the chips held out, and its interval over their blocks."""
        labels = predict_labels(model, self.held_out, batch=self.job.batch)
        n_classes = len(model.card.classes)
        of_blocks: list[Confusion] = [
            confusion_matrix(self.held_out.labels[chosen], labels[chosen], n_classes=n_classes)
            for chosen in (self.held_out.blocks == block for block in np.unique(self.held_out.blocks))
        ]
        low, high = bootstrap_interval(of_blocks, seed=self.job.seed)
        return mean_iou(np.sum(of_blocks, axis=0)), low, high


def _checking(chips: Chips, *, seed: int) -> tuple[Chips, Chips]:
    """Labels to learn from, and those that decide which state is kept: the same ones where there are too few."""
    if len(np.unique(chips.blocks)) > 1:
        learned, checking = split_by_block(chips, held_out=_CHECKING, seed=seed)
    else:
        order = np.random.default_rng(seed).permutation(len(chips))
        n = round(_CHECKING * len(chips))
        learned, checking = chips.take(order[n:]), chips.take(order[:n])
    both = learned.n_labelled_px() and checking.n_labelled_px()
    return (learned, checking) if both else (chips, chips)


def _line(run: Run) -> str:
    if math.isnan(run.miou):
        return f"{run.title}: {run.remark}"
    remark = f" ({run.remark})" if run.remark else ""
    return f"{run.title}: mean IoU {run.miou:.3f}, {run.seconds:.0f} s{remark}."
