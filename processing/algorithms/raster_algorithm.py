"""Parameters and steps that the algorithms on a raster share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBand,
    QgsProcessingParameterDistance,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
)

from ...models.registry import list_models
from ..errors import JobError, RasterError
from .base import SegAdaptAlgorithm
from .feedback import FeedbackProgress
from .raster_source import RasterSource, read_source
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..jobs.scene import Scene
    from ..raster.reader import RasterReader

DEVICES = ("auto", "cuda", "mps", "cpu")
STRETCHES = ("automatic", "layer")
AUTO = "auto"
# `raster.windows.WINDOW_SIZES_PX` as text; that module needs the environment (a test compares them).
DEFAULT_WINDOW_PX = 1024
"""Where no object tells how large a window should be: the model's own input, so that pixels stay as they are."""
WINDOWS = (AUTO, "256", "512", "1024", "2048")


class RasterAlgorithm(SegAdaptAlgorithm):
    """An algorithm on one raster with one promptable model."""

    INPUT = "INPUT"
    MODEL = "MODEL"
    BANDS = "BANDS"
    DEVICE = "DEVICE"
    EXTENT = "EXTENT"
    STRETCH = "STRETCH"
    WINDOW = "WINDOW"
    SIMPLIFY = "SIMPLIFY"
    MIN_AREA = "MIN_AREA"
    OUTPUT = "OUTPUT"
    COUNT = "COUNT"

    def __init__(self) -> None:
        super().__init__()
        self._source: RasterSource | None = None
        self._problem = ""
        self.raster_crs = QgsCoordinateReferenceSystem()

    def shared_helps(self) -> dict[str, str]:
        """Return the help of the parameters that this class adds."""
        return {
            self.INPUT: self.tr("Raster file with a CRS: any format, data type and number of bands that GDAL reads."),
            self.MODEL: self.tr("Model by name; its weights are downloaded once, when they are first needed."),
            self.BANDS: self.tr(
                "Three bands to show the model as red, green and blue, or one; none means the raster's own "
                "colours or its first three bands."
            ),
            self.DEVICE: self.tr("Where the model runs; auto takes the fastest device that works, and says why."),
            self.STRETCH: self.tr(
                "How values become brightness: automatic takes the 2nd to 98th percentile of the whole "
                "raster, layer takes the minimum and maximum of the layer's style. It never depends on the "
                "extent."
            ),
            self.WINDOW: self.tr(
                "Side of the square, in raster pixels, that the model sees at once; auto follows the size of "
                "the objects and the resolution."
            ),
        }

    def extent_help(self) -> dict[str, str]:
        """Return the help of the extent."""
        return {self.EXTENT: self.tr("Part of the raster to work on, in any CRS; without it the whole raster.")}

    def polygon_helps(self) -> dict[str, str]:
        """Return the help of what the algorithms with polygons share."""
        return {
            self.SIMPLIFY: self.tr(
                "Simplify outlines by at most this distance (Douglas-Peucker), in units of the raster's CRS; "
                "0 keeps the outline of the pixels."
            ),
            self.MIN_AREA: self.tr("Drop parts, and fill holes, that are smaller than this many square metres."),
            self.OUTPUT: self.tr(
                "Polygons in the raster's CRS with object_id, class, score (the model's own estimate of the "
                "overlap with the truth, 0 to 1), stability (0 to 1), area_m2 and perimeter_m (on the ellipsoid), "
                "model, adapter and date."
            ),
            self.COUNT: self.tr("Number of polygons."),
        }

    def add_raster(self) -> None:
        """Add the raster; the first parameter of every algorithm here."""
        self.add(QgsProcessingParameterRasterLayer(self.INPUT, self.tr("Raster")))

    def add_extent(self) -> None:
        """Add the extent."""
        self.add(QgsProcessingParameterExtent(self.EXTENT, self.tr("Extent"), optional=True))

    def add_model(self) -> None:
        """Add model, bands and device, and the advanced stretch and window."""
        names = [card.name for card in list_models("promptable")]
        self.add_choice(self.MODEL, self.tr("Model"), names)
        bands = QgsProcessingParameterBand(
            self.BANDS, self.tr("Bands"), None, self.INPUT, optional=True, allowMultiple=True
        )
        self.add(bands)
        self.add_choice(self.DEVICE, self.tr("Device"), DEVICES)
        self.add_choice(self.STRETCH, self.tr("Stretch"), STRETCHES, advanced=True)
        self.add_choice(self.WINDOW, self.tr("Window (pixels)"), WINDOWS, advanced=True)

    def add_polygons(self) -> None:
        """Add the advanced options of polygons, their sink and their number."""
        self.add(
            QgsProcessingParameterDistance(self.SIMPLIFY, self.tr("Simplify"), 0.0, self.INPUT, minValue=0.0),
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber(
                self.MIN_AREA,
                self.tr("Minimum area (m²)"),
                QgsProcessingParameterNumber.Double,
                0.0,
                minValue=0.0,
            ),
            advanced=True,
        )
        self.add(QgsProcessingParameterFeatureSink(self.OUTPUT, self.tr("Objects"), QgsProcessing.TypeVectorPolygon))
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of objects")))

    def add_choice(
        self, name: str, label: str, options: list[str] | tuple[str, ...], *, advanced: bool = False
    ) -> None:
        """Add a choice by name (not by index, which would change with the list); the first is the default."""
        choice = QgsProcessingParameterEnum(
            name, label, list(options), allowMultiple=False, defaultValue=options[0], usesStaticStrings=True
        )
        self.add(choice, advanced=advanced)

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Read what is needed of the layer, on the main thread: its CRS as the user sees it, and its source."""
        layer = self.parameterAsRasterLayer(parameters, self.INPUT, context)
        # QGIS does not tell a script what failed while preparing, so `processAlgorithm` will.
        if layer is None or not layer.isValid():
            self._problem = self.invalidRasterError(parameters, self.INPUT)
            return True
        self.raster_crs = layer.crs()
        try:
            self._source = read_source(
                layer,
                self.parameterAsInts(parameters, self.BANDS, context),
                use_layer_stretch=self.parameterAsEnumString(parameters, self.STRETCH, context) == "layer",
            )
        except RasterError as error:
            self._problem = str(error)
        return True

    def window_px(self, parameters: dict[str, Any], context: QgsProcessingContext) -> int | None:
        """Return the chosen window in pixels, None for auto."""
        chosen = self.parameterAsEnumString(parameters, self.WINDOW, context)
        return None if chosen == AUTO else int(chosen)

    @contextmanager
    def open_scene(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> Iterator[Scene]:
        """Open raster, engine and cache of embeddings for the work inside, and close them after it."""
        # Here and not at the top: these need the environment.
        from ...models.embeddings import EmbeddingCache
        from ...models.engine import open_engine
        from ..jobs.scene import Scene

        device = self.parameterAsEnumString(parameters, self.DEVICE, context)
        with self._open_reader() as reader:
            engine = open_engine(
                self.parameterAsEnumString(parameters, self.MODEL, context),
                device=settings.device if device == AUTO else device,
                checkpoint_folder=settings.checkpoint_folder,
                offline=settings.offline,
                progress=progress,
            )
            progress.info(engine.device_reason)
            cache = EmbeddingCache(settings.cache_folder, disk_bytes=int(settings.cache_gb * 2**30))
            try:
                yield Scene(reader, engine, cache)
            finally:
                engine.close()

    def bounds_px(
        self, parameters: dict[str, Any], context: QgsProcessingContext, reader: RasterReader
    ) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of the extent in pixels, cut to the raster; the whole without one.

        Raises `JobError` for an extent that is empty or beside the raster.
        """
        import numpy as np

        rows, cols = reader.shape
        if not self.is_given(parameters, self.EXTENT):
            return 0.0, 0.0, float(cols), float(rows)
        outline = self.parameterAsExtentGeometry(parameters, self.EXTENT, context, self.raster_crs)
        corners = np.array([(vertex.x(), vertex.y()) for vertex in outline.vertices()]).reshape(-1, 2)
        if not len(corners) or not outline.area() > 0:
            raise JobError(f"The extent {parameters[self.EXTENT]} is empty; draw a rectangle, or leave it out.")
        pixels = np.clip(reader.to_pixels(corners), 0, (cols, rows))
        (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
        if right <= left or bottom <= top:
            raise JobError(
                f"The extent {parameters[self.EXTENT]} does not meet the raster '{self._raster().name}'; "
                "choose one that does, and check its CRS."
            )
        return float(left), float(top), float(right), float(bottom)

    def _raster(self) -> RasterSource:
        if self._source is None:
            raise RasterError(self._problem or "No raster was prepared; start the algorithm through Processing.")
        return self._source

    @contextmanager
    def _open_reader(self) -> Iterator[RasterReader]:
        from ..raster.reader import open_raster
        from ..raster.stretch import Stretch

        source = self._raster()
        stretch = None
        if source.ranges is not None:
            stretch = Stretch(low=tuple(low for low, _ in source.ranges), high=tuple(high for _, high in source.ranges))
        with open_raster(source.path, bands=source.bands, stretch=stretch, crs_wkt=source.crs_wkt) as reader:
            yield reader
