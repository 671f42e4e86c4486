"""Processing algorithm `segadapt:evaluateinteractive`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsWkbTypes,
)

from ..errors import JobError
from .class_map_protocol import evaluate_class_clicks
from .click_results import (
    AT_CLICKS,
    TARGETS,
    map_numbers,
    noc,
    object_fields,
    object_numbers,
    object_outline,
    object_values,
)
from .feedback import FeedbackProgress
from .outputs import feature_output
from .prompt_source import PromptFields, read_prompts
from .raster_algorithm import RasterAlgorithm
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..jobs.evaluate_interactive import Configuration, EvaluateInteractive, InteractiveEvaluation
    from ..jobs.simulated_analyst import Reference

CLASS_MAP = "class_map"
PROTOCOLS = ("objects", CLASS_MAP)
_ADAPTING, _PLAIN = "with adaptation", "plain model"
_BASELINE = "plain model, windows of 1024"


class EvaluateInteractiveAlgorithm(RasterAlgorithm):
    """How many clicks objects take, with and without what SegAdapt adds to the model."""

    REFERENCE = "REFERENCE"
    PROTOCOL = "PROTOCOL"
    CLASS_FIELD = "CLASS_FIELD"
    ADAPTATION = "ADAPTATION"
    ADAPTER = "ADAPTER"
    ADAPTER_FILE = "ADAPTER_FILE"
    CASCADE = "CASCADE"
    REPAIR = "REPAIR"
    RECTANGLES = "RECTANGLES"
    PER_CLICK = "PER_CLICK"
    PER_OBJECT = "PER_OBJECT"
    ACCEPT = "ACCEPT"
    BASELINE = "BASELINE"
    CLICKS = "CLICKS"
    OBJECTS = "OBJECTS"
    MIN_PIXELS = "MIN_PIXELS"
    SEED = "SEED"
    TABLE = "TABLE"
    REPORT = "REPORT"

    def name(self) -> str:
        """Return the id."""
        return "evaluateinteractive"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Evaluate clicks")

    def group(self) -> str:
        """Return the group in the toolbox."""
        return self.tr("Evaluation")

    def groupId(self) -> str:
        """Return the id of the group; fixed for ever."""
        return "evaluation"

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Measures how many clicks objects take in an image. A simulated analyst clicks on each reference "
            "polygon, always into the middle of the largest error, until the answer is good or the clicks are used "
            "up, and goes on to the next object, as one would with the map tool. The report gives clicks to 80, 85 "
            "and 90 % overlap (IoU), the overlap after 1, 3, 5 and 10 clicks, and seconds, each with a 95 % interval. "
            "Or it measures how many clicks a class map of the whole image takes."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        helps = {
            **self.shared_helps(),
            self.WINDOW: self.tr(
                "Side of the square, in raster pixels, that the model sees at once, the same for every object; auto "
                "follows each object."
            ),
            self.REFERENCE: self.tr(
                "Polygons that are taken for the truth, one per object, in any CRS. Those that the raster's edge "
                "cuts, that reach pixels without data, or that are too small are left out and counted."
            ),
            self.PROTOCOL: self.tr(
                "objects: each polygon is segmented by its own clicks. class_map: the polygons are areas of classes; "
                "the clicks of all classes together make one map of the image, and what is said of adaptation, objects "
                "and smallest sizes does not apply."
            ),
            self.CLASS_FIELD: self.tr(
                "Field with the object's class, copied to the table; a class map is made of its classes."
            ),
            self.ADAPTATION: self.tr(
                "Answer as the map tool does: with adapter, second looks, repair and learning, as far as they are "
                "on below. Off, the model is evaluated as it was published."
            ),
            self.ADAPTER: self.tr(
                "Use the adapter for satellite images that comes with SegAdapt, where the model has one."
            ),
            self.ADAPTER_FILE: self.tr("Saved adapter to use in place of the one that comes with SegAdapt."),
            self.CASCADE: self.tr("How many times an answer is given back to the model with the same clicks."),
            self.REPAIR: self.tr("Repair the answer in place where it contradicts a click."),
            self.RECTANGLES: self.tr(
                "Make what is nearly rectangular a rectangle, of which a click moves whole sides."
            ),
            self.PER_CLICK: self.tr("Adapt the model to the clicks on the object in hand."),
            self.PER_OBJECT: self.tr("Let the model learn from every object that is done."),
            self.ACCEPT: self.tr(
                "What the analyst keeps, and the model learns from: the last answer, good or not, or the reference, "
                "as if every outline were corrected by hand."
            ),
            self.BASELINE: self.tr(
                "Evaluate the plain model in windows of 1024 pixels on the same objects, too, and report the "
                "difference. Takes about twice as long."
            ),
            self.CLICKS: self.tr("An object is given up after this many clicks; a class map takes so many in all."),
            self.OBJECTS: self.tr("Evaluate so many objects, chosen at random; without a number all of them."),
            self.MIN_PIXELS: self.tr("Leave out reference polygons with fewer pixels."),
            self.SEED: self.tr("Number that decides on the order of the objects; the same number, the same order."),
            self.TABLE: self.tr(
                "The reference polygons that were evaluated, with the overlap after each click (iou_1, iou_2, ...), "
                "clicks to 80, 85 and 90 % (empty where never reached), order, pixels and median seconds per click. Of "
                "a class map the clicks as points, with class, mean IoU of the image and seconds."
            ),
            self.REPORT: self.tr("Page with all measures, plots and the worst objects."),
            self.COUNT: self.tr("Number of objects that were evaluated, or of classes."),
        }
        for target in TARGETS:
            helps[noc(target)] = self.tr(
                "Mean number of clicks to {} % overlap; of a class map missing where it was never reached."
            ).format(f"{100 * target:.0f}")
        for number in AT_CLICKS:
            helps[f"MIOU{number}"] = self.tr("Mean overlap (IoU, 0 to 1) after {} click(s).").format(number)
        return helps

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add(
            QgsProcessingParameterFeatureSource(
                self.REFERENCE, self.tr("Reference polygons"), [QgsProcessing.TypeVectorPolygon]
            )
        )
        self.add(
            QgsProcessingParameterField(self.CLASS_FIELD, self.tr("Class field"), None, self.REFERENCE, optional=True)
        )
        self.add_choice(self.PROTOCOL, self.tr("Protocol"), PROTOCOLS)
        self.add_model()
        self.add(QgsProcessingParameterBoolean(self.ADAPTATION, self.tr("Adaptation"), True))
        self._add_number(self.CLICKS, self.tr("Clicks"), 20, least=1, most=1000)
        self._add_number(self.OBJECTS, self.tr("Objects"), 100, least=1, optional=True)
        self._add_number(self.SEED, self.tr("Seed"), 0, least=0)
        for name, label in (
            (self.ADAPTER, self.tr("Adapter for satellite images")),
            (self.REPAIR, self.tr("Repair contradicted clicks")),
            (self.RECTANGLES, self.tr("Make rectangles of what nearly is one")),
            (self.PER_CLICK, self.tr("Learn from clicks")),
            (self.PER_OBJECT, self.tr("Learn from objects")),
        ):
            self.add(QgsProcessingParameterBoolean(name, label, True), advanced=True)
        adapter = self.tr("Saved adapter")
        self.add(
            QgsProcessingParameterFile(self.ADAPTER_FILE, adapter, extension="safetensors", optional=True),
            advanced=True,
        )
        self._add_number(self.CASCADE, self.tr("Second looks"), 0, least=0, most=10, advanced=True)
        self.add_choice(self.ACCEPT, self.tr("Accepted outline"), ("answer", "reference"), advanced=True)
        self._add_number(self.MIN_PIXELS, self.tr("Smallest object (pixels)"), 64, least=1, advanced=True)
        self.add(
            QgsProcessingParameterBoolean(self.BASELINE, self.tr("Compare with the plain model"), False), advanced=True
        )
        self.add(QgsProcessingParameterFeatureSink(self.TABLE, self.tr("Evaluated objects"), QgsProcessing.TypeVector))
        self.add(
            QgsProcessingParameterFileDestination(
                self.REPORT, self.tr("Report"), self.tr("HTML files (*.html)"), optional=True
            )
        )
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of objects")))
        for target in TARGETS:
            label = self.tr("Clicks to {} %").format(f"{100 * target:.0f}")
            self.addOutput(QgsProcessingOutputNumber(noc(target), label))
        for number in AT_CLICKS:
            self.addOutput(QgsProcessingOutputNumber(f"MIOU{number}", self.tr("Mean IoU, {} click(s)").format(number)))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Evaluate, then write table and report: what is cancelled before has written nothing."""
        from ..jobs.evaluate_interactive import evaluate_interactive
        from ..jobs.page import write_report
        from ..jobs.report import interactive_report

        report = self.file_output(parameters, context, self.REPORT)
        references, layer = self._read_references(parameters, context, progress)
        if self.parameterAsEnumString(parameters, self.PROTOCOL, context) == CLASS_MAP:
            with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
                curve, table = evaluate_class_clicks(
                    self,
                    parameters,
                    context,
                    references,
                    scene,
                    layer=layer,
                    window_px=self.window_px(parameters, context),
                    n_clicks=self.parameterAsInt(parameters, self.CLICKS, context),
                    seed=self.parameterAsInt(parameters, self.SEED, context),
                    table=self.TABLE,
                    report=report,
                    progress=progress,
                    settings=settings,
                )
            return {self.TABLE: table, self.REPORT: str(report or ""), **map_numbers(curve)}
        job = self._job(parameters, context)
        with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
            evaluation = evaluate_interactive(scene, references, job, progress)
            provenance = scene.provenance()
            page = ""
            if report:
                title = self.tr("Clicks per object: {}").format(layer)
                page = interactive_report(
                    evaluation, scene.reader, title=title, device=scene.engine.device, layer=layer
                )
        table = self._write_table(parameters, context, evaluation, provenance=provenance)
        if report:
            write_report(page, report)
        return {self.TABLE: table, self.REPORT: str(report or ""), **object_numbers(evaluation)}

    def _add_number(
        self,
        name: str,
        label: str,
        default: int,
        *,
        least: int,
        most: int = 2**31 - 1,
        optional: bool = False,
        advanced: bool = False,
    ) -> None:
        number = QgsProcessingParameterNumber(
            name, label, QgsProcessingParameterNumber.Integer, default, optional, least, most
        )
        self.add(number, advanced=advanced)

    def _job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> EvaluateInteractive:
        from ..jobs.evaluate_interactive import Configuration, EvaluateInteractive, plain_options

        configurations = [self._configuration(parameters, context)]
        if self.parameterAsBoolean(parameters, self.BASELINE, context):
            # First, because differences are to the first.
            configurations.insert(0, Configuration(_BASELINE, plain_options()))
        # A default that was cleared is None; asked for as a number it would be the default again.
        has_limit = parameters.get(self.OBJECTS, 0) is not None
        return EvaluateInteractive(
            configurations=tuple(configurations),
            n_clicks=self.parameterAsInt(parameters, self.CLICKS, context),
            targets=TARGETS,
            max_objects=self.parameterAsInt(parameters, self.OBJECTS, context) if has_limit else None,
            min_area_px=self.parameterAsInt(parameters, self.MIN_PIXELS, context),
            seed=self.parameterAsInt(parameters, self.SEED, context),
            accepts=self.parameterAsEnumString(parameters, self.ACCEPT, context),
        )

    def _configuration(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Configuration:
        from ..jobs.evaluate_interactive import Configuration, plain_options
        from ..jobs.interactive import InteractiveOptions

        window_px = self.window_px(parameters, context)
        if not self.parameterAsBoolean(parameters, self.ADAPTATION, context):
            return Configuration(_PLAIN, plain_options(window_px=window_px))
        adapter = self.parameterAsFile(parameters, self.ADAPTER_FILE, context)
        return Configuration(
            _ADAPTING,
            InteractiveOptions(
                window_px=window_px,
                fixed_window=window_px is not None,
                adapter=self.parameterAsBoolean(parameters, self.ADAPTER, context),
                adapter_path=Path(adapter) if adapter else None,
                cascade=self.parameterAsInt(parameters, self.CASCADE, context),
                repair=self.parameterAsBoolean(parameters, self.REPAIR, context),
                rectangles=self.parameterAsBoolean(parameters, self.RECTANGLES, context),
                per_click=self.parameterAsBoolean(parameters, self.PER_CLICK, context),
                per_object=self.parameterAsBoolean(parameters, self.PER_OBJECT, context),
            ),
        )

    def _read_references(
        self, parameters: dict[str, Any], context: QgsProcessingContext, progress: FeedbackProgress
    ) -> tuple[list[Reference], str]:
        from ..jobs.simulated_analyst import Reference

        source = self.parameterAsSource(parameters, self.REFERENCE, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, self.REFERENCE))
        if QgsWkbTypes.geometryType(source.wkbType()) != QgsWkbTypes.GeometryType.PolygonGeometry:
            raise JobError(f"'{source.sourceName()}' holds no polygons; use a layer of polygons as reference.")
        fields = PromptFields("", "", self.parameterAsString(parameters, self.CLASS_FIELD, context))
        found = read_prompts(source, fields, raster_crs=self.raster_crs, context=context, progress=progress)
        references = [Reference(item.geometry, item.object_id, item.class_name) for item in found]
        return references, str(source.sourceName())

    def _write_table(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        evaluation: InteractiveEvaluation,
        *,
        provenance: dict[str, str],
    ) -> str:
        with feature_output(
            self,
            parameters,
            context,
            name=self.TABLE,
            crs=self.raster_crs,
            fields=object_fields(evaluation.job.n_clicks),
            provenance=provenance,
        ) as output:
            for result in evaluation.results:
                for curve in result.curves:
                    output.add(object_outline(curve), object_values(curve, configuration=result.configuration.name))
        return output.destination
