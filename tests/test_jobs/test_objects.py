"""From drawn features to prompts in raster pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.objects import PromptGeometry, gather_prompts
from segadapt.processing.raster.reader import open_raster
from shapely.geometry import LineString, MultiPoint, Point, box

TURNED = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)


@pytest.fixture(params=[Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000), TURNED], ids=["north up", "turned"])
def reader(request, raster_factory):
    """A raster of 200 rows and 300 columns."""
    path = raster_factory(np.full((3, 200, 300), 50, np.uint8), transform=request.param)
    with open_raster(path) as reader:
        yield reader


def on_map(reader, geometry_px):
    return shapely.transform(geometry_px, reader.to_map)


def gather(reader, *features, progress=None):
    """Features are (geometry in pixels, object id) or with class and foreground as well."""
    prompts = [PromptGeometry(on_map(reader, geometry), *rest) for geometry, *rest in features]
    return gather_prompts(prompts, reader, progress=progress)


def test_features_of_one_id_are_one_object(reader):
    first, second = gather(
        reader,
        (Point(10.25, 20.75), "a", "", True),
        (Point(100, 100), "b", "tree", True),
        (Point(30, 40), "a", "roof", False),
    )
    assert (first.object_id, first.class_name) == ("a", "roof")
    np.testing.assert_allclose(first.points_xy, [[10.25, 20.75], [30, 40]], atol=1e-6)
    assert first.labels.tolist() == [1, 0]
    assert (second.object_id, second.class_name, second.box_xyxy, second.mask_polygon) == ("b", "tree", None, None)
    assert first.bounds_px == pytest.approx((10.25, 20.75, 30, 40))


def test_multipoints_and_nested_collections(reader):
    (found,) = gather(reader, (shapely.GeometryCollection([MultiPoint([(1, 2), (3, 4)]), Point()]), "a"))
    np.testing.assert_allclose(found.points_xy, [[1, 2], [3, 4]], atol=1e-6)


def test_rectangle_is_a_box(reader):
    (found,) = gather(reader, (box(20, 30, 80, 60), "a"))
    assert found.box_xyxy == pytest.approx((20, 30, 80, 60))
    assert found.mask_polygon is None
    assert found.points_xy.shape == (0, 2)


@pytest.mark.parametrize(
    "outline",
    [
        shapely.affinity.rotate(box(20, 30, 80, 60), 20),
        Point(50, 50).buffer(20),
        shapely.Polygon([(0, 0), (50, 0), (0, 50)]),
    ],
    ids=["turned rectangle", "disc", "triangle"],
)
def test_other_polygons_are_outlines_with_their_box(reader, outline):
    (found,) = gather(reader, (outline, "a"))
    np.testing.assert_allclose(found.box_xyxy, outline.intersection(box(0, 0, 300, 200)).bounds, atol=0.5)
    assert found.mask_polygon.symmetric_difference(outline).area < 1e-3


def test_boxes_of_one_object_are_joined_and_cut_at_the_raster(reader):
    (found,) = gather(reader, (box(280, 10, 400, 20), "a"), (box(250, 30, 260, 50), "a"))
    assert found.box_xyxy == pytest.approx((250, 10, 300, 50))


def test_scribble_becomes_points_along_it(reader):
    (short,) = gather(reader, (LineString([(10, 10), (50, 10)]), "a"))
    np.testing.assert_allclose(short.points_xy, [[14, 10], [22, 10], [30, 10], [38, 10], [46, 10]], atol=1e-6)
    (long,) = gather(reader, (LineString([(10, 10), (10, 190), (250, 190)]), "a", "", True), (Point(5, 5), "a"))
    assert long.points_xy.shape == (11, 2)
    np.testing.assert_allclose(np.abs(np.diff(long.points_xy[:4], axis=0)).sum(axis=1), 42, atol=1e-6)
    (dot,) = gather(reader, (LineString([(10, 10), (12, 10)]), "a"))
    np.testing.assert_allclose(dot.points_xy, [[11, 10]], atol=1e-6)


def test_background_area_becomes_a_point_inside(reader):
    area = shapely.Polygon([(0, 0), (60, 0), (60, 60), (50, 60), (50, 10), (0, 10)])  # its centroid is outside
    (found,) = gather(reader, (Point(5, 50), "a", "", True), (area, "a", "", False))
    assert found.labels.tolist() == [1, 0]
    assert area.buffer(1e-6).contains(Point(found.points_xy[1]))
    assert found.box_xyxy is None


def test_objects_outside_are_skipped_and_named(reader, recorder):
    progress = recorder()
    found = gather(
        reader,
        (Point(-1, 5), "out"),
        (Point(5, 5), "in"),
        (Point(5, 200.5), "in"),
        (box(301, 0, 310, 9), "right"),
        progress=progress,
    )
    assert [prompts.object_id for prompts in found] == ["in"]
    np.testing.assert_allclose(found[0].points_xy, [[5, 5]], atol=1e-6)
    assert len(progress.texts) == 2
    assert "'out'" in progress.texts[0]
    assert "'right'" in progress.texts[1]


def test_nothing_inside_names_the_remedy(reader):
    with pytest.raises(JobError, match=r"None of the 2 prompted objects overlaps .*scene\.tif.*CRS"):
        gather(reader, (Point(-10, 5), "a"), (Point(400, 5), "b"))


def test_background_only(reader, recorder):
    with pytest.raises(JobError, match=r"Object 'a' has background prompts only.*add a foreground"):
        gather(reader, (Point(10, 5), "a", "", False))
    progress = recorder()
    found = gather(reader, (Point(10, 5), "a", "", False), (Point(10, 5), "b"), progress=progress)
    assert [prompts.object_id for prompts in found] == ["b"]
    assert "'a' was skipped: it has background prompts only" in progress.texts[0]


@pytest.mark.parametrize("features", [[], [(Point(), "a")]], ids=["no features", "empty geometry"])
def test_no_prompts(reader, features):
    with pytest.raises(JobError, match="hold no geometry; add"):
        gather(reader, *features)


def test_prompts_that_a_reprojection_lost(reader):
    with pytest.raises(JobError, match=r"object 'a' has no finite place.*check the CRS"):
        gather_prompts([PromptGeometry(Point(np.inf, 0), "a")], reader)
