"""Processing algorithm `segadapt:trainmodel`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
)

from .base import is_temporary
from .feedback import FeedbackProgress
from .settings import EngineSettings
from .training_source import LabelledAlgorithm, parse_bands

if TYPE_CHECKING:
    from ..jobs.train_model import ModelOptions

# `models.semantic.segmenter.DECODERS`, `models.losses.LOSSES`, `jobs.train_model.WEIGHTS` and
# `jobs.training_data.SPLITS`; those modules need the environment (a test compares them).
DECODERS = ("fpn", "unet", "upernet", "segformer", "dpt", "light")
WEIGHTS = ("auto", "published", "none")
SPLITS = ("blocks", "rasters", "folders")
LOSSES = ("cross_entropy_dice", "cross_entropy", "focal")


class TrainModelAlgorithm(LabelledAlgorithm):
    """Rasters with labels in, a segmentation model out."""

    DECODER = "DECODER"
    ENCODER = "ENCODER"
    WEIGHTS = "WEIGHTS"
    GSD = "GSD"
    CHIP = "CHIP"
    EPOCHS = "EPOCHS"
    STEPS = "STEPS"
    RATE = "RATE"
    HELD_OUT = "HELD_OUT"
    SPLIT = "SPLIT"
    PATIENCE = "PATIENCE"
    AUGMENT = "AUGMENT"
    LOSS = "LOSS"
    BALANCE = "BALANCE"
    MAX_CHIPS = "MAX_CHIPS"
    NAME = "NAME"
    LICENCE = "LICENCE"
    MEAN_IOU = "MEAN_IOU"
    ACCURACY = "ACCURACY"
    COUNT = "COUNT"

    def name(self) -> str:
        """Return the id."""
        return "trainmodel"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Train segmentation model")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Trains a model that gives every pixel a class, from rasters and labels: polygons, among them layers of "
            "the interactive tool, or label rasters. Part of the ground is held out to judge the model by, and the "
            "state that is best there is kept. Cancel ends training and keeps the best state so far. The saved model "
            "says what it is: bands, resolution, classes, how it was made and how good it is."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            self.RASTERS: shared[self.RASTERS],
            **self.label_helps(),
            self.DECODER: self.tr(
                "Part of the model that draws the classes: FPN (light and fast), U-Net, UPerNet, SegFormer's, DPT for "
                "plain vision transformers, or light: a few convolutions on the frozen features of an encoder."
            ),
            self.ENCODER: self.tr(
                "Part of the model that knows images: any model name of timm, for the light decoder also one with "
                "features that need no training (vit_small_patch14_dinov2.lvd142m) or a promptable model. Empty is "
                "EfficientNet-Lite0, MobileSAM for light, a small vision transformer for DPT."
            ),
            self.WEIGHTS: self.tr(
                "Where the encoder starts: published weights if they can be had (auto), published weights or an error, "
                "or none, which is from scratch and takes more labels."
            ),
            self.GSD: self.tr("Metres per pixel that the model sees; without it the first raster's own resolution."),
            self.BANDS: self.tr(
                "Numbers of the bands that the model sees, such as 1, 2, 3; without it all bands of the first raster, "
                "but for transparency, and in the others those of the same names where every raster has them, else of "
                "the same numbers."
            ),
            self.CHIP: self.tr("Side of the squares that the model is shown, in pixels."),
            self.EPOCHS: self.tr("How often every chip is seen, at the most."),
            self.STEPS: self.tr("Number of batches instead of epochs."),
            self.BATCH: shared[self.BATCH],
            self.RATE: self.tr("Learning rate at its highest; the encoder takes a third of it from published weights."),
            self.HELD_OUT: self.tr("Share of the chips that is held out to judge the model by; 0 holds none out."),
            self.SPLIT: self.tr(
                "What is held out: blocks of ground of every raster; or whole rasters, which is the harder test and "
                "the right one where the model is for other places; or all rasters of a folder, where several show "
                "one place, as the tiles of a city do: put each place's in a folder of its own."
            ),
            self.PATIENCE: self.tr("Training stops after so many of 20 checks without a better one; 0 never stops."),
            self.AUGMENT: self.tr("Show chips flipped, turned by right angles, scaled, and in other light."),
            self.LOSS: self.tr(
                "What training makes small: cross-entropy with Dice, which looks at the overlap of whole classes; "
                "cross-entropy alone; or the focal loss, for which pixels count little that are right already. "
                "Unlabelled pixels never count."
            ),
            self.BALANCE: self.tr("Let rare classes weigh more, in cross-entropy and in the focal loss."),
            self.MAX_CHIPS: self.tr(
                "At most about so many chips, drawn evenly from the rasters with labels; each takes memory."
            ),
            self.NAME: self.tr("Name of the model; without it that of the file."),
            self.LICENCE: self.tr("Under what licence the model may be used; it is written into the model."),
            self.SEED: shared[self.SEED],
            self.DEVICE: shared[self.DEVICE],
            self.OUTPUT: f"{self.tr('File for the model (.safetensors).')} {self.going_on_help()}",
            self.REPORT: self.tr("Page with the course of training and the quality of each class."),
            self.MEAN_IOU: self.tr("Mean IoU on the chips held out; not there where none were."),
            self.ACCURACY: self.tr("Share of right pixels on the chips held out; not there where none were."),
            self.COUNT: self.tr("Number of chips that were learned from."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters()
        self.add_labels()
        self.add_choice(self.DECODER, self.tr("Decoder"), DECODERS)
        self.add_text(self.ENCODER, self.tr("Encoder"), advanced=True)
        self.add_choice(self.WEIGHTS, self.tr("Encoder weights"), WEIGHTS)
        self.add_number(
            self.GSD, self.tr("Resolution (m per pixel)"), None, least=0.0001, is_whole=False, optional=True
        )
        self.add_text(self.BANDS, self.tr("Bands"), advanced=True)
        self.add_number(self.CHIP, self.tr("Chip size (px)"), 256, least=32, most=4096, advanced=True)
        self.add_number(self.EPOCHS, self.tr("Epochs"), 40, least=1)
        self.add_number(self.STEPS, self.tr("Steps"), None, least=1, optional=True, advanced=True)
        self.add_batch()
        self.add_number(self.RATE, self.tr("Learning rate"), 0.001, least=1e-8, most=1.0, is_whole=False, advanced=True)
        self.add_number(self.HELD_OUT, self.tr("Share held out"), 0.2, least=0, most=0.9, is_whole=False)
        self.add_choice(self.SPLIT, self.tr("Hold out"), SPLITS)
        self.add_number(self.PATIENCE, self.tr("Patience"), 6, least=0, advanced=True)
        self.add(QgsProcessingParameterBoolean(self.AUGMENT, self.tr("Augmentation"), True), advanced=True)
        self.add_choice(self.LOSS, self.tr("Loss"), LOSSES, advanced=True)
        self.add(QgsProcessingParameterBoolean(self.BALANCE, self.tr("Class balance"), True), advanced=True)
        self.add_number(self.MAX_CHIPS, self.tr("Most chips"), 4000, least=2, advanced=True)
        self.add_text(self.NAME, self.tr("Name"), advanced=True)
        self.add_text(self.LICENCE, self.tr("Licence"), advanced=True)
        self.add_seed()
        self.add_device()
        self.add_model_output()
        self.add_report()
        self.addOutput(QgsProcessingOutputNumber(self.MEAN_IOU, self.tr("Mean IoU")))
        self.addOutput(QgsProcessingOutputNumber(self.ACCURACY, self.tr("Accuracy")))
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of chips")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Read the labels, train, save, report."""
        from ..jobs.model_report import training_report
        from ..jobs.page import write_report
        from ..jobs.train_model import train_model

        output = self.model_output(parameters, context)
        report = self.file_output(parameters, context, self.REPORT)
        options = self._options(parameters, context)
        rasters = self.labelled_rasters(parameters, context, progress=progress)
        scheme = self.class_scheme(parameters, context, rasters, progress=progress)
        trained = train_model(
            rasters,
            scheme,
            output,
            options,
            device=self.device(parameters, context, settings),
            is_temporary=is_temporary(output),
            checkpoint_folder=settings.checkpoint_folder,
            offline=settings.offline,
            progress=progress,
        )
        results: dict[str, Any] = {self.OUTPUT: str(output), self.COUNT: trained.n_chips}
        if trained.evaluation is not None and not math.isnan(trained.evaluation.mean_iou):
            results |= {self.MEAN_IOU: trained.evaluation.mean_iou, self.ACCURACY: trained.evaluation.accuracy}
        if report:
            write_report(training_report(trained), report)
            results[self.REPORT] = str(report)
        return results

    def _options(self, parameters: dict[str, Any], context: QgsProcessingContext) -> ModelOptions:
        from ...models import losses
        from ...models.augmentation import USUAL
        from ..jobs import train_model as job
        from ..jobs import training_data

        def number(name: str) -> int:
            return int(self.parameterAsInt(parameters, name, context))

        def share(name: str) -> float:
            return float(self.parameterAsDouble(parameters, name, context))

        def text(name: str) -> str:
            return str(self.parameterAsString(parameters, name, context))

        def choice(name: str) -> str:
            return str(self.parameterAsEnumString(parameters, name, context))

        return job.ModelOptions(
            name=text(self.NAME),
            decoder=choice(self.DECODER),
            encoder=text(self.ENCODER),
            weights=next(one for one in job.WEIGHTS if one == choice(self.WEIGHTS)),
            gsd_m=share(self.GSD) if self.is_given(parameters, self.GSD) else None,
            chip_px=number(self.CHIP),
            bands=parse_bands(text(self.BANDS)),
            epochs=number(self.EPOCHS),
            n_steps=number(self.STEPS) if self.is_given(parameters, self.STEPS) else None,
            batch=number(self.BATCH),
            rate=share(self.RATE),
            held_out=share(self.HELD_OUT),
            split=next(one for one in training_data.SPLITS if one == choice(self.SPLIT)),
            patience=number(self.PATIENCE) or None,
            augmentation=USUAL if self.parameterAsBool(parameters, self.AUGMENT, context) else job.UNCHANGED,
            loss=next(one for one in losses.LOSSES if one == choice(self.LOSS)),
            is_balanced=self.parameterAsBool(parameters, self.BALANCE, context),
            n_most=number(self.MAX_CHIPS),
            licence=text(self.LICENCE),
            seed=number(self.SEED),
        )
