"""The classes that labels name: those of a new model, or those of a model that is there."""

from __future__ import annotations

import colorsys
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.semantic.card import IGNORE, MOST_CLASSES, SegmenterCard, SegmenterClass
from ..errors import JobError
from ..raster.access import gdal_access

Background = Literal["auto", "class", "unlabelled"]
"""What pixels without a polygon are: a class of their own, or unknown. `auto`: see `scheme_of_labels`."""
BACKGROUNDS: tuple[Background, ...] = ("auto", "class", "unlabelled")

BACKGROUND_NAME = "background"
BACKGROUND_KEY, VALUES_KEY = "background", "label_values"
"""Where a card's options keep the class id of the background, and {stored value: class id} of label rasters."""

_BACKGROUND_WORDS = ("background", "other", "none", "rest")
_GREY = (110, 110, 110)
# Okabe and Ito's colours, apart for colour-blind eyes too: https://jfly.uni-koeln.de/color/
_COLOURS = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
_INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32")


class Labelled(Protocol):
    """What is asked of a raster with labels (`training_data.LabelledRaster`)."""

    @property
    def names(self) -> Sequence[str | None]:
        """The class of each polygon."""

    @property
    def label_path(self) -> Path | None:
        """The label raster."""

    @property
    def area(self) -> Sequence[object] | None:
        """Polygons within which labels are complete."""


@dataclass(frozen=True)
class ClassScheme:
    """The classes of a model and how labels name them.

    `background`: id of the class of pixels without a polygon, None leaves them unlabelled. `only`: id that polygons
    get where labels tell no classes apart. `values`: {stored value: class id} of label rasters.
    """

    classes: tuple[SegmenterClass, ...]
    background: int | None = None
    only: int | None = None
    values: Mapping[int, int] = field(default_factory=dict)

    def ids_of(self, names: Sequence[str | None], *, where: str) -> list[int]:
        """Class ids of polygons; `IGNORE` for None. Raises `JobError` for classes that the scheme does not have."""
        known = {_key(one.name): one.class_id for one in self.classes}
        if self.only is not None:
            known.setdefault("", self.only)
        unknown = sorted({name for name in names if name is not None and _key(name) not in known})
        if unknown:
            shown = ", ".join(f"'{name}'" for name in unknown[:5])
            raise JobError(
                f"The labels of {where} hold {shown if unknown != [''] else 'polygons without a class'}, but the "
                f"classes are {', '.join(one.name for one in self.classes)}; choose the right class field or rename."
            )
        return [IGNORE if name is None else known[_key(name)] for name in names]

    def options(self) -> dict[str, object]:
        """What a card's options remember of the scheme, for `scheme_of_card`."""
        kept: dict[str, object] = {} if self.background is None else {BACKGROUND_KEY: self.background}
        return kept | ({VALUES_KEY: {str(value): n for value, n in self.values.items()}} if self.values else {})


def scheme_of_labels(
    rasters: Sequence[Labelled],
    *,
    background: Background = "auto",
    only_name: str = "object",
    value_names: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> ClassScheme:
    """The classes that labels name, for a new model; names that differ in case alone are one class.

    Polygons: names in alphabetical order after the background, if there is one. `auto` makes the background a class
    where the labels name one class alone or where areas say that they are complete, else pixels without a polygon stay
    unlabelled. `only_name` is the class of polygons that tell none apart. Label rasters: the values in rising order,
    named by `value_names`, by the file's own CLASS_<value> items, or by the value; with `value_names` other values,
    without them 255, are unlabelled. Raises `JobError` for fewer than two classes, or too many.
    """
    if any(raster.label_path for raster in rasters):
        names = _stored_names(rasters, value_names=value_names, progress=progress or NullProgress())
        classes = _classes(_distinct(names[value] for value in sorted(names)), background=None)
        ids = {_key(one.name): one.class_id for one in classes}
        return ClassScheme(classes, values={value: ids[_key(name)] for value, name in names.items()})
    found = {name for raster in rasters for name in raster.names if name is not None}
    named = _distinct(sorted({name or only_name for name in found}, key=lambda name: (_key(name), name)))
    if not named:
        raise JobError("No label polygon with a class lies on a raster; check the CRS of the labels and their field.")
    has_area = any(raster.area for raster in rasters)
    if background == "unlabelled" or (background == "auto" and len(named) > 1 and not has_area):
        classes, place = _classes(named, background=None), None
    else:
        own = next((name for name in named if _key(name) == BACKGROUND_NAME), BACKGROUND_NAME)
        classes, place = _classes([own, *(name for name in named if name != own)], background=own), 0
    ids = {_key(one.name): one.class_id for one in classes}
    return ClassScheme(classes, place, ids[_key(only_name)] if "" in found else None)


def scheme_of_card(
    card: SegmenterCard,
    rasters: Sequence[Labelled],
    *,
    background: Background = "auto",
    value_names: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> ClassScheme:
    """The classes of a model, for labels that are to train it on or to judge it.

    Names are compared without regard to case. The background is the class that the card calls so; `auto` uses it
    for pixels without a polygon where areas say that labels are complete, or where the model has one other class alone
    and no polygon names the background. Values of label rasters are classes by `value_names`, by the file's names, by
    what the card remembers of its training, or are class ids. Raises `JobError` for classes that the model does not
    have.
    """
    place = background_of(card)
    others = [one.class_id for one in card.classes if one.class_id != place]
    only = others[0] if len(others) == 1 else None
    values: dict[int, int] = {}
    if any(raster.label_path for raster in rasters):
        values = _values_of_card(card, rasters, value_names=value_names, progress=progress or NullProgress())
    if background == "class" and place is None:
        raise JobError(
            f"The model '{card.name}' has no class for the background ({', '.join(card.class_names)}); leave pixels "
            "without a polygon unlabelled."
        )
    has_area = any(raster.area for raster in rasters)
    own_name = None if place is None else _key(card.classes[place].name)
    is_drawn = any(name is not None and _key(name) == own_name for raster in rasters for name in raster.names)
    if background == "unlabelled" or (background == "auto" and not has_area and (only is None or is_drawn)):
        place = None
    return ClassScheme(card.classes, place, only, values)


def background_of(card: SegmenterCard) -> int | None:
    """Class id of what is none of the others; None where the card knows no such class."""
    kept = card.options.get(BACKGROUND_KEY)
    if isinstance(kept, int):
        return kept
    named = {_key(one.name): one.class_id for one in card.classes}
    return next((named[word] for word in _BACKGROUND_WORDS if word in named), None)


def parse_value_names(text: str) -> dict[int, str]:
    """Read "0=other, 1=roof" as {0: "other", 1: "roof"}. Raises `JobError` that names what it cannot read."""
    names: dict[int, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        value, _, name = (piece.strip() for piece in part.partition("="))
        if not value.isdigit() or not name or int(value) > IGNORE:
            raise JobError(f"'{part}' names no value; write for instance 0=other, 1=roof, with values of 0 to 255.")
        if names.setdefault(int(value), name) != name:
            raise JobError(f"The value {value} is named twice, '{names[int(value)]}' and '{name}'; name it once.")
    return names


def _stored_names(
    rasters: Sequence[Labelled],
    *,
    value_names: Mapping[int, str] | None,
    named: Collection[int] = (),
    progress: Progress,
) -> dict[int, str]:
    """Names of the values that occur in label rasters; 255 counts where it is among `named`."""
    names: dict[int, str] = {}
    for path in dict.fromkeys(raster.label_path for raster in rasters):
        if path is None:
            raise JobError("Some rasters have polygons, others label rasters; train with one kind of labels.")
        for value, own_name in _read_values(path, progress).items():
            if value_names:
                if value in value_names:
                    names[value] = value_names[value]
            elif value != IGNORE or value in named:
                names[value] = own_name
    if not names:
        raise JobError("The label rasters hold no value that is a class; check their nodata and the names of values.")
    return names


def _values_of_card(
    card: SegmenterCard, rasters: Sequence[Labelled], *, value_names: Mapping[int, str] | None, progress: Progress
) -> dict[int, int]:
    kept = card.options.get(VALUES_KEY)
    remembered = {int(value): int(n) for value, n in kept.items()} if isinstance(kept, dict) else {}
    names = _stored_names(rasters, value_names=value_names, named=set(remembered), progress=progress)
    ids = {_key(one.name): one.class_id for one in card.classes}
    found = {value: ids.get(_key(name)) for value, name in names.items()}
    if not value_names and None in found.values():
        # The names tell nothing: then the values do.
        known = remembered or {one.class_id: one.class_id for one in card.classes}
        found = {value: known.get(value) for value in names}
    unknown = [value for value, class_id in found.items() if class_id is None]
    if unknown:
        raise JobError(
            f"The label rasters hold the value {unknown[0]} ('{names[unknown[0]]}'), which is no class of the model "
            f"({', '.join(card.class_names)}); name the values, such as 1={card.class_names[-1]}."
        )
    return {value: class_id for value, class_id in found.items() if class_id is not None}


def _read_values(path: Path, progress: Progress) -> dict[int, str]:
    """Values that occur in a label raster but nodata, with the names in the file or the value as text."""
    with (
        gdal_access(str(path), verb="read", remedy="check the path and the file"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            if dataset.count != 1 or dataset.dtypes[0] not in _INTEGERS:
                raise JobError(
                    f"The label raster {path} has {dataset.count} band(s) of {dataset.dtypes[0]}; give one band of "
                    "whole class ids."
                )
            found: set[int] = set()
            for _, window in dataset.block_windows(1):
                raise_if_cancelled(progress)
                found.update(np.unique(dataset.read(1, window=window)).tolist())
            found.discard(dataset.nodata)
            tags = dataset.tags()
    wrong = [value for value in found if not 0 <= value <= IGNORE]
    if wrong:
        raise JobError(f"The label raster {path} has the value {wrong[0]}; use class ids of 0 to 255.")
    return {value: tags.get(f"CLASS_{value}", str(value)) for value in sorted(found)}


def _classes(names: Sequence[str], *, background: str | None) -> tuple[SegmenterClass, ...]:
    if len(names) < 2:
        raise JobError(
            f"The labels name one class alone ('{names[0]}'), but a model needs two to tell apart; make what no "
            "polygon covers the background, or name the values of label rasters (255 counts only when named)."
        )
    if len(names) > MOST_CLASSES:
        raise JobError(f"The labels name {len(names)} classes; choose a field with at most {MOST_CLASSES} values.")
    colours = _colours()
    return tuple(
        SegmenterClass(n, name, _GREY if name == background or _key(name) in _BACKGROUND_WORDS else next(colours))
        for n, name in enumerate(names)
    )


def _distinct(names: Iterable[str]) -> list[str]:
    """The names in their order, of those that differ in case alone the first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(_key(name), name)
    return list(found.values())


def _colours() -> Iterator[tuple[int, int, int]]:
    yield from _COLOURS
    hue = 0.0
    while True:
        # The golden ratio spreads any number of hues: neighbours in the list are far apart.
        hue = (hue + 0.618034) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.85)
        yield round(255 * red), round(255 * green), round(255 * blue)


def _key(name: str) -> str:
    """What names are compared by: some systems write an umlaut as one sign, others as two."""
    return unicodedata.normalize("NFC", name.strip().casefold())
