"""Regions to label: strategies prefer what they should, keep to the budget, and beat chance on known answers."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from segadapt.models.chips import Chips, unlabelled_chips
from segadapt.models.semantic.card import IGNORE
from segadapt.models.transfer import selection
from segadapt.models.transfer.base import TransferError
from segadapt.models.transfer.selection import (
    STRATEGIES,
    Candidates,
    choose_regions,
    describe_chip,
    describe_regions,
    labelled_by,
    select_regions,
)
from torch import nn


class Outputs:
    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class BandsAreClasses(nn.Module):
    """A model that believes in class 1 as much as the first band says, and whose features are the bands."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def outputs(self, pixels):
        share = (pixels[:, :1] / 255).clamp(1e-4, 1 - 1e-4)
        return Outputs(torch.cat([1 - share, share], dim=1).log(), pixels[:, :, ::4, ::4])


def chips_of(first_band):
    """Chips (N, 3, rows, cols) whose first band is given; the others are the number of the 8-px square."""
    n, rows, cols = first_band.shape
    pixels = np.zeros((n, 3, rows, cols), np.uint8)
    pixels[:, 0] = first_band
    pixels[:, 1] = np.arange(rows)[:, None] // 8 * 10
    pixels[:, 2] = np.arange(cols)[None] // 8 * 10
    return unlabelled_chips(pixels)


def candidates(entropy, impurity=None, features=None, n_px=64):
    n = len(entropy)
    windows = np.zeros((n, 6), np.int64)
    windows[:, 0] = np.arange(n)
    windows[:, 3:5] = 8
    return Candidates(
        windows,
        np.full(n, n_px, np.int64),
        np.zeros(n, np.int64),
        np.asarray(entropy, np.float64),
        np.ones(n) if impurity is None else np.asarray(impurity, np.float64),
        np.zeros((n, 1), np.float32) if features is None else np.asarray(features, np.float32).reshape(n, -1),
        np.zeros((0, 1), np.float32),
    )


def numbers(regions):
    return [one.chip for one in regions]


def test_entropy_is_one_where_the_model_cannot_tell_and_impurity_where_classes_meet():
    band = np.zeros((1, 16, 16), np.uint8)
    band[0, :8, :8] = 127  # class 0, hardly
    band[0, :8, 8:12] = 255  # half class 1
    band[0, 8:, :2] = 255  # a quarter class 1
    found = describe_regions(BandsAreClasses(), chips_of(band), region_px=8)
    assert found.windows[:, 1:5].tolist() == [[0, 0, 8, 8], [0, 8, 8, 8], [8, 0, 8, 8], [8, 8, 8, 8]]
    assert found.entropy == pytest.approx([1, 0, 0, 0], abs=2e-3)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert found.impurity == pytest.approx([0, 1, quarter, 0], abs=1e-6)
    # Features lie on every fourth pixel, and every pixel takes the one of its cell.
    assert found.features == pytest.approx(np.array([[127, 0, 0], [127.5, 0, 10], [127.5, 10, 0], [0, 10, 10]]))


def test_strategies_prefer_what_they_should():
    found = candidates(entropy=[0.9, 0.5, 0.6, 0.1], impurity=[0.1, 0.9, 0.5, 1.0], features=[0, 0, 0, 9])
    assert numbers(choose_regions(found, strategy="entropy", budget_regions=3)) == [0, 2, 1]
    by_impurity = choose_regions(found, strategy="impurity", budget_regions=3)
    assert numbers(by_impurity) == [1, 2, 3]
    assert [one.score for one in by_impurity] == pytest.approx([0.45, 0.3, 0.1])


def test_centres_cover_every_cluster_and_what_is_known_counts():
    random = np.random.default_rng(0)
    centres = np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    features = np.repeat(centres, [40, 3, 2, 1], axis=0) + random.normal(size=(46, 2))
    found = candidates(np.ones(46), features=features)
    cluster = np.repeat(np.arange(4), [40, 3, 2, 1])
    for seed in range(5):
        assert set(cluster[numbers(choose_regions(found, strategy="diversity", budget_regions=4, seed=seed))]) == {
            0,
            1,
            2,
            3,
        }
    known = Candidates(*[*vars(found).values()][:-1], np.array([[0, 0], [50, 0], [0, 50]], np.float32))
    assert numbers(choose_regions(known, strategy="diversity", budget_regions=1)) == [45]


def test_clusters_take_what_is_typical_and_not_what_is_known():
    random = np.random.default_rng(1)
    centres = np.array([[0, 0], [50, 0], [0, 50], [60, 60]], float)
    cluster = np.repeat(np.arange(4), [40, 12, 6, 2])
    features = centres[cluster] + random.normal(size=(60, 2))
    found = candidates(np.ones(60), features=features)
    chosen = numbers(choose_regions(found, strategy="clusters", budget_regions=4))
    assert sorted(cluster[chosen]) == [0, 1, 2, 3]
    assert chosen == numbers(choose_regions(found, strategy="clusters", budget_px=4 * 64))
    # The typical one of each, and the heaviest cluster first.
    assert np.abs(features[chosen[0]] - features[cluster == 0].mean(axis=0)).max() < 0.5
    assert cluster[chosen[0]] == 0
    # What the model is sure of weighs nothing.
    doubtful = candidates(np.where(cluster == 3, 1.0, 0.001), features=features)
    assert cluster[numbers(choose_regions(doubtful, strategy="clusters", budget_regions=1))] == [3]
    known = Candidates(*[*vars(found).values()][:-1], centres[:3].astype(np.float32))
    assert cluster[numbers(choose_regions(known, strategy="clusters", budget_regions=1))] == [3]
    assert len(choose_regions(found, strategy="clusters", budget_regions=60)) == 60


def test_clusters_take_turns_where_there_are_fewer_than_regions_to_take(monkeypatch):
    monkeypatch.setattr(selection, "_MOST_CLUSTERS", 3)
    cluster = np.repeat(np.arange(3), [20, 12, 6])
    features = np.array([[0, 0], [50, 0], [0, 50]])[cluster] + np.random.default_rng(1).normal(size=(38, 2))
    found = candidates(np.ones(38), features=features)
    assert cluster[numbers(choose_regions(found, strategy="clusters", budget_regions=7))].tolist() == [0, 1, 2] * 2 + [
        0
    ]
    # However much of a cluster is labelled, it has had one turn.
    known = Candidates(*[*vars(found).values()][:-1], np.zeros((9, 2), np.float32))
    chosen = numbers(choose_regions(known, strategy="clusters", budget_regions=4))
    assert cluster[chosen].tolist() == [1, 2, 0, 1]


def test_many_clusters_take_seconds():
    """24,000 regions, 1,200 wanted, 5,000 labelled ones: as many clusters would take minutes."""
    random = np.random.default_rng(0)
    found = candidates(random.random(24_000), features=random.normal(size=(24_000, 16)))
    known = Candidates(*[*vars(found).values()][:-1], random.normal(size=(5000, 16)).astype(np.float32))
    start = time.process_time()
    assert len(choose_regions(known, strategy="clusters", budget_regions=1200)) == 1200
    assert time.process_time() - start < 15


def test_hybrid_takes_unlike_regions_among_the_doubtful():
    # The eight most doubtful look alike but for one; the outlier that the model is sure of is not asked for.
    entropy = [0.9] * 7 + [0.8] + [0.1] * 12
    features = [0] * 7 + [5] + [1] * 11 + [100]
    chosen = numbers(choose_regions(candidates(entropy, features=features), strategy="hybrid", budget_regions=2))
    assert chosen[0] < 7
    assert chosen[1] == 7
    by_pixels = numbers(choose_regions(candidates(entropy, features=features), strategy="hybrid", budget_px=128))
    assert by_pixels == chosen
    assert 19 in numbers(choose_regions(candidates(entropy, features=features), strategy="diversity", budget_regions=2))


def test_hybrid_asks_for_what_is_clear_only_where_there_is_not_enough_else():
    found = candidates([0.5, 0.4, 0.3, 0.2, 0.1], impurity=[0.5, 0, 0.5, 0, 0], features=[0, 50, 1, 60, 70])
    assert sorted(numbers(choose_regions(found, strategy="hybrid", budget_regions=2))) == [0, 2]
    assert sorted(numbers(choose_regions(found, strategy="hybrid", budget_px=3 * 64))) == [0, 1, 2]
    assert numbers(choose_regions(found, strategy="impurity", budget_regions=5)) == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_budget_is_kept_and_the_seed_decides(strategy):
    band = np.random.default_rng(1).integers(0, 255, (6, 40, 40))
    chips = chips_of(band)
    model = BandsAreClasses()

    def chosen(seed=0, **budget):
        return select_regions(model, chips, strategy=strategy, region_px=16, batch=4, seed=seed, **budget)

    total = 6 * 40 * 40
    for share in (0.05, 0.3, 1.0):
        regions = chosen(budget_px=int(share * total))
        spent = sum(one.n_px for one in regions)
        # Squares at the edges have 128 or 64 pixels: less than that is left over.
        assert share * total - 256 < spent <= share * total
        assert len({one[:3] for one in regions}) == len(regions)
    assert len(chosen(budget_regions=7)) == 7
    assert chosen(budget_regions=7) == chosen(budget_regions=7)
    if strategy == "random":
        assert chosen(seed=1, budget_regions=7) != chosen(budget_regions=7)


def test_labels_are_those_within_the_regions_only():
    band = np.zeros((2, 32, 32), np.uint8)
    band[1, 8:16, 16:20] = 255
    chips = chips_of(band)
    chips = chips.with_labels((band > 0).astype(np.uint8))
    (region,) = select_regions(BandsAreClasses(), chips, strategy="impurity", region_px=8, budget_px=64)
    assert region[:7] == (1, 8, 16, 8, 8, 0, 64)
    labelled = labelled_by(chips, [region])
    assert labelled.n_labelled_px() == 64
    assert (labelled.labels[1, 8:16, 16:24] == (band[1, 8:16, 16:24] > 0)).all()


def test_segments_are_chosen_whole_and_labelled_alone():
    band = np.zeros((1, 32, 32), np.uint8)
    segments = np.zeros((1, 32, 32), np.int32)
    segments[0, 4:12, 4:12] = 7
    segments[0, 8:12, 8:12] = 9
    segments[0, 20:30, 20:30] = 4
    band[0, 4:12, 4:8] = 255
    chips = chips_of(band).with_labels(np.ones((1, 32, 32), np.uint8))
    regions = select_regions(BandsAreClasses(), chips, strategy="impurity", budget_regions=3, segments=segments)
    assert [one.segment for one in regions][:1] == [7]
    assert {one.segment for one in regions} == {4, 7, 9}
    labelled = labelled_by(chips, regions[:1], segments=segments)
    assert ((labelled.labels == 1) == (segments == 7)).all()
    with pytest.raises(TransferError, match="maps of segments"):
        labelled_by(chips, regions)


def test_places_that_are_known_or_without_data_are_not_asked_for():
    band = np.full((1, 32, 32), 127, np.uint8)
    chips = chips_of(band)
    valid = np.ones((1, 32, 32), np.bool_)
    valid[0, :8] = False
    valid[0, 8:16, :3] = False
    chips = Chips(chips.pixels, chips.labels, valid, chips.blocks, chips.origins)
    known = np.zeros((1, 32, 32), np.bool_)
    known[0, 16:] = True
    found = describe_regions(BandsAreClasses(), chips, region_px=8, known=known)
    assert found.windows[:, 1:3].tolist() == [[8, 0], [8, 8], [8, 16], [8, 24]]
    assert found.n_px.tolist() == [40, 64, 64, 64]
    assert found.known_features.shape == (8, 3)
    with pytest.raises(TransferError, match="left to label"):
        select_regions(BandsAreClasses(), chips, budget_px=9, known=np.ones_like(known))


def test_selection_finds_what_chance_misses():
    # 4 of 100 squares hold the rare class, where the model wavers; the rest is clear.
    random = np.random.default_rng(3)
    band = np.zeros((4, 40, 40), np.uint8)
    truth = np.zeros((4, 40, 40), np.uint8)
    for number in range(4):
        row, col = random.integers(0, 5, 2) * 8
        band[number, row : row + 8, col : col + 8] = random.integers(80, 180, (8, 8))
        truth[number, row : row + 8, col : col + 8] = 1
    chips = chips_of(band).with_labels(truth)

    def n_rare(strategy, seed):
        regions = select_regions(BandsAreClasses(), chips, strategy=strategy, region_px=8, budget_px=4 * 64, seed=seed)
        return int((labelled_by(chips, regions).labels == 1).sum())

    assert n_rare("impurity", 0) == n_rare("entropy", 0) == 4 * 64
    by_chance = np.mean([n_rare("random", seed) for seed in range(10)])
    assert by_chance < 64
    assert np.mean([n_rare("hybrid", seed) for seed in range(10)]) > 2 * by_chance
    assert np.mean([n_rare("diversity", seed) for seed in range(10)]) > by_chance


def test_what_cannot_be_chosen_is_told():
    chips = chips_of(np.zeros((1, 32, 32), np.uint8))
    model = BandsAreClasses()
    for problem, words in (
        ({"strategy": "clever", "budget_px": 9}, "'clever'"),
        ({}, "budget of nothing"),
        ({"budget_px": 0}, "budget of 0"),
        ({"budget_px": 1025}, "only 1024"),
        ({"budget_px": 200}, "smallest region of 256"),
        ({"budget_regions": 5}, "only 4"),
        ({"budget_px": 9, "region_px": 0}, "Regions of 0 px"),
        ({"budget_px": 9, "segments": np.zeros((1, 2, 2), np.int32)}, r"Segments of shape \(1, 2, 2\)"),
        ({"budget_px": 9, "segments": np.zeros((1, 32, 32), np.int32)}, "left to label"),
    ):
        with pytest.raises(TransferError, match=words):
            select_regions(model, chips, **problem)
    with pytest.raises(TransferError, match="left to label"):
        select_regions(model, chips.take([]), budget_px=9)


def test_a_chip_without_anything_usable_has_no_regions():
    nothing = np.zeros((8, 8), np.bool_)
    found = describe_chip(
        np.full((2, 8, 8), 0.5, np.float32),
        np.zeros((3, 2, 2), np.float32),
        np.ones((8, 8), np.int32),
        chip=0,
        usable=nothing,
        known=nothing,
        is_square=True,
    )
    assert len(found) == 0
    assert (labelled_by(chips_of(np.zeros((1, 8, 8), np.uint8)), []).labels == IGNORE).all()
