"""Processing algorithm `segadapt:domainshift`."""

from __future__ import annotations

import math
from typing import Any

from qgis.core import QgsProcessingContext, QgsProcessingOutputNumber, QgsProcessingOutputString

from .feedback import FeedbackProgress
from .model_algorithm import ModelAlgorithm
from .settings import EngineSettings


class DomainShiftAlgorithm(ModelAlgorithm):
    """How far images are from what a model knows."""

    FRECHET = "FRECHET"
    PROXY_A = "PROXY_A"
    BAND_SHIFT = "BAND_SHIFT"
    CLASS_SHIFT = "CLASS_SHIFT"
    AGREEMENT = "AGREEMENT"
    SHIFT = "SHIFT"
    LEVEL = "LEVEL"
    RECOMMENDED = "RECOMMENDED"

    def name(self) -> str:
        """Return the id."""
        return "domainshift"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Measure domain shift")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Says how far images are from those that a segmentation model was trained on, without labels and without "
            "the source's images: the model's file remembers what they looked like. The page compares the values of "
            "the bands, what the network sees, and the shares of the classes, and says which methods of adaptation to "
            "try first. Measures that the model knows nothing about are left out."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            self.RASTERS: self.tr("The images to compare: raster files with the bands of the model, or folders."),
            self.MODEL: shared[self.MODEL],
            self.SEED: shared[self.SEED],
            self.DEVICE: shared[self.DEVICE],
            self.REPORT: self.tr("Page with all measures, what they mean, and what to try."),
            self.SHIFT: self.tr("All measures in one: 0 as the source, 1 another world."),
            self.FRECHET: self.tr("Frechet distance of the network's features, over the source's variance."),
            self.PROXY_A: self.tr("Proxy A-distance of the features: 0 cannot be told apart, 2 always can."),
            self.BAND_SHIFT: self.tr("Mean distance of the bands' values, in standard deviations of the source."),
            self.CLASS_SHIFT: self.tr("Part of the pixels that other shares of classes are about, 0 to 1."),
            self.AGREEMENT: self.tr("Agreement of the model with itself and with the image, 0 to 1."),
            self.LEVEL: self.tr("How far in a word: near, moderate, far, or unknown."),
            self.RECOMMENDED: self.tr("Methods to try first, as the algorithm that adapts models names them."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters(label=self.tr("Target rasters"))
        self.add_package()
        self.add_seed()
        self.add_device()
        self.add_report()
        for name, label in (
            (self.SHIFT, self.tr("Shift")),
            (self.FRECHET, self.tr("Frechet distance")),
            (self.PROXY_A, self.tr("Proxy A-distance")),
            (self.BAND_SHIFT, self.tr("Shift of the bands")),
            (self.CLASS_SHIFT, self.tr("Shift of the classes")),
            (self.AGREEMENT, self.tr("Agreement")),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, label))
        self.addOutput(QgsProcessingOutputString(self.LEVEL, self.tr("Level")))
        self.addOutput(QgsProcessingOutputString(self.RECOMMENDED, self.tr("Recommended methods")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Measure, then write the report."""
        from ..jobs.domain_shift import domain_shift
        from ..jobs.model_rasters import TargetRaster
        from ..jobs.page import write_report
        from ..jobs.shift_report import shift_report

        model, _ = self.package(parameters, context)
        report = self.file_output(parameters, context, self.REPORT)
        targets = [TargetRaster(raster.path, raster.crs_wkt) for raster in self.rasters(self.RASTERS)]
        result = domain_shift(
            targets,
            model,
            device=self.device(parameters, context, settings),
            seed=self.parameterAsInt(parameters, self.SEED, context),
            progress=progress,
        )
        shift = result.shift
        numbers = {
            self.SHIFT: shift.overall,
            self.FRECHET: shift.frechet,
            self.PROXY_A: shift.proxy_a,
            self.BAND_SHIFT: shift.bands,
            self.CLASS_SHIFT: shift.shares,
            self.AGREEMENT: shift.agreement.score,
        }
        results: dict[str, Any] = {
            self.LEVEL: result.advice.level,
            self.RECOMMENDED: result.advice.methods[0],
            **{name: value for name, value in numbers.items() if not math.isnan(value)},
        }
        if report:
            write_report(shift_report(result, targets), report)
            results[self.REPORT] = str(report)
        return results
