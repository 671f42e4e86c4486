"""Merge, cut, subtract, another class, another outline: on real layers, saved at once."""

from __future__ import annotations

from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsGeometry, QgsVectorLayer
from segadapt.plugin import editing
from segadapt.plugin.crs import transformed
from segadapt.plugin.feature_sink import SinkError

UTM = QgsCoordinateReferenceSystem("EPSG:32631")
DEGREES = QgsCoordinateReferenceSystem("EPSG:4326")


def features(layer: QgsVectorLayer) -> list[Any]:
    return sorted(layer.getFeatures(), key=lambda feature: feature.id())


def ids(layer: QgsVectorLayer) -> list[int]:
    return [feature.id() for feature in features(layer)]


def reopened(layer: QgsVectorLayer) -> list[Any]:
    return features(QgsVectorLayer(layer.source(), "again", "ogr"))


def test_a_merge_keeps_the_largest_and_measures_anew(gpkg: Any, shapes: Any) -> None:
    small, large = shapes.rectangle(10, 0, 5), shapes.rectangle(0, 0)
    layer = gpkg((small, "shed"), (large, "roof"), (shapes.rectangle(50, 0), "tree"))
    step = editing.merge(layer, ids(layer)[:2])
    assert step.label == "merge 2 objects"
    assert step.is_saved
    merged, tree = reopened(layer)
    assert (merged["class"], merged["object_id"], tree["class"]) == ("roof", "o1", "tree")
    assert merged["area_m2"] == pytest.approx(150.0, rel=2e-3)
    assert merged["perimeter_m"] == pytest.approx(50.0, rel=2e-3)
    assert (merged["clicks"], merged["seconds"]) == (3, 5.0)
    assert merged.geometry().area() == pytest.approx(150.0)
    assert not layer.isEditable()


def test_a_merge_keeps_holes_and_makes_multiparts(gpkg: Any, shapes: Any) -> None:
    ring = shapes.polygon((0, 0), (10, 0), (10, 10), (0, 10), holes=(((4, 4), (6, 4), (6, 6), (4, 6)),))
    layer = gpkg((ring, "roof"), (shapes.rectangle(10, 0), "roof"), (shapes.rectangle(40, 0), "roof"))
    editing.merge(layer, ids(layer))
    (merged,) = reopened(layer)
    parts = merged.geometry().asMultiPolygon()
    assert sorted(len(part) for part in parts) == [1, 2]
    assert merged.geometry().area() == pytest.approx(296.0)
    assert merged["perimeter_m"] == pytest.approx(60 + 8 + 40, rel=2e-3)  # with the hole's


def test_what_touches_is_found_for_a_merge(gpkg: Any, shapes: Any) -> None:
    layer = gpkg(
        (shapes.rectangle(0, 0), "a"), (shapes.rectangle(10, 0), "b"), (shapes.rectangle(30, 0), "c"),
        (shapes.rectangle(5, 5), "d"),
    )  # fmt: skip
    first, second, _, fourth = ids(layer)
    assert sorted(editing.with_touching(layer, first)) == [first, second, fourth]


def test_merges_that_make_no_sense(gpkg: Any, add_layer: Any, target: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "a"), (shapes.rectangle(30, 0), "b"))
    with pytest.raises(SinkError, match="takes two objects or more"):
        editing.merge(layer, ids(layer)[:1])
    with pytest.raises(SinkError, match="Feature 99 of 'objects' is gone"):
        editing.merge(layer, [ids(layer)[0], 99])
    single = add_layer("Polygon?crs=EPSG:32631", "class")
    target.choice.set_layer(single)
    for x in (0, 30):
        target.accept(shapes.rectangle(x, 0))
    with pytest.raises(SinkError, match="do not touch, and 'mine' holds no multipart features"):
        editing.merge(single, ids(single))
    assert len(features(single)) == 2


def test_a_cut_copies_attributes_and_measures_anew(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"), (shapes.rectangle(20, 0), "tree"))
    before = ids(layer)[0]
    step = editing.cut(layer, shapes.line((3, -5), (3, 15)), crs=UTM)
    assert step.label == "cut 1 object"
    pieces = [feature for feature in reopened(layer) if feature["class"] == "roof"]
    assert [feature.geometry().area() for feature in pieces] == pytest.approx([70.0, 30.0])
    assert pieces[0].id() == before
    assert [feature["area_m2"] for feature in pieces] == pytest.approx([70.0, 30.0], rel=2e-3)
    assert {feature["object_id"] for feature in pieces} == {"o0"}
    assert len(reopened(layer)) == 3


def test_a_cut_through_holes_parts_and_several_objects(gpkg: Any, shapes: Any) -> None:
    ring = shapes.polygon((0, 0), (10, 0), (10, 10), (0, 10), holes=(((4, 4), (6, 4), (6, 6), (4, 6)),))
    both = QgsGeometry.collectGeometry([ring, shapes.rectangle(0, 40)])
    layer = gpkg((both, "roof"), (shapes.rectangle(20, 0), "tree"))
    step = editing.cut(layer, shapes.line((-5, 5), (50, 5)), crs=UTM)
    assert step.label == "cut 2 objects"
    roofs = [feature.geometry() for feature in reopened(layer) if feature["class"] == "roof"]
    assert [roof.area() for roof in roofs] == pytest.approx([148.0, 48.0])
    assert len(roofs[0].asMultiPolygon()) == 2  # the part that was not crossed stays with the larger piece
    trees = [feature.geometry() for feature in reopened(layer) if feature["class"] == "tree"]
    assert [tree.area() for tree in trees] == pytest.approx([50.0, 50.0])


def test_a_loop_cuts_a_piece_out_of_the_middle(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    editing.cut(layer, shapes.line((3, 3), (7, 3), (7, 7), (3, 7), (3, 3)), crs=UTM)
    outer, inner = reopened(layer)
    assert outer.geometry().area() == pytest.approx(84.0)
    assert inner.geometry().area() == pytest.approx(16.0)


def test_a_line_of_another_crs_and_one_that_crosses_nothing(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    blade = transformed(shapes.line((5, -5), (5, 15)), UTM, destination=DEGREES)
    editing.cut(layer, blade, crs=DEGREES)
    assert [feature.geometry().area() for feature in reopened(layer)] == pytest.approx([50.0, 50.0], abs=0.1)
    for points in (((2, 2), (2, 8)), ((2, -5), (2, 5)), ((50, 50), (60, 60))):
        with pytest.raises(SinkError, match="The line crosses no object from side to side"):
            editing.cut(layer, shapes.line(*points), crs=UTM)


def test_a_cut_bow_tie_is_no_trouble(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.polygon((0, 0), (10, 10), (10, 0), (0, 10)), "edited by hand"))
    editing.cut(layer, shapes.line((-5, 5.5), (15, 5.5)), crs=UTM)
    assert all(feature.geometry().isGeosValid() for feature in reopened(layer))


def test_subtract_takes_an_area_away(gpkg: Any, shapes: Any) -> None:
    layer = gpkg(
        (shapes.rectangle(0, 0), "roof"), (shapes.rectangle(12, 2, 2, 2), "shed"), (shapes.rectangle(14, 0), "tree"),
        (shapes.rectangle(-10, 0), "touches only"),
    )  # fmt: skip
    kept = ids(layer)[2]
    area = shapes.polygon((0, 4), (6, 4), (6, 0), (20, 0), (20, 6), (0, 6))
    step = editing.subtract(layer, area, crs=UTM, keep=[kept])
    left = {feature["class"]: feature.geometry().area() for feature in reopened(layer)}
    assert left == pytest.approx({"roof": 100 - 12 - 24, "tree": 100.0, "touches only": 100.0})
    assert len(step.changes) == 2
    with pytest.raises(SinkError, match="Nothing in 'objects' overlaps that area"):
        editing.subtract(layer, shapes.rectangle(500, 0), crs=UTM)


def test_an_accepted_object_can_be_cut_out_of_the_others(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0), "roof")
    target.accept(shapes.rectangle(20, 0, 2, 2), "shed")
    target.accept(shapes.rectangle(5, 0, 30, 10), "road", on_top=True)
    assert target.areas() == [50.0, 300.0]  # the shed is covered
    target.choice.history.undo()
    assert target.areas() == [4.0, 100.0]
    target.choice.history.redo()
    assert target.areas() == [50.0, 300.0]


def test_a_ring_that_crosses_itself_loses_only_what_is_cut_out(target: Any, shapes: Any) -> None:
    """Edited by hand; 8 of 200 m2 are under the new object, and the rest stays."""
    target.accept(shapes.polygon((0, 0), (20, 0), (0, 20), (20, 20)), "field")
    target.accept(shapes.rectangle(8, 0, 4, 2), "shed", on_top=True)
    assert target.areas() == [8.0, 192.0]
    assert target.problems == []


def test_neighbours_in_the_rasters_crs(target: Any, shapes: Any, add_layer: Any) -> None:
    layer = add_layer("Polygon?crs=EPSG:4326", "class")
    target.choice.set_layer(layer)
    for x in (0, 12, 40):
        target.accept(shapes.rectangle(x, 0))
    found = target.choice.neighbours(shapes.rectangle(4, 0, 5, 5), UTM)
    assert [geometry.area() for geometry in found] == pytest.approx([100.0], rel=1e-3)
    assert len(target.choice.neighbours(shapes.rectangle(4, 0, 5, 5), UTM, within_m=5.0)) == 2
    first = min(ids(layer))
    assert target.choice.neighbours(shapes.rectangle(4, 0, 2, 2), UTM, but=first) == []


def test_another_class(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"), (shapes.rectangle(20, 0), "roof"), (shapes.rectangle(40, 0), "tree"))
    step = editing.set_class(layer, ids(layer)[:2], "house")
    assert step.label == "class house for 2 objects"
    assert [feature["class"] for feature in reopened(layer)] == ["house", "house", "tree"]
    assert editing.rename_class(layer, "nothing", "x") is None
    renamed = editing.rename_class(layer, "house", 'it\'s "one"')
    assert renamed is not None
    assert editing.rename_class(layer, 'it\'s "one"', "roof") is not None
    assert [feature["class"] for feature in reopened(layer)] == ["roof", "roof", "tree"]
    assert editing.set_class(layer, ids(layer), "tree").label == "class tree for 2 objects"
    with pytest.raises(SinkError, match="3 objects are of class 'tree' already"):
        editing.set_class(layer, ids(layer), "tree")
    with pytest.raises(SinkError, match="No object is selected"):
        editing.set_class(layer, [], "x")


def test_delete(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"), (shapes.rectangle(20, 0), "tree"))
    assert editing.remove(layer, ids(layer)[:1]).label == "delete 1 object"
    assert [feature["class"] for feature in reopened(layer)] == ["tree"]


def test_a_refined_object_stays_the_same_feature(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof", n_clicks=1)
    (before,) = target.saved()
    target.choice.correct(layer, before.id(), shapes.rectangle(0, 0, 12, 12))
    (after,) = target.saved()
    assert after.id() == before.id()
    assert [after[name] for name in ("object_id", "class", "clicks")] == [before["object_id"], "roof", 1]
    assert after["area_m2"] == pytest.approx(144.0, rel=2e-3)
    target.choice.history.undo()
    (again,) = target.saved()
    assert again.geometry().area() == pytest.approx(100.0)
    assert again["area_m2"] == pytest.approx(100.0, rel=2e-3)
    assert layer.featureCount() == 1


def test_a_refined_outline_is_cut_out_of_the_others_if_wanted(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    target.accept(shapes.rectangle(10, 0))
    first, _ = target.saved()
    target.choice.correct(layer, first.id(), shapes.rectangle(0, 0, 15, 10), on_top=True)
    assert target.areas() == [50.0, 150.0]
    target.choice.history.undo()
    assert target.areas() == [100.0, 100.0]


def test_a_refinement_in_an_edit_session_is_said_to_be_his_to_save(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    assert layer.startEditing()
    target.choice.correct(layer, ids(layer)[0], shapes.rectangle(0, 0, 12, 12))
    (said,) = target.problems
    assert "is being edited" in said
    layer.rollBack()


def test_no_feature_loses_its_outline(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    with pytest.raises(SinkError, match="Nothing of the object is left"):
        target.choice.correct(layer, target.saved()[0].id(), QgsGeometry.fromWkt("MultiPolygon EMPTY"))


def test_the_feature_under_the_mouse(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0, 50, 50), "block"), (shapes.rectangle(10, 10), "roof"))
    block, roof = ids(layer)
    place = shapes.rectangle(15, 15, 1, 1).centroid()
    assert editing.feature_at(layer, place.asPoint(), crs=UTM) == roof
    there = transformed(shapes.rectangle(1, 1, 1, 1).centroid(), UTM, destination=DEGREES).asPoint()
    assert editing.feature_at(layer, there, crs=DEGREES) == block
    assert editing.feature_at(layer, shapes.rectangle(90, 90).centroid().asPoint(), crs=UTM) is None


def test_nothing_is_edited_before_there_is_a_layer(target: Any) -> None:
    with pytest.raises(SinkError, match="There is no target layer yet"):
        target.choice.do(lambda layer: editing.remove(layer, [1]))
