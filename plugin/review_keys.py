"""The keys of a review on the canvas, as long as it lasts: A and R, or what the user chose for them, and Esc."""

from __future__ import annotations

from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QEvent, QObject, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QKeyEvent

from .actions import Actions, sequences_of_event
from .qt_compat import QAction
from .similar_panel import ANSWERS


class ReviewKeys(QObject):
    """Claims the keys before map tools and shortcuts, to which they mean something else.

    The shortcuts of `ANSWERS` trigger these actions; `leave_wanted`: Esc was pressed.
    """

    leave_wanted = pyqtSignal()

    def __init__(self, canvas: QgsMapCanvas, actions: Actions, parent: QObject) -> None:
        super().__init__(parent)
        self._canvas = canvas
        self._is_on = False
        self._answers = [actions[key] for key in ANSWERS]
        canvas.mapToolSet.connect(self._on_tool_set)

    def dispose(self) -> None:
        """Leave the canvas."""
        self.set_on(False)
        self._canvas.mapToolSet.disconnect(self._on_tool_set)

    def set_on(self, is_on: bool) -> None:
        """Claim the keys, or let go of them."""
        self._is_on = is_on
        self._claim()

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Take the keys; one that is held down answers once."""
        if event.type() not in (QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride) or not self._is_on:
            return False
        answer = self._answer_of(event)
        is_leaving = event.key() == Qt.Key.Key_Escape and not event.modifiers()
        if answer is None and not is_leaving:
            return False
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
        elif answer is None:
            self.leave_wanted.emit()
        elif not event.isAutoRepeat():
            answer.trigger()
        return True

    def _answer_of(self, event: QKeyEvent) -> QAction | None:
        pressed = sequences_of_event(event)
        return next((action for action in self._answers if action.shortcut() in pressed), None)

    def _claim(self) -> None:
        # The filter that was installed last is asked first: before the tool, to which Esc means something else.
        self._canvas.removeEventFilter(self)
        if self._is_on:
            self._canvas.installEventFilter(self)

    def _on_tool_set(self, *_tools: object) -> None:
        # The canvas tells of a tool before it activates it, and activating installs the tool's filter.
        QTimer.singleShot(0, self._claim)
