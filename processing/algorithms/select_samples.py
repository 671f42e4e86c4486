"""Processing algorithm `segadapt:selectsamples`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsCoordinateTransform,
    QgsCsException,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
)

from ...models.progress import raise_if_cancelled
from ..errors import JobError
from . import outputs
from .feedback import FeedbackProgress
from .model_algorithm import ModelAlgorithm, RasterInput
from .settings import EngineSettings
from .training_source import SAMPLE_CLASS, is_of_samples, read_polygons

if TYPE_CHECKING:
    from ..jobs.select_samples import SampleRaster, Selection

# `models.transfer.selection.STRATEGIES`, `jobs.select_samples.REGION_KINDS` and `BUDGET_UNITS`; these modules need the
# environment (a test compares them).
STRATEGIES = ("clusters", "hybrid", "impurity", "entropy", "diversity", "random")
REGION_KINDS = ("squares", "segments")
BUDGET_UNITS = ("clicks", "m2", "percent")

_FIELDS = {
    "rank": outputs.INTEGER,
    "score": outputs.DOUBLE,
    "area_m2": outputs.DOUBLE,
    "predicted": outputs.TEXT,
    SAMPLE_CLASS: outputs.TEXT,
    "raster": outputs.TEXT,
    "model": outputs.TEXT,
}


class SelectSamplesAlgorithm(ModelAlgorithm):
    """Where a few labels teach a model most."""

    STRATEGY = "STRATEGY"
    REGIONS = "REGIONS"
    REGION_SIZE = "REGION_SIZE"
    BUDGET = "BUDGET"
    BUDGET_UNIT = "BUDGET_UNIT"
    LABELLED = "LABELLED"
    COUNT = "COUNT"
    AREA_M2 = "AREA_M2"

    def name(self) -> str:
        """Return the id."""
        return "selectsamples"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Select samples to label")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Chooses the regions of new images whose labels would teach a segmentation model most, so that you label "
            "only those. Fill in the field class of the polygons, or draw the classes within them with the interactive "
            "tool, fine-tune the model with them, and select again: what is labelled already is not asked for twice."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            **{name: shared[name] for name in (self.RASTERS, self.MODEL, self.DEVICE, self.SEED)},
            self.STRATEGY: self.tr(
                "Clusters takes what is typical of each kind of doubt (CLUE); hybrid what is doubtful and unlike each "
                "other; impurity where the model sees several classes and is unsure (RIPU); entropy where it is "
                "unsure; diversity what is unlike each other (core-set); random any, to compare with."
            ),
            self.REGIONS: self.tr("Equal squares, or segments that follow the image and are mostly of one class."),
            self.REGION_SIZE: self.tr(
                "Side of the regions in metres: of squares rounded so that whole ones fill the model's window, of "
                "segments on average. Without it squares of 32 and segments of 16 pixels of the model."
            ),
            self.BUDGET: self.tr("How much you are ready to label, in the unit of the budget."),
            self.BUDGET_UNIT: self.tr(
                "Clicks are numbers of regions, m2 is area on the ground, percent is the share of the pixels that "
                "have data and no label yet."
            ),
            self.LABELLED: self.tr(
                "Polygons that are labelled already, in any CRS: regions there are left out. If the layer has a field "
                "class, polygons where it is empty do not count unless classes were drawn within them, so the output "
                "of an earlier round serves as it is; the new regions go into another file."
            ),
            self.OUTPUT: self.tr(
                "Regions by rank, in the CRS of the first raster, with score (0 to 1, how doubtful the model is), "
                "area_m2, predicted (the class that the model sees most), class (empty, for you to fill in), raster "
                "and model."
            ),
            self.COUNT: self.tr("Number of regions."),
            self.AREA_M2: self.tr("Area of all regions on the ground, in m2; 0 without a CRS."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters()
        self.add_package()
        self.add_choice(self.STRATEGY, self.tr("Strategy"), STRATEGIES)
        self.add_choice(self.REGIONS, self.tr("Regions"), REGION_KINDS)
        self.add_number(
            self.REGION_SIZE, self.tr("Size of regions in metres"), None, least=0, is_whole=False, optional=True
        )
        self.add_number(self.BUDGET, self.tr("Budget"), 50, least=0, is_whole=False)
        self.add_choice(self.BUDGET_UNIT, self.tr("Unit of the budget"), BUDGET_UNITS)
        polygon = [QgsProcessing.TypeVectorPolygon]
        self.add(
            QgsProcessingParameterFeatureSource(self.LABELLED, self.tr("Labelled already"), polygon, optional=True)
        )
        self.add_device()
        self.add_seed()
        self.add(
            QgsProcessingParameterFeatureSink(self.OUTPUT, self.tr("Regions to label"), QgsProcessing.TypeVectorPolygon)
        )
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of regions")))
        self.addOutput(QgsProcessingOutputNumber(self.AREA_M2, self.tr("Area of regions")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Choose and write."""
        from ..jobs import select_samples as jobs

        rasters = self.rasters(self.RASTERS)
        if not rasters:
            raise JobError("No raster is given; choose one or more.")
        model, card = self.package(parameters, context)
        has_size = self.is_given(parameters, self.REGION_SIZE)
        unit = self.parameterAsEnumString(parameters, self.BUDGET_UNIT, context)
        kind = self.parameterAsEnumString(parameters, self.REGIONS, context)
        job = jobs.SelectSamples(
            budget=self.parameterAsDouble(parameters, self.BUDGET, context),
            unit=next(one for one in jobs.BUDGET_UNITS if one == unit),
            strategy=self.parameterAsEnumString(parameters, self.STRATEGY, context),
            kind=next(one for one in jobs.REGION_KINDS if one == kind),
            region_m=self.parameterAsDouble(parameters, self.REGION_SIZE, context) if has_size else None,
            device=self.device(parameters, context, settings),
            seed=self.parameterAsInt(parameters, self.SEED, context),
        )
        labelled = self._sample_rasters(parameters, context, rasters, progress)
        provenance = {"SEGADAPT_MODEL": card.name, "SEGADAPT_STRATEGY": job.strategy, "SEGADAPT_SEED": str(job.seed)}
        with outputs.feature_output(
            self,
            parameters,
            context,
            name=self.OUTPUT,
            crs=rasters[0].crs,
            fields=outputs.make_fields(_FIELDS),
            provenance=provenance,
        ) as output:
            chosen = jobs.select_samples(model, labelled, job, progress=progress)
            area_m2 = self._write(output, chosen, rasters, context, progress)
            destination = output.destination
        progress.info(
            self.tr("{} regions with {:.2%} of the pixels that could be labelled.").format(
                len(chosen.samples), chosen.n_px / chosen.total_px
            )
        )
        return {self.OUTPUT: destination, self.COUNT: len(chosen.samples), self.AREA_M2: area_m2}

    def _sample_rasters(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        rasters: list[RasterInput],
        progress: FeedbackProgress,
    ) -> list[SampleRaster]:
        """The rasters with what is labelled on each; where the analyst drew in a place, all of that place."""
        from ..jobs.select_samples import SampleRaster
        from ..jobs.training_data import LabelledRaster, with_places

        source = self.parameterAsSource(parameters, self.LABELLED, context)
        if source is None and parameters.get(self.LABELLED):
            raise JobError(self.invalidSourceError(parameters, self.LABELLED))
        found = []
        for raster in rasters:
            labelled: list[Any] = []
            if source is not None:
                field = SAMPLE_CLASS if source.fields().lookupField(SAMPLE_CLASS) >= 0 else ""
                polygons = read_polygons(source, field, raster=raster, context=context, progress=progress)
                labelled = [polygon for polygon, name in polygons if name is not None]
                if is_of_samples(source):
                    shapes, names = zip(*polygons, strict=True) if polygons else ((), ())
                    drawn = LabelledRaster(path=raster.path, polygons=shapes, names=names)
                    labelled += with_places(drawn, is_rest_unknown=True).area or ()
            found.append(SampleRaster(path=raster.path, crs_wkt=raster.crs_wkt, labelled=tuple(labelled)))
        return found

    def _write(
        self,
        output: outputs.FeatureOutput,
        chosen: Selection,
        rasters: list[RasterInput],
        context: QgsProcessingContext,
        progress: FeedbackProgress,
    ) -> float:
        """Add the regions in the CRS of the first raster, and return their area in m2."""
        total = 0.0
        ellipsoids = [outputs.Ellipsoid(raster.crs, context.transformContext()) for raster in rasters]
        transforms = [
            QgsCoordinateTransform(raster.crs, rasters[0].crs, context.transformContext()) for raster in rasters
        ]
        for sample in chosen.samples:
            raise_if_cancelled(progress)
            geometry = outputs.from_shapely(sample.polygon)
            area_m2 = ellipsoids[sample.raster].area_m2(geometry)
            try:
                geometry.transform(transforms[sample.raster])
            except QgsCsException as error:
                raise JobError(
                    f"Regions of '{rasters[sample.raster].name}' cannot be brought to the CRS of "
                    f"'{rasters[0].name}' ({error}); run it for each of them alone."
                ) from error
            geometry.convertToMultiType()
            values = {
                "rank": sample.rank,
                "score": sample.score,
                "area_m2": area_m2,
                "predicted": sample.class_name,
                SAMPLE_CLASS: None,
                "raster": Path(rasters[sample.raster].path).name,
                "model": chosen.card.name,
            }
            output.add(geometry, values)
            total += area_m2 or 0.0
        return total
