"""One object found twice is one object."""

from __future__ import annotations

import numpy as np
import pytest
from segadapt.models.masks import LocalMask
from segadapt.processing.jobs.duplicates import Candidate, PendingObjects, is_same_object, without_duplicates
from segadapt.processing.jobs.placed_mask import PlacedMask, touches_inner_side
from segadapt.processing.raster.windows import SquareWindow


def rectangle(left, top, width, height):
    return PlacedMask.from_pixels(np.ones((height, width), bool), row_off=top, col_off=left)


def candidate(left, top, width, height, score=0.9):
    return Candidate(rectangle(left, top, width, height), score, 0.95, left + 1.0, top + 1.0)


def test_a_mask_is_cropped_to_its_pixels_and_keeps_them():
    pixels = np.random.default_rng(0).random((37, 53)) > 0.5
    framed = np.pad(pixels, ((3, 5), (7, 2)))
    framed[3, 7] = framed[-6, -3] = True
    mask = PlacedMask.from_pixels(framed, row_off=100, col_off=200)
    assert mask.bounds == (207, 103, 260, 140)
    np.testing.assert_array_equal(mask.pixels, framed[3:-5, 7:-2])
    assert mask.n_pixels == framed.sum()


def test_nodata_is_taken_out_of_a_placed_mask():
    valid = np.ones((64, 64), bool)
    valid[:, 30:] = False
    mask = PlacedMask.from_local(LocalMask(10, 20, np.ones((5, 20), bool)), SquareWindow(1000, 2000, 64), valid=valid)
    assert mask.bounds == (1020, 2010, 1030, 2015)
    nothing = PlacedMask.from_local(
        LocalMask(10, 40, np.ones((5, 20), bool)), SquareWindow(1000, 2000, 64), valid=valid
    )
    assert (nothing.n_pixels, nothing.shape) == (0, (0, 0))


def test_overlap_in_raster_pixels():
    assert rectangle(0, 0, 10, 10).overlap_px(rectangle(6, 7, 10, 10)) == 4 * 3
    assert rectangle(0, 0, 10, 10).overlap_px(rectangle(10, 0, 10, 10)) == 0
    assert rectangle(5, 5, 10, 10).count_inside((0, 0, 7, 8)) == 2 * 3


@pytest.mark.parametrize(
    ("bounds", "touches"),
    [
        ((300, 300, 400, 400), False),
        ((256, 300, 400, 400), True),
        ((300, 257.5, 400, 400), True),
        ((300, 300, 768, 400), True),
        ((300, 300, 400, 767), True),
        ((258, 258, 766, 766), False),
    ],
)
def test_touching_an_inner_side(bounds, touches):
    """A window of 512 px: within one cell of the decoder, two pixels, of a side."""
    window = SquareWindow(256, 256, 512)
    assert touches_inner_side(bounds, window, (2000, 2000)) is touches
    assert touches_inner_side(bounds, SquareWindow(256, 256, 512), (768, 768)) is (touches and min(bounds[:2]) < 258)


def test_edges_of_the_raster_are_no_inner_sides():
    assert touches_inner_side((0, 0, 512, 512), SquareWindow(0, 0, 512), (512, 512)) is False
    assert touches_inner_side((0, 0, 100, 300), SquareWindow(0, 0, 512), (300, 100)) is False


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ((0, 0, 100, 100), True),
        ((0, 0, 100, 75), True),  # IoU 0.75
        ((0, 0, 100, 62), True),  # contained, and 0.62 of the size
        ((0, 0, 100, 50), False),  # contained, but half the size: a part
        ((0, 20, 100, 100), False),  # IoU 0.67, and not contained
        ((200, 0, 100, 100), False),
    ],
)
def test_what_is_one_object(other, same):
    first, second = rectangle(0, 0, 100, 100), rectangle(*other)
    assert is_same_object(first, second, iou_threshold=0.7) is same
    assert is_same_object(second, first, iou_threshold=0.7) is same


def test_the_best_of_each_object_stays():
    found = [candidate(0, 0, 50, 50, 0.90), candidate(2, 0, 50, 50, 0.95), candidate(100, 0, 9, 9, 0.89)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        kept = without_duplicates([found[i] for i in order], iou_threshold=0.7)
        assert kept == [found[1], found[2]]
    assert without_duplicates([], iou_threshold=0.7) == []


def test_equals_are_decided_by_place_not_by_order():
    upper, lower = candidate(0, 0, 50, 50), candidate(0, 1, 50, 50)
    assert without_duplicates([lower, upper], iou_threshold=0.7) == [upper]
    assert without_duplicates([upper, lower], iou_threshold=0.7) == [upper]


def test_pending_objects_wait_for_the_cells_that_can_touch_them():
    pending = PendingObjects(iou_threshold=0.7, bucket_px=64)
    high, crossing = candidate(10, 0, 50, 50, 0.90), candidate(300, 30, 50, 60, 0.90)
    pending.add_cell([crossing, high])
    assert pending.release(above_px=20) == []
    assert pending.release(above_px=64) == [high]
    better = candidate(302, 31, 50, 60, 0.99)
    pending.add_cell([better])
    assert len(pending) == 2
    assert pending.release() == [better]
    assert len(pending) == 0


def test_candidates_of_one_cell_do_not_meet_each_other():
    """They were compared within the cell, best first; here only cells are compared."""
    pending = PendingObjects(iou_threshold=0.7, bucket_px=64)
    twins = [candidate(0, 0, 50, 50, 0.9), candidate(0, 1, 50, 50, 0.8)]
    pending.add_cell(twins)
    assert pending.release() == twins
