"""`segadapt:evaluateinteractive` on a scene whose roofs are known, with the real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsGeometry,
    QgsProcessingContext,
    QgsProject,
    QgsVectorLayer,
)

pytestmark = pytest.mark.qgis

FIELDS = ["configuration", "place", "object_id", "class", "area_px", "clicks", "clicks_80", "clicks_85", "clicks_90"]


@pytest.fixture
def references(prompts: Any, roofs: Any) -> Any:
    """The roofs, and one that the raster's edge cuts, in degrees."""
    transform = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32631"), QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    )
    rows = []
    cut = "POLYGON((599990 5749900, 600010 5749900, 600010 5749890, 599990 5749890, 599990 5749900))"
    for wkt in (*(roof.polygon for roof in roofs), cut):
        geometry = QgsGeometry.fromWkt(wkt)
        geometry.transform(transform)
        rows.append((geometry.asWkt(12), {"kind": "roof"}))
    return prompts(rows, crs="EPSG:4326", kind="Polygon")


def parameters_of(scene_file: Path, references: Any, **changes: Any) -> dict[str, Any]:
    """Quick: the plain model, three clicks."""
    return {
        "INPUT": str(scene_file),
        "REFERENCE": references,
        "MODEL": "mobile_sam",
        "DEVICE": "cpu",
        "WINDOW": "512",
        "ADAPTATION": False,
        "CLICKS": 3,
        "TABLE": "memory:",
        **changes,
    }


def test_roofs_take_few_clicks(
    run: Any, scene_file: Path, references: Any, roofs: Any, tmp_path: Path, feedback: Any
) -> None:
    """A row per roof with its curve, numbers that agree with the rows, and a report."""
    report = tmp_path / "Bericht ä.html"
    parameters = parameters_of(scene_file, references, CLASS_FIELD="kind", REPORT=str(report))
    result = run("evaluateinteractive", parameters, feedback=feedback)
    table = result["TABLE"]
    assert table.crs().authid() == "EPSG:32631"
    names = [*FIELDS, "iou_1", "iou_2", "iou_3", "seconds", "learning_s"]
    assert [field.name() for field in table.fields()] == names
    rows = sorted(table.getFeatures(), key=lambda row: int(row["object_id"]))
    assert result["COUNT"] == len(rows) == 3
    assert sorted(row["place"] for row in rows) == [1, 2, 3]
    for roof, row in zip(roofs, rows, strict=True):
        assert roof.iou(row.geometry()) > 0.99
        assert row["area_px"] == (roof.right_px - roof.left_px) * (roof.bottom_px - roof.top_px)
        assert (row["class"], row["configuration"]) == ("roof", "plain model")
        assert row["iou_3"] > 0.85
        assert row["clicks_85"] <= row["clicks"] <= 3
        assert row["seconds"] > 0
        assert row["clicks_90"] == next((k for k in (1, 2, 3) if row[f"iou_{k}"] >= 0.9), NULL)
    assert result["NOC85"] == pytest.approx(sum(row["clicks_85"] for row in rows) / 3)
    assert result["MIOU1"] == pytest.approx(sum(row["iou_1"] for row in rows) / 3)
    assert result["MIOU3"] == pytest.approx(sum(row["iou_3"] for row in rows) / 3)
    assert "MIOU5" not in result  # three clicks were allowed
    text = report.read_text(encoding="utf-8")
    assert "3 of 4 polygons" in text
    assert "1 cut by its edge" in text
    assert max(feedback.seen.progress) == pytest.approx(100, abs=1)


def test_a_class_map_is_clicked_as_a_whole(
    run: Any, failure: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path
) -> None:
    """Points of the clicks with the mean IoU after each, the same numbers in results and page; the rest is unknown."""
    ground = "POLYGON((600000 5750000, 600150 5750000, 600150 5749990, 600000 5749990, 600000 5750000))"
    rows = [(ground, {"kind": "ground"}), *((roof.polygon, {"kind": "roof"}) for roof in roofs)]
    report = tmp_path / "page.html"
    given = {"REFERENCE": prompts(rows, kind="Polygon"), "PROTOCOL": "class_map", "REPORT": str(report), "CLICKS": 6}
    parameters = parameters_of(scene_file, given["REFERENCE"], **given)
    result = run("evaluateinteractive", {**parameters, "CLASS_FIELD": "kind"})
    clicks = sorted(result["TABLE"].getFeatures(), key=lambda row: row["click"])
    assert [row["click"] for row in clicks] == list(range(1, len(clicks) + 1))
    assert {row["class"] for row in clicks[:2]} == {"ground", "roof"}
    by_class = {row["class"]: row.geometry() for row in clicks[:2]}
    assert QgsGeometry.fromWkt(ground).contains(by_class["ground"])
    assert any(QgsGeometry.fromWkt(roof.polygon).contains(by_class["roof"]) for roof in roofs)
    assert result["COUNT"] == 2
    assert result["MIOU1"] == pytest.approx(clicks[0]["miou"])
    assert result["NOC80"] == next(row["click"] for row in clicks if row["miou"] >= 0.8)
    assert f"{clicks[-1]['miou']:.3f}" in report.read_text(encoding="utf-8")
    assert "two classes or more" in failure("evaluateinteractive", parameters)


def test_a_class_map_that_memory_does_not_hold_is_refused(
    failure: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be encoded anew after every click; its first window tells."""
    from segadapt.processing.jobs.class_map import ClassMapper

    init, encode, encoded = ClassMapper.__init__, ClassMapper.encode, []
    monkeypatch.setattr(ClassMapper, "__init__", lambda *one, **more: init(*one, **more, memory_bytes=5_000_000))
    monkeypatch.setattr(ClassMapper, "encode", lambda mapper, cell: (encoded.append(cell), encode(mapper, cell)))
    rows = [(roof.polygon, {"kind": name}) for roof, name in zip(roofs, "ab", strict=False)]
    files = {"TABLE": str(tmp_path / "clicks.gpkg"), "REPORT": str(tmp_path / "page.html")}
    given = {"PROTOCOL": "class_map", "CLASS_FIELD": "kind", "WINDOW": "256", **files}
    parameters = parameters_of(scene_file, prompts(rows, kind="Polygon"), **given)
    assert "300 x 300 px is too large" in failure("evaluateinteractive", parameters)
    assert len(encoded) == 1
    assert list(tmp_path.iterdir()) == []


def test_compared_with_the_plain_model(run: Any, scene_file: Path, references: Any, tmp_path: Path) -> None:
    """Both meet the same objects in the same order; the numbers are of what was asked for."""
    file, report = tmp_path / "table.gpkg", tmp_path / "report.html"
    parameters = parameters_of(
        scene_file, references, ADAPTATION=True, WINDOW="auto", BASELINE=True, CLICKS=1, OBJECTS=2, SEED=3
    )
    result = run("evaluateinteractive", {**parameters, "TABLE": str(file), "REPORT": str(report)})
    rows = list(QgsVectorLayer(str(file), "table", "ogr").getFeatures())
    by_name = {name: [r for r in rows if r["configuration"] == name] for name in {r["configuration"] for r in rows}}
    assert set(by_name) == {"plain model, windows of 1024", "with adaptation"}
    plain, adapting = by_name["plain model, windows of 1024"], by_name["with adaptation"]
    assert [row["object_id"] for row in plain] == [row["object_id"] for row in adapting]
    assert len(plain) == result["COUNT"] == 2
    assert result["MIOU1"] == pytest.approx(sum(row["iou_1"] for row in adapting) / 2)
    assert "object by object" in report.read_text(encoding="utf-8")


def test_numbers_become_a_job(provider: Any, scene_file: Path, references: Any) -> None:
    """A number of objects that was cleared means all of them; adaptation off switches everything off."""
    from segadapt.processing.jobs.evaluate_interactive import plain_options
    from segadapt.processing.jobs.interactive import InteractiveOptions

    algorithm, context = provider.algorithm("evaluateinteractive").create(), QgsProcessingContext()
    job = algorithm._job(parameters_of(scene_file, references, OBJECTS=None, ADAPTER=True), context)
    assert job.max_objects is None
    assert job.configurations[0].options == plain_options(window_px=512)
    # The defaults are those of the map tool.
    job = algorithm._job(parameters_of(scene_file, references, ADAPTATION=True, WINDOW="auto"), context)
    assert job.configurations[0].options == InteractiveOptions()
    changes = {"ADAPTATION": True, "WINDOW": "auto", "REPAIR": False, "CASCADE": 1, "ACCEPT": "reference", "SEED": 4}
    changes["ADAPTER_FILE"] = "my city.safetensors"
    job = algorithm._job(parameters_of(scene_file, references, **changes), context)
    assert (job.max_objects, job.accepts, job.seed, job.n_clicks) == (100, "reference", 4, 3)
    options = job.configurations[0].options
    assert (options.window_px, options.fixed_window, options.repair, options.cascade) == (None, False, False, 1)
    assert options.adapter
    assert options.adapter_path == Path("my city.safetensors")
    assert options.per_click
    assert options.per_object


@pytest.mark.parametrize(
    ("rows", "kind", "changes", "sentence"),
    [
        ([("POINT(600030 5749960)", {})], "Point", {}, "'prompts' holds no polygons"),
        (
            [("POLYGON((0 0, 9 0, 9 9, 0 9, 0 0))", {})],
            "Polygon",
            {},
            "None of the 1 reference polygons can be evaluated (1 outside the raster)",
        ),
        ([], "Polygon", {}, "has no feature with a geometry"),
    ],
)
def test_wrong_input_is_a_sentence(
    failure: Any, scene_file: Path, prompts: Any, tmp_path: Path, rows: Any, kind: str, changes: Any, sentence: str
) -> None:
    """Each mistake is named with its remedy, and no output is left."""
    layer = prompts(rows, kind=kind)
    outputs = {"TABLE": str(tmp_path / "table.gpkg"), "REPORT": str(tmp_path / "report.html")}
    assert sentence in failure("evaluateinteractive", parameters_of(scene_file, layer, **outputs, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_known_at_once(
    failure: Any, scene_file: Path, references: Any, tmp_path: Path
) -> None:
    """Before the model is loaded."""
    (tmp_path / "file").write_text("not a folder")
    parameters = parameters_of(scene_file, references, REPORT=str(tmp_path / "file" / "report.html"))
    assert "cannot be written to; choose another one" in failure("evaluateinteractive", parameters)


def test_cancel_leaves_nothing(failure: Any, feedback: Any, scene_file: Path, references: Any, tmp_path: Path) -> None:
    """Cancelled after the first object: a sentence, and no file."""
    feedback.progressChanged.connect(lambda percent: feedback.cancel() if percent > 30 else None)
    outputs = {"TABLE": str(tmp_path / "table.gpkg"), "REPORT": str(tmp_path / "report.html")}
    sentence = failure("evaluateinteractive", parameters_of(scene_file, references, CLICKS=1, **outputs))
    assert "Stopped at the user's request" in sentence
    assert list(tmp_path.iterdir()) == []
