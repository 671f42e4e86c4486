"""The one training loop of segmentation models: steps over chips, the best state kept, stopped at any time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .augmentation import USUAL, Augmentation, augment
from .chips import ChipError, Chips
from .errors import ModelError
from .losses import LOSSES, Loss, class_weights_of, segmentation_loss
from .metrics import mean_iou
from .progress import NullProgress, Progress, duration
from .semantic.prediction import autocast, device_of, evaluate_chips, precision_of
from .semantic.segmenter import Segmenter
from .training_state import Keeper, decisive_text, learned_state

_LONGEST = 5.0
_LOSS_SCALE = 2.0**12
_MOST_LEFT_OUT = 10


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    `n_steps` batches of `batch` chips; the score is asked for `n_checks` times, evenly spread (after each step where
    there are fewer), and training stops after `patience` checks without a better one (None: never). `loss`: one of
    `losses.LOSSES`. `is_balanced` lifts rare classes. `encoder_rate` times `rate` is the encoder's learning rate:
    published weights need to move less.
    """

    n_steps: int = 500
    batch: int = 8
    rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 1e-4
    loss: Loss = "cross_entropy_dice"
    is_balanced: bool = True
    augmentation: Augmentation = USUAL
    n_checks: int = 10
    patience: int | None = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers. Raises `ModelError`."""
        if min(self.n_steps, self.batch, self.n_checks) < 1 or not self.rate > 0:
            raise ModelError(
                f"{self.n_steps} steps of {self.batch} chips at a rate of {self.rate}; give at least one of each and a "
                "positive rate."
            )


class Check(NamedTuple):
    """What was measured after `step` steps.

    Mean `loss` of the steps taken since the last check (NaN without), `score` on the chips held out (mean IoU, NaN
    without), `seconds` since the start.
    """

    step: int
    loss: float
    score: float
    seconds: float

    def told(self, n_steps: int) -> str:
        """One line for people: loss, score where there is one, and the time that `n_steps` in all will still take."""
        left = self.seconds / self.step * (n_steps - self.step)
        score = "" if math.isnan(self.score) else f", mean IoU {self.score:.3f} on the chips held out"
        return f"Step {self.step} of {n_steps}: loss {self.loss:.3f}{score}; about {duration(left)} left."


@dataclass(frozen=True)
class Training:
    """How training went: the `checks`, the step and score of the state that was kept, and whether it was cancelled.

    Step 0 is the state that training started from.
    """

    checks: tuple[Check, ...]
    best_step: int
    best_score: float
    is_cancelled: bool


@dataclass
class _Course:
    """How far training is, in plain values, which a `Keeper` can keep; `waiting`: chips of the `_Order`s."""

    best_state: dict[str, torch.Tensor]
    best_score: float
    best_step: int = 0
    n_since_best: int = 0
    checks: list[tuple[int, float, float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waiting: list[int] = field(default_factory=list)
    replay_waiting: list[int] = field(default_factory=list)


LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, labels) -> loss."""


def fit(
    model: Segmenter,
    chips: Chips,
    held_out: Chips | None,
    options: TrainingOptions | None = None,
    *,
    parameters: Iterable[nn.Parameter] | None = None,
    freeze_statistics: bool = False,
    replay: Chips | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> Training:
    """Train `model` in place on labelled chips, and leave it in the best state of those checked on `held_out`.

    Without chips held out the last state checked is kept. `parameters`: train only these (all by default). With
    `freeze_statistics` batch normalisation keeps its averages, as few chips of another domain would spoil them.
    `replay`: chips of the source domain, of which every batch takes another half, so that it is not forgotten. With a
    `keeper` training goes on where a run with the same arguments was killed, to the same result. A cancel ends training
    early and keeps the best state so far; before the first check that is the one it started from. Raises `ChipError`
    where nothing is labelled, and `ModelError` as `Descent` does.
    """
    options, progress = options or TrainingOptions(), progress or NullProgress()
    if not chips.n_labelled_px():
        raise ChipError(f"None of the {len(chips)} chips has a label; give labels that lie on the raster.")
    device = device_of(model)
    generator = torch.Generator().manual_seed(options.seed)
    chosen = list(model.parameters()) if parameters is None else list(parameters)
    optimiser = _optimiser(model, chosen, options)
    descent = Descent(optimiser, model)
    schedule = one_cycle(optimiser, options.n_steps)
    n_classes = len(model.card.classes)
    weights = class_weights_of(chips.labels, n_classes).to(device) if options.is_balanced else None
    n_done, is_cancelled = 0, False
    kept: dict[str, Any] = {}
    with _trainable(model, chosen):
        best_state = copy.deepcopy(learned_state(model))
        if keeper is not None:
            n_done, kept = keeper.take_up(
                f"{decisive_text(model.card)} {options} {freeze_statistics}",
                [chips, held_out, replay],
                n_steps=options.n_steps,
                model=model,
                generator=generator,
                schedule=schedule,
                descent=descent,
            )
        course = _Course(**kept) if kept else _Course(best_state, score_of(model, held_out))
        order = _Order(len(chips), generator, course.waiting)
        replayed = None if replay is None else _Order(len(replay), generator, course.replay_waiting)
        start = time.perf_counter() - course.seconds
        for step in range(n_done + 1, options.n_steps + 1):
            if progress.is_cancelled():
                is_cancelled = True
                break
            if keeper is not None and keeper.is_due():
                course.seconds, course.waiting = time.perf_counter() - start, order.waiting
                course.replay_waiting = [] if replayed is None else replayed.waiting
                keeper.keep(step - 1, vars(course))
            set_training(model, freeze_statistics=freeze_statistics)
            pixels, labels = draw(chips, order.next(options.batch), options.augmentation, generator, device)
            if replay is not None and replayed is not None:
                more = draw(replay, replayed.next(max(1, options.batch // 2)), options.augmentation, generator, device)
                pixels, labels = torch.cat([pixels, more[0]]), torch.cat([labels, more[1]])
            with autocast(device):
                logits = model(pixels)
            loss = segmentation_loss(logits.float(), labels, class_weights=weights, **LOSSES[options.loss])
            if descent.step(loss):
                course.losses.append(float(loss.detach()))
            schedule.step()
            progress.set_fraction(step / options.n_steps)
            if step * options.n_checks // options.n_steps == (step - 1) * options.n_checks // options.n_steps:
                continue
            mean_loss = float(np.mean(course.losses)) if course.losses else float("nan")
            check = Check(step, mean_loss, score_of(model, held_out), time.perf_counter() - start)
            course.losses.clear()
            course.checks.append((*check,))
            if on_check is not None:
                on_check(check)
            if held_out is None or not check.score <= course.best_score:
                course.best_score, course.best_step, course.n_since_best = check.score, step, 0
                course.best_state = copy.deepcopy(learned_state(model))
            else:
                course.n_since_best += 1
            if options.patience is not None and course.n_since_best >= options.patience:
                break
    # What did not learn is no part of it.
    model.load_state_dict(course.best_state, strict=False)
    model.eval()
    return Training(tuple(starmap(Check, course.checks)), course.best_step, course.best_score, is_cancelled)


def score_of(model: Segmenter, chips: Chips | None) -> float:
    """Mean IoU on labelled chips; NaN without."""
    if chips is None or not chips.n_labelled_px():
        return float("nan")
    return mean_iou(evaluate_chips(model, chips))


def set_training(model: Segmenter, *, freeze_statistics: bool = False) -> None:
    """Switch to training; with `freeze_statistics` batch normalisation goes on with the averages that it has."""
    model.train()
    if freeze_statistics:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def draw(
    chips: Chips,
    indices: Sequence[int],
    augmentation: Augmentation | None,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: float pixels (B, bands, rows, cols) of 0 to 255 and int64 labels (B, rows, cols), augmented."""
    pixels = torch.from_numpy(chips.pixels[list(indices)]).to(device).float()
    labels = torch.from_numpy(chips.labels[list(indices)]).to(device).long()
    if augmentation is None:
        return pixels, labels
    return augment(pixels, labels, augmentation, generator=generator)


def one_cycle(optimiser: torch.optim.Optimizer, n_steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Rates that rise to the optimiser's own over a tenth of `n_steps` steps, then fall; very few only fall."""
    rates = [group["lr"] for group in optimiser.param_groups]
    # With 9 steps a tenth would be a rise of no length, by which torch divides.
    rise = 0.09 if n_steps == 9 else 0.1
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=n_steps + 1, pct_start=rise)


class Descent:
    """Steps of an optimiser downhill, of bounded length; one whose gradient is no number is left out.

    A step that is left out leaves the averages of `model`, which its forward pass may have spoiled, as they were after
    the last step taken. In fp16 large values overflow now and then and small gradients vanish; there the loss is scaled
    (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740).
    """

    def __init__(self, optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
        self._optimiser = optimiser
        self._learning = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        self._averages = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._last_good = [buffer.clone() for buffer in self._averages]
        self._device = self._learning[0].device
        is_scaled = precision_of(str(self._device)) == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=_LOSS_SCALE, enabled=is_scaled)
        self._n_left_out = 0

    def step(self, loss: torch.Tensor) -> bool:
        """Take one step, or leave it out; True where it was taken.

        Raises `ModelError` where ten in a row had to be left out: nothing would be learned.
        """
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        is_number = bool(torch.isfinite(nn.utils.clip_grad_norm_(self._learning, _LONGEST)))
        if is_number or self._scaler.is_enabled():  # The scaler leaves such steps out itself, and learns from them.
            self._scaler.step(self._optimiser)
            self._scaler.update()
        for average, good in zip(self._averages, self._last_good, strict=True):
            if is_number:
                good.copy_(average)
            else:
                average.copy_(good)
        self._n_left_out = 0 if is_number else self._n_left_out + 1
        if self._n_left_out == _MOST_LEFT_OUT:
            raise ModelError(
                f"{_MOST_LEFT_OUT} training steps in a row gave no numbers on '{self._device}' (loss "
                f"{float(loss.detach()):g}); choose a smaller rate, another device, or another model to start from."
            )
        return is_number

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on beside the model."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "n_left_out": self._n_left_out,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take such a state over, once the model has its own."""
        self._optimiser.load_state_dict(state_dict["optimiser"])
        self._scaler.load_state_dict(state_dict["scaler"])
        self._n_left_out = state_dict["n_left_out"]
        for average, good in zip(self._averages, self._last_good, strict=True):
            good.copy_(average)


class _Order:
    """Chips in a random order, over and over: each is seen before any is seen again; those in `waiting` come first."""

    def __init__(self, n_chips: int, generator: torch.Generator, waiting: Sequence[int]) -> None:
        self._n_chips, self._generator = n_chips, generator
        self.waiting = list(waiting)

    def next(self, n: int) -> list[int]:
        while len(self.waiting) < n:
            self.waiting += torch.randperm(self._n_chips, generator=self._generator).tolist()
        chosen, self.waiting = self.waiting[:n], self.waiting[n:]
        return chosen


class _trainable:  # noqa: N801 - reads as a statement
    """Let only some parameters learn, and put everything back afterwards."""

    def __init__(self, model: Segmenter, chosen: Sequence[nn.Parameter]) -> None:
        self._wanted = {id(parameter) for parameter in chosen}
        self._model = model
        self._before: list[tuple[nn.Parameter, bool]] = []

    def __enter__(self) -> None:
        self._before = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        for parameter, was_trainable in self._before:
            parameter.requires_grad_(was_trainable and id(parameter) in self._wanted)

    def __exit__(self, *_: object) -> None:
        for parameter, was_trainable in self._before:
            parameter.requires_grad_(was_trainable)


def _optimiser(model: Segmenter, chosen: Sequence[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    in_encoder = {id(parameter) for parameter in model.encoder.parameters()}
    groups = [
        {
            "params": [p for p in chosen if (id(p) in in_encoder) == is_encoder and p.requires_grad],
            "lr": options.rate * (options.encoder_rate if is_encoder else 1.0),
        }
        for is_encoder in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ModelError("Nothing of the model is to be trained; choose parts that learn.")
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)
