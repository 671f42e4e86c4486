"""What pyproj needs to work in the threads of Qt."""

from __future__ import annotations

from collections import deque

import pyproj
from pyproj._context import get_context_manager  # type: ignore[attr-defined]  # no public name leads to it

# Far more than threads that Qt's pool keeps at a time; contexts of threads that have ended are of no use.
_kept: deque[object] = deque(maxlen=128)


def keep_proj_context() -> None:
    """Let pyproj work in this thread again and again; call it in a thread of Qt before anything uses pyproj.

    pyproj has a PROJ context per thread of the system, but frees it with Python's state of the thread. Python
    drops that state after every call that Qt's thread pool makes, so that without this the second algorithm to
    run in the same pool thread crashes QGIS.
    """
    pyproj.CRS.from_epsg(4326)  # creates the context, where the thread has none
    manager = get_context_manager()
    if manager is not None and manager not in _kept:
        _kept.append(manager)
