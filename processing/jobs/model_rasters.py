"""Rasters as a segmentation model sees them: its bands, its resolution, its stretch, its size of chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.chips import Chips, joined_chips
from ...models.progress import NullProgress, Progress, StepProgress
from ...models.semantic.card import SegmenterCard
from ..errors import JobError
from ..raster.band_reader import BandReader, open_bands
from ..raster.stretch import Stretch
from .class_scheme import ClassScheme
from .labelled_chips import count_chips, cut_chips
from .training_data import LabelledRaster, read_training_chips, tell_bands

MOST_CHIPS = 400
"""As many are enough to adapt to, and to rehearse."""
_MOST_SATURATED = 0.9
_FAR_SCALE = 4.0
"""Resolutions that differ by more are outside of what models bridge; the user is told."""


@dataclass(frozen=True)
class TargetRaster:
    """A raster of the target: `path`, and its CRS as WKT where the file carries none."""

    path: str
    crs_wkt: str | None = None


def stretch_of(card: SegmenterCard) -> Stretch | None:
    """The stretch that a card prescribes; None where each raster is stretched by its own values."""
    n_bands = len(card.bands)
    return None if card.stretch is None else Stretch(card.stretch[:n_bands], card.stretch[n_bands:])


def open_for_model(
    card: SegmenterCard, path: str, *, bands: Sequence[int] | None = None, crs_wkt: str | None = None
) -> BandReader:
    """Open a raster as a model wants it; without `bands` those that the card names. Raises as `open_bands` does."""
    return open_bands(path, names=card.bands, bands=bands, gsd_m=card.gsd_m, stretch=stretch_of(card), crs_wkt=crs_wkt)


def tell_differences(reader: BandReader, card: SegmenterCard, progress: Progress) -> None:
    """Say where a raster's pixels are far from the model's in size, or in bit depth from the training's."""
    _tell_scale(reader, card, progress)
    _tell_depth(reader, card, progress)


def read_target_chips(
    targets: Sequence[TargetRaster],
    card: SegmenterCard,
    *,
    n_most: int = MOST_CHIPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chips:
    """Unlabelled chips of all rasters as the model sees them, about `n_most`, evenly over rasters and drawn by `seed`.

    What a small raster has too few for goes to the others. Raises `JobError` for no raster and where none holds data,
    `RasterError` for one that does not fit the card's bands or resolution, and `Cancelled`.
    """
    progress = progress or NullProgress()
    if not targets:
        raise JobError("No raster of the target is given; choose one or more.")
    parts: dict[int, Chips] = {}
    failures: list[JobError] = []
    counts = [_count(target, card, n_most=n_most) for target in targets]
    n_left = n_most
    # The small ones come first: the others share what they leave.
    for number, place in enumerate(sorted(range(len(targets)), key=lambda place: counts[place])):
        target = targets[place]
        step = StepProgress(progress, number / len(targets), (number + 1) / len(targets))
        with open_for_model(card, target.path, crs_wkt=target.crs_wkt) as reader:
            tell_bands(reader, card.bands, progress)
            tell_differences(reader, card, progress)
            try:
                each = max(1, n_left // (len(targets) - number))
                chips = cut_chips(reader, chip_px=card.chip_px, n_most=each, seed=seed, progress=step)
                _check_range(chips, card, target)
                parts[place] = chips
                n_left -= len(chips)
            except JobError as error:
                failures.append(error)
                progress.info(f"{Path(target.path).name} is left out: {error}")
    if not parts:
        raise failures[0]
    return joined_chips([parts[place] for place in sorted(parts)])


def read_labelled_chips(
    rasters: Sequence[LabelledRaster],
    scheme: ClassScheme,
    card: SegmenterCard,
    *,
    n_most: int | None = None,
    least_wanted: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chips:
    """Labelled chips as the model sees them; everything else as for `read_training_chips`.

    Rasters that differ from what the model was made for are told (`tell_differences`).
    """
    progress = progress or NullProgress()
    return read_training_chips(
        rasters,
        scheme,
        chip_px=card.chip_px,
        names=card.bands,
        gsd_m=card.gsd_m,
        stretch=stretch_of(card),
        n_most=n_most,
        least_wanted=least_wanted,
        seed=seed,
        on_open=lambda reader: tell_differences(reader, card, progress),
        progress=progress,
    )


def _count(target: TargetRaster, card: SegmenterCard, *, n_most: int) -> int:
    """How many chips of a raster there are, `n_most` at the most."""
    # Values are not looked at, so that no stretch has to be estimated.
    with open_bands(
        target.path, names=card.bands, gsd_m=card.gsd_m, stretch=Stretch((0.0,), (1.0,)), crs_wkt=target.crs_wkt
    ) as reader:
        return count_chips(reader, chip_px=card.chip_px, n_most=n_most)


def _tell_scale(reader: BandReader, card: SegmenterCard, progress: Progress) -> None:
    if card.gsd_m is None:
        return
    name = Path(reader.path).name
    if reader.gsd_m is None:
        progress.info(f"{name} has no scale; its pixels are taken for those of the model, {card.gsd_m:.3g} m.")
    elif max(reader.gsd_m / card.gsd_m, card.gsd_m / reader.gsd_m) > _FAR_SCALE:
        progress.info(
            f"Warning: {name} has pixels of {reader.gsd_m:.3g} m, and '{card.name}' was made for {card.gsd_m:.3g} m; "
            "so far apart its answers will be poor. Use a model that was trained nearer to this resolution."
        )


def _tell_depth(reader: BandReader, card: SegmenterCard, progress: Progress) -> None:
    """Say where one of raster and training rasters holds bytes, which no stretch changes, and the other does not."""
    n_bands = len(card.bands)
    is_byte, was_byte = (
        key == (0.0,) * n_bands + (255.0,) * n_bands for key in (reader.stretch.as_key(), card.training_stretch)
    )
    if card.stretch is None and card.training_stretch is not None and is_byte != was_byte:
        own, learned = ("8-bit values", "others")[:: 1 if is_byte else -1]
        progress.info(
            f"Warning: {Path(reader.path).name} holds {own}, and '{card.name}' was trained on {learned}: only what is "
            "not 8-bit is stretched, so that contrasts differ from those that it knows. Give a raster of the same bit "
            "depth, or adapt the model to this one."
        )


def _check_range(chips: Chips, card: SegmenterCard, target: TargetRaster) -> None:
    """Raise `JobError` where a model with a stretch of its own sees hardly anything but black and white."""
    if card.stretch is None:
        return
    values = np.moveaxis(chips.pixels, 1, -1)[chips.valid]
    share = float(((values == 0) | (values == 255)).all(axis=1).mean())
    if share > _MOST_SATURATED:
        n_bands = len(card.bands)
        low, high = min(card.stretch[:n_bands]), max(card.stretch[n_bands:])
        raise JobError(
            f"{100 * share:.0f} % of {Path(target.path).name} lies outside the values that '{card.name}' was made "
            f"for ({low:g} to {high:g}); give a raster of the same bit depth, or rescale its values."
        )
