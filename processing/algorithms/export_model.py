"""Processing algorithm `segadapt:exportmodel`."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingParameterFileDestination

from ...models.semantic.card import SegmenterCard
from .base import check_folder, with_ending
from .feedback import FeedbackProgress
from .model_algorithm import ModelAlgorithm
from .settings import EngineSettings


class ExportModelAlgorithm(ModelAlgorithm):
    """A model for other programs."""

    CHIP = "CHIP"

    def name(self) -> str:
        """Return the id."""
        return "exportmodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Export model (ONNX)")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Writes a segmentation model as ONNX file, which the QGIS plugin Deepness and many other programs run. "
            "Class names, resolution and tile size go along in the way that Deepness reads them, so that it needs no "
            "settings of yours; how values are stretched and normalised is part of the file."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            self.MODEL: self.shared_helps()[self.MODEL],
            self.CHIP: self.tr(
                "Side in pixels of the tiles that the other program cuts; without a number that of the chips that the "
                "model was trained on."
            ),
            self.OUTPUT: self.tr(
                "ONNX file. Its input are stored values divided by 255, (batch, bands, rows, columns); its output "
                "class probabilities of the same size. Values are stretched as in the rasters that the model was "
                "trained on."
            ),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_package()
        self.add_number(
            self.CHIP, self.tr("Tile size (pixels)"), None, least=32, most=4096, optional=True, advanced=True
        )
        self.add(
            QgsProcessingParameterFileDestination(
                self.OUTPUT, self.tr("Exported model"), self.tr("ONNX model (*.onnx)")
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
        """Export."""
        from ...models.semantic.onnx_export import SUFFIX, export_onnx
        from ...models.semantic.package import load_segmenter

        path, card = self.package(parameters, context)
        output = with_ending(self.parameterAsFileOutput(parameters, self.OUTPUT, context), SUFFIX)
        check_folder(output, "model")
        tile = self.parameterAsInt(parameters, self.CHIP, context) if parameters.get(self.CHIP) else None
        export_onnx(load_segmenter(path), output, tile_px=tile, progress=progress)
        progress.info(self._about_values(card))
        progress.info(
            self.tr("{} bands ({}), tiles of {} px.").format(
                len(card.bands), ", ".join(card.bands), tile or card.chip_px
            )
        )
        return {self.OUTPUT: str(output)}

    def _about_values(self, card: SegmenterCard) -> str:
        """Which stored values the file is right for."""
        stretch = card.stretch or card.training_stretch
        if stretch is None:
            return self.tr(
                "Warning: an older SegAdapt did not say which values the model was trained on; the file is right for "
                "8-bit rasters alone. For others train the model again."
            )
        n_bands = len(card.bands)
        ranges = ", ".join(
            f"{low:g} to {high:g}" for low, high in zip(stretch[:n_bands], stretch[n_bands:], strict=True)
        )
        if card.stretch is not None:
            return self.tr("Stored values that become 0 to 255, by band: {}.").format(ranges)
        return self.tr(
            "Stored values that become 0 to 255, by band: {}, as in the rasters that the model was trained on. Only "
            "SegAdapt looks at the values of each raster for that: other programs map rasters of another range badly."
        ).format(ranges)
