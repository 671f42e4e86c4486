"""Rectangles in place of nearly rectangular masks; drawn masks, no weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    binary_opening,
    distance_transform_edt,
    gaussian_filter,
    label,
)
from segadapt.models.adaptation.rectangles import (
    USUAL_THRESHOLD,
    Rectangle,
    RectangleChoice,
    fitted,
    is_left_free,
    straightened,
)

ROOF = Rectangle(120.0, 90.0, 0.4, (-30.0, 30.0, -18.0, 18.0))
NO_POINTS, NO_LABELS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


def mask_of(rectangle):
    return rectangle.logits() > 0


def logits_of(mask):
    return np.where(mask, 6, -6).astype(np.float32)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def wavy(mask, seed=0):
    """Round corners and wavy edges, as SAM draws them, without the specks that are taken out before."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=mask.shape), 2)
    parts, _ = label(gaussian_filter(mask.astype(float), 5) + 0.15 * noise / noise.std() > 0.5)
    return binary_fill_holes(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def at(rectangle, along, across):
    """Cells of a place given along the rectangle's own axes, from its centre."""
    cos, sin = math.cos(rectangle.angle), math.sin(rectangle.angle)
    return rectangle.x + along * cos - across * sin, rectangle.y + along * sin + across * cos


def points(*places):
    return np.array(places, np.float32)


def disc(radius):
    rows, cols = np.mgrid[:256, :256]
    return np.hypot(cols - 128, rows - 128) <= radius


@pytest.mark.parametrize(
    "rectangle", [ROOF, Rectangle(60, 200, 1.5, (-4, 4, -7, 7)), Rectangle(128, 128, 0, (-99, 99, -80, 80))]
)
def test_a_rectangle_is_found_again(rectangle):
    found, quality = fitted(mask_of(rectangle))
    assert quality > 0.95
    assert iou(mask_of(found), mask_of(rectangle)) > 0.95


def test_a_wavy_mask_becomes_what_it_is_of():
    mask = wavy(mask_of(ROOF))
    straight = straightened(logits_of(mask), None, NO_POINTS, NO_LABELS, threshold=USUAL_THRESHOLD) > 0
    assert iou(straight, mask_of(ROOF)) > max(0.9, iou(mask, mask_of(ROOF)) + 0.03)


@pytest.mark.parametrize("radius", [5, 8, 12, 20, 40, 100])
def test_discs_stay(radius):
    mask = disc(radius)
    assert 0.8 < fitted(mask)[1] < USUAL_THRESHOLD
    logits = logits_of(mask)
    assert straightened(logits, None, NO_POINTS, NO_LABELS, threshold=USUAL_THRESHOLD) is logits


@pytest.mark.parametrize("shape", ["corner", "ring", "two parts", "cut", "few", "none"])
def test_what_is_no_rectangle_stays(shape):
    mask = np.zeros((256, 256), bool)
    if shape == "corner":
        mask[60:120, 60:120] = True
        mask[60:90, 60:90] = False
    elif shape == "ring":
        mask = disc(50) & ~disc(30)
    elif shape == "two parts":
        mask[60:100, 60:80] = mask[60:100, 120:140] = True
    elif shape == "cut":
        mask[60:100, 200:] = True
    elif shape == "few":
        mask[60:63, 60:63] = True
    logits = logits_of(mask)
    assert straightened(logits, None, NO_POINTS, NO_LABELS, threshold=USUAL_THRESHOLD) is logits


def test_a_click_far_away_does_not_stretch_a_rectangle_over_what_lies_between():
    mask = mask_of(ROOF)
    far = mask.copy()
    far[200:203, 200:203] = True  # as repair leaves it where the model sees nothing
    clicks, labels = points(at(ROOF, 0, 0), (201, 201)), np.array([1, 1])
    assert (straightened(logits_of(far), None, clicks, labels, threshold=USUAL_THRESHOLD) > 0).sum() == far.sum()


def test_a_click_beside_a_side_moves_all_of_it():
    before = Rectangle(ROOF.x, ROOF.y, ROOF.angle, (-30, 22, -18, 18)).logits()
    clicks, labels = points(at(ROOF, 0, 0), at(ROOF, 26, 4)), np.array([1, 1])
    # The model took the click for a bulge of the mask.
    bulge = mask_of(Rectangle(*at(ROOF, 24, 4), ROOF.angle, (-4, 4, -4, 4)))
    answer = logits_of((before > 0) | bulge)
    straight = straightened(answer, before, clicks, labels, threshold=USUAL_THRESHOLD) > 0
    assert iou(answer > 0, mask_of(ROOF)) < 0.9
    assert iou(straight, mask_of(ROOF)) > 0.93


def test_a_click_on_too_much_takes_a_side_back():
    before = Rectangle(ROOF.x, ROOF.y, ROOF.angle, (-30, 30, -18, 26)).logits()
    clicks, labels = points(at(ROOF, 0, 0), at(ROOF, -3, 22)), np.array([1, 0])
    straight = straightened(before, before, clicks, labels, threshold=USUAL_THRESHOLD) > 0
    assert iou(before > 0, mask_of(ROOF)) < 0.83
    assert iou(straight, mask_of(ROOF)) > 0.9


def test_clicks_that_no_rectangle_obeys_leave_the_mask():
    logits = logits_of(mask_of(ROOF))
    clicks = points(at(ROOF, -20, 0), at(ROOF, 0, 0), at(ROOF, 20, 0))
    assert straightened(logits, None, clicks, np.array([1, 0, 1]), threshold=USUAL_THRESHOLD) is logits


def test_clicks_hold():
    rng, n_straight = np.random.default_rng(0), 0
    for n in range(20):
        mask = wavy(mask_of(ROOF), seed=n)
        clicks = points(*(at(ROOF, *rng.uniform((-34, -22), (34, 22))) for _ in range(3)))
        labels = mask_of(ROOF)[clicks[:, 1].astype(int), clicks[:, 0].astype(int)].astype(np.int64)
        straight = straightened(logits_of(mask), logits_of(disc(30)), clicks, labels, threshold=USUAL_THRESHOLD)
        if (straight > 0).sum() == mask.sum() and ((straight > 0) == mask).all():
            continue
        n_straight += 1
        at_clicks = straight[clicks[:, 1].astype(int), clicks[:, 0].astype(int)]
        # A side may pass between a click and the middle of its cell, where logits are small.
        assert (((at_clicks > 0) == labels) | (np.abs(at_clicks) < 3)).all()
    assert n_straight > 5


def test_a_rectangle_that_was_lost_comes_back():
    free = logits_of(wavy(mask_of(ROOF)))
    clicks, labels = points(at(ROOF, 0, 0), at(ROOF, 0, 15)), np.array([1, 1])
    assert straightened(free, free, clicks, labels, threshold=USUAL_THRESHOLD) is not free


@pytest.mark.parametrize("sides", [(-13, 16.5, -11.5, 11), (-12, 17, -12.5, 11), (-11, 16, -12, 11)])
def test_what_clicks_have_moved_stays_though_the_model_insists(sides):
    """The model draws the same wrong rectangle whatever it is told; a click lies in the middle of each error."""
    truth = Rectangle(128, 128, 0.3, (-15, 15, -10, 10))
    model = logits_of(mask_of(replace(truth, sides=sides)))
    answer, clicks, labels, ious = model, [at(truth, 0, 0)], [1], []
    for _ in range(8):
        mask, true = answer > 0, mask_of(truth)
        depth = distance_transform_edt(mask != true)
        row, col = np.unravel_index(depth.argmax(), depth.shape)
        clicks.append((col + 0.5, row + 0.5))
        labels.append(int(true[row, col]))
        answer = straightened(model, answer, points(*clicks), np.array(labels), threshold=USUAL_THRESHOLD)
        ious.append(iou(answer > 0, true))
    assert iou(model > 0, mask_of(truth)) < 0.8
    assert min(ious[4:]) > 0.85
    assert ious[-1] > 0.89


def test_an_outline_that_is_nearly_a_rectangle_was_drawn_so():
    assert is_left_free(wavy(mask_of(ROOF)), threshold=USUAL_THRESHOLD)
    assert not is_left_free(mask_of(ROOF), threshold=USUAL_THRESHOLD)
    assert not is_left_free(disc(30), threshold=USUAL_THRESHOLD)


def test_it_can_be_switched_off():
    logits = logits_of(mask_of(ROOF))
    assert straightened(logits, logits, NO_POINTS, NO_LABELS, threshold=math.inf) is logits


def test_from_when_on_is_learned_from_what_was_accepted(tmp_path):
    usual, never, more = RectangleChoice(), RectangleChoice(), RectangleChoice()
    rounded = binary_opening(mask_of(ROOF), disc(15)[110:147, 110:147])
    patchy = mask_of(ROOF) & ~binary_dilation(mask_of(Rectangle(*at(ROOF, 24, 12), ROOF.angle, (-11, 11, -11, 11))))
    assert USUAL_THRESHOLD < fitted(rounded)[1] < 0.94
    assert 0.8 < fitted(patchy)[1] < USUAL_THRESHOLD
    for _ in range(5):
        assert usual.threshold == never.threshold == more.threshold == USUAL_THRESHOLD
        usual.learn(wavy(mask_of(ROOF)), mask_of(ROOF))
        never.learn(rounded, rounded)
        more.learn(patchy, mask_of(ROOF))
    assert (usual.threshold, more.threshold) == (USUAL_THRESHOLD, 0.8)
    assert never.threshold > fitted(rounded)[1]
    again = RectangleChoice()
    again.load_state(more.state())
    assert again.threshold == 0.8
    again.load_state(RectangleChoice().state())
    assert again.threshold == USUAL_THRESHOLD
