"""What the tool draws on the canvas: mask, preview, prompts, and what is being dragged or drawn."""

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
_SCRIBBLE_PX = 5
_LINE, _POLYGON = QgsWkbTypes.GeometryType.LineGeometry, QgsWkbTypes.GeometryType.PolygonGeometry


def _polygon_band(canvas: QgsMapCanvas, *, width_px: int, style: Qt.PenStyle) -> QgsRubberBand:
    band = QgsRubberBand(canvas, _POLYGON)
    band.setWidth(width_px)
    band.setLineStyle(style)
    return band


def _line_band(canvas: QgsMapCanvas, colour: QColor) -> QgsRubberBand:
    band = QgsRubberBand(canvas, _LINE)
    band.setWidth(_SCRIBBLE_PX)
    band.setStrokeColor(colour)
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
        # As large as a letter, so that it suits the resolution of the screen.
        self._size_px = canvas.fontMetrics().height()
        self.updatePosition()

    def updatePosition(self) -> None:
        """Follow the map."""
        self.setPos(self.toCanvasCoordinates(self._point))

    def boundingRect(self) -> QRectF:
        """Return the area that is painted, around the point."""
        half = self._size_px / 2 + 2
        return QRectF(-half, -half, 2 * half, 2 * half)

    def paint(self, painter: QPainter | None, *_unused: object) -> None:
        """Draw the dot."""
        if painter is None:
            return
        half = self._size_px / 2
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
        self._band.reset(_POLYGON)

    def dispose(self) -> None:
        """Leave the canvas."""
        _remove(self._canvas, self._band)


class Drawing:
    """The line or the polygon that is being drawn; points in the CRS of the canvas."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        self._canvas = canvas
        self._line = _line_band(canvas, _FOREGROUND)
        self._polygon = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.DashLine)
        _paint(self._polygon, _BOX, fill_alpha=20)

    def show_line(self, points: Iterable[QgsPointXY], *, is_foreground: bool) -> None:
        """Draw a line in the colour of what it means."""
        self._line.setStrokeColor(_FOREGROUND if is_foreground else _BACKGROUND)
        self._line.setToGeometry(QgsGeometry.fromPolylineXY(list(points)), None)

    def show_polygon(self, points: Iterable[QgsPointXY]) -> None:
        """Draw a polygon, which is not closed yet; one of two vertices is a line."""
        self._polygon.reset(_POLYGON)
        for point in points:
            self._polygon.addPoint(point)

    def hide(self) -> None:
        """Draw nothing."""
        self._line.reset(_LINE)
        self._polygon.reset(_POLYGON)

    def dispose(self) -> None:
        """Leave the canvas."""
        _remove(self._canvas, self._line)
        _remove(self._canvas, self._polygon)


class Overlay:
    """Mask, preview and prompts of one object, and a polygon that is pointed at, in the CRS of the canvas."""

    def __init__(self, canvas: QgsMapCanvas) -> None:
        self._canvas = canvas
        self._mask = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.SolidLine)
        self._hover = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.DotLine)
        self._box = _polygon_band(canvas, width_px=2, style=Qt.PenStyle.SolidLine)
        self._outline = _polygon_band(canvas, width_px=1, style=Qt.PenStyle.DashLine)
        self._highlight = _polygon_band(canvas, width_px=3, style=Qt.PenStyle.SolidLine)
        for band in (self._box, self._outline, self._highlight):
            _paint(band, _BOX, fill_alpha=0)
        self._lines = {True: _line_band(canvas, _FOREGROUND), False: _line_band(canvas, _BACKGROUND)}
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

    @property
    def scribbles(self) -> tuple[QgsGeometry, QgsGeometry]:
        """The lines that are drawn: foreground, background."""
        return self._lines[True].asGeometry(), self._lines[False].asGeometry()

    @property
    def outline(self) -> QgsGeometry:
        """The polygon to start from that is drawn."""
        return self._outline.asGeometry()

    @property
    def highlight(self) -> QgsGeometry:
        """The existing polygon that is marked."""
        return self._highlight.asGeometry()

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

    def show_prompts(
        self,
        points: Iterable[tuple[QgsPointXY, bool]],
        *,
        box: QgsGeometry | None = None,
        scribbles: Iterable[tuple[QgsGeometry, bool]] = (),
        outline: QgsGeometry | None = None,
    ) -> None:
        """Draw points and lines, each with whether it is foreground, the box, and the polygon to start from."""
        for marker in self._markers:
            _remove(self._canvas, marker)
        self._markers = [PromptMarker(self._canvas, point, is_foreground=fg) for point, fg in points]
        for band in self._lines.values():
            band.reset(_LINE)
        for line, is_foreground in scribbles:
            self._lines[is_foreground].addGeometry(line, None)
        _show(self._box, box)
        _show(self._outline, outline)

    def show_highlight(self, geometry: QgsGeometry | None) -> None:
        """Mark an existing polygon, None for none."""
        _show(self._highlight, geometry)

    def clear(self) -> None:
        """Draw nothing."""
        self.show_mask(None)
        self.show_hover(None)
        self.show_highlight(None)
        self.show_prompts(())

    def dispose(self) -> None:
        """Leave the canvas."""
        self.clear()
        for band in (self._mask, self._hover, self._box, self._outline, self._highlight, *self._lines.values()):
            _remove(self._canvas, band)


def _show(band: QgsRubberBand, geometry: QgsGeometry | None) -> None:
    if geometry is None:
        band.reset(_POLYGON)
    else:
        band.setToGeometry(geometry, None)
