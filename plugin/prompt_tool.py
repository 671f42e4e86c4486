"""The map tool: mouse and keys become signals. It holds neither geometry nor state of the session."""

from __future__ import annotations

from enum import Enum, auto

from qgis.core import QgsPointXY
from qgis.gui import QgsMapCanvas, QgsMapMouseEvent, QgsMapTool
from qgis.PyQt.QtCore import QEvent, QObject, QPoint, QRect, Qt, pyqtSignal
from qgis.PyQt.QtGui import QKeyEvent, QKeySequence
from qgis.PyQt.QtWidgets import QApplication

from .rubber_bands import DragBox

_ACCEPT_KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter)


class ToolState(Enum):
    """What the mouse is doing."""

    HOVERING = auto()
    PRESSED = auto()
    DRAGGING = auto()


class Command(Enum):
    """What a key asks for."""

    ACCEPT = auto()
    DROP = auto()
    UNDO = auto()
    REDO = auto()


class PromptTool(QgsMapTool):
    """Left click foreground; right, Shift or Ctrl click background; drag a box; keys for the rest.

    Signals carry points in the CRS of the canvas: `clicked` (QgsPointXY, is foreground), `boxed` (four
    corners), `hovered` (QgsPointXY), `left` (the mouse went away), `commanded` (Command).
    """

    clicked = pyqtSignal(QgsPointXY, bool)
    boxed = pyqtSignal(list)
    hovered = pyqtSignal(QgsPointXY)
    left = pyqtSignal()
    commanded = pyqtSignal(object)

    def __init__(self, canvas: QgsMapCanvas) -> None:
        super().__init__(canvas)
        self._state = ToolState.HOVERING
        self._pressed_at = QPoint()
        self._box = DragBox(canvas)
        self.setCursor(Qt.CursorShape.CrossCursor)

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
        """Claim our keys before the main window's shortcuts do; Esc in mid-drag takes only the box back."""
        if event.type() == QEvent.Type.ShortcutOverride and command_of_key(event) is not None:
            event.accept()
            return True
        is_drag = self._state is not ToolState.HOVERING
        if event.type() == QEvent.Type.KeyPress and is_drag and command_of_key(event) is Command.DROP:
            # With a button down the canvas hands no key to its tool.
            self._rest()
            return True
        if event.type() == QEvent.Type.Leave:
            self.left.emit()
        return False

    def canvasPressEvent(self, event: QgsMapMouseEvent) -> None:
        """Remember where a click or a box begins."""
        if event.button() == Qt.MouseButton.LeftButton:
            self._state, self._pressed_at = ToolState.PRESSED, event.pos()

    def canvasMoveEvent(self, event: QgsMapMouseEvent) -> None:
        """Draw the box, or say where the mouse is."""
        if self._state is ToolState.HOVERING:
            self.hovered.emit(event.mapPoint())
            return
        distance = (event.pos() - self._pressed_at).manhattanLength()
        if distance >= QApplication.startDragDistance():
            self._state = ToolState.DRAGGING
        if self._state is ToolState.DRAGGING:
            self._box.show(self._corners(event.pos()))

    def canvasReleaseEvent(self, event: QgsMapMouseEvent) -> None:
        """Turn what happened since the press into a click or a box."""
        state = self._state
        if event.button() == Qt.MouseButton.RightButton and state is ToolState.HOVERING:
            self.clicked.emit(event.mapPoint(), False)
        elif event.button() == Qt.MouseButton.LeftButton and state is ToolState.PRESSED:
            self.clicked.emit(self.toMapCoordinates(self._pressed_at), not _is_background(event))
        elif event.button() == Qt.MouseButton.LeftButton and state is ToolState.DRAGGING:
            self.boxed.emit(self._corners(event.pos()))
        else:
            return
        self._rest()

    def canvasDoubleClickEvent(self, event: QgsMapMouseEvent) -> None:
        """Take the second press of two fast clicks for what it is: another click."""
        self.canvasPressEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Turn a key into a command."""
        command = command_of_key(event)
        if command is None:
            event.ignore()
            return
        # Accepted, so that it does not go on to the main window.
        event.accept()
        self.commanded.emit(command)

    def dispose(self) -> None:
        """Take everything off the canvas; the tool is not usable afterwards."""
        self._box.dispose()

    def _corners(self, opposite: QPoint) -> list[QgsPointXY]:
        """Corners on the map of the screen rectangle from the press to `opposite`."""
        rectangle = QRect(self._pressed_at, opposite).normalized()
        left, top, right, bottom = rectangle.left(), rectangle.top(), rectangle.right(), rectangle.bottom()
        return [
            self.toMapCoordinates(QPoint(x, y)) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))
        ]

    def _rest(self) -> None:
        self._state = ToolState.HOVERING
        self._box.hide()


def command_of_key(event: QKeyEvent) -> Command | None:
    """Return what a key asks for, None for a key that is not ours."""
    if event.key() in _ACCEPT_KEYS:
        return Command.ACCEPT
    if event.key() == Qt.Key.Key_Escape:
        return Command.DROP
    # Redo first: on some systems the sequence for Redo contains the one for Undo.
    if event.matches(QKeySequence.StandardKey.Redo) or _is_ctrl_shift_z(event):
        return Command.REDO
    if event.matches(QKeySequence.StandardKey.Undo):
        return Command.UNDO
    return None


def _is_ctrl_shift_z(event: QKeyEvent) -> bool:
    wanted = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
    return bool(event.key() == Qt.Key.Key_Z and event.modifiers() == wanted)


def _is_background(event: QgsMapMouseEvent) -> bool:
    modifiers = Qt.KeyboardModifier.ShiftModifier | Qt.KeyboardModifier.ControlModifier
    return bool(event.modifiers() & modifiers)
