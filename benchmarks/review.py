"""What answers in a review of "find similar" are worth: the rest of its list, with and without learning from them.

    make bench BENCH=review

Searches as in `benchmarks/similar.py`. Then the candidate that is the likeliest is accepted where it is right and
rejected where it is not, one after the other, as in the review of the map tool; what comes of the rest is judged by
its average precision, and by the mean squared error of its probabilities (Brier score: smaller is better).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from segadapt.benchmarks.similar import (
    DATA,
    SCENES,
    Bounds,
    RememberingEngine,
    draw_examples,
    matches,
    read_buildings,
    resampled,
)

ANSWERS = (10, 20, 40)


class Rest(NamedTuple):
    """What was not answered: average precision and Brier score."""

    average_precision: float
    brier: float


def review(finder: Any, truth: dict[int, bool], *, is_learning: bool) -> dict[int, Rest]:
    """Answer by truth per candidate number, best first; the rest after each of `ANSWERS`, while it is mixed."""
    answers: dict[int, bool] = {}
    finder.update([], [])
    found = {}
    for n in range(1, max(ANSWERS) + 1):
        likeliest = next((one.number for one in finder.ranked() if one.number in truth.keys() - answers), None)
        if likeliest is None:
            break
        answers[likeliest] = truth[likeliest]
        if is_learning:
            finder.update(
                *([number for number, said in answers.items() if said == is_right] for is_right in (True, False))
            )
        rest = [one for one in finder.ranked() if one.number in truth.keys() - answers]
        right = np.array([truth[one.number] for one in rest], np.bool_)
        if n in ANSWERS and right.any() and not right.all():
            error: npt.NDArray[np.float64] = np.array([one.probability for one in rest]) - right
            found[n] = Rest(average_precision(right), float(np.mean(error**2)))
    return found


def average_precision(right: npt.NDArray[np.bool_]) -> float:
    """Mean of the precisions at what is right, best first."""
    return float((right.cumsum() / np.arange(1, len(right) + 1))[right].mean())


def answered(scene: Any, name: str, *, bounds: Bounds, n: int, seed: int, backbone: Any) -> dict[int, list[Rest]]:
    """One search and two reviews of it: the rest without and with learning, by number of answers."""
    from affine import Affine
    from segadapt.processing.jobs.similar import SimilarJob, SimilarSearch

    buildings = read_buildings(name, scene)
    examples = draw_examples(scene, buildings, n, seed=seed, bounds=bounds)
    finder = SimilarSearch(scene, list(examples.values()), job=SimilarJob(bounds_px=bounds), backbone=backbone)
    for _ in finder.run():
        pass
    ranked = finder.ranked()
    outlines = [candidate.mask.to_geometry(Affine.identity()) for candidate in ranked]
    marks = matches(outlines, buildings, examples=examples, bounds=bounds)
    truth = {one.number: bool(mark) for one, mark in zip(ranked, marks, strict=True) if mark >= 0}
    still, learned = (review(finder, truth, is_learning=is_learning) for is_learning in (False, True))
    return {n: [still[n], learned[n]] for n in still if n in learned}


def main() -> None:
    """Search, review, and print a table."""
    from segadapt.models.backbone import open_backbone
    from segadapt.models.embeddings import EmbeddingCache
    from segadapt.models.engine import open_engine
    from segadapt.processing.jobs.scene import Scene
    from segadapt.processing.raster.reader import open_raster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="+", type=int, default=[1, 3], help="numbers of examples")
    parser.add_argument("--seeds", type=int, default=2, help="how many draws of examples (2)")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings and logits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not DATA.is_dir():
        parser.exit(2, f"No reference data in {DATA}; set SEGADAPT_DATA to the folder that holds 'oam'.\n")
    print("| place | answers | reviews | AP, still | AP, learning | Brier, still | Brier, learning |\n|" + "---|" * 7)
    with tempfile.TemporaryDirectory(prefix="segadapt-review-") as temporary:
        folder = arguments.cache or Path(temporary)
        engine, backbone = RememberingEngine(open_engine("mobile_sam"), folder / "logits"), open_backbone()
        cache = EmbeddingCache(folder / "embeddings", disk_bytes=20 << 30)
        for place, name, bounds in SCENES:
            rests: dict[int, list[list[Rest]]] = defaultdict(list)
            with open_raster(str(resampled(name, folder))) as reader:
                scene = Scene(reader, engine, cache)  # type: ignore[arg-type]  # an engine that remembers
                for n in arguments.examples:
                    for seed in range(arguments.seeds):
                        found = answered(scene, name, bounds=bounds, n=n, seed=seed, backbone=backbone)
                        for n_answers, pair in found.items():
                            rests[n_answers].append(pair)
            for n_answers, pairs in sorted(rests.items()):
                still, learned = np.array(pairs).mean(axis=0)
                numbers = " | ".join(f"{value:.2f}" for value in (still[0], learned[0], still[1], learned[1]))
                print(f"| {place} | {n_answers} | {len(pairs)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
