"""Where accepted objects go, and what is done to them there: a GeoPackage that saves itself, or a layer of choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsMapLayer,
    QgsProject,
    QgsUnitTypes,
    QgsVectorLayer,
)
from qgis.gui import QgsMapLayerComboBox
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QWidget

from ..processing.algorithms.outputs import now
from .class_style import OWN_LAYER, show_class, show_classes
from .classes import Classes
from .crs import CoordinateError, geometry_from_wkb
from .dock import AUTOSAVED, NEW_GEOPACKAGE, NEW_SCRATCH
from .editing import SegmentedFeature, add_object, rename_class, set_outline
from .exchange import Answer
from .feature_outlines import measured, moved, near
from .feature_sink import EditStep, SinkError
from .field_mapping import FieldMappingDialog, field_of, unstored
from .history import EditHistory
from .measure_keeper import MeasureKeeper
from .save_places import folders, free_path
from .target_layers import new_geopackage_layer, new_scratch_layer

AskPath = Callable[[], "Path | None"]

_SCOPE, _KEY = "SegAdapt", "target"
_METRES_PER_DEGREE = 111_320.0


class TargetChoice(QObject):
    """Keeps the combo box, the target layer and the history of what was done to it together.

    `failed` carries a sentence about a problem, `informed` one that is good to know (where objects are saved);
    `layer_changed` the layer that objects go to from now on, None where it will be made at the first accept.
    """

    failed = pyqtSignal(str)
    informed = pyqtSignal(str)
    layer_changed = pyqtSignal(object)

    def __init__(
        self, combo: QgsMapLayerComboBox, *, ask_path: AskPath, parent: QObject, classes: Classes | None = None
    ) -> None:
        super().__init__(parent)
        self._combo, self._ask_path, self._classes = combo, ask_path, classes
        self._crs = QgsCoordinateReferenceSystem()
        self._layer_id, self._fresh = "", AUTOSAVED
        self._said: set[tuple[str, str]] = set()
        self._held_id = ""
        self._keepers: dict[str, MeasureKeeper] = {}
        self._renamings: dict[object, tuple[str, str]] = {}
        """Old and new name of a class by the key of the step that renamed it in a layer."""
        self._is_following = False
        self.history = EditHistory(self)
        self.history.failed.connect(self.failed)
        combo.setAdditionalItems([AUTOSAVED, NEW_SCRATCH, NEW_GEOPACKAGE])
        # Only what the user picks counts: when a layer goes, the combo box takes another one by itself.
        combo.activated.connect(self._on_activated)
        project = QgsProject.instance()
        project.layersWillBeRemoved.connect(self._on_going)
        project.layersRemoved.connect(self._on_removed)
        project.readProject.connect(self._restore)
        if classes is not None:
            classes.renamed.connect(self._on_renamed)
            classes.changed.connect(self._show_classes)
            self.history.undone.connect(lambda step: self._follow_renaming(step, is_undo=True))
            self.history.redone.connect(lambda step: self._follow_renaming(step, is_undo=False))
        self._restore()

    def dispose(self) -> None:
        """Let go of the project, of its layers and of the file."""
        self._release()
        for keeper in self._keepers.values():
            keeper.dispose()
        self._keepers.clear()
        project = QgsProject.instance()
        project.layersWillBeRemoved.disconnect(self._on_going)
        project.layersRemoved.disconnect(self._on_removed)
        project.readProject.disconnect(self._restore)
        self.history.dispose()
        if self._classes is not None:
            self._classes.renamed.disconnect(self._on_renamed)
            self._classes.changed.disconnect(self._show_classes)

    def set_raster_crs(self, crs: QgsCoordinateReferenceSystem) -> None:
        """Set the CRS of new layers and of the masks to come."""
        self._crs = crs

    def layer(self) -> QgsVectorLayer | None:
        """Return the layer that objects go to, None where it will be made at the first object."""
        layer = QgsProject.instance().mapLayer(self._layer_id)
        return layer if isinstance(layer, QgsVectorLayer) else None

    def set_layer(self, layer: QgsVectorLayer | None) -> None:
        """Let objects go to a layer of the project; None: to a new GeoPackage, made at the first accept."""
        self._fresh = AUTOSAVED
        self._choose(layer)

    def accept(
        self,
        answer: Answer,
        *,
        class_name: str,
        colour: QColor,
        geometry: QgsGeometry | None = None,
        n_clicks: int = 0,
        seconds: float = 0.0,
        on_top: bool = False,
    ) -> QgsVectorLayer:
        """Store a mask, save it and return the layer it went to. Raises `SinkError` and `CoordinateError`.

        `geometry`: the shaped outline in the raster's CRS instead of the mask. `on_top`: cut it out of the features
        that it overlaps. The step is in `history`.
        """
        outline = geometry if geometry is not None else geometry_from_wkb(answer.wkb)
        _check_left(outline)
        found = self._found(answer, outline, class_name=class_name, n_clicks=n_clicks, seconds=seconds)
        layer = self.layer() or self._new_layer()
        self._hold(layer)
        self._take(layer, add_object(layer, found, crs=self._crs, on_top=on_top))
        if missing := unstored(layer):
            self._say_once(
                layer, f"'{layer.name()}' has no field {', '.join(missing)}; these values are not stored there."
            )
        show_class(layer, class_name, colour=colour)
        return layer

    def correct(self, layer: QgsVectorLayer, feature_id: int, outline: QgsGeometry, *, on_top: bool = False) -> None:
        """Give a feature of any layer another outline (raster's CRS) and save it; the step is in `history`.

        Its attributes stay. `on_top`: cut the outline out of the features of that layer that it overlaps. Raises
        `SinkError` and `CoordinateError`.
        """
        _check_left(outline)
        self._take(layer, set_outline(layer, feature_id, outline, crs=self._crs, on_top=on_top))

    def do(self, edit: Callable[[QgsVectorLayer], EditStep | None]) -> str:
        """Edit the target layer and remember the step, e.g. `do(lambda layer: editing.merge(layer, ids))`.

        Returns what was done, for the status line, "" where there was nothing to do. Raises `SinkError` and
        `CoordinateError`.
        """
        layer = self.layer()
        if layer is None:
            raise SinkError("There is no target layer yet; accept an object first, or choose a layer.")
        self._hold(layer)
        step = edit(layer)
        if step is None:
            return ""
        self._take(layer, step)
        self._show_written(layer, step)
        return f"Done: {step.label}."

    def ask_fields(self, parent: QWidget | None = None) -> None:
        """Let the user choose which field of the target layer gets what; remembered with the layer."""
        layer = self.layer()
        if layer is None:
            self.failed.emit("There is no target layer yet; a new one gets all fields.")
            return
        FieldMappingDialog(layer, parent).exec()

    def neighbours(
        self,
        geometry: QgsGeometry,
        crs: QgsCoordinateReferenceSystem,
        *,
        within_m: float = 0.0,
        but: int | None = None,
    ) -> list[QgsGeometry]:
        """Return the polygons of the target layer that are near a geometry, all in `crs`, for `shaped`.

        `within_m`: how far away they may be, in metres. `but`: id of a feature that is left out (it is refined).
        """
        layer = self.layer()
        if layer is None or geometry.isEmpty():
            return []
        try:
            bounds = moved(geometry, crs, destination=layer.crs()).boundingBox()
            bounds.grow(_in_map_units(within_m, layer.crs(), latitude=bounds.center().y()))
            found = (feature.geometry() for feature in near(layer, bounds) if feature.id() != but)
            return [moved(other, layer.crs(), destination=crs) for other in found]
        except CoordinateError:
            return []  # the accept says so; a preview must not

    def _found(
        self, answer: Answer, outline: QgsGeometry, *, class_name: str, n_clicks: int, seconds: float
    ) -> SegmentedFeature:
        size = measured(outline, self._crs)
        return SegmentedFeature(
            object_id=uuid4().hex[:12],
            class_name=class_name,
            wkb=bytes(outline.asWkb()),
            score=answer.score,
            stability=answer.stability,
            area_m2=size["area_m2"],
            perimeter_m=size["perimeter_m"],
            n_clicks=n_clicks,
            seconds=round(seconds, 1),
            model=answer.model,
            adapter=answer.adapter,
            date=now(),
        )

    def _take(self, layer: QgsVectorLayer, step: EditStep) -> None:
        """Remember a step, and say what the user should know about the layer, once."""
        self.history.push(step)
        if step.note:
            self._say_once(layer, step.note)
        if not step.is_saved:
            self._say_once(
                layer,
                f"'{layer.name()}' is being edited: objects go into its edit session and are safe once you save it.",
            )

    def _show_written(self, layer: QgsVectorLayer, step: EditStep) -> None:
        """Let the layer draw the classes that a step gave in their colours, as an accept does."""
        field = field_of(layer, "class")
        if field is None or self._classes is None:
            return
        given = [change.after.attributes.get(field) for change in step.changes if change.after is not None]
        for name in self._classes.names():
            if name in given:
                show_class(layer, name, colour=self._classes.colour(name))

    def _hold(self, layer: QgsVectorLayer) -> None:
        """Keep a GeoPackage open for writing as long as it is the target.

        Otherwise every accept opens and closes it, which takes four times as long, and switches SQLite's journal while
        the map is drawn from the same file ("unable to open database file").
        """
        if layer.id() == self._held_id:
            return
        self._release()
        is_free = not layer.isEditable() and not layer.readOnly() and not QgsProject.instance().autoTransaction()
        provider = layer.dataProvider()
        if is_free and provider is not None and provider.storageType() == "GPKG" and provider.enterUpdateMode():
            self._held_id = layer.id()

    def _release(self) -> None:
        layer = QgsProject.instance().mapLayer(self._held_id)
        self._held_id = ""
        if isinstance(layer, QgsVectorLayer) and layer.dataProvider() is not None:
            layer.dataProvider().leaveUpdateMode()

    def _say_once(self, layer: QgsVectorLayer, sentence: str) -> None:
        if (layer.id(), sentence) not in self._said:
            self._said.add((layer.id(), sentence))
            self.failed.emit(sentence)

    def _on_activated(self, _index: int) -> None:
        layer: QgsMapLayer | None = self._combo.currentLayer()
        if layer is not None:
            self._choose(layer)
        elif self._combo.currentText() == NEW_GEOPACKAGE:
            self._make_geopackage()
        else:
            self._fresh = self._combo.currentText()
            self._choose(None)

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

    def _new_layer(self) -> QgsVectorLayer:
        if self._fresh == NEW_SCRATCH:
            return self._adopt(new_scratch_layer(self._crs, name="Segmented objects"))
        reasons = []
        for folder in folders():
            path = free_path(folder, f"segadapt_{datetime.now():%Y-%m-%d_%H%M%S}", ".gpkg")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                layer = self._adopt(new_geopackage_layer(path, self._crs))
            except (OSError, SinkError) as error:
                reasons.append(str(error))
                continue
            self.informed.emit(f"Objects are saved in {path} after each accept.")
            return layer
        raise SinkError(f"{reasons[0]} Or take '{NEW_SCRATCH}' as target.")

    def _adopt(self, layer: QgsVectorLayer) -> QgsVectorLayer:
        layer.setCustomProperty(OWN_LAYER, True)
        QgsProject.instance().addMapLayer(layer)
        self._choose(layer)
        return layer

    def _choose(self, layer: QgsMapLayer | None) -> None:
        self._layer_id = "" if layer is None else layer.id()
        if self._layer_id != self._held_id:
            self._release()
        if self._layer_id != QgsProject.instance().readEntry(_SCOPE, _KEY, "")[0]:
            QgsProject.instance().writeEntry(_SCOPE, _KEY, self._layer_id)
        if layer is not None and self._classes is not None:
            self._classes.read_layer(layer)
        if isinstance(layer, QgsVectorLayer):
            self._keep_measures(layer)
        self._show_choice()
        self.layer_changed.emit(layer)

    def _restore(self, *_document: object) -> None:
        """Take the target that the project was saved with."""
        self._said.clear()
        for own in QgsProject.instance().mapLayers().values():
            if own.customProperty(OWN_LAYER) and isinstance(own, QgsVectorLayer):
                self._keep_measures(own)
        layer = QgsProject.instance().mapLayer(QgsProject.instance().readEntry(_SCOPE, _KEY, "")[0])
        self._choose(layer if isinstance(layer, QgsVectorLayer) else None)

    def _keep_measures(self, layer: QgsVectorLayer) -> None:
        """Measure what is edited in a layer from now on, also when objects go to another one later."""
        if layer.id() not in self._keepers:
            self._keepers[layer.id()] = MeasureKeeper(layer, self)

    def _on_going(self, layer_ids: list[str]) -> None:
        for layer_id in layer_ids:
            if (keeper := self._keepers.pop(layer_id, None)) is not None:
                keeper.dispose()  # now: what is not saved of a layer is undone while the layer goes
                keeper.deleteLater()

    def _on_removed(self, layer_ids: list[str]) -> None:
        if self._held_id in layer_ids:
            self._held_id = ""  # a project that is opened again gives its layers the same ids
        if self._layer_id in layer_ids:
            self._layer_id = ""
            self.layer_changed.emit(None)
        self._show_choice()

    def _on_renamed(self, old: str, new: str) -> None:
        if self.layer() is None or self._is_following:
            return
        before = self.history.newest
        try:
            self.do(lambda layer: rename_class(layer, old, new))
        except (SinkError, CoordinateError) as error:
            self.failed.emit(f"The class is called '{new}' now, but its features keep '{old}': {error}")
        if self.history.newest is not None and self.history.newest is not before:
            self._renamings[self.history.newest.key] = old, new

    def _follow_renaming(self, step: EditStep, *, is_undo: bool) -> None:
        """Let a class have the name again that undo or redo has given to its features."""
        if self._classes is None or step.key not in self._renamings:
            return
        old, new = self._renamings[step.key]
        self._is_following = True  # the features are renamed already
        # Where there is a class of that name again, the features are of that.
        self._classes.rename(*((new, old) if is_undo else (old, new)))
        self._is_following = False

    def _show_classes(self) -> None:
        layer = self.layer()
        if layer is not None and self._classes is not None:
            show_classes(layer, {name: self._classes.colour(name) for name in self._classes.names()})

    def _show_choice(self) -> None:
        layer = self.layer()
        if layer is not None:
            self._combo.setLayer(layer)
        else:
            self._combo.setCurrentIndex(self._combo.findText(self._fresh))


def _check_left(outline: QgsGeometry) -> None:
    if outline.isEmpty():
        raise SinkError("Nothing of the object is left with these shape options; change them, or its prompts.")


def _in_map_units(length_m: float, crs: QgsCoordinateReferenceSystem, *, latitude: float) -> float:
    """Return at least so many map units as a length in metres takes, in whatever direction."""
    if crs.isGeographic():
        return length_m / _METRES_PER_DEGREE / max(0.01, math.cos(math.radians(latitude)))
    if not crs.isValid():
        return length_m
    # Twice, for projections that stretch (Web Mercator at 60 degrees).
    return float(2 * length_m * QgsUnitTypes.fromUnitToUnitFactor(QgsUnitTypes.DistanceMeters, crs.mapUnits()))
