"""The model-designer chains that ship: every step fits the algorithms that are there, and both run to the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from qgis.core import (
    QgsApplication,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingParameterDefinition,
    QgsVectorLayer,
)
from segadapt.processing.algorithms import chain as chain_module
from segadapt.processing.algorithms.resources import model_path

pytestmark = pytest.mark.qgis

# Ids, parameters in the dialog's order, and outputs are public, as those of the other algorithms.
PUBLIC = {
    "selectlabeltunesegmentevaluate": (
        "INPUT MODEL LABELS CLASS_FIELD BUDGET BUDGET_UNIT STRATEGY REGION_SIZE TEST_AREA "
        "SOURCE SOURCE_LABELS SOURCE_CLASS_FIELD LAYERS STEPS SEED DEVICE",
        {
            "REGIONS": "outputVector",
            "TUNED_MODEL": "outputFile",
            "TUNING_REPORT": "outputHtml",
            "CLASSES": "outputRaster",
            "EVALUATION_REPORT": "outputHtml",
            "EVALUATION_TABLE": "outputFile",
        },
    ),
    "adaptsegmentcompare": (
        "INPUT MODEL METHODS SOURCE SOURCE_LABELS SOURCE_CLASS_FIELD STEPS SEED DEVICE",
        {
            "SHIFT_REPORT": "outputHtml",
            "ADAPTED_MODEL": "outputFile",
            "ADAPTATION_REPORT": "outputHtml",
            "SOURCE_CLASSES": "outputRaster",
            "ADAPTED_CLASSES": "outputRaster",
            "CHANGES": "outputRaster",
            "CHANGE_TABLE": "outputVector",
        },
    ),
}


def misfits(model: Any) -> Iterator[str]:
    """Say what in a chain does not fit: algorithms, parameters and outputs that are not there, values not given."""
    asked = {one.name() for one in model.parameterDefinitions()}
    steps = model.childAlgorithms()
    made = {name: {one.name() for one in step.algorithm().outputDefinitions()} for name, step in steps.items()}
    for name, step in steps.items():
        known = {one.name(): one for one in step.algorithm().parameterDefinitions()}
        sources = step.parameterSources()
        yield from (f"{name} has no parameter {given}" for given in sources if given not in known)
        for parameter in known.values():
            is_free = parameter.flags() & QgsProcessingParameterDefinition.FlagOptional or parameter.isDestination()
            if parameter.name() not in sources and not is_free:
                yield f"{name} is not given {parameter.name()}"
        for source in (one for given in sources.values() for one in given):
            kind, asks, makes = source.source(), source.parameterName(), source.outputName()
            if kind == QgsProcessingModelChildParameterSource.ModelParameter and asks not in asked:
                yield f"{name} is given {asks}, which nobody asks for"
            is_result = kind == QgsProcessingModelChildParameterSource.ChildOutput
            if is_result and makes not in made.get(source.outputChildId(), ()):
                yield f"{name} is given {makes} of {source.outputChildId()}, which is not made"
        yield from (
            f"{name} makes no {final.childOutputName()}"
            for final in step.modelOutputs().values()
            if final.childOutputName() not in made[name]
        )
    yield from (f"{name}: {problem}" for name in steps for problem in model.validateChildAlgorithm(name)[1])


def opened(path: Path | str) -> Any:
    """A file as the model designer opens it."""
    model = QgsProcessingModelAlgorithm()
    assert model.fromFile(str(path))
    return model


@pytest.mark.parametrize("stem", chain_module.CHAINS)
class TestEveryChain:
    """As registered, and as a file."""

    @pytest.fixture
    def chain(self, stem: str, provider: Any) -> Any:
        """The registered algorithm."""
        return provider.algorithm(stem.replace("_", ""))

    def test_names_and_types_are_public(self, chain: Any) -> None:
        """Parameters in this order, and typed outputs."""
        parameters, outputs = PUBLIC[chain.name()]
        asked = [one for one in chain.parameterDefinitions() if not one.isDestination()]
        assert [one.name() for one in asked] == parameters.split()
        assert {one.name(): one.type() for one in chain.outputDefinitions()} == outputs
        assert {one.name() for one in chain.parameterDefinitions() if one.isDestination()} == set(outputs)
        assert chain.create().id() == chain.id() == f"segadapt:{chain.name()}"
        assert (chain.group(), chain.groupId()) == ("Domain adaptation", "adaptation")

    def test_help_names_everything(self, chain: Any) -> None:
        """Each parameter and output has a label of its own and a text."""
        text = chain.shortHelpString()
        described = [*chain.parameterDefinitions(), *chain.outputDefinitions()]
        assert set(chain.helps()) == {one.name() for one in described}
        for one in described:
            assert one.description() != one.name()
            assert chain.helps()[one.name()].endswith(".")
            assert f"{one.description()}: {chain.helps()[one.name()]}" in text

    def test_icon_is_its_own(self, chain: Any) -> None:
        """It renders at the size of the toolbox."""
        image = chain.icon().pixmap(24, 24).toImage()
        assert len({image.pixelColor(x, y).name() for x in range(24) for y in range(24)}) > 4

    def test_every_step_fits(self, chain: Any, stem: str) -> None:
        """The algorithms are there and have the parameters and outputs that the chain names."""
        assert chain.canExecute() == (True, "")
        assert list(misfits(opened(model_path(stem)))) == []

    def test_choices_are_those_of_the_steps(self, chain: Any) -> None:
        """A method that is new to an algorithm can be chosen in the chain, too."""
        asked = {one.name(): one for one in chain.parameterDefinitions()}
        for step in chain.childAlgorithms().values():
            for name, (source, *_) in step.parameterSources().items():
                own = step.algorithm().parameterDefinition(name)
                if source.source() == QgsProcessingModelChildParameterSource.ModelParameter and own.type() == "enum":
                    assert asked[source.parameterName()].options() == own.options()
                    assert asked[source.parameterName()].usesStaticStrings()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ({"name": "METHODS"}, {"name": "METHOD"}, "adapt has no parameter METHOD"),
        ({"value": "REPORT"}, {"value": "PAGE"}, "adapt makes no PAGE"),
        ({"name": "output_name", "value": "OUTPUT"}, {"value": "RESULT"}, "after is given RESULT of adapt"),
    ],
)
def test_a_renamed_name_is_seen(
    provider: Any, tmp_path: Path, old: dict[str, str], new: dict[str, str], problem: str
) -> None:
    """What the check of the chains is for."""
    tree = ElementTree.parse(model_path("adapt_segment_compare"))
    for option in tree.iter("Option"):
        if old.items() <= option.attrib.items():
            option.attrib.update(new)
    tree.write(tmp_path / "renamed.model3", encoding="utf-8")
    assert any(problem in found for found in misfits(opened(tmp_path / "renamed.model3")))


def test_a_provider_of_steps_that_comes_late_completes_the_chains(
    provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QGIS may load its own algorithms after the plugin's."""
    from qgis.core import QgsProcessingProvider

    class Late(QgsProcessingProvider):
        def id(self) -> str:
            return "late"

        def name(self) -> str:
            return "Late"

        def loadAlgorithms(self) -> None:
            self.addAlgorithm(QgsApplication.processingRegistry().createAlgorithmById("native:cellstatistics"))

    file = tmp_path / "late.model3"
    text = Path(model_path("adapt_segment_compare")).read_text(encoding="utf-8")
    file.write_text(text.replace("native:reclassifybytable", "late:cellstatistics"), encoding="utf-8")
    monkeypatch.setattr(chain_module, "model_path", lambda _: str(file))
    late = Late()
    try:
        provider.refreshAlgorithms()
        early = provider.algorithm("adaptsegmentcompare")
        assert not early.is_complete
        assert "late:cellstatistics" in early.canExecute()[1]
        assert early.outputDefinition("CHANGES") is None
        QgsApplication.processingRegistry().addProvider(late)
        assert provider.algorithm("adaptsegmentcompare").is_complete
        assert provider.algorithm("adaptsegmentcompare").outputDefinition("CHANGES") is not None
    finally:
        QgsApplication.processingRegistry().removeProvider("late")
        monkeypatch.undo()
        provider.refreshAlgorithms()


def roofs_mask(roofs: Any) -> Any:
    """The truth of the scene, (300, 300) bool."""
    mask = np.zeros((300, 300), np.bool_)
    for roof in roofs:
        mask[roof.top_px : roof.bottom_px, roof.left_px : roof.right_px] = True
    return mask


def band(path: str) -> Any:
    """The first band of a raster."""
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.read(1)


def iou(found: Any, truth: Any) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


def reference(path: Path, roofs: Any) -> str:
    """Outlines of the roofs with their class, one of them crossing itself, which people draw."""
    features = []
    for n, roof in enumerate(roofs):
        left, bottom, right, top = roof.bounds
        ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
        if n == 0:
            ring[3:4] = [[left, top], [left - 1, top + 1], [left, top + 1], [left - 1, top]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"what": "Roof"}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return str(path)


def test_few_labels_from_selection_to_evaluation(
    run: Any, roof_model: Path, dark_scene: Path, roofs: Any, tmp_path: Path, feedback: Any
) -> None:
    """Dark roofs on bright ground: learned from the labels of the regions alone, judged on the other ground alone."""
    from segadapt.models.semantic.card import read_card

    files = {
        "REGIONS": "regions.gpkg",
        "TUNED_MODEL": "tuned.safetensors",
        "TUNING_REPORT": "tuning.html",
        "CLASSES": "classes.tif",
        "EVALUATION_REPORT": "evaluation.html",
        "EVALUATION_TABLE": "evaluation.csv",
    }
    results = run(
        "selectlabeltunesegmentevaluate",
        {
            "INPUT": str(dark_scene),
            "MODEL": str(roof_model),
            "LABELS": reference(tmp_path / "reference.geojson", roofs),
            "CLASS_FIELD": "what",
            "BUDGET": 60,
            "STRATEGY": "random",
            "REGION_SIZE": 8,
            "LAYERS": "full",
            "STEPS": 200,
            "DEVICE": "cpu",
            **{name: str(tmp_path / file) for name, file in files.items()},
        },
        feedback=feedback,
    )
    assert {name: Path(results[name]).name for name in files} == files
    regions = list(QgsVectorLayer(results["REGIONS"], "regions", "ogr").getFeatures())
    assert len(regions) == 60
    event = read_card(Path(results["TUNED_MODEL"])).history[-1]
    assert event["layers"] == "full"
    # 60 squares of 16 pixels, of which a part was held out: the labels of the rest of the reference were not seen.
    assert 0.4 * 60 * 256 < event["n_labelled_px"] < 0.9 * 60 * 256
    assert results["CHILD_RESULTS"]["tune"]["IS_ADAPTED"] is True
    assert event["mean_iou_after"] > 0.9, event
    assert iou(band(results["CLASSES"]) == 1, roofs_mask(roofs)) > 0.7
    with open(results["EVALUATION_TABLE"], encoding="utf-8", newline="") as file:
        before, after = [row for row in csv.DictReader(file) if row["class"] == "(all)"]
    assert float(after["iou"]) > float(before["iou"]) + 0.3
    # The ground but the regions, which the edge of the raster cuts, and but windows of which little is left.
    n_left = 300 * 300 - sum(region.geometry().area() for region in regions) / 0.25
    assert 0.95 * n_left < int(after["pixels"]) <= n_left + 0.5
    for name in ("TUNING_REPORT", "EVALUATION_REPORT"):
        assert "bright roofs" in Path(results[name]).read_text(encoding="utf-8")


def test_a_test_area_limits_the_evaluation(
    run: Any, roof_model: Path, dark_scene: Path, roofs: Any, prompts: Any, tmp_path: Path
) -> None:
    """Where the labels are not complete everywhere, only the ground that the user names is judged on."""
    left, bottom, right, top = 600000, 5749850, 600075, 5750000
    area = prompts(
        [(f"POLYGON(({left} {bottom}, {right} {bottom}, {right} {top}, {left} {top}, {left} {bottom}))", {"n": 1})],
        kind="Polygon",
    )
    results = run(
        "selectlabeltunesegmentevaluate",
        {
            "INPUT": str(dark_scene),
            "MODEL": str(roof_model),
            "LABELS": reference(tmp_path / "reference.geojson", roofs),
            "CLASS_FIELD": "what",
            "BUDGET": 60,
            "STRATEGY": "random",
            "REGION_SIZE": 8,
            "TEST_AREA": area,
            "STEPS": 1,
            "DEVICE": "cpu",
            "REGIONS": "TEMPORARY_OUTPUT",
            "TUNED_MODEL": str(tmp_path / "tuned.safetensors"),
            "CLASSES": str(tmp_path / "classes.tif"),
            "EVALUATION_TABLE": str(tmp_path / "evaluation.csv"),
        },
    )
    with open(results["EVALUATION_TABLE"], encoding="utf-8", newline="") as file:
        pixels = next(int(row["pixels"]) for row in csv.DictReader(file) if row["class"] == "(all)")
    # Half of the scene, a roof that reaches out of it, and about half of the regions left out.
    assert 0.3 * 300 * 300 < pixels < 0.5 * 300 * 300


def test_adaptation_is_compared_with_the_source_model(
    run: Any, roof_model: Path, repainted: Callable[..., Path], roofs: Any, tmp_path: Path, feedback: Any
) -> None:
    """Haze that the source model does not see through; the raster of changes is where the two maps differ."""
    scene = repainted("haze.tif", lambda pixels: 0.2 * pixels + 170)
    files = {
        "SHIFT_REPORT": "shift.html",
        "ADAPTED_MODEL": "adapted.safetensors",
        "ADAPTATION_REPORT": "adaptation.html",
        "SOURCE_CLASSES": "source.tif",
        "ADAPTED_CLASSES": "adapted.tif",
        "CHANGES": "changes.tif",
        "CHANGE_TABLE": "changes.csv",
    }
    results = run(
        "adaptsegmentcompare",
        {
            "INPUT": str(scene),
            "MODEL": str(roof_model),
            "METHODS": "quantile",
            "STEPS": 2,
            "DEVICE": "cpu",
            **{name: str(tmp_path / file) for name, file in files.items()},
        },
        feedback=feedback,
    )
    assert {name: Path(results[name]).name for name in files} == files
    assert results["CHILD_RESULTS"]["adapt"]["IS_ADAPTED"] is True
    assert results["CHILD_RESULTS"]["measure"]["LEVEL"] == "far"
    truth = roofs_mask(roofs)
    before, after, changes = (band(results[name]) for name in ("SOURCE_CLASSES", "ADAPTED_CLASSES", "CHANGES"))
    assert iou(before == 1, truth) < 0.5
    assert iou(after == 1, truth) > 0.7
    assert changes.dtype == np.uint8
    np.testing.assert_array_equal(changes, before != after)
    with open(results["CHANGE_TABLE"], encoding="utf-8", newline="") as file:
        rows = {int(float(row["zone"])): row for row in csv.DictReader(file)}
    assert set(rows) == set(np.unique(before).tolist())
    for class_id, row in rows.items():
        assert float(row["count"]) == (before == class_id).sum()
        assert float(row["sum"]) == changes[before == class_id].sum()
    assert "The target is far" in Path(results["SHIFT_REPORT"]).read_text(encoding="utf-8")
    assert "haze.tif" in Path(results["ADAPTATION_REPORT"]).read_text(encoding="utf-8")


def test_both_chains_rehearse_the_source(
    run: Any, roof_model: Path, dark_scene: Path, scene_file: Path, roofs: Any, tmp_path: Path
) -> None:
    """Fourier adaptation needs images of the source; fine-tuning writes down how many it rehearsed."""
    from segadapt.models.semantic.card import read_card

    labels = reference(tmp_path / "reference.geojson", roofs)
    shared = {
        "INPUT": str(dark_scene),
        "MODEL": str(roof_model),
        "SOURCE": [str(scene_file)],
        "SOURCE_LABELS": labels,
        "SOURCE_CLASS_FIELD": "what",
        "STEPS": 1,
        "DEVICE": "cpu",
    }
    tuned, adapted = tmp_path / "tuned.safetensors", tmp_path / "adapted.safetensors"
    maps = {name: str(tmp_path / f"{name}.tif") for name in ("CLASSES", "SOURCE_CLASSES", "ADAPTED_CLASSES", "CHANGES")}
    tables = {"REGIONS": str(tmp_path / "regions.gpkg"), "CHANGE_TABLE": str(tmp_path / "changes.csv")}
    few = {"LABELS": labels, "CLASS_FIELD": "what", "BUDGET": 60, "STRATEGY": "random", "REGION_SIZE": 8}
    few |= {"LAYERS": "full", "STEPS": 100}
    run("selectlabeltunesegmentevaluate", {**shared, **few, **maps, **tables, "TUNED_MODEL": str(tuned)})
    assert read_card(tuned).history[-1]["n_rehearsed"] > 0
    run("adaptsegmentcompare", {**shared, **maps, **tables, "METHODS": "fourier", "ADAPTED_MODEL": str(adapted)})
    assert read_card(adapted).class_names == read_card(roof_model).class_names


def test_a_step_that_fails_is_told(failure: Any, scene_file: Path, tmp_path: Path) -> None:
    """With the sentence of the step."""
    outputs = ("ADAPTED_MODEL", "SOURCE_CLASSES", "ADAPTED_CLASSES", "CHANGES", "CHANGE_TABLE")
    parameters = {name: str(tmp_path / f"{name}.tif") for name in outputs}
    sentence = failure("adaptsegmentcompare", {"INPUT": str(scene_file), "MODEL": str(scene_file), **parameters})
    assert "no segmentation model of SegAdapt" in sentence
    assert "Error encountered while running Measure domain shift" in sentence
    assert list(tmp_path.iterdir()) == []
