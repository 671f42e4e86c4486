"""Batches with what was learned while clicking: the map tool's answers, one object after another."""

from __future__ import annotations

import pytest
import shapely
from affine import Affine
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.interactive import InteractiveSegmenter
from segadapt.processing.jobs.objects import PromptGeometry, gather_prompts
from segadapt.processing.jobs.segment import SegmentOptions
from segadapt.processing.jobs.segment_adapted import segment_adapted
from shapely.geometry import Point, box

TURNED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
DISC, HALL, SHED = Point(150, 130).buffer(40), box(90, 300, 260, 400), box(400, 330, 450, 370)


@pytest.fixture(params=[Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000), TURNED], ids=["north up", "turned"])
def segmenter(request, paint_scene, open_scene, fake_engine):
    path = paint_scene((512, 512), [DISC, HALL, SHED], transform=request.param)
    return InteractiveSegmenter(open_scene(path, fake_engine))


def objects_of(segmenter):
    """A click on the disc, a box around the hall, a rough outline of the shed, in the order of the alphabet."""
    reader = segmenter.scene.reader
    drawn = (
        ("disc", DISC.centroid),
        ("hall", box(*HALL.buffer(2).bounds)),
        ("shed", shapely.affinity.rotate(SHED, 8)),
    )
    prompts = [PromptGeometry(shapely.transform(g, reader.to_map), name, f"class of {name}") for name, g in drawn]
    return gather_prompts(prompts, reader)


def test_each_object_is_outlined(segmenter, iou, recorder):
    progress = recorder()
    found = {one.object_id: one for one in segment_adapted(segmenter, objects_of(segmenter), progress=progress)}
    for name, truth in {"disc": DISC, "hall": HALL, "shed": SHED}.items():
        assert iou(segmenter.scene, found[name].geometry, truth) > 0.9, name
        assert found[name].class_name == f"class of {name}"
        assert found[name].area_m2 == pytest.approx(0.25 * truth.area, rel=0.1)
    assert progress.fractions[-1] == 1
    assert segmenter.n_learned == 0


def test_what_cannot_be_answered_is_named_and_left_out(segmenter, recorder, monkeypatch):
    answer, progress = segmenter.answer, recorder()

    def refuse_the_box(request):
        if request.box_map is not None:
            raise JobError("Too far apart.")
        return answer(request)

    monkeypatch.setattr(segmenter, "answer", refuse_the_box)
    # The shed is 500 m2, the disc 1256 m2.
    options = SegmentOptions(min_area_m2=800.0)
    found = list(segment_adapted(segmenter, objects_of(segmenter), options=options, progress=progress))
    assert [one.object_id for one in found] == ["disc"]
    assert progress.texts == [
        "Object 'hall' was skipped: Too far apart.",
        "Object 'shed': nothing was found there; add a point or a box.",
    ]


def test_cancel_ends_it_between_objects(segmenter, recorder):
    progress = recorder(cancel_after=1)
    with pytest.raises(Cancelled):
        list(segment_adapted(segmenter, objects_of(segmenter), progress=progress))
    assert len(progress.fractions) == 1
