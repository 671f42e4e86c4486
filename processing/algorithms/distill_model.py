"""Processing algorithm `segadapt:distillmodel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputBoolean,
    QgsProcessingOutputNumber,
    QgsProcessingParameterMultipleLayers,
)

from .base import is_temporary
from .feedback import FeedbackProgress
from .model_algorithm import ModelAlgorithm
from .settings import EngineSettings

# Those of `jobs.distill_model`; that module needs the environment (a test compares them).
STUDENTS = ("light", "coarse", "fine")
LEAST_AGREEMENT = 0.62


class DistillModelAlgorithm(ModelAlgorithm):
    """A light model that answers as a large one does."""

    MORE_MODELS = "MORE_MODELS"
    STUDENT = "STUDENT"
    STEPS = "STEPS"
    SPEEDUP = "SPEEDUP"
    AGREEMENT = "AGREEMENT"
    LEAST_AGREEMENT = "LEAST_AGREEMENT"
    IS_KEPT = "IS_KEPT"

    def name(self) -> str:
        """Return the id."""
        return "distillmodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Distill model")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Makes a light model that maps the same ground several times faster: it learns on your rasters, without "
            "labels, to answer as a large model does, or several models together. The report says how often both agree "
            "on ground that the light model did not learn from, and how much faster it is. A light model that agrees "
            "too little there, or with which a class vanishes or takes over, is not kept: the large one is saved in "
            "its place."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            **{name: shared[name] for name in (self.RASTERS, self.BATCH, self.DEVICE, self.SEED, self.REPORT)},
            self.MODEL: self.tr("Segmentation model to learn from (.safetensors)."),
            self.MORE_MODELS: self.tr(
                "Further models of the same bands, classes and resolution; the student learns the mean of what all say."
            ),
            self.STUDENT: self.tr(
                "Light is the teacher's encoder with a narrow decoder at half the resolution, four to six times faster "
                "than the usual model. Coarse is the teacher's whole network at half the resolution, about four times "
                "faster. Fine is a small network at the teacher's resolution, hardly twice as fast; it begins from "
                "nothing and needs hundreds of windows and thousands of steps."
            ),
            self.STEPS: self.tr("Number of batches of windows that the student learns from."),
            self.LEAST_AGREEMENT: self.tr(
                "The light model is kept only if the mean overlap (IoU, 0 to 1) of its classes with those of the "
                "large model reaches this, and no class vanishes or takes over; 0 keeps every one."
            ),
            self.OUTPUT: f"{self.tr('File for the light model (.safetensors).')} {self.going_on_help()}",
            self.IS_KEPT: self.tr("Whether the light model was saved, and not the large one."),
            self.SPEEDUP: self.tr("How many times faster the light model maps the same ground."),
            self.AGREEMENT: self.tr("Mean overlap (IoU, 0 to 1) of its classes with those of the large model."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_package()
        self.add_rasters()
        self.add_choice(self.STUDENT, self.tr("Student"), STUDENTS)
        self.add_number(self.STEPS, self.tr("Steps"), 600, least=1)
        self.add(
            QgsProcessingParameterMultipleLayers(
                self.MORE_MODELS, self.tr("Further models"), QgsProcessing.TypeFile, optional=True
            ),
            advanced=True,
        )
        self.add_number(
            self.LEAST_AGREEMENT,
            self.tr("Least agreement"),
            LEAST_AGREEMENT,
            least=0,
            most=1,
            is_whole=False,
            advanced=True,
        )
        self.add_batch()
        self.add_device()
        self.add_seed()
        self.add_model_output(self.tr("Light model"))
        self.add_report()
        self.addOutput(QgsProcessingOutputBoolean(self.IS_KEPT, self.tr("Light model kept")))
        self.addOutput(QgsProcessingOutputNumber(self.SPEEDUP, self.tr("Times faster")))
        self.addOutput(QgsProcessingOutputNumber(self.AGREEMENT, self.tr("Agreement")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Distil and save."""
        from ...models.transfer.distillation import Distillation
        from ..jobs.distill_model import DistillModel, distill_model
        from ..jobs.model_rasters import TargetRaster

        first, _ = self.package(parameters, context)
        more = (
            self.parameterAsFileList(parameters, self.MORE_MODELS, context) if parameters.get(self.MORE_MODELS) else []
        )
        teachers = [first, *(Path(path) for path in more)]
        output = self.model_output(parameters, context, others=teachers[1:])
        job = DistillModel(
            teachers=teachers,
            rasters=[TargetRaster(raster.path, raster.crs_wkt) for raster in self.rasters(self.RASTERS)],
            output=output,
            is_temporary=is_temporary(output),
            student=self.parameterAsEnumString(parameters, self.STUDENT, context),
            least_agreement=self.parameterAsDouble(parameters, self.LEAST_AGREEMENT, context),
            options=Distillation(
                n_steps=self.parameterAsInt(parameters, self.STEPS, context),
                batch=self.parameterAsInt(parameters, self.BATCH, context),
                seed=self.parameterAsInt(parameters, self.SEED, context),
            ),
            device=self.device(parameters, context, settings),
        )
        report = self.file_output(parameters, context, self.REPORT)
        result, verdict = distill_model(job, report_path=report, progress=progress)
        results: dict[str, Any] = {
            self.OUTPUT: str(output),
            self.IS_KEPT: verdict.is_kept,
            self.SPEEDUP: result.speedup,
            self.AGREEMENT: result.agreement,
        }
        return results | ({self.REPORT: str(report)} if report else {})
