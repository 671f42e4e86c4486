"""Learning while the analyst works: from every click for the object in hand, from every accepted object for the image.

The encoder is frozen and embeddings are cached, so that a step costs milliseconds. In the manner of IA+SA (Kontogianni
et al. 2020, https://arxiv.org/abs/1911.12709) and "You Point, I Learn" (https://arxiv.org/abs/2503.06717).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label
from torch.nn import functional as F  # noqa: N812 - torch's own custom

from ..engine import InferenceEngine
from ..losses import click_loss
from ..promptable.decode import place_cells
from ..prompts import LOW_RES_PX, Prompts
from .adapter import Adapter
from .clicks import contradicted
from .mask_choice import Choice, MaskChoice
from .mask_offset import MaskOffset
from .rectangles import RectangleChoice
from .refiner import MaskRefiner, RefinerInput, changes, refiner_input
from .shipped import OFFSETS, RECTANGLES, SIZES_M2, SIZES_PX, refiner_of

_Result = TypeVar("_Result")
Points = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Per accepted object: steps, their rate, remembered answers that go along, that are judged by, and that are kept.
_OBJECT_STEPS, _OBJECT_RATE = 3, 1e-3
_REPLAY, _JUDGED, _MOST_REMEMBERED = 6, 12, 96
# What a change of one logit costs: where nothing speaks for it, the refiner stays with the frozen decoder.
_STAY = 0.03
# Per click: steps and rate of Adam, weights of drift and of the size of the change, logits that count as confident.
_CLICK_STEPS, _CLICK_RATE = 5, 0.05
_DRIFT, _SIZE, _CONFIDENT = 0.5, 0.01, 2.0
# The refiner's slope around a click falls to a third in 12 cells; to this power in 4. Beyond, the answer is held.
_SHARPER, _ELSEWHERE = 3, 0.05


@dataclass(frozen=True, eq=False)
class Look:
    """One decoded object, its prompts in `cells` of the window.

    `fine_cells` (1, 65536, 32): the decoder's finest features in its own order; `logits` (4, 256, 256) and predicted
    `iou` (4,) of all masks; `chosen`: the mask that is the answer.
    """

    cells: Prompts
    fine_cells: torch.Tensor
    logits: torch.Tensor
    iou: torch.Tensor
    chosen: int

    @cached_property
    def seen(self) -> RefinerInput:
        """What the refiner sees of the chosen mask."""
        return refiner_input(self.logits, self.iou, chosen=self.chosen, cells=self.cells)

    @cached_property
    def fine(self) -> torch.Tensor:
        """The decoder's finest features as a picture, (32, 256, 256); made when a click asks for it."""
        return place_cells(self.fine_cells)[0]

    def alternatives(self, choice: MaskChoice, *, cell_size: float) -> list[Look]:
        """The three masks for an ambiguous prompt, the likeliest first; `cell_size`: area of a cell, as in `Choice`."""
        sizes = (self.logits[1:] > 0).sum((1, 2)) * cell_size
        return [replace(self, chosen=1 + n) for n in choice.order(self.iou[1:].tolist(), sizes.tolist())]

    def refined(self, refiner: MaskRefiner | None, *, half: bool) -> torch.Tensor:
        """Logits (256, 256) of the chosen mask; SAM's own without a refiner, and for the first answer to an object."""
        base = self.logits[self.chosen]
        if refiner is None or not self.seen.is_correction:
            return base
        with torch.no_grad():
            return self.seen.crop.paste(changes(refiner, [self.seen], half=half)[0, 0], base)


def look(
    engine: InferenceEngine,
    embedding: torch.Tensor,
    cells: Prompts,
    *,
    chosen: int | None = None,
) -> Look:
    """Decode one object's prompts, given in cells of the window (`Prompts.in_cells`).

    `chosen`: one of the four masks; None takes the single one, and for a single click the alternative with the highest
    predicted IoU (the rule of segment-anything).
    """
    scale = engine.card.input_px / LOW_RES_PX
    box = None if cells.box_xyxy is None else cells.box_xyxy * scale
    prompts = Prompts(cells.points_xy * scale, cells.labels, box, cells.mask_logits)
    decoded = engine.predict_features(embedding, prompts)
    logits = place_cells(decoded.fine @ decoded.hyper)[0]
    iou = decoded.iou[0]
    if chosen is None:
        chosen = 1 + int(iou[1:].argmax()) if prompts.is_ambiguous else 0
    return Look(cells, decoded.fine, logits, iou, chosen)


def example_loss(
    refiner: MaskRefiner, seen: Sequence[RefinerInput], truth: torch.Tensor, *, half: bool
) -> torch.Tensor:
    """Mean loss of refined answers against `truth` (B, 1, 128, 128), 0 or 1, in the crops; changes cost a little."""
    change = changes(refiner, seen, half=half)
    logits = torch.stack([one.base for one in seen]).float() + change
    clicks = torch.stack([one.click_discs for one in seen])
    return click_loss(logits, truth, clicks).mean() + _STAY * change.abs().mean()


@dataclass(frozen=True)
class Learned:
    """What one accepted object did: `iou_before`, `iou_after` are means over remembered answers and its own."""

    is_kept: bool
    iou_before: float
    iou_after: float


class OnlineAdapter:
    """The refiner as it learns on one image.

    `shipped` is where it starts, None for a network that adds nothing. `half` computes in bfloat16. `is_metric`: sizes
    of objects are in m2, and not in pixels. One thread at a time.
    """

    def __init__(self, shipped: MaskRefiner | None, *, half: bool, is_metric: bool = False, seed: int = 0) -> None:
        self._shipped = shipped
        self.half, self.is_metric = half, is_metric
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget what was learned."""
        self._rng = np.random.default_rng(self._seed)
        self.refiner = deepcopy(self._shipped) if self._shipped is not None else None
        self._remembered: list[tuple[RefinerInput, torch.Tensor]] = []
        self._n_seen = 0
        self.choice, self.offset, self.rectangles = MaskChoice(), MaskOffset(), RectangleChoice()

    def copy(self) -> OnlineAdapter:
        """One that learns by itself. Networks and remembered answers are shared: learning replaces them, as a whole."""
        other = copy(self)
        other._remembered = list(self._remembered)
        other._rng, other.choice = deepcopy(self._rng), deepcopy(self.choice)
        other.offset, other.rectangles = deepcopy(self.offset), deepcopy(self.rectangles)
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was learned, for an adapter."""
        refiner = {} if self.refiner is None else self.refiner.state_dict()
        states = {
            self._sizes_name: self.choice.state(),
            OFFSETS: self.offset.state(),
            RECTANGLES: self.rectangles.state(),
        }
        return {**refiner, **states}

    def load(self, adapter: Adapter, *, is_same_raster: bool) -> None:
        """Go on from what was learned elsewhere, but for what says nothing here: sizes in the other unit, and places.

        Where objects lie holds for the raster that it was learned on only. Raises `CheckpointError` for an adapter of
        another kind.
        """
        refiner = refiner_of(adapter)
        self.refiner = refiner if refiner is not None else deepcopy(self._shipped)
        self.choice.load_state(adapter.tensors.get(self._sizes_name, torch.zeros(0, 10)))
        offsets = adapter.tensors.get(OFFSETS) if is_same_raster else None
        self.offset.load_state(torch.zeros(0) if offsets is None else offsets)
        self.rectangles.load_state(adapter.tensors.get(RECTANGLES, torch.zeros(0, 3)))

    def refined(self, view: Look, *, cell_px: float) -> torch.Tensor:
        """Logits (256, 256) of the chosen mask; a first answer is moved to where accepted objects lie."""
        logits = view.refined(self.refiner, half=self.half)
        return logits if view.seen.is_correction else self.offset.moved(logits, cell_px=cell_px)

    def adjusted(self, view: Look, logits: torch.Tensor, *, points: Points, labels: Labels) -> torch.Tensor:
        """Take a few gradient steps for one object, so that the answer agrees with its clicks; (256, 256).

        Tuned are the 32 weights with which the decoder's finest features make the mask, and a bias: what SAM's
        mask token decides. The loss is cross-entropy in Gaussian discs around the clicks, against drift elsewhere
        cross-entropy with the confident part of the answer before, and the size of the change. The change is kept
        only if it breaks no click that held and lets more of them hold.
        """
        wrong = contradicted(logits.numpy(), points, labels)
        if not wrong.any() or not (logits > 0).any():
            return logits
        crop = view.seen.crop
        change = _click_change(view.seen, crop.cut(view.fine), crop.cut(logits[None])[0])
        adjusted = crop.paste(change, logits)
        # What is linear in the features turns over every place that looks like the click: only where it hangs
        # together with the click is it meant.
        parts, _ = label(((adjusted > 0) != (logits > 0)).numpy())
        cells = np.floor(points[wrong]).astype(int).clip(0, LOW_RES_PX - 1)
        meant = np.isin(parts, np.setdiff1d(parts[cells[:, 1], cells[:, 0]], [0]))
        adjusted = torch.where(torch.from_numpy(meant), adjusted, logits)
        wrong_after = contradicted(adjusted.numpy(), points, labels)
        is_better = wrong_after.sum() < wrong.sum() and not (wrong_after & ~wrong).any()
        # A click corrects an object; what is larger than the object is a flood.
        return adjusted if is_better and meant.sum() <= int((logits > 0).sum()) else logits

    def learning(self, seen: Sequence[RefinerInput], truth: Sequence[torch.Tensor]) -> Generator[None, None, Learned]:
        """Take in the answers on the way to an accepted object, and the object (1, 128, 128) in the crop of each.

        A few steps on these answers and on remembered ones; they are kept only if the mean IoU falls neither of these
        answers nor of remembered ones (no harm): what a new object gains cannot pay for what others lose. Where enough
        are remembered, those that judge were not replayed. Reservoir sampling keeps at most `_MOST_REMEMBERED`. Yields
        between steps, so that a click can be answered in between.
        """
        new = list(zip(seen, truth, strict=True))
        old = [self._remembered[n] for n in self._rng.permutation(len(self._remembered))]
        replay, judged = old[:_REPLAY], [part for part in (new, old[-_JUDGED:]) if part]
        self._remember(new)
        if self.refiner is None:
            self.refiner = MaskRefiner().eval()
        before = [self._mean_iou(self.refiner, part) for part in judged]
        candidate = deepcopy(self.refiner)
        optimizer = torch.optim.AdamW(candidate.parameters(), lr=_OBJECT_RATE, weight_decay=0.0)
        batch = [*new, *replay]
        for _ in range(_OBJECT_STEPS):
            optimizer.zero_grad()
            targets = torch.stack([one for _, one in batch])
            loss = example_loss(candidate, [one for one, _ in batch], targets, half=self.half)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(candidate.parameters(), 1.0)
            optimizer.step()
            yield
        after = [self._mean_iou(candidate, part) for part in judged]
        is_kept = all(now >= then for then, now in zip(before, after, strict=True))
        if is_kept:
            self.refiner = candidate
        return Learned(is_kept, float(np.mean(before)), float(np.mean(after)))

    def learn(self, seen: Sequence[RefinerInput], truth: Sequence[torch.Tensor]) -> Learned:
        """Do all of `learning` at once."""
        return run_to_end(self.learning(seen, truth))

    def learn_choice(self, seen: RefinerInput, truth: torch.Tensor, *, cell_px: float, cell_size: float) -> None:
        """Take in which of the three masks of a single click an accepted object (1, 128, 128) shows to be right.

        And how far beside that mask the object lies, and whether the mask's rectangle is more like it. `cell_px`: side
        of a cell in pixels; `cell_size`: its area, as in `Choice`.
        """
        masks, found = seen.masks[1:], truth > 0.5
        overlap, union = (masks & found).sum((1, 2)), (masks | found).sum((1, 2)).clamp(min=1)
        pixel_size = cell_size * seen.crop.scale**2
        right = masks[int((overlap / union).argmax())]
        self.offset.learn(right, found[0], pixel_px=cell_px * seen.crop.scale)
        self.rectangles.learn(right.numpy(), found[0].numpy())
        self.choice.learn(
            Choice(
                scores=seen.scores[1:].double().numpy(),
                sizes=(masks.sum((1, 2)) * pixel_size).double().numpy(),
                ious=(overlap / union).double().numpy(),
                accepted_size=float(found.sum()) * pixel_size,
            )
        )

    @property
    def _sizes_name(self) -> str:
        return SIZES_M2 if self.is_metric else SIZES_PX

    def _remember(self, new: list[tuple[RefinerInput, torch.Tensor]]) -> None:
        for one in new:
            self._n_seen += 1
            if len(self._remembered) < _MOST_REMEMBERED:
                self._remembered.append(one)
            elif (place := int(self._rng.integers(self._n_seen))) < _MOST_REMEMBERED:
                self._remembered[place] = one

    def _mean_iou(self, refiner: MaskRefiner, judged: Sequence[tuple[RefinerInput, torch.Tensor]]) -> float:
        with torch.no_grad():
            change = changes(refiner, [one for one, _ in judged], half=self.half)
        masks = torch.stack([one.base.float() for one, _ in judged]) + change > 0
        truths = torch.stack([one for _, one in judged]) > 0.5
        overlap = (masks & truths).sum((1, 2, 3)).float()
        union = (masks | truths).sum((1, 2, 3)).clamp(min=1)
        return float((overlap / union).mean())


def run_to_end(steps: Generator[None, None, _Result]) -> _Result:
    """Run what yields between its steps, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("_Result", end.value)


def _slopes(seen: RefinerInput) -> tuple[torch.Tensor, torch.Tensor]:
    foreground, background = seen.click_slopes
    return foreground**_SHARPER, background**_SHARPER


def _click_change(seen: RefinerInput, fine: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """What to add to `logits` (128, 128) of the crop, after a few steps on 33 numbers; `fine` (32, 128, 128)."""
    fine = fine.flatten(1)  # (32, cells)
    before = logits.flatten()
    foreground, background = (slope.flatten() for slope in _slopes(seen))
    weight, target = foreground + background, (foreground > background).float()
    held = ((before.abs() > _CONFIDENT) & (weight < _ELSEWHERE)).float()
    belief = before.sigmoid()
    theta = torch.zeros(len(fine) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=_CLICK_RATE)
    for _ in range(_CLICK_STEPS):
        optimizer.zero_grad()
        now = before + theta[:-1] @ fine + theta[-1]
        at_clicks = F.binary_cross_entropy_with_logits(now, target, weight, reduction="sum") / weight.sum()
        drift = F.binary_cross_entropy_with_logits(now, belief, held, reduction="sum") / held.sum().clamp(min=1)
        (at_clicks + _DRIFT * drift + _SIZE * theta.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return (theta[:-1] @ fine + theta[-1]).view(logits.shape)
