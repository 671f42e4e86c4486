"""Polygons become masks on the raster's pixels, and outlines of masks those masks again."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.processing.errors import RasterError
from segadapt.processing.raster.rasterize import burn, joined, pixel_bounds
from segadapt.processing.raster.vectorize import polygonize
from shapely.geometry import MultiPolygon, Point, Polygon, box

TRANSFORMS = [
    Affine(0.3, 0, 9_484_123.4567, 0, -0.3, 3_204_567.8912),
    Affine(2.7e-6, 0, 85.5, 0, -2.7e-6, 27.6),
    Affine.translation(500_000, 5_000_000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.5),
    Affine(0.5, 0.13, 500_000, 0.02, -0.4, 5_000_000),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["metres", "degrees", "rotated", "sheared"])
def test_the_outline_of_a_mask_gives_the_mask_back(transform):
    """Holes, corners that touch and all, in every kind of grid."""
    pixels = np.random.default_rng(3).random((60, 80)) > 0.4
    outline = polygonize(pixels, transform @ Affine.translation(200, 100))
    bounds = pixel_bounds(outline, transform)
    assert bounds == (200, 100, 280, 160)
    np.testing.assert_array_equal(burn(outline, transform, bounds_px=bounds), pixels)


def test_pixel_centres_decide():
    identity = Affine.identity()
    half = box(0.6, 0.4, 3.4, 1.6)
    assert burn(half, identity, bounds_px=(0, 0, 4, 2)).tolist() == [[False, True, True, False]] * 2


def test_the_crop_may_be_smaller_or_reach_beyond():
    identity = Affine.identity()
    drawn = burn(box(2, 2, 6, 6), identity, bounds_px=(-1, 4, 4, 8))
    expected = np.zeros((4, 5), bool)
    expected[:2, 3:] = True
    np.testing.assert_array_equal(drawn, expected)
    assert not burn(box(2, 2, 6, 6), identity, bounds_px=(10, 10, 12, 12)).any()
    assert burn(MultiPolygon(), identity, bounds_px=(0, 0, 3, 2)).shape == (2, 3)
    assert burn(box(0, 0, 1, 1), identity, bounds_px=(0, 0, 0, 2)).shape == (2, 0)
    with pytest.raises(RasterError, match="left < right"):
        burn(box(0, 0, 1, 1), identity, bounds_px=(3, 0, 2, 2))


def test_bounds_hold_the_polygon():
    assert pixel_bounds(box(1.2, 3, 4.5, 8.1), Affine.identity()) == (1, 3, 5, 9)
    assert pixel_bounds(Polygon(), Affine.identity()) == (0, 0, 0, 0)
    infinite = shapely.transform(Point(0, 0).buffer(1), lambda xy: np.full_like(xy, np.inf))
    with pytest.raises(RasterError, match="check the CRS"):
        pixel_bounds(infinite, Affine.identity())


def test_joined_bounds():
    assert joined((0, 5, 3, 6), (2, 1, 9, 2)) == (0, 1, 9, 6)
    assert joined((0, 0, 0, 0), (2, 1, 9, 2)) == (2, 1, 9, 2)
    assert joined((2, 1, 9, 2), (0, 0, 0, 0)) == (2, 1, 9, 2)
