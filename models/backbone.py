"""A frozen ImageNet network as a source of dense features: what a place looks like, beside where objects end.

EfficientNet-Lite0 (Tan & Le 2019, https://arxiv.org/abs/1905.11946; tensorflow/tpu efficientnet/lite) as timm builds
it, with the published weights under timm's names. SAM's features tell objects apart, these tell kinds apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch.nn import functional

from .checkpoints import fetch_checkpoint, load_state_dict
from .device import choose_device
from .errors import CheckpointError, EngineError
from .progress import NullProgress, Progress
from .registry import get_card

MODEL_NAME = "efficientnet_lite0"
STRIDE_PX = 4
"""Pixels of the chip per feature cell."""
LARGEST_CHIP_PX = 2048
"""Side of the largest chip: its activations take under 2 GB."""

_TIMM_NAME = "tf_efficientnet_lite0"
# Groups of blocks whose output is taken, by their stride in pixels: the last group of each resolution.
_GROUPS = {2: 0, 4: 1, 8: 2, 16: 4}
_CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112}
CHANNELS = sum(_CHANNELS.values())
"""Length of the feature vector of a cell."""
# Where a cell's features come from, right of and below its centre, in pixels of the chip. TensorFlow's padding alone
# would give (stride - 1) / 2, but the weights learned to make up for most of it. Measured: the shift at which the
# features of a picture and of its mirror image agree best.
_SHIFT_PX = {2: 0.4, 4: 1.5, 8: -0.2, 16: 1.2}


class Backbone:
    """EfficientNet-Lite0, loaded and frozen. Safe to call from several threads; they take turns.

    Raises `CheckpointError` for weights that do not fit, `EngineError` for a device that does not work.
    """

    def __init__(self, *, checkpoint: Path, device: str = "cpu") -> None:
        card = get_card(MODEL_NAME)
        self.card = card
        self.checkpoint_sha256 = card.checkpoint.sha256
        self.device = choose_device(device).name
        self._lock = RLock()
        model = build_network(load_state_dict(checkpoint))
        # A chip is judged without what follows the last stride that is used.
        model.blocks = model.blocks[: max(_GROUPS.values()) + 1]
        model.conv_head = model.bn2 = model.global_pool = model.classifier = torch.nn.Identity()
        self._model = model.to(self.device, memory_format=torch.channels_last)
        self._mean = torch.tensor(card.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(card.std, device=self.device)[:, None, None]

    def features(self, chip: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Describe a chip, uint8 (3, rows, cols), by float16 (192, rows / 4, cols / 4) on the CPU, sides rounded up.

        The outputs at strides 2, 4, 8 and 16 are brought to stride 4 with their cells' true centres in place, scaled
        to unit length each (cosine geometry: no stride drowns the others) and concatenated. Raises `EngineError` for
        another shape or type.
        """
        if chip.ndim != 3 or chip.shape[0] != 3 or chip.dtype != np.uint8 or not min(chip.shape) > 0:
            raise EngineError(f"A chip of shape {chip.shape} and type {chip.dtype}; give (3, rows, cols) uint8.")
        if max(chip.shape) > LARGEST_CHIP_PX:
            raise EngineError(f"A chip of shape {chip.shape}; give at most {LARGEST_CHIP_PX} px a side.")
        rows, cols = (-(-side // STRIDE_PX) for side in chip.shape[1:])
        with self._lock, torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(chip)).to(self.device)
            stages = self._stages(((pixels - self._mean) / self._std)[None])
            parts = [
                functional.normalize(_to_grid(stage, stride=stride, shape=(rows, cols)), dim=1)
                for stride, stage in stages.items()
            ]
            return torch.cat(parts, dim=1)[0].to("cpu", torch.float16).contiguous()

    def _stages(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        # Even sides at every stride, or TensorFlow's padding would change sides from one chip to the next.
        side = max(_GROUPS)
        right, below = -pixels.shape[3] % side, -pixels.shape[2] % side
        padded = functional.pad(pixels, (0, right, 0, below), mode="replicate")
        x = self._model.bn1(self._model.conv_stem(padded.contiguous(memory_format=torch.channels_last)))
        outputs = []
        for group in self._model.blocks:
            x = group(x)
            outputs.append(x)
        return {stride: outputs[group].float() for stride, group in _GROUPS.items()}


def open_backbone(
    *,
    device: str = "auto",
    checkpoint_folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Backbone:
    """Find or download the weights, verify them and return the backbone.

    Raises `CheckpointError`, `EngineError`, or `Cancelled` during a download.
    """
    checkpoint = fetch_checkpoint(
        get_card(MODEL_NAME), folder=checkpoint_folder, offline=offline, progress=progress or NullProgress()
    )
    return Backbone(checkpoint=checkpoint, device=device)


def build_network(state_dict: Mapping[str, torch.Tensor]) -> Any:
    """The whole classification network of timm with weights in the published layout, frozen, on the CPU.

    Raises `CheckpointError` where a weight is missing, has no place, or has another shape.
    """
    model: Any = timm.create_model(_TIMM_NAME, pretrained=False)
    depths = [len(group) for group in model.blocks]
    renamed = {_timm_key(key, depths): value for key, value in state_dict.items()}
    try:
        model.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        first_lines = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(
            f"The weights are not those of '{MODEL_NAME}' ({first_lines[:300]}); import the published file."
        ) from error
    model.eval()
    model.requires_grad_(False)
    return model


def _to_grid(stage: torch.Tensor, *, stride: int, shape: tuple[int, int]) -> torch.Tensor:
    """(1, C, r, c) at `stride` -> (1, C, *shape) at stride 4, bilinear, edges repeated."""

    def places(n_cells: int, length: int) -> torch.Tensor:
        centres_px = (torch.arange(n_cells, device=stage.device) + 0.5) * STRIDE_PX
        return (centres_px - _SHIFT_PX[stride]) / (stride * length) * 2 - 1

    y, x = places(shape[0], stage.shape[2]), places(shape[1], stage.shape[3])
    grid = torch.stack([x.expand(shape), y[:, None].expand(shape)], dim=-1)[None]
    if stride < STRIDE_PX:
        # Bilinear weights at a cell's centre reach two cells of half the stride: average first, so that none is lost.
        stage = functional.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False)
    return functional.grid_sample(stage, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _timm_key(key: str, depths: list[int]) -> str:
    """Name in timm of a published weight; `depths` are the numbers of blocks in timm's groups."""
    block = re.match(r"_blocks\.(\d+)\._(\w+?)\.(.+)", key)
    if block is None:
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        layer, _, rest = key.partition(".")
        return f"{outer.get(layer, layer)}.{rest}"
    group, index = 0, int(block[1])
    while group < len(depths) - 1 and index >= depths[group]:
        index -= depths[group]
        group += 1
    # The first group does not expand, and timm numbers what is there.
    names = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    if group:
        names = {
            "expand_conv": "conv_pw",
            "bn0": "bn1",
            "depthwise_conv": "conv_dw",
            "bn1": "bn2",
            "project_conv": "conv_pwl",
            "bn2": "bn3",
        }
    return f"blocks.{group}.{index}.{names.get(block[2], block[2])}.{block[3]}"
