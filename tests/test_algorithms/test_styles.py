"""Default styles of outputs, as QGIS applies them when a result is loaded."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsFeature,
    QgsGeometry,
    QgsGraduatedSymbolRenderer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsSingleBandPseudoColorRenderer,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from segadapt.processing.algorithms.outputs import object_fields
from segadapt.processing.algorithms.styling import use_style

pytestmark = pytest.mark.qgis


@pytest.fixture
def objects(qgis_app: Any) -> QgsVectorLayer:
    """Three squares of two classes with the fields of every output."""
    layer = QgsVectorLayer("MultiPolygon?crs=EPSG:32631", "objects", "memory")
    layer.dataProvider().addAttributes(list(object_fields()))
    layer.updateFields()
    for name, score in (("roof", 0.9), ("tree", 0.95), ("roof", 0.7)):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromWkt("MULTIPOLYGON(((0 0, 1 0, 1 1, 0 1, 0 0)))"))
        feature.setAttributes(["1", name, score, 0.9, 1.0, "mobile_sam"])
        layer.dataProvider().addFeature(feature)
    return layer


def style(layer: Any, name: str) -> None:
    """Apply a style the way Processing does after a run."""
    context = QgsProcessingContext()
    details = QgsProcessingContext.LayerDetails("layer", QgsProject.instance(), "OUTPUT")
    context.addLayerToLoadOnCompletion(layer.source(), details)
    use_style(context, layer.source(), name)
    gc.collect()
    processor = context.layerToLoadOnCompletionDetails(layer.source()).postProcessor()
    processor.postProcessLayer(layer, context, QgsProcessingFeedback())


def test_styles_are_applied_run_after_run(objects: QgsVectorLayer) -> None:
    """A context takes its post-processor with it; the next run gets its own."""
    for name in ("objects", "masks", "objects"):
        style(objects, name)
        gc.collect()
    assert isinstance(objects.renderer(), QgsCategorizedSymbolRenderer)


def test_objects_are_coloured_by_class(objects: QgsVectorLayer) -> None:
    """One category per class and one for the rest, outlines of different colours."""
    style(objects, "objects")
    renderer = objects.renderer()
    assert isinstance(renderer, QgsCategorizedSymbolRenderer)
    assert renderer.classAttribute() == "class"
    categories = {c.value(): c.symbol().symbolLayer(0).strokeColor().name() for c in renderer.categories()}
    assert set(categories) == {"roof", "tree", None}
    assert len(set(categories.values())) == 3


def test_objects_without_class_get_one_outline(objects: QgsVectorLayer) -> None:
    """No legend of nothing."""
    index = objects.fields().lookupField("class")
    objects.dataProvider().changeAttributeValues({f.id(): {index: ""} for f in objects.getFeatures()})
    style(objects, "objects")
    assert isinstance(objects.renderer(), QgsSingleSymbolRenderer)
    assert objects.renderer().symbol().symbolLayer(0).strokeColor().name() == "#ffd23f"


def test_masks_are_graded_by_score(objects: QgsVectorLayer) -> None:
    """Every score from 0 to 1 has a colour."""
    style(objects, "masks")
    renderer = objects.renderer()
    assert isinstance(renderer, QgsGraduatedSymbolRenderer)
    assert renderer.classAttribute() == "score"
    bounds = [(r.lowerValue(), r.upperValue()) for r in renderer.ranges()]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 1
    assert all(low == high for (_, low), (high, _) in pairwise(bounds))


def test_labels_that_are_neighbours_differ(qgis_app: Any, make_scene: Any, tmp_path: Path) -> None:
    """0 is transparent, and successive numbers have different colours."""
    layer = QgsRasterLayer(str(make_scene(tmp_path / "labels.tif")), "labels")
    style(layer, "labels")
    renderer = layer.renderer()
    assert isinstance(renderer, QgsSingleBandPseudoColorRenderer)
    shade = renderer.shader().rasterShaderFunction().shade
    assert shade(0)[4] == 0
    colours = [shade(number)[1:5] for number in range(1, 101)]
    assert all(colour[3] == 255 for colour in colours)
    assert all(one != other for one, other in pairwise(colours))
    assert shade(4_000_000_000)[0]
