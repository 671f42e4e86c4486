"""Labelled rasters as chips, and how they are split: what training and evaluation begin with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from ...models.chips import Chips, joined_chips, split_by_block
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.semantic.card import IGNORE
from ..errors import JobError
from ..raster.band_reader import BandReader, open_bands
from ..raster.stretch import Stretch
from .class_scheme import ClassScheme
from .labelled_chips import Labels, LabelSource, PolygonLabels, RasterLabels, count_chips, cut_chips

SplitBy = Literal["blocks", "rasters", "folders"]
SPLITS: tuple[SplitBy, ...] = ("blocks", "rasters", "folders")

_PLACE = 1 << 32
"""Blocks of ground are numbered `place * _PLACE + block`: chips of two rasters never share one."""
_SPLIT_TRIES = 20
_TOUCHING = 0.01
"""Polygons that share less of the smaller one lie beside each other."""
_BESIDE = "No label polygon with a class lies on {}; check the CRS of both."


@dataclass(frozen=True, kw_only=True)
class LabelledRaster:
    """A raster with its labels: polygons in the raster's CRS, or a label raster.

    `names`: the class of each polygon; None where somebody drew without saying what, which leaves its pixels unknown;
    "" where the labels tell no classes apart. `area`: polygons within which every pixel without a label is background,
    on rasters without any other polygon, too; None means everywhere on rasters with a polygon (where the scheme has a
    background at all), () nowhere. `crs_wkt`: CRS of a raster that carries none itself; `label_crs_wkt`: CRS of the
    label raster as the user sees it, None for the file's own.
    """

    path: str
    polygons: tuple[BaseGeometry, ...] = ()
    names: tuple[str | None, ...] = ()
    label_path: Path | None = None
    area: tuple[BaseGeometry, ...] | None = None
    crs_wkt: str | None = None
    label_crs_wkt: str | None = None

    def __post_init__(self) -> None:
        """Check that polygons and names go together. Raises `JobError`."""
        if len(self.polygons) != len(self.names):
            raise JobError(f"{len(self.polygons)} polygons with {len(self.names)} class names; give one for each.")


def with_places(raster: LabelledRaster, *, is_rest_unknown: bool) -> LabelledRaster:
    """The raster with its polygons without a class taken for places that somebody was asked to look at.

    Where polygons with a class lie in a place, it was: what they leave of it is bare ground, as in `area`. Other places
    stay unknown. `is_rest_unknown`: without an area, ground beside the places is unknown, too.
    """
    polygons, names = np.array(raster.polygons, object), [name for name in raster.names if name is not None]
    is_place = np.array([name is None for name in raster.names], np.bool_)
    places, drawn = polygons[is_place], polygons[~is_place]
    of_drawn, of_places = shapely.STRtree(places).query(drawn, predicate="intersects")
    shared = shapely.area(shapely.intersection(drawn[of_drawn], places[of_places]))
    smaller = np.minimum(shapely.area(drawn[of_drawn]), shapely.area(places[of_places]))
    is_done = np.isin(np.arange(len(places)), of_places[shared > _TOUCHING * smaller])
    return replace(
        raster,
        polygons=(*drawn, *places[~is_done]),
        names=(*names, *[None] * int((~is_done).sum())),
        area=tuple(places[is_done]) if is_rest_unknown and raster.area is None else raster.area,
    )


def read_training_chips(
    rasters: Sequence[LabelledRaster],
    scheme: ClassScheme,
    *,
    chip_px: int,
    names: Sequence[str] | None = None,
    bands: Sequence[int] | None = None,
    gsd_m: float | None = None,
    stretch: Stretch | None = None,
    n_most: int | None = None,
    least_wanted: int | None = None,
    least_classes: int = 2,
    seed: int = 0,
    on_open: Callable[[BandReader], None] | None = None,
    progress: Progress | None = None,
) -> Chips:
    """Labelled chips of all rasters; `blocks` say raster and block of ground (`place_of`).

    `chip_px`: side of the chips in grid pixels of `gsd_m` metres (each raster's own without). `names`, `bands`,
    `stretch`: as for `open_bands`. `n_most`: keep at most about so many chips, drawn by `seed`, those that hold the
    class `least_wanted` alone last; evenly over the rasters with labels, and what one has too few for goes to the
    others. Where polygons of different classes overlap, pixels are left unlabelled. Rasters without a label and without
    a completely labelled area are left out. All that is said to `progress`. `on_open`: is given each raster before it
    is read. Raises `JobError` where no raster has labels, and where chips hold fewer than `least_classes` classes;
    `RasterError`, `Cancelled`.
    """
    progress = progress or NullProgress()
    if not rasters:
        raise JobError("No raster is given; choose one or more.")
    parts: dict[int, Chips] = {}
    failures: list[str] = []
    opened = partial(open_bands, names=names, bands=bands, gsd_m=gsd_m)
    order, n_left = list(range(len(rasters))), n_most
    if n_most is not None and len(rasters) > 1:
        # Those with few labels come first: the others share what they leave.
        counts = [_count(one, scheme, opened, chip_px=chip_px, n_most=n_most, progress=progress) for one in rasters]
        order.sort(key=lambda place: counts[place])
    for number, place in enumerate(order):
        raise_if_cancelled(progress)
        raster = rasters[place]
        file_name = Path(raster.path).name
        step = StepProgress(progress, number / len(rasters), (number + 1) / len(rasters))
        with opened(raster.path, stretch=stretch, crs_wkt=raster.crs_wkt) as reader:
            if names:
                tell_bands(reader, names, progress)
            if on_open is not None:
                on_open(reader)
            try:
                with _label_source(raster, scheme, reader) as labels:
                    chips = _cut(
                        reader,
                        labels,
                        chip_px=chip_px,
                        n_most=None if n_left is None else max(1, n_left // (len(rasters) - number)),
                        least_wanted=least_wanted,
                        seed=seed,
                        progress=step,
                    )
            except _NoLabelsError as error:
                failures.append(str(error))
                progress.info(f"{file_name} is left out: {error}")
                continue
        if isinstance(labels, _PolygonSource) and labels.n_conflicts_px:
            progress.info(
                f"Polygons of different classes overlap on {file_name}; {labels.n_conflicts_px} pixels are left "
                "unlabelled."
            )
        parts[place] = _with_blocks(chips, chips.blocks + place * _PLACE)
        n_left = None if n_left is None else n_left - len(chips)
    if not parts:
        raise JobError(failures[0])
    in_order = [parts[place] for place in sorted(parts)]
    chips = _with_blocks(joined_chips(in_order), np.concatenate([part.blocks for part in in_order]))
    present = [one.name for one in scheme.classes if (chips.labels == one.class_id).any()]
    if len(present) < least_classes:
        only = f"'{present[0]}'" if present else "no class"
        raise JobError(
            f"The labels on the rasters hold {only} alone, but a model needs {least_classes} classes to tell apart; "
            "label other places too, or make what no polygon covers the background."
        )
    return chips


def tell_bands(reader: BandReader, names: Sequence[str], progress: Progress) -> None:
    """Say which bands a model sees as which, unless they are the first ones and the raster calls them so, too."""
    if reader.bands == tuple(range(1, len(names) + 1)) and reader.band_names == tuple(names):
        return
    used = ", ".join(f"{band} as {name}" for band, name in zip(reader.bands, names, strict=True))
    progress.info(f"Bands of {Path(reader.path).name} that the model sees: {used}.")


def place_of(chips: Chips) -> npt.NDArray[np.int64]:
    """Number of the raster that each chip of `read_training_chips` comes from, (N,)."""
    return chips.blocks // _PLACE


def folder_of(raster: LabelledRaster) -> Path:
    """The folder that a raster lies in, by the name that it was given: links are not followed."""
    return Path(os.path.abspath(raster.path)).parent


def split_chips(
    chips: Chips,
    *,
    held_out: float,
    by: SplitBy = "blocks",
    rasters: Sequence[LabelledRaster] = (),
    seed: int = 0,
) -> tuple[Chips, Chips]:
    """Chips to learn from, and about the fraction `held_out` of them to judge by, which share no block or place.

    A place is a raster, or all rasters of a folder; `rasters`: those that the chips were read from. Of 20 splits by
    seeds that follow from `seed`, the first that leaves the most classes on both sides is taken: a rare class may live
    in one block. Raises `JobError` or `ChipError` where there are too few blocks or places.
    """
    numbers = chips.blocks if by == "blocks" else place_of(chips)
    if by == "folders":
        _, of_raster = np.unique([str(folder_of(raster)) for raster in rasters], return_inverse=True)
        numbers = of_raster[numbers].astype(np.int64)
    is_alone = len(np.unique(numbers)) < 2
    if is_alone and by == "rasters":
        raise JobError("Labels lie on one raster alone, so that no raster can be held out; split by blocks instead.")
    if is_alone and by == "folders":
        raise JobError(
            f"Labels lie on rasters of {folder_of(rasters[int(place_of(chips)[0])])} alone, so that no folder can be "
            "held out; give each place a folder of its own, or split by rasters or blocks instead."
        )
    if is_alone:
        raise JobError(
            f"The {len(chips)} labelled chips lie in one block of ground, so that nothing can be held out; label more "
            "ground, choose smaller chips, or hold nothing out."
        )
    grouped = _with_blocks(chips, numbers)
    most, best = 0, (chips, chips)
    n_classes = len(_present(chips))
    for attempt in range(_SPLIT_TRIES):
        kept, held = split_by_block(grouped, held_out=held_out, seed=seed + attempt)
        score = len(_present(kept)) + len(_present(held))
        if score > most:
            is_held = np.isin(numbers, np.unique(held.blocks))
            most, best = score, (chips.take(np.flatnonzero(~is_held)), chips.take(np.flatnonzero(is_held)))
        if score == 2 * n_classes:
            break
    return best


class _NoLabelsError(JobError):
    """A raster that no label lies on, which is left out where others have some."""


class _PolygonSource:
    """Polygons where each pixel must have one answer: overlaps of different classes are unlabelled.

    Raises `_NoLabelsError` where nothing tells a class: no polygon, and no area whose bare ground is background.
    """

    def __init__(self, raster: LabelledRaster, scheme: ClassScheme, reader: BandReader) -> None:
        ids = scheme.ids_of(raster.names, where=Path(raster.path).name)
        named = sorted((n for n, class_id in enumerate(ids) if class_id != IGNORE), key=lambda n: ids[n])
        # Where painting upwards and downwards gives the same class, no other class lies there.
        highest, lowest = (
            _painted(reader, [raster.polygons[n] for n in order], [ids[n] for n in order])
            for order in (named, named[::-1])
        )
        self._highest, self._lowest = highest, lowest
        unnamed = [polygon for polygon, class_id in zip(raster.polygons, ids, strict=True) if class_id == IGNORE]
        self._unnamed = _painted(reader, unnamed, [0] * len(unnamed))
        self._background = scheme.background
        self._area = None if raster.area is None else _painted(reader, raster.area, [0] * len(raster.area))
        if raster.area is not None and self._area is None:
            self._background = None
        # Within an area that is completely labelled no polygon is an answer, too.
        if highest is None and (self._area is None or self._background is None):
            raise _NoLabelsError(_BESIDE.format(Path(raster.path).name))
        self.n_conflicts_px = 0

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> Labels:
        window = (col_off, row_off, cols, rows)
        highest, labels = (
            np.full((rows, cols), IGNORE, np.uint8) if painted is None else painted.read(*window)
            for painted in (self._highest, self._lowest)
        )
        is_torn = highest != labels
        self.n_conflicts_px += int(is_torn.sum())
        if self._background is not None:
            is_bare = labels == IGNORE
            if self._area is not None:
                is_bare &= self._area.read(*window) != IGNORE
            labels[is_bare] = self._background
        labels[is_torn] = IGNORE
        if self._unnamed is not None:
            labels[(highest == IGNORE) & (self._unnamed.read(*window) != IGNORE)] = IGNORE
        return labels


def _count(
    raster: LabelledRaster,
    scheme: ClassScheme,
    opened: Callable[..., BandReader],
    *,
    chip_px: int,
    n_most: int,
    progress: Progress,
) -> int:
    """How many chips of a raster have labels, `n_most` at the most."""
    # Values are not looked at, so that no stretch has to be estimated.
    with opened(raster.path, stretch=Stretch((0.0,), (1.0,)), crs_wkt=raster.crs_wkt) as reader:
        try:
            with _label_source(raster, scheme, reader) as labels:
                return count_chips(reader, chip_px=chip_px, labels=labels, n_most=n_most, progress=progress)
        except _NoLabelsError:
            return 0


def _painted(reader: BandReader, polygons: Sequence[BaseGeometry], ids: Sequence[int]) -> PolygonLabels | None:
    """Polygons as labels; None where none of them lies on the raster."""
    try:
        return PolygonLabels(reader, polygons, ids)
    except JobError:
        return None


def _cut(
    reader: BandReader,
    labels: LabelSource,
    *,
    chip_px: int,
    n_most: int | None,
    least_wanted: int | None,
    seed: int,
    progress: Progress,
) -> Chips:
    try:
        return cut_chips(
            reader,
            chip_px=chip_px,
            labels=labels,
            n_most=n_most,
            only_labelled=True,
            least_wanted=least_wanted,
            seed=seed,
            progress=progress,
        )
    except JobError as error:
        rows, cols = reader.grid_shape
        if chip_px > max(rows, cols):
            raise _NoLabelsError(
                f"{Path(reader.path).name} has {cols} x {rows} px at the model's resolution, hardly anything of a chip "
                f"of {chip_px} px; choose smaller chips."
            ) from error
        raise _NoLabelsError(str(error)) from error


@contextmanager
def _label_source(raster: LabelledRaster, scheme: ClassScheme, reader: BandReader) -> Iterator[LabelSource]:
    if raster.label_path is not None:
        with RasterLabels(reader, raster.label_path, scheme.values, crs_wkt=raster.label_crs_wkt) as labels:
            yield labels
    else:
        yield _PolygonSource(raster, scheme, reader)


def _with_blocks(chips: Chips, blocks: npt.NDArray[np.int64]) -> Chips:
    return Chips(chips.pixels, chips.labels, chips.valid, blocks, chips.origins)


def _present(chips: Chips) -> list[int]:
    counts = np.bincount(chips.labels.ravel(), minlength=256)[:IGNORE]
    return [int(class_id) for class_id in np.flatnonzero(counts)]
