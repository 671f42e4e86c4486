"""All keys on one panel over the map, made from the actions; any key or click closes it."""

from __future__ import annotations

import math
import re

from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QEvent, QObject, Qt
from qgis.PyQt.QtGui import (
    QColor,
    QFont,
    QGuiApplication,
    QKeyEvent,
    QKeySequence,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPalette,
)
from qgis.PyQt.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from .actions import Actions

_MOUSE = (
    ("Click", "On the object"),
    ("Right click", "Not part of it"),
    ("Drag", "Box"),
    ("Alt+wheel", "Next mask"),
    ("Wheel", "Zoom"),
)
_NUMBERED = re.compile(r"SegAdapt_class_\d")
"""Actions of the number keys are one line together."""


class CheatSheet(QFrame):
    """Laid over the canvas while it is open."""

    def __init__(self, canvas: QgsMapCanvas, actions: Actions) -> None:
        super().__init__(canvas)
        self._canvas = canvas
        self.setObjectName("SegAdaptCheatSheet")
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.groups = {"Mouse": list(_MOUSE), **_lines(actions)}
        self._shrink_to_fit()
        self._fill()
        canvas.installEventFilter(self)
        self._place()
        self.show()
        self.raise_()
        self.setFocus()

    def event(self, event: QEvent) -> bool:
        """Take every key before the main window's shortcuts do."""
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()
            return True
        if event.type() == QEvent.Type.KeyPress and not _is_modifier(event):
            self.dismiss()
            return True
        return bool(super().event(event))

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Cover the map."""
        QPainter(self).fillRect(self.rect(), self._background())
        super().paintEvent(event)

    def mousePressEvent(self, _event: QMouseEvent | None) -> None:
        """Close."""
        self.dismiss()

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Stay in the middle of the canvas."""
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def dismiss(self) -> None:
        """Give the canvas back."""
        self._canvas.removeEventFilter(self)
        self.hide()
        self.deleteLater()
        self._canvas.setFocus()

    def _background(self) -> QColor:
        """Colour of the window behind the letters: QGIS's dark themes make that of frames transparent."""
        palettes = (self.palette(), self.window().palette(), QGuiApplication.palette())
        colours = [palette.color(QPalette.ColorRole.Window) for palette in palettes]
        return next((colour for colour in colours if colour.alpha() == 255), colours[-1])

    def _shrink_to_fit(self) -> None:
        """Take smaller letters for a small canvas, as long as they can be read."""
        n_lines = sum(len(lines) + 2 for lines in self.groups.values())
        for scale in (1.0, 0.9, 0.8, 0.7):
            font = self._canvas.font()
            font.setPointSizeF(scale * font.pointSizeF())
            self.setFont(font)
            n_columns = len(self._columns())
            if 1.5 * self.fontMetrics().height() * (n_lines / n_columns + 6) <= self._canvas.height():
                return

    def _fill(self) -> None:
        letter_px = self.fontMetrics().averageCharWidth()
        title = QLabel("SegAdapt: keys and mouse")
        title.setFont(_bold(self))
        columns = QHBoxLayout()
        columns.setSpacing(4 * letter_px)
        for lines in self._columns():
            column = QVBoxLayout()
            # Said of each: a layout without spacing of its own takes that of the layout around it.
            column.setSpacing(2 * letter_px)
            for group in lines:
                column.addLayout(self._grid(group))
            column.addStretch(1)
            columns.addLayout(column)
        layout = QVBoxLayout(self)
        layout.setSpacing(2 * letter_px)
        layout.setContentsMargins(2 * letter_px, 2 * letter_px, 2 * letter_px, 2 * letter_px)
        layout.addWidget(title)
        layout.addLayout(columns)
        layout.addWidget(
            QLabel("Any key closes. Settings > Keyboard Shortcuts gives other keys, to every action of the menu.")
        )

    def _columns(self) -> list[list[str]]:
        """Titles of the groups by column: as few columns as the height of the canvas allows, if its width does."""
        letter_px, line_px = self.fontMetrics().averageCharWidth(), 1.4 * self.fontMetrics().height()
        texts = [text for lines in self.groups.values() for _, text in lines]
        widest_px = max(self.fontMetrics().horizontalAdvance(text) for text in texts)
        column_px = self._keys_px() + widest_px + 6 * letter_px
        most = max(1, math.floor((self._canvas.width() - 4 * letter_px) / column_px))
        n_lines = sum(len(lines) + 2 for lines in self.groups.values())
        fitting = max(1, math.floor(0.75 * self._canvas.height() / line_px))
        n_columns = min(most, math.ceil(n_lines / fitting))
        per_column = n_lines / n_columns
        columns: list[list[str]] = [[] for _ in range(n_columns)]
        n_above = 0
        for title, lines in self.groups.items():
            # A group goes where its middle is.
            middle = n_above + (len(lines) + 2) / 2
            columns[min(n_columns - 1, int(middle / per_column))].append(title)
            n_above += len(lines) + 2
        return [column for column in columns if column]

    def _keys_px(self) -> int:
        keys = [keys for lines in self.groups.values() for keys, _ in lines]
        metrics = self.fontMetrics()
        return int(max(metrics.horizontalAdvance(text) for text in keys) + metrics.averageCharWidth())

    def _grid(self, title: str) -> QGridLayout:
        letter_px = self.fontMetrics().averageCharWidth()
        grid = QGridLayout()
        grid.setHorizontalSpacing(2 * letter_px)
        grid.setVerticalSpacing(letter_px // 2)
        grid.setColumnMinimumWidth(0, self._keys_px())
        heading = QLabel(title)
        heading.setFont(_bold(self))
        grid.addWidget(heading, 0, 0, 1, 2)
        for row, (keys, text) in enumerate(self.groups[title], start=1):
            key_label = QLabel(keys)
            key_label.setFrameShape(QFrame.Shape.StyledPanel)
            key_label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            grid.addWidget(key_label, row, 0)
            grid.addWidget(QLabel(text), row, 1)
        grid.setColumnStretch(1, 1)
        return grid

    def _place(self) -> None:
        self.adjustSize()
        self.move((self._canvas.width() - self.width()) // 2, (self._canvas.height() - self.height()) // 2)


def _lines(actions: Actions) -> dict[str, list[tuple[str, str]]]:
    """Keys and texts by group, of the actions that have a key."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for title, members in actions.groups().items():
        with_keys = [action for action in members if not action.shortcut().isEmpty()]
        numbered = [action for action in with_keys if _NUMBERED.fullmatch(action.objectName())]
        lines = [(_keys(action.shortcut()), action.iconText()) for action in with_keys if action not in numbered]
        if numbered:
            first, last = _keys(numbered[0].shortcut()), _keys(numbered[-1].shortcut())
            lines.insert(0, (f"{first} to {last}", "Choose the class"))
        if lines:
            groups[title] = lines
    return groups


def _keys(sequence: QKeySequence) -> str:
    return str(sequence.toString(QKeySequence.SequenceFormat.NativeText))


def _bold(widget: QWidget) -> QFont:
    font = widget.font()
    font.setBold(True)
    return font


def _is_modifier(event: QKeyEvent) -> bool:
    return event.key() in (Qt.Key.Key_Shift, Qt.Key.Key_Control, Qt.Key.Key_Alt, Qt.Key.Key_AltGr, Qt.Key.Key_Meta)
