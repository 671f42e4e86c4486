"""Prompts refuse contradictions; masks come out on the window's pixels exactly as plain interpolation gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segadapt.models.errors import PromptError
from segadapt.models.masks import logits_from_mask, mask_from_logits, stability_score
from segadapt.models.prompts import Prompts


def _blob_logits(seed: int) -> np.ndarray:
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 12, 12)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(noise, size=(256, 256), mode="bicubic")[0, 0].numpy()
    return np.ascontiguousarray(smooth - 0.8, np.float32)


@pytest.mark.parametrize("window_px", [256, 300, 512, 1024, 2048])
@pytest.mark.parametrize("cut", [0, 37])
def test_mask_equals_full_interpolation(window_px: int, cut: int) -> None:
    logits = _blob_logits(1)
    tensor = torch.from_numpy(logits)[None, None]
    full = torch.nn.functional.interpolate(tensor, size=(window_px, window_px), mode="bilinear", align_corners=False)
    expected = full[0, 0].numpy()[:, : window_px - cut] > 0

    mask = mask_from_logits(logits, window_px=window_px, shape=(window_px, window_px - cut))
    found = np.zeros_like(expected)
    rows, cols = mask.pixels.shape
    found[mask.row_off : mask.row_off + rows, mask.col_off : mask.col_off + cols] = mask.pixels

    assert np.array_equal(found, expected)
    assert expected.any()
    assert mask.pixels[0].any()
    assert mask.pixels[:, -1].any()


def test_no_positive_logit_is_an_empty_mask() -> None:
    mask = mask_from_logits(np.full((256, 256), -1, np.float32), window_px=1024, shape=(1024, 1024))

    assert mask.pixels.shape == (0, 0)


def test_positive_logits_beyond_the_raster_are_an_empty_mask() -> None:
    logits = np.full((256, 256), -1, np.float32)
    logits[200:, 200:] = 1

    assert mask_from_logits(logits, window_px=1024, shape=(400, 400)).pixels.shape == (0, 0)


def test_mask_prompt_and_back() -> None:
    pixels = np.zeros((700, 900), bool)
    pixels[100:300, 200:440] = True

    logits = logits_from_mask(pixels, window_px=1024)
    back = mask_from_logits(logits, window_px=1024, shape=(1024, 1024))

    assert logits.shape == (256, 256)
    assert (logits.min(), logits.max()) == (-8, 8)
    assert (back.row_off, back.col_off) == (100, 200)
    assert back.pixels.shape == (200, 240)


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = np.full((256, 256), -5, np.float32)
    logits[:10, :10] = 5
    logits[:10, 10:15] = 0.5

    assert stability_score(logits) == pytest.approx(100 / 150)
    assert stability_score(np.full((256, 256), -5, np.float32)) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "No prompt given"),
        ({"points_xy": [[1, 2]], "labels": [1, 0]}, r"shape \(1, 2\) with labels of shape \(2,\)"),
        ({"points_xy": [[1, 2]], "labels": [2]}, r"Labels \[2\]; use 1 for foreground"),
        ({"points_xy": [[np.nan, 2]], "labels": [1]}, "not finite"),
        ({"box_xyxy": [5, 5, 5, 9]}, "is empty; give left < right"),
        ({"mask_logits": np.zeros((64, 64), np.float32)}, r"shape \(64, 64\); give \(256, 256\)"),
    ],
)
def test_contradictory_prompts_are_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        Prompts(**arguments)  # type: ignore[arg-type]


def test_only_a_single_click_is_ambiguous() -> None:
    click = {"points_xy": [[5, 5]], "labels": [1]}

    assert Prompts(**click).is_ambiguous  # type: ignore[arg-type]
    assert not Prompts(**click, box_xyxy=[0, 0, 9, 9]).is_ambiguous  # type: ignore[arg-type]
    assert not Prompts(**click, mask_logits=np.zeros((256, 256), np.float32)).is_ambiguous  # type: ignore[arg-type]
    assert not Prompts(points_xy=[[5, 5], [6, 6]], labels=[1, 1]).is_ambiguous  # type: ignore[arg-type]
