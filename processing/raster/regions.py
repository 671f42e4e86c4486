"""Label rasters to polygons strip by strip, where memory does not grow with the raster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.features import shapes
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from shapely.geometry import Polygon
from skimage.measure import label

# GDAL outlines so many pixels in some 40 ms. It holds Python's lock meanwhile, and QGIS's canvas may wait for that.
_STRIP_PX = 2**19


@dataclass(frozen=True, eq=False)
class Region:
    """A connected area of one `value`: `polygon` in pixels of the whole raster, x right and y down, on the grid."""

    value: int
    polygon: Polygon


def thin_strips(strip: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Cut `strip` (rows, cols) into strips that are outlined in a moment."""
    step = max(1, _STRIP_PX // max(1, strip.shape[1]))
    for start in range(0, len(strip), step):
        yield strip[start : start + step]


class RegionOutliner:
    """Outlines the connected areas of equal values in a raster that comes in strips, from top to bottom.

    Value 0 is no area. Pixels that touch only at a corner are apart. In memory are one strip and the outlines of the
    areas that reach its lower edge.
    """

    def __init__(self) -> None:
        self._top = 0
        self._values = np.zeros(0, np.uint8)
        """The last row, uint8 (cols,), and in `_owners` which of the open areas each of its pixels is of."""
        self._owners = np.zeros(0, np.int64)
        self._open: list[_Area] = []

    def add(self, strip: npt.NDArray[np.uint8]) -> list[Region]:
        """Take the next rows of the raster in, `strip` (rows, cols), and return the areas that end in or above them.

        All strips have the same columns.
        """
        numbers = label(strip, background=0, connectivity=1).astype(np.int32)  # type: ignore[no-untyped-call]
        areas = [*self._open, *self._outlined(numbers, strip)]
        joined, member = self._joined(areas, numbers, strip)
        is_below = numbers[-1] > 0
        owners = np.full(strip.shape[1], -1, np.int64)
        owners[is_below] = member[len(self._open) + numbers[-1, is_below] - 1]
        still_open, owners[is_below] = np.unique(owners[is_below], return_inverse=True)
        self._open, self._owners, self._values = [joined[n] for n in still_open], owners, strip[-1].copy()
        self._top += len(strip)
        return [joined[n].region() for n in sorted(set(range(len(joined))) - set(still_open.tolist()))]

    def finish(self) -> list[Region]:
        """Return the areas that reach the lower edge of the raster."""
        areas, self._open = self._open, []
        return [area.region() for area in areas]

    def _outlined(self, numbers: npt.NDArray[np.int32], strip: npt.NDArray[np.uint8]) -> list[_Area]:
        """The areas of one strip, in the order of their numbers, which begin with 1."""
        values = np.zeros(int(numbers.max(initial=0)) + 1, np.uint8)
        values[numbers.ravel()] = strip.ravel()
        areas = [_Area(int(value), []) for value in values[1:]]
        down = Affine.translation(0, self._top)
        for rings, number in shapes(numbers, mask=numbers > 0, connectivity=4, transform=down):
            outline, *holes = rings["coordinates"]
            areas[int(number) - 1].parts.append(Polygon(outline, holes))
        return areas

    def _joined(
        self, areas: Sequence[_Area], numbers: npt.NDArray[np.int32], strip: npt.NDArray[np.uint8]
    ) -> tuple[list[_Area], npt.NDArray[np.int64]]:
        """Join the areas that meet at the upper edge of the strip; for each area which of the joined ones it is in."""
        n_open = len(self._open)
        pairs = np.zeros((2, 0), np.int64)
        if n_open:
            meets = (self._values == strip[0]) & (strip[0] > 0)
            pairs = np.stack([self._owners[meets], n_open + numbers[0, meets].astype(np.int64) - 1])
        links = coo_matrix((np.ones(pairs.shape[1], np.bool_), (pairs[0], pairs[1])), shape=(len(areas), len(areas)))
        n_joined, member = connected_components(links, directed=False)
        joined: list[_Area | None] = [None] * n_joined
        for area, n in zip(areas, member, strict=True):
            before = joined[n]
            joined[n] = area if before is None else _Area(area.value, [*before.parts, *area.parts])
        return [area for area in joined if area is not None], member.astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Area:
    """What is known of an area so far: its part in each strip."""

    value: int
    parts: list[Polygon]

    def region(self) -> Region:
        """Return it in one piece."""
        if len(self.parts) == 1:
            return Region(self.value, self.parts[0])
        whole = shapely.union_all(self.parts)
        # Corners that only the cut between two strips made lie on straight edges.
        return Region(self.value, shapely.simplify(whole, 0, preserve_topology=True))
