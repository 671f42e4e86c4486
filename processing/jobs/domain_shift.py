"""Measure how far rasters are from what a segmentation model was made with, and say which methods to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...models.chips import Chips
from ...models.device import choose_device
from ...models.progress import NullProgress, Progress, StepProgress
from ...models.semantic.card import SegmenterCard
from ...models.semantic.package import load_extra, load_segmenter
from ...models.semantic.prediction import predict_labels
from ...models.transfer.adapting import chips_of_network
from ...models.transfer.shift import Advice, DomainShift, advise, measure_shift
from ...models.transfer.statistics import band_quantiles
from .chip_segments import superpixels
from .model_rasters import TargetRaster, read_target_chips

MOST_CHIPS = 120
"""So many chips of the target are looked at."""
_N_SHOWN = 4


@dataclass(frozen=True, eq=False)
class ShiftResult:
    """What was measured on the `chips` of the target; `labels` uint8 (n, rows, cols) of some of them, `shown`.

    `quantiles` (bands, 33): values of the target, as the network sees them, at the shares `statistics.QUANTILES`.
    """

    card: SegmenterCard
    shift: DomainShift
    advice: Advice
    quantiles: npt.NDArray[np.float64]
    n_chips: int
    shown: Chips
    labels: npt.NDArray[np.uint8]
    device: str


def domain_shift(
    targets: Sequence[TargetRaster],
    model_path: Path,
    *,
    device: str = "auto",
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
) -> ShiftResult:
    """Compare the target with what the package knows of its source.

    At most 120 chips are looked at, drawn by `seed`, evenly over the rasters. Raises `JobError` where the target holds
    no data, `RasterError` for rasters that do not fit, `PackageError`, and `Cancelled`.
    """
    progress = progress or NullProgress()
    model = load_segmenter(model_path)
    chips = read_target_chips(
        targets, model.card, n_most=MOST_CHIPS, seed=seed, progress=StepProgress(progress, 0.0, 0.2)
    )
    choice = choose_device(device)
    progress.info(choice.reason)
    model.to(choice.name)
    segments = superpixels(chips, progress=StepProgress(progress, 0.2, 0.3))
    shift = measure_shift(
        model,
        chips,
        statistics=load_extra(model_path),
        segments=segments,
        batch=batch,
        seed=seed,
        progress=StepProgress(progress, 0.3, 0.95),
    )
    advice = advise(model, shift)
    for sentence in advice.sentences:
        progress.info(sentence)
    shown = chips.take(np.unique(np.linspace(0, len(chips) - 1, _N_SHOWN).round()).astype(np.intp))
    labels = predict_labels(model, shown, batch=batch)
    progress.set_fraction(1.0)
    quantiles = band_quantiles(chips_of_network(model, chips))
    return ShiftResult(model.card, shift, advice, quantiles, len(chips), shown, labels, choice.name)
