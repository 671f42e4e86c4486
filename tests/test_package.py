"""The zip that users install: what it holds, and that the plugin repository's scans let it pass."""

from __future__ import annotations

import configparser
import re
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from segadapt.tools.package import build, scan, version

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 25_000_000  # plugins.qgis.org refuses more
MAX_ADAPTER_BYTES = 2_000_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def names(archive: Path) -> set[PurePosixPath]:
    with zipfile.ZipFile(archive) as file:
        return {PurePosixPath(name) for name in file.namelist() if not name.endswith("/")}


def test_the_zip_is_named_after_the_version_and_small(archive: Path) -> None:
    assert archive.name == f"segadapt-{version()}.zip"
    assert archive.stat().st_size <= MAX_BYTES


def test_it_holds_one_folder_with_what_the_plugin_needs(names: set[PurePosixPath]) -> None:
    assert {name.parts[0] for name in names} == {"segadapt"}
    # pyproject.toml: the key of the environment is made from its requirements.
    needed = ("__init__.py", "metadata.txt", "LICENSE", "README.md", "pyproject.toml", "models/catalogue.py")
    assert {PurePosixPath("segadapt", name) for name in (*needed, "processing/provider.py")} <= names


def test_every_shipped_folder_is_complete(names: set[PurePosixPath]) -> None:
    for layer in ("models", "processing", "plugin"):
        here = {path.relative_to(ROOT) for path in (ROOT / layer).rglob("*.py")}
        assert {PurePosixPath("segadapt", path) for path in here} <= names


def test_nothing_of_development_or_binary_is_shipped(names: set[PurePosixPath]) -> None:
    inside = {name.relative_to("segadapt") for name in names}
    allowed = {"__init__.py", "metadata.txt", "LICENSE", "README.md", "pyproject.toml"}
    assert {name.parts[0] for name in inside} == allowed | {"models", "processing", "plugin"}
    assert [name for name in inside if any(part.startswith(".") for part in name.parts)] == []
    binary = {".so", ".pyd", ".dll", ".dylib", ".exe", ".pyc", ".pt", ".pth", ".safetensors"}
    # Adapters and the sample's model are numbers, not code, and small.
    weights = ("models/adaptation/eo_*.safetensors", "plugin/resources/sample/buildings_60cm.safetensors")
    assert [name for name in inside if name.suffix in binary and not any(map(name.match, weights))] == []
    assert [
        path for path in (ROOT / "models/adaptation").glob("*.safetensors") if path.stat().st_size > MAX_ADAPTER_BYTES
    ] == []


def test_the_newest_change_is_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    changes = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert next(change for change in changes if change != "Unreleased") == version()


def test_metadata_says_what_the_plugin_repository_asks_for() -> None:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "metadata.txt", encoding="utf-8")
    general = metadata["general"]
    assert general["name"] == "SegAdapt"
    assert (general["qgisMinimumVersion"], general["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert general["hasProcessingProvider"] == "yes"
    assert general["category"] == "Raster"
    assert (ROOT / general["icon"]).is_file()
    missing = {"description", "author", "email", "homepage", "tracker", "repository", "tags"} - set(general)
    assert missing == set()


def test_about_names_every_python_dependency() -> None:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "metadata.txt", encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = pyproject.partition("\ndependencies = [")[2].partition("\n]")[0]
    # numpy is QGIS's own, attrs is rasterio's.
    packages = set(re.findall(r'^    "([\w-]+)', block, re.MULTILINE)) - {"numpy", "attrs"}
    assert len(packages) >= 10
    assert {name for name in packages if name not in metadata["general"]["about"]} == set()


def test_the_scans_find_nothing(archive: Path) -> None:
    assert scan(archive) == []


def test_the_scans_see_what_they_are_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    token = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("segadapt/bad.py", f"import pickle\nassert eval('1')\nTOKEN = '{token}'\n")
    found = " ".join(scan(bad))
    for rule in ("B403", "B101", "B307", "GitHub Token"):
        assert rule in found
