"""`segadapt:segmentfromprompts` on a scene whose roofs are known, with the real weights."""

from __future__ import annotations

import gc
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from osgeo import ogr, osr
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsGeometry,
    QgsProject,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
)

pytestmark = pytest.mark.qgis

FIELDS = ["object_id", "class", "score", "stability", "area_m2", "model", "perimeter_m", "adapter", "date"]


def features_of(output: Any) -> list[QgsFeature]:
    """Features of an output, which is a layer or a path, in the order of their object ids."""
    layer = output if isinstance(output, QgsVectorLayer) else QgsVectorLayer(output, "output", "ogr")
    assert layer.isValid()
    assert [f.name() for f in layer.fields() if f.name() != "fid"] == FIELDS
    return sorted(layer.getFeatures(), key=lambda feature: feature["object_id"])


def test_boxes_give_the_roofs(run: Any, scene_file: Path, prompts: Any, roofs: Any) -> None:
    """One polygon per box, in the raster's CRS, with class, area and model."""
    layer = prompts([(roof.polygon, {"kind": "roof"}) for roof in roofs], kind="Polygon")
    result = run(
        "segmentfromprompts",
        {
            "INPUT": str(scene_file),
            "PROMPTS": layer,
            "CLASS_FIELD": "kind",
            "MODEL": "mobile_sam",
            "DEVICE": "cpu",
            "OUTPUT": "memory:",
        },
    )
    found = features_of(result["OUTPUT"])
    assert result["COUNT"] == len(found) == 3
    assert result["OUTPUT"].crs().authid() == "EPSG:32631"
    for roof, feature in zip(roofs, found, strict=True):
        assert roof.iou(feature.geometry()) > 0.9
        assert feature["class"] == "roof"
        assert feature["model"] == "mobile_sam"
        assert 0.7 < feature["score"] <= 1
        assert 0.7 < feature["stability"] <= 1
        # UTM's scale at 6 degrees east of the meridian's zone centre is within 0.1 % of 1.
        assert feature["area_m2"] == pytest.approx(feature.geometry().area(), rel=2e-3)
        assert feature["perimeter_m"] == pytest.approx(feature.geometry().length(), rel=2e-3)
        assert feature["adapter"] == ""
        assert datetime.fromisoformat(feature["date"]).utcoffset() is not None
    assert [f["object_id"] for f in found] == [str(f.id()) for f in layer.getFeatures()]


def test_points_of_one_object(run: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path) -> None:
    """Points with the same object id are one object, background excludes; into a GeoPackage."""
    first, second = roofs[0], roofs[1]
    layer = prompts(
        [
            (first.point, {"name": "a", "use": "fg"}),
            (second.point, {"name": "b", "use": "positive"}),
            (roofs[2].point, {"name": "b", "use": "background"}),
        ]
    )
    file = tmp_path / "Ergebnis 1.gpkg"
    result = run(
        "segmentfromprompts",
        {
            "INPUT": str(scene_file),
            "PROMPTS": layer,
            "PROMPT_FIELD": "use",
            "OBJECT_FIELD": "name",
            "OUTPUT": str(file),
        },
    )
    found = {f["object_id"]: f for f in features_of(str(file))}
    assert result["COUNT"] == 2
    assert set(found) == {"a", "b"}
    assert first.iou(found["a"].geometry()) > 0.85
    assert second.iou(found["b"].geometry()) > 0.85


def test_prompts_in_another_crs(run: Any, scene_file: Path, prompts: Any, roofs: Any) -> None:
    """Prompts in degrees are transformed; the result stays in the raster's CRS."""
    geometry = QgsGeometry.fromWkt(roofs[0].point)
    geometry.transform(
        QgsCoordinateTransform(
            QgsCoordinateReferenceSystem("EPSG:32631"),
            QgsCoordinateReferenceSystem("EPSG:4326"),
            QgsProject.instance().transformContext(),
        )
    )
    layer = prompts([(geometry.asWkt(9), {})], crs="EPSG:4326")
    result = run("segmentfromprompts", {"INPUT": str(scene_file), "PROMPTS": layer, "OUTPUT": "memory:"})
    (found,) = features_of(result["OUTPUT"])
    assert roofs[0].iou(found.geometry()) > 0.85


def test_crs_set_in_qgis_counts(
    run: Any, failure: Any, make_scene: Any, prompts: Any, roofs: Any, tmp_path: Path
) -> None:
    """A file without CRS is refused with the remedy; once the layer has one, the same file works."""
    layer = QgsRasterLayer(str(make_scene(tmp_path / "bare.tif", crs=None)), "bare")
    layer.setCrs(QgsCoordinateReferenceSystem())
    parameters = {"INPUT": layer, "PROMPTS": prompts([(roofs[1].point, {})]), "OUTPUT": "memory:"}
    sentence = failure("segmentfromprompts", parameters)
    assert sentence.startswith("'bare' has no CRS; assign one with Layer > Set CRS")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32631"))
    result = run("segmentfromprompts", parameters)
    (found,) = features_of(result["OUTPUT"])
    assert roofs[1].iou(found.geometry()) > 0.85
    assert found["area_m2"] == pytest.approx(found.geometry().area(), rel=2e-3)


def test_simplify_and_minimum_area(run: Any, scene_file: Path, prompts: Any, roofs: Any) -> None:
    """A generous tolerance leaves fewer corners; objects below the minimum area are left out."""
    base = {"INPUT": str(scene_file), "PROMPTS": prompts([(roof.point, {}) for roof in roofs]), "OUTPUT": "memory:"}
    fine = features_of(run("segmentfromprompts", base)["OUTPUT"])
    plain = features_of(run("segmentfromprompts", {**base, "SIMPLIFY": 15.0})["OUTPUT"])
    corners = [sum(1 for _ in f.geometry().vertices()) for f in (*fine, *plain)]
    assert len(fine) == len(plain) == 3
    assert sum(corners[3:]) < sum(corners[:3])
    between = (roofs[0].area_m2 + min(roofs[1].area_m2, roofs[2].area_m2)) / 2
    large = run("segmentfromprompts", {**base, "MIN_AREA": between})
    assert large["COUNT"] == 2


def test_stretch_of_the_layer(run: Any, scene_file: Path, prompts: Any, roofs: Any) -> None:
    """The layer's minimum and maximum are what the model sees: a stretch that hides the roofs hides them."""
    layer = QgsRasterLayer(str(scene_file), "scene")
    parameters = {
        "INPUT": layer,
        "PROMPTS": prompts([(roofs[0].polygon, {})], kind="Polygon"),
        "STRETCH": "layer",
        "OUTPUT": "memory:",
    }
    scores = []
    for low, high in ((0.0, 255.0), (0.0, 50.0)):
        for get in ("redContrastEnhancement", "greenContrastEnhancement", "blueContrastEnhancement"):
            enhancement = getattr(layer.renderer(), get)()
            enhancement.setMinimumValue(low)
            enhancement.setMaximumValue(high)
        features = features_of(run("segmentfromprompts", parameters)["OUTPUT"])
        scores.append(max((roofs[0].iou(f.geometry()) for f in features), default=0.0))
    assert scores[0] > 0.9
    assert scores[1] < scores[0] - 0.02


@pytest.mark.parametrize(
    ("rows", "changes", "sentence"),
    [
        ([], {}, "'prompts' has no feature with a geometry; add at least one prompt"),
        ([("POINT(0 0)", {})], {}, "check that both layers have the right CRS"),
        (
            [("POINT(600030 5749960)", {"use": "maybe"})],
            {"PROMPT_FIELD": "use"},
            "'maybe' in the prompt field",
        ),
        ([("POINT(600030 5749960)", {"use": 2})], {"PROMPT_FIELD": "use"}, "'2' in the prompt field"),
        ([("POINT(600030 5749960)", {})], {"BANDS": [1, 2]}, "2 bands are chosen; choose three"),
        ([("POINT(600030 5749960)", {})], {"BANDS": [9]}, "has no band 9; choose from 1 to 3"),
        ([("POINT(600030 5749960)", {})], {"MODEL": "sam_vit_b"}, "offline"),
    ],
)
def test_wrong_input_is_a_sentence(
    failure: Any, scene_file: Path, prompts: Any, tmp_path: Path, rows: Any, changes: Any, sentence: str
) -> None:
    """Each mistake is named with its remedy, and no output is left."""
    file = tmp_path / "out.gpkg"
    parameters = {"INPUT": str(scene_file), "PROMPTS": prompts(rows), "OUTPUT": str(file), **changes}
    assert sentence in failure("segmentfromprompts", parameters)
    assert list(tmp_path.iterdir()) == []


def test_collections_are_no_prompts(failure: Any, scene_file: Path, tmp_path: Path) -> None:
    """A layer of no points, lines or polygons is named with its type."""
    file = tmp_path / "mixed.gpkg"
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset = ogr.GetDriverByName("GPKG").CreateDataSource(str(file))
    table = dataset.CreateLayer("mixed", reference, ogr.wkbGeometryCollection)
    feature = ogr.Feature(table.GetLayerDefn())
    feature.SetGeometry(ogr.CreateGeometryFromWkt("GEOMETRYCOLLECTION(POINT(600030 5749960))"))
    table.CreateFeature(feature)
    del feature, table, dataset
    layer = QgsVectorLayer(str(file), "mixed", "ogr")
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "OUTPUT": "memory:"}
    sentence = failure("segmentfromprompts", parameters)
    assert sentence.startswith("'mixed' holds GeometryCollection, which is no prompt")


def test_web_layer_is_a_sentence(failure: Any, prompts: Any, roofs: Any) -> None:
    """A map service has no pixels to read; the remedy is to export it."""
    layer = QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/%7Bz%7D/%7Bx%7D/%7By%7D.png&zmax=1&zmin=0", "web", "wms")
    assert layer.isValid()
    parameters = {"INPUT": layer, "PROMPTS": prompts([(roofs[0].point, {})]), "OUTPUT": "memory:"}
    sentence = failure("segmentfromprompts", parameters)
    assert sentence.startswith("'web' comes from the provider 'wms', not from a file; export it")


@pytest.mark.parametrize("changes", [{"BANDS": [9]}, {"PROMPT_FIELD": "use"}])
def test_failure_keeps_nothing_alive(failure: Any, scene_file: Path, prompts: Any, changes: Any) -> None:
    """QGIS never frees an exception from Python: it must not hold layers, engine or weights."""
    layer = QgsRasterLayer(str(scene_file), "scene")
    points = prompts([("POINT(600030 5749960)", {"use": "maybe"})])
    alive = [weakref.ref(layer), weakref.ref(points)]
    assert failure("segmentfromprompts", {"INPUT": layer, "PROMPTS": points, "OUTPUT": "memory:", **changes})
    del layer, points
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_corrupt_raster_is_a_sentence(failure: Any, make_scene: Any, prompts: Any, roofs: Any, tmp_path: Path) -> None:
    """A file whose pixels are cut off opens, and fails with a sentence once they are read."""
    file = make_scene(tmp_path / "cut.tif")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    layer = QgsRasterLayer(str(file), "cut")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32631"))
    output = tmp_path / "out.gpkg"
    parameters = {"INPUT": layer, "PROMPTS": prompts([(roofs[2].point, {})]), "OUTPUT": str(output)}
    sentence = failure("segmentfromprompts", parameters)
    assert str(file) in sentence
    assert "unexpectedly" not in sentence
    assert not output.exists()


def test_unwritable_output_is_a_sentence(
    failure: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path
) -> None:
    """The sink is opened before the work, so this fails at once."""
    (tmp_path / "file").write_text("not a folder")
    parameters = {
        "INPUT": str(scene_file),
        "PROMPTS": prompts([(roofs[0].point, {})]),
        "OUTPUT": str(tmp_path / "file" / "out.gpkg"),
    }
    assert "out.gpkg" in failure("segmentfromprompts", parameters)


@pytest.mark.parametrize("name", ["out.gpkg", "out.shp", "out.geojson"])
def test_cancel_leaves_nothing(
    failure: Any,
    scene_file: Path,
    prompts: Any,
    roofs: Any,
    tmp_path: Path,
    cancel_after_first: Any,
    name: str,
) -> None:
    """Cancelled after the first object was written: a sentence, and no file of any kind."""
    layer = prompts([(roof.polygon, {}) for roof in roofs], kind="Polygon")
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "OUTPUT": str(tmp_path / name)}
    assert "Stopped at the user's request" in failure("segmentfromprompts", parameters)
    assert list(tmp_path.iterdir()) == []


def test_cancel_spares_other_tables(
    failure: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path, cancel_after_first: Any
) -> None:
    """A table that was being written into an existing GeoPackage goes, the tables that were there stay."""
    file = tmp_path / "project.gpkg"
    layer = prompts([(roof.polygon, {"kind": "kept"}) for roof in roofs], kind="Polygon")
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.layerName = "kept"
    QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(file), QgsCoordinateTransformContext(), options)
    output = f"ogr:dbname='{file}' table=\"half\" (geom)"
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "OUTPUT": output}
    assert "Stopped at the user's request" in failure("segmentfromprompts", parameters)
    assert QgsVectorLayer(f"{file}|layername=kept", "kept", "ogr").featureCount() == 3
    assert not QgsVectorLayer(f"{file}|layername=half", "half", "ogr").isValid()


def test_runs_in_a_worker_thread_again_and_again(run_task: Any, scene_file: Path, prompts: Any, roofs: Any) -> None:
    """As QGIS's dialog does it, and as often: Qt gives the same thread with a new Python state each time."""
    parameters = {
        "INPUT": QgsRasterLayer(str(scene_file), "scene"),
        "PROMPTS": prompts([(roofs[0].polygon, {})], kind="Polygon"),
        "OUTPUT": "memory:",
    }
    for _ in range(3):
        context, results = run_task("segmentfromprompts", parameters)
        assert results["COUNT"] == 1
        (found,) = context.takeResultLayer(results["OUTPUT"]).getFeatures()
        assert roofs[0].iou(found.geometry()) > 0.9


def test_progress_and_device_are_reported(run: Any, scene_file: Path, prompts: Any, roofs: Any, feedback: Any) -> None:
    """The log says which device runs the model, and progress only grows, to the end."""
    layer = prompts([(roof.polygon, {}) for roof in roofs], kind="Polygon")
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "DEVICE": "cpu", "OUTPUT": "memory:"}
    run("segmentfromprompts", parameters, feedback=feedback)
    assert any("CPU" in line.upper() for line in feedback.seen.info)
    assert feedback.seen.progress
    assert max(feedback.seen.progress) == pytest.approx(100, abs=1)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter file for MobileSAM, as the map tool saves it."""
    from segadapt.models.adaptation.adapter import Adapter, AdapterCard, save_adapter
    from segadapt.models.adaptation.refiner import MaskRefiner
    from segadapt.models.registry import get_card

    card = AdapterCard(
        name="roofs here", base_model="mobile_sam", base_sha256=get_card("mobile_sam").checkpoint.sha256,
        method="none", trained_on=("nothing",), n_objects=0, licence="none", made_on="2026-01-01",
    )  # fmt: skip
    path = tmp_path / "roofs.safetensors"
    save_adapter(Adapter(card, MaskRefiner().state_dict()), path)
    return path


def test_a_learned_adapter_answers(run: Any, scene_file: Path, prompts: Any, roofs: Any, adapter: Path) -> None:
    """The objects tell which adapter helped, and so does the provenance."""
    layer = prompts([(roofs[0].polygon, {"kind": "roof"})], kind="Polygon")
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "ADAPTER": str(adapter), "DEVICE": "cpu"}
    output = run("segmentfromprompts", {**parameters, "OUTPUT": "memory:"})["OUTPUT"]
    (feature,) = features_of(output)
    assert roofs[0].iou(feature.geometry()) > 0.9
    assert feature["adapter"] == "roofs here"
    assert "SEGADAPT_ADAPTER=roofs.safetensors" in output.metadata().history()


def test_a_wrong_adapter_is_a_sentence(
    failure: Any, scene_file: Path, prompts: Any, roofs: Any, tmp_path: Path
) -> None:
    """A file that is no adapter, and nothing is left of the output."""
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no adapter")
    layer = prompts([(roofs[0].polygon, {"kind": "roof"})], kind="Polygon")
    parameters = {"INPUT": str(scene_file), "PROMPTS": layer, "ADAPTER": str(wrong), "DEVICE": "cpu"}
    assert "wrong.safetensors" in failure("segmentfromprompts", {**parameters, "OUTPUT": str(tmp_path / "out.gpkg")})
    assert not (tmp_path / "out.gpkg").exists()
