"""Processing algorithm `segadapt:classmap`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterDestination,
)

from ...models.progress import raise_if_cancelled
from ..errors import JobError
from . import outputs
from .base import check_folder, with_ending
from .feedback import FeedbackProgress
from .prompt_source import PromptFields, read_prompts
from .raster_algorithm import RasterAlgorithm
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..jobs.class_map import ClassMapper
    from ..jobs.scene import Scene

# `models.class_head.HEADS`; that module needs the environment (a test compares them).
HEADS = ("ridge", "logistic", "tokens")


class ClassMapAlgorithm(RasterAlgorithm):
    """A few clicks per class, and the class of every pixel."""

    CLICKS = "CLICKS"
    CLASS_FIELD = "CLASS_FIELD"
    CLASS_MODEL = "CLASS_MODEL"
    HEAD = "HEAD"
    SNAP = "SNAP"
    POLYGONS = "POLYGONS"
    SAVED_MODEL = "SAVED_MODEL"
    ENTROPY = "ENTROPY"

    def name(self) -> str:
        """Return the id."""
        return "classmap"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Class map")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Maps the class of every pixel from a few points or lines per class: networks describe the image, and "
            "a light head learns your classes from the places that you named. What you named keeps its class. The "
            "head can be saved, and used on other rasters in place of clicks."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            **self.shared_helps(),
            **self.extent_help(),
            self.WINDOW: self.tr(
                "Side of the square, in raster pixels, that the networks see at once; auto is 1024, or less for a "
                "smaller raster."
            ),
            self.CLICKS: self.tr("Points or lines on places whose class you know, in any CRS; at least one per class."),
            self.CLASS_FIELD: self.tr("Field of the clicks that holds the name of the class."),
            self.CLASS_MODEL: self.tr("Saved class map model to use instead of clicks."),
            self.HEAD: self.tr(
                "How classes are learned: ridge (kernel ridge regression in closed form), logistic (the same with "
                "a logistic regression), or tokens (one vector per class, tuned in the manner of SLiMe)."
            ),
            self.SNAP: self.tr("Give whole segments of the image one class, which draws clean borders."),
            self.OUTPUT: self.tr(
                "Raster of class ids on the pixels of the input, with names and colours; 0 is nodata."
            ),
            self.POLYGONS: self.tr("Connected areas of one class as polygons with class, class_id and area_m2."),
            self.SAVED_MODEL: self.tr("File for the class map model (.safetensors)."),
            self.ENTROPY: self.tr("Raster of the uncertainty: 0 certain to 100 unknown, in per cent; 255 is nodata."),
            self.COUNT: self.tr("Number of classes."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add(
            QgsProcessingParameterFeatureSource(
                self.CLICKS,
                self.tr("Clicks"),
                [QgsProcessing.TypeVectorPoint, QgsProcessing.TypeVectorLine],
                optional=True,
            )
        )
        self.add(
            QgsProcessingParameterField(self.CLASS_FIELD, self.tr("Class field"), "class", self.CLICKS, optional=True)
        )
        self.add(
            QgsProcessingParameterFile(
                self.CLASS_MODEL, self.tr("Class map model"), extension="safetensors", optional=True
            )
        )
        self.add_extent()
        self.add_choice(self.HEAD, self.tr("Head"), HEADS)
        self.add(QgsProcessingParameterBoolean(self.SNAP, self.tr("Snap to segments"), True))
        self.add_model()
        self.add(QgsProcessingParameterRasterDestination(self.OUTPUT, self.tr("Class map")))
        self.add(
            QgsProcessingParameterFeatureSink(
                self.POLYGONS,
                self.tr("Polygons"),
                QgsProcessing.TypeVectorPolygon,
                optional=True,
                createByDefault=False,
            )
        )
        self.add(
            QgsProcessingParameterFileDestination(
                self.SAVED_MODEL,
                self.tr("Saved model"),
                self.tr("Class map model (*.safetensors)"),
                optional=True,
                createByDefault=False,
            )
        )
        self.add(
            QgsProcessingParameterRasterDestination(
                self.ENTROPY, self.tr("Uncertainty"), optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of classes")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Learn, map, write."""
        from ..jobs.class_map_model import save_mapper
        from ..jobs.class_polygons import class_polygons
        from ..jobs.class_raster import write_class_map

        output = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        entropy = self.parameterAsOutputLayer(parameters, self.ENTROPY, context)
        saved = self.parameterAsFileOutput(parameters, self.SAVED_MODEL, context)
        if saved:
            check_folder(Path(saved), "class map model")
        with (
            self.open_scene(parameters, context, progress=progress, settings=settings) as scene,
            outputs.class_output(
                self, parameters, context, name=self.POLYGONS, crs=self.raster_crs, provenance=scene.provenance()
            ) as polygons,
        ):
            bounds = self.bounds_px(parameters, context, scene.reader)
            mapper = self._mapper(parameters, context, scene=scene, progress=progress, settings=settings)
            for _ in write_class_map(
                mapper,
                Path(output),
                entropy_path=Path(entropy) if entropy else None,
                bounds_px=bounds,
                progress=progress,
            ):
                raise_if_cancelled(progress)
            results: dict[str, Any] = {self.OUTPUT: output, self.COUNT: len(mapper.classes)}
            if entropy:
                results[self.ENTROPY] = entropy
            if saved:
                path = with_ending(saved, ".safetensors")
                save_mapper(mapper, path)
                results[self.SAVED_MODEL] = str(path)
            if polygons is not None:
                ellipsoid = outputs.Ellipsoid(self.raster_crs, context.transformContext())
                for polygon, one in class_polygons(Path(output), mapper.classes):
                    raise_if_cancelled(progress)
                    geometry = outputs.from_shapely(polygon)
                    values = {"class": one.name, "class_id": one.class_id, "area_m2": ellipsoid.area_m2(geometry)}
                    polygons.add(geometry, values)
                results[self.POLYGONS] = polygons.destination
        return results

    def _mapper(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        scene: Scene,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> ClassMapper:
        import shapely

        from ...models.backbone import open_backbone
        from ..jobs.class_map import ClassMapOptions, ClassMapper
        from ..jobs.class_map_model import load_mapper

        model = self.parameterAsFile(parameters, self.CLASS_MODEL, context)
        source = self.parameterAsSource(parameters, self.CLICKS, context)
        if bool(model) == (source is not None):
            raise JobError("Give either clicks or a saved class map model, one of the two.")
        backbone = open_backbone(
            device=scene.engine.device,
            checkpoint_folder=settings.checkpoint_folder,
            offline=settings.offline,
            progress=progress,
        )
        if source is None:
            return load_mapper(Path(model), scene, backbone)
        options = ClassMapOptions(
            head=self.parameterAsEnumString(parameters, self.HEAD, context),
            is_snapped=self.parameterAsBool(parameters, self.SNAP, context),
            window_px=self.window_px(parameters, context),
        )
        mapper = ClassMapper(scene, backbone, options=options)
        field = self.parameterAsString(parameters, self.CLASS_FIELD, context) or "class"
        if source.fields().lookupField(field) < 0:
            raise JobError(f"The clicks have no field '{field}'; choose the one that names the class.")
        prompts = read_prompts(
            source, PromptFields("", "", field), raster_crs=self.raster_crs, context=context, progress=progress
        )
        for name in sorted({prompt.class_name for prompt in prompts if prompt.class_name}):
            mapper.add_class(name)
        ids = {one.name: one.class_id for one in mapper.classes}
        n_outside = 0
        for prompt in prompts:
            raise_if_cancelled(progress)
            if prompt.class_name not in ids:
                continue
            for part in shapely.get_parts(prompt.geometry):
                places = scene.reader.to_pixels(shapely.get_coordinates(part))
                try:
                    mapper.scribble([(float(x), float(y)) for x, y in places], ids[prompt.class_name])
                except JobError:
                    n_outside += 1
        if n_outside:
            progress.info(self.tr("{} clicks lie outside the raster and were left out.").format(n_outside))
        if not mapper.is_fitted:
            raise JobError(f"No click with a class in '{field}' lies on the raster; add one per class.")
        return mapper
