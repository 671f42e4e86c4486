"""What a method of adaptation without labels is given, what it is, and how it is found by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..errors import ModelError
from ..progress import Progress
from ..semantic.segmenter import Segmenter
from ..training_state import Keeper

Limits = Mapping[str, tuple[float, float]]
"""Least and largest value of options by their names."""
SHARE = (0.0, 1.0)
"""Limits of a share."""


class TransferError(ModelError, ValueError):
    """A method that cannot be used on this model or with these data."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A method of a chain whose state is kept, so that it goes on after a kill.

    `number` of the method, from 0, and the weights that it starts from; `state`: what was kept within it, if anything.
    """

    keeper: Keeper
    number: int
    start: Mapping[str, torch.Tensor]
    state: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class Problem:
    """Where a model is to go.

    `target`: chips of the target domain; their labels are never looked at. `source`: labelled chips of the source
    domain to rehearse, None where there are none any more (source-free). `statistics`: what the model's package knows
    of its source domain (`statistics.source_tensors`). `segments`: int32 (N, rows, cols), numbers of segments within
    each target chip (0: none), which pseudo-labels are cleaned by. `n_steps`: how many batches of `batch` chips a
    method that learns may take; `seed` decides on every draw. `source_weight`: how far the weights of what learned are
    taken back to those of the source model, 0 (not at all) to 1; None for `chain.REHEARSED_SOURCE_WEIGHT` where the
    source is rehearsed, and `chain.USUAL_SOURCE_WEIGHT` where it is not. `stage`: where the method keeps how far it is,
    None for nowhere.
    """

    target: Chips
    source: Chips | None = None
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    segments: npt.NDArray[np.int32] | None = None
    n_steps: int = 200
    batch: int = 8
    seed: int = 0
    source_weight: float | None = None
    stage: Stage | None = None

    def __post_init__(self) -> None:
        """Check what goes together. Raises `TransferError`."""
        if self.source_weight is not None and not 0 <= self.source_weight <= 1:
            raise TransferError(f"A weight of the source of {self.source_weight:g}; give a number from 0 to 1.")
        if self.source is not None and self.source.n_bands != self.target.n_bands:
            raise TransferError(
                f"The source has {self.source.n_bands} bands, the target {self.target.n_bands}; give rasters alike."
            )
        if self.segments is not None and self.segments.shape != self.target.labels.shape:
            raise TransferError(
                f"Segments of shape {self.segments.shape} for chips of shape {self.target.labels.shape}; give one map "
                "of segments per chip."
            )


@dataclass(frozen=True)
class Method:
    """A method of adaptation without labels: a frozen dataclass of options, registered under `name`.

    `title` and `summary` are for people, `reference` says where it comes from. `rehearses`: whether it learns from the
    source's labelled chips, too, where the problem has some. `limits`: of the options; without them a number is at
    least 0, a whole number at least 1. Raises `TransferError` for values outside.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    rehearses: ClassVar[bool] = False
    limits: ClassVar[Limits] = {}

    def __post_init__(self) -> None:
        """Check the options."""
        for option in fields(self):
            value = getattr(self, option.name)
            usual = (1.0 if isinstance(option.default, int) else 0.0, math.inf)
            least, most = self.limits.get(option.name, usual)
            if not least <= value <= most:
                allowed = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
                raise TransferError(f"'{option.name}' of '{self.name}' is {value:g}; give a number {allowed}.")

    def __str__(self) -> str:
        """The name with the options that are not the usual ones, as `make_method` reads it."""
        options = [(option.name, getattr(self, option.name), option.default) for option in fields(self)]
        told = ", ".join(f"{name}={value}" for name, value, usual in options if value != usual)
        return f"{self.name}({told})" if told else self.name

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt `model` in place, and leave it in evaluation mode.

        The caller hands a copy and decides afterwards whether to keep it. Raises `TransferError` where the method
        does not fit the model or the problem, and `Cancelled` between steps.
        """
        raise NotImplementedError


_METHODS: dict[str, type[Method]] = {}
_MethodT = TypeVar("_MethodT", bound=type[Method])


def register_method(name: str) -> Callable[[_MethodT], _MethodT]:
    """Decorate a method to make it known by `name`. Raises `TransferError` for a name that is taken."""

    def register(method: _MethodT) -> _MethodT:
        if name in _METHODS:
            raise TransferError(f"A method named '{name}' is registered already; choose another name.")
        method.name = name
        _METHODS[name] = method
        return method

    return register


def list_methods() -> list[type[Method]]:
    """All methods, in the order in which they were registered."""
    return list(_METHODS.values())


def get_method(name: str) -> type[Method]:
    """The method of a name. Raises `TransferError` that lists what there is."""
    try:
        return _METHODS[name]
    except KeyError:
        raise TransferError(f"Unknown method '{name}'; choose from {', '.join(_METHODS)}.") from None


def make_method(text: str) -> Method:
    """The method of a text such as "norm_statistics" or "norm_statistics(alpha=0.5, n_passes=2)".

    Options that are not named have their usual values. Raises `TransferError` for an unknown method or option, and for
    a value that is no number or makes no sense.
    """
    name, bracket, rest = text.strip().partition("(")
    method = get_method(name.strip())
    if bracket and not rest.endswith(")"):
        raise TransferError(f"The options in '{text.strip()}' have no end; close them with ')'.")
    usual = {option.name: option.default for option in fields(method)}
    options: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest[:-1].split(","))):
        option, _, value = (word.strip() for word in part.partition("="))
        if option not in usual:
            raise TransferError(f"'{method.name}' has no option '{option}'; it has {', '.join(usual) or 'none'}.")
        if option in options:
            raise TransferError(f"'{option}' of '{method.name}' is given twice; give it once.")
        options[option] = _number(value, method.name, option, is_whole=isinstance(usual[option], int))
    return method(**options)


def _number(text: str, method: str, option: str, *, is_whole: bool) -> float:
    try:
        value = int(text) if is_whole else float(text)
        if math.isfinite(value):
            return value
    except ValueError:
        pass
    kind = "whole number, as in" if is_whole else "number, as in"
    example = f"{option}={2 if is_whole else 0.5}"
    raise TransferError(f"'{option}' of '{method}' is '{text}'; give a {kind} {method}({example}).")
