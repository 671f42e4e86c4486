"""The class map on the canvas: a semi-transparent picture, right at any rotation and in any CRS of the canvas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qgis.core import QgsPointXY
from qgis.gui import QgsMapCanvas, QgsMapCanvasItem
from qgis.PyQt.QtCore import QPointF, QRectF
from qgis.PyQt.QtGui import QImage, QPainter, QPolygonF, QTransform, qRgba

_ALPHA = 120
# The picture is drawn in so many pieces a side, each straight: in another CRS the whole is bent.
PIECES = 4


class ClassMapItem(QgsMapCanvasItem):
    """Draws a picture on a net of points of the map; hidden without one."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._canvas = canvas
        self._image: QImage | None = None
        self._net: list[list[QgsPointXY]] = []
        self.setZValue(40)  # over the map, under what is encoded and what is being drawn
        self.hide()

    def show_labels(
        self, labels: Any, *, colours: Mapping[int, tuple[int, int, int]], net: Sequence[Sequence[QgsPointXY]]
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
        self.show()
        self.update()

    def clear(self) -> None:
        """Draw nothing."""
        self._image, self._net = None, []
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
        """Draw the pieces."""
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
