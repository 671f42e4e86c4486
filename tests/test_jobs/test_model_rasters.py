"""Rasters as a segmentation model sees them: whoever reads them says where they are not what it was made for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from affine import Affine
from segadapt.models.semantic.package import save_segmenter
from segadapt.processing.jobs.class_scheme import scheme_of_card
from segadapt.processing.jobs.evaluate_model import evaluate_models
from segadapt.processing.jobs.model_rasters import TargetRaster, read_labelled_chips, read_target_chips
from segadapt.processing.jobs.select_samples import SampleRaster, SelectSamples, select_samples
from segadapt.processing.jobs.training_data import LabelledRaster

LEFT, TOP = 590_000, 5_750_000


@pytest.fixture(scope="module")
def models(train_roofs, tmp_path_factory):
    """Models of 0.5 m and of 2 m, trained on values that were no bytes."""
    model, _ = train_roofs(n_steps=1)
    paths = []
    for gsd_m in (0.5, 2.0):
        model.card = replace(
            model.card, name=f"roofs {gsd_m} m", gsd_m=gsd_m, stretch=None, training_stretch=(0.0,) * 3 + (900.0,) * 3
        )
        paths.append(tmp_path_factory.mktemp("models") / f"{gsd_m}.safetensors")
        save_segmenter(model, paths[-1])
    return model, paths


@pytest.mark.parametrize("reader", ["targets", "labels", "samples", "evaluation"])
def test_pixels_that_are_far_from_the_models_are_told(models, raster_factory, recorder, reader):
    model, paths = models
    card, told = replace(model.card, name="roofs 0.5 m", gsd_m=0.5), recorder()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 40)).astype(np.uint8)
    path = raster_factory(pixels, "coarse.tif", transform=Affine(3, 0, LEFT, 0, -3, TOP))
    roof = shapely.box(LEFT, TOP - 60, LEFT + 60, TOP)
    labelled = LabelledRaster(path=path, polygons=(roof,), names=("roof",), area=(shapely.box(0, 0, 1e7, 1e7),))
    scheme = scheme_of_card(card, [labelled], background="class")
    if reader == "targets":
        read_target_chips([TargetRaster(path)], card, progress=told)
    elif reader == "labels":
        read_labelled_chips([labelled], scheme, card, progress=told)
    elif reader == "samples":
        select_samples(paths[0], [SampleRaster(path=path)], SelectSamples(budget=1, device="cpu"), progress=told)
    else:
        evaluate_models(paths, [labelled], lambda _: scheme, device="cpu", progress=told)
    # Of both models that are judged on the same windows the one of 2 m is near enough.
    assert [text.split(";")[0] for text in told.texts if "has pixels of" in text] == [
        "Warning: coarse.tif has pixels of 3 m, and 'roofs 0.5 m' was made for 0.5 m"
    ]
    names = ["roofs 0.5 m", "roofs 2.0 m"] if reader == "evaluation" else ["roofs 0.5 m"]
    assert [text.split(":")[1] for text in told.texts if "8-bit values, and" in text] == [
        f" coarse.tif holds 8-bit values, and '{name}' was trained on others" for name in names
    ]
