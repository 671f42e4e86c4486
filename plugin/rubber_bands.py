"""What the tool draws on the canvas: mask, preview, prompts, and the box that is being dragged."""

from __future__ import annotations

from collections.abc import Iterable

from qgis.core import QgsGeometry, QgsPointXY, QgsWkbTypes
from qgis.gui import QgsMapCanvas, QgsMapCanvasItem, QgsRubberBand
from qgis.PyQt.QtCore import QPointF, QRectF, Qt
from qgis.PyQt.QtGui import QBrush, QColor, QPainter, QPen

# Readable on imagery, and told apart by red-green blindness through the sign inside.
_FOREGROUND, _BACKGROUND = QColor("#1b9e3f"), QColor("#d7263d")
_BOX = QColor("#ffd400")
_MASK_ALPHA, _HOVER_ALPHA = 95, 45
_MARKER_PX = 16


def _polygon_band(canvas: QgsMapCanvas, *, width_px: int, style: Qt.PenStyle) -> QgsRubberBand:
    band = QgsRubberBand(canvas, QgsWkbTypes.GeometryType.PolygonGeometry)
    band.setWidth(width_px)
    band.setLineStyle(style)
    return band


def _paint(band: QgsRubberBand, colour: QColor, *, fill_alpha: int) -> None:
    fill = QColor(colour)
    fill.setAlpha(fill_alpha)
    band.setFillColor(fill)
    band.setStrokeColor(colour)


def _remove(canvas: QgsMapCanvas, item: QgsMapCanvasItem) -> None:
    # The scene is gone already where QGIS closes.
    if canvas.scene() is not None:
        canvas.scene().removeItem(item)


class PromptMarker(QgsMapCanvasItem):
    """A dot with a plus or a minus in it, of the same size at every scale."""

    def __init__(self, canvas: QgsMapCanvas, point: QgsPointXY, *, is_foreground: bool) -> None:
        super().__init__(canvas)
        self._point, self._is_foreground = point, is_foreground
        self.updatePosition()

    def updatePosition(self) -> None:
        """Follow the map."""
        self.setPos(self.toCanvasCoordinates(self._point))

    def boundingRect(self) -> QRectF:
        """Return the area that is painted, around the point."""
        half = _MARKER_PX / 2 + 2
        return QRectF(-half, -half, 2 * half, 2 * half)

    def paint(self, painter: QPainter | None, *_unused: object) -> None:
        """Draw the dot."""
        if painter is None:
            return
        half = _MARKER_PX / 2
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor("white"), 2))
        painter.setBrush(QBrush(_FOREGROUND if self._is_foreground else _BACKGROUND))
        painter.drawEllipse(QPointF(0, 0), half, half)
        painter.drawLine(QPointF(-half / 2, 0), QPointF(half / 2, 0))
        if self._is_foreground:
            painter.drawLine(QPointF(0, -half / 2), QPointF(0, half / 2))


class DragBox:
    """The rectangle under the mouse while a box is dragged."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        self._canvas = canvas
        self._band = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.DashLine)
        _paint(self._band, _BOX, fill_alpha=20)

    def show(self, corners: Iterable[QgsPointXY]) -> None:
        """Draw the rectangle; corners in the CRS of the canvas."""
        self._band.setToGeometry(QgsGeometry.fromPolygonXY([list(corners)]), None)

    def hide(self) -> None:
        """Draw nothing."""
        self._band.reset(QgsWkbTypes.GeometryType.PolygonGeometry)

    def dispose(self) -> None:
        """Leave the canvas."""
        _remove(self._canvas, self._band)


class Overlay:
    """Mask, preview and prompts of one object. All geometries are in the CRS of the canvas."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        self._canvas = canvas
        self._mask = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.SolidLine)
        self._hover = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.DotLine)
        self._box = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.SolidLine)
        _paint(self._box, _BOX, fill_alpha=0)
        self._markers: list[PromptMarker] = []
        self.set_colour(QColor("#00b8d9"))

    @property
    def n_markers(self) -> int:
        """Number of points that are drawn."""
        return len(self._markers)

    @property
    def mask(self) -> QgsGeometry:
        """The mask that is drawn."""
        return self._mask.asGeometry()

    @property
    def hover(self) -> QgsGeometry:
        """The preview that is drawn."""
        return self._hover.asGeometry()

    def set_colour(self, colour: QColor) -> None:
        """Draw mask and preview in the colour of the class."""
        _paint(self._mask, colour, fill_alpha=_MASK_ALPHA)
        _paint(self._hover, colour, fill_alpha=_HOVER_ALPHA)

    def show_mask(self, geometry: QgsGeometry | None) -> None:
        """Draw the mask, None for nothing."""
        _show(self._mask, geometry)

    def show_hover(self, geometry: QgsGeometry | None) -> None:
        """Draw the preview, None for nothing."""
        _show(self._hover, geometry)

    def show_prompts(self, points: Iterable[tuple[QgsPointXY, bool]], *, box: QgsGeometry | None) -> None:
        """Draw points, each with whether it is foreground, and the box."""
        for marker in self._markers:
            _remove(self._canvas, marker)
        self._markers = [PromptMarker(self._canvas, point, is_foreground=fg) for point, fg in points]
        _show(self._box, box)

    def clear(self) -> None:
        """Draw nothing."""
        self.show_mask(None)
        self.show_hover(None)
        self.show_prompts((), box=None)

    def dispose(self) -> None:
        """Leave the canvas."""
        self.clear()
        for band in (self._mask, self._hover, self._box):
            _remove(self._canvas, band)


def _show(band: QgsRubberBand, geometry: QgsGeometry | None) -> None:
    if geometry is None:
        band.reset(QgsWkbTypes.GeometryType.PolygonGeometry)
    else:
        band.setToGeometry(geometry, None)
