"""Trains the adapter for Earth observation that ships with SegAdapt, and tests it on places that it has not seen.

    make train-adapter                                 # test with one place left out, train on all, write the adapter
                                                       # unless a place would be worse with it
    make train-adapter ARGS="--only-test Banepa"       # one fold, nothing written
    make train-adapter ARGS="--objects 20 --steps 50"  # a trial in minutes
    make train-adapter ARGS="--jobs 16"                # analysts and folds beside each other, for a GPU

Places are in SEGADAPT_DATA (default ../shared/data). Embeddings are cached, so that a second run starts at the clicks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from functools import cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from segadapt.models.adaptation.adapter import SUFFIX, Adapter, AdapterCard, save_adapter
from segadapt.models.adaptation.refiner import MaskRefiner
from segadapt.models.adaptation.shipped import SHIPPED_NAME
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import InferenceEngine, open_engine
from segadapt.processing.jobs.adapter_training import (
    LabelledObject,
    labelled_objects,
    simulate,
    train_in_rounds,
)
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.raster.reader import open_raster
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SEGADAPT_DATA", ROOT.parent / "shared" / "data"))
MODEL = "mobile_sam"
# Analysts and labels of these scenes see 30 cm; scenes of 15 cm are brought there.
GSD_M = 0.3
WINDOW_PX = 256
BUILDING = 1
# The clicks of one object that are learned from, and how many of them the test counts.
TRAINED_CLICKS, TESTED_CLICKS = 8, 10


_MEASURES = ("mIoU@1", "mIoU@3", "mIoU@5", "mIoU@10", "NoC@80", "NoC@85", "NoC@90")
# In a folder of their own, as each process needs all of them: the objects, and what is met on a part of them.
_OBJECTS, _EXAMPLES = "objects.pt", "examples_{}.pt"
# Two points of IoU at five clicks are what no place may lose.
_MOST_LOST = 0.02


class Source(NamedTuple):
    """A labelled raster, and the place that it belongs to: places, not rasters, are held out."""

    place: str
    raster: Path
    labels: Path


SOURCES = (
    *(
        Source(place, DATA / "oam" / f"{name}.tif", DATA / "oam" / f"{name}_buildings.gpkg")
        for place, name in (
            ("Kampala", "kampala_15cm"),
            ("Nairobi", "nairobi_15cm"),
            ("Zanzibar", "zanzibar_15cm"),
            ("Banepa", "banepa2_15cm"),
            ("Banepa", "banepa_west_30cm"),
        )
    ),
    *(
        Source("Dubai", DATA / "dubai" / f"{tile}.jpg", DATA / "dubai" / f"{tile}_classes.png")
        for tile in ("tile1_003", "tile2_002", "tile2_006", "tile3_004", "tile5_007")
    ),
)
LICENCE = (
    "Apache-2.0; trained on imagery CC BY 4.0 (OpenAerialMap contributors) with labels ODbL (OpenStreetMap "
    "contributors), and on CC0 imagery (MBRSC)"
)


def main(argv: Sequence[str]) -> int:
    """Run the tool."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the tiles of Dubai are plain pictures
    arguments = _arguments(argv)
    missing = [source.raster for source in SOURCES if not source.raster.is_file()]
    if missing:
        print(f"{missing[0]} is missing; set SEGADAPT_DATA to the folder of the labelled imagery.", file=sys.stderr)
        return 1
    n_threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    torch.set_num_threads(n_threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            arguments.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(n_threads,)
        ) as pool,
    ):
        objects = _objects(Path(folder), most=arguments.objects)
        torch.save(objects, Path(folder) / _OBJECTS)
        places = sorted({one.place for one in objects})
        for part in [pool.submit(first_examples, folder, n, arguments.jobs) for n in range(arguments.jobs)]:
            part.result()
        held_out = [arguments.only_test] if arguments.only_test else places
        folds = [pool.submit(train_fold, folder, place, arguments) for place in held_out]
        on_all = None if arguments.only_test else pool.submit(_train, folder, None, arguments)
        results = dict(zip(held_out, (fold.result() for fold in folds), strict=True))
        if on_all is None:
            return 0
        harmed = harmed_places(results)
        if harmed:
            on_all.cancel()
            print(f"{', '.join(harmed)} would be worse with it; {arguments.out} stays as it is.", file=sys.stderr)
            return 1
        refiner = on_all.result()
    metrics = {f"{place}, held out": result for place, result in results.items()}
    _save(refiner, arguments.out, objects=objects, metrics=metrics)
    print(f"Wrote {arguments.out} ({arguments.out.stat().st_size / 2**20:.2f} MiB).")
    return 0


def harmed_places(results: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Places held out on which the adapter costs IoU at five clicks or clicks to 0.85 (`_test`): it must not ship."""
    at_five, to_85 = _MEASURES.index("mIoU@5"), _MEASURES.index("NoC@85")
    found = []
    for place, result in results.items():
        alone, adapted = result["without the adapter"], result["with the adapter"]
        if adapted[at_five] < alone[at_five] - _MOST_LOST or adapted[to_85] > alone[to_85]:
            found.append(place)
    return found


def _save(refiner: MaskRefiner, path: Path, *, objects: Sequence[LabelledObject], metrics: Mapping[str, Any]) -> None:
    card = AdapterCard(
        name=SHIPPED_NAME,
        base_model=MODEL,
        base_sha256=_engine().checkpoint_sha256,
        method="mask refiner, simulated clicks",
        trained_on=tuple(sorted({one.place for one in objects})),
        n_objects=len(objects),
        licence=LICENCE,
        made_on=datetime.now(timezone.utc).date().isoformat(),
        metrics=metrics,
    )
    save_adapter(Adapter(card, refiner.state_dict()), path)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=150, help="most objects per raster")
    parser.add_argument("--tested", type=int, default=25, help="most objects of the place held out")
    parser.add_argument("--steps", type=int, default=500, help="training steps of each round")
    parser.add_argument("--rounds", type=int, default=2, help="how often the analyst is simulated and learned from")
    parser.add_argument("--folds", type=Path, help="folder for the adapters that leave one place out")
    parser.add_argument("--jobs", type=int, default=1, help="processes beside each other")
    parser.add_argument("--only-test", help="hold out this place only, and write nothing")
    default = ROOT / "models" / "adaptation" / f"{SHIPPED_NAME}_{MODEL}{SUFFIX}"
    parser.add_argument("--out", type=Path, default=default, help="file of the adapter")
    return parser.parse_args(argv)


@cache
def _engine() -> InferenceEngine:
    return open_engine(MODEL)


def _objects(folder: Path, *, most: int) -> list[LabelledObject]:
    found: list[LabelledObject] = []
    for source in SOURCES:
        raster = at_gsd(source.raster, folder)
        with open_raster(str(raster)) as reader:
            outlines = list(outlines_of(source.labels, raster))
            order = np.random.default_rng(0).permutation(len(outlines))[:most]
            scene = Scene(reader, _engine(), EmbeddingCache())
            chosen = [outlines[n] for n in order]
            found += labelled_objects(scene, chosen, place=source.place, window_px=WINDOW_PX)
        print(f"{source.raster.stem}: {len(found)} objects so far", flush=True)
    return found


def at_gsd(path: Path, folder: Path) -> Path:
    """The raster, at half the resolution where it is much finer than `GSD_M`."""
    with rasterio.open(path) as dataset:
        if dataset.crs is None or dataset.res[0] > GSD_M / 1.5:
            return path
        rows, cols = dataset.height // 2, dataset.width // 2
        pixels = dataset.read(out_shape=(dataset.count, rows, cols), resampling=Resampling.average)
        transform = dataset.transform @ dataset.transform.scale(dataset.width / cols, dataset.height / rows)
        profile = {**dataset.profile, "height": rows, "width": cols, "transform": transform}
    smaller = folder / path.name
    with rasterio.open(smaller, "w", **profile) as dataset:
        dataset.write(pixels)
    return smaller


def outlines_of(labels: Path, raster: Path) -> Iterator[BaseGeometry]:
    """Outlines of the buildings in the raster's CRS; of connected pixels where the labels are a picture."""
    if labels.suffix == ".gpkg":
        with rasterio.open(raster) as dataset:
            table = geopandas.read_file(labels).to_crs(dataset.crs)
        yield from (geometry for geometry in table.geometry if geometry is not None and not geometry.is_empty)
        return
    with rasterio.open(labels) as dataset:
        classes = dataset.read(1)
    # QGIS and the reader show a picture without georeference with y up.
    upwards = rasterio.Affine(1, 0, 0, 0, -1, 0)
    mask = classes == BUILDING
    yield from (shape(outline) for outline, _ in shapes(mask.astype(np.uint8), mask=mask, transform=upwards))


def first_examples(folder: str, part: int, n_parts: int) -> None:
    """Keep what an analyst meets on one part of the objects before anything is learned: the same for every fold."""
    engine, rng = _engine(), np.random.default_rng(part)
    half = engine.precision == "bf16"
    objects = _loaded(folder, _OBJECTS)[part::n_parts]
    made = (simulate(engine, one, refiner=None, n_clicks=TRAINED_CLICKS, rng=rng, half=half)[0] for one in objects)
    torch.save(list(chain.from_iterable(made)), Path(folder) / _EXAMPLES.format(part))


def train_fold(folder: str, place: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Train without a place and test there; the values of `_MEASURES`, without and with the adapter."""
    refiner = _train(folder, place, arguments)
    objects: list[LabelledObject] = _loaded(folder, _OBJECTS)
    result = _test([one for one in objects if one.place == place], refiner, most=arguments.tested)
    print(f"{place}, not seen in training: {result}", flush=True)
    if arguments.folds is not None:
        arguments.folds.mkdir(parents=True, exist_ok=True)
        path = arguments.folds / f"without_{place.lower()}{SUFFIX}"
        seen = [one for one in objects if one.place != place]
        _save(refiner, path, objects=seen, metrics={f"{place}, held out": result})
    return result


def _train(folder: str, left_out: str | None, arguments: argparse.Namespace) -> MaskRefiner:
    told = "on all places" if left_out is None else f"without {left_out}"

    def report(step: int, loss: float) -> None:
        print(f"{told}, step {step}: loss {loss:.3f}", flush=True)

    engine = _engine()
    first = chain.from_iterable(_loaded(folder, _EXAMPLES.format(n)) for n in range(arguments.jobs))
    return train_in_rounds(
        engine,
        [one for one in _loaded(folder, _OBJECTS) if one.place != left_out],
        n_rounds=arguments.rounds,
        n_clicks=TRAINED_CLICKS,
        n_steps=arguments.steps,
        half=engine.precision == "bf16",
        first=[example for example in first if example.place != left_out],
        report=report,
    )


def _loaded(folder: str, name: str) -> list[Any]:
    """What was kept, in memory that the processes share."""
    found: list[Any] = torch.load(Path(folder) / name, mmap=True, weights_only=False)
    return found


def _test(objects: Sequence[LabelledObject], refiner: MaskRefiner, *, most: int) -> dict[str, list[float]]:
    """The values of `_MEASURES`, without and with the adapter."""
    engine = _engine()
    half = engine.precision == "bf16"
    chosen = [objects[n] for n in np.random.default_rng(0).permutation(len(objects))[:most]]
    result = {}
    for name, used in (("without the adapter", None), ("with the adapter", refiner)):
        curves = [simulate(engine, one, refiner=used, n_clicks=TESTED_CLICKS, half=half)[1] for one in chosen]
        ious = np.array(curves)
        values = [ious[:, n - 1].mean() for n in (1, 3, 5, 10)]
        for target in (0.8, 0.85, 0.9):
            is_reached = ious >= target
            values.append(np.where(is_reached.any(1), is_reached.argmax(1) + 1, TESTED_CLICKS).mean())
        result[name] = [round(float(value), 3) for value in values]
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
