"""`segadapt:adaptmodel` and `segadapt:domainshift` on a scene in other light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import adapt_model as adapt_algorithm

pytestmark = pytest.mark.qgis

SIDE, CHIP = 256, 64
CLASSES = ((110, 110, 110), (213, 94, 0))


def paint(seed: int) -> tuple[Any, Any]:
    """Dark ground with bright roofs: pixels (3, rows, cols) and labels."""
    random = np.random.default_rng(seed)
    pixels = random.normal(85, 10, (3, SIDE, SIDE))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for row in range(0, SIDE, CHIP):
        for col in range(0, SIDE, CHIP):
            height, width = random.integers(18, 30, 2)
            y, x = row + random.integers(3, CHIP - height - 3), col + random.integers(3, CHIP - width - 3)
            labels[y : y + height, x : x + width] = 1
    pixels[:, labels == 1] += 90
    return pixels.clip(0, 255).astype(np.uint8), labels


def hazy(pixels: Any) -> Any:
    """Hardly any contrast."""
    return (0.2 * pixels.astype(np.float64) + 170).clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: Any, *, crs: str | None = "EPSG:32631") -> str:
    """A GeoTIFF of half a metre."""
    import rasterio
    from affine import Affine

    bands, rows, cols = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=cols,
        height=rows,
        count=bands,
        dtype="uint8",
        crs=crs,
        transform=Affine(0.5, 0, 600000, 0, -0.5, 5750000),
    ) as dataset:
        dataset.write(pixels)
    return str(path)


def chips_of(pixels: Any, labels: Any) -> Any:
    """Chips of 64 px."""
    from segadapt.models.chips import unlabelled_chips

    places = [(row, col) for row in range(0, SIDE, CHIP) for col in range(0, SIDE, CHIP)]
    cut = [(pixels[:, r : r + CHIP, c : c + CHIP], labels[r : r + CHIP, c : c + CHIP]) for r, c in places]
    return unlabelled_chips(np.stack([one for one, _ in cut])).with_labels(np.stack([one for _, one in cut]))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the scene in its own light."""
    import torch
    from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
    from segadapt.models.semantic.package import save_segmenter
    from segadapt.models.semantic.segmenter import build_segmenter, load_published_encoder
    from segadapt.models.training import TrainingOptions, fit
    from segadapt.models.transfer.statistics import source_statistics

    card = SegmenterCard(
        name="roofs",
        decoder="fpn",
        encoder="tf_efficientnet_lite0",
        bands=("red", "green", "blue"),
        classes=(SegmenterClass(0, "ground", CLASSES[0]), SegmenterClass(1, "roof", CLASSES[1])),
        gsd_m=0.5,
        chip_px=CHIP,
        mean=(105.0,) * 3,
        std=(40.0,) * 3,
        stretch=(0.0, 0.0, 0.0, 255.0, 255.0, 255.0),
        licence="test",
        made_on="2026-01-01",
        segadapt_version="0",
    )
    torch.manual_seed(0)
    model = build_segmenter(card)
    with pytest.MonkeyPatch.context() as patch:
        # The home of these tests holds the weights of MobileSAM alone.
        for name in ("SEGADAPT_HOME", "SEGADAPT_OFFLINE"):
            patch.delenv(name, raising=False)
        load_published_encoder(model)
    source = chips_of(*paint(0))
    fit(model, source, None, TrainingOptions(n_steps=24, n_checks=1, rate=2e-3, patience=None))
    statistics, extra = source_statistics(model, source)
    model.card = replace(card, statistics=statistics)
    path = tmp_path_factory.mktemp("mödel") / "roofs.safetensors"
    save_segmenter(model, path, extra=extra)
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The scene in haze."""
    return write(tmp_path_factory.mktemp("target") / "Dunst über.tif", hazy(paint(1)[0]))


def roof_iou(path: str | Path) -> float:
    """Of a model on the hazy scene."""
    from segadapt.models.semantic.package import load_segmenter
    from segadapt.models.semantic.prediction import predict_labels

    pixels, labels = paint(1)
    chips = chips_of(hazy(pixels), labels)
    said, truth = predict_labels(load_segmenter(Path(path)), chips) == 1, chips.labels == 1
    return float((said & truth).sum() / (said | truth).sum())


def adapting(package: Path, target: Any, output: Path, **changes: Any) -> dict[str, Any]:
    """Quick: values are mapped, nothing is learned."""
    return {
        "RASTERS": [target],
        "MODEL": str(package),
        "METHODS": "quantile",
        "STEPS": 2,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
        **changes,
    }


def test_a_model_comes_through_haze(run: Any, package: Path, target: str, tmp_path: Path, feedback: Any) -> None:
    """The model in the file is better than the source's, the numbers say so, and so does the page."""
    report = tmp_path / "Bericht ä.html"
    result = run("adaptmodel", adapting(package, target, tmp_path / "new", REPORT=str(report)), feedback=feedback)
    assert result["OUTPUT"] == str(tmp_path / "new.safetensors")
    assert result["IS_ADAPTED"] is True
    assert result["AGREEMENT_AFTER"] > result["AGREEMENT_BEFORE"]
    assert roof_iou(package) < 0.3
    assert roof_iou(result["OUTPUT"]) > 0.7
    text = report.read_text(encoding="utf-8")
    assert "The adapted model is saved." in text
    assert "Dunst über.tif" in text


def test_source_rasters_are_rehearsed(run: Any, package: Path, target: str, tmp_path: Path, feedback: Any) -> None:
    """Fourier style needs labelled rasters of the source, given as a raster of class ids."""
    pixels, labels = paint(0)
    source = write(tmp_path / "source.tif", pixels)
    truth = write(tmp_path / "truth.tif", labels[None])
    parameters = adapting(
        package, target, tmp_path / "new", METHODS="fourier", STEPS=6, SOURCE=[source], LABEL_RASTERS=[truth]
    )
    result = run("adaptmodel", parameters, feedback=feedback)
    assert result["IS_ADAPTED"] is True
    assert roof_iou(result["OUTPUT"]) > roof_iou(package)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"METHODS": "fourier"}, "labelled chips of the source"),
        ({"MODEL": "target"}, "no segmentation model of SegAdapt"),
        ({"OUTPUT": "/nowhere/at/all.safetensors"}, "does not exist"),
        ({"OUTPUT": "package"}, "another file"),
        ({"REPORT": "/nowhere/at/all.html"}, "cannot be written to"),
        ({"RASTERS": "two bands"}, "2 band"),
        ({"LABEL_RASTERS": "target"}, "no source rasters"),
    ],
)
def test_what_does_not_go_together_is_said(
    failure: Callable[..., str], package: Path, target: str, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """In a sentence, and nothing is written."""
    known = {"target": target, "package": str(package), "two bands": ""}
    if changes.get("RASTERS") == "two bands":
        known["two bands"] = write(tmp_path / "two.tif", np.zeros((2, 90, 90), np.uint8))
    chosen = {name: known.get(value, value) for name, value in changes.items()}
    for name in ("RASTERS", "LABEL_RASTERS"):
        if name in chosen:
            chosen[name] = [chosen[name]]
    content = package.read_bytes()
    assert sentence in failure("adaptmodel", adapting(package, target, tmp_path / "new.safetensors") | chosen)
    assert not (tmp_path / "new.safetensors").exists()
    assert package.read_bytes() == content


def test_haze_is_far(run: Any, package: Path, target: str, tmp_path: Path, feedback: Any) -> None:
    """Numbers, a word, methods that `adaptmodel` knows, and a page."""
    report = tmp_path / "Bericht ü.html"
    home = write(tmp_path / "home.tif", paint(5)[0])
    parameters = {"MODEL": str(package), "DEVICE": "cpu"}
    far = run("domainshift", {**parameters, "RASTERS": [target], "REPORT": str(report)}, feedback=feedback)
    near = run("domainshift", {**parameters, "RASTERS": [home]})
    assert (near["LEVEL"], far["LEVEL"]) == ("near", "far")
    for name in ("SHIFT", "FRECHET", "PROXY_A", "BAND_SHIFT"):
        assert near[name] < far[name], name
    assert far["RECOMMENDED"] == "quantile+masked_consistency"
    assert near["RECOMMENDED"] in adapt_algorithm.METHODS
    assert near["AGREEMENT"] > 0.8
    assert "The target is far" in report.read_text(encoding="utf-8")
    assert any("Map them first" in text for text in feedback.seen.info)


def test_a_shift_that_cannot_be_measured_is_said(failure: Callable[..., str], package: Path, tmp_path: Path) -> None:
    """Other bands, no data, no raster."""
    two = write(tmp_path / "two.tif", np.zeros((2, 90, 90), np.uint8))
    assert "2 band" in failure("domainshift", {"MODEL": str(package), "RASTERS": [two], "DEVICE": "cpu"})
    assert "no segmentation model" in failure("domainshift", {"MODEL": two, "RASTERS": [two], "DEVICE": "cpu"})


def test_choices_are_those_of_the_jobs() -> None:
    """The enums repeat the names, because their modules need the environment."""
    from segadapt.processing.jobs.adapt_model import CHAINS
    from segadapt.processing.jobs.chip_segments import KINDS

    assert adapt_algorithm.METHODS == CHAINS
    assert adapt_algorithm.SEGMENTS == KINDS
