"""`segadapt:trainmodel` and `segadapt:evaluatemodel`: from layers to a model, and to numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

import numpy as np
import rasterio
from segadapt.models.semantic.card import read_card
from segadapt.processing.algorithms import train_model as algorithm
from segadapt.processing.algorithms import training_source
from segadapt.processing.errors import JobError

pytestmark = pytest.mark.qgis

QUICK = {
    "DECODER": "unet",
    "WEIGHTS": "none",
    "CHIP": 64,
    "STEPS": 30,
    "RATE": 0.003,
    "PATIENCE": 0,
    "AUGMENT": False,
    "HELD_OUT": 0.25,
    "DEVICE": "cpu",
}


@pytest.fixture
def roof_layer(roofs: Any, prompts: Any) -> Any:
    """The roofs as polygons, in degrees, with a field of their class."""
    from qgis.core import QgsCoordinateReferenceSystem, QgsCoordinateTransform, QgsGeometry, QgsProject

    to_degrees = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32631"), QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    )
    rows = []
    for roof in roofs:
        geometry = QgsGeometry.fromWkt(roof.polygon)
        geometry.transform(to_degrees)
        rows.append((geometry.asWkt(12), {"class": "roof"}))
    return prompts(rows, crs="EPSG:4326", kind="Polygon")


def test_choices_are_those_of_the_jobs() -> None:
    """Names that the algorithms list without the environment."""
    from segadapt.models.losses import LOSSES
    from segadapt.models.semantic.segmenter import DECODERS
    from segadapt.processing.jobs.class_scheme import BACKGROUNDS
    from segadapt.processing.jobs.train_model import WEIGHTS
    from segadapt.processing.jobs.training_data import SPLITS

    assert algorithm.DECODERS == DECODERS
    assert algorithm.WEIGHTS == WEIGHTS
    assert algorithm.SPLITS == SPLITS
    assert tuple(LOSSES) == algorithm.LOSSES
    assert training_source.BACKGROUNDS == BACKGROUNDS


def test_train_on_polygons_in_another_crs_and_evaluate(
    run: Any, scene_file: Path, roof_layer: Any, tmp_path: Path, feedback: Any
) -> None:
    """The model that was trained is good on its scene, by polygons and by a label raster alike."""
    output, page = tmp_path / "roofs.safetensors", tmp_path / "training.html"
    result = run(
        "trainmodel",
        {
            "RASTERS": [str(scene_file)],
            "LABELS": roof_layer,
            "CLASS_FIELD": "class",
            "OUTPUT": str(output),
            "REPORT": str(page),
            "LOSS": "focal",
            **QUICK,
        },
        feedback=feedback,
    )
    assert result["OUTPUT"] == str(output)
    assert result["MEAN_IOU"] > 0.8
    card = read_card(output)
    assert card.class_names == ("background", "roof")
    assert card.history[-1]["loss"] == "focal"
    assert "roof" in page.read_text(encoding="utf-8")
    assert "focal loss" in page.read_text(encoding="utf-8")
    assert any("Step 30 of 30" in text for text in feedback.seen.info)
    truth = tmp_path / "truth.tif"
    _write_truth(scene_file, truth)
    table, report = tmp_path / "table.csv", tmp_path / "evaluation.html"
    common = {"MODELS": [str(output)], "RASTERS": [str(scene_file)], "DEVICE": "cpu"}
    by_polygons = run("evaluatemodel", {**common, "LABELS": roof_layer})
    by_raster = run(
        "evaluatemodel",
        {
            **common,
            "LABEL_RASTERS": [str(truth)],
            "CLASS_NAMES": "3=background, 9=roof",
            "TABLE": str(table),
            "REPORT": str(report),
        },
    )
    assert by_raster["MEAN_IOU"] > 0.85
    assert by_raster["MEAN_IOU_LOW"] <= by_raster["MEAN_IOU"] <= by_raster["MEAN_IOU_HIGH"]
    assert by_polygons["MEAN_IOU"] == pytest.approx(by_raster["MEAN_IOU"], abs=0.01)
    assert by_raster["BEST"] == str(output)
    assert by_raster["COUNT"] == 25
    assert len(table.read_text(encoding="utf-8").splitlines()) == 4
    assert "data:image/svg" in report.read_text(encoding="utf-8")


def _write_truth(scene: Path, path: Path) -> None:
    with rasterio.open(scene) as source:
        bright = source.read(1) > 150
        profile = source.profile | {"count": 1}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.where(bright, 9, 3).astype(np.uint8)[None])


def test_labels_that_do_not_fit_give_a_sentence(
    failure: Any, scene_file: Path, roof_layer: Any, prompts: Any, roofs: Any, tmp_path: Path
) -> None:
    """Nothing is written, and the sentence names what is wrong."""
    output = tmp_path / "model.safetensors"
    common = {"RASTERS": [str(scene_file)], "OUTPUT": str(output), **QUICK}
    square = "POLYGON((0 0, 9 0, 9 9, 0 9, 0 0))"
    cases = [
        ({"LABELS": prompts([(square, {"class": "roof"})], kind="Polygon")}, "lies on a raster; check the CRS"),
        ({"LABELS": prompts([], kind="Polygon")}, "holds no polygon"),
        ({"LABELS": roof_layer, "CLASS_FIELD": "kind"}, "no field 'kind'"),
        ({"LABELS": roof_layer, "BACKGROUND": "unlabelled"}, "one class alone"),
        ({"LABELS": roof_layer, "BANDS": "1, x"}, "'1, x' are no numbers"),
        ({"LABELS": roof_layer, "BANDS": "1, 2, 7"}, "Band 7 is not in"),
        ({"LABELS": roof_layer, "ENCODER": "no_such_net"}, "'no_such_net' cannot be built"),
        ({"LABELS": roof_layer, "LABEL_RASTERS": [str(scene_file)]}, "one of the two"),
        ({"LABEL_RASTERS": [str(scene_file)]}, "3 band(s)"),
        ({}, "one of the two"),
    ]
    for more, sentence in cases:
        assert sentence in failure("trainmodel", {**common, **more}), more
    assert not output.exists()
    assert "is no segmentation model" in failure(
        "evaluatemodel", {"MODELS": [str(scene_file)], "RASTERS": [str(scene_file)], "LABELS": roof_layer}
    )


def test_a_folder_stands_for_its_rasters(provider: Any, scene_file: Path, tmp_path: Path) -> None:
    """By name, without what lies beside them; a folder of none is refused by name."""
    from qgis.core import QgsProcessingContext, QgsProcessingFeedback

    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("b.tif", "a.tif", "a.tif.ovr"):
        shutil.copy(scene_file, folder / name)
    (folder / "notes.txt").write_text("clouds in b")
    (tmp_path / "empty").mkdir()
    asked = provider.algorithm("trainmodel").create()
    context = QgsProcessingContext()
    values = {"RASTERS": [str(folder), str(scene_file)], "OUTPUT": str(tmp_path / "model.safetensors")}
    assert asked.checkParameterValues(values, context) == (True, "")
    assert asked.prepare(values, context, QgsProcessingFeedback())
    assert [raster.path for raster in asked.rasters("RASTERS")] == [
        str(folder / "a.tif"),
        str(folder / "b.tif"),
        str(scene_file),
    ]
    is_good, sentence = asked.checkParameterValues({**values, "RASTERS": str(tmp_path / "empty")}, context)
    assert not is_good
    assert "empty holds no raster" in sentence


def test_polygons_are_clipped_mended_and_named(scene_file: Path, prompts: Any, roofs: Any, qgis_app: Any) -> None:
    """Bow-ties become two triangles, polygons elsewhere are left out, a missing class is None."""
    from qgis.core import NULL, QgsCoordinateReferenceSystem, QgsProcessingContext
    from qgis.core import QgsProcessingFeatureSource as Source
    from segadapt.models.progress import NullProgress
    from segadapt.processing.algorithms.model_algorithm import RasterInput

    left, bottom, right, top = roofs[0].bounds
    bow_tie = f"POLYGON(({left} {bottom}, {right} {top}, {right} {bottom}, {left} {top}, {left} {bottom}))"
    layer = prompts([(bow_tie, {"class": " roof "}), (roofs[1].polygon, {"class": ""})], kind="Polygon")
    far = layer.getFeature(1)
    far["class"] = NULL
    geometry = far.geometry()
    geometry.translate(100_000, 0)
    far.setGeometry(geometry)
    layer.dataProvider().addFeature(far)
    raster = RasterInput(str(scene_file), "scene", QgsCoordinateReferenceSystem("EPSG:32631"))
    context = QgsProcessingContext()
    source = Source(layer, context)
    found = training_source.read_polygons(source, "class", raster=raster, context=context, progress=NullProgress())
    assert [name for _, name in found] == ["roof", "roof", None]
    assert sum(polygon.area for polygon, _ in found[:2]) == pytest.approx(roofs[0].area_m2 / 2)
    assert all(
        name == ""
        for _, name in training_source.read_polygons(
            source, "", raster=raster, context=context, progress=NullProgress()
        )
    )


@pytest.mark.parametrize(("value", "name"), [(1.0, "1"), (1.5, "1.5"), (2, "2"), ("1.0", "1.0")])
def test_whole_numbers_are_the_same_class_in_any_file(
    scene_file: Path, prompts: Any, roofs: Any, value: Any, name: str
) -> None:
    """Shapefiles hold them as decimals."""
    from qgis.core import QgsCoordinateReferenceSystem, QgsProcessingContext
    from qgis.core import QgsProcessingFeatureSource as Source
    from segadapt.models.progress import NullProgress
    from segadapt.processing.algorithms.model_algorithm import RasterInput

    raster = RasterInput(str(scene_file), "scene", QgsCoordinateReferenceSystem("EPSG:32631"))
    context = QgsProcessingContext()
    layer = prompts([(roofs[0].polygon, {"class": value})], kind="Polygon")
    source = Source(layer, context)
    found = training_source.read_polygons(source, "class", raster=raster, context=context, progress=NullProgress())
    assert [one for _, one in found] == [name]


def labelled(provider: Any, rasters: list[Any], labels: list[Any], feedback: Any) -> list[Any]:
    """The rasters with their labels, as the algorithm hands them to its job."""
    from qgis.core import QgsProcessingContext
    from segadapt.processing.algorithms.feedback import FeedbackProgress

    asked, context = provider.algorithm("trainmodel").create(), QgsProcessingContext()
    values = {"RASTERS": rasters, "LABEL_RASTERS": labels}
    assert asked.prepare(values, context, feedback)
    found: list[Any] = asked.labelled_rasters(values, context, progress=FeedbackProgress(feedback))
    return found


def test_a_label_raster_has_the_crs_that_qgis_shows(provider: Any, scene_file: Path, feedback: Any) -> None:
    """What the user chose for the layer counts, not what the file says."""
    from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer

    layer = QgsRasterLayer(str(scene_file), "labels")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32633"))
    (one,) = labelled(provider, [str(scene_file)], [layer], feedback)
    assert one.label_path == scene_file
    assert "zone 33N" in one.label_crs_wkt
    assert "zone 31N" in one.crs_wkt


def test_label_rasters_find_their_rasters() -> None:
    """By name where all have a partner, else by order, and one for all."""
    paired = training_source.paired
    assert paired(["/a/1.jpg", "/a/2.jpg"], ["/b/2.png", "/b/1.png"]) == (["/b/1.png", "/b/2.png"], False)
    assert paired(["/a/1.jpg", "/a/2.jpg"], ["/b/y.png", "/b/x.png"]) == (["/b/y.png", "/b/x.png"], True)
    assert paired(["/a/1.jpg", "/a/10.jpg"], ["/b/10_classes.png", "/b/1_classes.png"]) == (
        ["/b/1_classes.png", "/b/10_classes.png"],
        False,
    )
    assert paired(["/a/1.jpg", "/a/2.jpg"], ["/b/all.tif"]) == (["/b/all.tif"] * 2, False)
    assert paired(["/a/1.jpg"], ["/b/1_old.png", "/b/1.png"]) == (["/b/1.png"], False)
    # One folder each, and the same names in both.
    assert paired(["/a/1.jpg", "/b/1.jpg"], ["/c/1.png", "/d/1.png"]) == (["/c/1.png", "/d/1.png"], True)
    with pytest.raises(JobError, match="2 label rasters for 3 rasters"):
        paired(["1", "2", "3"], ["x", "y"])


def test_a_label_raster_goes_with_the_longest_name_that_it_begins_with() -> None:
    """Where one raster's name begins another's."""
    rasters = ["/a/town.tif", "/a/town_2019.tif", "/a/town_2019_b.tif"]
    labels = [f"/b/{name}_classes.tif" for name in ("town_2019_b", "town_2019", "town")]
    assert training_source.paired(rasters, labels) == (labels[::-1], False)
    assert training_source.paired(rasters[:2], ["/b/town_2019.png", "/b/town-x.png"]) == (
        ["/b/town-x.png", "/b/town_2019.png"],
        False,
    )


def test_pairs_by_order_are_said(provider: Any, scene_file: Path, feedback: Any, tmp_path: Path) -> None:
    """With the names of both, so that a wrong order is seen."""
    files = [str(shutil.copy(scene_file, tmp_path / f"{name}.tif")) for name in ("a", "b", "y", "x")]
    found = labelled(provider, files[:2], files[2:], feedback)
    assert [one.label_path.name for one in found] == ["y.tif", "x.tif"]
    assert any("order does: y.tif - a.tif, x.tif - b.tif." in text for text in feedback.seen.info)
    feedback.seen.info.clear()
    labelled(provider, files[:2], files[3:], feedback)
    assert not feedback.seen.info
