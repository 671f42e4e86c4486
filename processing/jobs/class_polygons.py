"""Class maps as polygons: of a map that is still in the making, and of one in a file."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window
from shapely.geometry import Polygon

from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..raster.access import gdal_access
from ..raster.geodesy import apply_affine
from ..raster.polygon_writer import PolygonWriter
from ..raster.regions import Region, RegionOutliner, thin_strips
from ..raster.vectorize import area_m2
from ..raster.windows import Bounds
from .class_map import ClassMapper, MapClass

_FIELDS = {"class": object, "class_id": np.int32, "area_m2": np.float64}
# As tall as the blocks of the map that was written, each of which is then read once.
_STRIP_ROWS = 512


def write_class_polygons(
    mapper: ClassMapper, path: Path, *, bounds_px: Bounds | None = None, progress: Progress | None = None
) -> Generator[float, None, int]:
    """Write the connected areas of each class in an extent as a GeoPackage with class, class_id and area_m2.

    Yields the fraction done after each window and returns the number of polygons. Without bounds of the whole raster,
    of which one row of windows is in memory. What is clicked meanwhile does not change it. Nothing is left
    at `path` where the work is stopped or fails. Raises `RasterError` for a place that cannot be written, `JobError`
    where the raster itself would be replaced, `Cancelled`, and what reading and encoding raise.
    """
    mapper.check_output(path)
    mapper = mapper.as_now()
    progress = progress or NullProgress()
    reader = mapper.scene.reader
    left, top, right, bottom = mapper.limited(bounds_px)
    transform = reader.transform @ Affine.translation(left, top)
    outliner, n_done = RegionOutliner(), 0
    with PolygonWriter(path, crs=reader.crs, fields=_FIELDS) as writer:

        def write(regions: Iterable[Region]) -> None:
            for polygon, one in _placed(regions, transform, mapper.classes):
                values = {"class": one.name, "class_id": one.class_id, "area_m2": area_m2(polygon, reader.crs)}
                writer.add(polygon, values)

        for row in mapper.rows((left, top, right, bottom)):
            strip = np.zeros((row[0][3] - row[0][1], right - left), np.uint8)
            for part in row:
                raise_if_cancelled(progress)
                labels = mapper.labels(part)
                strip[:, part[0] - left : part[2] - left] = labels
                n_done += labels.size
                fraction = n_done / ((right - left) * (bottom - top))
                progress.set_fraction(fraction)
                yield fraction
            for thin in thin_strips(strip):
                write(outliner.add(thin))
                yield fraction
        write(outliner.finish())
        writer.commit()
    return writer.n_written


def class_polygons(path: Path, classes: Sequence[MapClass]) -> Iterator[tuple[Polygon, MapClass]]:
    """Outlines of the connected areas of each class in a map that `write_class_map` wrote, in its CRS, on its grid.

    Raises `RasterError` where the file cannot be read.
    """
    outliner = RegionOutliner()
    with _access(path):
        dataset = rasterio.open(path)
    with dataset:
        for row in range(0, dataset.height, _STRIP_ROWS):
            with _access(path):
                strip = dataset.read(1, window=Window(0, row, dataset.width, min(_STRIP_ROWS, dataset.height - row)))
            for thin in thin_strips(strip):
                yield from _placed(outliner.add(thin), dataset.transform, classes)
        yield from _placed(outliner.finish(), dataset.transform, classes)


def _access(path: Path) -> AbstractContextManager[None]:
    return gdal_access(str(path), verb="read", remedy="map the raster again")


def _placed(
    regions: Iterable[Region], transform: Affine, classes: Sequence[MapClass]
) -> Iterator[tuple[Polygon, MapClass]]:
    named = {one.class_id: one for one in classes}
    for region in regions:
        if region.value in named:
            yield shapely.transform(region.polygon, lambda xy: apply_affine(transform, xy)), named[region.value]
