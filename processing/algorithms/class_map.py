"""Processing algorithm `segadapt:classmap`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsFeature,
    QgsFeatureSink,
    QgsField,
    QgsFields,
    QgsGeometry,
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
    QgsProcessingParameterRasterDestination,
    QgsWkbTypes,
)

from ...models.progress import raise_if_cancelled
from ..errors import JobError
from . import outputs
from .feedback import FeedbackProgress
from .prompt_source import PromptFields, read_prompts
from .raster_algorithm import RasterAlgorithm
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..jobs.class_map import ClassMapper
    from ..jobs.scene import Scene

# As in `outputs`: QGIS 3.38 moved fields from QVariant's types to QMetaType's.
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
        from ..jobs.class_map import write_class_map

        output = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        entropy = self.parameterAsOutputLayer(parameters, self.ENTROPY, context)
        saved = self.parameterAsFileOutput(parameters, self.SAVED_MODEL, context)
        with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
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
                path = Path(saved).with_suffix(".safetensors")
                mapper.save(path)
                results[self.SAVED_MODEL] = str(path)
            if parameters.get(self.POLYGONS):
                results[self.POLYGONS] = self._write_polygons(
                    parameters, context, raster=output, mapper=mapper, progress=progress
                )
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
        from ..jobs.class_map import ClassMapOptions, ClassMapper, load_mapper

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

    def _write_polygons(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        raster: str,
        mapper: ClassMapper,
        progress: FeedbackProgress,
    ) -> str:
        import rasterio
        import shapely

        from ..jobs.class_map import class_polygons

        with rasterio.open(raster) as dataset:
            labels, transform = dataset.read(1), dataset.transform
        ellipsoid = outputs.Ellipsoid(self.raster_crs, context.transformContext())
        with self._sink(parameters, context) as (sink, destination):
            for polygon, one in class_polygons(labels, transform, mapper.classes):
                raise_if_cancelled(progress)
                feature = QgsFeature(_fields())
                geometry = QgsGeometry()
                geometry.fromWkb(shapely.to_wkb(polygon))
                feature.setGeometry(geometry)
                feature.setAttributes([one.name, one.class_id, ellipsoid.area_m2(geometry)])
                if not sink.addFeature(feature, QgsFeatureSink.FastInsert):
                    raise JobError(f"Cannot write to {destination} ({sink.lastError()}); check space and rights.")
        return destination

    @contextmanager
    def _sink(self, parameters: dict[str, Any], context: QgsProcessingContext) -> Iterator[tuple[QgsFeatureSink, str]]:
        sink, destination = self.parameterAsSink(
            parameters, self.POLYGONS, context, _fields(), QgsWkbTypes.Polygon, self.raster_crs
        )
        if sink is None:
            raise QgsProcessingException(self.invalidSinkError(parameters, self.POLYGONS))
        yield sink, destination
        del sink  # completes the file


def _fields() -> QgsFields:
    fields = QgsFields()
    for name, kind in (("class", outputs.TEXT), ("class_id", outputs.INTEGER), ("area_m2", outputs.DOUBLE)):
        fields.append(QgsField(name, kind))
    return fields
