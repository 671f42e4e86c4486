"""A small network behind SAM's decoder that moves the mask's edge to where clicks say it is.

SAM embeds a click as one token among 4096 cells of 4 x 4 logits, and later clicks move its masks little. The refiner
sees what SAM does not combine: all four masks, the previous answer, and the clicks beside the mask that they correct
(as FocalClick, https://arxiv.org/abs/2204.02574, does it in a crop around the object). It adds its answer to SAM's
logits, so that a network of zeros is SAM.

It sees neither pixels nor features: with them it learned the look of the few places that it was trained on and lost on
others what it had won there (docs/interactive.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own custom

from ..prompts import FOREGROUND, LOW_RES_PX, Prompts

CROP = 128
"""Side of the crop that the refiner sees, in its own pixels: one or two low-resolution cells each."""

# Four masks and their predicted IoU, the previous answer, two maps per kind of click, the box.
_CHANNELS = 4 + 4 + 1 + 4 + 1
_CLICKS = 9
"""Channel of the discs of foreground clicks; their slopes follow, then discs and slopes of background clicks."""
_WIDTHS = (16, 32, 48, 64)
# An object and its surroundings fit the crop at full resolution up to this extent, in cells.
_LARGEST_FULL = 112
# Clicks as discs and as a slope around them, in cells; the sizes of RITM's discs and a building's edge.
_DISC, _SLOPE = 3.0, 12.0
# Brings logits to about -1..1.
_LOGIT_RANGE = 6.0


@dataclass(frozen=True)
class Crop:
    """Where the refiner looks: `scale` cells per pixel of the crop, its corner at cell (`left`, `top`)."""

    left: int
    top: int
    scale: int

    @classmethod
    def around(cls, mask: npt.NDArray[np.bool_], points: npt.NDArray[np.float32]) -> Crop:
        """The crop for a mask (256, 256) and its clicks (N, 2) in cells; the whole at half resolution if large."""
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        xs = [*points[:, 0], *(cols[[0, -1]] + (0, 1) if len(cols) else ())]
        ys = [*points[:, 1], *(rows[[0, -1]] + (0, 1) if len(rows) else ())]
        if not xs or max(max(xs) - min(xs), max(ys) - min(ys)) > _LARGEST_FULL:
            return cls(0, 0, LOW_RES_PX // CROP)
        left, top = ((min(values) + max(values)) / 2 - CROP / 2 for values in (xs, ys))
        limit = LOW_RES_PX - CROP
        return cls(int(min(max(left, 0), limit)), int(min(max(top, 0), limit)), 1)

    def cut(self, picture: torch.Tensor) -> torch.Tensor:
        """Cut (C, 256, 256) to (C, 128, 128)."""
        if self.scale > 1:
            return F.avg_pool2d(picture[None], self.scale)[0]
        return picture[:, self.top : self.top + CROP, self.left : self.left + CROP]

    def paste(self, change: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        """Add a change (128, 128) to a picture (256, 256); returns a new one."""
        pasted = picture.clone()
        if self.scale > 1:
            pasted += F.interpolate(change[None, None], scale_factor=self.scale, mode="bilinear")[0, 0]
        else:
            pasted[self.top : self.top + CROP, self.left : self.left + CROP] += change
        return pasted


@dataclass(frozen=True, eq=False)
class RefinerInput:
    """What the refiner sees of one answer, on the CPU, in half precision so that many can be remembered.

    `inputs` (14, 128, 128), `base` (1, 128, 128) SAM's logits that are refined. `is_correction`: there was an answer
    before this one.
    """

    crop: Crop
    inputs: torch.Tensor
    base: torch.Tensor
    is_correction: bool

    @property
    def masks(self) -> torch.Tensor:
        """All four masks in the crop, (4, 128, 128) bool."""
        return self.inputs[:4] > 0

    @property
    def scores(self) -> torch.Tensor:
        """Predicted IoU of the four masks, (4,) float."""
        return self.inputs[4:8, 0, 0].float()

    @property
    def click_discs(self) -> torch.Tensor:
        """Where the clicks are: (1, 128, 128) float, 1 inside their discs."""
        return self.inputs[_CLICKS : _CLICKS + 3 : 2].amax(0, keepdim=True).float()

    @property
    def click_slopes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Foreground and background: 1 at a click, a third of it 12 cells away; (128, 128) float each."""
        return self.inputs[_CLICKS + 1].float(), self.inputs[_CLICKS + 3].float()


def refiner_input(logits: torch.Tensor, iou: torch.Tensor, *, chosen: int, cells: Prompts) -> RefinerInput:
    """Bring one decoded object to what the refiner takes.

    `logits` (4, 256, 256) and predicted `iou` (4,) of all masks, of which `chosen` is refined; `cells`: the prompts in
    cells (0 to 256).
    """
    points, previous = cells.points_xy, cells.mask_logits
    crop = Crop.around((logits[chosen] > 0).numpy(), points)
    before = torch.full((1, LOW_RES_PX, LOW_RES_PX), -8.0) if previous is None else torch.from_numpy(previous)[None]
    parts = [
        crop.cut(logits).clamp(-12, 12) / _LOGIT_RANGE,
        iou.view(-1, 1, 1).expand(-1, CROP, CROP),
        crop.cut(before.float()).clamp(-8, 8) / _LOGIT_RANGE,
        _click_maps(crop, points, cells.labels),
        _box_map(crop, cells.box_xyxy),
    ]
    base = crop.cut(logits[chosen][None])
    return RefinerInput(crop, torch.cat(parts).half(), base.half(), previous is not None)


def _click_maps(crop: Crop, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> torch.Tensor:
    """(4, 128, 128): disc and slope of the foreground clicks, then of the background clicks."""
    maps = np.zeros((4, CROP, CROP), np.float32)
    rows, cols = np.mgrid[:CROP, :CROP].astype(np.float32) + 0.5
    for (x, y), label in zip(points, labels, strict=True):
        distance = crop.scale * np.hypot(cols - (x - crop.left) / crop.scale, rows - (y - crop.top) / crop.scale)
        disc, slope = (0, 1) if label == FOREGROUND else (2, 3)
        np.maximum(maps[disc], distance <= _DISC, out=maps[disc])
        np.maximum(maps[slope], np.exp(-distance / _SLOPE), out=maps[slope])
    return torch.from_numpy(maps)


def _box_map(crop: Crop, box: npt.NDArray[np.float32] | None) -> torch.Tensor:
    inside = torch.zeros(1, CROP, CROP)
    if box is not None:
        left, right = ((np.clip(box[[0, 2]], 0, LOW_RES_PX) - crop.left) / crop.scale).clip(0, CROP)
        top, bottom = ((np.clip(box[[1, 3]], 0, LOW_RES_PX) - crop.top) / crop.scale).clip(0, CROP)
        inside[:, round(top) : round(bottom), round(left) : round(right)] = 1
    return inside


class MaskRefiner(nn.Module):
    """A U-Net of four levels (128 to 16 px) that returns what to add to the logits, (B, 1, 128, 128)."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = _WIDTHS
        self.stem = nn.Conv2d(_CHANNELS, first, 3, padding=1)
        self.down1, self.down2, self.down3 = _Block(first, second), _Block(second, third), _Block(third, fourth)
        self.up2, self.up1 = _Block(fourth + third, third), _Block(third + second, second)
        self.out = nn.Sequential(
            nn.Conv2d(second + first, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, 1, 3, padding=1)
        )
        # Nothing is added before anything was learned.
        nn.init.zeros_(self.out[-1].weight)  # type: ignore[arg-type]  # a Sequential's items are Modules to mypy
        nn.init.zeros_(self.out[-1].bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` (B, 14, 128, 128)."""
        full = F.relu(self.stem(inputs))
        half = self.down1(F.avg_pool2d(full, 2))
        quarter = self.down2(F.avg_pool2d(half, 2))
        eighth = self.down3(F.avg_pool2d(quarter, 2))
        quarter = self.up2(torch.cat([_double(eighth), quarter], dim=1))
        half = self.up1(torch.cat([_double(quarter), half], dim=1))
        change: torch.Tensor = self.out(torch.cat([_double(half), full], dim=1))
        return change


def changes(refiner: MaskRefiner, seen: Sequence[RefinerInput], *, half: bool) -> torch.Tensor:
    """What the refiner adds to each base, (B, 1, 128, 128) float32; in bfloat16 inside with `half`."""
    inputs = torch.stack([one.inputs for one in seen]).float().contiguous(memory_format=torch.channels_last)
    device = next(refiner.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        change: torch.Tensor = refiner(inputs.to(device))
    return change.float().cpu()


class _Block(nn.Module):
    """Two convolutions with a short cut."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(n_in, n_out, 3, padding=1), nn.GroupNorm(4, n_out)
        self.second, self.second_norm = nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(4, n_out)
        self.short = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, rows, cols) -> (B, n_out, rows, cols)."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.short(x))


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
