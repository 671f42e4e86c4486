"""The page of a fine-tuned model: what learned from which labels, what it brought, and whether it was kept."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from .evaluate_model import difference
from .fine_tune_model import FineTuneResult, verdict
from .page import heading, look, machine_facts, new_figure, note, page, picture, table

_LAYERS = {
    "head": "the last layer alone",
    "decoder": "decoder and last layer",
    "norm": "normalisation, biases and last layer",
    "lora": "low-rank products beside the encoder's layers (LoRA), and the last layer",
    "tokens": "tokens behind the stages of the encoder (Rein), and the last layer",
    "last_blocks": "the encoder's last blocks, decoder and last layer",
    "full": "everything",
}


def fine_tuning_report(result: FineTuneResult) -> str:
    """The page, whole; it says so where the source model was kept."""
    parts = [
        f"<p><b>{verdict(result.mean_iou_before, result.mean_iou_after, is_adapted=result.is_adapted)}</b></p>",
        heading("On the chips held out"),
        table(_scores(result), has_head=True),
        *_gain(result),
        note(
            f"{_measured(result)} With few labels the numbers are uncertain. Evaluate the model on other ground, too."
        ),
        heading("How training went"),
        picture(_course(result), "Loss and mean IoU against steps"),
        heading("What was done"),
        table(_facts(result)),
    ]
    return page(f"Fine-tuning of {result.source_card.name}", parts)


def _measured(result: FineTuneResult) -> str:
    if result.known:
        names = ", ".join(f"'{name}'" for name in result.known)
        return (
            f"Measured on {result.n_held_out} chips, over their labelled pixels. No chip held out has a label of "
            f"{names}, so that chips with it that were learned from are among them, and the numbers are too good: "
            "label more places with it."
        )
    where = f"Measured on {result.n_held_out} chips that were not learned from, over their labelled pixels."
    if result.n_choosing:
        return f"{where} {result.n_choosing} others chose the state that is best."
    return (
        f"{where} The state that is best on them was kept, so that the numbers are a little too good: there were too "
        "few labels to choose by some and to judge by others."
    )


def _scores(result: FineTuneResult) -> list[tuple[str, ...]]:
    before, after = result.before, result.after
    rows: list[tuple[str, ...]] = [("IoU", "source model", "fine-tuned model")]
    for n, entry in enumerate(result.source_card.classes):
        rows.append((entry.name, _number(before.ious[n]), "not kept" if after is None else _number(after.ious[n])))
    return [*rows, ("mean", _number(result.mean_iou_before), _number(result.mean_iou_after))]


def _gain(result: FineTuneResult) -> list[str]:
    found = None if result.after is None else difference(result.before, result.after, seed=result.job.seed)
    if found is None:
        return []
    gain, low, high = found
    return [
        note(f"Gain {gain:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]: blocks of ground drawn with replacement.")
    ]


def _course(result: FineTuneResult) -> Figure:
    figure, axes = new_figure("step", "loss")
    checks = result.training.checks
    steps = [check.step for check in checks]
    (colour, dash), (other_colour, other_dash) = look(0), look(1)
    axes.plot(steps, [check.loss for check in checks], dash, color=colour, marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.yaxis.label.set_color(colour)
    score = axes.twinx()
    # What the source model reached is known of the chips that judge alone.
    begun = [] if result.n_choosing else [(0, result.mean_iou_before)]
    points = [*begun, *((check.step, check.score) for check in checks)]
    score.plot(*zip(*points, strict=True), other_dash, color=other_colour, marker="s", markersize=3)
    score.set_ylim(0, 1)
    score.set_ylabel("mean IoU on the chips that choose", color=other_colour)
    axes.axvline(result.training.best_step, color="#444444", linewidth=0.8, linestyle=":")
    return figure


def _facts(result: FineTuneResult) -> list[tuple[str, ...]]:
    job, training = result.job, result.training
    n_steps = training.checks[-1].step if training.checks else 0
    share = 100 * result.n_trainable / result.n_parameters
    what = "adapter" if result.is_adapted and job.is_adapter_only else "whole model"
    return [
        ("Source model", f"{result.source_card.name} ({job.model.name})"),
        ("Rasters", ", ".join(result.rasters)),
        ("Labels", f"{result.n_labelled_px} pixels in {result.n_chips} chips to learn from"),
        ("Rehearsed", f"{result.n_rehearsed} chips of the source" if result.n_rehearsed else "nothing"),
        ("What learned", f"{_LAYERS[job.tuning.layers]} ({job.tuning.layers})"),
        ("Parameters", f"{result.n_trainable} of {result.n_parameters} ({share:.2f} %)"),
        (
            "Steps",
            f"{n_steps} of {job.batch} chips{', stopped by the user' if training.is_cancelled else ''}; the state of "
            f"step {training.best_step} is the best",
        ),
        ("Seconds", f"{result.seconds:.1f}"),
        ("Saved", f"{what}, {result.n_bytes / 1e6:.2f} MB; the source model has {result.n_bytes_before / 1e6:.2f} MB"),
        ("Seed", str(job.seed)),
        *machine_facts(result.device),
    ]


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.3f}"
