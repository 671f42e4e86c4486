"""Fine-tuning of packages: few labels bring a model to new ground, small or whole, and a worse one is never saved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from segadapt.models.chips import Chips
from segadapt.models.errors import Cancelled
from segadapt.models.metrics import mean_iou
from segadapt.models.semantic.card import IGNORE, read_card
from segadapt.models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
from segadapt.models.semantic.prediction import evaluate_chips, predict_labels
from segadapt.models.transfer.fine_tuning import FineTuning
from segadapt.models.transfer.statistics import source_statistics
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.class_scheme import scheme_of_card
from segadapt.processing.jobs.domain_shift import domain_shift
from segadapt.processing.jobs.fine_tune_model import FineTuneJob, fine_tune_model
from segadapt.processing.jobs.fine_tuning_report import fine_tuning_report
from segadapt.processing.jobs.model_rasters import TargetRaster
from segadapt.processing.jobs.training_data import LabelledRaster

CHIP_PX, LEFT, TOP = 32, 590_000, 5_750_000


def ground(side, *, seed, is_target=False):
    """Pixels (3, side, side) with a roof in every chip, its boxes and its truth; in the target roofs are dark."""
    random = np.random.default_rng(seed)
    truth, boxes = np.zeros((side, side), np.uint8), []
    for row in range(0, side, CHIP_PX):
        for col in range(0, side, CHIP_PX):
            left, top = (int(place) for place in random.integers(1, 16, 2))
            boxes.append((col + left, row + top, col + left + 15, row + top + 15))
            truth[row + top : row + top + 15, col + left : col + left + 15] = 1
    pixels = np.where(truth == 1, 200, 70)[None] + random.integers(-10, 10, (3, side, side))
    return (220 - 0.7 * pixels if is_target else pixels).astype(np.uint8), boxes, truth


def chips_of(pixels, truth):
    n = len(truth) // CHIP_PX
    cut = pixels.reshape(3, n, CHIP_PX, n, CHIP_PX).transpose(1, 3, 0, 2, 4).reshape(-1, 3, CHIP_PX, CHIP_PX)
    labels = truth.reshape(n, CHIP_PX, n, CHIP_PX).transpose(0, 2, 1, 3).reshape(-1, CHIP_PX, CHIP_PX)
    count = np.arange(n * n, dtype=np.int64)
    return Chips(cut, labels, np.ones_like(labels, np.bool_), count, np.zeros((n * n, 2), np.int64))


@pytest.fixture(scope="module")
def source(train_roofs, tmp_path_factory):
    """The package of a model that knows bright roofs."""
    pixels, _, truth = ground(4 * CHIP_PX, seed=0)
    model, _ = train_roofs(name="roofs of the north", chips=chips_of(pixels, truth), chip_px=CHIP_PX, n_steps=40)
    path = tmp_path_factory.mktemp("models") / "north.safetensors"
    statistics, extra = source_statistics(model, chips_of(pixels, truth))
    model.card = replace(model.card, statistics=statistics)
    save_segmenter(model, path, extra=extra)
    return path


@pytest.fixture
def target(raster_factory):
    """`target()`: ground with dark roofs and polygons of roofs, of the first `n` only where it is given."""

    def make(name="target.tif", *, side=4 * CHIP_PX, n=None, seed=1):
        pixels, boxes, _ = ground(side, seed=seed, is_target=True)
        path = raster_factory(pixels, name)
        polygons = [
            shapely.box(LEFT + left / 2, TOP - bottom / 2, LEFT + right / 2, TOP - top / 2)
            for left, top, right, bottom in boxes[:n]
        ]
        return LabelledRaster(path=path, polygons=tuple(polygons), names=("roof",) * len(polygons))

    return make


def job(source, folder, layers="full", **changes):
    tuning = FineTuning(layers=layers)
    values = {"n_steps": 30, "device": "cpu", "tuning": tuning, "output": folder / "south.safetensors"}
    return FineTuneJob(model=source, **(values | changes))


def tuned(rasters, one, **more):
    return fine_tune_model(rasters, scheme_of_card(read_card(one.model), rasters), one, **more)


def score(path):
    pixels, _, truth = ground(4 * CHIP_PX, seed=9, is_target=True)
    return mean_iou(evaluate_chips(load_segmenter(path), chips_of(pixels, truth)))


def test_few_labels_bring_the_model_to_new_ground(source, target, tmp_path, recorder):
    told = recorder()
    result = tuned([target()], job(source, tmp_path), progress=told)
    assert result.is_adapted
    assert score(source) < 0.5
    assert score(tmp_path / "south.safetensors") > score(source) + 0.3
    assert result.mean_iou_before == pytest.approx(result.before.mean_iou)
    assert result.mean_iou_after == pytest.approx(result.after.mean_iou)
    assert result.n_trainable == result.n_parameters

    card = read_card(tmp_path / "south.safetensors")
    assert card == result.card
    event = card.history[-1]
    assert event["event"] == "fine-tuned"
    assert event["layers"] == "full"
    assert event["rasters"] == ["target.tif"]
    assert event["source_sha256"] == package_sha256(source)
    assert event["mean_iou_after"] == pytest.approx(result.mean_iou_after, abs=1e-4)
    assert event["n_chips"] + event["n_choosing"] + event["n_held_out"] == 16
    assert card.metrics["held_out"]["mean_iou"] == pytest.approx(result.mean_iou_after, abs=1e-4)
    # It knows the ground that it was tuned on, as the network that it is now sees it.
    home = TargetRaster(target("home.tif", seed=9).path)
    near = domain_shift([home], tmp_path / "south.safetensors", device="cpu")
    assert near.advice.level == "near"
    assert near.shift.frechet < 0.3
    assert card.statistics["class_shares"][1] == pytest.approx(15 * 15 / CHIP_PX**2, abs=0.05)
    assert [path.name for path in tmp_path.glob("*safetensors*")] == ["south.safetensors"]
    assert any("The fine-tuned model is kept" in text for text in told.texts)

    page = fine_tuning_report(result)
    assert f"{result.mean_iou_before:.3f} before, {result.mean_iou_after:.3f} after" in page
    assert "everything (full)" in page
    assert "95 % interval" in page


def test_the_source_is_rehearsed_where_it_is_at_hand(source, target, tmp_path):
    pixels, _, truth = ground(4 * CHIP_PX, seed=0)
    known = chips_of(pixels, truth)
    scores = []
    for n_rehearsed, rehearsed in ((0, None), (16, known)):
        result = tuned([target()], job(source, tmp_path), source=rehearsed)
        assert result.is_adapted
        assert result.n_rehearsed == result.card.history[-1]["n_rehearsed"] == n_rehearsed
        scores.append(mean_iou(evaluate_chips(load_segmenter(tmp_path / "south.safetensors"), known)))
    assert scores[1] > scores[0] + 0.1
    assert "16 chips of the source" in fine_tuning_report(result)


@pytest.mark.parametrize("layers", ["tokens", "norm"])
def test_an_adapter_is_laid_over_its_base(source, target, layers, tmp_path):
    before = source.read_bytes()
    one = job(source, tmp_path, layers, is_adapter_only=True, n_steps=40)
    result = tuned([target()], one)
    assert result.is_adapted
    assert result.n_bytes < 0.5 * result.n_bytes_before
    loaded = load_segmenter(one.output)
    pixels, _, truth = ground(4 * CHIP_PX, seed=9, is_target=True)
    assert mean_iou(evaluate_chips(loaded, chips_of(pixels, truth))) > score(source) + 0.05
    assert read_card(one.output).base_sha256 == package_sha256(source)
    assert source.read_bytes() == before
    # Small: what it knows of its ground fits on the card, the features of the network do not.
    assert read_card(one.output).statistics != read_card(source).statistics
    assert load_extra(one.output) == {}
    with pytest.raises(JobError, match="adapter itself"):
        tuned([target()], replace(one, model=one.output, output=tmp_path / "third.safetensors"))
    # The whole model over an adapter is one.
    again = tuned([target()], job(one.output, tmp_path, "head", n_steps=2, output=tmp_path / "3.safetensors"))
    assert read_card(tmp_path / "3.safetensors").base_sha256 is None
    assert again.mean_iou_before == pytest.approx(result.mean_iou_after)


def test_what_does_not_help_is_not_saved(source, target, tmp_path, monkeypatch, recorder):
    from segadapt.processing.jobs import fine_tune_model as module

    split, model = module.split_chips, load_segmenter(source)

    def misleading(chips, **options):
        """Labels to learn from that are wrong, and labels to judge by that the source model already meets."""
        kept, held = split(chips, **options)
        wrong = np.where(kept.labels == IGNORE, IGNORE, 1 - kept.labels).astype(np.uint8)
        return kept.with_labels(wrong), held.with_labels(predict_labels(model, held))

    monkeypatch.setattr(module, "split_chips", misleading)
    one = job(source, tmp_path, "decoder", is_adapter_only=True, n_steps=10)
    told = recorder()
    result = tuned([target()], one, progress=told)
    assert not result.is_adapted
    assert result.after is None
    assert result.mean_iou_after <= result.mean_iou_before == 1
    assert one.output.read_bytes() == source.read_bytes()
    assert result.card == model.card
    assert any("to do no harm" in text for text in told.texts)
    assert "the source model is saved as it was" in fine_tuning_report(result)


def test_a_cancel_keeps_the_best_so_far_or_leaves_nothing(source, target, tmp_path, recorder):
    one = job(source, tmp_path, "full", n_steps=30)
    with pytest.raises(Cancelled):
        tuned([target()], one, progress=recorder(cancel_at="to learn from"))
    assert list(tmp_path.glob("*safetensors*")) == []
    told = recorder(cancel_at="Step 21 of 30")
    result = tuned([target()], one, progress=told)
    assert result.is_adapted
    assert result.card.history[-1]["n_steps"] == 21
    assert result.card.history[-1]["is_cancelled"]
    assert any(text.startswith("Stopped: the best state so far") for text in told.texts)
    assert score(one.output) > score(source) + 0.2


def test_one_block_of_ground_is_split_by_chips(source, target, tmp_path, recorder):
    told = recorder()
    result = tuned([target(side=2 * CHIP_PX)], job(source, tmp_path, "decoder", n_steps=4), progress=told)
    assert (result.n_chips, result.n_choosing, result.n_held_out) == (3, 0, 1)
    assert any("too few to choose" in text for text in told.texts)
    assert "a little too good" in fine_tuning_report(result)


def test_the_verdict_is_reached_on_labels_that_chose_nothing(source, target, tmp_path, monkeypatch, recorder):
    """A state that is best by the labels that choose, which say the opposite of those that judge."""
    from segadapt.processing.jobs import fine_tune_model as module

    split, model = module.split_chips, load_segmenter(source)

    def opposite(chips, **options):
        kept, held = split(chips, **options)
        return kept.with_labels(1 - predict_labels(model, kept)), held.with_labels(predict_labels(model, held))

    monkeypatch.setattr(module, "split_chips", opposite)
    told = recorder()
    result = tuned([target()], job(source, tmp_path), progress=told)
    assert result.training.best_step > 0
    assert result.training.best_score > 0.5
    assert not result.is_adapted
    assert result.mean_iou_after < result.mean_iou_before == 1
    assert (result.n_chips, result.n_choosing, result.n_held_out) == (11, 3, 2)
    assert "3 others chose the state" in fine_tuning_report(result)
    assert any("3 to choose the best state, 2 others to judge it by" in text for text in told.texts)


def test_a_class_that_one_half_lacks_is_judged_on_all(source, target, tmp_path):
    """There is a roof in a single block: no half of those held out could tell it from the rest for the other."""
    result = tuned([target(n=1)], job(source, tmp_path, "head", n_steps=2))
    assert (result.n_choosing, result.n_held_out) == (0, 5)


def test_of_many_labels_those_with_objects_are_learned_from(source, target, tmp_path, recorder, monkeypatch):
    from segadapt.processing.jobs import fine_tune_model as module

    read, seen = module.read_labelled_chips, []
    monkeypatch.setattr(module, "read_labelled_chips", lambda *a, **k: seen.append(read(*a, **k)) or seen[-1])
    monkeypatch.setattr(module, "fine_tune", lambda *a, **k: pytest.fail("read"))
    rasters = [target(n=3)]
    for n_most, n_roofs, is_said in ((2, 2, True), (5, 3, True), (16, 3, False)):
        told = recorder()
        with pytest.raises(pytest.fail.Exception):
            tuned(rasters, job(source, tmp_path, "head", n_most=n_most), progress=told)
        assert len(seen[-1]) == n_most
        assert (seen[-1].labels == 1).any(axis=(1, 2)).sum() == n_roofs
        sentence = f"More than {n_most} windows of target.tif have labels; {n_most} are taken, the others left out."
        assert (sentence in told.texts) == is_said


def test_samples_with_the_background_named_leave_the_rest_unknown(source, target, tmp_path):
    raster = target()
    ground_box = shapely.box(LEFT, TOP - 8, LEFT + 64, TOP).difference(shapely.union_all(raster.polygons))
    parts = [ground_box] if ground_box.geom_type == "Polygon" else list(ground_box.geoms)
    labelled = replace(
        raster,
        polygons=(*raster.polygons[:8], *parts),
        names=(*raster.names[:8], *("Background",) * len(parts)),
    )
    card = read_card(source)
    assert scheme_of_card(card, [raster]).background == 0
    assert scheme_of_card(card, [labelled]).background is None
    assert scheme_of_card(card, [labelled], background="class").background == 0
    assert scheme_of_card(card, [replace(labelled, area=(shapely.box(LEFT, TOP - 8, LEFT + 64, TOP),))]).background == 0
    result = tuned([labelled], job(source, tmp_path, "decoder", n_steps=4))
    assert result.n_labelled_px < 8 * 15 * 15 + 16 * 128


def test_what_cannot_be_done_is_told(source, target, tmp_path):
    for changes, words in (
        ({"n_steps": 0}, "0 steps"),
        ({"held_out": 0}, "share 0 held out"),
        ({"held_out": 0.95}, "share 0.95"),
        ({"output": source}, "save the result in another file"),
        ({"output": tmp_path / "no" / "m.safetensors"}, "does not exist"),
    ):
        with pytest.raises(JobError, match=words):
            job(source, tmp_path, **changes)
    with pytest.raises(JobError, match="one window of 32 px"):
        tuned([target(side=CHIP_PX)], job(source, tmp_path))
    nothing = replace(target(), polygons=(shapely.box(0, 0, 1, 1),), names=("roof",))
    with pytest.raises(JobError, match=r"target\.tif"):
        tuned([nothing], job(source, tmp_path))
    with pytest.raises(JobError, match="'tree'"):
        tuned([replace(target(n=1), names=("tree",))], job(source, tmp_path))
    rasters = [target(n=3)]
    scheme = scheme_of_card(read_card(source), rasters, background="unlabelled")
    with pytest.raises(JobError, match="'roof' alone"):
        fine_tune_model(rasters, scheme, job(source, tmp_path))
    assert list(tmp_path.glob("*safetensors*")) == []


def test_after_an_error_tuning_goes_on_with_what_is_kept(source, target, tmp_path, recorder, monkeypatch):
    monkeypatch.setattr("segadapt.models.training_state.Keeper.is_due", lambda _: True)
    (out := tmp_path / "out").mkdir()
    one, told = job(source, out, n_steps=4), recorder()
    whole = tuned([target()], replace(one, output=tmp_path / "whole.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr("segadapt.processing.jobs.fine_tune_model.judge", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tuned([target()], one, progress=told)
    assert f"The state of the training is kept in {next(out.iterdir())}" in told.texts[-1]
    again = tuned([target()], one, progress=told)
    assert "Going on from step 3 of 4 of a training that was stopped." in told.texts
    assert (again.mean_iou_after, again.n_bytes) == (whole.mean_iou_after, whole.n_bytes)
    assert list(out.iterdir()) == [one.output]


def test_a_class_that_is_learned_from_alone_can_still_be_lost(source, target, tmp_path, monkeypatch, recorder):
    """The labels held out are of the background alone, so that a model without roofs would be perfect there."""
    from segadapt.processing.jobs import fine_tune_model as module

    split = module.split_chips

    def without_roofs(chips, **options):
        kept, held = split(chips, **options)
        return kept, held.with_labels(np.where(held.labels == 1, IGNORE, held.labels).astype(np.uint8))

    monkeypatch.setattr(module, "split_chips", without_roofs)
    told = recorder()
    result = tuned([target()], job(source, tmp_path, n_steps=1), progress=told)
    assert result.known == ("roof",)
    assert (result.n_choosing, result.n_held_out) == (0, 16)
    assert any("No label held out is of 'roof'" in text for text in told.texts)
    assert "No chip held out has a label of 'roof'" in fine_tuning_report(result).replace("&#x27;", "'")
    assert result.before.confusion[1].sum() > 0
