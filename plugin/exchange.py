"""What travels between the GUI thread and the worker: frozen data, no Qt object, nothing that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ..models.progress import Progress
    from ..processing.algorithms.raster_source import Block, RasterSource
    from ..processing.algorithms.settings import EngineSettings
    from ..processing.jobs.interactive import InteractiveSegmenter

Point = tuple[float, float]
"""x, y in map units of the raster's CRS."""

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top in map units of the raster's CRS."""


class Demand(Protocol):
    """How the worker asks for blocks of a picture that the GUI thread draws. Safe to call from any thread."""

    def order(self, blocks: Sequence[Block]) -> None:
        """Have blocks drawn some time, in this order."""

    def forget(self) -> None:
        """Take the orders back that nobody waits for."""

    def wait(self, blocks: Sequence[Block], is_cancelled: Callable[[], bool]) -> None:
        """Have blocks drawn now. Raises `RasterError` where that fails, `Cancelled` where it is wanted no more."""


@dataclass(frozen=True)
class SceneSpec:
    """What to open: a raster, a model by name, and where the engine finds its parts.

    `demand` draws the raster where it is no file but a picture.
    """

    source: RasterSource
    model: str
    settings: EngineSettings
    demand: Demand | None = None


@dataclass(frozen=True)
class SceneInfo:
    """What was opened: the raster's name, the model's title, the device and in a sentence why that one.

    `n_learned`: accepted objects of which the model has kept what it learned, from before the scene was opened anew;
    `loaded_name`: the adapter that it has kept, "" for none.
    """

    name: str
    model: str
    device: str
    reason: str
    n_learned: int = 0
    loaded_name: str = ""


@dataclass(frozen=True, eq=False)
class PromptInput:
    """One question: points and box in the raster's CRS, labels 1 foreground and 0 background.

    `view_map` is what the user sees, it decides how much of the raster the model looks at; `previous` is
    what the backend handed out with the answer that is refined (opaque here), None for a fresh start.
    `scribbles_map` are lines, labelled one by one like points; `outline_wkb` a polygon to start from, empty
    bytes for none.
    """

    request_id: int
    points_map: tuple[Point, ...]
    labels: tuple[int, ...]
    box_map: Bounds | None
    view_map: Bounds
    previous: Any = None
    scribbles_map: tuple[tuple[Point, ...], ...] = ()
    scribble_labels: tuple[int, ...] = ()
    outline_wkb: bytes = b""


@dataclass(frozen=True, eq=False)
class MaskOptionAnswer:
    """One of several masks that an ambiguous prompt may mean; the fields are those of `Answer`."""

    wkb: bytes
    score: float
    stability: float
    area_m2: float
    previous: Any = None


@dataclass(frozen=True, eq=False)
class Answer:
    """One mask: `wkb` its multipolygon in the raster's CRS, empty bytes where the mask is empty.

    `score` is the predicted IoU, `stability` that between two thresholds (0 to 1); `area_m2` is ellipsoidal;
    `previous` goes back to the backend with the next prompt. `options` are all masks offered, the best (this
    one) first; none or one where the prompt is not ambiguous. `adapter` names what helped the model, empty for
    nothing; `result` is what the backend learns from once the object is accepted (opaque here).
    """

    request_id: int
    wkb: bytes
    score: float
    stability: float
    area_m2: float
    model: str
    previous: Any = None
    options: tuple[MaskOptionAnswer, ...] = ()
    adapter: str = ""
    result: Any = None


@dataclass(frozen=True)
class ViewWindow:
    """A window of the view: corners of its part inside the raster, in map units, and whether it is encoded."""

    corners_map: tuple[Point, ...]
    is_encoded: bool


@dataclass(frozen=True)
class Coverage:
    """What of a view is encoded, and what the whole cache on disk holds."""

    windows: tuple[ViewWindow, ...]
    n_cached: int
    cached_bytes: int

    @property
    def n_encoded(self) -> int:
        """How many of the windows are encoded."""
        return sum(window.is_encoded for window in self.windows)


class Task:
    """Anything else that the worker does; frozen dataclasses derive from it, each in the file of its feature.

    Two tasks are the same only where they are one object, so derive with `eq=False`. Where `is_urgent` it goes
    before the tasks that are not, even between two items of one that runs; where `is_idle` it goes after all else.
    """

    is_urgent: ClassVar[bool] = False
    is_idle: ClassVar[bool] = False

    def run(self, segmenter: InteractiveSegmenter, progress: Progress) -> Iterator[Any]:
        """Do it, in the worker thread, and yield partial results.

        Clicks and previews are answered between two items, so that no step to the next one should take longer
        than a click may wait (50 ms). Raises `Cancelled` where `progress` says so; what it has yielded stays.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Failure:
    """Something that did not work: one sentence for the user, and what it was.

    `spec` is the scene that was not opened, `request_id` the question that was not answered, `task` what was
    not done; all None where the view could not be encoded.
    """

    sentence: str
    spec: SceneSpec | None = None
    request_id: int | None = None
    task: Task | None = None
