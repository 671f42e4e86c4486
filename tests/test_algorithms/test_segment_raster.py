"""`segadapt:segmentraster`: labels, more rasters and polygons of a saved model, styled, and errors in sentences."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsProcessingContext, QgsProcessingUtils, QgsProject, QgsRasterLayer, QgsVectorLayer

pytestmark = pytest.mark.qgis

NAMES = ("OUTPUT", "PROBABILITIES", "CONFIDENCE", "ENTROPY")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights for two bands at half a metre."""
    import torch
    from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter

    torch.manual_seed(3)
    card = SegmenterCard(
        name="test",
        decoder="fpn",
        encoder=DEFAULT_ENCODER,
        bands=("red", "nir"),
        classes=(SegmenterClass(0, "other", (90, 90, 90)), SegmenterClass(1, "roof", (230, 85, 13))),
        gsd_m=0.5,
        chip_px=64,
        mean=(127.0, 127.0),
        std=(60.0, 60.0),
        licence="test",
        made_on="2026-01-01",
        segadapt_version="0",
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_segmenter(build_segmenter(card), path)
    return path


@pytest.fixture
def raster(raster_factory: Callable[..., str]) -> str:
    """Two bands of noise with blots, the left tenth without data."""
    random = np.random.default_rng(0)
    pixels = random.integers(1, 60, (2, 140, 150)).astype(np.uint8)
    for _ in range(8):
        row, col = random.integers(0, 110, 2)
        pixels[:, row : row + 30, col : col + 30] += 90
    pixels[:, :, :15] = 0
    return raster_factory(pixels, nodata=0)


def read(path: str) -> Any:
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.read()


def test_the_limit_is_that_of_the_job() -> None:
    from segadapt.processing.algorithms.segment_raster import MOST_OVERLAP, MOST_WINDOW_PX
    from segadapt.processing.jobs import segment_raster

    assert segment_raster.MOST_OVERLAP == MOST_OVERLAP
    assert segment_raster.MOST_WINDOW_PX == MOST_WINDOW_PX


def test_all_outputs(run: Any, package: Path, raster: str, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"{name}.tif") for name in NAMES}
    files["POLYGONS"] = str(tmp_path / "polygons.gpkg")
    results = run("segmentraster", {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "FLIPS": True, **files})
    assert {name: results[name] for name in files} == files
    assert results["COUNT"] > 4
    assert results["SECONDS"] > 0
    labels = read(files["OUTPUT"])[0]
    assert (labels[:, :15] == 255).all()
    assert set(np.unique(labels[:, 15:])) <= {0, 1}
    shares = read(files["PROBABILITIES"])
    assert shares.shape == (2, *labels.shape)
    known = (labels != 255) & (abs(shares[0].astype(int) - shares[1]) > 1)
    assert (labels == shares.argmax(axis=0))[known].all()
    assert (read(files["CONFIDENCE"])[0] == shares.max(axis=0)).all()
    polygons = QgsVectorLayer(files["POLYGONS"], "polygons")
    area = {0: 0.0, 1: 0.0}
    for feature in polygons.getFeatures():
        area[feature["class_id"]] += feature.geometry().area()
        assert feature["class"] == ("other", "roof")[feature["class_id"]]
        assert feature["area_m2"] == pytest.approx(feature.geometry().area(), rel=0.01)
    assert area == {number: 0.25 * (labels == number).sum() for number in (0, 1)}


def test_the_file_keeps_its_colours_without_the_style_beside_it(
    run: Any, package: Path, raster: str, tmp_path: Path
) -> None:
    """As the help says: names of the legend lie in the .qml, colours in the raster, and the names as metadata."""
    import rasterio

    def legend(path: Path) -> list[tuple[float, str, str]]:
        layer = QgsRasterLayer(str(path), "labels")  # the renderer is part of it
        return [(one.value, one.color.name(), one.label) for one in layer.renderer().classes()]

    (tmp_path / "away").mkdir()
    path = tmp_path / "labels.tif"
    run("segmentraster", {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "OUTPUT": str(path)})
    assert legend(path) == [(0, "#5a5a5a", "other"), (1, "#e6550d", "roof")]
    moved = path.rename(tmp_path / "away" / path.name)
    assert legend(moved)[:2] == [(0, "#5a5a5a", "0"), (1, "#e6550d", "1")]
    with rasterio.open(moved) as dataset:
        assert dataset.tags()["CLASS_1"] == "roof"


def test_results_come_with_a_legend(
    run_task: Any, package: Path, raster: str, tmp_path: Path, provider: Any, feedback: Any
) -> None:
    """The raster has the classes of its style, the polygons those of the model."""
    from segadapt.models.semantic.card import read_card
    from segadapt.processing.algorithms.segment_raster import ClassPolygonStyle, _use_colours

    parameters = {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "OUTPUT": str(tmp_path / "a.tif")}
    parameters["POLYGONS"] = str(tmp_path / "polygons.gpkg")
    _, results = run_task("segmentraster", parameters)
    assert results is not None, feedback.seen.errors
    layer = QgsRasterLayer(results["OUTPUT"], "classes")
    assert [(one.value, one.label, one.color.name()) for one in layer.renderer().classes()] == [
        (0, "other", "#5a5a5a"),
        (1, "roof", "#e6550d"),
    ]
    context, polygons = QgsProcessingContext(), QgsVectorLayer(results["POLYGONS"], "polygons")
    details = QgsProcessingContext.LayerDetails("layer", QgsProject.instance(), "POLYGONS")
    context.addLayerToLoadOnCompletion(results["POLYGONS"], details)
    _use_colours(context, results["POLYGONS"], read_card(package).classes)
    style = context.layerToLoadOnCompletionDetails(results["POLYGONS"]).postProcessor()
    assert isinstance(style, ClassPolygonStyle)
    style.postProcessLayer(polygons, context, feedback)
    shown = [(one.label(), one.symbol().color().name()) for one in polygons.renderer().categories()]
    assert shown == [("other", "#5a5a5a"), ("roof", "#e6550d")]


def test_rasters_in_archives(
    run: Any, package: Path, raster: str, raster_factory: Callable[..., str], tmp_path: Path
) -> None:
    """Two rasters of one zip are two, and a gzipped one is read as it is."""
    other = raster_factory(np.full((2, 60, 70), 120, np.uint8), "other.tif")
    packed = tmp_path / "two.zip", tmp_path / "other.tif.gz"
    with zipfile.ZipFile(packed[0], "w") as archive:
        for file in (raster, other):
            archive.write(file, Path(file).name)
    with gzip.open(packed[1], "wb") as stream:
        stream.write(Path(other).read_bytes())

    def labels(source: str) -> Any:
        layer = QgsRasterLayer(source, "packed or not")
        asked = {"INPUT": layer, "MODEL": str(package), "DEVICE": "cpu", "OUTPUT": str(tmp_path / "labels.tif")}
        return read(run("segmentraster", asked)["OUTPUT"])

    for file, sources in (
        (raster, (f"/vsizip/{packed[0]}/scene.tif",)),
        (other, (f"/vsizip/{packed[0]}/other.tif", str(packed[1]))),
    ):
        expected = labels(file)
        for source in sources:
            assert np.array_equal(labels(source), expected)


def test_pixels_that_are_no_number_have_no_label(
    run: Any, package: Path, raster: str, raster_factory: Callable[..., str], tmp_path: Path
) -> None:
    """Where no band is a number; elsewhere the labels are those of the raster whose nodata is declared."""
    pixels = read(raster).astype(np.float32)
    pixels[:, pixels[0] == 0] = np.nan
    given = {"MODEL": str(package), "DEVICE": "cpu"}
    declared, of_nan = (
        read(run("segmentraster", {**given, "INPUT": file, "OUTPUT": str(tmp_path / f"{n}.tif")})["OUTPUT"])
        for n, file in enumerate((raster, raster_factory(pixels, "nan.tif")))
    )
    assert (of_nan[0, :, :15] == 255).all()
    np.testing.assert_array_equal(of_nan, declared)


def test_an_extent_in_another_crs_and_a_temporary_output(run: Any, package: Path, raster: str) -> None:
    from qgis.core import QgsCoordinateReferenceSystem, QgsCoordinateTransform, QgsRectangle

    to_degrees = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32631"), QgsCoordinateReferenceSystem("EPSG:4326"), QgsProject.instance()
    )
    box = to_degrees.transformBoundingBox(QgsRectangle(590_020, 5_749_950, 590_060, 5_749_990))
    extent = f"{box.xMinimum()},{box.xMaximum()},{box.yMinimum()},{box.yMaximum()} [EPSG:4326]"
    given = {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "EXTENT": extent, "OUTPUT": "TEMPORARY_OUTPUT"}
    results = run("segmentraster", given)
    context = QgsProcessingContext()
    layer = QgsProcessingUtils.mapLayerFromString(results["OUTPUT"], context)
    assert layer.extent().contains(QgsRectangle(590_020, 5_749_950, 590_060, 5_749_990))
    assert layer.width() < 100


def test_a_failed_run_leaves_no_blocks_of_a_temporary_output(
    failure: Any, package: Path, raster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is another one each time, so nothing would go on with them."""
    from segadapt.processing.errors import RasterError
    from segadapt.processing.raster.tile_store import TileStore

    folders = []

    def full(store: TileStore, *_values: Any, **_named: Any) -> None:
        folders.append(store.folder)
        assert list(store.folder.glob("*.tif"))
        raise RasterError("The disk is full.")

    monkeypatch.setattr(TileStore, "write", full)
    given = {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "OUTPUT": "TEMPORARY_OUTPUT"}
    assert "The disk is full" in failure("segmentraster", given)
    assert [folder.exists() for folder in folders] == [False]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"EXTENT": "0,10,0,10 [EPSG:32631]"}, "does not meet the raster"),
        ({"MODEL": "/nowhere/model.safetensors"}, "There is no file"),
        ({"BANDS": [1, 2, 1]}, "3 bands are chosen"),
        ({"OUTPUT": "/nowhere/labels.tif"}, "/nowhere"),
        ({"OUTPUT": "folder"}, "is a folder; choose a file for the result"),
        ({"SCHEDULER": "tcp:/wrong"}, "No Dask scheduler answers"),
    ],
)
def test_errors_are_sentences(
    failure: Any, package: Path, raster: str, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "folder.tif").mkdir()
    parameters = {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "OUTPUT": str(out / "labels.tif")}
    if change.get("OUTPUT") == "folder":
        change = {"OUTPUT": str(tmp_path / "folder.tif")}
    assert sentence in failure("segmentraster", {**parameters, "POLYGONS": str(out / "polygons.gpkg"), **change})
    assert list(out.iterdir()) == []


def test_cancel_while_outlining_leaves_older_files(
    failure: Any, package: Path, raster: str, tmp_path: Path, feedback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rasters are whole by then, but take no place."""
    from segadapt.processing.algorithms.outputs import FeatureOutput

    out = tmp_path / "out"
    out.mkdir()
    older = {out / name: name.encode() for name in ("OUTPUT.tif", "OUTPUT.qml", "ENTROPY.tif")}
    for file, content in older.items():
        file.write_bytes(content)
    add = FeatureOutput.add
    monkeypatch.setattr(FeatureOutput, "add", lambda *values: (add(*values), feedback.cancel()))
    names = {name: str(out / f"{name}.tif") for name in NAMES} | {"POLYGONS": str(out / "polygons.gpkg")}
    said = failure("segmentraster", {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", **names})
    assert "Stopped at the user's request" in said
    assert {file: file.read_bytes() for file in out.iterdir()} == older


def test_cancel_leaves_nothing(failure: Any, package: Path, raster: str, tmp_path: Path, feedback: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    feedback.progressChanged.connect(lambda _: feedback.cancel())
    names = {name: str(out / f"{name}.tif") for name in NAMES} | {"POLYGONS": str(out / "polygons.gpkg")}
    said = failure("segmentraster", {"INPUT": raster, "MODEL": str(package), "DEVICE": "cpu", "BATCH": 1, **names})
    assert "Stopped at the user's request" in said
    assert list(out.iterdir()) == []
