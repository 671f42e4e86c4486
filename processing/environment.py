"""Find SegAdapt's Python environment (torch, rasterio and what they need) and make it importable in QGIS.

The environment lies outside the plugin, is shared by every clone with the same requirements, and goes in
front on `sys.path`: appended, torchvision meets the host's old sympy and fails. What QGIS itself is built on
must keep coming from the host, so an environment with a copy of such a package is refused. Standard library
only: this runs before anything is installed, also as a script (`python3 processing/environment.py
path|check`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

VARIABLE = "SEGADAPT_ENV"
"""Environment variable that names the folder of the environment."""

_ROOT = Path(__file__).resolve().parents[1]
_NEEDED = (
    "torch",
    "timm",
    "segment_anything",
    "safetensors",
    "huggingface_hub",
    "rasterio",
    "pyproj",
    "shapely",
    "geopandas",
)
# Built against the host's libraries; a second copy in one process crashes or mixes types.
_HOST_ONLY = ("numpy", "osgeo", "PyQt5", "PyQt6", "sip")
# Hooks of the import system itself: replacing them in a running interpreter gains nothing.
_NEVER_REPLACED = ("setuptools", "pkg_resources", "pip")
_REMEDY = "run `make setup` in the plugin's folder or choose the folder of an environment in SegAdapt's settings"


class EnvironmentUnavailable(RuntimeError):  # noqa: N818 - named for what the user is told
    """The environment is missing, incomplete, or would break QGIS; the message holds the remedy."""


def environment_folder(setting: str | None = None) -> Path:
    """Return the folder of the environment: `setting` if not empty, else `SEGADAPT_ENV`, else the default.

    The default carries a key of the requirements, of the interpreter and of the host's numpy, so that two
    versions of the plugin never share an environment that fits only one. It need not exist.
    """
    named = setting or os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    from ..models.storage import data_folder  # here, so that this file also runs as a script

    return data_folder() / f"env-{_key()}"


def check(setting: str | None = None) -> None:
    """Raise `EnvironmentUnavailable` where `activate` would, without changing anything."""
    if _needed_is_importable():
        return
    packages = _site_packages(environment_folder(setting))
    _refuse_shadowing(packages)
    _refuse_incomplete(packages)
    _foreign_modules(packages)


def activate(setting: str | None = None) -> None:
    """Make torch, rasterio and the rest importable; does nothing where they are already.

    `setting` is the folder from the user's settings. Raises `EnvironmentUnavailable`.
    """
    from .library_isolation import isolate_libraries  # here, so that this file also runs as a script

    _give_streams()
    isolate_libraries()
    if _needed_is_importable():
        return
    check(setting)
    packages = _site_packages(environment_folder(setting))
    for name in _foreign_modules(packages):
        _forget(name)
    sys.path.insert(0, str(packages))
    importlib.invalidate_caches()


def _key() -> str:
    """Twelve hex digits that change when the environment has to be another one."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    try:
        numpy = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        numpy = "none"
    text = "\n".join([*_requirements(_ROOT / "pyproject.toml"), python, f"numpy=={numpy}"])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _requirements(pyproject: Path) -> list[str]:
    """Requirement strings of both blocks of dependencies; by hand, tomllib came with Python 3.11."""
    try:
        lines = pyproject.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EnvironmentUnavailable(f"Cannot read {pyproject} ({error}); install SegAdapt again.") from error
    section, inside, found = "", False, []
    for line in lines:
        code = line.split("#")[0].strip()
        heading = re.fullmatch(r"\[([\w.-]+)\]", code)
        if heading:
            section, inside = heading[1], False
            continue
        inside = inside or bool(re.match(r"dependencies\s*=", code))
        if (section == "project" and inside) or section == "project.optional-dependencies":
            found += re.findall(r'"([^"]+)"', code)
        if code.endswith("]"):
            inside = False
    return found


def _needed_is_importable() -> bool:
    return all(name in sys.modules or importlib.util.find_spec(name) is not None for name in _NEEDED)


def _site_packages(folder: Path) -> Path:
    """Folder with the packages: of a virtual environment, or `folder` itself (`pip install --target`)."""
    if not folder.is_dir():
        raise EnvironmentUnavailable(f"SegAdapt's Python environment {folder} does not exist; {_REMEDY}.")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (folder / "lib" / version / "site-packages", folder / "Lib" / "site-packages"):
        if candidate.is_dir():
            return candidate
    others = sorted(path.name for path in folder.glob("lib/python3.*"))
    if others:
        raise EnvironmentUnavailable(f"{folder} was made for {others[0]} but QGIS runs {version}; {_REMEDY}.")
    return folder


def _refuse_shadowing(packages: Path) -> None:
    copies = [name for name in _HOST_ONLY if _holds(packages, name)]
    if copies:
        raise EnvironmentUnavailable(
            f"{packages} holds its own {', '.join(copies)}, which would replace QGIS's copy; remove that "
            f"package from the environment or {_REMEDY}."
        )


def _refuse_incomplete(packages: Path) -> None:
    missing = [name for name in _NEEDED if not _holds(packages, name) and importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentUnavailable(f"SegAdapt's Python environment {packages} has no {missing[0]}; {_REMEDY}.")


def _holds(packages: Path, name: str) -> bool:
    if (packages / name).is_dir() or (packages / f"{name}.py").is_file():
        return True
    return any((packages / f"{name}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _foreign_modules(packages: Path) -> list[str]:
    """Top-level modules that the host loaded before and that the environment replaces.

    A pure Python one (an old sympy or typing_extensions) can be imported anew, its users keep theirs. One
    with compiled parts cannot be loaded twice safely: raises `EnvironmentUnavailable` unless both are the
    same version.
    """
    foreign = []
    for name in sorted({loaded.partition(".")[0] for loaded in tuple(sys.modules)}):
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is None or name.startswith("_") or name in _NEVER_REPLACED or not _holds(packages, name):
            continue
        if packages.resolve() in Path(origin).resolve().parents:
            continue
        if not _is_compiled(name):
            foreign.append(name)
        elif getattr(sys.modules[name], "__version__", None) != _version_in(packages, name):
            raise EnvironmentUnavailable(
                f"Another plugin has already loaded {name} from {Path(origin).parent}, which does not fit "
                f"{packages}; disable that plugin, restart QGIS and try again."
            )
    return foreign


def _is_compiled(name: str) -> bool:
    files = (
        getattr(module, "__file__", None) or ""
        for loaded, module in tuple(sys.modules.items())
        if loaded == name or loaded.startswith(f"{name}.")
    )
    return any(file.endswith(tuple(EXTENSION_SUFFIXES)) for file in files)


def _version_in(packages: Path, name: str) -> str | None:
    for distribution in importlib.metadata.distributions(name=name, path=[str(packages)]):
        return distribution.version
    return None


def _forget(name: str) -> None:
    for loaded in tuple(sys.modules):
        if loaded == name or loaded.startswith(f"{name}."):
            del sys.modules[loaded]


def _give_streams() -> None:
    """QGIS for Windows has no console: `sys.stderr` is None there, and torch, tqdm, warnings write to it."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stays open with the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def main(arguments: list[str]) -> int:
    """Run `path` (print the folder) or `check` (exit status 0 where the environment is ready)."""
    if arguments not in (["path"], ["check"]):
        sys.stderr.write("usage: python3 processing/environment.py path|check\n")
        return 2
    try:
        folder = environment_folder()
        if arguments == ["check"]:
            check()
    except EnvironmentUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


def _run_script() -> int:
    """Import the checkout as the package `segadapt`, whatever its folder is called, and run its `main`."""
    spec = importlib.util.spec_from_file_location(
        "segadapt", _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)]
    )
    if spec is None:
        sys.stderr.write(f"{_ROOT} holds no __init__.py; run this from a checkout of SegAdapt.\n")
        return 2
    sys.modules["segadapt"] = importlib.util.module_from_spec(spec)
    module = importlib.import_module("segadapt.processing.environment")
    return int(module.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(_run_script())
