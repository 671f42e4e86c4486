"""The pairs of domains of the study: labelled chips of source and target, cut by place, never by window."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from segadapt.models.chips import Chips, joined_chips, split_by_block
from segadapt.processing.jobs.labelled_chips import LabelSource, PolygonLabels, RasterLabels, cut_chips
from segadapt.processing.raster.band_reader import BandReader, open_bands

DATA = Path(os.environ.get("SEGADAPT_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
CHIP_PX, TEST_PX = 128, 256
RGB = ("red", "green", "blue")
BUILDINGS = (("other", (190, 190, 180)), ("building", (214, 80, 60)))
DUBAI = (
    ("building", (214, 80, 60)),
    ("bare land", (214, 190, 140)),
    ("road", (120, 120, 130)),
    ("vegetation", (70, 150, 70)),
    ("water", (70, 120, 200)),
)
TREES = (("other", (190, 190, 180)), ("tree", (60, 140, 60)))
# A crown of this radius around each point: the points have no outlines.
_CROWN_M = 2.5
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Pair:
    """A source and a target domain; pairs with one `source_name` share the source.

    `source`, `held_out`: labelled chips of the source to train with and to stop by. `pool`: labelled chips of the
    target to adapt with; methods without labels see them, and `more`, without. `test`: chips of other ground of the
    target, in blocks.
    """

    name: str
    source_name: str
    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    bands: tuple[str, ...]
    gsd_m: float | None
    source: Chips
    held_out: Chips
    pool: Chips
    test: Chips
    more: Chips | None = None

    @property
    def unlabelled(self) -> Chips:
        """All chips of the target that may be looked at, without labels."""
        parts = [self.pool, *([] if self.more is None else [self.more])]
        return joined_chips(parts).unlabelled()


def scene(
    name: str,
    *,
    part: Bounds = (0, 0, 1, 1),
    chip_px: int = CHIP_PX,
    is_labelled: bool = True,
    is_dense: bool = False,
    gsd_m: float = 0.3,
) -> Chips:
    """Chips of an OpenAerialMap scene at `gsd_m`; `part`: left, top, right, bottom as shares of the scene."""
    import geopandas

    with open_bands(str(DATA / f"oam/{name}.tif"), gsd_m=gsd_m) as reader:
        rows, cols = reader.grid_shape
        bounds = (part[0] * cols, part[1] * rows, part[2] * cols, part[3] * rows)
        labels: LabelSource | None = None
        if is_labelled:
            crs = reader.crs
            assert crs is not None, f"{name} has no CRS"
            table = geopandas.read_file(DATA / f"oam/{name}_buildings.gpkg").to_crs(crs.to_wkt())
            labels = PolygonLabels(reader, list(table.geometry), [1] * len(table), background=0)
        stride = chip_px // 2 if is_dense else chip_px
        return cut_chips(reader, chip_px=chip_px, labels=labels, bounds_px=bounds, stride_px=stride)


def _buildings(
    name: str, source_name: str, source: Chips, pool: Sequence[Chips], test: Sequence[Chips], more: Chips | None = None
) -> Pair:
    training, held_out = split_by_block(source, held_out=0.15, seed=0)
    return Pair(
        name, source_name, BUILDINGS, RGB, 0.3, training, held_out, joined_chips(pool), joined_chips(test), more
    )


def _kampala_and_nairobi() -> Chips:
    return joined_chips([scene("kampala_15cm", is_dense=True), scene("nairobi_15cm", is_dense=True)])


def banepa() -> Pair:
    """Buildings, Kampala and Nairobi to Banepa: the east of one scene is kept for the test."""
    return _buildings(
        "banepa",
        "kampala_nairobi",
        _kampala_and_nairobi(),
        [scene("banepa_west_30cm", part=(0, 0, 0.5, 1)), scene("banepa2_15cm")],
        [scene("banepa_west_30cm", part=(0.52, 0, 1, 1), chip_px=TEST_PX)],
        scene("banepa_unlabelled_30cm", is_labelled=False),
    )


def zanzibar() -> Pair:
    """Buildings, Kampala and Nairobi to Zanzibar: every other strip of 154 m is kept for the test."""
    return _buildings(
        "zanzibar",
        "kampala_nairobi",
        _kampala_and_nairobi(),
        [scene("zanzibar_15cm", part=(left, 0, left + 0.25, 1)) for left in (0, 0.5)],
        [scene("zanzibar_15cm", part=(left + 0.02, 0, left + 0.25, 1), chip_px=TEST_PX) for left in (0.25, 0.75)],
    )


def _reverse(name: str, source_name: str, source: Chips) -> Pair:
    west, east = (0.0, 0.0, 0.5, 1.0), (0.52, 0.0, 1.0, 1.0)
    places = ("kampala_15cm", "nairobi_15cm")
    return _buildings(
        name,
        source_name,
        source,
        [scene(place, part=west) for place in places],
        [scene(place, part=east, chip_px=TEST_PX) for place in places],
    )


def from_banepa() -> Pair:
    """Buildings, Banepa to Kampala and Nairobi."""
    source = joined_chips([scene("banepa_west_30cm", is_dense=True), scene("banepa2_15cm", is_dense=True)])
    return _reverse("from_banepa", "banepa", source)


def from_zanzibar() -> Pair:
    """Buildings, Zanzibar to Kampala and Nairobi."""
    source = scene("zanzibar_15cm", is_dense=True)
    return _reverse("from_zanzibar", "zanzibar", source)


def dubai() -> Pair:
    """Land cover of five classes, Dubai's tiles 1, 2, 3 and 6 to tiles 4 and 5."""

    def tiles(numbers: str, images: Sequence[int], chip_px: int) -> Chips:
        parts = []
        for tile in numbers:
            for image in images:
                stem = f"tile{tile}_{image:03d}"
                with (
                    open_bands(str(DATA / f"dubai/{stem}.jpg")) as reader,
                    RasterLabels(
                        reader, DATA / f"dubai/{stem}_classes.png", {value: value - 1 for value in range(1, 6)}
                    ) as labels,
                ):
                    parts.append(cut_chips(reader, chip_px=chip_px, labels=labels, only_labelled=True))
        return joined_chips(parts)

    source = tiles("1236", (1, 3, 5, 7), CHIP_PX)
    training, held_out = split_by_block(source, held_out=0.15, seed=0)
    pool, test = tiles("45", (1, 3, 5), CHIP_PX), tiles("45", (7, 8, 9), TEST_PX)
    return Pair("dubai", "dubai", DUBAI, RGB, None, training, held_out, pool, test)


class _Crowns:
    """Discs around the points of trees; a label source."""

    def __init__(self, reader: BandReader, path: Path) -> None:
        points = json.loads(path.read_text())["features"] if path.exists() else []
        to_grid = ~reader.grid_transform
        self._centres = [to_grid * tuple(point["geometry"]["coordinates"][:2]) for point in points]
        self._radius = _CROWN_M / abs(reader.grid_transform.a)

    def read(self, col_off: int, row_off: int, cols: int, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        y, x = np.mgrid[row_off : row_off + rows, col_off : col_off + cols] + 0.5
        labels = np.zeros((rows, cols), np.uint8)
        for col, row in self._centres:
            labels[(x - col) ** 2 + (y - row) ** 2 <= self._radius**2] = 1
        return labels


def naip() -> Pair:
    """Trees, NAIP aerial images of Chico to Palm Springs in four bands, crowns drawn around points."""

    def city(name: str, numbers: slice, chip_px: int) -> Chips:
        paths = sorted((DATA / "naip_trees").glob(f"{name}_*.tif"))[numbers]
        parts = []
        for path in paths:
            with open_bands(str(path), n_bands=4) as reader:
                labels = _Crowns(reader, path.with_suffix(".json"))
                parts.append(cut_chips(reader, chip_px=chip_px, labels=labels, block_px=TEST_PX))
        return joined_chips(parts)

    training, held_out = split_by_block(city("chico", slice(None), CHIP_PX), held_out=0.15, seed=0)
    pool, test = city("palm_springs", slice(0, None, 2), CHIP_PX), city("palm_springs", slice(1, None, 2), TEST_PX)
    bands = ("red", "green", "blue", "nir")
    return Pair("naip", "chico", TREES, bands, 0.6, training, held_out, pool, test)


PAIRS: dict[str, Callable[[], Pair]] = {
    pair.__name__: pair for pair in (banepa, zanzibar, from_zanzibar, from_banepa, dubai, naip)
}
