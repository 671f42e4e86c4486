"""Every action of the plugin once: menu, toolbar, buttons, shortcut list and cheat sheet are made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qgis.PyQt.QtCore import QObject, Qt
from qgis.PyQt.QtGui import QIcon, QKeyEvent, QKeySequence

from ..processing.algorithms.resources import icon_path
from .qt_compat import QAction


class Actions(QObject):
    """Actions by key, in the order in which they were added.

    Their shortcuts are single keys, which elsewhere in QGIS mean something else: Qt does not act on them. The
    map tool does, while it is active and the canvas has the focus (`of_key`).
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._actions: dict[str, QAction] = {}
        self._groups: dict[str, list[QAction]] = {}
        self._also: dict[str, tuple[QKeySequence, ...]] = {}

    def add(
        self,
        key: str,
        text: str,
        slot: Callable[..., Any] | None,
        *,
        tip: str,
        shortcut: str = "",
        group: str = "Segment",
        icon: str = "",
        checkable: bool = False,
        also: tuple[str, ...] = (),
    ) -> QAction:
        """Make an action and return it.

        `slot` is called without arguments, or with the new state where the action is `checkable`. `icon` is
        the name of a file in `resources/icons`; `also` are further shortcuts, which QGIS's list does not
        show. Raises ValueError for a key that is taken.
        """
        if key in self._actions:
            raise ValueError(f"There is an action '{key}' already; choose another key.")
        action = QAction(text, self)
        # QGIS stores what the user chose as shortcut under the object's name.
        action.setObjectName(f"SegAdapt_{key}")
        action.setCheckable(checkable)
        # What buttons and the cheat sheet show, whatever is said in the menu later on.
        action.setIconText(text)
        if icon:
            action.setIcon(QIcon(icon_path(icon)))
        if shortcut:
            action.setShortcut(QKeySequence(shortcut))
        action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        action.setStatusTip(tip)
        action.setToolTip(f"{tip} ({shortcut})" if shortcut else tip)
        if slot is not None:
            # Qt hands the state over, for which most slots have no parameter.
            action.triggered.connect(slot if checkable else lambda _state=False: slot())
        self._actions[key] = action
        self._groups.setdefault(group, []).append(action)
        self._also[key] = tuple(QKeySequence(sequence) for sequence in also)
        return action

    def __getitem__(self, key: str) -> QAction:
        """Return the action of a key. Raises KeyError."""
        return self._actions[key]

    def __contains__(self, key: str) -> bool:
        """Say whether there is an action of this key."""
        return key in self._actions

    def groups(self) -> dict[str, list[QAction]]:
        """Return the actions by the title of their group."""
        return {title: list(actions) for title, actions in self._groups.items()}

    def of_key(self, event: QKeyEvent) -> QAction | None:
        """Return the action whose shortcut was pressed, None for a key that is not ours."""
        pressed = sequences_of_event(event)
        for key, action in self._actions.items():
            if any(sequence in pressed for sequence in (action.shortcut(), *self._also[key])):
                return action
        return None


def sequences_of_event(event: QKeyEvent) -> tuple[QKeySequence, ...]:
    """Return the key sequences that a key event can mean.

    Enter of the keypad is Return; a character that needs Shift on this keyboard, as `?` does, is meant without.
    """
    names = {
        Qt.KeyboardModifier.ControlModifier: "Ctrl+",
        Qt.KeyboardModifier.AltModifier: "Alt+",
        Qt.KeyboardModifier.MetaModifier: "Meta+",
    }
    prefix = "".join(name for modifier, name in names.items() if event.modifiers() & modifier)
    name = QKeySequence(event.key()).toString(QKeySequence.SequenceFormat.PortableText)
    if event.key() == Qt.Key.Key_Enter:
        name = "Return"
    if not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
        return (QKeySequence(f"{prefix}{name}"),)
    if len(name) == 1 and not name.isalpha():
        return QKeySequence(f"{prefix}Shift+{name}"), QKeySequence(f"{prefix}{name}")
    return (QKeySequence(f"{prefix}Shift+{name}"),)
