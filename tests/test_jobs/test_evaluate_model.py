"""What is measured of models on labelled rasters: against answers that are known."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from segadapt.models.chips import Chips
from segadapt.models.errors import Cancelled
from segadapt.models.metrics import calibration
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import IGNORE, SegmenterCard, SegmenterClass
from segadapt.models.semantic.package import save_segmenter
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import evaluate_model as job
from segadapt.processing.jobs.class_scheme import scheme_of_card
from segadapt.processing.jobs.evaluate_model import EvaluationOptions, difference, evaluate_models, judge, write_table
from segadapt.processing.jobs.model_report import evaluation_report
from segadapt.processing.jobs.training_data import LabelledRaster
from torch import nn

CARD = SegmenterCard(
    name="threshold",
    decoder="fpn",
    encoder=DEFAULT_ENCODER,
    bands=("red", "green", "blue"),
    classes=(SegmenterClass(0, "ground", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
    gsd_m=0.5,
    chip_px=32,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    licence="test",
    made_on="2026-01-01",
    segadapt_version="0",
    options={"background": 0},
)


class Threshold(nn.Module):
    """A roof is what is brighter than 100, with 90 % confidence."""

    def __init__(self, card=CARD, sign=1.0):
        super().__init__()
        self.card, self._sign = card, sign
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        half = float(np.log(9)) / 2
        score = self._sign * torch.where(pixels[:, :1] > 100, half, -half)
        return torch.cat([-score, score], dim=1)


def chips_of(labels, pixels=None):
    n, _rows, _cols = labels.shape
    if pixels is None:
        pixels = np.where(labels == 1, 200, 50).astype(np.uint8)[:, None].repeat(3, axis=1)
    return Chips(pixels, labels, np.ones(labels.shape, np.bool_), np.arange(n) // 2, np.zeros((n, 2), np.int64))


def halves(n=6):
    labels = np.zeros((n, 32, 32), np.uint8)
    labels[:, :, 16:] = 1
    return labels


def test_a_perfect_model_and_one_that_is_always_wrong():
    chips = chips_of(halves())
    good = judge(Threshold(), chips)
    assert (good.mean_iou, good.mean_f1, good.mean_boundary, good.accuracy) == (1, 1, 1, 1)
    assert good.interval == (1, 1)
    # It says 90 % and is always right.
    assert good.calibration.error == pytest.approx(0.1, abs=1e-3)
    assert good.worst == ()
    bad = judge(Threshold(sign=-1), chips)
    assert (bad.mean_iou, bad.accuracy) == (0, 0)
    assert bad.calibration.error == pytest.approx(0.9, abs=1e-3)
    assert difference(bad, good) == (1, 1, 1)


def test_of_large_windows_fewer_are_judged_at_once():
    """As many as take the memory of a batch of training chips, and one of the largest."""
    seen = []

    class Watched(Threshold):
        def forward(self, pixels):
            seen.append(len(pixels))
            return super().forward(pixels)

    for factor, expected in ((1, [6]), (2, [2, 2, 2]), (4, [1] * 6)):
        seen.clear()
        found = judge(Watched(), chips_of(halves().repeat(factor, axis=1).repeat(factor, axis=2)))
        assert found.mean_iou == 1
        assert seen == expected


def test_counts_are_those_of_the_pixels():
    labels = halves(4)
    pixels = np.where(labels == 1, 200, 50).astype(np.uint8)[:, None].repeat(3, axis=1)
    pixels[2, :, :, 8:16] = 200  # a quarter of one chip is said to be roof, and is not
    labels[3] = IGNORE
    labels[3, 0, 0] = 1  # one pixel, wrong, but too little to call the window bad
    one = judge(Threshold(), chips_of(labels, pixels), options=EvaluationOptions(batch=3))
    assert one.confusion.tolist() == [[3 * 512 - 256, 256], [1, 3 * 512]]
    assert one.ious[1] == pytest.approx(1536 / (1536 + 257))
    assert [window.error for window in one.worst] == [0.25]
    assert one.worst[0].block == 1
    assert np.array_equal(sum(one.by_block), one.confusion)
    # The outline is 8 px off in one of three chips.
    assert one.boundary[1] == pytest.approx(2 / 3, abs=0.03)


def test_a_class_has_an_interval_by_blocks():
    """A roof that is found in one block of ground of three only is uncertain; the ground is not."""
    labels = halves(6)
    pixels = np.where(labels == 1, 200, 50).astype(np.uint8)[:, None].repeat(3, axis=1)
    pixels[2:, :, :, 16:24] = 50
    one = judge(Threshold(), chips_of(labels, pixels))
    assert one.ious[1] == pytest.approx(2 / 3)
    assert one.class_intervals[1] == pytest.approx((0.5, 1), abs=0.01)
    # Of one block nothing can be drawn.
    assert np.isnan(judge(Threshold(), chips_of(labels[:2])).class_intervals).all()


def test_an_interval_is_of_the_classes_that_the_mean_is_of():
    """A roof in one block of six is never found: in a draw without that block the mean would be of the ground alone."""
    labels = halves(6)
    labels[1:] = 0
    one = judge(Threshold(), chips_of(labels, np.full((6, 3, *labels.shape[1:]), 50, np.uint8)))
    assert one.mean_iou < 0.5
    assert one.interval[0] <= one.mean_iou <= one.interval[1] <= 0.5
    gain = difference(one, one)
    assert gain is not None
    assert gain == (0, 0, 0)


def test_calibration_of_batches_is_that_of_the_whole():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (5, 32, 32)).astype(np.uint8)
    pixels = random.integers(0, 255, (5, 3, 32, 32)).astype(np.uint8)
    chips = chips_of(labels, pixels)
    found = judge(Threshold(), chips, options=EvaluationOptions(batch=2)).calibration
    answers = (pixels[:, 0] > 100).astype(np.uint8)
    wanted = calibration(labels, answers, np.full(labels.shape, 0.9, np.float32))
    assert found.error == pytest.approx(wanted.error, abs=1e-5)
    assert found.counts == wanted.counts


def test_a_class_that_does_not_occur_is_not_counted():
    card = replace(CARD, classes=(*CARD.classes, SegmenterClass(2, "water", (0, 0, 200))))
    model = Threshold(card)
    model.forward = lambda pixels: torch.cat([Threshold()(pixels), torch.full_like(pixels[:, :1], -99)], dim=1)
    one = judge(model, chips_of(halves()))
    assert one.mean_iou == 1
    assert np.isnan(one.ious[2])
    assert one.metrics()["iou"] == {"ground": 1.0, "roof": 1.0, "water": None}


@pytest.fixture
def scene(raster_factory):
    """A labelled raster whose left half is bright: a roof."""
    pixels = np.full((3, 96, 128), 50, np.uint8)
    pixels[:, :, :64] = 200
    path = raster_factory(pixels)
    roof = shapely.box(590_000, 5_750_000 - 48, 590_000 + 32, 5_750_000)
    return LabelledRaster(path=path, polygons=(roof,), names=("Roof",))


def test_each_model_sees_the_bands_that_its_card_names(raster_factory, scene, tmp_path, monkeypatch):
    pixels = np.full((3, 96, 128), 50, np.uint8)
    pixels[2, :, :64] = 200
    path = raster_factory(pixels, "bgr.tif", photometric="minisblack", descriptions=("blue", "green", "red"))
    raster, paths = replace(scene, path=path), []
    for name, bands in (("rgb", ("red", "green", "blue")), ("bgr", ("blue", "green", "red"))):
        paths.append(tmp_path / f"{name}.safetensors")
        save_segmenter(build_segmenter(replace(CARD, bands=bands, stretch=(0,) * 3 + (255,) * 3)), paths[-1])
    monkeypatch.setattr(job, "load_segmenter", lambda path: Threshold())
    found = evaluate_models(paths, [raster], lambda card: scheme_of_card(card, [raster]), device="cpu")
    assert [one.accuracy for one in found] == [1, 0.5]


def test_models_side_by_side_on_a_raster(scene, tmp_path, monkeypatch):
    paths = []
    for name, _sign in (("good", 1.0), ("bad", -1.0)):
        path = tmp_path / f"{name}.safetensors"
        save_segmenter(build_segmenter(CARD), path)
        paths.append(path)
    signs = {"good": 1.0, "bad": -1.0}
    monkeypatch.setattr(job, "load_segmenter", lambda path: Threshold(sign=signs[path.stem]))
    reads = []
    read = job.read_training_chips
    monkeypatch.setattr(job, "read_training_chips", lambda *a, **k: reads.append(1) or read(*a, **k))
    found = evaluate_models(paths, [scene], lambda card: scheme_of_card(card, [scene]), device="cpu")
    assert [one.name for one in found] == ["good", "bad"]  # the cards have one name: the files tell them apart
    assert [one.mean_iou for one in found] == [1, 0]
    assert len(reads) == 1
    assert found[0].n_chips == 12
    write_table(found, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["model"], row["class"], row["iou"]) for row in rows] == [
        ("good", "ground", "1.00000"),
        ("good", "roof", "1.00000"),
        ("good", "(all)", "1.00000"),
        ("bad", "ground", "0.00000"),
        ("bad", "roof", "0.00000"),
        ("bad", "(all)", "0.00000"),
    ]
    assert rows[1]["pixels"] == str(64 * 96)
    html = evaluation_report(found, EvaluationOptions(), device="cpu", rasters=["<scene>"], labels="roofs")
    assert "-1.000" in html
    assert "[-1.000, -1.000]" in html
    assert "&lt;scene&gt;" in html
    for name in ("IoU by class", "F1 by class", "Outline F-score by class"):
        assert name in html
    assert html.count("0.000 [0.000, 0.000]") == 3  # of the bad one: the mean IoU and that of both classes
    # The first window of the raster, 32 px of half a metre.
    assert (found[1].worst[0].where, found[1].worst[0].number) == (("scene.tif", "590008.0, 5749992.0"), 0)
    assert "590008.0, 5749992.0" in html
    assert (rows[1]["iou_low"], rows[5]["iou_high"]) == ("1.00000", "0.00000")
    assert html.count("<img") == 1 + 2 + 1  # reliability, two matrices, the windows of the bad one


def test_a_coarse_model_is_judged_by_fine_labels(raster_factory, scene, tmp_path, monkeypatch):
    """Stripes of one pixel: at its own resolution the coarse model would find neither them nor their labels."""
    pixels = np.full((3, 96, 128), 50, np.uint8)
    pixels[:, :, ::2] = 200
    left, top, gsd_m = 590_000, 5_750_000, 0.5
    stripes = tuple(
        shapely.box(left + col * gsd_m, top - 48, left + (col + 1) * gsd_m, top) for col in range(0, 128, 2)
    )
    raster = replace(scene, path=raster_factory(pixels, "stripes.tif"), polygons=stripes, names=("roof",) * 64)
    cards = {
        "fine": replace(CARD, gsd_m=gsd_m, chip_px=32, stretch=(0,) * 3 + (255,) * 3),
        "coarse": replace(CARD, gsd_m=2 * gsd_m, chip_px=32, stretch=(0,) * 3 + (255,) * 3),
    }
    paths = []
    for name, card in cards.items():
        paths.append(tmp_path / f"{name}.safetensors")
        save_segmenter(build_segmenter(card), paths[-1])

    def load(path):
        model = Threshold()
        model.card = cards[path.stem]
        return model

    monkeypatch.setattr(job, "load_segmenter", load)
    fine, coarse = evaluate_models(paths, [raster], lambda card: scheme_of_card(card, [raster]), device="cpu")
    assert fine.accuracy == 1
    assert coarse.accuracy == 0.5
    assert (fine.gsd_m, coarse.gsd_m) == (gsd_m, gsd_m)
    assert fine.n_chips == coarse.n_chips == 4
    assert fine.confusion.sum() == coarse.confusion.sum() == 96 * 128
    assert difference(fine, coarse)[0] < 0
    one_block = [replace(fine, interval=(math.nan, math.nan))]
    page = evaluation_report(one_block, EvaluationOptions(), device="cpu", rasters=["r"], labels="stripes")
    assert "Without intervals" in page
    assert "in brackets" not in page
    page = evaluation_report([fine, coarse], EvaluationOptions(), device="cpu", rasters=["r"], labels="stripes")
    assert "0.5 m per pixel" in page


def test_windows_stay_within_the_memory_that_they_may_take(scene, tmp_path, monkeypatch, recorder):
    """Two of them, of which the model with the most bands takes 32 x 32 x (4 + 2) bytes each; all see the same."""
    paths, cards = [], {}
    for bands in (CARD.bands, (*CARD.bands, "red")):
        cards[str(len(bands))] = replace(CARD, bands=bands, mean=(0.0,) * len(bands), std=(1.0,) * len(bands))
        paths.append(tmp_path / f"{len(bands)}.safetensors")
        save_segmenter(build_segmenter(cards[str(len(bands))]), paths[-1])
    monkeypatch.setattr(job, "load_segmenter", lambda path: Threshold(cards[path.stem]))
    monkeypatch.setattr(job, "_MOST_BYTES", 2 * 32 * 32 * 6 + 1000)
    told = recorder()
    for n_most, is_told in ((2, False), (4000, True), (None, False)):
        told.texts.clear()
        found = evaluate_models(
            paths,
            [scene],
            lambda card: scheme_of_card(card, [scene]),
            options=EvaluationOptions(n_most=n_most),
            device="cpu",
            progress=told,
        )
        assert [one.n_chips for one in found] == [2, 2]
        assert found[0].blocks == found[1].blocks
        assert any("at most 2 are judged and not 4000" in text for text in told.texts) is is_told


def test_classes_that_the_model_does_not_have_and_no_model(scene, tmp_path):
    other = replace(scene, names=("shed",))
    path = tmp_path / "model.safetensors"
    save_segmenter(build_segmenter(CARD), path)
    with pytest.raises(JobError, match="'shed', but the classes are ground, roof"):
        evaluate_models([path], [other], lambda card: scheme_of_card(card, [other]), device="cpu")
    with pytest.raises(JobError, match="No model"):
        evaluate_models([], [scene], lambda card: scheme_of_card(card, [scene]))

    class Stopped(NullProgress):
        def is_cancelled(self):
            return True

    with pytest.raises(Cancelled):
        evaluate_models([path], [scene], lambda card: scheme_of_card(card, [scene]), device="cpu", progress=Stopped())
