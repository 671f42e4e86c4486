"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil  # type: ignore[import-untyped] # comes with peft
import torch

_EVERY_S = 0.02
_MB = 1e6


class PeakMemory:
    """A context that measures; `peak_mb` afterwards, in megabytes.

    Of a CUDA device what torch holds there; else the whole memory of this process, looked at fifty times a second.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="segadapt-memory", daemon=True)
        self._process = psutil.Process()
        self.peak_mb = 0.0

    def __enter__(self) -> PeakMemory:
        """Begin."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if self._device.type == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self._device) / _MB
            return
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / _MB)
