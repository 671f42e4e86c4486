"""`segadapt:selectsamples` and `segadapt:finetunemodel`: what to label, and what the labels teach a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import fine_tune_model as tune_module
from segadapt.processing.algorithms import select_samples as select_module
from segadapt.processing.algorithms import training_source as source_module

pytestmark = pytest.mark.qgis


def features_of(destination: str) -> list[Any]:
    """Features of a written layer, by rank."""
    from qgis.core import QgsVectorLayer

    layer = QgsVectorLayer(destination, "samples", "ogr")
    assert layer.isValid()
    return sorted(layer.getFeatures(), key=lambda feature: feature["rank"])


def samples(model: Path, scene_file: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Parameters of a small selection."""
    return {
        "RASTERS": [str(scene_file)],
        "MODEL": str(model),
        "REGION_SIZE": 8,
        "BUDGET": 6,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
    } | more


def test_regions_come_as_a_layer_ready_to_fill_in(
    run: Any, roof_model: Path, scene_file: Path, roofs: Any, tmp_path: Path
) -> None:
    """Fields, ranks, areas, an empty class, and regions where the model wavers: at the walls."""
    from qgis.core import NULL, QgsGeometry

    results = run("selectsamples", samples(roof_model, scene_file, tmp_path / "s.gpkg", STRATEGY="impurity"))
    found = features_of(results["OUTPUT"])
    assert results["COUNT"] == len(found) == 6
    assert [name for name in found[0].fields().names() if name != "fid"] == [
        "rank",
        "score",
        "area_m2",
        "predicted",
        "class",
        "raster",
        "model",
    ]
    assert [one["rank"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert all(one["class"] == NULL for one in found)
    assert all(one["predicted"] in ("background", "roof") for one in found)
    assert {one["model"] for one in found} == {"bright roofs"}
    assert {one["raster"] for one in found} == {scene_file.name}
    # The ellipsoid's square metres are larger than the map's by the scale of the projection: 0.9996 in the middle.
    assert all(one["area_m2"] == pytest.approx(64, rel=2e-3) for one in found)
    assert results["AREA_M2"] == pytest.approx(sum(one["area_m2"] for one in found))
    walls = [QgsGeometry.fromWkt(roof.polygon).convertToType(1, False).buffer(1, 4) for roof in roofs]
    at_walls = [any(one.geometry().intersects(wall) for wall in walls) for one in found]
    assert sum(at_walls) >= 5


def test_the_next_round_takes_the_output_of_the_last_one(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path
) -> None:
    """Regions whose class was filled in are not asked for again; those that were left are."""
    from qgis.core import QgsVectorLayer, edit

    first = run("selectsamples", samples(roof_model, scene_file, tmp_path / "first.gpkg"))["OUTPUT"]
    layer = QgsVectorLayer(first, "first", "ogr")
    with edit(layer):
        for feature in layer.getFeatures():
            if feature["rank"] <= 4:
                feature["class"] = "roof"
                layer.updateFeature(feature)
    filled = {one.geometry().asWkt() for one in features_of(first) if one["rank"] <= 4}
    left = {one.geometry().asWkt() for one in features_of(first) if one["rank"] > 4}
    parameters = samples(
        roof_model, scene_file, tmp_path / "all.gpkg", LABELLED=layer, BUDGET=100, BUDGET_UNIT="percent"
    )
    asked = {one.geometry().asWkt() for one in features_of(run("selectsamples", parameters)["OUTPUT"])}
    assert len(filled) == 4
    assert not asked & filled
    assert left <= asked


def test_a_place_that_was_drawn_in_is_not_asked_for_again(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path
) -> None:
    """However small the outline in it; places without one are asked for again."""
    from qgis.core import QgsFeature, QgsGeometry, QgsVectorLayer

    first = run("selectsamples", samples(roof_model, scene_file, tmp_path / "first.gpkg"))["OUTPUT"]
    places = [one.geometry() for one in features_of(first)]
    layer = QgsVectorLayer(first, "first", "ogr")
    outline = QgsFeature(layer.fields())
    outline.setGeometry(QgsGeometry.fromPointXY(places[0].centroid().asPoint()).buffer(1, 8))
    outline["class"] = "roof"
    assert layer.dataProvider().addFeature(outline)
    parameters = samples(
        roof_model, scene_file, tmp_path / "all.gpkg", LABELLED=layer, BUDGET=100, BUDGET_UNIT="percent"
    )
    asked = {one.geometry().asWkt() for one in features_of(run("selectsamples", parameters)["OUTPUT"])}
    assert [place.asWkt() in asked for place in places] == [False, *[True] * 5]


@pytest.mark.parametrize("way", ["layer", "path", "path|layername", "definition"])
def test_the_labels_of_the_last_round_are_not_overwritten(
    failure: Any, roof_model: Path, scene_file: Path, roofs: Any, tmp_path: Path, way: str
) -> None:
    """However the layer is named, and before anything is opened for writing."""
    from qgis.core import QgsProcessingFeatureSourceDefinition, QgsProcessingOutputLayerDefinition, QgsVectorLayer

    path = label_layer(tmp_path / "round.gpkg", roofs)
    labelled = {
        "layer": QgsVectorLayer(path, "round 1", "ogr"),
        "path": path,
        "path|layername": f"{path}|layername=round",
        "definition": QgsProcessingFeatureSourceDefinition(path),
    }[way]
    output = QgsProcessingOutputLayerDefinition(path) if way == "definition" else path
    said = failure("selectsamples", samples(roof_model, scene_file, tmp_path / "s", LABELLED=labelled, OUTPUT=output))
    assert f"The result would replace {path}, from which 'Labelled already' is read; choose another file" in said
    assert QgsVectorLayer(path, "labels", "ogr").featureCount() == len(roofs)


@pytest.mark.parametrize("name", ["s.gpkg", "s.shp"])
def test_a_run_that_fails_leaves_the_older_file(
    failure: Any, run: Any, roof_model: Path, scene_file: Path, roofs: Any, tmp_path: Path, name: str
) -> None:
    """With all that belongs to it; one that succeeds replaces it."""
    from qgis.core import QgsVectorFileWriter, QgsVectorLayer

    older = QgsVectorLayer(label_layer(tmp_path / "labels.gpkg", roofs), "labels", "ogr")
    folder = tmp_path / "results"
    folder.mkdir()
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG" if name == "s.gpkg" else "ESRI Shapefile"
    QgsVectorFileWriter.writeAsVectorFormatV3(older, str(folder / name), older.transformContext(), options)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    asked = samples(roof_model, scene_file, folder / name, BUDGET=30000, BUDGET_UNIT="m2")
    assert "larger than the image" in failure("selectsamples", asked)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    run("selectsamples", samples(roof_model, scene_file, folder / name))
    assert len(features_of(str(folder / name))) == 6
    assert {file.name for file in folder.iterdir()} <= set(before)


@pytest.mark.parametrize("name", ["s.gpkg", "s.shp"])
def test_the_older_file_is_there_until_the_new_one_is_whole(
    run_task: Any, roof_model: Path, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So that a run that is killed loses nothing; what one left long ago goes, and the new file is loaded."""
    import os

    from qgis.core import QgsProcessingOutputLayerDefinition, QgsProject
    from segadapt.processing.jobs import select_samples as job

    folder, select, seen = tmp_path / "results", job.select_samples, []
    folder.mkdir()
    target = str(folder / name)

    def asked(budget: int) -> dict[str, Any]:
        sink = QgsProcessingOutputLayerDefinition(target, QgsProject.instance())
        return samples(roof_model, scene_file, tmp_path, BUDGET=budget, OUTPUT=sink)

    def select_and_look(*given: Any, **more: Any) -> Any:
        found = select(*given, **more)
        seen.append(
            ({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}, features_of(target))
        )
        return found

    assert run_task("selectsamples", asked(4))[1] is not None
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for left, age_s in ((f".{name}-0123abcd.part", 1e6), (f".{name}-4567abcd.part", 60)):
        (folder / left).mkdir()
        (folder / left / name).write_bytes(b"half")
        for file in (folder / left / name, folder / left):
            os.utime(file, (os.path.getmtime(file) - age_s,) * 2)
    monkeypatch.setattr(job, "select_samples", select_and_look)
    context, results = run_task("selectsamples", asked(6))
    ((files, features),) = seen
    assert files == before
    assert len(features) == 4
    assert results["OUTPUT"] == target
    assert list(context.layersToLoadOnCompletion()) == [target]
    assert len(features_of(target)) == 6
    assert {file.name for file in folder.iterdir()} == {*before, f".{name}-4567abcd.part"}


@pytest.mark.parametrize(
    ("given", "made"), [("town_v1.2.gpkg", "town_v1.2.gpkg"), ("town_v1.2", "town_v1.2.gpkg"), ("town", "town.gpkg")]
)
def test_a_name_may_have_dots_and_no_ending(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path, given: str, made: str
) -> None:
    """Twice, so that an older file is there; how it was made is written into it."""
    from osgeo import gdal

    for _ in range(2):
        results = run("selectsamples", samples(roof_model, scene_file, tmp_path / given))
        assert results["OUTPUT"] == str(tmp_path / made)
        assert [file.name for file in tmp_path.iterdir()] == [made]
        dataset = gdal.OpenEx(results["OUTPUT"])
        assert dataset.GetLayer(0).GetMetadata()["SEGADAPT_MODEL"] == "bright roofs"


def test_a_name_without_an_ending_does_not_hide_what_is_read(
    failure: Any, roof_model: Path, scene_file: Path, roofs: Any, tmp_path: Path
) -> None:
    """QGIS adds .gpkg, and would write over the labels of the last round."""
    path = label_layer(tmp_path / "round.gpkg", roofs)
    said = failure("selectsamples", samples(roof_model, scene_file, tmp_path / "round", LABELLED=path))
    assert f"The result would replace {path}" in said


def test_a_folder_that_is_not_there_is_told(failure: Any, roof_model: Path, scene_file: Path, tmp_path: Path) -> None:
    """In a sentence of ours."""
    said = failure("selectsamples", samples(roof_model, scene_file, tmp_path / "none" / "s.gpkg"))
    assert "cannot be written to; choose another one for the polygons" in said


def test_a_new_file_has_its_name_when_it_is_whole(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves is hidden, and not half of a layer under the name that was asked for."""
    from segadapt.processing.jobs import select_samples as job

    select, seen = job.select_samples, []

    def select_and_look(*given: Any, **more: Any) -> Any:
        seen.extend(file.name for file in tmp_path.iterdir())
        return select(*given, **more)

    monkeypatch.setattr(job, "select_samples", select_and_look)
    run("selectsamples", samples(roof_model, scene_file, tmp_path / "s.gpkg"))
    assert [name[:8] + name[-5:] for name in seen] == [".s.gpkg-.part"]
    assert [file.name for file in tmp_path.iterdir()] == ["s.gpkg"]


def test_a_full_disk_leaves_nothing(
    failure: Any, roof_model: Path, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what could not be created nor what is half a GeoPackage, which QGIS cannot open."""
    from qgis.core import QgsProcessingException
    from segadapt.processing.algorithms.outputs import FeatureOutput
    from segadapt.processing.errors import JobError

    def half(*_: Any) -> None:
        (file,) = tmp_path.glob("*/s.gpkg")
        file.write_bytes(b"half")
        raise JobError("The disk is full.")

    def none(*_: Any) -> None:
        raise QgsProcessingException("database or disk is full")

    asked = samples(roof_model, scene_file, tmp_path / "s.gpkg")
    monkeypatch.setattr(FeatureOutput, "add", half)
    assert failure("selectsamples", asked) == "The disk is full."
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(select_module.SelectSamplesAlgorithm, "parameterAsSink", none)
    assert "cannot be written; check space and rights (database or disk is full)" in failure("selectsamples", asked)
    assert list(tmp_path.iterdir()) == []


def test_segments_and_a_budget_in_square_metres(run: Any, roof_model: Path, scene_file: Path, tmp_path: Path) -> None:
    """Segments are of about the size asked for, and together stay under the budget."""
    parameters = samples(roof_model, scene_file, tmp_path / "s.gpkg", REGIONS="segments", BUDGET=300, BUDGET_UNIT="m2")
    parameters["REGION_SIZE"] = 4
    results = run("selectsamples", parameters)
    assert 200 < results["AREA_M2"] <= 300 * 1.002
    assert 200 / 16 / 2 < results["COUNT"] < 2 * 300 / 16


def test_rasters_of_two_zones_give_one_layer(
    run: Any, roof_model: Path, scene_file: Path, raster_factory: Any, tmp_path: Path
) -> None:
    """Regions of another UTM zone are brought to the CRS of the first raster."""
    from affine import Affine

    pixels = np.full((3, 64, 64), 70, np.uint8)
    pixels[:, 20:40, 20:40] = 200
    other = raster_factory(pixels, "zone32.tif", crs="EPSG:32632", transform=Affine(0.5, 0, 3e5, 0, -0.5, 5.75e6))
    parameters = samples(roof_model, scene_file, tmp_path / "s.gpkg", BUDGET=100, BUDGET_UNIT="percent")
    results = run("selectsamples", parameters | {"RASTERS": [str(scene_file), other]})
    found = features_of(results["OUTPUT"])
    of_other = [one for one in found if one["raster"] == "zone32.tif"]
    assert len(of_other) == 16
    assert all(one["area_m2"] == pytest.approx(64, rel=2e-3) for one in of_other)
    assert all(7e5 < one.geometry().centroid().asPoint().x() < 8e5 for one in of_other)


def test_a_budget_that_cannot_be_spent_is_told_and_nothing_is_left(
    failure: Any, roof_model: Path, scene_file: Path, tmp_path: Path
) -> None:
    """A budget larger than the image."""
    parameters = samples(roof_model, scene_file, tmp_path / "s.gpkg", BUDGET=30000, BUDGET_UNIT="m2")
    assert "30000 m2 is larger than the image" in failure("selectsamples", parameters)
    assert list(tmp_path.glob("s.gpkg*")) == []


def label_layer(path: Path, roofs: Any, regions: Path | None = None) -> Any:
    """What somebody labelled: the roofs, within regions where some are given."""
    from qgis.core import QgsFeature, QgsGeometry, QgsVectorFileWriter, QgsVectorLayer

    layer = QgsVectorLayer("Polygon?crs=EPSG:32631&field=class:string(20)", "labels", "memory")
    places = None if regions is None else QgsGeometry.unaryUnion([one.geometry() for one in features_of(str(regions))])
    for roof in roofs:
        geometry = QgsGeometry.fromWkt(roof.polygon)
        parts = [geometry] if places is None else geometry.intersection(places).asGeometryCollection()
        for part in parts:
            feature = QgsFeature(layer.fields())
            feature.setGeometry(part)
            feature["class"] = "Roof"
            layer.dataProvider().addFeature(feature)
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(path), layer.transformContext(), options)
    return str(path)


def test_labels_within_selected_regions_teach_the_model(
    run: Any, roof_model: Path, dark_scene: Path, roofs: Any, tmp_path: Path
) -> None:
    """The whole loop: select, label, fine-tune; the regions say where labels are complete."""
    from segadapt.models.semantic.card import read_card

    regions = tmp_path / "regions.gpkg"
    run("selectsamples", samples(roof_model, dark_scene, regions, BUDGET=60, STRATEGY="random"))
    output, report = tmp_path / "south.safetensors", tmp_path / "south.html"
    results = run(
        "finetunemodel",
        {
            "MODEL": str(roof_model),
            "RASTERS": [str(dark_scene)],
            "LABELS": label_layer(tmp_path / "labels.gpkg", roofs, regions),
            "CLASS_FIELD": "class",
            "AREA": str(regions),
            "LAYERS": "full",
            "STEPS": 30,
            "DEVICE": "cpu",
            "OUTPUT": str(output),
            "REPORT": str(report),
        },
    )
    assert results["IS_ADAPTED"] is True
    assert results["MEAN_IOU_BEFORE"] < 0.5
    assert results["MEAN_IOU_AFTER"] > results["MEAN_IOU_BEFORE"] + 0.3
    event = read_card(output).history[-1]
    assert event["n_trainable"] == results["N_TRAINABLE"] > 1e6
    # 60 squares of 16 pixels, of which a part was held out: the rest of the raster was unknown.
    assert 0.4 * 60 * 256 < event["n_labelled_px"] < 0.9 * 60 * 256
    assert f"{results['MEAN_IOU_AFTER']:.3f} after" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("field", ["class", ""])
@pytest.mark.parametrize("background", ["auto", "class"])
def test_what_is_outlined_in_a_place_makes_the_rest_of_that_place_background(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path, background: str, field: str
) -> None:
    """Six places, an outline in one of them, and no area: the other places are unknown, and so is the ground beside."""
    import csv

    from qgis.core import QgsFeature, QgsGeometry, QgsVectorLayer

    path = run("selectsamples", samples(roof_model, scene_file, tmp_path / "s.gpkg"))["OUTPUT"]
    layer = QgsVectorLayer(path, "places", "ogr")
    # Places at the raster's edge are smaller, and which places are chosen may differ from machine to machine.
    places = sorted((feature.geometry() for feature in layer.getFeatures()), key=QgsGeometry.area)
    middle = places[-1].centroid().asPoint()
    *others, outlined = (round(place.area() / 0.5**2) for place in places)
    assert outlined == 16 * 16
    outline = QgsFeature(layer.fields())
    outline.setGeometry(QgsGeometry.fromPointXY(middle).buffer(2, 8))
    outline["class"] = "roof"
    assert layer.dataProvider().addFeature(outline)
    table = tmp_path / "table.csv"
    judged = {"MODELS": [str(roof_model)], "RASTERS": [str(scene_file)], "LABELS": layer, "CLASS_FIELD": field}
    run("evaluatemodel", judged | {"BACKGROUND": background, "DEVICE": "cpu", "TABLE": str(table)})
    with table.open(encoding="utf-8", newline="") as file:
        pixels = {row["class"]: int(row["pixels"]) for row in csv.DictReader(file)}
    assert pixels["(all)"] == (outlined if background == "auto" else 300 * 300 - sum(others))
    assert pixels["roof"] == pytest.approx(3.14 * 4**2, abs=6)


def test_an_adapter_says_what_learned(run: Any, roof_model: Path, dark_scene: Path, roofs: Any, tmp_path: Path) -> None:
    """Low-rank products of the last blocks, small, with their base by name."""
    from segadapt.models.semantic.card import read_card
    from segadapt.models.semantic.package import load_segmenter, package_sha256

    output = tmp_path / "adapter.safetensors"
    results = run(
        "finetunemodel",
        {
            "MODEL": str(roof_model),
            "RASTERS": [str(dark_scene)],
            "LABELS": label_layer(tmp_path / "labels.gpkg", roofs),
            "CLASS_FIELD": "class",
            "LAYERS": "lora",
            "RANK": 4,
            "BLOCKS": 3,
            "STEPS": 20,
            "ADAPTER_ONLY": True,
            "DEVICE": "cpu",
            "OUTPUT": str(output),
        },
    )
    assert results["IS_ADAPTED"] is True
    card = read_card(output)
    assert card.base_sha256 == package_sha256(roof_model)
    assert {name: card.history[-1][name] for name in ("layers", "rank", "lora_layers", "n_blocks")} == {
        "layers": "lora",
        "rank": 4,
        "lora_layers": "last",
        "n_blocks": 3,
    }
    assert output.stat().st_size < 0.2 * roof_model.stat().st_size
    assert load_segmenter(output).card.name == "bright roofs"


def test_the_source_is_rehearsed_with_labels_of_its_own(
    run: Any,
    failure: Any,
    roof_model: Path,
    scene_file: Path,
    dark_scene: Path,
    roofs: Any,
    tmp_path: Path,
    feedback: Any,
) -> None:
    """Bright roofs while dark ones are learned; labels without their rasters are an oversight."""
    from segadapt.models.semantic.card import read_card

    output, labels = tmp_path / "south.safetensors", label_layer(tmp_path / "labels.gpkg", roofs)
    parameters = {
        "MODEL": str(roof_model),
        "RASTERS": [str(dark_scene)],
        "LABELS": labels,
        "CLASS_FIELD": "class",
        "LAYERS": "full",
        "STEPS": 20,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
        "SOURCE_LABELS": labels,
        "SOURCE_CLASS_FIELD": "class",
    }
    assert "no source rasters that they belong to" in failure("finetunemodel", parameters)
    feedback.seen.progress.clear()
    results = run("finetunemodel", {**parameters, "SOURCE": [str(scene_file)]}, feedback=feedback)
    assert results["IS_ADAPTED"] is True
    assert feedback.seen.progress == sorted(feedback.seen.progress)
    assert read_card(output).history[-1]["n_rehearsed"] == 100


def test_labels_that_do_not_fit_are_told(
    failure: Any, roof_model: Path, dark_scene: Path, roofs: Any, tmp_path: Path
) -> None:
    """A class that the model does not have; nothing is written."""
    labels = label_layer(tmp_path / "labels.gpkg", roofs)
    output = tmp_path / "south.safetensors"
    parameters = {
        "MODEL": str(roof_model),
        "RASTERS": [str(dark_scene)],
        "LABELS": labels,
        "CLASS_FIELD": "class",
        "BACKGROUND": "unlabelled",
        "STEPS": 2,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
    }
    assert "'roof' alone" in failure("finetunemodel", parameters)
    assert list(tmp_path.glob("*south*")) == []


def test_choices_are_those_of_the_jobs() -> None:
    """The enums repeat the names, because their modules need the environment."""
    from segadapt.models.transfer.fine_tuning import LAYERS, FineTuning
    from segadapt.models.transfer.selection import STRATEGIES
    from segadapt.processing.jobs.select_samples import BUDGET_UNITS, REGION_KINDS

    assert select_module.STRATEGIES == STRATEGIES
    assert select_module.REGION_KINDS == REGION_KINDS
    assert select_module.BUDGET_UNITS == BUDGET_UNITS
    assert tune_module.LAYERS == LAYERS
    assert set(source_module.SAMPLE_FIELDS) < set(select_module._FIELDS)
    usual = FineTuning()
    assert (usual.rank, usual.n_tokens, usual.n_blocks) == (tune_module.RANK, tune_module.TOKENS, tune_module.BLOCKS)
