"""What travels between the GUI thread and the worker: frozen data, no Qt object, nothing that needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..processing.algorithms.raster_source import RasterSource
    from ..processing.algorithms.settings import EngineSettings

Point = tuple[float, float]
"""x, y in map units of the raster's CRS."""

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top in map units of the raster's CRS."""


@dataclass(frozen=True)
class SceneSpec:
    """What to open: a raster, a model by name, and where the engine finds its parts."""

    source: RasterSource
    model: str
    settings: EngineSettings


@dataclass(frozen=True)
class SceneInfo:
    """What was opened: the raster's name, the model's title, the device and in a sentence why that one."""

    name: str
    model: str
    device: str
    reason: str


@dataclass(frozen=True, eq=False)
class PromptInput:
    """One question: points and box in the raster's CRS, labels 1 foreground and 0 background.

    `view_map` is what the user sees, it decides how much of the raster the model looks at; `previous` is
    what the backend handed out with the answer that is refined (opaque here), None for a fresh start.
    """

    request_id: int
    points_map: tuple[Point, ...]
    labels: tuple[int, ...]
    box_map: Bounds | None
    view_map: Bounds
    previous: Any = None


@dataclass(frozen=True, eq=False)
class Answer:
    """One mask: `wkb` its multipolygon in the raster's CRS, empty bytes where the mask is empty.

    `score` is the predicted IoU, `stability` that between two thresholds (0 to 1); `area_m2` is ellipsoidal;
    `previous` goes back to the backend with the next prompt.
    """

    request_id: int
    wkb: bytes
    score: float
    stability: float
    area_m2: float
    model: str
    previous: Any = None


@dataclass(frozen=True)
class Failure:
    """Something that did not work: one sentence for the user, and what it was.

    `spec` is the scene that was not opened, `request_id` the question that was not answered; both None
    where the view could not be encoded.
    """

    sentence: str
    spec: SceneSpec | None = None
    request_id: int | None = None
