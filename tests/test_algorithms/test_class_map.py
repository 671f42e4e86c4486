"""`segadapt:classmap` with the real networks: a map from four clicks, its model on another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsFeature, QgsGeometry, QgsProcessingException, QgsVectorLayer, QgsWkbTypes
from segadapt.processing.algorithms.class_map import HEADS

pytestmark = pytest.mark.qgis


def clicks(layer_path: str, places: list[tuple[float, float, str]]) -> QgsVectorLayer:
    """A layer of points at pixels of the raster."""
    import rasterio

    with rasterio.open(layer_path) as dataset:
        transform, crs = dataset.transform, dataset.crs.to_authority()
    layer = QgsVectorLayer(f"Point?crs={':'.join(crs)}&field=class:string", "clicks", "memory")
    features = []
    for x, y, name in places:
        feature = QgsFeature(layer.fields())
        east, north = transform @ (x, y)
        feature.setGeometry(QgsGeometry.fromWkt(f"Point({east} {north})"))
        feature.setAttributes([name])
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    return layer


def test_heads_are_those_of_the_models() -> None:
    from segadapt.models import class_head

    assert class_head.HEADS == HEADS


@pytest.fixture
def halves(raster_factory: Any) -> tuple[str, QgsVectorLayer]:
    """A raster whose right half is green, and clicks on both halves."""
    pixels = np.full((3, 96, 128), 40, np.uint8) + np.random.RandomState(0).randint(0, 9, (3, 96, 128)).astype(np.uint8)
    pixels[1, :, 64:] += 120
    scene = raster_factory(pixels)
    places = [(20, 20, "dark"), (30, 80, "dark"), (100, 20, "green"), (90, 80, "green")]
    return scene, clicks(scene, places)


def test_map_polygons_model_and_entropy(run: Any, halves: tuple[str, QgsVectorLayer], tmp_path: Path) -> None:
    import rasterio

    scene, named_places = halves
    files = {
        name: str(tmp_path / file)
        for name, file in (
            ("OUTPUT", "map.tif"),
            ("POLYGONS", "map.gpkg"),
            ("SAVED_MODEL", "map.safetensors"),
            ("ENTROPY", "doubt.tif"),
        )
    }
    results = run("classmap", {"INPUT": scene, "CLICKS": named_places, "DEVICE": "cpu", **files})
    assert results["COUNT"] == 2
    with rasterio.open(files["OUTPUT"]) as dataset:
        labels = dataset.read(1)
        assert dataset.tags()["CLASS_2"] == "green"
    truth = np.where(np.arange(128) < 64, 1, 2)[None].repeat(96, axis=0)
    assert (labels == truth).mean() > 0.95
    polygons = QgsVectorLayer(f"{files['POLYGONS']}", "polygons")
    assert {feature["class"] for feature in polygons.getFeatures()} == {"dark", "green"}
    assert QgsWkbTypes.displayString(polygons.wkbType()) == "Polygon"
    pixels_m2 = sum(feature["area_m2"] for feature in polygons.getFeatures()) / labels.size
    assert pixels_m2 == pytest.approx(0.25, rel=0.01)
    again = str(tmp_path / "again.tif")
    run("classmap", {"INPUT": scene, "CLASS_MODEL": files["SAVED_MODEL"], "DEVICE": "cpu", "OUTPUT": again})
    with rasterio.open(again) as dataset:
        assert (dataset.read(1) == labels).mean() > 0.99


def test_segment_raster_takes_a_class_map_model(
    run: Any, failure: Any, halves: tuple[str, QgsVectorLayer], tmp_path: Path
) -> None:
    """The map is that of *Class map*; what only segmentation models have is refused before the work."""
    import rasterio

    scene, named_places = halves
    files = {name: str(tmp_path / name) for name in ("map.tif", "model.safetensors", "again.tif", "again.gpkg")}
    more = {"OUTPUT": files["map.tif"], "SAVED_MODEL": files["model.safetensors"]}
    run("classmap", {"INPUT": scene, "CLICKS": named_places, "DEVICE": "cpu", **more})
    given = {"INPUT": scene, "MODEL": files["model.safetensors"], "DEVICE": "cpu", "OUTPUT": files["again.tif"]}
    results = run("segmentraster", {**given, "POLYGONS": files["again.gpkg"]})
    with rasterio.open(results["OUTPUT"]) as again, rasterio.open(files["map.tif"]) as first:
        assert (again.read(1) == first.read(1)).mean() > 0.99
    classes = {feature["class"] for feature in QgsVectorLayer(results["POLYGONS"], "polygons").getFeatures()}
    assert classes == {"dark", "green"}
    assert "no 'Probabilities'" in failure("segmentraster", {**given, "PROBABILITIES": str(tmp_path / "p.tif")})
    model = Path(files["model.safetensors"])
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    assert "model.safetensors is damaged" in failure("segmentraster", given)


@pytest.mark.parametrize("name", ["out.gpkg", "out.shp"])
@pytest.mark.parametrize("moment", ["map", "polygons", "cancel"])
def test_what_ends_early_leaves_no_polygons(
    failure: Any,
    halves: tuple[str, QgsVectorLayer],
    tmp_path: Path,
    feedback: Any,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    name: str,
) -> None:
    """An error while mapping or while writing polygons, and a cancel after the first one."""
    from segadapt.processing.algorithms.outputs import FeatureOutput
    from segadapt.processing.errors import JobError
    from segadapt.processing.jobs.class_map import ClassMapper

    add = FeatureOutput.add

    def add_and_end(output: FeatureOutput, geometry: Any, values: Any) -> None:
        add(output, geometry, values)
        if moment == "polygons":
            raise JobError("The disk is full; free some space.")
        feedback.cancel()

    def fail(*_values: Any, **_named: Any) -> None:
        raise JobError("The disk is full; free some space.")

    if moment == "map":
        monkeypatch.setattr(ClassMapper, "blocks", fail)
    monkeypatch.setattr(FeatureOutput, "add", add_and_end)
    scene, named_places = halves
    folder = tmp_path / "results"
    folder.mkdir()
    parameters = {
        "INPUT": scene,
        "CLICKS": named_places,
        "DEVICE": "cpu",
        "OUTPUT": str(folder / "map.tif"),
        "POLYGONS": str(folder / name),
    }
    said = failure("classmap", parameters)
    assert ("Stopped at the user's request" if moment == "cancel" else "The disk is full") in said
    # The map was finished where its polygons were begun.
    assert [path.name for path in folder.iterdir()] == ([] if moment == "map" else ["map.tif"])


def test_neither_clicks_nor_model(run: Any, raster_factory: Any, tmp_path: Path) -> None:
    scene = raster_factory(np.full((3, 32, 32), 9, np.uint8))
    with pytest.raises(QgsProcessingException, match="one of the two"):
        run("classmap", {"INPUT": scene, "DEVICE": "cpu", "OUTPUT": str(tmp_path / "map.tif")})


def test_a_model_that_cannot_be_saved_is_told_before_the_work(
    failure: Any, halves: tuple[str, QgsVectorLayer], tmp_path: Path
) -> None:
    scene, named_places = halves
    parameters = {
        "INPUT": scene,
        "CLICKS": named_places,
        "DEVICE": "cpu",
        "OUTPUT": str(tmp_path / "map.tif"),
        "SAVED_MODEL": "/proc/classes.safetensors",
    }
    assert "cannot be written to; choose another one for the class map model" in failure("classmap", parameters)
    assert not (tmp_path / "map.tif").exists()
