"""Chips of rasters with their labels: what models are trained, adapted and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import ModelError
from .semantic.card import IGNORE

Indices = npt.NDArray[np.intp]


class ChipError(ModelError, ValueError):
    """Chips that do not fit together, or too few of them."""


@dataclass(frozen=True, eq=False)
class Chips:
    """N chips of equal size.

    `pixels`: uint8 (N, bands, rows, cols), stretched to 0..255 at the model's resolution. `labels`: uint8
    (N, rows, cols) class ids, `IGNORE` where there is none or no data; all `IGNORE` where nothing is labelled.
    `valid`: bool (N, rows, cols), False without data. `blocks`: int (N,), chips with the same number lie in the same
    block of ground: they are held out and resampled together. `origins`: int (N, 2), column and row of the first pixel
    in the grid that the chips were cut from.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    blocks: npt.NDArray[np.int64]
    origins: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check the shapes. Raises `ChipError`."""
        n, shape = len(self.pixels), self.pixels.shape[2:]
        fits = (
            self.pixels.ndim == 4
            and self.labels.shape == (n, *shape)
            and self.valid.shape == (n, *shape)
            and self.blocks.shape == (n,)
            and self.origins.shape == (n, 2)
        )
        if not fits:
            raise ChipError(
                f"Chips of shape {self.pixels.shape} with labels of shape {self.labels.shape} and {len(self.blocks)} "
                "blocks; give one of each per chip."
            )

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.pixels)

    @property
    def n_bands(self) -> int:
        """Number of bands."""
        return int(self.pixels.shape[1])

    def take(self, indices: Sequence[int] | Indices) -> Chips:
        """The chips at `indices`."""
        chosen = np.asarray(indices, np.intp)
        return Chips(
            self.pixels[chosen], self.labels[chosen], self.valid[chosen], self.blocks[chosen], self.origins[chosen]
        )

    def with_labels(self, labels: npt.NDArray[np.uint8]) -> Chips:
        """The same chips with other labels."""
        return Chips(self.pixels, labels, self.valid, self.blocks, self.origins)

    def unlabelled(self) -> Chips:
        """The same chips, their labels hidden."""
        return self.with_labels(np.full_like(self.labels, IGNORE))

    def n_labelled_px(self) -> int:
        """Pixels that have a class."""
        return int((self.labels != IGNORE).sum())


def unlabelled_chips(
    pixels: npt.NDArray[np.uint8], *, valid: npt.NDArray[np.bool_] | None = None, block: int = 0
) -> Chips:
    """Chips from pixels (N, bands, rows, cols) alone, all of one block."""
    n, _, rows, cols = pixels.shape
    return Chips(
        pixels,
        np.full((n, rows, cols), IGNORE, np.uint8),
        np.ones((n, rows, cols), np.bool_) if valid is None else valid,
        np.full(n, block, np.int64),
        np.zeros((n, 2), np.int64),
    )


def joined_chips(parts: Sequence[Chips]) -> Chips:
    """All chips of `parts`, whose blocks stay apart. Raises `ChipError` for none, or for other bands or sizes."""
    if not parts:
        raise ChipError("There are no chips to join; give rasters that hold data.")
    shapes = {part.pixels.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ChipError(f"Chips of shapes {sorted(shapes)} cannot be joined; give rasters with the same bands.")
    blocks, first = [], 0
    for part in parts:
        _, numbered = np.unique(part.blocks, return_inverse=True)
        blocks.append(numbered.astype(np.int64) + first)
        first += int(numbered.max(initial=-1)) + 1
    return Chips(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.valid for part in parts]),
        np.concatenate(blocks),
        np.concatenate([part.origins for part in parts]),
    )


def split_by_block(chips: Chips, *, held_out: float, seed: int = 0) -> tuple[Chips, Chips]:
    """Cut chips into two parts that share no block; the second holds about the fraction `held_out` of the chips.

    Blocks are dealt in a random order fixed by `seed`. Neighbouring chips are not independent, so a chip never
    decides alone. Raises `ChipError` where there is only one block.
    """
    numbers, counts = np.unique(chips.blocks, return_counts=True)
    if len(numbers) < 2:
        raise ChipError(
            f"{len(chips)} chips in one block of ground cannot be split; give a larger extent, more rasters or "
            "smaller blocks."
        )
    order = np.random.default_rng(seed).permutation(len(numbers))
    wanted = held_out * len(chips)
    # The cut that comes closest to the wanted number, with at least one block on either side.
    sums = np.cumsum(counts[order])
    n_blocks = int(np.abs(sums[:-1] - wanted).argmin()) + 1
    is_held_out = np.isin(chips.blocks, numbers[order[:n_blocks]])
    return chips.take(np.flatnonzero(~is_held_out)), chips.take(np.flatnonzero(is_held_out))
