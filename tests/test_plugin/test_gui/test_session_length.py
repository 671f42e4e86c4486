"""A day's work: a thousand answers cost neither memory nor time."""

from __future__ import annotations

import gc
import resource
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.engine_worker import EngineWorker
from segadapt.plugin.exchange import PromptInput, SceneSpec
from segadapt.processing.algorithms.raster_source import read_source
from segadapt.processing.algorithms.settings import read_settings

N_ANSWERS = 1000
N_WARM = 200
N_TRACED = 100
VIEW_PX = (600, 650, 850, 400)


class QuickSegmenter:
    """Answers with a square, fresh logits of real size and a look into the cache; nothing is computed."""

    n_learned, adapter_name, loaded_name = 0, "", ""

    def __init__(self, scene: Any, options: Any = None) -> None:
        self.scene, self.options = scene, options

    def answer(self, request: Any, *, only_if_encoded: bool = False) -> Any:
        from segadapt.processing.jobs.prompt_request import MaskOption, PromptResult
        from segadapt.processing.raster.windows import SquareWindow
        from shapely.geometry import MultiPolygon, Point

        window = SquareWindow(512, 256, 256)
        self.scene.embedding(window)
        self.scene.valid(window)
        mask = {
            "geometry": MultiPolygon([Point(*request.points_map[0]).buffer(5.0)]),
            "score": 0.9, "stability": 0.9, "area_m2": 78.5, "window": window,
            "logits": np.full((256, 256), 8, np.float32),
        }  # fmt: skip
        return PromptResult(request_id=request.request_id, **mask, options=tuple(MaskOption(**mask) for _ in range(3)))


@pytest.fixture
def worker(raster_layer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineWorker]:
    """A worker with the real backend, scene and cache on the synthetic raster."""
    import segadapt.models.engine
    import segadapt.processing.jobs.interactive
    import torch
    from segadapt.plugin.backend import SceneBackend

    engine = SimpleNamespace(
        card=SimpleNamespace(name="fake", input_px=1024), checkpoint_sha256="0" * 64, precision="fp32", device="cpu",
        device_reason="CPU, as asked for.", close=lambda: None,
        embed=lambda chips: [torch.zeros(256, 64, 64, dtype=torch.float16) for _ in chips],
    )  # fmt: skip
    monkeypatch.setattr(segadapt.models.engine, "open_engine", lambda *_args, **_more: engine)
    monkeypatch.setattr(segadapt.processing.jobs.interactive, "InteractiveSegmenter", QuickSegmenter)
    backend = SceneBackend()
    worker = EngineWorker(backend)
    worker.seconds = []  # time of the processor, which other programs do not change
    answer = backend.answer

    def timed_answer(prompt: PromptInput) -> Any:
        started = time.thread_time()
        found = answer(prompt)
        worker.seconds.append(time.thread_time() - started)
        return found

    monkeypatch.setattr(backend, "answer", timed_answer)
    opened: list[Any] = []
    worker.opened.connect(lambda _spec, info: opened.append(info))
    worker.failed.connect(opened.append)
    worker.open_scene(SceneSpec(read_source(raster_layer, [], use_layer_stretch=False), "mobile_sam", read_settings()))
    worker.start()
    deadline = time.monotonic() + 60.0
    while not opened and time.monotonic() < deadline:
        QTest.qWait(5)
    assert opened[0].device == "cpu"
    yield worker
    assert worker.stop()


def test_a_thousand_answers_grow_neither_memory_nor_latency(worker: EngineWorker, at: Any) -> None:
    answers: list[Any] = []
    worker.answered.connect(answers.append)
    left, bottom, right, top = VIEW_PX
    view = (at(left, bottom).x(), at(left, bottom).y(), at(right, top).x(), at(right, top).y())

    def ask(number: int) -> None:
        place = at(690 + number % 50, 500)
        started = time.perf_counter()
        worker.ask(PromptInput(number, ((place.x(), place.y()),), (1,), None, view))
        while not answers and time.perf_counter() - started < 10:
            QTest.qWait(1)
        answer = answers.pop()
        assert answer.request_id == number
        assert answer.wkb
        assert len(answer.options) == 3

    for number in range(N_WARM):
        ask(number)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(N_WARM, N_ANSWERS - N_TRACED):
        ask(number)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib
    seconds = list(worker.seconds)
    first, last = (statistics.median(part) for part in (seconds[N_WARM : N_WARM + 100], seconds[-100:]))
    tracemalloc.start()
    try:
        ask(N_ANSWERS - N_TRACED)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(N_ANSWERS - N_TRACED + 1, N_ANSWERS):
            ask(number)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    print(
        f"{N_ANSWERS} answers: peak +{grown_kib} KiB, Python +{traced / N_TRACED:.0f} B an answer; "
        f"median {1000 * first:.1f}, at the end {1000 * last:.1f} ms"
    )
    assert grown_kib < 60_000  # an answer that is kept holds logits of 262 kB: 180,000 KiB
    assert traced / N_TRACED < 2_000
    assert last < 1.5 * first + 0.001


def test_a_thousand_accepted_objects_cost_the_last_no_more_than_the_first(gui: Any, at: Any) -> None:
    """Each is clicked on the canvas and accepted with the key, and is in the GeoPackage before the next."""
    gui.start()
    target = gui.controller.target
    seconds: list[float] = []
    resident_kib: list[int] = []
    for number in range(N_ANSWERS):
        gui.click(at(40 + 30 * (number % 32), 40 + 30 * (number // 32)))
        gui.wait_for_answer()
        started = time.thread_time()  # the main thread's own, which other programs do not change
        gui.key(Qt.Key.Key_Return)
        gui.wait_for(lambda: gui.session.is_empty)
        seconds.append(time.thread_time() - started)
        resident_kib.append(_resident_kib())
    assert target.layer().featureCount() == N_ANSWERS
    first, last = (statistics.median(part) for part in (seconds[N_WARM : N_WARM + 100], seconds[-100:]))
    grown_kib = resident_kib[-1] - resident_kib[N_WARM]
    print(f"{N_ANSWERS} accepts: {grown_kib:+} KiB; median {1000 * first:.1f}, at the end {1000 * last:.1f} ms")
    assert grown_kib < 20_000  # 25 kB for each object; its row in a layer takes a few hundred bytes
    assert last < 1.5 * first + 0.001


def _resident_kib() -> int:
    """Memory of this process now; its peak would hide what grows below an earlier one."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
