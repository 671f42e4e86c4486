"""`segadapt:adaptmodel` and `segadapt:domainshift` on a scene in other light."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import adapt_model as adapt_algorithm

pytestmark = pytest.mark.qgis


@pytest.fixture
def target(town: Any, raster_factory: Callable[..., str]) -> str:
    """The town in haze."""
    return raster_factory(town.in_haze(town.paint(1)[0]), "Dunst über.tif")


@pytest.fixture
def roof_iou(town: Any) -> Callable[[str | Path], float]:
    """Of a model on the target."""
    pixels, labels = town.paint(1)
    return lambda path: float(town.roof_iou(path, town.in_haze(pixels), labels))


def adapting(model: Path, target: Any, output: Path, **changes: Any) -> dict[str, Any]:
    """Quick: values are mapped, nothing is learned."""
    return {
        "RASTERS": [target],
        "MODEL": str(model),
        "METHODS": "quantile",
        "STEPS": 2,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
        **changes,
    }


def test_a_model_comes_through_haze(
    run: Any, town_model: Path, target: str, roof_iou: Callable[..., float], tmp_path: Path, feedback: Any
) -> None:
    """The model in the file is better than the source's, the numbers say so, and so does the page."""
    report = tmp_path / "Bericht ä.html"
    result = run("adaptmodel", adapting(town_model, target, tmp_path / "new", REPORT=str(report)), feedback=feedback)
    assert result["OUTPUT"] == str(tmp_path / "new.safetensors")
    assert result["IS_ADAPTED"] is True
    assert result["AGREEMENT_AFTER"] > result["AGREEMENT_BEFORE"]
    assert roof_iou(town_model) < 0.3
    assert roof_iou(result["OUTPUT"]) > 0.7
    text = report.read_text(encoding="utf-8")
    assert "The adapted model is saved." in text
    assert "Dunst über.tif" in text


def test_a_chain_replaces_the_methods(run: Any, town_model: Path, target: str, tmp_path: Path) -> None:
    """Also one that the choice does not offer."""
    from segadapt.models.semantic.card import read_card
    from segadapt.models.transfer.base import get_method

    chain = "reinhard + norm_statistics(alpha = 0.5)"
    assert chain.replace(" ", "") not in adapt_algorithm.METHODS
    page = tmp_path / "page.html"
    result = run("adaptmodel", adapting(town_model, target, tmp_path / "new", CHAIN=chain, REPORT=str(page)))
    text = page.read_text(encoding="utf-8")
    titles = [get_method(name).title for name in ("reinhard", "norm_statistics")]
    assert ", then ".join(titles) in text
    assert "reinhard+norm_statistics(alpha=0.5)" in text
    assert read_card(Path(result["OUTPUT"])).history[-1]["methods"] == "reinhard+norm_statistics(alpha=0.5)"


def test_source_rasters_are_rehearsed(
    run: Any,
    town: Any,
    town_model: Path,
    target: str,
    roof_iou: Callable[..., float],
    raster_factory: Callable[..., str],
    tmp_path: Path,
    feedback: Any,
) -> None:
    """Fourier style needs labelled rasters of the source, given as a raster of class ids."""
    pixels, labels = town.paint(0)
    source, truth = raster_factory(pixels, "source.tif"), raster_factory(labels[None], "truth.tif")
    parameters = adapting(
        town_model, target, tmp_path / "new", METHODS="fourier", STEPS=12, SOURCE=[source], LABEL_RASTERS=[truth]
    )
    result = run("adaptmodel", parameters, feedback=feedback)
    assert result["IS_ADAPTED"] is True
    assert feedback.seen.progress == sorted(feedback.seen.progress)
    assert roof_iou(result["OUTPUT"]) > roof_iou(town_model)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"METHODS": "fourier"}, "labelled chips of the source"),
        ({"CHAIN": "quantile + magic"}, "'magic'"),
        ({"CHAIN": "quantile + norm_statistics(beta=1)"}, "'norm_statistics' has no option 'beta'"),
        ({"CHAIN": "quantile+masked_image"}, "only prepares"),
        ({"MODEL": "target"}, "no segmentation model of SegAdapt"),
        ({"OUTPUT": "/nowhere/at/all.safetensors"}, "cannot be written to; choose another one for the model"),
        # A folder that is there and takes no file, not even from an administrator.
        ({"OUTPUT": "/proc/model.safetensors"}, "cannot be written to; choose another one for the model"),
        ({"OUTPUT": "package"}, "another file"),
        ({"REPORT": "/nowhere/at/all.html"}, "cannot be written to"),
        ({"RASTERS": "two bands"}, "2 band"),
        ({"LABEL_RASTERS": "target"}, "no source rasters"),
        ({"SOURCE": "target"}, "label rasters of the source"),
    ],
)
def test_what_does_not_go_together_is_said(
    failure: Callable[..., str],
    town_model: Path,
    target: str,
    raster_factory: Callable[..., str],
    tmp_path: Path,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    """In a sentence, and nothing is written."""
    known = {"target": target, "package": str(town_model), "two bands": ""}
    if changes.get("RASTERS") == "two bands":
        known["two bands"] = raster_factory(np.zeros((2, 90, 90), np.uint8), "two.tif")
    chosen = {name: known.get(value, value) for name, value in changes.items()}
    for name in ("RASTERS", "LABEL_RASTERS", "SOURCE"):
        if name in chosen:
            chosen[name] = [chosen[name]]
    content = town_model.read_bytes()
    assert sentence in failure("adaptmodel", adapting(town_model, target, tmp_path / "new.safetensors") | chosen)
    assert not (tmp_path / "new.safetensors").exists()
    assert town_model.read_bytes() == content


def test_haze_is_far(
    run: Any,
    town: Any,
    town_model: Path,
    target: str,
    raster_factory: Callable[..., str],
    tmp_path: Path,
    feedback: Any,
) -> None:
    """Numbers, a word, methods that `adaptmodel` knows, and a page."""
    report = tmp_path / "Bericht ü.html"
    home = raster_factory(town.paint(5)[0], "home.tif")
    parameters = {"MODEL": str(town_model), "DEVICE": "cpu"}
    far = run("domainshift", {**parameters, "RASTERS": [target], "REPORT": str(report)}, feedback=feedback)
    near = run("domainshift", {**parameters, "RASTERS": [home]})
    assert (near["LEVEL"], far["LEVEL"]) == ("near", "far")
    for name in ("SHIFT", "FRECHET", "PROXY_A", "BAND_SHIFT"):
        assert near[name] < far[name], name
    assert far["RECOMMENDED"] == "quantile"
    assert near["RECOMMENDED"] == adapt_algorithm.METHODS[0]
    assert near["AGREEMENT"] > 0.8
    assert "The target is far" in report.read_text(encoding="utf-8")
    assert any("Map them first" in text for text in feedback.seen.info)


def test_a_shift_that_cannot_be_measured_is_said(
    failure: Callable[..., str], town_model: Path, raster_factory: Callable[..., str]
) -> None:
    """Other bands, no data, no raster."""
    two = raster_factory(np.zeros((2, 90, 90), np.uint8), "two.tif")
    assert "2 band" in failure("domainshift", {"MODEL": str(town_model), "RASTERS": [two], "DEVICE": "cpu"})
    assert "no segmentation model" in failure("domainshift", {"MODEL": two, "RASTERS": [two], "DEVICE": "cpu"})


def test_a_graphics_card_without_memory_is_said(
    failure: Callable[..., str], town_model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as something to report."""
    import torch
    from segadapt.processing.jobs import domain_shift

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(domain_shift, "measure_shift", full)
    said = failure("domainshift", {"MODEL": str(town_model), "RASTERS": [target], "DEVICE": "cpu"})
    assert "memory of the graphics card is used up" in said
    assert "report" not in said


@pytest.mark.parametrize("name", ["adaptmodel", "finetunemodel", "compareadaptation", "distillmodel"])
def test_the_batch_reaches_the_job(
    name: str,
    failure: Callable[..., str],
    town_model: Path,
    target: str,
    prompts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has a batch, 8 without another."""
    from segadapt.models.transfer.distillation import Distillation
    from segadapt.processing.jobs.adapt_model import AdaptJob
    from segadapt.processing.jobs.comparison_runs import CompareAdaptation
    from segadapt.processing.jobs.fine_tune_model import FineTuneJob

    def stop(job: Any) -> None:
        raise RuntimeError(f"a batch of {job.batch}")

    for kind in (AdaptJob, FineTuneJob, CompareAdaptation, Distillation):
        monkeypatch.setattr(kind, "__post_init__", stop)
    parameters = {"MODEL": str(town_model), "RASTERS": [target], "OUTPUT": str(tmp_path / "m.safetensors")}
    failure(name, parameters)
    # Errors add up.
    assert failure(name, parameters | {"BATCH": None}).count("a batch of 8)") == 2
    assert "a batch of 3)" in failure(name, parameters | {"BATCH": 3})


def test_labels_are_said_to_be_of_the_source(provider: Any) -> None:
    """The target has none here."""
    algorithm = provider.algorithm("adaptmodel")
    for name in ("LABELS", "CLASS_FIELD", "LABEL_RASTERS", "AREA"):
        assert "of the source" in algorithm.parameterDefinition(name).description(), name
    for name in ("LABELS", "LABEL_RASTERS", "AREA"):
        assert "source raster" in algorithm.parameterDefinition(name).help(), name


def test_choices_are_those_of_the_jobs() -> None:
    """The enums repeat the names, because their modules need the environment."""
    from segadapt.processing.jobs.adapt_model import CHAINS
    from segadapt.processing.jobs.chip_segments import KINDS

    assert adapt_algorithm.METHODS == CHAINS
    assert adapt_algorithm.SEGMENTS == KINDS
