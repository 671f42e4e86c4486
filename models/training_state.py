"""A training that was killed goes on: its state lies in a hidden file beside the model that is made.

About every minute the file is replaced whole, and at the end it is removed. Its name holds a digest of all that decides
the result, so that only the same training finds it.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .chips import Chips
from .errors import Cancelled
from .file_lock import file_lock
from .progress import Progress
from .semantic.card import SegmenterCard
from .semantic.package import content_sha256

_EVERY_S = 60.0
# Where the disk is slow, at most a twentieth of the time goes into writing.
_WRITING_SHARE = 0.05
_SUFFIX = ".training"
Numbers = npt.NDArray[np.int32]
"""Numbers of segments, as `transfer.base.Problem` has them."""


class Stateful(Protocol):
    """An optimiser, its schedule: what hands out its state and takes it back."""

    def state_dict(self) -> dict[str, Any]:
        """Hand the state out, in tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state over."""


class Keeper:
    """Keeps the state of the training of the model `output`; a context that ends once the model is saved.

    Of two trainings of one output the second waits for the first. Left after a cancel or without an error it removes
    the state; after an error the state stays for another run. `is_temporary`: every run has another output, so that no
    state would be found, and none is kept. `version`: of SegAdapt. A state that cannot be written is told once and does
    no further harm.
    """

    def __init__(self, output: Path, *, version: str, progress: Progress, is_temporary: bool = False) -> None:
        self._output, self._version, self._progress = output.absolute(), version, progress
        self._file: Path | None = None
        self._is_temporary = is_temporary
        self._due = math.inf
        self._has_warned = False
        self._lock = ExitStack()

    def __enter__(self) -> Keeper:
        """Begin; `take_up` makes it work. Raises `Cancelled` where the user stops the wait for another training."""
        if not self._is_temporary:
            # Where no lock can be made no state can be kept either, which is told then.
            with suppress(OSError):
                path = self._output.with_name(f".{self._output.name}.lock")
                self._lock.enter_context(file_lock(path, progress=self._progress))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove the state, or say that it stays."""
        with self._lock:
            if self._file is None:
                return
            if kind is None or issubclass(kind, Cancelled):
                self._remove_remains(spared="")
            elif self._file.exists():
                self._progress.info(
                    f"The state of the training is kept in {self._file}: a run with the same inputs and the same "
                    "output file goes on with it."
                )

    def take_up(
        self,
        what: str,
        given: Sequence[Chips | nn.Module | None],
        *,
        n_steps: int,
        model: nn.Module,
        generator: torch.Generator,
        **parts: Stateful,
    ) -> tuple[int, dict[str, Any]]:
        """Name what is trained, bring it to the kept state of the same training, and return its step and values.

        Without such a state 0 and no values. `what` and `given` as for `find`, `parts` and `generator` as for `follow`.
        """
        state = self.find(f"{what} {n_steps} steps", given, model=model)
        n_done = self.follow(state, n_steps=n_steps, model=model, generator=generator, **parts)
        return n_done, state["values"] if state else {}

    def find(
        self, what: str, given: Sequence[Chips | nn.Module | Numbers | None], *, model: nn.Module
    ) -> dict[str, Any] | None:
        """Name what is trained; the kept state of the same training, None where there is none.

        `what` says in words and `given` holds all that decides the result beside the `model`, its device and torch's
        own draws.
        """
        if self._is_temporary:
            return None
        text = f"{what} on {next(model.parameters()).device} {torch.__version__} {self._version}"
        tensors = {f"{n}.{name}": value for n, one in enumerate([model, *given]) for name, value in _tensors_of(one)}
        key = content_sha256(f"{text} {sorted(learned_state(model))}", {**tensors, "draws": torch.get_rng_state()})
        self._file = self._output.with_name(f".{self._output.name}-{key[:12]}{_SUFFIX}")
        self._due = time.monotonic() + _EVERY_S
        n_removed = self._remove_remains(spared=self._file.name)
        try:
            return _read(self._file)
        except FileNotFoundError:
            if n_removed:
                self._progress.info("A training with other inputs was stopped before; this one starts anew.")
        except (OSError, ValueError) as error:
            self._progress.info(f"The state of a training that was stopped is lost ({error}); training starts anew.")
        return None

    def follow(
        self,
        state: Mapping[str, Any] | None,
        *,
        n_steps: int,
        model: nn.Module,
        generator: torch.Generator,
        **parts: Stateful,
    ) -> int:
        """Keep from now on what these steps learn, bring it to the `state` found, and return how many were taken.

        `parts` learn with the `model`; what `generator` draws next is kept too.
        """
        self._model, self._generator, self._parts = model, generator, parts
        self._device = next(model.parameters()).device
        if state is None:
            return 0
        self._restore(state)
        step: int = state["step"]
        self._progress.info(f"Going on from step {step} of {n_steps} of a training that was stopped.")
        return step

    def is_due(self) -> bool:
        """Whether the state should be kept now."""
        return time.monotonic() >= self._due

    def keep(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep the state after `step` steps; `values`: tensors and plain values that are handed back with it."""
        if self._file is None:
            return
        start = time.monotonic()
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}.part")
        try:
            _write({"step": step, "values": dict(values), **self._state()}, part)
            part.replace(self._file)
        except OSError as error:
            if not self._has_warned:
                self._progress.info(
                    f"The state of the training cannot be kept in {self._file.parent} ({error.strerror or error}): "
                    "training goes on, but would start anew after a crash. Free space there."
                )
            self._has_warned = True
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        end = time.monotonic()
        self._due = end + max(_EVERY_S, (end - start) / _WRITING_SHARE)

    def _state(self) -> dict[str, Any]:
        state = {
            "model": learned_state(self._model),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "generator": self._generator.get_state(),
            "draws": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["cuda_draws"] = torch.cuda.get_rng_state(self._device)
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"], strict=False)
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["draws"])
        if "cuda_draws" in state:
            torch.cuda.set_rng_state(state["cuda_draws"], self._device)

    def _remove_remains(self, *, spared: str) -> int:
        """Remove the states of killed trainings of this output but the file `spared`; how many there were."""
        left = re.compile(rf"\.{re.escape(self._output.name)}-[0-9a-f]{{12}}{re.escape(_SUFFIX)}(\.\d+\.part)?")
        n_removed = 0
        # One that another program holds does no harm but the space that it takes.
        with suppress(OSError):
            for other in self._output.parent.iterdir():
                if left.fullmatch(other.name) and other.name != spared:
                    other.unlink()
                    n_removed += other.name.endswith(_SUFFIX)
        return n_removed


def decisive_text(card: SegmenterCard) -> str:
    """What a card says but for what the model is called and the like, which decides nothing in training."""
    return replace(card, name="", licence="", made_on="").to_json()


def learned_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model without the parameters that do not learn: nothing else changes in training."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _tensors_of(one: Chips | nn.Module | Numbers | None) -> list[tuple[str, torch.Tensor]]:
    if isinstance(one, nn.Module):
        return list(one.state_dict().items())
    arrays = (one.pixels, one.labels, one.valid) if isinstance(one, Chips) else () if one is None else (one,)
    return [(str(number), torch.from_numpy(np.ascontiguousarray(array))) for number, array in enumerate(arrays)]


def _write(state: Mapping[str, Any], file: Path) -> None:
    """A digest and what it is of: torch reads altered bytes without a word."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with file.open("wb") as stream:
        stream.write(hashlib.sha256(content).digest())
        stream.write(content)
        stream.flush()
        # On the disk before it takes the place of the older state: after a crash of the machine there is one of them.
        os.fsync(stream.fileno())


def _read(file: Path) -> dict[str, Any]:
    """Raises `ValueError` for a damaged file, and `OSError`."""
    content = memoryview(file.read_bytes())
    n = hashlib.sha256().digest_size
    if hashlib.sha256(content[n:]).digest() != content[:n]:
        raise ValueError(f"{file} is damaged")
    state: dict[str, Any] = torch.load(io.BytesIO(content[n:]), map_location="cpu", weights_only=True)
    return state
