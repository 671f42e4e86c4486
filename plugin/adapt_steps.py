"""What the algorithm of each step is given, and the layers that a step needs and makes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from qgis.core import (
    NULL,
    QgsDistanceArea,
    QgsFeatureRequest,
    QgsMapLayer,
    QgsPointXY,
    QgsProcessingUtils,
    QgsProject,
    QgsRaster,
    QgsRasterLayer,
    QgsUnitTypes,
    QgsVectorLayer,
)

from ..processing.algorithms.adapt_model import METHODS
from .adapt_story import Story
from .adapt_words import ADAPT, JUDGE, MAP, SELECT, SHIFT, TUNE, Results
from .class_style import OWN_LAYER
from .field_mapping import field_of
from .save_places import folders, free_path

ALGORITHMS = {
    SHIFT: "domainshift",
    ADAPT: "adaptmodel",
    SELECT: "selectsamples",
    TUNE: "finetunemodel",
    MAP: "segmentraster",
    JUDGE: "evaluatemodel",
}
TRAIN = "trainmodel"

_SUBFOLDER = "adaptation"


def parameters(step: str, story: Story) -> dict[str, Any]:
    """What a step is given; files to be made get free names. Raises OSError where there is no place for them."""
    given: dict[str, Any] = {"RASTERS": [story.raster_id], "MODEL": story.model}
    if step == SHIFT:
        return {**given, "REPORT": new_file(story, "distance", ".html")}
    if step == ADAPT:
        methods = str(story.results.get(SHIFT, {}).get("RECOMMENDED", ""))
        chosen = {"METHODS": methods} if methods in METHODS else {}
        return {**given, **chosen, **_source(story), **_model_files(story, "adapted")}
    if step == SELECT:
        labels = places_of(story)
        if labels is None:
            output = new_file(story, "places to label", ".gpkg")
        else:
            output = QgsProcessingUtils.generateTempFilename("places.gpkg")
            given["LABELLED"] = labels.id()
        # Segments, as one class fits a segment and a single key gives it.
        return {**given, "MODEL": story.newest, "REGIONS": "segments", "OUTPUT": output}
    if step == TUNE:
        source = _source(story, prefix="SOURCE_")
        return {**given, "MODEL": story.base, **_labels(story.labels_id), **source, **_model_files(story, "taught")}
    if step == MAP:
        return {"INPUT": story.raster_id, "MODEL": story.newest, "OUTPUT": new_file(story, "map", ".tif")}
    return {
        "MODELS": list(dict.fromkeys((story.model, story.newest))),
        "RASTERS": [story.raster_id],
        **_labels(story.check_id),
        "TABLE": QgsProcessingUtils.generateTempFilename("compared.csv"),
        "REPORT": new_file(story, "compared", ".html"),
    }


def new_file(story: Story, what: str, ending: str) -> str:
    """Return a free path for a result, named by the image. Raises OSError where no folder can be written to."""
    name = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in layer_name(story.raster_id))
    return str(free_path(_folder(), f"{name} {what}".strip(), ending))


def raster_of(story: Story) -> QgsRasterLayer | None:
    """The image, None where it is not in the project."""
    layer = QgsProject.instance().mapLayer(story.raster_id)
    return layer if isinstance(layer, QgsRasterLayer) else None


def vector_layer(layer_id: str) -> QgsVectorLayer | None:
    """A layer of the project, None where it is gone."""
    layer = QgsProject.instance().mapLayer(layer_id)
    return layer if isinstance(layer, QgsVectorLayer) else None


def places_of(story: Story) -> QgsVectorLayer | None:
    """The layer of places that the next ones join, None where a new one has to be made: users' layers stay theirs."""
    layer = vector_layer(story.labels_id)
    return layer if layer is not None and layer.customProperty(OWN_LAYER) else None


def layer_name(layer_id: str) -> str:
    """The name of a layer of the project, "image" where it is gone."""
    layer: QgsMapLayer | None = QgsProject.instance().mapLayer(layer_id)
    return "image" if layer is None else str(layer.name())


def made_layer(output: str) -> QgsVectorLayer | None:
    """The layer that an algorithm made: one of the project where its dialog has added it, else not in it yet."""
    for layer in QgsProject.instance().mapLayers().values():
        if isinstance(layer, QgsVectorLayer) and output in (layer.id(), layer.source()):
            return layer
    layer = QgsVectorLayer(output, Path(output).stem, "ogr")
    return layer if layer.isValid() else None


def add_map(result: Results, *, name: str) -> None:
    """Add the raster of classes to the project, where the dialog has not done it."""
    layers = QgsProject.instance().mapLayers().values()
    layer = QgsRasterLayer(result["OUTPUT"], name, "gdal")
    if layer.isValid() and not any(one.source() == layer.source() for one in layers):
        QgsProject.instance().addMapLayer(layer)


def n_labelled(layer: QgsVectorLayer | None) -> int:
    """Number of features that have a class; all of them in a layer without such a field."""
    if layer is None:
        return 0
    field = field_of(layer, "class")
    if field is None:
        return int(layer.featureCount())
    request = QgsFeatureRequest().setFlags(QgsFeatureRequest.NoGeometry)
    request.setSubsetOfAttributes([field], layer.fields())
    return sum(feature[field] not in (None, NULL, "") for feature in layer.getFeatures(request))


def bands_of(raster: QgsRasterLayer, *, wanted: int) -> int:
    """Number of bands that a model of `wanted` bands can see: a palette has three, red, green and blue."""
    if wanted == 3 and raster.bandCount() and raster.dataProvider().colorInterpretation(1) == QgsRaster.PaletteIndex:
        return 3
    return int(raster.bandCount())


def pixel_m(raster: QgsRasterLayer) -> float | None:
    """Metres on the ground of a pixel's side in the middle of an image, None without a CRS."""
    if not raster.crs().isValid():
        return None
    area = QgsDistanceArea()
    area.setSourceCrs(raster.crs(), QgsProject.instance().transformContext())
    area.setEllipsoid(raster.crs().ellipsoidAcronym() or "EPSG:7030")
    middle = raster.extent().center()
    beside = QgsPointXY(middle.x(), middle.y() + raster.rasterUnitsPerPixelY())
    length = area.measureLine(middle, beside)
    return float(area.convertLengthMeasurement(length, QgsUnitTypes.DistanceMeters))


def mean_ious(table: str) -> list[float]:
    """Mean IoU of each model in a table of `evaluatemodel`, in its order; none where it cannot be read."""
    try:
        with Path(table).open(encoding="utf-8", newline="") as file:
            return [float(row["iou"]) for row in csv.DictReader(file) if row["class"] == "(all)"]
    except (OSError, ValueError, KeyError):
        return []


def _labels(layer_id: str) -> dict[str, str]:
    layer = vector_layer(layer_id)
    field = None if layer is None else field_of(layer, "class")
    return {"LABELS": layer_id, "CLASS_FIELD": field or ""}


def _source(story: Story, *, prefix: str = "") -> dict[str, Any]:
    """What is rehearsed, where an image of the source and its labels are there; `prefix`: of the labels' parameters."""
    layers = QgsProject.instance().mapLayers()
    if story.source_id not in layers or story.source_labels_id not in layers:
        return {}
    labels = {f"{prefix}{name}": value for name, value in _labels(story.source_labels_id).items()}
    return {"SOURCE": [story.source_id], **labels}


def _model_files(story: Story, what: str) -> dict[str, str]:
    return {"OUTPUT": new_file(story, what, ".safetensors"), "REPORT": new_file(story, what, ".html")}


def _folder() -> Path:
    """The first folder that results can be written to."""
    problem = OSError("no folder is known")
    for base in folders():
        folder = base / _SUBFOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".segadapt"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = error
            continue
        return folder
    raise problem
