"""Processing algorithm `segadapt:findsimilar`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterNumber,
)

from ...models.errors import CheckpointError
from ...models.progress import raise_if_cancelled
from .feedback import FeedbackProgress
from .outputs import DOUBLE, INTEGER, object_output
from .prompt_source import PromptFields, read_prompts
from .raster_algorithm import RasterAlgorithm
from .settings import EngineSettings
from .styling import use_style

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from ...models.backbone import Backbone
    from ..jobs.scene import Scene
    from ..jobs.segment import SegmentedObject
    from ..jobs.similar import SimilarObject

# `jobs.similar.METHODS`; that module needs the environment (a test compares them).
METHODS = ("segadapt", "persam", "persam_f")
MORE_FIELDS = {"rank": INTEGER, "probability": DOUBLE, "similarity": DOUBLE}


class FindSimilarAlgorithm(RasterAlgorithm):
    """From one object, or a few, to all objects like them."""

    EXEMPLARS = "EXEMPLARS"
    REJECTED = "REJECTED"
    METHOD = "METHOD"
    THRESHOLD = "THRESHOLD"

    def name(self) -> str:
        """Return the id."""
        return "findsimilar"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Find similar")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Finds and outlines the objects of a raster that look like the examples: one example is enough, five "
            "find more. The result is ranked: look through it from the top, and give what does not belong as "
            "counter-examples to a second run."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        helps = {
            **self.shared_helps(),
            self.EXEMPLARS: self.tr(
                "Polygons of objects to look for, in any CRS; outlines that fit well matter more than their number."
            ),
            self.REJECTED: self.tr("Polygons of objects that are not looked for although they look similar."),
            **self.extent_help(),
            self.METHOD: self.tr(
                "segadapt learns from all examples; persam and persam_f are published methods that know the first "
                "example only, for comparison."
            ),
            self.THRESHOLD: self.tr(
                "Keep objects whose probability is at least this: lower finds more and is wrong more often. For "
                "persam and persam_f it is the score times the cosine of the features."
            ),
            self.WINDOW: self.tr(
                "Side of the square, in raster pixels, that the model sees at once; auto lets an example fill about "
                "a quarter of it."
            ),
            **self.polygon_helps(),
        }
        helps[self.OUTPUT] = self.tr(
            "Polygons in the raster's CRS, the likeliest first: rank from 1, probability (0 to 1), similarity (to the "
            "examples, in standard deviations of the raster above its mean), and the fields of all outputs, among "
            "them score (the model's own estimate of the overlap with the truth, 0 to 1)."
        )
        return helps

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        polygons = [QgsProcessing.TypeVectorPolygon]
        self.add(QgsProcessingParameterFeatureSource(self.EXEMPLARS, self.tr("Examples"), polygons))
        self.add(
            QgsProcessingParameterFeatureSource(self.REJECTED, self.tr("Counter-examples"), polygons, optional=True)
        )
        self.add_extent()
        self.add_choice(self.METHOD, self.tr("Method"), METHODS)
        self.add_model()
        number = QgsProcessingParameterNumber
        self.add(
            number(self.THRESHOLD, self.tr("Probability at least"), number.Double, 0.5, minValue=0.0, maxValue=1.0),
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
        """Find the objects, rank them and write them."""
        from ..jobs.similar import SimilarJob, find_similar

        exemplars = self._polygons(parameters, self.EXEMPLARS, context, progress)
        rejected = self._polygons(parameters, self.REJECTED, context, progress)
        with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
            method = self.parameterAsEnumString(parameters, self.METHOD, context)
            job = SimilarJob(
                method=method,
                bounds_px=self.bounds_px(parameters, context, scene.reader),
                window_px=self.window_px(parameters, context),
                threshold=self.parameterAsDouble(parameters, self.THRESHOLD, context),
                tolerance=self.parameterAsDouble(parameters, self.SIMPLIFY, context),
                min_area_m2=self.parameterAsDouble(parameters, self.MIN_AREA, context),
            )
            provenance = {**scene.provenance(), "SEGADAPT_METHOD": method, "SEGADAPT_EXAMPLES": str(len(exemplars))}
            with object_output(
                self,
                parameters,
                context,
                name=self.OUTPUT,
                crs=self.raster_crs,
                provenance=provenance,
                more_fields=MORE_FIELDS,
            ) as output:
                backbone = _backbone(scene, settings, progress) if method == METHODS[0] else None
                found = list(
                    find_similar(scene, exemplars, rejected=rejected, job=job, backbone=backbone, progress=progress)
                )
                found.sort(key=lambda each: each.probability, reverse=True)
                for rank, each in enumerate(found, 1):
                    raise_if_cancelled(progress)
                    measures = {"rank": rank, "probability": each.probability, "similarity": each.similarity}
                    output.write(_as_object(each, rank=rank, model=scene.engine.card.name), measures)
        use_style(context, output.destination, "masks")
        return {self.OUTPUT: output.destination, self.COUNT: len(found)}

    def _polygons(
        self, parameters: dict[str, Any], name: str, context: QgsProcessingContext, progress: FeedbackProgress
    ) -> list[BaseGeometry]:
        """Polygons of a source in the raster's CRS; none where it was not given."""
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            if name == self.REJECTED and not parameters.get(name):
                return []
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        fields = PromptFields("", "", "")
        read = read_prompts(source, fields, raster_crs=self.raster_crs, context=context, progress=progress)
        return [prompt.geometry for prompt in read]


def _backbone(scene: Scene, settings: EngineSettings, progress: FeedbackProgress) -> Backbone | None:
    """The semantic backbone; where its weights cannot be had, the search goes on without and says so."""
    from ...models.backbone import open_backbone

    try:
        return open_backbone(
            device=scene.engine.device,
            checkpoint_folder=settings.checkpoint_folder,
            offline=settings.offline,
            progress=progress,
        )
    except CheckpointError as error:
        progress.info(f"{error} The search goes on with the features of {scene.engine.card.name} alone.")
        return None


def _as_object(found: SimilarObject, *, rank: int, model: str) -> SegmentedObject:
    from ..jobs.segment import SegmentedObject

    return SegmentedObject(str(rank), "", found.geometry, found.score, found.stability, found.area_m2, model)
