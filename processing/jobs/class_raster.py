"""A class map as GeoTIFF, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from affine import Affine

from ...models.progress import Progress
from ..raster.class_writer import ClassWriter
from ..raster.windows import Bounds
from .class_map import ENTROPY_NODATA, ClassMapper


def write_class_map(
    mapper: ClassMapper,
    path: Path,
    *,
    entropy_path: Path | None = None,
    bounds_px: Bounds | None = None,
    progress: Progress | None = None,
) -> Iterator[float]:
    """Write the map of an extent as GeoTIFF with a colour table; yields the fraction done after each block.

    The raster has the pixels of the input inside the extent; 0 is nodata. `entropy_path`: another one with the
    uncertainty in per cent. What is clicked meanwhile does not change it. Nothing is left at the paths where
    the work is stopped or fails. Raises `JobError` where the raster would be replaced by its own map.
    """
    for output in filter(None, (path, entropy_path)):
        mapper.check_output(output)
    mapper = mapper.as_now()
    reader = mapper.scene.reader
    left, top, right, bottom = mapper.limited(bounds_px)
    grid: dict[str, Any] = {
        "shape": (bottom - top, right - left),
        "transform": reader.transform @ Affine.translation(left, top),
        "crs": reader.crs,
        "tags": mapper.scene.provenance(),
    }
    colours = {one.class_id: one.colour for one in mapper.classes}
    names = {one.class_id: one.name for one in mapper.classes}
    area, done = (bottom - top) * (right - left), 0
    with ClassWriter(path, colours=colours, names=names, **grid) as writer:
        entropy: ClassWriter | None = (
            None if entropy_path is None else ClassWriter(entropy_path, nodata=ENTROPY_NODATA, **grid)
        )
        try:
            for block in mapper.blocks((left, top, right, bottom), progress=progress):
                row_off, col_off = block.row_off - top, block.col_off - left
                writer.write(block.labels, row_off=row_off, col_off=col_off)
                if entropy is not None:
                    entropy.write(block.entropy, row_off=row_off, col_off=col_off)
                done += block.labels.size
                yield done / area
            writer.commit()
            if entropy is not None:
                entropy.commit()
        finally:
            if entropy is not None:
                entropy.discard()
