"""The simulated analyst clicks where RITM's clicker would, on masks whose answers are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.clicker import (
    ClassClick,
    Click,
    NoErrorLeftError,
    iou,
    next_class_click,
    next_click,
)


def picture(*rows):
    """Bool (rows, cols): True where a row has a `#`."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def nothing(truth):
    return np.zeros(truth.shape, bool)


def ritm(truth, mask, clicked, ignore):
    """RITM's own lines (`Clicker._get_next_click`), with scipy's exact distances for OpenCV's."""
    missed = np.pad(truth & ~mask & ~ignore, 1)
    too_much = np.pad(~truth & mask & ~ignore, 1)
    missed_depth = distance_transform_edt(missed)[1:-1, 1:-1] * ~clicked
    too_much_depth = distance_transform_edt(too_much)[1:-1, 1:-1] * ~clicked
    is_positive = missed_depth.max() > too_much_depth.max()
    depth = missed_depth if is_positive else too_much_depth
    ys, xs = np.where(depth == depth.max())
    return Click(int(xs[0]), int(ys[0]), bool(is_positive))


def test_first_click_is_the_middle_of_the_object():
    truth = np.zeros((20, 30), bool)
    truth[5:14, 10:19] = True
    assert next_click(truth, nothing(truth), clicked=nothing(truth)) == Click(14, 9, True)


def test_the_edge_of_the_array_is_an_edge_of_the_object():
    """Padded by zeros: a bar along the left edge is deepest in its middle, not at the edge."""
    truth = picture("###..", "###..", "###..", "###..", "###..")
    assert next_click(truth, nothing(truth), clicked=nothing(truth)) == Click(1, 1, True)


def test_the_deeper_error_wins_and_a_tie_is_background():
    truth = picture("......", ".###..", ".###..", ".###..", "......", "......", "......")
    mask = picture("......", "......", "......", "......", "......", "....##", "....##")
    assert next_click(truth, mask, clicked=nothing(truth)) == Click(2, 2, True)
    tied = np.zeros((7, 12), bool)
    tied[1:4, 1:4] = True
    assert next_click(tied, np.roll(tied, 6, axis=1), clicked=nothing(tied)) == Click(8, 2, False)


def test_only_the_wrong_part_of_a_mask_is_clicked():
    truth = np.zeros((9, 20), bool)
    truth[2:7, 2:7] = True
    mask = truth.copy()
    mask[2:7, 7:14] = True
    # Five rows by seven columns too many: depth 3 in row 4, columns 9 to 11, the first of them is taken.
    assert next_click(truth, mask, clicked=nothing(truth)) == Click(9, 4, False)


def test_clicked_pixels_are_not_clicked_again_and_keep_their_neighbours_depth():
    truth = np.zeros((7, 7), bool)
    truth[1:6, 1:6] = True
    clicked = nothing(truth)
    seen = []
    for _ in range(3):
        click = next_click(truth, nothing(truth), clicked=clicked)
        clicked[click.y, click.x] = True
        seen.append((click.x, click.y))
    # Not a hole in the error: the ring around the first click stays at depth 2, in row-major order.
    assert seen == [(3, 3), (2, 2), (3, 2)]


def test_ignored_pixels_are_no_errors():
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    ignore = np.zeros((9, 9), bool)
    ignore[:, :5] = True
    assert next_click(truth, nothing(truth), clicked=nothing(truth), ignore=ignore) == Click(5, 2, True)
    assert iou(truth, truth & ~ignore, ignore=ignore) == 1
    assert iou(truth, truth & ~ignore) == pytest.approx(10 / 25)


def test_no_error_left_is_said():
    truth = picture("....", ".##.", "....")
    with pytest.raises(NoErrorLeftError, match="no error that was not clicked"):
        next_click(truth, truth, clicked=nothing(truth))
    with pytest.raises(NoErrorLeftError):
        next_click(truth, nothing(truth), clicked=truth)


def test_shapes_must_agree():
    truth = np.zeros((4, 5), bool)
    with pytest.raises(JobError, match=r"'mask' has the shape \(5, 4\), the truth \(4, 5\)"):
        next_click(truth, truth.T, clicked=truth)
    with pytest.raises(JobError, match="'ignore'"):
        iou(truth, truth, ignore=truth.T)


def test_agrees_with_ritm_on_random_masks():
    """Blobs of all shapes, cut by the array's edge, with clicks and ignored pixels."""
    random = np.random.default_rng(7)
    for _ in range(40):
        shape = tuple(random.integers(5, 40, 2))
        truth, mask = (distance_transform_edt(random.random(shape) > 0.04) < random.integers(1, 5) for _ in range(2))
        clicked, ignore = random.random(shape) < 0.1, random.random(shape) < 0.05
        if ((truth ^ mask) & ~ignore & ~clicked).any():
            expected = ritm(truth, mask, clicked, ignore)
            assert next_click(truth, mask, clicked=clicked, ignore=ignore) == expected


def test_iou():
    truth, mask = picture("##..", "##.."), picture(".##.", ".##.")
    assert iou(truth, mask) == pytest.approx(2 / 6)
    assert iou(truth, nothing(truth)) == 0
    assert iou(nothing(truth), nothing(truth)) == 1


def test_class_click_goes_into_the_deepest_missed_part_of_any_class():
    truth = np.ones((12, 20), np.uint8)
    truth[1:4, 1:4] = 2
    truth[5:10, 10:15] = 3
    labels = np.ones((12, 20), np.uint8)
    clicked = np.zeros(truth.shape, bool)
    assert next_class_click(truth, labels, clicked=clicked) == ClassClick(12, 7, 3)
    labels[truth == 3] = 3
    assert next_class_click(truth, labels, clicked=clicked) == ClassClick(2, 2, 2)
    assert next_class_click(truth, labels, clicked=clicked, ignore=labels == 3) == ClassClick(2, 2, 2)
    with pytest.raises(NoErrorLeftError, match="class map"):
        next_class_click(truth, truth, clicked=clicked)


def test_class_click_takes_the_lowest_of_equally_deep_classes():
    truth = np.zeros((5, 12), np.uint8)
    truth[1:4, 1:4], truth[1:4, 7:10] = 5, 4
    click = next_class_click(truth, np.zeros_like(truth), clicked=np.zeros(truth.shape, bool))
    assert click == ClassClick(8, 2, 4)
