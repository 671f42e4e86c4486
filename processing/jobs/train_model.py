"""Train a segmentation model on labelled rasters and save it as a package that says what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch

from ...models.augmentation import USUAL, Augmentation
from ...models.chips import Chips
from ...models.device import choose_device
from ...models.errors import Cancelled, CheckpointError
from ...models.losses import Loss
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.registry import get_card, list_models
from ...models.semantic.card import SegmenterCard, with_event
from ...models.semantic.package import save_segmenter
from ...models.semantic.segmenter import (
    DECODERS,
    DEFAULT_ENCODER,
    Segmenter,
    build_segmenter,
    load_published_encoder,
    published_licence,
)
from ...models.training import Training, TrainingOptions, fit
from ...models.training_state import Keeper
from ...models.transfer.statistics import source_statistics
from ..errors import JobError
from ..raster.band_names import has_bands, has_palette, read_band_names
from ..raster.band_reader import open_bands
from .class_scheme import ClassScheme
from .evaluate_model import Evaluation, EvaluationOptions, in_words, judge
from .page import version
from .training_data import LabelledRaster, SplitBy, folder_of, place_of, read_training_chips, split_chips

Weights = Literal["auto", "published", "none"]
WEIGHTS: tuple[Weights, ...] = ("auto", "published", "none")
"""Where the encoder starts: published weights if they can be had, published or nothing, random."""
UNCHANGED = Augmentation(
    flips=False, rotations=False, scale=0, brightness=0, contrast=0, gamma=0, colour=0, noise=0, blur=0
)
"""No augmentation."""

_LIGHT = "light"
# What decoders stand on that cannot use the usual encoder.
_OWN_ENCODERS = {_LIGHT: "mobile_sam", "dpt": "vit_small_patch16_224"}
# timm's usual numbers (ImageNet), for encoders that state none of their own.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RGB = ("red", "green", "blue")
_MOST_CHECKS = 20
_READ, _TRAINED = 0.1, 0.95
"""Shares of the progress at which chips are read, and at which training is over."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, on what, and how.

    `encoder` may be "" for the usual one of the decoder. `gsd_m`: metres per pixel, None for the first raster's own.
    `bands`: 1-based, None for all but alpha of the first raster (the colours of a palette), and in the others those of
    the same names where all rasters have them, else of the same numbers. `epochs`: how often each chip is seen;
    `n_steps` batches instead where it is given. `held_out`: share of the chips that the model is judged by, 0 for none,
    held out in blocks of ground, whole rasters, or all rasters of a folder (`split`). `patience`: checks (20 at most)
    without a better one before training stops. `n_most`: at most about so many chips.
    """

    name: str = ""
    decoder: str = DECODERS[0]
    encoder: str = ""
    weights: Weights = "auto"
    gsd_m: float | None = None
    chip_px: int = 256
    bands: tuple[int, ...] | None = None
    epochs: int = 40
    n_steps: int | None = None
    batch: int = 8
    rate: float = 1e-3
    held_out: float = 0.2
    split: SplitBy = "blocks"
    patience: int | None = 6
    augmentation: Augmentation = USUAL
    loss: Loss = "cross_entropy_dice"
    is_balanced: bool = True
    n_most: int | None = 4000
    licence: str = "not stated"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers. Raises `JobError`."""
        if not 0 <= self.held_out <= 0.9:
            raise JobError(f"A share of {self.held_out} held out is none; give 0 to 0.9.")
        if self.chip_px < 32 or self.batch < 2 or self.epochs < 1:
            raise JobError(
                f"Chips of {self.chip_px} px, {self.batch} in a batch, {self.epochs} epochs; give at least 32, 2 and 1."
            )


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model: its card as saved, the run, how good it is on the chips held out, and the chips' numbers.

    `evaluation` is None where nothing was held out. `device`: where it was trained.
    """

    card: SegmenterCard
    training: Training
    evaluation: Evaluation | None
    n_chips: int
    n_held_out: int
    class_px: tuple[int, ...]
    rasters: tuple[str, ...]
    device: str
    options: ModelOptions = field(default_factory=ModelOptions)


def train_model(
    rasters: Sequence[LabelledRaster],
    scheme: ClassScheme,
    output: Path,
    options: ModelOptions | None = None,
    *,
    device: str = "auto",
    is_temporary: bool = False,
    checkpoint_folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train on labelled rasters and write the package `output`, whole or not at all.

    A cancel during training keeps the best state so far, saves it and says so; before the first check there is none,
    and `Cancelled` is raised. After a kill or an error a call with the same inputs and output goes on with training;
    an output that `is_temporary` is another one each time. `checkpoint_folder` and `offline`: as for
    `load_published_encoder`. Raises `ModelError`s for parts that do not exist or weights that cannot be had, `JobError`
    and `RasterError` for labels and rasters.
    """
    options, progress = options or ModelOptions(), progress or NullProgress()
    if not rasters:
        raise JobError("No raster is given; choose one or more.")
    if not output.parent.is_dir():
        raise JobError(f"The folder of {output} does not exist; choose another one for the model.")
    choice = choose_device(device)
    progress.info(f"Device: {choice.reason}")
    bands, names, gsd_m = _look_at(rasters, options)
    # Parts that do not go together are refused before the rasters are read, which may take long.
    _build(_card(options, scheme, names=names, gsd_m=gsd_m, output=output)).check_chips(options.chip_px)
    chips = read_training_chips(
        rasters,
        scheme,
        chip_px=options.chip_px,
        names=names,
        bands=bands,
        gsd_m=gsd_m,
        n_most=options.n_most,
        seed=options.seed,
        progress=StepProgress(progress, 0, _READ),
    )
    stretch = _training_stretch(rasters, names, bands, progress)
    kept, held_out = chips, None
    if options.held_out:
        kept, held_out = split_chips(
            chips, held_out=options.held_out, by=options.split, rasters=rasters, seed=options.seed
        )
        if options.split != "blocks":
            held = [rasters[int(place)] for place in np.unique(place_of(held_out))]
            progress.info(f"Held out: {', '.join(_place_names(held, options.split))}.")
    scale = "" if gsd_m is None else f" at {gsd_m:.3g} m"
    progress.info(
        f"{len(kept)} chips of {options.chip_px} px{scale} to learn from, {len(held_out or ())} to judge by; classes: "
        f"{', '.join(one.name for one in scheme.classes)}."
    )
    for part, what in ((kept, "learn from"), (held_out, "judge by")):
        missing = [] if part is None else [f"'{one.name}'" for one in scheme.classes if one.class_id not in _ids(part)]
        if missing:
            progress.info(f"No chip to {what} holds {', '.join(missing)}: what is said of them there means little.")
    card = _card(options, scheme, names=names, gsd_m=gsd_m, chips=kept, output=output)
    card = replace(card, training_stretch=stretch)
    n_steps = options.n_steps or math.ceil(len(kept) / options.batch) * options.epochs
    with Keeper(output, version=version(), is_temporary=is_temporary, progress=progress) as keeper:
        with _seeded(options.seed):
            model = _build(card)
            start = _load_weights(model, options.weights, checkpoint_folder, offline=offline, progress=progress)
            model.to(choice.name)
            with _memory_sentence():
                training = fit(
                    model,
                    kept,
                    held_out,
                    _training_options(options, n_steps, start=start),
                    keeper=keeper,
                    progress=StepProgress(progress, _READ, _TRAINED),
                    on_check=lambda check: progress.info(check.told(n_steps)),
                )
        if training.is_cancelled:
            if not training.checks:
                raise Cancelled("Stopped before the model had learned anything; nothing was saved.")
            progress.info(f"Stopped: the best state so far, of step {training.best_step}, is saved.")
        elif training.checks and training.checks[-1].step < n_steps:
            progress.info(f"Stopped early: nothing better came after step {training.best_step}.")
        # From here on a cancel is not asked for: what was learned is to be saved.
        evaluation = None
        if held_out is not None:
            evaluation = judge(model, held_out, name=card.name, options=EvaluationOptions(seed=options.seed))
            progress.info(f"On the chips held out: {in_words(evaluation)}.")
        statistics, tensors = source_statistics(model, kept, seed=options.seed)
        model.card = with_event(
            replace(
                card,
                statistics=statistics,
                metrics={} if evaluation is None else {"held_out": evaluation.metrics()},
            ),
            "trained",
            rasters=[Path(raster.path).name for raster in rasters],
            n_chips=len(kept),
            n_held_out=len(held_out or ()),
            split=options.split,
            weights=start,
            **({"weights_licence": published_licence(card.encoder)} if start == "published" else {}),
            n_steps=training.checks[-1].step,
            best_step=training.best_step,
            is_cancelled=training.is_cancelled,
            seconds=round(training.checks[-1].seconds, 1),
            loss=options.loss,
            rate=options.rate,
            batch=options.batch,
            seed=options.seed,
        )
        save_segmenter(model, output, extra=tensors)
    progress.set_fraction(1.0)
    progress.info(f"Saved {output}.")
    class_px = np.bincount(kept.labels.ravel(), minlength=256)[: len(scheme.classes)]
    return Trained(
        model.card,
        training,
        evaluation,
        len(kept),
        len(held_out or ()),
        tuple(int(n) for n in class_px),
        tuple(Path(raster.path).name for raster in rasters),
        choice.name,
        options,
    )


def _look_at(
    rasters: Sequence[LabelledRaster], options: ModelOptions
) -> tuple[tuple[int, ...] | None, tuple[str, ...], float | None]:
    """Bands, their names and the resolution of the model, by the first raster.

    No bands where each raster calls its own by these names: rasters may hold them in different orders.
    """
    raster = rasters[0]
    n_bands = 3 if options.bands is None and has_palette(raster.path) else None
    with open_bands(raster.path, n_bands=n_bands, bands=options.bands, crs_wkt=raster.crs_wkt) as reader:
        bands, own_m = reader.bands, reader.gsd_m
    names = _RGB if n_bands else read_band_names(raster.path, bands)
    if options.gsd_m is not None and own_m is None:
        raise JobError(
            f"{Path(raster.path).name} has no scale, so that {options.gsd_m:.3g} m per pixel cannot be made of it; "
            "leave the resolution out, or give a raster with a CRS."
        )
    is_by_name = options.bands is None and all(has_bands(one.path, names) for one in rasters)
    return None if is_by_name else bands, names, options.gsd_m or own_m


def _place_names(rasters: Sequence[LabelledRaster], by: SplitBy) -> list[str]:
    """Names of the rasters, or of the folders that they lie in, each once."""
    if by == "rasters":
        return [Path(raster.path).name for raster in rasters]
    return list(dict.fromkeys(folder_of(raster).name for raster in rasters))


def _training_stretch(
    rasters: Sequence[LabelledRaster], names: Sequence[str], bands: Sequence[int] | None, progress: Progress
) -> tuple[float, ...]:
    """Lows, then highs of the bands: of each the median over the rasters' own stretches."""
    keys = []
    for raster in rasters:
        raise_if_cancelled(progress)
        with open_bands(raster.path, names=names, bands=bands, crs_wkt=raster.crs_wkt) as reader:
            keys.append(reader.stretch.as_key())
    return tuple(float(value) for value in np.median(keys, axis=0))


def _card(
    options: ModelOptions,
    scheme: ClassScheme,
    *,
    names: tuple[str, ...],
    gsd_m: float | None,
    chips: Chips | None = None,
    output: Path,
) -> SegmenterCard:
    encoder = options.encoder.strip() or _OWN_ENCODERS.get(options.decoder, DEFAULT_ENCODER)
    mean, std = (0.0,) * len(names), (1.0,) * len(names)
    if chips is not None:
        mean, std = _normalisation(encoder, names, chips, weights=options.weights)
    return SegmenterCard(
        name=options.name.strip() or output.stem,
        decoder=options.decoder,
        encoder=encoder,
        bands=names,
        classes=scheme.classes,
        gsd_m=gsd_m,
        chip_px=options.chip_px,
        mean=mean,
        std=std,
        licence=options.licence.strip() or "not stated",
        made_on=datetime.now(timezone.utc).date().isoformat(),
        segadapt_version=version(),
        options=scheme.options(),
    )


def _ids(chips: Chips) -> set[int]:
    return {int(class_id) for class_id in np.unique(chips.labels)}


def _build(card: SegmenterCard) -> Segmenter:
    try:
        return build_segmenter(card)
    except TypeError as error:
        # timm's and the decoder's constructors do not fit.
        raise JobError(
            f"The encoder '{card.encoder}' does not go with the decoder '{card.decoder}'; choose another one of the "
            "two, a plain vision transformer for 'dpt' and only there."
        ) from error


def _normalisation(
    encoder: str, names: tuple[str, ...], chips: Chips, *, weights: Weights
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band, 0 to 255: what the published weights were trained with, else the chips' own.

    Bands that are no colour take the mean of the colours', as their first convolution does.
    """
    if weights == "none":
        values = [chips.pixels[:, band][chips.valid].astype(np.float64) for band in range(len(names))]
        return tuple(float(v.mean()) for v in values), tuple(max(1.0, float(v.std())) for v in values)
    if encoder in {card.name for card in list_models("promptable")}:
        known = get_card(encoder)
        means, stds = known.mean, known.std
    else:
        stated = timm.models.get_pretrained_cfg(encoder)
        mean, std = (stated.mean, stated.std) if stated else _IMAGENET
        means, stds = tuple(255 * value for value in mean), tuple(255 * value for value in std)
    own = [_RGB.index(name) if name in _RGB else None for name in names]
    middle = sum(means) / len(means), sum(stds) / len(stds)
    return (
        tuple(middle[0] if place is None else means[place] for place in own),
        tuple(middle[1] if place is None else stds[place] for place in own),
    )


def _load_weights(
    model: Segmenter, weights: Weights, checkpoint_folder: Path | None, *, offline: bool, progress: Progress
) -> str:
    """Give the encoder its start and say which: "published" or "none"."""
    is_light = model.card.decoder == _LIGHT
    if weights == "none" and not is_light:
        return "none"
    try:
        load_published_encoder(model, checkpoint_folder=checkpoint_folder, offline=offline, progress=progress)
    except CheckpointError as error:
        # The encoder under a light decoder stays as it is: without weights it would see nothing.
        if weights == "published" or is_light:
            raise
        progress.info(f"The encoder starts from random weights, which takes more labels and steps: {error}")
        return "none"
    return "published"


def _training_options(options: ModelOptions, n_steps: int, *, start: str) -> TrainingOptions:
    return TrainingOptions(
        n_steps=n_steps,
        batch=options.batch,
        rate=options.rate,
        # Random weights have to move as far as the decoder's.
        encoder_rate=1.0 if start == "none" else 0.3,
        loss=options.loss,
        is_balanced=options.is_balanced,
        augmentation=options.augmentation,
        n_checks=_MOST_CHECKS,
        patience=options.patience,
        seed=options.seed,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws of torch that follow from `seed`, and leave no trace in those of others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _memory_sentence() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise JobError(
            "The memory of the graphics card is used up; choose a smaller batch or chip, or the CPU."
        ) from error
