"""The mask refiner, repair of clicks, learning online, and adapters on disk; small random states, no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segadapt.models.adaptation import shipped
from segadapt.models.adaptation.adapter import Adapter, AdapterCard, load_adapter, save_adapter
from segadapt.models.adaptation.clicks import contradicted, respect_clicks, without_specks
from segadapt.models.adaptation.mask_choice import Choice, MaskChoice
from segadapt.models.adaptation.mask_offset import MaskOffset
from segadapt.models.adaptation.online import Look, OnlineAdapter
from segadapt.models.adaptation.rectangles import USUAL_THRESHOLD
from segadapt.models.adaptation.refiner import CROP, Crop, MaskRefiner, changes
from segadapt.models.adaptation.shipped import refiner_of, shipped_refiner
from segadapt.models.errors import CheckpointError
from segadapt.models.losses import click_loss
from segadapt.models.prompts import Prompts
from segadapt.models.registry import get_card

SHA = "a" * 64


def disc(x, y, radius, side=256):
    rows, cols = np.mgrid[:side, :side]
    return np.hypot(cols - x, rows - y) <= radius


def logits_of(mask):
    return np.where(mask, 6, -6).astype(np.float32)


def view_of(truth, seen_mask, points, labels=None, *, previous=None):
    """A look in which SAM saw `seen_mask`, while one of its features shows `truth`."""
    labels = np.ones(len(points), np.int64) if labels is None else np.array(labels)
    picture = torch.from_numpy(truth).float() * 2 - 1
    # In the decoder's order: cell, half cell, quarter cell.
    cells = picture.view(64, 2, 2, 64, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 1)
    fine = torch.cat([cells, torch.zeros(1, 256 * 256, 31)], dim=2)
    logits = torch.from_numpy(logits_of(seen_mask)).expand(4, -1, -1).clone()
    return Look(Prompts(np.array(points, np.float32), labels, None, previous), fine, logits, torch.full((4,), 0.9), 0)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize(("radius", "scale"), [(20, 1), (90, 2)])
def test_a_crop_holds_the_object_and_pastes_back_where_it_was_cut(radius, scale):
    mask = disc(200, 60, 20) if radius == 20 else disc(128, 128, 90)
    crop = Crop.around(mask, np.zeros((0, 2), np.float32))
    assert crop.scale == scale
    picture = torch.from_numpy(mask.astype(np.float32))
    cut = crop.cut(picture[None])[0]
    assert cut.shape == (CROP, CROP)
    assert cut.sum() * scale**2 == pytest.approx(mask.sum())  # nothing of it was lost
    pasted = crop.paste(cut, torch.zeros(256, 256))
    assert iou((pasted > 0.5).numpy(), mask) > 0.97


def test_a_crop_holds_clicks_outside_the_mask():
    crop = Crop.around(disc(100, 100, 10), np.array([[180.5, 100.5]], np.float32))
    assert crop.left <= 90
    assert crop.left + CROP >= 181


def test_an_untrained_refiner_is_sam():
    view = view_of(disc(120, 120, 20), disc(122, 118, 24), [(120.5, 120.5)])
    assert torch.equal(view.refined(None, half=False), view.refined(MaskRefiner().eval(), half=False))


def test_clicks_and_box_reach_the_refiner_where_they_are():
    view = view_of(disc(60, 90, 20), disc(60, 90, 20), [(60.5, 90.5), (85.5, 90.5)], [1, 0])
    view = Look(
        Prompts(view.cells.points_xy, view.cells.labels, np.array([40, 70, 80, 110], np.float32)),
        *(getattr(view, name) for name in ("fine_cells", "logits", "iou", "chosen")),
    )
    crop, inputs = view.seen.crop, view.seen.inputs
    assert inputs.shape == (14, CROP, CROP)
    for channel, (x, y) in ((9, (60, 90)), (11, (85, 90))):
        rows, cols = np.nonzero(inputs[channel].numpy())
        assert rows.mean() + crop.top == pytest.approx(y, abs=0.6)
        assert cols.mean() + crop.left == pytest.approx(x, abs=0.6)
        assert 20 <= len(rows) <= 40
    assert inputs[13].sum() == 40 * 40
    assert view.seen.click_discs.sum() == (inputs[9] + inputs[11]).sum()


def test_the_first_answer_of_an_ambiguous_click_has_the_highest_predicted_iou():
    view = view_of(disc(60, 90, 20), disc(60, 90, 20), [(60.5, 90.5)])
    scored = Look(view.cells, view.fine_cells, view.logits, torch.tensor([0.99, 0.1, 0.8, 0.3]), 0)
    assert [one.chosen for one in scored.alternatives(MaskChoice(), cell_size=1)] == [2, 3, 1]


def choice(best, *, accepted=400.0):
    """Three masks of 40, 400 and 4000 px, of which SAM likes the largest best; `best` is the right one."""
    ious = np.full(3, 0.2)
    ious[best] = 0.9
    return Choice(np.array([0.8, 0.85, 0.95]), np.array([40.0, 400.0, 4000.0]), ious, accepted)


def test_sizes_of_accepted_objects_decide_which_mask_is_meant():
    learned = MaskChoice()
    for n in range(8):
        assert learned.weight == 0 or n >= 5
        learned.learn(choice(1, accepted=380.0 + 10 * n))
    assert learned.weight > 0
    assert learned.order([0.8, 0.85, 0.95], [40, 400, 4000])[0] == 1
    # One that SAM is much surer of is still believed.
    assert learned.order([0.2, 0.2, 0.99], [300, 40, 1200])[0] == 2


def test_choices_offset_and_rectangles_come_back_with_the_adapter(tmp_path):
    adapter = OnlineAdapter(None, half=False)
    for n in range(8):
        adapter.choice.learn(choice(1, accepted=380.0 + 10 * n))
        mask = torch.from_numpy(disc(50 + n, 60, 12, CROP))
        adapter.offset.learn(mask, torch.roll(mask, (-1, 2), (0, 1)), pixel_px=1)
        ell = np.zeros((CROP, CROP), bool)
        ell[20:60, 20:60] = True
        box, ell[20:32, 20:40] = ell.copy(), False
        adapter.rectangles.learn(ell, box)
    save_adapter(Adapter(card(), adapter.tensors()), tmp_path / "sizes.safetensors")
    other = OnlineAdapter(None, half=False)
    saved = load_adapter(tmp_path / "sizes.safetensors", base_model="mobile_sam", base_sha256=SHA)
    other.load(saved, is_same_raster=True)
    assert other.choice.weight == adapter.choice.weight > 0
    assert other.choice.order([0.8, 0.85, 0.95], [40, 400, 4000]) == [1, 2, 0]
    assert other.offset.offset_px == (2, -1)
    assert other.rectangles.threshold == adapter.rectangles.threshold < USUAL_THRESHOLD
    assert other.refiner is None
    other.load(saved, is_same_raster=False)
    assert other.offset.offset_px == (0, 0)
    in_m2 = OnlineAdapter(None, half=False, is_metric=True)
    in_m2.load(saved, is_same_raster=True)
    assert in_m2.choice.weight == 0  # what is 40 pixels may have any size
    adapter.reset()
    assert adapter.rectangles.threshold == USUAL_THRESHOLD


def test_objects_below_a_square_metre_have_sizes():
    learned = MaskChoice()
    for n in range(8):
        one = choice(1, accepted=(380.0 + 10 * n) / 1000)
        learned.learn(Choice(one.scores, one.sizes / 1000, one.ious, one.accepted_size))
    assert learned.order([0.8, 0.85, 0.95], [0.04, 0.4, 4])[0] == 1


def test_where_sizes_say_nothing_sam_is_trusted():
    learned = MaskChoice()
    for n in range(12):
        learned.learn(choice(2, accepted=[30.0, 4000.0, 500.0][n % 3]))
    assert learned.weight == 0
    assert learned.order([0.8, 0.85, 0.95], [40, 400, 4000]) == [2, 1, 0]


def test_repair_turns_over_the_part_that_was_clicked_and_nothing_else():
    seen, missing = disc(100, 100, 30), disc(150, 100, 8)
    logits = np.where(seen, 6.0, -6.0).astype(np.float32)
    logits[missing & ~seen] = -0.3  # the network nearly held it
    repaired = respect_clicks(logits, np.array([[150.5, 100.5]], np.float32), np.array([1]))
    assert (repaired > 0)[missing].all()
    assert not (repaired > 0)[~(seen | missing)].any()
    hole = respect_clicks(logits, np.array([[100.5, 100.5]], np.float32), np.array([0]))
    assert not hole[100, 100] > 0
    assert np.array_equal(logits, respect_clicks(logits, np.array([[100.5, 100.5]], np.float32), np.array([1])))


def test_all_clicks_hold_after_the_repair():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (256, 256)).astype(np.float32)
    points, labels = rng.uniform(0, 256, (12, 2)).astype(np.float32), rng.integers(0, 2, 12)
    assert contradicted(logits, points, labels).any()
    assert not contradicted(respect_clicks(logits, points, labels), points, labels).any()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("cells_apart", [1, 2, 3, 5, 9])
def test_a_click_and_its_opposite_beside_it_both_hold(first, cells_apart):
    logits = logits_of(disc(128, 128, 40) if first == 0 else ~disc(128, 128, 40))
    points, labels = np.array([[128.5, 128.5], [128.5 + cells_apart, 128.5]], np.float32), np.array([first, 1 - first])
    repaired = respect_clicks(logits, points, labels)
    assert not contradicted(repaired, points, labels).any()
    # What is about as far from the clicks as they are from each other is all that changed.
    rows, cols = np.nonzero((repaired > 0) != (logits > 0))
    assert np.hypot(cols - 128, rows - 128).max(initial=0) < cells_apart


def test_many_clicks_close_to_each_other_all_hold():
    rng = np.random.default_rng(1)
    for _ in range(150):
        rows, cols = np.mgrid[:256, :256]
        blobs = sum(np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / 400) for x, y in rng.uniform(90, 160, (3, 2)))
        logits = (12 * blobs - 6 + rng.normal(0, 0.3, (256, 256))).astype(np.float32)
        cells = np.unique(rng.integers(110, 140, (10, 2)), axis=0)
        points, labels = rng.permutation(cells).astype(np.float32) + 0.5, rng.integers(0, 2, len(cells))
        assert not contradicted(respect_clicks(logits, points, labels), points, labels).any()


@pytest.mark.parametrize("newest", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_of_two_kinds_of_clicks_in_one_cell_the_newest_holds(newest, sign):
    logits = sign * logits_of(disc(128, 128, 20))
    points, labels = np.array([[128.2, 128.2], [128.8, 128.8]], np.float32), np.array([1 - newest, newest])
    assert list(contradicted(respect_clicks(logits, points, labels), points, labels)) == [True, False]


def test_specks_go_unless_somebody_clicked_them():
    mask = (disc(120, 120, 30) & ~disc(125, 120, 2)) | disc(40, 40, 2) | disc(200, 60, 2) | disc(60, 200, 9)
    points = np.array([[120.5, 120.5], [200.5, 60.5]], np.float32)
    cleaned = without_specks(logits_of(mask), points, np.array([1, 1])) > 0
    assert cleaned[120, 125]  # the hole is filled
    assert not cleaned[40, 40]
    assert cleaned[60, 200]  # was clicked
    assert cleaned[200, 60]  # is a part, not a speck
    hole = np.array([[120.5, 100.5], [125.5, 120.5]], np.float32)
    assert not without_specks(logits_of(mask), hole, np.array([1, 0]))[120, 125] > 0


def test_where_nothing_is_found_a_click_makes_no_dot():
    nothing = np.full((256, 256), -5, np.float32)
    assert respect_clicks(nothing, np.array([[50.5, 50.5]], np.float32), np.array([1])) is nothing


def test_steps_for_a_click_follow_a_feature_that_tells_the_object_apart():
    truth, seen = disc(120, 120, 30), disc(120, 120, 30) & (np.arange(256) < 125)
    # The logits are unsure where the object goes on, as they are at a shadow.
    view = view_of(truth, seen, [(110.5, 120.5), (138.5, 120.5)])
    view.logits[0][torch.from_numpy(truth & ~seen)] = -0.2
    adapter = OnlineAdapter(None, half=False)
    before = view.logits[0]
    after = adapter.adjusted(view, before, points=view.cells.points_xy, labels=view.cells.labels)
    assert iou((after > 0).numpy(), truth) > iou((before > 0).numpy(), truth) + 0.2
    # Without a contradiction nothing moves.
    assert adapter.adjusted(view, before, points=view.cells.points_xy[:1], labels=view.cells.labels[:1]) is before


def test_steps_for_a_click_leave_places_alone_that_only_look_alike():
    truth, other = disc(120, 120, 20), disc(80, 80, 12)
    seen = disc(120, 120, 20) & (np.arange(256) < 125)
    view = view_of(truth | other, seen, [(115.5, 120.5), (132.5, 120.5)])
    view.logits[0][torch.from_numpy((truth | other) & ~seen)] = -0.2
    after = OnlineAdapter(None, half=False).adjusted(
        view, view.logits[0], points=view.cells.points_xy, labels=view.cells.labels
    )
    assert (after > 0).numpy()[truth].mean() > 0.9
    assert not (after > 0).numpy()[other].any()


def accepted_objects(n, *, shift):
    """Objects that SAM sees `shift` pixels too far right, as it may on a tilted image."""
    rng = np.random.default_rng(1)
    for _ in range(n):
        x, y = rng.integers(80, 170, 2)
        radius = int(rng.integers(14, 24))
        truth, seen = disc(x, y, radius), disc(x + shift, y, radius)
        yield view_of(truth, seen, [(x + 0.5, y + 0.5)], previous=logits_of(seen)), truth


def test_accepted_objects_make_the_next_answers_better():
    torch.manual_seed(0)
    adapter = OnlineAdapter(None, half=False)
    kept = []
    for view, truth in accepted_objects(10, shift=6):
        target = view.seen.crop.cut(torch.from_numpy(truth).float()[None])
        kept.append(adapter.learn([view.seen], [target]))
    assert any(learned.is_kept for learned in kept)
    assert all(learned.iou_after >= learned.iou_before for learned in kept if learned.is_kept)
    for view, truth in list(accepted_objects(13, shift=6))[10:]:
        before = iou((view.logits[0] > 0).numpy(), truth)
        assert iou((adapter.refined(view, cell_px=1) > 0).numpy(), truth) > before + 0.03
    adapter.reset()
    assert torch.equal(adapter.refined(view, cell_px=1), view.logits[0])


def test_the_first_answer_is_not_refined():
    torch.manual_seed(0)
    refiner = MaskRefiner().eval()
    torch.nn.init.normal_(refiner.out[-1].weight)
    (view, _), *_ = accepted_objects(1, shift=3)
    first = view_of(disc(120, 120, 20), disc(122, 118, 24), [(120.5, 120.5)])
    assert not torch.equal(view.refined(refiner, half=False), view.logits[0])
    assert torch.equal(first.refined(refiner, half=False), first.logits[0])


@pytest.mark.parametrize("cell_px", [1.0, 2.0])
def test_first_answers_move_to_where_accepted_objects_lie(cell_px):
    offset = MaskOffset()
    for n in range(5):
        assert offset.offset_px == (0, 0)
        mask = torch.from_numpy(disc(50 + n, 60, 12, CROP))
        offset.learn(mask, torch.roll(mask, (-1, 2), (0, 1)), pixel_px=cell_px)
    # Pixels that come to the same whole cells are as good as each other.
    assert [round(value / cell_px) for value in offset.offset_px] == [2, -1]
    logits = torch.from_numpy(logits_of(disc(120, 100, 20)))
    moved = offset.moved(logits, cell_px=cell_px)
    assert torch.equal(moved > 0, torch.roll(logits > 0, (-1, 2), (0, 1)))


def test_offsets_that_differ_from_object_to_object_move_nothing():
    offset, rng = MaskOffset(), np.random.default_rng(0)
    for _ in range(12):
        mask = torch.from_numpy(disc(60, 60, 12, CROP))
        offset.learn(mask, torch.roll(mask, tuple(rng.integers(-4, 5, 2)), (0, 1)), pixel_px=1)
    assert offset.offset_px == (0, 0)
    logits = torch.randn(256, 256)
    assert offset.moved(logits, cell_px=1) is logits


def test_an_object_that_was_no_mask_of_sam_says_nothing_about_its_place():
    offset = MaskOffset()
    for _ in range(6):
        offset.learn(torch.from_numpy(disc(30, 30, 5, CROP)), torch.from_numpy(disc(90, 90, 5, CROP)), pixel_px=1)
    assert len(offset.state()) == 0
    assert offset.offset_px == (0, 0)


def test_a_step_that_harms_what_was_accepted_is_not_kept(monkeypatch):
    torch.manual_seed(0)
    adapter = OnlineAdapter(None, half=False)
    (view, truth), *_ = accepted_objects(1, shift=0)
    target = view.seen.crop.cut(torch.from_numpy(truth).float()[None])
    monkeypatch.setattr("segadapt.models.adaptation.online._OBJECT_RATE", 50.0)
    learned = adapter.learn([view.seen], [target])
    assert not learned.is_kept
    assert learned.iou_after < learned.iou_before
    assert torch.equal(adapter.refined(view, cell_px=1), view.logits[0])


@pytest.mark.parametrize(("old_after", "is_kept"), [(0.8, False), (0.9, True)])
def test_what_a_new_object_gains_cannot_pay_for_what_others_lose(monkeypatch, old_after, is_kept):
    """One accepted object with two answers, then one with a single answer that gains a lot."""
    adapter = OnlineAdapter(None, half=False)
    (view, truth), *_ = accepted_objects(1, shift=0)
    target = view.seen.crop.cut(torch.from_numpy(truth).float()[None])
    adapter.learn([view.seen, view.seen], [target, target])
    before = adapter.refiner
    ious = {(1, True): 0.5, (1, False): 0.9, (2, True): 0.9, (2, False): old_after}
    monkeypatch.setattr(adapter, "_mean_iou", lambda refiner, part: ious[len(part), refiner is before])
    assert adapter.learn([view.seen], [target]).is_kept is is_kept
    assert (adapter.refiner is before) is not is_kept


def test_memory_of_accepted_objects_is_limited(monkeypatch):
    monkeypatch.setattr("segadapt.models.adaptation.online._MOST_REMEMBERED", 4)
    adapter = OnlineAdapter(None, half=False)
    for view, truth in accepted_objects(7, shift=2):
        adapter.learn([view.seen], [view.seen.crop.cut(torch.from_numpy(truth).float()[None])])
    assert len(adapter._remembered) == 4


def test_the_loss_forgives_at_the_edge_but_not_at_a_click():
    truth = torch.from_numpy(disc(64, 64, 20, CROP)).float()[None, None]
    none = torch.zeros_like(truth)
    at_edge = torch.from_numpy(disc(64, 64, 21, CROP)).float()[None, None] * 12 - 6
    away = torch.from_numpy(disc(64, 64, 20, CROP) | disc(104, 64, 4, CROP)).float()[None, None] * 12 - 6
    exact = truth * 12 - 6
    assert click_loss(exact, truth, none) < click_loss(at_edge, truth, none)
    n_edge, n_away = (((wrong > 0) != (truth > 0)).sum() for wrong in (at_edge, away))
    per_pixel = [(click_loss(wrong, truth, none) / n).item() for wrong, n in ((at_edge, n_edge), (away, n_away))]
    assert per_pixel[0] < per_pixel[1]
    clicked = torch.from_numpy(disc(104, 64, 3, CROP)).float()[None, None]
    assert click_loss(away, truth, clicked) > 1.5 * click_loss(away, truth, none)


def card(**changes):
    values = dict(
        name="mine",
        base_model="mobile_sam",
        base_sha256=SHA,
        method="mask refiner",
        trained_on=("a.tif",),
        n_objects=3,
        licence="of its maker",
        made_on="2026-11-22",
    )
    return AdapterCard(**{**values, **changes})


def test_an_adapter_comes_back_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    refiner = MaskRefiner()
    torch.nn.init.normal_(refiner.out[-1].weight)
    save_adapter(Adapter(card(), refiner.state_dict()), tmp_path / "mine.safetensors")
    loaded = load_adapter(tmp_path / "mine.safetensors", base_model="mobile_sam", base_sha256=SHA)
    assert loaded.card == card()
    view = view_of(disc(120, 120, 20), disc(122, 118, 24), [(120.5, 120.5)])
    again = refiner_of(loaded)
    assert torch.allclose(
        changes(refiner.eval(), [view.seen], half=False), changes(again, [view.seen], half=False), atol=0.1
    )
    assert (tmp_path / "mine.safetensors").stat().st_size < 2 * 2**20
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.safetensors"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b"no adapter"), "cannot be read as an adapter"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read as an adapter"),
        (lambda path: path.unlink(), "cannot be read as an adapter"),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path, damage, sentence):
    path = tmp_path / "mine.safetensors"
    save_adapter(Adapter(card(), MaskRefiner().state_dict()), path)
    damage(path)
    with pytest.raises(CheckpointError, match=sentence):
        load_adapter(path, base_model="mobile_sam", base_sha256=SHA)


def test_an_adapter_of_other_weights_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_adapter(Adapter(card(), MaskRefiner().state_dict()), path)
    with pytest.raises(CheckpointError, match="was made for mobile_sam with weights aaaa"):
        load_adapter(path, base_model="sam_vit_b", base_sha256="b" * 64)
    save_adapter(Adapter(card(), {"weight": torch.zeros(3)}), path)
    with pytest.raises(CheckpointError, match="not a mask refiner"):
        refiner_of(load_adapter(path, base_model="mobile_sam", base_sha256=SHA))
    save_adapter(Adapter(card(), {"weight": torch.full((3,), torch.nan)}), path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_adapter(path, base_model="mobile_sam", base_sha256=SHA)


def test_an_adapter_from_before_sizes_had_a_unit_is_loaded_without_them(tmp_path):
    sizes, offsets = MaskChoice(), MaskOffset()
    for n in range(8):
        sizes.learn(choice(1, accepted=380.0 + 10 * n))
        mask = torch.from_numpy(disc(50 + n, 60, 12, CROP))
        offsets.learn(mask, torch.roll(mask, (-1, 2), (0, 1)), pixel_px=1)
    path = tmp_path / "old.safetensors"
    old = {**MaskRefiner().state_dict(), "choices": sizes.state(), "offsets": offsets.state()}
    save_adapter(Adapter(card(), old), path)
    adapter = OnlineAdapter(None, half=False)
    adapter.load(load_adapter(path, base_model="mobile_sam", base_sha256=SHA), is_same_raster=False)
    assert adapter.refiner is not None
    assert (adapter.choice.weight, adapter.offset.offset_px) == (0, (0, 0))


def test_other_safetensors_are_no_adapters(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no adapter of SegAdapt"):
        load_adapter(tmp_path / "other.safetensors", base_model="mobile_sam", base_sha256=SHA)


def test_a_model_without_a_shipped_adapter_has_none():
    assert shipped_refiner("sam_vit_b", SHA) is None


def test_the_shipped_adapter_fits_the_published_weights_and_says_what_it_is():
    published = get_card("mobile_sam").checkpoint.sha256
    assert shipped_refiner("mobile_sam", published) is not None
    path = Path(shipped.__file__).with_name("eo_mobile_sam.safetensors")
    assert path.stat().st_size < 2 * 2**20
    found = load_adapter(path, base_model="mobile_sam", base_sha256=published).card
    assert found.trained_on
    assert "CC BY 4.0" in found.licence
    assert any("held out" in name for name in found.metrics)
