"""The live class map, measured: mIoU against clicks on Dubai, guidance on Dubai and NAIP, a NAIP map, milliseconds.

    python benchmarks/class_map.py --data ../shared/data --what heads guidance naip speed

Constants of the method were chosen on Dubai tiles 1 to 3; what is reported here is measured on tiles 4 to 6, and on
NAIP, which no choice has seen. mIoU: over the classes of an image that cover 1 % of it or more. Run it with the
package importable as `segadapt` (`PYTHONPATH=.link`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from segadapt.models.backbone import Backbone, open_backbone
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import InferenceEngine, open_engine
from segadapt.processing.jobs.block_store import BlockStore
from segadapt.processing.jobs.class_map import ClassMapOptions, ClassMapper
from segadapt.processing.jobs.class_map_truth import Thinned
from segadapt.processing.jobs.evaluate_class_map import RANDOM_ERROR, EvaluateClassMap, Guide, evaluate_class_map
from segadapt.processing.jobs.guidance import uncertain_regions
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.raster.reader import open_raster

N_SEEDS = 3
N_CLICKS = 30
AT = (5, 10, 20, 30)
# The truth is compared at every third pixel: hand-drawn borders are no finer, and the analyst searches faster.
STEP_PX = 3
DUBAI_TEST = tuple(f"tile{tile}_{number:03d}" for tile in (4, 5, 6) for number in (1, 3))
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ridge, segments": {},
    "ridge, cells": {"is_snapped": False},
    "logistic, segments": {"head": "logistic"},
    "tokens, segments": {"head": "tokens"},
    "ridge, segments, without SAM": {"with_sam": False},
    "ridge, cells, without SAM": {"is_snapped": False, "with_sam": False},
}


def dubai_truth(path: Path) -> npt.NDArray[np.uint8]:
    """Classes at every `STEP_PX`-th pixel; those under 1 % count as unlabelled."""
    with rasterio.open(path) as dataset:
        truth: npt.NDArray[np.uint8] = dataset.read(1)[::STEP_PX, ::STEP_PX].copy()
    counts = np.bincount(truth.ravel(), minlength=256)
    rare = [c for c in range(1, 256) if 0 < counts[c] < 0.01 * counts[1:].sum()]
    truth[np.isin(truth, rare)] = 0
    return truth


def guided(mapper: ClassMapper) -> Guide:
    """A guide that goes where the map is most uncertain."""

    def guide(clicked: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
        visited = np.argwhere(clicked)[:, ::-1] * STEP_PX
        regions = uncertain_regions(mapper, visited_px=visited, most=1)
        return (int(regions[0].centre[0]) // STEP_PX, int(regions[0].centre[1]) // STEP_PX) if regions else None

    return guide


def anywhere(shape: tuple[int, ...], seed: int) -> Guide:
    """A guide that goes anywhere."""
    random = np.random.default_rng(seed)

    def guide(clicked: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
        del clicked  # anywhere, also where something is known
        return int(random.integers(shape[1])), int(random.integers(shape[0]))

    return guide


class Bench:
    """Networks and cache of embeddings, shared by all runs."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.data = data
        self.engine: InferenceEngine = open_engine("mobile_sam", device="cpu", precision="fp32")
        self.backbone: Backbone = open_backbone(device="cpu")
        self.cache = EmbeddingCache(cache)
        self._kept: dict[tuple[str, bool], BlockStore] = {}

    def mapper(self, path: Path, **options: Any) -> ClassMapper:
        """A fresh mapper; blocks of an image are described once per set of features."""
        scene = Scene(open_raster(str(path)), self.engine, self.cache)
        mapper = ClassMapper(scene, self.backbone, options=ClassMapOptions(**options))
        key = (str(path), mapper.options.with_sam)
        if key not in self._kept:
            for cell in mapper.missing():
                mapper.encode(cell)
            self._kept[key] = mapper._blocks
        mapper._blocks = self._kept[key]
        for block in mapper._blocks:
            block.kept.clear()
        return mapper


def heads(bench: Bench) -> Iterator[tuple[str, ...]]:
    """Rows: configuration, mIoU in per cent at `AT` clicks, mean over all clicks."""
    yield ("configuration", *(f"@{n}" for n in AT), f"mean 1-{N_CLICKS}")
    for title, options in CONFIGURATIONS.items():
        curves = [
            evaluate_class_map(
                Thinned(bench.mapper(bench.data / f"dubai/{name}.jpg", **options), STEP_PX),
                dubai_truth(bench.data / f"dubai/{name}_classes.png"),
                EvaluateClassMap(n_clicks=N_CLICKS),
            ).mious
            for name in DUBAI_TEST
        ]
        yield _row(title, curves)


def guidance(bench: Bench) -> Iterator[tuple[str, ...]]:
    """Rows: how the next place is chosen, mIoU in per cent at `AT` clicks; random is the mean of three seeds."""
    yield ("next click", *(f"@{n}" for n in AT), f"mean 1-{N_CLICKS}")
    found: dict[str, list[tuple[float, ...]]] = {}
    for name in DUBAI_TEST:
        truth = dubai_truth(bench.data / f"dubai/{name}_classes.png")
        path = bench.data / f"dubai/{name}.jpg"
        job = EvaluateClassMap(n_clicks=N_CLICKS)
        mapper = bench.mapper(path)
        found.setdefault("guided", []).append(
            evaluate_class_map(Thinned(mapper, STEP_PX), truth, job, guide=guided(mapper)).mious
        )
        for seed in range(N_SEEDS):
            curve = evaluate_class_map(
                Thinned(bench.mapper(path), STEP_PX), truth, job, guide=anywhere(truth.shape, seed)
            ).mious
            found.setdefault("anywhere at random", []).append(curve)
        job = EvaluateClassMap(n_clicks=N_CLICKS, where=RANDOM_ERROR)
        found.setdefault("random error (knows the truth)", []).append(
            evaluate_class_map(Thinned(bench.mapper(path), STEP_PX), truth, job).mious
        )
    for title, curves in found.items():
        yield _row(title, curves)
    at_random = _filled(found["anywhere at random"]).reshape(-1, N_SEEDS, N_CLICKS).mean(axis=1)
    yield _gain_row(100 * (_filled(found["guided"]) - at_random))


def naip(bench: Bench) -> Iterator[tuple[str, ...]]:
    """Rows: balanced accuracy in per cent at points, trees against what lies 8 m or more from every tree.

    The labels are points: only at these points, and far from them, is the truth known. Clicks are asked of the
    nearest such point, so that guided and random analysts know the same.
    """
    yield ("NAIP, next click", *(f"@{n}" for n in AT), f"mean 2-{N_CLICKS}")
    found: dict[str, list[list[float]]] = {"guided": [], "random": []}
    for path in sorted(bench.data.glob("naip_trees/*_20??_[0-4].tif")):
        points, is_tree = tree_points(path)
        if is_tree.sum() < 40:
            continue
        for title, curves in found.items():
            for seed in range(N_SEEDS):
                curves.append(_naip_curve(bench, path, points, is_tree, title == "guided", seed))
    for title, curves in found.items():
        yield _row(f"{title} ({len(curves)} runs)", curves)
    gains = 100 * (np.array(found["guided"]) - np.array(found["random"]))
    yield _gain_row(gains.reshape(-1, N_SEEDS, N_CLICKS).mean(axis=1))


def tree_points(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Pixels (N, 2) x, y of trees and of as many places 8 m or more from all of them, and which is which."""
    with rasterio.open(path) as dataset:
        inverse, shape, side_m = ~dataset.transform, dataset.shape, abs(dataset.transform.a)
    features = (
        json.loads(path.with_suffix(".json").read_text())["features"] if path.with_suffix(".json").exists() else []
    )
    trees = np.array([inverse @ tuple(f["geometry"]["coordinates"][:2]) for f in features]).reshape(-1, 2).astype(int)
    inside = ((trees >= 0) & (trees < (shape[1], shape[0]))).all(axis=1)
    trees = trees[inside]
    random = np.random.default_rng(0)
    candidates = random.integers(0, (shape[1], shape[0]), (4000, 2))
    if len(trees):
        nearest = np.sqrt(((candidates[:, None] - trees[None]) ** 2).sum(axis=2).min(axis=1)) * side_m
        candidates = candidates[nearest >= 8.0]
    others = candidates[: max(len(trees), 1)]
    return np.concatenate([trees, others]), np.arange(len(trees) + len(others)) < len(trees)


def _naip_curve(
    bench: Bench, path: Path, points: npt.NDArray[np.int64], is_tree: npt.NDArray[np.bool_], is_guided: bool, seed: int
) -> list[float]:
    mapper = bench.mapper(path)
    random = np.random.default_rng(seed)
    # Half of the points may be asked about, the other half judge.
    asked = np.zeros(len(points), np.bool_)
    asked[random.permutation(len(points))[: len(points) // 2]] = True
    free = asked.copy()
    curve: list[float] = []
    for number in range(N_CLICKS):
        if number < 2:
            choice = random.choice(np.flatnonzero(free & (is_tree == (number == 0))))
        elif is_guided:
            visited = points[asked & ~free]
            regions = uncertain_regions(mapper, visited_px=visited, most=1)
            place = np.array(regions[0].centre) if regions else np.array([0.0, 0.0])
            candidates = np.flatnonzero(free)
            choice = candidates[np.argmin(((points[candidates] - place) ** 2).sum(axis=1))]
        else:
            choice = random.choice(np.flatnonzero(free))
        free[choice] = False
        x, y = points[choice]
        mapper.click(x, y, 2 if is_tree[choice] else 1)
        if number:
            said = mapper.labels()[points[:, 1], points[:, 0]] == 2
            right = said == is_tree
            curve.append(float(np.mean([right[~asked & is_tree].mean(), right[~asked & ~is_tree].mean()])))
        else:
            curve.append(0.5)
    return curve


def speed(bench: Bench) -> Iterator[tuple[str, ...]]:
    """Rows: median milliseconds from click to the labels of about 10 megapixels, after twenty clicks."""
    path = bench.data / "oam/zanzibar_15cm.tif"
    yield ("click to map", "ms (median of 10)", "megapixels")
    for title, options in (("segments", {}), ("cells", {"is_snapped": False})):
        mapper = bench.mapper(path, **options)
        random = np.random.default_rng(0)
        taken = []
        for number in range(30):
            x, y = random.integers(0, mapper.scene.reader.shape[::-1])
            start = time.perf_counter()
            mapper.click(x, y, number % 5 + 1)
            labels = mapper.labels()
            taken.append(time.perf_counter() - start)
        yield title, f"{1e3 * statistics.median(taken[-10:]):.0f}", f"{labels.size / 1e6:.1f}"


def _row(title: str, curves: Any) -> tuple[str, ...]:
    mean = 100 * _filled(curves).mean(axis=0)
    return (title, *(f"{mean[n - 1]:.1f}" for n in AT), f"{mean.mean():.1f}")


def _filled(curves: Any) -> npt.NDArray[np.float64]:
    """Curves (N, clicks): a map without errors before its clicks are used up stays so."""
    return np.array([[*curve, *([curve[-1]] * (N_CLICKS - len(curve)))] for curve in curves], np.float64)


def _gain_row(gains: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """What guidance wins, points (scenes, clicks), with 95 % intervals by bootstrap over the scenes."""
    scenes = np.random.default_rng(0).integers(0, len(gains), (10_000, len(gains)))

    def told(values: npt.NDArray[np.float64]) -> str:
        low, high = np.percentile(values[scenes].mean(axis=1), (2.5, 97.5))
        return f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"

    return ("guided against random, paired", *(told(gains[:, n - 1]) for n in AT), told(gains.mean(axis=1)))


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEGADAPT_DATA", "../shared/data")))
    parser.add_argument("--cache", type=Path, default=None, help="folder of embeddings (default: the user's cache)")
    parser.add_argument("--what", nargs="+", default=["heads", "guidance", "naip", "speed"])
    chosen = parser.parse_args()
    bench = Bench(chosen.data, chosen.cache)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) if chosen.what == ["speed"] else 1))
    tables = {"heads": heads, "guidance": guidance, "naip": naip, "speed": speed}
    for name in chosen.what:
        for row in tables[name](bench):
            print("| " + " | ".join(row) + " |", flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
