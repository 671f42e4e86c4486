"""Where accepted objects go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsField,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QPoint, QPointF, Qt, QVariant
from qgis.PyQt.QtGui import QWheelEvent
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QLineEdit
from segadapt.plugin.crs import CoordinateError, transformed
from segadapt.plugin.dock import NEW_GEOPACKAGE, NEW_SCRATCH
from segadapt.plugin.editing import SegmentedFeature, add_object
from segadapt.plugin.feature_sink import SinkError
from segadapt.plugin.field_mapping import unstored
from segadapt.plugin.target import AUTOSAVED
from segadapt.plugin.target_layers import new_geopackage_layer, new_scratch_layer

UTM = QgsCoordinateReferenceSystem("EPSG:32631")
DEGREES = QgsCoordinateReferenceSystem("EPSG:4326")
TWO_PARTS = (
    "MultiPolygon(((590000 5750000, 590010 5750000, 590010 5750010, 590000 5750010, 590000 5750000),"
    "(590002 5750002, 590002 5750004, 590004 5750004, 590004 5750002, 590002 5750002)),"
    "((590020 5750000, 590030 5750000, 590030 5750010, 590020 5750010, 590020 5750000)))"
)


@pytest.fixture
def found() -> SegmentedFeature:
    wkb = bytes(QgsGeometry.fromWkt(TWO_PARTS).asWkb())
    return SegmentedFeature(
        object_id="abc", class_name="tank", wkb=wkb, score=0.8, stability=0.9, area_m2=196.0, perimeter_m=88.0,
        n_clicks=2, seconds=3.5, model="mobile_sam", adapter="eo", date="2026-11-22T10:00:00+00:00",
    )  # fmt: skip


def memory_layer(definition: str, *fields: str) -> QgsVectorLayer:
    layer = QgsVectorLayer(definition, "mine", "memory")
    layer.dataProvider().addAttributes([QgsField(name, QVariant.String) for name in fields])
    layer.updateFields()
    return layer


def pick(gui: Any, text: str) -> None:
    """Choose an entry of the target combo box, as a user does."""
    combo = gui.dock.target_combo
    index = combo.findText(text)
    assert index >= 0, f"{text} is not offered"
    combo.setCurrentIndex(index)
    combo.activated.emit(index)


def accept_one(gui: Any, at: Any) -> None:
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.controller.prompts.command(next(iter(c for c in gui.dock.buttons if c.name == "ACCEPT")))


def test_scratch_layer_has_the_public_fields(found: SegmentedFeature, qgis_new_project: None) -> None:
    layer = new_scratch_layer(UTM, name="objects")
    assert layer.fields().names() == [
        "object_id", "class", "score", "stability", "area_m2", "perimeter_m", "clicks", "seconds", "model", "adapter",
        "date",
    ]  # fmt: skip
    assert unstored(layer) == []
    assert add_object(layer, found, crs=UTM).note == ""
    (feature,) = layer.getFeatures()
    assert feature.attributes() == [
        "abc", "tank", 0.8, 0.9, 196.0, 88.0, 2, 3.5, "mobile_sam", "eo", "2026-11-22T10:00:00+00:00",
    ]  # fmt: skip
    assert feature.geometry().area() == pytest.approx(196.0)  # the hole is kept


def test_single_polygon_layer_gets_one_feature_per_part_in_one_command(found: SegmentedFeature) -> None:
    layer = memory_layer("Polygon?crs=EPSG:32631", "class", "object_id")
    layer.startEditing()
    add_object(layer, found, crs=UTM)
    assert sorted(feature.geometry().area() for feature in layer.getFeatures()) == pytest.approx([96.0, 100.0])
    assert {feature["object_id"] for feature in layer.getFeatures()} == {"abc"}
    assert layer.undoStack().count() == 1
    layer.undoStack().undo()
    assert layer.featureCount() == 0


def test_fields_that_a_layer_lacks_are_named_and_its_own_are_left_alone(found: SegmentedFeature) -> None:
    layer = memory_layer("MultiPolygon?crs=EPSG:32631", "CLASS", "owner")
    add_object(layer, found, crs=UTM)
    assert unstored(layer) == [name for name in found.values() if name != "class"]
    assert layer.fields().names() == ["CLASS", "owner"]
    (feature,) = layer.getFeatures()
    assert feature["CLASS"] == "tank"
    assert not feature["owner"]


def test_layer_in_another_crs(found: SegmentedFeature) -> None:
    layer = memory_layer("MultiPolygon?crs=EPSG:4326", "class")
    add_object(layer, found, crs=UTM)
    (feature,) = layer.getFeatures()
    assert feature.geometry().boundingBox().width() < 0.001
    back = transformed(feature.geometry(), layer.crs(), destination=UTM)
    assert back.area() == pytest.approx(196.0, rel=1e-3)


def test_a_layer_that_refuses_is_left_as_it_was(found: SegmentedFeature) -> None:
    layer = memory_layer("MultiPolygon?crs=EPSG:32631", "class")
    layer.setReadOnly(True)
    with pytest.raises(SinkError, match="cannot be edited; choose another"):
        add_object(layer, found, crs=UTM)
    assert layer.featureCount() == 0
    assert not layer.isEditable()


def test_geopackage_is_made_and_saved(tmp_path: Path, found: SegmentedFeature) -> None:
    layer = new_geopackage_layer(tmp_path / "Gebäude 1", UTM)
    add_object(layer, found, crs=UTM)
    assert not layer.isEditable()
    again = QgsVectorLayer(str(tmp_path / "Gebäude 1.gpkg"), "again", "ogr")
    (feature,) = again.getFeatures()
    assert feature["class"] == "tank"
    assert again.crs().authid() == "EPSG:32631"


def test_an_existing_geopackage_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "work.gpkg"
    path.write_bytes(b"somebody's work")
    with pytest.raises(SinkError, match="exists already"):
        new_geopackage_layer(path, UTM)
    assert path.read_bytes() == b"somebody's work"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"Cannot create .*missing.*choose a folder"):
        new_geopackage_layer(tmp_path / "missing" / "a.gpkg", UTM)


def test_coordinates_without_counterpart_are_a_sentence() -> None:
    nowhere = QgsGeometry.fromPointXY(QgsPointXY(1e30, 1e30))
    with pytest.raises(CoordinateError, match=r"EPSG:32631 has no coordinates in EPSG:4326; zoom"):
        transformed(nowhere, UTM, destination=DEGREES)


def test_dock_offers_polygon_layers_only(gui: Any) -> None:
    for kind in ("Polygon", "Point"):
        layer = memory_layer(f"{kind}?crs=EPSG:32631", "class")
        layer.setName(kind)
        QgsProject.instance().addMapLayer(layer)
    combo = gui.dock.target_combo
    offered = {combo.itemText(i) for i in range(combo.count())}
    assert offered == {"Polygon", AUTOSAVED, NEW_SCRATCH, NEW_GEOPACKAGE}
    assert combo.currentText() == AUTOSAVED  # adding a layer does not change where objects go


def test_the_wheel_scrolls_the_dock_and_changes_nothing(gui: Any) -> None:
    layer = memory_layer("Polygon?crs=EPSG:32631", "class")
    QgsProject.instance().addMapLayer(layer)
    gui.start()
    gui.window.resize(1000, 300)
    for title in ("Shape", "Find similar"):
        gui.dock.open_page(title)
    panel = gui.dock.settings_panel
    panel.setCollapsed(False)
    fields = (gui.dock.target_combo, gui.dock.model_combo, panel.cache_gb, gui.controller.similar.panel.above_slider)
    before = [_value(field) for field in fields]
    for field in fields:
        _turn(field)
    assert [_value(field) for field in fields] == before
    assert gui.dock._scroll.verticalScrollBar().value() > 0
    panel.cache_gb.setFocus()
    _turn(panel.cache_gb)  # asked for
    assert _value(panel.cache_gb) != before[2]


def _value(field: Any) -> Any:
    return field.currentText() if hasattr(field, "currentText") else field.value()


def _turn(field: Any) -> None:
    """One notch of the wheel towards the user, over the middle of a field."""
    place = field.rect().center()
    event = QWheelEvent(
        QPointF(place), QPointF(field.mapToGlobal(place)), QPoint(), QPoint(0, -120),
        Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QCoreApplication.sendEvent(field, event)


def test_a_class_chosen_with_the_mouse_leaves_the_keys_to_the_canvas(gui: Any, at: Any) -> None:
    gui.start()
    for name in ("building", "road"):
        gui.controller.classes.add(name)
    gui.click(at(300, 400))
    gui.wait_for_answer()
    names = gui.controller.class_panel.list
    place = names.visualItemRect(names.item(2)).center()
    QTest.mouseClick(names.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    assert gui.controller.classes.current == "road"
    gui.wait_for(gui.canvas.hasFocus)
    # A double click still opens the name.
    QTest.mouseDClick(names.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    QTest.mouseRelease(names.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    (editor,) = names.findChildren(QLineEdit)
    assert editor.hasFocus()


def test_objects_go_to_a_chosen_layer(gui: Any, at: Any) -> None:
    layer = memory_layer("Polygon?crs=EPSG:4326", "class")
    QgsProject.instance().addMapLayer(layer)
    gui.start()
    pick(gui, "mine")
    style = layer.renderer().type()
    accept_one(gui, at)
    assert layer.featureCount() == 1
    assert len(QgsProject.instance().mapLayers()) == 2
    assert layer.renderer().type() == style
    lacking = "object_id, score, stability, area_m2, perimeter_m, clicks, seconds, model, adapter, date"
    assert gui.notices == [f"'mine' has no field {lacking}; these values are not stored there."]
    accept_one(gui, at)
    assert len(gui.notices) == 1  # said once


def test_removing_the_target_layer_does_not_send_objects_to_another(gui: Any, at: Any) -> None:
    other = memory_layer("Polygon?crs=EPSG:32631", "class")
    other.setName("somebody's parcels")
    QgsProject.instance().addMapLayer(other)
    gui.start()
    accept_one(gui, at)
    QgsProject.instance().removeMapLayer(gui.controller.target.layer().id())
    assert gui.dock.target_combo.currentText() == AUTOSAVED
    accept_one(gui, at)
    assert other.featureCount() == 0
    assert gui.controller.target.layer().featureCount() == 1


def test_choosing_a_new_geopackage(gui: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gui.start()
    monkeypatch.setattr(gui.controller.target, "_ask_path", lambda: tmp_path / "objects.gpkg")
    pick(gui, NEW_GEOPACKAGE)
    layer = gui.controller.target.layer()
    assert gui.dock.target_combo.currentLayer() is layer
    accept_one(gui, at)
    assert QgsVectorLayer(str(tmp_path / "objects.gpkg"), "again", "ogr").featureCount() == 1


@pytest.mark.parametrize("answer", ["cancelled", "exists"])
def test_no_geopackage_keeps_the_earlier_target(
    gui: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    layer = memory_layer("Polygon?crs=EPSG:32631", "class")
    QgsProject.instance().addMapLayer(layer)
    gui.start()
    pick(gui, "mine")
    path = tmp_path / "there.gpkg"
    path.touch()
    monkeypatch.setattr(gui.controller.target, "_ask_path", lambda: None if answer == "cancelled" else path)
    pick(gui, NEW_GEOPACKAGE)
    assert gui.dock.target_combo.currentLayer() is layer
    assert gui.controller.target.layer() is layer
    assert len(gui.notices) == (answer == "exists")


def test_geopackage_before_a_raster_is_chosen_is_refused(
    gui: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gui.controller.target, "_ask_path", lambda: tmp_path / "objects.gpkg")
    pick(gui, NEW_GEOPACKAGE)
    assert gui.notices == ["Choose a raster first: a new GeoPackage takes its CRS."]
    assert not (tmp_path / "objects.gpkg").exists()
