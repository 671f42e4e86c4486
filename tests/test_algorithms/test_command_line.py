"""The plugin as `qgis_process` and a plain QGIS meet it: another process, a profile of its own, no display."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.environment import __file__ as environment_file

pytestmark = pytest.mark.qgis

ALGORITHM_NAMES = (
    "adaptmodel", "adaptsegmentcompare", "checkpoint", "classmap", "compareadaptation", "distillmodel", "domainshift",
    "encoderaster", "evaluateinteractive", "evaluatemodel", "exportmodel", "findsimilar", "finetunemodel",
    "segmenteverything", "segmentfromprompts", "segmentraster", "selectlabeltunesegmentevaluate", "selectsamples",
    "trainmodel",
)  # fmt: skip

ROOT = Path(environment_file).resolve().parents[1]
# Debian's `qgis_process` is a shell script that wants GRASS; the program itself is the same everywhere.
PROGRAM = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
# QGIS runs the interpreter that it was built with, not the one of the virtual environment.
HOST_PYTHON = getattr(sys, "_base_executable", sys.executable)

if PROGRAM is None and os.environ.get("REQUIRE_QGIS") == "1":
    raise RuntimeError("REQUIRE_QGIS=1, but there is no qgis_process on the PATH.")

PLAIN_QGIS = """
import sys
from qgis.analysis import QgsNativeAlgorithms
from qgis.core import QgsApplication
app = QgsApplication([], False)
app.initQgis()
import segadapt
plugin = segadapt.classFactory(None)
plugin.initProcessing()
plugin.initProcessing()
# After the plugin, as it may happen: the chains have steps of QGIS.
QgsApplication.processingRegistry().addProvider(QgsNativeAlgorithms(QgsApplication.processingRegistry()))
algorithms = QgsApplication.processingRegistry().providerById("segadapt").algorithms()
print(sorted(algorithm.name() for algorithm in algorithms))
for algorithm in algorithms:
    print(algorithm.canExecute())
print(sorted({"torch", "numpy", "rasterio", "shapely", "PIL"} & set(sys.modules)))
del algorithm, algorithms
plugin.unload()
plugin.unload()
print(QgsApplication.processingRegistry().providerById("segadapt"))
app.exitQgis()
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QGIS profile in which only this checkout is a plugin, linked and enabled as `make link` does it."""
    folder = tmp_path_factory.mktemp("profile")
    default = folder / "profiles" / "default"
    (default / "python" / "plugins").mkdir(parents=True)
    (default / "python" / "plugins" / "segadapt").symlink_to(ROOT)
    (default / "QGIS").mkdir()
    (default / "QGIS" / "QGIS3.ini").write_text("[PythonPlugins]\nsegadapt=true\n")
    return folder


@pytest.fixture(scope="module")
def clean_environ(profile: Path) -> dict[str, str]:
    """Variables of a shell in which no virtual environment is active and no display is there."""
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "DISPLAY", "WAYLAND_DISPLAY")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables.update(
        QT_QPA_PLATFORM="offscreen",
        QGIS_CUSTOM_CONFIG_PATH=str(profile),
        XDG_RUNTIME_DIR=str(profile),
        SEGADAPT_ENV=sys.prefix,
    )
    return variables


@pytest.fixture(scope="module")
def qgis_process(clean_environ: dict[str, str], home_with_weights: Path) -> Callable[..., dict[str, Any]]:
    """Run `qgis_process --json` and return what it prints."""
    if PROGRAM is None:
        pytest.skip("there is no qgis_process")

    def call(*arguments: str, expect: int = 0) -> dict[str, Any]:
        variables = {**clean_environ, "SEGADAPT_HOME": str(home_with_weights), "SEGADAPT_OFFLINE": "1"}
        command = [str(PROGRAM), "--json", *arguments]
        result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == expect, result.stdout + result.stderr
        return json.loads(result.stdout[result.stdout.index("{") :]) if expect == 0 else {"error": result.stderr}

    return call


def test_lists_all_algorithms(qgis_process: Any) -> None:
    """The provider is there with its algorithms."""
    listed = qgis_process("list")["providers"]["segadapt"]["algorithms"]
    assert set(listed) == {f"segadapt:{name}" for name in ALGORITHM_NAMES}


def test_help_explains_parameters(qgis_process: Any) -> None:
    """A terminal shows the same help as the dialog."""
    helped = qgis_process("help", "segadapt:segmentfromprompts")
    assert helped["parameters"]["MODEL"]["default_value"] == "mobile_sam"
    assert helped["parameters"]["PROMPT_FIELD"]["optional"]


@pytest.mark.slow
def test_all_four_run(qgis_process: Any, scene_file: Path, roofs: Any, tmp_path: Path) -> None:
    """Weights, embeddings, prompts and everything, with the values of the scene."""
    from qgis.core import QgsVectorLayer

    weights = qgis_process("run", "segadapt:checkpoint", "--", "MODEL=mobile_sam")["results"]
    assert Path(weights["FILE"]).name == "mobile_sam.pt"
    encoded = qgis_process("run", "segadapt:encoderaster", "--", f"INPUT={scene_file}", "WINDOW=512", "DEVICE=cpu")
    assert encoded["results"]["ENCODED"] in (0, 1)

    prompts = write_roofs(tmp_path / "boxes.geojson", [(f"roof {i}", roof) for i, roof in enumerate(roofs)])
    output = tmp_path / "out folder" / "objects é.gpkg"
    output.parent.mkdir()
    segmented = qgis_process(
        "run",
        "segadapt:segmentfromprompts",
        "--",
        f"INPUT={scene_file}",
        f"PROMPTS={prompts}",
        "CLASS_FIELD=kind",
        "MODEL=mobile_sam",
        f"OUTPUT={output}",
    )["results"]
    assert segmented["COUNT"] == 3
    found = {f["class"]: f for f in QgsVectorLayer(str(output), "found", "ogr").getFeatures()}
    assert all(roof.iou(found[f"roof {i}"].geometry()) > 0.9 for i, roof in enumerate(roofs))

    labels = tmp_path / "labels.tif"
    everything = qgis_process(
        "run",
        "segadapt:segmenteverything",
        "--",
        f"INPUT={scene_file}",
        "WINDOW=512",
        "POINTS_PER_SIDE=12",
        f"OUTPUT={tmp_path / 'everything.gpkg'}",
        f"LABELS={labels}",
    )["results"]
    assert everything["COUNT"] >= 3
    assert labels.stat().st_size > 0


def test_a_chain_runs(qgis_process: Any, roof_model: Path, repainted: Any, tmp_path: Path) -> None:
    """Adapt, segment and compare as one command, with outputs by their plain names."""
    import numpy as np
    import rasterio

    files = {
        "ADAPTED_MODEL": "adapted.safetensors",
        "SOURCE_CLASSES": "source.tif",
        "ADAPTED_CLASSES": "adapted.tif",
        "CHANGES": "changes.tif",
        "CHANGE_TABLE": "changes.csv",
        "SHIFT_REPORT": "shift.html",
    }
    results = qgis_process(
        "run",
        "segadapt:adaptsegmentcompare",
        "--",
        f"INPUT={repainted('haze.tif', lambda pixels: 0.2 * pixels + 170)}",
        f"MODEL={roof_model}",
        "METHODS=quantile",
        "DEVICE=cpu",
        *(f"{name}={tmp_path / file}" for name, file in files.items()),
    )["results"]
    assert {name: Path(results[name]).name for name in files} == files
    assert all((tmp_path / file).stat().st_size for file in files.values())
    maps = {}
    for name in ("SOURCE_CLASSES", "ADAPTED_CLASSES", "CHANGES"):
        with rasterio.open(results[name]) as dataset:
            maps[name] = dataset.read(1)
    np.testing.assert_array_equal(maps["CHANGES"], maps["SOURCE_CLASSES"] != maps["ADAPTED_CLASSES"])
    assert maps["CHANGES"].any()


def test_the_chain_of_few_labels_runs(
    qgis_process: Any, roof_model: Path, scene_file: Path, roofs: Any, tmp_path: Path
) -> None:
    """Select, label, tune, segment and evaluate as one command; steps of QGIS's own among them."""
    import rasterio

    files = {
        "REGIONS": "regions.gpkg",
        "TUNED_MODEL": "tuned.safetensors",
        "CLASSES": "classes.tif",
        "EVALUATION_TABLE": "evaluation.csv",
    }
    results = qgis_process(
        "run",
        "segadapt:selectlabeltunesegmentevaluate",
        "--",
        f"INPUT={scene_file}",
        f"MODEL={roof_model}",
        f"LABELS={write_roofs(tmp_path / 'reference.geojson', [('roof', roof) for roof in roofs])}",
        "CLASS_FIELD=kind",
        "BUDGET=20",
        "STRATEGY=random",
        "REGION_SIZE=8",
        "STEPS=1",
        "DEVICE=cpu",
        *(f"{name}={tmp_path / file}" for name, file in files.items()),
    )["results"]
    assert {name: Path(results[name]).name for name in files} == files
    assert all((tmp_path / file).stat().st_size for file in files.values())
    with rasterio.open(results["CLASSES"]) as dataset:
        assert set(dataset.read(1).ravel().tolist()) == {0, 1}
    with open(results["EVALUATION_TABLE"], encoding="utf-8", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)].count("(all)") == 2


def test_error_is_one_sentence(qgis_process: Any, make_scene: Any, tmp_path: Path) -> None:
    """A mistake ends the program with the sentence, not with a traceback."""
    bare = make_scene(tmp_path / "bare.tif", crs=None)
    error = qgis_process("run", "segadapt:encoderaster", "--", f"INPUT={bare}", expect=1)["error"]
    assert "has no CRS; assign one with Layer > Set CRS" in error
    assert "Traceback" not in error


def plain_qgis(code: str, variables: dict[str, str], tmp_path: Path) -> list[str]:
    """Run code in QGIS's own Python, the way a plugin is imported there."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "segadapt").symlink_to(ROOT)
    result = subprocess.run(
        [HOST_PYTHON, "-c", code],
        env={**variables, "PYTHONPATH": str(tmp_path / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_without_environment_the_plugin_loads(clean_environ: dict[str, str], tmp_path: Path) -> None:
    """It lists its algorithms, and each says in one sentence what to do."""
    (tmp_path / "empty").mkdir()
    variables = {**clean_environ, "SEGADAPT_ENV": str(tmp_path / "empty")}
    listed, *answers, loaded, provider = plain_qgis(PLAIN_QGIS, variables, tmp_path)
    assert listed == str(list(ALGORITHM_NAMES))
    sentence = f"SegAdapt's Python environment {tmp_path / 'empty'} has no torch; run `make setup`"
    assert len(answers) == len(ALGORITHM_NAMES)
    assert all(answer.startswith("(False,") and sentence in answer for answer in answers)
    assert loaded == "[]"
    assert provider == "None"


def test_with_environment_the_plugin_stays_light(clean_environ: dict[str, str], tmp_path: Path) -> None:
    """Loading, listing and asking whether it can run import nothing heavy, not even numpy."""
    _, *answers, loaded, _ = plain_qgis(PLAIN_QGIS, clean_environ, tmp_path)
    assert answers == ["(True, '')"] * len(ALGORITHM_NAMES)
    assert loaded == "[]"


def write_roofs(path: Path, named: list[tuple[str, Any]]) -> Path:
    """Write outlines with their `kind` as GeoJSON."""
    features = []
    for kind, roof in named:
        left, bottom, right, top = roof.bounds
        ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"kind": kind}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path
