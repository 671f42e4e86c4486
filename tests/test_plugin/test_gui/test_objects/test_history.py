"""Undo and redo across accepts, merges, cuts, class changes; with edits made elsewhere in between."""

from __future__ import annotations

import random
from typing import Any

import pytest
from qgis.core import QgsGeometry, QgsProject, QgsVectorLayer
from segadapt.plugin import editing
from segadapt.plugin.target import NEW_SCRATCH


def state(target: Any) -> list[tuple[Any, ...]]:
    """What is in the file: attributes and outline of every feature."""
    names = [name for name in target.layer.fields().names() if name != "fid"]
    return sorted(
        (*(str(feature[name]) for name in names), QgsGeometry(feature.geometry()).asWkt(3))
        for feature in target.saved()
    )


def fids(target: Any) -> list[int]:
    return [feature.id() for feature in target.saved()]


def test_a_chain_of_steps_goes_back_and_forth(target: Any, shapes: Any) -> None:
    history, do = target.choice.history, target.choice.do
    states, labels = [], []

    def note() -> None:
        states.append(state(target))
        labels.append(history.undo_text)

    target.accept(shapes.rectangle(0, 0), "roof")
    note()
    target.accept(shapes.rectangle(10, 0), "roof")
    note()
    assert do(lambda layer: editing.merge(layer, fids(target))) == "Done: merge 2 objects."
    note()
    do(lambda layer: editing.cut(layer, shapes.line((4, -5), (4, 15)), crs=shapes.utm))
    note()
    do(lambda layer: editing.set_class(layer, fids(target)[:1], "tree"))
    note()
    do(lambda layer: editing.remove(layer, fids(target)[1:]))
    note()
    for number in range(len(states) - 1, 0, -1):
        assert history.undo() == f"Undone: {labels[number]}."
        assert state(target) == states[number - 1]
    assert history.undo() == "Undone: accept roof."
    assert state(target) == []
    assert history.undo() == ""
    assert not history.can_undo
    for number, expected in enumerate(states):
        assert history.redo() == f"Done again: {labels[number]}."
        assert state(target) == expected
    assert history.redo() == ""
    assert not history.can_redo
    assert target.problems == []


def test_a_random_walk_always_comes_home(target: Any, shapes: Any) -> None:
    """Any steps, undone and redone in any order, lead to the state that they led to before."""
    rng = random.Random(3)
    target.pick(NEW_SCRATCH)  # without a disk, for many steps
    history, do = target.choice.history, target.choice.do
    target.accept(shapes.rectangle(0, 0), "a")
    states = [[], state(target)]
    position = 1
    for _ in range(120):
        choice = rng.random()
        if choice < 0.3 and position > 0:
            assert history.undo().startswith("Undone")
            position -= 1
        elif choice < 0.5 and position < len(states) - 1:
            assert history.redo().startswith("Done again")
            position += 1
        else:
            known = fids(target)
            x = rng.randrange(0, 60)
            if choice < 0.65 or len(known) < 2:
                target.accept(shapes.rectangle(x, 0), rng.choice("ab"), on_top=rng.random() < 0.5)
            elif choice < 0.75:
                do(lambda layer, known=known: editing.merge(layer, rng.sample(known, 2)))
            elif choice < 0.85:
                do(lambda layer, known=known: editing.set_class(layer, rng.sample(known, 2), rng.choice("xyz")))
            else:
                do(lambda layer, known=known: editing.remove(layer, known[:1]))
            states, position = [*states[: position + 1], state(target)], position + 1
        assert state(target) == states[position]
    assert target.problems == []


def test_a_new_step_forgets_what_was_undone(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0), "a")
    target.choice.history.undo()
    assert target.choice.history.redo_text == "accept a"
    target.accept(shapes.rectangle(0, 0), "b")
    assert not target.choice.history.can_redo


def test_vertices_moved_with_qgis_tools_survive_undo_and_redo(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    (fid,) = fids(target)
    assert layer.startEditing()
    assert layer.moveVertex(shapes.east - 2, shapes.north - 2, fid, 0)
    assert layer.commitChanges()
    moved = target.areas()
    assert moved != [100.0]
    assert target.choice.history.undo() == "Undone: accept roof."
    assert target.saved() == []
    target.choice.history.redo()
    assert target.areas() == moved  # with the vertex where he put it
    target.choice.do(lambda layer: editing.set_class(layer, fids(target), "tree"))
    layer.startEditing()
    layer.moveVertex(shapes.east - 3, shapes.north - 3, fids(target)[0], 0)
    layer.commitChanges()
    moved = target.areas()
    target.choice.history.undo()  # the class only
    assert target.areas() == moved
    assert target.saved()[0]["class"] == "roof"
    assert target.problems == []


def test_a_merge_that_was_edited_since_is_left_alone(target: Any, shapes: Any) -> None:
    for x in (0, 10):
        layer = target.accept(shapes.rectangle(x, 0), "roof")
    target.choice.do(lambda layer: editing.merge(layer, fids(target)))
    layer.startEditing()
    layer.moveVertex(shapes.east - 2, shapes.north - 2, fids(target)[0], 0)
    layer.commitChanges()
    before = state(target)
    said = target.choice.history.undo()
    assert "'merge 2 objects' cannot be undone: the outline of the object was edited since" in said
    assert target.problems == [said]
    assert state(target) == before
    # It goes on with the step before; the second roof is in the merged one, which is not it.
    assert "deleted or changed elsewhere" in target.choice.history.undo()
    assert state(target) == before


def test_a_class_that_was_changed_elsewhere_is_left_alone(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    target.choice.do(lambda layer: editing.set_class(layer, fids(target), "tree"))
    layer.startEditing()
    layer.changeAttributeValue(fids(target)[0], layer.fields().lookupField("class"), "pond")
    layer.commitChanges()
    assert "field 'class' of the object was edited since" in target.choice.history.undo()
    assert target.saved()[0]["class"] == "pond"


def test_a_feature_deleted_elsewhere(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0), "a")
    layer = target.accept(shapes.rectangle(20, 0), "b")
    other = QgsVectorLayer(layer.source(), "another window", "ogr")
    assert other.dataProvider().deleteFeatures([fids(target)[1]])
    assert "deleted or changed elsewhere, in" in target.choice.history.undo()
    assert target.choice.history.undo() == "Undone: accept a."
    assert target.saved() == []


def test_the_layer_was_removed(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "a")
    QgsProject.instance().removeMapLayer(layer.id())
    assert "its layer is not in the project any more" in target.choice.history.undo()
    assert not target.choice.history.can_undo


def test_another_project_has_another_history(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0), "a")
    target.choice.history.undo()
    target.accept(shapes.rectangle(0, 0), "a")
    QgsProject.instance().clear()
    assert not target.choice.history.can_undo
    assert not target.choice.history.can_redo


def test_undo_in_the_users_edit_session(target: Any, shapes: Any, gpkg: Any) -> None:
    """Ids in the edit buffer are not those after saving; the object is found all the same."""
    layer = gpkg((shapes.rectangle(0, 0), "his"))
    target.choice.set_layer(layer)
    layer.startEditing()
    target.accept(shapes.rectangle(20, 0), "a")
    target.accept(shapes.rectangle(40, 0), "b")
    assert target.choice.history.undo() == "Undone: accept b."
    assert layer.featureCount() == 2
    assert layer.isEditable()
    layer.commitChanges()
    assert target.choice.history.undo() == "Undone: accept a."
    assert [feature["class"] for feature in target.saved()] == ["his"]
    assert target.choice.history.redo() == "Done again: accept a."
    assert [feature["class"] for feature in target.saved()] == ["his", "a"]


def test_his_own_undo_took_our_step_already(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "his"))
    target.choice.set_layer(layer)
    layer.startEditing()
    target.accept(shapes.rectangle(20, 0), "a")
    layer.undoStack().undo()
    assert "deleted or changed elsewhere" in target.choice.history.undo()
    assert layer.featureCount() == 1
    layer.rollBack()


def test_what_a_rollback_brought_back_is_not_brought_back_twice(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    target.choice.set_layer(layer)
    layer.startEditing()
    target.choice.do(lambda layer: editing.remove(layer, [feature.id() for feature in layer.getFeatures()]))
    assert layer.featureCount() == 0
    layer.rollBack()
    target.choice.history.undo()
    assert layer.featureCount() == 1
    assert "the object is there again, in 'objects'" in target.problems[-1]
    assert not target.choice.history.can_undo


def test_an_unwritable_layer_keeps_the_step(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "a")
    layer.setReadOnly(True)
    assert "cannot be undone now: " in target.choice.history.undo()
    assert target.choice.history.can_undo
    layer.setReadOnly(False)
    assert target.choice.history.undo() == "Undone: accept a."


@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon"])
def test_single_and_multi_layers_in_memory(target: Any, shapes: Any, add_layer: Any, kind: str) -> None:
    layer = add_layer(f"{kind}?crs=EPSG:32631", "class", "object_id")
    target.choice.set_layer(layer)
    two = QgsGeometry.collectGeometry([shapes.rectangle(0, 0), shapes.rectangle(30, 0, 5, 5)])
    target.accept(two, "a")
    assert layer.featureCount() == (2 if kind == "Polygon" else 1)
    target.choice.history.undo()
    assert layer.featureCount() == 0
    target.choice.history.redo()
    assert sum(feature.geometry().area() for feature in layer.getFeatures()) == pytest.approx(125.0)
    target.choice.do(lambda layer: editing.cut(layer, shapes.line((5, -1), (5, 11)), crs=shapes.utm))
    n = layer.featureCount()
    target.choice.history.undo()
    assert layer.featureCount() == n - 1
