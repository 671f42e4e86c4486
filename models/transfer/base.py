"""What a method of adaptation without labels is given, what it is, and how it is found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..errors import ModelError
from ..progress import Progress
from ..semantic.segmenter import Segmenter


class TransferError(ModelError, ValueError):
    """A method that cannot be used on this model or with these data."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Where a model is to go.

    `target`: chips of the target domain; their labels are never looked at. `source`: labelled chips of the source
    domain to rehearse, None where there are none any more (source-free). `statistics`: what the model's package knows
    of its source domain (`statistics.source_tensors`). `segments`: int32 (N, rows, cols), numbers of segments within
    each target chip (0: none), which pseudo-labels are cleaned by. `n_steps`: how many batches of `batch` chips a
    method that learns may take; `seed` decides on every draw. `source_weight`: how far the weights of what learned are
    taken back to those of the source model, 0 (not at all) to 1; None for `chain.USUAL_SOURCE_WEIGHT` where nothing of
    the source is rehearsed, and 0 where it is.
    """

    target: Chips
    source: Chips | None = None
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    segments: npt.NDArray[np.int32] | None = None
    n_steps: int = 200
    batch: int = 8
    seed: int = 0
    source_weight: float | None = None

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


class Method:
    """A method of adaptation without labels: a frozen dataclass of options, registered under `name`.

    `title` and `summary` are for people, `reference` says where it comes from. `rehearses`: whether it learns from the
    source's labelled chips, too, where the problem has some.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    rehearses: ClassVar[bool] = False

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
