"""Processing algorithm `segadapt:compareadaptation`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
)

from ...models.semantic.card import replaces
from ..errors import JobError
from .feedback import FeedbackProgress
from .settings import EngineSettings
from .training_source import READ, LabelledAlgorithm

if TYPE_CHECKING:
    from ..jobs.comparison_runs import CompareAdaptation

# `jobs.compare_adaptation.USUAL_METHODS` and `models.transfer.fine_tuning.LAYERS`; those modules need the environment
# (a test compares them).
METHODS = ("quantile", "norm_statistics", "quantile+norm_statistics", "self_training", "masked_consistency")
LAYERS = ("decoder", "head", "norm", "lora", "tokens", "last_blocks", "full")
_COMMA = re.compile(r",(?![^(]*\))")
"""A comma that is not between the options of a method."""


class CompareAdaptationAlgorithm(LabelledAlgorithm):
    """Which layers and which method, measured on the user's own ground."""

    METHODS = "METHODS"
    LAYERS = "LAYERS"
    BUDGETS = "BUDGETS"
    HELD_OUT = "HELD_OUT"
    STEPS = "STEPS"
    TIME_LIMIT = "TIME_LIMIT"
    MAX_CHIPS = "MAX_CHIPS"
    BEST = "BEST"
    MEAN_IOU = "MEAN_IOU"
    MEAN_IOU_BEFORE = "MEAN_IOU_BEFORE"
    COUNT = "COUNT"

    def name(self) -> str:
        """Return the id."""
        return "compareadaptation"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Compare adaptations")

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Finds out how a model is best brought to your images: with methods that need no labels, and by training "
            "some of its layers with a part of your labels. Everything is judged on blocks of ground that nothing "
            "learned from. You get a table, a plot of accuracy against labels, a recommendation in words, and, if you "
            "want, the best model. Cancel ends the comparison; table, page and model tell what was finished by then."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        shared = self.shared_helps()
        return {
            **{
                name: shared[name]
                for name in (self.RASTERS, self.MODEL, self.BATCH, self.DEVICE, self.SEED, self.REPORT)
            },
            **self.label_helps(),
            **self.source_helps(),
            self.METHODS: self.tr(
                "Methods without labels, separated by commas; a chain of several has plus signs. Options follow a name "
                "in brackets, as in norm_statistics(alpha=0.5, n_passes=2). Empty for none."
            ),
            self.LAYERS: self.tr(
                "Parts of the model that are trained with labels, separated by commas: decoder, head, norm, lora, "
                "tokens, last_blocks, full. Empty for none."
            ),
            self.BUDGETS: self.tr("How many per cent of the labels the training may use, separated by commas."),
            self.HELD_OUT: self.tr("Share of the labelled windows that judge and are never learned from."),
            self.STEPS: self.tr("Number of batches of windows that each run learns from."),
            self.TIME_LIMIT: self.tr(
                "Minutes after which it ends; the most promising runs come first, and what there was no time for is "
                "named. Without a number everything is run."
            ),
            self.MAX_CHIPS: self.tr("At most so many windows of the rasters, chosen at random."),
            self.OUTPUT: self.tr(
                "File for the best model (.safetensors); where nothing beats the model that you gave, that is saved "
                "as it was."
            ),
            self.TABLE: self.tr("All runs as a table (CSV)."),
            self.BEST: self.tr("What did best, in words."),
            self.MEAN_IOU: self.tr("Mean overlap (IoU, 0 to 1) of the best on the blocks held out."),
            self.MEAN_IOU_BEFORE: self.tr("The same of the model that you gave."),
            self.COUNT: self.tr("Number of runs, the model that you gave among them."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_package()
        self.add_rasters()
        self.add_labels()
        self.add_source()
        self.add_text(self.METHODS, self.tr("Methods without labels"), ", ".join(METHODS))
        self.add_text(self.LAYERS, self.tr("Layers to train with labels"), ", ".join(LAYERS))
        self.add_text(self.BUDGETS, self.tr("Labels to use (%)"), "10, 30, 100")
        self.add_number(self.TIME_LIMIT, self.tr("Time limit (minutes)"), 60, least=0.1, is_whole=False, optional=True)
        self.add_number(self.STEPS, self.tr("Steps"), 100, least=1, advanced=True)
        self.add_number(
            self.HELD_OUT, self.tr("Share held out"), 0.3, least=0.05, most=0.9, is_whole=False, advanced=True
        )
        self.add_number(self.MAX_CHIPS, self.tr("Most windows"), 600, least=4, advanced=True)
        self.add_batch()
        self.add_seed()
        self.add_device()
        self.add_model_output(self.tr("Best model"), optional=True)
        self.add_table()
        self.add_report()
        self.addOutput(QgsProcessingOutputString(self.BEST, self.tr("What did best")))
        self.addOutput(QgsProcessingOutputNumber(self.MEAN_IOU, self.tr("Mean IoU of the best")))
        self.addOutput(QgsProcessingOutputNumber(self.MEAN_IOU_BEFORE, self.tr("Mean IoU of the source model")))
        self.addOutput(QgsProcessingOutputNumber(self.COUNT, self.tr("Number of runs")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Read the labels, compare, save, report."""
        from ...models.device import choose_device
        from ...models.progress import StepProgress
        from ...models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
        from ..jobs.compare_adaptation import compare_adaptation
        from ..jobs.comparison_report import comparison_report, recommendation, write_comparison
        from ..jobs.model_rasters import read_labelled_chips
        from ..jobs.page import write_report

        table, report = (self.file_output(parameters, context, name) for name in (self.TABLE, self.REPORT))
        path, card = self.package(parameters, context)
        output = self.model_output(parameters, context) if parameters.get(self.OUTPUT) else None
        if output is not None and replaces(output, path):
            raise JobError(f"{output} is the model that is compared; save the best one in another file.")
        job = self._job(parameters, context)
        rasters = self.labelled_rasters(parameters, context, progress=progress)
        chips = read_labelled_chips(
            rasters,
            self.class_scheme(parameters, context, rasters, card=card, progress=progress),
            card,
            n_most=self.parameterAsInt(parameters, self.MAX_CHIPS, context),
            seed=job.seed,
            progress=StepProgress(progress, 0.0, READ),
        )
        source = self.source_chips(parameters, context, card, progress=StepProgress(progress, READ, 2 * READ))
        choice = choose_device(self.device(parameters, context, settings))
        progress.info(choice.reason)
        found = compare_adaptation(
            load_segmenter(path).to(choice.name),
            chips,
            job,
            statistics=load_extra(path),
            source=source,
            source_sha256=package_sha256(path),
            progress=StepProgress(progress, READ if source is None else 2 * READ, 1.0),
        )
        for sentence in recommendation(found):
            progress.info(sentence)
        results: dict[str, Any] = {
            self.BEST: found.best.title,
            self.MEAN_IOU: found.best.miou,
            self.MEAN_IOU_BEFORE: found.source.miou,
            self.COUNT: len(found.runs),
        }
        saved = ""
        if output is not None:
            save_segmenter(found.model, output, extra=found.statistics)
            results[self.OUTPUT] = str(output)
            saved = f"{output.name} holds the model of this run: {found.best.title}."
        if table:
            write_comparison(found, table)
            results[self.TABLE] = str(table)
        if report:
            names = [Path(raster.path).name for raster in rasters]
            write_report(comparison_report(found, model=path.name, rasters=names, saved=saved), report)
            results[self.REPORT] = str(report)
        return results

    def _job(self, parameters: dict[str, Any], context: QgsProcessingContext) -> CompareAdaptation:
        from ..jobs.comparison_runs import CompareAdaptation

        minutes = self.parameterAsDouble(parameters, self.TIME_LIMIT, context)
        has_limit = self.TIME_LIMIT not in parameters or self.is_given(parameters, self.TIME_LIMIT)
        return CompareAdaptation(
            methods=parts_of(self.parameterAsString(parameters, self.METHODS, context)),
            layers=parts_of(self.parameterAsString(parameters, self.LAYERS, context)),
            budgets=shares_of(self.parameterAsString(parameters, self.BUDGETS, context)),
            held_out=self.parameterAsDouble(parameters, self.HELD_OUT, context),
            n_steps=self.parameterAsInt(parameters, self.STEPS, context),
            batch=self.parameterAsInt(parameters, self.BATCH, context),
            limit_s=60 * minutes if has_limit else math.inf,
            seed=self.parameterAsInt(parameters, self.SEED, context),
        )


def parts_of(text: str) -> tuple[str, ...]:
    """Names between commas, each with the options in its brackets."""
    return tuple(part.strip() for part in _COMMA.split(text) if part.strip())


def shares_of(text: str) -> tuple[float, ...]:
    """Per cent between commas, as shares. Raises `JobError` for what is no number."""
    try:
        return tuple(float(part.removesuffix("%")) / 100 for part in parts_of(text))
    except ValueError as error:
        raise JobError(f"'{text}' are no per cent; write numbers between commas, such as 10, 30, 100.") from error
