"""Clicks that a simulated analyst needs on the labelled places, with every part of the adaptation in turn.

    make bench BENCH=clicks                                                     prints the tables, without the adapter
    make bench BENCH=clicks ARGS="--folds FOLDER"                               prints the tables
    make bench BENCH=clicks ARGS="--folds FOLDER --write docs/interactive.md"   and keeps them below the marker

FOLDER holds the adapters that leave one place out, from `make train-adapter ARGS="--folds FOLDER"`: no place is a
test of an adapter that has seen it. Scenes of 15 cm are resampled to 30 cm. The protocol is that of RITM
(jobs/clicker.py).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rasterio.errors import NotGeoreferencedWarning
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import InferenceEngine, open_engine
from segadapt.processing.jobs.evaluate_interactive import (
    Configuration,
    EvaluateInteractive,
    InteractiveEvaluation,
    evaluate_interactive,
    plain_options,
)
from segadapt.processing.jobs.interactive import InteractiveOptions
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.jobs.simulated_analyst import Reference
from segadapt.processing.raster.reader import open_raster
from segadapt.tools.train_adapter import MODEL, SOURCES, Source, at_gsd, outlines_of

_MARKER = "<!-- below: written by `make bench BENCH=clicks` -->\n"
# All parts in turn where the targets were set, the two ends elsewhere.
_ABLATED = "banepa_west_30cm"
_MEASURES = ("miou_1", "miou_3", "miou_5", "miou_10", "noc_80", "noc_85", "noc_90", "nof_90")


def configurations(adapter: Path | None, *, is_ablation: bool) -> tuple[Configuration, ...]:
    """The rows of a table; the first one is what the others are compared with.

    Those with the adapter are left out where there is none that has not seen the place.
    """
    alone = plain_options(window_px=None)
    repair = replace(alone, repair=True)
    ends = (
        Configuration("SAM alone, windows of 1024 px", plain_options(window_px=1024)),
        Configuration("SAM alone, window by ground size", alone),
    )
    straight = Configuration("window, repair, rectangles", replace(repair, rectangles=True))
    untrained = Configuration("all of it but cascade and adapter", InteractiveOptions(adapter=False))
    trained = InteractiveOptions(adapter_path=adapter)
    whole = Configuration("all of it but cascade", trained)
    found: tuple[Configuration, ...] = (*ends, straight, untrained, whole)
    if is_ablation:
        found = (
            *ends,
            Configuration("window, cascade", replace(alone, cascade=1)),
            Configuration("window, repair", repair),
            Configuration("window, repair, per click", replace(repair, per_click=True)),
            Configuration(
                "window, repair, adapter of other places", replace(repair, adapter=True, adapter_path=adapter)
            ),
            Configuration("window, repair, per object", replace(repair, per_object=True)),
            straight,
            untrained,
            Configuration("all of it but cascade and rectangles", replace(trained, rectangles=False)),
            whole,
        )
    return tuple(one for one in found if adapter is not None or not one.options.adapter)


def evaluate(
    engine: InferenceEngine, source: Source, folder: Path, *, adapter: Path | None, most: int
) -> InteractiveEvaluation:
    """Simulate the analyst on one raster."""
    raster = at_gsd(source.raster, folder)
    with open_raster(str(raster)) as reader:
        references = [Reference(outline, str(n)) for n, outline in enumerate(outlines_of(source.labels, raster))]
        chosen = configurations(adapter, is_ablation=source.raster.stem == _ABLATED)
        job = EvaluateInteractive(configurations=chosen, max_objects=most)
        return evaluate_interactive(Scene(reader, engine, EmbeddingCache()), references, job)


def table(source: Source, evaluation: InteractiveEvaluation) -> Iterator[str]:
    """Lines of markdown."""
    first = evaluation.results[0]
    yield f"### {source.place}: {source.raster.stem}, {first.summary.n_objects} objects"
    yield ""
    heads = [name.replace("miou_", "mIoU@").replace("noc_", "NoC@").replace("nof_", "NoF@") for name in _MEASURES]
    yield "| | " + " | ".join(heads) + " | NoC@85, @90 after 20 | s per click, p95 |"
    yield "|---" * (len(_MEASURES) + 3) + "|"
    for result in evaluation.results:
        cells = [result.configuration.name]
        for name in _MEASURES:
            value = result.summary[name]
            digits = 3 if name.startswith("miou") else 2
            cells.append(f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]")
        after = result.after_first
        cells.append("" if after is None else f"{after['noc_85'].value:.2f}, {after['noc_90'].value:.2f}")
        seconds = result.summary["click_median_s"].value, result.summary["click_p95_s"].value
        cells.append(f"{seconds[0]:.2f}, {seconds[1]:.2f}")
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for name, difference in evaluation.differences.items():
        five = difference["miou_5"]
        yield f"- {name}: mIoU@5 {five.value:+.3f} [{five.low:+.3f}, {five.high:+.3f}] against the first row, paired."
    yield ""


def main() -> None:
    """Print the tables, and keep them where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, help="folder of the adapters that leave one place out")
    parser.add_argument("--objects", type=int, default=60, help="objects of the ablation; elsewhere half as many")
    parser.add_argument("--rasters", nargs="+", default=[source.raster.stem for source in SOURCES])
    parser.add_argument("--write", type=Path, help="file whose part below the marker is written anew")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    engine = open_engine(MODEL)
    lines = [
        f"Machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; encoder in {engine.precision}. 95 % intervals by bootstrap over objects.",
        "",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for source in (source for source in SOURCES if source.raster.stem in arguments.rasters):
            most = arguments.objects if source.raster.stem == _ABLATED else arguments.objects // 2
            name = f"without_{source.place.lower()}.safetensors"
            adapter = arguments.folds / name if arguments.folds and (arguments.folds / name).is_file() else None
            found = list(table(source, evaluate(engine, source, Path(folder), adapter=adapter, most=most)))
            print("\n".join(found), flush=True)
            lines += found
    if arguments.write is not None:
        _keep(arguments.write, lines)


def _keep(path: Path, lines: Sequence[str]) -> None:
    above, marker, _ = path.read_text(encoding="utf-8").partition(_MARKER)
    if not marker:
        raise SystemExit(f"{path} lacks the line {_MARKER.strip()}; add it where the tables should begin.")
    path.write_text(above + marker + "\n" + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
