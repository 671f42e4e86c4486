"""Polygons: exact on the grid, valid, cleaned as asked, and measured on the ellipsoid."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize
from segadapt.processing.raster.vectorize import area_m2, clean, polygonize
from shapely.geometry import MultiPolygon, box

UTM = rasterio.CRS.from_epsg(32631)
NORTH_UP = Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000)
ROTATED = Affine.translation(590_000, 5_750_000) @ Affine.rotation(33) @ Affine.shear(12, 0) @ Affine.scale(0.3, -0.7)
DEGREES = Affine(1e-5, 0, 4.3, 0, -1e-5, 51.9)


def _masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rows, cols = np.indices((60, 70))
    ring = np.abs(np.hypot(rows - 30, cols - 35) - 18) < 6
    noise = [rng.random((40, 50)) < share for share in (0.1, 0.4, 0.6, 0.9)]
    return [ring, *noise, np.ones((5, 7), bool), np.eye(6, dtype=bool), ~np.eye(6, dtype=bool)]


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, DEGREES])
def test_polygons_burn_back_to_the_same_mask(transform):
    for mask in _masks():
        outline = polygonize(mask, transform)
        assert isinstance(outline, MultiPolygon)
        assert outline.is_valid
        burnt = rasterize([outline], out_shape=mask.shape, transform=transform).astype(bool)
        assert np.array_equal(burnt, mask)
        assert outline.area == pytest.approx(mask.sum() * abs(transform.determinant), rel=1e-6)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
def test_corners_lie_on_the_grid(transform):
    for mask in _masks():
        x, y = shapely.get_coordinates(polygonize(mask, transform)).T
        pixels = np.array(~transform @ (x, y))
        assert np.abs(pixels - np.rint(pixels)).max() < 1e-5


def test_a_ring_has_its_hole_and_corners_do_not_connect():
    ring, *_ = _masks()
    outline = polygonize(ring, NORTH_UP)
    assert [len(part.interiors) for part in outline.geoms] == [1]
    assert len(polygonize(np.eye(6, dtype=bool), NORTH_UP).geoms) == 6


@pytest.mark.parametrize("shape", [(0, 0), (5, 5)])
def test_nothing_gives_an_empty_geometry(shape):
    outline = polygonize(np.zeros(shape, bool), NORTH_UP)
    assert isinstance(outline, MultiPolygon)
    assert outline.is_empty
    assert clean(outline, tolerance=1, min_area_m2=1, crs=UTM).is_empty
    assert area_m2(outline, UTM) == 0


def test_area_of_ten_by_ten_pixels_in_utm():
    """25 m2 on the map; the ground is larger by the square of the projection's scale there."""
    square = polygonize(np.ones((10, 10), bool), NORTH_UP)
    lon, lat = pyproj.Transformer.from_crs(32631, 4326, always_xy=True).transform(590_000, 5_750_000)
    scale = pyproj.Proj(32631).get_factors(lon, lat).areal_scale
    assert scale == pytest.approx(0.9995, abs=5e-4)
    assert area_m2(square, UTM) == pytest.approx(25 / scale, rel=1e-6)


def test_area_in_degrees():
    """A second of arc at the equator, from the meridian and prime vertical radii of WGS 84."""
    side = 1 / 3600
    a, e2 = 6_378_137.0, 0.00669437999014
    expected = math.radians(side) ** 2 * a * a * (1 - e2)
    assert area_m2(box(10, -side / 2, 10 + side, side / 2), rasterio.CRS.from_epsg(4326)) == pytest.approx(
        expected, 1e-6
    )


def test_long_edges_follow_the_parallels_not_the_shortest_way():
    """The equal-area cylindrical projection shows the same box as a rectangle of its true area."""
    region = box(0, 40, 30, 60)
    x, y = pyproj.Transformer.from_crs(4326, 6933, always_xy=True).transform([0, 30], [40, 60])
    expected = (x[1] - x[0]) * (y[1] - y[0])
    assert area_m2(region, rasterio.CRS.from_epsg(4326)) == pytest.approx(expected, rel=1e-4)


def test_area_in_web_mercator_at_60_degrees():
    """The map shows about four times the true area there."""
    square = box(0, 8_399_737.89, 100, 8_399_837.89)
    area = area_m2(square, rasterio.CRS.from_epsg(3857))
    assert area == pytest.approx(1e4 * 0.501260 * 0.500417, rel=1e-4)


@pytest.mark.parametrize("epsg", ["EPSG:2263", "EPSG:4807", "EPSG:3031", "EPSG:32631+5773"])
def test_one_place_has_one_area_in_every_crs(epsg):
    """Feet, grads from Paris, a polar projection, a compound CRS: built from the same ring in degrees."""
    centres = {"EPSG:2263": (-74, 40.7), "EPSG:4807": (2.4, 46.8), "EPSG:3031": (20, -75), "EPSG:32631+5773": (4, 52)}
    crs = rasterio.CRS.from_user_input(epsg)
    lon, lat = centres[epsg]
    degrees = pyproj.CRS.from_wkt(crs.to_wkt()).get_geod()
    ring = box(lon, lat, lon + 0.002, lat + 0.001)
    expected = abs(degrees.geometry_area_perimeter(ring)[0])
    own = pyproj.CRS.from_dict({"proj": "longlat", "a": degrees.a, "b": degrees.b})
    moved = shapely.transform(
        shapely.segmentize(ring, 1e-5),
        lambda xy: np.stack(
            pyproj.Transformer.from_crs(own, pyproj.CRS.from_user_input(epsg), always_xy=True).transform(*xy.T), 1
        ),
    )
    assert area_m2(moved, crs) == pytest.approx(expected, rel=1e-4)


def test_holes_and_parts_count_whichever_way_their_rings_turn():
    crs = rasterio.CRS.from_epsg(32631)
    outer, hole = box(590_000, 5_750_000, 590_100, 5_750_100), box(590_020, 5_750_020, 590_060, 5_750_060)
    expected = area_m2(outer, crs) - area_m2(hole, crs)
    for shell in (outer.exterior.coords, outer.exterior.coords[::-1]):
        for inner in (hole.exterior.coords, hole.exterior.coords[::-1]):
            assert area_m2(shapely.Polygon(shell, [inner]), crs) == pytest.approx(expected, rel=1e-9)
    apart = MultiPolygon([outer, box(590_200, 5_750_000, 590_300, 5_750_100).reverse()])
    assert area_m2(apart, crs) == pytest.approx(2 * area_m2(outer, crs), rel=1e-4)


def test_area_is_unknown_without_a_crs_and_off_the_globe():
    assert math.isnan(area_m2(box(0, 0, 1, 1), None))
    assert math.isnan(area_m2(box(1e9, 1e9, 2e9, 2e9), UTM))
    site = rasterio.CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]')
    assert area_m2(box(0, 0, 10, 10), site) == pytest.approx(100 * 0.3048**2)


def test_clean_drops_small_parts_and_fills_small_holes():
    large = shapely.Polygon(
        box(0, 0, 20, 20).exterior.coords, [box(2, 2, 3, 3).exterior.coords, box(5, 5, 15, 15).exterior.coords]
    )
    speck = box(30, 0, 31, 1)
    cleaned = clean(MultiPolygon([large, speck]), min_area_m2=4)
    assert cleaned.equals(MultiPolygon([box(0, 0, 20, 20) - box(5, 5, 15, 15)]))
    assert clean(MultiPolygon([large, speck])).equals(MultiPolygon([large, speck]))
    assert clean(MultiPolygon([speck]), min_area_m2=4).is_empty


def test_clean_measures_square_metres_in_degrees():
    """12 m x 19 m at 51.9 north: 1e-4 degrees is 6.9 m east and 11.1 m north."""
    mask = np.zeros((40, 40), bool)
    mask[:17, :17] = True
    mask[30:32, 30:32] = True
    outline = polygonize(mask, DEGREES)
    cleaned = clean(outline, min_area_m2=10, crs=rasterio.CRS.from_epsg(4326))
    assert len(cleaned.geoms) == 1
    assert area_m2(cleaned, rasterio.CRS.from_epsg(4326)) == pytest.approx(17 * 17 * 0.6884 * 1.1126, rel=1e-3)


def test_simplifying_removes_steps_within_the_tolerance_and_stays_valid():
    rows, cols = np.indices((200, 200))
    disc = polygonize(np.hypot(rows - 100, cols - 100) < 80, NORTH_UP)
    simple = clean(disc, tolerance=0.75)
    assert simple.is_valid
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(disc) / 4
    assert disc.boundary.hausdorff_distance(simple.boundary) <= 0.75
    assert simple.area == pytest.approx(disc.area, rel=0.02)


@pytest.mark.parametrize("tolerance", [1.0, 2.5, 5.0])
def test_simplified_parts_that_touched_do_not_overlap(tolerance):
    rng, n_overlapping = np.random.default_rng(0), 0
    for _ in range(40):
        outline = polygonize(rng.random((60, 60)) < 0.45, Affine.rotation(33))
        n_overlapping += not shapely.simplify(outline, tolerance).is_valid
        ragged = clean(outline, tolerance=tolerance)
        assert ragged.is_valid
        assert isinstance(ragged, MultiPolygon)
        assert ragged.area == pytest.approx(outline.area, rel=0.5)
    assert n_overlapping or tolerance == 1.0
