"""Processing algorithm `segadapt:checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputFile,
    QgsProcessingOutputString,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
)

from ...models.registry import get_card, list_models
from .base import SegAdaptAlgorithm
from .feedback import FeedbackProgress
from .settings import EngineSettings


class CheckpointAlgorithm(SegAdaptAlgorithm):
    """Brings a model's weights to this computer."""

    MODEL = "MODEL"
    FILE = "FILE"
    SHA256 = "SHA256"

    def name(self) -> str:
        """Return the id."""
        return "checkpoint"

    def displayName(self) -> str:
        """Return the title."""
        return self.tr("Get model weights")

    def group(self) -> str:
        """Return the group in the toolbox."""
        return self.tr("Models")

    def groupId(self) -> str:
        """Return the id of the group; fixed for ever."""
        return "models"

    def summary(self) -> str:
        """Say what the algorithm does."""
        return self.tr(
            "Downloads the weights of a model, or imports a file that you have, and verifies them. Weights "
            "that are here already are only verified. The other algorithms do the same when they first need "
            "a model; this one prepares a computer that will be offline."
        )

    def helps(self) -> dict[str, str]:
        """Return the help of every parameter and output."""
        return {
            self.MODEL: self.tr("Model by name."),
            self.FILE: self.tr(
                "Weights that you downloaded yourself, to be imported; without it they are downloaded. The "
                "result is the verified file."
            ),
            self.SHA256: self.tr("Checksum of the verified file."),
        }

    def initAlgorithm(self, _configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        names = [card.name for card in list_models()]
        self.add(
            QgsProcessingParameterEnum(
                self.MODEL, self.tr("Model"), names, defaultValue=names[0], usesStaticStrings=True
            )
        )
        self.add(QgsProcessingParameterFile(self.FILE, self.tr("Weights file"), optional=True))
        self.addOutput(QgsProcessingOutputFile(self.FILE, self.tr("Weights file")))
        self.addOutput(QgsProcessingOutputString(self.SHA256, self.tr("SHA-256")))

    def execute(
        self,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        *,
        progress: FeedbackProgress,
        settings: EngineSettings,
    ) -> dict[str, Any]:
        """Import or fetch, and verify either way."""
        from ...models.checkpoints import fetch_checkpoint, import_checkpoint

        card = get_card(self.parameterAsEnumString(parameters, self.MODEL, context))
        given = self.parameterAsFile(parameters, self.FILE, context)
        if given:
            file = import_checkpoint(card, Path(given), progress=progress)
        else:
            file = fetch_checkpoint(
                card, folder=settings.checkpoint_folder, offline=settings.offline, progress=progress
            )
        return {self.FILE: str(file), self.SHA256: card.checkpoint.sha256}
