"""What the page "Adapt" says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
from segadapt.plugin.adapt_words import (
    ADAPT,
    JUDGE,
    MAP,
    SELECT,
    SHIFT,
    TUNE,
    card_line,
    done_text,
    fits,
    method_words,
    not_needed_text,
    warning,
)


def card(n_bands: int, gsd_m: float | None = 0.3) -> SegmenterCard:
    return SegmenterCard(
        name="roofs", decoder="fpn", encoder="any", bands=tuple(f"band {n}" for n in range(1, n_bands + 1)),
        classes=(SegmenterClass(0, "ground", (1, 2, 3)), SegmenterClass(1, "roof", (4, 5, 6))), gsd_m=gsd_m,
        chip_px=64, mean=(100.0,) * n_bands, std=(40.0,) * n_bands, licence="test", made_on="2026-01-01",
        segadapt_version="0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "image", "line", "problem"),
    [
        ((3, 0.3), (3, 0.3), "ground, roof · 3 bands · 30 cm per pixel", ""),
        ((3, 2.5), (4, 2.5), "ground, roof · 3 bands · 2.5 m per pixel", ""),  # red, green and blue of four
        ((1, None), (1, 0.5), "ground, roof · 1 band · any resolution", ""),
        ((3, 0.3), (None, None), "ground, roof · 3 bands · 30 cm per pixel", ""),
        ((3, 0.3), (3, 0.1), "ground, roof · 3 bands · 30 cm per pixel", ""),  # finer is brought to the model's
        ((2, 0.3), (1, 0.3), "ground, roof · 2 bands · 30 cm per pixel", "The image has 1 of the 2 bands that"),
        (
            (2, 0.3),
            (5, 0.3),
            "ground, roof · 2 bands · 30 cm per pixel",
            "Of the image's 5 bands those called",
        ),
        ((3, 0.3), (3, 0.6), "ground, roof · 3 bands · 30 cm per pixel", "The image is coarser (60 cm) than what"),
    ],
)
def test_a_card_is_one_line_and_says_what_does_not_fit(
    model: tuple[int, float | None], image: tuple[int | None, float | None], line: str, problem: str
) -> None:
    said = card_line(card(*model), n_bands=image[0], gsd_m=image[1])
    assert said[0] == line
    assert said[1].startswith(problem)
    assert bool(said[1]) == bool(problem)


def test_an_image_needs_the_bands_of_the_model() -> None:
    assert fits(card(3), n_bands=4)
    assert not fits(card(4), n_bands=3)


def test_every_method_has_words() -> None:
    chains = ("quantile+self_training", "norm_statistics+entropy_diversity", "masked_image+masked_consistency")
    for chain in chains:
        assert "_" not in method_words(chain)
    assert method_words(chains[0]) == "matching its colours, then learning from the model's own sure answers"


@pytest.mark.parametrize(
    ("step", "result", "text"),
    [
        (SHIFT, {"LEVEL": "near", "SHIFT": 0.082, "RECOMMENDED": "quantile"}, "Near: 0.08 (0 is the same, 1 another"),
        (SHIFT, {"LEVEL": "far", "SHIFT": 0.7, "RECOMMENDED": "quantile"}, "Worth trying: matching its colours."),
        (SHIFT, {"LEVEL": "unknown", "RECOMMENDED": "self_training"}, "Cannot be told"),
        (ADAPT, {"IS_ADAPTED": True, "AGREEMENT_BEFORE": 0.6, "AGREEMENT_AFTER": 0.8}, "Kept: agreement 0.60 → 0.80."),
        (ADAPT, {"IS_ADAPTED": False, "AGREEMENT_BEFORE": 0.6, "AGREEMENT_AFTER": 0.5}, "Not kept, as it was no"),
        (ADAPT, {"IS_ADAPTED": True, "AGREEMENT_BEFORE": math.nan, "AGREEMENT_AFTER": 0.5}, "unknown → 0.50"),
        (SELECT, {"COUNT": 50, "AREA_M2": 1234.5}, "50 places (1,234 m²), 7 have a class."),
        (TUNE, {"ROUND": 2, "IS_ADAPTED": True, "MEAN_IOU_BEFORE": 0.4, "MEAN_IOU_AFTER": 0.7}, "Round 2. Kept: mean"),
        (TUNE, {"ROUND": 1, "MEAN_IOU_BEFORE": 0.4, "MEAN_IOU_AFTER": 0.3}, "Round 1. Not kept, as it was no better"),
        (TUNE, {"IS_ADAPTED": True, "IS_STOPPED": True}, "Round 1. Stopped, with the best so far. Kept: mean IoU"),
        (MAP, {}, "The map is in the project."),
        (JUDGE, {"IOUS": [0.47, 0.68]}, "Mean IoU 0.47 before, 0.68 now."),
        (JUDGE, {"IOUS": [], "MEAN_IOU": 0.5}, "Mean IoU 0.50."),
    ],
)
def test_a_result_is_told_with_its_number(step: str, result: dict[str, Any], text: str) -> None:
    assert text in done_text(step, result, n_with_class=7)


def test_what_is_near_needs_neither_adaptation_nor_labels() -> None:
    near = {SHIFT: {"LEVEL": "near"}}
    assert all(not_needed_text(step, near) for step in (ADAPT, SELECT, TUNE))
    assert not not_needed_text(MAP, near)
    assert not not_needed_text(ADAPT, {SHIFT: {"LEVEL": "far"}})
    assert not not_needed_text(TUNE, {**near, SELECT: {}})  # somebody wants to label all the same


def test_warnings_are_html() -> None:
    assert "&lt;none&gt;" in warning("<none>")
