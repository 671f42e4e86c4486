"""Edits of what was accepted, with the map tool: cut, merge, subtract, another class, delete; one undo step each."""

from __future__ import annotations

from collections.abc import Callable

from qgis.core import QgsGeometry, QgsPointXY, QgsVectorLayer
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .classes import Classes
from .crs import CoordinateError
from .editing import cut, feature_at, merge, remove, set_class, subtract, with_touching
from .feature_sink import EditStep, SinkError
from .modes import Mode
from .prompt_control import PromptControl
from .target import TargetChoice

_NO_LAYER = "There is no target layer yet; accept an object first, or choose a layer."


class EditControl(QObject):
    """`edited` carries what was done, `notified` a sentence for the message bar."""

    edited = pyqtSignal(str)
    notified = pyqtSignal(str)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        *,
        prompts: PromptControl,
        target: TargetChoice,
        classes: Classes,
        actions: Actions,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._prompts, self._target, self._classes = canvas, prompts, target, classes
        self._first_of_merge: int | None = None
        prompts.gestures.line_drawn.connect(self._on_line_drawn)
        prompts.gestures.polygon_clicked.connect(self._on_polygon_clicked)
        prompts.tool.mode_changed.connect(self._on_mode_changed)
        actions.add(
            "set_class",
            "Give the polygon this class",
            self.set_class,
            tip="Give the selected polygons of the target layer, or the one under the mouse, the chosen class",
            shortcut="K",
            group="Edit",
            icon="set_class",
        )
        actions.add(
            "subtract",
            "Subtract from polygons",
            self.subtract,
            tip="Take the mask away from the polygons of the target layer that it overlaps",
            shortcut="D",
            group="Edit",
            icon="subtract",
        )
        actions.add(
            "delete",
            "Delete polygon",
            self.delete,
            tip="Delete the selected polygons of the target layer, or the one under the mouse",
            shortcut="Del",
            group="Edit",
            icon="delete",
        )

    def set_class(self) -> None:
        """Give polygons the chosen class."""
        name = self._classes.current
        self._edit(lambda layer: self._on_pointed_at(layer, lambda ids: set_class(layer, ids, name)))

    def delete(self) -> None:
        """Delete polygons."""
        self._edit(lambda layer: self._on_pointed_at(layer, lambda ids: remove(layer, ids)))

    def subtract(self) -> None:
        """Take the mask away from the polygons that it overlaps; the object in the making ends with that."""
        outline, crs = self._prompts.outline(), self._prompts.raster_crs
        if outline is None or crs is None:
            self.notified.emit("There is no mask to subtract; click on an object first.")
        elif self._prompts.session.is_waiting:
            self.notified.emit("The answer to the last prompt is still to come; subtract when the mask has changed.")
        elif self._edit(lambda layer: subtract(layer, outline, crs=crs)):
            self._prompts.reset()

    def _on_line_drawn(self, line: QgsGeometry) -> None:
        self._edit(lambda layer: cut(layer, line, crs=self._canvas.mapSettings().destinationCrs()))

    def _on_mode_changed(self, mode: Mode) -> None:
        """Merge what is selected at once; without a selection, clicks say what to merge."""
        self._first_of_merge = None
        layer = self._target.layer()
        if mode is Mode.MERGE and layer is not None and layer.selectedFeatureCount() > 1:
            self._edit(lambda layer: merge(layer, layer.selectedFeatureIds()))

    def _on_polygon_clicked(self, point: QgsPointXY, is_left: bool) -> None:
        """Merge the second polygon with the first; the right button merges one with all that touch it."""
        layer = self._target.layer()
        crs = self._canvas.mapSettings().destinationCrs()
        feature_id = None if layer is None else feature_at(layer, point, crs=crs)
        if layer is None or feature_id is None:
            self.notified.emit(_NO_LAYER if layer is None else f"No polygon of '{layer.name()}' is there.")
        elif not is_left:
            self._edit(lambda layer: merge(layer, with_touching(layer, feature_id)))
        elif self._first_of_merge is None or self._first_of_merge == feature_id:
            self._first_of_merge = feature_id
            self.edited.emit("Now click on the polygon to merge it with.")
        else:
            both, self._first_of_merge = [self._first_of_merge, feature_id], None
            self._edit(lambda layer: merge(layer, both))

    def _on_pointed_at(self, layer: QgsVectorLayer, edit: Callable[[list[int]], EditStep]) -> EditStep:
        """Edit what is selected, else what is under the mouse. Raises `SinkError` where there is neither."""
        feature_ids = list(layer.selectedFeatureIds())
        mouse_at = self._prompts.mouse_at
        if not feature_ids and mouse_at is not None:
            found = feature_at(layer, mouse_at, crs=self._canvas.mapSettings().destinationCrs())
            feature_ids = [] if found is None else [found]
        if not feature_ids:
            raise SinkError(f"No polygon of '{layer.name()}' is selected or under the mouse.")
        return edit(feature_ids)

    def _edit(self, edit: Callable[[QgsVectorLayer], EditStep | None]) -> bool:
        try:
            sentence = self._target.do(edit)
        except (SinkError, CoordinateError) as error:
            self.notified.emit(str(error))
            return False
        self._prompts.redraw()
        self.edited.emit(sentence)
        return True
