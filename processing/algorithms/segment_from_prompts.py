"""Processing algorithm `segadapt:segmentfromprompts`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
)

from ...models.progress import raise_if_cancelled
from .feedback import FeedbackProgress
from .outputs import object_output
from .prompt_source import PromptFields, read_prompts
from .raster_algorithm import RasterAlgorithm
from .settings import EngineSettings
from .styling import use_style

if TYPE_CHECKING:
    from ..jobs.interactive import InteractiveSegmenter
    from ..jobs.objects import PromptGeometry
    from ..jobs.scene import Scene
    from ..jobs.segment import SegmentOptions


class SegmentFromPromptsAlgorithm(RasterAlgorithm):
    """One polygon per object from points, boxes, scribbles and rough outlines."""

    PROMPTS = "PROMPTS"
    PROMPT_FIELD = "PROMPT_FIELD"
    OBJECT_FIELD = "OBJECT_FIELD"
    CLASS_FIELD = "CLASS_FIELD"
    MULTIMASK = "MULTIMASK"
    ADAPTER = "ADAPTER"

    def name(self) -> str:
        """Return the id."""
        return "segmentfromprompts"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Segment from prompts")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Outlines objects in an image: one polygon for every object that the prompts show. A prompt is a "
            "point on the object (or, as background, beside it), a rectangle around it, a line along it, or "
            "a rough outline."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            **self.shared_helps(),
            self.PROMPTS: self.tr(
                "Points on objects, upright rectangles as boxes, other polygons as rough outlines, lines as "
                "scribbles; any CRS."
            ),
            self.PROMPT_FIELD: self.tr(
                "Field that tells foreground from background: 1 or 0, true or false, foreground or "
                "background, positive or negative, fg or bg. Without it every prompt is foreground."
            ),
            self.OBJECT_FIELD: self.tr(
                "Field with the object's id: prompts with the same value show the same object. Without it "
                "every feature is an object of its own."
            ),
            self.CLASS_FIELD: self.tr("Field with the object's class, copied to the result."),
            self.MULTIMASK: self.tr(
                "For a single point, let the model propose a part, the object and its surroundings, and keep "
                "the one with the best score."
            ),
            self.ADAPTER: self.tr(
                "File with what the map tool learned (page Learning, Save adapter), to segment as it would: object by "
                "object, which takes longer. It belongs to the model that it was learned with."
            ),
            **self.polygon_helps(),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add(
            QgsProcessingParameterFeatureSource(self.PROMPTS, self.tr("Prompts"), [QgsProcessing.TypeVectorAnyGeometry])
        )
        for name, label in (
            (self.PROMPT_FIELD, self.tr("Foreground or background field")),
            (self.OBJECT_FIELD, self.tr("Object field")),
            (self.CLASS_FIELD, self.tr("Class field")),
        ):
            self.add(QgsProcessingParameterField(name, label, None, self.PROMPTS, optional=True))
        self.add_model()
        self.add(
            QgsProcessingParameterBoolean(self.MULTIMASK, self.tr("Several masks for a single point"), True),
            advanced=True,
        )
        self.add(
            QgsProcessingParameterFile(self.ADAPTER, self.tr("Adapter"), extension="safetensors", optional=True),
            advanced=True,
        )
        self.add_polygons()

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Segment every object and write it as it comes."""
        from ..jobs.objects import gather_prompts
        from ..jobs.segment import SegmentOptions, segment_objects
        from ..jobs.segment_adapted import segment_adapted

        geometries = self._read_prompts(parameters, context, progress)
        options = SegmentOptions(
            window_px=self.window_px(parameters, context),
            multimask=self.parameterAsBoolean(parameters, self.MULTIMASK, context),
            tolerance=self.parameterAsDouble(parameters, self.SIMPLIFY, context),
            min_area_m2=self.parameterAsDouble(parameters, self.MIN_AREA, context),
        )
        adapter = self.parameterAsFile(parameters, self.ADAPTER, context)
        with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
            segmenter = _segmenter(scene, Path(adapter), options) if adapter else None
            provenance = scene.provenance() | ({"SEGADAPT_ADAPTER": Path(adapter).name} if adapter else {})
            with object_output(
                self,
                parameters,
                context,
                name=self.OUTPUT,
                crs=self.raster_crs,
                provenance=provenance,
                adapter="" if segmenter is None else segmenter.adapter_name,
            ) as output:
                objects = gather_prompts(geometries, scene.reader, progress=progress)
                if segmenter is None:
                    found = segment_objects(scene, objects, options=options, progress=progress)
                else:
                    found = segment_adapted(segmenter, objects, options=options, progress=progress)
                for each in found:
                    output.write(each)
                    raise_if_cancelled(progress)
        use_style(context, output.destination, "objects")
        return {self.OUTPUT: output.destination, self.COUNT: output.n_written}

    def _read_prompts(
        self, parameters: dict[str, Any], context: QgsProcessingContext, progress: FeedbackProgress
    ) -> list[PromptGeometry]:
        source = self.parameterAsSource(parameters, self.PROMPTS, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, self.PROMPTS))
        fields = PromptFields(
            foreground=self.parameterAsString(parameters, self.PROMPT_FIELD, context),
            object_id=self.parameterAsString(parameters, self.OBJECT_FIELD, context),
            class_name=self.parameterAsString(parameters, self.CLASS_FIELD, context),
        )
        return read_prompts(source, fields, raster_crs=self.raster_crs, context=context, progress=progress)


def _segmenter(scene: Scene, adapter: Path, options: SegmentOptions) -> InteractiveSegmenter:
    """What answers with a learned adapter. Raises `CheckpointError` where the file is none for this model."""
    from ..jobs.interactive import InteractiveOptions, InteractiveSegmenter

    segmenter = InteractiveSegmenter(scene, InteractiveOptions(window_px=options.window_px))
    segmenter.load(adapter)
    return segmenter
