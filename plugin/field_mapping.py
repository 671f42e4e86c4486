"""Which of our values goes into which field of a layer: found by name, chosen in a dialog, remembered per layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qgis.core import NULL, QgsField, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from ..processing.algorithms.outputs import accepted_fields

_PROPERTY = "segadapt/field_mapping"
# Names in a Shapefile end here.
_DBF_LENGTH = 10

_NOT_STORED, _CONSTANT = "(not stored)", "(constant)"
_TITLES = {
    "object_id": "Id of the object",
    "class": "Class",
    "score": "Score (0 to 1)",
    "stability": "Stability (0 to 1)",
    "area_m2": "Area in m²",
    "perimeter_m": "Perimeter in metres",
    "clicks": "Number of clicks",
    "seconds": "Seconds for the object",
    "model": "Model",
    "adapter": "Adapter",
    "date": "Date and time",
}


@dataclass(frozen=True)
class FieldSource:
    """What a field gets: one of our values by its public name, or a constant; neither is "not stored"."""

    value: str = ""
    constant: str | None = None


FieldMapping = Mapping[str, FieldSource]
"""By name of the layer's field; fields that are not named get nothing from us."""


def mapping_of(layer: QgsVectorLayer) -> FieldMapping:
    """Return what was chosen for a layer, or else what its fields' names say."""
    return _chosen(layer) if is_chosen(layer) else default_mapping(layer)


def is_chosen(layer: QgsVectorLayer) -> bool:
    """Return whether the user chose the mapping of a layer."""
    return bool(layer.customProperty(_PROPERTY))


def default_mapping(layer: QgsVectorLayer) -> dict[str, FieldSource]:
    """Give every field that has the name of one of our values that value; upper and lower case are alike."""
    names = {name.lower(): name for name in accepted_fields().names()}
    cut = {name[:_DBF_LENGTH]: full for name, full in names.items() if len(name) > _DBF_LENGTH}
    found: dict[str, FieldSource] = {}
    for name in _own_fields(layer):
        value = names.get(name.lower()) or cut.get(name.lower())
        if value is not None and FieldSource(value) not in found.values():
            found[name] = FieldSource(value)
    return found


def remember_mapping(layer: QgsVectorLayer, mapping: FieldMapping) -> None:
    """Keep the user's choice with the layer, in the project file."""
    stored = {
        field: {"value": source.value} if source.value else {"constant": source.constant}
        for field, source in mapping.items()
        if source != FieldSource()
    }
    layer.setCustomProperty(_PROPERTY, json.dumps(stored))


def field_of(layer: QgsVectorLayer, value: str) -> str | None:
    """Return the field that one of our values goes into, None where it is not stored."""
    return next((field for field, source in mapping_of(layer).items() if source.value == value), None)


def unstored(layer: QgsVectorLayer) -> list[str]:
    """Return the public names of the values that go into no field although nobody decided that."""
    if is_chosen(layer):
        return []
    stored = {source.value for source in mapping_of(layer).values()}
    return [name for name in accepted_fields().names() if name not in stored]


def attributes_for(layer: QgsVectorLayer, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return our values by the layer's fields, in the fields' types, and a sentence for each that does not fit.

    `values` may be a part of ours; constants are only given where all are asked for (a new object).
    """
    attributes: dict[str, Any] = {}
    problems: list[str] = []
    is_whole = set(values) >= set(accepted_fields().names())
    for name, source in mapping_of(layer).items():
        index = layer.fields().lookupField(name)
        if index < 0:
            continue  # removed since it was chosen
        if source.value in values:
            wanted = values[source.value]
        elif is_whole and source.constant is not None:
            wanted = source.constant
        else:
            continue
        field = layer.fields().at(index)
        try:
            attributes[name] = converted(wanted, field)
        except ValueError:
            problems.append(
                f"Field '{name}' of '{layer.name()}' is {field.typeName()} and cannot hold '{wanted}'; "
                "choose another field for it in the field mapping."
            )
    return attributes, problems


def converted(value: Any, field: QgsField) -> Any:
    """Return a value in a field's type. Raises `ValueError` where it has no such value."""
    if value is None or value == NULL:
        return None
    if isinstance(value, str) and 0 < field.length() < len(value) and not field.isNumeric():
        raise ValueError(value)  # cut short, it would be another value
    as_field = QgsField(field)
    result = _compatible(value, as_field)
    if value not in ("", None) and (result is None or result == NULL):
        raise ValueError(value)
    return result


def _compatible(value: Any, field: QgsField) -> Any:
    # In place in C++; in Python it returns the converted value, or raises ValueError.
    return field.convertCompatible(value)


def _own_fields(layer: QgsVectorLayer) -> list[str]:
    """Fields that are written to: no primary key, no join, no expression."""
    provider = layer.dataProvider()
    keys = set(provider.pkAttributeIndexes()) if provider is not None else set()
    return [
        field.name()
        for index, field in enumerate(layer.fields())
        if index not in keys and provider is not None and provider.fieldNameIndex(field.name()) >= 0
    ]


def _chosen(layer: QgsVectorLayer) -> dict[str, FieldSource]:
    known = set(accepted_fields().names())
    try:
        stored = json.loads(str(layer.customProperty(_PROPERTY)))
        return {
            str(field): FieldSource(str(source.get("value") or ""), source.get("constant"))
            for field, source in stored.items()
            if source.get("value", "") in known or source.get("constant") is not None
        }
    except (ValueError, AttributeError):
        return default_mapping(layer)


class FieldMappingDialog(QDialog):
    """One row per field of the layer: one of our values, a constant, or nothing. `accept` remembers it."""

    def __init__(self, layer: QgsVectorLayer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Fields of '{layer.name()}'")
        self._layer = layer
        self.combos: dict[str, QComboBox] = {}
        self.constants: dict[str, QLineEdit] = {}
        hint = QLabel(
            "What each field of the layer gets from an accepted object. Fields not stored keep their default."
        )
        hint.setWordWrap(True)
        rows = QWidget()
        form = QFormLayout(rows)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name in _own_fields(layer):
            form.addRow(f"{name} ({layer.fields().field(name).typeName()})", self._row(name))
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(rows)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok
            | QDialogButtonBox.StandardButton.Cancel
            | QDialogButtonBox.StandardButton.RestoreDefaults
        )
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        buttons.button(QDialogButtonBox.StandardButton.RestoreDefaults).clicked.connect(self.show_default)
        column = QVBoxLayout(self)
        column.addWidget(hint)
        column.addWidget(scroll, 1)
        column.addWidget(buttons)
        self._show(mapping_of(layer))

    def mapping(self) -> dict[str, FieldSource]:
        """Return what is chosen."""
        chosen = {}
        for name, combo in self.combos.items():
            if combo.currentText() == _CONSTANT:
                chosen[name] = FieldSource(constant=self.constants[name].text())
            elif combo.currentData():
                chosen[name] = FieldSource(combo.currentData())
        return chosen

    def accept(self) -> None:
        """Remember the choice and close."""
        remember_mapping(self._layer, self.mapping())
        super().accept()

    def show_default(self) -> None:
        """Show what the names of the fields say."""
        self._show(default_mapping(self._layer))

    def _row(self, name: str) -> QHBoxLayout:
        combo, constant = QComboBox(), QLineEdit()
        combo.addItem(_NOT_STORED, "")
        for value in accepted_fields().names():
            combo.addItem(_TITLES[value], value)
        combo.addItem(_CONSTANT, "")
        constant.setPlaceholderText("the same for every object")
        constant.setVisible(False)
        combo.currentTextChanged.connect(lambda text: constant.setVisible(text == _CONSTANT))
        row = QHBoxLayout()
        row.addWidget(combo, 1)
        row.addWidget(constant, 1)
        self.combos[name], self.constants[name] = combo, constant
        return row

    def _show(self, mapping: FieldMapping) -> None:
        for name, combo in self.combos.items():
            source = mapping.get(name, FieldSource())
            if source.constant is not None:
                combo.setCurrentText(_CONSTANT)
                self.constants[name].setText(source.constant)
            else:
                combo.setCurrentIndex(max(0, combo.findData(source.value, Qt.ItemDataRole.UserRole)))
