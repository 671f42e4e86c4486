"""Precision and recall of "find similar" against the number of examples, on buildings of four places.

    make bench BENCH=similar                                         prints the tables
    make bench BENCH=similar ARGS="--write docs/similar.md"          and keeps them below the marker

Examples are reference buildings, drawn by seed and segmented by box as an analyst would do it; a mask that misses its
building (IoU below 0.6) is no example, as the analyst would not accept it. What is found counts as right where its IoU
with a reference building is at least 0.5, one to one, the likelier first; examples count neither way. The 15 cm scenes
are resampled to 30 cm (averages of 2 x 2 pixels) in a temporary folder. Places are cut to what two cores get through;
`--whole` takes all of them.

Decoding is remembered between runs of one call, as points of one place are asked again and again; logits are kept,
and used, in half precision. With `--cache` embeddings, logits and results survive, and the next call goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bounds = tuple[int, int, int, int]

DATA = Path(os.environ.get("SEGADAPT_DATA", Path(__file__).resolve().parents[2] / "shared/data")) / "oam"
# Place, file, and the part that is looked at in pixels of 30 cm: left, top, right, bottom.
SCENES: tuple[tuple[str, str, Bounds], ...] = (
    ("banepa", "banepa_west_30cm", (64, 128, 576, 640)),
    ("nairobi", "nairobi_15cm", (256, 256, 896, 896)),
    ("kampala", "kampala_15cm", (0, 0, 512, 512)),
    ("zanzibar", "zanzibar_15cm", (0, 128, 768, 768)),
)
EXAMPLES = (1, 3, 5, 10)
BASELINES = ("persam", "persam_f")
_MATCH_IOU, _EXAMPLE_IOU = 0.5, 0.6
# A reference of fewer pixels is a shed or a slip of the pen; nobody starts a search from it.
_SMALLEST_EXAMPLE_PX = 36
_MARKER = "<!-- below: written by `make bench BENCH=similar` -->\n"


@dataclass(frozen=True)
class Result:
    """One search: what it found at the default threshold, over all thresholds, and how long it took."""

    place: str
    method: str
    n_examples: int
    seed: int
    precision: float
    recall: float
    f1: float
    best_f1: float
    average_precision: float
    seconds: float


class RememberingEngine:
    """An `InferenceEngine` that looks up what it was asked before in a folder; logits in half precision."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._digests: dict[int, tuple[Any, bytes]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def predict(self, embedding: Any, prompts: Sequence[Any], *, multimask: bool = False) -> Any:
        """Answer as the engine does."""
        from segadapt.models.engine import MaskPrediction

        n_masks = 3 if multimask else 1
        logits = np.empty((len(prompts), n_masks, 256, 256), np.float32)
        iou = np.empty((len(prompts), n_masks), np.float32)
        paths = [self._path(embedding, prompt, multimask) for prompt in prompts]
        new = [i for i, path in enumerate(paths) if not path.exists()]
        if new:
            answers = self._engine.predict(embedding, [prompts[i] for i in new], multimask=multimask)
            for i, some_logits, some_iou in zip(new, answers.logits, answers.iou, strict=True):
                paths[i].parent.mkdir(parents=True, exist_ok=True)
                with paths[i].open("wb") as file:
                    np.savez(file, logits=some_logits.astype(np.float16), iou=some_iou)
        for i, path in enumerate(paths):
            with np.load(path) as stored:
                logits[i], iou[i] = stored["logits"], stored["iou"]
        return MaskPrediction(logits, iou)

    def _path(self, embedding: Any, prompt: Any, multimask: bool) -> Path:
        known = self._digests.get(id(embedding))
        if known is None or known[0] is not embedding:
            self._digests.clear()
            known = embedding, hashlib.blake2b(embedding.numpy().tobytes()).digest()
            self._digests[id(embedding)] = known
        digest = hashlib.blake2b(known[1] + bytes([multimask]), digest_size=16)
        for array in (prompt.points_xy, prompt.labels, prompt.box_xyxy, prompt.mask_logits):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name}.npz"


def resampled(name: str, folder: Path) -> Path:
    """Path of a scene at 30 cm: the file itself, or a copy of half as many pixels a side in `folder`."""
    import rasterio
    from affine import Affine
    from rasterio.enums import Resampling

    source = DATA / f"{name}.tif"
    if not name.endswith("15cm"):
        return source
    path = folder / f"{name.removesuffix('15cm')}30cm.tif"
    if path.exists():
        return path
    with rasterio.open(source) as dataset:
        shape = (dataset.count, dataset.height // 2, dataset.width // 2)
        pixels = dataset.read(out_shape=shape, resampling=Resampling.average)
        profile = {"driver": "GTiff", "count": shape[0], "height": shape[1], "width": shape[2], "dtype": pixels.dtype}
        with rasterio.open(
            path, "w", crs=dataset.crs, transform=dataset.transform @ Affine.scale(2), **profile
        ) as copy:
            copy.write(pixels)
    return path


def read_buildings(name: str, scene: Any) -> list[Any]:
    """Reference buildings as polygons in raster pixels."""
    import geopandas
    import shapely

    table = geopandas.read_file(DATA / f"{name}_buildings.gpkg")
    outlines = [shapely.transform(geometry, scene.reader.to_pixels) for geometry in table.geometry]
    return [shapely.make_valid(outline) for outline in outlines if outline.area > 0]


def draw_examples(scene: Any, buildings: Sequence[Any], n: int, *, seed: int, bounds: Bounds) -> dict[int, Any]:
    """`n` buildings by seed: index and the outline in the raster's CRS that the model gives for the building's box."""
    import shapely
    from segadapt.processing.jobs.objects import ObjectPrompts
    from segadapt.processing.jobs.segment import segment_objects

    chosen: dict[int, Any] = {}
    for i in np.random.default_rng(seed).permutation(len(buildings)).tolist():
        left, top, right, bottom = box = buildings[i].bounds
        is_whole = left >= bounds[0] and top >= bounds[1] and right <= bounds[2] and bottom <= bounds[3]
        if not is_whole or buildings[i].area < _SMALLEST_EXAMPLE_PX:
            continue
        prompts = ObjectPrompts(str(i), "", np.zeros((0, 2)), np.zeros(0, np.int64), box)
        for found in segment_objects(scene, [prompts]):
            outline = shapely.transform(found.geometry, scene.reader.to_pixels)
            if iou(outline, buildings[i]) >= _EXAMPLE_IOU:
                chosen[i] = found.geometry
        if len(chosen) == n:
            break
    return chosen


def iou(first: Any, second: Any) -> float:
    """Intersection over union of two geometries."""
    common = first.intersection(second).area
    return float(common / (first.area + second.area - common))


def matches(
    found: Iterable[Any], buildings: Sequence[Any], *, examples: Iterable[int], bounds: Bounds
) -> npt.NDArray[np.int64]:
    """Per outline found, likelier first: 1 right, 0 wrong, -1 does not count (an example, or outside the part)."""
    from shapely import STRtree

    tree, taken, ignored = STRtree(buildings), set[int](), set(examples)
    marks = []
    for outline in found:
        near = sorted(((iou(outline, buildings[i]), int(i)) for i in tree.query(outline)), reverse=True)
        hits = [i for overlap, i in near if overlap >= _MATCH_IOU]
        free = [i for i in hits if i not in taken]
        is_outside = not is_inside(buildings[hits[0]] if hits else outline, bounds)
        if is_outside or ignored & set(hits):
            marks.append(-1)
        elif free:
            taken.add(free[0])
            marks.append(1)
        else:
            marks.append(0)
    return np.array(marks, np.int64)


def is_inside(outline: Any, bounds: Bounds) -> bool:
    """Whether the middle of an outline lies in the part that is looked at."""
    middle = outline.centroid
    return bool(bounds[0] <= middle.x < bounds[2] and bounds[1] <= middle.y < bounds[3])


def curve_numbers(
    marks: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], *, n_wanted: int, threshold: float
) -> dict[str, float]:
    """Precision, recall and F1 at a threshold, best F1 and average precision; best first."""
    counted = marks >= 0
    right, scores = marks[counted] == 1, scores[counted]
    if not len(right) or not n_wanted:
        return dict.fromkeys(("precision", "recall", "f1", "best_f1", "average_precision"), 0.0)
    hits = right.cumsum()
    precision, recall = hits / np.arange(1, len(right) + 1), hits / n_wanted
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    # Area under the curve whose precision never rises with recall, as COCO and VOC have it.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    n_kept = int((scores >= threshold).sum())
    at = n_kept - 1
    return {
        "precision": float(precision[at]) if n_kept else 0.0,
        "recall": float(recall[at]) if n_kept else 0.0,
        "f1": float(f1[at]) if n_kept else 0.0,
        "best_f1": float(f1.max()),
        "average_precision": float((np.diff(recall, prepend=0) * envelope).sum()),
    }


def search(scene: Any, name: str, *, bounds: Bounds, method: str, n: int, seed: int, backbone: Any) -> dict[str, float]:
    """Run one search and count."""
    from affine import Affine
    from segadapt.processing.jobs.similar import SimilarJob, SimilarSearch

    buildings = read_buildings(name, scene)
    examples = draw_examples(scene, buildings, n, seed=seed, bounds=bounds)
    start = time.perf_counter()
    finder = SimilarSearch(
        scene, list(examples.values()), job=SimilarJob(method=method, bounds_px=bounds), backbone=backbone
    )
    for _ in finder.run():
        pass
    taken_s = time.perf_counter() - start
    ranked = finder.ranked()
    outlines = [candidate.mask.to_geometry(Affine.identity()) for candidate in ranked]
    marks = matches(outlines, buildings, examples=examples, bounds=bounds)
    n_wanted = sum(is_inside(building, bounds) for i, building in enumerate(buildings) if i not in examples)
    scores = np.array([candidate.probability for candidate in ranked])
    return {**curve_numbers(marks, scores, n_wanted=n_wanted, threshold=finder.job.threshold), "seconds": taken_s}


def measure(arguments: argparse.Namespace, folder: Path) -> list[Result]:
    """All searches, one line of progress each; those whose results lie in `folder` are not run again."""
    from segadapt.models.backbone import open_backbone
    from segadapt.models.embeddings import EmbeddingCache
    from segadapt.models.engine import open_engine
    from segadapt.processing.jobs.scene import Scene
    from segadapt.processing.raster.reader import open_raster

    engine = RememberingEngine(open_engine(arguments.model), folder / "logits")
    backbone = None if arguments.without_backbone else open_backbone()
    cache = EmbeddingCache(folder / "embeddings", disk_bytes=20 << 30)
    stored = folder / "results.jsonl"
    results = [Result(**json.loads(line)) for line in stored.read_text().splitlines()] if stored.exists() else []
    done = {(r.place, r.method, r.n_examples, r.seed) for r in results}
    plan = [("segadapt", n) for n in arguments.examples] + [(method, 1) for method in BASELINES]
    # What is compared first comes first, so that a run that is cut short compares something.
    plan.sort(key=lambda step: step[1])
    for seed in range(arguments.seeds):
        for method, n in plan:
            for place, name, part in SCENES:
                is_wanted = place in arguments.places and method in arguments.methods
                if not is_wanted or (place, method, n, seed) in done:
                    continue
                with open_raster(str(resampled(name, folder))) as reader:
                    scene = Scene(reader, engine, cache)  # type: ignore[arg-type]  # an engine that remembers
                    bounds = (0, 0, reader.shape[1], reader.shape[0]) if arguments.whole else part
                    numbers = search(scene, name, bounds=bounds, method=method, n=n, seed=seed, backbone=backbone)
                results.append(Result(place, method, n, seed, **numbers))
                with stored.open("a") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
                print(results[-1], flush=True)
    return results


def report(results: Sequence[Result], *, model: str) -> str:
    """The tables, in Markdown; means over the seeds."""
    n_seeds = len({result.seed for result in results})
    lines = [
        f"`{model}`, {n_seeds} seeds, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{time.strftime('%Y-%m-%d')}. P, R, F1 at the default threshold; best F1 over all thresholds; AP: average "
        "precision. Means over the seeds.",
        "",
    ]
    head = ("place", "method", "examples", "P", "R", "F1", "best F1", "AP")
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    places = [place for place, _, _ in SCENES if any(result.place == place for result in results)]
    for place in (*places, "all places"):
        for method, n in sorted(
            {(r.method, r.n_examples) for r in results}, key=lambda key: (key[0] != "segadapt", key)
        ):
            some = [r for r in results if (r.method, r.n_examples) == (method, n) and place in (r.place, "all places")]
            # A mean over other places than its neighbours' would compare places, not methods.
            is_whole = place != "all places" or {r.place for r in some} == set(places)
            if some and is_whole:
                names = ("precision", "recall", "f1", "best_f1", "average_precision")
                means = [f"{np.mean([getattr(r, name) for r in some]):.2f}" for name in names]
                lines.append(f"| {place} | {method} | {n} | {' | '.join(means)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places = [place for place, _, _ in SCENES]
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--places", nargs="+", choices=places, default=places)
    parser.add_argument("--methods", nargs="+", default=["segadapt", *BASELINES], choices=["segadapt", *BASELINES])
    parser.add_argument("--examples", nargs="+", type=int, default=list(EXAMPLES), help="numbers of examples")
    parser.add_argument("--seeds", type=int, default=3, help="how many draws of examples (3)")
    parser.add_argument("--whole", action="store_true", help="whole scenes, not parts")
    parser.add_argument("--without-backbone", action="store_true", help="features of the promptable model alone")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings, logits and results")
    parser.add_argument("--write", type=Path, help="Markdown file whose part below the marker is replaced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not DATA.is_dir():
        parser.exit(2, f"No reference data in {DATA}; set SEGADAPT_DATA to the folder that holds 'oam'.\n")
    with tempfile.TemporaryDirectory(prefix="segadapt-similar-") as temporary:
        folder = arguments.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = report(measure(arguments, folder), model=arguments.model)
    print(text)
    if arguments.write:
        head = arguments.write.read_text().split(_MARKER)[0] if arguments.write.exists() else "# Find similar\n\n"
        arguments.write.write_text(f"{head}{_MARKER}\n{text}")


if __name__ == "__main__":
    main()
