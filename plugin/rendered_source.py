"""What is segmented of a layer or of the whole map, and by which name a picture of it is found again."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsMapLayer,
    QgsMapSettings,
    QgsPointXY,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsReadWriteContext,
    QgsUnitTypes,
)
from qgis.PyQt.QtXml import QDomDocument, QDomNode

from ..models.storage import cache_folder
from ..processing.algorithms.raster_source import (
    BLOCK_PX,
    BlockGrid,
    RasterSource,
    read_shown_source,
    read_source,
)
from ..processing.errors import RasterError
from .class_style import OWN_LAYER

# The pixel of the web's tiles at zoom 20, on the equator: at powers of two of it they need no resampling.
_FINEST_M = 40_075_016.685578488 / 256 / 2**20
# Blocks a side of what is open at a time: 16,384 px, sixteen screens; the view may roam half of it each way.
_AREA_BLOCKS = 32
# The corner of an area lies on such blocks, so that opening it again near by finds its embeddings.
_STEP_BLOCKS = 8
_ONLINE = ("wms", "wcs", "WFS", "arcgismapserver", "vectortile", "xyzvectortiles")
# Layers whose content no file tells: never shared between sessions.
_SESSION = secrets.token_hex(8)


class Look(Enum):
    """In which way a layer is looked at; the value is what the user reads."""

    FILE = "the file's bands"
    BANDS = "the bands of the style"
    RENDERED = "as rendered"
    MAP = "the map as shown"


@dataclass(frozen=True, eq=False)
class LayerSource:
    """What is segmented: one layer and a look at it, or the layers of a map, the topmost first."""

    layers: tuple[QgsMapLayer, ...]
    look: Look
    crs: QgsCoordinateReferenceSystem

    @property
    def layer(self) -> QgsMapLayer | None:
        """The one layer; None for the map."""
        return None if self.look is Look.MAP else self.layers[0]

    @property
    def name(self) -> str:
        """What the user calls it."""
        return "The map as shown" if self.look is Look.MAP else self.layers[0].name()

    @property
    def is_drawn(self) -> bool:
        """True for a picture that is drawn on demand, False for bands of a file."""
        return self.look in (Look.RENDERED, Look.MAP)


def offered_looks(layer: QgsMapLayer) -> tuple[Look, ...]:
    """Ways to look at a layer, the usual one first."""
    if isinstance(layer, QgsRasterLayer) and layer.providerType() == "gdal":
        return Look.FILE, Look.BANDS, Look.RENDERED
    return (Look.RENDERED,)


def layer_source(layer: QgsMapLayer, look: Look | None = None) -> LayerSource:
    """Return a look at a layer, the usual one where none is named or where the layer does not offer it."""
    offered = offered_looks(layer)
    return LayerSource((layer,), look if look in offered else offered[0], layer.crs())


def map_source(settings: QgsMapSettings) -> LayerSource:
    """Return the map as it is shown at the moment, without the layers that our own objects go into.

    Raises `RasterError` where it shows nothing.
    """
    layers = tuple(layer for layer in settings.layers() if not layer.customProperty(OWN_LAYER))
    if not layers:
        raise RasterError("The map shows no layer that could be segmented; switch a layer on.")
    return LayerSource(layers, Look.MAP, settings.destinationCrs())


def read_layer_source(source: LayerSource, *, centre: QgsPointXY, units_per_px: float, folder: Path) -> RasterSource:
    """Describe for the worker what is segmented; call it on the main thread.

    A picture is laid around `centre` (in the source's CRS), at about `units_per_px` map units; its blocks go
    into `folder`. Raises `RasterError` where the layer does not suit.
    """
    layer = source.layers[0]
    if source.look is Look.FILE and isinstance(layer, QgsRasterLayer):
        # No bands named: the same choice, and so the same cached embeddings, as in the algorithms.
        return read_source(layer, [], use_layer_stretch=False)
    if source.look is Look.BANDS and isinstance(layer, QgsRasterLayer):
        return read_shown_source(layer)
    if not source.crs.isValid():
        raise RasterError(f"'{source.name}' has no CRS; assign one with Layer > Set CRS of Layer(s).")
    unusable = [one.name() for one in source.layers if not one.isValid()]
    if unusable:
        raise RasterError(f"'{unusable[0]}' cannot be drawn; repair its data source.")
    scale = drawn_units_per_px(source, units_per_px)
    key = _look_key(source, scale, folder=folder)
    side = BLOCK_PX * scale
    if not (math.isfinite(centre.x()) and math.isfinite(centre.y())):
        raise RasterError(f"The view has no place in the CRS of '{source.name}'; zoom to the layer.")
    grid = BlockGrid(
        folder=folder / key[:32],
        key=key,
        units_per_px=scale,
        first_col=_STEP_BLOCKS * round((centre.x() / side - _AREA_BLOCKS / 2) / _STEP_BLOCKS),
        first_row=_STEP_BLOCKS * round((-centre.y() / side - _AREA_BLOCKS / 2) / _STEP_BLOCKS),
        n_cols=_AREA_BLOCKS,
        n_rows=_AREA_BLOCKS,
    )
    wkt = source.crs.toWkt(QgsCoordinateReferenceSystem.WKT_PREFERRED)
    sources = "\n".join(" ".join(_address(layer)) for layer in source.layers)
    return RasterSource(source.name, sources, wkt, (1, 2, 3), None, blocks=grid)


def note_reload(source: LayerSource, *, folder: Path) -> None:
    """Let online layers be drawn anew when they are opened next, also in later sessions.

    What `folder` holds of them is older than the reload. Of other layers the source itself tells whether it has
    changed. Raises `RasterError` where that cannot be noted.
    """
    for layer in filter(_is_online, source.layers):
        note = _reload_note(layer, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(secrets.token_hex(8), encoding="ascii")
        except OSError as error:
            raise RasterError(f"{note} cannot be written ({error}); choose another cache folder.") from error


def rendered_folder(embeddings_folder: Path | None) -> Path:
    """Where drawn blocks lie: beside the embeddings, wherever the user has put those."""
    return (cache_folder() if embeddings_folder is None else embeddings_folder.parent) / "rendered"


def drawn_units_per_px(source: LayerSource, units_per_px: float) -> float:
    """Pixel, in map units, of the picture that is drawn for a view of `units_per_px`."""
    return snapped_scale(units_per_px, source.crs, finest=_native_units_per_px(source))


def snapped_scale(units_per_px: float, crs: QgsCoordinateReferenceSystem, *, finest: float = 0.0) -> float:
    """Return the nearest power of two times 0.149 m in map units of a CRS, at least `finest` (map units)."""
    metres = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), QgsUnitTypes.DistanceMeters)
    step = _FINEST_M / metres
    wanted = max(units_per_px, finest, step / 8)
    return float(step * 2.0 ** round(math.log2(wanted / step)))


def _native_units_per_px(source: LayerSource) -> float:
    """Pixel of a raster in map units, 0 where it has none of its own (tiles, vectors, a map)."""
    layer = source.layer
    if isinstance(layer, QgsRasterLayer) and layer.dataProvider().xSize() > 0:
        return float(layer.rasterUnitsPerPixelX())
    return 0.0


def _look_key(source: LayerSource, units_per_px: float, *, folder: Path) -> str:
    """Digest of all that decides what the picture looks like."""
    digest = hashlib.sha256()
    for layer in source.layers:
        for part in (*_address(layer), _content(layer, folder)):
            digest.update(f"{part}\n".encode())
        digest.update(_style(layer).encode())
    wkt = source.crs.toWkt(QgsCoordinateReferenceSystem.WKT_PREFERRED)
    digest.update(f"{wkt}\n{units_per_px!r}\n{BLOCK_PX}".encode())
    return digest.hexdigest()


def _style(layer: QgsMapLayer) -> str:
    document = QDomDocument()
    element = document.createElement("style")
    document.appendChild(element)
    categories = QgsMapLayer.StyleCategory.Symbology | QgsMapLayer.StyleCategory.Rendering
    layer.writeSymbology(element, document, "", QgsReadWriteContext(), categories)
    return " ".join(_parts(element))


def _parts(node: QDomNode) -> Iterator[str]:
    """All that an XML node holds, the attributes by name: Qt's own order differs from session to session."""
    attributes = node.attributes()
    values = [attributes.item(i) for i in range(attributes.count())]
    yield repr((node.nodeName(), node.nodeValue(), sorted((one.nodeName(), one.nodeValue()) for one in values)))
    child = node.firstChild()
    while not child.isNull():
        yield from _parts(child)
        child = child.nextSibling()
    yield "/"


def _address(layer: QgsMapLayer) -> tuple[str, str]:
    # Annotations and groups have no data source: the layer is all there is.
    return layer.providerType() if hasattr(layer, "providerType") else "", layer.source() or layer.id()


def _content(layer: QgsMapLayer, folder: Path) -> str:
    """What tells one content of a layer's source from another, as far as it is known."""
    provider = layer.dataProvider()
    if provider is None:  # vector tiles
        return ""
    parts = QgsProviderRegistry.instance().decodeUri(provider.name(), layer.source())
    path = str(parts.get("path") or "")
    if path:
        with suppress(OSError):
            state = Path(path).stat()
            return f"{state.st_size} {state.st_mtime_ns}"
    if not _is_online(layer):
        return f"{layer.id()} {_SESSION}"
    note = _reload_note(layer, folder)
    return note.read_text(encoding="ascii") if note.exists() else ""


def _is_online(layer: QgsMapLayer) -> bool:
    provider = layer.dataProvider()
    return provider is not None and provider.name() in _ONLINE


def _reload_note(layer: QgsMapLayer, folder: Path) -> Path:
    """The file that is another one after each reload of an online layer."""
    return folder / f"{hashlib.sha256(repr(_address(layer)).encode()).hexdigest()[:32]}.reload"
