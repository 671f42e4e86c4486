"""The only place that transforms coordinates between canvas, raster and target layer."""

from __future__ import annotations

import math
from collections.abc import Iterable

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRectangle,
)
from qgis.gui import QgsMapCanvas

from .exchange import Bounds, Point


class CoordinateError(RuntimeError):
    """Coordinates that have no counterpart in the other CRS; the message is one sentence with the remedy."""


class CanvasToRaster:
    """Between the canvas and the CRS of one raster, whatever the canvas shows at the moment."""

    def __init__(self, canvas: QgsMapCanvas, raster_crs: QgsCoordinateReferenceSystem) -> None:
        self._canvas, self.raster_crs = canvas, raster_crs

    def point(self, canvas_point: QgsPointXY) -> Point:
        """Return a point of the canvas in the raster's CRS. Raises `CoordinateError`."""
        point = self._transformed(QgsGeometry.fromPointXY(canvas_point)).asPoint()
        return point.x(), point.y()

    def box(self, canvas_corners: Iterable[QgsPointXY]) -> Bounds:
        """Return the bounds in the raster's CRS of a polygon on the canvas. Raises `CoordinateError`.

        On a rotated canvas the rectangle that was dragged is oblique on the map; an object that fills it
        fills the bounds of its four corners.
        """
        return _bounds(self._transformed(_polygon(canvas_corners)).boundingBox())

    def view(self) -> Bounds:
        """Return the bounds in the raster's CRS of what the user sees. Raises `CoordinateError`."""
        corners = [QgsPointXY(corner) for corner in self._canvas.mapSettings().visiblePolygon()]
        outline = _polygon(corners)
        # The edge of the view is curved in another CRS: its corners alone would not contain it.
        return _bounds(self._transformed(outline.densifyByCount(8)).boundingBox())

    def centre(self) -> QgsPointXY:
        """Return the middle of the view in the raster's CRS. Raises `CoordinateError`."""
        return self._transformed(QgsGeometry.fromPointXY(self._canvas.center())).asPoint()

    def units_per_px(self) -> float:
        """Return how many map units of the raster's CRS a pixel of the screen has there. Raises `CoordinateError`."""
        centre, side = self._canvas.center(), self._canvas.mapUnitsPerPixel()
        pixel = QgsGeometry.fromRect(QgsRectangle.fromCenterAndSize(centre, side, side))
        return math.sqrt(self._transformed(pixel).area())

    def to_canvas(self, geometry: QgsGeometry) -> QgsGeometry:
        """Return a geometry of the raster's CRS in that of the canvas. Raises `CoordinateError`."""
        return transformed(geometry, self.raster_crs, destination=self._canvas_crs())

    def point_to_canvas(self, point: Point) -> QgsPointXY:
        """Return a point of the raster's CRS in that of the canvas. Raises `CoordinateError`."""
        return self.to_canvas(QgsGeometry.fromPointXY(QgsPointXY(*point))).asPoint()

    def _transformed(self, geometry: QgsGeometry) -> QgsGeometry:
        return transformed(geometry, self._canvas_crs(), destination=self.raster_crs)

    def _canvas_crs(self) -> QgsCoordinateReferenceSystem:
        return self._canvas.mapSettings().destinationCrs()


def transformed(
    geometry: QgsGeometry, source: QgsCoordinateReferenceSystem, *, destination: QgsCoordinateReferenceSystem
) -> QgsGeometry:
    """Return a copy in another CRS, unchanged where one of the two is unknown. Raises `CoordinateError`."""
    copy = QgsGeometry(geometry)
    transform = QgsCoordinateTransform(source, destination, QgsProject.instance())
    try:
        copy.transform(transform)
    except QgsCsException as error:
        raise _no_counterpart(source, destination) from error
    bounds = copy.boundingBox()
    if not copy.isEmpty() and not bounds.isFinite():
        raise _no_counterpart(source, destination)
    return copy


def geometry_from_wkb(wkb: bytes) -> QgsGeometry:
    """Return the geometry that the worker or the target sent as WKB."""
    geometry = QgsGeometry()
    geometry.fromWkb(wkb)
    return geometry


def _no_counterpart(source: QgsCoordinateReferenceSystem, destination: QgsCoordinateReferenceSystem) -> CoordinateError:
    return CoordinateError(
        f"This place in {source.authid()} has no coordinates in {destination.authid()}; zoom to the "
        "raster or choose its CRS for the project."
    )


def _polygon(corners: Iterable[QgsPointXY]) -> QgsGeometry:
    return QgsGeometry.fromPolygonXY([list(corners)])


def _bounds(rectangle: QgsRectangle) -> Bounds:
    return rectangle.xMinimum(), rectangle.yMinimum(), rectangle.xMaximum(), rectangle.yMaximum()
