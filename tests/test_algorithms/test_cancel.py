"""Cancel while an algorithm of the automatic setting computes: nothing half-written stays, and what is there stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

pytestmark = pytest.mark.qgis

TARGET = {"RASTERS": "scene", "DEVICE": "cpu"}
ROOFS = {"LABELS": "roofs", "CLASS_FIELD": "class"}
FILES = {"OUTPUT": "out.safetensors", "REPORT": "page.html"}
COMPARED = {"METHODS": "norm_statistics, entropy", "LAYERS": "", "STEPS": 2, "TABLE": "runs.csv"}
RUNS = {
    "trainmodel": TARGET | ROOFS | FILES | {"CHIP_SIZE": 64, "EPOCHS": 5},
    "evaluatemodel": TARGET | ROOFS | {"MODELS": "models", "TABLE": "table.csv", "REPORT": "page.html"},
    "domainshift": TARGET | {"MODEL": "model", "REPORT": "page.html"},
    "adaptmodel": TARGET | FILES | {"MODEL": "model", "STEPS": 5},
    "selectsamples": TARGET | {"MODEL": "model", "BUDGET": 5, "OUTPUT": "samples.gpkg"},
    "finetunemodel": TARGET | ROOFS | FILES | {"MODEL": "model", "STEPS": 5},
    "compareadaptation": TARGET | ROOFS | FILES | COMPARED | {"MODEL": "model"},
    "distillmodel": TARGET | FILES | {"MODEL": "model", "STEPS": 5},
    "exportmodel": {"MODEL": "model", "OUTPUT": "out.onnx"},
}
"""Algorithms and what they are given; what is a name here is filled in by `parameters`."""
WRITTEN = ("OUTPUT", "REPORT", "TABLE")


@pytest.fixture
def parameters(scene_file: Path, roof_model: Path, prompts: Any, roofs: Any, tmp_path: Path) -> Any:
    """The parameters of a run, with older files where it is to write."""
    values = {
        "RASTERS": [str(scene_file)],
        "LABELS": prompts([(roof.polygon, {"class": "roof"}) for roof in roofs], kind="Polygon"),
        "MODEL": str(roof_model),
        "MODELS": [str(roof_model)],
    }

    def of(name: str) -> dict[str, Any]:
        given = RUNS[name]
        files = {key: str(tmp_path / value) for key, value in given.items() if key in WRITTEN}
        for file in files.values():
            # An older layer would have to be one that GDAL can replace.
            if not file.endswith(".gpkg"):
                Path(file).write_text("older")
        return given | {key: value for key, value in values.items() if key in given} | files

    return of


def cancel_at(feedback: Any, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Press Cancel once a line that starts so is told."""
    tell = type(feedback).pushInfo

    def tell_and_cancel(self: Any, info: str) -> None:
        tell(self, info)
        if info.startswith(start):
            self.cancel()

    monkeypatch.setattr(type(feedback), "pushInfo", tell_and_cancel)


@pytest.mark.parametrize("name", RUNS)
def test_cancel_leaves_what_was_there(name: str, parameters: Any, failure: Any, feedback: Any, tmp_path: Path) -> None:
    """Cancel is pressed as soon as there is progress."""
    given = parameters(name)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    feedback.progressChanged.connect(lambda _: feedback.cancel())
    assert "Stopped" in failure(name, given)
    assert feedback.seen.progress
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_cancelled_comparison_tells_what_was_finished(
    parameters: Any, run_task: Any, feedback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table and page are written; the rest is named as left out."""
    given = parameters("compareadaptation")
    cancel_at(feedback, monkeypatch, "norm_statistics")
    _, results = run_task("compareadaptation", given)
    assert feedback.seen.errors == []
    assert any("Left out: entropy" in line for line in feedback.seen.info)
    rows = Path(given["TABLE"]).read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3
    assert "Cancelled before: entropy" in Path(given["REPORT"]).read_text(encoding="utf-8")
    assert Path(given["OUTPUT"]).read_bytes() != b"older"
    assert results is None or results["COUNT"] == 2


def test_a_cancelled_training_keeps_its_best_state(
    parameters: Any, run_task: Any, feedback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancel after the first check: the model is whole and can be read."""
    from segadapt.models.semantic.package import load_segmenter

    given = parameters("trainmodel")
    cancel_at(feedback, monkeypatch, "Step ")
    run_task("trainmodel", given)
    assert feedback.seen.errors == []
    assert any(line.startswith("Stopped: the best state so far") for line in feedback.seen.info)
    assert load_segmenter(Path(given["OUTPUT"])).card.class_names
