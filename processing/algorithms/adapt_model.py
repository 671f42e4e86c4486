"""Processing algorithm `segadapt:adaptmodel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputBoolean,
    QgsProcessingOutputNumber,
)

from ...models.progress import Progress, StepProgress
from .base import is_temporary
from .feedback import FeedbackProgress
from .settings import EngineSettings
from .training_source import OF_SOURCE, READ, LabelledAlgorithm

if TYPE_CHECKING:
    from ...models.engine import InferenceEngine

# `jobs.adapt_model.CHAINS` and `jobs.chip_segments.KINDS`; those modules need the environment (a test compares them).
METHODS = (
    "masked_consistency",
    "quantile+masked_consistency",
    "self_training",
    "quantile+self_training",
    "norm_statistics+self_training",
    "quantile",
    "reinhard",
    "norm_statistics",
    "quantile+norm_statistics",
    "entropy",
    "entropy_diversity",
    "quantile+entropy_diversity",
    "masked_image+self_training",
    "fourier",
    "fourier+self_training",
)
SEGMENTS = ("none", "superpixels", "model")
_SEGMENT_MODEL = "mobile_sam"
_LOADED = 0.05
"""Share of the progress that loading that model takes, whose weights may have to be downloaded."""


class AdaptModelAlgorithm(LabelledAlgorithm):
    """A segmentation model brought to other images, without labels of them."""

    METHODS = "METHODS"
    CHAIN = "CHAIN"
    STEPS = "STEPS"
    SEGMENTS = "SEGMENTS"
    SOURCE_WEIGHT = "SOURCE_WEIGHT"
    IS_ADAPTED = "IS_ADAPTED"
    AGREEMENT_BEFORE = "AGREEMENT_BEFORE"
    AGREEMENT_AFTER = "AGREEMENT_AFTER"

    def name(self) -> str:
        """Return the id."""
        return "adaptmodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Adapt model without labels")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Brings a segmentation model to images that look different from those it was trained on, without a single "
            "label of them. A part of the images is held out: on it, the model before and the model after are "
            "compared by how well they agree with themselves and with the image. Where that falls, a class vanishes or "
            "takes over, or less than nine tenths of what the model before was surest of stay what they were (unless "
            "labels of the source are rehearsed), the model is saved as it was, and the report says so. Measure the "
            "domain shift first to see which method to try."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared, labels, source = self.shared_helps(), self.label_helps(), self.source_helps()
        return {
            self.RASTERS: self.tr("The images to adapt to: raster files with the bands of the model, or folders."),
            self.MODEL: shared[self.MODEL],
            self.METHODS: self.tr(
                "Method, or methods one after another. masked_consistency: learns from its own sure answers, also "
                "behind masks; the strongest on real images, and the slowest. self_training: without masks. "
                "quantile: maps the values of each band to those of the source; seconds. reinhard: mean and contrast "
                "only. norm_statistics: estimates the network's averages anew; seconds. entropy: tunes the "
                "normalisation to sure answers. entropy_diversity: everything but the head, keeping all classes. "
                "masked_image: the encoder first gets "
                "used to the images. fourier: source images in the target's colours; needs labelled source rasters. "
                "In the study of docs/adaptation.md masked_consistency won 3.1 points of mean IoU in the mean of six "
                "pairs, and self_training with 240 steps 4.3, where labelled source rasters were rehearsed and the "
                "weights went all of the way (SOURCE_WEIGHT=0); without them masked_consistency won 2.6 and "
                "self_training 0.8, and what maps values, averages or colours alone lost, as entropy did."
            ),
            self.CHAIN: self.tr(
                "Names of methods joined by +, such as reinhard+masked_consistency; replaces the choice of methods. "
                "Options of a method follow its name, as in norm_statistics(alpha=0.5)+self_training(rate=1e-4, "
                "ema=0.99); a message lists those of a method where one is asked for that it does not have."
            ),
            self.STEPS: self.tr("Batches of windows that each method that learns may take; more takes longer."),
            self.SEGMENTS: self.tr(
                "What cleans the answers that self-training learns from: nothing, superpixels, or the segments of "
                "MobileSAM (three bands; some seconds per window on a CPU). Nothing is the default: in the "
                "study of docs/adaptation.md cleaning cost one to two points of mean IoU."
            ),
            self.SOURCE_WEIGHT: self.tr(
                "How far the weights of what learned are taken back to those of the model, 0 to 1. Without it two "
                "thirds of the way where no labels of the source are rehearsed, and one third where they are, which "
                "keeps most of what can be won and loses less where the model was right before."
            ),
            self.SOURCE: source[self.SOURCE],
            self.LABELS: self.tr(
                "Polygons of the classes on the source rasters, in any CRS. Labels of the target are not used here: "
                "give them to Fine-tune model."
            ),
            self.CLASS_FIELD: source[OF_SOURCE + self.CLASS_FIELD],
            self.LABEL_RASTERS: self.tr(
                "Rasters of whole class ids instead of polygons: one for each source raster, of the same file name (a "
                "word may follow, as in scene_classes.png) or else in the same order, or a single one for all. Nodata "
                "is unlabelled, and so is 255 unless it is named."
            ),
            self.CLASS_NAMES: labels[self.CLASS_NAMES],
            self.BACKGROUND: labels[self.BACKGROUND],
            self.AREA: source[OF_SOURCE + self.AREA],
            self.BATCH: shared[self.BATCH],
            self.SEED: shared[self.SEED],
            self.DEVICE: shared[self.DEVICE],
            self.OUTPUT: (
                self.tr("The adapted model, or the source model where adapting did harm (.safetensors).")
                + f" {self.going_on_help()}"
            ),
            self.REPORT: self.tr("Page with what was done, measured, and the windows that changed most."),
            self.IS_ADAPTED: self.tr("Whether the adapted model was saved, and not the source model."),
            self.AGREEMENT_BEFORE: self.tr("Agreement of the source model on windows held out, 0 to 1."),
            self.AGREEMENT_AFTER: self.tr("Agreement of the adapted model on the same windows, 0 to 1."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters(label=self.tr("Target rasters"))
        self.add_package()
        self.add_choice(self.METHODS, self.tr("Methods"), METHODS)
        self.add_text(self.CHAIN, self.tr("Chain of methods"), advanced=True)
        self.add_number(self.STEPS, self.tr("Steps"), 200, least=1)
        self.add_choice(self.SEGMENTS, self.tr("Segments"), SEGMENTS, advanced=True)
        self.add_number(
            self.SOURCE_WEIGHT,
            self.tr("Weight of the source model"),
            None,
            least=0,
            most=1,
            is_whole=False,
            optional=True,
            advanced=True,
        )
        self.add_rasters(self.SOURCE, self.tr("Source rasters"), optional=True)
        self.add_labels(are_of_source=True)
        self.add_batch()
        self.add_seed()
        self.add_device()
        self.add_model_output()
        self.add_report()
        self.addOutput(QgsProcessingOutputBoolean(self.IS_ADAPTED, self.tr("Adapted")))
        self.addOutput(QgsProcessingOutputNumber(self.AGREEMENT_BEFORE, self.tr("Agreement before")))
        self.addOutput(QgsProcessingOutputNumber(self.AGREEMENT_AFTER, self.tr("Agreement after")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Adapt and save, then write the report."""
        from ...models.transfer.chain import names_of
        from ..jobs.adapt_model import AdaptJob, adapt_model
        from ..jobs.adaptation_report import adaptation_report
        from ..jobs.chip_segments import KINDS
        from ..jobs.model_rasters import TargetRaster
        from ..jobs.page import write_report

        model, card = self.package(parameters, context)
        output = self.model_output(parameters, context)
        report = self.file_output(parameters, context, self.REPORT)
        chosen = self.parameterAsEnumString(parameters, self.SEGMENTS, context)
        chain = self.parameterAsString(parameters, self.CHAIN, context).strip()
        job = AdaptJob(
            model=model,
            output=output,
            methods=names_of(chain or self.parameterAsEnumString(parameters, self.METHODS, context)),
            n_steps=self.parameterAsInt(parameters, self.STEPS, context),
            batch=self.parameterAsInt(parameters, self.BATCH, context),
            segments=next(kind for kind in KINDS if kind == chosen),
            source_weight=self.parameterAsDouble(parameters, self.SOURCE_WEIGHT, context)
            if self.is_given(parameters, self.SOURCE_WEIGHT)
            else None,
            is_temporary=is_temporary(output),
            device=self.device(parameters, context, settings),
            seed=self.parameterAsInt(parameters, self.SEED, context),
        )
        targets = [TargetRaster(raster.path, raster.crs_wkt) for raster in self.rasters(self.RASTERS)]
        source = self.source_chips(parameters, context, card, of="", progress=StepProgress(progress, 0.0, READ))
        begun = 0.0 if source is None else READ
        loaded = begun + _LOADED if job.segments == "model" else begun
        loading = StepProgress(progress, begun, loaded)
        with self._engine(job.segments, device=job.device, progress=loading, settings=settings) as engine:
            learning = StepProgress(progress, loaded, 1.0)
            result = adapt_model(targets, job, source=source, engine=engine, progress=learning)
        results: dict[str, Any] = {
            self.OUTPUT: str(output),
            self.IS_ADAPTED: result.is_adapted,
            self.AGREEMENT_BEFORE: result.before.score,
            self.AGREEMENT_AFTER: result.after.score,
        }
        if report:
            write_report(adaptation_report(result, targets), report)
            results[self.REPORT] = str(report)
        return results

    @contextmanager
    def _engine(
        self, segments: str, *, device: str, progress: Progress, settings: EngineSettings
    ) -> Iterator[InferenceEngine | None]:
        from ...models.engine import open_engine

        if segments != "model":
            yield None
            return
        engine = open_engine(
            _SEGMENT_MODEL,
            device=device,
            checkpoint_folder=settings.checkpoint_folder,
            offline=settings.offline,
            progress=progress,
        )
        try:
            yield engine
        finally:
            engine.close()
