"""`segadapt:findsimilar` on a scene whose roofs are known, with the real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsProcessingFeatureSourceDefinition, QgsProject, QgsVectorLayer

pytestmark = pytest.mark.qgis


@pytest.fixture
def examples(prompts: Any, roofs: Any) -> Any:
    """A layer with the first roof."""
    return prompts([(roofs[0].polygon, {"name": "roof"})], kind="Polygon")


def test_finds_the_other_roofs_ranked(run: Any, scene_file: Path, roofs: Any, examples: Any, tmp_path: Path) -> None:
    """From one roof to all of them, the likeliest first, with every field."""
    path = tmp_path / "similar.gpkg"
    parameters = {"INPUT": str(scene_file), "EXEMPLARS": examples, "DEVICE": "cpu", "OUTPUT": str(path)}
    result = run("findsimilar", {**parameters, "THRESHOLD": 0.3})
    found = list(QgsVectorLayer(str(path), "found", "ogr").getFeatures())
    assert result["COUNT"] == len(found)
    for roof in roofs:
        assert max(roof.iou(feature.geometry()) for feature in found) > 0.85
    assert [feature["rank"] for feature in found] == list(range(1, len(found) + 1))
    likely = [feature["probability"] for feature in found]
    assert likely == sorted(likely, reverse=True)
    assert min(likely) >= 0.3
    assert all(feature["model"] == "mobile_sam" and feature["area_m2"] > 0 for feature in found)
    assert all(0 <= feature["score"] <= 1 for feature in found)


def test_only_the_selected_examples_and_extent(run: Any, scene_file: Path, roofs: Any, prompts: Any) -> None:
    """A selection limits the examples, an extent the search; counter-examples are taken."""
    left, bottom, right, top = roofs[2].bounds
    layer = prompts([(roofs[0].polygon, {"name": "a"}), (roofs[1].polygon, {"name": "b"})], kind="Polygon")
    QgsProject.instance().addMapLayer(layer)
    layer.selectByExpression("name = 'a'")
    parameters = {
        "INPUT": str(scene_file),
        "EXEMPLARS": QgsProcessingFeatureSourceDefinition(layer.id(), selectedFeaturesOnly=True),
        "REJECTED": prompts([(roofs[1].polygon, {"name": "b"})], kind="Polygon"),
        "EXTENT": f"{left - 4},{right + 4},{bottom - 4},{top + 4} [EPSG:32631]",
        "THRESHOLD": 0.0,
        "DEVICE": "cpu",
        "OUTPUT": "memory:",
    }
    result = run("findsimilar", parameters)
    QgsProject.instance().removeMapLayer(layer.id())
    overlaps = [[roof.iou(f.geometry()) for roof in roofs] for f in result["OUTPUT"].getFeatures()]
    assert max(found[2] for found in overlaps) > 0.85
    assert max(max(found[:2]) for found in overlaps) < 0.5


def test_methods_are_those_of_the_job() -> None:
    """The list in the dialog and the list of the job are the same."""
    from segadapt.processing.algorithms.find_similar import METHODS
    from segadapt.processing.jobs import similar

    assert METHODS == similar.METHODS


def test_example_outside_leaves_nothing(failure: Any, scene_file: Path, prompts: Any, tmp_path: Path) -> None:
    """An example that is not on the raster is a sentence, and no output stays."""
    layer = prompts([("POLYGON((0 0, 9 0, 9 9, 0 0))", {"name": "x"})], kind="Polygon")
    parameters = {"INPUT": str(scene_file), "EXEMPLARS": layer, "OUTPUT": str(tmp_path / "out.gpkg")}
    assert "lies outside the raster" in failure("findsimilar", parameters)
    assert list(tmp_path.iterdir()) == []


def test_cancel_leaves_nothing(
    run_task: Any, feedback: Any, scene_file: Path, examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel between two windows removes the output."""
    from segadapt.processing.jobs.similar import SimilarSearch

    find = SimilarSearch._find

    def find_and_cancel(self: Any, *arguments: Any) -> Any:
        feedback.cancel()
        return find(self, *arguments)

    monkeypatch.setattr(SimilarSearch, "_find", find_and_cancel)
    parameters = {"INPUT": str(scene_file), "EXEMPLARS": examples, "OUTPUT": str(tmp_path / "out.gpkg")}
    _, results = run_task("findsimilar", parameters)
    assert results is None
    assert list(tmp_path.iterdir()) == []
