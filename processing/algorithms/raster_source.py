"""What the engine needs of a raster layer, taken from it on the main thread and then free of QGIS objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qgis.core import (
    QgsContrastEnhancement,
    QgsCoordinateReferenceSystem,
    QgsMultiBandColorRenderer,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsSingleBandGrayRenderer,
)

from ..errors import RasterError

Block = tuple[int, int]
"""Column and row of a block in the grid that has its corner at the origin of the CRS; rows go down."""

BLOCK_PX = 512


@dataclass(frozen=True)
class BlockGrid:
    """A part of a picture that is drawn block by block, on demand, at one scale; one file per block.

    `folder` holds the blocks of everything that looks the same, whichever part of it was wanted; `key` names
    that look. The part has `n_cols` x `n_rows` blocks from (`first_col`, `first_row`) on. A pixel is
    `units_per_px` map units wide and high.
    """

    folder: Path
    key: str
    units_per_px: float
    first_col: int
    first_row: int
    n_cols: int
    n_rows: int

    @property
    def bounds_map(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of the part in map units."""
        side = BLOCK_PX * self.units_per_px
        return (
            self.first_col * side,
            -(self.first_row + self.n_rows) * side,
            (self.first_col + self.n_cols) * side,
            -self.first_row * side,
        )

    def block_bounds_map(self, block: Block) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of a block in map units."""
        side = BLOCK_PX * self.units_per_px
        return block[0] * side, -(block[1] + 1) * side, (block[0] + 1) * side, -block[1] * side

    def path(self, block: Block) -> Path:
        """Where a block lies once it is drawn."""
        return self.folder / f"{block[0]}_{block[1]}.tif"

    def blocks(self, left_px: float, top_px: float, right_px: float, bottom_px: float) -> Iterator[Block]:
        """Yield the blocks that meet a rectangle in pixels of the part, row by row."""
        for row in range(max(0, int(top_px // BLOCK_PX)), min(self.n_rows, math.ceil(bottom_px / BLOCK_PX))):
            for col in range(max(0, int(left_px // BLOCK_PX)), min(self.n_cols, math.ceil(right_px / BLOCK_PX))):
                yield self.first_col + col, self.first_row + row


@dataclass(frozen=True)
class RasterSource:
    """A raster file as the user sees it: its CRS (WKT) even if only set in QGIS, bands and stretch.

    `bands` are 1-based; None leaves the choice to the reader. `ranges` is the (low, high) that the layer's
    style maps to black and white, one per band, or None where the stretch is to be estimated. With `blocks` it
    is no file but a picture that is drawn on demand, and `path` holds the data sources of what is drawn.
    """

    name: str
    path: str
    crs_wkt: str
    bands: tuple[int, ...] | None
    ranges: tuple[tuple[float, float], ...] | None
    blocks: BlockGrid | None = None


def read_source(layer: QgsRasterLayer, bands: list[int], *, use_layer_stretch: bool) -> RasterSource:
    """Describe a layer for the engine; call it on the main thread.

    Raises `RasterError` for a layer that is no file, that has no CRS, or whose style says nothing of a
    stretch that was asked for.
    """
    path = file_path(layer)
    if not layer.crs().isValid():
        raise RasterError(f"'{layer.name()}' has no CRS; assign one with Layer > Set CRS of Layer(s).")
    wrong = [band for band in bands if not 1 <= band <= layer.bandCount()]
    if wrong:
        raise RasterError(f"'{layer.name()}' has no band {wrong[0]}; choose from 1 to {layer.bandCount()}.")
    if len(bands) not in (0, 1, 3):
        raise RasterError(f"{len(bands)} bands are chosen; choose three (red, green, blue), one, or none.")
    chosen = tuple(bands) or None
    ranges = None
    if use_layer_stretch:
        shown = _shown_ranges(layer)
        chosen = chosen or tuple(shown)
        missing = [band for band in chosen if band not in shown]
        if missing:
            raise RasterError(
                f"The style of '{layer.name()}' does not stretch band {missing[0]}; show that band first."
            )
        ranges = tuple(shown[band] for band in chosen)
    return RasterSource(
        layer.name(), path, layer.crs().toWkt(QgsCoordinateReferenceSystem.WKT_PREFERRED), chosen, ranges
    )


def read_shown_source(layer: QgsRasterLayer) -> RasterSource:
    """Describe the bands that the layer's style shows, stretched as it stretches them, where it says so.

    Raises `RasterError` for a layer that is no file, that has no CRS, or whose style shows no bands (one with
    a palette or a colour ramp has colours of its own: draw it as rendered).
    """
    renderer = layer.renderer()
    bands: list[int] = []
    if isinstance(renderer, QgsMultiBandColorRenderer):
        bands = [renderer.redBand(), renderer.greenBand(), renderer.blueBand()]
    elif isinstance(renderer, QgsSingleBandGrayRenderer):
        bands = [renderer.grayBand()]
    if not bands or min(bands) < 1:
        raise RasterError(
            f"The style of '{layer.name()}' does not show three bands or one in gray; choose 'as rendered' for it."
        )
    try:
        shown = _shown_ranges(layer)
    except RasterError:
        shown = {}
    return read_source(layer, bands, use_layer_stretch=all(band in shown for band in bands))


def file_path(layer: QgsRasterLayer) -> str:
    """Return what GDAL opens behind a layer: a file, one in an archive, or a subdataset.

    Raises `RasterError` for a layer that is no file.
    """
    if layer.providerType() != "gdal":
        raise RasterError(
            f"'{layer.name()}' comes from the provider '{layer.providerType()}', not from a file; export it "
            "with Export > Save As and use that file."
        )
    parts = QgsProviderRegistry.instance().decodeUri("gdal", layer.source())
    # A subdataset (NetCDF, GeoPackage) is only found by its whole name.
    if parts.get("layerName") or not parts.get("path"):
        return str(layer.source())
    # QGIS splits a path into an archive: /vsizip/, the archive, the name within.
    return "".join(str(parts[name]) for name in ("vsiPrefix", "path", "vsiSuffix") if parts.get(name))


def _shown_ranges(layer: QgsRasterLayer) -> dict[int, tuple[float, float]]:
    """Map band to (low, high) in display order, from the layer's renderer."""
    renderer = layer.renderer()
    shown: list[tuple[int, QgsContrastEnhancement | None]] = []
    if isinstance(renderer, QgsMultiBandColorRenderer):
        shown = [
            (renderer.redBand(), renderer.redContrastEnhancement()),
            (renderer.greenBand(), renderer.greenContrastEnhancement()),
            (renderer.blueBand(), renderer.blueContrastEnhancement()),
        ]
    elif isinstance(renderer, QgsSingleBandGrayRenderer):
        shown = [(renderer.grayBand(), renderer.contrastEnhancement())]
    ranges = {
        band: (stretch.minimumValue(), stretch.maximumValue())
        for band, stretch in shown
        if band > 0 and stretch is not None and stretch.maximumValue() > stretch.minimumValue()
    }
    if not ranges:
        raise RasterError(
            f"The style of '{layer.name()}' has no minimum and maximum; choose a singleband gray or "
            "multiband colour style, or the automatic stretch."
        )
    return ranges
