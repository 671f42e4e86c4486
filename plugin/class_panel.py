"""The list of classes inside the dock: numbers, swatches and names; add, rename, recolour, remove."""

from __future__ import annotations

from functools import partial

from qgis.gui import QgsColorDialog
from qgis.PyQt.QtCore import QRect, QSize, Qt, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor, QIcon, QPainter, QPixmap
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from .actions import Actions
from .buttons import action_button
from .classes import Classes

_NO_CLASS = "(no class)"
_NAME = Qt.ItemDataRole.UserRole
_MOST_VISIBLE = 10
# Lightness (0 to 1) above which black reads better than white.
_LIGHT = 0.45


class ClassPanel(QWidget):
    """A click chooses, a double click renames, the swatch's button recolours. `notified` carries a sentence.

    `typing_wanted`: the page is to be seen, as a name is to be typed there.
    """

    notified = pyqtSignal(str)
    typing_wanted = pyqtSignal()

    def __init__(self, classes: Classes, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._classes = classes
        self.list = QListWidget()
        self.list.setToolTip("Class of the next objects; keys 1 to 9 choose, a double click renames, drag to reorder")
        self.list.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self.list.setDragDropMode(QAbstractItemView.DragDropMode.InternalMove)
        # Keys belong to the canvas; the list gets the focus only while a name is edited.
        self.list.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.name_edit = QLineEdit()
        self.name_edit.setPlaceholderText("New class, e.g. building")
        self.name_edit.setToolTip("Name of a new class; Enter adds and chooses it")
        self._add_actions(actions)
        row = QHBoxLayout()
        row.addWidget(self.name_edit, 1)
        keys = ("add_class", "colour_class", "remove_class")
        self.buttons = {key: action_button(actions[key], is_icon=True) for key in keys}
        for button in self.buttons.values():
            row.addWidget(button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.list)
        column.addLayout(row)
        self.list.itemClicked.connect(lambda item: classes.choose(item.data(_NAME)))
        self.list.itemChanged.connect(self._on_renamed)
        # Later: the list must not be filled anew while it is still moving a row.
        self.list.model().rowsMoved.connect(lambda: QTimer.singleShot(0, self._read_order))
        self.name_edit.returnPressed.connect(self.add)
        classes.changed.connect(self._show)
        classes.chosen.connect(self._show_chosen)
        self._show()

    def add(self) -> None:
        """Add what was typed and choose it; where nothing was, ask for it."""
        if self.name_edit.text().strip():
            self._classes.choose(self.name_edit.text())
            self.name_edit.clear()
        else:
            self.typing_wanted.emit()
            self.name_edit.setFocus()

    def edit_name(self) -> None:
        """Ask for another name of the chosen class."""
        self.typing_wanted.emit()
        self.list.editItem(self.list.currentItem())

    def recolour(self, colour: QColor) -> None:
        """Give the chosen class this colour."""
        self._classes.set_colour(self._classes.current, colour)

    def _add_actions(self, actions: Actions) -> None:
        add = partial(actions.add, group="Classes")
        tip = "Add the class whose name was typed, as Enter does"
        add("add_class", "Add class", self.add, tip=tip, theme_icon="symbologyAdd.svg")
        tip = "Give the chosen class another name; features that have it follow"
        self._rename = add("rename_class", "Rename class", self.edit_name, tip=tip)
        tip = "Change the colour of the chosen class"
        add("colour_class", "Colour of class…", self._ask_colour, tip=tip, theme_icon="propertyicons/symbology.svg")
        tip = "Forget the chosen class; features that have it keep it"
        self._remove = add("remove_class", "Remove class", self._forget, tip=tip, theme_icon="symbologyRemove.svg")

    def _forget(self) -> None:
        self._classes.remove(self._classes.current)

    def _ask_colour(self) -> None:
        name = self._classes.current
        colour = QgsColorDialog.getColor(self._classes.colour(name), self, f"Colour of {name or _NO_CLASS}")
        if colour.isValid():
            self.recolour(colour)

    def _show(self) -> None:
        self.list.blockSignals(True)
        self.list.setIconSize(QSize(self._swatch_px(), self._swatch_px()))
        self.list.clear()
        for name in ("", *self._classes.names()):
            number = self._classes.number(name)
            item = QListWidgetItem(
                _swatch(self._classes.colour(name), number, side_px=self._swatch_px(), ratio=self.devicePixelRatioF()),
                name or _NO_CLASS,
            )
            item.setData(_NAME, name)
            item.setToolTip(f"Key {number} chooses {name}" if number else name or "Objects without a class")
            if name:
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsEditable)
            else:
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsDragEnabled)
            self.list.addItem(item)
        self.list.blockSignals(False)
        row_height = max(1, self.list.sizeHintForRow(0))
        n_rows = min(self.list.count(), _MOST_VISIBLE)
        self.list.setFixedHeight(n_rows * row_height + 2 * self.list.frameWidth())
        self._show_chosen(self._classes.current)

    def _show_chosen(self, name: str) -> None:
        for row in range(self.list.count()):
            if self.list.item(row).data(_NAME) == name:
                self.list.setCurrentRow(row)
        for action in (self._rename, self._remove):
            action.setEnabled(bool(name))

    def _swatch_px(self) -> int:
        return int(1.2 * self.fontMetrics().height())

    def _on_renamed(self, item: QListWidgetItem) -> None:
        problem = self._classes.rename(item.data(_NAME), item.text())
        if problem:
            self.notified.emit(problem)
        self._show()

    def _read_order(self) -> None:
        names = [self.list.item(row).data(_NAME) for row in range(self.list.count())]
        self._classes.set_order([name for name in names if name])


def _swatch(colour: QColor, number: int | None, *, side_px: int, ratio: float) -> QIcon:
    """The colour of a class with the key that chooses it; `ratio`: pixels of the screen to one of `side_px`."""
    pixmap = QPixmap(round(side_px * ratio), round(side_px * ratio))
    # Else the icon of a high-DPI screen would be larger than that of another, and its row too.
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(colour)
    if number is not None:
        painter = QPainter(pixmap)
        font = painter.font()
        font.setBold(True)
        font.setPixelSize(round(0.75 * side_px))
        painter.setFont(font)
        painter.setPen(QColor("black") if colour.lightnessF() > _LIGHT else QColor("white"))
        painter.drawText(QRect(0, 0, side_px, side_px), Qt.AlignmentFlag.AlignCenter, str(number))
        painter.end()
    icon = QIcon(pixmap)
    # In the chosen row too: Qt would tint it with the colour of the selection.
    icon.addPixmap(pixmap, QIcon.Mode.Selected)
    return icon
