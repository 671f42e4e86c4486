"""The live class map: a few clicked or scribbled places per class, and the class of every pixel at once.

Networks are frozen and run once per window; a click fits a light head (`models/class_head.py`) and applies it to what
is known of the view. What the analyst said of a pixel always holds in the map, whatever the head says.
"""

from __future__ import annotations

import configparser
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from affine import Affine

from ...models.backbone import Backbone
from ...models.class_head import (
    HEADS,
    ClassHeadError,
    ClassModel,
    FeatureSpace,
    FittedHead,
    FloatArray,
    fit_head,
    load_class_model,
    save_class_model,
)
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.class_writer import ClassWriter
from ..raster.windows import Bounds, CoreCell
from .class_blocks import Block, BlockReader
from .scene import Scene

Labels = npt.NDArray[np.uint8]

MOST_CLASSES = 254
ENTROPY_NODATA = 255
"""In rasters of the entropy, whose other values are per cent."""

_MEMORY_BYTES = 768 * 2**20
# Blocks from which the feature space of an image is learned, spread over what is mapped first.
_SPACE_BLOCKS = 4
_CONTEXT_UNITS = 512
_SCRIBBLE_UNITS = 40
_LICENCE_NOTE = (
    "Made from the user's own clicks on features of Apache-2.0 networks (MobileSAM or SAM, EfficientNet-Lite0); "
    "it carries no image data."
)
_AROUND = tuple((down, right) for down in range(3) for right in range(3))
_PALETTE = ((230, 85, 13), (49, 130, 189), (49, 163, 84), (253, 208, 23), (117, 107, 177), (214, 39, 40))


@dataclass(frozen=True)
class MapClass:
    """A class of the map: `class_id` 1 to 254, `colour` red, green, blue 0 to 255."""

    class_id: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ClassMapOptions:
    """`head`: one of `HEADS`. `is_snapped`: whole segments get one class. `window_px`: None follows the raster."""

    head: str = HEADS[0]
    is_snapped: bool = True
    window_px: int | None = None
    with_sam: bool = True

    def __post_init__(self) -> None:
        """Check the head."""
        if self.head not in HEADS:
            raise JobError(f"Unknown head '{self.head}'; choose from {', '.join(HEADS)}.")


@dataclass(frozen=True, eq=False)
class Stroke:
    """What was said with one gesture: `pixels` int64 (N, 2) x, y, and the features found there, one row per unit."""

    pixels: npt.NDArray[np.int64]
    class_id: int
    segment_units: FloatArray
    cell_units: FloatArray


@dataclass(frozen=True, eq=False)
class MapBlock:
    """Part of a finished map at (`row_off`, `col_off`): `labels`, `entropy` in per cent, both uint8 (rows, cols)."""

    row_off: int
    col_off: int
    labels: Labels
    entropy: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class SegmentView:
    """The segments of one block as the head sees them: `probabilities` (S, K), `labels` uint8 (S,)."""

    block: Block
    probabilities: FloatArray
    labels: Labels

    @property
    def entropy(self) -> FloatArray:
        """Uncertainty of each segment, 0 to 1: entropy over its largest possible value."""
        return entropy_of(self.probabilities)


class ClassMapper:
    """A class map in the making; use it from one thread at a time. Pixels are raster pixels, x right and y down.

    `scene` and `backbone` stay the caller's. With a `model` the map starts from what was learned elsewhere; the first
    click begins a map of its own, in the same feature space.
    """

    def __init__(
        self,
        scene: Scene,
        backbone: Backbone | None,
        *,
        classes: Sequence[MapClass] = (),
        options: ClassMapOptions | None = None,
        model: ClassModel | None = None,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self.scene, self._backbone = scene, backbone
        self.options = options or ClassMapOptions()
        self._classes: dict[int, MapClass] = {}
        self._strokes: list[Stroke] = []
        self._blocks: OrderedDict[tuple[int, int, int, int], Block] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._space: FeatureSpace | None = None
        self._head: FittedHead | None = None
        self._history: list[dict[str, Any]] = []
        # Small products: waking torch's own threads for each costs more than they save, on a busy machine twenty
        # times as much. Blocks are dealt to two threads instead.
        self._pool = ThreadPoolExecutor(2, "segadapt-classes", torch.set_num_threads, (1,))
        if model is not None:
            _check_model(model, scene, backbone)
            self.options = replace(
                self.options,
                head=model.head.kind,
                is_snapped=bool(model.card["is_snapped"]),
                window_px=int(model.card["window_px"]),
                with_sam=model.card["sam_sha256"] is not None,
            )
            self._space, self._head = model.space, model.head
            self._history = list(model.card.get("history", []))
            classes = [MapClass(int(c["id"]), c["name"], tuple(c["colour"])) for c in model.card["classes"]]
        self._reader = BlockReader(scene, backbone, window_px=self.options.window_px, with_sam=self.options.with_sam)
        for one in classes:
            self._classes[one.class_id] = one

    @property
    def classes(self) -> list[MapClass]:
        """The classes, in the order in which they were added."""
        return list(self._classes.values())

    @property
    def n_strokes(self) -> int:
        """Clicks and scribbles so far."""
        return len(self._strokes)

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to map with."""
        return bool(self._strokes) or self._head is not None

    def add_class(self, name: str, colour: tuple[int, int, int] | None = None) -> MapClass:
        """Add a class, or recolour the one of this name, and return it."""
        known = next((one for one in self._classes.values() if one.name == name), None)
        class_id = known.class_id if known is not None else max(self._classes, default=0) + 1
        if class_id > MOST_CLASSES:
            raise JobError(f"The map has {MOST_CLASSES} classes already; '{name}' would be one too many.")
        if colour is None:
            colour = known.colour if known is not None else _PALETTE[(class_id - 1) % len(_PALETTE)]
        self._classes[class_id] = MapClass(class_id, name, colour)
        return self._classes[class_id]

    def click(self, x: float, y: float, class_id: int) -> None:
        """Say that the pixel at (`x`, `y`) is of a class; encodes its window where that was not done yet."""
        self.scribble([(x, y)], class_id)

    def scribble(self, points: Sequence[tuple[float, float]], class_id: int) -> None:
        """Say that all pixels on a line through `points` are of a class. Raises `JobError` outside the raster."""
        pixels = self._pixels(points)
        if class_id not in self._classes:
            if not 1 <= class_id <= MOST_CLASSES:
                raise JobError(f"Class {class_id} is none; use 1 to {MOST_CLASSES}.")
            self._classes[class_id] = MapClass(class_id, str(class_id), _PALETTE[(class_id - 1) % len(_PALETTE)])
        if self._head is not None and not self._strokes:
            self._history.append({"event": "clicks take over", "date": _today()})
        self._strokes.append(self._stroke(pixels, class_id))
        self._head = None

    def undo(self) -> bool:
        """Take the last click or scribble back; False where there is none."""
        if not self._strokes:
            return False
        self._strokes.pop()
        self._head = None
        return True

    def set_options(self, options: ClassMapOptions) -> None:
        """Change head or snapping; the clicks stay. The windows cannot change any more."""
        if (options.window_px, options.with_sam) != (self.options.window_px, self.options.with_sam):
            raise JobError("The windows of a class map cannot change; begin a new map.")
        if not self._strokes and self._head is not None and options.head != self.options.head:
            raise JobError(f"A loaded model stays a '{self.options.head}' head; click to begin a map of your own.")
        if self._strokes:
            self._head = None
        self.options = options

    def limited(self, bounds_px: Bounds | None = None) -> tuple[int, int, int, int]:
        """Whole pixels (left, top, right, bottom) of an extent inside the raster. Raises `JobError` for none."""
        rows, cols = self.scene.reader.shape
        if bounds_px is None:
            return 0, 0, cols, rows
        left, top = max(0, int(np.floor(bounds_px[0]))), max(0, int(np.floor(bounds_px[1])))
        right, bottom = min(cols, int(np.ceil(bounds_px[2]))), min(rows, int(np.ceil(bounds_px[3])))
        if left >= right or top >= bottom:
            raise JobError(f"The extent {bounds_px} holds no pixel of {self.scene.reader.path}; choose one inside it.")
        return left, top, right, bottom

    def rows(self, bounds_px: Bounds | None = None) -> Iterator[list[tuple[int, int, int, int]]]:
        """The bounds of the cores of an extent, as far as they lie in it, row by row from the top."""
        left, top, right, bottom = self.limited(bounds_px)
        for _, row in groupby(self._reader.grid((left, top, right, bottom)), lambda cell: cell.core_px[1]):
            yield [
                (max(left, x0), max(top, y0), min(right, x1), min(bottom, y1))
                for x0, y0, x1, y1 in (cell.core_px for cell in row)
            ]

    def missing(self, bounds_px: Bounds | None = None) -> list[CoreCell]:
        """The cores of an extent that are not encoded, to be handed to `encode` one by one."""
        return [cell for cell in self._reader.grid(bounds_px) if cell.core_px not in self._blocks]

    def encode(self, cell: CoreCell) -> None:
        """Describe one core; the slow part, done once while memory lasts."""
        self._block(cell)

    def labels(self, bounds_px: Bounds | None = None, *, only_encoded: bool = False) -> Labels:
        """Class ids of an extent (left, top, right, bottom), uint8 (rows, cols); 0 without data or knowledge.

        Without bounds of the whole raster. With `only_encoded` windows that are not encoded stay 0.
        """
        left, top, right, bottom = self.limited(bounds_px)
        labels = np.zeros((bottom - top, right - left), np.uint8)
        if not self.is_fitted:
            return labels
        self._fitted()

        def fill(block: Block, part: tuple[slice, slice], into: tuple[slice, slice]) -> None:
            labels[into] = self._block_labels(block, part)

        waiting = []
        for cell in self._reader.grid((left, top, right, bottom)):
            if only_encoded and cell.core_px not in self._blocks:
                continue
            part, into = _overlap(cell.core_px, (left, top, right, bottom))
            waiting.append(self._pool.submit(fill, self._block(cell), part, into))
        for future in waiting:
            future.result()
        return labels

    def probabilities(self, bounds_px: Bounds | None = None) -> npt.NDArray[np.float16]:
        """Probabilities of an extent, float16 (K, rows, cols) in the order of `fitted_ids`; 0 without data.

        What was clicked has probability 1.
        """
        left, top, right, bottom = self.limited(bounds_px)
        head = self._fitted()
        found = np.zeros((len(head.classes), bottom - top, right - left), np.float16)
        for cell in self._reader.grid((left, top, right, bottom)):
            part, into = _overlap(cell.core_px, (left, top, right, bottom))
            block = self._block(cell)
            per_pixel = self._block_probabilities(block, part)
            labels = self._block_labels(block, part)
            said = self._said(block)
            for index, class_id in enumerate(head.classes):
                plane = per_pixel[..., index]
                if said is not None:
                    plane = np.where(said[part] > 0, said[part] == class_id, plane)
                found[(index, *into)] = np.where(labels > 0, plane, 0)
        return found

    @property
    def fitted_ids(self) -> list[int]:
        """Ids of the classes that the head tells apart: those with a click."""
        return [int(class_id) for class_id in self._fitted().classes]

    def segment_views(self, bounds_px: Bounds | None = None, *, only_encoded: bool = False) -> Iterator[SegmentView]:
        """The segments of an extent, block by block, for guidance."""
        head = self._fitted()
        for cell in self._reader.grid(self.limited(bounds_px)):
            if only_encoded and cell.core_px not in self._blocks:
                continue
            block = self._block(cell)
            probabilities = head.probabilities(self._scores(block, "segments"))
            yield SegmentView(block, probabilities, head.classes[probabilities.argmax(axis=1)])

    def clicked_pixels(self) -> npt.NDArray[np.int64]:
        """All pixels that were clicked or scribbled over, (N, 2) x, y."""
        return np.concatenate([stroke.pixels for stroke in self._strokes] or [np.zeros((0, 2), np.int64)])

    def blocks(self, bounds_px: Bounds | None = None, *, progress: Progress | None = None) -> Iterator[MapBlock]:
        """Map an extent of any size block by block, without holding more than a few in memory. Raises `Cancelled`."""
        progress = progress or NullProgress()
        bounds = self.limited(bounds_px)
        self._fitted()
        cells = self._reader.grid(bounds)
        for number, cell in enumerate(cells, 1):
            raise_if_cancelled(progress)
            part, into = _overlap(cell.core_px, bounds)
            block = self._block(cell)
            labels = self._block_labels(block, part)
            entropy = np.rint(100 * entropy_of(self._block_probabilities(block, part))).astype(np.uint8)
            said = self._said(block)
            if said is not None:
                entropy[said[part] > 0] = 0
            entropy[labels == 0] = ENTROPY_NODATA
            progress.set_fraction(number / len(cells))
            yield MapBlock(into[0].start + bounds[1], into[1].start + bounds[0], labels, entropy)

    def model(self) -> ClassModel:
        """What was learned, with a card that says from what."""
        head, space = self._fitted(), self._space
        if space is None:
            raise JobError("Nothing was clicked yet; click at least two classes before the model is saved.")
        reader = self.scene.reader
        counts = {self._classes[i].name: sum(stroke.class_id == i for stroke in self._strokes) for i in self._classes}
        event = {
            "event": "clicks",
            "date": _today(),
            "raster": Path(reader.path).name,
            "strokes": {name: count for name, count in counts.items() if count},
        }
        card = {
            "classes": [{"id": c.class_id, "name": c.name, "colour": list(c.colour)} for c in self.classes],
            "bands": list(reader.bands),
            "stretch": list(reader.stretch.as_key()),
            "gsd_m": reader.gsd_m,
            "window_px": self._reader.window_px,
            "is_snapped": self.options.is_snapped,
            "backbone_sha256": None if self._backbone is None else self._backbone.checkpoint_sha256,
            "sam": self.scene.engine.card.name,
            "sam_sha256": self.scene.engine.checkpoint_sha256 if self.options.with_sam else None,
            "history": [*self._history, event] if self._strokes else self._history,
            "segadapt_version": _version(),
            "licence": _LICENCE_NOTE,
        }
        return ClassModel(space, head, card)

    def save(self, path: Path) -> None:
        """Save what was learned as one safetensors file. Raises `ClassHeadError` where that is not possible."""
        save_class_model(self.model(), path)

    def _pixels(self, points: Sequence[tuple[float, float]]) -> npt.NDArray[np.int64]:
        """Every pixel on the line, each once, those outside the raster left out."""
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        if not len(xy) or not np.isfinite(xy).all():
            raise JobError("A scribble without places says nothing; draw it again.")
        along = [xy[:1]]
        for start, end in pairwise(xy):
            n_steps = max(1, int(np.ceil(2 * np.abs(end - start).max())))
            along.append(start + (end - start) * (np.arange(1, n_steps + 1) / n_steps)[:, None])
        pixels = np.unique(np.floor(np.concatenate(along)).astype(np.int64), axis=0)
        rows, cols = self.scene.reader.shape
        inside: npt.NDArray[np.int64] = pixels[((pixels >= 0) & (pixels < (cols, rows))).all(axis=1)]
        if not len(inside):
            raise JobError("That place lies outside the raster; click on its image.")
        return inside

    def _stroke(self, pixels: npt.NDArray[np.int64], class_id: int) -> Stroke:
        segment_units, cell_units = [], []
        for cell in self._reader.grid((*pixels.min(axis=0), *(pixels.max(axis=0) + 1))):
            left, top, right, bottom = cell.core_px
            here = pixels[((pixels >= (left, top)) & (pixels < (right, bottom))).all(axis=1)] - (left, top)
            if not len(here):
                continue
            block = self._block(cell)
            segments = np.unique(block.segments[here[:, 1], here[:, 0]])
            cells = np.unique(here // block.cell_px, axis=0) + 1
            segment_units.append(block.segment_units[segments])
            cell_units.append(block.cell_units[cells[:, 1], cells[:, 0]])
        return Stroke(pixels, class_id, *(_thinned(units) for units in (segment_units, cell_units)))

    def _block(self, cell: CoreCell) -> Block:
        block = self._blocks.get(cell.core_px)
        if block is None:
            raw = self._reader.read_raw(cell)
            if self._space is None:
                self._space = self._reader.fit_space([raw, *self._more_raws(cell)])
            block = self._reader.make_block(raw, self._space)
            self._blocks[cell.core_px] = block
            used = sum(other.n_bytes for other in self._blocks.values())
            while used > self._memory_bytes and len(self._blocks) > 1:
                used -= self._blocks.popitem(last=False)[1].n_bytes
        self._blocks.move_to_end(cell.core_px)
        return block

    def _more_raws(self, first: CoreCell) -> Iterator[Any]:
        """A few more parts of the raster near the first one, so that the space knows more than one place."""
        left, top, right, bottom = first.core_px
        reach = self._reader.window_px
        near = self._reader.grid((left - reach, top - reach, right + reach, bottom + reach))
        others = [cell for cell in near if cell.core_px != first.core_px]
        for cell in others[:: max(1, len(others) // (_SPACE_BLOCKS - 1))][: _SPACE_BLOCKS - 1]:
            yield self._reader.read_raw(cell)

    def _fitted(self) -> FittedHead:
        if self._head is None:
            name = "segment_units" if self.options.is_snapped else "cell_units"
            units = [getattr(stroke, name) for stroke in self._strokes]
            if not units:
                raise ClassHeadError("No place has a class yet; click on one.")
            class_ids = np.concatenate(
                [np.full(len(u), s.class_id, np.uint8) for u, s in zip(units, self._strokes, strict=True)]
            )
            self._head = fit_head(self.options.head, np.concatenate(units), class_ids, context=self._context())
        return self._head

    def _context(self) -> FloatArray | None:
        if self.options.head != "tokens" or not self._blocks:
            return None
        units = np.concatenate([block.segment_units for block in self._blocks.values()])
        return units[:: max(1, len(units) // _CONTEXT_UNITS)].astype(np.float32)

    def _scores(self, block: Block, what: str) -> FloatArray:
        """Scores (S, K) of segments or (r + 2, c + 2, K) of cells; columns of earlier supports are kept."""
        head = self._fitted()
        known = block.kept.get(what)
        if known is not None and known[0] is head:
            return known[2]  # type: ignore[no-any-return]  # kept by this function
        units = block.segment_units if what == "segments" else block.cell_units
        flat = units.reshape(-1, units.shape[-1])
        columns = self._columns(head, flat, known)
        scores = head.scores(columns).reshape(*units.shape[:-1], -1)
        block.kept[what] = (head, columns, scores)
        return scores

    @staticmethod
    def _columns(head: FittedHead, units: npt.NDArray[Any], known: Any) -> FloatArray:
        if known is None or head.kind == "tokens" or known[0].kind == "tokens":
            return head.columns(units)
        earlier = known[0].supports
        n_common = min(len(earlier), len(head.supports))
        if not n_common or not np.array_equal(earlier[:n_common], head.supports[:n_common]):
            return head.columns(units)
        more = head.columns(units, start=n_common)
        return np.concatenate([known[1][:, :n_common], more], axis=1)

    def _block_labels(self, block: Block, part: tuple[slice, slice]) -> Labels:
        head = self._fitted()
        if self.options.is_snapped:
            of_segments = head.classes[self._scores(block, "segments").argmax(axis=1)]
            labels: Labels = of_segments.take(block.segments[part])
        else:
            labels = _enlarged_labels(self._scores(block, "cells"), head.classes, block, part)
        said = self._said(block)
        if said is not None:
            np.copyto(labels, said[part], where=said[part] > 0)
        if block.valid is not None:
            labels[~block.valid[part]] = 0
        return labels

    def _block_probabilities(self, block: Block, part: tuple[slice, slice]) -> FloatArray:
        head = self._fitted()
        if self.options.is_snapped:
            probabilities = head.probabilities(self._scores(block, "segments"))
            of_pixels: FloatArray = probabilities[block.segments[part]]
            return of_pixels
        return head.probabilities(_enlarged(self._scores(block, "cells"), block, part))

    def _said(self, block: Block) -> Labels | None:
        """What the analyst said, uint8 (rows, cols) of a block, 0 where nothing: the unit around each clicked pixel.

        None where nothing was said in all of the block.

        Where two classes were clicked in one unit, each of its pixels goes to the nearest click; the pixels
        themselves have their own class, the last one said.
        """
        key = (len(self._strokes), self.options.is_snapped)
        known = block.kept.get("said")
        if known is not None and known[0] == key and known[1] is (self._strokes[-1] if self._strokes else None):
            return known[2]  # type: ignore[no-any-return]  # kept by this function
        left, top, right, bottom = block.core_px
        places: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for stroke in self._strokes:
            inside = ((stroke.pixels >= (left, top)) & (stroke.pixels < (right, bottom))).all(axis=1)
            for x, y in stroke.pixels[inside] - (left, top):
                unit: tuple[int, ...] = (
                    (int(block.segments[y, x]),)
                    if self.options.is_snapped
                    else (int(y) // block.cell_px, int(x) // block.cell_px)
                )
                places.setdefault(unit, []).append((int(x), int(y), stroke.class_id))
        if not places:
            return None
        said = np.zeros(block.segments.shape, np.uint8)
        for unit, clicks in places.items():
            rows, cols = self._pixels_of(block, unit, clicks)
            nearest = (
                np.argmin([(cols - x) ** 2 + (rows - y) ** 2 for x, y, _ in clicks], axis=0)
                if len({c for *_, c in clicks}) > 1
                else np.zeros(len(rows), np.intp)
            )
            said[rows, cols] = np.array([c for *_, c in clicks], np.uint8)[nearest]
            for x, y, class_id in clicks:
                said[y, x] = class_id
        block.kept["said"] = (key, self._strokes[-1] if self._strokes else None, said)
        return said

    def _pixels_of(
        self, block: Block, unit: tuple[int, ...], clicks: Sequence[tuple[int, int, int]]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        if not self.options.is_snapped:
            side = block.cell_px
            rows, cols = np.mgrid[unit[0] * side : (unit[0] + 1) * side, unit[1] * side : (unit[1] + 1) * side]
            inside = (rows < block.segments.shape[0]) & (cols < block.segments.shape[1])
            return rows[inside], cols[inside]
        # A segment is small: look for its pixels around the click only.
        x, y, _ = clicks[0]
        reach = 8 * int(np.sqrt(block.sizes_px[unit[0]])) + 8
        top, left = max(0, y - reach), max(0, x - reach)
        rows, cols = np.nonzero(block.segments[top : y + reach, left : x + reach] == unit[0])
        return rows + top, cols + left


def load_mapper(path: Path, scene: Scene, backbone: Backbone | None) -> ClassMapper:
    """A mapper that maps with a saved model. Raises `ClassHeadError` and, for other networks, `JobError`."""
    return ClassMapper(scene, backbone, model=load_class_model(path))


def write_class_map(
    mapper: ClassMapper,
    path: Path,
    *,
    entropy_path: Path | None = None,
    bounds_px: Bounds | None = None,
    progress: Progress | None = None,
) -> Iterator[float]:
    """Write the map of an extent as GeoTIFF with a colour table; yields the fraction done after each block.

    The raster has the pixels of the input inside the extent; 0 is nodata. `entropy_path`: another one with the
    uncertainty in per cent. Nothing is left at the paths where the work is stopped or fails.
    """
    reader = mapper.scene.reader
    left, top, right, bottom = mapper.limited(bounds_px)
    grid: dict[str, Any] = {
        "shape": (bottom - top, right - left),
        "transform": reader.transform @ Affine.translation(left, top),
        "crs": reader.crs,
        "tags": mapper.scene.provenance(),
    }
    colours = {one.class_id: one.colour for one in mapper.classes}
    names = {one.class_id: one.name for one in mapper.classes}
    area, done = (bottom - top) * (right - left), 0
    with ClassWriter(path, colours=colours, names=names, **grid) as writer:
        entropy: ClassWriter | None = (
            None if entropy_path is None else ClassWriter(entropy_path, nodata=ENTROPY_NODATA, **grid)
        )
        try:
            for block in mapper.blocks((left, top, right, bottom), progress=progress):
                row_off, col_off = block.row_off - top, block.col_off - left
                writer.write(block.labels, row_off=row_off, col_off=col_off)
                if entropy is not None:
                    entropy.write(block.entropy, row_off=row_off, col_off=col_off)
                done += block.labels.size
                yield done / area
            writer.commit()
            if entropy is not None:
                entropy.commit()
        finally:
            if entropy is not None:
                entropy.discard()


def entropy_of(probabilities: FloatArray) -> FloatArray:
    """Entropy of probabilities (..., K) over its largest possible value: 0 certain to 1 unknown."""
    n_classes = probabilities.shape[-1]
    if n_classes < 2:
        return np.zeros(probabilities.shape[:-1], np.float32)
    clipped = np.maximum(probabilities, 1e-6)
    found: FloatArray = -(clipped * np.log(clipped)).sum(axis=-1) / np.log(n_classes)
    return np.minimum(found, 1.0).astype(np.float32)


def _check_model(model: ClassModel, scene: Scene, backbone: Backbone | None) -> None:
    """Raise `JobError` where the features at hand are not those that the model was made from."""
    card = model.card
    engine = scene.engine
    if card["sam_sha256"] not in (None, engine.checkpoint_sha256):
        raise JobError(
            f"The class map model was made with the weights of '{card['sam']}', not with those of "
            f"'{engine.card.name}'; choose that model."
        )
    found = None if backbone is None else backbone.checkpoint_sha256
    if card["backbone_sha256"] != found:
        raise JobError("The class map model was made with another backbone; get the weights that its card names.")


def _thinned(parts: Sequence[npt.NDArray[Any]]) -> FloatArray:
    """Units of a stroke, at most a few dozen: a long scribble says one thing, and not everything."""
    units: FloatArray = np.concatenate(parts).astype(np.float32)
    return units[:: max(1, -(-len(units) // _SCRIBBLE_UNITS))]


def _overlap(
    core_px: tuple[int, int, int, int], bounds: tuple[int, int, int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a core and an extent meet: in the core's array and in the extent's."""
    left, top = max(core_px[0], bounds[0]), max(core_px[1], bounds[1])
    right, bottom = min(core_px[2], bounds[2]), min(core_px[3], bounds[3])

    def within(origin: tuple[int, ...]) -> tuple[slice, slice]:
        return slice(top - origin[1], max(top, bottom) - origin[1]), slice(
            left - origin[0], max(left, right) - origin[0]
        )

    return within(core_px), within(bounds)


def _weights(side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of the `side` pixels of a cell: the first of two cells it lies between (-1 or 0), and its share."""
    offset = (np.arange(side) + 0.5) / side - 0.5
    return np.floor(offset).astype(np.intp), (offset % 1).astype(np.float32)


def _enlarged(scores: FloatArray, block: Block, part: tuple[slice, slice]) -> FloatArray:
    """Bilinear scores (rows, cols, K) of a part of a block, from cells with a margin of one."""
    side = block.cell_px
    first, share = _weights(side)

    def axis(values: FloatArray, span: slice) -> FloatArray:
        pixel = np.arange(span.start, span.stop)
        cell, place = pixel // side + 1 + first[pixel % side], share[pixel % side]
        shape_ = (-1, *([1] * (values.ndim - 1)))
        mixed: FloatArray = values[cell] * (1 - place).reshape(shape_) + values[cell + 1] * place.reshape(shape_)
        return mixed

    tall = axis(scores, part[0])
    return np.ascontiguousarray(axis(tall.swapaxes(0, 1), part[1]).swapaxes(0, 1))


def _enlarged_labels(
    scores: FloatArray, class_ids: npt.NDArray[np.uint8], block: Block, part: tuple[slice, slice]
) -> Labels:
    """The class of the highest of `_enlarged(...)`, exactly, at a fraction of its cost: uint8 (rows, cols).

    Where a class leads in a cell and in its eight neighbours it leads everywhere between them, so that only cells at
    borders are interpolated.
    """
    side = block.cell_px
    leading = class_ids[torch.from_numpy(scores).argmax(dim=2).numpy()]
    inner = leading[1:-1, 1:-1]
    rows, cols = inner.shape
    same = np.ones(inner.shape, np.bool_)
    for down, right in _AROUND:
        same &= leading[down : down + rows, right : right + cols] == inner
    labels = inner.repeat(side, axis=0).repeat(side, axis=1)
    row, col = np.nonzero(~same)
    if len(row):
        around = np.stack([scores[row + down, col + right] for down, right in _AROUND])
        first, share = _weights(side)
        line = np.zeros((side, 3), np.float32)
        line[np.arange(side), 1 + first] += 1 - share
        line[np.arange(side), 2 + first] += share
        weights = np.einsum("ad,be->abde", line, line).reshape(side * side, 9)
        mixed = torch.from_numpy(weights) @ torch.from_numpy(around.reshape(9, -1))
        highest = mixed.reshape(side * side, len(row), -1).argmax(dim=2).numpy()
        tiles = labels.reshape(rows, side, cols, side).transpose(0, 2, 1, 3)
        tiles[row, col] = class_ids[highest.T].reshape(-1, side, side)
    return np.ascontiguousarray(labels[part])


def _version() -> str:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(Path(__file__).resolve().parents[2] / "metadata.txt", encoding="utf-8")
    return metadata.get("general", "version", fallback="unknown")


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
