"""The page "Adapt" with the real algorithms: a small model from the measure of distance to the map."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qgis.core import QgsProject, QgsRasterLayer
from segadapt.plugin.adapt_run import STOPPED, AlgorithmRun
from segadapt.plugin.adapt_words import ADAPT, JUDGE, MAP, SELECT, SHIFT, STEPS, TUNE, Mark

SIDE, CHIP = 192, 64
# A run loads the model anew, on a machine that may be busy.
PATIENCE_S = 120.0


@pytest.fixture
def provider(gui: Any, qgis_processing: None) -> Iterator[None]:
    """Processing with our algorithms."""
    from segadapt import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    yield
    plugin.unload()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A model without training, which knows what it was not trained on."""
    import torch
    from segadapt.models.chips import unlabelled_chips
    from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.semantic.segmenter import build_segmenter
    from segadapt.models.transfer.statistics import source_statistics

    torch.set_num_threads(1)
    torch.manual_seed(0)
    card = SegmenterCard(
        name="roofs", decoder="fpn", encoder="tf_efficientnet_lite0", bands=("red", "green", "blue"),
        classes=(SegmenterClass(0, "ground", (110, 110, 110)), SegmenterClass(1, "roof", (213, 94, 0))), gsd_m=0.5,
        chip_px=CHIP, mean=(105.0,) * 3, std=(40.0,) * 3, stretch=(0.0,) * 3 + (255.0,) * 3, licence="test",
        made_on="2026-01-01", segadapt_version="0",
    )  # fmt: skip
    model = build_segmenter(card)
    pixels = np.random.default_rng(0).normal(105, 40, (12, 3, CHIP, CHIP)).clip(0, 255).astype(np.uint8)
    source = unlabelled_chips(pixels).with_labels((pixels[:, 0] > 105).astype(np.uint8))
    statistics, extra = source_statistics(model, source)
    model.card = SegmenterCard(**{**vars(card), "statistics": statistics})
    path = tmp_path / "Dächer.safetensors"
    save_segmenter(model, path, extra=extra)
    return path


@pytest.fixture
def image(gui: Any, tmp_path: Path) -> QgsRasterLayer:
    """Bright squares on dark ground."""
    import rasterio
    from affine import Affine

    pixels = np.random.default_rng(1).normal(60, 8, (3, SIDE, SIDE))
    for row in range(8, SIDE, 48):
        for col in range(8, SIDE, 48):
            pixels[:, row : row + 24, col : col + 24] += 120
    path = tmp_path / "Bild.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8", crs="EPSG:32631",
        transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000),
    ) as dataset:  # fmt: skip
        dataset.write(pixels.clip(0, 255).astype(np.uint8))
    layer = QgsRasterLayer(str(path), "Bild", "gdal")
    QgsProject.instance().addMapLayer(layer)
    return layer


def quick(name: str, given: dict[str, Any]) -> AlgorithmRun:
    """As the page runs it, with hardly any steps."""
    steps = {"STEPS": 2} if name in ("adaptmodel", "finetunemodel") else {}
    return AlgorithmRun(name, {**given, **steps})


@pytest.mark.slow
def test_a_model_goes_from_the_first_step_to_the_last(
    gui: Any, provider: None, package: Path, image: QgsRasterLayer
) -> None:
    control = gui.controller.adaptation
    control.make_run = quick
    rows = control.panel.rows
    control.panel.model_file.setFilePath(str(package))
    control.panel.raster_combo.setLayer(image)
    control.panel.raster_combo.activated.emit(control.panel.raster_combo.currentIndex())

    def run(step: str) -> dict[str, Any]:
        rows[step].button.click()
        assert rows[step].button.text() == "Stop", rows[step].text.text()
        gui.wait_for(lambda: rows[step].button.text() != "Stop", seconds=PATIENCE_S)
        assert rows[step].mark.text() == Mark.DONE.value[0], rows[step].text.text()
        return dict(control.story.results[step])

    assert run(SHIFT)["LEVEL"] in ("near", "moderate", "far")
    adapted = run(ADAPT)
    assert Path(adapted["OUTPUT"]).is_file()
    assert (control.story.newest == adapted["OUTPUT"]) == adapted["IS_ADAPTED"]
    assert run(SELECT)["COUNT"] == 50
    layer = gui.controller.target.layer()
    assert layer.featureCount() == 50
    bright = [feature for feature in layer.getFeatures() if _is_bright(image, feature.geometry())]
    dark = [feature for feature in layer.getFeatures() if feature.id() not in {one.id() for one in bright}]
    assert bright
    assert dark
    for name, features in (("roof", bright), ("ground", dark)):
        gui.controller.classes.choose(name)
        layer.selectByIds([feature.id() for feature in features])
        gui.controller.actions["set_class"].trigger()
    gui.wait_for(rows[TUNE].button.isEnabled)
    assert run(TUNE)["MEAN_IOU_AFTER"] >= 0
    run(MAP)
    (made,) = [one for one in QgsProject.instance().mapLayers().values() if one.name() == "Map of Bild"]
    assert made.extent() == image.extent()
    assert len(run(JUDGE)["IOUS"]) == len({str(package), control.story.newest})
    assert all(Path(control.story.results[step]["REPORT"]).is_file() for step in (SHIFT, ADAPT, TUNE, JUDGE))
    assert {rows[step].mark.text() for step in STEPS} == {Mark.DONE.value[0]}


def test_what_is_stopped_leaves_nothing_and_errors_are_sentences(
    gui: Any, provider: None, package: Path, image: QgsRasterLayer
) -> None:
    ended: list[Any] = []
    output = package.with_name("new.safetensors")
    given = {"MODEL": str(package), "RASTERS": [image.id()], "OUTPUT": str(output), "STEPS": 5000}

    def end(name: str, parameters: dict[str, Any], *, is_stopped: bool = False) -> str:
        run = AlgorithmRun(name, parameters)
        run.ended.connect(lambda results, sentence: ended.append((results, sentence)))
        run.start()
        if is_stopped:
            run.stop()
        gui.wait_for(lambda: ended, seconds=PATIENCE_S)
        results, sentence = ended.pop()
        assert results == {}
        return str(sentence)

    assert end("adaptmodel", given, is_stopped=True) == STOPPED
    broken = package.with_name("broken.safetensors")
    broken.write_bytes(b"nothing")
    assert "no segmentation model of SegAdapt" in end("adaptmodel", {**given, "MODEL": str(broken)})
    assert "MODEL" in end("adaptmodel", {**given, "MODEL": image.source()})  # said before anything begins
    assert "does not know segadapt:nothing" in end("nothing", {})
    assert not output.exists()


def test_the_best_so_far_of_a_run_that_is_stopped_is_taken(
    gui: Any, provider: None, package: Path, image: QgsRasterLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segadapt.processing.algorithms.fine_tune_model import FineTuneModelAlgorithm

    output = package.with_name("best.safetensors")

    def tune(self: Any, parameters: Any, context: Any, *, progress: Any, settings: Any) -> dict[str, Any]:
        while not progress.is_cancelled():
            time.sleep(0.01)
        output.touch()
        return {"OUTPUT": str(output), "IS_ADAPTED": True}

    monkeypatch.setattr(FineTuneModelAlgorithm, "execute", tune)
    ended: list[Any] = []
    run = AlgorithmRun("finetunemodel", {"MODEL": str(package), "RASTERS": [image.id()], "OUTPUT": str(output)})
    run.ended.connect(lambda results, sentence: ended.append((results, sentence)))
    run.start()
    run.stop()
    gui.wait_for(lambda: ended, seconds=PATIENCE_S)
    assert ended == [({"OUTPUT": str(output), "IS_ADAPTED": True, "IS_STOPPED": True}, "")]


def test_a_page_that_goes_takes_its_run_along(gui: Any, provider: None, package: Path, image: QgsRasterLayer) -> None:
    from segadapt.plugin import adapt_run

    run = AlgorithmRun(
        "adaptmodel",
        {
            "MODEL": str(package), "RASTERS": [image.id()], "STEPS": 5000, "METHODS": "self_training",
            "OUTPUT": str(package.with_name("new.safetensors")),
        },
    )  # fmt: skip
    heard: list[Any] = []
    run.ended.connect(lambda *end: heard.append(end))
    run.start()
    run.abandon()
    gui.wait_for(lambda: not adapt_run._running, seconds=PATIENCE_S)
    assert heard == []
    assert not package.with_name("new.safetensors").exists()


def _is_bright(image: QgsRasterLayer, geometry: Any) -> bool:
    value, is_there = image.dataProvider().sample(geometry.pointOnSurface().asPoint(), 1)
    return bool(is_there and value > 120)
