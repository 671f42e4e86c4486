"""Puts model-designer chains together from the algorithms that are there; `make_chains.py` says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from qgis.core import (
    QgsApplication,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildDependency,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterDefinition,
)
from qgis.PyQt.QtCore import QPointF, QSizeF

GROUP = "Domain adaptation"
_ROW, _INPUT_COLUMN, _STEP_COLUMN, _OUTPUT_COLUMN = 90, 150, 480, 800

Source: TypeAlias = QgsProcessingModelChildParameterSource
Sources: TypeAlias = Source | Sequence[Source]


def given(name: str) -> Source:
    """What the user gives to the chain as parameter `name`."""
    source: Source = Source.fromModelParameter(name)
    return source


def result(step: str, name: str = "OUTPUT") -> Source:
    """What an earlier step made as output `name`."""
    source: Source = Source.fromChildOutput(step, name)
    return source


def fixed(value: Any) -> Source:
    """A value that the chain always hands on."""
    source: Source = Source.fromStaticValue(value)
    return source


class ChainWriter:
    """Puts a chain together: parameters, then steps in the order in which they run."""

    def __init__(self, title: str, summary: str) -> None:
        self.model = QgsProcessingModelAlgorithm(title, GROUP, "adaptation")
        self._helps = {"ALG_DESC": summary}
        self._order: list[str] = []
        self._registry = QgsApplication.processingRegistry()

    def ask(
        self,
        name: str,
        *,
        of: tuple[str, str],
        text: str = "",
        label: str = "",
        parent: str = "",
        is_optional: bool | None = None,
        is_advanced: bool = False,
    ) -> None:
        """Add the parameter `name`, as the algorithm `of[0]` asks for it as `of[1]`; texts and parent may be others."""
        parameter = self._registry.algorithmById(of[0]).parameterDefinition(of[1]).clone()
        parameter.setName(name)
        # Written, not the algorithm's own, whose words speak of one step alone.
        parameter.setDescription(label or parameter.description())
        parameter.setHelp(text or parameter.help())
        flags = parameter.flags() & ~QgsProcessingParameterDefinition.FlagAdvanced
        if is_advanced:
            flags |= QgsProcessingParameterDefinition.FlagAdvanced
        if is_optional is not None:
            flags &= ~QgsProcessingParameterDefinition.FlagOptional
            if is_optional:
                flags |= QgsProcessingParameterDefinition.FlagOptional
        parameter.setFlags(flags)
        if parent:
            parameter.setParentLayerParameterName(parent)
        component = QgsProcessingModelParameter(name)
        component.setPosition(QPointF(_INPUT_COLUMN, _ROW * (1 + len(self.model.parameterComponents()))))
        component.setSize(QSizeF(200, 30))
        self._helps[name] = parameter.help()
        self._order.append(name)
        self.model.addModelParameter(parameter, component)

    def step(
        self,
        step: str,
        algorithm: str,
        title: str,
        sources: Mapping[str, Sources],
        *,
        after: str = "",
        outputs: Mapping[str, tuple[str, str, str]] | None = None,
    ) -> None:
        """Add a step; `outputs`: {output of the algorithm: (name, label, help) of the chain's output}.

        `after` names a step that is to run before, where nothing that it makes is used here.
        """
        child = QgsProcessingModelChildAlgorithm(algorithm)
        child.setChildId(step)
        child.setDescription(title)
        if after:
            child.setDependencies([QgsProcessingModelChildDependency(after)])
        row = 1 + len(self.model.childAlgorithms())
        child.setPosition(QPointF(_STEP_COLUMN, _ROW * row))
        child.setSize(QSizeF(220, 30))
        for parameter in self._registry.algorithmById(algorithm).parameterDefinitions():
            name = parameter.name()
            if name in sources:
                source = sources[name]
                child.addParameterSources(name, list(source) if isinstance(source, Sequence) else [source])
            elif parameter.defaultValue() is not None:
                # The designer calls a step incomplete where a value is left to the algorithm's default.
                child.addParameterSources(name, [fixed(parameter.defaultValue())])
        unknown = set(sources) - set(child.parameterSources())
        if unknown:
            raise SystemExit(f"{algorithm} has no parameter {', '.join(sorted(unknown))}.")
        finals = {}
        for n, (own, (name, label, text)) in enumerate((outputs or {}).items()):
            final = QgsProcessingModelOutput(name, label)
            final.setChildOutputName(own)
            final.setChildId(step)
            final.setPosition(QPointF(_OUTPUT_COLUMN, _ROW * row + 40 * n))
            final.setSize(QSizeF(200, 30))
            finals[name] = final
            self._helps[name] = text
        child.setModelOutputs(finals)
        self.model.addChildAlgorithm(child)

    def save(self, path: Path) -> None:
        """Write the file. Raises `SystemExit` where a step does not fit the algorithms that are there."""
        self.model.setHelpContent(self._helps)
        self.model.setParameterOrder(self._order)
        self.model.updateDestinationParameters()
        for step in self.model.childAlgorithms():
            is_fine, problems = self.model.validateChildAlgorithm(step)
            if not is_fine:
                raise SystemExit(f"{path.name}, step {step}: {'; '.join(problems)}")
        if not self.model.toFile(str(path)):
            raise SystemExit(f"{path} cannot be written.")
