"""The map tool: mouse and keys become signals. It holds neither the object nor its prompts."""

from __future__ import annotations

from enum import Enum, auto

from qgis.core import QgsPointXY
from qgis.gui import QgsMapCanvas, QgsMapMouseEvent, QgsMapTool
from qgis.PyQt.QtCore import QEvent, QObject, QPoint, QRect, Qt, pyqtSignal
from qgis.PyQt.QtGui import QKeyEvent, QWheelEvent
from qgis.PyQt.QtWidgets import QApplication

from .actions import Actions
from .modes import Mode, mode_cursor
from .rubber_bands import DragBox, Drawing

_FINISH_KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter)
_LEFT, _RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
# Held down, these go on; all others act once per press.
_REPEATED = ("undo", "redo", "next_mask")


class ToolState(Enum):
    """What the mouse is doing. CORNER: the first corner of a box is set; DRAWING: a polygon has vertices."""

    HOVERING = auto()
    PRESSED = auto()
    DRAGGING = auto()
    CORNER = auto()
    DRAWING = auto()


class Command(Enum):
    """What can be done with the object in the making; the values are keys of actions."""

    ACCEPT = "accept"
    DROP = "drop"
    UNDO = "undo"
    REDO = "redo"


class PromptTool(QgsMapTool):
    """Left click foreground; right, Shift or Ctrl click background; drag what the mode says; keys for the rest.

    While it is lent to somebody else (`set_lent`), no mode counts: a drag draws a line.

    Signals carry points in the CRS of the canvas: `clicked` (QgsPointXY, is foreground), `boxed` (four
    corners), `scribbled` (points of a line, is foreground), `outlined` (vertices of a polygon), `hovered`
    (QgsPointXY), `left` (the mouse went away), `cycled` (1 or -1, by Alt and wheel), `mode_changed` (Mode),
    `drawing_changed`: `is_drawing` is another.
    """

    clicked = pyqtSignal(QgsPointXY, bool)
    boxed = pyqtSignal(list)
    scribbled = pyqtSignal(list, bool)
    outlined = pyqtSignal(list)
    hovered = pyqtSignal(QgsPointXY)
    left = pyqtSignal()
    cycled = pyqtSignal(int)
    mode_changed = pyqtSignal(object)
    drawing_changed = pyqtSignal()

    def __init__(self, canvas: QgsMapCanvas, actions: Actions) -> None:
        super().__init__(canvas)
        self._actions = actions
        self._state, self._mode, self._is_lent = ToolState.HOVERING, Mode.POINT, False
        self._button = _LEFT
        self._pressed_at = QPoint()
        self._drawn: list[QgsPointXY] = []
        """Vertices so far of what is being drawn, in the CRS of the canvas."""
        self._box, self._drawing = DragBox(canvas), Drawing(canvas)
        self.setCursor(mode_cursor(self._mode, canvas))

    @property
    def chosen_mode(self) -> Mode:
        """What the user chose a click to mean, while the tool is not lent."""
        return self._mode

    @property
    def mode(self) -> Mode:
        """What a click or a drag means at present."""
        return Mode.SCRIBBLE if self._is_lent else self._mode

    @property
    def can_leave_mode(self) -> bool:
        """True where there are clicks to go back to."""
        return self._mode is not Mode.POINT and not self._is_lent

    @property
    def is_drawing(self) -> bool:
        """True while a box or a polygon is begun and not finished."""
        return self._state in (ToolState.CORNER, ToolState.DRAWING)

    def set_mode(self, mode: Mode) -> None:
        """Let clicks mean something else; what is being drawn is dropped."""
        self._rest()
        self._mode = mode
        self.setCursor(mode_cursor(self.mode, self.canvas()))
        self.mode_changed.emit(mode)

    def set_lent(self, is_lent: bool) -> None:
        """Lend clicks and lines to somebody else, or take them back; what is being drawn is dropped."""
        if is_lent != self._is_lent:
            self._rest()
            self._is_lent = is_lent
            self.setCursor(mode_cursor(self.mode, self.canvas()))

    def activate(self) -> None:
        """Take the keyboard as well as the mouse."""
        super().activate()
        # Ctrl+Z belongs to QGIS's Undo: only a filter sees the key before that shortcut takes it.
        self.canvas().installEventFilter(self)
        self.canvas().viewport().installEventFilter(self)
        self.canvas().setFocus()

    def deactivate(self) -> None:
        """Give mouse and keyboard back."""
        self.canvas().removeEventFilter(self)
        self.canvas().viewport().removeEventFilter(self)
        self._rest()
        self.left.emit()
        super().deactivate()

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Claim our keys before the main window's shortcuts, and before Tab moves the focus."""
        if event.type() == QEvent.Type.ShortcutOverride and self._is_ours(event):
            event.accept()
            return True
        if event.type() == QEvent.Type.KeyPress and self._is_ours(event):
            self._act(event)
            return True
        if event.type() == QEvent.Type.Leave:
            self.left.emit()
        return False

    def canvasPressEvent(self, event: QgsMapMouseEvent) -> None:
        """Remember where a click, a box or a line begins."""
        draws_background = event.button() == _RIGHT and self.mode is Mode.SCRIBBLE
        if not self.is_drawing and (event.button() == _LEFT or draws_background):
            self._state, self._button, self._pressed_at = ToolState.PRESSED, event.button(), event.pos()
            self._drawn = [event.mapPoint()]

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:
        """Draw the box, the line or the polygon, or say where the mouse is."""
        if self._state is ToolState.HOVERING:
            self.hovered.emit(event.mapPoint())
        elif self._state is ToolState.DRAWING:
            self._drawing.show_polygon([*self._drawn, event.mapPoint()])
        elif self._state is ToolState.CORNER:
            self._box.show(self._corners(event.pos()))
        else:
            self._drag(event)

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:
        """Turn what happened since the press into a click, a box, a line or a vertex."""
        if self._state is ToolState.DRAWING:
            if event.button() == _LEFT:
                self._add_vertex(event.mapPoint())
            elif event.button() == _RIGHT:
                self._finish_polygon()
        elif self._state is ToolState.CORNER:
            if event.button() == _LEFT:
                self.boxed.emit(self._corners(event.pos()))
            self._rest()
        elif self._state is ToolState.HOVERING:
            if event.button() == _RIGHT:
                self.clicked.emit(event.mapPoint(), False)
        elif event.button() == self._button:
            self._release(event)

    def canvasDoubleClickEvent(self, event: QgsMapMouseEvent) -> None:
        """Finish a polygon; elsewhere the second of two fast clicks is what it is: another click."""
        if self._state is ToolState.DRAWING and event.button() == _LEFT:
            self._finish_polygon()
        else:
            self.canvasPressEvent(event)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Go through the masks with Alt; the wheel alone zooms."""
        if event.modifiers() & Qt.KeyboardModifier.AltModifier:
            # With Alt, Qt takes a wheel for one that turns sideways.
            delta = event.angleDelta().y() or event.angleDelta().x()
            self.cycled.emit(-1 if delta > 0 else 1)
            event.accept()
        else:
            super().wheelEvent(event)

    def dispose(self) -> None:
        """Take everything off the canvas; the tool is not usable afterwards."""
        self._box.dispose()
        self._drawing.dispose()

    def _is_ours(self, event: QKeyEvent) -> bool:
        is_vertex_back = self.is_drawing and event.key() == Qt.Key.Key_Backspace
        return is_vertex_back or self._actions.of_key(event) is not None

    def _act(self, event: QKeyEvent) -> None:
        action = self._actions.of_key(event)
        if self._state is not ToolState.HOVERING and self._act_on_drawing(event):
            return
        is_repeated = any(action is self._actions[key] for key in _REPEATED if key in self._actions)
        if action is not None and (is_repeated or not event.isAutoRepeat()):
            action.trigger()

    def _act_on_drawing(self, event: QKeyEvent) -> bool:
        """Let a key act on what is being drawn. Return False where it means something else."""
        action = self._actions.of_key(event)
        if event.key() == Qt.Key.Key_Escape:
            self._rest()
        elif self._state is ToolState.DRAWING and event.key() in _FINISH_KEYS:
            self._finish_polygon()
        elif self.is_drawing and (event.key() == Qt.Key.Key_Backspace or action is self._actions["undo"]):
            self._remove_vertex()
        else:
            return False
        return True

    def _drag(self, event: QgsMapMouseEvent) -> None:
        if (event.pos() - self._pressed_at).manhattanLength() >= QApplication.startDragDistance():
            self._state = ToolState.DRAGGING
        if self._state is not ToolState.DRAGGING:
            return
        if self.mode.draws_freely:
            self._drawn.append(event.mapPoint())
            self._drawing.show_line(self._drawn, is_foreground=not self._is_background(event))
        elif self.mode is not Mode.POLYGON:
            self._box.show(self._corners(event.pos()))

    def _release(self, event: QgsMapMouseEvent) -> None:
        is_foreground = not self._is_background(event)
        if self.mode is Mode.POLYGON and is_foreground:
            self._state = ToolState.DRAWING
            self._drawing.show_polygon(self._drawn)
            self.drawing_changed.emit()
            return
        if self.mode is Mode.BOX and self._state is ToolState.PRESSED and is_foreground:
            self._state = ToolState.CORNER
            self.drawing_changed.emit()
            return
        was_dragged, drawn = self._state is ToolState.DRAGGING, self._drawn
        corners, start = self._corners(event.pos()), self._drawn[0]
        self._rest()
        if not was_dragged:
            self.clicked.emit(start, is_foreground)
        elif self.mode.draws_freely:
            self.scribbled.emit(drawn, is_foreground)
        else:
            self.boxed.emit(corners)

    def _add_vertex(self, point: QgsPointXY) -> None:
        self._drawn.append(point)
        self._drawing.show_polygon(self._drawn)

    def _remove_vertex(self) -> None:
        self._drawn.pop()
        if self._drawn:
            self._drawing.show_polygon(self._drawn)
        else:
            self._rest()

    def _finish_polygon(self) -> None:
        drawn = self._drawn
        self._rest()
        if len(drawn) >= 3:
            self.outlined.emit(drawn)

    def _corners(self, opposite: QPoint) -> list[QgsPointXY]:
        """Corners on the map of the screen rectangle from the first corner to `opposite`."""
        # From the map: the view may have moved since the first corner.
        rectangle = QRect(self.toCanvasCoordinates(self._drawn[0]), opposite).normalized()
        left, top, right, bottom = rectangle.left(), rectangle.top(), rectangle.right(), rectangle.bottom()
        return [
            self.toMapCoordinates(QPoint(x, y)) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))
        ]

    def _is_background(self, event: QgsMapMouseEvent) -> bool:
        modifiers = Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.ControlModifier
        return self._button == _RIGHT or bool(event.modifiers() & modifiers)

    def _rest(self) -> None:
        was_drawing = self.is_drawing
        self._state, self._button, self._drawn = ToolState.HOVERING, _LEFT, []
        self._box.hide()
        self._drawing.hide()
        if was_drawing:
            self.drawing_changed.emit()
