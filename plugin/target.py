"""Where accepted objects go: an existing layer, a scratch layer made when needed, or a new GeoPackage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from qgis.core import QgsCoordinateReferenceSystem, QgsMapLayer, QgsProject, QgsVectorLayer
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .class_style import OWN_LAYER, show_class
from .crs import CoordinateError
from .dock import NEW_GEOPACKAGE, NEW_SCRATCH
from .exchange import Answer
from .feature_sink import SegmentedFeature, SinkError, add_object, new_geopackage_layer, new_scratch_layer

AskPath = Callable[[], "Path | None"]


class TargetChoice(QObject):
    """Keeps the combo box and the target layer together. `failed` carries a sentence."""

    failed = pyqtSignal(str)

    def __init__(self, combo: QgsMapLayerComboBox, *, ask_path: AskPath, parent: QObject) -> None:
        super().__init__(parent)
        self._combo, self._ask_path = combo, ask_path
        self._crs = QgsCoordinateReferenceSystem()
        self._layer_id = ""
        self._warned: set[str] = set()
        self._choose_text(NEW_SCRATCH)
        # Only what the user picks counts: when a layer goes, the combo box takes another one by itself.
        combo.activated.connect(self._on_activated)
        QgsProject.instance().layersRemoved.connect(self._show_choice)

    def dispose(self) -> None:
        """Let go of the project."""
        QgsProject.instance().layersRemoved.disconnect(self._show_choice)

    def set_raster_crs(self, crs: QgsCoordinateReferenceSystem) -> None:
        """Set the CRS of new layers and of the masks to come."""
        self._crs = crs

    def layer(self) -> QgsVectorLayer | None:
        """Return the layer that objects go to, None where it will be made at the first object."""
        layer = QgsProject.instance().mapLayer(self._layer_id)
        return layer if isinstance(layer, QgsVectorLayer) else None

    def accept(self, answer: Answer, *, class_name: str, colour: QColor) -> QgsVectorLayer:
        """Store a mask and return the layer it went to. Raises `SinkError` and `CoordinateError`."""
        layer = self.layer() or self._adopt(new_scratch_layer(self._crs, name="Segmented objects"))
        found = SegmentedFeature(
            object_id=uuid4().hex[:12],
            class_name=class_name,
            wkb=answer.wkb,
            score=answer.score,
            stability=answer.stability,
            area_m2=answer.area_m2,
            model=answer.model,
        )
        missing = add_object(layer, found, crs=self._crs)
        show_class(layer, class_name, colour=colour)
        if missing and layer.id() not in self._warned:
            self._warned.add(layer.id())
            self.failed.emit(f"'{layer.name()}' has no field {', '.join(missing)}; these values are not stored there.")
        return layer

    def _on_activated(self, _index: int) -> None:
        layer: QgsMapLayer | None = self._combo.currentLayer()
        if layer is not None:
            self._layer_id = layer.id()
        elif self._combo.currentText() == NEW_GEOPACKAGE:
            self._make_geopackage()
        else:
            self._layer_id = ""

    def _make_geopackage(self) -> None:
        if not self._crs.isValid():
            self.failed.emit("Choose a raster first: a new GeoPackage takes its CRS.")
            self._show_choice()
            return
        path = self._ask_path()
        try:
            if path is not None:
                self._adopt(new_geopackage_layer(path, self._crs))
                return
        except (SinkError, CoordinateError) as error:
            self.failed.emit(str(error))
        self._show_choice()

    def _adopt(self, layer: QgsVectorLayer) -> QgsVectorLayer:
        layer.setCustomProperty(OWN_LAYER, True)
        QgsProject.instance().addMapLayer(layer)
        self._layer_id = layer.id()
        self._show_choice()
        return layer

    def _show_choice(self, *_layer_ids: object) -> None:
        layer = self.layer()
        if layer is not None:
            self._combo.setLayer(layer)
        else:
            self._choose_text(NEW_SCRATCH)

    def _choose_text(self, text: str) -> None:
        self._combo.setCurrentIndex(self._combo.findText(text))
