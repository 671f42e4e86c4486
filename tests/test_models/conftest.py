"""Real weights and a real photograph-like chip for the model tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segadapt.models.checkpoints import fetch_checkpoint, load_state_dict
from segadapt.models.registry import get_card


@pytest.fixture(scope="session")
def mobile_sam_file() -> Path:
    """The published MobileSAM weights, verified; downloaded once where they are not there yet."""
    return fetch_checkpoint(get_card("mobile_sam"))


@pytest.fixture(scope="session")
def mobile_sam_weights(mobile_sam_file: Path) -> dict[str, torch.Tensor]:
    """The published state dict of MobileSAM."""
    return load_state_dict(mobile_sam_file)


@pytest.fixture(scope="session")
def town_chip() -> np.ndarray:
    """(3, 1024, 1024) uint8: grass with texture, roads, and roofs as rotated bright rectangles, seed 0."""
    rng = np.random.default_rng(0)
    chip = rng.normal((70, 95, 60), 6, (1024, 1024, 3))
    rows, cols = np.mgrid[:1024, :1024]
    chip[(np.abs(rows - 500) < 14) | (np.abs(cols - 480) < 10)] = 105
    for x, y, half_width, half_height, angle, colour in (
        (250, 240, 70, 45, 0.3, (190, 90, 70)),
        (700, 250, 60, 60, 0.0, (210, 205, 200)),
        (250, 760, 90, 40, 1.1, (160, 160, 170)),
        (760, 740, 30, 50, -0.4, (220, 120, 90)),
    ):
        along = (cols - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = -(cols - x) * np.sin(angle) + (rows - y) * np.cos(angle)
        chip[(np.abs(along) < half_width) & (np.abs(across) < half_height)] = colour
    return np.ascontiguousarray(np.clip(chip, 0, 255).astype(np.uint8).transpose(2, 0, 1))
