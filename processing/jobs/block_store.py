"""What a class map has encoded of a raster, as long as memory lasts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator

from ...models.adaptation.online import run_to_end
from ...models.class_head import FeatureSpace
from ..raster.windows import Bounds, CoreCell
from .class_blocks import Block, BlockReader, RawBlock

# Blocks from which the feature space of an image is learned, spread over what is mapped first.
_SPACE_BLOCKS = 4


class BlockStore:
    """The blocks of one raster in one feature `space`, which the first of them settles where none is given.

    The least recently used blocks leave where all together take more than `memory_bytes`.
    """

    def __init__(self, reader: BlockReader, *, space: FeatureSpace | None, memory_bytes: int) -> None:
        self.reader, self.space, self.memory_bytes = reader, space, memory_bytes
        self._blocks: OrderedDict[tuple[int, int, int, int], Block] = OrderedDict()

    def __contains__(self, cell: CoreCell) -> bool:
        """Whether a core is encoded."""
        return cell.core_px in self._blocks

    def __iter__(self) -> Iterator[Block]:
        """What is encoded, the least recently used first."""
        return iter(self._blocks.values())

    def block(self, cell: CoreCell) -> Block:
        """One core; it is encoded where it is not yet. Raises what reading and encoding raise."""
        return run_to_end(self.encoding(cell))

    def encoding(self, cell: CoreCell) -> Generator[None, None, Block]:
        """`block`, in steps of some tenths of a second on a CPU, between which other things may be done."""
        if cell not in self:
            self._keep((yield from self._making(cell)))
        self._blocks.move_to_end(cell.core_px)
        return self._blocks[cell.core_px]

    def passing(self, cell: CoreCell) -> Block:
        """`block` for whoever goes through the whole raster: none that is kept has to leave for it."""
        if cell in self:
            return self._blocks[cell.core_px]
        block = run_to_end(self._making(cell))
        if self._used() + block.n_bytes <= self.memory_bytes:
            self._blocks[cell.core_px] = block
        return block

    def missing(self, bounds_px: Bounds | None = None) -> list[CoreCell]:
        """The cores of an extent that are not encoded."""
        return [cell for cell in self.reader.grid(bounds_px) if cell not in self]

    def is_too_small(self) -> bool:
        """Say whether memory cannot hold the whole raster, judged by what is encoded of it."""
        n_px, (rows, cols) = sum(block.segments.size for block in self), self.reader.shape
        return self._used() * rows * cols > self.memory_bytes * n_px

    def beyond(self, bounds_px: Bounds) -> list[CoreCell]:
        """The cores that are not encoded, nearest to an extent first: as many as memory holds beside what is there."""
        if not self._blocks:
            return []
        used = self._used()
        room = int((self.memory_bytes - used) // (used / len(self._blocks)))
        x, y = (bounds_px[0] + bounds_px[2]) / 2, (bounds_px[1] + bounds_px[3]) / 2

        def distance(cell: CoreCell) -> float:
            left, top, right, bottom = cell.core_px
            return max(abs((left + right) / 2 - x), abs((top + bottom) / 2 - y))

        return sorted(self.missing(), key=distance)[: max(0, room)]

    def _making(self, cell: CoreCell) -> Generator[None, None, Block]:
        raw = yield from self.reader.reading(cell)
        if self.space is None:
            more = yield from self._more_raws(cell)
            # Somebody else may have settled it between two steps.
            self.space = self.space or self.reader.fit_space([raw, *more])
        yield
        return self.reader.make_block(raw, self.space)

    def _keep(self, block: Block) -> None:
        self._blocks[block.core_px] = block
        used = self._used()
        while used > self.memory_bytes and len(self._blocks) > 1:
            used -= self._blocks.popitem(last=False)[1].n_bytes

    def _used(self) -> int:
        return sum(block.n_bytes for block in self)

    def _more_raws(self, first: CoreCell) -> Generator[None, None, list[RawBlock]]:
        """A few more parts of the raster near the first one, so that the space knows more than one place."""
        left, top, right, bottom = first.core_px
        reach = self.reader.window_px
        near = self.reader.grid((left - reach, top - reach, right + reach, bottom + reach))
        others = [cell for cell in near if cell.core_px != first.core_px]
        raws = []
        for cell in others[:: max(1, len(others) // (_SPACE_BLOCKS - 1))][: _SPACE_BLOCKS - 1]:
            yield
            raws.append((yield from self.reader.reading(cell)))
        return raws
