"""What a package remembers of its source domain, so that a target can be compared without the source's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..progress import NullProgress, Progress, raise_if_cancelled
from ..semantic.package import changed_tensors
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from .adapting import chips_of_network, whole_chips

QUANTILES = np.linspace(0, 1, 33)
"""Shares of pixels at which the values of a band are remembered."""
FEATURE_MEAN, FEATURE_COVARIANCE = "feature_mean", "feature_covariance"
"""Names of the tensors beside the weights: (E,), (E, E) of the encoder's deepest features."""

_MOST_CHIPS = 256


def band_quantiles(chips: Chips) -> npt.NDArray[np.float64]:
    """Values (bands, 33) of valid pixels at the shares `QUANTILES`; NaN where there is no valid pixel."""
    columns = []
    for band in range(chips.n_bands):
        values = chips.pixels[:, band][chips.valid]
        columns.append(np.quantile(values, QUANTILES) if values.size else np.full(len(QUANTILES), np.nan))
    return np.stack(columns)


def class_shares(labels: npt.NDArray[np.uint8], n_classes: int) -> npt.NDArray[np.float64]:
    """Share of each class (C,) among the pixels that have one; 0 for all where none has."""
    counts = np.bincount(labels.ravel(), minlength=256)[:n_classes].astype(np.float64)
    shares: npt.NDArray[np.float64] = counts / max(1.0, counts.sum())
    return shares


def deep_features(
    model: Segmenter, chips: Chips, *, batch: int = 8, progress: Progress | None = None
) -> npt.NDArray[np.float64]:
    """The encoder's deepest features, averaged over each quarter of a chip: (4 N, E). Raises `Cancelled`."""
    progress, device = progress or NullProgress(), device_of(model)
    model.eval()
    rows, cols = chips.pixels.shape[2] // 2, chips.pixels.shape[3] // 2
    found = []
    for start in range(0, len(chips), batch):
        raise_if_cancelled(progress)
        pixels = torch.from_numpy(chips.pixels[start : start + batch]).to(device).float()
        quarters = [pixels[:, :, y : y + rows, x : x + cols] for y in (0, rows) for x in (0, cols)]
        with torch.inference_mode(), autocast(device):
            stages = model.encode(torch.cat(quarters))
            deepest = (stages[0] if isinstance(stages, tuple) else stages)[-1]
            found.append(deepest.float().mean((2, 3)).cpu().numpy().astype(np.float64))
        progress.set_fraction(min(1.0, (start + batch) / len(chips)))
    return np.concatenate(found)


def source_statistics(
    model: Segmenter, chips: Chips, *, seed: int = 0
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What goes onto the card (`band_quantiles`, `class_shares`) and beside the weights (features).

    `chips`: labelled chips of the source domain, of which at most 256 are looked at; values are remembered as the
    network sees them, through the model's input map. Features are of those without missing data, unless these are few
    (`adapting.whole_chips`).
    """
    chosen = np.random.default_rng(seed).permutation(len(chips))[:_MOST_CHIPS]
    sample = chips.take(np.sort(chosen))
    features = deep_features(model, sample.take(whole_chips(sample)))
    seen = chips_of_network(model, sample)
    card = {
        "band_quantiles": [[round(float(value), 2) for value in row] for row in band_quantiles(seen)],
        "class_shares": [round(float(share), 5) for share in class_shares(chips.labels, len(model.card.classes))],
        "n_chips": len(chips),
    }
    tensors = {
        FEATURE_MEAN: features.mean(axis=0),
        FEATURE_COVARIANCE: np.cov(features, rowvar=False),
    }
    return card, {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in tensors.items()}


def lasting_tensors(
    before: Segmenter, after: Segmenter, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Those of the tensors beside the weights of `before` that hold for `after`, which learned without labels.

    Features are of a network: they go where another weight than the input map changed, which only brings a target to
    the values that the same network knows. Both models are on one device.
    """
    changed = changed_tensors(before.state_dict(), after.state_dict()).keys() - {"input_map"}
    gone = {FEATURE_MEAN, FEATURE_COVARIANCE} if changed else set()
    return {name: value for name, value in tensors.items() if name not in gone}
