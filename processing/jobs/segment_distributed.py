"""The blocks of a raster on a Dask cluster: workers read, segment and blend, the client alone writes.

Tasks are pickled by reference: workers import this package as `segadapt`, with the environment's packages, and see
raster and model at the same paths.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import distributed

from ...models.errors import ModelError
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.semantic.package import package_sha256
from ...models.semantic.segmenter import Segmenter
from ..errors import JobError, RasterError
from ..raster.blend import Block
from .segment_blocks import SegmentTask, Spent, open_model, open_task, run_blocks

_CONNECT_S = 20
_POLL_S = 0.5
_AHEAD = 2
"""Blocks per thread of the workers that are given out at once."""
_RETRIES = 3

_Future = Any  # `distributed.Future`, whose type says nothing of the result


def run_on_cluster(
    task: SegmentTask,
    blocks: Sequence[Block],
    *,
    address: str,
    keep: Callable[[Block, bytes], None],
    progress: Progress,
) -> Spent:
    """Work blocks out as `segment_blocks.run_blocks` does, on the workers of the scheduler at `address`.

    A block whose worker is lost goes to another one. Raises `JobError` where no scheduler answers or the workers
    cannot do it, `Cancelled`, and what a block or `keep` raises.
    """
    try:
        client: Any = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, distributed.TimeoutError) as error:
        raise JobError(
            f"No Dask scheduler answers at '{address}' ({error}); check the address, such as tcp://host:8786, or leave "
            "it empty to work here."
        ) from error
    spent = Spent(0, 0.0)
    run, waiting = secrets.token_hex(4), deque(blocks)
    running: dict[_Future, Block] = {}
    with client, client.as_current():
        try:
            had_workers = True
            while waiting or running:
                raise_if_cancelled(progress)
                n_threads = sum(client.nthreads().values())
                if had_workers and not n_threads:
                    progress.info(
                        f"The cluster at {address} has no workers; waiting for them. If they ended, look at what they "
                        "wrote: they must be able to import segadapt."
                    )
                had_workers = n_threads > 0
                while waiting and len(running) < _AHEAD * max(1, n_threads):
                    block = waiting.popleft()
                    name = f"segadapt-{run}-{block.name}"
                    running[client.submit(work_out, task, block, key=name, retries=_RETRIES)] = block
                for future in _finished(running):
                    found = _result(future, address, progress)
                    if found is None:
                        continue
                    tile, n_windows, model_s = found
                    keep(running.pop(future), tile)
                    spent = Spent(spent.n_windows + n_windows, spent.model_s + model_s)
                progress.set_fraction(1 - (len(waiting) + len(running)) / len(blocks))
        finally:
            client.cancel(list(running))
    return spent


def work_out(task: SegmentTask, block: Block) -> tuple[bytes, int, float]:
    """What a worker does: one block as `encode_tile` makes it, the windows that the model saw, and its seconds."""
    tiles: list[bytes] = []
    with open_task(task) as reader:
        spent = run_blocks(
            task,
            [block],
            _model(task.package, task.sha256, task.device),
            reader,
            keep=lambda _, tile: tiles.append(tile),
            progress=NullProgress(),
        )
    return tiles[0], *spent


@lru_cache(maxsize=1)
def _model(package: str, sha256: str, device: str) -> Segmenter:
    """The model, once per worker."""
    path = Path(package)
    if package_sha256(path) != sha256:
        raise JobError(f"The worker finds another model at {path}; give all workers the same file.")
    return open_model(path, device)


def _finished(running: dict[_Future, Block]) -> list[_Future]:
    try:
        done: Any = distributed.wait(list(running), timeout=_POLL_S, return_when="FIRST_COMPLETED")  # type: ignore[no-untyped-call]
    except distributed.TimeoutError:
        return []
    # In the order of the blocks, whatever a set says.
    return [future for future in running if future in done.done]


def _result(future: _Future, address: str, progress: Progress) -> tuple[bytes, int, float] | None:
    """What a worker found; None where it was lost with its answer, which another one has to find again."""
    while True:
        try:
            result: tuple[bytes, int, float] = future.result(timeout=_POLL_S)
        except (ModelError, RasterError, JobError):
            raise
        except distributed.KilledWorker as error:
            raise JobError(
                f"Several workers of {address} ended while they worked on one block; give them more memory, or choose "
                "a smaller batch."
            ) from error
        except Exception as error:
            if isinstance(error, distributed.TimeoutError) and future.status != "error":
                raise_if_cancelled(progress)
                if future.status == "finished":
                    continue  # still on its way
                return None
            raise JobError(
                f"A worker of {address} failed ({type(error).__name__}: {error}); give the workers the same SegAdapt "
                "and its environment, and the same paths."
            ) from error
        return result
