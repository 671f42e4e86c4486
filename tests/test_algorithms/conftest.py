"""A QGIS with the provider, the real MobileSAM weights, and a small scene whose truth is known."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if os.environ.get("REQUIRE_QGIS") == "1" and importlib.util.find_spec("qgis") is None:
    raise RuntimeError("REQUIRE_QGIS=1, but this Python has no QGIS; run the tests with QGIS's Python.")

GSD_M = 0.5
SIDE_PX = 300
ORIGIN = (600000.0, 5750000.0)


@dataclass(frozen=True)
class Roof:
    """A bright rectangle of the scene, in pixels of half a metre; its truth on the map of EPSG:32631."""

    left_px: int
    top_px: int
    right_px: int
    bottom_px: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in map units."""
        x, y = ORIGIN
        return (
            x + GSD_M * self.left_px,
            y - GSD_M * self.bottom_px,
            x + GSD_M * self.right_px,
            y - GSD_M * self.top_px,
        )

    @property
    def point(self) -> str:
        """WKT of the centre."""
        left, bottom, right, top = self.bounds
        return f"POINT({(left + right) / 2} {(bottom + top) / 2})"

    @property
    def polygon(self) -> str:
        """WKT of the outline, which is an upright rectangle and thus a box prompt."""
        left, bottom, right, top = self.bounds
        return f"POLYGON(({left} {bottom}, {right} {bottom}, {right} {top}, {left} {top}, {left} {bottom}))"

    @property
    def area_m2(self) -> float:
        """Area on the map."""
        return (self.right_px - self.left_px) * (self.bottom_px - self.top_px) * GSD_M**2

    def iou(self, geometry: Any) -> float:
        """Intersection over union of a QgsGeometry in EPSG:32631 with this roof."""
        from qgis.core import QgsGeometry

        truth = QgsGeometry.fromWkt(self.polygon)
        shared = float(geometry.intersection(truth).area())
        return shared / (geometry.area() + truth.area() - shared)


ROOFS = (Roof(40, 50, 110, 100), Roof(170, 40, 230, 120), Roof(90, 180, 190, 230))


def write_scene(path: Path, *, crs: str | None = "EPSG:32631") -> Path:
    """Write the scene as GeoTIFF: (3, 300, 300) uint8."""
    import rasterio
    from affine import Affine

    random = np.random.default_rng(0)
    pixels = random.integers(60, 75, (3, SIDE_PX, SIDE_PX)).astype(np.uint8)
    pixels[1] += 25
    for roof in ROOFS:
        pixels[:, roof.top_px : roof.bottom_px, roof.left_px : roof.right_px] = np.array([205, 190, 180], np.uint8)[
            :, None, None
        ]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=SIDE_PX,
        height=SIDE_PX,
        count=3,
        dtype="uint8",
        crs=crs,
        transform=Affine(GSD_M, 0, ORIGIN[0], 0, -GSD_M, ORIGIN[1]),
    ) as dataset:
        dataset.write(pixels)
    return path


@pytest.fixture(scope="session")
def home_with_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home of SegAdapt that holds only the real weights."""
    from segadapt.models.checkpoints import fetch_checkpoint
    from segadapt.models.registry import get_card

    home = tmp_path_factory.mktemp("home")
    (home / "checkpoints").mkdir()
    for name in ("mobile_sam", "efficientnet_lite0"):
        weights = fetch_checkpoint(get_card(name))
        (home / "checkpoints" / weights.name).symlink_to(weights)
    return home


@pytest.fixture  # no longer than a test: the tests of other folders look for the user's weights
def segadapt_home(home_with_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That home in use, without a network; what the user has is not touched."""
    monkeypatch.setenv("SEGADAPT_HOME", str(home_with_weights))
    monkeypatch.setenv("SEGADAPT_OFFLINE", "1")
    return home_with_weights


@pytest.fixture(scope="module")  # not longer: the plugin's own tests add and remove the provider
def provider(qgis_app: Any, qgis_processing: None) -> Iterator[Any]:
    """The provider, registered the way QGIS does it without a window."""
    from qgis.core import QgsApplication
    from segadapt import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    yield QgsApplication.processingRegistry().providerById("segadapt")
    plugin.unload()
    # Layers that tracebacks of expected errors still hold would be deleted after exitQgis(), which crashes.
    gc.collect()


@pytest.fixture(scope="session")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene, in a folder with spaces and letters that are not ASCII."""
    return write_scene(tmp_path_factory.mktemp("scène 1") / "Dächer von oben.tif")


@pytest.fixture(scope="session")
def roofs() -> tuple[Roof, ...]:
    """The truth of the scene."""
    return ROOFS


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Path]:
    """Write the scene somewhere else, or without a CRS."""
    return write_scene


@pytest.fixture(scope="session")
def roof_model(train_roofs: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model package that knows bright roofs from dark ground at half a metre, and remembers how they look."""
    from dataclasses import replace

    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.transfer.statistics import source_statistics

    model, chips = train_roofs(name="bright roofs", roof=195)
    statistics, extra = source_statistics(model, chips)
    model.card = replace(model.card, statistics=statistics)
    path = tmp_path_factory.mktemp("mödels") / "bright roofs.safetensors"
    save_segmenter(model, path, extra=extra)
    return path


@pytest.fixture
def repainted(scene_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the scene with other values: `repainted(name, function of the pixels as int)`."""

    def write(name: str, change: Callable[[Any], Any]) -> Path:
        import rasterio

        with rasterio.open(scene_file) as dataset:
            pixels, profile = dataset.read(), dataset.profile
        with rasterio.open(tmp_path / name, "w", **profile) as dataset:
            dataset.write(change(pixels.astype(np.int64)).astype(np.uint8))
        return tmp_path / name

    return write


@pytest.fixture
def dark_scene(repainted: Callable[..., Path]) -> Path:
    """The scene with dark roofs on bright ground, which `roof_model` takes for the reverse."""
    return repainted("dark.tif", lambda pixels: 250 - pixels)


@pytest.fixture
def run(provider: Any, segadapt_home: Path) -> Any:
    """`processing.run` of an algorithm of ours by short id."""
    from qgis import processing

    def run_algorithm(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
        result: dict[str, Any] = processing.run(f"segadapt:{name}", parameters, **more)
        return result

    return run_algorithm


@pytest.fixture
def run_task(provider: Any, segadapt_home: Path, feedback: Any) -> Any:
    """Run an algorithm as QGIS's dialog does: prepared here, run in a worker thread; returns results or None."""
    from qgis.core import QgsApplication, QgsProcessingAlgRunnerTask, QgsProcessingContext, QgsProject
    from qgis.PyQt.QtCore import QEventLoop

    def run_algorithm(name: str, parameters: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        task = QgsProcessingAlgRunnerTask(provider.algorithm(name), parameters, context, feedback)
        done: list[Any] = []
        loop = QEventLoop()
        task.executed.connect(lambda ok, results: (done.append(results if ok else None), loop.quit()))
        QgsApplication.taskManager().addTask(task)
        loop.exec()
        return context, done[0]

    return run_algorithm


@pytest.fixture
def failure(run_task: Any, feedback: Any) -> Any:
    """Run an algorithm that fails, and return its sentence.

    In a task, not by `processing.run`: QGIS keeps the whole stack of Python that a failed algorithm was called
    from, and layers in it would be deleted after exitQgis(), which crashes.
    """

    def sentence(name: str, parameters: dict[str, Any]) -> str:
        _, results = run_task(name, parameters)
        assert results is None
        return "\n".join(feedback.seen.errors)

    return sentence


@pytest.fixture
def cancel_after_first(feedback: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A feedback whose Cancel is pressed as soon as one object was written."""
    from segadapt.processing.algorithms.outputs import ObjectOutput

    write = ObjectOutput.write

    def write_and_cancel(self: ObjectOutput, found: Any, more: Any = None) -> None:
        write(self, found, more)
        feedback.cancel()

    monkeypatch.setattr(ObjectOutput, "write", write_and_cancel)
    return feedback


@pytest.fixture
def prompts() -> Any:
    """A factory of memory layers from (WKT, attributes), with fields inferred from the first attributes."""
    from qgis.core import QgsFeature, QgsGeometry, QgsVectorLayer

    def make(rows: list[tuple[str, dict[str, Any]]], crs: str = "EPSG:32631", kind: str = "Point") -> Any:
        types = {int: "integer", float: "double", str: "string"}
        fields = "".join(f"&field={name}:{types[type(value)]}" for name, value in rows[0][1].items()) if rows else ""
        layer = QgsVectorLayer(f"{kind}?crs={crs}{fields}", "prompts", "memory")
        for wkt, attributes in rows:
            feature = QgsFeature(layer.fields())
            feature.setGeometry(QgsGeometry.fromWkt(wkt))
            feature.setAttributes(list(attributes.values()))
            layer.dataProvider().addFeature(feature)
        layer.updateExtents()
        return layer

    return make


@pytest.fixture
def feedback(qgis_app: Any) -> Any:
    """A feedback that keeps what it is told, and whose Cancel can be pressed."""
    from qgis.core import QgsProcessingFeedback

    class Feedback(QgsProcessingFeedback):
        def __init__(self) -> None:
            super().__init__()
            self.seen = SimpleNamespace(info=[], progress=[], errors=[])
            self.progressChanged.connect(self.seen.progress.append)

        def pushInfo(self, info: str) -> None:
            self.seen.info.append(info)

        def reportError(self, error: str, fatalError: bool = False) -> None:  # noqa: N803 - QGIS
            self.seen.errors.append(error)

    return Feedback()
