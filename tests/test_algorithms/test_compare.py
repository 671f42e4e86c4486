"""`segadapt:compareadaptation`: the grid on a labelled scene, the best model saved, and no harm."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import compare_adaptation as algorithm
from segadapt.processing.errors import JobError

pytestmark = pytest.mark.qgis


@pytest.fixture(scope="module")
def package(train_roofs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes dark things for roofs: on the scene it is wrong about everything."""
    from segadapt.models.semantic.package import save_segmenter

    dark = {"roof": 70, "ground": 190, "options": {"background": 0}}
    model, _ = train_roofs(name="dark roofs", chip_px=64, n_chips=12, n_steps=25, batch=4, **dark)
    path: Path = tmp_path_factory.mktemp("models") / "dark.safetensors"
    save_segmenter(model, path)
    return path


@pytest.fixture
def labels(roofs: Any, prompts: Any) -> Any:
    """The roofs as polygons."""
    return prompts([(roof.polygon, {"class": "roof"}) for roof in roofs], kind="Polygon")


def test_labels_teach_what_the_model_got_wrong(
    run: Any, package: Path, labels: Any, scene_file: Path, tmp_path: Path
) -> None:
    """Training beats the source model; table, page and package say the same."""
    from segadapt.models.semantic.card import read_card
    from segadapt.models.semantic.package import package_sha256

    output, table, page = (tmp_path / name for name in ("best.safetensors", "runs.csv", "runs.html"))
    results = run(
        "compareadaptation",
        {
            "MODEL": str(package),
            "RASTERS": [str(scene_file)],
            "LABELS": labels,
            "CLASS_FIELD": "class",
            "METHODS": "norm_statistics(alpha=0.5, n_passes=2)",
            "LAYERS": "full",
            "BUDGETS": "100",
            "STEPS": 25,
            "DEVICE": "cpu",
            "OUTPUT": str(output),
            "TABLE": str(table),
            "REPORT": str(page),
        },
    )
    assert results["COUNT"] == 3
    assert results["MEAN_IOU_BEFORE"] < 0.4
    assert results["MEAN_IOU"] > results["MEAN_IOU_BEFORE"] + 0.1
    assert results["BEST"] == "full (100 % of the labels)"
    event = read_card(output).history[-1]
    assert event["what"] == results["BEST"]
    assert event["source_sha256"] == package_sha256(package)
    assert event["miou"] == pytest.approx(results["MEAN_IOU"], abs=1e-4)
    with table.open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["source"]["miou"]) == pytest.approx(results["MEAN_IOU_BEFORE"], abs=1e-5)
    assert float(rows["full"]["miou"]) == pytest.approx(results["MEAN_IOU"], abs=1e-5)
    text = page.read_text(encoding="utf-8")
    assert "Best of all: full (100 % of the labels)" in text
    assert "best.safetensors holds the model" in text


def test_where_nothing_helps_the_source_model_is_saved(
    run: Any, package: Path, labels: Any, scene_file: Path, tmp_path: Path
) -> None:
    """One step changes nothing for the better."""
    from segadapt.models.semantic.package import package_sha256

    output = tmp_path / "best.safetensors"
    results = run(
        "compareadaptation",
        {
            "MODEL": str(package),
            "RASTERS": [str(scene_file)],
            "LABELS": labels,
            "CLASS_FIELD": "class",
            "METHODS": "quantile",
            "LAYERS": "",
            "DEVICE": "cpu",
            "OUTPUT": str(output),
        },
    )
    # The model knows no statistics of its source, which that method needs.
    assert results["BEST"] == "source model"
    assert package_sha256(output) == package_sha256(package)


def test_a_method_that_needs_the_source_is_given_it(
    run: Any, package: Path, labels: Any, scene_file: Path, tmp_path: Path, feedback: Any
) -> None:
    """Restyled chips of the source: without them that run fails and says why."""
    given = {
        "MODEL": str(package),
        "RASTERS": [str(scene_file)],
        "LABELS": labels,
        "CLASS_FIELD": "class",
        "METHODS": "fourier",
        "LAYERS": "",
        "STEPS": 2,
        "DEVICE": "cpu",
        "TABLE": str(tmp_path / "runs.csv"),
    }
    more = {"SOURCE": [str(scene_file)], "SOURCE_LABELS": labels, "SOURCE_CLASS_FIELD": "class"}
    for parameters, is_run in ((given, False), (given | more, True)):
        feedback.seen.progress.clear()
        run("compareadaptation", parameters, feedback=feedback)
        assert feedback.seen.progress == sorted(feedback.seen.progress)
        with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
            row = next(row for row in csv.DictReader(file) if row["name"] == "fourier")
        assert bool(row["miou"]) is is_run
        assert ("labelled chips of the source" in row["remark"]) is not is_run


def test_bad_input_is_told(failure: Any, package: Path, labels: Any, scene_file: Path, tmp_path: Path) -> None:
    """Names that do not exist, and the model that would be overwritten."""
    given = {"MODEL": str(package), "RASTERS": [str(scene_file)], "LABELS": labels, "CLASS_FIELD": "class"}
    assert "'encoder'" in failure("compareadaptation", {**given, "LAYERS": "head, encoder"})
    before = package.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(package)
    for path in (package, package.parent / ".." / package.parent.name / package.name, tmp_path / "link.safetensors"):
        said = failure("compareadaptation", given | {"OUTPUT": str(path)})
        assert f"{path} is the model that is compared" in said
    assert package.read_bytes() == before


def test_lists_are_read() -> None:
    """Commas, blanks, signs, and options in brackets."""
    assert algorithm.parts_of(" a+b, c ,") == ("a+b", "c")
    assert algorithm.parts_of("a(x=1, y=2)+b(x=1,z=3),c(x=1), d") == ("a(x=1, y=2)+b(x=1,z=3)", "c(x=1)", "d")
    assert algorithm.shares_of("10, 0.5%,100 ") == (0.1, 0.005, 1.0)
    with pytest.raises(JobError, match="'ten'"):
        algorithm.shares_of("ten")


def test_choices_are_those_of_the_jobs() -> None:
    """Names that the algorithm lists without the environment."""
    from segadapt.models.transfer.fine_tuning import LAYERS
    from segadapt.processing.jobs.comparison_runs import USUAL_METHODS

    assert algorithm.METHODS == USUAL_METHODS
    assert algorithm.LAYERS == LAYERS
