"""Classes and their colours: which colour a class has, and how a layer of ours shows it."""

from __future__ import annotations

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsFillSymbol,
    QgsRendererCategory,
    QgsSymbol,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

OWN_LAYER = "segadapt/is_own"
"""Custom property of layers that SegAdapt made; only their style is touched."""

# Bright on imagery, which is mostly dark green and grey, and apart from the markers of prompts.
_FIRST_COLOURS = ("#22d3ee", "#ff9f1c", "#ff5cc8", "#a3e635", "#b79cff", "#ffe566", "#5eead4", "#ff7b72")
# More classes than that get successive hues by the golden angle, so that neighbours are far apart.
_GOLDEN_ANGLE = 137.508
_FILL_ALPHA = 70


class ClassColours:
    """Remembers the colour of every class, and gives a new class one that no other has."""

    def __init__(self) -> None:
        self._colours: dict[str, QColor] = {}

    def colour(self, class_name: str) -> QColor:
        """Return the colour of a class."""
        if class_name not in self._colours:
            n_known = len(self._colours)
            if n_known < len(_FIRST_COLOURS):
                return QColor(_FIRST_COLOURS[n_known])
            return QColor.fromHsvF(n_known * _GOLDEN_ANGLE % 360 / 360, 0.6, 1.0)
        return QColor(self._colours[class_name])

    def remember(self, class_name: str, colour: QColor) -> None:
        """Let a class have this colour from now on."""
        self._colours[class_name] = QColor(colour)


def show_class(layer: QgsVectorLayer, class_name: str, *, colour: QColor) -> None:
    """Let a layer of ours draw a class in its colour; layers of the user's keep their style."""
    if not layer.customProperty(OWN_LAYER):
        return
    renderer = layer.renderer().clone()
    if not isinstance(renderer, QgsCategorizedSymbolRenderer) or renderer.classAttribute() != "class":
        renderer = QgsCategorizedSymbolRenderer("class", [])
    index = renderer.categoryIndexForValue(class_name)
    if index >= 0:
        renderer.updateCategorySymbol(index, _symbol(colour))
    else:
        renderer.addCategory(QgsRendererCategory(class_name, _symbol(colour), class_name or "(no class)"))
    # A new renderer, and not a changed one: only that makes the legend follow.
    layer.setRenderer(renderer)
    layer.triggerRepaint()


def _symbol(colour: QColor) -> QgsSymbol:
    fill = QColor(colour)
    fill.setAlpha(_FILL_ALPHA)
    return QgsFillSymbol.createSimple(
        {
            "color": f"{fill.red()},{fill.green()},{fill.blue()},{fill.alpha()}",
            "outline_color": colour.name(),
            "outline_width": "0.5",
        }
    )
