"""Default styles of outputs, applied by QGIS on the main thread once a layer is loaded."""

from __future__ import annotations

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsRendererCategory,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from qgis.PyQt import sip
from qgis.PyQt.QtGui import QColor

from .resources import style_path

# A legend that is longer is no help.
_MOST_CLASSES = 30
# Successive hues by the golden angle: any number of classes, neighbours far apart.
_GOLDEN_ANGLE = 137.508


# QGIS deletes a post-processor with its context but does not keep its Python half alive until then.
_waiting: list[StylePostProcessor] = []


def use_style(context: QgsProcessingContext, destination: str, style: str) -> None:
    """Give an output the style `objects`, `masks` or `labels`, if QGIS is going to load it."""
    if context.willLoadLayerOnCompletion(destination):
        processor = StylePostProcessor(style)
        _waiting[:] = [other for other in _waiting if not sip.isdeleted(other)]
        _waiting.append(processor)
        context.layerToLoadOnCompletionDetails(destination).setPostProcessor(processor)


class StylePostProcessor(QgsProcessingLayerPostProcessorInterface):
    """Loads a style, and colours objects by class where the layer has classes."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._style = style

    def postProcessLayer(
        self, layer: QgsMapLayer, _context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style the layer; a style that cannot be read costs the colours, not the result."""
        message, loaded = layer.loadNamedStyle(style_path(self._style))
        if not loaded:
            feedback.pushWarning(f"The default style was not applied: {message}")
        elif isinstance(layer, QgsVectorLayer) and self._style == "objects":
            colour_by_class(layer)
        layer.triggerRepaint()


def colour_by_class(layer: QgsVectorLayer) -> None:
    """Give every class its own outline colour, if there are any and not too many for a legend."""
    values = layer.uniqueValues(layer.fields().lookupField("class"), _MOST_CLASSES + 1)
    classes = sorted(str(value) for value in values if value)
    renderer = layer.renderer()
    if not 1 <= len(classes) <= _MOST_CLASSES or not isinstance(renderer, QgsSingleSymbolRenderer):
        return
    categories = []
    for index, name in enumerate(classes):
        symbol = renderer.symbol().clone()
        colour = QColor.fromHsvF((index * _GOLDEN_ANGLE % 360) / 360, 0.85, 1.0)
        symbol.symbolLayer(0).setStrokeColor(colour)
        colour.setAlphaF(0.15)
        symbol.symbolLayer(0).setFillColor(colour)
        categories.append(QgsRendererCategory(name, symbol, name))
    categories.append(QgsRendererCategory(None, renderer.symbol().clone(), ""))
    layer.setRenderer(QgsCategorizedSymbolRenderer("class", categories))
