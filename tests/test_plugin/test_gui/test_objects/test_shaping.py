"""Outlines: right angles, tolerances in metres in any CRS, overlaps, shared borders."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsGeometry, QgsPointXY, QgsSettings
from qgis.PyQt.QtCore import QObject
from segadapt.plugin.actions import Actions
from segadapt.plugin.crs import transformed
from segadapt.plugin.shape_panel import ShapePanel
from segadapt.plugin.shaping import ShapeOptions, metric_frame, shaped

UTM = QgsCoordinateReferenceSystem("EPSG:32631")
DEGREES = QgsCoordinateReferenceSystem("EPSG:4326")
EAST, NORTH = 590_000.0, 5_750_000.0
L_SHAPE = ((0, 0), (24, 0), (24, 10), (10, 10), (10, 22), (0, 22))
T_SHAPE = ((0, 0), (30, 0), (30, 8), (20, 8), (20, 20), (10, 20), (10, 8), (0, 8))
CHAMFERED = ((0, 0), (24, 0), (24, 10), (17, 18), (0, 18))
COURTYARD = ((0, 0), (30, 0), (30, 30), (0, 30))
RIGHT = ShapeOptions(right_angles=True)


def traced(
    corners: Any, *, degrees: float = 0.0, gsd_m: float = 0.3, seed: int = 0, hole: Any = None, noise: float = 0.5
) -> tuple[QgsGeometry, QgsGeometry]:
    """What a model makes of a roof: pixel edges of a blurred, noisy mask with rounded corners. Mask and truth."""
    import rasterio.features
    import shapely
    from affine import Affine
    from scipy.ndimage import gaussian_filter
    from shapely.affinity import rotate, translate

    roof = translate(rotate(shapely.Polygon(corners, [hole] if hole else None), degrees, origin="centroid"), 30, 30)
    side = round(90 / gsd_m)
    grid = Affine(gsd_m, 0, 0, 0, -gsd_m, side * gsd_m)
    pixels = rasterio.features.rasterize([roof], (side, side), transform=grid).astype(float)
    rng = np.random.default_rng(seed)
    soft = gaussian_filter(pixels, 1.5) + noise * gaussian_filter(rng.normal(0, 1, pixels.shape), 2)
    mask = (soft > 0.5).astype(np.uint8)
    found = (shapely.geometry.shape(item) for item, _ in rasterio.features.shapes(mask, mask=mask > 0, transform=grid))
    largest = max(found, key=lambda part: part.area)
    return tuple(  # type: ignore[return-value]
        QgsGeometry.fromWkt(shapely.MultiPolygon([translate(part, EAST, NORTH)]).wkt) for part in (largest, roof)
    )


def corners_of(geometry: QgsGeometry, ring: int = 0) -> np.ndarray:
    return np.array([(point.x(), point.y()) for point in geometry.asMultiPolygon()[0][ring][:-1]])


def off_right_deg(ring: np.ndarray) -> float:
    """How far the worst corner is from a right angle."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cosine = (before * after).sum(axis=1) / np.hypot(*before.T) / np.hypot(*after.T)
    return float(np.abs(np.degrees(np.arccos(np.clip(cosine, -1, 1))) - 90).max())


def iou(one: QgsGeometry, other: QgsGeometry) -> float:
    return one.intersection(other).area() / one.combine(other).area()


@pytest.mark.parametrize("degrees", [0, 17, 45, 61])
@pytest.mark.parametrize(("roof", "n_corners"), [(L_SHAPE, 6), (T_SHAPE, 8)])
def test_a_noisy_roof_gets_its_corners_back(roof: Any, n_corners: int, degrees: float) -> None:
    for seed in range(3):
        mask, truth = traced(roof, degrees=degrees, seed=seed)
        result = shaped(mask, UTM, RIGHT)
        ring = corners_of(result)
        assert len(ring) == n_corners
        assert off_right_deg(ring) < 1.0
        assert iou(result, truth) > 0.97
        assert iou(result, mask) > 0.9


def test_a_slanted_wall_stays_and_the_others_are_straight() -> None:
    mask, truth = traced(CHAMFERED, degrees=30)
    ring = corners_of(result := shaped(mask, UTM, RIGHT))
    assert len(ring) == 5
    assert off_right_deg(ring) > 30
    assert iou(result, truth) > 0.97


def test_a_courtyard_stays_and_is_straight_too() -> None:
    mask, truth = traced(COURTYARD, degrees=20, hole=((10, 10), (20, 10), (20, 20), (10, 20)))
    result = shaped(mask, UTM, RIGHT)
    assert [len(corners_of(result, ring)) for ring in (0, 1)] == [4, 4]
    assert max(off_right_deg(corners_of(result, ring)) for ring in (0, 1)) < 1.0
    assert iou(result, truth) > 0.97


def test_a_round_tank_gets_no_right_angles() -> None:
    circle = [(12 + 12 * math.cos(a), 12 + 12 * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 90)[:-1]]
    mask, truth = traced(circle)
    result = shaped(mask, UTM, RIGHT)
    assert iou(result, mask) >= 0.9
    assert iou(result, truth) > 0.95
    assert off_right_deg(corners_of(result)) > 30
    assert len(corners_of(result)) < 30


def test_the_guard_refuses_angles_that_are_not_in_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish for far too coarse walls of a comb ends at the simplified outline, which is like the mask."""
    from segadapt.plugin import shaping

    teeth = [(x, y) for k in range(8) for x, y in ((4 * k, 12), (4 * k + 2, 12), (4 * k + 2, 3), (4 * k + 4, 3))]
    comb = QgsGeometry.fromMultiPolygonXY([[[QgsPointXY(EAST + x, NORTH + y) for x, y in [(0, 0), *teeth, (32, 0)]]]])
    monkeypatch.setattr(shaping, "_LEAST_IOU", 0.0)
    unguarded = shaped(comb, UTM, ShapeOptions(right_angles=True, simplify_m=2.5))
    monkeypatch.undo()
    guarded = shaped(comb, UTM, ShapeOptions(right_angles=True, simplify_m=2.5))
    assert iou(unguarded, comb) < 0.9
    assert guarded.asWkt() != unguarded.asWkt()


@pytest.mark.parametrize("code", ["EPSG:4326", "EPSG:3857", "EPSG:2263"])
def test_metres_are_metres_in_degrees_and_feet(code: str) -> None:
    """A wall's right angle and a tolerance mean the same on the ground, whatever the units of the CRS."""
    crs = QgsCoordinateReferenceSystem(code)
    source = QgsCoordinateReferenceSystem("EPSG:32618")  # New York, where EPSG:2263 is at home
    mask, _ = traced(L_SHAPE, degrees=25)
    mask.translate(0, 4_510_000 - NORTH)
    there = transformed(mask, source, destination=crs)
    result = transformed(shaped(there, crs, RIGHT), crs, destination=source)
    assert len(corners_of(result)) == 6
    assert off_right_deg(corners_of(result)) < 1.0
    for tolerance_m in (0.3, 2.0):
        options = ShapeOptions(simplify_m=tolerance_m)
        here = shaped(mask, source, options)
        back = transformed(shaped(there, crs, options), crs, destination=source)
        assert back.hausdorffDistance(mask) <= tolerance_m * 1.01
        assert len(corners_of(back)) == pytest.approx(len(corners_of(here)), abs=2)


def test_simplification_keeps_within_its_tolerance_and_gets_rid_of_corners() -> None:
    mask, _ = traced(L_SHAPE, degrees=17)
    counts = []
    for tolerance_m in (0.0, 0.3, 1.0):
        result = shaped(mask, UTM, ShapeOptions(simplify_m=tolerance_m))
        assert result.hausdorffDistance(mask) <= tolerance_m + 1e-6
        assert result.isGeosValid()
        counts.append(len(corners_of(result)))
    assert counts == sorted(counts, reverse=True)
    assert counts[2] < counts[0] / 4


def test_the_frame_measures_metres() -> None:
    for crs, x, y in ((UTM, EAST, NORTH), (DEGREES, 4.3, 51.9), (DEGREES, 20.0, -70.0)):
        place = QgsGeometry.fromPointXY(QgsPointXY(x, y))
        frame = metric_frame(place, crs)
        from pyproj import Geod

        here = transformed(place, crs, destination=DEGREES).asPoint()
        lon, lat, _ = Geod(ellps="WGS84").fwd(here.x(), here.y(), 40.0, 25.0)
        end = transformed(QgsGeometry.fromPointXY(QgsPointXY(lon, lat)), DEGREES, destination=crs).asPoint()
        east, north = frame.map(end.x(), end.y())
        assert math.hypot(east, north) == pytest.approx(25.0, abs=0.01)
        assert math.degrees(math.atan2(east, north)) == pytest.approx(40.0, abs=0.05)


def test_small_parts_and_holes_go(shapes: Any) -> None:
    large = shapes.polygon(
        (0, 0), (20, 0), (20, 20), (0, 20),
        holes=(((1, 1), (2, 1), (2, 2), (1, 2)), ((5, 5), (9, 5), (9, 9), (5, 9))),
    )  # fmt: skip
    both = QgsGeometry.collectGeometry([large, shapes.rectangle(40, 0, 2, 2)])
    result = shaped(both, UTM, ShapeOptions(min_area_m2=5.0))
    assert result.area() == pytest.approx(400 - 16, abs=1e-4)
    for options in ({}, {"simplify_m": 1.0}, {"right_angles": True}, {"snap_m": 1.0}, {"no_overlaps": True}):
        assert shaped(both, UTM, ShapeOptions(min_area_m2=1000.0, **options), neighbours=[both]).isEmpty()


def test_no_overlaps_leaves_to_the_neighbours_what_is_theirs(shapes: Any) -> None:
    new, old = shapes.rectangle(0, 0), shapes.rectangle(6, 0)
    result = shaped(new, UTM, ShapeOptions(no_overlaps=True), neighbours=[old])
    assert result.area() == pytest.approx(60.0, abs=1e-4)
    assert result.intersection(old).area() < 1e-6
    assert shaped(new, UTM, ShapeOptions(no_overlaps=True, new_on_top=True), neighbours=[old]).equals(new)
    assert shaped(new, UTM, ShapeOptions(no_overlaps=True), neighbours=[shapes.rectangle(-1, -1, 20, 20)]).isEmpty()


def test_a_neighbour_that_crosses_itself_takes_only_its_own(shapes: Any) -> None:
    bow_tie = shapes.polygon((0, 0), (20, 0), (0, 20), (20, 20))
    result = shaped(shapes.rectangle(8, -2, 4, 4), UTM, ShapeOptions(no_overlaps=True), neighbours=[bow_tie])
    assert result.area() == pytest.approx(8.0, abs=1e-3)


def test_borders_that_are_near_become_one(shapes: Any) -> None:
    """A gap of 40 cm and an overlap: afterwards neither, and the border is the neighbour's to the millimetre."""
    for gap_m in (0.4, -0.4):
        old = shapes.rectangle(10 + gap_m, -5, 10, 20)
        new = shapes.polygon((0, 0), (10, 0), (10.1, 5), (10, 10), (0, 10))
        result = shaped(new, UTM, ShapeOptions(snap_m=1.0, no_overlaps=True), neighbours=[old])
        assert result.intersection(old).area() < 1e-3
        border = QgsGeometry(result.constGet().boundary()).intersection(old.buffer(1e-3, 4))
        assert border.length() == pytest.approx(10.0, abs=0.1)
        assert result.isGeosValid()
    far = shapes.rectangle(13, -5, 10, 20)
    assert iou(shaped(new, UTM, ShapeOptions(snap_m=1.0), neighbours=[far]), new) > 0.9999


def test_without_options_the_mask_is_as_it_was() -> None:
    mask, _ = traced(L_SHAPE)
    assert shaped(mask, UTM, ShapeOptions()).equals(mask)
    assert shaped(QgsGeometry(), UTM, RIGHT).isEmpty()


def test_without_a_crs_units_count_as_metres() -> None:
    mask, _ = traced(L_SHAPE, degrees=17)
    assert len(corners_of(shaped(mask, QgsCoordinateReferenceSystem(), RIGHT))) == 6


def test_a_sliver_and_a_pixel_are_no_trouble(shapes: Any) -> None:
    for tiny in (shapes.rectangle(0, 0, 0.3, 0.3), shapes.rectangle(0, 0, 50, 0.01)):
        result = shaped(tiny, UTM, ShapeOptions(right_angles=True, simplify_m=1.0, snap_m=1.0))
        assert result.isEmpty() or result.isGeosValid()


def test_five_hundred_corners_take_no_noticeable_time(shapes: Any) -> None:
    """The target is 20 ms; the best of several runs, as other work shares the machine."""
    mask, _ = traced(COURTYARD, degrees=61, hole=((10, 10), (20, 10), (20, 20), (10, 20)))
    assert mask.constGet().nCoordinates() > 450
    options = ShapeOptions(right_angles=True, simplify_m=0.5, min_area_m2=2.0, no_overlaps=True, snap_m=0.5)
    neighbours = [transformed(mask, UTM, destination=UTM) for _ in range(2)]
    for number, neighbour in enumerate(neighbours):
        neighbour.translate(40 * (number or -1), 0)
    shaped(mask, UTM, options, neighbours=neighbours)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        shaped(mask, UTM, options, neighbours=neighbours)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.04


@pytest.fixture
def make_panel(qgis_app: Any) -> Callable[[], ShapePanel]:
    parent = QObject()
    return lambda: ShapePanel(Actions(parent))


def test_the_panel_remembers(make_panel: Any) -> None:
    QgsSettings().remove("segadapt/shape")
    panel = make_panel()
    assert panel.options == ShapeOptions()
    seen: list[ShapeOptions] = []
    panel.changed.connect(seen.append)
    panel.right_angles.click()
    panel.simplify_m.setValue(0.75)
    panel.no_overlaps.action.trigger()
    expected = ShapeOptions(right_angles=True, simplify_m=0.75, no_overlaps=True)
    assert seen[-1] == panel.options == expected
    assert make_panel().options == expected
    assert panel.new_on_top.isEnabled()
    panel.no_overlaps.action.trigger()
    assert not panel.new_on_top.isEnabled()
    assert not panel.new_on_top.action.isEnabled()


def test_others_are_cut_only_where_overlaps_are_off(make_panel: Any) -> None:
    panel = make_panel()
    panel.no_overlaps.click()
    panel.new_on_top.click()
    assert panel.options == ShapeOptions(no_overlaps=True, new_on_top=True)
    panel.no_overlaps.click()
    assert panel.options == ShapeOptions()
    later = make_panel()
    assert later.options == ShapeOptions()
    later.no_overlaps.click()  # what was ticked comes back
    assert later.options == ShapeOptions(no_overlaps=True, new_on_top=True)
