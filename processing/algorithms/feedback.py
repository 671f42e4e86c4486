"""QGIS's feedback as the `Progress` that models and jobs know."""

from __future__ import annotations

from qgis.core import QgsProcessingFeedback


class FeedbackProgress:
    """Hands progress to `feedback`, a `QgsProcessingFeedback`, whose methods may be called from a worker thread."""

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self.feedback = feedback

    def set_fraction(self, fraction: float) -> None:
        """Show the fraction (0 to 1) as per cent."""
        self.feedback.setProgress(100.0 * fraction)

    def info(self, text: str) -> None:
        """Write a line to the algorithm's log."""
        self.feedback.pushInfo(text)

    def is_cancelled(self) -> bool:
        """Say whether the user pressed Cancel."""
        return bool(self.feedback.isCanceled())
