"""The object in hand as the layer gets it: its mask as the shape options want it, stored or given to a feature."""

from __future__ import annotations

from collections.abc import Callable

from qgis.core import QgsCoordinateReferenceSystem, QgsGeometry, QgsProject, QgsVectorLayer

from .classes import Classes
from .crs import geometry_from_wkb
from .exchange import Answer
from .feature_sink import SinkError, takes_outlines
from .scene_control import SceneControl
from .session import FeatureRef, Session
from .shaping import ShapeOptions, shaped
from .target import TargetChoice


class ShapedObject:
    """Shapes the answer of the session, once for all who draw and store it."""

    def __init__(
        self,
        session: Session,
        *,
        scene: SceneControl,
        target: TargetChoice,
        classes: Classes,
        shape_options: Callable[[], ShapeOptions],
    ) -> None:
        self._session, self._scene, self._target, self._classes = session, scene, target, classes
        self._shape_options = shape_options
        self._shaped_from: tuple[object, ...] = ()
        self._shaped = QgsGeometry()

    def forget_neighbours(self) -> None:
        """Shape anew: other neighbours make another outline."""
        self._shaped_from = ()

    def outline(self) -> QgsGeometry | None:
        """The mask as the shape options want it, in the raster's CRS; None without a mask. Raises nothing."""
        answer, mapping = self._session.shown_answer, self._scene.mapping
        if answer is None or not answer.wkb or mapping is None:
            return None
        options, layer, source = self._shape_options(), self._target.layer(), self._session.step.source
        key = (answer.wkb, options, layer, source)
        if key != self._shaped_from:
            geometry = geometry_from_wkb(answer.wkb)
            neighbours = self._neighbours(geometry, mapping.raster_crs)
            self._shaped = shaped(geometry, mapping.raster_crs, options, neighbours=neighbours)
            self._shaped_from = key
        return QgsGeometry(self._shaped)

    @property
    def is_correction(self) -> bool:
        """True where an accept corrects the polygon that the object was begun with; a read-only one stays as it is."""
        source = self._session.step.source
        layer = None if source is None else QgsProject.instance().mapLayer(source.layer_id)
        return source is not None and not (isinstance(layer, QgsVectorLayer) and not takes_outlines(layer))

    def store(self, answer: Answer, outline: QgsGeometry, *, class_name: str) -> QgsVectorLayer:
        """Add the object to the target layer, or correct the feature that it was begun with; return the layer.

        `class_name` is for a new one; a corrected feature keeps its attributes. Raises `SinkError`, `CoordinateError`.
        """
        source = self._session.step.source
        if source is not None and self.is_correction:
            return self._correct(source, outline)
        return self._target.accept(
            answer,
            class_name=class_name,
            colour=self._classes.colour(class_name),
            geometry=outline,
            n_clicks=self._session.step.n_prompts,
            seconds=self._session.begun.seconds,
            on_top=self._shape_options().new_on_top,
        )

    def _correct(self, source: FeatureRef, outline: QgsGeometry) -> QgsVectorLayer:
        layer = QgsProject.instance().mapLayer(source.layer_id)
        if not isinstance(layer, QgsVectorLayer):
            raise SinkError("The layer of this polygon is not in the project any more; Esc drops the outline.")
        now = self._target.history.unedited(layer, source.state)
        if now is None:
            raise SinkError(
                f"The polygon in '{layer.name()}' was deleted or edited since you picked it; Esc drops this outline, "
                "E begins with what is there now."
            )
        self._target.correct(layer, now.fid, outline, on_top=self._shape_options().new_on_top)
        return layer

    def _neighbours(self, geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem) -> list[QgsGeometry]:
        options, layer, source = self._shape_options(), self._target.layer(), self._session.step.source
        if layer is None or not options.needs_neighbours:
            return []
        own = self._target.history.unedited(layer, source.state) if source and source.layer_id == layer.id() else None
        return self._target.neighbours(geometry, crs, within_m=options.snap_m, but=None if own is None else own.fid)
