"""Which device and which precision: decided by running real kernels, said in words."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from .errors import EngineError

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# bf16 has to beat fp32 by this factor on the probe before the CPU uses it: less is noise, and the
# mask differs a little from fp32's (docs/benchmarks.md).
_WORTHWHILE = 1.3
# Relative error that a sound kernel stays below: tf32 rounds at 5e-4, so a broken one stands out.
_TOLERANCE = 5e-3


@dataclass(frozen=True)
class DeviceChoice:
    """A torch device by name ("cpu", "cuda:0", "mps") and one sentence that says why it was chosen."""

    name: str
    reason: str


def choose_device(wanted: str = "auto") -> DeviceChoice:
    """Return the device to compute on.

    "auto" takes the CUDA card with the most free memory, then MPS, then the CPU, each only if it passes a kernel
    self-test; the reason names what was passed over. A device asked for by name that does not work raises
    `EngineError` with its sentence.
    """
    if wanted not in DEVICES and not wanted.startswith("cuda:"):
        raise EngineError(f"Unknown device '{wanted}'; choose from {', '.join(DEVICES)}.")
    if wanted == "cpu":
        return DeviceChoice("cpu", "CPU, as asked for.")
    refusals = []
    for kind in ("cuda", "mps") if wanted == "auto" else (wanted,):
        candidate = _best_cuda() if kind == "cuda" else kind
        problem = _absence(candidate) or _self_test(candidate)
        if not problem:
            return DeviceChoice(candidate, f"{_title(candidate)}: passed the kernel self-test.")
        refusals.append(problem)
    if wanted != "auto":
        raise EngineError(f"{wanted} cannot be used: {refusals[0]}; choose 'auto' or 'cpu' instead.")
    return DeviceChoice("cpu", f"CPU: {'; '.join(refusals)}.")


def choose_precision(wanted: str, device: str) -> str:
    """Return "fp32", "bf16" or "fp16" for the encoder on `device`.

    "auto": bf16 on CUDA cards that have it, else fp16; fp32 on MPS; on the CPU whichever a probe of a few
    milliseconds finds faster. Raises `EngineError` for an unknown name.
    """
    if wanted not in PRECISIONS:
        raise EngineError(f"Unknown precision '{wanted}'; choose from {', '.join(PRECISIONS)}.")
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "mps":
        return "fp32"
    return "bf16" if _probe_seconds(torch.float32) > _WORTHWHILE * _probe_seconds(torch.bfloat16) else "fp32"


def cpu_threads() -> int:
    """Threads for the CPU: one core is left to the map canvas where there are more than two."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), cores - 1 if cores > 2 else cores)


def _absence(device: str) -> str | None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        built = torch.version.cuda
        return f"no CUDA device answers (torch built for CUDA {built})" if built else "torch was built without CUDA"
    if device == "mps" and not torch.backends.mps.is_available():
        return "no Apple GPU (MPS)"
    return None


def _best_cuda() -> str:
    if not torch.cuda.is_available():
        return "cuda"
    free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    return f"cuda:{free.index(max(free))}"


def _title(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "Apple GPU (MPS)"


def _self_test(device: str) -> str | None:
    """Run a convolution and a matrix product there and on the CPU; None if they agree, else what is wrong."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 8, 32, 32, generator=generator)
    kernel = torch.randn(16, 8, 3, 3, generator=generator)
    try:
        expected = _kernels(image, kernel)
        result = _kernels(image.to(device), kernel.to(device)).cpu()
    except (RuntimeError, NotImplementedError) as error:
        return f"{_title(device)} cannot run this torch's kernels ({str(error).splitlines()[0]})"
    if not bool(torch.norm(result - expected) <= _TOLERANCE * torch.norm(expected)):
        return f"{_title(device)} computes wrong numbers in the kernel self-test"
    return None


def _kernels(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    cells = torch.nn.functional.conv2d(image, kernel, padding=1).flatten(2)  # (1, 16, 1024)
    return (cells @ cells.transpose(1, 2)).float()


def _probe_seconds(dtype: torch.dtype) -> float:
    """Seconds of the product that dominates the TinyViT encoder, the best of four."""
    left, right = torch.ones(4096, 160, dtype=dtype), torch.ones(160, 640, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return best
