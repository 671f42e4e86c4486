"""What the windows say of one block: added up, weighed and brought to the raster's pixels where the model is.

Only bytes leave the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ..errors import JobError
from ..raster.blend import Block, Windows, way_back
from ..raster.resample import resampled

_LEAST_PROBABILITY = 1e-6
# Few enough that what is worked out of them stays near the processor; a GPU rather wants few large steps.
_PART_VALUES = {"cpu": 2**20, "cuda": 2**24}

_Bring = Callable[[torch.Tensor], torch.Tensor]


class BlockAnswer:
    """The windows' probabilities times `Windows.taper`, added up on the block's grid; answers on the raster's pixels.

    Between grid pixels all answers are linear; of grid pixels smaller than the raster's the mean over the area is
    taken. `scale`: grid pixels per raster pixel, down the rows and across the columns.
    """

    def __init__(
        self, block: Block, windows: Windows, *, n_classes: int, scale: tuple[float, float], device: torch.device
    ) -> None:
        self._block, self._scale, self._device = block, scale, device
        self._taper = torch.from_numpy(windows.taper()).to(device)
        self._sums = torch.zeros((n_classes, *block.grid_shape), device=device)

    def add(self, places: list[tuple[int, int]], answers: torch.Tensor) -> None:
        """Add probabilities (B, C, rows, cols) of windows at (column, row)."""
        side = len(self._taper)
        for (col_off, row_off), answer in zip(places, answers, strict=True):
            here, there = self._block.shared_with((side, side), col_off=col_off, row_off=row_off)
            self._sums[:, here[0], here[1]].addcmul_(answer[:, there[0], there[1]], self._taper[there])

    def check(self) -> None:
        """Look at the sums. Raises `JobError` where the sums are no numbers."""
        if not bool(torch.isfinite(self._sums).all()):
            raise JobError("The model answers with numbers that are not finite; its training failed, use another one.")

    def labels(self, rows: int | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (rows of the block, class ids uint8 (rows, cols)), at most `rows` at a time.

        The class of the largest probability, the first of equal ones, 0 where no window had data.
        """
        for part, used, bring in self._parts(rows):
            first, *others = self._sums[:, used]
            # The lead over the first class: a plane less to bring back than probabilities have, and no sum of them.
            best = torch.zeros((part.stop - part.start, self._block.shape[1]), device=self._device)
            labels = torch.zeros(best.shape, dtype=torch.uint8, device=self._device)
            for class_id, sums in enumerate(others, 1):
                lead = bring(sums - first)
                labels.masked_fill_(lead > best, class_id)
                torch.maximum(best, lead, out=best)
            yield part, labels

    def probabilities(self, rows: int | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (rows of the block, probabilities (C, rows, cols)), at most `rows` at a time.

        They sum to 1, or are all 0 where no window had data.
        """
        for part, used, bring in self._parts(rows):
            values = torch.stack([bring(plane) for plane in self._sums[:, used]])
            totals = values.sum(dim=0)
            # Where no window had data 0 stays 0.
            yield part, values / totals.masked_fill_(totals <= 0, 1)

    def _parts(self, rows: int | None) -> Iterator[tuple[slice, slice, _Bring]]:
        """Yield rows of the block, the rows of its grid that they need, and what brings a plane from these to those."""
        left, top, right, bottom = self._block.pixels
        grid_left, grid_top, grid_right, grid_bottom = self._block.grid
        if rows is None:
            values = _PART_VALUES.get(self._device.type, _PART_VALUES["cpu"])
            rows = max(1, values // (len(self._sums) * self._block.shape[1]))
        is_same = self._scale == (1, 1)
        across = None if is_same else way_back(left, right, grid_left, grid_right, scale=self._scale[1])
        for start in range(top, bottom, rows):
            stop = min(bottom, start + rows)
            part = slice(start - top, stop - top)
            if across is None:
                yield part, part, lambda plane: plane
                continue
            down = way_back(start, stop, grid_top, grid_bottom, scale=self._scale[0])
            used = slice(int(down.indices.min()), int(down.indices.max()) + 1)
            yield part, used, _bring(down[:, used], across, self._device)


def entropy_of(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy (rows, cols) of probabilities (C, rows, cols) over its largest possible value: 0 certain to 1 unknown."""
    if len(probabilities) < 2:
        return torch.zeros_like(probabilities[0])
    clipped = probabilities.clamp(min=_LEAST_PROBABILITY)
    return (-(clipped * clipped.log()).sum(dim=0) / math.log(len(probabilities))).clamp(max=1)


def _bring(down: csr_matrix, across: csr_matrix, device: torch.device) -> _Bring:
    """What applies the weights of both axes to a plane (rows, cols) on `device`."""
    if device.type != "cuda":
        # On a CPU a fifth of the time of torch's own products, which not every other device has.
        return lambda plane: torch.from_numpy(resampled(plane.cpu().numpy(), down, across)).to(device)
    first, second = _on_device(down, device), _on_device(across, device)
    return lambda plane: torch.sparse.mm(second, torch.sparse.mm(first, plane).T.contiguous()).T


def _on_device(weights: csr_matrix, device: torch.device) -> torch.Tensor:
    entries = weights.tocoo()
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    values = torch.from_numpy(entries.data)
    return torch.sparse_coo_tensor(places, values, weights.shape, device=device, is_coalesced=True)
