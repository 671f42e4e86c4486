"""The Processing provider `segadapt`. Its algorithms are listed whether or not the environment is there."""

from __future__ import annotations

from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import ALGORITHMS
from .algorithms.chain import CHAINS, ChainAlgorithm
from .algorithms.resources import icon_path


class SegAdaptProvider(QgsProcessingProvider):
    """Lists the algorithms of `ALGORITHMS` and the chains of `CHAINS`."""

    def __init__(self) -> None:
        super().__init__()
        # The steps of chains are found once QGIS knows this provider and its own, in whichever order.
        QgsApplication.processingRegistry().providerAdded.connect(self._complete_chains)

    def loadAlgorithms(self) -> None:
        """Add one instance of every algorithm and chain."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())
        for stem in CHAINS:
            self.addAlgorithm(ChainAlgorithm(stem))

    def _complete_chains(self, _provider_id: str) -> None:
        chains = [one for one in self.algorithms() if isinstance(one, ChainAlgorithm)]
        if not all(chain.is_complete for chain in chains):
            self.refreshAlgorithms()

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
