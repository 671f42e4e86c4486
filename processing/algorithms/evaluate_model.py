"""Processing algorithm `segadapt:evaluatemodel`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterMultipleLayers,
)

from ...models.semantic.card import SegmenterCard
from ..errors import JobError
from .feedback import FeedbackProgress
from .settings import EngineSettings
from .training_source import LabelledAlgorithm, parse_bands


class EvaluateModelAlgorithm(LabelledAlgorithm):
    """How good one or several segmentation models are on labelled rasters."""

    MODELS = "MODELS"
    CHIP = "CHIP"
    FLIPS = "FLIPS"
    TOLERANCE = "TOLERANCE"
    MAX_CHIPS = "MAX_CHIPS"
    MEAN_IOU = "MEAN_IOU"
    MEAN_IOU_LOW = "MEAN_IOU_LOW"
    MEAN_IOU_HIGH = "MEAN_IOU_HIGH"
    ACCURACY = "ACCURACY"
    MEAN_F1 = "MEAN_F1"
    BOUNDARY_F1 = "BOUNDARY_F1"
    CALIBRATION_ERROR = "CALIBRATION_ERROR"
    COUNT = "COUNT"
    BEST = "BEST"

    def name(self) -> str:
        """Return the id."""
        return "evaluatemodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Evaluate segmentation models")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Measures how good segmentation models are on rasters with labels: confusion matrix, IoU and F1 of each "
            "class, how well outlines fit, whether their confidence can be trusted, with intervals from blocks of "
            "ground. Several models are compared side by side on the same windows, at the resolution of the finest. "
            "The page shows plots and the worst windows."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        first = self.tr("of the first model")
        return {
            self.MODELS: self.tr(
                "One or more segmentation models that SegAdapt saved (.safetensors); the first is what the others are "
                "compared with."
            ),
            self.RASTERS: shared[self.RASTERS],
            **self.label_helps(),
            self.BANDS: self.tr(
                "Numbers of the raster bands, one for each band of the models, such as 1, 2, 3; without it the bands "
                "of the same names where a raster has them all, else red, green and blue where the model has three "
                "bands, else the first ones."
            ),
            self.CHIP: self.tr(
                "Side of the windows in pixels; without it that of the model's training, of several the largest."
            ),
            self.FLIPS: self.tr("Mean over four mirror images: better, and four times slower."),
            self.TOLERANCE: self.tr("How many pixels an outline may be off and still be right."),
            self.MAX_CHIPS: self.tr(
                "At most about so many windows, drawn evenly from the rasters with labels; fewer where they would take "
                "more than 4 GiB of memory."
            ),
            self.SEED: shared[self.SEED],
            self.DEVICE: shared[self.DEVICE],
            self.TABLE: self.tr("Table with one row for each model and class (.csv)."),
            self.REPORT: self.tr("Page with measures, plots, comparison and the worst windows."),
            self.MEAN_IOU: self.tr("Mean IoU over the classes that the labels hold, {}.").format(first),
            self.MEAN_IOU_LOW: self.tr("Lower end of the 95 % interval of the mean IoU, {}.").format(first),
            self.MEAN_IOU_HIGH: self.tr("Upper end of the 95 % interval of the mean IoU, {}.").format(first),
            self.ACCURACY: self.tr("Share of right pixels, {}.").format(first),
            self.MEAN_F1: self.tr("Mean F1 over the classes that the labels hold, {}.").format(first),
            self.BOUNDARY_F1: self.tr("Mean F-score of the outlines, {}.").format(first),
            self.CALIBRATION_ERROR: self.tr(
                "Expected calibration error, 0 to 1: how far confidence and share of right pixels are apart, {}."
            ).format(first),
            self.COUNT: self.tr("Number of windows, {}.").format(first),
            self.BEST: self.tr("File of the model with the highest mean IoU."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add(QgsProcessingParameterMultipleLayers(self.MODELS, self.tr("Models"), QgsProcessing.TypeFile))
        self.add_rasters()
        self.add_labels()
        self.add_text(self.BANDS, self.tr("Bands"), advanced=True)
        self.add_number(self.CHIP, self.tr("Window size (px)"), None, least=32, most=4096, optional=True, advanced=True)
        self.add(QgsProcessingParameterBoolean(self.FLIPS, self.tr("Mirror images"), False), advanced=True)
        self.add_number(self.TOLERANCE, self.tr("Tolerance of outlines (px)"), 3, least=0, most=100, advanced=True)
        self.add_number(self.MAX_CHIPS, self.tr("Most windows"), 4000, least=1, advanced=True)
        self.add_seed()
        self.add_device()
        self.add_table()
        self.add_report()
        for name, label in (
            (self.MEAN_IOU, self.tr("Mean IoU")),
            (self.MEAN_IOU_LOW, self.tr("Mean IoU, lower end")),
            (self.MEAN_IOU_HIGH, self.tr("Mean IoU, upper end")),
            (self.ACCURACY, self.tr("Accuracy")),
            (self.MEAN_F1, self.tr("Mean F1")),
            (self.BOUNDARY_F1, self.tr("Outline F-score")),
            (self.CALIBRATION_ERROR, self.tr("Calibration error")),
            (self.COUNT, self.tr("Number of windows")),
        ):
            self.addOutput(QgsProcessingOutputNumber(name, label))
        self.addOutput(QgsProcessingOutputString(self.BEST, self.tr("Best model")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Read the labels, judge the models, write table and page."""
        from ..jobs.evaluate_model import EvaluationOptions, evaluate_models, write_table
        from ..jobs.model_report import evaluation_report
        from ..jobs.page import write_report

        table, report = (self.file_output(parameters, context, name) for name in (self.TABLE, self.REPORT))
        paths = [Path(path) for path in self.parameterAsFileList(parameters, self.MODELS, context)]
        if not paths:
            raise JobError("No model is given; choose one or more.")
        rasters = self.labelled_rasters(parameters, context, progress=progress)

        def scheme_of(card: SegmenterCard) -> Any:
            return self.class_scheme(parameters, context, rasters, card=card, progress=progress)

        has_size = self.is_given(parameters, self.CHIP)
        options = EvaluationOptions(
            chip_px=self.parameterAsInt(parameters, self.CHIP, context) if has_size else None,
            bands=parse_bands(self.parameterAsString(parameters, self.BANDS, context)),
            n_most=self.parameterAsInt(parameters, self.MAX_CHIPS, context),
            flips=self.parameterAsBool(parameters, self.FLIPS, context),
            tolerance_px=self.parameterAsInt(parameters, self.TOLERANCE, context),
            seed=self.parameterAsInt(parameters, self.SEED, context),
        )
        device = self.device(parameters, context, settings)
        found = evaluate_models(paths, rasters, scheme_of, options=options, device=device, progress=progress)
        one = found[0]
        numbers = {
            self.MEAN_IOU: one.mean_iou,
            self.MEAN_IOU_LOW: one.interval[0],
            self.MEAN_IOU_HIGH: one.interval[1],
            self.ACCURACY: one.accuracy,
            self.MEAN_F1: one.mean_f1,
            self.BOUNDARY_F1: one.mean_boundary,
            self.CALIBRATION_ERROR: one.calibration.error,
        }
        results: dict[str, Any] = {name: value for name, value in numbers.items() if not math.isnan(value)}
        best = max(range(len(found)), key=lambda n: found[n].mean_iou)
        results |= {self.COUNT: one.n_chips, self.BEST: str(paths[best])}
        if table:
            write_table(found, table)
            results[self.TABLE] = str(table)
        if report:
            page = evaluation_report(
                found,
                options,
                device=one.device,
                rasters=[raster.name for raster in self.rasters(self.RASTERS)],
                labels=self.labels_name(parameters, context),
            )
            write_report(page, report)
            results[self.REPORT] = str(report)
        return results
