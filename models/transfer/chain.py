"""Methods one after another."""

from __future__ import annotations

from collections.abc import Sequence

from ..progress import Progress, StepProgress
from ..semantic.segmenter import Segmenter
from .base import Method, Problem, TransferError, get_method

SEPARATOR = "+"
"""Between the names of a chain: "norm_statistics+self_training"."""
PREPARATIONS = ("masked_image",)
"""Methods after which another one must follow."""
_QUICK = ("quantile", "reinhard", "norm_statistics")


def names_of(text: str) -> tuple[str, ...]:
    """The names in a text such as "quantile + norm_statistics".

    Raises `TransferError` for an unknown method, for none, and where the last one only prepares.
    """
    names = tuple(name.strip() for name in text.split(SEPARATOR) if name.strip())
    if not names:
        raise TransferError("No method is named; give one or more, separated by '+'.")
    for name in names:
        get_method(name)
    if names[-1] in PREPARATIONS:
        raise TransferError(f"'{names[-1]}' only prepares; let another method follow: '{names[-1]}+self_training'.")
    return names


def is_rehearsed(problem: Problem, names: Sequence[str]) -> bool:
    """Whether a method of the chain learns from labelled chips of the source that the problem has."""
    return problem.source is not None and any(get_method(name).rehearses for name in names)


def adapt_in_order(model: Segmenter, problem: Problem, names: Sequence[str], progress: Progress) -> None:
    """Adapt `model` in place by one method after another with their usual options.

    Raises `TransferError` as `names_of` and the methods do, and `Cancelled`.
    """
    methods: list[Method] = [get_method(name)() for name in names_of(SEPARATOR.join(names))]
    # Methods that learn nothing take hardly any time.
    lengths = [0.05 if method.name in _QUICK else 1.0 for method in methods]
    start = 0.0
    for method, length in zip(methods, lengths, strict=True):
        progress.info(f"{method.title} ...")
        method.adapt(model, problem, StepProgress(progress, start / sum(lengths), (start + length) / sum(lengths)))
        start += length
