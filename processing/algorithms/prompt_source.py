"""Features of a vector layer as prompts in the raster's CRS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsFeature,
    QgsFeatureSource,
    QgsGeometry,
    QgsProcessingContext,
    QgsWkbTypes,
)

from ...models.progress import Progress, raise_if_cancelled
from ..errors import JobError

if TYPE_CHECKING:
    from ..jobs.objects import PromptGeometry

_FOREGROUND = {"1", "true", "foreground", "positive", "fg"}
_BACKGROUND = {"0", "false", "background", "negative", "bg"}
_SUPPORTED = (
    QgsWkbTypes.GeometryType.PointGeometry,
    QgsWkbTypes.GeometryType.LineGeometry,
    QgsWkbTypes.GeometryType.PolygonGeometry,
)


@dataclass(frozen=True)
class PromptFields:
    """Fields that say foreground or background, which object, which class; "" where there is none."""

    foreground: str
    object_id: str
    class_name: str


def read_prompts(
    source: QgsFeatureSource,
    fields: PromptFields,
    *,
    raster_crs: QgsCoordinateReferenceSystem,
    context: QgsProcessingContext,
    progress: Progress,
) -> list[PromptGeometry]:
    """Read every feature as prompts in the raster's CRS, in the order of the layer.

    Features without geometry are left out. Raises `JobError` for an empty layer, a layer without CRS or of
    another type than points, lines or polygons, a value of the foreground field that says neither, and
    coordinates that cannot be transformed.
    """
    kind = source.wkbType()
    if QgsWkbTypes.geometryType(kind) not in _SUPPORTED:
        raise JobError(
            f"'{source.sourceName()}' holds {QgsWkbTypes.displayString(kind)}, which is no prompt; use a layer of "
            "points, lines or polygons."
        )
    if not source.sourceCrs().isValid():
        raise JobError(f"'{source.sourceName()}' has no CRS; assign one with Layer > Set CRS of Layer(s).")
    transform = QgsCoordinateTransform(source.sourceCrs(), raster_crs, context.transformContext())
    prompts: list[PromptGeometry] = []
    for feature in source.getFeatures():
        raise_if_cancelled(progress)
        if feature.hasGeometry() and not feature.geometry().isEmpty():
            prompts.append(_prompt_of(feature, fields, transform))
    if not prompts:
        raise JobError(f"'{source.sourceName()}' has no feature with a geometry; add at least one prompt.")
    return prompts


def parse_foreground(value: Any) -> bool:
    """Read a field value: 1, true, foreground, positive, fg or 0, false, background, negative, bg.

    Raises `JobError` that names any other value.
    """
    text = str(value).strip().lower()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    if value is None or value == NULL or text not in _FOREGROUND | _BACKGROUND:
        raise JobError(
            f"'{value}' in the prompt field is neither foreground nor background; use 1 or 0, true or false, "
            "foreground or background, positive or negative, fg or bg."
        )
    return text in _FOREGROUND


def _prompt_of(feature: QgsFeature, fields: PromptFields, transform: QgsCoordinateTransform) -> PromptGeometry:
    # shapely comes from the environment, which is not there yet when QGIS imports this file.
    import shapely

    from ..jobs.objects import PromptGeometry

    return PromptGeometry(
        geometry=shapely.from_wkb(bytes(straight_geometry(feature, transform, what="prompts").asWkb())),
        object_id=_text(feature, fields.object_id) or str(feature.id()),
        class_name=_text(feature, fields.class_name),
        is_foreground=parse_foreground(feature[fields.foreground]) if fields.foreground else True,
    )


def straight_geometry(feature: QgsFeature, transform: QgsCoordinateTransform, *, what: str) -> QgsGeometry:
    """Geometry of a feature in the raster's CRS, without curves, z and m.

    `what` it is, for the message. Raises `JobError` where it cannot be transformed.
    """
    geometry = QgsGeometry(feature.geometry().constGet().segmentize())
    geometry.get().dropZValue()
    geometry.get().dropMValue()
    try:
        geometry.transform(transform)
    except QgsCsException as error:
        raise JobError(
            f"Feature {feature.id()} cannot be transformed to the raster's CRS ({error}); check the CRS of the {what}."
        ) from error
    return geometry


def _text(feature: QgsFeature, field: str) -> str:
    """Value of a field as text; "" where there is no such field or no value."""
    value = feature[field] if field else None
    return "" if value is None or value == NULL else str(value)
