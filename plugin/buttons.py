"""Buttons and check boxes that are actions: text, tip and state are those of menu and shortcut list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QCheckBox, QMenu, QSizePolicy, QToolButton, QWidget

from .qt_compat import QAction


def action_button(action: QAction | None = None, *, is_icon: bool = False) -> QToolButton:
    """Make a button that shows the text, or the icon, of an action; None where the action comes later."""
    button = QToolButton()
    button.setToolButtonStyle(
        Qt.ToolButtonStyle.ToolButtonIconOnly if is_icon else Qt.ToolButtonStyle.ToolButtonTextOnly
    )
    button.setSizePolicy(
        QSizePolicy.Policy.Fixed if is_icon else QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed
    )
    # Keys belong to the canvas: a button with the focus would take Enter for itself.
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if action is not None:
        button.setDefaultAction(action)
    return button


def menu_button(text: str, pages: Mapping[str, Sequence[QAction]], *, tip: str) -> QToolButton:
    """Make a button that opens a menu of actions, in menus of their own by page; pages without one are left out."""
    button = QToolButton()
    button.setText(text)
    button.setToolTip(tip)
    button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    menu = QMenu(button)
    for title, actions in pages.items():
        if actions:
            page = menu.addMenu(title)
            page.setToolTipsVisible(True)
            page.addActions(actions)
    button.setMenu(menu)
    return button


class ActionBox(QCheckBox):
    """A check box that is on and enabled where its checkable action is, and the other way round."""

    def __init__(self, action: QAction, parent: QWidget | None = None) -> None:
        super().__init__(action.iconText(), parent)
        self.action = action
        # A click leaves the focus, and with it the keys, to the canvas.
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.toggled.connect(action.setChecked)
        action.changed.connect(self._follow)
        self._follow()

    def _follow(self) -> None:
        self.setChecked(self.action.isChecked())
        self.setEnabled(self.action.isEnabled())
        self.setToolTip(self.action.toolTip())
