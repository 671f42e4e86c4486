"""One raster, one engine and the cache between them: embeddings of windows, computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from ...models.embeddings import EmbeddingCache, EmbeddingKey
from ...models.engine import InferenceEngine
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..raster.reader import Chip, RasterReader
from ..raster.windows import SquareWindow

# A window's nodata is asked for again at every click and every batch; four windows cover a place and its
# neighbours.
_VALID_WINDOWS = 4


class Scene:
    """A raster as a model sees it. Use a scene from one thread at a time: GDAL's datasets are not shared.

    `reader`, `engine` and `cache` belong to the caller, who closes them.
    """

    def __init__(self, reader: RasterReader, engine: InferenceEngine, cache: EmbeddingCache) -> None:
        self.reader, self.engine, self.cache = reader, engine, cache
        self._valid: OrderedDict[SquareWindow, npt.NDArray[np.bool_] | None] = OrderedDict()

    @property
    def input_px(self) -> int:
        """Side in pixels of the chip that the model sees."""
        return self.engine.card.input_px

    def key(self, window: SquareWindow) -> EmbeddingKey:
        """Everything that the embedding of a window depends on."""
        return EmbeddingKey(
            raster=self.reader.identity,
            bands=tuple(self.reader.bands),
            window=(window.col_off, window.row_off, window.size_px),
            stretch=self.reader.stretch.as_key(),
            checkpoint_sha256=self.engine.checkpoint_sha256,
            precision=self.engine.precision,
        )

    def provenance(self) -> dict[str, str]:
        """What a result must tell of its making to be repeated: raster, bands, stretch, model and its weights."""
        stretch = self.reader.stretch
        return {
            "SEGADAPT_RASTER": self.reader.path,
            "SEGADAPT_BANDS": " ".join(map(str, self.reader.bands)),
            "SEGADAPT_STRETCH_LOW": " ".join(f"{value:.9g}" for value in stretch.low),
            "SEGADAPT_STRETCH_HIGH": " ".join(f"{value:.9g}" for value in stretch.high),
            "SEGADAPT_MODEL": self.engine.card.name,
            "SEGADAPT_WEIGHTS_SHA256": self.engine.checkpoint_sha256,
            "SEGADAPT_PRECISION": self.engine.precision,
        }

    def is_encoded(self, window: SquareWindow) -> bool:
        """Whether the cache holds the embedding of a window."""
        return self.key(window) in self.cache

    def embedding(self, window: SquareWindow) -> torch.Tensor:
        """Embedding (256, 64, 64) float16 of a window: from the cache, else computed and put there."""
        key = self.key(window)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        embedding = self.engine.embed([self._read(window).pixels])[0]
        self.cache.put(key, embedding)
        return embedding

    def valid(self, window: SquareWindow) -> npt.NDArray[np.bool_] | None:
        """Where a window holds data: bool (rows, cols) in raster pixels, or None where all of it does."""
        if window not in self._valid:
            valid = self.reader.valid_mask(window)
            self._valid[window] = None if valid.all() else valid
            if len(self._valid) > _VALID_WINDOWS:
                self._valid.popitem(last=False)
        self._valid.move_to_end(window)
        return self._valid[window]

    def prefetch(self, windows: Sequence[SquareWindow], *, progress: Progress | None = None, batch: int = 4) -> int:
        """Encode the windows that the cache lacks, `batch` at a time, and return how many were encoded.

        The next chips are read while the model works. Windows without any data are skipped. A cancelled run
        keeps what it has encoded, so that the next one goes on from there. Raises `Cancelled`.
        """
        progress = progress or NullProgress()
        n_new = 0
        with ThreadPoolExecutor(1, thread_name_prefix="segadapt-read") as executor:
            batches = self._missing(windows, batch)
            future = executor.submit(next, batches, None)
            while (chips := future.result()) is not None:
                raise_if_cancelled(progress)
                future = executor.submit(next, batches, None)
                position, found = chips
                self._encode(found, progress)
                n_new += len(found)
                progress.set_fraction(position / len(windows))
        return n_new

    def _encode(self, found: Sequence[tuple[SquareWindow, Chip]], progress: Progress) -> None:
        if found:
            embeddings = self.engine.embed([chip.pixels for _, chip in found], progress=_QuietProgress(progress))
            for (window, _), embedding in zip(found, embeddings, strict=True):
                self.cache.put(self.key(window), embedding)

    def _missing(
        self, windows: Sequence[SquareWindow], batch: int
    ) -> Iterator[tuple[int, list[tuple[SquareWindow, Chip]]]]:
        """Yield how many windows are dealt with and up to `batch` chips of those that must be encoded."""
        found: list[tuple[SquareWindow, Chip]] = []
        for position, window in enumerate(windows, 1):
            if not self.is_encoded(window):
                chip = self._read(window)
                if chip.valid.any():
                    found.append((window, chip))
            # Without chips still report from time to time, so that a long empty stretch can be cancelled.
            if len(found) == batch or position == len(windows) or (not found and position % 16 == 0):
                yield position, found
                found = []

    def _read(self, window: SquareWindow) -> Chip:
        return self.reader.read_chip(window, out_px=self.input_px)


class _QuietProgress:
    """Cancel and messages of a progress without its fraction, for work that is one step of many."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def set_fraction(self, fraction: float) -> None:
        """Ignore the fraction of the step."""

    def info(self, text: str) -> None:
        """Hand the text on."""
        self._progress.info(text)

    def is_cancelled(self) -> bool:
        """Ask the whole."""
        return self._progress.is_cancelled()
