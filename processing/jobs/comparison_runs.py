"""What a comparison of adaptations runs, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...models.transfer.base import make_method
from ...models.transfer.chain import names_of
from ...models.transfer.fine_tuning import LAYERS
from ..errors import JobError

SOURCE, METHOD, TUNING = "source", "method", "fine-tuning"
"""Kinds of runs: the model as it is, a method without labels, fine-tuning of some layers."""
USUAL_METHODS = ("quantile", "norm_statistics", "quantile+norm_statistics", "self_training", "masked_consistency")

_FIRST_LAYERS = ("decoder", "lora", "norm", "full", "tokens", "last_blocks", "head")
_QUICK = ("quantile", "reinhard", "norm_statistics", "fourier")


@dataclass(frozen=True, kw_only=True)
class CompareAdaptation:
    """What is compared.

    `methods`: names, or chains such as "quantile+self_training", with options as `make_method` reads them. `layers`: of
    `fine_tuning.LAYERS`. `budgets`: shares of the labels that may be used, 0 to 1. `held_out`: share of the chips that
    judge. `n_steps` batches of `batch` chips per run. No run starts, and none goes on, after `limit_s` seconds. Raises
    `JobError` and `TransferError`.
    """

    methods: tuple[str, ...] = USUAL_METHODS
    layers: tuple[str, ...] = LAYERS
    budgets: tuple[float, ...] = (0.1, 0.3, 1.0)
    held_out: float = 0.3
    n_steps: int = 100
    batch: int = 8
    limit_s: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and numbers."""
        for method in self.methods:
            names_of(method)
        unknown = [name for name in self.layers if name not in LAYERS]
        if unknown:
            raise JobError(f"Unknown layers '{unknown[0]}'; choose from {', '.join(LAYERS)}.")
        if not self.methods and not self.layers:
            raise JobError("There is nothing to compare; name a method or layers.")
        if self.layers and not (self.budgets and all(0 < budget <= 1 for budget in self.budgets)):
            shown = ", ".join(f"{100 * budget:g}" for budget in self.budgets)
            raise JobError(f"Budgets of {shown or 'nothing'} %; give shares of the labels above 0 and up to 100 %.")
        if not 0 < self.held_out < 1 or min(self.n_steps, self.batch) < 1 or not self.limit_s > 0:
            raise JobError(
                f"{self.n_steps} steps of {self.batch} chips, {self.held_out:g} held out, {self.limit_s:g} s; give at "
                "least one step and chip, a share between 0 and 1, and some time."
            )


@dataclass(frozen=True)
class Run:
    """One run: what was done, with which share of the labels, and what it came to on the blocks held out.

    `miou` with its 95 % interval `low` to `high` (bootstrap over blocks, NaN for one block); NaN where the run failed,
    which `remark` explains. `n_labelled_px`: labels that it could use. `n_trainable`: parameters that learned, None for
    methods, which decide themselves. `peak_mb`: peak of the memory meanwhile (`PeakMemory`).
    """

    kind: str
    name: str
    budget: float
    n_labelled_px: int
    miou: float
    low: float
    high: float
    n_trainable: int | None
    seconds: float
    peak_mb: float
    remark: str = ""

    @property
    def title(self) -> str:
        """The run in words."""
        return title_of(self.kind, self.name, self.budget)


class RunQueue:
    """Runs that wait: quick methods, all layers with all labels, then smaller budgets of the best, then the rest."""

    def __init__(self, job: CompareAdaptation) -> None:
        largest = max(job.budgets, default=0.0)
        quick = [name for name in job.methods if all(make_method(step).name in _QUICK for step in names_of(name))]
        layers = [name for name in _FIRST_LAYERS if name in job.layers]
        self._first = [
            *((METHOD, name, 0.0) for name in quick),
            *((TUNING, name, largest) for name in layers),
            *((METHOD, name, 0.0) for name in job.methods if name not in quick),
        ]
        self._later = [
            (TUNING, name, budget) for budget in sorted(set(job.budgets) - {largest})[::-1] for name in layers
        ]

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def next(self, runs: Sequence[Run]) -> tuple[str, str, float]:
        """Take the kind, name and budget of the next run; `runs`: those that were made."""
        if self._first:
            return self._first.pop(0)
        self._later = list(self._ranked(runs))
        return self._later.pop(0)

    def titles(self, runs: Sequence[Run]) -> Iterator[str]:
        """What still waits, in words."""
        for kind, name, budget in [*self._first, *self._ranked(runs)]:
            yield title_of(kind, name, budget)

    def _ranked(self, runs: Sequence[Run]) -> list[tuple[str, str, float]]:
        """The best layers first, each with its larger budgets first; those that failed last."""
        scores: dict[str, float] = {}
        for run in runs:
            if run.kind == TUNING and not math.isnan(run.miou):
                scores[run.name] = max(scores.get(run.name, -1.0), run.miou)
        return sorted(self._later, key=lambda one: -scores.get(one[1], -1.0))


def title_of(kind: str, name: str, budget: float) -> str:
    """A run in words."""
    if kind == SOURCE:
        return "source model"
    return name if kind == METHOD else f"{name} ({100 * budget:g} % of the labels)"
