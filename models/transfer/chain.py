"""Methods one after another."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..progress import Progress, StepProgress
from ..semantic.prediction import device_of
from ..semantic.segmenter import Segmenter
from ..training_state import Keeper, decisive_text, learned_state
from .adapting import seeded
from .base import Method, Problem, Stage, TransferError, make_method

SEPARATOR = "+"
"""Between the names of a chain: "norm_statistics+self_training"."""
PREPARATIONS = ("masked_image",)
"""Methods after which another one must follow."""
USUAL_SOURCE_WEIGHT = 2 / 3
"""A third of the way from the source model's weights to those of what learned from its own answers.

Wortsman et al. 2022 (WiSE-FT, https://arxiv.org/abs/2109.01903) average so what was fine-tuned with what was robust. On
the study's pairs a third of the way keeps most of what learning without the source's labels wins, and loses next to
nothing where it loses (docs/adaptation.md).
"""
REHEARSED_SOURCE_WEIGHT = 1 / 3
"""Two thirds of the way where the source is rehearsed: no less is won in the mean, and far less lost."""
_QUICK = ("quantile", "reinhard", "norm_statistics")
"""Methods that learn nothing."""
_BETWEEN = re.compile(r"\+(?![^(]*\))")
"""The separator, which a number among the options (1e+3) may hold, too."""


def names_of(text: str) -> tuple[str, ...]:
    """The names in a text such as "quantile + norm_statistics(alpha=0.5)", with the options that are not usual.

    Raises `TransferError` as `make_method` does, for none, and where the last one only prepares.
    """
    methods = [make_method(step) for step in _BETWEEN.split(text) if step.strip()]
    if not methods:
        raise TransferError("No method is named; give one or more, separated by '+'.")
    last = methods[-1].name
    if last in PREPARATIONS:
        raise TransferError(f"'{last}' only prepares; let another method follow: '{last}+self_training'.")
    return tuple(str(method) for method in methods)


def is_rehearsed(problem: Problem, names: Sequence[str]) -> bool:
    """Whether a method of the chain learns from labelled chips of the source that the problem has."""
    return problem.source is not None and any(make_method(name).rehearses for name in names)


def adapt_in_order(
    model: Segmenter, problem: Problem, names: Sequence[str], progress: Progress, *, keeper: Keeper | None = None
) -> None:
    """Adapt `model` in place by one method after another, then go back by `source_weight`.

    With a `keeper` it goes on where a run with the same arguments was killed, to the same result. Raises
    `TransferError` as `names_of` and the methods do, and `Cancelled`.
    """
    methods = [make_method(name) for name in names_of(SEPARATOR.join(names))]
    weight = source_weight(problem, names)
    before = copy.deepcopy(model.state_dict()) if weight else {}
    state = None if keeper is None else _found(keeper, model, problem, methods)
    n_done = 0 if state is None else state["values"]["stage"]
    if state is not None:
        model.load_state_dict(state["values"]["start"], strict=False)
    # Methods that learn nothing take hardly any time.
    lengths = [0.05 if method.name in _QUICK else 1.0 for method in methods]
    start = 0.0
    for number, (method, length) in enumerate(zip(methods, lengths, strict=True)):
        if number >= n_done:
            progress.info(f"{method.title} ...")
            part = StepProgress(progress, start / sum(lengths), (start + length) / sum(lengths))
            if keeper is not None:
                problem = replace(problem, stage=Stage(keeper, number, copy.deepcopy(learned_state(model)), state))
            method.adapt(model, problem, part)
            state = None
        start += length
    if weight:
        _mix(model, before, weight)


def _found(keeper: Keeper, model: Segmenter, problem: Problem, methods: Sequence[Method]) -> dict[str, Any] | None:
    """The state that a run with the same arguments left."""
    numbers = (problem.n_steps, problem.batch, problem.seed, problem.source_weight)
    # Every method seeds torch's own draws: where they stand before decides nothing.
    with seeded(problem.seed, device_of(model)):
        return keeper.find(
            f"{decisive_text(model.card)} {methods} {numbers}",
            [problem.target, problem.source, problem.segments],
            model=model,
        )


def source_weight(problem: Problem, names: Sequence[str]) -> float:
    """How far a chain's weights are taken back to the source model's: `Problem.source_weight`, or the usual one."""
    if all(make_method(name).name in _QUICK for name in names):
        return 0.0
    if problem.source_weight is not None:
        return problem.source_weight
    return REHEARSED_SOURCE_WEIGHT if is_rehearsed(problem, names) else USUAL_SOURCE_WEIGHT


def _mix(model: Segmenter, before: Mapping[str, torch.Tensor], weight: float) -> None:
    """Weights and averages between those of `before` and the model's; how values are mapped is no weight."""
    after = model.state_dict()
    mixed = {
        name: torch.lerp(value, before[name], weight) if value.is_floating_point() else value
        for name, value in after.items()
        if name != "input_map"
    }
    model.load_state_dict({**after, **mixed})
