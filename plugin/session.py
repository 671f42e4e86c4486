"""One object in the making: the prompts so far, the current answer, undo and redo. Pure state, no Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

from .exchange import Answer, Bounds, Point, PromptInput

FOREGROUND, BACKGROUND = 1, 0


@dataclass(frozen=True, eq=False)
class Step:
    """All prompts after one action of the user, and the answer to them once it is there."""

    points_map: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box_map: Bounds | None = None
    answer: Answer | None = None

    @property
    def n_prompts(self) -> int:
        """Points and box together."""
        return len(self.points_map) + (self.box_map is not None)


class Session:
    """Steps of one object. Coordinates are map units of the raster's CRS; request ids never repeat."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._steps: list[Step] = [Step()]
        self._position = 0
        self._requested: dict[int, int] = {}
        """Position in `_steps` by the id of the request that is to answer it."""

    @property
    def step(self) -> Step:
        """What holds now."""
        return self._steps[self._position]

    @property
    def answer(self) -> Answer | None:
        """The answer to exactly the present prompts, None where it is still to come."""
        return self.step.answer

    @property
    def shown_answer(self) -> Answer | None:
        """The newest answer up to the present prompts: what stays on the map until the next one arrives."""
        answers = (step.answer for step in reversed(self._steps[: self._position + 1]) if step.n_prompts)
        return next((answer for answer in answers if answer is not None), None)

    @property
    def is_empty(self) -> bool:
        """True where no prompt holds."""
        return self.step.n_prompts == 0

    @property
    def is_waiting(self) -> bool:
        """True while the present prompts have no answer."""
        return not self.is_empty and self.answer is None

    @property
    def can_undo(self) -> bool:
        """True where a prompt can be taken back."""
        return self._position > 0

    @property
    def can_redo(self) -> bool:
        """True where a prompt was taken back and none was added since."""
        return self._position < len(self._steps) - 1

    def add_point(self, point: Point, *, is_foreground: bool) -> None:
        """Add a click."""
        label = FOREGROUND if is_foreground else BACKGROUND
        self._push(replace(self.step, points_map=(*self.step.points_map, point), labels=(*self.step.labels, label)))

    def set_box(self, box: Bounds) -> None:
        """Put a box around the object; it takes the place of an earlier one, the points stay."""
        self._push(replace(self.step, box_map=box))

    def undo(self) -> None:
        """Take the newest prompt back. Nothing happens where there is none."""
        self._position = max(0, self._position - 1)

    def redo(self) -> None:
        """Bring the prompt back that was undone last. Nothing happens where there is none."""
        self._position = min(len(self._steps) - 1, self._position + 1)

    def drop(self) -> None:
        """Forget the object. Answers that are still under way will be refused."""
        self._steps, self._position = [Step()], 0
        self._requested.clear()

    def request(self, view_map: Bounds) -> PromptInput | None:
        """Return the question for the present prompts, None where there is none or its answer is known.

        `view_map` is what the user sees. The answer to the prompts before is fed back, unless a box changed
        since: the box then says more than the old mask.
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
        )

    def new_request_id(self) -> int:
        """Return an id for a question outside the object's steps (the hover preview)."""
        return next(self._ids)

    def take(self, answer: Answer) -> bool:
        """Store an answer. Return False for a stale one: dropped, superseded by newer prompts, or undone."""
        position = self._requested.pop(answer.request_id, None)
        if position is None or position != self._position:
            return False
        self._steps[position] = replace(self._steps[position], answer=answer)
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
        self._steps = [*self._steps[: self._position + 1], replace(step, answer=None)]
        self._position += 1

    def _previous_answer(self) -> Answer | None:
        box_map = self.step.box_map
        for step in reversed(self._steps[: self._position]):
            if step.box_map != box_map:
                return None
            if step.answer is not None:
                return step.answer
        return None
