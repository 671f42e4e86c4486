"""`segadapt:segmenteverything` on a scene whose roofs are known, with the real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsVectorLayer

pytestmark = pytest.mark.qgis

# 12 points along 300 pixels: enough for roofs of 50 pixels, and quick.
FEW_POINTS = {"WINDOW": "512", "POINTS_PER_SIDE": 12, "DEVICE": "cpu"}


def test_finds_the_roofs(run: Any, scene_file: Path, roofs: Any, tmp_path: Path) -> None:
    """Every roof is found once; the label raster lies on the scene's pixels and agrees with the polygons."""
    import rasterio

    polygons, labels = tmp_path / "objects.gpkg", tmp_path / "labels.tif"
    result = run(
        "segmenteverything",
        {"INPUT": str(scene_file), **FEW_POINTS, "OUTPUT": str(polygons), "LABELS": str(labels)},
    )
    found = {f["object_id"]: f for f in QgsVectorLayer(str(polygons), "found", "ogr").getFeatures()}
    assert result["COUNT"] == len(found)
    with rasterio.open(scene_file) as scene, rasterio.open(labels) as dataset:
        assert (dataset.shape, dataset.transform, dataset.crs) == (scene.shape, scene.transform, scene.crs)
        assert dataset.nodata == 0
        numbers = dataset.read(1)
    assert {str(number) for number in np.unique(numbers)} - {"0"} <= set(found)
    for roof in roofs:
        matches = [name for name, f in found.items() if roof.iou(f.geometry()) > 0.85]
        assert len(matches) == 1
        middle = numbers[(roof.top_px + roof.bottom_px) // 2, (roof.left_px + roof.right_px) // 2]
        assert matches == [str(middle)]
        assert found[matches[0]]["score"] >= 0.88
        assert found[matches[0]]["stability"] >= 0.95


def test_extent_in_another_crs(run: Any, scene_file: Path, roofs: Any) -> None:
    """Only what the extent meets is found, also with an extent in degrees; no labels were asked for."""
    from qgis.core import QgsCoordinateReferenceSystem, QgsCoordinateTransform, QgsProject, QgsRectangle

    left, bottom, right, top = roofs[2].bounds
    transform = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32631"), QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    )
    box = transform.transformBoundingBox(QgsRectangle(left - 4, bottom - 4, right + 4, top + 4))
    extent = f"{box.xMinimum()},{box.xMaximum()},{box.yMinimum()},{box.yMaximum()} [EPSG:4326]"
    result = run("segmenteverything", {"INPUT": str(scene_file), "EXTENT": extent, **FEW_POINTS, "OUTPUT": "memory:"})
    overlaps = [[roof.iou(f.geometry()) for roof in roofs] for f in result["OUTPUT"].getFeatures()]
    assert max(found[2] for found in overlaps) > 0.85
    assert max(max(found[:2]) for found in overlaps) < 0.5
    assert "LABELS" not in result


@pytest.mark.parametrize(
    ("extent", "sentence"),
    [
        ("0,10,0,10 [EPSG:32631]", "does not meet the raster"),
        ("600010,600010,5749900,5749950 [EPSG:32631]", "is empty; draw a rectangle"),
    ],
)
def test_extent_without_pixels(failure: Any, scene_file: Path, tmp_path: Path, extent: str, sentence: str) -> None:
    """An extent beside the raster or without area is a sentence, and leaves neither output."""
    parameters = {
        "INPUT": str(scene_file),
        "EXTENT": extent,
        "OUTPUT": str(tmp_path / "out.gpkg"),
        "LABELS": str(tmp_path / "out.tif"),
    }
    assert sentence in failure("segmenteverything", parameters)
    assert list(tmp_path.iterdir()) == []


def test_cancel_leaves_nothing(failure: Any, scene_file: Path, tmp_path: Path, cancel_after_first: Any) -> None:
    """Cancelled after the first object: neither polygons nor labels nor temporary files stay."""
    parameters = {
        "INPUT": str(scene_file),
        **FEW_POINTS,
        "OUTPUT": str(tmp_path / "out.gpkg"),
        "LABELS": str(tmp_path / "out.tif"),
    }
    assert "Stopped at the user's request" in failure("segmenteverything", parameters)
    assert list(tmp_path.iterdir()) == []
