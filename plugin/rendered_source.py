"""What is segmented of a layer or of the whole map, and the drawing of what is no file, block by block."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Condition

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsMapLayer,
    QgsMapRendererJob,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsNetworkAccessManager,
    QgsNetworkReplyContent,
    QgsPointXY,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsReadWriteContext,
    QgsRectangle,
    QgsUnitTypes,
)
from qgis.PyQt.QtCore import QCoreApplication, QObject, QSize, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QImage
from qgis.PyQt.QtNetwork import QNetworkReply, QNetworkRequest
from qgis.PyQt.QtXml import QDomDocument, QDomNode

from ..models.errors import Cancelled
from ..models.storage import cache_folder
from ..processing.algorithms.raster_source import (
    BLOCK_PX,
    Block,
    BlockGrid,
    RasterSource,
    read_shown_source,
    read_source,
)
from ..processing.errors import RasterError
from .class_style import OWN_LAYER
from .exchange import Demand

# The pixel of the web's tiles at zoom 20, on the equator: at powers of two of it they need no resampling.
_FINEST_M = 40_075_016.685578488 / 256 / 2**20
# Blocks a side of what is open at a time: 16,384 px, sixteen screens; the view may roam half of it each way.
_AREA_BLOCKS = 32
# The corner of an area lies on such blocks, so that opening it again near by finds its embeddings.
_STEP_BLOCKS = 8
# Drawn at a time. Tiles from the net are waited for, not computed.
_MOST_JOBS = 4
_DPI = 96.0
# A server that failed is left in peace for this long.
_RETRY_S = 5.0
# A click waits for its pixels no longer.
_PATIENCE_S = 20.0
_POLL_S = 0.05
# HTTP: what servers answer where their map has no tile.
_NO_SUCH_TILE = (204, 404, 410)
_ONLINE = ("wms", "wcs", "WFS", "arcgismapserver", "vectortile", "xyzvectortiles")
# Layers whose content no file tells: never shared between sessions.
_SESSION = secrets.token_hex(8)


class Look(Enum):
    """In which way a layer is looked at; the value is what the user reads."""

    FILE = "the file's bands"
    BANDS = "the bands that the style shows"
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
    scale = snapped_scale(units_per_px, source.crs, finest=_native_units_per_px(source))
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
    return RasterSource(source.name, source.name, wkt, (1, 2, 3), None, blocks=grid)


def note_reload(source: LayerSource, *, folder: Path) -> None:
    """Let online layers be drawn anew, now and in later sessions: what `folder` holds of them is as old as the reload.

    Of other layers the source itself tells whether it has changed. Raises `RasterError` where that cannot be noted.
    """
    for layer in source.layers:
        if _is_online(layer):
            note = _reload_note(layer, folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                note.write_text(secrets.token_hex(8), encoding="ascii")
            except OSError as error:
                raise RasterError(f"{note} cannot be written ({error}); choose another cache folder.") from error


def rendered_folder(embeddings_folder: Path | None) -> Path:
    """Where drawn blocks lie: beside the embeddings, wherever the user has put those."""
    return (cache_folder() if embeddings_folder is None else embeddings_folder.parent) / "rendered"


def snapped_scale(units_per_px: float, crs: QgsCoordinateReferenceSystem, *, finest: float = 0.0) -> float:
    """Return the nearest power of two times 0.149 m in map units of a CRS, at least `finest` (map units)."""
    metres = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), QgsUnitTypes.DistanceMeters)
    step = _FINEST_M / metres
    wanted = max(units_per_px, finest, step / 8)
    return float(step * 2.0 ** round(math.log2(wanted / step)))


class BlockDemand(Demand):
    """Orders of the worker and what became of them; between the threads.

    `listener` is called, in the worker's thread, when there is something to draw.
    """

    def __init__(self, grid: BlockGrid, listener: Callable[[], None]) -> None:
        self._grid = grid
        self._listener: Callable[[], None] | None = listener
        self._changed = Condition()
        self._urgent: deque[Block] = deque()
        self._orders: deque[Block] = deque()
        self._drawing: set[Block] = set()
        self._failed: dict[Block, tuple[str, float]] = {}

    def order(self, blocks: Sequence[Block]) -> None:
        """Have blocks drawn some time, in this order."""
        self._queue(blocks, self._orders)

    def forget(self) -> None:
        """Take the orders back that nobody waits for."""
        with self._changed:
            self._orders.clear()

    def wait(self, blocks: Sequence[Block], is_cancelled: Callable[[], bool]) -> None:
        """Have blocks drawn now. Raises `RasterError` where that fails, `Cancelled` where it is wanted no more."""
        deadline = time.monotonic() + _PATIENCE_S
        self._queue(blocks, self._urgent)
        while True:
            with self._changed:
                missing = [block for block in blocks if not self._grid.path(block).exists()]
                failed = [self._failed[block][0] for block in missing if block in self._failed]
                if self._listener is None or is_cancelled():
                    raise Cancelled
                if failed:
                    raise RasterError(failed[0])
                if not missing:
                    return
                if time.monotonic() > deadline:
                    raise RasterError("The picture of the map takes too long to come; check the connection.")
                self._changed.wait(_POLL_S)

    def next_block(self) -> Block | None:
        """Return a block to draw, the one that is waited for first; None where nothing is to be drawn."""
        with self._changed:
            while self._urgent or self._orders:
                block = (self._urgent or self._orders).popleft()
                if block not in self._drawing and not self._grid.path(block).exists():
                    self._drawing.add(block)
                    return block
            return None

    def settle(self, block: Block, failure: str = "") -> None:
        """Note that a block lies in its place, or in a sentence why it does not."""
        with self._changed:
            self._drawing.discard(block)
            if failure:
                self._failed[block] = (failure, time.monotonic())
            else:
                self._failed.pop(block, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._listener = None
            self._urgent.clear()
            self._orders.clear()
            self._changed.notify_all()

    def _queue(self, blocks: Sequence[Block], queue: deque[Block]) -> None:
        with self._changed:
            listener = self._listener
            for block in blocks:
                failed_at = self._failed.get(block, ("", -math.inf))[1]
                if time.monotonic() - failed_at > _RETRY_S and block not in queue:
                    self._failed.pop(block, None)
                    queue.append(block)
        if listener is not None:
            listener()


class BlockRenderer(QObject):
    """Draws the blocks that are ordered, with QGIS's own renderer in its threads; lives in the GUI thread.

    `rendered`: at least one more block lies in its place; `failed` carries a sentence why one does not.
    """

    rendered = pyqtSignal()
    failed = pyqtSignal(str)
    _ordered = pyqtSignal()
    _written = pyqtSignal(object, str)

    def __init__(self, grid: BlockGrid, source: LayerSource, *, settings: QgsMapSettings, parent: QObject) -> None:
        super().__init__(parent)
        self._grid, self._name = grid, source.name
        self._settings = _block_settings(settings, source)
        self._jobs: dict[QgsMapRendererJob, tuple[Block, int]] = {}
        self._replies = _FailedReplies()
        # Compressing a block takes longer than a mouse may stick.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="segadapt-blocks")
        # Queued: the worker calls it, and drawing may only be started here.
        self._ordered.connect(self._start_jobs, Qt.ConnectionType.QueuedConnection)
        self._written.connect(self._on_written, Qt.ConnectionType.QueuedConnection)
        self.demand = BlockDemand(grid, self._ordered.emit)

    def dispose(self) -> None:
        """Draw no more."""
        self.demand.close()
        self._replies.dispose()
        self._writer.shutdown(wait=True, cancel_futures=True)
        for job in list(self._jobs):
            job.finished.disconnect()
            # A job must outlive its threads, and a tile that is fetched may take its time to be cancelled.
            job.setParent(QCoreApplication.instance())
            job.finished.connect(job.deleteLater)
            job.cancelWithoutBlocking()
        self._jobs.clear()

    def _start_jobs(self) -> None:
        while len(self._jobs) < _MOST_JOBS and (block := self.demand.next_block()) is not None:
            settings = QgsMapSettings(self._settings)
            settings.setExtent(QgsRectangle(*self._grid.block_bounds_map(block)))
            job = QgsMapRendererParallelJob(settings)
            job.finished.connect(lambda job=job: self._on_finished(job))
            self._jobs[job] = (block, self._replies.count)
            job.start()

    def _on_finished(self, job: QgsMapRendererParallelJob) -> None:
        block, n_failed_before = self._jobs.pop(job, (None, 0))
        if block is None:
            return
        errors = [error.message for error in job.errors()]
        image = job.renderedImage().convertToFormat(QImage.Format.Format_RGBA8888)
        job.deleteLater()
        # A tile that does not come is no error to the renderer, it leaves a hole.
        if not errors and self._replies.count > n_failed_before and _has_holes(image):
            errors = [self._replies.latest]
        if errors:
            what = errors[0].strip().partition("\n")[0].rstrip(".")
            self._on_written(
                block, f"'{self._name}' cannot be drawn here ({what}); check the connection, or click elsewhere."
            )
        else:
            self._writer.submit(self._write, image, block)
        self._start_jobs()

    def _write(self, image: QImage, block: Block) -> None:
        """Write a block and tell the GUI thread; runs in the writer's thread."""
        failure = ""
        try:
            write_block(image, self._grid, block)
        except OSError as error:
            failure = f"A part of '{self._name}' cannot be kept ({error}); choose another cache folder in Settings."
        self._written.emit(block, failure)

    def _on_written(self, block: Block, failure: str) -> None:
        self.demand.settle(block, failure)
        if failure:
            self.failed.emit(failure)
        else:
            self.rendered.emit()


class _FailedReplies(QObject):
    """Counts what servers failed to send to any layer, from now on; a tile that does not exist is no failure."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.latest = ""
        self._finished = QgsNetworkAccessManager.instance().finished[QgsNetworkReplyContent]
        self._finished.connect(self._on_reply)

    def dispose(self) -> None:
        """Stop counting."""
        if self._finished is not None:
            self._finished.disconnect(self._on_reply)
            self._finished = None

    def _on_reply(self, reply: QgsNetworkReplyContent) -> None:
        status = reply.attribute(QNetworkRequest.Attribute.HttpStatusCodeAttribute)
        if reply.error() != QNetworkReply.NetworkError.NoError and status not in _NO_SUCH_TILE:
            self.count += 1
            # With its address an error fills the message bar.
            self.latest = f"the server answers {status}" if status else reply.errorString()


def _has_holes(image: QImage) -> bool:
    pointer = image.constBits()
    pointer.setsize(image.sizeInBytes())
    return 0 in bytes(pointer)[3::4]


def write_block(image: QImage, grid: BlockGrid, block: Block) -> None:
    """Write a drawn block, (512, 512) px of `Format_RGBA8888`, as a GeoTIFF of four bands; whole or not at all.

    Raises `OSError` where it cannot be written.
    """
    from osgeo import gdal

    path = grid.path(block)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part.tif")
    pointer = image.constBits()
    pointer.setsize(image.sizeInBytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    options = ["COMPRESS=DEFLATE", "ZLEVEL=1", "TILED=YES", f"BLOCKXSIZE={BLOCK_PX}", f"BLOCKYSIZE={BLOCK_PX}"]
    try:
        dataset = gdal.GetDriverByName("GTiff").Create(
            str(part), BLOCK_PX, BLOCK_PX, 4, gdal.GDT_Byte, [*options, "INTERLEAVE=PIXEL", "ALPHA=UNSPECIFIED"]
        )
        if dataset is None:
            raise OSError(gdal.GetLastErrorMsg() or f"{part} is not written")
        left, _, _, top = grid.block_bounds_map(block)
        dataset.SetGeoTransform((left, grid.units_per_px, 0.0, top, 0.0, -grid.units_per_px))
        failed = dataset.WriteRaster(
            0, 0, BLOCK_PX, BLOCK_PX, bytes(pointer), buf_pixel_space=4, buf_line_space=image.bytesPerLine(),
            buf_band_space=1,
        )  # fmt: skip
        dataset.FlushCache()
        del dataset
        if failed:
            raise OSError(gdal.GetLastErrorMsg() or f"{part} is not written")
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _block_settings(settings: QgsMapSettings, source: LayerSource) -> QgsMapSettings:
    """Settings for one block: as the canvas draws, but north up, without labels, and nothing behind the layers."""
    block = QgsMapSettings(settings)
    block.setLayers(list(source.layers))
    block.setDestinationCrs(source.crs)
    block.setRotation(0.0)
    block.setOutputSize(QSize(BLOCK_PX, BLOCK_PX))
    block.setOutputDpi(_DPI)
    block.setDevicePixelRatio(1.0)
    block.setExtentBuffer(0.0)
    block.setBackgroundColor(QColor(0, 0, 0, 0))
    # Labels and selections are no part of what is seen from above; a tile is drawn as its neighbours are.
    flags = Qgis.MapSettingsFlag
    for flag in (flags.DrawLabeling, flags.DrawSelection, flags.DrawEditingInfo, flags.RenderPartialOutput):
        block.setFlag(flag, False)
    block.setFlag(flags.Antialiasing, True)
    block.setFlag(flags.RenderMapTile, True)
    return block


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
    return layer.providerType() if hasattr(layer, "providerType") else "", layer.source()


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
