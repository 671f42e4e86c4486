"""What methods that learn on the target share: the values that the network sees, seeds, parameters, optimisers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..augmentation import WEAK
from ..chips import Chips
from ..progress import Progress, raise_if_cancelled
from ..semantic.card import IGNORE
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import LEVELS, Segmenter
from ..training import Descent, draw, set_training
from ..training_state import Stateful
from .base import Problem, TransferError

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)
"""Layers that normalise; subclasses (timm's own) count too."""

_LEAST_VALID = 0.5
_ENOUGH_WHOLE = 8


def chips_of_network(model: Segmenter, chips: Chips) -> Chips:
    """The chips with the values that the network sees: through the model's input map, in whole numbers."""
    table = np.rint(model.input_map.detach().cpu().numpy().clip(0, 255)).astype(np.uint8)
    pixels = np.stack([table[band][chips.pixels[:, band]] for band in range(chips.n_bands)], axis=1)
    return Chips(pixels, chips.labels, chips.valid, chips.blocks, chips.origins)


@contextmanager
def network_values(model: Segmenter, problem: Problem) -> Iterator[Problem]:
    """The problem with the target's pixels as the network sees them; meanwhile the model maps nothing.

    The input map of a radiometric method belongs to the target alone: chips of the source must not go through it, and
    chips of both can only be mixed in the values that the network sees. The map is put back afterwards.
    """
    levels = model.input_map.detach().clone()
    mapped = chips_of_network(model, problem.target)
    model.set_input_map(torch.arange(LEVELS, dtype=torch.float32).repeat(len(levels), 1))
    try:
        yield replace(problem, target=mapped)
    finally:
        model.set_input_map(levels)
        model.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator for draws; what the network draws itself (dropout) follows the seed, too."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def steps_left(
    problem: Problem,
    progress: Progress,
    *,
    n_steps: int,
    model: Segmenter,
    generator: torch.Generator,
    **parts: Stateful,
) -> Iterator[int]:
    """The numbers of the steps that are to be taken, from 0, and after a kill from where the state was kept.

    `parts` learn with the `model`. Raises `Cancelled` between steps.
    """
    stage, n_done = problem.stage, 0
    if stage is not None:
        n_done = stage.keeper.follow(stage.state, n_steps=n_steps, model=model, generator=generator, **parts)
    for step in range(n_done, n_steps):
        raise_if_cancelled(progress)
        if stage is not None and stage.keeper.is_due():
            stage.keeper.keep(step, {"stage": stage.number, "start": stage.start})
        yield step
        progress.set_fraction((step + 1) / n_steps)


def answers(
    model: Segmenter, problem: Problem, progress: Progress, *, generator: torch.Generator, descent: Descent
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, classes, rows, cols) of a new batch of target chips per step, and where it has data (B, rows, cols).

    The model is in training, with its averages as they are. Raises as `steps_left`.
    """
    device = device_of(model)
    usable, target = usable_chips(problem.target), with_data_as_labels(problem.target)
    for _ in steps_left(problem, progress, n_steps=problem.n_steps, model=model, generator=generator, descent=descent):
        set_training(model, freeze_statistics=True)
        pixels, labels = draw(target, drawn(problem.batch, usable, generator), WEAK, generator, device)
        with autocast(device):
            logits = model(pixels)
        yield logits.float(), labels != IGNORE


def usable_chips(chips: Chips) -> list[int]:
    """Chips with data on at least half of their pixels; all of them where there is none such."""
    shares = chips.valid.mean(axis=(1, 2))
    chosen = np.flatnonzero(shares >= _LEAST_VALID)
    return [int(n) for n in (chosen if len(chosen) else np.arange(len(chips)))]


def whole_chips(chips: Chips) -> list[int]:
    """Chips with data on every pixel, for what cannot leave pixels out; `usable_chips` where fewer than eight are."""
    whole = np.flatnonzero(chips.valid.all(axis=(1, 2)))
    return [int(n) for n in whole] if len(whole) >= _ENOUGH_WHOLE else usable_chips(chips)


def with_data_as_labels(chips: Chips) -> Chips:
    """The chips labelled 0 where they have data, `IGNORE` where not: so that this turns with them when drawn."""
    return chips.with_labels(np.where(chips.valid, 0, IGNORE).astype(np.uint8))


def mean_where(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean of `values` over the pixels `counted`, bool (B, rows, cols); 0 where there are none.

    One number of values (B, rows, cols), (C,) of (B, C, rows, cols).
    """
    axes = (0, -2, -1)
    if bool(counted.all()):
        return values.mean(axes)
    weights = counted if values.ndim == 3 else counted[:, None]
    return (values * weights).sum(axes) / counted.sum().clamp(min=1)


def drawn(n: int, choices: Sequence[int], generator: torch.Generator) -> list[int]:
    """`n` of `choices`, none twice where there are enough."""
    order: list[int] = []
    while len(order) < n:
        order += torch.randperm(len(choices), generator=generator).tolist()
    return [choices[place] for place in order[:n]]


def norm_parameters(model: Segmenter) -> list[nn.Parameter]:
    """Scale and offset of every layer that normalises, of the parts that may learn.

    Raises `TransferError` where there is none.
    """
    found = [
        parameter
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
    if not found:
        raise TransferError(
            f"'{model.card.name}' has no normalisation layer that may learn; choose quantile or self_training."
        )
    return found


def learning_parts(model: Segmenter, *, rate: float, encoder_rate: float, has_head: bool = True) -> Descent:
    """AdamW over the parts that may learn; the encoder at `rate` times `encoder_rate`, the head only if wanted."""
    in_encoder = {id(parameter) for parameter in model.encoder.parameters()}
    in_head = {id(parameter) for parameter in model.head.parameters()}
    groups: dict[float, list[nn.Parameter]] = {rate: [], rate * encoder_rate: []}
    for parameter in model.parameters():
        if parameter.requires_grad and (has_head or id(parameter) not in in_head):
            groups[rate * encoder_rate if id(parameter) in in_encoder else rate].append(parameter)
    found = [{"params": parameters, "lr": lr} for lr, parameters in groups.items() if parameters]
    return Descent(torch.optim.AdamW(found, weight_decay=1e-4), model)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (B, rows, cols) of softmax of logits (B, C, rows, cols), relative to the largest possible: 0 to 1."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / float(np.log(logits.shape[1]))
