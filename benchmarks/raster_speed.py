"""Whole rasters through a segmentation model against the model alone, and where the time goes.

    python -m segadapt.benchmarks.raster_speed          needs no QGIS; `make bench` has the short table

Speeds are megapixels of windows per second. "Alone": the model, called batch by batch on windows that are on the device
already; "fed": `BatchPredictor` alone, fetching windows from memory as the job does. A job's parts are
seconds: all of it, its blocks, of these the model's (with waiting for it) and those without the model (waiting for the
reader or the writer); then what its threads did meanwhile: reading, working out and packing the answers, putting them
on the disk; at the end, putting the GeoTIFF together, and opening the model.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from segadapt.benchmarks.measures import Row, sample_chip
from segadapt.models.device import choose_device
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass, read_card
from segadapt.models.semantic.package import load_segmenter, save_segmenter
from segadapt.models.semantic.prediction import BatchPredictor, precision_of, probabilities
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, Segmenter, build_segmenter
from segadapt.processing.jobs import segment_blocks, segment_raster
from segadapt.processing.jobs.segment_raster import Segmented, SegmentOptions, SegmentOutputs
from segadapt.processing.raster.band_reader import BandReader, open_bands
from segadapt.processing.raster.tile_store import TileStore

SAMPLE_MODEL = Path(segment_raster.__file__).parents[2] / "plugin/resources/sample/buildings_60cm.safetensors"
_CHIP_PX = 1024
_PARTS: dict[str, tuple[Any, str]] = {
    "blocks": (segment_raster, "run_blocks"),
    "reading": (BandReader, "read"),
    "answers": (segment_blocks, "_tile"),
    "disk": (TileStore, "put"),
    "GeoTIFF": (TileStore, "write"),
    "opening": (segment_raster, "open_model"),
}


def raster_rows(runs: int) -> list[Row]:
    """Rows (resolution, windows, speed relative to the model alone) of FPN on EfficientNet-Lite0, windows of 256 px.

    Random weights, one thread of the CPU and 4 megapixels, or the GPU and 67; eight windows at once.
    """
    torch.set_num_threads(1)
    device = choose_device().name
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        raster = write_raster(Path(name) / "raster.tif", n_tiles=2 if device == "cpu" else 8, gsd_m=0.3)
        for title, gsd_m in (("the model's", 0.3), ("a little finer", 0.34), ("twice as fine", 0.6)):
            package = usual_model(Path(name) / "model.safetensors", gsd_m=gsd_m)
            model = load_segmenter(package).to(device)
            ratios = []
            for _ in range(runs + 1):
                done, _ = run(raster, package, device=device, batch=8)
                predict = functools.partial(probabilities, model)
                alone = seconds_per_window(predict, model, batch=8, n_windows=done.n_windows)
                ratios.append(alone * done.n_windows / done.seconds)
            rows.append((title, str(done.n_windows), f"{statistics.median(ratios[1:]):.2f}"))
    return rows


def usual_model(path: Path, *, gsd_m: float) -> Path:
    """A package of usual size: FPN on EfficientNet-Lite0, two classes, random weights."""
    classes = (SegmenterClass(0, "other", (190, 190, 180)), SegmenterClass(1, "building", (214, 80, 60)))
    card = SegmenterCard(
        name="speed", decoder="fpn", encoder=DEFAULT_ENCODER, bands=("red", "green", "blue"), classes=classes,
        gsd_m=gsd_m, chip_px=256, mean=(127.0,) * 3, std=(60.0,) * 3, licence="none", made_on="2026-01-01",
        segadapt_version="none",
    )  # fmt: skip
    save_segmenter(build_segmenter(card), path)
    return path


def write_raster(path: Path, *, n_tiles: int, gsd_m: float, compress: str = "NONE") -> Path:
    """A raster of `n_tiles` x `n_tiles` sample chips of 1024 px, RGB."""
    chip, side = sample_chip(), n_tiles * _CHIP_PX
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    transform = rasterio.Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_700_000)
    more = {"compress": compress, "num_threads": "ALL_CPUS"}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile, **more) as dataset:
        row = np.tile(chip, (1, 1, n_tiles))
        for top in range(0, side, _CHIP_PX):
            dataset.write(row, window=((top, top + _CHIP_PX), (0, side)))
    return path


def seconds_per_window(
    predict: Callable[[torch.Tensor], torch.Tensor],
    model: Segmenter,
    *,
    batch: int,
    n_windows: int,
    device: str = "cpu",
) -> float:
    """Seconds per window of a model alone, of at least `n_windows`, whose pixels lie on `device`."""
    side, chip = model.card.chip_px, sample_chip()
    step = (_CHIP_PX - side) // batch
    windows = torch.from_numpy(
        np.stack([chip[: len(model.card.bands), at : at + side, at : at + side] for at in range(0, batch * step, step)])
    )
    windows = windows.to(device) if device != "cpu" or not torch.cuda.is_available() else windows.pin_memory()
    for _ in range(3):
        predict(windows)
    _wait()
    started, n_batches = time.perf_counter(), max(1, n_windows // batch)
    for _ in range(n_batches):
        predict(windows)
    _wait()
    return (time.perf_counter() - started) / (n_batches * batch)


def run(raster: Path, package: Path, *, device: str, batch: int) -> tuple[Segmented, dict[str, float]]:
    """What the job did, and the seconds of its parts."""
    spent = dict.fromkeys(_PARTS, 0.0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for part, (owner, name) in _PARTS.items():
            stack.enter_context(_timed(owner, name, spent, part))
        card = read_card(package)
        reader = stack.enter_context(open_bands(str(raster), gsd_m=card.gsd_m, names=card.bands))
        done = segment_raster.segment_raster(
            reader,
            package,
            SegmentOutputs(labels=Path(folder) / "labels.tif"),
            options=SegmentOptions(device=device, batch=batch),
        )
    return done, spent


@contextmanager
def _timed(owner: Any, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Add up the seconds of a function, of all threads."""
    original, lock = getattr(owner, name), threading.Lock()

    def timed(*values: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*values, **named)
        finally:
            with lock:
                spent[part] += time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Parse the command line and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=8, help="side of the raster in chips of 1024 px (8)")
    parser.add_argument("--large", type=int, default=0, help="side of a larger raster, none by default")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="windows at once (8 32)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs after one that is not (3)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = choose_device(arguments.device).name
    print(f"{choose_device(arguments.device).reason} {precision_of(device)}, torch {torch.__version__}\n")
    head = (
        "model",
        "raster",
        "batch",
        "windows",
        "alone",
        "fed",
        "job",
        "job / alone",
        "job / fed",
        "first run s",
    )
    parts = ("all", "blocks", "model", "without", *list(_PARTS)[1:])
    print("| " + " | ".join((*head, *parts)) + " |\n" + "|---" * (len(head) + len(parts)) + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"sample": SAMPLE_MODEL, "FPN, Lite0": usual_model(folder / "usual.safetensors", gsd_m=0.6)}
        settings = [
            (arguments.tiles, 0.6, "NONE"),
            (arguments.tiles, 0.6, "DEFLATE"),
            (arguments.tiles, 0.53, "NONE"),
            (arguments.tiles, 0.3, "NONE"),
            *([(arguments.large, 0.6, "NONE")] if arguments.large else []),
        ]
        for n_tiles, gsd_m, compress in settings:
            raster = write_raster(folder / "raster.tif", n_tiles=n_tiles, gsd_m=gsd_m, compress=compress)
            for title, package in models.items():
                for batch in arguments.batches:
                    about = f"{(n_tiles * _CHIP_PX) ** 2 / 1e6:.0f} MP, {gsd_m} m, {compress}"
                    row = _row(raster, package, device=device, batch=batch, runs=arguments.runs)
                    print("| " + " | ".join((title, about, *row)) + " |", flush=True)


def _row(raster: Path, package: Path, *, device: str, batch: int, runs: int) -> Row:
    model = load_segmenter(package).to(device)
    model.eval()
    first, _ = run(raster, package, device=device, batch=batch)
    fed = BatchPredictor(model, batch=batch)
    found: list[tuple[float, ...]] = []
    for _ in range(runs):
        done, spent = run(raster, package, device=device, batch=batch)
        n = done.n_windows
        both = (
            seconds_per_window(functools.partial(probabilities, model), model, batch=batch, n_windows=n, device=device),
            seconds_per_window(fed, model, batch=batch, n_windows=n),
        )
        blocks, *others = spent.values()
        found.append((*both, done.seconds, blocks, done.model_s, blocks - done.model_s, *others))
    alone, feeding, seconds, *parts = (statistics.median(column) for column in zip(*found, strict=True))
    megapixels, n_windows = model.card.chip_px**2 / 1e6, first.n_windows
    speeds = (megapixels / alone, megapixels / feeding, megapixels * n_windows / seconds)
    ratios = (alone * n_windows / seconds, feeding * n_windows / seconds)
    return (
        str(batch),
        str(n_windows),
        *(f"{speed:.1f}" for speed in speeds),
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{first.seconds:.1f}",
        *(f"{part:.2f}" for part in (seconds, *parts)),
    )


if __name__ == "__main__":
    main()
