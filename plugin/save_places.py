"""Where files are made without asking: beside the project, else among the user's documents, else in our own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qgis.core import QgsProject
from qgis.PyQt.QtCore import QStandardPaths

from ..models.storage import data_folder


def folders() -> Iterator[Path]:
    """Yield where a file may be made, best first; a folder need not exist yet, and may turn out not to be writable."""
    home = QgsProject.instance().absolutePath()
    if home:
        yield Path(home)
    documents = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DocumentsLocation)
    if documents and not os.environ.get("SEGADAPT_HOME"):
        yield Path(documents) / "SegAdapt"
    yield data_folder() / "objects"


def free_path(folder: Path, stem: str, ending: str) -> Path:
    """Return a path in a folder that nothing has yet; `ending` with its dot. A number makes a taken name free."""
    path, number = folder / f"{stem}{ending}", 2
    while path.exists():
        path, number = folder / f"{stem}_{number}{ending}", number + 1
    return path
