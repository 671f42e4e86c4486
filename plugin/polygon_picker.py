"""Existing features: the polygon under the mouse, and what is selected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureRequest,
    QgsGeometry,
    QgsMapLayer,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.gui import QgsMapCanvas

from .crs import CoordinateError, transformed


def polygon_under(
    canvas: QgsMapCanvas, point: QgsPointXY, *, first: QgsVectorLayer | None
) -> tuple[QgsVectorLayer, QgsFeature] | None:
    """Return the smallest polygon at a point of the canvas and its layer, None where there is none.

    Looked for in the layer `first`, then in the visible polygon layers from top to bottom.
    """
    layers = [layer for layer in canvas.layers() if _is_polygon_layer(layer) and layer is not first]
    for layer in ([first] if first is not None else []) + layers:
        try:
            place = transformed(
                QgsGeometry.fromPointXY(point), canvas.mapSettings().destinationCrs(), destination=layer.crs()
            )
        except CoordinateError:
            continue
        request = QgsFeatureRequest(QgsRectangle(place.asPoint(), place.asPoint()).buffered(1e-9))
        hits = [feature for feature in layer.getFeatures(request) if feature.geometry().contains(place)]
        if hits:
            return layer, min(hits, key=lambda feature: float(feature.geometry().area()))
    return None


def flat_geometry(
    feature: QgsFeature, layer: QgsVectorLayer, *, destination: QgsCoordinateReferenceSystem
) -> QgsGeometry:
    """Return a feature's geometry in another CRS, without curves, heights and measures. Raises `CoordinateError`."""
    geometry = QgsGeometry(feature.geometry())
    if QgsWkbTypes.isCurvedType(geometry.wkbType()):
        geometry = QgsGeometry(geometry.constGet().segmentize())
    if not geometry.isNull():
        geometry.get().dropZValue()
        geometry.get().dropMValue()
    return transformed(geometry, layer.crs(), destination=destination)


def selected_features(canvas: QgsMapCanvas) -> Iterator[tuple[QgsVectorLayer, QgsFeature]]:
    """Yield the selected features of the current layer, or of all vector layers where it has none selected."""
    current = canvas.currentLayer()
    layers: Iterable[QgsMapLayer] = QgsProject.instance().mapLayers().values()
    if isinstance(current, QgsVectorLayer) and current.selectedFeatureCount():
        layers = [current]
    for layer in layers:
        if isinstance(layer, QgsVectorLayer):
            yield from ((layer, feature) for feature in layer.getSelectedFeatures() if feature.hasGeometry())


def _is_polygon_layer(layer: QgsMapLayer) -> bool:
    return isinstance(layer, QgsVectorLayer) and (
        layer.geometryType() == QgsWkbTypes.GeometryType.PolygonGeometry and layer.isValid()
    )
