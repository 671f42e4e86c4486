"""Our MobileSAM and SAM against the reference packages: same weights, same chip, same prompts, same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segadapt.models.checkpoints import load_state_dict
from segadapt.models.errors import CheckpointError
from segadapt.models.prompts import Prompts
from segadapt.models.registry import create_promptable, list_models

# The bound for fp32; what is measured is a tenth of it.
MAX_LOGIT_DIFFERENCE = 1e-3

POINTS = np.array([[250, 240], [420, 240], [700, 250]])
BOX = np.array([180, 180, 320, 300])


@pytest.fixture(scope="module")
def reference(mobile_sam_weights: dict[str, torch.Tensor], town_chip: np.ndarray) -> Any:
    """`mobile_sam.SamPredictor` of the PyPI package mobilesam-mirror, with the chip set."""
    mobile_sam = pytest.importorskip("mobile_sam", reason="reference package mobilesam-mirror not installed")
    model = mobile_sam.sam_model_registry["vit_t"]()
    model.load_state_dict(mobile_sam_weights)
    model.eval()
    predictor = mobile_sam.SamPredictor(model)
    predictor.set_image(town_chip.transpose(1, 2, 0))
    return predictor


@pytest.fixture(scope="module", params=["as published", "prepared for inference"])
def ours(request: pytest.FixtureRequest, mobile_sam_weights: dict[str, torch.Tensor]) -> Any:
    """Our model, plain and in the form that the engine uses."""
    model = create_promptable("mobile_sam")
    model.load_weights(mobile_sam_weights)
    if request.param != "as published":
        model.prepare_for_inference(torch.device("cpu"), torch.float32)
    return model


@torch.inference_mode()
def test_embedding_equals_the_reference(ours: Any, reference: Any, town_chip: np.ndarray) -> None:
    embedding = ours.embed([torch.from_numpy(town_chip)])

    assert embedding.shape == (1, 256, 64, 64)
    assert (embedding - reference.features).abs().max() < 1e-4
    assert reference.features.std() > 0.05


@pytest.mark.parametrize(
    ("n_points", "with_box", "with_mask", "multimask"),
    [
        (1, False, False, True),
        (3, False, False, False),
        (0, True, False, False),
        (2, True, True, False),
        (1, False, True, True),
    ],
)
@torch.inference_mode()
def test_logits_equal_the_reference(
    ours: Any, reference: Any, n_points: int, with_box: bool, with_mask: bool, multimask: bool
) -> None:
    points, labels = POINTS[:n_points], np.array([1, 0, 1])[:n_points]
    mask = np.linspace(-8, 8, 256 * 256, dtype=np.float32).reshape(1, 256, 256) if with_mask else None
    _, expected_iou, expected = reference.predict(
        points if n_points else None,
        labels if n_points else None,
        box=BOX if with_box else None,
        mask_input=mask,
        multimask_output=multimask,
        return_logits=True,
    )

    # The reference counts pixels, we name places: the centre of pixel 250 is 250.5.
    prompts = Prompts(
        points_xy=points + 0.5,
        labels=labels,
        box_xyxy=BOX + 0.5 if with_box else None,
        mask_logits=mask[0] if mask is not None else None,
    )
    logits, iou = ours.predict(reference.features[0], [prompts], multimask=multimask)

    assert logits.shape == (1, 3 if multimask else 1, 256, 256)
    assert np.abs(logits[0].numpy() - expected).max() < MAX_LOGIT_DIFFERENCE
    assert np.abs(iou[0].numpy() - expected_iou).max() < 1e-4
    assert np.abs(expected).max() > 1


@torch.inference_mode()
def test_chip_smaller_than_the_input_is_padded_as_in_the_reference(
    ours: Any, reference: Any, town_chip: np.ndarray
) -> None:
    small = np.ascontiguousarray(town_chip[:, :1024, :600])
    expected = reference.model.image_encoder(reference.model.preprocess(torch.from_numpy(small)[None].float()))

    assert (ours.embed([torch.from_numpy(small)]) - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_vit_b_takes_a_checkpoint_of_the_reference_package(tmp_path: Path) -> None:
    """The loading contract: keys, shapes, forward. Random weights, so nothing is said about accuracy."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    published = sam_model_registry["vit_b"]()
    torch.save(published.state_dict(), tmp_path / "sam_vit_b.pth")
    ours = create_promptable("sam_vit_b")
    ours.load_weights(load_state_dict(tmp_path / "sam_vit_b.pth"))
    chip = torch.randint(0, 255, (3, 1024, 1024), dtype=torch.uint8)

    embedding = ours.embed([chip])
    logits, _ = ours.predict(embedding[0], [Prompts(box_xyxy=BOX + 0.5)], multimask=False)
    sparse, dense = published.prompt_encoder(points=None, boxes=torch.from_numpy(BOX[None]).float(), masks=None)
    expected_logits, _ = published.mask_decoder(
        embedding, published.prompt_encoder.get_dense_pe(), sparse, dense, False
    )

    assert embedding.shape == (1, 256, 64, 64)
    assert embedding.isfinite().all()
    assert (logits - expected_logits).abs().max() < MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_every_vit_has_the_keys_and_shapes_of_the_reference(size: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        published = sam_model_registry[f"vit_{size}"]().state_dict()
        ours = create_promptable(f"sam_vit_{size}").state_dict()

    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in published.items()}


@pytest.mark.parametrize("card", list_models("promptable"), ids=lambda card: card.name)
def test_parameters_are_as_many_as_the_card_says(card: Any) -> None:
    with torch.device("meta"):
        model = create_promptable(card.name)

    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(card.parameters_m, rel=0.01)


def test_weights_of_another_model_are_refused_by_name(mobile_sam_weights: dict[str, torch.Tensor]) -> None:
    weights = dict(mobile_sam_weights)
    weights["image_encoder.neck.0.weight"] = weights["image_encoder.neck.0.weight"][:, :10]
    del weights["mask_decoder.iou_token.weight"]

    with pytest.raises(CheckpointError, match=r"do not fit mobile_sam: 2 keys differ \(mask_decoder.iou_token.weight"):
        create_promptable("mobile_sam").load_weights(weights)
