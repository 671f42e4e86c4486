"""From a large model, or several, to a light one that maps the same ground many times faster.

The student learns what its teachers answer on unlabelled chips of the target: softened probabilities (Hinton et al.
2015, https://arxiv.org/abs/1503.02531) and the features of one of them (Romero et al. 2015, FitNets,
https://arxiv.org/abs/1412.6550). A student may see the ground at half the resolution, a quarter of the pixels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..augmentation import WEAK, augment
from ..chips import Chips
from ..metrics import Confusion, confusion_matrix, mean_iou, overall_accuracy
from ..progress import NullProgress, Progress, raise_if_cancelled
from ..semantic.card import IGNORE, SegmenterCard, with_event
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import DEFAULT_ENCODER, FPN_WIDTHS, Outputs, Segmenter, build_segmenter
from ..semantic.tokens import TOKENS
from ..training import Descent, draw, set_training
from ..training_state import Keeper, decisive_text
from .adapting import drawn, seeded, usable_chips, with_data_as_labels
from .base import TransferError

COARSER = 2
WIDTHS = (128, 64)
"""The usual student: the teacher's encoder with a narrow FPN at half the resolution; it starts from what it shares.

Four to six times the speed of FPN on EfficientNet-Lite0 for the same ground, in windows of 128 to 256 px on one thread
of a CPU. Most of it comes from the resolution.
"""
SMALL_ENCODER, SMALL_DECODER = "lcnet_035", "unet"
"""Of the light encoders of timm the fastest (PP-LCNet, https://arxiv.org/abs/2109.15099): 1.6 times the speed at the
teacher's own resolution. It starts from nothing."""

_N_ROUNDS = 7
_N_LOSSES = 50
# From then on batch normalisation uses the averages that it will be used with, and the weights settle on them.
_SETTLED_FROM = 0.6


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student learns.

    `n_steps` batches of `batch` chips with AdamW at `rate`, which falls along a cosine. `temperature` softens the
    answers of both sides, and its square weighs the loss (Hinton et al. 2015, section 2). `features`: weight of the
    features of the only teacher, or of the first with the student's encoder. `is_warm`: with that encoder the student
    starts from its weights.
    """

    n_steps: int = 500
    batch: int = 8
    rate: float = 2e-3
    temperature: float = 2.0
    features: float = 0.2
    is_warm: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers. Raises `TransferError`."""
        if min(self.n_steps, self.batch) < 1 or not min(self.rate, self.temperature) > 0:
            raise TransferError(
                f"{self.n_steps} steps of {self.batch} chips at a rate of {self.rate} and a temperature of "
                f"{self.temperature}; give at least one of each and positive numbers."
            )


@dataclass(frozen=True, eq=False)
class Distilled:
    """What came of it.

    `model`: the student, in evaluation mode. On the chips held out, at the teachers' resolution: `agreement`, mean IoU
    of its labels against the teachers', `same`, the share of pixels with the same class, and the shares of the classes
    (C,) among the answers of both, `teacher_shares` and `student_shares`. `teacher_s`, `student_s`:
    seconds for the ground of one chip, of all teachers together and of the student (`speeds_of`). `losses`: mean loss
    of every fiftieth of the steps, of the answers and the features together.
    """

    model: Segmenter
    agreement: float
    same: float
    teacher_shares: tuple[float, ...]
    student_shares: tuple[float, ...]
    teacher_s: float
    student_s: float
    n_teacher_parameters: int
    n_student_parameters: int
    losses: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """How many times faster the student is."""
        return self.teacher_s / self.student_s


def student_card(
    card: SegmenterCard, *, encoder: str | None = None, decoder: str | None = None, coarser: int = COARSER
) -> SegmenterCard:
    """The card of a light student for the teacher of `card`, whose bands, stretch and classes it shares.

    `encoder`, `decoder`: the teacher's encoder with a narrow FPN by default (EfficientNet-Lite0 where FPN does not fit
    the teacher's). `coarser`: pixels of the teacher along a pixel of the student. A teacher without a resolution on its
    card keeps its pixels, as nobody could tell at which size to read an image. Windows keep their pixels, and so cover
    more ground.
    """
    has_pyramid = card.decoder not in ("dpt", "light")
    encoder = encoder or (card.encoder if has_pyramid else DEFAULT_ENCODER)
    options = {name: value for name, value in card.options.items() if name not in (TOKENS, FPN_WIDTHS)}
    if decoder is None:
        decoder, options[FPN_WIDTHS] = "fpn", list(WIDTHS)
    factor = 1 if card.gsd_m is None else coarser
    return replace(
        card,
        name=f"{card.name} (light)",
        encoder=encoder,
        decoder=decoder,
        gsd_m=None if card.gsd_m is None else card.gsd_m * factor,
        options=options,
        metrics={},
        base_file=None,
        base_sha256=None,
    )


def new_student(card: SegmenterCard, *, seed: int = 0) -> Segmenter:
    """The student of a card with random weights that `seed` decides on. Raises `ModelError` as `build_segmenter`."""
    with seeded(seed, torch.device("cpu")):
        return build_segmenter(card)


def coarseness(teacher: SegmenterCard, student: SegmenterCard) -> int:
    """Pixels of the teacher along a pixel of the student: 1, 2, ...

    Raises `TransferError` where their bands, classes or resolutions do not go together.
    """
    if teacher.bands != student.bands or teacher.class_names != student.class_names:
        raise TransferError(
            f"'{teacher.name}' and '{student.name}' differ in bands or classes ({', '.join(teacher.bands)}: "
            f"{', '.join(teacher.class_names)}; {', '.join(student.bands)}: {', '.join(student.class_names)}); "
            "choose models of the same bands and classes."
        )
    if teacher.gsd_m is None or student.gsd_m is None:
        ratio = 1.0 if teacher.gsd_m == student.gsd_m else 0.0
    else:
        ratio = student.gsd_m / teacher.gsd_m
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 0.02:
        raise TransferError(
            f"'{teacher.name}' sees {teacher.gsd_m} m per pixel, '{student.name}' {student.gsd_m}; give the student "
            "the same resolution, or a whole number of times coarser."
        )
    return round(ratio)


def distil(
    teachers: Sequence[Segmenter],
    student: Segmenter,
    chips: Chips,
    held_out: Chips,
    options: Distillation | None = None,
    *,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Teach a copy of `student` what `teachers` answer; their mean probabilities where there are several.

    `chips`: unlabelled chips of the target at the teachers' resolution; `held_out`: others, to compare both on. All
    models are on one device. `keeper`: as for `training.fit`. Raises `TransferError` where models do not go together or
    chips are no multiple of the student's pixels, and `Cancelled` between steps.
    """
    options, progress = options or Distillation(), progress or NullProgress()
    factor = _common_factor(teachers, student, chips)
    device = device_of(student)
    student = copy.deepcopy(student)
    guide = _guide(teachers, student)
    if len(teachers) == 1:
        student.set_input_map(teachers[0].input_map)
    if guide is not None and options.is_warm:
        _start_from(student, teachers[guide])
    for teacher in teachers:
        teacher.eval()
    with seeded(options.seed, device) as generator:
        losses = _teach(
            teachers,
            student,
            chips,
            options,
            guide=guide,
            factor=factor,
            generator=generator,
            keeper=keeper,
            progress=progress,
        )
    student.eval()
    names = [teacher.card.name for teacher in teachers]
    student.card = with_event(student.card, "distilled", teachers=names, steps=options.n_steps, seed=options.seed)
    both = confusion_of(teachers, student, held_out, batch=options.batch)
    *of_teachers, student_s = speeds_of([*teachers, student], held_out)
    return Distilled(
        model=student,
        agreement=mean_iou(both),
        same=overall_accuracy(both),
        teacher_shares=tuple((both.sum(axis=1) / max(1, both.sum())).tolist()),
        student_shares=tuple((both.sum(axis=0) / max(1, both.sum())).tolist()),
        teacher_s=sum(of_teachers),
        student_s=student_s,
        n_teacher_parameters=sum(_size(teacher) for teacher in teachers),
        n_student_parameters=_size(student),
        losses=losses,
    )


def compared(teachers: Sequence[Segmenter], student: Segmenter, chips: Chips, *, batch: int = 8) -> tuple[float, float]:
    """Mean IoU of the student's labels against the teachers', and the share of pixels with the same class."""
    both = confusion_of(teachers, student, chips, batch=batch)
    return mean_iou(both), overall_accuracy(both)


def confusion_of(teachers: Sequence[Segmenter], student: Segmenter, chips: Chips, *, batch: int = 8) -> Confusion:
    """Valid pixels (C, C) by what the teachers say, in rows, and the student, in columns.

    At the teachers' resolution, to which the student's logits are enlarged.
    """
    factor = _common_factor(teachers, student, chips)
    n_classes = len(student.card.classes)
    total = np.zeros((n_classes, n_classes), np.int64)
    for start in range(0, len(chips), batch):
        part = chips.take(range(start, min(start + batch, len(chips))))
        pixels = torch.from_numpy(part.pixels).to(device_of(student)).float()
        with torch.inference_mode(), autocast(device_of(student)):
            truth = torch.stack([teacher(pixels).softmax(1) for teacher in teachers]).sum(0)
            logits = student(_reduced(pixels, factor))
        said = _enlarged(logits, pixels).argmax(1).cpu().numpy().astype(np.uint8)
        known = np.where(part.valid, truth.argmax(1).cpu().numpy(), IGNORE).astype(np.uint8)
        total += confusion_matrix(known, said, n_classes=n_classes)
    return total


def speeds_of(models: Sequence[Segmenter], chips: Chips, *, n_rounds: int = _N_ROUNDS) -> list[float]:
    """Median seconds that each model takes for the ground of one chip, in turns, so that noise hits all alike.

    `chips` are at the resolution of the finest model. As on a map, every model sees windows of as many pixels as a chip
    has; one that is coarser thus covers more ground at once. The first round does not count.
    """
    finest = min(models, key=lambda model: model.card.gsd_m or 0.0)
    factors = [coarseness(finest.card, model.card) for model in models]
    windows = [_window(model, chips, factor) for model, factor in zip(models, factors, strict=True)]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(n_rounds + 1):
        for model, window, factor, times in zip(models, windows, factors, taken, strict=True):
            model.eval()
            start = time.perf_counter()
            with torch.inference_mode(), autocast(window.device):
                # To the CPU, which waits for another device.
                model(window).argmax(1).cpu()
            times.append((time.perf_counter() - start) / factor**2)
    return [float(np.median(times[1:])) for times in taken]


def _teach(
    teachers: Sequence[Segmenter],
    student: Segmenter,
    chips: Chips,
    options: Distillation,
    *,
    guide: int | None,
    factor: int,
    generator: torch.Generator,
    keeper: Keeper | None,
    progress: Progress,
) -> tuple[float, ...]:
    """Take all steps; the mean losses."""
    device = device_of(student)
    masked = with_data_as_labels(chips)
    usable = usable_chips(chips)
    followed = guide if options.features else None
    project = None if followed is None else _projection(teachers[followed], student, chips, factor)
    learning = [*(p for p in student.parameters() if p.requires_grad), *(project.parameters() if project else ())]
    optimiser = torch.optim.AdamW(learning, lr=options.rate, weight_decay=1e-4)
    descent = Descent(optimiser, student)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.n_steps)
    n_done = 0
    kept: dict[str, Any] = {}
    if keeper is not None:
        cards = [decisive_text(model.card) for model in (student, *teachers)]
        n_done, kept = keeper.take_up(
            f"{cards} {options} {guide}",
            [chips, *teachers],
            n_steps=options.n_steps,
            model=nn.ModuleList([student, project or nn.Identity()]),
            generator=generator,
            schedule=schedule,
            descent=descent,
        )
    losses: list[float] = kept.get("losses", [])
    for step in range(n_done, options.n_steps):
        raise_if_cancelled(progress)
        if keeper is not None and keeper.is_due():
            keeper.keep(step, {"losses": losses})
        set_training(student, freeze_statistics=step >= _SETTLED_FROM * options.n_steps)
        n = min(options.batch, len(usable)) if len(usable) > 1 else 2
        pixels, labels = draw(masked, drawn(n, usable, generator), None, generator, device)
        pixels, labels = augment(pixels, labels, WEAK, generator=generator)
        with torch.no_grad(), autocast(device):
            answers = [teacher.outputs(pixels) for teacher in teachers]
        with autocast(device):
            own = student.outputs(_reduced(pixels, factor))
        loss = _answer_loss(answers, own, labels, factor=factor, temperature=options.temperature)
        if followed is not None and project is not None:
            loss = loss + options.features * _feature_loss(answers[followed].features, own.features, project)
        if descent.step(loss):
            losses.append(float(loss.detach()))
        schedule.step()
        progress.set_fraction((step + 1) / options.n_steps)
    return tuple(float(np.mean(part)) for part in np.array_split(losses, max(1, min(_N_LOSSES, len(losses)))))


def _answer_loss(
    answers: Sequence[Outputs], own: Outputs, labels: torch.Tensor, *, factor: int, temperature: float
) -> torch.Tensor:
    """KL divergence of softened answers on the student's pixels, times the squared temperature."""
    soft = torch.stack([(answer.logits / temperature).softmax(1) for answer in answers]).mean(0)
    soft = _reduced(soft, factor)
    weight = _reduced((labels != IGNORE).float()[:, None], factor)[:, 0]
    logs = (own.logits / temperature).log_softmax(1)
    divergence = functional.kl_div(logs, soft, reduction="none").sum(1)
    return temperature**2 * (divergence * weight).sum() / weight.sum().clamp(min=1)


def _feature_loss(wanted: torch.Tensor, own: torch.Tensor, project: nn.Module) -> torch.Tensor:
    """Mean squared difference, on the coarser of both grids, in units of the teacher's variance."""
    rows, cols = min(wanted.shape[2], own.shape[2]), min(wanted.shape[3], own.shape[3])
    goal = functional.adaptive_avg_pool2d(wanted.float(), (rows, cols))
    guess = project(functional.adaptive_avg_pool2d(own.float(), (rows, cols)))
    return functional.mse_loss(guess, goal) / goal.var().clamp(min=1e-6)


def _projection(teacher: Segmenter, student: Segmenter, chips: Chips, factor: int) -> nn.Module:
    """From the student's features to the teacher's; left behind after training."""
    device = device_of(student)
    pixels = torch.from_numpy(chips.pixels[:1]).to(device).float()
    student.eval()
    with torch.inference_mode():
        wanted = teacher.outputs(pixels).features.shape[1]
        own = student.outputs(_reduced(pixels, factor)).features.shape[1]
    return nn.Conv2d(own, wanted, 1).to(device)


def _guide(teachers: Sequence[Segmenter], student: Segmenter) -> int | None:
    """Which of the teachers gives features, and weights where it has the student's encoder: the only one, or the first.

    None where several have other encoders than the student.
    """
    if len(teachers) == 1:
        return 0
    return next((n for n, teacher in enumerate(teachers) if teacher.card.encoder == student.card.encoder), None)


def _start_from(student: Segmenter, teacher: Segmenter) -> None:
    """With the teacher's encoder all weights of equal shape; each network's input map stays its own."""
    if teacher.card.encoder != student.card.encoder:
        return
    own, known = student.state_dict(), teacher.state_dict()
    fits = {name: known[name] for name, value in own.items() if name in known and known[name].shape == value.shape}
    student.load_state_dict({**own, **fits, "input_map": own["input_map"]})


def _common_factor(teachers: Sequence[Segmenter], student: Segmenter, chips: Chips) -> int:
    if not teachers:
        raise TransferError("There is no teacher; give one or more models.")
    factors = {coarseness(teacher.card, student.card) for teacher in teachers}
    if len(factors) > 1:
        raise TransferError("The teachers see the ground at different resolutions; choose teachers of one.")
    (factor,) = factors
    rows, cols = chips.pixels.shape[2:]
    if rows % factor or cols % factor:
        raise TransferError(f"Chips of {cols} x {rows} px are no multiple of {factor} px; give other chips.")
    return factor


def _window(model: Segmenter, chips: Chips, factor: int) -> torch.Tensor:
    """One window (1, bands, rows, cols) of a chip's size for a model whose pixels are `factor` times larger."""
    chosen = [number % len(chips) for number in range(factor**2)]
    pixels = _reduced(torch.from_numpy(chips.pixels[chosen]).float(), factor)
    rows = [torch.cat(list(pixels[row * factor : (row + 1) * factor]), dim=2) for row in range(factor)]
    return torch.cat(rows, dim=1)[None].to(device_of(model))


def _reduced(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Means over squares of `factor` pixels, as rasters are reduced when they are read."""
    return values if factor == 1 else functional.avg_pool2d(values, factor)


def _enlarged(logits: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(logits, size=pixels.shape[2:], mode="bilinear", align_corners=False)


def _size(model: Segmenter) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
