"""Judge segmentation models on labelled rasters: confusion, IoU, F1, outlines, calibration, the worst windows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...models.chips import Chips
from ...models.device import choose_device
from ...models.metrics import (
    Calibration,
    Confusion,
    bootstrap_interval,
    boundary_f1,
    calibration,
    class_f1,
    class_intervals,
    class_ious,
    confusion_matrix,
    holds_all,
    mean_iou,
    overall_accuracy,
)
from ...models.progress import NullProgress, Progress, StepProgress
from ...models.semantic.card import SegmenterCard, read_card
from ...models.semantic.package import load_segmenter, package_sha256
from ...models.semantic.prediction import device_of, predict_chips, windows_at_once
from ...models.semantic.segmenter import Segmenter
from ..errors import JobError
from ..raster.band_reader import BandReader
from ..raster.geodesy import apply_affine
from .class_scheme import ClassScheme
from .model_rasters import stretch_of, tell_differences
from .page import write_csv
from .training_data import LabelledRaster, place_of, read_training_chips

N_BINS = 15
"""Bins of confidence that calibration is measured in, as in Guo et al. 2017."""
_N_WORST = 5
_LEAST_LABELLED = 0.1
"""A window with a smaller share of labelled pixels is not shown as a bad one: its few pixels say little."""
_N_RESAMPLES = 1000
_MOST_BYTES = 4 * 2**30
"""Windows in memory; reading them takes twice as much for a while."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How models are judged.

    `chip_px`: side of the windows, None for what the models were trained on. `bands`: 1-based, None as for
    `open_bands` by the names on each card. `n_most`: at most about so many windows, drawn by `seed`, fewer where these
    would take more than 4 GiB of memory. `flips`: mean over
    mirror images. `tolerance_px`: how far an outline may be off and still be right. `batch`: windows at once, of larger
    ones than a model was trained on as many as take that memory.
    """

    chip_px: int | None = None
    bands: tuple[int, ...] | None = None
    n_most: int | None = None
    flips: bool = False
    tolerance_px: int = 3
    batch: int = 8
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Window:
    """A window with its truth and the answer: `pixels` uint8 (bands, rows, cols), class ids uint8 (rows, cols).

    `error`: share of the labelled pixels that are wrong; `block`: where it lies, as in `Chips.blocks`; `number`: that
    of its chip. `where`: name of the raster, and map coordinates of the window's centre in its CRS, where they are
    known.
    """

    pixels: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    answer: npt.NDArray[np.uint8]
    error: float
    block: int
    number: int
    where: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of one model.

    `confusion` (C, C), rows the truth; `by_block`: the same for each of `blocks`; `boundary`: F-score of the outlines
    of each class (C,), NaN where there is none; `interval`: of the mean IoU, 95 %, blocks drawn with replacement;
    `class_intervals` (C, 2): of the IoU of each class. `worst`: windows with the largest share of wrong pixels, the
    worst first. `gsd_m`: metres per pixel of the windows, None for each raster's own. `seconds`: of the model alone, on
    `device`.
    """

    name: str
    card: SegmenterCard
    confusion: Confusion
    by_block: tuple[Confusion, ...]
    blocks: tuple[int, ...]
    boundary: Floats
    calibration: Calibration
    interval: tuple[float, float]
    class_intervals: Floats
    worst: tuple[Window, ...]
    n_chips: int
    gsd_m: float | None
    seconds: float
    device: str

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that the labels hold."""
        return mean_iou(self.confusion)

    @property
    def ious(self) -> Floats:
        """IoU of each class (C,), NaN for one that the labels do not hold."""
        return class_ious(self.confusion)

    @property
    def f1(self) -> Floats:
        """F1 of each class (C,), NaN for one that the labels do not hold."""
        return class_f1(self.confusion)

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that the labels hold."""
        return _mean(self.f1)

    @property
    def mean_boundary(self) -> float:
        """Mean F-score of the outlines over the classes that have some."""
        return _mean(self.boundary)

    @property
    def accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        return overall_accuracy(self.confusion)

    def metrics(self) -> dict[str, object]:
        """What a card keeps of it: plain numbers, None for NaN."""
        numbers = {
            "mean_iou": self.mean_iou,
            "mean_iou_low": self.interval[0],
            "mean_iou_high": self.interval[1],
            "accuracy": self.accuracy,
            "mean_f1": self.mean_f1,
            "boundary_f1": self.mean_boundary,
            "calibration_error": self.calibration.error,
        }
        ious = {one.name: _rounded(iou) for one, iou in zip(self.card.classes, self.ious, strict=True)}
        return {name: _rounded(value) for name, value in numbers.items()} | {"iou": ious, "n_chips": self.n_chips}


def judge(
    model: Segmenter,
    chips: Chips,
    *,
    name: str = "",
    options: EvaluationOptions | None = None,
    gsd_m: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare what a model says of labelled chips with their labels. Raises `Cancelled`.

    `gsd_m`: metres per pixel of the chips, where it is not the model's own resolution but a finer one.
    """
    options, progress = options or EvaluationOptions(), progress or NullProgress()
    coarser = 1.0 if gsd_m is None or model.card.gsd_m is None else model.card.gsd_m / gsd_m
    n_classes = len(model.card.classes)
    per_chip: list[Confusion] = []
    outlines, outline_px = np.zeros(n_classes), np.zeros(n_classes)
    sure, right, counts = np.zeros(N_BINS), np.zeros(N_BINS), np.zeros(N_BINS)
    worst: list[Window] = []
    seconds, start = 0.0, time.perf_counter()
    batch = windows_at_once(model.card, chips.pixels.shape[-1], batch=options.batch)
    for part, probability in predict_chips(
        model, chips, batch=batch, flips=options.flips, coarser=coarser, progress=progress
    ):
        seconds += time.perf_counter() - start
        answers = probability.argmax(axis=1).astype(np.uint8)
        truths = chips.labels[part]
        bins = calibration(truths, answers, probability.max(axis=1), n_bins=N_BINS)
        of_bins = np.array(bins.counts, np.float64)
        sure += np.nan_to_num(np.array(bins.confidence)) * of_bins
        right += np.nan_to_num(np.array(bins.accuracy)) * of_bins
        counts += of_bins
        for n, (truth, answer) in enumerate(zip(truths, answers, strict=True), part.start):
            confusion = confusion_matrix(truth, answer, n_classes=n_classes)
            per_chip.append(confusion)
            for class_id in range(n_classes):
                score, n_px = boundary_f1(truth, answer, class_id=class_id, tolerance_px=options.tolerance_px)
                outlines[class_id] += score * n_px if n_px else 0.0
                outline_px[class_id] += n_px
            if confusion.sum() >= _LEAST_LABELLED * truth.size:
                error = 1 - overall_accuracy(confusion)
                if len(worst) < _N_WORST or error > worst[-1].error:
                    worst.append(Window(chips.pixels[n], truth, answer, error, int(chips.blocks[n]), n))
                    worst = sorted(worst, key=lambda window: -window.error)[:_N_WORST]
        start = time.perf_counter()
    blocks = np.unique(chips.blocks)
    stacked = np.stack(per_chip)
    by_block = tuple(stacked[chips.blocks == block].sum(axis=0) for block in blocks)
    return Evaluation(
        name or model.card.name,
        model.card,
        stacked.sum(axis=0),
        by_block,
        tuple(blocks.tolist()),
        np.divide(outlines, outline_px, out=np.full(n_classes, np.nan), where=outline_px > 0),
        _calibration(sure, right, counts),
        bootstrap_interval(by_block, n_resamples=_N_RESAMPLES, seed=options.seed),
        class_intervals(by_block, n_resamples=_N_RESAMPLES, seed=options.seed),
        tuple(window for window in worst if window.error > 0),
        len(chips),
        gsd_m or model.card.gsd_m,
        seconds,
        str(device_of(model)),
    )


def evaluate_models(
    paths: Sequence[Path],
    rasters: Sequence[LabelledRaster],
    scheme_of: Callable[[SegmenterCard], ClassScheme],
    *,
    options: EvaluationOptions | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Judge model packages on labelled rasters. `scheme_of`: how labels name the classes of a model.

    Models of several resolutions are all judged at the finest of them, on the same windows, so that a coarse model is
    not judged by coarse labels; those without a resolution see each raster's own pixels, and then every model is judged
    at its own. Raises `PackageError`, `JobError`, `RasterError`, `Cancelled`.
    """
    options, progress = options or EvaluationOptions(), progress or NullProgress()
    if not paths:
        raise JobError("No model is given; choose one or more.")
    choice = choose_device(device)
    progress.info(f"Device: {choice.reason}")
    cards = [read_card(path) for path in paths]
    for path in paths:
        # Before anything else is blamed for what an altered card says.
        package_sha256(path)
    schemes = [scheme_of(card) for card in cards]
    names = _names(paths, cards)
    grid_m, largest_px = _common_grid(cards)
    # Of all models, so that each is judged on the same windows.
    n_bands = max(len(card.bands) for card in cards)
    read: tuple[object, Chips, list[BandReader]] | None = None
    evaluations = []
    for number, (path, card, scheme, name) in enumerate(zip(paths, cards, schemes, names, strict=True)):
        step = StepProgress(progress, number / len(paths), (number + 1) / len(paths))
        chip_px = options.chip_px or largest_px or card.chip_px
        gsd_m = grid_m or card.gsd_m
        key = (card.bands, gsd_m, chip_px, card.stretch, scheme)
        if read is None or read[0] != key:
            opened: list[BandReader] = []
            chips = read_training_chips(
                rasters,
                scheme,
                chip_px=chip_px,
                names=card.bands,
                bands=options.bands,
                gsd_m=gsd_m,
                stretch=stretch_of(card),
                n_most=_most_windows(options.n_most, chip_px, n_bands, progress),
                least_classes=1,
                seed=options.seed,
                on_open=opened.append,
                progress=StepProgress(step, 0, 0.3),
            )
            read = key, chips, opened
        # Closed by now; what they were is still known, and differs from model to model.
        for reader in read[2]:
            tell_differences(reader, card, progress)
        model = load_segmenter(path).to(choice.name)
        evaluation = judge(
            model, read[1], name=name, options=options, gsd_m=grid_m, progress=StepProgress(step, 0.3, 1)
        )
        progress.info(f"{name}: {in_words(evaluation)}.")
        readers = {reader.path: reader for reader in read[2]}
        worst = tuple(
            replace(window, where=_where(window, read[1], readers[rasters[place_of(read[1])[window.number]].path]))
            for window in evaluation.worst
        )
        evaluations.append(replace(evaluation, worst=worst))
    return evaluations


def _where(window: Window, chips: Chips, reader: BandReader) -> tuple[str, str]:
    """Name of the raster, and map coordinates of the window's centre."""
    centre = chips.origins[window.number] + np.array(window.truth.shape[::-1]) / 2
    ((x, y),) = apply_affine(reader.grid_transform, centre[None])
    digits = 6 if reader.crs is not None and reader.crs.is_geographic else 1
    return Path(reader.path).name, f"{x:.{digits}f}, {y:.{digits}f}"


def _common_grid(cards: Sequence[SegmenterCard]) -> tuple[float | None, int | None]:
    """Of several models the finest resolution, and the window of that for the ground that the largest window shows.

    Nothing for one model, and where a model has no resolution.
    """
    known = [(card.gsd_m, card.chip_px) for card in cards if card.gsd_m is not None]
    if len(cards) < 2 or len(known) < len(cards):
        return None, None
    finest = min(gsd_m for gsd_m, _ in known)
    return finest, max(math.ceil(chip_px * gsd_m / finest) for gsd_m, chip_px in known)


def _most_windows(wanted: int | None, chip_px: int, n_bands: int, progress: Progress) -> int:
    """How many windows may be in memory, `wanted` at the most; says so where these are too many."""
    # Beside the bands each pixel has a label and whether it is valid.
    n_bytes = chip_px**2 * (n_bands + 2)
    n_fit = max(1, _MOST_BYTES // n_bytes)
    if wanted is None or wanted <= n_fit:
        return wanted or n_fit
    progress.info(
        f"A window of {chip_px} px takes {n_bytes / 2**20:.3g} MiB of memory, so that at most {n_fit} are judged and "
        f"not {wanted}; choose a smaller window to judge more."
    )
    return n_fit


def in_words(evaluation: Evaluation) -> str:
    """The main numbers in one line."""
    low, high = evaluation.interval
    interval = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return (
        f"mean IoU {evaluation.mean_iou:.3f}{interval}, accuracy {evaluation.accuracy:.3f}, calibration error "
        f"{evaluation.calibration.error:.3f}, {evaluation.n_chips} windows"
    )


def difference(
    first: Evaluation, other: Evaluation, *, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> tuple[float, float, float] | None:
    """Mean IoU of `other` less that of `first`, and its 95 % interval: both on the same drawn blocks (paired).

    None where they were judged on other windows, or on one block, and where no draw has all classes.
    """
    if first.blocks != other.blocks or len(first.blocks) < 2 or first.n_chips != other.n_chips:
        return None
    of_first, of_other = np.stack(first.by_block), np.stack(other.by_block)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        drawn = random.integers(0, len(of_first), len(of_first))
        one, another = of_first[drawn].sum(axis=0), of_other[drawn].sum(axis=0)
        if holds_all(one, first.confusion):
            values.append(mean_iou(another) - mean_iou(one))
    if not values:
        return None
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return other.mean_iou - first.mean_iou, float(low), float(high)


def write_table(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one CSV row per model and class, and one for all classes. Raises `JobError` where it cannot be written."""
    rows: list[list[object]] = [
        ["model", "class", "pixels", "iou", "f1", "boundary_f1", "accuracy", "calibration_error", "iou_low", "iou_high"]
    ]
    for one in evaluations:
        pixels = one.confusion.sum(axis=1)
        for n, entry in enumerate(one.card.classes):
            numbers = [_cell(value) for value in (one.ious[n], one.f1[n], one.boundary[n])]
            interval = map(_cell, one.class_intervals[n])
            rows.append([one.name, entry.name, int(pixels[n]), *numbers, "", "", *interval])
        means = (one.mean_iou, one.mean_f1, one.mean_boundary, one.accuracy, one.calibration.error)
        rows.append([one.name, "(all)", int(pixels.sum()), *map(_cell, (*means, *one.interval))])
    write_csv(rows, path)


def _names(paths: Sequence[Path], cards: Sequence[SegmenterCard]) -> list[str]:
    """Names that tell the models apart: those on the cards, else with the file, else with a number."""
    names = [card.name for card in cards]
    if len(set(names)) < len(names):
        names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _calibration(sure: Floats, right: Floats, counts: Floats) -> Calibration:
    """Bins of many batches as one; `sure` and `right` are sums over pixels."""
    with np.errstate(invalid="ignore"):
        confidence, accuracy = sure / counts, right / counts
    total = counts.sum()
    error = float(np.abs(sure - right).sum() / total) if total else float("nan")
    return Calibration(error, tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(counts.astype(int).tolist()))


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.5f}"
