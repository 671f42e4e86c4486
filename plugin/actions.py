"""Every action of the plugin once: menu, toolbar, buttons, shortcut list and cheat sheet are made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QObject, Qt
from qgis.PyQt.QtGui import QIcon, QKeyEvent, QKeySequence

from ..processing.algorithms.resources import icon_path
from .qt_compat import QAction


class _Words(NamedTuple):
    """Text in menu and shortcut list, text on a button and in the cheat sheet, and tip."""

    text: str
    label: str
    tip: str


class Actions(QObject):
    """Actions by key, in the order in which they were added; `on_toolbar` are those with a button there.

    The shortcuts that we give are single keys, which elsewhere in QGIS mean something else: Qt does not act on them.
    The map tool does, while it is active and the canvas has the focus (`of_key`). An action without one is no
    business of the map: a key that the user gives it works in the whole window.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._actions: dict[str, QAction] = {}
        self._groups: dict[str, list[QAction]] = {}
        self._also: dict[str, tuple[QKeySequence, ...]] = {}
        self._words: dict[str, _Words] = {}
        self.on_toolbar: list[QAction] = []

    def add(
        self,
        key: str,
        text: str,
        slot: Callable[..., Any] | None,
        *,
        tip: str,
        shortcut: str = "",
        group: str = "Segment",
        label: str = "",
        icon: str = "",
        theme_icon: str = "",
        checkable: bool = False,
        also: tuple[str, ...] = (),
    ) -> QAction:
        """Make an action and return it.

        `slot` is called without arguments, or with the new state where the action is `checkable`. `label` is what
        its button says, where that is not `text`. `icon` is the name of a file in `resources/icons`, and gives the
        action a button on the toolbar; `theme_icon` is one of QGIS's, for its button in the dock. `also` are further
        shortcuts, which QGIS's list does not show. Raises ValueError for a key that is taken.
        """
        if key in self._actions:
            raise ValueError(f"There is an action '{key}' already; choose another key.")
        action = QAction(text, self)
        # QGIS stores what the user chose as shortcut under the object's name.
        action.setObjectName(f"SegAdapt_{key}")
        action.setCheckable(checkable)
        if icon:
            action.setIcon(QIcon(icon_path(icon)))
            self.on_toolbar.append(action)
        elif theme_icon:
            action.setIcon(QgsApplication.getThemeIcon(theme_icon))
        if shortcut:
            action.setShortcut(QKeySequence(shortcut))
            action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        self._words[key] = _Words(text, label or text, tip)
        _say(action, self._words[key])
        if slot is not None:
            # Qt hands the state over, for which most slots have no parameter.
            action.triggered.connect(slot if checkable else lambda _state=False: slot())
        self._actions[key] = action
        self._groups.setdefault(group, []).append(action)
        self._also[key] = tuple(QKeySequence(sequence) for sequence in also)
        return action

    def offer_stop(self, key: str, tip: str) -> None:
        """Let an action that has started something say that it stops it; with no `tip`, what it said before."""
        action, words = self._actions[key], _Words("Stop", "Stop", tip) if tip else self._words[key]
        if action.iconText() != words.label:
            _say(action, words)

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


def _say(action: QAction, words: _Words) -> None:
    keys = action.shortcut().toString()
    action.setText(words.text)
    # Stays, whatever is said in the menu later on.
    action.setIconText(words.label)
    action.setStatusTip(words.tip)
    action.setToolTip(f"{words.tip} ({keys})" if keys else words.tip)


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
