"""What the worker does about learning: from an accepted object, on or off, forgotten, saved, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .exchange import Answer, Task

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from ..models.progress import Progress
    from ..processing.jobs.interactive import InteractiveSegmenter
    from ..processing.jobs.prompt_request import PromptResult


@dataclass(frozen=True)
class LearningState:
    """What the model goes on with.

    `sentence` says what was done; `n_learned`: accepted objects since the model was as shipped or loaded;
    `loaded_name`: the adapter that was loaded, "" for none.
    """

    sentence: str
    n_learned: int
    loaded_name: str


@dataclass(eq=False)
class Lesson:
    """What the model knew before and after an object (`Knowledge`). Only the worker looks inside."""

    before: Any = None
    after: Any = None

    def teach(
        self, segmenter: InteractiveSegmenter, result: PromptResult, geometry: BaseGeometry | None
    ) -> Iterator[LearningState | None]:
        """Learn from an object, and remember what was known before and after it, also where it ends on the way."""
        self.before = segmenter.knowledge
        try:
            report = yield from segmenter.learning(result, geometry)
        finally:
            self.after = segmenter.knowledge
        yield _state(segmenter, report.sentence)


@dataclass(frozen=True, eq=False)
class Learn(Task):
    """Learn from an object that was accepted: its answer and its final outline (WKB, raster's CRS).

    Empty `wkb` stands for the outline of the answer itself. Yields None after each step and a `LearningState` at last.
    """

    answer: Answer
    wkb: bytes = b""
    lesson: Lesson = field(default_factory=Lesson)
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState | None]:
        """Take one object in."""
        import shapely

        geometry = shapely.from_wkb(self.wkb) if self.wkb else None
        yield from self.lesson.teach(segmenter, self.answer.result, geometry)


@dataclass(frozen=True, eq=False)
class LearnOutline(Task):
    """Learn from an outline (WKB, raster's CRS) that was accepted without prompts, as a candidate of a search is.

    What one click in it would have got is compared with it. Yields as `Learn` does, or nothing where its window
    is not encoded: an accept must not wait for that.
    """

    wkb: bytes
    lesson: Lesson = field(default_factory=Lesson)
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState | None]:
        """Take one object in."""
        import shapely

        from ..models.prompts import FOREGROUND
        from ..processing.jobs.prompt_request import PromptRequest

        geometry = shapely.from_wkb(self.wkb)
        place = geometry.representative_point()
        request = PromptRequest(request_id=0, points_map=((place.x, place.y),), labels=(FOREGROUND,))
        result = segmenter.answer(request, only_if_encoded=True)
        if result is not None:
            yield from self.lesson.teach(segmenter, result, geometry)


@dataclass(frozen=True, eq=False)
class Unlearn(Task):
    """Know what was known before an object that is undone, or with `is_redo` after one that is redone.

    Only where nothing else was learned, loaded or forgotten in between. Yields a `LearningState`, or nothing where the
    object had taught nothing.
    """

    lesson: Lesson
    is_redo: bool = False
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState]:
        """Go back, or forth again."""
        now, wanted = self.lesson.after, self.lesson.before
        if now is wanted:
            return
        if self.is_redo:
            now, wanted = wanted, now
        if segmenter.knowledge is now:
            segmenter.take_over(wanted)
        elif segmenter.knowledge is not wanted:
            yield _state(segmenter, "The model has changed since that object taught it, and stays as it is.")
            return
        done = "counts again" if self.is_redo else "is taken back"
        yield _state(segmenter, f"What that object taught {done}.")


@dataclass(frozen=True, eq=False)
class SetLearning(Task):
    """Switch learning from clicks and objects on or off; what was learned stays. Yields a `LearningState`."""

    is_on: bool
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState]:
        """Set the options."""
        segmenter.options = replace(segmenter.options, per_click=self.is_on, per_object=self.is_on)
        verb = "learns" if self.is_on else "no longer learns"
        yield _state(segmenter, f"The model {verb} from your clicks.")


@dataclass(frozen=True, eq=False)
class SetRectangles(Task):
    """Make rectangles of nearly rectangular masks from the next click on, or no more. Yields a sentence."""

    is_on: bool
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[str]:
        """Set the option."""
        segmenter.options = replace(segmenter.options, rectangles=self.is_on)
        yield "Nearly rectangular masks become rectangles." if self.is_on else "Masks stay as the model draws them."


@dataclass(frozen=True, eq=False)
class ResetLearning(Task):
    """Forget what was learned. Yields a `LearningState`."""

    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState]:
        """Start anew."""
        n_objects = segmenter.n_learned
        segmenter.reset()
        yield _state(segmenter, f"What was learned from {_objects(n_objects)} is forgotten.")


@dataclass(frozen=True, eq=False)
class SaveAdapter(Task):
    """Write what was learned to a file that another project or a batch job can load. Yields a `LearningState`."""

    path: Path
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState]:
        """Write the file."""
        segmenter.save(self.path)
        yield _state(segmenter, f"What was learned from {_objects(segmenter.n_learned)} is saved in {self.path}.")


@dataclass(frozen=True, eq=False)
class LoadAdapter(Task):
    """Work with what was learned elsewhere. Yields a `LearningState`."""

    path: Path
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState]:
        """Read the file."""
        segmenter.load(self.path)
        yield _state(segmenter, f"{segmenter.adapter_name or self.path.stem} is loaded.")


def _state(segmenter: InteractiveSegmenter, sentence: str) -> LearningState:
    return LearningState(sentence, segmenter.n_learned, segmenter.loaded_name)


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"
