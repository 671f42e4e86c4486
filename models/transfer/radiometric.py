"""What methods share that make the target's values look like the source's, band by band.

Nothing is learned, and no source image needed: the package knows the source's values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..chips import Chips
from ..progress import Progress
from ..semantic.segmenter import LEVELS, Segmenter
from .base import TransferError
from .statistics import QUANTILES

Values = npt.NDArray[np.float64]


def source_quantiles(model: Segmenter) -> Values:
    """The source's values (bands, 33) at the shares `QUANTILES`. Raises `TransferError` where they are not known."""
    known = np.array(model.card.statistics.get("band_quantiles", ()), np.float64)
    if known.shape != (len(model.card.bands), len(QUANTILES)) or not np.isfinite(known).all():
        raise TransferError(
            f"The model '{model.card.name}' does not say which values its source had; train it anew with SegAdapt, or "
            "choose norm_statistics."
        )
    return known


def histograms(chips: Chips) -> Values:
    """Pixels with data of each band by their value, (bands, 256). Raises `TransferError` where there are none."""
    counts = [np.bincount(chips.pixels[:, band][chips.valid], minlength=LEVELS) for band in range(chips.n_bands)]
    if not chips.valid.any():
        raise TransferError("The target has no pixel with data; choose another extent.")
    return np.stack(counts).astype(np.float64)


def set_map(model: Segmenter, levels: Values, progress: Progress) -> None:
    """Make `levels` (bands, 256) the model's input map, cut to 0 to 255; it is left in evaluation mode."""
    model.set_input_map(torch.from_numpy(levels.clip(0, 255).astype(np.float32)))
    model.eval()
    progress.set_fraction(1.0)
