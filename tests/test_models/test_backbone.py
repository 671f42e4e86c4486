"""The backbone is the published network, all of it, and its cells lie where they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segadapt.models.backbone import CHANNELS, build_network, open_backbone
from segadapt.models.checkpoints import fetch_checkpoint, load_state_dict
from segadapt.models.errors import CheckpointError, EngineError
from segadapt.models.registry import get_card


@pytest.fixture(scope="module")
def weights():
    return load_state_dict(fetch_checkpoint(get_card("efficientnet_lite0")))


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(device="cpu")


# Logits of efficientnet-lite-pytorch 0.1.0 (EfficientNet.from_name("efficientnet-lite0")) with the published weights
# for RandomState(0).randint(0, 256, (3, 224, 224)), normalised as the card says.
REFERENCE = [-2.822579860687256, 0.19867675006389618, 0.8997358083724976, 0.04639888182282448, 1.1794815063476562]


@torch.inference_mode()
def test_numbers_of_the_reference_package(weights):
    card = get_card("efficientnet_lite0")
    pixels = np.random.RandomState(0).randint(0, 256, (3, 224, 224)).astype(np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    logits = build_network(weights)(((torch.from_numpy(pixels).float() - mean) / std)[None])[0]
    assert torch.allclose(logits[:5], torch.tensor(REFERENCE), atol=1e-4)
    assert logits.norm().item() == pytest.approx(46.5667, abs=1e-3)


def test_every_weight_is_used(weights):
    for name in ("_blocks.3._bn2.running_mean", "_conv_head.weight", "_fc.bias"):
        with pytest.raises(CheckpointError, match="import the published file"):
            build_network({key: value for key, value in weights.items() if key != name})
    with pytest.raises(CheckpointError):
        build_network({**weights, "_blocks.16._bn2.bias": torch.zeros(3)})


@pytest.mark.parametrize(("rows", "cols"), [(64, 96), (61, 97), (3, 5)])
def test_shape_type_and_unit_stages(backbone, rows, cols):
    chip = np.random.RandomState(1).randint(0, 256, (3, rows, cols)).astype(np.uint8)
    features = backbone.features(chip)
    assert features.shape == (CHANNELS, -(-rows // 4), -(-cols // 4))
    assert features.dtype == torch.float16
    start = 0
    for channels in (16, 24, 40, 112):
        norms = features[start : start + channels].float().norm(dim=0)
        assert torch.allclose(norms, torch.ones_like(norms), atol=0.01)
        start += channels


def test_cells_lie_where_they_say(backbone):
    """A picture and its mirror image have mirrored features: the padding's shift is made up for."""
    smooth = np.kron(np.random.RandomState(2).randint(0, 256, (3, 16, 16)), np.ones((16, 16))).astype(np.uint8)
    features = backbone.features(smooth).float()[80:]
    mirrored = backbone.features(np.ascontiguousarray(smooth[:, :, ::-1])).float()[80:].flip(-1)

    def agreement(shift):
        return (features * mirrored.roll(shift, -1)).sum(0)[8:-8, 8:-8].mean().item()

    best = max(range(-4, 5), key=agreement)
    assert abs(best) <= 1


def test_refuses_other_chips(backbone):
    for chip in (np.zeros((4, 8, 8), np.uint8), np.zeros((3, 8, 8), np.float32), np.zeros((3, 0, 8), np.uint8)):
        with pytest.raises(EngineError, match="give"):
            backbone.features(chip)
    with pytest.raises(EngineError, match="2048"):
        backbone.features(np.zeros((3, 2, 2049), np.uint8))
