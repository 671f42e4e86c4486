"""`segadapt:distillmodel`: a student that can be used as every other model, and a page that says what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qgis.core")

from segadapt.processing.algorithms import distill_model as algorithm_module

pytestmark = pytest.mark.qgis


def test_a_student_is_made_saved_and_reported(run: Any, roof_model: Path, scene_file: Path, tmp_path: Path) -> None:
    """The package loads, names its teacher, and the numbers of the results are those of the page and the card."""
    from segadapt.models.semantic.card import read_card
    from segadapt.models.semantic.package import load_segmenter, package_sha256

    output, report = tmp_path / "light.safetensors", tmp_path / "light.html"
    parameters = {
        "MODEL": str(roof_model),
        "RASTERS": [str(scene_file)],
        "STUDENT": "coarse",
        "STEPS": 12,
        "DEVICE": "cpu",
        "OUTPUT": str(output),
        "REPORT": str(report),
    }
    results = run("distillmodel", parameters)
    card = read_card(output)
    assert card.gsd_m == 1.0
    assert card.encoder == "lcnet_035"
    assert card.history[-1]["sha256_of_teachers"] == [package_sha256(roof_model)]
    assert card.metrics["agreement"] == pytest.approx(results["AGREEMENT"], abs=1e-4)
    # It begins with the teacher's weights, and bright stays bright at half the resolution.
    assert results["AGREEMENT"] > 0.6
    assert results["SPEEDUP"] > 1.5
    assert results["IS_KEPT"]
    assert f"{results['AGREEMENT']:.3f}" in report.read_text(encoding="utf-8")
    assert "The student was kept" in report.read_text(encoding="utf-8")
    assert load_segmenter(output).card == card


def test_a_student_that_agrees_too_little_does_not_take_the_place(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path
) -> None:
    """The teacher's own package is there instead, and the page says so."""
    output, report = tmp_path / "light.safetensors", tmp_path / "light.html"
    parameters = {"MODEL": str(roof_model), "RASTERS": [str(scene_file)], "STEPS": 1, "LEAST_AGREEMENT": 0.99}
    results = run("distillmodel", {**parameters, "DEVICE": "cpu", "OUTPUT": str(output), "REPORT": str(report)})
    assert results["AGREEMENT"] < 0.99
    assert not results["IS_KEPT"]
    assert output.read_bytes() == roof_model.read_bytes()
    assert "The student was not kept" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("agreement", "shares", "least", "sentence"),
    [
        (0.7, (0.7, 0.3), 0.65, ""),
        (0.64, (0.78, 0.22), 0.65, "0.640 with the teacher is less than the 0.65"),
        (0.9, (0.95, 0.05), 0.65, "'roof' fell from 22.0 % to 5.0 % of the target"),
        (0.9, (0.5, 0.5), 0.65, "'background' fell from 78.0 % to 50.0 % of the target"),
        (0.1, (1.0, 0.0), 0.0, ""),
    ],
)
def test_a_student_that_loses_a_class_does_not_take_the_place(
    roof_model: Path, agreement: float, shares: tuple[float, ...], least: float, sentence: str
) -> None:
    """Whatever its agreement is, unless every student is asked for."""
    from segadapt.models.semantic.package import load_segmenter
    from segadapt.models.transfer.distillation import Distilled
    from segadapt.processing.jobs.distill_model import DistillModel
    from segadapt.processing.jobs.model_rasters import TargetRaster

    teacher = load_segmenter(roof_model)
    raster, output = TargetRaster("scene.tif"), Path("light.safetensors")
    job = DistillModel(teachers=[roof_model], rasters=[raster], output=output, least_agreement=least)
    result = Distilled(teacher, agreement, 0.9, (0.78, 0.22), shares, 1.0, 0.2, 100, 20, ())
    verdict = job.verdict(result, teacher.card)
    assert verdict.is_kept == (not sentence)
    assert sentence in verdict.reason


def test_several_teachers_have_a_light_student(run: Any, roof_model: Path, scene_file: Path, tmp_path: Path) -> None:
    """The mean of several models; the student is another network."""
    from segadapt.models.semantic.card import read_card

    output = tmp_path / "light.safetensors"
    parameters = {"MODEL": str(roof_model), "MORE_MODELS": [str(roof_model)], "RASTERS": [str(scene_file)], "STEPS": 2}
    more = {"LEAST_AGREEMENT": 0, "DEVICE": "cpu", "OUTPUT": str(output)}
    results = run("distillmodel", parameters | more)
    assert len(read_card(output).history[-1]["sha256_of_teachers"]) == 2
    # Two teachers, and a quarter of the pixels.
    assert results["SPEEDUP"] > 4


def test_windows_of_an_odd_size_are_made_even(run: Any, roof_model: Path, scene_file: Path, tmp_path: Path) -> None:
    """A pixel of the student is two of the teacher's."""
    from dataclasses import replace

    from segadapt.models.semantic.card import read_card
    from segadapt.models.semantic.package import load_segmenter, save_segmenter

    teacher, output = load_segmenter(roof_model), tmp_path / "light.safetensors"
    teacher.card = replace(teacher.card, chip_px=31)
    save_segmenter(teacher, tmp_path / "odd.safetensors")
    parameters = {"MODEL": str(tmp_path / "odd.safetensors"), "RASTERS": [str(scene_file)], "STEPS": 2}
    run("distillmodel", {**parameters, "LEAST_AGREEMENT": 0, "DEVICE": "cpu", "OUTPUT": str(output)})
    assert read_card(output).chip_px == 31


def test_a_model_that_an_adapter_is_laid_over_is_never_overwritten(
    failure: Any, roof_model: Path, scene_file: Path, tmp_path: Path
) -> None:
    """Neither where it was nor beside the adapter, and whichever model the adapter is given as."""
    from dataclasses import replace

    from segadapt.models.semantic.package import load_segmenter, save_segmenter

    model, base = load_segmenter(roof_model), tmp_path / "base.safetensors"
    digest = save_segmenter(model, base)
    model.card = replace(model.card, base_file=str(base), base_sha256=digest)
    adapter, before = tmp_path / "adapter.safetensors", base.read_bytes()
    save_segmenter(model, adapter, adapter={})
    given = {"RASTERS": [str(scene_file)], "STEPS": 1, "DEVICE": "cpu", "OUTPUT": str(base)}
    for name, models in (
        ("adaptmodel", {"MODEL": str(adapter)}),
        ("distillmodel", {"MODEL": str(adapter)}),
        ("distillmodel", {"MODEL": str(roof_model), "MORE_MODELS": [str(adapter)]}),
    ):
        assert f"{adapter} is an adapter that is laid over {base}" in failure(name, given | models)
    assert base.read_bytes() == before


def test_bad_input_is_told_and_nothing_is_left(
    failure: Any, roof_model: Path, scene_file: Path, raster_factory: Any, tmp_path: Path
) -> None:
    """A raster too small to learn from."""
    small = raster_factory(np.full((3, 64, 64), 90, np.uint8), photometric="rgb")
    output = tmp_path / "light.safetensors"
    parameters = {"MODEL": str(roof_model), "RASTERS": [small], "STEPS": 2, "DEVICE": "cpu", "OUTPUT": str(output)}
    assert "4 chips of 32 px, too few" in failure("distillmodel", parameters)
    assert list(tmp_path.glob("*light*")) == []


@pytest.mark.parametrize("name", ["teacher.safetensors", "sub/../teacher.safetensors", "link.safetensors"])
def test_the_teacher_is_never_overwritten(
    failure: Any, roof_model: Path, scene_file: Path, tmp_path: Path, name: str
) -> None:
    """The same file as teacher and student, by whatever name."""
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(roof_model.read_bytes())
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.safetensors").symlink_to(teacher)
    parameters = {"MODEL": str(teacher), "RASTERS": [str(scene_file)], "STEPS": 1, "OUTPUT": str(tmp_path / name)}
    assert "overwrite its teacher" in failure("distillmodel", parameters)
    assert teacher.read_bytes() == roof_model.read_bytes()


def test_students_are_those_of_the_job() -> None:
    """The enum repeats the names, because their module needs the environment."""
    from segadapt.processing.jobs.distill_model import LEAST_AGREEMENT, STUDENTS

    assert (algorithm_module.STUDENTS, algorithm_module.LEAST_AGREEMENT) == (STUDENTS, LEAST_AGREEMENT)


def test_after_an_error_the_student_goes_on_learning(
    run: Any, roof_model: Path, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the state that is kept beside its file, which is removed in the end."""
    from segadapt.models import training_state
    from segadapt.models.transfer import distillation

    monkeypatch.setattr(training_state.Keeper, "is_due", lambda _: True)
    (out := tmp_path / "out").mkdir()
    parameters = {"MODEL": str(roof_model), "RASTERS": [str(scene_file)], "STEPS": 4, "DEVICE": "cpu"}
    parameters["OUTPUT"] = str(out / "light.safetensors")
    taught = []
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "confusion_of", lambda *_, **__: 1 / 0)
        with pytest.raises(Exception, match="division by zero"):
            run("distillmodel", parameters)
    assert len(list(out.iterdir())) == 1
    draw = distillation.draw
    monkeypatch.setattr(distillation, "draw", lambda *given: taught.append(given) or draw(*given))
    run("distillmodel", parameters)
    assert len(taught) == 1
    assert [file.name for file in out.iterdir()] == ["light.safetensors"]
