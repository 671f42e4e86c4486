"""Processing algorithm `segadapt:finetunemodel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputBoolean,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
)

from ...models.progress import StepProgress
from .base import is_temporary
from .feedback import FeedbackProgress
from .settings import EngineSettings
from .training_source import READ, LabelledAlgorithm

if TYPE_CHECKING:
    from ...models.transfer.fine_tuning import FineTuning

# `models.transfer.fine_tuning.LAYERS` and what `FineTuning` takes without being told; that module needs the environment
# (a test compares them).
LAYERS = ("decoder", "head", "norm", "lora", "tokens", "last_blocks", "full")
RANK, TOKENS, BLOCKS = 8, 16, 4


class FineTuneModelAlgorithm(LabelledAlgorithm):
    """A model learns new ground from few labels."""

    LAYERS = "LAYERS"
    RANK = "RANK"
    BLOCKS = "BLOCKS"
    TOKENS = "TOKENS"
    STEPS = "STEPS"
    HELD_OUT = "HELD_OUT"
    ADAPTER_ONLY = "ADAPTER_ONLY"
    IS_ADAPTED = "IS_ADAPTED"
    MEAN_IOU_BEFORE = "MEAN_IOU_BEFORE"
    MEAN_IOU_AFTER = "MEAN_IOU_AFTER"
    N_TRAINABLE = "N_TRAINABLE"

    def name(self) -> str:
        """Return the id."""
        return "finetunemodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Fine-tune model")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Brings a segmentation model to new ground with few labels, such as the regions that Select samples to "
            "label asks for. Some layers learn, the rest stays. A part of the labels is held out: if the model does "
            "not get better there, the source model is saved unchanged, and the report says so. What you drew within "
            "regions, in their own layer, makes the rest of these regions background; if you drew in another layer, "
            "give the regions as completely labelled areas, too."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            **{
                name: shared[name]
                for name in (self.MODEL, self.RASTERS, self.BATCH, self.DEVICE, self.SEED, self.REPORT)
            },
            **self.label_helps(),
            **self.source_helps(),
            self.LAYERS: self.tr(
                "What learns: the decoder with the last layer; the last layer (head); normalisation and biases; "
                "low-rank products beside the encoder's layers (LoRA); tokens behind the encoder's stages (Rein); the "
                "encoder's last blocks with the decoder; or everything. The fewer parameters, the smaller an adapter."
            ),
            self.RANK: self.tr("Rank of low-rank products and of tokens: 8 is usual, more learns more and is larger."),
            self.BLOCKS: self.tr(
                "How many of the encoder's last blocks learn: 4 without a number for last_blocks; for lora all blocks "
                "without a number."
            ),
            self.TOKENS: self.tr("Number of tokens behind each stage."),
            self.STEPS: self.tr("Number of batches of windows to learn from."),
            self.HELD_OUT: self.tr(
                "Share of the labelled chips that is held out, in blocks of ground. Half of them choose the best state "
                "of the training, the other half judge it; fewer than four blocks do both, which flatters the result."
            ),
            self.ADAPTER_ONLY: self.tr(
                "Save only what changed: a small file that is used as a model as long as the source model lies beside "
                "it or where it is now."
            ),
            self.OUTPUT: f"{self.tr('File for the fine-tuned model (.safetensors).')} {self.going_on_help()}",
            self.IS_ADAPTED: self.tr("Whether the fine-tuned model was saved, and not the source model."),
            self.MEAN_IOU_BEFORE: self.tr("Mean IoU of the source model on the chips that judge."),
            self.MEAN_IOU_AFTER: self.tr("Mean IoU of the fine-tuned model there, whether it was kept or not."),
            self.N_TRAINABLE: self.tr("Number of parameters that learned."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_package()
        self.add_rasters()
        self.add_labels()
        self.add_source()
        self.add_choice(self.LAYERS, self.tr("Layers"), LAYERS)
        self.add_number(self.RANK, self.tr("Rank"), RANK, least=1, advanced=True)
        self.add_number(self.BLOCKS, self.tr("Last blocks"), None, least=1, optional=True, advanced=True)
        self.add_number(self.TOKENS, self.tr("Tokens"), TOKENS, least=2, advanced=True)
        self.add_number(self.STEPS, self.tr("Steps"), 200, least=1)
        self.add_number(self.HELD_OUT, self.tr("Share held out"), 0.3, least=0.01, most=0.9, is_whole=False)
        self.add(QgsProcessingParameterBoolean(self.ADAPTER_ONLY, self.tr("Save an adapter only"), False))
        self.add_batch()
        self.add_seed()
        self.add_device()
        self.add_model_output(self.tr("Fine-tuned model"))
        self.add_report()
        self.addOutput(QgsProcessingOutputBoolean(self.IS_ADAPTED, self.tr("Fine-tuned model kept")))
        self.addOutput(QgsProcessingOutputNumber(self.MEAN_IOU_BEFORE, self.tr("Mean IoU before")))
        self.addOutput(QgsProcessingOutputNumber(self.MEAN_IOU_AFTER, self.tr("Mean IoU after")))
        self.addOutput(QgsProcessingOutputNumber(self.N_TRAINABLE, self.tr("Parameters that learned")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Read the labels, tune, save, report."""
        from ..jobs.fine_tune_model import FineTuneJob, fine_tune_model
        from ..jobs.fine_tuning_report import fine_tuning_report
        from ..jobs.page import write_report

        report = self.file_output(parameters, context, self.REPORT)
        model, card = self.package(parameters, context)
        output = self.model_output(parameters, context)
        job = FineTuneJob(
            model=model,
            output=output,
            is_temporary=is_temporary(output),
            tuning=self._tuning(parameters, context),
            n_steps=self.parameterAsInt(parameters, self.STEPS, context),
            batch=self.parameterAsInt(parameters, self.BATCH, context),
            held_out=self.parameterAsDouble(parameters, self.HELD_OUT, context),
            is_adapter_only=self.parameterAsBool(parameters, self.ADAPTER_ONLY, context),
            device=self.device(parameters, context, settings),
            seed=self.parameterAsInt(parameters, self.SEED, context),
        )
        rasters = self.labelled_rasters(parameters, context, progress=progress)
        scheme = self.class_scheme(parameters, context, rasters, card=card, progress=progress)
        source = self.source_chips(parameters, context, card, progress=StepProgress(progress, 0.0, READ))
        learning = StepProgress(progress, 0.0 if source is None else READ, 1.0)
        result = fine_tune_model(rasters, scheme, job, source=source, progress=learning)
        results: dict[str, Any] = {
            self.OUTPUT: str(job.output),
            self.IS_ADAPTED: result.is_adapted,
            self.MEAN_IOU_BEFORE: result.mean_iou_before,
            self.MEAN_IOU_AFTER: result.mean_iou_after,
            self.N_TRAINABLE: result.n_trainable,
        }
        if report:
            write_report(fine_tuning_report(result), report)
            results[self.REPORT] = str(report)
        return results

    def _tuning(self, parameters: dict[str, Any], context: QgsProcessingContext) -> FineTuning:
        from ...models.transfer.fine_tuning import FineTuning

        has_blocks = self.is_given(parameters, self.BLOCKS)
        return FineTuning(
            layers=self.parameterAsEnumString(parameters, self.LAYERS, context),
            rank=self.parameterAsInt(parameters, self.RANK, context),
            lora_layers="last" if has_blocks else "all",
            n_blocks=self.parameterAsInt(parameters, self.BLOCKS, context) if has_blocks else BLOCKS,
            n_tokens=self.parameterAsInt(parameters, self.TOKENS, context),
        )
