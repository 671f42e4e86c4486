"""A long session with the real engine: does a click, a preview or memory grow with the objects that were accepted?

    make bench BENCH=session                         1,000 objects on the sample scene; half an hour on 2 CPU cores
    make bench BENCH=session ARGS="--objects 100"

Each object: a click on a place by chance, the preview of the same place, a second click beside it that corrects, and
the accept, from which the segmenter learns. Times are those without encoding: that is the wait for a view.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from segadapt.benchmarks.measures import SAMPLE
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import open_engine
from segadapt.processing.jobs.interactive import InteractiveSegmenter
from segadapt.processing.jobs.peak_memory import PeakMemory
from segadapt.processing.jobs.prompt_request import PromptRequest
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.jobs.simulated_analyst import TimedScene
from segadapt.processing.raster.reader import open_raster

_EVERY = 100
# Pixels from the click to the one that corrects it: beside a roof, within the same window.
_BESIDE_PX = 24
_Result = TypeVar("_Result")


class Spent(NamedTuple):
    """Seconds of one object, without those of encoding."""

    click: float
    preview: float
    correction: float
    learning: float


def session(segmenter: InteractiveSegmenter, scene: TimedScene, *, n_objects: int, seed: int) -> None:
    """Print a line for every hundred objects."""
    rng = np.random.default_rng(seed)
    spent: list[Spent] = []
    n_kept = 0
    with PeakMemory(torch.device("cpu")) as memory:
        for number in range(1, n_objects + 1):
            times, is_kept = _one_object(segmenter, scene, number, rng)
            spent.append(times)
            n_kept += is_kept
            if number % _EVERY == 0 or number == n_objects:
                print(_line(number, spent, n_kept, memory.peak_mb), flush=True)
                spent.clear()


def _one_object(
    segmenter: InteractiveSegmenter, scene: TimedScene, number: int, rng: np.random.Generator
) -> tuple[Spent, bool]:
    """What an object took, and whether what was learned from it was kept."""
    rows, cols = scene.reader.shape
    x, y = rng.uniform(_BESIDE_PX, (cols - _BESIDE_PX, rows - _BESIDE_PX))
    angle = rng.uniform(0, 2 * np.pi)
    beside = (x + _BESIDE_PX * np.cos(angle), y + _BESIDE_PX * np.sin(angle))
    first, second = (tuple(place) for place in scene.reader.to_map([(x, y), beside]))
    request = PromptRequest(request_id=number, points_map=(first,), labels=(1,))
    answer, click = _timed(scene, lambda: segmenter.answer(request))
    assert answer is not None
    _, preview = _timed(scene, lambda: segmenter.answer(request, only_if_encoded=True))
    more = replace(request, points_map=(first, second), labels=(1, 0), previous=answer.as_previous())
    corrected, correction = _timed(scene, lambda: segmenter.answer(more))
    assert corrected is not None
    report, learning = _timed(scene, lambda: segmenter.learn(corrected))
    return Spent(click, preview, correction, learning), report.is_kept


def _timed(scene: TimedScene, work: Callable[[], _Result]) -> tuple[_Result, float]:
    start, encoded = time.perf_counter(), scene.encode_s
    result = work()
    return result, time.perf_counter() - start - (scene.encode_s - encoded)


def _line(number: int, spent: list[Spent], n_kept: int, peak_mb: float) -> str:
    cells = [f"{1e3 * np.median(values):.0f}, {1e3 * np.quantile(values, 0.95):.0f}" for values in np.array(spent).T]
    return f"| {number} | " + " | ".join(cells) + f" | {n_kept} | {peak_mb:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engine = open_engine("mobile_sam")
    machine = platform.processor() or platform.machine()
    print(
        f"Machine: {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}; encoder {engine.precision}."
    )
    print("Milliseconds: median, 95th percentile. Memory: peak in MB.\n")
    print("| objects | click | preview | correction | learning | kept | memory |")
    print("|---|---|---|---|---|---|---|")
    with open_raster(str(SAMPLE)) as reader:
        scene = TimedScene(Scene(reader, engine, EmbeddingCache()))
        session(InteractiveSegmenter(scene), scene, n_objects=arguments.objects, seed=arguments.seed)


if __name__ == "__main__":
    main()
