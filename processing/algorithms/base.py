"""What every algorithm shares: help, icon, the check of the environment, and the words of an error."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsMessageLog,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingUtils,
)
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from ...models.errors import Cancelled, ModelError
from ..environment import EnvironmentUnavailable, activate, check
from ..errors import JobError, RasterError
from .feedback import FeedbackProgress
from .input_files import check_inputs
from .resources import icon_path
from .settings import EngineSettings, read_settings

_LOG = "SegAdapt"
# Their messages are sentences for the user.
_EXPECTED = (QgsProcessingException, ModelError, RasterError, JobError, EnvironmentUnavailable, Cancelled)


class SegAdaptAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that says what it does in `summary` and `helps`, and does it in `execute`."""

    def summary(self) -> str:
        """Say in a few sentences what the algorithm does; the first paragraph of its help."""
        raise NotImplementedError

    def helps(self) -> dict[str, str]:
        """Return one help text per parameter and output, by name; the only place where they are written."""
        raise NotImplementedError

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Do the work with the environment at hand; errors of models, rasters and jobs may pass through."""
        raise NotImplementedError

    def tr(self, text: str) -> str:
        """Translate a literal text."""
        return str(QCoreApplication.translate("SegAdapt", text))

    def createInstance(self) -> SegAdaptAlgorithm:
        """Return a fresh instance; QGIS runs each job in its own."""
        return type(self)()

    def group(self) -> str:
        """Return the group in the toolbox."""
        return self.tr("Segmentation")

    def groupId(self) -> str:
        """Return the id of the group; fixed for ever."""
        return "segmentation"

    def icon(self) -> QIcon:
        """Return the icon of this algorithm."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:
        """Return the file of the icon."""
        return icon_path(self.name())

    def add(self, parameter: QgsProcessingParameterDefinition, *, advanced: bool = False) -> None:
        """Add a parameter with its help; advanced ones are folded away in the dialog."""
        parameter.setHelp(self.helps()[parameter.name()])
        if advanced:
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)

    def is_given(self, parameters: dict[str, Any], name: str) -> bool:
        """Whether an optional parameter has a value."""
        return parameters.get(name) not in (None, "")

    def file_output(self, parameters: dict[str, Any], context: QgsProcessingContext, name: str) -> Path | None:
        """The file of an optional output such as `REPORT`, None where it is not wanted; to be asked before the work.

        Raises `JobError` for a folder that cannot be written to, for a file that the algorithm reads, and for one that
        another result is to be written to.
        """
        file = self.parameterAsFileOutput(parameters, name, context)
        if not file:
            return None
        path = Path(file)
        check_folder(path, name.lower())
        check_inputs(self, parameters, context, path=path)
        others = [parameters.get(one.name()) for one in self.destinationParameterDefinitions() if one.name() != name]
        if any(Path(other).absolute() == path.absolute() for other in others if isinstance(other, str)):
            raise JobError(f"Two results have the same name, {path}; give each its own.")
        return path

    def shortHelpString(self) -> str:
        """Return the summary, then every parameter and output; plain text, also read in a terminal."""
        helps = self.helps()
        labels = {item.name(): item.description() for item in self._described()}
        lines = [f"{labels[name]}: {text}" for name, text in helps.items()]
        return "\n\n".join([self.summary(), *lines])

    def _described(self) -> list[QgsProcessingParameterDefinition | QgsProcessingOutputDefinition]:
        return [*self.outputDefinitions(), *self.parameterDefinitions()]

    def canExecute(self) -> tuple[bool, str]:
        """Say whether the environment is there, and if not, what to do."""
        try:
            check(read_settings().environment)
        except EnvironmentUnavailable as error:
            return False, str(error)
        return True, ""

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run `execute`; whatever goes wrong there becomes a `QgsProcessingException` with a sentence.

        QGIS runs this in worker threads, where an exception of any other type that Python leaves to C++ ends
        the program.
        """
        try:
            settings = read_settings()
            activate(settings.environment)
            from ..raster.thread_context import keep_proj_context  # needs the environment

            keep_proj_context()
            return self.execute(parameters, context, progress=FeedbackProgress(feedback), settings=settings)
        except Exception as error:
            sentence = sentence_for_error(error, feedback)
        # QGIS never frees an exception that it takes from Python (processing_exception_handler in its bindings), nor
        # what the frames behind it hold: layers, and the engine with its weights. So raise a new one, from here.
        del parameters, context, feedback
        raise QgsProcessingException(sentence)


def with_ending(file: str, ending: str) -> Path:
    """The path of `file`, with `ending` (".onnx") added unless it is there: a name may have dots of its own."""
    path = Path(file)
    return path if path.suffix.lower() == ending else path.with_name(path.name + ending)


def check_folder(path: Path, what: str) -> None:
    """Raise `JobError` where `path`, which `what` is saved to, is a folder or lies in one that takes no file."""
    if path.is_dir():
        raise JobError(f"{path} is a folder; choose a file for the {what}.")
    probe = path.with_name(f".{path.name}.probe")
    try:
        # Only a file that is there is proof: Windows says of every folder that it can be written to.
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise JobError(f"The folder of {path} cannot be written to; choose another one for the {what}.") from error


def is_temporary(path: Path) -> bool:
    """Whether QGIS made the name of this output up: every run has another, so that none goes on with another's work."""
    return path.is_relative_to(QgsProcessingUtils.tempFolder())


def sentence_for_error(error: Exception, feedback: QgsProcessingFeedback) -> str:
    """Say an error in a sentence: ours have their own, others are logged with their traceback."""
    if isinstance(error, _EXPECTED):
        return str(error)
    if isinstance(error, MemoryError):
        return "Memory is used up; close other programs, choose a smaller extent or window, and run again."
    # By name: torch is not loaded for an algorithm that does without it.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The memory of the graphics card is used up; close other programs that use it, or choose a smaller batch, "
            "where there is one, or cpu as the device, and run again."
        )
    details = "".join(traceback.format_exception(error))
    QgsMessageLog.logMessage(details, _LOG, Qgis.MessageLevel.Critical)
    feedback.pushDebugInfo(details)
    return (
        f"SegAdapt failed unexpectedly ({type(error).__name__}: {error}); the details are in the log "
        f"messages panel, tab {_LOG}: please report them."
    )
