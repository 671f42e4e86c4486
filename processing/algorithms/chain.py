"""Model-designer chains that ship with the plugin, as algorithms of the provider."""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsMessageLog,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
)
from qgis.PyQt.QtGui import QIcon

from ..environment import EnvironmentUnavailable, check
from .resources import icon_path, model_path
from .settings import read_settings

CHAINS = ("select_label_tune_segment_evaluate", "adapt_segment_compare")
"""Files of the chains, without the ending; without the underscores they are the ids."""

_SUMMARY = "ALG_DESC"
"""Where QGIS keeps the description of a model among its help texts."""


class ChainAlgorithm(QgsProcessingModelAlgorithm):
    """A chain from its `.model3` file, which the model designer opens too.

    In scripts its outputs have plain names (`CLASSES`), not those that QGIS makes (`segment:CLASSES`).
    """

    def __init__(self, stem: str) -> None:
        super().__init__()
        self._stem = stem
        self._long_names: dict[str, str] = {}
        if not self.fromFile(model_path(stem)):
            QgsMessageLog.logMessage(f"{model_path(stem)} cannot be read.", "SegAdapt", Qgis.MessageLevel.Critical)
        self.setSourceFilePath(model_path(stem))
        self._is_complete = bool(super().canExecute()[0])
        for definition in (*self.parameterDefinitions(), *self.outputDefinitions()):
            _, colon, short = definition.name().partition(":")
            if colon:
                self._long_names[short] = definition.name()
                definition.setName(short)

    @property
    def is_complete(self) -> bool:
        """Whether the algorithms of all steps were there when the file was read; without them outputs are missing."""
        return self._is_complete

    def createInstance(self) -> ChainAlgorithm:
        """Return a fresh instance; QGIS runs each job in its own."""
        return ChainAlgorithm(self._stem)

    def name(self) -> str:
        """Return the id."""
        return self._stem.replace("_", "")

    def groupId(self) -> str:
        """Return the id of the group, which is that of the steps; fixed for ever."""
        return "adaptation"

    def icon(self) -> QIcon:
        """Return the icon of this chain."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:
        """Return the file of the icon."""
        return icon_path(self.name())

    def helps(self) -> dict[str, str]:
        """Return one help text per parameter and output, by name."""
        return {name: text for name, text in self.helpContent().items() if name != _SUMMARY}

    def shortHelpString(self) -> str:
        """Return the summary, then every parameter and output; plain text, also read in a terminal."""
        labels = {item.name(): item.description() for item in (*self.outputDefinitions(), *self.parameterDefinitions())}
        lines = [f"{label}: {self.helps().get(name, '')}" for name, label in labels.items()]
        return "\n\n".join([self.helpContent().get(_SUMMARY, ""), *lines])

    def canExecute(self) -> tuple[bool, str]:
        """Say whether the environment and all steps are there, and if not, what to do."""
        try:
            check(read_settings().environment)
        except EnvironmentUnavailable as error:
            return False, str(error)
        is_possible, reason = super().canExecute()
        return bool(is_possible), str(reason)

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run the steps one after another. Raises `QgsProcessingException` with the step that failed."""
        try:
            given = {self._long_names.get(name, name): value for name, value in parameters.items()}
            results = super().processAlgorithm(given, context, feedback)
            short_names = {long: short for short, long in self._long_names.items()}
            return {short_names.get(name, name): value for name, value in results.items()}
        except QgsProcessingException as error:
            sentence = str(error)
        # As in `SegAdaptAlgorithm.processAlgorithm`: QGIS keeps what it takes from Python, with all frames behind it.
        del parameters, context, feedback
        raise QgsProcessingException(sentence)
