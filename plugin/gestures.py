"""What the gestures of the map tool mean on the raster: prompts, polygons to begin with, lines to cut along."""

from __future__ import annotations

from functools import partial

from qgis.core import QgsGeometry, QgsPointXY
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .click_takers import ClickTakers
from .crs import CanvasToRaster, CoordinateError, transformed
from .feature_sink import state_of
from .field_mapping import field_of
from .modes import Mode
from .polygon_picker import flat_geometry, polygon_under
from .prompt_tool import PromptTool
from .rubber_bands import Overlay
from .scene_control import SceneControl
from .session import FeatureRef, Session
from .target import TargetChoice

# Lines are thinned to about the pixels of the screen before they travel.
_THINNING_PX = 1.5


class Gestures(QObject):
    """Takes clicks, boxes and lines from the canvas to the raster, and to whom they are meant for.

    `prompted` carries a function that lets the session take the prompt; `exemplar_chosen` an outline (WKB, raster's
    CRS) and the class it has; `line_drawn` a line and `polygon_clicked` a point (and whether the left button clicked
    there) in the CRS of the canvas, in the modes for edits; `notified` a sentence for the message bar.
    """

    prompted = pyqtSignal(object)
    exemplar_chosen = pyqtSignal(object, str)
    line_drawn = pyqtSignal(object)
    polygon_clicked = pyqtSignal(QgsPointXY, bool)
    notified = pyqtSignal(str)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        *,
        tool: PromptTool,
        overlay: Overlay,
        scene: SceneControl,
        target: TargetChoice,
        session: Session,
        click_takers: ClickTakers,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._tool, self._overlay = canvas, tool, overlay
        self._scene, self._target, self._session, self._click_takers = scene, target, session, click_takers
        tool.clicked.connect(self._on_clicked)
        tool.boxed.connect(self._on_boxed)
        tool.scribbled.connect(self._on_scribbled)
        tool.outlined.connect(self._on_outlined)

    def mapping(self) -> CanvasToRaster | None:
        """Return the way from the canvas to the raster; None, and a sentence, where no raster is chosen."""
        if self._scene.mapping is None:
            self.notified.emit("No raster is chosen; choose one in the SegAdapt panel.")
        return self._scene.mapping

    def pick(self, point: QgsPointXY, *, is_quiet: bool = False) -> None:
        """Begin with the polygon at a point, or make it an exemplar; `is_quiet`: no sentence where there is none."""
        mapping = self._scene.mapping
        if mapping is None or (self._tool.chosen_mode is Mode.REFINE and not self._session.is_empty):
            return
        found = polygon_under(self._canvas, point, first=self._target.layer())
        if found is None:
            if not is_quiet:
                self.notified.emit("No polygon of a visible layer is there; click inside one.")
            return
        layer, feature = found
        try:
            wkb = bytes(flat_geometry(feature, layer, destination=mapping.raster_crs).asWkb())
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        if self._tool.chosen_mode is Mode.EXEMPLAR:
            field = field_of(layer, "class")
            self.exemplar_chosen.emit(wkb, "" if field is None else str(feature[field] or ""))
        else:
            self._overlay.show_highlight(None)
            source = FeatureRef(layer.id(), state_of(layer, feature))
            self.prompted.emit(partial(self._session.set_outline, wkb, source=source))

    def _on_clicked(self, point: QgsPointXY, is_foreground: bool) -> None:
        mode = self._tool.mode
        if mode is Mode.MERGE:
            self.polygon_clicked.emit(point, is_foreground)
            return
        if is_foreground and (mode is Mode.EXEMPLAR or (mode is Mode.REFINE and self._session.is_empty)):
            self.pick(point)
            return
        place = self._on_raster(QgsGeometry.fromPointXY(point))
        if place is None:
            return
        at = (place.asPoint().x(), place.asPoint().y())
        guest = self._click_takers.present
        if guest is not None:
            guest.taker.click(at, is_foreground)
            return
        # A ghost of somewhere else would seem to be the answer.
        if not self._overlay.hover.isEmpty() and not self._overlay.hover.contains(point):
            self._overlay.show_hover(None)
        self.prompted.emit(partial(self._session.add_point, at, is_foreground=is_foreground))

    def _on_boxed(self, corners: list[QgsPointXY]) -> None:
        place = self._on_raster(QgsGeometry.fromPolygonXY([corners]))
        if place is not None:
            box = place.boundingBox()
            bounds = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
            self.prompted.emit(partial(self._session.set_box, bounds))

    def _on_scribbled(self, points: list[QgsPointXY], is_foreground: bool) -> None:
        line = QgsGeometry.fromPolylineXY(points)
        if self._tool.mode is Mode.CUT:
            self.line_drawn.emit(line)
            return
        place = self._on_raster(line.simplify(_THINNING_PX * self._canvas.mapUnitsPerPixel()))
        if place is None:
            return
        scribble = tuple((vertex.x(), vertex.y()) for vertex in place.vertices())
        guest = self._click_takers.present
        if guest is not None:
            guest.taker.scribble(scribble, is_foreground)
        else:
            self.prompted.emit(partial(self._session.add_scribble, scribble, is_foreground=is_foreground))

    def _on_outlined(self, points: list[QgsPointXY]) -> None:
        place = self._on_raster(QgsGeometry.fromPolygonXY([points]))
        if place is None:
            return
        # A figure of eight is two areas.
        place = place.makeValid()
        self.prompted.emit(partial(self._session.set_outline, bytes(place.asWkb())))

    def _on_raster(self, geometry: QgsGeometry) -> QgsGeometry | None:
        """Return what was drawn on the canvas in the raster's CRS; None, and a sentence, where it is not there."""
        mapping = self.mapping()
        if mapping is None:
            return None
        try:
            place = transformed(geometry, self._canvas.mapSettings().destinationCrs(), destination=mapping.raster_crs)
        except CoordinateError as error:
            self.notified.emit(str(error))
            return None
        if self._scene.extent.intersects(place.boundingBox()):
            return place
        self.notified.emit(f"That is outside the raster '{self._scene.name}'; prompt inside it.")
        return None
