"""A whole raster through a segmentation model: labels on the raster's own pixels, of any size, with bounded memory."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as Xml  # nosec B405 - writes only, never parses

import rasterio
import shapely
from rasterio.windows import Window
from shapely.geometry import Polygon

from ...models.device import choose_device
from ...models.errors import Cancelled
from ...models.file_lock import file_lock
from ...models.progress import NullProgress, Progress, StepProgress
from ...models.semantic.card import SegmenterCard, SegmenterClass, read_card
from ...models.semantic.package import package_sha256
from ...models.semantic.prediction import windows_at_once
from ..errors import JobError, RasterError
from ..raster.access import gdal_access
from ..raster.band_reader import BandReader
from ..raster.blend import Block, Bounds
from ..raster.geodesy import apply_affine
from ..raster.regions import Region, RegionOutliner, thin_strips
from ..raster.tile_store import REMEDY, Layer, TileStore
from .model_rasters import tell_differences
from .page import version
from .segment_blocks import EXTRAS, SegmentTask, Spent, open_model, run_blocks

MOST_OVERLAP = 0.75
"""Largest share of a window that its neighbour sees too: beyond it time grows, and nothing else."""

_BLOCKS_SHARE = 0.95
MOST_WINDOW_PX = 4096
_STRIP_ROWS = 512
_FOLDER_SUFFIX = ".blocks"
_GOES_ON = " with the same output file, which goes on with what is finished; another output starts anew"
_CLASS_TITLES = {"confidence": "Confidence (%)", "entropy": "Entropy (%)"}


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How a raster is segmented.

    `overlap`: share of a window that the next one sees too, 0 to `MOST_OVERLAP`. `flips`: the mean over four mirror
    images. `window_px`: side of the windows in the model's pixels, None for that of its training chips; larger ones see
    more around each place, so that less depends on where they lie. `batch`: windows at once, of larger ones as many as
    have the same pixels. `device`: as `models.device.choose_device` takes it. `scheduler`: address of a
    Dask scheduler, empty to work here.
    """

    overlap: float = 0.25
    flips: bool = False
    window_px: int | None = None
    batch: int = 8
    device: str = "auto"
    scheduler: str = ""

    def __post_init__(self) -> None:
        """Check the numbers. Raises `JobError`."""
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise JobError(f"An overlap of {self.overlap:g} is asked for; choose 0 to {MOST_OVERLAP:g}.")
        if self.batch < 1:
            raise JobError(f"A batch of {self.batch} is asked for; choose at least 1.")


@dataclass(frozen=True, kw_only=True)
class SegmentOutputs:
    """Where results go, as GeoTIFF; None leaves one out.

    `labels`: class ids, 255 where the raster has no data. `confidence`: the largest probability, `entropy`: 0 certain
    to 100 unknown, `probabilities`: one band per class; all in whole per cent, 255 is nodata. `is_temporary`: every run
    has other paths, so that none can go on with the blocks of another.
    """

    labels: Path
    confidence: Path | None = None
    entropy: Path | None = None
    probabilities: Path | None = None
    is_temporary: bool = False

    def __post_init__(self) -> None:
        """Check the names. Raises `RasterError` and `JobError`."""
        paths = [path for path in (self.labels, *(self.path_of(name) for name in EXTRAS)) if path is not None]
        for path in paths:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise RasterError(f"{path} would hold a GeoTIFF; give a name that ends in .tif.")
            if not path.absolute().parent.is_dir():
                raise RasterError(f"The folder of {path} does not exist; choose another one.")
            if path.is_dir():
                raise RasterError(f"{path} is a folder; choose a file for the result.")
        if len({path.absolute() for path in paths}) < len(paths):
            raise JobError(f"Two results have the same name, {paths[0]}; give each its own.")

    def path_of(self, name: str) -> Path | None:
        """The path of one of `EXTRAS`."""
        path: Path | None = getattr(self, name)
        return path

    @property
    def extras(self) -> tuple[str, ...]:
        """Which of `EXTRAS` are wanted."""
        return tuple(name for name in EXTRAS if self.path_of(name) is not None)


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What was done: windows that the model saw, the seconds of the model and of everything, blocks found finished."""

    n_windows: int
    model_s: float
    seconds: float
    n_blocks: int
    n_found: int
    device: str


def segment_raster(
    reader: BandReader,
    package: Path,
    outputs: SegmentOutputs,
    *,
    bounds: tuple[float, float, float, float] | None = None,
    options: SegmentOptions | None = None,
    use_labels: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> Segmented:
    """Segment a raster (`model_rasters.open_for_model`) and write the results; all of them, or none.

    `bounds`: left, top, right, bottom in pixels of the reader's grid, None for the whole raster. Finished blocks lie
    in a hidden folder beside the labels and named after them: after a kill or an error a call with the same inputs and
    the same path for the labels goes on with them and gives the same result. A cancel removes them, and so does an
    error where the outputs are temporary. `use_labels` gets the file of the labels before any result takes its place,
    and may fail or be cancelled like the rest. Raises `RasterError`, `JobError`, `ModelError` and `Cancelled`.
    """
    started = time.perf_counter()
    options, progress = options or SegmentOptions(), progress or NullProgress()
    card, sha256 = read_card(package), package_sha256(package)
    side = _window_px(options, card)
    if any(path.exists() and path.samefile(reader.path) for path in _paths(outputs) if Path(reader.path).exists()):
        raise JobError(f"The result would replace the raster {reader.path} itself; choose another name.")
    device = options.device
    if not options.scheduler:
        choice = choose_device(options.device)
        device = choice.name
        progress.info(choice.reason)
    used = ", ".join(f"{band} as {name}" for band, name in zip(reader.bands, card.bands, strict=True))
    progress.info(f"Bands of the raster that the model sees: {used}.")
    tell_differences(reader, card, progress)
    task = SegmentTask(
        raster=str(Path(reader.path).absolute()) if Path(reader.path).exists() else reader.path,
        identity=reader.identity,
        bands=reader.bands,
        low=reader.stretch.low,
        high=reader.stretch.high,
        crs_wkt=None if reader.crs is None else reader.crs.to_wkt(),
        gsd_m=card.gsd_m,
        package=str(package.absolute()),
        sha256=sha256,
        device=device,
        chip_px=side,
        n_classes=len(card.classes),
        overlap=options.overlap,
        flips=options.flips,
        batch=windows_at_once(card, side, batch=options.batch),
        extras=outputs.extras,
        version=version(),
    )
    limits = _limits(reader, bounds)
    blocks = task.blocks(reader, limits)
    name = outputs.labels.name
    remedy = REMEDY if outputs.is_temporary else REMEDY + _GOES_ON
    try:
        with file_lock(outputs.labels.with_name(f".{name}.lock"), progress=progress):
            folder = outputs.labels.with_name(f".{name}-{task.key(limits)[:12]}{_FOLDER_SUFFIX}")
            _remove_remains(outputs, folder)
            store = TileStore(folder, remedy=remedy)
            pending = [block for block in blocks if not store.holds(block)]
            if len(pending) < len(blocks):
                progress.info(f"{len(blocks) - len(pending)} of {len(blocks)} blocks are finished already; going on.")
            try:
                found = 1 - len(pending) / len(blocks)
                part = StepProgress(progress, found * _BLOCKS_SHARE, _BLOCKS_SHARE)
                spent = _run(task, pending, reader, store, card=card, scheduler=options.scheduler, progress=part)
                if all(store.is_blank(block) for block in blocks):
                    raise _NoDataError(f"{reader.path} has no data in this extent; choose another raster or extent.")
                layers = _layers(task, card, outputs, reader)
                store.write(layers, blocks, bounds=limits, transform=reader.transform, crs=reader.crs, use=use_labels)
                _write_style(outputs.labels, card.classes, remedy=remedy)
            except (Cancelled, _NoDataError):
                store.remove()
                raise
            except BaseException:
                n_kept = sum(store.holds(block) for block in blocks)
                if n_kept and not outputs.is_temporary:
                    progress.info(
                        f"{n_kept} finished blocks are kept in {folder}: a run with the same inputs and the same "
                        "output file goes on with them."
                    )
                else:
                    store.remove()
                raise
            store.remove()
    except OSError as error:
        raise RasterError(
            f"{outputs.labels} cannot be written ({error.strerror or error}); choose a folder with rights."
        ) from error
    progress.set_fraction(1)
    return Segmented(
        n_windows=spent.n_windows,
        model_s=spent.model_s,
        seconds=time.perf_counter() - started,
        n_blocks=len(blocks),
        n_found=len(blocks) - len(pending),
        device=device,
    )


def label_polygons(
    path: Path, classes: Sequence[SegmenterClass]
) -> Generator[tuple[Polygon, SegmenterClass], None, None]:
    """Outlines of the connected areas of each class in labels that `segment_raster` wrote, in their CRS.

    Raises `RasterError` where the file cannot be read.
    """
    outliner = RegionOutliner()
    with _access(path):
        dataset = rasterio.open(path)
    with dataset:

        def placed(regions: list[Region]) -> Iterator[tuple[Polygon, SegmenterClass]]:
            for region in regions:
                polygon = shapely.transform(region.polygon, lambda xy: apply_affine(dataset.transform, xy))
                yield polygon, classes[region.value - 1]

        for row in range(0, dataset.height, _STRIP_ROWS):
            with _access(path):
                strip = dataset.read(1, window=Window(0, row, dataset.width, min(_STRIP_ROWS, dataset.height - row)))
            # 0 is no area to the outliner: classes from 1, and nodata (255) becomes 0.
            for thin in thin_strips(strip + 1):
                yield from placed(outliner.add(thin))
        yield from placed(outliner.finish())


class _NoDataError(JobError):
    """Nothing to segment, now or in another run."""


def _access(path: Path) -> AbstractContextManager[None]:
    return gdal_access(str(path), verb="read", remedy="segment the raster again")


def _window_px(options: SegmentOptions, card: SegmenterCard) -> int:
    side = options.window_px or card.chip_px
    if not card.chip_px <= side <= MOST_WINDOW_PX:
        raise JobError(
            f"Windows of {side} px are asked for; choose {card.chip_px}, the size that '{card.name}' was trained with, "
            f"to {MOST_WINDOW_PX}."
        )
    return side


def _paths(outputs: SegmentOutputs) -> list[Path]:
    return [path for path in (outputs.labels, *map(outputs.path_of, EXTRAS)) if path is not None]


def _run(
    task: SegmentTask,
    blocks: Sequence[Block],
    reader: BandReader,
    store: TileStore,
    *,
    card: SegmenterCard,
    scheduler: str,
    progress: Progress,
) -> Spent:
    if not blocks:
        return Spent(0, 0.0)
    if scheduler:
        from .segment_distributed import run_on_cluster

        return run_on_cluster(task, blocks, address=scheduler, keep=store.put, progress=progress)
    model = open_model(Path(task.package), task.device)
    if task.chip_px > card.chip_px:
        model.check_chips(task.chip_px)
    return run_blocks(task, blocks, model, reader, keep=store.put, progress=progress)


def _limits(reader: BandReader, bounds: tuple[float, float, float, float] | None) -> Bounds:
    """The extent in whole pixels of the raster; every pixel that it touches."""
    rows, cols = reader.shape
    if bounds is None:
        return 0, 0, cols, rows
    down, across = reader.scale
    left, top, right, bottom = bounds[0] / across, bounds[1] / down, bounds[2] / across, bounds[3] / down
    # Corners that only reprojecting moved by a rounding error bring no more pixels.
    slack = 1e-4
    limits = (
        max(0, math.floor(left + slack)),
        max(0, math.floor(top + slack)),
        min(cols, math.ceil(right - slack)),
        min(rows, math.ceil(bottom - slack)),
    )
    if limits[0] >= limits[2] or limits[1] >= limits[3]:
        raise JobError(f"The extent holds no pixel of {reader.path}; choose a larger one.")
    return limits


def _remove_remains(outputs: SegmentOutputs, folder: Path) -> None:
    """Remove what killed runs left of these outputs: blocks, but those of `folder`, and results that are not whole."""
    for path in _paths(outputs):
        left = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{12}}{re.escape(_FOLDER_SUFFIX)}(\.part\.tif.*)?")
        for other in path.absolute().parent.iterdir():
            if not left.fullmatch(other.name) or other == folder.absolute():
                continue
            if other.is_dir():
                TileStore(other).remove()
            else:
                # One that another program holds does no harm but the space that it takes.
                with suppress(OSError):
                    other.unlink()


def _layers(task: SegmentTask, card: SegmenterCard, outputs: SegmentOutputs, reader: BandReader) -> list[Layer]:
    tags = {
        "SEGADAPT_VERSION": version(),
        "SEGADAPT_RASTER": reader.path,
        "SEGADAPT_BANDS": " ".join(map(str, reader.bands)),
        "SEGADAPT_STRETCH_LOW": " ".join(f"{value:.9g}" for value in reader.stretch.low),
        "SEGADAPT_STRETCH_HIGH": " ".join(f"{value:.9g}" for value in reader.stretch.high),
        "SEGADAPT_MODEL": card.name,
        "SEGADAPT_WEIGHTS_SHA256": task.sha256,
        "SEGADAPT_OVERLAP": f"{task.overlap:g}",
        "SEGADAPT_FLIPS": "yes" if task.flips else "no",
    }
    names = {f"CLASS_{one.class_id}": one.name for one in card.classes}
    colours = {one.class_id: one.colour for one in card.classes}
    layers = [Layer(path=outputs.labels, bands=(1,), names=("Class",), colours=colours, tags=tags | names)]
    for extra in task.extras:
        path = outputs.path_of(extra)
        if path is None:
            continue
        titles = card.class_names if extra == "probabilities" else (_CLASS_TITLES[extra],)
        layers.append(Layer(path=path, bands=task.bands_of(extra), names=titles, tags=tags))
    return layers


def _write_style(labels: Path, classes: Sequence[SegmenterClass], *, remedy: str) -> None:
    """The default style beside the labels, where QGIS looks for it: classes by name."""
    root = Xml.Element("qgis", version="3.22.0", styleCategories="Symbology")
    pipe = Xml.SubElement(root, "pipe")
    renderer = Xml.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = Xml.SubElement(renderer, "colorPalette")
    for one in classes:
        colour = "#{:02x}{:02x}{:02x}".format(*one.colour)
        Xml.SubElement(palette, "paletteEntry", value=str(one.class_id), color=colour, alpha="255", label=one.name)
    part = labels.with_name(f".{labels.stem}.part.qml")
    try:
        part.write_bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True))
        part.replace(labels.with_suffix(".qml"))
    except OSError as error:
        raise RasterError(f"The style of {labels} cannot be written ({error.strerror or error}); {remedy}.") from error
    finally:
        part.unlink(missing_ok=True)
