"""The Processing provider `segadapt`. Its algorithms are listed whether or not the environment is there."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import ALGORITHMS
from .algorithms.resources import icon_path


class SegAdaptProvider(QgsProcessingProvider):
    """Lists the algorithms of `ALGORITHMS`."""

    def loadAlgorithms(self) -> None:
        """Add one instance of every algorithm."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def id(self) -> str:
        """Return the id that prefixes every algorithm; fixed for ever."""
        return "segadapt"

    def name(self) -> str:
        """Return the name in the toolbox."""
        return "SegAdapt"

    def icon(self) -> QIcon:
        """Return the provider's icon."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self) -> str:
        """Return the file of the icon."""
        return icon_path("provider")
