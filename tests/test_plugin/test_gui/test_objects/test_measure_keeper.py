"""Area and perimeter follow what is edited with QGIS's own tools."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qgis.core import QgsFeature, QgsField, QgsGeometry, QgsProject, QgsVectorLayer
from qgis.PyQt.QtCore import QVariant
from segadapt.plugin import editing
from segadapt.plugin.feature_outlines import measured
from segadapt.plugin.field_mapping import FieldSource, remember_mapping
from segadapt.plugin.measure_keeper import MeasureKeeper

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def step(layer: QgsVectorLayer, text: str = "Moved vertex") -> Iterator[None]:
    """What QGIS's tools wrap a change in."""
    layer.beginEditCommand(text)
    yield
    layer.endEditCommand()


def only(layer: QgsVectorLayer) -> QgsFeature:
    (feature,) = layer.getFeatures()
    return feature


def sizes(feature: QgsFeature) -> tuple[float, float]:
    return feature["area_m2"], feature["perimeter_m"]


def true_sizes(layer: QgsVectorLayer, feature: QgsFeature) -> tuple[float, float]:
    found = measured(feature.geometry(), layer.crs())
    return found["area_m2"], found["perimeter_m"]


def is_true(layer: QgsVectorLayer) -> bool:
    return all(sizes(feature) == pytest.approx(true_sizes(layer, feature)) for feature in layer.getFeatures())


@pytest.fixture
def edited(target: Any, shapes: Any) -> QgsVectorLayer:
    """The target with one object of 100 m2 in it, being edited by the user."""
    layer: QgsVectorLayer = target.accept(shapes.rectangle(0, 0), "roof")
    layer.startEditing()
    return layer


def test_a_moved_vertex_measures_anew_in_the_same_step(edited: QgsVectorLayer, target: Any, shapes: Any) -> None:
    before = sizes(only(edited))
    with step(edited):
        edited.changeGeometry(only(edited).id(), shapes.rectangle(0, 0, 20, 10))
    after = sizes(only(edited))
    assert after == pytest.approx(true_sizes(edited, only(edited)))
    assert after[0] == pytest.approx(200, rel=0.01)
    assert edited.undoStack().count() == 1
    edited.undoStack().undo()
    assert sizes(only(edited)) == before
    assert only(edited).geometry().area() == pytest.approx(100)
    edited.undoStack().redo()
    assert sizes(only(edited)) == after
    assert edited.undoStack().count() == 1
    assert edited.commitChanges()
    assert sizes(target.saved()[0]) == pytest.approx(after)


def test_an_outline_that_a_script_changes_outside_of_a_step(edited: QgsVectorLayer, shapes: Any, target: Any) -> None:
    before = sizes(only(edited))
    edited.moveVertex(shapes.east - 5, shapes.north - 5, only(edited).id(), 0)
    assert is_true(edited)
    after = sizes(only(edited))
    stack = edited.undoStack()
    assert stack.count() == 2
    stack.setIndex(0)
    assert sizes(only(edited)) == before
    stack.setIndex(2)
    assert (stack.count(), stack.canRedo()) == (2, False)
    assert sizes(only(edited)) == after
    assert edited.commitChanges()
    assert sizes(target.saved()[0]) == pytest.approx(after)


def test_undo_and_redo_measure_nothing(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    index = layer.fields().lookupField("area_m2")
    layer.dataProvider().changeAttributeValues({only(layer).id(): {index: 77.0}})  # somebody knows better
    layer.startEditing()
    with step(layer):
        layer.changeGeometry(only(layer).id(), shapes.rectangle(0, 0, 20, 10))
    stack = layer.undoStack()
    stack.undo()
    assert only(layer)["area_m2"] == 77
    assert (stack.count(), stack.canRedo()) == (1, True)
    stack.redo()
    assert is_true(layer)
    assert stack.count() == 1
    layer.rollBack()
    assert only(layer)["area_m2"] == 77


def test_a_step_that_is_given_up_leaves_nothing(edited: QgsVectorLayer, shapes: Any) -> None:
    before = sizes(only(edited))
    edited.beginEditCommand("Moved vertex")
    edited.changeGeometry(only(edited).id(), shapes.rectangle(0, 0, 20, 10))
    edited.destroyEditCommand()
    assert sizes(only(edited)) == before
    assert edited.undoStack().count() == 0
    assert edited.editBuffer().changedAttributeValues() == {}


def test_the_pieces_of_a_split_are_measured(edited: QgsVectorLayer, shapes: Any) -> None:
    across = shapes.line((3, -5), (3, 15))
    with step(edited, "Features split"):
        assert edited.splitFeatures(curve=across.constGet())[0] == QgsGeometry.OperationResult.Success
    assert sorted(round(feature["area_m2"]) for feature in edited.getFeatures()) == [30, 70]
    assert is_true(edited)
    edited.undoStack().setIndex(0)
    assert round(only(edited)["area_m2"]) == 100
    edited.undoStack().setIndex(edited.undoStack().count())
    assert is_true(edited)
    assert edited.commitChanges()
    assert is_true(edited)


def test_features_saved_while_editing_goes_on_are_no_new_edits(edited: QgsVectorLayer, shapes: Any) -> None:
    feature = QgsFeature(edited.fields())
    feature.setGeometry(shapes.rectangle(30, 0))
    with step(edited, "Feature added"):
        edited.addFeature(feature)
    assert is_true(edited)
    assert edited.commitChanges(stopEditing=False)
    assert not edited.isModified()


def test_our_own_steps_keep_their_numbers(edited: QgsVectorLayer, target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(40, 0), "tank")
    stack = edited.undoStack()
    assert stack.count() == 1
    numbers = [sizes(feature) for feature in edited.getFeatures()]
    target.choice.do(lambda layer: editing.cut(layer, shapes.line((5, -5), (5, 15)), crs=shapes.utm))
    assert stack.count() == 2
    stack.undo()
    assert [sizes(feature) for feature in edited.getFeatures()] == numbers
    stack.redo()
    assert stack.count() == 2


def test_a_mapping_decides_which_fields_follow(add_layer: Any, target: Any, shapes: Any) -> None:
    layer = add_layer("Polygon?crs=EPSG:4326", "Kind")
    layer.dataProvider().addAttributes([QgsField("size", QVariant.Int), QgsField("area_m2", QVariant.Double)])
    layer.updateFields()
    remember_mapping(layer, {"Kind": FieldSource("class"), "size": FieldSource("area_m2")})
    target.choice.set_layer(layer)
    target.accept(shapes.rectangle(0, 0), "roof")
    layer.startEditing()
    geometry = only(layer).geometry()
    with step(layer):
        geometry.moveVertex(geometry.vertexAt(0).x(), geometry.vertexAt(0).y() - 0.001, 0)
        layer.changeGeometry(only(layer).id(), geometry)
    assert only(layer)["size"] == round(measured(geometry, layer.crs())["area_m2"]) > 500
    assert not only(layer)["area_m2"]


def test_a_layer_without_such_fields_is_left_alone(add_layer: Any, target: Any, shapes: Any) -> None:
    layer = add_layer("MultiPolygon?crs=EPSG:32631", "class")
    target.choice.set_layer(layer)
    target.accept(shapes.rectangle(0, 0), "roof")
    layer.startEditing()
    with step(layer):
        layer.changeGeometry(only(layer).id(), shapes.rectangle(0, 0, 20, 10))
    layer.moveVertex(shapes.east - 5, shapes.north - 5, only(layer).id(), 0)
    assert layer.undoStack().count() == 2
    assert layer.editBuffer().changedAttributeValues() == {}


@pytest.fixture
def shared(gpkg: Any, target: Any, shapes: Any) -> Iterator[QgsVectorLayer]:
    """A layer in a transaction, where every edit goes into the file at once."""
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    target.choice.set_layer(layer)
    QgsProject.instance().setAutoTransaction(True)
    assert layer.startEditing()
    assert layer.dataProvider().transaction() is not None
    yield layer
    layer.rollBack()
    QgsProject.instance().removeAllMapLayers()
    QgsProject.instance().setAutoTransaction(False)


def test_a_layer_in_a_transaction(shared: QgsVectorLayer, shapes: Any) -> None:
    with step(shared):
        shared.changeGeometry(only(shared).id(), shapes.rectangle(0, 0, 15, 10))
    with step(shared):
        shared.changeGeometry(only(shared).id(), shapes.rectangle(0, 0, 20, 10))
    stack = shared.undoStack()
    assert stack.count() == 4
    for _ in range(2):
        for index, width in ((2, 15), (4, 20), (0, 10), (4, 20)):
            stack.setIndex(index)
            assert only(shared).geometry().area() == pytest.approx(10 * width)
            assert not only(shared)["area_m2"] if width == 10 else is_true(shared)
    assert shared.commitChanges()
    assert only(shared)["area_m2"] == pytest.approx(200, rel=0.01)


def test_an_earlier_target_and_layers_of_a_reopened_project(target: Any, shapes: Any, tmp_path: Path) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    target.choice.set_layer(None)
    for _ in range(2):
        layer.startEditing()
        with step(layer):
            layer.changeGeometry(only(layer).id(), shapes.rectangle(0, 0, only(layer).geometry().area() / 5, 10))
        assert is_true(layer)
        assert layer.commitChanges()
        layer_id = layer.id()
        assert QgsProject.instance().write(str(tmp_path / "a.qgz"))
        assert QgsProject.instance().read(str(tmp_path / "a.qgz"))
        layer = QgsProject.instance().mapLayer(layer_id)


def test_whoever_is_gone_measures_nothing(gpkg: Any, shapes: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    keeper = MeasureKeeper(layer)
    layer.startEditing()
    layer.changeGeometry(only(layer).id(), shapes.rectangle(0, 0, 20, 10))
    assert is_true(layer)
    keeper.dispose()
    with step(layer):
        layer.changeGeometry(only(layer).id(), shapes.rectangle(0, 0, 30, 10))
    assert layer.undoStack().count() == 3
    assert only(layer)["area_m2"] == pytest.approx(200, rel=0.01)
