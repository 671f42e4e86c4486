"""Clicks that a simulated analyst needs on the labelled places, with every part of the adaptation in turn.

    make bench BENCH=clicks                                                     prints the tables, without the adapter
    make bench BENCH=clicks ARGS="--folds FOLDER"                               prints the tables
    make bench BENCH=clicks ARGS="--folds FOLDER --write docs/interactive.md"   and keeps them below the marker
    make bench BENCH=clicks ARGS="--jobs 16"                                    rows beside each other, for a GPU

FOLDER holds the adapters that leave one place out, from `make train-adapter ARGS="--folds FOLDER"`: no place is a
test of an adapter that has seen it. Scenes of 15 cm are resampled to 30 cm. The protocol is that of RITM
(jobs/clicker.py).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from rasterio.errors import NotGeoreferencedWarning
from segadapt.models.adaptation.adapter import SUFFIX
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import InferenceEngine, open_engine
from segadapt.processing.jobs.click_curves import ObjectCurve, difference, summarise
from segadapt.processing.jobs.evaluate_interactive import (
    Configuration,
    EvaluateInteractive,
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


class Table(NamedTuple):
    """The rasters of one place that are told together, the rows, and the most objects of a raster."""

    name: str
    sources: tuple[Source, ...]
    rows: tuple[Configuration, ...]
    most: int


def tables(rasters: Sequence[str], *, folds: Path | None, most: int) -> Iterator[Table]:
    """A table for each place, and one for the raster of the ablation."""
    chosen = [source for source in SOURCES if source.raster.stem in rasters]
    for name in dict.fromkeys(_table_name(source) for source in chosen):
        sources = tuple(source for source in chosen if _table_name(source) == name)
        adapter = None if folds is None else folds / f"without_{sources[0].place.lower()}{SUFFIX}"
        if adapter is not None and not adapter.is_file():
            adapter = None
        rows = configurations(adapter, is_ablation=sources[0].raster.stem == _ABLATED)
        yield Table(name, sources, rows, -(-most // len(sources)))


def _table_name(source: Source) -> str:
    return f"{source.place}, {source.raster.stem}" if source.place == "Banepa" else source.place


@cache
def _engine() -> InferenceEngine:
    return open_engine(MODEL)


def evaluate(source: Source, row: Configuration, most: int) -> tuple[ObjectCurve, ...]:
    """Simulate the analyst on one raster."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as folder:
        raster = at_gsd(source.raster, Path(folder))
        with open_raster(str(raster)) as reader:
            references = [Reference(outline, str(n)) for n, outline in enumerate(outlines_of(source.labels, raster))]
            job = EvaluateInteractive(configurations=(row,), max_objects=most)
            return evaluate_interactive(Scene(reader, _engine(), EmbeddingCache()), references, job).results[0].curves


def printed(table: Table, curves: Sequence[Sequence[Sequence[ObjectCurve]]]) -> Iterator[str]:
    """Lines of markdown; `curves` of each row and each raster."""
    job = EvaluateInteractive()
    whole = [tuple(chain.from_iterable(rasters)) for rasters in curves]
    yield f"### {table.name}, {len(whole[0])} objects"
    yield ""
    heads = [name.replace("miou_", "mIoU@").replace("noc_", "NoC@").replace("nof_", "NoF@") for name in _MEASURES]
    yield "| | " + " | ".join(heads) + f" | NoC@85, @90 after {job.n_first} | s per click, p95 |"
    yield "|---" * (len(_MEASURES) + 3) + "|"
    for row, rasters, joined in zip(table.rows, curves, whole, strict=True):
        summary = summarise(joined, job.targets)
        cells = [row.name]
        for name in _MEASURES:
            value = summary[name]
            digits = 3 if name.startswith("miou") else 2
            cells.append(f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]")
        later = [curve for raster in rasters for curve in raster[job.n_first :]]
        after = summarise(later, job.targets) if later else None
        cells.append("" if after is None else f"{after['noc_85'].value:.2f}, {after['noc_90'].value:.2f}")
        cells.append(f"{summary['click_median_s'].value:.2f}, {summary['click_p95_s'].value:.2f}")
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for row, joined in zip(table.rows[1:], whole[1:], strict=True):
        five = difference(joined, whole[0], job.targets)["miou_5"]
        interval = f"[{five.low:+.3f}, {five.high:+.3f}]"
        yield f"- {row.name}: mIoU@5 {five.value:+.3f} {interval} against the first row, paired."
    yield ""


def main() -> None:
    """Print the tables, and keep them where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, help="folder of the adapters that leave one place out")
    parser.add_argument("--objects", type=int, default=60, help="most objects of a table")
    parser.add_argument("--rasters", nargs="+", default=[source.raster.stem for source in SOURCES])
    parser.add_argument("--jobs", type=int, default=1, help="rows that are measured beside each other")
    parser.add_argument("--write", type=Path, help="file whose part below the marker is written anew")
    arguments = parser.parse_args()
    n_threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    torch.set_num_threads(n_threads)
    engine = _engine()
    device = torch.cuda.get_device_name() if engine.device != "cpu" else platform.processor() or platform.machine()
    lines = [
        f"Machine: {device}, {arguments.jobs} rows beside each other with {n_threads} threads each, "
        f"torch {torch.__version__}; encoder in {engine.precision}. 95 % intervals by bootstrap over objects.",
        "",
    ]
    print("\n".join(lines), flush=True)
    with ProcessPoolExecutor(
        arguments.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(n_threads,)
    ) as pool:
        started = [
            (one, [[pool.submit(evaluate, source, row, one.most) for source in one.sources] for row in one.rows])
            for one in tables(arguments.rasters, folds=arguments.folds, most=arguments.objects)
        ]
        for one, rows in started:
            found = list(printed(one, [[raster.result() for raster in rasters] for rasters in rows]))
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
