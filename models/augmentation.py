"""Changes that leave the truth of a view from above as it is: flips, right angles, scale, radiometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from .semantic.card import IGNORE


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much is changed.

    `scale`: largest relative enlargement or reduction; `brightness`, `contrast`, `gamma`, `colour` (each band on its
    own): largest relative change; `noise`: standard deviation, of 255; `blur`: chance.
    """

    flips: bool = True
    rotations: bool = True
    scale: float = 0.25
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.2
    colour: float = 0.1
    noise: float = 3.0
    blur: float = 0.2


USUAL = Augmentation()
"""What labelled chips are trained with."""

WEAK = Augmentation(brightness=0.05, contrast=0.05, gamma=0.05, colour=0.02, noise=0.0, blur=0.0, scale=0.0)
"""Geometry, and hardly any radiometry."""
STRONG = Augmentation(brightness=0.35, contrast=0.35, gamma=0.35, colour=0.25, noise=6.0, blur=0.5)
"""For students that must not lean on colours (self-training)."""


def augment(
    pixels: torch.Tensor, labels: torch.Tensor, options: Augmentation, *, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change a batch: pixels float (B, bands, rows, cols) of 0 to 255, labels integer (B, rows, cols).

    Geometry is the same for both, and for the whole batch where it must be (quarter turns of chips that are not
    square are half turns). What comes in from outside is `IGNORE`.
    """
    pixels, labels = _geometry(pixels, labels, options, generator)
    return radiometry(pixels, options, generator=generator), labels


def radiometry(pixels: torch.Tensor, options: Augmentation, *, generator: torch.Generator) -> torch.Tensor:
    """Change light and colour of (B, bands, rows, cols), 0 to 255, each chip in its own way."""
    n, bands = pixels.shape[:2]

    def around_one(amount: float, columns: int) -> torch.Tensor:
        draws = torch.rand(n, columns, 1, 1, generator=generator) * 2 - 1
        return (1 + amount * draws).to(pixels.device)

    mean = pixels.mean((2, 3), keepdim=True)
    changed = (pixels - mean) * around_one(options.contrast, 1) + mean * around_one(options.brightness, 1)
    changed = changed * around_one(options.colour, bands)
    changed = 255 * (changed.clamp(0, 255) / 255) ** around_one(options.gamma, 1)
    if options.noise:
        changed = changed + options.noise * torch.randn(changed.shape, generator=generator).to(pixels.device)
    if options.blur:
        is_blurred = (torch.rand(n, 1, 1, 1, generator=generator) < options.blur).to(pixels.device)
        soft = functional.avg_pool2d(functional.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        changed = torch.where(is_blurred, soft, changed)
    return changed.clamp(0, 255)


def _geometry(
    pixels: torch.Tensor, labels: torch.Tensor, options: Augmentation, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    if options.scale:
        pixels, labels = _zoomed(pixels, labels, options.scale, generator)
    n = len(pixels)
    if options.flips:
        for axis in (-1, -2):
            is_flipped = torch.rand(n, generator=generator) < 0.5
            pixels = torch.where(is_flipped[:, None, None, None].to(pixels.device), pixels.flip(axis), pixels)
            labels = torch.where(is_flipped[:, None, None].to(labels.device), labels.flip(axis), labels)
    if options.rotations:
        is_square = pixels.shape[-1] == pixels.shape[-2]
        turns = int(torch.randint(4, (1,), generator=generator)) if is_square else 0
        pixels, labels = torch.rot90(pixels, turns, (-2, -1)), torch.rot90(labels, turns, (-2, -1))
    return pixels, labels


def _zoomed(
    pixels: torch.Tensor, labels: torch.Tensor, amount: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Enlarge or reduce each chip around a random place; reduced chips show mirrored pixels and `IGNORE` outside."""
    n = len(pixels)
    zoom = torch.exp(torch.log1p(torch.tensor(amount)) * (torch.rand(n, generator=generator) * 2 - 1))
    room = (1 - zoom)[:, None] * (torch.rand(n, 2, generator=generator) * 2 - 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = room
    grid = functional.affine_grid(theta, [n, 1, *pixels.shape[2:]], align_corners=False).to(pixels.device)
    seen = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # Shifted by one, so that the zeros from outside mean `IGNORE`.
    numbered = torch.where(labels == IGNORE, 0, labels.long() + 1).float()[:, None]
    moved = functional.grid_sample(numbered, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    moved_labels = moved[:, 0].round().long()
    return seen, torch.where(moved_labels == 0, IGNORE, moved_labels - 1).to(labels.dtype)
