"""The class map on the canvas: a picture, right at any rotation and in any CRS, with what was clicked on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qgis.core import QgsPointXY
from qgis.gui import QgsMapCanvas, QgsMapCanvasItem
from qgis.PyQt.QtCore import QPointF, QRectF
from qgis.PyQt.QtGui import QColor, QImage, QPainter, QPen, QPolygonF, QTransform, qRgba

_ALPHA = 120
# The picture is drawn in so many pieces a side, each straight: in another CRS the whole is bent.
PIECES = 4
_CLICK_RADIUS_PX, _LINE_PX, _EDGE_PX = 3.5, 2.0, 1.5


class DrawnStroke(NamedTuple):
    """A click (one point) or a scribble in the CRS of the canvas, and the colour of its class."""

    points: Sequence[QgsPointXY]
    colour: tuple[int, int, int]


class ClassMapItem(QgsMapCanvasItem):
    """Draws a picture on a net of points of the map, and clicks and scribbles on it; hidden without a picture."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._canvas = canvas
        self._image: QImage | None = None
        self._net: list[list[QgsPointXY]] = []
        self._strokes: tuple[DrawnStroke, ...] = ()
        self.setZValue(40)  # over the map, under what is encoded and what is being drawn
        self.hide()

    def show_labels(
        self,
        labels: Any,
        *,
        colours: Mapping[int, tuple[int, int, int]],
        net: Sequence[Sequence[QgsPointXY]],
        strokes: Sequence[DrawnStroke] = (),
    ) -> None:
        """Draw uint8 `labels` (rows, cols); `net` has `PIECES` + 1 rows of as many points in the CRS of the canvas."""
        rows, cols = labels.shape
        if not rows or not cols:
            self.clear()
            return
        indexed = QImage(labels.tobytes(), cols, rows, cols, QImage.Format.Format_Indexed8)
        table = [qRgba(0, 0, 0, 0)] * 256
        for class_id, (red, green, blue) in colours.items():
            table[class_id] = qRgba(red, green, blue, _ALPHA)
        indexed.setColorTable(table)
        # Converted, and so copied: the bytes above live no longer than this call.
        self._image = indexed.convertToFormat(QImage.Format.Format_ARGB32_Premultiplied)
        self._net = [list(line) for line in net]
        self._strokes = tuple(strokes)
        self.show()
        self.update()

    def clear(self) -> None:
        """Draw nothing."""
        self._image, self._net, self._strokes = None, [], ()
        self.hide()

    @property
    def image(self) -> QImage | None:
        """The picture that is drawn."""
        return self._image

    def boundingRect(self) -> QRectF:
        """The whole canvas, and what of it is dragged in."""
        width, height = float(self._canvas.width()), float(self._canvas.height())
        return QRectF(-width, -height, 3 * width, 3 * height)

    def updatePosition(self) -> None:
        """Draw again when the map has moved."""
        self.update()

    def paint(self, painter: QPainter | None, _option: Any = None, _widget: Any = None) -> None:
        """Draw the pieces, and what was clicked over them."""
        if painter is None or self._image is None:
            return
        image = self._image
        columns = [round(image.width() * k / PIECES) for k in range(PIECES + 1)]
        lines = [round(image.height() * k / PIECES) for k in range(PIECES + 1)]
        places = [[self.toCanvasCoordinates(point) for point in line] for line in self._net]
        for row in range(PIECES):
            for col in range(PIECES):
                source = QRectF(columns[col], lines[row], columns[col + 1] - columns[col], lines[row + 1] - lines[row])
                if source.isEmpty():
                    continue
                corners = [
                    places[row][col], places[row][col + 1], places[row + 1][col + 1], places[row + 1][col]
                ]  # fmt: skip
                self._paint_piece(painter, image, source, corners)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for stroke in self._strokes:
            self._paint_stroke(painter, [self.toCanvasCoordinates(point) for point in stroke.points], stroke.colour)

    @staticmethod
    def _paint_stroke(painter: QPainter, places: Sequence[QPointF], colour: tuple[int, int, int]) -> None:
        """With a white edge, as the map around it has the same colour."""
        if len(places) == 1:
            painter.setPen(QPen(QColor("white"), _EDGE_PX))
            painter.setBrush(QColor(*colour))
            painter.drawEllipse(places[0], _CLICK_RADIUS_PX, _CLICK_RADIUS_PX)
            return
        for pen in (QPen(QColor("white"), _LINE_PX + 2 * _EDGE_PX), QPen(QColor(*colour), _LINE_PX)):
            painter.setPen(pen)
            painter.drawPolyline(QPolygonF(places))

    @staticmethod
    def _paint_piece(painter: QPainter, image: QImage, source: QRectF, corners: list[QPointF]) -> None:
        transform = QTransform()
        quad = QPolygonF([source.topLeft(), source.topRight(), source.bottomRight(), source.bottomLeft()])
        if not QTransform.quadToQuad(quad, QPolygonF(corners), transform):
            return
        painter.save()
        painter.setTransform(transform, True)
        painter.drawImage(source, image, source)
        painter.restore()
