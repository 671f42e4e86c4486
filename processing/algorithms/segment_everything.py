"""Processing algorithm `segadapt:segmenteverything`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
)

from .feedback import FeedbackProgress
from .outputs import object_output
from .raster_algorithm import DEFAULT_WINDOW_PX, RasterAlgorithm
from .settings import EngineSettings
from .styling import use_style

if TYPE_CHECKING:
    from ..jobs.everything import EverythingJob
    from ..raster.reader import RasterReader


class SegmentEverythingAlgorithm(RasterAlgorithm):
    """Every object that the model finds, without prompts."""

    POINTS_PER_SIDE = "POINTS_PER_SIDE"
    SCORE_THRESHOLD = "SCORE_THRESHOLD"
    STABILITY_THRESHOLD = "STABILITY_THRESHOLD"
    OVERLAP_THRESHOLD = "OVERLAP_THRESHOLD"
    LABELS = "LABELS"

    def name(self) -> str:
        """Return the id."""
        return "segmenteverything"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Segment everything")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Outlines everything that the model takes for an object, over a whole raster or an extent of any "
            "size. The raster is worked on in windows; an object that several windows see is written once."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            **self.shared_helps(),
            **self.extent_help(),
            self.WINDOW: self.tr("Side of the square, in raster pixels, that the model sees at once; auto is 1024."),
            self.POINTS_PER_SIDE: self.tr(
                "The model is asked at a grid of this many points along each side of a window: more find "
                "smaller objects and take longer."
            ),
            self.SCORE_THRESHOLD: self.tr("Keep masks whose score, the model's own estimate, is at least this."),
            self.STABILITY_THRESHOLD: self.tr(
                "Keep masks that hardly change when the cut-off moves: their stability is at least this."
            ),
            self.OVERLAP_THRESHOLD: self.tr(
                "Two masks that overlap by more than this (intersection over union) are the same object; the "
                "better one stays."
            ),
            **self.polygon_helps(),
            self.LABELS: self.tr(
                "Raster on the pixels of the input: 0 where nothing was found, elsewhere the number of the "
                "object, which is its object_id."
            ),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add_extent()
        self.add_model()
        number = QgsProcessingParameterNumber
        self.add(number(self.POINTS_PER_SIDE, self.tr("Points per side"), number.Integer, 32, minValue=1, maxValue=256))
        # The defaults are segment-anything's own (automatic_mask_generator.py).
        for name, label, default in (
            (self.SCORE_THRESHOLD, self.tr("Score at least"), 0.88),
            (self.STABILITY_THRESHOLD, self.tr("Stability at least"), 0.95),
            (self.OVERLAP_THRESHOLD, self.tr("Same object from this overlap"), 0.7),
        ):
            self.add(number(name, label, number.Double, default, minValue=0.0, maxValue=1.0), advanced=True)
        self.add_polygons()
        self.add(
            QgsProcessingParameterRasterDestination(
                self.LABELS, self.tr("Labels"), optional=True, createByDefault=False
            )
        )

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Find the objects and write them as they come."""
        from ..jobs.everything import segment_everything

        labels = self.parameterAsOutputLayer(parameters, self.LABELS, context)
        with (
            self.open_scene(parameters, context, progress=progress, settings=settings) as scene,
            object_output(
                self,
                parameters,
                context,
                name=self.OUTPUT,
                crs=self.raster_crs,
                provenance=scene.provenance(),
            ) as output,
        ):
            job = self._job(parameters, context, reader=scene.reader, labels=labels)
            for found in segment_everything(scene, job, progress=progress):
                output.write(found)
        use_style(context, output.destination, "masks")
        results = {self.OUTPUT: output.destination, self.COUNT: output.n_written}
        if labels:
            use_style(context, labels, "labels")
            results[self.LABELS] = labels
        return results

    def _job(
        self, parameters: dict[str, Any], context: QgsProcessingContext, *, reader: RasterReader, labels: str
    ) -> EverythingJob:
        from ..jobs.everything import EverythingJob

        return EverythingJob(
            bounds_px=self.bounds_px(parameters, context, reader),
            window_px=self.window_px(parameters, context) or DEFAULT_WINDOW_PX,
            points_per_side=self.parameterAsInt(parameters, self.POINTS_PER_SIDE, context),
            iou_threshold=self.parameterAsDouble(parameters, self.SCORE_THRESHOLD, context),
            stability_threshold=self.parameterAsDouble(parameters, self.STABILITY_THRESHOLD, context),
            nms_threshold=self.parameterAsDouble(parameters, self.OVERLAP_THRESHOLD, context),
            tolerance=self.parameterAsDouble(parameters, self.SIMPLIFY, context),
            min_area_m2=self.parameterAsDouble(parameters, self.MIN_AREA, context),
            labels_path=labels or None,
        )
