"""The classes of a project: their names, colours and order, which one is chosen, and the memory of all that."""

from __future__ import annotations

import json
from collections.abc import Iterable

from qgis.core import QgsCategorizedSymbolRenderer, QgsProject, QgsVectorLayer
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .class_style import palette_colour, symbol_colour

_SCOPE, _KEY = "SegAdapt", "classes"


class Classes(QObject):
    """Number keys choose the first nine. Kept in the project file; another project brings its own.

    `changed`: names, colours or order are different. `chosen`: the class of the objects to come, "" for none.
    `renamed`: old name and new name, for layers that hold features of the class.
    """

    changed = pyqtSignal()
    chosen = pyqtSignal(str)
    renamed = pyqtSignal(str, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._colours: dict[str, QColor] = {}
        self._unnamed_colour: QColor | None = None
        self._current = ""
        project = QgsProject.instance()
        project.readProject.connect(self._read)
        project.cleared.connect(self._read)
        self._read()

    def dispose(self) -> None:
        """Let go of the project."""
        project = QgsProject.instance()
        project.readProject.disconnect(self._read)
        project.cleared.disconnect(self._read)

    @property
    def current(self) -> str:
        """The class of the objects to come, "" for none."""
        return self._current

    def names(self) -> list[str]:
        """Return the classes in the order of their numbers."""
        return list(self._colours)

    def colour(self, name: str) -> QColor:
        """Return the colour of a class; an unknown one gets the colour that it would have once added."""
        if name in self._colours:
            return QColor(self._colours[name])
        if not name and self._unnamed_colour is not None:
            return QColor(self._unnamed_colour)
        return palette_colour(taken=self._colours.values())

    def number(self, name: str) -> int | None:
        """Return the key, 1 to 9, that chooses a class; None for the tenth and later ones."""
        position = self.names().index(name) + 1 if name in self._colours else 10
        return position if position <= 9 else None

    def add(self, name: str, colour: QColor | None = None) -> str:
        """Add a class where it is new and return its name without surrounding blanks; "" adds nothing."""
        name = name.strip()
        if name and name not in self._colours:
            self._colours[name] = QColor(colour) if colour is not None else self.colour(name)
            self._keep()
        return name

    def choose(self, name: str) -> None:
        """Let the objects to come be of this class; a new one is added, "" stands for no class."""
        name = self.add(name)
        if name != self._current:
            self._current = name
            self.chosen.emit(name)

    def choose_number(self, n: int) -> bool:
        """Choose the class that key `n` (1 to 9) stands for. Return False where there is none."""
        if not 1 <= n <= min(9, len(self._colours)):
            return False
        self.choose(self.names()[n - 1])
        return True

    def set_colour(self, name: str, colour: QColor) -> None:
        """Give a class another colour; "" is the colour of objects without class."""
        if not name:
            self._unnamed_colour = QColor(colour)
        else:
            self._colours[name] = QColor(colour)
        self._keep()

    def rename(self, old: str, new: str) -> str:
        """Give a class another name in the same place.

        Returns "" or, where that cannot be, why in a sentence: two classes never become one by a slip.
        """
        new = new.strip()
        if old == new or old not in self._colours:
            return ""
        if not new:
            return f"A class needs a name; '{old}' keeps its own."
        if new in self._colours:
            return f"There is a class '{new}' already; choose another name for '{old}'."
        self._colours = {new if name == old else name: colour for name, colour in self._colours.items()}
        is_current = self._current == old
        if is_current:
            self._current = new
        self._keep()
        self.renamed.emit(old, new)
        if is_current:
            self.chosen.emit(new)
        return ""

    def remove(self, name: str) -> None:
        """Forget a class; features that have it keep it."""
        if self._colours.pop(name, None) is None:
            return
        self._keep()
        if self._current == name:
            self.choose("")

    def set_order(self, names: Iterable[str]) -> None:
        """Put classes in another order, which changes the number keys; those not named come last."""
        known = [name for name in names if name in self._colours]
        order = dict.fromkeys((*known, *self._colours))
        if list(order) != self.names():
            self._colours = {name: self._colours[name] for name in order}
            self._keep()

    def read_layer(self, layer: QgsVectorLayer) -> int:
        """Add the classes of a layer that is styled by category, in their colours. Return how many are new."""
        renderer = layer.renderer()
        if not isinstance(renderer, QgsCategorizedSymbolRenderer):
            return 0
        categories = renderer.categories()  # kept: a symbol dies with its category
        found = {
            category.value(): symbol_colour(category.symbol())
            for category in categories
            if isinstance(category.value(), str) and category.value().strip()
        }
        new = {name.strip(): colour for name, colour in found.items() if name.strip() not in self._colours}
        if new:
            self._colours.update(new)
            self._keep()
        return len(new)

    def _keep(self) -> None:
        stored = {
            "classes": [[name, colour.name()] for name, colour in self._colours.items()],
            "unnamed": self._unnamed_colour.name() if self._unnamed_colour is not None else "",
        }
        QgsProject.instance().writeEntry(_SCOPE, _KEY, json.dumps(stored))
        self.changed.emit()

    def _read(self, *_document: object) -> None:
        text, _ = QgsProject.instance().readEntry(_SCOPE, _KEY, "")
        try:
            stored = json.loads(text or "{}")
            colours = {str(name): QColor(colour) for name, colour in stored.get("classes", ())}
            unnamed = QColor(stored.get("unnamed") or "")
        except (ValueError, TypeError, AttributeError):
            # Edited by hand or by another version: classes can be named again, the project must open.
            colours, unnamed = {}, QColor()
        self._colours = {name: colour for name, colour in colours.items() if colour.isValid()}
        self._unnamed_colour = unnamed if unnamed.isValid() else None
        self.changed.emit()
        if self._current not in self._colours:
            self._current = ""
            self.chosen.emit("")
