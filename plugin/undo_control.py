"""Undo and redo: the prompts of the object in hand first, then what a guest took, then what was done to layers."""

from __future__ import annotations

from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .click_takers import ClickTaker, ClickTakers
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
        guest = self._click_takers.undoing
        if self._session.can_undo:
            self._session.undo()
            self.prompts_changed.emit()
        elif guest is not None:
            guest.undo()
        else:
            self._n_undone_edits += 1
            self.edited.emit(self._history.undo())

    def redo(self) -> None:
        """Bring back what was taken back last."""
        guest = self._redoing
        if self._can_redo_edit:
            self._n_undone_edits = max(0, self._n_undone_edits - 1)
            self.edited.emit(self._history.redo())
        elif guest is not None:
            guest.redo()
        elif self._session.can_redo:
            self._session.redo()
            self.prompts_changed.emit()

    def forget_undone(self) -> None:
        """Something new was done: redo has nothing before the prompts any more."""
        self._n_undone_edits = 0

    def show(self) -> None:
        """Enable undo and redo where there is something, and let them say what."""
        undoing, redoing = self._click_takers.undoing, self._redoing
        undo = self._session.newest_prompt or (undoing.undo_text if undoing is not None else "")
        redo = redoing.redo_text if redoing is not None else self._session.next_prompt
        can_redo_edit = self._can_redo_edit
        self._actions["undo"].setEnabled(bool(undo) or self._history.can_undo)
        self._actions["redo"].setEnabled(bool(redo) or can_redo_edit)
        self._actions["undo"].setText(_doing("Undo", undo or self._history.undo_text))
        self._actions["redo"].setText(_doing("Redo", (self._history.redo_text if can_redo_edit else "") or redo))

    @property
    def _redoing(self) -> ClickTaker | None:
        """The guest whose turn it is where no step of a layer comes first."""
        return self._click_takers.redoing if self._session.is_empty else None

    @property
    def _can_redo_edit(self) -> bool:
        is_next = self._n_undone_edits > 0 or not (self._session.can_redo or self._redoing)
        return self._session.is_empty and self._history.can_redo and is_next


def _doing(verb: str, what: str) -> str:
    return f"{verb} {what}" if what else verb
