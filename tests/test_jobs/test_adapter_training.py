"""Training of the refiner by simulated clicks; how good it gets is measured by `make train-adapter`."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from segadapt.processing.jobs.adapter_training import labelled_objects, simulate, train_in_rounds
from shapely.geometry import Point, box

SHAPES = (Point(150, 130).buffer(40), box(90, 300, 260, 400), box(400, 330, 450, 370))


@pytest.fixture
def objects(paint_scene, open_scene, fake_engine):
    path = paint_scene((512, 512), SHAPES, transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000))
    scene = open_scene(path, fake_engine)
    to_map = scene.reader.to_map
    maps = [shapely.transform(outline, to_map) for outline in SHAPES]
    return list(labelled_objects(scene, maps, place="painted", window_px=512))


def test_a_second_round_goes_on_with_the_first_and_learns(objects, fake_engine, monkeypatch):
    monkeypatch.setattr("segadapt.processing.jobs.adapter_training._BATCH", 2)
    assert len(objects) == 3
    told: list[tuple[int, float]] = []
    once, twice = (
        train_in_rounds(
            fake_engine, objects, n_rounds=n, n_clicks=4, n_steps=50, report=lambda *one: told.append(one)
        ).state_dict()
        for n in (1, 2)
    )
    assert [step for step, _ in told] == [50, 50, 50]
    assert told[0] == told[1]
    assert told[2][1] < told[1][1]
    assert not torch.equal(once["stem.bias"], twice["stem.bias"])


def test_states_of_the_first_round_may_be_made_before(objects, fake_engine, monkeypatch):
    monkeypatch.setattr("segadapt.processing.jobs.adapter_training._BATCH", 2)
    rng = np.random.default_rng(0)
    first = [e for one in objects for e in simulate(fake_engine, one, refiner=None, n_clicks=4, rng=rng)[0]]
    monkeypatch.setattr("segadapt.processing.jobs.adapter_training.simulate", None)
    refiner = train_in_rounds(fake_engine, objects, n_rounds=1, n_clicks=4, n_steps=2, first=first)
    assert refiner.stem.weight.device.type == "cpu"


def test_the_simulated_analyst_corrects_what_the_tool_would_show(objects, fake_engine, monkeypatch):
    """A correction sees the answer before as it was shown: as a rectangle, where it became one."""
    shown = np.full((256, 256), -5.0, np.float32)
    shown[40:90, 50:100] = 5
    monkeypatch.setattr("segadapt.processing.jobs.adapter_training.straightened", lambda *_, **__: shown)
    (first, *_), _ = simulate(fake_engine, objects[0], refiner=None, n_clicks=2)
    before = first.seen.inputs[8] > 0
    assert torch.equal(before, first.seen.crop.cut(torch.from_numpy(shown)[None])[0] > 0)


def test_no_round_trains_nothing(objects, fake_engine):
    with pytest.raises(ValueError, match="0 rounds"):
        train_in_rounds(fake_engine, objects, n_rounds=0, n_clicks=4, n_steps=2)


def test_an_adapter_that_harms_a_place_does_not_ship():
    """Half a point of IoU at five clicks is forgiven, three are not; clicks to 0.85 may not rise."""
    from segadapt.tools.train_adapter import harmed_places

    alone = [0.60, 0.80, 0.85, 0.90, 2.5, 4.0, 6.0]

    def result(at_five, to_85):
        return {"without the adapter": alone, "with the adapter": [0.60, 0.80, at_five, 0.90, 2.5, to_85, 6.0]}

    found = {
        "Better": result(0.86, 3.5),
        "Level": result(0.845, 4.0),
        "Worse": result(0.82, 3.5),
        "Slow": result(0.86, 4.1),
    }
    assert harmed_places(found) == ["Worse", "Slow"]
