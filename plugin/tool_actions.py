"""The actions of the map tool: its modes, what is done to the object in hand, and the numbers of the classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .classes import Classes
from .modes import Mode
from .prompt_control import PromptControl
from .prompt_tool import Command
from .qt_compat import QActionGroup
from .settings import MODE, write_setting

# Modes that one goes on with tomorrow; the others are for one occasion.
_REMEMBERED = (Mode.POINT, Mode.BOX, Mode.SCRIBBLE, Mode.POLYGON, Mode.REFINE)
_EDIT_MODES = (Mode.CUT, Mode.MERGE)


class ToolActions(QObject):
    """Makes the actions, in the order of menu and toolbar, and keeps them true.

    `mode_chosen`: the user wants to work with the tool; `notified` carries a sentence for the message bar.
    """

    mode_chosen = pyqtSignal()
    notified = pyqtSignal(str)

    def __init__(
        self,
        actions: Actions,
        *,
        prompts: PromptControl,
        classes: Classes,
        activate: Callable[[bool], None],
        ask_fields: Callable[[], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._actions, self._prompts, self._classes = actions, prompts, classes
        self._add(activate, ask_fields=ask_fields)
        prompts.tool.setAction(actions["tool"])
        classes.changed.connect(self._show_classes)
        self._show_classes()

    def restore_mode(self) -> None:
        """Go on in the mode of the last session."""
        stored = str(QgsSettings().value(f"segadapt/{MODE}", Mode.POINT.value.name))
        mode = next((mode for mode in _REMEMBERED if mode.value.name == stored), Mode.POINT)
        self._prompts.tool.set_mode(mode)
        self._actions[mode.value.name].setChecked(True)
        self._prompts.redraw()

    def _add(self, activate: Callable[[bool], None], *, ask_fields: Callable[[], None]) -> None:
        add = self._actions.add
        add(
            "tool",
            "Segment by clicks",
            activate,
            tip="Let clicks on the map segment objects of the raster",
            icon="segmentfromprompts",
            checkable=True,
        )
        self._modes = QActionGroup(self)
        for mode in Mode:
            name, text, shortcut, tip = mode.value
            group = "Edit" if mode in _EDIT_MODES else "Prompt"
            action = add(
                name,
                text,
                lambda is_on, mode=mode: self._on_mode_chosen(mode) if is_on else None,
                tip=tip,
                shortcut=shortcut,
                group=group,
                icon=name,
                checkable=True,
            )
            self._modes.addAction(action)
        for key, text, tip, shortcut in (
            ("accept", "Accept", "Add the mask to the target layer", "Return"),
            (
                "undo",
                "Undo",
                "Take the newest prompt back, or the newest change of the layer; with an accept its prompts come back",
                "Ctrl+Z",
            ),
            ("redo", "Redo", "Bring back what was undone last: a prompt, or a change of the layer", "Ctrl+Shift+Z"),
            ("drop", "Drop", "Forget this object; without one, go back to clicks", "Esc"),
        ):
            slot = partial(self._prompts.command, Command(key))
            add(key, text, slot, tip=tip, shortcut=shortcut, icon=key, also=("Ctrl+Y",) if key == "redo" else ())
        add(
            "next_mask",
            "Next mask",
            self._prompts.next_mask,
            tip="Take another of the masks that the prompts may mean; the wheel with Alt goes both ways",
            shortcut="Tab",
            icon="next_mask",
        )
        add(
            "batch",
            "Segment selected features",
            self._prompts.start_batch,
            tip="Make an object of every selected feature: points, lines, rectangles or polygons",
            shortcut="Shift+Return",
            group="Prompt",
            icon="batch",
        )
        add(
            "fields",
            "Fields…",
            ask_fields,
            tip="Choose which field of the target layer gets the class, the score, the area and so on",
            group="Edit",
        )
        for number in range(1, 10):
            add(
                f"class_{number}",
                f"Class {number}",
                lambda number=number: self._on_class_number(number),
                tip=f"Choose class {number} of the list",
                shortcut=str(number),
                group="Classes",
            )

    def _on_mode_chosen(self, mode: Mode) -> None:
        self._prompts.set_mode(mode)
        # Where the mode did what it is for at once, the one before goes on.
        self._actions[self._prompts.tool.chosen_mode.value.name].setChecked(True)
        if mode in _REMEMBERED:
            write_setting(MODE, mode.value.name)
        self.mode_chosen.emit()

    def _on_class_number(self, number: int) -> None:
        if not self._classes.choose_number(number):
            self.notified.emit(f"There is no class {number}; add one in the SegAdapt panel.")

    def _show_classes(self) -> None:
        """Let the menu say which class a number stands for."""
        names = self._classes.names()
        for number in range(1, 10):
            action = self._actions[f"class_{number}"]
            action.setText(names[number - 1] if number <= len(names) else f"Class {number}")
            action.setVisible(number <= max(1, len(names)))
