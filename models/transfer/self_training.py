"""Self-training: a student learns from a mean teacher's sure and cleaned labels, under strong changes of the pixels.

As DACS (Tranheden et al. 2021, https://arxiv.org/abs/2007.08702) with the rare-class sampling of DAFormer (Hoyer et al.
2022, https://arxiv.org/abs/2111.14887) and the thresholds of CBST (Zou et al. 2018, https://arxiv.org/abs/1810.07911).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..augmentation import STRONG, USUAL, augment
from ..losses import class_weights_of, segmentation_loss
from ..progress import Progress, StepProgress
from ..semantic.card import IGNORE
from ..semantic.prediction import autocast, device_of, probabilities
from ..semantic.segmenter import Segmenter
from ..training import draw, set_training
from ..training_state import learned_state
from .adapting import drawn, learning_parts, network_values, seeded, steps_left, usable_chips
from .base import SHARE, Limits, Method, Problem, register_method
from .pseudo_labels import (
    Bounds,
    aligned,
    class_mix,
    factors_into,
    pseudo_labels,
    rare_first,
    share_bounds,
    survey,
)

# Of the mean share of a class over batches, from one batch to the next.
_REMEMBERED = 0.9


@register_method("self_training")
@dataclass(frozen=True)
class SelfTraining(Method):
    """Learn from pseudo-labels of the exponential mean of the weights so far, which is also what is kept at the end.

    `ema`: how much of the teacher stays at each step. `keep`: share of each class's pixels that count at first, which
    grows to `keep_last`; the thresholds are set anew `n_surveys` times. `most`: confidence from which a pixel always
    counts. `odds`: how far the shares of classes may leave the range of the source (`pseudo_labels.share_bounds`).
    `temperature` of the rare-class sampling. `rate` and `encoder_rate` as in `training.TrainingOptions`.
    """

    title = "Self-training (mean teacher, ClassMix)"
    summary = "Learns from its own sure answers on the target; strong, and slow."
    reference = (
        "Tranheden et al. 2021, DACS, https://arxiv.org/abs/2007.08702; Hoyer et al. 2022, DAFormer, arXiv 2111.14887; "
        "Zou et al. 2018, CBST, arXiv 1810.07911"
    )
    rehearses = True
    limits: ClassVar[Limits] = {
        **dict.fromkeys(("ema", "keep", "keep_last", "most"), SHARE),
        "odds": (1.0, math.inf),
        "temperature": (0.01, math.inf),
    }

    ema: float = 0.98
    keep: float = 0.9
    keep_last: float = 0.95
    most: float = 0.97
    odds: float = 1.0
    n_surveys: int = 4
    temperature: float = 0.5
    rate: float = 3e-4
    encoder_rate: float = 0.3

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt, with rehearsal of the source's chips where there are any."""
        device = device_of(model)
        with network_values(model, problem) as seen, seeded(problem.seed, device) as generator:
            run = _Run(self, model, seen, generator)
            every = -(-problem.n_steps // self.n_surveys)
            for step in steps_left(
                problem, progress, n_steps=problem.n_steps, model=model, generator=generator, run=run
            ):
                part = StepProgress(progress, step / problem.n_steps, (step + 0.3) / problem.n_steps)
                if step % every == 0:
                    run.look(step / problem.n_steps, part)
                run.descent.step(run.loss())
                run.teach(step)
            model.load_state_dict(run.teacher.state_dict())

    def extra_loss(
        self, model: Segmenter, pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor | None:
        """What a relative of the method adds for target chips (B, bands, rows, cols) and their pseudo-labels."""
        return None


class _Run:
    """Student, teacher and chips of one adaptation."""

    def __init__(self, method: SelfTraining, model: Segmenter, problem: Problem, generator: torch.Generator) -> None:
        self._method, self._student, self._problem, self._generator = method, model, problem, generator
        self._device = device_of(model)
        self._target = problem.target.take(usable_chips(problem.target)).unlabelled()
        chosen = usable_chips(problem.target)
        self._segments = None if problem.segments is None else torch.from_numpy(problem.segments[chosen])
        has_source = problem.source is not None and problem.source.n_labelled_px() > 0
        self._source = problem.source if has_source else None
        self._n_target = max(1, problem.batch // 2 if has_source else problem.batch)
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.descent = learning_parts(model, rate=method.rate, encoder_rate=method.encoder_rate)
        n_classes = len(model.card.classes)
        self._thresholds = torch.ones(n_classes)
        self._bounds: Bounds = (np.zeros(n_classes), np.ones(n_classes))
        self._factors = torch.ones(n_classes)
        self._excess = np.ones(n_classes)
        self._running: npt.NDArray[np.float64] | None = None
        self._chances = torch.ones(len(self._target))
        # Weights of classes would make pseudo-labels of rare ones grow at every survey; the source's labels stay true.
        self._weights: torch.Tensor | None = None
        if self._source is not None:
            self._weights = class_weights_of(self._source.labels, len(model.card.classes)).to(self._device)

    def look(self, done: float, progress: Progress) -> None:
        """Have the teacher look at all chips: thresholds, and which chips hold rare classes."""
        keep = self._method.keep + done * (self._method.keep_last - self._method.keep)
        said = survey(
            self.teacher,
            self._target,
            keep=keep,
            most=self._method.most,
            factors=self._factors,
            batch=self._problem.batch,
            progress=progress,
        )
        self._thresholds = said.thresholds
        chances = rare_first(said.shares, temperature=self._method.temperature)
        self._chances = torch.from_numpy(chances)
        found = said.shares.mean(axis=0)
        if not done:
            known = np.array(self.teacher.card.statistics.get("class_shares", ()), np.float64)
            self._bounds = share_bounds(found, known, odds=self._method.odds)
        # Chips with rare classes come more often than others.
        self._excess = (chances @ said.shares + 1e-3) / (found + 1e-3)

    def loss(self) -> torch.Tensor:
        """The student's loss on a new batch."""
        set_training(self._student, freeze_statistics=True)
        n = min(self._n_target, len(self._target))
        indices = torch.multinomial(self._chances, n, generator=self._generator).tolist()
        pixels, _ = draw(self._target, indices, None, self._generator, self._device)
        valid = torch.from_numpy(self._target.valid[indices])
        labels = pseudo_labels(
            self._bounded(probabilities(self.teacher, pixels), valid),
            self._thresholds,
            valid=valid,
            segments=None if self._segments is None else self._segments[indices],
        )
        if self._source is None:
            order = torch.randperm(n, generator=self._generator).tolist()
            other_pixels, other_labels = pixels[order], labels[order]
        else:
            chosen = drawn(n, range(len(self._source)), self._generator)
            other_pixels, other_labels = draw(self._source, chosen, USUAL, self._generator, self._device)
        mixed, mixed_labels = class_mix(pixels, labels, other_pixels, other_labels, generator=self._generator)
        mixed, mixed_labels = augment(mixed, mixed_labels, STRONG, generator=self._generator)
        # Few sure pixels, little weight (DACS).
        weight = float((labels != IGNORE).float().mean())
        loss = weight * self._loss_on(mixed, mixed_labels)
        if self._source is not None:
            loss = loss + self._loss_on(other_pixels, other_labels, class_weights=self._weights)
        extra = self._method.extra_loss(self._student, pixels, labels, self._generator)
        return loss if extra is None else loss + weight * extra

    def _bounded(self, answer: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The teacher's probabilities with every class's share held in its bounds, by its running mean over batches."""
        share = answer.movedim(1, -1)[valid.to(answer.device)].mean(0).cpu().numpy().astype(np.float64)
        self._running = share if self._running is None else _REMEMBERED * self._running + (1 - _REMEMBERED) * share
        self._factors = factors_into(self._bounds, self._running / self._excess)
        return aligned(answer, self._factors)

    def teach(self, step: int) -> None:
        """Move the teacher towards the student; fast at first, when it has seen little."""
        stays = min(self._method.ema, 1 - 1 / (step + 2))
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self._student.parameters(), strict=True):
                old.lerp_(new, 1 - stays)

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on beside the student; what does not learn is the same in student and teacher."""
        taught = self.teacher.state_dict()
        return {
            "teacher": {name: taught[name] for name in learned_state(self._student)},
            "descent": self.descent.state_dict(),
            "thresholds": self._thresholds,
            "chances": self._chances,
            "factors": self._factors,
            "bounds": [bound.tolist() for bound in self._bounds],
            "excess": self._excess.tolist(),
            "running": None if self._running is None else self._running.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take such a state over, once the student has its own."""
        self.teacher.load_state_dict(state_dict["teacher"], strict=False)
        self.descent.load_state_dict(state_dict["descent"])
        self._thresholds, self._chances = state_dict["thresholds"], state_dict["chances"]
        self._factors = state_dict["factors"]
        low, high = state_dict["bounds"]
        self._bounds = np.array(low), np.array(high)
        self._excess = np.array(state_dict["excess"])
        self._running = None if state_dict["running"] is None else np.array(state_dict["running"])

    def _loss_on(
        self, pixels: torch.Tensor, labels: torch.Tensor, *, class_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        with autocast(self._device):
            logits = self._student(pixels)
        # Dice, too, makes rare classes grow when a model learns from itself.
        dice = 0.0 if class_weights is None else 0.5
        return segmentation_loss(logits.float(), labels, class_weights=class_weights, dice=dice)
