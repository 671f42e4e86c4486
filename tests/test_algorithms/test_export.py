"""`segadapt:exportmodel`: a file that another runtime opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.qgis


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A model with random weights."""
    from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.semantic.segmenter import build_segmenter

    card = SegmenterCard(
        name="model",
        decoder="unet",
        encoder="lcnet_035",
        bands=("red", "green", "blue"),
        classes=(SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
        gsd_m=0.5,
        chip_px=64,
        mean=(127.0,) * 3,
        std=(60.0,) * 3,
        licence="test",
        made_on="2026-01-01",
        segadapt_version="0",
    )
    path = tmp_path / "model.safetensors"
    save_segmenter(build_segmenter(card), path)
    return path


def test_the_file_opens_elsewhere(run: Any, package: Path, tmp_path: Path) -> None:
    """Tiles of the chips' size, or of the size asked for; the ending is added."""
    results = run("exportmodel", {"MODEL": str(package), "OUTPUT": str(tmp_path / "of chips.onnx")})
    session = onnxruntime.InferenceSession(results["OUTPUT"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 64, 64]
    assert json.loads(session.get_modelmeta().custom_metadata_map["resolution"]) == 50
    results = run("exportmodel", {"MODEL": str(package), "CHIP": 128, "OUTPUT": str(tmp_path / "larger")})
    assert results["OUTPUT"].endswith("larger.onnx")
    session = onnxruntime.InferenceSession(results["OUTPUT"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 128, 128]


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("kampala_0.3", "kampala_0.3.safetensors"),
        ("kampala_0.5.safetensors", "kampala_0.5.safetensors"),
        ("Kampala.SAFETENSORS", "Kampala.SAFETENSORS"),
        ("kampala", "kampala.safetensors"),
    ],
)
def test_a_name_keeps_its_dots(qgis_app: Any, tmp_path: Path, given: str, file: str) -> None:
    """Two models whose names differ behind a dot do not become one."""
    from qgis.core import QgsProcessingContext
    from segadapt.processing.algorithms.base import with_ending
    from segadapt.processing.algorithms.train_model import TrainModelAlgorithm

    algorithm = TrainModelAlgorithm()
    algorithm.initAlgorithm()
    assert algorithm.model_output({"OUTPUT": str(tmp_path / given)}, QgsProcessingContext()) == tmp_path / file
    assert with_ending("/a/b_0.3", ".onnx") == Path("/a/b_0.3.onnx")


def test_it_is_said_which_values_the_file_is_right_for(run: Any, feedback: Any, package: Path, tmp_path: Path) -> None:
    """An older model does not know, a newer one names them."""
    from dataclasses import replace

    from segadapt.models.semantic.package import load_segmenter, save_segmenter

    asked = {"MODEL": str(package), "OUTPUT": str(tmp_path / "model.onnx")}
    run("exportmodel", asked, feedback=feedback)
    assert any("right for 8-bit rasters alone" in text for text in feedback.seen.info)
    model = load_segmenter(package)
    model.card = replace(model.card, training_stretch=(300.0, 310.0, 320.0, 1700.0, 1800.0, 1900.0))
    save_segmenter(model, package)
    run("exportmodel", asked, feedback=feedback)
    assert any("by band: 300 to 1700, 310 to 1800, 320 to 1900, as in the" in text for text in feedback.seen.info)


def test_a_file_that_is_no_model_is_told(failure: Any, tmp_path: Path) -> None:
    """Nothing is written."""
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no model at all")
    assert "is no segmentation model" in failure(
        "exportmodel", {"MODEL": str(other), "OUTPUT": str(tmp_path / "a.onnx")}
    )
    assert not (tmp_path / "a.onnx").exists()


def test_a_folder_that_takes_no_file_is_told_at_once(failure: Any, package: Path) -> None:
    """Before the work, and not after it."""
    asked = {"MODEL": str(package), "OUTPUT": "/proc/model.onnx"}
    assert "/proc/model.onnx cannot be written to; choose another one for the model" in failure("exportmodel", asked)
