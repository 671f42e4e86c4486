"""Processing algorithm `segadapt:segmentraster`."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsFillSymbol,
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterRasterDestination,
    QgsRendererCategory,
)
from qgis.PyQt import sip

from ...models.progress import raise_if_cancelled
from ...models.semantic.card import SegmenterClass
from ..errors import JobError
from . import outputs
from .base import is_temporary
from .class_map import ClassMapAlgorithm
from .feedback import FeedbackProgress
from .model_algorithm import ModelAlgorithm
from .settings import EngineSettings

# As in `jobs.segment_raster`, which needs the environment (a test compares them).
MOST_OVERLAP, MOST_WINDOW_PX = 0.75, 4096
_FILL_ALPHA = 110
# QGIS deletes a post-processor with its context but does not keep its Python half alive until then.
_waiting: list[ClassPolygonStyle] = []


class SegmentRasterAlgorithm(ModelAlgorithm):
    """A raster and a segmentation model, and the class of every pixel."""

    OVERLAP = "OVERLAP"
    FLIPS = "FLIPS"
    WINDOW = "WINDOW"
    SCHEDULER = "SCHEDULER"
    PROBABILITIES = "PROBABILITIES"
    CONFIDENCE = "CONFIDENCE"
    ENTROPY = "ENTROPY"
    POLYGONS = "POLYGONS"
    COUNT = "COUNT"
    SECONDS = "SECONDS"

    def name(self) -> str:
        """Return the id."""
        return "segmentraster"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Segment raster")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Gives every pixel of a raster the class that a segmentation model sees there. The model looks at "
            "overlapping windows in its own resolution, whose answers are blended and brought back to the raster's "
            "pixels. Rasters of any size are worked out block by block; after a crash or an error a run "
            "with the same inputs and the same output file goes on with the blocks that are finished, which lie in a "
            "hidden folder beside it. Another output file and a temporary one start anew."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        names = (self.INPUT, self.BANDS, self.EXTENT, self.DEVICE)
        return {
            **{name: shared[name] for name in names},
            self.MODEL: shared[self.MODEL]
            + " "
            + self.tr("A saved class map model does as well; it has no probabilities, and 0 is nodata in its map."),
            self.OVERLAP: self.tr(
                "Share of a window that the next one sees too, 0 to 0.75; more takes longer and hides what a model "
                "answers near the edges of windows."
            ),
            self.WINDOW: self.tr(
                "Side of the windows in the model's pixels, 0 for what the model was trained with. Larger ones see "
                "more around each place, so that the answer depends less on where they lie, and take less time in all, "
                "but on ground unlike that of the training they can cost accuracy."
            ),
            self.FLIPS: self.tr("Take the mean over four mirror images of each window: better, and four times slower."),
            self.BATCH: shared[self.BATCH],
            self.SCHEDULER: self.tr(
                "Address of a Dask scheduler (tcp://host:8786), whose workers do the work. Start both with bin/dask of "
                "SegAdapt's environment and with PYTHONPATH set to the folder that holds the plugin's folder segadapt; "
                "raster and model lie at the same paths for all. Without it the work is done here."
            ),
            self.OUTPUT: self.tr(
                "Cloud-optimised GeoTIFF of class ids on the pixels of the input; 255 is nodata. It holds the colours "
                "of the classes as a colour table and their names as metadata (CLASS_0 and so on). The style, with the "
                "names in the legend, is a file of the same name beside it, .qml: move both, or the legend shows the "
                "numbers of the classes."
            ),
            self.PROBABILITIES: self.tr("Raster with one band per class: its probability in per cent; 255 is nodata."),
            self.CONFIDENCE: self.tr("Raster of the largest probability in per cent; 255 is nodata."),
            self.ENTROPY: self.tr("Raster of the uncertainty: 0 certain to 100 unknown, in per cent; 255 is nodata."),
            self.POLYGONS: self.tr("Connected areas of one class as polygons with class, class_id and area_m2."),
            self.COUNT: self.tr("Number of windows that the model saw in this run."),
            self.SECONDS: self.tr("Seconds that it took."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add_package()
        self.add_bands()
        self.add_extent()
        self.add_number(self.OVERLAP, self.tr("Overlap of windows"), 0.25, least=0, most=MOST_OVERLAP, is_whole=False)
        self.add(QgsProcessingParameterBoolean(self.FLIPS, self.tr("Flips at test time"), False))
        # Optional, so that chains made before it was there still fit.
        self.add_number(self.WINDOW, self.tr("Window"), 0, least=0, most=MOST_WINDOW_PX, optional=True, advanced=True)
        self.add_batch(least=1)
        self.add_device()
        self.add_text(self.SCHEDULER, self.tr("Dask scheduler"), advanced=True)
        self.add(QgsProcessingParameterRasterDestination(self.OUTPUT, self.tr("Classes")))
        for name, label in (
            (self.PROBABILITIES, self.tr("Probabilities")),
            (self.CONFIDENCE, self.tr("Confidence")),
            (self.ENTROPY, self.tr("Uncertainty")),
        ):
            self.add(QgsProcessingParameterRasterDestination(name, label, optional=True, createByDefault=False))
        self.add(
            QgsProcessingParameterFeatureSink(
                self.POLYGONS,
                self.tr("Polygons"),
                QgsProcessing.TypeVectorPolygon,
                optional=True,
                createByDefault=False,
            )
        )
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of windows")))
        self.addOutput(QgsProcessingOutputNumber(self.SECONDS, self.tr("Duration")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Segment, outline, write."""
        from ...models.class_head import is_class_model

        if is_class_model(Path(self.parameterAsFile(parameters, self.MODEL, context))):
            return self._map_classes(parameters, context, progress=progress, settings=settings)
        from ..jobs.model_rasters import open_for_model
        from ..jobs.segment_raster import SegmentOptions, SegmentOutputs, segment_raster

        raster = self.raster()
        package, card = self.package(parameters, context)
        extras = {
            name: self.parameterAsOutputLayer(parameters, name, context)
            for name in (self.PROBABILITIES, self.CONFIDENCE, self.ENTROPY)
            if parameters.get(name)
        }
        output = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        places = SegmentOutputs(
            labels=Path(output),
            **{name.lower(): Path(path) for name, path in extras.items()},
            is_temporary=is_temporary(Path(output)),
        )
        options = SegmentOptions(
            overlap=self.parameterAsDouble(parameters, self.OVERLAP, context),
            flips=self.parameterAsBool(parameters, self.FLIPS, context),
            window_px=self.parameterAsInt(parameters, self.WINDOW, context) or None,
            batch=self.parameterAsInt(parameters, self.BATCH, context),
            device=self.device(parameters, context, settings),
            scheduler=self.parameterAsString(parameters, self.SCHEDULER, context).strip(),
        )
        bands = self.parameterAsInts(parameters, self.BANDS, context)
        provenance = {"SEGADAPT_RASTER": raster.path, "SEGADAPT_MODEL": card.name}
        with (
            open_for_model(card, raster.path, bands=bands, crs_wkt=raster.crs_wkt) as reader,
            outputs.class_output(
                self, parameters, context, name=self.POLYGONS, crs=raster.crs, provenance=provenance
            ) as polygons,
        ):
            outline = None
            if polygons is not None:
                given = {"classes": card.classes, "crs": raster.crs, "context": context, "progress": progress}
                outline = partial(self._outline, polygons=polygons, **given)
            done = segment_raster(
                reader,
                package,
                places,
                bounds=self.extent_px(parameters, context, raster, reader),
                options=options,
                use_labels=outline,
                progress=progress,
            )
            progress.info(
                self.tr("{} windows in {:.1f} s, of which the model took {:.1f} s.").format(
                    done.n_windows, done.seconds, done.model_s
                )
            )
            results = {self.OUTPUT: output, **extras, self.COUNT: done.n_windows, self.SECONDS: done.seconds}
            if polygons is not None:
                results[self.POLYGONS] = polygons.destination
        if polygons is not None:
            _use_colours(context, polygons.destination, card.classes)
        return results

    def _map_classes(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Let *Class map* do it: its models judge features of frozen networks, in windows that do not overlap."""
        for name in (self.PROBABILITIES, self.CONFIDENCE, self.FLIPS, self.SCHEDULER):
            if parameters.get(name):
                label = self.parameterDefinition(name).description()
                raise JobError(f"A class map model has no '{label}'; leave that out, or choose a segmentation model.")
        progress.info(self.tr("The model is a class map, which the algorithm Class map applies."))
        files = (self.OUTPUT, self.ENTROPY, self.POLYGONS)
        given = {name: parameters[name] for name in (self.EXTENT, self.DEVICE, *files) if parameters.get(name)}
        # By its path: a layer of the project is not for this thread.
        model = self.parameterAsFile(parameters, self.MODEL, context)
        given |= {self.INPUT: self.raster().path, ClassMapAlgorithm.CLASS_MODEL: model}
        bands = self.parameterAsInts(parameters, self.BANDS, context)
        if bands:
            given[self.BANDS] = bands
        start = time.perf_counter()
        mapping = ClassMapAlgorithm().create()
        # Not run, but executed: its errors come as they are.
        if not mapping.prepare(given, context, progress.feedback):
            raise JobError(
                f"Class map cannot open {self.raster().path}; choose a raster file, or run Class map itself."
            )
        done = mapping.execute(given, context, progress=progress, settings=settings)
        seconds = time.perf_counter() - start
        return {name: done[name] for name in files if name in done} | {self.SECONDS: seconds}

    def _outline(
        self,
        labels: Path,
        *,
        polygons: outputs.FeatureOutput,
        classes: tuple[SegmenterClass, ...],
        crs: QgsCoordinateReferenceSystem,
        context: QgsProcessingContext,
        progress: FeedbackProgress,
    ) -> None:
        from ..jobs.segment_raster import label_polygons

        ellipsoid = outputs.Ellipsoid(crs, context.transformContext())
        # The file goes or moves afterwards, for which it has to be closed.
        with closing(label_polygons(labels, classes)) as found:
            for polygon, one in found:
                geometry = outputs.from_shapely(polygon)
                values = {"class": one.name, "class_id": one.class_id, "area_m2": ellipsoid.area_m2(geometry)}
                polygons.add(geometry, values)
                raise_if_cancelled(progress)
        if not polygons.n_written:
            raise JobError("The result holds no class to outline; segment a larger extent.")


class ClassPolygonStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives polygons the colours of the model's classes."""

    def __init__(self, classes: tuple[SegmenterClass, ...]) -> None:
        super().__init__()
        self._classes = classes

    def postProcessLayer(
        self, layer: QgsMapLayer, _context: QgsProcessingContext, _feedback: QgsProcessingFeedback
    ) -> None:
        """Style the layer."""
        categories = []
        for one in self._classes:
            colour = ",".join(map(str, one.colour))
            symbol = QgsFillSymbol.createSimple(
                {"color": f"{colour},{_FILL_ALPHA}", "outline_color": colour, "outline_width": "0.3"}
            )
            categories.append(QgsRendererCategory(one.class_id, symbol, one.name))
        layer.setRenderer(QgsCategorizedSymbolRenderer("class_id", categories))
        layer.triggerRepaint()


def _use_colours(context: QgsProcessingContext, destination: str, classes: tuple[SegmenterClass, ...]) -> None:
    if context.willLoadLayerOnCompletion(destination):
        style = ClassPolygonStyle(classes)
        _waiting[:] = [other for other in _waiting if not sip.isdeleted(other)]
        _waiting.append(style)
        context.layerToLoadOnCompletionDetails(destination).setPostProcessor(style)
