"""Undo and redo: the prompts of the object in hand first, then a guest's clicks, then what was done to layers."""

from __future__ import annotations

from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .click_takers import ClickTakers
from .history import EditHistory
from .session import Session


class UndoControl(QObject):
    """`prompts_changed`: the session holds other prompts now; `edited` carries what was done to a layer, or why not."""

    prompts_changed = pyqtSignal()
    edited = pyqtSignal(str)

    def __init__(
        self, session: Session, *, history: EditHistory, click_takers: ClickTakers, actions: Actions, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._session, self._history, self._click_takers, self._actions = session, history, click_takers, actions
        self._n_undone_edits = 0
        """Steps of the layer that were undone after all prompts of the object: redo begins with them."""

    def undo(self) -> None:
        """Take the newest thing back."""
        guest = self._click_takers.present
        if self._session.can_undo:
            self._session.undo()
            self.prompts_changed.emit()
        elif guest is not None and guest.undo is not None:
            guest.undo()
        else:
            self._n_undone_edits += 1
            self.edited.emit(self._history.undo())

    def redo(self) -> None:
        """Bring back what was taken back last."""
        if self._can_redo_edit:
            self._n_undone_edits = max(0, self._n_undone_edits - 1)
            self.edited.emit(self._history.redo())
        elif self._session.can_redo:
            self._session.redo()
            self.prompts_changed.emit()

    def forget_undone(self) -> None:
        """Something new was done: redo has nothing before the prompts any more."""
        self._n_undone_edits = 0

    def show(self) -> None:
        """Enable undo and redo where there is something, and let them say what."""
        session, guest = self._session, self._click_takers.present
        undo, redo = session.newest_prompt, session.next_prompt
        if not undo and guest is not None and guest.undo is not None:
            undo = "click"
        can_redo_edit = self._can_redo_edit
        self._actions["undo"].setEnabled(bool(undo) or self._history.can_undo)
        self._actions["redo"].setEnabled(bool(redo) or can_redo_edit)
        self._actions["undo"].setText(_doing("Undo", undo or self._history.undo_text))
        self._actions["redo"].setText(_doing("Redo", (self._history.redo_text if can_redo_edit else "") or redo))

    @property
    def _can_redo_edit(self) -> bool:
        is_next = self._n_undone_edits > 0 or not self._session.can_redo
        return self._session.is_empty and self._history.can_redo and is_next


def _doing(verb: str, what: str) -> str:
    return f"{verb} {what}" if what else verb
