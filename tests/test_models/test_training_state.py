"""Trainings that were killed go on to the same result; other trainings, damaged states and full disks do no harm."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segadapt.models import training_state
from segadapt.models.chips import unlabelled_chips
from segadapt.models.errors import Cancelled, ModelError
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
from segadapt.models.semantic.segmenter import Segmenter
from segadapt.models.training import Descent, TrainingOptions, fit
from segadapt.models.training_state import Keeper
from segadapt.models.transfer.base import Problem
from segadapt.models.transfer.chain import adapt_in_order, names_of
from segadapt.models.transfer.distillation import Distillation, distil
from segadapt.models.transfer.fine_tuning import FineTuning, fine_tune
from torch import nn

CARD = SegmenterCard(
    name="test",
    decoder="unet",
    encoder="lcnet_035",
    bands=("red",),
    classes=(SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
    gsd_m=0.5,
    chip_px=32,
    mean=(127.0,),
    std=(128.0,),
    licence="test",
    made_on="2026-01-01",
    segadapt_version="0",
)
OPTIONS = TrainingOptions(n_steps=12, batch=3, n_checks=4, patience=None)


class Killed(BaseException):
    """Ends a training as a kill does: nobody catches it."""


class Told(NullProgress):
    """What was said; killed at the end of step `at`, cancelled before the step after `cancelled_at`."""

    def __init__(self, *, at=None, cancelled_at=None):
        self.texts, self.n_steps, self._at, self._cancelled_at = [], 0, at, cancelled_at

    def info(self, text):
        self.texts.append(text)

    def set_fraction(self, fraction):
        self.n_steps += 1
        if self.n_steps == self._at:
            raise Killed

    def is_cancelled(self):
        return self.n_steps == self._cancelled_at


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(training_state, "_EVERY_S", 0.0)
    monkeypatch.setattr(training_state, "_WRITING_SHARE", np.inf)


def noise(n, seed, side=32):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (n, side, side)).astype(np.uint8)
    pixels = (labels[:, None] * 60 + random.integers(0, 190, (n, 1, side, side))).astype(np.uint8)
    return replace(unlabelled_chips(pixels).with_labels(labels), blocks=np.arange(n, dtype=np.int64))


CHIPS, HELD_OUT = noise(7, 0), noise(3, 1)


class Network(nn.Module):
    """As small as can be; it has averages, and draws in its forward pass."""

    class Encoder(nn.Sequential):
        def forward(self, pixels):
            return [super().forward(pixels)]

    class Decoder(nn.Sequential):
        def forward(self, stages):
            return super().forward(stages[-1])

    def __init__(self):
        super().__init__()
        self.encoder = self.Encoder(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.decoder = self.Decoder(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.segmentation_head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, 2, 1))


def new_model(seed=0):
    torch.manual_seed(seed)
    return Segmenter(CARD, Network())


def run(path, told=None, *, chips=CHIPS, held_out=HELD_OUT, options=OPTIONS, version="1", seed=0, **more):
    """Train a new model, whose state is kept beside `path` unless it is None."""
    told = told or Told()
    model = new_model(seed)
    with Keeper(path or Path("none"), version=version, progress=told, is_temporary=path is None) as keeper:
        went = fit(model, chips, held_out, options, keeper=keeper, progress=told, **more)
    return model.state_dict(), went


def killed(path, at, **more):
    """The file that a training leaves which is killed in step `at`."""
    with pytest.raises(Killed):
        run(path, Told(at=at), **more)
    (left,) = path.parent.iterdir()
    assert left.name.startswith(".model.safetensors-")
    return left


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def timeless(went):
    """What does not hang on the clock; NaN equals itself in text."""
    return str(replace(went, checks=tuple(check._replace(seconds=0) for check in went.checks)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("at", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("is_rehearsed", [False, True])
def test_a_killed_training_goes_on_to_the_same_result(path, at, is_rehearsed):
    """Killed within, right before and right after a check."""
    more = {"replay": noise(5, 2), "freeze_statistics": True} if is_rehearsed else {}
    whole, went = run(None, **more)
    killed(path, at, **more)
    told = Told()
    weights, again = run(path, told, **more)
    assert told.texts == [f"Going on from step {at - 1} of 12 of a training that was stopped."]
    assert told.n_steps == 12 - at + 1
    assert same(weights, whole)
    assert timeless(again) == timeless(went)
    assert not list(path.parent.iterdir())


def test_a_training_goes_on_after_several_kills(path):
    whole, _ = run(None)
    for at in (3, 4, 2):
        killed(path, at)
    told = Told()
    assert same(run(path, told)[0], whole)
    assert told.n_steps == 12 - (2 + 3 + 1)


def test_the_best_state_and_the_patience_outlive_a_kill(path, monkeypatch):
    """Scores that hang on nothing but the weights, and are best in between."""

    def score(model, _):
        (n_batches,) = (value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked"))
        return -abs(int(n_batches) - 12.5) + float(model.head[-1].bias.detach().sum())

    monkeypatch.setattr("segadapt.models.training.score_of", score)
    options = replace(OPTIONS, n_steps=40, n_checks=40, patience=9)
    whole, went = run(None, options=options)
    assert (went.best_step, went.checks[-1].step) in ((12, 21), (13, 22))
    for at in (went.best_step + 4, 3):
        killed(path, at, options=options)
    weights, again = run(path, options=options)
    assert timeless(again) == timeless(went)
    assert same(weights, whole)


@pytest.mark.parametrize(
    "other",
    [
        {"options": replace(OPTIONS, rate=2e-3)},
        {"options": replace(OPTIONS, seed=1)},
        {"options": replace(OPTIONS, n_steps=13)},
        {"chips": noise(7, 3)},
        {"chips": CHIPS.with_labels(1 - CHIPS.labels)},
        {"held_out": noise(3, 3)},
        {"replay": noise(3, 3)},
        {"freeze_statistics": True},
        {"version": "2"},
        {"seed": 1},
    ],
)
def test_other_inputs_start_anew(path, other):
    state = killed(path, 6)
    told = Told(at=2)
    with pytest.raises(Killed):
        run(path, told, **other)
    assert told.texts[0] == "A training with other inputs was stopped before; this one starts anew."
    assert not state.exists()
    assert len(list(path.parent.iterdir())) == 1


def test_other_layers_start_anew(path):
    for is_head_only in (True, False):
        model, told = new_model(), Told()
        learning = (model.head if is_head_only else model).parameters()
        fit(model, CHIPS, None, OPTIONS, parameters=learning, keeper=Keeper(path, version="1", progress=told))
    assert told.texts == ["A training with other inputs was stopped before; this one starts anew."]


def test_the_name_and_the_day_of_a_model_do_not_matter(path, monkeypatch):
    killed(path, 6)
    monkeypatch.setitem(globals(), "CARD", replace(CARD, name="other", made_on="2026-01-02", licence="other"))
    told = Told()
    run(path, told)
    assert told.n_steps == 7


def test_outputs_do_not_take_each_others_states(path):
    killed(path, 6)
    told = Told()
    run(path.with_name("x.model.safetensors"), told)
    assert told.n_steps == 12
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "other"])
def test_a_damaged_state_is_told_and_does_no_harm(path, damage):
    whole, _ = run(None)
    state = killed(path, 6)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    harms = {"cut": content[: len(content) // 2], "empty": b"", "altered": content, "other": b"no state at all" * 9}
    state.write_bytes(harms[damage])
    told = Told()
    weights, _ = run(path, told)
    assert told.texts == [
        f"The state of a training that was stopped is lost ({state} is damaged); training starts anew."
    ]
    assert told.n_steps == 12
    assert same(weights, whole)
    assert not list(path.parent.iterdir())


def test_a_full_disk_does_not_end_the_training(path, monkeypatch):
    """The state that was written before it was full stays whole."""
    whole, _ = run(None)
    killed(path, 4)
    (content,) = (state.read_bytes() for state in path.parent.iterdir())
    told = Told(at=5)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Killed):
            run(path, told)
    assert [text[:60] for text in told.texts] == [
        "Going on from step 3 of 12 of a training that was stopped.",
        "The state of the training cannot be kept in " + str(path.parent)[:16],
        "The state of the training is kept in " + str(path.parent)[:23],
    ]
    assert "No space left on device" in told.texts[1]
    assert [state.read_bytes() for state in path.parent.iterdir()] == [content]
    assert same(run(path)[0], whole)


def test_a_cancel_removes_the_state(path):
    _, went = run(path, Told(cancelled_at=5))
    assert went.is_cancelled
    assert not list(path.parent.iterdir())
    with pytest.raises(Cancelled):
        distilled(path, Told(cancelled_at=5))
    assert not list(path.parent.iterdir())


def test_half_a_state_that_a_kill_left_is_removed(path):
    state = killed(path, 4)
    state.with_name(f"{state.name}.123.part").write_bytes(b"half")
    path.with_name(".model.safetensors-notes.training").write_text("of somebody else")
    run(path)
    assert [left.name for left in path.parent.iterdir()] == [".model.safetensors-notes.training"]


def test_the_state_is_kept_about_every_minute(path, monkeypatch):
    """A slow disk takes a twentieth of the time at most."""
    clock = [1000.0]
    monkeypatch.setattr(training_state, "_EVERY_S", 60.0)
    monkeypatch.setattr(training_state, "_WRITING_SHARE", 0.05)
    monkeypatch.setattr(training_state.time, "monotonic", lambda: clock[0])
    keeper = Keeper(path, version="1", progress=Told())
    assert not keeper.is_due()
    keeper.take_up("", [], n_steps=1, model=new_model(), generator=torch.Generator())
    for seconds, writing_s, then_s in ((60, 1, 60), (60, 10, 200)):
        clock[0] += seconds - 1
        assert not keeper.is_due()
        clock[0] += 1
        assert keeper.is_due()
        monkeypatch.setattr(os, "fsync", lambda _, s=writing_s: clock.__setitem__(0, clock[0] + s))
        keeper.keep(0, {})
        clock[0] += then_s - 0.1
        assert not keeper.is_due()
        clock[0] += 0.2
        assert keeper.is_due()
        keeper._due = clock[0] + 60


def test_what_does_not_learn_is_not_written(path):
    keeper = Keeper(path, version="1", progress=Told())
    model = new_model()
    fit(model, CHIPS, None, OPTIONS, parameters=model.head.parameters(), keeper=keeper)
    (state,) = path.parent.iterdir()
    kept = training_state._read(state)
    for weights in (kept["model"], kept["values"]["best_state"]):
        learned = {name for name in weights if name in dict(model.named_parameters())}
        assert learned == {"network.segmentation_head.1.weight", "network.segmentation_head.1.bias"}
        assert "network.encoder.1.running_mean" in weights


def test_a_descent_goes_on_counting_and_scaling(monkeypatch):
    monkeypatch.setattr("segadapt.models.training.precision_of", lambda device: "fp16")

    def descent():
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        return Descent(torch.optim.SGD([weight], lr=0.0), torch.nn.Identity()), weight

    (first, weight), (second, other) = descent(), descent()
    for _ in range(9):
        first.step(weight.sum() * float("nan"))
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() != descent()[0].state_dict()
    with pytest.raises(ModelError, match="10 training steps in a row"):
        second.step(other.sum() * float("nan"))


def test_a_step_left_out_after_a_kill_brings_the_averages_of_the_state_back():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    descent = Descent(torch.optim.SGD(model.parameters(), lr=0.1), model)
    model[0].running_mean.fill_(3.0)  # as taking up does, before the descent
    descent.load_state_dict(descent.state_dict())
    assert not descent.step(model(torch.full((4, 2), float("inf"))).sum())
    assert model[0].running_mean.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("layers", ["lora", "full"])
def test_fine_tuning_goes_on(path, layers):
    def tuned(told, *, is_temporary=False):
        model = new_model()
        with Keeper(path, version="1", progress=told, is_temporary=is_temporary) as keeper:
            return fine_tune(
                model, CHIPS, HELD_OUT, FineTuning(layers=layers, rank=2), OPTIONS, keeper=keeper, progress=told
            )

    whole = tuned(Told(), is_temporary=True)
    with pytest.raises(Killed):
        tuned(Told(at=6))
    told = Told()
    again = tuned(told)
    assert told.n_steps == 7
    assert (again.before, again.after, again.is_accepted) == (whole.before, whole.after, whole.is_accepted)
    assert timeless(again.training) == timeless(whole.training)
    assert same(again.model.state_dict(), whole.model.state_dict())


def distilled(path, told, **options):
    given = Distillation(**({"n_steps": 12, "batch": 3, "is_warm": False} | options))
    with Keeper(path or Path("none"), version="1", progress=told, is_temporary=path is None) as keeper:
        return distil([new_model()], new_model(1), CHIPS, HELD_OUT, given, keeper=keeper, progress=told)


def test_distilling_goes_on(path):
    whole = distilled(None, Told())
    # Before and after batch normalisation is settled.
    for at in (6, 5):
        with pytest.raises(Killed):
            distilled(path, Told(at=at))
    told = Told()
    again = distilled(path, told)
    assert told.texts == ["Going on from step 9 of 12 of a training that was stopped."]
    assert again.losses == whole.losses
    assert same(again.model.state_dict(), whole.model.state_dict())
    with pytest.raises(Killed):
        distilled(path, Told(at=6))
    told = Told()
    distilled(path, told, temperature=3.0)
    assert told.n_steps == 12


def adapted(path, told, chain, **changes):
    """The weights of a new model that a chain of methods adapted."""
    model = new_model()
    model.card = replace(
        CARD, statistics={"band_quantiles": [[8.0 * n for n in range(33)]], "class_shares": [0.6, 0.4]}
    )
    problem = Problem(**({"target": noise(7, 4), "n_steps": 8, "batch": 3} | changes))
    with Keeper(path or Path("none"), version="1", progress=told, is_temporary=path is None) as keeper:
        adapt_in_order(model, problem, names_of(chain), told, keeper=keeper)
    return model.state_dict()


@pytest.mark.parametrize("is_rehearsed", [False, True])
@pytest.mark.parametrize(
    "chain",
    [
        "masked_consistency",
        "entropy",
        "quantile+entropy_diversity",
        "norm_statistics(alpha=0.5)+masked_image(steps=1.0)+self_training(rate=1e-2, n_surveys=3)",
        "fourier+self_training",
    ],
)
def test_adapting_without_labels_goes_on(path, chain, is_rehearsed, monkeypatch):
    """Killed in every third state that is kept, one after another, in all methods of a chain."""
    if "fourier" in chain and not is_rehearsed:
        pytest.skip("it needs the source")
    more = {"source": noise(5, 2)} if is_rehearsed else {}
    whole = adapted(None, Told(), chain, **more)
    write, n_written = training_state._write, [0]

    def kill(state, file):
        n_written[0] += 1
        if n_written[0] % 3 == 0:
            raise Killed
        write(state, file)

    monkeypatch.setattr(training_state, "_write", kill)
    said = []
    for _ in range(20):
        told = Told()
        try:
            found = adapted(path, told, chain, **more)
            break
        except Killed:
            assert len(list(path.parent.iterdir())) == 1
        finally:
            said += told.texts
    assert same(found, whole)
    assert not list(path.parent.iterdir())
    assert not any("anew" in text for text in said)
    n_learning = sum(name.split("(")[0] not in ("quantile", "norm_statistics") for name in chain.split("+"))
    assert n_written[0] >= 8 * n_learning
    assert sum("Going on from step" in text for text in said) >= 3 * n_learning


@pytest.mark.parametrize(
    "other",
    [
        {"chain": "self_training(ema=0.9)"},
        {"chain": "self_training+self_training"},
        {"n_steps": 9},
        {"batch": 4},
        {"seed": 1},
        {"source_weight": 0.5},
        {"target": noise(7, 5)},
        {"source": noise(5, 2)},
        {"segments": np.ones((7, 32, 32), np.int32)},
    ],
)
def test_adapting_with_other_inputs_starts_anew(path, other):
    with pytest.raises(Killed):
        adapted(path, Told(at=6), "self_training")
    told = Told()
    adapted(path, told, **({"chain": "self_training"} | other))
    assert told.texts[0] == "A training with other inputs was stopped before; this one starts anew."
    assert not any("Going on" in text for text in told.texts)


def test_of_two_trainings_of_one_output_the_second_waits(tmp_path):
    output = tmp_path / "model.safetensors"
    with Keeper(output, version="1", progress=Told()):
        waiting = Told(cancelled_at=0)
        with pytest.raises(Cancelled), Keeper(output, version="1", progress=waiting):
            pass
    assert "Waiting for another SegAdapt" in waiting.texts[0]
    assert list(tmp_path.iterdir()) == []
    run(output)
    assert list(tmp_path.iterdir()) == []
