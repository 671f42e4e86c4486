"""A map overlay that shows what of the view is encoded: where a click is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qgis.core import QgsGeometry, QgsPointXY
from qgis.gui import QgsMapCanvas, QgsMapCanvasItem
from qgis.PyQt.QtCore import QObject, QPointF, QRectF, Qt, QTimer
from qgis.PyQt.QtGui import QColor, QFontMetricsF, QPainter, QPen, QPolygonF, QTextOption

from .crs import CanvasToRaster, CoordinateError
from .exchange import Coverage
from .scene_control import SceneControl

# A GPU encodes faster than anybody reads.
_UPDATE_MS = 200
# Between the corners of a window, whose sides are curves in another CRS.
_POINTS_PER_SIDE = 4
_ENCODED, _MISSING, _MISSING_EDGE = QColor(0, 150, 110), QColor(235, 235, 235), QColor(40, 40, 40, 160)
_TINT_ALPHA = 22
_BADGE, _BADGE_TEXT = QColor(20, 20, 20, 170), QColor(255, 255, 255)
_MARGIN_PX, _PADDING_PX = 10.0, 6.0
# Below this every view has a window of its own, and the outlines would only hide the image.
_LEAST_WINDOW_PX = 12.0


class CoverageItem(QgsMapCanvasItem):
    """Draws windows (rings in map units of the canvas, and whether each is encoded) and a badge."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._canvas = canvas
        self._rings: list[tuple[list[QgsPointXY], bool]] = []
        self.badge = ""
        self.setZValue(50)  # over the map, under what is being drawn
        self.hide()

    def show_windows(self, rings: Sequence[tuple[list[QgsPointXY], bool]], *, badge: str) -> None:
        """Draw these windows in place of the ones before; hidden without any."""
        self._rings, self.badge = list(rings), badge
        self.setVisible(bool(rings))
        self.update()

    def boundingRect(self) -> QRectF:
        """The whole canvas, and what of it is dragged in."""
        width, height = float(self._canvas.width()), float(self._canvas.height())
        return QRectF(-width, -height, 3 * width, 3 * height)

    def updatePosition(self) -> None:
        """Draw again when the map has moved."""
        self.update()

    def paint(self, painter: QPainter, _option: Any = None, _widget: Any = None) -> None:
        """Draw the windows that can be told apart, then the badge."""
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        # What is still to come below what is done, where their sides meet.
        for ring, is_encoded in sorted(self._rings, key=lambda item: item[1]):
            polygon = QPolygonF([self.toCanvasCoordinates(point) for point in ring])
            if polygon.boundingRect().width() >= _LEAST_WINDOW_PX:
                _paint_window(painter, polygon, is_encoded=is_encoded)
        self._paint_badge(painter)
        painter.restore()

    def _paint_badge(self, painter: QPainter) -> None:
        size = QFontMetricsF(painter.font()).size(0, self.badge)
        box = QRectF(0, 0, size.width() + 2 * _PADDING_PX, size.height() + _PADDING_PX)
        box.moveBottomRight(QPointF(self._canvas.width() - _MARGIN_PX, self._canvas.height() - _MARGIN_PX))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(_BADGE)
        painter.drawRoundedRect(box, _PADDING_PX, _PADDING_PX)
        painter.setPen(_BADGE_TEXT)
        painter.drawText(box, self.badge, QTextOption(Qt.AlignmentFlag.AlignCenter))


class CacheOverlay(QObject):
    """Follows a scene and shows on the canvas which windows of the view are encoded, while it is switched on."""

    def __init__(self, canvas: QgsMapCanvas, scene: SceneControl, parent: QObject) -> None:
        super().__init__(parent)
        self._canvas, self._scene = canvas, scene
        self.item = CoverageItem(canvas)
        self._coverage: Coverage | None = None
        self._is_shown = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_UPDATE_MS)
        self._timer.timeout.connect(self._redraw)
        scene.covered.connect(self._on_covered)
        canvas.destinationCrsChanged.connect(self._redraw)

    def set_shown(self, is_shown: bool) -> None:
        """Show the overlay or not; the slot of its checkable action."""
        self._is_shown = is_shown
        self._redraw()

    def dispose(self) -> None:
        """Leave the canvas."""
        self._timer.stop()
        self._scene.covered.disconnect(self._on_covered)
        self._canvas.destinationCrsChanged.disconnect(self._redraw)
        self._canvas.scene().removeItem(self.item)

    def _on_covered(self, coverage: Coverage | None) -> None:
        self._coverage = coverage
        if coverage is None:
            self._redraw()  # what is closed goes at once
        elif self._is_shown and not self._timer.isActive():
            self._timer.start()

    def _redraw(self) -> None:
        mapping, coverage = self._scene.mapping, self._coverage
        if not self._is_shown or mapping is None or coverage is None:
            self.item.show_windows([], badge="")
            return
        try:
            rings = [(_ring(mapping, window.corners_map), window.is_encoded) for window in coverage.windows]
        except CoordinateError:
            rings = []  # whoever clicks there gets the sentence
        self.item.show_windows(rings, badge=f"{coverage.n_encoded} of {len(coverage.windows)} encoded")


def _ring(mapping: CanvasToRaster, corners: Sequence[tuple[float, float]]) -> list[QgsPointXY]:
    """Return the outline of a window, closed, in map units of the canvas."""
    outline = QgsGeometry.fromPolygonXY([[QgsPointXY(*corner) for corner in (*corners, corners[0])]])
    ring = mapping.to_canvas(outline.densifyByCount(_POINTS_PER_SIDE - 1)).asPolygon()[0]
    return [QgsPointXY(point) for point in ring]


def _paint_window(painter: QPainter, polygon: QPolygonF, *, is_encoded: bool) -> None:
    colour = _ENCODED if is_encoded else _MISSING
    tint = QColor(colour)
    tint.setAlpha(_TINT_ALPHA if is_encoded else 0)
    painter.setBrush(tint)
    if not is_encoded:
        # Light and dark in turn: seen on roofs and on trees.
        painter.setPen(QPen(_MISSING_EDGE, 1.0))
        painter.drawPolygon(polygon)
    painter.setPen(QPen(colour, 1.0, Qt.PenStyle.SolidLine if is_encoded else Qt.PenStyle.DashLine))
    painter.drawPolygon(polygon)
