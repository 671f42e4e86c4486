"""Input that cannot be used, for algorithms of the automatic setting: a sentence says why, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

pytest.importorskip("qgis.core")

pytestmark = pytest.mark.qgis

FILES = {"REPORT": "page.html", "TABLE": "table.csv"}
LABELLED = {"RASTERS": ["scene"], "LABELS": "roofs", "CLASS_FIELD": "class", **FILES}
GIVEN = {
    "domainshift": {"RASTERS": ["scene"], "MODEL": "model", "REPORT": "page.html"},
    "compareadaptation": LABELLED
    | {"MODEL": "model", "METHODS": "quantile", "LAYERS": "", "OUTPUT": "new.safetensors"},
    "evaluatemodel": LABELLED | {"MODELS": ["model"]},
    "trainmodel": LABELLED | {"OUTPUT": "new.safetensors"},
}
"""What would work; what is a name here is filled in by `parameters`."""


@pytest.fixture
def parameters(
    scene_file: Path, roof_model: Path, prompts: Any, roofs: Any, raster_factory: Callable[..., str], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """The parameters of an algorithm, some of them changed."""

    def polygons(name: str = "roof", *, has_geometry: bool = True) -> Any:
        outlines = [roof.polygon if has_geometry else "" for roof in roofs]
        return prompts([(outline, {"class": name}) for outline in outlines], kind="Polygon")

    def raster(n_bands: int, value: int) -> str:
        with rasterio.open(scene_file) as scene:
            pixels = np.full((n_bands, *scene.shape), value, np.uint8)
            return raster_factory(pixels, "other.tif", transform=scene.transform, nodata=0)

    def altered(place: int = -100) -> str:
        content = bytearray(roof_model.read_bytes())
        content[place] ^= 1
        path = tmp_path / "altered.safetensors"
        path.write_bytes(content)
        return str(path)

    makers: dict[str, Callable[[], Any]] = {
        "scene": lambda: str(scene_file),
        "model": lambda: str(roof_model),
        "altered": altered,
        "altered card": lambda: altered(roof_model.read_bytes().index(b'\\"roof\\"') + 3),
        "two bands": lambda: raster(2, 9),
        "no data": lambda: raster(3, 0),
        "roofs": polygons,
        "far": lambda: prompts([("POLYGON((0 0, 9 0, 9 9, 0 9, 0 0))", {"class": "roof"})], kind="Polygon"),
        "none": lambda: prompts([], kind="Polygon"),
        "ponds": lambda: polygons("pond"),
        "no geometry": lambda: polygons(has_geometry=False),
        **{name: lambda file=name: str(tmp_path / "out" / file) for name in (*FILES.values(), "new.safetensors")},
    }

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return makers.get(value, lambda: value)()

    return lambda name, changes: {key: filled(value) for key, value in (GIVEN[name] | changes).items()}


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("domainshift", {"RASTERS": []}, "No raster of the target is given"),
        ("domainshift", {"RASTERS": ["no data"]}, "has data on a tenth of it"),
        ("domainshift", {"MODEL": "altered"}, "is damaged"),
        ("compareadaptation", {"LABELS": "far"}, "lies on a raster; check the CRS"),
        ("compareadaptation", {"LABELS": "none", "CLASS_FIELD": ""}, "holds no polygon"),
        ("compareadaptation", {"LABELS": "no geometry"}, "None of the 3 features of 'prompts' has a geometry"),
        ("compareadaptation", {"LABELS": "ponds"}, "hold 'pond', but the classes are background, roof"),
        ("compareadaptation", {"RASTERS": ["two bands"]}, "2 band"),
        ("compareadaptation", {"RASTERS": ["no data"]}, "has data on a tenth of it, and a label there"),
        ("compareadaptation", {"MODEL": "altered"}, "is damaged"),
        ("compareadaptation", {"MODEL": "altered card"}, "is damaged"),
        ("evaluatemodel", {"RASTERS": ["two bands"]}, "2 band"),
        ("evaluatemodel", {"RASTERS": ["no data"]}, "has data on a tenth of it, and a label there"),
        ("evaluatemodel", {"MODELS": ["altered"]}, "is damaged"),
        ("evaluatemodel", {"MODELS": ["model", "altered"]}, "is damaged"),
        ("evaluatemodel", {"MODELS": ["model", "altered card"]}, "is damaged"),
        ("evaluatemodel", {"LABELS": "ponds"}, "hold 'pond', but the classes are background, roof"),
        ("trainmodel", {"AREA": "far"}, "within which everything was labelled, lies on a raster; check the CRS"),
        ("evaluatemodel", {"AREA": "none"}, "None of the 0 polygons of 'prompts', within which everything was"),
        ("trainmodel", {"LABELS": "no geometry"}, "None of the 3 features of 'prompts' has a geometry"),
    ],
)
def test_bad_input_is_a_sentence(
    name: str, changes: dict[str, Any], sentence: str, parameters: Any, failure: Any, tmp_path: Path
) -> None:
    """The rest of what is given would work."""
    out = tmp_path / "out"
    out.mkdir()
    said = failure(name, parameters(name, changes) | {"DEVICE": "cpu"})
    assert sentence in said
    assert "Traceback" not in said
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "output", "given", "title"),
    [
        ("domainshift", "REPORT", "RASTERS", "Target rasters"),
        ("domainshift", "REPORT", "MODEL", "Model"),
        ("evaluatemodel", "TABLE", "LABELS", "Label polygons"),
        ("evaluatemodel", "REPORT", "MODELS", "Models"),
        ("evaluatemodel", "REPORT", "folder", "Rasters"),
    ],
)
def test_no_result_takes_the_place_of_what_is_read(
    name: str, output: str, given: str, title: str, parameters: Any, failure: Any, tmp_path: Path
) -> None:
    """Whatever is read, also in a folder; before the work."""
    from qgis.core import QgsVectorFileWriter

    asked = parameters(name, {}) | {"DEVICE": "cpu"}
    is_folder, given = given == "folder", "RASTERS" if given == "folder" else given
    if given == "LABELS":
        file = tmp_path / "labels.gpkg"
        layer = asked["LABELS"]
        options = QgsVectorFileWriter.SaveVectorOptions()
        QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(file), layer.transformContext(), options)
        asked["LABELS"] = f"{file}|layername=labels"
    else:
        first = asked[given][0] if isinstance(asked[given], list) else asked[given]
        file = tmp_path / "own" / Path(first).name
        file.parent.mkdir()
        file.write_bytes(Path(first).read_bytes())
        own = str(file.parent if is_folder else file)
        asked[given] = [own] if isinstance(asked[given], list) else own
    before = file.read_bytes()
    (tmp_path / "out").mkdir()
    said = failure(name, asked | {output: str(file)})
    assert f"The result would replace {file}, from which '{title}' is read; choose another file" in said
    assert file.read_bytes() == before
    assert list((tmp_path / "out").iterdir()) == []


def test_results_are_files_of_their_own(parameters: Any, failure: Any, feedback: Any, tmp_path: Path) -> None:
    """Two of one name, and one where a folder is."""
    (tmp_path / "out").mkdir()
    asked = parameters("evaluatemodel", {"DEVICE": "cpu"})
    assert "Two results have the same name" in failure("evaluatemodel", asked | {"TABLE": asked["REPORT"]})
    assert "is a folder; choose a file for the report" in failure("evaluatemodel", asked | {"REPORT": str(tmp_path)})
    assert list((tmp_path / "out").iterdir()) == []
