"""Finding the environment, and refusing one that would break QGIS. Needs no QGIS."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from segadapt.processing import environment
from segadapt.processing.environment import EnvironmentUnavailable, check, environment_folder

SITE = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
ROOT = Path(environment.__file__).resolve().parents[1]
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
NEEDED = ("torch", "timm", "segment_anything", "safetensors", "huggingface_hub")
NEEDED += ("rasterio", "pyproj", "shapely", "geopandas")


@pytest.fixture
def bare_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that cannot import what is needed."""
    monkeypatch.setattr(environment, "_needed_is_importable", lambda: False)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A complete virtual environment of empty packages."""
    for name in NEEDED:
        (tmp_path / SITE / name).mkdir(parents=True)
        (tmp_path / SITE / name / "__init__.py").touch()
    return tmp_path


def plain_python(fake: Path, code: str) -> None:
    """Run code in a Python without site-packages, which has imported nothing of ours or of the environment."""
    prelude = f"""
        import importlib.util, os, sys
        from types import ModuleType
        spec = importlib.util.spec_from_file_location(
            "segadapt", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
        )
        sys.modules["segadapt"] = importlib.util.module_from_spec(spec)
        from segadapt.processing.environment import EnvironmentUnavailable, activate
        FAKE, SITE = {str(fake)!r}, {str(fake / SITE)!r}
        """
    command = [BASE_PYTHON, "-I", "-S", "-c", dedent(prelude) + dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_setting_then_variable_then_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The setting wins over the variable, which wins over the folder with the key."""
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path))
    monkeypatch.setenv("SEGADAPT_ENV", "/by/variable")
    assert environment_folder("/by/setting") == Path("/by/setting")
    assert environment_folder("") == Path("/by/variable")
    monkeypatch.delenv("SEGADAPT_ENV")
    default = environment_folder()
    assert default.parent == tmp_path
    assert re.fullmatch(r"env-[0-9a-f]{12}", default.name)


def test_key_follows_the_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another bound is another environment; another comment or tool setting is the same."""
    text = '[project]\nname = "a"\ndependencies = [\n    "torch>=2", # "why"\n]\n[tool.x]\nselect = ["E"]\n'
    keys = []
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.delenv("SEGADAPT_ENV", raising=False)
    for version in (text, text.replace("why", "other"), text.replace('"E"', '"F"'), text.replace(">=2", ">=3")):
        (tmp_path / "pyproject.toml").write_text(version)
        keys.append(environment_folder().name)
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_requirements_are_those_of_tomllib() -> None:
    """Our own reading of pyproject.toml agrees with the standard library's, where there is one."""
    tomllib = pytest.importorskip("tomllib")
    file = ROOT / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    groups = project.get("optional-dependencies", {}).values()
    expected = [*project["dependencies"], *(line for group in groups for line in group)]
    assert environment._requirements(file) == expected


def test_missing_environment_is_a_sentence(bare_host: None, tmp_path: Path) -> None:
    """The folder and both remedies are named."""
    with pytest.raises(EnvironmentUnavailable, match=r"none does not exist; run `make setup` .* settings\.$"):
        check(str(tmp_path / "none"))


def test_incomplete_environment_is_a_sentence(bare_host: None, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that lacks is named."""
    (fake / SITE / "timm" / "__init__.py").unlink()
    (fake / SITE / "timm").rmdir()
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnavailable, match="has no timm; run `make setup`"):
        check(str(fake))


def test_environment_of_another_python_is_a_sentence(bare_host: None, tmp_path: Path) -> None:
    """Compiled packages of another Python cannot be imported."""
    (tmp_path / "lib" / "python3.1" / "site-packages").mkdir(parents=True)
    with pytest.raises(EnvironmentUnavailable, match=r"was made for python3\.1 but QGIS runs python3"):
        check(str(tmp_path))


@pytest.mark.parametrize("copy", ["numpy/__init__.py", "osgeo/__init__.py", "PyQt5/QtCore.so", "PyQt6/x", "sip.py"])
def test_copies_of_the_host_are_refused(bare_host: None, fake: Path, copy: str) -> None:
    """A second numpy, GDAL or Qt would replace QGIS's own."""
    (fake / SITE / copy).parent.mkdir(exist_ok=True)
    (fake / SITE / copy).touch()
    name = copy.split("/", maxsplit=1)[0].removesuffix(".py")
    with pytest.raises(EnvironmentUnavailable, match=f"holds its own {name}, which would replace QGIS's copy"):
        check(str(fake))
    assert str(fake / SITE) not in sys.path


def test_activation_goes_in_front_once(fake: Path) -> None:
    """The environment's packages win over the host's; a second call changes nothing; PROJ and GDAL stay alone."""
    plain_python(
        fake,
        """
        before = dict(os.environ)
        activate(FAKE)
        activate(FAKE)
        assert sys.path[0] == SITE, sys.path
        assert sys.path.count(SITE) == 1
        import torch
        assert torch.__file__.startswith(SITE)
        assert os.environ == before
        """,
    )


def test_python_modules_of_the_host_are_imported_anew(fake: Path) -> None:
    """An old sympy that something loaded before does not meet the environment's torch."""
    (fake / SITE / "sympy.py").write_text("version = 'new'\n")
    plain_python(
        fake,
        """
        sys.modules["sympy"] = ModuleType("sympy")
        sys.modules["sympy"].__file__ = "/host/sympy/__init__.py"
        sys.modules["sympy.core"] = ModuleType("sympy.core")
        activate(FAKE)
        import sympy
        assert sympy.version == "new"
        assert "sympy.core" not in sys.modules
        """,
    )


@pytest.mark.parametrize(("version", "refused"), [("1.0", True), ("2.0", False)])
def test_compiled_modules_of_the_host(fake: Path, version: str, refused: bool) -> None:
    """One that is loaded stays; if it is not the environment's version, the sentence names it."""
    (fake / SITE / "shapely-2.0.dist-info").mkdir()
    (fake / SITE / "shapely-2.0.dist-info" / "METADATA").write_text("Name: shapely\nVersion: 2.0\n")
    plain_python(
        fake,
        f"""
        loaded = sys.modules["shapely"] = ModuleType("shapely")
        loaded.__file__, loaded.__version__ = "/host/shapely/__init__.py", "{version}"
        sys.modules["shapely.lib"] = ModuleType("shapely.lib")
        sys.modules["shapely.lib"].__file__ = "/host/shapely/lib{EXTENSION_SUFFIXES[0]}"
        try:
            activate(FAKE)
        except EnvironmentUnavailable as error:
            assert {refused}, error
            assert "already loaded shapely from /host/shapely" in str(error), error
            assert SITE not in sys.path
        else:
            assert not {refused}
            assert sys.modules["shapely"] is loaded
        """,
    )


def test_missing_streams_are_given(fake: Path) -> None:
    """QGIS for Windows starts without a console; what is there is not replaced."""
    plain_python(
        fake,
        """
        stdout, sys.stderr = sys.stdout, None
        activate(FAKE)
        sys.stderr.write("to nowhere")
        assert sys.stdout is stdout
        """,
    )


def test_script_for_make(tmp_path: Path) -> None:
    """`path` prints the folder, `check` fails with the sentence, both with a plain Python."""
    script = Path(environment.__file__)
    variables: dict[str, Any] = {**os.environ, "SEGADAPT_ENV": str(tmp_path / "none")}

    def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [BASE_PYTHON, str(script), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    assert run_script("path").stdout == f"{tmp_path / 'none'}\n"
    assert run_script("other").returncode == 2
    failed = run_script("check")
    assert failed.returncode == 1
    assert "does not exist; run `make setup`" in failed.stderr
