"""`segadapt:encoderaster`, `segadapt:checkpoint`, and the model that chains algorithms."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsProcessingModelAlgorithm, QgsSettings
from segadapt.processing.algorithms.resources import icon_path
from segadapt.processing.algorithms.settings import read_settings

pytestmark = pytest.mark.qgis

MODEL = Path(icon_path("provider")).parents[1] / "models" / "objects_with_high_score.model3"


@pytest.fixture
def cache_folder(provider: Any, tmp_path: Path) -> Any:
    """A fresh cache, named in the settings as a user would."""
    QgsSettings().setValue("segadapt/cache_folder", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    QgsSettings().remove("segadapt/cache_folder")


def test_encoding_is_resumable(run: Any, make_scene: Any, tmp_path: Path, cache_folder: Path) -> None:
    """The first run encodes every window into the folder of the settings, the second none."""
    scene = make_scene(tmp_path / "scene.tif")
    parameters = {"INPUT": str(scene), "WINDOW": "256", "DEVICE": "cpu"}
    first = run("encoderaster", parameters)
    # 300 pixels hold windows of 256 at 0 and 44 along each side.
    assert first["ENCODED"] == 4
    assert Path(first["FOLDER"]) == cache_folder
    files = [path for path in cache_folder.rglob("*.safetensors")]
    assert len(files) == 4
    assert run("encoderaster", parameters)["ENCODED"] == 0
    assert run("encoderaster", {**parameters, "WINDOW": "auto"})["ENCODED"] == 1


def test_extent_limits_encoding(run: Any, make_scene: Any, tmp_path: Path, cache_folder: Path) -> None:
    """A corner of the raster needs one window."""
    scene = make_scene(tmp_path / "scene.tif")
    extent = "600000,600010,5749990,5750000 [EPSG:32631]"
    assert run("encoderaster", {"INPUT": str(scene), "EXTENT": extent, "WINDOW": "256"})["ENCODED"] == 1


def test_checkpoint_is_verified(run: Any, segadapt_home: Path) -> None:
    """Weights that are there are found and verified without a network."""
    result = run("checkpoint", {"MODEL": "mobile_sam"})
    file = Path(result["FILE"])
    assert file.is_relative_to(segadapt_home)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result["SHA256"]


def test_checkpoint_imports_a_file(run: Any, segadapt_home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A file of the user is copied to the cache under its own name."""
    given = tmp_path / "my download.bin"
    given.write_bytes((segadapt_home / "checkpoints" / "mobile_sam.pt").read_bytes())
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path / "home"))
    result = run("checkpoint", {"MODEL": "mobile_sam", "FILE": str(given)})
    assert Path(result["FILE"]) == tmp_path / "home" / "checkpoints" / "mobile_sam.pt"
    assert Path(result["FILE"]).stat().st_size == given.stat().st_size


def test_wrong_weights_are_a_sentence(failure: Any, tmp_path: Path) -> None:
    """Anything else than the published file is refused and not copied."""
    given = tmp_path / "wrong.pt"
    given.write_bytes(b"not weights")
    sentence = failure("checkpoint", {"MODEL": "mobile_sam", "FILE": str(given)})
    assert "unexpectedly" not in sentence
    assert str(given) in sentence


def test_missing_weights_are_a_sentence(failure: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Offline and without the file, the sentence names the model's file."""
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path))
    sentence = failure("checkpoint", {"MODEL": "mobile_sam"})
    assert "unexpectedly" not in sentence
    assert "mobile_sam.pt" in sentence


def test_shipped_model_runs(
    provider: Any, segadapt_home: Path, scene_file: Path, prompts: Any, roofs: Any, cache_folder: Path
) -> None:
    """The model of the designer encodes, segments, repairs and filters; its threshold decides what is left."""
    from qgis import processing

    model = QgsProcessingModelAlgorithm()
    assert model.fromFile(str(MODEL))
    assert model.validate() == (True, [])
    assert {child.algorithmId() for child in model.childAlgorithms().values()} == {
        "segadapt:encoderaster",
        "segadapt:segmentfromprompts",
        "native:fixgeometries",
        "native:extractbyexpression",
    }
    # QGIS 3.22 calls the model's output by the step that makes it.
    (output,) = [p.name() for p in model.parameterDefinitions() if p.isDestination()]
    parameters = {
        "raster": str(scene_file),
        "prompts": prompts([(roof.polygon, {}) for roof in roofs], kind="Polygon"),
        "minimum_score": 0.5,
        output: "memory:",
    }
    found = list(processing.run(model, parameters)[output].getFeatures())
    assert len(found) == 3
    assert all(max(roof.iou(f.geometry()) for roof in roofs) > 0.9 for f in found)
    highest = max(f["score"] for f in found)
    rest = list(processing.run(model, {**parameters, "minimum_score": highest})[output].getFeatures())
    assert [f["score"] for f in rest] == [highest]


def test_settings_of_the_user(provider: Any, monkeypatch: Any) -> None:
    """Empty means default; the variable makes offline what the setting does not."""
    monkeypatch.delenv("SEGADAPT_OFFLINE", raising=False)
    defaults = read_settings()
    assert (defaults.environment, defaults.checkpoint_folder, defaults.cache_folder) == (None, None, None)
    assert (defaults.device, defaults.cache_gb, defaults.offline) == ("auto", 10.0, False)
    values = {"environment": "/env", "checkpoint_folder": "/weights", "cache_gb": "2.5", "offline": True}
    for key, value in {**values, "device": "cpu"}.items():
        QgsSettings().setValue(f"segadapt/{key}", value)
    try:
        chosen = read_settings()
    finally:
        QgsSettings().remove("segadapt")
    assert (chosen.environment, chosen.checkpoint_folder) == ("/env", Path("/weights"))
    assert (chosen.device, chosen.cache_gb, chosen.offline) == ("cpu", 2.5, True)
    monkeypatch.setenv("SEGADAPT_OFFLINE", "1")
    assert read_settings().offline
