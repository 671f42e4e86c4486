"""One object in the making: the prompts so far, the current answer, undo and redo. Pure state, no Qt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from .exchange import Answer, Bounds, Point, PromptInput

if TYPE_CHECKING:
    from .feature_sink import FeatureState

FOREGROUND, BACKGROUND = 1, 0


class FeatureRef(NamedTuple):
    """A feature of the project: the id of its layer, and what it was when it was picked."""

    layer_id: str
    state: FeatureState


@dataclass(frozen=True, eq=False)
class Step:
    """All prompts after one action of the user, and the answer to them once it is there.

    `outline_wkb` is a polygon to start from, and `source` the feature that it came from: an accept then
    changes that feature. `chosen` is the index of the mask that the user took among `answer.options`.
    """

    points_map: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box_map: Bounds | None = None
    scribbles_map: tuple[tuple[Point, ...], ...] = ()
    scribble_labels: tuple[int, ...] = ()
    outline_wkb: bytes = b""
    source: FeatureRef | None = None
    answer: Answer | None = None
    chosen: int = 0

    @property
    def n_prompts(self) -> int:
        """Points, scribbles, box and outline together."""
        return len(self.points_map) + len(self.scribbles_map) + (self.box_map is not None) + bool(self.outline_wkb)

    @property
    def n_options(self) -> int:
        """Number of masks to choose from; 1 where the prompts are not ambiguous, 0 without an answer."""
        return 0 if self.answer is None else max(1, len(self.answer.options))

    @property
    def chosen_answer(self) -> Answer | None:
        """The answer with the mask that the user took in place of the best one."""
        if self.answer is None or self.chosen == 0:
            return self.answer
        option = self.answer.options[self.chosen]
        return replace(
            self.answer,
            wkb=option.wkb,
            score=option.score,
            stability=option.stability,
            area_m2=option.area_m2,
            previous=option.previous,
        )


class Begun(NamedTuple):
    """An object that was put aside: its steps so far, those that redo would bring back, the seconds that it took."""

    done: tuple[Step, ...] = (Step(),)
    undone: tuple[Step, ...] = ()
    seconds: float = 0.0


class Session:
    """Steps of one object. Coordinates are map units of the raster's CRS; request ids never repeat."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._steps: list[Step] = [Step()]
        self._position = 0
        self._requested: dict[int, int] = {}
        """Position in `_steps` by the id of the request that is to answer it."""
        self._started_s = 0.0

    @property
    def step(self) -> Step:
        """What holds now."""
        return self._steps[self._position]

    @property
    def answer(self) -> Answer | None:
        """The answer to exactly the present prompts, with the mask chosen; None where it is still to come."""
        return self.step.chosen_answer

    @property
    def shown_answer(self) -> Answer | None:
        """The newest answer up to the present prompts: what stays on the map until the next one arrives."""
        steps = [step for step in self._steps[: self._position + 1] if step.n_prompts]
        return next((step.chosen_answer for step in reversed(steps) if step.answer is not None), None)

    @property
    def is_empty(self) -> bool:
        """True where no prompt holds."""
        return self.step.n_prompts == 0

    @property
    def is_waiting(self) -> bool:
        """True while the present prompts have no answer."""
        return not self.is_empty and self.answer is None

    @property
    def newest_step(self) -> Step:
        """The step that redo would lead to at last."""
        return self._steps[-1]

    @property
    def begun(self) -> Begun:
        """The object as it is, to be taken up again."""
        done = tuple(self._steps[: self._position + 1])
        return Begun(done, tuple(self._steps[self._position + 1 :]), time.monotonic() - self._started_s)

    @property
    def can_undo(self) -> bool:
        """True where a prompt can be taken back."""
        return self._position > 0

    @property
    def can_redo(self) -> bool:
        """True where a prompt was taken back and none was added since."""
        return self._position < len(self._steps) - 1

    @property
    def newest_prompt(self) -> str:
        """What undo would take back, in a word; empty where there is none."""
        return _difference(self._steps[self._position - 1], self.step) if self.can_undo else ""

    @property
    def next_prompt(self) -> str:
        """What redo would bring back, in a word; empty where there is none."""
        return _difference(self.step, self._steps[self._position + 1]) if self.can_redo else ""

    def add_point(self, point: Point, *, is_foreground: bool) -> None:
        """Add a click."""
        self.add_points([point], labels=[FOREGROUND if is_foreground else BACKGROUND])

    def add_points(self, points: Sequence[Point], *, labels: Sequence[int]) -> None:
        """Add several clicks as one action."""
        step = self.step
        self._push(replace(step, points_map=(*step.points_map, *points), labels=(*step.labels, *labels)))

    def set_box(self, box: Bounds) -> None:
        """Put a box around the object; it takes the place of an earlier one, the points stay."""
        self._push(replace(self.step, box_map=box))

    def add_scribble(self, line: Sequence[Point], *, is_foreground: bool) -> None:
        """Add a line that was drawn freely over the object, or over what is not part of it."""
        self.add_scribbles([line], is_foreground=is_foreground)

    def add_scribbles(self, lines: Sequence[Sequence[Point]], *, is_foreground: bool) -> None:
        """Add several lines as one action."""
        step, label = self.step, FOREGROUND if is_foreground else BACKGROUND
        scribbles = (*step.scribbles_map, *(tuple(line) for line in lines))
        labels = (*step.scribble_labels, *(label for _ in lines))
        self._push(replace(step, scribbles_map=scribbles, scribble_labels=labels))

    def set_outline(self, wkb: bytes, *, source: FeatureRef | None = None) -> None:
        """Start from a polygon, in place of an earlier one; `source` is the feature that is to be refined."""
        self._push(replace(self.step, outline_wkb=wkb, source=source))

    def choose_next(self, n_steps: int = 1) -> bool:
        """Take the next of the masks offered, or an earlier one. Return False where there is no other."""
        step = self.step
        if step.n_options < 2:
            return False
        self._steps[self._position] = replace(step, chosen=(step.chosen + n_steps) % step.n_options)
        return True

    def undo(self) -> None:
        """Take the newest prompt back. Nothing happens where there is none."""
        self._position = max(0, self._position - 1)

    def redo(self) -> None:
        """Bring the prompt back that was undone last. Nothing happens where there is none."""
        self._position = min(len(self._steps) - 1, self._position + 1)

    def drop(self) -> None:
        """Forget the object. Answers that are still under way will be refused."""
        self.take_up(Begun())

    def take_up(self, begun: Begun) -> None:
        """Go on with an object that was put aside, in place of the present one, as `drop` would leave that."""
        self._steps, self._position = [*begun.done, *begun.undone], len(begun.done) - 1
        self._started_s = time.monotonic() - begun.seconds
        self._requested.clear()

    def request(self, view_map: Bounds) -> PromptInput | None:
        """Return the question for the present prompts, None where there is none or its answer is known.

        `view_map` is what the user sees. The mask chosen for the prompts before is fed back, unless a box or
        an outline changed since: these then say more than the old mask.
        """
        step = self.step
        if step.n_prompts == 0 or step.answer is not None:
            return None
        request_id = next(self._ids)
        self._requested = {request_id: self._position}
        previous = self._previous_answer()
        return PromptInput(
            request_id=request_id,
            points_map=step.points_map,
            labels=step.labels,
            box_map=step.box_map,
            view_map=view_map,
            previous=None if previous is None else previous.previous,
            scribbles_map=step.scribbles_map,
            scribble_labels=step.scribble_labels,
            outline_wkb=step.outline_wkb,
        )

    def new_request_id(self) -> int:
        """Return an id for a question outside the object's steps (the hover preview)."""
        return next(self._ids)

    def take(self, answer: Answer) -> bool:
        """Store an answer. Return False for a stale one: dropped, superseded by newer prompts, or undone."""
        position = self._requested.pop(answer.request_id, None)
        if position is None or position != self._position:
            return False
        self._steps[position] = replace(self._steps[position], answer=answer, chosen=0)
        return True

    def refuse(self, request_id: int) -> bool:
        """Take back the prompt that could not be answered. Return False where that question is stale."""
        position = self._requested.pop(request_id, None)
        if position is None or position != self._position:
            return False
        self._position = max(0, position - 1)
        del self._steps[self._position + 1 :]
        return True

    def _push(self, step: Step) -> None:
        if not self.can_undo:
            self._started_s = time.monotonic()
        self._steps = [*self._steps[: self._position + 1], replace(step, answer=None, chosen=0)]
        self._position += 1

    def _previous_answer(self) -> Answer | None:
        present = self.step
        for step in reversed(self._steps[: self._position]):
            if step.box_map != present.box_map or step.outline_wkb != present.outline_wkb:
                return None
            if step.answer is not None:
                return step.chosen_answer
        return None


def _difference(before: Step, after: Step) -> str:
    if after.box_map != before.box_map:
        return "box"
    if after.outline_wkb != before.outline_wkb:
        return "outline"
    return "scribble" if len(after.scribbles_map) > len(before.scribbles_map) else "click"
