"""Prototypes, the judge that learns from answers, and the parts of PerSAM that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segadapt.models.errors import EngineError
from segadapt.models.prompts import Prompts
from segadapt.models.registry import create_promptable
from segadapt.models.similarity import (
    CELLS,
    CentreEstimate,
    FeatureSpace,
    Judge,
    Prototypes,
    cell_shares,
    guided_decode,
    mask_descriptor,
    mixing_weights,
    persam_target,
    unit,
)

EMPTY = np.zeros((0, 4), np.float32)
AXES = np.eye(4, dtype=np.float32)


def test_unit_leaves_zeros_alone():
    vectors = unit([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]])


def test_space_takes_off_what_all_cells_share():
    rng = np.random.default_rng(0)
    haze = np.array([5.0, 5.0, 0, 0])
    cells = (haze + rng.normal(0, 1, (CELLS, CELLS, 4))).astype(np.float32)
    centre = CentreEstimate()
    half = np.zeros((CELLS, CELLS), np.bool_)
    half[:32] = True
    cells[32:] = 1000  # not valid: must not count
    centre.add([cells], half)
    space = centre.space()
    np.testing.assert_allclose(space.centres[0], cells[:32].reshape(-1, 4).mean(axis=0), rtol=1e-4)
    described = space.describe([cells[:32]])
    np.testing.assert_allclose(np.linalg.norm(described, axis=-1), 1, rtol=1e-5)
    # Without the centre all of them would look into one direction.
    assert np.abs(described.reshape(-1, 4).mean(axis=0)).max() < 0.1


def test_parts_have_the_same_weight_whatever_their_scale():
    space = FeatureSpace((np.zeros(2, np.float32), np.zeros(2, np.float32)))
    small, large = np.array([0.01, 0.0], np.float32), np.array([0.0, 900.0], np.float32)
    np.testing.assert_allclose(space.describe([small, large]), [2**-0.5, 0, 0, 2**-0.5], rtol=1e-5)


def test_no_data_is_a_sentence():
    centre = CentreEstimate()
    centre.add([np.ones((CELLS, CELLS, 2), np.float32)], np.zeros((CELLS, CELLS), np.bool_))
    with pytest.raises(EngineError, match="holds no data"):
        centre.space()


def test_second_kind_of_example_is_not_averaged_away():
    two_kinds = np.concatenate([AXES[:1].repeat(9, axis=0), AXES[1:2]])
    prototypes = Prototypes.fit(two_kinds, background=EMPTY, rejected=EMPTY)
    rare, other = prototypes.similarity(AXES[1]), prototypes.similarity(AXES[2])
    assert rare > 0.5
    assert other == pytest.approx(0, abs=1e-6)


def test_background_and_rejected_count_against():
    bare = Prototypes.fit(AXES[:1], background=EMPTY, rejected=EMPTY)
    informed = Prototypes.fit(AXES[:1], background=AXES[1:2], rejected=AXES[2:3])
    between = unit(AXES[0] + AXES[1])
    assert informed.similarity(between) < bare.similarity(between)
    assert informed.similarity(AXES[0]) == bare.similarity(AXES[0])
    assert bare.resemblance_to_rejected(AXES[2]) == 0
    assert informed.resemblance_to_rejected(AXES) == pytest.approx([0, 0, 1, 0])


def test_at_most_four_prototypes_and_the_mean():
    many = unit(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    prototypes = Prototypes.fit(many, background=many, rejected=many)
    assert (len(prototypes.positive), len(prototypes.negative), len(prototypes.rejected)) == (5, 4, 4)


class TestJudge:
    GENERAL = Judge(np.array([2.0, 0.0]), -1.0)

    def test_without_answers_it_stays(self):
        assert self.GENERAL.learn(np.zeros((0, 2)), np.zeros(0, np.bool_)) is self.GENERAL

    def test_one_rejected_lowers_it_and_its_like(self):
        wrong = np.array([[1.0, 1.0]])
        learned = self.GENERAL.learn(wrong, np.array([False]))
        assert learned.probability(wrong)[0] < self.GENERAL.probability(wrong)[0]
        # What it did not resemble in the second measure falls less.
        lost = self.GENERAL.logit(np.array([[1.0, 1.0], [1.0, -1.0]])) - learned.logit(
            np.array([[1.0, 1.0], [1.0, -1.0]])
        )
        assert lost[0] > lost[1]

    def test_many_answers_outweigh_the_prior(self):
        rng = np.random.default_rng(0)
        measures = rng.normal(size=(2000, 2))
        is_wanted = measures[:, 1] > 0  # the prior believes in the first measure
        learned = self.GENERAL.learn(measures, is_wanted)
        right = (learned.probability(measures) > 0.5) == is_wanted
        assert right.mean() > 0.9
        assert ((self.GENERAL.probability(measures) > 0.5) == is_wanted).mean() < 0.7

    def test_it_is_the_most_probable_judge(self):
        """Newton's method ends where the gradient of the posterior is zero."""
        rng = np.random.default_rng(1)
        measures, is_wanted = rng.normal(size=(12, 2)), rng.random(12) > 0.5
        learned = self.GENERAL.learn(measures, is_wanted, spread=0.7)
        error = learned.probability(measures) - is_wanted
        weights = measures.T @ error + (learned.weights - self.GENERAL.weights) / 0.7**2
        bias = error.sum() + (learned.bias - self.GENERAL.bias) / 0.7**2
        np.testing.assert_allclose([*weights, bias], 0, atol=1e-4)


def test_cells_of_a_mask():
    mask = np.zeros((256, 256), np.bool_)
    mask[4:8, 8:10] = True  # half of the cell in the second row, third column
    shares = cell_shares(mask)
    assert shares[1, 2] == 0.5
    assert shares.sum() == 0.5
    descriptors = np.zeros((CELLS, CELLS, 4), np.float32)
    descriptors[1, 2] = AXES[3]
    np.testing.assert_allclose(mask_descriptor(descriptors, shares), AXES[3])


def test_persam_targets():
    features = np.zeros((CELLS, CELLS, 2), np.float32)
    features[0, 0], features[0, 1] = (4, 0), (0, 2)
    shares = np.zeros((CELLS, CELLS), np.float32)
    shares[0, :2] = 1
    np.testing.assert_allclose(persam_target(features, shares, with_maximum=False), unit([2.0, 1.0]))
    np.testing.assert_allclose(persam_target(features, shares, with_maximum=True), unit([3.0, 1.5]))


def test_mixing_weights_go_to_the_mask_that_fits():
    mask = np.zeros((256, 256), np.bool_)
    mask[100:140, 60:120] = True
    right = np.where(mask, 4.0, -4.0)
    weights = mixing_weights(np.stack([-right, right, -right]).astype(np.float32), mask, n_steps=20)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights[1] > 1 / 3 + 0.005
    assert weights[0] < 1 / 3


def test_guided_decoding_without_guidance_is_nearly_uniform_and_with_it_follows_the_place():
    """The second softmax flattens attention, so that guidance decides where the tokens look."""
    torch.manual_seed(0)
    model = create_promptable("mobile_sam").eval().requires_grad_(False)
    embedding = torch.randn(256, 64, 64)
    prompts = [Prompts(points_xy=np.array([[500.0, 500.0]], np.float32), labels=np.array([1]))] * 2
    flat, target = torch.zeros(4096), torch.zeros(256)
    with torch.inference_mode():
        plain, iou = guided_decode(model, embedding, prompts, guidance=flat, target=target)
        place = flat.clone()
        place[2000:2100] = 8.0
        guided, _ = guided_decode(model, embedding, prompts, guidance=place, target=target)
        aimed, _ = guided_decode(model, embedding, prompts, guidance=flat, target=torch.ones(256))
    assert plain.shape == (2, 1, 256, 256)
    assert iou.shape == (2, 1)
    torch.testing.assert_close(plain[0], plain[1])  # an answer does not depend on the other objects
    assert not torch.allclose(plain, guided)
    assert not torch.allclose(plain, aimed)
