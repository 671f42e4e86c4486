"""Trains the light building model that the demo adapts to the sample scene: buildings of four places at 60 cm.

    SEGADAPT_DATA=... python tools/train_sample_model.py

A teacher (FPN on EfficientNet-Lite0, 30 cm) learns from the labelled OpenAerialMap scenes of the benchmarks, a light
student learns from it on the same scenes. It is a source model to start from, not a product: the sample is a city of
another continent, seen by another sensor.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from segadapt.benchmarks.study_data import BUILDINGS, CHIP_PX, RGB, scene
from segadapt.models.chips import joined_chips, split_by_block
from segadapt.models.metrics import mean_iou
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass, with_event
from segadapt.models.semantic.package import save_segmenter
from segadapt.models.semantic.prediction import evaluate_chips
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, build_segmenter, load_published_encoder
from segadapt.models.training import TrainingOptions, fit
from segadapt.models.transfer.distillation import Distillation, distil, new_student, student_card
from segadapt.models.transfer.statistics import source_statistics
from segadapt.processing.jobs.page import version

OUTPUT = Path(__file__).resolve().parents[1] / "plugin/resources/sample/buildings_60cm.safetensors"
PLACES = ("kampala_15cm", "nairobi_15cm", "zanzibar_15cm", "banepa2_15cm", "banepa_west_30cm")
LICENCE = (
    "Weights: Apache-2.0 (encoder of the teacher: ImageNet EfficientNet-Lite0, Apache-2.0). Trained on OpenAerialMap "
    "imagery (CC BY 4.0) with buildings of OpenStreetMap (ODbL, (c) OpenStreetMap contributors)."
)


def main() -> None:
    """Train both, print what they reach on blocks that were held out, and write the student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="of the teacher, and of the student")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    chips = joined_chips([scene(place, is_dense=True) for place in PLACES])
    training, held_out = split_by_block(chips, held_out=0.15, seed=0)
    pixels = training.pixels
    teacher = build_segmenter(
        SegmenterCard(
            name="buildings_30cm",
            decoder="fpn",
            encoder=DEFAULT_ENCODER,
            bands=RGB,
            classes=tuple(SegmenterClass(number, *one) for number, one in enumerate(BUILDINGS)),
            gsd_m=0.3,
            chip_px=CHIP_PX,
            mean=tuple(pixels.mean((0, 2, 3)).tolist()),
            std=tuple(pixels.std((0, 2, 3)).tolist()),
            licence=LICENCE,
            made_on=time.strftime("%Y-%m-%d"),
            segadapt_version=version(),
        )
    )
    load_published_encoder(teacher)
    fit(teacher, training, held_out, TrainingOptions(n_steps=steps, n_checks=5), on_check=print)
    done = distil(
        [teacher],
        new_student(student_card(teacher.card)),
        training.unlabelled(),
        held_out.unlabelled(),
        Distillation(n_steps=steps),
    )
    # The student's own resolution is half of the chips'.
    coarse = joined_chips([scene(place, chip_px=CHIP_PX, is_dense=True, gsd_m=0.6) for place in PLACES])
    on_card, tensors = source_statistics(done.model, coarse)
    scores = {"teacher_mean_iou": mean_iou(evaluate_chips(teacher, held_out)), "agreement": done.agreement}
    card = replace(done.model.card, name="buildings_60cm", statistics=on_card, metrics=scores, history=())
    done.model.card = with_event(card, "trained", places=list(PLACES), steps=steps)
    # Half precision is enough, and half the size.
    save_segmenter(done.model.half(), OUTPUT, extra=tensors)
    print(scores, f"{done.speedup:.1f} times as fast, {OUTPUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
