"""The engine: batches, memory, cancel, devices, precision, and answers that do not depend on company."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segadapt.models import device as device_module
from segadapt.models.device import choose_device, choose_precision, cpu_threads
from segadapt.models.engine import InferenceEngine, open_engine
from segadapt.models.errors import Cancelled, EngineError
from segadapt.models.masks import mask_from_logits
from segadapt.models.progress import NullProgress
from segadapt.models.prompts import Prompts


@pytest.fixture(scope="module")
def fp32_engine(mobile_sam_file: Path) -> Iterator[InferenceEngine]:
    engine = InferenceEngine("mobile_sam", checkpoint=mobile_sam_file, device="cpu", precision="fp32")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embedding(fp32_engine: InferenceEngine, town_chip: np.ndarray) -> torch.Tensor:
    return fp32_engine.embed([town_chip])[0]


def _roof_iou(mask: Any, left: int, top: int, right: int, bottom: int) -> float:
    truth = np.zeros((1024, 1024), bool)
    truth[top:bottom, left:right] = True
    found = np.zeros_like(truth)
    rows, cols = mask.pixels.shape
    found[mask.row_off : mask.row_off + rows, mask.col_off : mask.col_off + cols] = mask.pixels
    return float((truth & found).sum() / (truth | found).sum())


def test_one_click_outlines_a_roof(fp32_engine: InferenceEngine, embedding: torch.Tensor) -> None:
    click = Prompts(points_xy=[[700, 250]], labels=[1])
    prediction = fp32_engine.predict(embedding, [click], multimask=True)
    best = prediction.logits[0, prediction.iou[0].argmax()]

    mask = mask_from_logits(best, window_px=1024, shape=(1024, 1024))

    assert embedding.dtype == torch.float16
    assert embedding.shape == (256, 64, 64)
    assert _roof_iou(mask, 641, 191, 760, 310) > 0.95
    assert prediction.iou[0].max() > 0.9


def test_mixed_prompts_in_one_call_give_the_answers_of_single_calls(
    fp32_engine: InferenceEngine, embedding: torch.Tensor
) -> None:
    prompts = [
        Prompts(points_xy=[[700, 250]], labels=[1]),
        Prompts(box_xyxy=[180, 180, 320, 300]),
        Prompts(points_xy=[[250, 240], [420, 240]], labels=[1, 0]),
        Prompts(box_xyxy=[640, 190, 760, 310]),
    ]
    fp32_engine._per_call["objects"] = 3

    together = fp32_engine.predict(embedding, prompts)
    alone = [fp32_engine.predict(embedding, [p]) for p in prompts]

    fp32_engine._per_call["objects"] = 1
    for i, single in enumerate(alone):
        np.testing.assert_allclose(together.logits[i], single.logits[0], atol=1e-3)
        np.testing.assert_allclose(together.iou[i], single.iou[0], atol=1e-5)


def test_reduced_precision_keeps_the_masks(
    fp32_engine: InferenceEngine, embedding: torch.Tensor, mobile_sam_file: Path, town_chip: np.ndarray
) -> None:
    reduced = InferenceEngine("mobile_sam", checkpoint=mobile_sam_file, device="cpu", precision="bf16")
    boxes = [[640, 190, 760, 310], [180, 180, 320, 300], [725, 685, 795, 795]]
    prompts = [Prompts(box_xyxy=box) for box in boxes]

    exact = fp32_engine.predict(embedding, prompts).logits > 0
    close = reduced.predict(reduced.embed([town_chip])[0], prompts).logits > 0

    ious = (exact & close).sum((1, 2, 3)) / (exact | close).sum((1, 2, 3))
    assert ious.mean() > 0.99


class _GreedyModel:
    """Runs out of memory above a batch of `limit`, as CUDA does."""

    def __init__(self, limit: int) -> None:
        self.limit, self.batches = limit, [0][:0]

    def embed(self, chips: Sequence[torch.Tensor]) -> torch.Tensor:
        if len(chips) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.batches.append(len(chips))
        return torch.stack([chip.float().mean() * torch.ones(256, 64, 64) for chip in chips])


def _chips(n: int) -> list[np.ndarray]:
    return [np.full((3, 8, 8), i, np.uint8) for i in range(n)]


@pytest.fixture
def greedy(fp32_engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> InferenceEngine:
    monkeypatch.setattr(fp32_engine, "_per_call", {"chips": 8, "objects": 8})
    return fp32_engine


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    greedy: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _GreedyModel(limit=3)
    monkeypatch.setattr(greedy, "_model", model)

    embeddings = greedy.embed(_chips(7))

    assert [float(e[0, 0, 0]) for e in embeddings] == [0, 1, 2, 3, 4, 5, 6]
    assert model.batches == [2, 2, 2, 1]


def test_no_memory_for_one_chip_names_the_remedy(greedy: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_model", _GreedyModel(limit=0))

    with pytest.raises(EngineError, match="not enough memory for mobile_sam; close other programs"):
        greedy.embed(_chips(1))


def test_cancel_stops_between_batches(greedy: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _GreedyModel(limit=8)
    monkeypatch.setattr(greedy, "_model", model)

    class StopAfterTwo(NullProgress):
        def is_cancelled(self) -> bool:
            return len(model.batches) == 2

    with pytest.raises(Cancelled):
        greedy.embed(_chips(30), progress=StopAfterTwo())
    assert model.batches == [8, 8]


@pytest.mark.parametrize("shape", [(3, 1025, 10), (4, 10, 10), (3, 0, 10)])
def test_a_chip_that_does_not_fit_is_refused(fp32_engine: InferenceEngine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"takes \(3, rows, cols\) uint8 of at most 1024 px"):
        fp32_engine.embed([np.zeros(shape, np.uint8)])


def test_a_closed_engine_says_so(mobile_sam_file: Path) -> None:
    engine = InferenceEngine("mobile_sam", checkpoint=mobile_sam_file, device="cpu", precision="fp32")
    engine.close()

    with pytest.raises(EngineError, match="is closed"):
        engine.embed(_chips(1))


def test_open_engine_says_why_it_uses_its_device() -> None:
    engine = open_engine("mobile_sam")
    engine.close()

    assert engine.device in engine.device_reason.lower() or engine.device.startswith("cuda")
    assert engine.device_reason.endswith(".")


def test_a_device_that_computes_wrong_numbers_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_absence", lambda device: None)
    monkeypatch.setattr(device_module, "_best_cuda", lambda: "cuda:0")
    monkeypatch.setattr(device_module, "_title", lambda device: f"Broken {device}")
    monkeypatch.setattr(device_module, "_self_test", lambda device: f"Broken {device} computes wrong numbers")

    choice = choose_device("auto")

    assert choice.name == "cpu"
    assert choice.reason == "CPU: Broken cuda:0 computes wrong numbers; Broken mps computes wrong numbers."


def test_self_test_runs_real_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_title", str)
    assert device_module._self_test("cpu") is None
    # "meta" stands for a device on which kernels fail: the result cannot be brought back.
    assert "cannot run this torch's kernels" in (device_module._self_test("meta") or "")
    monkeypatch.setattr(device_module, "_kernels", lambda image, kernel: torch.randn(1, 16, 16))
    assert "wrong numbers" in (device_module._self_test("cpu") or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_asking_for_a_device_that_is_not_there_names_the_remedy() -> None:
    with pytest.raises(EngineError, match=r"cuda cannot be used: .*; choose 'auto' or 'cpu' instead"):
        choose_device("cuda")


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(EngineError, match="Unknown device 'gpu'; choose from auto, cuda, mps, cpu"):
        choose_device("gpu")
    with pytest.raises(EngineError, match="Unknown precision 'int8'"):
        choose_precision("int8", "cpu")


def test_one_core_is_left_to_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)

    assert cpu_threads() == 7
