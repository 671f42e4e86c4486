"""`segadapt:distillmodel`: a student that can be used as every other model, and a page that says what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import distill_model as algorithm_module

pytestmark = pytest.mark.qgis

CHIP_PX = 32


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows bright from dark after a few steps."""
    import torch
    from segadapt.models.chips import Chips
    from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.semantic.segmenter import build_segmenter
    from segadapt.models.training import TrainingOptions, fit

    card = SegmenterCard(
        name="teacher",
        decoder="unet",
        encoder="lcnet_035",
        bands=("red", "green", "blue"),
        classes=(SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
        gsd_m=0.5,
        chip_px=CHIP_PX,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
        stretch=(0.0,) * 3 + (255.0,) * 3,
        licence="test",
        made_on="2026-01-01",
        segadapt_version="0",
    )
    random = np.random.default_rng(0)
    labels = np.zeros((16, 2 * CHIP_PX, 2 * CHIP_PX), np.uint8)
    for label in labels:
        row, col = random.integers(0, 32, 2)
        label[row : row + 30, col : col + 30] = 1
    pixels = np.where(labels[:, None] == 1, 200, 70) + random.integers(-10, 10, (16, 3, *labels.shape[1:]))
    chips = Chips(
        pixels.astype(np.uint8),
        labels,
        np.ones_like(labels, np.bool_),
        np.arange(16, dtype=np.int64),
        np.zeros((16, 2), np.int64),
    )
    torch.manual_seed(0)
    model = build_segmenter(card)
    fit(model, chips, None, TrainingOptions(n_steps=30, batch=4, rate=4e-3, encoder_rate=1.0))
    path = tmp_path_factory.mktemp("models") / "teacher.safetensors"
    save_segmenter(model, path)
    return path


def test_a_student_is_made_saved_and_reported(run: Any, teacher: Path, scene_file: Path, tmp_path: Path) -> None:
    """The package loads, names its teacher, and the numbers of the results are those of the page and the card."""
    from segadapt.models.semantic.card import read_card
    from segadapt.models.semantic.package import load_segmenter, package_sha256

    output, report = tmp_path / "light.safetensors", tmp_path / "light.html"
    parameters = {
        "MODEL": str(teacher),
        "RASTERS": [str(scene_file)],
        "STUDENT": "coarse",
        "STEPS": 12,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
        "REPORT": str(report),
    }
    results = run("distillmodel", parameters)
    card = read_card(output)
    assert card.gsd_m == 1.0
    assert card.encoder == "lcnet_035"
    assert card.history[-1]["sha256_of_teachers"] == [package_sha256(teacher)]
    assert card.metrics["agreement"] == pytest.approx(results["AGREEMENT"], abs=1e-4)
    # It begins with the teacher's weights, and bright stays bright at half the resolution.
    assert results["AGREEMENT"] > 0.6
    assert results["SPEEDUP"] > 1.5
    assert f"{results['AGREEMENT']:.3f}" in report.read_text(encoding="utf-8")
    assert load_segmenter(output).card == card


def test_several_teachers_have_a_light_student(run: Any, teacher: Path, scene_file: Path, tmp_path: Path) -> None:
    """The mean of several models; the student is another network."""
    from segadapt.models.semantic.card import read_card

    output = tmp_path / "light.safetensors"
    parameters = {"MODEL": str(teacher), "MORE_MODELS": [str(teacher)], "RASTERS": [str(scene_file)], "STEPS": 2}
    results = run("distillmodel", {**parameters, "DEVICE": "cpu", "OUTPUT": str(output)})
    assert len(read_card(output).history[-1]["sha256_of_teachers"]) == 2
    # Two teachers, and a quarter of the pixels.
    assert results["SPEEDUP"] > 4


def test_bad_input_is_told_and_nothing_is_left(
    failure: Any, teacher: Path, scene_file: Path, raster_factory: Any, tmp_path: Path
) -> None:
    """A raster too small to learn from."""
    small = raster_factory(np.full((3, 64, 64), 90, np.uint8), photometric="rgb")
    output = tmp_path / "light.safetensors"
    parameters = {"MODEL": str(teacher), "RASTERS": [small], "STEPS": 2, "DEVICE": "cpu", "OUTPUT": str(output)}
    assert "4 chips of 32 px, too few" in failure("distillmodel", parameters)
    assert list(tmp_path.glob("*light*")) == []


def test_the_teacher_is_never_overwritten(failure: Any, teacher: Path, scene_file: Path) -> None:
    """The same file as teacher and student."""
    before = teacher.read_bytes()
    parameters = {"MODEL": str(teacher), "RASTERS": [str(scene_file)], "STEPS": 1, "OUTPUT": str(teacher)}
    assert "overwrite its teacher" in failure("distillmodel", parameters)
    assert teacher.read_bytes() == before


def test_students_are_those_of_the_job() -> None:
    """The enum repeats the names, because their module needs the environment."""
    from segadapt.processing.jobs.distill_model import STUDENTS

    assert algorithm_module.STUDENTS == STUDENTS
