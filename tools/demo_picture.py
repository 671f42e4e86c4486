"""The picture of the demo: two maps side by side, laid out and rendered by QGIS."""

from __future__ import annotations

from pathlib import Path

from qgis.core import (
    QgsContrastEnhancement,
    QgsFeatureRequest,
    QgsFillSymbol,
    QgsLayoutExporter,
    QgsLayoutItemLabel,
    QgsLayoutItemMap,
    QgsLayoutItemScaleBar,
    QgsLayoutItemShape,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsMapLayer,
    QgsMarkerSymbol,
    QgsPrintLayout,
    QgsProject,
    QgsProperty,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRuleBasedRenderer,
    QgsSingleSymbolRenderer,
    QgsSymbol,
    QgsSymbolLayer,
    QgsTextFormat,
    QgsUnitTypes,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor, QFont

PICTURE_PX = QSize(1600, 920)
PAGE_MM = (320.0, 184.0)  # 5 px each
MAP_MM = 152.0
MARGIN_MM = 5.0
MAP_TOP_MM = 19.0
FONT = "DejaVu Sans"
TITLE = "SegAdapt: MobileSAM on a 0.5 m satellite scene of Rotterdam"
CREDIT = "Imagery: SpaceNet 6, WorldView-2 (c) Maxar Technologies, CC BY-SA 4.0, pan-sharpened to 0.5 m"

_POINTS, _BOXES = "#ffe119", "#00e5ff"
_FOREGROUND, _BACKGROUND = "#2ee62e", "#ff2020"
# Colours that neighbours do not share, from the number of the object alone.
_RANDOM_COLOUR = 'color_hsva((to_int("object_id") * 137) % 360, 85, 100, {alpha})'


def draw_overview(folder: Path, *, scene: Path, prompts: Path) -> None:
    """Draw `overview.png` from the results in `folder`.

    Left: outlines from points and from boxes with their prompts. Right: everything. Raises `OSError` where
    QGIS cannot write the picture, `ValueError` for a layer that does not open.
    """
    project = QgsProject()
    image = _scene_layer(scene)
    from_points = _layer(folder / "from_points.gpkg", symbol=_outline(_POINTS, width_mm=0.9, alpha=50))
    from_boxes = _layer(folder / "from_boxes.gpkg", symbol=_outline(_BOXES, width_mm=0.35, alpha=0))
    boxes = _layer(prompts, table="prompt_boxes", symbol=_outline("#ffffff", width_mm=0.25, alpha=0, style="dash"))
    points = _point_layer(prompts)
    everything = _layer(folder / "everything.gpkg", symbol=_coloured())
    left = [points, from_boxes, from_points, boxes, image]  # top to bottom
    right = [everything, image]
    project.addMapLayers([*left, everything], False)
    project.setCrs(image.crs())

    layout = QgsPrintLayout(project)
    layout.initializeDefaults()
    layout.pageCollection().page(0).setPageSize(QgsLayoutSize(*PAGE_MM))
    second_mm = PAGE_MM[0] - MARGIN_MM - MAP_MM
    first_map = _add_map(layout, left, image, x_mm=MARGIN_MM)
    _add_map(layout, right, image, x_mm=second_mm)
    _add_text(
        layout,
        TITLE,
        x_mm=MARGIN_MM,
        y_mm=2.5,
        size_pt=15,
        bold=True,
    )
    n_objects, n_masks = from_points.featureCount(), everything.featureCount()
    _add_text(layout, f"Segment from prompts: {n_objects} objects", x_mm=MARGIN_MM, y_mm=11.5, size_pt=11)
    _add_text(layout, f"Segment everything: {n_masks} objects, no prompts", x_mm=second_mm, y_mm=11.5, size_pt=11)
    _add_legend(layout)
    _add_scale_bar(layout, first_map, right_mm=PAGE_MM[0] - MARGIN_MM)
    _export(layout, folder / "overview.png")


def _scene_layer(path: Path) -> QgsRasterLayer:
    layer = QgsRasterLayer(str(path), "scene", "gdal")
    if not layer.isValid():
        raise ValueError(f"QGIS cannot open {path}.")
    layer.setContrastEnhancement(QgsContrastEnhancement.StretchToMinimumMaximum, QgsRasterMinMaxOrigin.CumulativeCut)
    layer.brightnessFilter().setGamma(1.4)  # shadows of buildings would be black
    return layer


def _layer(path: Path, *, symbol: QgsSymbol, table: str = "") -> QgsVectorLayer:
    source = f"{path}|layername={table}" if table else str(path)
    layer = QgsVectorLayer(source, path.stem, "ogr")
    if not layer.isValid():
        raise ValueError(f"QGIS cannot open {source}.")
    renderer = QgsSingleSymbolRenderer(symbol)
    largest_first = QgsFeatureRequest.OrderByClause("$area", False)  # so that none hides a smaller one
    renderer.setOrderBy(QgsFeatureRequest.OrderBy([largest_first]))
    renderer.setOrderByEnabled(True)
    layer.setRenderer(renderer)
    return layer


def _outline(
    colour: str, *, width_mm: float, alpha: int, fill: str | None = None, style: str = "solid"
) -> QgsFillSymbol:
    inside = QColor(fill or colour)
    return QgsFillSymbol.createSimple(
        {
            "color": f"{inside.red()},{inside.green()},{inside.blue()},{alpha}",
            "outline_color": colour,
            "outline_width": str(width_mm),
            "outline_style": style,
        }
    )


def _coloured() -> QgsFillSymbol:
    symbol = _outline("#ffffff", width_mm=0.5, alpha=90)
    for target, alpha in ((QgsSymbolLayer.PropertyFillColor, 28), (QgsSymbolLayer.PropertyStrokeColor, 100)):
        colour = QgsProperty.fromExpression(_RANDOM_COLOUR.format(alpha=alpha))
        symbol.symbolLayer(0).setDataDefinedProperty(target, colour)
    return symbol


def _dot(colour: str) -> QgsMarkerSymbol:
    return QgsMarkerSymbol.createSimple(
        {"color": colour, "outline_color": "black", "size": "1.6", "outline_width": "0.15"}
    )


def _point_layer(path: Path) -> QgsVectorLayer:
    layer = _layer(path, table="prompt_points", symbol=_dot(_FOREGROUND))
    root = QgsRuleBasedRenderer.Rule(None)
    for value, colour in ((1, _FOREGROUND), (0, _BACKGROUND)):
        root.appendChild(QgsRuleBasedRenderer.Rule(_dot(colour), filterExp=f'"label" = {value}'))
    layer.setRenderer(QgsRuleBasedRenderer(root))
    return layer


def _add_map(
    layout: QgsPrintLayout, layers: list[QgsMapLayer], image: QgsRasterLayer, *, x_mm: float
) -> QgsLayoutItemMap:
    item = QgsLayoutItemMap(layout)
    item.attemptMove(QgsLayoutPoint(x_mm, MAP_TOP_MM))
    item.attemptResize(QgsLayoutSize(MAP_MM, MAP_MM))
    item.setCrs(image.crs())
    item.setLayers(layers)
    item.setExtent(image.extent())
    item.setFrameEnabled(True)
    layout.addLayoutItem(item)
    return item


def _add_text(
    layout: QgsPrintLayout, text: str, *, x_mm: float, y_mm: float, size_pt: float, bold: bool = False
) -> None:
    label = QgsLayoutItemLabel(layout)
    label.setText(text)
    label.setFont(QFont(FONT, int(size_pt), QFont.Weight.Bold if bold else QFont.Weight.Normal))
    label.adjustSizeToText()
    label.attemptMove(QgsLayoutPoint(x_mm, y_mm))
    layout.addLayoutItem(label)


def _add_legend(layout: QgsPrintLayout) -> None:
    """One line below the maps; QGIS's own legend stands upright and would cover the image."""
    y_mm = MAP_TOP_MM + MAP_MM + 2.5
    x_mm = MARGIN_MM
    for symbol, is_point, text, width_mm in (
        (_outline(_POINTS, width_mm=0.7, alpha=90), False, "from points", 31.0),
        (_outline("#000000", fill=_FOREGROUND, width_mm=0.2, alpha=255), True, "on the object", 32.0),
        (_outline("#000000", fill=_BACKGROUND, width_mm=0.2, alpha=255), True, "beside it", 27.0),
        (_outline(_BOXES, width_mm=0.7, alpha=0), False, "from boxes", 30.0),
        (_outline("#606060", width_mm=0.3, alpha=0, style="dash"), False, "box", 20.0),
    ):
        swatch = QgsLayoutItemShape(layout)
        swatch.setShapeType(QgsLayoutItemShape.Ellipse if is_point else QgsLayoutItemShape.Rectangle)
        swatch.setSymbol(symbol)
        width = 2.6 if is_point else 5.0
        swatch.attemptResize(QgsLayoutSize(width, 2.6))
        swatch.attemptMove(QgsLayoutPoint(x_mm + 5.0 - width, y_mm + 0.7))
        layout.addLayoutItem(swatch)
        _add_text(layout, text, x_mm=x_mm + 6, y_mm=y_mm, size_pt=9)
        x_mm += width_mm
    _add_text(layout, CREDIT, x_mm=MARGIN_MM, y_mm=y_mm + 5.0, size_pt=7)


def _add_scale_bar(layout: QgsPrintLayout, item: QgsLayoutItemMap, *, right_mm: float) -> None:
    bar = QgsLayoutItemScaleBar(layout)
    bar.setStyle("Single Box")
    bar.setLinkedMap(item)
    bar.setUnits(QgsUnitTypes.DistanceMeters)
    bar.setUnitLabel("m")
    bar.setNumberOfSegments(2)
    bar.setNumberOfSegmentsLeft(0)
    bar.setUnitsPerSegment(25)
    bar.setHeight(1.6)
    font = QgsTextFormat()
    font.setFont(QFont(FONT))
    font.setSize(9)
    bar.setTextFormat(font)
    bar.update()
    layout.addLayoutItem(bar)
    bar.attemptMove(QgsLayoutPoint(right_mm - bar.sizeWithUnits().width(), MAP_TOP_MM + MAP_MM + 1.0))


def _export(layout: QgsPrintLayout, path: Path) -> None:
    # Not `exportToImage`: it tries to georeference the file, which GDAL reports as an error for PNG.
    picture = QgsLayoutExporter(layout).renderPageToImage(0, PICTURE_PX)
    if not picture.save(str(path)):
        raise OSError(f"QGIS cannot write {path}; check space and rights.")
