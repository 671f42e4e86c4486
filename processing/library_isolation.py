"""Let rasterio, pyproj and shapely use the C libraries that they bring along, not those of QGIS.

On Linux the programs `qgis` and `qgis_process` make the names of their GDAL, PROJ and GEOS global. A wheel with
copies of other versions would be bound to those: two PROJ then share, and destroy twice, the same objects, and
QGIS crashes at the latest when it closes ("free(): invalid pointer"). RTLD_DEEPBIND makes a library look for a
name in what it was built with first: https://man7.org/linux/man-pages/man3/dlopen.3.html. Windows and macOS bind
a library to its own copies anyway. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType

_BRING_LIBRARIES = ("rasterio", "pyproj", "shapely", "pyogrio")


def isolate_libraries() -> None:
    """From now on load the compiled modules of those packages isolated; what is loaded already stays as it is.

    Also lets `import triton` fail, which torch takes for "not installed" and only `torch.compile` needs: its LLVM
    and the one that Mesa brings into a process with windows have the same symbols, and loading both ends QGIS with
    a segmentation fault (seen with triton 3.9 and libLLVM-15 on Debian 12).
    """
    # None is how Python marks what must not be imported.
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    if hasattr(os, "RTLD_DEEPBIND") and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Loader(ExtensionFileLoader):
    """Loads a compiled module whose libraries see their own names first."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        flags = sys.getdlopenflags()
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
        try:
            return super().create_module(spec)
        finally:
            sys.setdlopenflags(flags)


class _Finder:
    """Finds modules as ever, and hands the compiled ones of those packages to `_Loader`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in _BRING_LIBRARIES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
