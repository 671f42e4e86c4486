"""Finished blocks in a hidden folder, and the cloud-optimised GeoTIFFs that are put together of them.

A block is a file of its own that appears whole or not at all, so that work goes on after a kill where it stopped.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as Xml  # nosec B405 - writes only, never parses

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError  # no public name leads to it
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from ..errors import RasterError
from .access import gdal_access
from .blend import Block, Bounds

NODATA = 255
"""Value of pixels without an answer, in every layer."""

REMEDY = "free space there, or close the program that holds the file, and run again"
"""What helps where a block or a result cannot be written."""

_TILE_PX = 512

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A raster of bytes made of some bands of the blocks.

    `bands`: those of the blocks, 1-based, `names` one per band. `colours` (red, green, blue, 0 to 255) become the
    colour table of classes; without them values are amounts, whose overviews are means.
    """

    path: Path
    bands: tuple[int, ...]
    names: tuple[str, ...]
    colours: Mapping[int, Colour] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def encode_tile(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A block (bands, rows, cols) as GeoTIFF."""
    bands, rows, cols = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                count=bands,
                height=rows,
                width=cols,
                dtype="uint8",
                interleave="band",
                photometric="minisblack",
                tiled=True,
                blockxsize=_TILE_PX,
                blockysize=_TILE_PX,
                compress="DEFLATE",
                zlevel=1,
                bigtiff="IF_SAFER",
            ) as dataset:
                dataset.write(pixels)
            return bytes(memory.getbuffer())


class TileStore:
    """Blocks by name in `folder`, which is made. Raises `RasterError` where nothing can be written.

    `remedy` ends the sentence of what cannot be written later on: it depends on what becomes of the blocks.
    """

    def __init__(self, folder: Path, *, remedy: str = REMEDY) -> None:
        self.folder, self._remedy = folder, remedy
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RasterError(
                f"{folder.parent} cannot be written ({error.strerror}); choose a folder that you may write to, with "
                "space left."
            ) from error

    def holds(self, block: Block) -> bool:
        """Whether a block is finished."""
        return self._file(block).exists()

    def is_blank(self, block: Block) -> bool:
        """Whether a finished block has no data."""
        return not self._file(block).stat().st_size

    def put(self, block: Block, tile: bytes) -> None:
        """Keep a block: what `encode_tile` made of it, or nothing where it has no data."""
        file = self._file(block)
        part = file.with_suffix(".part")
        try:
            with part.open("wb") as stream:
                stream.write(tile)
                stream.flush()
                # On the disk before it has its name: after a crash of the machine a block is whole or not there.
                os.fsync(stream.fileno())
            part.replace(file)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise RasterError(f"{file} cannot be written ({error.strerror or error}); {self._remedy}.") from error

    def write(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        *,
        bounds: Bounds,
        transform: Affine,
        crs: CRS | None,
        use: Callable[[Path], None] | None = None,
    ) -> None:
        """Put all layers in place, or none: cloud-optimised GeoTIFFs of `bounds` (pixels of the raster).

        `transform` is that of the whole raster. Older files at the layers' paths stay until all layers are whole, and
        `use` has done what it wants with the first.
        """
        used = [block for block in blocks if not self.is_blank(block)]
        placed = transform @ Affine.translation(bounds[0], bounds[1])
        parts = [layer.path.with_name(f".{layer.path.name}{self.folder.name[-20:]}.part.tif") for layer in layers]
        try:
            for number, (layer, part) in enumerate(zip(layers, parts, strict=True)):
                mosaic = self.folder / f"layer{number}.vrt"
                mosaic.write_text(_mosaic(layer, used, bounds=bounds, transform=placed, crs=crs), encoding="utf-8")
                with gdal_access(str(layer.path), verb="written", remedy=self._remedy):
                    _copy(mosaic, part, is_classes=bool(layer.colours))
            if use is not None:
                use(parts[0])
            for layer, part in zip(layers, parts, strict=True):
                part.replace(layer.path)
                # What QGIS remembered of the file that was there: its statistics and histogram.
                layer.path.with_name(f"{layer.path.name}.aux.xml").unlink(missing_ok=True)
        except OSError as error:
            raise RasterError(
                f"{error.filename or layers[0].path} cannot be written ({error}); {self._remedy}."
            ) from error
        finally:
            for part in parts:
                # GDAL has files of its own beside it.
                for file in part.parent.iterdir():
                    if file.name.startswith(part.name):
                        file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.name}.tif"


def _copy(source: Path, target: Path, *, is_classes: bool) -> None:
    options = {
        "COMPRESS": "DEFLATE",  # ZSTD is not in every GDAL that may read this
        "PREDICTOR": "NO",
        "BLOCKSIZE": str(_TILE_PX),
        "BIGTIFF": "IF_SAFER",
        "OVERVIEW_RESAMPLING": "NEAREST" if is_classes else "AVERAGE",
        "NUM_THREADS": "ALL_CPUS",
    }
    with warnings.catch_warnings():
        # A plain picture has no georeference to lose.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            rasterio.shutil.copy(source, target, driver="COG", **options)
        except CPLE_BaseError as error:  # rasterio lets GDAL's own errors out here
            raise OSError(str(error)) from error
        _check_complete(target)


def _check_complete(path: Path) -> None:
    """Raise where a block lies beyond the end of a file: a full disk that GDAL meets while closing goes unreported."""
    n_bytes = os.stat(path).st_size
    with rasterio.open(path) as dataset:
        for (row, col), _ in dataset.block_windows(1):
            for band in dataset.indexes:
                place = [
                    dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", dm="TIFF", bidx=band)
                    for what in ("OFFSET", "SIZE")
                ]
                if None not in place and sum(int(value) for value in place) > n_bytes:
                    raise OSError("the file ends too early")


def _mosaic(layer: Layer, blocks: Iterable[Block], *, bounds: Bounds, transform: Affine, crs: CRS | None) -> str:
    """A virtual raster over the files of blocks (https://gdal.org/en/stable/drivers/raster/vrt.html)."""
    left, top, right, bottom = bounds
    root = Xml.Element("VRTDataset", rasterXSize=str(right - left), rasterYSize=str(bottom - top))
    if crs is not None:
        Xml.SubElement(root, "SRS").text = crs.to_wkt()
    Xml.SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in transform.to_gdal())
    metadata = Xml.SubElement(root, "Metadata")
    for key, value in layer.tags.items():
        Xml.SubElement(metadata, "MDI", key=key).text = value
    bands = []
    for number, name in enumerate(layer.names, 1):
        band = Xml.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        Xml.SubElement(band, "Description").text = name
        Xml.SubElement(band, "NoDataValue").text = str(NODATA)
        Xml.SubElement(band, "ColorInterp").text = (
            "Palette" if layer.colours else "Gray" if number == 1 else "Undefined"
        )
        if layer.colours:
            table = Xml.SubElement(band, "ColorTable")
            for entry in range(NODATA + 1):
                red, green, blue = layer.colours.get(entry, (0, 0, 0))
                alpha = 255 if entry in layer.colours else 0
                Xml.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=str(alpha))
        bands.append(band)
    for block in blocks:
        rows, cols = block.shape
        for band, source_band in zip(bands, layer.bands, strict=True):
            source = Xml.SubElement(band, "SimpleSource")
            Xml.SubElement(source, "SourceFilename", relativeToVRT="1").text = f"{block.name}.tif"
            Xml.SubElement(source, "SourceBand").text = str(source_band)
            # Without it GDAL opens every file to ask.
            Xml.SubElement(
                source,
                "SourceProperties",
                RasterXSize=str(cols),
                RasterYSize=str(rows),
                DataType="Byte",
                BlockXSize=str(_TILE_PX),
                BlockYSize=str(_TILE_PX),
            )
            Xml.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=str(cols), ySize=str(rows))
            Xml.SubElement(
                source,
                "DstRect",
                xOff=str(block.pixels[0] - left),
                yOff=str(block.pixels[1] - top),
                xSize=str(cols),
                ySize=str(rows),
            )
    return Xml.tostring(root, encoding="unicode")
