"""The page of a domain shift: how far the target is, seen in four ways, and which methods to try first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...models.transfer.base import get_method
from ...models.transfer.chain import names_of
from ...models.transfer.statistics import QUANTILES
from .chip_pictures import coloured, draw, legend, shown
from .domain_shift import ShiftResult
from .model_rasters import TargetRaster
from .page import heading, look, machine_facts, new_figure, note, page, picture, plain, table


def shift_report(result: ShiftResult, targets: Sequence[TargetRaster]) -> str:
    """The page as HTML."""
    names = ", ".join(Path(target.path).name for target in targets)
    shift, advice = result.shift, result.advice
    facts = [
        ("How far", f"{advice.level} ({_number(shift.overall)} of 1)"),
        ("What that means", " ".join(advice.sentences)),
        ("Looked at", f"{result.n_chips} windows of {result.card.chip_px} px"),
    ]
    parts = [
        table(facts),
        heading("What to try, in this order"),
        _methods(result),
        heading("Measures"),
        _measures(result),
    ]
    parts += [heading("Values of the bands"), *_bands(result)]
    parts += [
        heading("Shares of the classes"),
        _shares(result),
        heading("What the model sees as it is"),
        _windows(result),
    ]
    parts += [heading("Machine"), table(machine_facts(result.device))]
    return page(f"From the source of {result.card.name} to {names}", parts)


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _methods(result: ShiftResult) -> str:
    rows = [("Methods", "What they do")]
    for chain in result.advice.methods:
        rows.append((chain, " ".join(get_method(name).summary for name in names_of(chain))))
    return table(rows, has_head=True)


def _measures(result: ShiftResult) -> str:
    shift = result.shift
    rows = [
        ("Measure", "Value", "What it says"),
        (
            "Band statistics",
            _number(shift.bands),
            "Mean distance of the histograms (Wasserstein) in deviations of the source; 0 is the same light.",
        ),
        (
            "Frechet distance of features",
            _number(shift.frechet),
            f"Over the source's variance; two halves of the target differ by {_number(shift.frechet_halves)}.",
        ),
        (
            "Proxy A-distance",
            _number(shift.proxy_a),
            "0: no linear classifier tells source from target by their features; 2: it always does.",
        ),
        (
            "Change of class shares",
            _number(shift.shares),
            "Part of the target that would have to be another class to have the source's shares.",
        ),
        (
            "Agreement of the model",
            _number(shift.agreement.score),
            f"Consistency under mirroring and light {_number(shift.agreement.consistency)}, alignment with segments "
            f"{_number(shift.agreement.alignment)}; 1 at best, 0 by chance.",
        ),
    ]
    return table(rows, has_head=True)


def _bands(result: ShiftResult) -> list[str]:
    known: Any = result.card.statistics.get("band_quantiles")
    figure, axes = new_figure("Share of pixels below (%)", "Value (0 to 255)")
    for number, name in enumerate(result.card.bands):
        colour, _ = look(number)
        axes.plot(100 * QUANTILES, result.quantiles[number], color=colour, label=plain(f"{name}, target"))
        if known:
            axes.plot(100 * QUANTILES, known[number], color=colour, linestyle="--", label=plain(f"{name}, source"))
    axes.legend(fontsize=8)
    text = (
        "Solid: the target, as the network sees it; dashed: the source."
        if known
        else "The model does not say which values its source had."
    )
    return [picture(figure, "Quantiles of the bands of source and target"), note(text)]


def _shares(result: ShiftResult) -> str:
    known: Any = result.card.statistics.get("class_shares")
    rows = [("Class", "Source domain", "Target, model as it is")]
    for one in result.card.classes:
        of_source = f"{100 * known[one.class_id]:.1f} %" if known else "unknown"
        rows.append((one.name, of_source, f"{100 * result.shift.agreement.shares[one.class_id]:.1f} %"))
    return table(rows, has_head=True)


def _windows(result: ShiftResult) -> str:
    n = len(result.shown)
    figure = Figure(figsize=(1.8 * max(n, 2), 4.2), layout="tight")
    axes = figure.subplots(2, n, squeeze=False)
    for column in range(n):
        labels = np.where(result.shown.valid[column], result.labels[column], 255).astype(np.uint8)
        image_of_chip = shown(result.shown.pixels[column], result.shown.valid[column])
        for row, image in enumerate((image_of_chip, coloured(labels, result.card))):
            draw(axes[row][column], image)
    legend(figure, result.card.classes)
    return picture(figure, "Windows of the target and what the model says of them", is_photograph=True)
