"""Comparisons: a shift whose remedy is known, nested budgets, a time limit, and no harm."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from segadapt.models.chips import Chips
from segadapt.models.errors import Cancelled
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.segmenter import build_segmenter
from segadapt.models.training import score_of
from segadapt.models.transfer.statistics import source_statistics
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import compare_adaptation as job_module
from segadapt.processing.jobs.compare_adaptation import Comparison, budget_of, compare_adaptation
from segadapt.processing.jobs.comparison_report import comparison_report, recommendation, write_comparison
from segadapt.processing.jobs.comparison_runs import METHOD, SOURCE, TUNING, CompareAdaptation, Run, RunQueue
from segadapt.processing.jobs.peak_memory import PeakMemory

SIDE = 64


def squares(n, *, seed, shifted=False):
    """Bright squares on dark ground; shifted: all of it so dark that squares are as the ground was."""
    random = np.random.default_rng(seed)
    labels = np.zeros((n, SIDE, SIDE), np.uint8)
    for label in labels:
        row, col = random.integers(0, SIDE - 30, 2)
        label[row : row + 30, col : col + 30] = 1
    pixels = np.where(labels[:, None] == 1, 190.0, 80.0) + random.integers(-15, 15, (n, 3, SIDE, SIDE))
    if shifted:
        pixels = 0.5 * pixels + 5
    blocks = np.arange(n, dtype=np.int64) // 2
    return Chips(pixels.astype(np.uint8), labels, np.ones_like(labels, np.bool_), blocks, np.zeros((n, 2), np.int64))


@pytest.fixture(scope="module")
def source(train_roofs):
    model, chips = train_roofs(chips=squares(16, seed=0), chip_px=SIDE, n_steps=40, batch=4)
    on_card, tensors = source_statistics(model, chips)
    model.card = replace(model.card, statistics=on_card)
    assert score_of(model, squares(8, seed=9)) > 0.85
    assert score_of(model, squares(8, seed=9, shifted=True)) < 0.6
    return model, tensors


@pytest.fixture(scope="module")
def comparison(source):
    model, statistics = source
    job = CompareAdaptation(
        methods=("quantile", "norm_statistics"),
        layers=("head", "decoder"),
        budgets=(0.3, 1.0),
        n_steps=25,
        batch=4,
    )
    return compare_adaptation(model, squares(20, seed=3, shifted=True), job, statistics=statistics)


def test_what_helps_is_found(source, comparison):
    """The shift is one of brightness: mapping values back undoes it, and so do labels."""
    runs = {run.title: run for run in comparison.runs}
    assert runs["source model"].miou < 0.6
    assert runs["quantile"].miou > 0.85
    assert comparison.best.miou > 0.85
    assert runs["decoder (100 % of the labels)"].miou > runs["source model"].miou + 0.1
    assert comparison.best.low <= comparison.best.miou <= comparison.best.high
    # The model that is handed back is that of the best run, and says where it comes from.
    assert score_of(comparison.model, squares(8, seed=9, shifted=True)) > 0.8
    assert comparison.model.card.history[-1]["what"] == comparison.best.title
    assert not source[0].card.history
    # The best is a tuned one, which knows its own ground, or one with other values, which has the source's network.
    is_tuned = comparison.best.kind == TUNING
    assert (comparison.model.card.statistics != source[0].card.statistics) is is_tuned
    features = comparison.statistics["feature_mean"]
    assert torch.equal(features, source[1]["feature_mean"]) is not is_tuned


def test_promising_runs_come_first_and_budgets_are_kept(comparison):
    kinds = [(run.kind, run.budget) for run in comparison.runs]
    assert kinds == [
        (SOURCE, 0.0),
        (METHOD, 0.0),
        (METHOD, 0.0),
        (TUNING, 1.0),
        (TUNING, 1.0),
        (TUNING, 0.3),
        (TUNING, 0.3),
    ]
    better = max(comparison.runs[3:5], key=lambda run: run.miou)
    assert comparison.runs[5].name == better.name
    runs = {run.title: run for run in comparison.runs}
    part, all_of_it = runs["head (30 % of the labels)"], runs["head (100 % of the labels)"]
    assert all_of_it.n_labelled_px == comparison.n_pool * SIDE**2
    assert part.n_labelled_px == round(0.3 * comparison.n_pool) * SIDE**2
    assert 0 < all_of_it.n_trainable < runs["decoder (100 % of the labels)"].n_trainable < comparison.n_parameters
    assert all(run.seconds > 0 and run.peak_mb > 50 for run in comparison.runs)


def test_quick_methods_come_first_with_options_too():
    quick = ("norm_statistics(alpha=0.5, n_passes=2)", "quantile+norm_statistics(alpha=0.5)")
    waiting = RunQueue(CompareAdaptation(methods=("self_training(ema=0.9)", *quick), layers=("head",), budgets=(1.0,)))
    assert [waiting.next([])[1] for _ in range(len(waiting))] == [*quick, "head", "self_training(ema=0.9)"]


def test_small_budgets_are_parts_of_large_ones():
    pool = squares(20, seed=3)
    small, large = budget_of(pool, 0.25, seed=1), budget_of(pool, 0.5, seed=1)
    assert (len(small), len(large), len(budget_of(pool, 0.001, seed=1))) == (5, 10, 1)
    of_large = {chip.tobytes() for chip in large.pixels}
    assert all(chip.tobytes() in of_large for chip in small.pixels)
    # Whole blocks: of five chips in blocks of two, one is alone.
    _, counts = np.unique(small.blocks, return_counts=True)
    assert sorted(counts) == [1, 2, 2]


def test_the_time_limit_ends_it_and_says_what_is_missing(source, monkeypatch):
    model, statistics = source
    now = [0.0]
    monkeypatch.setattr(job_module.time, "perf_counter", lambda: now.__setitem__(0, now[0] + 1.0) or now[0])
    job = CompareAdaptation(methods=("quantile",), layers=("head",), budgets=(0.5, 1.0), n_steps=2, limit_s=6.5)
    result = compare_adaptation(model, squares(12, seed=3, shifted=True), job, statistics=statistics)
    assert [run.kind for run in result.runs] == [SOURCE, METHOD]
    assert result.left_out == ("head (100 % of the labels)", "head (50 % of the labels)")
    assert "head (50 % of the labels)" in comparison_report(result, model="m", rasters=["a.tif"])


def test_a_model_that_is_right_already_is_kept(source):
    """No harm: nothing beats it, so it is what comes back."""
    model, statistics = source
    job = CompareAdaptation(methods=("norm_statistics",), layers=(), n_steps=2)
    chips = squares(12, seed=4)
    perfect = chips.with_labels(job_module.predict_labels(model, chips))
    result = compare_adaptation(model, perfect, job, statistics=statistics)
    assert result.best.kind == SOURCE
    assert result.source.miou == 1.0
    assert result.model.card == model.card
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in result.model.state_dict().items())
    assert "Keep the source model" in recommendation(result)[0]


def test_a_method_that_cannot_be_used_is_told_and_the_rest_goes_on(source):
    model, _ = source
    bare = build_segmenter(replace(model.card, statistics={}))
    bare.load_state_dict(model.state_dict())
    job = CompareAdaptation(methods=("quantile",), layers=("head",), budgets=(1.0,), n_steps=1)
    result = compare_adaptation(bare, squares(8, seed=3), job)
    failed = result.runs[1]
    assert math.isnan(failed.miou)
    assert failed.remark
    assert result.runs[2].kind == TUNING
    assert failed.remark in comparison_report(result, model="m", rasters=["a.tif"]).replace("&#x27;", "'")


def test_the_source_is_rehearsed_by_methods_and_by_fine_tuning(source, monkeypatch):
    model, statistics = source
    rehearsed, replayed = squares(6, seed=0), []
    tune = job_module.fine_tune
    monkeypatch.setattr(job_module, "fine_tune", lambda *a, **more: replayed.append(more["replay"]) or tune(*a, **more))
    job = CompareAdaptation(methods=("fourier",), layers=("head",), budgets=(1.0,), n_steps=2, batch=4)
    chips = squares(8, seed=3, shifted=True)
    found = compare_adaptation(model, chips, job, statistics=statistics, source=rehearsed)
    assert not np.isnan([run.miou for run in found.runs]).any()
    assert replayed == [rehearsed]
    assert "6 chips of the source" in comparison_report(found, model="source", rasters=["a.tif"])


def made(*runs):
    source = Run(SOURCE, SOURCE, 0.0, 0, 0.5, 0.45, 0.55, 0, 1.0, 100.0)
    return Comparison(CompareAdaptation(), (source, *runs), (), None, {}, 1000, 10, 5, 3, 0, "cpu")


def test_the_recommendation_says_what_follows():
    full = Run(TUNING, "full", 1.0, 10000, 0.801, 0.75, 0.85, 1000, 60.0, 900.0)
    lora = Run(TUNING, "lora", 1.0, 10000, 0.8, 0.75, 0.85, 50, 30.0, 500.0)
    few = Run(TUNING, "lora", 0.1, 1000, 0.79, 0.75, 0.85, 50, 30.0, 500.0)
    poor = Run(TUNING, "full", 0.1, 1000, 0.6, 0.55, 0.65, 1000, 30.0, 500.0)
    free = Run(METHOD, "quantile", 0.0, 0, 0.65, 0.6, 0.7, None, 1.0, 200.0)
    said = recommendation(made(full, lora, few, poor, free))
    assert "full (100 % of the labels), mean IoU 0.801" in said[0]
    assert "lora comes within 0.001 of it and trains 50 parameters instead of 1,000" in said[1]
    assert "lora with 10 % of the labels already reaches 0.790" in said[2]
    assert "quantile reaches 0.650, 50 % of the way" in said[3]
    unsure = recommendation(made(replace(full, miou=0.52, low=0.4, high=0.6)))
    assert "may be chance" in unsure[1]
    assert "labels are needed" in recommendation(made(full, replace(free, miou=0.4)))[-1]


def test_table_and_page_hold_every_run(comparison, tmp_path):
    path = tmp_path / "runs.csv"
    write_comparison(comparison, path)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [run.name for run in comparison.runs]
    assert [float(row["miou"]) for row in rows] == pytest.approx([run.miou for run in comparison.runs], abs=1e-5)
    assert rows[1]["n_trainable"] == ""
    text = comparison_report(comparison, model="source", rasters=["a <b>.tif"])
    assert "<img" in text
    assert "a &lt;b&gt;.tif" in text
    assert all(run.title in text for run in comparison.runs)
    assert [file.name for file in tmp_path.iterdir()] == ["runs.csv"]
    with pytest.raises(JobError, match="choose another folder"):
        write_comparison(comparison, tmp_path / "none" / "runs.csv")


def test_memory_is_that_of_the_work():
    with PeakMemory(torch.device("cpu")) as idle:
        pass
    with PeakMemory(torch.device("cpu")) as busy:
        np.ones(40_000_000).sum()
    assert busy.peak_mb > idle.peak_mb + 200


def test_jobs_that_make_no_sense_are_refused(source):
    with pytest.raises(JobError, match="'encoder'"):
        CompareAdaptation(layers=("encoder",))
    with pytest.raises(JobError, match="Budgets of 0, 50 %"):
        CompareAdaptation(budgets=(0.0, 0.5))
    with pytest.raises(JobError, match="nothing to compare"):
        CompareAdaptation(methods=(), layers=())
    with pytest.raises(JobError, match="some time"):
        CompareAdaptation(limit_s=0)
    chips = squares(4, seed=0)
    one_block = Chips(chips.pixels, chips.labels, chips.valid, np.zeros(4, np.int64), chips.origins)
    with pytest.raises(JobError, match="one block"):
        compare_adaptation(source[0], one_block)
    alone = squares(8, seed=0)
    alone.labels[2:] = 0
    with pytest.raises(JobError, match=r"No label held out is of 'roof', so that a model .* would win; label more"):
        compare_adaptation(source[0], alone)


def test_a_class_that_is_not_held_out_is_told(source, monkeypatch):
    """It is in one block of ground alone, and others are judged."""
    from segadapt.processing.jobs import compare_adaptation as module

    split = module.split_chips

    def without_ground(chips, **options):
        pool, held_out = split(chips, **options)
        held_out.labels[held_out.labels == 0] = 2
        return pool, held_out

    model = copy.deepcopy(source[0])
    third = replace(model.card.classes[1], class_id=2, name="shed")
    model.card = replace(model.card, classes=(*model.card.classes, third))
    monkeypatch.setattr(module, "split_chips", without_ground)
    job = CompareAdaptation(methods=("reinhard",), layers=())
    compared = module.compare_adaptation(model, squares(8, seed=0), job)
    assert compared.unjudged == ("background",)
    page = comparison_report(compared, model="m", rasters=["r"])
    assert "whether a run loses it is not measured" in page


def test_it_stops_when_asked_to(source):
    class Stopped(NullProgress):
        def is_cancelled(self):
            return True

    with pytest.raises(Cancelled):
        compare_adaptation(source[0], squares(8, seed=0), progress=Stopped())


def test_a_cancel_keeps_what_is_finished(source):
    class Impatient(NullProgress):
        def __init__(self):
            self.lines = []

        def info(self, text):
            self.lines.append(text)

        def is_cancelled(self):
            return any(line.startswith("quantile") for line in self.lines)

    progress = Impatient()
    job = CompareAdaptation(methods=("quantile", "norm_statistics"), layers=("head",), budgets=(1.0,), n_steps=2)
    found = compare_adaptation(source[0], squares(8, seed=0), job, statistics=source[1], progress=progress)
    assert [run.name for run in found.runs] == ["source", "quantile"]
    assert found.left_out == ("norm_statistics", "head (100 % of the labels)")
    assert found.is_cancelled
    assert "Cancelled before: norm_statistics, head" in comparison_report(found, model="m", rasters=["r"])
    assert any("what is finished is kept" in line for line in progress.lines)
