"""What a segmentation model says of itself, readable without torch: the card in the header of its package."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import ModelError

SUFFIX = ".safetensors"
"""Ending of a model package."""
CARD_KEY = "segadapt_segmenter"
"""Where the card lies in the metadata of a safetensors file."""
FORMAT = 1
IGNORE = 255
"""Label of pixels without a class: unlabelled, or without data."""
MOST_CLASSES = 254

_LARGEST_HEADER = 16 * 2**20


class PackageError(ModelError, ValueError):
    """A model package that cannot be read, is damaged, or does not fit what it is to be used with."""


@dataclass(frozen=True)
class SegmenterClass:
    """A class: `class_id` 0 to C-1 is its channel in the logits; `colour` red, green, blue, 0 to 255."""

    class_id: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SegmenterCard:
    """What is known of a segmentation model.

    `decoder` and `encoder` name its parts (`segmenter.DECODERS`, a timm name or a promptable model). `bands`: names of
    the input bands in order. `gsd_m`: metres per pixel of what it was trained on, None for pictures without a scale.
    `chip_px`: side of its training chips. `mean`, `std`: per band on the 0-255 scale. `stretch`: lows, then highs of
    the bands that become 0..255, None for each raster's own (`processing.raster.stretch`). `training_stretch`: the
    median of the training rasters' own, which programs need that do not look at each raster; 0 to 255 for bytes, None
    where an older SegAdapt did not say. `statistics`: what is known of the source domain (`band_quantiles`,
    `class_shares`), which is the ground of the last training with labels. `history`: what was done to the model, oldest
    first. `base_sha256`: weights that an adapter is laid over, None for a whole model.
    """

    name: str
    decoder: str
    encoder: str
    bands: tuple[str, ...]
    classes: tuple[SegmenterClass, ...]
    gsd_m: float | None
    chip_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    made_on: str
    segadapt_version: str
    stretch: tuple[float, ...] | None = None
    training_stretch: tuple[float, ...] | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    base_file: str | None = None
    base_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together. Raises `PackageError`."""
        n_bands = len(self.bands)
        if not n_bands or len(self.mean) != n_bands or len(self.std) != n_bands:
            raise PackageError(
                f"The card of '{self.name}' has {n_bands} bands, {len(self.mean)} means and {len(self.std)} "
                "deviations; give one mean and one deviation per band."
            )
        ids = [one.class_id for one in self.classes]
        if not 2 <= len(ids) <= MOST_CLASSES or ids != list(range(len(ids))):
            raise PackageError(
                f"The classes of '{self.name}' have the ids {ids[:10]}; give 2 to {MOST_CLASSES}, numbered from 0."
            )
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise PackageError(f"The card of '{self.name}' says {self.gsd_m} m per pixel; give a positive number.")
        if not all(value > 0 for value in self.std):
            raise PackageError(f"The card of '{self.name}' has a deviation of 0; every band needs a positive one.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the channels."""
        return tuple(one.name for one in self.classes)

    def to_json(self) -> str:
        """The card as text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)


def with_event(card: SegmenterCard, event: str, **details: Any) -> SegmenterCard:
    """The card with one more entry in its history: `event` in words, today's date (UTC), and `details`."""
    entry = {"event": event, "date": datetime.now(timezone.utc).date().isoformat(), **details}
    return replace(card, history=(*card.history, entry))


def card_from_json(text: str, *, path: Path) -> SegmenterCard:
    """The card that `SegmenterCard.to_json` wrote. Raises `PackageError`, which names `path`."""
    try:
        values = json.loads(text)
        made_with = values.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{path} is no segmentation model of SegAdapt; choose one that SegAdapt saved.") from error
    if made_with != FORMAT:
        raise PackageError(f"{path} was made by a newer SegAdapt (format {made_with}); update the plugin.")
    try:
        known = {one.name for one in fields(SegmenterCard)}
        values = {name: value for name, value in values.items() if name in known}
        values["classes"] = tuple(
            SegmenterClass(int(one["class_id"]), str(one["name"]), tuple(one["colour"])) for one in values["classes"]
        )
        for name in ("bands", "mean", "std", "history"):
            values[name] = tuple(values[name])
        for name in ("stretch", "training_stretch"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return SegmenterCard(**values)
    except (KeyError, TypeError) as error:
        raise PackageError(f"The card in {path} is damaged ({error}); get another copy of the model.") from error


def base_files(path: Path) -> list[Path]:
    """Where the model that the adapter `path` is laid over may lie; none for a whole model. Raises `PackageError`."""
    card = read_card(path)
    if card.base_sha256 is None:
        return []
    named = Path(card.base_file or "")
    return [path.parent / named.name, named]


def replaces(output: Path, model: Path) -> bool:
    """Whether writing `output` would replace the file `model`, by whatever names and links both are called."""
    return output.exists() and model.exists() and output.samefile(model)


def read_card(path: Path) -> SegmenterCard:
    """The card of a package, from the file's header alone: no weights are read, and only the standard library.

    Raises `PackageError` for a file that is no package. Whether the weights are whole is only known once they are
    loaded (`package.load_segmenter`).
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise PackageError(f"{path} is no segmentation model of SegAdapt; choose one that SegAdapt saved.")
            metadata = json.loads(file.read(length)).get("__metadata__", {})
    except FileNotFoundError:
        raise PackageError(f"There is no file {path}; choose a segmentation model that SegAdapt saved.") from None
    except OSError as error:
        raise PackageError(f"{path} cannot be read ({error.strerror or error}); check the file's rights.") from error
    except (ValueError, struct.error, AttributeError, UnicodeDecodeError) as error:
        raise PackageError(f"{path} is no segmentation model of SegAdapt; choose one that SegAdapt saved.") from error
    return card_from_json(metadata.get(CARD_KEY, ""), path=path)
