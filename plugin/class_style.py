"""Classes and their colours: which colour a new class gets, and how a layer of ours shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qgis.core import (
    NULL,
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
_STYLE = "SegAdapt"


def palette_colour(*, taken: Iterable[QColor]) -> QColor:
    """Return the first colour of the palette that no class has yet; it never runs out."""
    used = {colour.name() for colour in taken}
    for first in _FIRST_COLOURS:
        if first not in used:
            return QColor(first)
    n = len(_FIRST_COLOURS)
    while True:
        colour = QColor.fromHsvF(n * _GOLDEN_ANGLE % 360 / 360, 0.6, 1.0)
        if colour.name() not in used:
            return colour
        n += 1


def symbol_colour(symbol: QgsSymbol) -> QColor:
    """Return what a class looks like on the map: its outline, or its fill where it has no outline."""
    layer = symbol.symbolLayer(0)
    colour = layer.strokeColor() if layer is not None and layer.strokeColor().isValid() else symbol.color()
    if not colour.alpha():
        colour = symbol.color()
    colour.setAlpha(255)
    return QColor(colour)


def show_class(layer: QgsVectorLayer, class_name: str, *, colour: QColor) -> None:
    """Let a layer of ours draw a class in its colour; layers of the user's keep their style."""
    if layer.customProperty(OWN_LAYER) and _show(layer, class_name, colour):
        _keep_style(layer)


def show_classes(layer: QgsVectorLayer, colours: Mapping[str, QColor]) -> None:
    """Let a layer of ours draw those of these classes that it shows already in their present colours."""
    if not layer.customProperty(OWN_LAYER):
        return
    shown = {category.value() for category in _categories(layer).categories()}
    changes = [_show(layer, name, colour) for name, colour in colours.items() if name in shown]
    if any(changes):
        _keep_style(layer)


def style_classes(layer: QgsVectorLayer, colours: Mapping[str, QColor]) -> None:
    """Let a new layer draw these classes in their colours, wherever its file is opened."""
    for class_name, colour in colours.items():
        _show(layer, class_name, colour)
    _keep_style(layer)


def _show(layer: QgsVectorLayer, class_name: str, colour: QColor) -> bool:
    """Return False where the layer shows the class like that already."""
    renderer = _categories(layer)
    index = renderer.categoryIndexForValue(class_name)
    categories = list(renderer.categories())  # kept: a symbol dies with its category
    if index < 0:
        label = class_name or "(no class)"
        categories.append(QgsRendererCategory(class_name, _symbol(colour), label))
        # Before the one for all other values, which QGIS expects at the end.
        categories.sort(key=lambda category: category.value() in (None, NULL, ""))
        renderer = QgsCategorizedSymbolRenderer("class", categories)
    elif symbol_colour(categories[index].symbol()).name() == colour.name():
        return False
    else:
        renderer.updateCategorySymbol(index, _symbol(colour))
    # A new renderer, and not a changed one: only that makes the legend follow.
    layer.setRenderer(renderer)
    layer.triggerRepaint()
    return True


def _keep_style(layer: QgsVectorLayer) -> None:
    """Write the style into the GeoPackage, so that the file has its classes wherever it is opened (after a crash).

    Only a style: where it cannot be written, the objects are safe all the same.
    """
    if layer.providerType() != "ogr" or layer.isEditable():
        return
    _, ids, names, _, _ = layer.listStylesInDatabase()
    for style_id, name in zip(ids, names, strict=True):
        if name == _STYLE:
            layer.deleteStyleFromDatabase(style_id)  # or QGIS would ask whether to overwrite it
    layer.saveStyleToDatabase(_STYLE, "Objects by class, kept by SegAdapt", True, "")


def _categories(layer: QgsVectorLayer) -> QgsCategorizedSymbolRenderer:
    renderer = layer.renderer().clone()
    if isinstance(renderer, QgsCategorizedSymbolRenderer) and renderer.classAttribute() == "class":
        return renderer
    return QgsCategorizedSymbolRenderer("class", [])


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
