"""The live class map: a few clicked or scribbled places per class, and the class of every pixel at once.

Networks are frozen and run once per window; a click fits a light head (`models/class_head.py`) and applies it to what
is known of the view. What the analyst said of a pixel always holds in the map, whatever the head says.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...models.backbone import Backbone
from ...models.class_head import HEADS, ClassHeadError, FeatureSpace, FittedHead, FloatArray, fit_head
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ..errors import JobError
from ..raster.windows import Bounds, CoreCell
from .block_store import BlockStore
from .class_blocks import Block, BlockReader
from .class_scores import Part, labels_of, overlap, probabilities_of, scores_of
from .class_strokes import Stroke, pixels_along, said_in, thinned
from .scene import Scene

Labels = npt.NDArray[np.uint8]

MOST_CLASSES = 254
ENTROPY_NODATA = 255
"""In rasters of the entropy, whose other values are per cent."""

_MEMORY_BYTES = 768 * 2**20
_CONTEXT_UNITS = 512
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


Event = Mapping[str, Any]
"""What happened to a model: `event` in words, `date`, and what belongs to it."""


@dataclass(frozen=True, eq=False)
class Learned:
    """What clicks teach: a `head` in a feature `space`, and the `history` of both, the oldest event first."""

    space: FeatureSpace
    head: FittedHead
    history: tuple[Event, ...] = ()


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

    `scene` and `backbone` stay the caller's. The map may start from what was `learned` elsewhere; the first click
    begins a map of its own, in the same feature space.
    """

    def __init__(
        self,
        scene: Scene,
        backbone: Backbone | None,
        *,
        classes: Sequence[MapClass] = (),
        options: ClassMapOptions | None = None,
        learned: Learned | None = None,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self.scene, self._backbone = scene, backbone
        self.options = options or ClassMapOptions()
        self._classes: dict[int, MapClass] = {}
        self._strokes: list[Stroke] = []
        self._undone: list[Stroke] = []
        self._head: FittedHead | None = None
        self._history: tuple[Event, ...] = ()
        # Small products: waking torch's own threads for each costs more than they save, on a busy machine twenty
        # times as much. Blocks are dealt to two threads instead.
        self._pool = ThreadPoolExecutor(2, "segadapt-classes", torch.set_num_threads, (1,))
        if learned is not None:
            self._head, self._history = learned.head, learned.history
        self._reader = BlockReader(scene, backbone, window_px=self.options.window_px, with_sam=self.options.with_sam)
        space = None if learned is None else learned.space
        self._blocks = BlockStore(self._reader, space=space, memory_bytes=memory_bytes)
        for one in classes:
            self._classes[one.class_id] = one

    @property
    def classes(self) -> list[MapClass]:
        """The classes, in the order in which they were added."""
        return list(self._classes.values())

    @property
    def window_px(self) -> int:
        """Side of the windows in raster pixels."""
        return self._reader.window_px

    @property
    def backbone_sha256(self) -> str | None:
        """Digest of the backbone's weights, None without one."""
        return None if self._backbone is None else self._backbone.checkpoint_sha256

    @property
    def n_strokes(self) -> int:
        """Clicks and scribbles so far."""
        return len(self._strokes)

    @property
    def strokes(self) -> list[tuple[tuple[tuple[float, float], ...], MapClass]]:
        """The points of each click (one) and scribble, raster pixels, with its class, in the order of the clicks."""
        return [(stroke.points, self._classes[stroke.class_id]) for stroke in self._strokes]

    @property
    def n_undone(self) -> int:
        """Clicks and scribbles that `redo` brings back."""
        return len(self._undone)

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

    def rename_class(self, old: str, new: str) -> None:
        """Give a class another name where it is known; a name that another one has makes one class of both.

        Raises `JobError` where a loaded model tells the two apart.
        """
        ids = {one.name: class_id for class_id, one in self._classes.items()}
        if old not in ids:
            return
        if new not in ids:
            self._classes[ids[old]] = replace(self._classes[ids[old]], name=new)
            return
        if self._head is not None and not self._strokes:
            raise JobError(f"A loaded model tells '{old}' from '{new}'; click to begin a map of your own.")
        del self._classes[ids[old]]
        now = {ids[old]: ids[new]}
        # New objects, all of them: by the last one a block knows whether what was said there is still up to date.
        self._strokes, self._undone = (
            [replace(stroke, class_id=now.get(stroke.class_id, stroke.class_id)) for stroke in strokes]
            for strokes in (self._strokes, self._undone)
        )
        self._head = None

    def click(self, x: float, y: float, class_id: int) -> None:
        """Say that the pixel at (`x`, `y`) is of a class; encodes its window where that was not done yet."""
        self.scribble([(x, y)], class_id)

    def scribble(self, points: Sequence[tuple[float, float]], class_id: int) -> None:
        """Say that all pixels on a line through `points` are of a class. Raises `JobError` outside the raster."""
        pixels = pixels_along(points, self.scene.reader.shape)
        if class_id not in self._classes:
            if not 1 <= class_id <= MOST_CLASSES:
                raise JobError(f"Class {class_id} is none; use 1 to {MOST_CLASSES}.")
            self._classes[class_id] = MapClass(class_id, str(class_id), _PALETTE[(class_id - 1) % len(_PALETTE)])
        if self._head is not None and not self._strokes:
            self._history = (*self._history, {"event": "clicks take over", "date": _today()})
        self._strokes.append(self._stroke(points, pixels, class_id))
        self._undone.clear()
        self._head = None

    def undo(self) -> bool:
        """Take the last click or scribble back; False where there is none."""
        if not self._strokes:
            return False
        self._undone.append(self._strokes.pop())
        self._head = None
        return True

    def redo(self) -> bool:
        """Bring the click or scribble back that was taken back last; False where there is none, or a new one since."""
        if not self._undone:
            return False
        self._strokes.append(self._undone.pop())
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

    def check_output(self, path: Path) -> None:
        """Raise `JobError` where a file that is to be written is one that the raster is read from."""
        if self.scene.reader.is_read_from(path):
            raise JobError(f"The result would replace {path}, from which the raster is read; choose another name.")

    def as_now(self) -> ClassMapper:
        """The map as it is: clicks and options that follow change this one alone. Both share what was encoded."""
        now = copy.copy(self)
        now._classes, now._strokes, now._undone = dict(self._classes), list(self._strokes), list(self._undone)
        return now

    def moved_to(self, scene: Scene, backbone: Backbone | None) -> ClassMapper:
        """The same clicks on another scene of the same raster, as after a device was replaced; it is encoded anew."""
        moved = ClassMapper(scene, backbone, options=self.options, memory_bytes=self._blocks.memory_bytes)
        moved._classes, moved._strokes, moved._history = dict(self._classes), list(self._strokes), self._history
        moved._undone, moved._head = list(self._undone), self._head
        moved._blocks.space = self._blocks.space
        return moved

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
        return self._blocks.missing(bounds_px)

    def beyond(self, bounds_px: Bounds) -> list[CoreCell]:
        """The cores that are not encoded, nearest to an extent first: as many as memory holds beside what is there."""
        return self._blocks.beyond(bounds_px)

    def is_too_large(self) -> bool:
        """Say whether the whole raster is more than memory holds, judged by what is encoded of it."""
        return self._blocks.is_too_small()

    def encode(self, cell: CoreCell) -> None:
        """Describe one core; the slow part, done once while memory lasts."""
        self._blocks.block(cell)

    def encoding(self, cell: CoreCell) -> Generator[None, None, Block]:
        """`encode` in steps, between which the map may be asked and clicked on."""
        return self._blocks.encoding(cell)

    def labels(self, bounds_px: Bounds | None = None, *, only_encoded: bool = False) -> Labels:
        """Class ids of an extent (left, top, right, bottom), uint8 (rows, cols); 0 without data or knowledge.

        Without bounds of the whole raster. With `only_encoded` windows that are not encoded stay 0.
        """
        left, top, right, bottom = self.limited(bounds_px)
        labels = np.zeros((bottom - top, right - left), np.uint8)
        if not self.is_fitted:
            return labels
        self._fitted()

        def fill(block: Block, part: Part, into: Part) -> None:
            labels[into] = self._block_labels(block, part)

        waiting = []
        for block in self._known(self._reader.grid((left, top, right, bottom)), only_encoded=only_encoded):
            part, into = overlap(block.core_px, (left, top, right, bottom))
            waiting.append(self._pool.submit(fill, block, part, into))
        for future in waiting:
            future.result()
        return labels

    def segment_views(self, bounds_px: Bounds | None = None, *, only_encoded: bool = False) -> Iterator[SegmentView]:
        """The segments of an extent, block by block, for guidance."""
        head = self._fitted()
        for block in self._known(self._reader.grid(self.limited(bounds_px)), only_encoded=only_encoded):
            probabilities = head.probabilities(scores_of(head, block, "segments"))
            yield SegmentView(block, probabilities, head.classes[probabilities.argmax(axis=1)])

    def clicked_pixels(self) -> npt.NDArray[np.int64]:
        """All pixels that were clicked or scribbled over, (N, 2) x, y."""
        return np.concatenate([stroke.pixels for stroke in self._strokes] or [np.zeros((0, 2), np.int64)])

    def said_units(self) -> Iterator[FloatArray]:
        """Features (D,) of each segment that was clicked or scribbled over."""
        return chain.from_iterable(stroke.segment_units for stroke in self._strokes)

    def blocks(self, bounds_px: Bounds | None = None, *, progress: Progress | None = None) -> Iterator[MapBlock]:
        """Map an extent of any size block by block, without holding more than a few in memory. Raises `Cancelled`."""
        progress = progress or NullProgress()
        bounds = self.limited(bounds_px)
        self._fitted()
        cells = self._reader.grid(bounds)
        for number, cell in enumerate(cells, 1):
            raise_if_cancelled(progress)
            part, into = overlap(cell.core_px, bounds)
            block = self._blocks.passing(cell)
            labels = self._block_labels(block, part)
            entropy = np.rint(100 * entropy_of(self._block_probabilities(block, part))).astype(np.uint8)
            said = self._said(block)
            if said is not None:
                entropy[said[part] > 0] = 0
            entropy[labels == 0] = ENTROPY_NODATA
            progress.set_fraction(number / len(cells))
            yield MapBlock(into[0].start + bounds[1], into[1].start + bounds[0], labels, entropy)

    def learned(self) -> Learned:
        """What was learned so far. Raises `ClassHeadError` or `JobError` where nothing was."""
        head, space = self._fitted(), self._blocks.space
        if space is None:
            raise JobError("Nothing was clicked yet; click at least two classes before the model is saved.")
        event = {
            "event": "clicks",
            "date": _today(),
            "raster": Path(self.scene.reader.path).name,
            "strokes": dict(Counter(self._classes[stroke.class_id].name for stroke in self._strokes)),
        }
        return Learned(space, head, (*self._history, event) if self._strokes else self._history)

    def _known(self, cells: Sequence[CoreCell], *, only_encoded: bool) -> Iterator[Block]:
        """What is encoded of a view, which stays; or all, of which the view loses nothing."""
        for cell in cells:
            if not only_encoded:
                yield self._blocks.passing(cell)
            elif cell in self._blocks:
                yield self._blocks.block(cell)

    def _stroke(self, points: Sequence[tuple[float, float]], pixels: npt.NDArray[np.int64], class_id: int) -> Stroke:
        segment_units, cell_units = [], []
        for cell in self._reader.grid((*pixels.min(axis=0), *(pixels.max(axis=0) + 1))):
            left, top, right, bottom = cell.core_px
            here = pixels[((pixels >= (left, top)) & (pixels < (right, bottom))).all(axis=1)] - (left, top)
            if not len(here):
                continue
            block = self._blocks.block(cell)
            segments = np.unique(block.segments[here[:, 1], here[:, 0]])
            cells = np.unique(here // block.cell_px, axis=0) + 1
            segment_units.append(block.segment_units[segments])
            cell_units.append(block.cell_units[cells[:, 1], cells[:, 0]])
        return Stroke(tuple(points), pixels, class_id, *(thinned(units) for units in (segment_units, cell_units)))

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
        known = [block.segment_units for block in self._blocks]
        if self.options.head != "tokens" or not known:
            return None
        units = np.concatenate(known)
        return units[:: max(1, len(units) // _CONTEXT_UNITS)].astype(np.float32)

    def _block_labels(self, block: Block, part: Part) -> Labels:
        labels = labels_of(self._fitted(), block, part, is_snapped=self.options.is_snapped)
        said = self._said(block)
        if said is not None:
            np.copyto(labels, said[part], where=said[part] > 0)
        if block.valid is not None:
            labels[~block.valid[part]] = 0
        return labels

    def _block_probabilities(self, block: Block, part: Part) -> FloatArray:
        return probabilities_of(self._fitted(), block, part, is_snapped=self.options.is_snapped)

    def _said(self, block: Block) -> Labels | None:
        """What the analyst said in a block, as `said_in` gives it, kept until the next stroke."""
        last = self._strokes[-1] if self._strokes else None
        key = (len(self._strokes), self.options.is_snapped)
        known = block.kept.get("said")
        if known is not None and known[0] == key and known[1] is last:
            return known[2]  # type: ignore[no-any-return]  # kept by this function
        said = said_in(block, self._strokes, is_snapped=self.options.is_snapped)
        if said is not None:
            block.kept["said"] = (key, last, said)
        return said


def entropy_of(probabilities: FloatArray) -> FloatArray:
    """Entropy of probabilities (..., K) over its largest possible value: 0 certain to 1 unknown."""
    n_classes = probabilities.shape[-1]
    if n_classes < 2:
        return np.zeros(probabilities.shape[:-1], np.float32)
    clipped = np.maximum(probabilities, 1e-6)
    found: FloatArray = -(clipped * np.log(clipped)).sum(axis=-1) / np.log(n_classes)
    return np.minimum(found, 1.0).astype(np.float32)


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
