"""Our values in somebody else's fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsField, QgsProject, QgsVectorFileWriter, QgsVectorLayer
from qgis.PyQt.QtCore import QVariant
from qgis.PyQt.QtWidgets import QDialogButtonBox
from segadapt.plugin.feature_sink import SinkError
from segadapt.plugin.field_mapping import (
    FieldMappingDialog,
    FieldSource,
    default_mapping,
    field_of,
    mapping_of,
    remember_mapping,
    unstored,
)


@pytest.fixture
def parcels(add_layer: Any) -> QgsVectorLayer:
    layer = add_layer("Polygon?crs=EPSG:32631", "Kind", "AREA_M2", "owner")
    layer.dataProvider().addAttributes(
        [QgsField("n", QVariant.Int), QgsField("code", QVariant.String, "text", 4), QgsField("day", QVariant.Date)]
    )
    layer.updateFields()
    return layer


def choose(dialog: FieldMappingDialog, field: str, text: str) -> None:
    combo = dialog.combos[field]
    index = combo.findText(text)
    assert index >= 0
    combo.setCurrentIndex(index)


def test_names_decide_first(parcels: QgsVectorLayer) -> None:
    assert default_mapping(parcels) == {"AREA_M2": FieldSource("area_m2")}
    assert field_of(parcels, "class") is None
    assert "class" in unstored(parcels)


def test_the_dialog_is_filled_by_name_and_remembers(parcels: QgsVectorLayer, target: Any, shapes: Any) -> None:
    dialog = FieldMappingDialog(parcels)
    assert list(dialog.combos) == ["Kind", "AREA_M2", "owner", "n", "code", "day"]
    assert dialog.combos["AREA_M2"].currentText() == "Area in m²"
    assert dialog.combos["Kind"].currentText() == "(not stored)"
    choose(dialog, "Kind", "Class")
    choose(dialog, "AREA_M2", "(not stored)")
    choose(dialog, "owner", "(constant)")
    dialog.constants["owner"].setText("me")
    choose(dialog, "n", "Number of clicks")
    choose(dialog, "day", "Date and time")
    dialog.accept()
    again = FieldMappingDialog(parcels)
    assert again.mapping() == dialog.mapping()
    assert again.constants["owner"].text() == "me"
    target.choice.set_layer(parcels)
    target.accept(shapes.rectangle(0, 0), "roof", n_clicks=7)
    (feature,) = parcels.getFeatures()
    assert feature["Kind"] == "roof"
    assert feature["owner"] == "me"
    assert feature["n"] == 7
    assert feature["day"].year() >= 2024
    assert not feature["AREA_M2"]
    assert target.problems == []  # decided, so nothing is missing


def test_the_target_opens_its_dialog(target: Any, parcels: QgsVectorLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    target.choice.ask_fields()
    assert target.problems == ["There is no target layer yet; a new one gets all fields."]

    def fill(dialog: FieldMappingDialog) -> None:
        choose(dialog, "Kind", "Class")
        dialog.accept()

    monkeypatch.setattr(FieldMappingDialog, "exec", fill)
    target.choice.set_layer(parcels)
    target.choice.ask_fields()
    assert field_of(parcels, "class") == "Kind"


def test_a_cancelled_dialog_changes_nothing(parcels: QgsVectorLayer) -> None:
    dialog = FieldMappingDialog(parcels)
    choose(dialog, "Kind", "Class")
    dialog.reject()
    assert field_of(parcels, "class") is None


def test_the_dialog_goes_back_to_the_names(parcels: QgsVectorLayer) -> None:
    remember_mapping(parcels, {"Kind": FieldSource("class")})
    dialog = FieldMappingDialog(parcels)
    buttons = dialog.findChild(QDialogButtonBox)
    buttons.button(QDialogButtonBox.StandardButton.RestoreDefaults).click()
    assert dialog.mapping() == default_mapping(parcels)


def test_a_value_that_does_not_fit_is_left_out_and_said(parcels: QgsVectorLayer, target: Any, shapes: Any) -> None:
    remember_mapping(parcels, {"n": FieldSource("class"), "code": FieldSource("model"), "Kind": FieldSource("class")})
    target.choice.set_layer(parcels)
    target.accept(shapes.rectangle(0, 0), "roof")
    target.accept(shapes.rectangle(20, 0), "roof")
    first, _ = parcels.getFeatures()
    assert first["Kind"] == "roof"
    assert not first["n"]
    assert first["code"] == "fake"
    assert len(target.problems) == 1
    assert "Field 'n' of 'mine' is integer and cannot hold 'roof'" in target.problems[0]


def test_the_project_keeps_the_mapping(parcels: QgsVectorLayer, tmp_path: Path) -> None:
    remember_mapping(parcels, {"owner": FieldSource("class"), "code": FieldSource(constant="x")})
    project = QgsProject.instance()
    assert project.write(str(tmp_path / "a.qgz"))
    layer_id = parcels.id()
    assert project.read(str(tmp_path / "a.qgz"))
    assert mapping_of(project.mapLayer(layer_id)) == {
        "owner": FieldSource("class"), "code": FieldSource(constant="x"),
    }  # fmt: skip


@pytest.mark.parametrize("stored", ["{", "[1]", '{"owner": 3}', '{"owner": {"value": "nonsense"}}'])
def test_a_spoilt_mapping_is_no_harm(parcels: QgsVectorLayer, stored: str) -> None:
    parcels.setCustomProperty("segadapt/field_mapping", stored)
    assert set(mapping_of(parcels)) <= {"AREA_M2"}


def test_a_field_that_is_gone_is_passed_over(parcels: QgsVectorLayer, target: Any, shapes: Any) -> None:
    remember_mapping(parcels, {"Kind": FieldSource("class"), "owner": FieldSource("model")})
    parcels.dataProvider().deleteAttributes([parcels.fields().lookupField("Kind")])
    parcels.updateFields()
    target.choice.set_layer(parcels)
    target.accept(shapes.rectangle(0, 0), "roof")
    (feature,) = parcels.getFeatures()
    assert feature["owner"] == "fake"


def test_names_of_a_shapefile_are_cut_short(add_layer: Any, tmp_path: Path, target: Any, shapes: Any) -> None:
    mine = add_layer("Polygon?crs=EPSG:32631", *shapes.names)
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "ESRI Shapefile"
    context = QgsProject.instance().transformContext()
    written = QgsVectorFileWriter.writeAsVectorFormatV3(mine, str(tmp_path / "a.shp"), context, options)
    assert written[0] == QgsVectorFileWriter.WriterError.NoError
    layer = QgsVectorLayer(str(tmp_path / "a.shp"), "shapefile", "ogr")
    QgsProject.instance().addMapLayer(layer)
    target.choice.set_layer(layer)
    target.accept(shapes.rectangle(0, 0), "roof")
    assert target.problems == []
    (feature,) = target.saved()
    assert feature["class"] == "roof"
    assert float(feature["perimeter_"]) == pytest.approx(40, rel=1e-3)


def test_class_of_a_layer_without_such_a_field(target: Any, parcels: QgsVectorLayer, shapes: Any) -> None:
    from segadapt.plugin import editing

    target.choice.set_layer(parcels)
    target.accept(shapes.rectangle(0, 0), "roof")
    (feature,) = parcels.getFeatures()
    with pytest.raises(SinkError, match=r"No field of 'mine' holds the class; choose one in the field mapping\."):
        target.choice.do(lambda layer: editing.set_class(layer, [feature.id()], "tree"))
