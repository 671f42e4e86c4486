"""A, R and Esc on the canvas, as long as a review lasts."""

from __future__ import annotations

from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QEvent, QObject, Qt, QTimer, pyqtSignal


class ReviewKeys(QObject):
    """Claims the keys before map tools and shortcuts, to which they mean something else."""

    accept_wanted = pyqtSignal()
    reject_wanted = pyqtSignal()
    leave_wanted = pyqtSignal()

    def __init__(self, canvas: QgsMapCanvas, parent: QObject) -> None:
        super().__init__(parent)
        self._canvas = canvas
        self._is_on = False
        self._signals = {
            Qt.Key.Key_A: self.accept_wanted,
            Qt.Key.Key_R: self.reject_wanted,
            Qt.Key.Key_Escape: self.leave_wanted,
        }
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
        if event.type() not in (QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride) or event.modifiers():
            return False
        signal = self._signals.get(event.key())
        if signal is None or not self._is_on:
            return False
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
        elif signal is self.leave_wanted or not event.isAutoRepeat():
            signal.emit()
        return True

    def _claim(self) -> None:
        # The filter that was installed last is asked first: before the tool, to which Esc means something else.
        self._canvas.removeEventFilter(self)
        if self._is_on:
            self._canvas.installEventFilter(self)

    def _on_tool_set(self, *_tools: object) -> None:
        # The canvas tells of a tool before it activates it, and activating installs the tool's filter.
        QTimer.singleShot(0, self._claim)
