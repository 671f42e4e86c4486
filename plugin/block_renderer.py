"""The drawing of what is no file, block by block: orders of the worker, QGIS's renderer, files."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Condition

from qgis.core import (
    Qgis,
    QgsMapRendererJob,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsNetworkAccessManager,
    QgsNetworkReplyContent,
    QgsRectangle,
)
from qgis.PyQt.QtCore import QCoreApplication, QObject, QSize, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor, QImage
from qgis.PyQt.QtNetwork import QNetworkReply, QNetworkRequest

from ..models.errors import Cancelled
from ..processing.algorithms.raster_source import BLOCK_PX, Block, BlockGrid
from ..processing.errors import RasterError
from .exchange import Demand
from .rendered_source import LayerSource

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
# The same of a folder of tiles, whose missing files have no status.
_NO_FAILURE = (QNetworkReply.NetworkError.NoError, QNetworkReply.NetworkError.ContentNotFoundError)


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
        if reply.error() not in _NO_FAILURE and status not in _NO_SUCH_TILE:
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
