"""The import rules: layers import downwards and relatively, and nothing heavy loads while QGIS starts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "timm", "segment_anything", "safetensors", "huggingface_hub"}
HEAVY |= {"segmentation_models_pytorch", "peft", "onnx", "dask", "distributed"}
SCIENCE = {"scipy", "skimage", "sklearn", "matplotlib"}
GEODATA = {"rasterio", "geopandas", "shapely", "pyproj"}
QGIS = {"qgis", "osgeo"}
# How work reports, stops and fails is said in the lowest layer, for all of them.
FLOOR = ("models.errors", "models.progress", "models.storage", "processing.errors")

# What a layer may import of ours, and must not of others; the longest name that fits a module counts.
LAYERS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "models": (("models",), QGIS | GEODATA | {"dask"}),
    "processing": ((*FLOOR, "processing.library_isolation"), QGIS | HEAVY | GEODATA | SCIENCE),
    "processing.raster": ((*FLOOR, "processing.raster"), QGIS | HEAVY | {"dask"}),
    "processing.jobs": ((*FLOOR, "models", "processing.raster", "processing.jobs"), QGIS),
    "processing.algorithms": (("models", "processing"), {"qgis.gui", "qgis.PyQt.QtWidgets"}),
    "processing.provider": (("models", "processing"), {"qgis.gui", "qgis.PyQt.QtWidgets"}),
    "plugin": (("models", "processing", "plugin"), set()),
    "__init__": (("plugin",), QGIS | HEAVY | SCIENCE),
}
# What is imported before the environment is there: by QGIS, or to describe models.
DESCRIPTIONS = ("card", "catalogue", "checkpoints", "errors", "progress", "prompts", "registry", "storage")
DESCRIPTIONS += ("semantic.card",)
EARLY = (
    "__init__",
    "plugin.plugin",
    "processing.provider",
    "processing.algorithms",
    "processing.environment",
    *(f"models.{name}" for name in DESCRIPTIONS),
)


def sources() -> dict[str, str]:
    """Text of every shipped module by its dotted name below the package; `models` is `models/__init__.py`."""
    found = {"__init__": (ROOT / "__init__.py").read_text(encoding="utf-8")}
    for layer in ("models", "processing", "plugin"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, text: str, *, packages: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports (`.models.card.Card` for ours) and whether importing the module does it."""
    tree = ast.parse(text)
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _resolved(node, module, is_package=module in packages)
            yield from ((f"{base}.{alias.name}", node not in later) for alias in node.names)


def _resolved(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    package = f"segadapt.{module}" if is_package else f"segadapt.{module}".rpartition(".")[0]
    try:
        resolved = resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:  # above the package, where nothing is ours
        return ".."
    return resolved.removeprefix("segadapt") or "."


def fits(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def violations(module: str, text: str, *, packages: set[str] = frozenset()) -> list[str]:
    """Say which imports of a module its layer does not allow."""
    own, banned = LAYERS[max((layer for layer in LAYERS if fits(module, layer)), key=len)]
    found = []
    for name, _ in imports(module, text, packages=packages):
        if name.startswith("."):
            if not any(fits(name[1:], prefix) for prefix in own):
                found.append(f"{module} imports {name}, upwards")
        elif name.split(".")[0] in {"segadapt", "processing", "models", "plugin"}:
            found.append(f"{module} imports {name}, which must be relative (QGIS's own: `from qgis import processing`)")
        elif any(fits(name, prefix) for prefix in banned | {"PyQt5", "PyQt6", "processing"}):
            found.append(f"{module} imports {name}, which its layer must not know")
    return found


def heavy_at_start(texts: dict[str, str], *, packages: set[str]) -> list[str]:
    """Say by which chain of imports an early module loads what only the environment has."""
    chains = [(name,) for name in texts if any(fits(name, early) for early in EARLY)]
    found, seen = [], {chain[0] for chain in chains}
    while chains:
        chain = chains.pop(0)
        for name, at_once in imports(chain[-1], texts[chain[-1]], packages=packages):
            if at_once and name.split(".")[0] in HEAVY | GEODATA | SCIENCE:
                found.append(" -> ".join((*chain, name)))
            elif at_once and name.startswith("."):
                parts = name[1:].split(".")
                for reached in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                    if reached in texts and reached not in seen:
                        seen.add(reached)
                        chains.append((*chain, reached))
    return found


TEXTS = sources()
PACKAGES = {name for name in TEXTS if (ROOT / name.replace(".", "/") / "__init__.py").is_file()}


@pytest.mark.parametrize("module", TEXTS)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert violations(module, TEXTS[module], packages=PACKAGES) == []


def test_nothing_heavy_loads_while_qgis_starts() -> None:
    assert heavy_at_start(TEXTS, packages=PACKAGES) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.engine", "import qgis.core"),
        ("models.engine", "def f():\n    from rasterio.windows import Window"),
        ("models.engine", "from ..processing.errors import RasterError"),
        ("models.promptable.sam", "from ...plugin import dock"),
        ("processing.raster.reader", "from qgis.core import QgsRasterLayer"),
        ("processing.raster.reader", "import torch"),
        ("processing.raster.reader", "from ...models.engine import InferenceEngine"),
        ("processing.raster.reader", "from ..jobs import scene"),
        ("processing.jobs.scene", "from .. import provider"),
        ("processing.algorithms.base", "from qgis.PyQt.QtWidgets import QWidget"),
        ("processing.algorithms.base", "from ...plugin.settings import Settings"),
        ("plugin.dock", "import processing"),
        ("plugin.dock", "from models.card import ModelCard"),
        ("plugin.dock", "from segadapt.models.card import ModelCard"),
        ("plugin.dock", "from PyQt5.QtCore import Qt"),
        ("plugin.dock", "from ...other import thing"),
    ],
)
def test_the_checker_sees_a_forbidden_import(module: str, text: str) -> None:
    assert len(violations(module, text)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.engine", "import torch\nfrom .card import ModelCard\nfrom . import errors"),
        (
            "processing.raster.reader",
            "import rasterio\nfrom ..errors import RasterError\nfrom . import windows",
        ),
        (
            "processing.jobs.scene",
            "from ...models.engine import InferenceEngine\nfrom ..raster import windows",
        ),
        ("processing.algorithms.base", "from qgis import processing\nfrom ..jobs.scene import Scene"),
        ("plugin.dock", "from ..processing.jobs import interactive\nfrom qgis.gui import QgsMapTool"),
    ],
)
def test_the_checker_lets_downward_imports_pass(module: str, text: str) -> None:
    assert violations(module, text) == []


def test_the_checker_sees_what_loads_heavy_packages() -> None:
    texts = {
        "processing.provider": "from .algorithms import base",
        "processing.algorithms.base": "from ...models.engine import Engine",
        "models.card": "def late():\n    import torch\nif TYPE_CHECKING:\n    import torch",
        "models.engine": "import torch",
        "plugin.worker": "import torch",
    }
    chain = "processing.algorithms.base -> models.engine -> torch"
    assert heavy_at_start(texts, packages=set()) == [chain]
