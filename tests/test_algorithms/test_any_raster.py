"""The same roof, whatever kind of raster it comes in; and rasters from which nothing can come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsGeometry, QgsPointXY, QgsVectorLayer

pytestmark = pytest.mark.qgis

UTM = "EPSG:32631"


def _write(path: Path, pixels: Any, *, crs: str = UTM, transform: Any = None, **profile: Any) -> Path:
    import rasterio
    from affine import Affine

    transform = transform or Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)
    bands, rows, cols = pixels.shape
    shape = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs=crs, transform=transform, **shape, **profile) as dataset:
        dataset.write(pixels)
        if bands == 1 and pixels.dtype == np.uint8 and pixels.max() < 10:
            dataset.write_colormap(1, {0: (60, 90, 60, 255), 1: (200, 190, 180, 255), 2: (70, 100, 65, 255)})
    return path


def _as_16_bit(pixels: Any) -> Any:
    """Seven bands of 11-bit values; the first three are the scene's."""
    wide = pixels.astype(np.uint16) * 8
    return np.concatenate([wide, np.zeros((4, 300, 300), np.uint16)])


def _as_float(pixels: Any) -> Any:
    """Reflectances with holes of NaN and infinity away from the roof."""
    reflectance = pixels.astype(np.float32) / 255
    reflectance[:, 270:, :30] = np.nan
    reflectance[:, 270:, 270:] = np.inf
    return reflectance


def _as_palette(pixels: Any) -> Any:
    indices = (np.indices((300, 300)).sum(0) % 2 * 2).astype(np.uint8)
    indices[pixels[0] > 150] = 1
    return indices[None]


KINDS: dict[str, Callable[[Any], Any]] = {
    "one band": lambda pixels: pixels[:1],
    "two bands": lambda pixels: pixels[:2],
    "palette": _as_palette,
    "seven bands, 16 bit": _as_16_bit,
    "float with NaN and inf": _as_float,
}
# Six values of an affine: column step, row step, x; column step, row step, y.
TRANSFORMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "rotated": (UTM, (0.4, 0.3, 600_000, 0.3, -0.4, 5_750_000)),
    "sheared": (UTM, (0.5, 0.15, 600_000, 0, -0.5, 5_750_000)),
    "south up": (UTM, (0.5, 0, 600_000, 0, 0.5, 5_750_000)),
    "degrees": ("EPSG:4326", (7e-6, 0, 4.5, 0, -4.5e-6, 51.9)),
}


@pytest.fixture(scope="module")
def scene_pixels(scene_file: Path) -> Any:
    import rasterio

    with rasterio.open(scene_file) as dataset:
        return dataset.read()


def _segment(run: Any, path: Path, prompt: str, crs: str, prompts: Any, **more: Any) -> list[Any]:
    layer = prompts([(prompt, {"kind": "roof"})], crs, "Polygon" if prompt.startswith("POLYGON") else "Point")
    result = run("segmentfromprompts", {"INPUT": str(path), "PROMPTS": layer, "OUTPUT": "memory:", **more})
    return list(result["OUTPUT"].getFeatures())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel(run: Any, prompts: Any, roofs: Any, scene_pixels: Any, tmp_path: Path, kind: str) -> None:
    path = _write(tmp_path / "scène à tester.tif", KINDS[kind](scene_pixels))

    found = _segment(run, path, roofs[2].polygon, UTM, prompts)

    assert len(found) == 1
    assert roofs[2].iou(found[0].geometry()) > 0.9


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_every_kind_of_grid(run: Any, prompts: Any, roofs: Any, scene_pixels: Any, tmp_path: Path, kind: str) -> None:
    from affine import Affine

    crs, values = TRANSFORMS[kind]
    to_map = Affine(*values)
    path = _write(tmp_path / "scene.tif", scene_pixels, crs=crs, transform=to_map)
    roof = roofs[2]
    corners = [(roof.left_px, roof.top_px), (roof.right_px, roof.top_px)]
    corners += [(roof.right_px, roof.bottom_px), (roof.left_px, roof.bottom_px)]
    truth = QgsGeometry.fromPolygonXY([[QgsPointXY(*(to_map @ corner)) for corner in corners]])
    centre = to_map @ ((roof.left_px + roof.right_px) / 2, (roof.top_px + roof.bottom_px) / 2)

    found = _segment(run, path, f"POINT({centre[0]} {centre[1]})", crs, prompts)

    outline = found[0].geometry()
    common = outline.intersection(truth).area()
    assert common / (outline.area() + truth.area() - common) > 0.9
    # 100 x 50 pixels of half a metre, in degrees (7e-6 and 4.5e-6 at 51.9 degrees north) very nearly too.
    assert found[0]["area_m2"] == pytest.approx(outline.area() / truth.area() * _true_area_m2(kind), rel=0.02)


def _true_area_m2(kind: str) -> float:
    """Area of 100 x 50 pixels; a degree is 111.3 km north-south and 68.8 km east-west at 51.9 degrees north."""
    return 5000 * (7e-6 * 68_800 * 4.5e-6 * 111_300 if kind == "degrees" else 0.25)


def test_nodata_everywhere_gives_nothing(run: Any, prompts: Any, roofs: Any, tmp_path: Path) -> None:
    path = _write(tmp_path / "empty.tif", np.zeros((3, 300, 300), np.uint8), nodata=0)

    assert _segment(run, path, roofs[0].polygon, UTM, prompts) == []
    everything = run("segmenteverything", {"INPUT": str(path), "OUTPUT": "memory:"})
    assert everything["COUNT"] == 0


def test_nodata_is_never_part_of_an_object(
    run: Any, prompts: Any, roofs: Any, scene_pixels: Any, tmp_path: Path
) -> None:
    holed = scene_pixels.copy()
    roof = roofs[2]
    holed[:, roof.top_px + 10 : roof.top_px + 20, roof.left_px + 10 : roof.left_px + 30] = 0
    path = _write(tmp_path / "holed.tif", holed, nodata=0)

    found = _segment(run, path, roof.polygon, UTM, prompts)

    x, y = 600_000 + 0.5 * (roof.left_px + 20), 5_750_000 - 0.5 * (roof.top_px + 15)
    assert not found[0].geometry().contains(QgsPointXY(x, y))
    assert roof.iou(found[0].geometry()) == pytest.approx(1 - 200 / 5000, abs=0.05)


@pytest.mark.parametrize("algorithm", ["segmentfromprompts", "segmenteverything", "encoderaster"])
def test_a_raster_of_8_by_8(run: Any, prompts: Any, tmp_path: Path, algorithm: str) -> None:
    pixels = np.full((3, 8, 8), 60, np.uint8)
    pixels[:, 2:6, 2:6] = 220
    path = _write(tmp_path / "tiny.tif", pixels)
    parameters: dict[str, Any] = {"INPUT": str(path), "OUTPUT": "memory:"}
    if algorithm == "segmentfromprompts":
        parameters["PROMPTS"] = prompts([("POINT(600002 5749998)", {"kind": "roof"})])

    result = run(algorithm, parameters)

    if algorithm == "encoderaster":
        assert result["ENCODED"] == 1
        return
    raster = QgsGeometry.fromWkt("POLYGON((600000 5749996, 600004 5749996, 600004 5750000, 600000 5750000))")
    layer = result["OUTPUT"] if isinstance(result["OUTPUT"], QgsVectorLayer) else None
    assert layer is not None
    assert result["COUNT"] == layer.featureCount()
    for feature in layer.getFeatures():
        assert feature.geometry().difference(raster.buffer(1e-6, 1)).area() == 0


def test_results_tell_how_they_were_made(run: Any, prompts: Any, roofs: Any, scene_pixels: Any, tmp_path: Path) -> None:
    """Stretch, bands, model and weights: in the table of a GeoPackage, in a layer in memory, in a label raster."""
    import rasterio
    from osgeo import gdal

    path = _write(tmp_path / "scene.tif", _as_16_bit(scene_pixels))
    layer = prompts([(roofs[2].polygon, {"kind": "roof"})], kind="Polygon")
    objects, labels = tmp_path / "objects.gpkg", tmp_path / "labels.tif"
    asked = {"INPUT": str(path), "BANDS": [3, 2, 1]}

    run("segmentfromprompts", {**asked, "PROMPTS": layer, "OUTPUT": str(objects)})
    few = {"WINDOW": "512", "POINTS_PER_SIDE": 4, "OUTPUT": "memory:", "LABELS": str(labels)}
    everything = run("segmenteverything", {**asked, **few})

    dataset = gdal.OpenEx(str(objects))
    told = dataset.GetLayer(0).GetMetadata()
    assert told["SEGADAPT_BANDS"] == "3 2 1"
    assert told["SEGADAPT_MODEL"] == "mobile_sam"
    assert len(told["SEGADAPT_WEIGHTS_SHA256"]) == 64
    low, high = (np.array(told[f"SEGADAPT_STRETCH_{end}"].split(), float) for end in ("LOW", "HIGH"))
    expected = np.percentile(scene_pixels[::-1].reshape(3, -1).astype(float) * 8, (2, 98), axis=1)
    assert np.abs(low - expected[0]).max() < 20
    assert np.abs(high - expected[1]).max() < 20
    assert set(everything["OUTPUT"].metadata().history()) == {f"{key}={value}" for key, value in told.items()}
    with rasterio.open(labels) as written:
        assert told.items() <= written.tags().items()
