"""Heads learn classes from few places; a saved one says the same, and a damaged file says so."""

from __future__ import annotations

import numpy as np
import pytest
from segadapt.models.class_head import (
    HEADS,
    MOST_SUPPORTS,
    ClassHeadError,
    ClassModel,
    fit_feature_space,
    fit_head,
    kernel,
    load_class_model,
    save_class_model,
)


def blobs(n, *, seed=0, spread=0.25):
    """Three classes (ids 2, 5, 9) around centres of norm about 1 in 6 dimensions."""
    random = np.random.RandomState(seed)
    members = np.arange(n) % 3
    units = np.eye(6, dtype=np.float32)[members] + spread * random.randn(n, 6).astype(np.float32)
    return units.astype(np.float32), np.array([2, 5, 9], np.uint8)[members]


def predicted(head, units):
    return head.classes[head.scores(head.columns(units)).argmax(axis=1)]


@pytest.mark.parametrize("kind", HEADS)
def test_learns_from_few_places(kind):
    units, class_ids = blobs(9)
    others, truth = blobs(300, seed=1)
    head = fit_head(kind, units, class_ids, context=others[:50])
    assert (predicted(head, others) == truth).mean() > 0.9
    probabilities = head.probabilities(head.scores(head.columns(others)))
    assert probabilities.shape == (300, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_one_class_is_everywhere(kind):
    units, _ = blobs(4)
    head = fit_head(kind, units, np.full(4, 7, np.uint8))
    assert set(predicted(head, blobs(20)[0])) == {7}


def test_ridge_is_weighted_kernel_ridge_regression():
    """Against the textbook's dual form: alpha = (K + lambda S^-1)^-1 Y."""
    units, class_ids = blobs(20, spread=0.5)
    class_ids[:10] = 2  # unbalanced
    head = fit_head("ridge", units, class_ids)
    classes, members = np.unique(class_ids, return_inverse=True)
    balance = (20 / len(classes) / np.bincount(members))[members]
    gram = kernel(units, units).astype(np.float64)
    targets = 2.0 * (members[:, None] == np.arange(len(classes))) - 1
    alpha = np.linalg.solve(gram + 0.1 * np.diag(1 / balance), targets)
    others, _ = blobs(30, seed=3)
    assert np.allclose(head.scores(head.columns(others)), kernel(others, units) @ alpha, atol=2e-3)


def test_columns_of_earlier_supports_can_be_kept():
    units, class_ids = blobs(12)
    others, _ = blobs(30, seed=3)
    head = fit_head("ridge", units, class_ids)
    pieces = np.concatenate([kernel(others, units[:7]), head.columns(others, start=7)], axis=1)
    assert np.allclose(pieces, head.columns(others), atol=1e-6)


def test_rare_class_keeps_its_weight():
    units, class_ids = blobs(3, spread=0.0)
    many = np.concatenate([units, np.repeat(units[:1], 60, axis=0)])
    ids = np.concatenate([class_ids, np.repeat(class_ids[:1], 60)])
    others, truth = blobs(300, seed=1)
    assert (predicted(fit_head("ridge", many, ids), others) == truth).mean() > 0.85


def test_thousands_of_places_cost_no_more_than_the_supports():
    units, class_ids = blobs(2000)
    head = fit_head("ridge", units, class_ids)
    assert head.supports.shape == (MOST_SUPPORTS, 6)
    others, truth = blobs(300, seed=1)
    assert (predicted(head, others) == truth).mean() > 0.95


def test_feature_space_keeps_distances_and_balances_groups():
    random = np.random.RandomState(0)
    raw = np.concatenate([random.randn(500, 10) * 100 + 7, random.randn(500, 40) * 0.01], axis=1)
    space = fit_feature_space(raw, [(10, 1.0), (40, 1.0)], dimensions=50)
    projected = space.project(raw)
    assert projected.shape == (500, 50)
    assert np.abs(projected.mean(axis=0)).max() < 1e-3
    # Each group has variance 1, whatever its units.
    assert (projected**2).sum(axis=1).mean() == pytest.approx(2.0, rel=0.35)
    small = fit_feature_space(raw, [(10, 1.0), (40, 1.0)], dimensions=8)
    assert small.project(raw).shape == (500, 8)
    assert small.digest != space.digest
    with pytest.raises(ClassHeadError, match="sample"):
        fit_feature_space(raw[:1], [(10, 1.0), (40, 1.0)])


def test_bad_input_gets_a_sentence():
    units, class_ids = blobs(3)
    with pytest.raises(ClassHeadError, match="ridge, logistic, tokens"):
        fit_head("forest", units, class_ids)
    with pytest.raises(ClassHeadError, match="click"):
        fit_head("ridge", units[:0], class_ids[:0])


@pytest.fixture
def saved(tmp_path):
    units, class_ids = blobs(9)
    space = fit_feature_space(np.random.RandomState(0).randn(50, 8), [(8, 1.0)], dimensions=6)
    card = {"classes": [{"id": 2, "name": "wood", "colour": [0, 99, 0]}], "bands": [1, 2, 3]}
    model = ClassModel(space, fit_head("ridge", units, class_ids), card)
    path = tmp_path / "map.safetensors"
    save_class_model(model, path)
    return path, model


def test_saved_model_says_the_same(saved):
    path, model = saved
    loaded = load_class_model(path)
    others, _ = blobs(30, seed=3)
    assert loaded.card["classes"] == [{"id": 2, "name": "wood", "colour": [0, 99, 0]}]
    assert loaded.space.digest == model.space.digest
    assert loaded.head.temperature == model.head.temperature
    assert np.array_equal(
        loaded.head.scores(loaded.head.columns(others)), model.head.scores(model.head.columns(others))
    )


def test_any_flipped_byte_is_noticed(saved, tmp_path):
    content = saved[0].read_bytes()
    for place in range(0, len(content), max(1, len(content) // 60)):
        broken = tmp_path / "broken.safetensors"
        flipped = bytearray(content)
        flipped[place] ^= 0x04
        broken.write_bytes(bytes(flipped))
        with pytest.raises(ClassHeadError):
            load_class_model(broken)


def test_other_files_get_a_sentence(saved, tmp_path):
    with pytest.raises(ClassHeadError, match="no file"):
        load_class_model(tmp_path / "none.safetensors")
    (tmp_path / "short.safetensors").write_bytes(saved[0].read_bytes()[:100])
    with pytest.raises(ClassHeadError, match="damaged"):
        load_class_model(tmp_path / "short.safetensors")
    with pytest.raises(ClassHeadError, match="cannot be written"):
        save_class_model(saved[1], tmp_path / "no folder" / "map.safetensors")
