"""What goes wrong with a target layer is a sentence, and the object in hand is kept: nothing is stored by halves."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsFeature, QgsProject, QgsVectorLayer
from segadapt.plugin import editing
from segadapt.plugin.crs import CoordinateError
from segadapt.plugin.feature_sink import SinkError
from segadapt.plugin.target import AUTOSAVED


@contextmanager
def no_larger_file(n_bytes: int) -> Iterator[None]:
    """A disk without room: no file of this process grows beyond `n_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_object_and_the_file(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    before = target.saved()[0].attributes()
    many = [(x / 100, 0.0) for x in range(20_000)]
    large = shapes.polygon(*many, (200, 5), (0, 5))
    with no_larger_file(os.path.getsize(layer.source().split("|")[0])), pytest.raises(SinkError) as refused:
        target.accept(large)
    assert "could not be saved" in str(refused.value)
    assert "check space and rights" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not layer.isEditable()
    assert [feature.attributes() for feature in target.saved()] == [before]
    assert layer.featureCount() == 1
    target.accept(large)  # there is room again
    assert len(target.saved()) == 2
    assert target.choice.history.undo() == "Undone: accept roof."
    assert len(target.saved()) == 1


def test_a_full_disk_at_undo_and_merge(target: Any, shapes: Any) -> None:
    many = [(x / 100, 0.0) for x in range(20_000)]
    large = shapes.polygon(*many, (200, 5), (0, 5))
    layer = target.accept(large)
    target.accept(shapes.rectangle(0, 5))
    before = target.areas()
    path = layer.source().split("|")[0]
    fids = [feature.id() for feature in target.saved()]
    with no_larger_file(4096), pytest.raises(SinkError, match=r"could not be saved|cannot be edited"):
        target.choice.do(lambda layer: editing.merge(layer, fids))
    assert target.areas() == before
    with no_larger_file(4096):
        assert "cannot be undone now" in target.choice.history.undo()
    assert target.areas() == before
    target.choice.history.undo()
    assert len(target.saved()) == 1
    assert Path(path).exists()


def test_no_room_for_a_new_geopackage(target: Any, shapes: Any, tmp_path: Path) -> None:
    with no_larger_file(1024), pytest.raises(SinkError, match="Cannot create"):
        target.accept(shapes.rectangle(0, 0))
    assert list((tmp_path / "home" / "objects").iterdir()) == []
    target.accept(shapes.rectangle(0, 0))
    assert len(target.saved()) == 1


def test_a_format_that_is_only_read(target: Any, shapes: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('wkt;class\n"MultiPolygon(((0 0,1 0,1 1,0 0)))";tree\n')
    layer = QgsVectorLayer(f"file://{path}?delimiter=;&wktField=wkt&crs=EPSG:32631", "table", "delimitedtext")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    target.choice.set_layer(layer)
    with pytest.raises(SinkError, match="'table' is read-only and cannot be edited; choose another target layer"):
        target.accept(shapes.rectangle(0, 0))
    assert not target.choice.history.can_undo


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write any file")
def test_a_file_without_the_right_to_write(target: Any, shapes: Any, gpkg: Any) -> None:
    path = Path(gpkg((shapes.rectangle(0, 0), "roof")).source().split("|")[0])
    QgsProject.instance().clear()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        layer = QgsVectorLayer(str(path), "protected", "ogr")
        QgsProject.instance().addMapLayer(layer)
        target.choice.set_layer(layer)
        with pytest.raises(SinkError, match="cannot be edited"):
            target.accept(shapes.rectangle(20, 0))
    finally:
        path.parent.chmod(0o755)


def test_a_file_that_is_gone(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    path = Path(layer.source().split("|")[0])
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(SinkError, match=r"The file .*\.gpkg of 'segadapt_.*' is gone; put it back or choose another"):
        target.accept(shapes.rectangle(20, 0))
    path.with_suffix(".moved").rename(path)
    target.accept(shapes.rectangle(20, 0))
    assert len(target.saved()) == 2


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("no trees here", "check space and rights"),
        # What SQLite says after GDAL has waited for another program, here without the wait.
        ("database is locked", "let the program finish that has it open"),
    ],
)
def test_a_constraint_of_the_file(target: Any, shapes: Any, gpkg: Any, reason: str, remedy: str) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "roof"))
    path = layer.source().split("|")[0]
    QgsProject.instance().clear()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TRIGGER no_trees BEFORE INSERT ON objects WHEN NEW.class = 'tree' "
            f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
        )
    connection.close()
    layer = QgsVectorLayer(path, "strict", "ogr")
    QgsProject.instance().addMapLayer(layer)
    target.choice.set_layer(layer)
    with pytest.raises(SinkError, match=rf"could not be saved .*{reason}\); {remedy}, then accept again"):
        target.accept(shapes.rectangle(20, 0), "tree")
    assert not layer.isEditable()
    target.accept(shapes.rectangle(20, 0), "roof")
    assert len(target.saved()) == 2


@pytest.mark.parametrize(("kind", "name"), [("LineString", "LineString"), ("Point", "Point"), ("NoGeometry", "NoGeom")])
def test_layers_without_polygons_are_refused(target: Any, shapes: Any, add_layer: Any, kind: str, name: str) -> None:
    layer = add_layer("None" if kind == "NoGeometry" else f"{kind}?crs=EPSG:32631", "class")
    target.choice.set_layer(layer)
    with pytest.raises(SinkError, match=rf"'mine' holds {name}.*, not polygons; choose a polygon layer"):
        target.accept(shapes.rectangle(0, 0))
    assert not layer.isEditable()
    assert layer.featureCount() == 0


@pytest.mark.parametrize(
    "definition",
    ["+proj=longlat +R=1737400 +no_defs +type=crs", "+proj=eqc +R=3396190 +units=m +no_defs +type=crs"],
    ids=["moon", "mars"],
)
def test_a_crs_without_transformation_is_refused(
    target: Any, shapes: Any, add_layer: Any, definition: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """QGIS would leave the coordinates as they are: an object far away from where it was clicked."""
    layer = add_layer()
    layer.setCrs(QgsCoordinateReferenceSystem.fromProj(definition))
    target.choice.set_layer(layer)
    with pytest.raises(CoordinateError, match=r"There is no transformation from EPSG:32631 to .*choose a target layer"):
        target.accept(shapes.rectangle(0, 0))
    assert layer.featureCount() == 0
    assert target.choice.neighbours(shapes.rectangle(0, 0), shapes.utm) == []


def test_a_removed_layer_makes_room_for_a_new_file(target: Any, shapes: Any) -> None:
    first = target.accept(shapes.rectangle(0, 0))
    source = first.source()
    changes: list[Any] = []
    target.choice.layer_changed.connect(changes.append)
    QgsProject.instance().removeMapLayer(first.id())
    assert changes == [None]
    assert target.combo.currentText() == AUTOSAVED
    second = target.accept(shapes.rectangle(20, 0))
    assert second.source() != source
    assert len(list(QgsVectorLayer(source, "first", "ogr").getFeatures())) == 1


@pytest.mark.parametrize("is_undone", [False, True])
def test_a_layer_that_is_removed_while_it_is_edited(target: Any, shapes: Any, is_undone: bool) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    layer.startEditing()
    target.accept(shapes.rectangle(20, 0))
    target.accept(shapes.rectangle(40, 0))
    if is_undone:
        target.choice.history.undo()
    QgsProject.instance().removeMapLayer(layer.id())  # an error in a slot fails the test
    assert target.choice.layer() is None
    assert target.accept(shapes.rectangle(60, 0)).featureCount() == 1


def test_a_closed_project(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0))
    QgsProject.instance().clear()
    assert target.choice.layer() is None
    layer = target.accept(shapes.rectangle(20, 0))
    assert QgsProject.instance().mapLayer(layer.id()) is layer


def test_edited_by_somebody_else_in_between(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0))
    other = QgsVectorLayer(layer.source(), "another window", "ogr")
    feature = QgsFeature(other.fields())
    feature.setGeometry(shapes.rectangle(40, 0, 5, 5))
    assert other.dataProvider().addFeatures([feature])[0]
    assert target.choice.neighbours(shapes.rectangle(41, 1, 1, 1), shapes.utm)[0].area() == pytest.approx(25.0)
    target.accept(shapes.rectangle(20, 0))
    assert target.areas() == [25.0, 100.0, 100.0]


def test_nothing_left_after_shaping(target: Any, shapes: Any) -> None:
    from qgis.core import QgsGeometry

    with pytest.raises(SinkError, match="Nothing of the object is left with these shape options"):
        target.accept(shapes.rectangle(0, 0), geometry=QgsGeometry.fromWkt("MultiPolygon EMPTY"))
    assert target.choice.layer() is None
