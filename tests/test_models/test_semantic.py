"""Segmentation models: built for any bands and size, with published weights, saved and read back to the bit."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segadapt.models.augmentation import WEAK
from segadapt.models.chips import Chips, joined_chips, split_by_block, unlabelled_chips
from segadapt.models.errors import CheckpointError, ModelError
from segadapt.models.losses import LOSSES, class_weights_of, segmentation_loss
from segadapt.models.metrics import boundary_f1, calibration, class_f1, class_ious, confusion_matrix, mean_iou
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import IGNORE, PackageError, SegmenterCard, SegmenterClass, read_card, with_event
from segadapt.models.semantic.package import changed_tensors, load_extra, load_segmenter, package_sha256, save_segmenter
from segadapt.models.semantic.prediction import BatchPredictor, evaluate_chips, probabilities
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter, load_published_encoder
from segadapt.models.training import Descent, TrainingOptions, fit, one_cycle

RGB = ("red", "green", "blue")
AS_THEY_ARE = replace(WEAK, flips=False, rotations=False, brightness=0.0, contrast=0.0, gamma=0.0, colour=0.0)


def make_card(**changes):
    bands = changes.pop("bands", RGB)
    values = {
        "name": "test",
        "decoder": "fpn",
        "encoder": DEFAULT_ENCODER,
        "bands": bands,
        "classes": (SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
        "gsd_m": 0.5,
        "chip_px": 64,
        "mean": (127.0,) * len(bands),
        "std": (128.0,) * len(bands),
        "licence": "test",
        "made_on": "2026-01-01",
        "segadapt_version": "0",
    }
    return SegmenterCard(**(values | changes))


def squares(n=16, side=64, *, seed=0):
    """Chips of noise with a bright square each, whose place is the label."""
    random = np.random.default_rng(seed)
    pixels = random.integers(60, 100, (n, 3, side, side)).astype(np.uint8)
    labels = np.zeros((n, side, side), np.uint8)
    for number in range(n):
        row, col = random.integers(4, side - 28, 2)
        labels[number, row : row + 24, col : col + 24] = 1
        pixels[number, :, row : row + 24, col : col + 24] += 100
    blocks = np.arange(n, dtype=np.int64) // 2
    return Chips(pixels, labels, np.ones_like(labels, np.bool_), blocks, np.zeros((n, 2), np.int64))


@pytest.mark.parametrize("decoder", ["fpn", "unet", "upernet", "segformer"])
def test_logits_have_the_size_of_the_pixels(decoder):
    model = build_segmenter(make_card(decoder=decoder, bands=("red", "green", "blue", "nir")))
    with torch.inference_mode():
        outputs = model.outputs(torch.rand(2, 4, 70, 50) * 255)
    assert outputs.logits.shape == (2, 2, 70, 50)
    assert outputs.deep.shape[0] == 2
    assert len(model.encoder_blocks()) == 16


@pytest.mark.parametrize("encoder", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_encoders_that_start_at_a_quarter_take_tokens(encoder):
    model = build_segmenter(make_card(encoder=encoder, options={"tokens": {"n": 4, "rank": 2}}))
    pixels = torch.rand(1, 3, 224, 224) * 255
    with torch.inference_mode():
        answer = model(pixels)
        assert len(model.tokens.stages) == 4
        model.tokens = None
        assert torch.equal(answer, model(pixels))


@pytest.mark.parametrize(("encoder", "n_blocks", "most"), [("convnext_atto", 12, 0.7), ("resnet18", 8, 0.95)])
def test_the_last_blocks_are_not_the_whole_encoder(encoder, n_blocks, most):
    def size(*modules):
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    model = build_segmenter(make_card(encoder=encoder))
    blocks = model.encoder_blocks()
    assert n_blocks <= len(blocks) <= n_blocks + 4
    assert size(*blocks[-1:]) < 0.5 * size(model.encoder)
    assert size(*blocks[-4:]) < most * size(model.encoder)


def test_features_cover_the_chip_and_not_what_is_padded():
    model = build_segmenter(make_card())
    pixels = torch.rand(1, 3, 70, 64) * 255
    with torch.inference_mode():
        outputs = model.outputs(pixels)
        padded = torch.nn.functional.pad(pixels, (0, 0, 0, 26), mode="replicate")
        whole = model.outputs(padded).features
    assert whole.shape[2:] == (24, 16)
    # Cells of 4 px; the last one is half padding.
    assert outputs.features.shape[2:] == (18, 16)
    assert torch.equal(outputs.features, whole[:, :, :18])


def test_a_plain_transformer_takes_dpt():
    model = build_segmenter(make_card(decoder="dpt", encoder="vit_tiny_patch16_224"))
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 70, 50) * 255).shape == (1, 2, 70, 50)
    assert len(model.encoder_blocks()) == 12


def test_frozen_features_of_the_promptable_model_with_a_light_head():
    model = build_segmenter(make_card(decoder="light", encoder="mobile_sam"))
    load_published_encoder(model)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    model.train()
    assert not model.encoder.training
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 64) * 255).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("encoder", "channels"),
    [
        ("resnet18", 256),
        (DEFAULT_ENCODER, 112),
        ("vit_tiny_patch16_224", 192),
        # DINOv2's patches of 14 px, stages whose channels come last, patches of 32 px.
        ("vit_small_patch14_dinov2.lvd142m", 384),
        ("swin_tiny_patch4_window7_224", 384),
        ("vit_small_patch32_224", 384),
    ],
)
def test_a_light_head_stands_on_any_frozen_encoder(encoder, channels):
    """With any bands, and cells of 8 px whatever the encoder's own are."""
    bands = ("blue", "green", "red", "nir")
    model = build_segmenter(make_card(decoder="light", encoder=encoder, bands=bands))
    with torch.inference_mode():
        assert model(torch.rand(1, 4, 70, 50) * 255).shape == (1, 2, 70, 50)
        (stage,) = model.encode(torch.rand(1, 4, 64, 96) * 255)
    assert stage.shape == (1, channels, 8, 12)
    model.check_chips(64)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    model.train()
    assert not model.encoder.training


def test_a_light_head_learns_on_frozen_imagenet_features():
    torch.manual_seed(0)
    model = build_segmenter(make_card(decoder="light"))
    load_published_encoder(model)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    fit(model, squares(), None, TrainingOptions(n_steps=24, batch=4, n_checks=1, rate=4e-3))
    assert mean_iou(evaluate_chips(model, squares(8, seed=1))) > 0.85
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_in_a_row_are_answered_as_one_by_one(device):
    """The last batch is smaller."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    torch.manual_seed(0)
    model = build_segmenter(make_card()).to(device)
    predict = BatchPredictor(model, batch=4)
    pixels = torch.from_numpy(squares(10).pixels)
    for part in pixels.split(4):
        answer = predict(part).cpu()
        assert answer.shape == (len(part), 2, 64, 64)
        assert torch.allclose(answer, probabilities(model, part).cpu(), atol=2e-2)


def test_unknown_parts_are_named():
    with pytest.raises(ModelError, match="'deeplab'"):
        build_segmenter(make_card(decoder="deeplab"))
    for decoder in ("fpn", "light"):
        with pytest.raises(ModelError, match=f"'no_such_encoder' cannot be built .* '{decoder}'"):
            build_segmenter(make_card(decoder=decoder, encoder="no_such_encoder"))
    model = build_segmenter(make_card(encoder="resnet18"))
    with pytest.raises(CheckpointError, match="offline"):
        load_published_encoder(model, offline=True)


def test_published_weights_see_any_bands():
    weights = {}
    for bands in (RGB, ("blue", "green", "red", "nir")):
        model = build_segmenter(make_card(bands=bands))
        load_published_encoder(model)
        weights[bands] = model.encoder.model.conv_stem.weight
    first, second = weights.values()
    assert torch.allclose(second[:, 0], first[:, 2] * 0.75)
    assert torch.allclose(second[:, 3], first.mean(1) * 0.75)


@pytest.mark.parametrize(
    ("decoder", "encoder"),
    [
        ("dpt", "vit_tiny_patch16_224"),
        ("fpn", "resnet18"),
        ("light", "resnet18"),
        ("light", "vit_small_patch14_dinov2.lvd142m"),
    ],
)
def test_every_kind_of_encoder_takes_weights_from_the_hub(monkeypatch, decoder, encoder):
    import timm

    create, made = timm.create_model, []

    def at_hand(*args, pretrained, **options):
        made.append(create(*args, pretrained=False, **options))
        return made[-1]

    model = build_segmenter(make_card(decoder=decoder, encoder=encoder))
    monkeypatch.setattr(timm, "create_model", at_hand)
    load_published_encoder(model)
    published = made[0].state_dict()
    for name, value in model.encoder.model.state_dict().items():
        assert torch.equal(value, published[name]), name


def test_published_weights_that_lack_the_first_layer_are_refused(monkeypatch):
    monkeypatch.setattr("segadapt.models.semantic.segmenter._from_hub", lambda name, **options: {})
    with pytest.raises(CheckpointError, match="published weights of 'resnet18' lack"):
        load_published_encoder(build_segmenter(make_card(encoder="resnet18")))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_gives_a_gradient_of_nothing(name):
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), IGNORE), **LOSSES[name])
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 4.0])])
def test_the_focal_loss_is_that_of_its_formula(weights):
    """Of three pixels, one of them without a label."""
    logits = torch.tensor([[0.3, -1.0, 9.0], [1.0, 2.0, 0.0]]).reshape(1, 2, 1, 3)
    loss = segmentation_loss(logits, torch.tensor([[[0, 1, IGNORE]]]), class_weights=weights, **LOSSES["focal"])
    chances = logits.softmax(1)[0, :, 0]
    right, of_class = [chances[0, 0], chances[1, 1]], [1.0, 1.0] if weights is None else weights.tolist()
    terms = [-weight * (1 - chance) ** 2 * chance.log() for weight, chance in zip(of_class, right, strict=True)]
    assert loss.item() == pytest.approx(float(sum(terms)) / sum(of_class), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_leaves_pixels_without_a_label_out(name):
    """Neither their values nor how many they are change it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 4, 4, generator=generator)
    labels = torch.randint(2, (1, 4, 4), generator=generator)
    weights = torch.tensor([0.7, 3.0])
    wider = torch.cat([logits, 50 * torch.randn(1, 2, 4, 4, generator=generator)], dim=3)
    unlabelled = torch.cat([labels, torch.full((1, 4, 4), IGNORE)], dim=2)
    expected = segmentation_loss(logits, labels, class_weights=weights, **LOSSES[name])
    assert segmentation_loss(wider, unlabelled, class_weights=weights, **LOSSES[name]).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_training_learns_and_keeps_the_best_state():
    chips = squares()
    train, held_out = split_by_block(chips, held_out=0.3)
    assert not set(train.blocks) & set(held_out.blocks)
    torch.manual_seed(0)
    model = build_segmenter(make_card())
    load_published_encoder(model)
    before = mean_iou(evaluate_chips(model, held_out))
    training = fit(model, train, held_out, TrainingOptions(n_steps=24, n_checks=3))
    after = mean_iou(evaluate_chips(model, held_out))
    assert after > max(0.8, before)
    assert after == pytest.approx(training.best_score)


@pytest.mark.parametrize(("patience", "n_checks"), [(3, 5), (None, 10)])
def test_training_stops_when_it_gets_no_better(monkeypatch, patience, n_checks):
    """After the second check, which is the best and whose state is kept."""
    scores = iter([0.2, 0.4, 0.5, 0.4, 0.5, 0.3, *5 * [0.1]])
    monkeypatch.setattr("segadapt.models.training.score_of", lambda *_: next(scores))
    options = TrainingOptions(n_steps=20, batch=1, n_checks=10, patience=patience)
    training = fit(build_segmenter(make_card(encoder="lcnet_035")), squares(2), squares(2), options)
    assert [check.step for check in training.checks] == list(range(2, 2 * n_checks + 1, 2))
    assert (training.best_step, training.best_score) == (4, 0.5)


@pytest.mark.parametrize(("n_steps", "steps"), [(7, [2, 4, 6, 7]), (8, [2, 4, 6, 8]), (3, [1, 2, 3])])
def test_scores_are_asked_for_as_often_as_is_said(n_steps, steps):
    """Evenly spread, whether or not their number divides that of the steps."""
    options = TrainingOptions(n_steps=n_steps, batch=1, n_checks=4)
    training = fit(build_segmenter(make_card(encoder="lcnet_035")), squares(2), None, options)
    assert [check.step for check in training.checks] == steps


def trained(chips, **options):
    """A tiny model after some steps without changes of the chips, unless they are asked for."""
    torch.manual_seed(0)
    model = build_segmenter(make_card(encoder="lcnet_035", decoder="unet", chip_px=32))
    usual = {"n_steps": 60, "rate": 4e-3, "encoder_rate": 1.0, "augmentation": AS_THEY_ARE}
    fit(model, chips, None, TrainingOptions(**(usual | options)))
    return model


def specks(seed):
    """Chips of 32 px with a speck of 4 px each, hardly brighter than the noise: one pixel of 64 is of class 1."""
    random = np.random.default_rng(seed)
    labels = np.zeros((16, 32, 32), np.uint8)
    for label in labels:
        row, col = random.integers(0, 28, 2)
        label[row : row + 4, col : col + 4] = 1
    pixels = random.normal(100, 20, (16, 3, 32, 32)) + 35 * labels[:, None]
    return unlabelled_chips(pixels.clip(0, 255).astype(np.uint8)).with_labels(labels)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_a_rare_class_weighs_more_and_is_found(loss):
    chips, others = specks(0), specks(1)
    weights = class_weights_of(chips.labels, 2)
    assert weights[1] / weights[0] == pytest.approx(63**0.5, rel=1e-3)
    found = {}
    for is_balanced in (True, False):
        counts = evaluate_chips(trained(chips, is_balanced=is_balanced, loss=loss, n_steps=45), others)
        found[is_balanced] = counts[1, 1] / counts[1].sum()
    assert found[True] > 0.25
    assert found[True] > 2 * found[False]


def furrows(n_turns, seed):
    """Chips of 32 px with furrows across (class 1) above plain ground, all turned by so many right angles."""
    random = np.random.default_rng(seed)
    rows, labels = np.arange(32), np.zeros((16, 32, 32), np.uint8)
    for label in labels:
        label[: random.integers(8, 24)] = 1
    waves = 40 * np.sign(np.sin(np.pi * rows / 2 + 0.1))[:, None]
    pixels = random.normal(100, 6, (16, 3, 32, 32)) + (waves * labels)[:, None]
    turned = (np.rot90(one, n_turns, (-2, -1)) for one in (pixels.clip(0, 255).astype(np.uint8), labels))
    pixels, labels = (np.ascontiguousarray(one) for one in turned)
    return unlabelled_chips(pixels).with_labels(labels)


def test_turned_chips_in_training_answer_a_turned_scene():
    scores = {}
    for is_turned in (True, False):
        options = replace(AS_THEY_ARE, flips=is_turned, rotations=is_turned)
        scores[is_turned] = mean_iou(evaluate_chips(trained(furrows(0, 0), augmentation=options), furrows(1, 1)))
    assert scores[True] > 0.8
    assert scores[False] < 0.75


@pytest.mark.parametrize("n_steps", range(1, 31))
def test_rates_rise_and_fall_over_any_number_of_steps(n_steps):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule, rates = one_cycle(optimiser, n_steps), []
    for _ in range(n_steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    highest = rates.index(max(rates))
    assert highest <= n_steps / 10
    assert 0.25 < rates[highest] <= 0.5
    assert rates[highest:] == sorted(rates[highest:], reverse=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_no_number_is_left_out(monkeypatch, precision):
    monkeypatch.setattr("segadapt.models.training.precision_of", lambda device: precision)
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    descent = Descent(torch.optim.SGD([weight], lr=0.5), torch.nn.Identity())
    descent.step(weight.sum())
    assert weight.tolist() == [0.5, 1.5]
    for _ in range(9):
        descent.step(weight.sum() * float("nan"))
    assert weight.tolist() == [0.5, 1.5]
    descent.step(weight.sum())  # one in between, and the count begins anew
    for _ in range(9):
        descent.step(weight.sum() * float("inf"))
    assert weight.tolist() == [0.0, 1.0]
    with pytest.raises(ModelError, match=r"10 training steps in a row gave no numbers on 'cpu' \(loss nan\)"):
        descent.step(weight.sum() * float("nan"))


def test_a_step_that_is_left_out_leaves_no_trace_in_the_averages():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    descent = Descent(torch.optim.SGD(model.parameters(), lr=0.1), model)
    values = torch.arange(8.0).reshape(4, 2)
    assert descent.step(model(values).sum())
    mean, variance = model[0].running_mean.clone(), model[0].running_var.clone()
    assert mean.any()
    assert not descent.step(model(values * float("inf")).sum())
    assert torch.equal(model[0].running_mean, mean)
    assert torch.equal(model[0].running_var, variance)
    assert descent.step(model(values).sum())
    assert (model[0].running_mean > mean).all()


def test_the_loss_of_a_step_that_is_left_out_does_not_count(monkeypatch):
    n_calls = iter(range(9))

    def spoiled(*args, **options):
        return segmentation_loss(*args, **options) * (float("nan") if next(n_calls) % 3 == 1 else 1)

    monkeypatch.setattr("segadapt.models.training.segmentation_loss", spoiled)
    model = build_segmenter(make_card(encoder="lcnet_050"))
    training = fit(model, squares(4), None, TrainingOptions(n_steps=3, batch=2, n_checks=3, patience=None))
    assert [np.isfinite(check.loss) for check in training.checks] == [True, False, True]
    training = fit(model, squares(4), None, TrainingOptions(n_steps=3, batch=2, n_checks=1))
    assert np.isfinite(training.checks[0].loss)


def test_fp16_keeps_gradients_that_would_vanish(monkeypatch):
    monkeypatch.setattr("segadapt.models.training.precision_of", lambda device: "fp16")
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    # Through fp16, whose least number above zero is 6e-8.
    descent = Descent(torch.optim.SGD([weight], lr=1e7), torch.nn.Identity())
    descent.step((weight.half() * 1.0).float().sum() * 1e-8)
    assert weight.item() == pytest.approx(0.9, abs=1e-3)


def test_a_cancel_before_the_first_check_leaves_the_model_as_it_was():
    class Stopped(NullProgress):
        n_left = 2

        def is_cancelled(self):
            self.n_left -= 1
            return self.n_left < 0

    model = build_segmenter(make_card(encoder="lcnet_050"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = fit(
        model, squares(4), squares(2, seed=1), TrainingOptions(n_steps=4, batch=2, n_checks=1), progress=Stopped()
    )
    assert training.is_cancelled
    assert (training.checks, training.best_step) == ((), 0)
    assert training.best_score == mean_iou(evaluate_chips(model, squares(2, seed=1)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_only_the_chosen_parameters_learn():
    model = build_segmenter(make_card())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(
        model,
        squares(8),
        None,
        TrainingOptions(n_steps=2, n_checks=1),
        parameters=model.head.parameters(),
        freeze_statistics=True,
    )
    changed = changed_tensors(before, model.state_dict())
    assert changed
    assert all("segmentation_head" in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_package_comes_back_to_the_bit(tmp_path):
    model = build_segmenter(make_card())
    model.set_input_map(255 - torch.arange(256.0).repeat(3, 1))
    path = tmp_path / "model.safetensors"
    digest = save_segmenter(model, path, extra={"feature_mean": torch.arange(3.0)})
    loaded = load_segmenter(path)
    pixels = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(model(pixels), loaded(pixels))
    assert loaded.card == model.card == read_card(path)
    assert package_sha256(path) == digest
    assert torch.equal(load_extra(path)["feature_mean"], torch.arange(3.0))
    assert sorted(tmp_path.iterdir()) == [path]


def test_two_runs_that_write_the_same_package_do_not_disturb_each_other(tmp_path, monkeypatch):
    path, model = tmp_path / "model.safetensors", build_segmenter(make_card())
    replace_file, others = Path.replace, [model]

    def replace_after_another(part, target):
        if others:
            save_segmenter(others.pop(), path)
        return replace_file(part, target)

    monkeypatch.setattr(Path, "replace", replace_after_another)
    assert save_segmenter(model, path) == package_sha256(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_older_package(tmp_path, monkeypatch):
    path, model = tmp_path / "model.safetensors", build_segmenter(make_card(encoder="lcnet_035"))
    digest = save_segmenter(model, path)

    def write_half(part, content):
        with part.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    model.set_input_map(255 - torch.arange(256.0).repeat(3, 1))
    with pytest.raises(PackageError, match=r"model\.safetensors cannot be written \(No space left.*with space\."):
        save_segmenter(model, path)
    assert list(tmp_path.iterdir()) == [path]
    assert package_sha256(path) == digest


def test_what_killed_runs_left_of_a_package_is_removed(tmp_path):
    """Hours ago; what is being written now, or is of another name, stays."""
    left, fresh, other = (
        tmp_path / name for name in (".m.safetensors-0123abcd.part", ".m.safetensors-4567abcd.part", ".m-0123abcd.part")
    )
    for file in (left, fresh, other):
        file.write_bytes(b"half")
    for file in (left, other):
        os.utime(file, (0, 0))
    save_segmenter(build_segmenter(make_card(encoder="lcnet_035")), tmp_path / "m.safetensors")
    assert {file.name for file in tmp_path.iterdir()} == {fresh.name, other.name, "m.safetensors"}


def test_an_altered_byte_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_segmenter(build_segmenter(make_card()), path)
    content = bytearray(path.read_bytes())
    for place in (len(content) - 100, content.index(b'\\"roof\\"') + 3):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(PackageError, match=r"model\.safetensors"):
            load_segmenter(path)


def test_what_is_no_package_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(PackageError, match="no file"):
        read_card(path)
    for content in (b"", b"short", b"\xff" * 64, json.dumps({}).encode() * 9):
        path.write_bytes(content)
        with pytest.raises(PackageError):
            read_card(path)
        with pytest.raises(PackageError):
            load_segmenter(path)


def test_an_adapter_is_small_and_knows_its_base(tmp_path):
    model = build_segmenter(make_card())
    base = tmp_path / "base.safetensors"
    digest = save_segmenter(model, base)
    name = "network.segmentation_head.0.weight"
    weight = model.state_dict()[name]
    low_rank = {f"{name}.lora_a": torch.ones(1, weight[0].numel()), f"{name}.lora_b": torch.ones(len(weight), 1)}
    model.card = with_event(replace(model.card, base_file=str(base), base_sha256=digest), "adapted")
    path = tmp_path / "adapter.safetensors"
    save_segmenter(model, path, adapter=low_rank)
    assert path.stat().st_size < base.stat().st_size / 100
    loaded = load_segmenter(path)
    assert torch.allclose(loaded.state_dict()[name], weight + 1)
    other = build_segmenter(make_card())
    # A wrong file beside it, of the same name, does not hide the right one; nor does a damaged one.
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / path.name
    path.rename(moved)
    for content in (other, b"damaged"):
        beside = moved.with_name(base.name)
        beside.write_bytes(content) if isinstance(content, bytes) else save_segmenter(content, beside)
        assert torch.allclose(load_segmenter(moved).state_dict()[name], weight + 1)
    save_segmenter(other, base)
    with pytest.raises(PackageError, match="cannot be read"):
        load_segmenter(moved)
    moved.rename(path)
    with pytest.raises(PackageError, match=r"made for a model .* put the right 'base\.safetensors' beside it"):
        load_segmenter(path)
    base.unlink()
    with pytest.raises(PackageError, match="neither beside it"):
        load_segmenter(path)


def test_measures_of_known_answers():
    truth = np.array([[0, 0, 1, 1, IGNORE]], np.uint8)
    labels = np.array([[0, 1, 1, 1, 0]], np.uint8)
    confusion = confusion_matrix(truth, labels, n_classes=3)
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    ious = class_ious(confusion)
    assert ious[:2].tolist() == [0.5, pytest.approx(2 / 3)]
    assert np.isnan(ious[2])
    assert mean_iou(confusion) == pytest.approx(7 / 12)
    result = calibration(truth, labels, np.full(truth.shape, 0.95, np.float32))
    assert result.error == pytest.approx(0.2)
    square = np.zeros((40, 40), np.uint8)
    square[10:30, 10:30] = 1
    moved = np.roll(square, 2, axis=1)
    assert boundary_f1(square, moved, class_id=1)[0] == pytest.approx(1.0)
    assert boundary_f1(square, moved, class_id=1, tolerance_px=1)[0] < 0.8


def test_a_stray_pixel_of_a_class_without_truth_does_not_hide_more_errors():
    """920 of 1000 pixels are right and one is taken for the third class; then 840, and none is."""
    few_errors = np.array([[799, 0, 1], [79, 121, 0], [0, 0, 0]])
    many_errors = np.array([[760, 40, 0], [120, 80, 0], [0, 0, 0]])
    assert mean_iou(few_errors) > mean_iou(many_errors)
    assert np.isnan(class_ious(few_errors)[2])
    assert np.isnan(class_f1(few_errors)[2])
    # The stray pixel is an error of its own class.
    assert class_ious(few_errors)[0] == pytest.approx(799 / (800 + 79))


def test_joined_chips_keep_their_blocks_apart():
    one = squares(4)
    assert len(np.unique(joined_chips([one, one]).blocks)) == 4
