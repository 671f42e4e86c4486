"""Choose the regions of rasters that are most worth labelling, as polygons."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

from ...models.chips import Chips, unlabelled_chips
from ...models.device import choose_device
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.semantic.card import IGNORE, SegmenterCard
from ...models.semantic.package import load_segmenter
from ...models.semantic.segmenter import Segmenter
from ...models.transfer.selection import (
    STRATEGIES,
    Candidates,
    Region,
    choose_regions,
    describe_regions,
    joined_candidates,
)
from ..errors import JobError
from ..raster.band_reader import BandReader
from ..raster.geodesy import apply_affine
from ..raster.vectorize import polygonize
from .chip_segments import superpixels
from .labelled_chips import PolygonLabels
from .model_rasters import open_for_model, tell_differences
from .training_data import tell_bands

RegionKind = Literal["squares", "segments"]
REGION_KINDS: tuple[RegionKind, ...] = ("squares", "segments")
BudgetUnit = Literal["clicks", "m2", "percent"]
BUDGET_UNITS: tuple[BudgetUnit, ...] = ("clicks", "m2", "percent")
"""Regions, square metres, or per cent of the pixels that have data and no label yet."""

USUAL_REGION_PX = {"squares": 32, "segments": 16}
"""Side of a region in the model's pixels. Squares of 10 m at 30 cm fit one look; larger segments mix classes."""
_READ, _DESCRIBED = 0.85, 0.95


@dataclass(frozen=True, kw_only=True)
class SampleRaster:
    """A raster to choose from: `path`, its CRS as WKT where the file has none, and what is labelled already.

    `labelled`: polygons in the raster's CRS; regions there are left out.
    """

    path: str
    crs_wkt: str | None = None
    labelled: tuple[BaseGeometry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SelectSamples:
    """What is wanted.

    `strategy`: one of `models.transfer.selection.STRATEGIES`. `region_m`: side of the squares in metres, made a whole
    part of the model's chip, or about that of segments; None for 32 of the model's pixels, 16 with segments. `budget`:
    how many regions, square metres or per cent of the pixels, by `unit`. Raises `JobError` for values that make no
    sense.
    """

    budget: float
    unit: BudgetUnit = "clicks"
    strategy: str = STRATEGIES[0]
    kind: RegionKind = "squares"
    region_m: float | None = None
    device: str = "auto"
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.strategy not in STRATEGIES:
            raise JobError(f"Unknown strategy '{self.strategy}'; choose from {', '.join(STRATEGIES)}.")
        if not self.budget > 0 or (self.unit == "clicks" and self.budget < 1):
            raise JobError(f"A budget of {self.budget:g} {self.unit} is too small; give a larger one.")
        if self.unit == "percent" and self.budget > 100:
            raise JobError(f"A budget of {self.budget:g} per cent is larger than the image; give at most 100.")
        if self.region_m is not None and not self.region_m > 0:
            raise JobError(f"Regions of {self.region_m:g} m; give a positive size.")


@dataclass(frozen=True)
class Sample:
    """A region to label.

    `raster`: number of the raster. `polygon`: outline in the raster's CRS. `rank`: 1 is the most useful. `score`, 0 to
    1: how doubtful the model is there. `class_name`: the class that the model sees most.
    """

    raster: int
    polygon: BaseGeometry
    rank: int
    score: float
    class_name: str


@dataclass(frozen=True)
class Selection:
    """The samples by rank, with `n_px` pixels to label; `n_regions` were to choose from, with `total_px`."""

    samples: tuple[Sample, ...]
    card: SegmenterCard
    n_regions: int
    n_px: int
    total_px: int
    device: str


@dataclass(eq=False)
class _Described:
    """Candidates whose chips are numbered through, and where each chip lies: (raster, column, row)."""

    parts: list[Candidates] = field(default_factory=list)
    origins: list[tuple[int, int, int]] = field(default_factory=list)


def select_samples(
    model_path: Path, rasters: Sequence[SampleRaster], job: SelectSamples, *, progress: Progress | None = None
) -> Selection:
    """Let the model look at all rasters, and choose regions until the budget is spent.

    Squares lie on a fixed grid and segments do not depend on what is labelled, so that a later round, which is given
    what came back labelled, never asks for the same. Raises `JobError` for a budget larger than what is left to label,
    smaller than a region, or in square metres without a scale; `RasterError`, `PackageError` and `Cancelled`.
    """
    progress = progress or NullProgress()
    if not rasters:
        raise JobError("No raster is given; choose one or more.")
    model = load_segmenter(model_path)
    card = model.card
    choice = choose_device(job.device)
    progress.info(f"Device: {choice.reason}")
    model.to(choice.name)
    with ExitStack() as stack:
        readers = [stack.enter_context(open_for_model(card, raster.path, crs_wkt=raster.crs_wkt)) for raster in rasters]
        for reader in readers:
            tell_bands(reader, card.bands, progress)
            tell_differences(reader, card, progress)
        pixel_m2 = _pixel_m2(readers)
        region_px = _region_px(job, card, pixel_m2)
        size = "" if pixel_m2 is None else f" ({region_px * pixel_m2**0.5:.3g} m)"
        progress.info(f"{job.kind.capitalize()} of {'about ' * (job.kind == 'segments')}{region_px} pixels{size}.")
        described = _Described()
        for number, (raster, reader) in enumerate(zip(rasters, readers, strict=True)):
            share = StepProgress(progress, _READ * number / len(rasters), _READ * (number + 1) / len(rasters))
            _describe(described, number, raster, reader, model, job, region_px=region_px, progress=share)
        found = joined_candidates(described.parts)
        regions = _chosen(found, job, pixel_m2, StepProgress(progress, _READ, _DESCRIBED))
        outlines = _outlines(regions, described.origins, readers, card, job, region_px=region_px, progress=progress)
    progress.set_fraction(1.0)
    samples = tuple(
        Sample(described.origins[one.chip][0], outline, rank, one.score, card.classes[one.class_id].name)
        for rank, (one, outline) in enumerate(zip(regions, outlines, strict=True), 1)
    )
    n_px = sum(one.n_px for one in regions)
    return Selection(samples, card, len(found), n_px, int(found.n_px.sum()), choice.name)


def _pixel_m2(readers: Sequence[BandReader]) -> float | None:
    """Area of a grid pixel, the mean over the rasters; None where one has no scale."""
    known = [reader.gsd_m**2 / (reader.scale[0] * reader.scale[1]) for reader in readers if reader.gsd_m is not None]
    return sum(known) / len(known) if len(known) == len(readers) else None


def _region_px(job: SelectSamples, card: SegmenterCard, pixel_m2: float | None) -> int:
    """Side of a region in pixels; of squares the whole part of the chip that is nearest to what is wanted."""
    wanted = float(USUAL_REGION_PX[job.kind])
    if job.region_m is not None:
        if pixel_m2 is None:
            raise JobError(
                f"A raster has no scale, so that regions of {job.region_m:g} m cannot be drawn on it; leave the size "
                "out, or give rasters with a CRS."
            )
        wanted = job.region_m / pixel_m2**0.5
        if not 0.75 <= wanted <= card.chip_px:
            raise JobError(
                f"Regions of {job.region_m:g} m are {_about(wanted)} pixels of the model wide; give 1 to "
                f"{card.chip_px} pixels, which are {pixel_m2**0.5:.3g} to {card.chip_px * pixel_m2**0.5:.3g} m."
            )
    if job.kind == "segments":
        return round(wanted)
    parts = [side for side in range(1, card.chip_px + 1) if card.chip_px % side == 0]
    return min(parts, key=lambda side: abs(np.log(side / wanted)))


def _describe(
    described: _Described,
    number: int,
    raster: SampleRaster,
    reader: BandReader,
    model: Segmenter,
    job: SelectSamples,
    *,
    region_px: int,
    progress: Progress,
) -> None:
    """Add the regions of a raster, a batch of chips at a time."""
    labelled = None
    if raster.labelled:
        # None of them may lie on this raster.
        with contextlib.suppress(JobError):
            labelled = PolygonLabels(reader, raster.labelled, [0] * len(raster.labelled))
    side = model.card.chip_px
    places = _places(reader, side)
    for start in range(0, len(places), job.batch):
        raise_if_cancelled(progress)
        chips, kept = _read(reader, places[start : start + job.batch], side)
        if kept:
            known = np.zeros(chips.labels.shape, np.bool_)
            if labelled is not None:
                for n, (col, row) in enumerate(kept):
                    known[n] = labelled.read(col, row, side, side) != IGNORE
            segments = superpixels(chips, size_px=region_px**2) if job.kind == "segments" else None
            found = describe_regions(model, chips, region_px=region_px, batch=job.batch, segments=segments, known=known)
            found.windows[:, 0] += len(described.origins)
            described.parts.append(found)
            described.origins += [(number, col, row) for col, row in kept]
        progress.set_fraction(min(start + job.batch, len(places)) / len(places))


def _places(reader: BandReader, side: int) -> list[tuple[int, int]]:
    rows, cols = reader.grid_shape
    return [(col, row) for row in range(0, rows, side) for col in range(0, cols, side)]


def _read(reader: BandReader, places: Sequence[tuple[int, int]], side: int) -> tuple[Chips, list[tuple[int, int]]]:
    """Chips at those of `places` that have data, and these places."""
    read = [(place, *reader.read(*place, side, side)) for place in places]
    kept = [(place, pixels, valid) for place, pixels, valid in read if valid.any()]
    pixels = np.stack([one[1] for one in kept]) if kept else np.zeros((0, len(reader.bands), side, side), np.uint8)
    valid = np.stack([one[2] for one in kept]) if kept else np.zeros((0, side, side), np.bool_)
    return unlabelled_chips(pixels, valid=valid), [one[0] for one in kept]


def _chosen(found: Candidates, job: SelectSamples, pixel_m2: float | None, progress: Progress) -> list[Region]:
    """Regions for the budget, which is checked in its own unit."""
    if not len(found):
        raise JobError("Nothing of the rasters is left to label; give rasters with data, or fewer labelled polygons.")
    total, smallest = int(found.n_px.sum()), int(found.n_px.min())
    if job.unit == "clicks":
        if job.budget > len(found):
            raise JobError(
                f"A budget of {job.budget:.0f} clicks is larger than the image: only {len(found)} regions are left to "
                "label; give a smaller budget or smaller regions."
            )
        return choose_regions(
            found, strategy=job.strategy, budget_regions=int(job.budget), seed=job.seed, progress=progress
        )
    if job.unit == "percent":
        budget_px, unit_px, unit = round(total * job.budget / 100), total / 100, "per cent"
    elif pixel_m2 is None:
        raise JobError("A raster has no scale, so that a budget in m2 says nothing; give it in clicks or per cent.")
    else:
        budget_px, unit_px, unit = round(job.budget / pixel_m2), 1 / pixel_m2, "m2"
    if budget_px > total:
        raise JobError(
            f"A budget of {job.budget:.10g} {unit} is larger than the image: only {total / unit_px:.0f} {unit} are "
            "left to label; give a smaller budget."
        )
    if budget_px < smallest:
        raise JobError(
            f"A budget of {job.budget:g} {unit} is smaller than a region of {_about(smallest / unit_px)} {unit}; give "
            "a larger budget or smaller regions."
        )
    return choose_regions(found, strategy=job.strategy, budget_px=budget_px, seed=job.seed, progress=progress)


def _about(value: float) -> str:
    """Three digits, and never a power of ten."""
    return f"{float(f'{value:.3g}'):.10g}"


def _outlines(
    regions: Sequence[Region],
    origins: Sequence[tuple[int, int, int]],
    readers: Sequence[BandReader],
    card: SegmenterCard,
    job: SelectSamples,
    *,
    region_px: int,
    progress: Progress,
) -> list[BaseGeometry]:
    """Polygons of the regions in the CRS of their rasters."""
    if job.kind == "squares":
        return [_square(one, origins[one.chip], readers[origins[one.chip][0]]) for one in regions]
    segments: dict[int, npt.NDArray[np.int32]] = {}
    outlines: list[BaseGeometry] = []
    for one in regions:
        raise_if_cancelled(progress)
        number, col, row = origins[one.chip]
        if one.chip not in segments:
            chips, _ = _read(readers[number], [(col, row)], card.chip_px)
            segments[one.chip] = superpixels(chips, size_px=region_px**2)[0]
        moved = readers[number].grid_transform @ Affine.translation(col, row)
        outlines.append(polygonize(segments[one.chip] == one.segment, moved))
    return outlines


def _square(region: Region, origin: tuple[int, int, int], reader: BandReader) -> BaseGeometry:
    """The window of a region, cut to the raster."""
    _, col, row = origin
    rows, cols = reader.grid_shape
    left, top = col + region.col, row + region.row
    right, bottom = min(cols, left + region.cols), min(rows, top + region.rows)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return shapely.polygons(apply_affine(reader.grid_transform, corners))
