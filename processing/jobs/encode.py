"""Fill the embedding cache for a raster or a part of it: the job behind `segadapt:encoderaster`."""

from __future__ import annotations

from dataclasses import dataclass

from ...models.progress import Progress
from ..errors import JobError
from ..raster.windows import Bounds, lattice_windows
from .scene import Scene


@dataclass(frozen=True)
class EncodedWindows:
    """How many windows were encoded now, and how many there are; the others were cached or hold no data."""

    n_new: int
    n_windows: int


def encode_raster(
    scene: Scene,
    bounds_px: Bounds | None = None,
    *,
    window_px: int = 1024,
    progress: Progress | None = None,
) -> EncodedWindows:
    """Encode every window that a prompt inside `bounds_px` (raster pixels; None: everywhere) can get.

    A cancelled run keeps what it has encoded; the next one goes on from there. Windows without data are
    skipped. Raises `JobError` where the bounds and the raster share no pixel, and `Cancelled`.
    """
    windows = lattice_windows(bounds_px or whole_raster(scene), size_px=window_px, shape=scene.reader.shape)
    if not len(windows):
        raise no_pixels(scene, bounds_px)
    n_new = scene.prefetch(windows, progress=progress)
    return EncodedWindows(n_new, len(windows))


def whole_raster(scene: Scene) -> Bounds:
    """Bounds of the whole raster in its pixels."""
    rows, cols = scene.reader.shape
    return 0, 0, cols, rows


def no_pixels(scene: Scene, bounds_px: Bounds | None) -> JobError:
    """The error for bounds that share no pixel with the raster."""
    rows, cols = scene.reader.shape
    return JobError(
        f"The extent {bounds_px} (pixels) shares nothing with the {cols} x {rows} pixels "
        f"of {scene.reader.path}; choose an extent inside the raster."
    )
