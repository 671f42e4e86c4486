"""Undo and redo: the prompts of the object in hand first, then what a guest took, then what was done to layers."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from qgis.PyQt.QtCore import QObject, pyqtSignal

from .actions import Actions
from .classes import Classes
from .click_takers import ClickTaker, ClickTakers
from .feature_sink import EditStep
from .history import EditHistory
from .session import Begun, Session

# Accepts whose prompts come back: each prompt holds its answer, some MB.
_MOST_ACCEPTS = 20


class _Object(NamedTuple):
    """An object that was in hand, and the class that it was or would have become."""

    begun: Begun
    class_name: str


class UndoControl(QObject):
    """`prompts_changed`: the session holds other prompts now; `edited` carries what was done to a layer, or why not.

    With an accept that is undone its prompts and its class come back, unless somebody else has the clicks. Redo stores
    the object again as long as it is in hand as it was accepted.
    """

    prompts_changed = pyqtSignal()
    edited = pyqtSignal(str)

    def __init__(
        self,
        session: Session,
        *,
        history: EditHistory,
        classes: Classes,
        click_takers: ClickTakers,
        actions: Actions,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._history, self._classes = session, history, classes
        self._click_takers, self._actions = click_takers, actions
        self._accepted: deque[tuple[object, _Object]] = deque(maxlen=_MOST_ACCEPTS)
        """Objects by the keys of the steps that stored them."""
        self._set_aside: list[_Object] = []
        """The object, all of its prompts undone, at each undo of a step of a layer: redo begins with that step."""

    def undo(self) -> None:
        """Take the newest thing back."""
        guest = self._click_takers.undoing
        if self._session.can_undo:
            self._session.undo()
            self.prompts_changed.emit()
        elif guest is not None:
            guest.undo()
        else:
            self.edited.emit(self._undo_edit())

    def redo(self) -> None:
        """Bring back what was taken back last."""
        guest = self._redoing
        if self._can_redo_edit:
            self.edited.emit(self._redo_edit())
        elif guest is not None:
            guest.redo()
        elif self._session.can_redo:
            self._session.redo()
            self.prompts_changed.emit()

    def keep_accepted(self, class_name: str) -> None:
        """Remember the object in hand, which the newest step of the history has stored."""
        if self._history.newest is not None:
            accepted = _Object(self._session.begun._replace(undone=()), class_name)
            self._accepted.append((self._history.newest.key, accepted))

    def forget_accepted(self) -> None:
        """Prompts are void: what was accepted comes back without them."""
        self._accepted.clear()

    def forget_undone(self) -> None:
        """Something new was done: redo has nothing before the prompts any more."""
        self._set_aside.clear()

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
        session, step = self._session, self._history.next
        if step is None:
            return False
        accepted = self._accepted_by(step)
        if accepted is not None and session.newest_step is accepted.begun.done[-1]:
            return not session.can_redo  # its prompts come first
        return session.is_empty and bool(self._set_aside or not (session.can_redo or self._redoing))

    def _undo_edit(self) -> str:
        step, before = self._history.newest, self._history.next
        aside = _Object(self._session.begun, self._classes.current)  # before: undo may rename the class
        sentence = self._history.undo()
        if step is None or self._history.next is before:
            return sentence
        self._set_aside.append(aside)
        accepted = self._accepted_by(step)
        if accepted is None or self._click_takers.present is not None:
            return sentence
        self._take_up(accepted)
        return f"{sentence} Its prompts are in hand again."

    def _redo_edit(self) -> str:
        step, before = self._history.next, self._history.newest
        sentence = self._history.redo()
        if self._history.next is step:
            return sentence  # not now; it can be tried again
        aside = self._set_aside.pop() if self._set_aside else _Object(Begun(), self._classes.current)
        if self._history.newest is not before:
            self._take_up(aside)
        return sentence

    def _take_up(self, taken: _Object) -> None:
        self._session.take_up(taken.begun)
        self._classes.choose(taken.class_name)
        self.prompts_changed.emit()

    def _accepted_by(self, step: EditStep) -> _Object | None:
        return next((accepted for key, accepted in self._accepted if key is step.key), None)


def _doing(verb: str, what: str) -> str:
    return f"{verb} {what}" if what else verb
