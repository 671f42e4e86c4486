"""Processing algorithm `segadapt:encoderaster`."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingOutputFolder, QgsProcessingOutputNumber

from .feedback import FeedbackProgress
from .raster_algorithm import DEFAULT_WINDOW_PX, RasterAlgorithm
from .settings import EngineSettings


class EncodeRasterAlgorithm(RasterAlgorithm):
    """Does the slow half of segmentation ahead of time."""

    ENCODED = "ENCODED"
    FOLDER = "FOLDER"

    def name(self) -> str:
        """Return the id."""
        return "encoderaster"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Encode raster")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Runs the model's encoder over a raster and keeps the results on disk, so that later prompts in "
            "the same raster are answered at once. What is there already is not computed again: a cancelled "
            "run goes on where it stopped."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            **self.shared_helps(),
            **self.extent_help(),
            self.WINDOW: self.tr(
                "Side of the encoded squares in raster pixels; auto is 1024. Prompts use it if their window "
                "is the same."
            ),
            self.ENCODED: self.tr("Number of windows that were encoded in this run."),
            self.FOLDER: self.tr("Folder that holds the encoded windows."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_raster()
        self.add_extent()
        self.add_model()
        self.addOutput(QgsProcessingOutputNumber(self.ENCODED, self.tr("Encoded windows")))
        self.addOutput(QgsProcessingOutputFolder(self.FOLDER, self.tr("Folder of the cache")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Encode what the cache lacks."""
        from ..jobs.encode import encode_raster

        with self.open_scene(parameters, context, progress=progress, settings=settings) as scene:
            encoded = encode_raster(
                scene,
                self.bounds_px(parameters, context, scene.reader),
                window_px=self.window_px(parameters, context) or DEFAULT_WINDOW_PX,
                progress=progress,
            )
            progress.info(
                self.tr("{} of {} windows were encoded; the others were there, or hold no data.").format(
                    encoded.n_new, encoded.n_windows
                )
            )
            folder = str(scene.cache.folder)
        return {self.ENCODED: encoded.n_new, self.FOLDER: folder}
