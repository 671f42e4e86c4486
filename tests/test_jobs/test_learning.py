"""Learning on a scene: what is taken in, switched off, saved, and loaded elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import shapely
from affine import Affine
from segadapt.models.adaptation.online import run_to_end
from segadapt.models.errors import CheckpointError
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.evaluate_interactive import plain_options
from segadapt.processing.jobs.interactive import InteractiveOptions, InteractiveSegmenter
from segadapt.processing.jobs.prompt_request import PromptRequest
from shapely.geometry import box

ROOFS = [box(100 + 150 * n, 100, 160 + 150 * n, 140) for n in range(6)]


@pytest.fixture
def scene(paint_scene, open_scene, fake_engine):
    return open_scene(paint_scene((300, 1000), ROOFS), fake_engine)


def session(segmenter, roof, n_clicks=2):
    """Click a roof, then beside it, each answer on top of the one before; the last answer."""
    x, y = roof.centroid.x, roof.centroid.y
    points_px = [(x, y), (x + 45, y), (x, y + 30)][:n_clicks]
    labels, result = (1, 0, 0)[:n_clicks], None
    for n in range(1, n_clicks + 1):
        points = tuple(map(tuple, segmenter.scene.reader.to_map(points_px[:n])))
        previous = None if result is None else result.as_previous()
        result = segmenter.answer(PromptRequest(request_id=n, points_map=points, labels=labels[:n], previous=previous))
    return result


def outline(segmenter, roof):
    return shapely.transform(roof, segmenter.scene.reader.to_map)


def overlap(one, other):
    return one.intersection(other).area / one.union(other).area


def test_the_trail_of_an_object_reaches_the_lesson(scene):
    segmenter = InteractiveSegmenter(scene)
    result = session(segmenter, ROOFS[0], n_clicks=3)
    assert [one.seen.is_correction for one in result.trail] == [False, True, True]
    assert result.trail[0].is_choice
    assert not result.trail[1].is_choice
    report = segmenter.learn(result, outline(segmenter, ROOFS[0]))
    assert segmenter.n_learned == report.n_objects == 1
    assert report.iou_after >= report.iou_before or not report.is_kept
    assert "object 1" in report.sentence


def test_an_object_that_was_right_at_once_teaches_its_size_and_place(scene):
    segmenter = InteractiveSegmenter(scene)
    report = segmenter.learn(session(segmenter, ROOFS[0], n_clicks=1))
    assert not report.is_kept
    assert "its size and place were noted" in report.sentence
    assert segmenter.n_learned == 1


def test_outlines_that_all_lie_beside_their_roofs_move_the_next_answer(scene):
    segmenter = InteractiveSegmenter(scene)
    before = session(segmenter, ROOFS[5], n_clicks=1).geometry
    for roof in ROOFS[:5]:
        beside = shapely.affinity.translate(roof, 4, -4)
        segmenter.learn(session(segmenter, roof, n_clicks=1), outline(segmenter, beside))
    after = session(segmenter, ROOFS[5], n_clicks=1).geometry
    wanted = outline(segmenter, shapely.affinity.translate(ROOFS[5], 4, -4))
    assert overlap(after, wanted) > overlap(before, wanted) + 0.1
    segmenter.reset()
    assert session(segmenter, ROOFS[5], n_clicks=1).geometry.equals(before)


def test_a_click_can_be_answered_between_the_steps(scene):
    segmenter = InteractiveSegmenter(scene)
    steps = segmenter.learning(session(segmenter, ROOFS[0]), outline(segmenter, ROOFS[0]))
    next(steps)
    assert not session(segmenter, ROOFS[1], n_clicks=1).geometry.is_empty
    assert run_to_end(steps).n_objects == 1


def test_learning_can_be_switched_off(scene):
    segmenter = InteractiveSegmenter(scene, InteractiveOptions(per_object=False))
    assert "Nothing was learned" in segmenter.learn(session(segmenter, ROOFS[0])).sentence
    assert segmenter.n_learned == 0
    segmenter.options = replace(segmenter.options, per_object=True)
    segmenter.learn(session(segmenter, ROOFS[0]))
    assert segmenter.n_learned == 1


def test_the_plain_model_leaves_no_trail(scene):
    plain = plain_options()
    assert session(InteractiveSegmenter(scene, plain), ROOFS[0]).trail == ()


def test_what_was_learned_goes_to_another_scene(scene, tmp_path, paint_scene, open_scene, fake_engine):
    segmenter = InteractiveSegmenter(scene)
    with pytest.raises(JobError, match="accept some objects first"):
        segmenter.save(tmp_path / "roofs.safetensors")
    for roof in ROOFS:
        segmenter.learn(session(segmenter, roof), outline(segmenter, roof))
    segmenter.save(tmp_path / "roofs.safetensors")
    other = InteractiveSegmenter(open_scene(paint_scene((300, 1000), ROOFS[:2], name="other.tif"), fake_engine))
    other.load(tmp_path / "roofs.safetensors")
    assert other.adapter_name == "roofs"
    assert session(other, ROOFS[1]).adapter == "roofs"
    started_with = InteractiveSegmenter(
        other.scene, InteractiveOptions(adapter_path=tmp_path / "roofs.safetensors", per_object=False)
    )
    learned, loaded = segmenter._online.tensors(), started_with._online.tensors()
    assert loaded["stem.weight"].allclose(learned["stem.weight"], atol=1e-3)
    segmenter.reset()
    assert (segmenter.n_learned, segmenter.adapter_name) == (0, "")
    fake_engine.checkpoint_sha256 = "f" * 64
    with pytest.raises(CheckpointError, match="was made for fake with weights 0000"):
        other.load(tmp_path / "roofs.safetensors")


@pytest.fixture
def fine_scene(paint_scene, open_scene, fake_engine):
    """The same ground in pixels of half the side."""
    roofs = [shapely.affinity.scale(roof, 2, 2, origin=(0, 0)) for roof in ROOFS]
    quarter_metre = Affine(0.25, 0, 590_000, 0, -0.25, 5_750_000)
    return open_scene(paint_scene((600, 2000), roofs, name="fine.tif", transform=quarter_metre), fake_engine)


def test_sizes_go_to_finer_pixels_as_square_metres(scene, fine_scene, tmp_path, monkeypatch):
    segmenter = InteractiveSegmenter(scene)
    for roof in ROOFS:
        segmenter.learn(session(segmenter, roof, n_clicks=1))
    segmenter.save(tmp_path / "roofs.safetensors")
    fine = InteractiveSegmenter(fine_scene)
    fine.load(tmp_path / "roofs.safetensors")
    accepted = fine._online.choice._accepted_sizes()
    assert accepted == pytest.approx([60 * 40 / 4] * 6, rel=0.05)
    ranked = []
    monkeypatch.setattr(fine._online.choice, "order", lambda scores, sizes: ranked.append(sizes) or [0, 1, 2])
    x, y = shapely.affinity.scale(ROOFS[0], 2, 2, origin=(0, 0)).centroid.coords[0]
    place = tuple(map(float, fine_scene.reader.to_map([(x, y)])[0]))
    fine.answer(PromptRequest(request_id=1, points_map=(place,), labels=(1,)))
    assert max(ranked[0]) == pytest.approx(accepted[0], rel=0.05)


def test_sizes_in_pixels_do_not_meet_sizes_in_square_metres(scene, paint_scene, open_scene, fake_engine, tmp_path):
    nowhere = InteractiveSegmenter(open_scene(paint_scene((300, 1000), ROOFS, name="no.tif", crs=None), fake_engine))
    for roof in ROOFS:
        nowhere.learn(session(nowhere, roof, n_clicks=1))
    assert nowhere._online.choice._accepted_sizes() == pytest.approx([60 * 40] * 6, rel=0.05)
    nowhere.save(tmp_path / "nowhere.safetensors")
    segmenter = InteractiveSegmenter(scene)
    segmenter.load(tmp_path / "nowhere.safetensors")
    assert len(segmenter._online.choice._accepted_sizes()) == 0


def test_the_offset_of_one_raster_moves_no_answer_on_another(scene, fine_scene, tmp_path):
    segmenter = InteractiveSegmenter(scene)
    for roof in ROOFS[:5]:
        beside = shapely.affinity.translate(roof, 4, -4)
        segmenter.learn(session(segmenter, roof, n_clicks=1), outline(segmenter, beside))
    moved = session(segmenter, ROOFS[5], n_clicks=1).geometry
    segmenter.save(tmp_path / "roofs.safetensors")
    again, other = InteractiveSegmenter(scene), InteractiveSegmenter(fine_scene)
    for one in (again, other):
        one.load(tmp_path / "roofs.safetensors")
    assert session(again, ROOFS[5], n_clicks=1).geometry.equals(moved)
    assert other._online.offset.offset_px == (0, 0)
    assert str(scene.reader.path) not in (tmp_path / "roofs.safetensors").read_bytes().decode("latin-1")


def test_all_that_was_learned_and_loaded_is_taken_over(scene, tmp_path, fake_engine):
    segmenter = InteractiveSegmenter(scene)
    for roof in ROOFS[:4]:
        segmenter.learn(session(segmenter, roof), outline(segmenter, roof))
    segmenter.save(tmp_path / "my_city.safetensors")
    segmenter.load(tmp_path / "my_city.safetensors")
    assert (segmenter.n_learned, segmenter.adapter_name) == (0, "my_city")  # it replaces what was learned here
    loaded = InteractiveSegmenter(scene)
    loaded.take_over(segmenter.knowledge)
    assert loaded.adapter_name == "my_city"
    loaded.learn(session(loaded, ROOFS[4]), outline(loaded, ROOFS[4]))
    fake_engine.precision = "bf16"
    other = InteractiveSegmenter(scene)
    other.take_over(loaded.knowledge)
    assert other.adapter_name == "my_city + learned from 1"
    assert len(other._online._remembered) == 5
    assert other._online.half
    fake_engine.precision = "fp32"
    last = InteractiveSegmenter(scene)
    last.take_over(other.knowledge)
    assert session(last, ROOFS[5]).geometry.equals(session(loaded, ROOFS[5]).geometry)
    assert last.learn(session(last, ROOFS[5])).n_objects == 2


def test_what_was_learned_goes_to_another_scale_but_for_where_objects_lie(
    scene, fine_scene, paint_scene, open_scene, fake_engine
):
    segmenter = InteractiveSegmenter(scene)
    for roof in ROOFS[:5]:
        beside = shapely.affinity.translate(roof, 4, -4)
        segmenter.learn(session(segmenter, roof), outline(segmenter, beside))
    assert segmenter._online.offset.offset_px == (4, -4)
    fine = InteractiveSegmenter(fine_scene)
    fine.take_over(segmenter.knowledge)
    assert (fine.n_learned, fine._online.offset.offset_px) == (5, (0, 0))
    assert fine._online.choice._accepted_sizes() == pytest.approx([60 * 40 / 4] * 5, rel=0.05)
    assert segmenter._online.offset.offset_px == (4, -4)  # stays as it was
    nowhere = InteractiveSegmenter(open_scene(paint_scene((300, 1000), ROOFS, name="no.tif", crs=None), fake_engine))
    nowhere.take_over(segmenter.knowledge)
    assert nowhere.n_learned == 0


def test_what_an_object_taught_can_be_taken_back_and_learned_again(scene):
    segmenter = InteractiveSegmenter(scene)
    for roof in ROOFS[:4]:
        segmenter.learn(session(segmenter, roof), outline(segmenter, roof))
    before, tensors_before = segmenter.knowledge, segmenter._online.tensors()
    wrong = session(segmenter, ROOFS[4])

    def taught():
        segmenter.learn(wrong, outline(segmenter, shapely.affinity.scale(ROOFS[4], 1.5, 0.5)))
        return segmenter._online.tensors()

    tensors = taught()
    assert segmenter.n_learned == 5
    segmenter.take_over(before)
    assert segmenter.n_learned == 4
    assert len(segmenter._online._remembered) == 4
    for name, tensor in segmenter._online.tensors().items():
        assert tensor.equal(tensors_before[name])
    for name, tensor in taught().items():
        assert tensor.equal(tensors[name])


def test_clicks_hold_in_the_answer_whatever_the_model_says(scene):
    segmenter = InteractiveSegmenter(scene)
    roof = ROOFS[0]
    x, y = roof.centroid.x, roof.centroid.y
    points_px = [(x, y), (x - 20, y), (x + 40, y)]  # the second lies on the roof, and is said not to belong to it
    points = tuple(map(tuple, scene.reader.to_map(points_px)))
    result = segmenter.answer(PromptRequest(request_id=1, points_map=points, labels=(1, 0, 1)))
    inside = [result.geometry.contains(shapely.Point(*point)) for point in points]
    assert inside == [True, False, True]
