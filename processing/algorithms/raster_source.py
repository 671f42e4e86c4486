"""What the engine needs of a raster layer, taken from it on the main thread and then free of QGIS objects."""

from __future__ import annotations

from dataclasses import dataclass

from qgis.core import (
    QgsContrastEnhancement,
    QgsCoordinateReferenceSystem,
    QgsMultiBandColorRenderer,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsSingleBandGrayRenderer,
)

from ..errors import RasterError


@dataclass(frozen=True)
class RasterSource:
    """A raster file as the user sees it: its CRS (WKT) even if only set in QGIS, bands and stretch.

    `bands` are 1-based; None leaves the choice to the reader. `ranges` is the (low, high) that the layer's
    style maps to black and white, one per band, or None where the stretch is to be estimated.
    """

    name: str
    path: str
    crs_wkt: str
    bands: tuple[int, ...] | None
    ranges: tuple[tuple[float, float], ...] | None


def read_source(layer: QgsRasterLayer, bands: list[int], *, use_layer_stretch: bool) -> RasterSource:
    """Describe a layer for the engine; call it on the main thread.

    Raises `RasterError` for a layer that is no file, that has no CRS, or whose style says nothing of a
    stretch that was asked for.
    """
    path = _file_path(layer)
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


def _file_path(layer: QgsRasterLayer) -> str:
    if layer.providerType() != "gdal":
        raise RasterError(
            f"'{layer.name()}' comes from the provider '{layer.providerType()}', not from a file; export it "
            "with Export > Save As and use that file."
        )
    parts = QgsProviderRegistry.instance().decodeUri("gdal", layer.source())
    # A subdataset (NetCDF, GeoPackage) is only found by its whole name.
    return str(layer.source() if parts.get("layerName") else parts.get("path") or layer.source())


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
