"""A model on images in other light: brought there without labels, and left alone where that would do harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from segadapt.models.chips import Chips, unlabelled_chips
from segadapt.models.errors import Cancelled
from segadapt.models.semantic.card import PackageError, read_card
from segadapt.models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
from segadapt.models.transfer.agreement import judge
from segadapt.models.transfer.base import _METHODS, Method, TransferError
from segadapt.models.transfer.statistics import FEATURE_MEAN
from segadapt.processing.errors import JobError, RasterError
from segadapt.processing.jobs.adapt_model import CHAINS, AdaptJob, adapt_model
from segadapt.processing.jobs.adaptation_report import adaptation_report
from segadapt.processing.jobs.chip_segments import model_segments, superpixels
from segadapt.processing.jobs.domain_shift import domain_shift
from segadapt.processing.jobs.model_rasters import TargetRaster, read_target_chips
from segadapt.processing.jobs.shift_report import shift_report


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def target(town, raster_factory):
    pixels, labels = town.paint(1)
    return TargetRaster(raster_factory(town.in_haze(pixels), "hazy ä.tif")), labels


@dataclass(frozen=True)
class Collapse(Method):
    """Calls everything ground."""

    name: ClassVar[str] = "collapse"
    title: ClassVar[str] = "Collapse"
    summary: ClassVar[str] = "Nothing."
    reference: ClassVar[str] = "None"

    def adapt(self, model, problem, progress):
        with torch.no_grad():
            model.head[0].bias += torch.tensor([50.0, 0.0])


@pytest.fixture
def collapse(monkeypatch):
    monkeypatch.setitem(_METHODS, "collapse", Collapse)


def test_haze_is_overcome_and_the_package_tells_of_it(town, town_model, target, tmp_path):
    raster, labels = target
    output = tmp_path / "adapted.safetensors"
    job = AdaptJob(model=town_model, output=output, methods=("quantile", "norm_statistics"), device="cpu")
    result = adapt_model([raster], job)
    pixels = town.in_haze(town.paint(1)[0])
    assert town.roof_iou(town_model, *town.paint(1)) > 0.8
    lost = town.roof_iou(town_model, pixels, labels)
    won = town.roof_iou(output, pixels, labels)
    assert lost < 0.3
    assert won > 0.7
    assert result.is_adapted
    assert result.after.score > result.before.score
    event = read_card(output).history[-1]
    assert event["event"] == "adapted without labels"
    assert event["methods"] == "quantile+norm_statistics"
    assert event["target"] == ["hazy ä.tif"]
    assert event["source_sha256"] == package_sha256(town_model)
    assert event["n_chips"] + len(result.held_out) == 16
    assert event["agreement_after"] == pytest.approx(result.after.score, abs=1e-4)
    # What the source was is still known: the next adaptation starts from it. Its features were another network's.
    assert read_card(output).statistics == read_card(town_model).statistics
    assert load_extra(output) == {}
    measured = domain_shift([raster], output, device="cpu")
    assert np.isnan([measured.shift.frechet, measured.shift.proxy_a]).all()
    assert measured.shift.bands < 0.1
    assert measured.advice.level != "unknown"
    assert "halves of the target differ by unknown" in shift_report(measured, [raster])
    page = adaptation_report(result, [raster])
    assert "hazy ä.tif" in page
    assert "The adapted model is saved." in page
    assert page.count("<img") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapted.safetensors", "hazy ä.tif"]


@pytest.mark.parametrize(("method", "expected"), [("quantile", False), ("fourier", True)])
def test_the_rule_is_told_of_rehearsal(town, town_model, target, tmp_path, monkeypatch, method, expected):
    """Chips of the source are there for both; only one of them learns from them."""
    told = []

    def judging(*measured, is_rehearsed, kept):
        told.append(is_rehearsed)
        assert len(kept) == len(measured[0].shares)
        return judge(*measured, is_rehearsed=is_rehearsed, kept=kept)

    monkeypatch.setattr("segadapt.processing.jobs.adapt_model.judge", judging)
    job = AdaptJob(model=town_model, output=tmp_path / "m.safetensors", methods=(method,), n_steps=1, device="cpu")
    result = adapt_model([target[0]], job, source=town.chips(*town.paint(0)))
    assert told == [expected]
    assert result.is_rehearsed == expected
    page = adaptation_report(result, [target[0]])
    assert ("must stay" in page, "does not decide here" in page) == (not expected, expected)


def test_the_page_says_what_stayed_of_each_class(town_model, target, tmp_path):
    job = AdaptJob(model=town_model, output=tmp_path / "m.safetensors", methods=("quantile",), device="cpu")
    result = replace(adapt_model([target[0]], job), kept=(0.876, float("nan")))
    page = adaptation_report(result, [target[0]])
    assert "87.6 %" in page
    assert "too rare to say" in page
    assert "At least 90 % of each must stay" in page


def test_the_same_seed_gives_the_same_model(town_model, target, tmp_path):
    raster, _ = target
    digests = []
    for number in range(2):
        output = tmp_path / f"{number}.safetensors"
        job = AdaptJob(model=town_model, output=output, methods=("quantile", "entropy"), n_steps=2, device="cpu")
        adapt_model([raster], job)
        digests.append(
            {name: value.double().sum().item() for name, value in load_segmenter(output).state_dict().items()}
        )
    assert digests[0] == digests[1]


def test_a_model_that_collapses_is_not_kept(town_model, target, tmp_path, collapse, recorder):
    raster, _ = target
    output = tmp_path / "result.safetensors"
    progress = recorder()
    # After the values were mapped the model finds roofs: these must not vanish.
    mapped = tmp_path / "mapped.safetensors"
    adapt_model([raster], AdaptJob(model=town_model, output=mapped, methods=("quantile",), device="cpu"))
    job = AdaptJob(model=mapped, output=output, methods=("collapse",), device="cpu")
    result = adapt_model([raster], job, progress=progress)
    assert not result.is_adapted
    assert "'roof' fell from" in result.verdict.reason
    assert output.read_bytes() == mapped.read_bytes()
    assert any("to do no harm" in text for text in progress.texts)
    assert "The source model is saved, unchanged." in adaptation_report(result, [raster])


def test_an_adapter_that_is_not_improved_comes_back_whole(town_model, target, tmp_path, collapse):
    raster, _ = target
    model = load_segmenter(town_model)
    adapter = tmp_path / "adapter.safetensors"
    model.card = replace(model.card, base_file=str(town_model), base_sha256=package_sha256(town_model))
    save_segmenter(model, adapter, adapter={"input_map": 255 - model.input_map})
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    output = folder / "result.safetensors"
    result = adapt_model([raster], AdaptJob(model=adapter, output=output, methods=("collapse",), device="cpu"))
    assert not result.is_adapted
    assert read_card(output).base_sha256 is None
    assert torch.equal(load_segmenter(output).input_map, 255 - model.input_map)


@pytest.mark.parametrize("questions", [0, 12, 30])
def test_a_cancel_leaves_nothing(town_model, target, tmp_path, recorder, questions):
    raster, _ = target
    output = tmp_path / "adapted.safetensors"
    job = AdaptJob(model=town_model, output=output, methods=("entropy",), n_steps=40, device="cpu")
    with pytest.raises(Cancelled):
        adapt_model([raster], job, progress=recorder(cancel_after=questions))
    assert [path.name for path in tmp_path.iterdir()] == [Path(raster.path).name]


_KILLED = """
import os, runpy, signal, sys, torch
runpy.run_path(sys.argv[1])
test = runpy.run_path(sys.argv[2])
from segadapt.models import training_state
torch.set_num_threads(1)
training_state.Keeper.is_due = lambda _: True
write, n = training_state._write, []
def kill(state, file):
    if len(n) == int(sys.argv[6]):
        file.write_bytes(b"half a state")
        os.kill(os.getpid(), signal.SIGKILL)
    n.append(file)
    write(state, file)
training_state._write = kill
test["briefly"](*sys.argv[3:6])
"""


def briefly(raster, model, output, progress=None):
    """Three steps of pre-training, six of self-training, on mapped values."""
    methods = ("quantile", "masked_image(steps=0.5)", "self_training")
    job = AdaptJob(model=Path(model), output=Path(output), methods=methods, n_steps=6, batch=4, device="cpu")
    return adapt_model([TargetRaster(str(raster))], job, progress=progress)


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
@pytest.mark.parametrize(("n_written", "step"), [(2, "step 1 of 3"), (6, "step 2 of 6")])
def test_after_a_kill_adapting_goes_on_to_the_same_model(town_model, target, tmp_path, recorder, n_written, step):
    """In a process that is killed while it writes a state of the first, and of the second method that learns."""
    raster, out, told = target[0].path, tmp_path / "out", recorder()
    out.mkdir()
    conftest = Path(__file__).resolve().parents[1] / "conftest.py"
    given = [conftest, __file__, raster, town_model, out / "m.safetensors", n_written]
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, *map(str, given)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(out.iterdir())) == 3  # the state, half of the next one, and the lock of a process that is no more
    again = briefly(raster, town_model, out / "m.safetensors", told)
    whole = briefly(raster, town_model, tmp_path / "whole.safetensors")
    assert f"Going on from {step} of a training that was stopped." in told.texts
    assert [file.name for file in out.iterdir()] == ["m.safetensors"]
    assert again.is_adapted
    assert again.after == whole.after
    expected = load_segmenter(tmp_path / "whole.safetensors").state_dict()
    found = load_segmenter(out / "m.safetensors").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert not torch.equal(found["input_map"], load_segmenter(town_model).input_map)


def test_a_temporary_output_keeps_nothing(town_model, target, tmp_path, monkeypatch):
    monkeypatch.setattr("segadapt.models.training_state.Keeper.is_due", lambda _: True)
    monkeypatch.setattr("segadapt.processing.jobs.adapt_model.judge", lambda *_, **__: 1 / 0)
    (out := tmp_path / "out").mkdir()
    job = AdaptJob(model=town_model, output=out / "m.safetensors", methods=("entropy",), n_steps=2, device="cpu")
    for is_temporary, n_left in ((True, 0), (False, 1)):
        with pytest.raises(ZeroDivisionError):
            adapt_model([target[0]], replace(job, is_temporary=is_temporary))
        assert len(list(out.iterdir())) == n_left


def test_progress_only_goes_forward(town_model, target, tmp_path, recorder):
    progress = recorder()
    job = AdaptJob(
        model=town_model, output=tmp_path / "m.safetensors", methods=("self_training",), n_steps=3, device="cpu"
    )
    adapt_model([target[0]], replace(job, segments="superpixels"), progress=progress)
    assert progress.fractions == sorted(progress.fractions)
    assert progress.fractions[-1] == 1.0


def test_what_does_not_go_together_is_said(town, town_model, target, tmp_path, raster_factory):
    raster, _ = target
    output = tmp_path / "m.safetensors"
    with pytest.raises(TransferError, match="'magic'"):
        AdaptJob(model=town_model, output=output, methods=("magic",))
    with pytest.raises(TransferError, match="only prepares"):
        AdaptJob(model=town_model, output=output, methods=("masked_image",))
    with pytest.raises(JobError, match="0 steps"):
        AdaptJob(model=town_model, output=output, n_steps=0)
    with pytest.raises(JobError, match="another file"):
        AdaptJob(model=town_model, output=town_model)
    job = AdaptJob(model=town_model, output=output, methods=("quantile",), device="cpu")
    with pytest.raises(JobError, match="No raster"):
        adapt_model([], job)
    two_bands = raster_factory(np.zeros((2, 128, 128), np.uint8), "two.tif")
    with pytest.raises(RasterError, match="2 band"):
        adapt_model([TargetRaster(two_bands)], job)
    empty = raster_factory(np.zeros((3, 128, 128), np.uint8), "empty.tif", nodata=0)
    with pytest.raises((JobError, RasterError), match=r"empty\.tif"):
        adapt_model([TargetRaster(empty)], job)
    small = raster_factory(town.in_haze(town.paint(2)[0][:, :60, :60]), "small.tif")
    with pytest.raises(JobError, match="1 chip"):
        adapt_model([TargetRaster(small)], job)
    with pytest.raises(TransferError, match="labelled chips of the source"):
        adapt_model([raster], replace(job, methods=("fourier",)))
    with pytest.raises(JobError, match="promptable model"):
        adapt_model([raster], replace(job, segments="model"))
    assert not output.exists()


def test_another_bit_depth_is_said(town, town_model, raster_factory, tmp_path):
    """The model's own stretch sends all of it to white."""
    deep = TargetRaster(raster_factory(town.paint(1)[0].astype(np.uint16) * 200, "deep.tif"))
    job = AdaptJob(model=town_model, output=tmp_path / "m.safetensors", methods=("quantile",), device="cpu")
    with pytest.raises(JobError, match=r"deep\.tif .* \(0 to 255\).* bit depth"):
        adapt_model([deep], job)
    with pytest.raises(JobError, match="bit depth"):
        domain_shift([deep], town_model, device="cpu")
    assert not job.output.exists()


def test_an_altered_byte_is_said(town_model, target, tmp_path):
    content = bytearray(town_model.read_bytes())
    content[-1000] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    job = AdaptJob(model=damaged, output=tmp_path / "m.safetensors", methods=("quantile",), device="cpu")
    with pytest.raises(PackageError, match="is damaged"):
        adapt_model([target[0]], job)
    with pytest.raises(PackageError, match="is damaged"):
        domain_shift([target[0]], damaged, device="cpu")


def test_a_full_disk_is_said_and_leaves_nothing(town_model, target, tmp_path, collapse, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    job = AdaptJob(model=town_model, output=tmp_path / "m.safetensors", methods=("collapse",), device="cpu")
    with pytest.raises(JobError, match="No space left on device"):
        adapt_model([target[0]], job)
    assert [path.name for path in tmp_path.iterdir()] == [Path(target[0].path).name]


def test_pixels_that_are_no_numbers_do_not_count(town, town_model, raster_factory, tmp_path):
    pixels = town.in_haze(town.paint(1)[0]).astype(np.float32)
    pixels[:, :, :100] = np.nan
    raster = TargetRaster(raster_factory(pixels, "nan.tif"))
    job = AdaptJob(model=town_model, output=tmp_path / "m.safetensors", methods=("quantile",), device="cpu")
    result = adapt_model([raster], job)
    assert result.is_adapted
    # The map of values is that of the pixels with data: zeros for NaN would have drawn it to the dark.
    whole = TargetRaster(raster_factory(town.in_haze(town.paint(1)[0]), "whole.tif"))
    adapt_model([whole], replace(job, output=tmp_path / "w.safetensors"))
    maps = [load_segmenter(tmp_path / f"{name}.safetensors").input_map[0, 180:210] for name in "mw"]
    assert (maps[0] - maps[1]).abs().mean() < 5


def test_rasters_without_data_are_left_out(town, town_model, target, raster_factory, recorder):
    raster, _ = target
    pixels = town.in_haze(town.paint(1)[0])
    pixels[:, :, : town.side_px // 2] = 0
    half = TargetRaster(raster_factory(pixels, "half.tif", nodata=0))
    card = load_segmenter(town_model).card
    chips = read_target_chips([raster, half], card)
    assert len(chips) == 16 + 8
    assert len(set(chips.blocks[:16]) & set(chips.blocks[16:])) == 0
    assert len(read_target_chips([raster, half], card, n_most=10)) == 10


def test_chains_are_known():
    from segadapt.models.transfer.chain import names_of

    for chain in CHAINS:
        assert names_of(chain)


def test_superpixels_keep_to_the_edges(town):
    pixels, labels = town.paint(3)
    chips = town.chips(pixels, labels)
    valid = chips.valid.copy()
    valid[:, :10] = False
    found = superpixels(Chips(chips.pixels, chips.labels, valid, chips.blocks, chips.origins))
    assert (found[:, :10] == 0).all()
    assert (found[:, 10:] > 0).all()
    shares = []
    for segments, truth in zip(found, chips.labels, strict=True):
        for number in np.unique(segments[segments > 0]):
            inside = truth[segments == number]
            shares.append((max(inside.mean(), 1 - inside.mean()), inside.size))
    purity, sizes = np.array(shares).T
    assert np.average(purity, weights=sizes) > 0.97


def test_segments_of_a_promptable_model(town, fake_engine):
    pixels, labels = town.paint(4)
    chips = town.chips(pixels, labels).take([0, 1])
    found = model_segments(chips, fake_engine)
    for segments, truth in zip(found, chips.labels, strict=True):
        inside = segments[truth == 1]
        number = np.bincount(inside).argmax()
        assert number > 0
        mask = segments == number
        assert (mask & (truth == 1)).sum() / (mask | (truth == 1)).sum() > 0.8
    four = unlabelled_chips(np.zeros((1, 4, 64, 64), np.uint8))
    with pytest.raises(JobError, match="three bands"):
        model_segments(four, fake_engine)


def test_haze_is_far_and_the_usual_light_near(town, town_model, target, raster_factory, recorder):
    at_home = TargetRaster(raster_factory(town.paint(5)[0], "home.tif"))
    progress = recorder()
    near = domain_shift([at_home], town_model, device="cpu", progress=progress)
    far = domain_shift([target[0]], town_model, device="cpu")
    assert (near.advice.level, far.advice.level) == ("near", "far")
    assert near.shift.overall < 0.2 < 0.6 < far.shift.overall
    assert progress.fractions == sorted(progress.fractions)
    assert {*near.advice.methods, *far.advice.methods} <= set(CHAINS)
    assert domain_shift([target[0]], town_model, device="cpu").shift == far.shift
    page = shift_report(far, [target[0]])
    assert "far (0." in page
    assert "hazy ä.tif" in page
    assert page.index(">quantile+masked_consistency<") < page.index(">self_training<")
    assert page.count("<img") == 2


def test_a_model_that_does_not_know_its_source_is_said_to(town_model, target, tmp_path):
    model = load_segmenter(town_model)
    model.card = replace(model.card, statistics={})
    path = tmp_path / "plain.safetensors"
    save_segmenter(model, path)
    result = domain_shift([target[0]], path, device="cpu")
    assert result.advice.level == "unknown"
    assert set(result.advice.methods) <= set(CHAINS)
    assert "unknown" in shift_report(result, [target[0]])


def test_what_is_recommended_helps(town_model, target, tmp_path):
    """What far haze is advised to start with."""
    first = domain_shift([target[0]], town_model, device="cpu").advice.methods[0]
    output = tmp_path / "m.safetensors"
    assert adapt_model(
        [target[0]], AdaptJob(model=town_model, output=output, methods=(first,), device="cpu")
    ).is_adapted
    assert domain_shift([target[0]], output, device="cpu").shift.overall < 0.2  # before above 0.6
    # Values are mapped to those of the source, so that the network and its features stay what they were.
    assert torch.equal(load_extra(output)[FEATURE_MEAN], load_extra(town_model)[FEATURE_MEAN])
