"""What the algorithms with segmentation models share: packages, rasters, labels, device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingParameterBand,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsRasterLayer,
)

from ...models.semantic.card import SUFFIX, SegmenterCard, base_files, read_card, replaces
from ..errors import JobError, RasterError
from .base import SegAdaptAlgorithm, check_folder, with_ending
from .raster_algorithm import AUTO, DEVICES
from .raster_source import file_path
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..raster.band_reader import BandReader

# GDAL opens these, too, but they belong to other files.
_BESIDE_RASTERS = (".ovr", ".msk")


@dataclass(frozen=True)
class RasterInput:
    """A raster layer, taken from QGIS on the main thread: its file, its name, its CRS as the user sees it."""

    path: str
    name: str
    crs: QgsCoordinateReferenceSystem

    @property
    def crs_wkt(self) -> str | None:
        """The CRS as text, None for a picture without one."""
        return self.crs.toWkt(QgsCoordinateReferenceSystem.WKT_PREFERRED) if self.crs.isValid() else None


class ModelAlgorithm(SegAdaptAlgorithm):
    """An algorithm that makes, changes, uses or judges segmentation models.

    Layers are read while it is prepared, on the main thread; `rasters(NAME)` then gives them to `execute`.
    """

    INPUT = "INPUT"
    RASTERS = "RASTERS"
    MODEL = "MODEL"
    BANDS = "BANDS"
    EXTENT = "EXTENT"
    DEVICE = "DEVICE"
    SEED = "SEED"
    BATCH = "BATCH"
    OUTPUT = "OUTPUT"
    TABLE = "TABLE"
    REPORT = "REPORT"

    def __init__(self) -> None:
        super().__init__()
        self._rasters: dict[str, list[RasterInput]] = {}
        self._problem = ""

    def group(self) -> str:
        """Return the group in the toolbox."""
        return self.tr("Domain adaptation")

    def groupId(self) -> str:
        """Return the id of the group; fixed for ever."""
        return "adaptation"

    def shared_helps(self) -> dict[str, str]:
        """Return the help of the parameters that this class adds; take those that the algorithm has."""
        return {
            self.INPUT: self.tr("Raster file: any format, data type and number of bands that GDAL reads."),
            self.RASTERS: self.tr("One or more raster files with the same bands, or folders of them."),
            self.MODEL: self.tr("Segmentation model that SegAdapt saved (.safetensors)."),
            self.BANDS: self.tr(
                "One raster band for each band of the model, in the model's order; none means the bands of the same "
                "names where the raster has them all, else red, green and blue where the model has three bands, else "
                "the first ones."
            ),
            self.EXTENT: self.tr("Part of the raster to work on, in any CRS; without it the whole raster."),
            self.DEVICE: self.tr("Where the model runs; auto takes the fastest device that works, and says why."),
            self.BATCH: self.tr("Windows that the model sees at once, 8 without a number; fewer need less memory."),
            self.SEED: self.tr("Number that decides on every random choice; the same number, the same result."),
            self.REPORT: self.tr("Page with what was done and measured."),
        }

    def add_raster(self) -> None:
        """Add one raster."""
        self.add(QgsProcessingParameterRasterLayer(self.INPUT, self.tr("Raster")))

    def add_rasters(self, name: str = RASTERS, label: str = "", *, optional: bool = False) -> None:
        """Add one or more rasters."""
        self.add(
            QgsProcessingParameterMultipleLayers(
                name, label or self.tr("Rasters"), QgsProcessing.TypeRaster, optional=optional
            )
        )

    def add_package(self) -> None:
        """Add the model package."""
        self.add(QgsProcessingParameterFile(self.MODEL, self.tr("Model"), extension="safetensors"))

    def add_bands(self) -> None:
        """Add the bands of the raster `INPUT`."""
        self.add(
            QgsProcessingParameterBand(
                self.BANDS, self.tr("Bands"), None, self.INPUT, optional=True, allowMultiple=True
            ),
            advanced=True,
        )

    def add_extent(self) -> None:
        """Add the extent."""
        self.add(QgsProcessingParameterExtent(self.EXTENT, self.tr("Extent"), optional=True))

    def add_device(self) -> None:
        """Add the device, advanced."""
        self.add_choice(self.DEVICE, self.tr("Device"), DEVICES, advanced=True)

    def add_seed(self) -> None:
        """Add the seed, advanced."""
        self.add_number(self.SEED, self.tr("Seed"), 0, least=0, advanced=True)

    def add_batch(self, *, least: int = 2) -> None:
        """Add the batch, advanced; where the model learns, its normalisation wants two windows."""
        # Optional, so that chains made before it was there still fit.
        self.add_number(self.BATCH, self.tr("Batch"), 8, least=least, optional=True, advanced=True)

    def add_text(self, name: str, label: str, default: str = "", *, advanced: bool = False) -> None:
        """Add a text that may be left empty."""
        self.add(QgsProcessingParameterString(name, label, default or None, optional=True), advanced=advanced)

    def add_table(self) -> None:
        """Add the table."""
        self.add(
            QgsProcessingParameterFileDestination(
                self.TABLE, self.tr("Table"), self.tr("CSV files (*.csv)"), optional=True, createByDefault=False
            )
        )

    def add_report(self) -> None:
        """Add the page."""
        self.add(
            QgsProcessingParameterFileDestination(
                self.REPORT, self.tr("Report"), self.tr("HTML files (*.html)"), optional=True
            )
        )

    def add_model_output(self, label: str = "", *, optional: bool = False) -> None:
        """Add the file of the model that is made; an optional one is made only where it is asked for."""
        self.add(
            QgsProcessingParameterFileDestination(
                self.OUTPUT,
                label or self.tr("Model to save"),
                self.tr("Segmentation model (*.safetensors)"),
                optional=optional,
                createByDefault=not optional,
            )
        )

    def going_on_help(self) -> str:
        """Say what becomes of a training that a crash ends; for the help of its output."""
        return self.tr(
            "If QGIS or the computer crashes, a run with the same parameters and the same file (not a temporary one) "
            "goes on where training was about a minute before."
        )

    def add_choice(self, name: str, label: str, options: Sequence[str], *, advanced: bool = False) -> None:
        """Add a choice by name (not by index, which would change with the list); the first is the default."""
        choice = QgsProcessingParameterEnum(
            name, label, list(options), allowMultiple=False, defaultValue=options[0], usesStaticStrings=True
        )
        self.add(choice, advanced=advanced)

    def add_number(
        self,
        name: str,
        label: str,
        default: float | None,
        *,
        least: float,
        most: float | None = None,
        is_whole: bool = True,
        optional: bool = False,
        advanced: bool = False,
    ) -> None:
        """Add a number, whole or not."""
        kind = QgsProcessingParameterNumber.Integer if is_whole else QgsProcessingParameterNumber.Double
        more = {} if most is None else {"maxValue": most}
        self.add(
            QgsProcessingParameterNumber(name, label, kind, default, optional=optional, minValue=least, **more),
            advanced=advanced,
        )

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        """Check the values, with folders taken for the rasters that they hold."""
        try:
            checked = super().checkParameterValues(self._with_files(parameters), context)
        except JobError as error:
            return False, str(error)
        return bool(checked[0]), str(checked[1])

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Read what is needed of the layers, on the main thread."""
        try:
            parameters = self._with_files(parameters)
        except JobError as error:
            self._problem = str(error)
            return True
        for definition in self.parameterDefinitions():
            name = definition.name()
            try:
                if isinstance(definition, QgsProcessingParameterRasterLayer):
                    layer = self.parameterAsRasterLayer(parameters, name, context)
                    layers = [] if layer is None and not parameters.get(name) else [layer]
                elif _is_of_rasters(definition):
                    layers = self.parameterAsLayerList(parameters, name, context)
                else:
                    continue
                self._rasters[name] = [self._read_layer(layer, parameters, name) for layer in layers]
            except (RasterError, JobError) as error:
                # QGIS does not tell a script what failed while preparing, so `rasters` will.
                self._problem = self._problem or str(error)
        return True

    def rasters(self, name: str) -> list[RasterInput]:
        """The rasters of a parameter. Raises `JobError` where one could not be read."""
        if self._problem:
            raise JobError(self._problem)
        return self._rasters.get(name, [])

    def raster(self) -> RasterInput:
        """The raster of `INPUT`. Raises `JobError` where it could not be read."""
        found = self.rasters(self.INPUT)
        if not found:
            raise JobError("No raster is given; choose one.")
        return found[0]

    def package(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[Path, SegmenterCard]:
        """The file of the model, and its card. Raises `PackageError` for a file that is none, or is damaged."""
        from ...models.semantic.package import package_sha256

        path = Path(self.parameterAsFile(parameters, self.MODEL, context))
        card = read_card(path)
        # Now, before anything else is blamed for what an altered card says.
        package_sha256(path)
        return path, card

    def file_output(self, parameters: dict[str, Any], context: QgsProcessingContext, name: str) -> Path | None:
        """As every algorithm's, with folders taken for the rasters that they hold."""
        return super().file_output(self._with_files(parameters), context, name)

    def model_output(
        self, parameters: dict[str, Any], context: QgsProcessingContext, *, others: Sequence[Path] = ()
    ) -> Path:
        """Where the model is to be saved; to be asked before the work.

        Raises `JobError` for a folder that cannot be written to, and for a file that `MODEL` or one of `others`, an
        adapter, is laid over.
        """
        path = with_ending(self.parameterAsFileOutput(parameters, self.OUTPUT, context), SUFFIX)
        check_folder(path, "model")
        given = [Path(self.parameterAsFile(parameters, self.MODEL, context))] if parameters.get(self.MODEL) else []
        for model in (*given, *others):
            if any(replaces(path, file) for file in base_files(model)):
                raise JobError(
                    f"{model} is an adapter that is laid over {path}, which the result would replace; save the result "
                    "in another file."
                )
        return path

    def device(self, parameters: dict[str, Any], context: QgsProcessingContext, settings: EngineSettings) -> str:
        """The chosen device, that of the settings for auto."""
        chosen = self.parameterAsEnumString(parameters, self.DEVICE, context)
        return settings.device if chosen == AUTO else chosen

    def extent_px(
        self, parameters: dict[str, Any], context: QgsProcessingContext, raster: RasterInput, reader: BandReader
    ) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom of the extent in pixels of the reader's grid, cut to it; None without an extent.

        Raises `JobError` for an extent that is empty or beside the raster.
        """
        import numpy as np

        from ..raster.geodesy import apply_affine

        if not self.is_given(parameters, self.EXTENT):
            return None
        given = parameters[self.EXTENT]
        outline = self.parameterAsExtentGeometry(parameters, self.EXTENT, context, raster.crs)
        corners = np.array([(vertex.x(), vertex.y()) for vertex in outline.vertices()]).reshape(-1, 2)
        if not len(corners) or not outline.area() > 0:
            raise JobError(f"The extent {given} is empty; draw a rectangle, or leave it out.")
        rows, cols = reader.grid_shape
        pixels = np.clip(apply_affine(~reader.grid_transform, corners), 0, (cols, rows))
        (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
        if right <= left or bottom <= top:
            raise JobError(
                f"The extent {given} does not meet the raster '{raster.name}'; choose one that does, and check its CRS."
            )
        return float(left), float(top), float(right), float(bottom)

    def _with_files(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters with every folder among several rasters replaced by its rasters.

        Raises `JobError` for a folder that holds none.
        """
        found = dict(parameters)
        for definition in self.parameterDefinitions():
            given = found.get(definition.name())
            if not _is_of_rasters(definition) or not given:
                continue
            entries = list(given) if isinstance(given, (list, tuple)) else str(given).split(";")
            if any(_is_folder(one) for one in entries):
                found[definition.name()] = [file for one in entries for file in _files_of(one)]
        return found

    def _read_layer(self, layer: Any, parameters: dict[str, Any], name: str) -> RasterInput:
        if not isinstance(layer, QgsRasterLayer) or not layer.isValid():
            raise JobError(self.invalidRasterError(parameters, name))
        return RasterInput(file_path(layer), layer.name(), layer.crs())


def _is_of_rasters(definition: QgsProcessingParameterDefinition) -> bool:
    is_multiple = isinstance(definition, QgsProcessingParameterMultipleLayers)
    return is_multiple and definition.layerType() == QgsProcessing.TypeRaster


def _is_folder(entry: Any) -> bool:
    """Whether it names a folder that is not itself a raster, as an Esri grid or a Zarr store is."""
    if not isinstance(entry, str) or not Path(entry).is_dir():
        return False
    return Path(entry).suffix.lower() != ".zarr" and not (Path(entry) / "hdr.adf").exists()


def _files_of(entry: Any) -> list[Any]:
    """The entry itself, or the rasters of a folder in the order of their names, without overviews and masks."""
    if not _is_folder(entry):
        return [entry]
    files = [str(path) for path in sorted(Path(entry).iterdir()) if path.suffix.lower() not in _BESIDE_RASTERS]
    rasters = [file for file in files if Path(file).is_file() and QgsRasterLayer.isValidRasterFileName(file)]
    if not rasters:
        raise JobError(f"The folder {entry} holds no raster; choose one that does.")
    return rasters
