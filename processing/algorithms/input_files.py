"""Which files an algorithm reads, so that no result takes the place of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
    QgsProcessingUtils,
    QgsProperty,
    QgsProviderRegistry,
)

from ..errors import JobError

_OF_FILES = (
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
)


def check_inputs(
    algorithm: QgsProcessingAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    *,
    path: Path,
    table: str = "",
) -> None:
    """Raise `JobError` where writing to `path`, or to a `table` in it, would destroy what the algorithm reads."""
    if not path.is_file():
        return
    for definition in algorithm.parameterDefinitions():
        if not isinstance(definition, _OF_FILES):
            continue
        for file, layer in _files(parameters.get(definition.name()), context):
            is_same = file.is_file() and file.samefile(path)
            if is_same and (not table or table == (layer or file.stem)):
                raise JobError(
                    f"The result would replace {path}, from which '{definition.description()}' is read; choose another "
                    "file for the result."
                )


def _files(given: Any, context: QgsProcessingContext) -> Iterator[tuple[Path, str]]:
    """File and table of a value, or of each of several; a path that is no file for what is none."""
    if isinstance(given, (list, tuple)):
        for one in given:
            yield from _files(one, context)
        return
    if isinstance(given, QgsProcessingFeatureSourceDefinition):
        given = given.source
    if isinstance(given, QgsProperty):
        given, _ = given.valueAsString(context.expressionContext(), "")
    layer = QgsProcessingUtils.mapLayerFromString(given, context, False) if isinstance(given, str) else given
    provider, source = ("ogr", str(given or ""))
    if isinstance(layer, QgsMapLayer):
        provider, source = layer.providerType(), layer.source()
    parts = QgsProviderRegistry.instance().decodeUri(provider, source)
    yield Path(parts.get("path") or ""), parts.get("layerName") or ""
