"""Real layers and a real target choice, without dock and worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from qgis.core import QgsCoordinateReferenceSystem, QgsFeature, QgsField, QgsGeometry, QgsProject, QgsVectorLayer
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt.QtCore import QObject, QVariant
from qgis.PyQt.QtGui import QColor
from segadapt.plugin.classes import Classes
from segadapt.plugin.exchange import Answer
from segadapt.plugin.target import TargetChoice
from segadapt.plugin.target_layers import new_geopackage_layer
from segadapt.processing.algorithms.outputs import accepted_fields

UTM = QgsCoordinateReferenceSystem("EPSG:32631")
EAST, NORTH = 590_000.0, 5_750_000.0


def polygon(*corners: tuple[float, float], holes: tuple[tuple[tuple[float, float], ...], ...] = ()) -> QgsGeometry:
    """A multipolygon from corners in metres from the south-west corner of the test area."""
    rings = []
    for ring in (corners, *holes):
        closed = (*ring, ring[0])
        rings.append("(" + ",".join(f"{EAST + x} {NORTH + y}" for x, y in closed) + ")")
    return QgsGeometry.fromWkt(f"MultiPolygon(({','.join(rings)}))")


def rectangle(x: float, y: float, width: float = 10.0, height: float = 10.0) -> QgsGeometry:
    return polygon((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def line(*points: tuple[float, float]) -> QgsGeometry:
    return QgsGeometry.fromWkt("LineString(" + ",".join(f"{EAST + x} {NORTH + y}" for x, y in points) + ")")


class Target:
    """A `TargetChoice` and what it said."""

    def __init__(self) -> None:
        self.combo = QgsMapLayerComboBox()
        self.owner = QObject()
        self.classes = Classes()
        self.choice = TargetChoice(self.combo, ask_path=lambda: None, parent=self.owner, classes=self.classes)
        self.choice.set_raster_crs(UTM)
        self.problems: list[str] = []
        self.news: list[str] = []
        self.choice.failed.connect(self.problems.append)
        self.choice.informed.connect(self.news.append)

    def accept(self, mask: QgsGeometry, class_name: str = "roof", **options: Any) -> QgsVectorLayer:
        answer = Answer(1, bytes(mask.asWkb()), 0.9, 0.95, mask.area(), "fake")
        colour = self.classes.colour(class_name)
        self.classes.add(class_name)
        return self.choice.accept(answer, class_name=class_name, colour=QColor(colour), **options)

    @property
    def layer(self) -> QgsVectorLayer:
        layer = self.choice.layer()
        assert layer is not None
        return layer

    def saved(self) -> list[QgsFeature]:
        """What somebody else reads from the file."""
        is_scratch = self.layer.providerType() == "memory"
        again = self.layer if is_scratch else QgsVectorLayer(self.layer.source(), "again", "ogr")
        assert again.isValid()
        return sorted(again.getFeatures(), key=lambda feature: feature.id())

    def areas(self) -> list[float]:
        return sorted(round(feature.geometry().area(), 3) for feature in self.saved())

    def pick(self, text: str) -> None:
        """Choose an entry of the combo box, as a user does."""
        index = self.combo.findText(text)
        assert index >= 0
        self.combo.setCurrentIndex(index)
        self.combo.activated.emit(index)

    def dispose(self) -> None:
        self.choice.dispose()
        self.classes.dispose()


@pytest.fixture
def target(qgis_new_project: None) -> Iterator[Target]:
    target = Target()
    yield target
    target.dispose()


@pytest.fixture
def add_layer(qgis_new_project: None) -> Callable[..., QgsVectorLayer]:
    """A layer of the user's in memory, in the project: `add_layer("Polygon?crs=EPSG:32631", "class", ...)`."""

    def add(definition: str = "MultiPolygon?crs=EPSG:32631", *fields: str, name: str = "mine") -> QgsVectorLayer:
        layer = QgsVectorLayer(definition, name, "memory")
        assert layer.isValid()
        layer.dataProvider().addAttributes([QgsField(field, QVariant.String) for field in fields])
        layer.updateFields()
        QgsProject.instance().addMapLayer(layer)
        return layer

    return add


@pytest.fixture
def gpkg(tmp_path: Any, qgis_new_project: None) -> Callable[..., QgsVectorLayer]:
    """A GeoPackage of ours with objects: `gpkg((rectangle(0, 0), "roof"), ...)`, in the project."""

    def make(*objects: tuple[QgsGeometry, str], name: str = "objects") -> QgsVectorLayer:
        layer = new_geopackage_layer(tmp_path / name, UTM)
        features = []
        for number, (geometry, class_name) in enumerate(objects):
            feature = QgsFeature(layer.fields())
            feature.setGeometry(geometry)
            feature["class"], feature["object_id"] = class_name, f"o{number}"
            feature["clicks"], feature["seconds"] = number + 1, 2.5
            features.append(feature)
        assert layer.dataProvider().addFeatures(features)[0]
        QgsProject.instance().addMapLayer(layer)
        return layer

    return make


@pytest.fixture
def shapes() -> Any:
    """The functions above, for tests: importlib mode has no sibling imports."""

    class Shapes:
        utm, east, north = UTM, EAST, NORTH
        polygon, rectangle, line = staticmethod(polygon), staticmethod(rectangle), staticmethod(line)
        names = accepted_fields().names()

    return Shapes
