"""The page of an adaptation without labels: what was done, whether it is kept and why, and what changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...models.transfer.agreement import LEAST_KEPT, changed_most
from ...models.transfer.base import make_method
from ...models.transfer.chain import SEPARATOR
from .adapt_model import AdaptResult
from .chip_pictures import coloured, draw, legend, shown
from .model_rasters import TargetRaster
from .page import heading, machine_facts, note, page, picture, table

_N_WINDOWS = 6


def adaptation_report(result: AdaptResult, targets: Sequence[TargetRaster]) -> str:
    """The page as HTML."""
    job, card = result.job, result.source_card
    title = f"{card.name} on {', '.join(Path(target.path).name for target in targets)}"
    kept = "The adapted model is saved." if result.is_adapted else "The source model is saved, unchanged."
    facts = [
        ("Result", f"{kept} {result.verdict.reason}"),
        ("Methods", ", then ".join(make_method(name).title for name in job.methods)),
        ("Chain", SEPARATOR.join(job.methods)),
        ("Source", "; ".join(make_method(name).reference for name in job.methods)),
        ("Chips", f"{result.n_chips} to learn from, {len(result.held_out)} held out, {card.chip_px} px each"),
        ("Steps", f"{job.n_steps} of {job.batch} chips; seed {job.seed}; segments: {job.segments}"),
        ("Weight of the source model", f"{result.source_weight:g}"),
        ("Time", f"{result.seconds:.1f} s for the methods"),
    ]
    parts = [table(facts), heading("Agreement on windows that were held out"), *_agreement(result)]
    parts += [heading("Shares of the classes"), _shares(result), heading("Windows that changed most")]
    parts += _windows(result)
    parts += [heading("Machine"), table(machine_facts(result.device))]
    return page(title, parts)


def _agreement(result: AdaptResult) -> list[str]:
    before, after = result.before, result.after
    rows = [
        ("", "Source model", "Adapted model"),
        ("Consistency (kappa) under mirroring and light", f"{before.consistency:.3f}", f"{after.consistency:.3f}"),
        ("Alignment (tau) with segments of the image", f"{before.alignment:.3f}", f"{after.alignment:.3f}"),
        ("Agreement (geometric mean)", f"{before.score:.3f}", f"{after.score:.3f}"),
    ]
    return [
        table(rows, has_head=True),
        note(
            "Without labels nobody knows how many pixels are right. A model that understands a place gives the same "
            "answer when the picture is mirrored or a little brighter, and draws its borders where the picture has "
            "some; both are corrected for chance, so that a model that calls everything one class gets 0. The adapted "
            "model is kept only where the agreement does not fall and no class vanishes or takes over. Evaluate the "
            "model on a few labels before you rely on it."
        ),
        heading("What the source model was surest of"),
        _surest(result),
    ]


def _surest(result: AdaptResult) -> str:
    rows = [("Class", "Called the same by the adapted model")]
    for one in result.source_card.classes:
        share = result.kept[one.class_id]
        rows.append((one.name, "too rare to say" if math.isnan(share) else f"{100 * share:.1f} %"))
    rule = (
        "It does not decide here: labels of the source were rehearsed, which keep what each class means."
        if result.is_rehearsed
        else f"At least {100 * LEAST_KEPT:.0f} % of each must stay: a class can keep its size and its edges and become "
        "another."
    )
    return table(rows, has_head=True) + note(
        f"Of the quarter of each class's pixels that the source model was surest of. {rule}"
    )


def _shares(result: AdaptResult) -> str:
    known: Any = result.source_card.statistics.get("class_shares")
    head = ("Class", "Source domain", "Target, source model", "Target, adapted model")
    rows = [head]
    for one in result.source_card.classes:
        of_source = f"{100 * known[one.class_id]:.1f} %" if known else "unknown"
        rows.append(
            (
                one.name,
                of_source,
                f"{100 * result.before.shares[one.class_id]:.1f} %",
                f"{100 * result.after.shares[one.class_id]:.1f} %",
            )
        )
    return table(rows, has_head=True)


def _windows(result: AdaptResult) -> list[str]:
    card = result.source_card
    chosen = changed_most(result.labels_before, result.labels_after, n=_N_WINDOWS)
    if not chosen:
        return [note("No pixel of the windows that were held out changed its class.")]
    figure = Figure(figsize=(7.2, 2.5 * len(chosen) + 0.6), layout="tight")
    axes = np.atleast_2d(figure.subplots(len(chosen), 3))
    for row, number in zip(axes, chosen, strict=True):
        valid = result.held_out.valid[number]
        pictures = [shown(result.held_out.pixels[number], valid)]
        pictures += [
            coloured(np.where(valid, labels[number], 255).astype(np.uint8), card)
            for labels in (result.labels_before, result.labels_after)
        ]
        share = (result.labels_before[number] != result.labels_after[number])[valid].mean()
        titles = ("Target", "Source model", f"Adapted model ({100 * share:.0f} % changed)")
        for one, image, title in zip(row, pictures, titles, strict=True):
            draw(one, image, title=title)
    legend(figure, card.classes)
    text = "not kept" if not result.is_adapted else "kept"
    return [
        picture(figure, f"Windows of the target before and after the adaptation, which was {text}", is_photograph=True)
    ]
