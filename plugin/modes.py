"""What the mouse does on the map: modes of the map tool, their words, icons and cursors."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from qgis.PyQt.QtCore import QPointF, Qt
from qgis.PyQt.QtGui import QColor, QCursor, QIcon, QPainter, QPen, QPixmap
from qgis.PyQt.QtWidgets import QWidget

from ..processing.algorithms.resources import icon_path


class ModeText(NamedTuple):
    """Words of a mode: name of its icon too, text of its action, shortcut, tool tip."""

    name: str
    text: str
    shortcut: str
    tip: str


class Mode(Enum):
    """What a click or a drag means; it holds until another is chosen."""

    POINT = ModeText("point", "Click", "P", "Click on the object, right click beside it; drag for a box")
    BOX = ModeText("box", "Box", "B", "Drag a box around the object, or click on two of its corners")
    SCRIBBLE = ModeText(
        "scribble", "Scribble", "S", "Draw freely over the object; with Shift or the right button over what is not it"
    )
    POLYGON = ModeText("polygon", "Polygon", "G", "Click around the object roughly; the outline is where it starts")
    REFINE = ModeText(
        "refine", "Refine polygon", "E", "Correct the existing polygon under the mouse instead of a new one"
    )
    EXEMPLAR = ModeText("exemplar", "Exemplar", "X", "Show an object of which others like it are to be found")
    CUT = ModeText("cut", "Cut", "C", "Draw a line across polygons of the target layer to cut them")
    MERGE = ModeText("merge", "Merge", "M", "Click on polygons of the target layer to make one of them")

    @property
    def draws_freely(self) -> bool:
        """True where dragging draws a line."""
        return self in (Mode.SCRIBBLE, Mode.CUT)

    @property
    def has_preview(self) -> bool:
        """True where the mask of a click is shown under the mouse."""
        return self in (Mode.POINT, Mode.BOX, Mode.SCRIBBLE)


def mode_cursor(mode: Mode, widget: QWidget) -> QCursor:
    """Return the cursor of a mode: a cross, and beside it the icon of the mode. Sharp on the widget's screen."""
    if mode is Mode.POINT:
        return QCursor(Qt.CursorShape.CrossCursor)
    arm, icon_px = widget.fontMetrics().height() // 2, widget.fontMetrics().height()
    side = 2 * arm + icon_px + 2
    ratio = widget.devicePixelRatioF()
    pixmap = QPixmap(round(side * ratio), round(side * ratio))
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    centre = QPointF(arm + 0.5, arm + 0.5)
    # Dark on light: imagery is both.
    for colour, width in ((QColor("white"), 3), (QColor("black"), 1)):
        painter.setPen(QPen(colour, width))
        painter.drawLine(centre - QPointF(arm, 0), centre + QPointF(arm, 0))
        painter.drawLine(centre - QPointF(0, arm), centre + QPointF(0, arm))
    icon = QIcon(icon_path(mode.value.name)).pixmap(round(icon_px * ratio), round(icon_px * ratio))
    icon.setDevicePixelRatio(ratio)
    painter.drawPixmap(QPointF(2 * arm + 1, 2 * arm + 1), icon)
    painter.end()
    return QCursor(pixmap, arm, arm)
