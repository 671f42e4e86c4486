"""Students: they learn what their teachers answer without a label, at half the resolution too, and are faster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segadapt.models.chips import Chips
from segadapt.models.errors import Cancelled
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import IGNORE, SegmenterCard, SegmenterClass
from segadapt.models.semantic.package import load_segmenter, save_segmenter
from segadapt.models.semantic.prediction import predict_labels
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter
from segadapt.models.training import TrainingOptions, fit, score_of
from segadapt.models.transfer.base import TransferError
from segadapt.models.transfer.distillation import (
    Distillation,
    coarseness,
    compared,
    distil,
    new_student,
    speeds_of,
    student_card,
)

SIDE = 64


def make_card(**changes):
    values = {
        "name": "teacher",
        "decoder": "unet",
        "encoder": "lcnet_050",
        "bands": ("red", "green", "blue"),
        "classes": (SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
        "gsd_m": 0.5,
        "chip_px": SIDE,
        "mean": (127.0,) * 3,
        "std": (128.0,) * 3,
        "licence": "test",
        "made_on": "2026-01-01",
        "segadapt_version": "0",
    }
    return SegmenterCard(**(values | changes))


def squares(n, *, seed):
    random = np.random.default_rng(seed)
    pixels = random.integers(60, 100, (n, 3, SIDE, SIDE)).astype(np.uint8)
    labels = np.zeros((n, SIDE, SIDE), np.uint8)
    for number in range(n):
        row, col = random.integers(0, SIDE - 28, 2)
        labels[number, row : row + 28, col : col + 28] = 1
        pixels[number, :, row : row + 28, col : col + 28] += 100
    return Chips(
        pixels, labels, np.ones_like(labels, np.bool_), np.arange(n, dtype=np.int64), np.zeros((n, 2), np.int64)
    )


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = build_segmenter(make_card())
    fit(model, squares(16, seed=0), None, TrainingOptions(n_steps=40, batch=4, rate=4e-3, encoder_rate=1.0))
    assert score_of(model, squares(8, seed=9)) > 0.85
    return model


def test_the_students_card_is_the_teachers_at_half_the_resolution():
    card = student_card(make_card(options={"tokens": {"n": 4, "rank": 2}, "background": 0}, base_sha256="ab"))
    assert (card.gsd_m, card.bands, card.classes) == (1.0, ("red", "green", "blue"), make_card().classes)
    assert card.options == {"background": 0, "fpn_widths": [128, 64]}
    assert (card.encoder, card.decoder) == (make_card().encoder, "fpn")
    assert student_card(make_card(decoder="light", encoder="mobile_sam")).encoder == DEFAULT_ENCODER
    assert card.base_sha256 is None
    assert student_card(make_card(gsd_m=None)).gsd_m is None
    assert student_card(make_card(), coarser=1).gsd_m == 0.5


def test_a_student_learns_without_labels_and_at_half_the_resolution(teacher):
    student = new_student(student_card(teacher.card), seed=1)
    chips, held_out = squares(24, seed=1).unlabelled(), squares(8, seed=2)
    before, _ = compared([teacher], student, held_out)
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    result = distil([teacher], student, chips, held_out.unlabelled(), Distillation(n_steps=60, rate=4e-3))
    assert before < 0.6
    assert result.agreement > 0.85
    assert result.same > 0.9
    assert result.losses[-1] < result.losses[0] / 3
    # Neither side was changed by it.
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in weights.items())
    assert compared([teacher], student, held_out)[0] == before
    assert compared([teacher], result.model, held_out)[0] == result.agreement
    found = predict_labels(teacher, held_out)
    assert result.teacher_shares == pytest.approx(np.bincount(found.ravel(), minlength=2) / found.size)
    assert sum(result.student_shares) == pytest.approx(1)
    assert result.student_shares == pytest.approx(result.teacher_shares, abs=1 - result.same)
    assert not result.model.training
    assert result.model.card.history[-1]["teachers"] == ["teacher"]
    assert result.n_student_parameters < result.n_teacher_parameters


def test_the_same_seed_gives_the_same_student(teacher, tmp_path):
    chips = squares(4, seed=1)
    options = Distillation(n_steps=2, batch=2, seed=3)
    one, two, other = (
        distil([teacher], new_student(student_card(teacher.card), seed=1), chips, chips, given).model
        for given in (options, options, replace(options, seed=4))
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    path = tmp_path / "student.safetensors"
    save_segmenter(one, path)
    assert compared([one], load_segmenter(path), chips) == (1.0, 1.0)


def test_several_teachers_are_followed_where_they_agree_most(teacher):
    """The mean of two sure teachers and a confused one is what the two say."""
    confused = new_student(make_card(), seed=5)
    held_out = squares(6, seed=2)
    against_all, _ = compared([teacher, teacher, confused], teacher, held_out)
    assert against_all > 0.9
    student = new_student(student_card(teacher.card), seed=1)
    result = distil(
        [teacher, teacher, confused], student, squares(24, seed=1), held_out, Distillation(n_steps=40, rate=4e-3)
    )
    assert result.agreement > 0.85
    assert score_of(new_student(make_card(), seed=5), held_out) < 0.6
    assert compared([teacher], result.model, held_out)[0] > 0.85


def test_a_student_of_the_same_network_starts_from_the_teachers_weights(teacher):
    chips = squares(4, seed=1)
    card = student_card(teacher.card, decoder=teacher.card.decoder, coarser=1)
    options = Distillation(n_steps=1, rate=1e-9)
    warm = distil([teacher], new_student(card), chips, chips, options)
    cold = distil([teacher], new_student(card), chips, chips, replace(options, is_warm=False))
    assert warm.losses[0] < cold.losses[0]
    name = "network.segmentation_head.0.weight"
    assert torch.allclose(warm.model.state_dict()[name], teacher.state_dict()[name], atol=1e-6)
    assert not torch.allclose(cold.model.state_dict()[name], teacher.state_dict()[name], atol=1e-3)
    # Of another decoder only the encoder's weights fit.
    other = distil([teacher], new_student(student_card(teacher.card)), chips, chips, options)
    name = "network.encoder.model.conv_stem.weight"
    assert torch.allclose(other.model.state_dict()[name], teacher.state_dict()[name], atol=1e-6)


def test_with_several_teachers_a_student_starts_from_the_first_of_its_encoder(teacher):
    chips = squares(4, seed=1)
    other = new_student(make_card(encoder="lcnet_035"), seed=5)
    mapped = build_segmenter(teacher.card)
    mapped.load_state_dict(teacher.state_dict())
    mapped.set_input_map(teacher.input_map * 0.5)
    student = new_student(student_card(teacher.card, decoder=teacher.card.decoder, coarser=1))
    result = distil([other, mapped, teacher], student, chips, chips, Distillation(n_steps=1, rate=1e-9))
    name = "network.segmentation_head.0.weight"
    assert torch.allclose(result.model.state_dict()[name], teacher.state_dict()[name], atol=1e-6)
    # Which values the others see is another matter.
    assert torch.equal(result.model.input_map, student.input_map)
    # The same teacher twice teaches what it teaches alone.
    held_out, options = squares(8, seed=2), Distillation(n_steps=12, rate=4e-3)
    student = new_student(student_card(teacher.card), seed=1)
    alone, twice = (distil(few, student, chips, held_out, options) for few in ([teacher], [teacher, teacher]))
    assert twice.agreement == pytest.approx(alone.agreement, abs=0.02)


def test_the_values_that_the_teacher_sees_go_to_the_student(teacher):
    mapped = build_segmenter(teacher.card)
    mapped.load_state_dict(teacher.state_dict())
    mapped.set_input_map(teacher.input_map * 0.5)
    chips = squares(2, seed=1)
    result = distil([mapped], new_student(student_card(teacher.card)), chips, chips, Distillation(n_steps=1))
    assert torch.equal(result.model.input_map, mapped.input_map)


def test_pixels_without_data_teach_nothing_and_do_not_count(teacher):
    chips = squares(4, seed=1)
    valid = np.ones_like(chips.valid)
    valid[:, :, SIDE // 2 :] = False
    half = Chips(chips.pixels, chips.labels, valid, chips.blocks, chips.origins)
    student = new_student(student_card(teacher.card, encoder="lcnet_050", coarser=1))
    _, same_left = compared([teacher], student, half)
    left = Chips(chips.pixels, chips.labels, ~valid, chips.blocks, chips.origins)
    _, same_right = compared([teacher], student, left)
    _, same = compared([teacher], student, chips)
    assert same == pytest.approx((same_left + same_right) / 2)
    nothing = Chips(chips.pixels, np.full_like(chips.labels, IGNORE), ~np.ones_like(valid), chips.blocks, chips.origins)
    result = distil([teacher], student, nothing, chips, Distillation(n_steps=2, features=0.0))
    assert result.losses == (0.0, 0.0)


def test_the_usual_student_is_five_times_faster_than_the_usual_model():
    usual = build_segmenter(make_card(decoder="fpn", encoder=DEFAULT_ENCODER, chip_px=256))
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (4, 3, 256, 256)).astype(np.uint8)
    labels = np.full((4, 256, 256), IGNORE, np.uint8)
    chips = Chips(pixels, labels, np.ones_like(labels, np.bool_), np.zeros(4, np.int64), np.zeros((4, 2), np.int64))
    teacher_s, student_s = speeds_of([usual, new_student(student_card(usual.card))], chips)
    # It is about 6 on an idle machine; this one may be busy with other things.
    assert teacher_s / student_s > 4


def test_models_that_do_not_go_together_are_refused(teacher):
    chips = squares(2, seed=0)
    card = teacher.card
    with pytest.raises(TransferError, match="bands or classes"):
        coarseness(card, replace(card, classes=(*card.classes, SegmenterClass(2, "tree", (0, 99, 0)))))
    with pytest.raises(TransferError, match=r"0\.75"):
        coarseness(card, replace(card, gsd_m=0.75))
    with pytest.raises(TransferError, match="None"):
        coarseness(card, replace(card, gsd_m=None))
    with pytest.raises(TransferError, match="no teacher"):
        distil([], teacher, chips, chips)
    with pytest.raises(TransferError, match="no multiple of 3 px"):
        distil([teacher], new_student(student_card(card, coarser=3)), chips, chips)
    with pytest.raises(TransferError, match="0 steps"):
        Distillation(n_steps=0)


def test_it_stops_when_asked_to(teacher):
    class Stopped(NullProgress):
        def is_cancelled(self):
            return True

    chips = squares(2, seed=0)
    with pytest.raises(Cancelled):
        distil([teacher], new_student(student_card(teacher.card)), chips, chips, progress=Stopped())
