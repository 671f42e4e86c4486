"""What the worker does about learning: from an accepted object, on or off, forgotten, saved, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .exchange import Answer, Task

if TYPE_CHECKING:
    from ..models.progress import Progress
    from ..processing.jobs.interactive import InteractiveSegmenter


@dataclass(frozen=True)
class LearningState:
    """What the model goes on with.

    `sentence` says what was done; `n_learned`: accepted objects since the model was as shipped or loaded;
    `loaded_name`: the adapter that was loaded, "" for none.
    """

    sentence: str
    n_learned: int
    loaded_name: str


@dataclass(frozen=True, eq=False)
class Learn(Task):
    """Learn from an object that was accepted: its answer and its final outline (WKB, raster's CRS).

    Empty `wkb` stands for the outline of the answer itself. Yields None after each step and a `LearningState` at last.
    """

    answer: Answer
    wkb: bytes = b""
    is_urgent: ClassVar[bool] = True

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[LearningState | None]:
        """Take one object in."""
        import shapely

        geometry = shapely.from_wkb(self.wkb) if self.wkb else None
        report = yield from segmenter.learning(self.answer.result, geometry)
        yield _state(segmenter, report.sentence)


@dataclass(frozen=True, eq=False)
class LearnOutline(Task):
    """Learn from an outline (WKB, raster's CRS) that was accepted without prompts, as a candidate of a search is.

    What one click in it would have got is compared with it. Yields as `Learn` does, or nothing where its window
    is not encoded: an accept must not wait for that.
    """

    wkb: bytes
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
            report = yield from segmenter.learning(result, geometry)
            yield _state(segmenter, report.sentence)


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
