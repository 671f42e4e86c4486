"""The table and the page of a comparison of methods, layers and budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .compare_adaptation import Comparison
from .comparison_runs import METHOD, TUNING, Run
from .page import heading, look, machine_facts, new_figure, note, page, picture, plain, table, write_csv

# What counts as nearly as good: a share of the best mean IoU for budgets, a distance from it for layers.
_CLOSE, _MARGIN = 0.97, 0.01
_COLUMNS = (
    "kind",
    "name",
    "budget",
    "n_labelled_px",
    "miou",
    "low",
    "high",
    "n_trainable",
    "seconds",
    "peak_mb",
    "remark",
)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write all runs as CSV, whole or not at all; fields without a value are empty. Raises `JobError`."""
    write_csv([_COLUMNS, *([_cell(getattr(run, name)) for name in _COLUMNS] for run in comparison.runs)], path)


def comparison_report(comparison: Comparison, *, model: str, rasters: Sequence[str], saved: str = "") -> str:
    """The page as HTML. `model`, `rasters`: what was compared, by name; `saved`: a sentence on what was saved."""
    job = comparison.job
    parts = [heading("Recommendation"), *(note(sentence) for sentence in recommendation(comparison))]
    if saved:
        parts.append(note(saved))
    parts += [
        heading("Accuracy against labels"),
        picture(_plot(comparison), "Mean IoU of every run against the share of the labels, with 95 % intervals"),
        heading("All runs, the best first"),
        table(_rows(comparison), has_head=True),
        note(
            f"Mean IoU on {comparison.n_held_out} chips in {comparison.n_held_out_blocks} blocks of ground that no run "
            "learned from, with its 95 % interval (bootstrap over blocks). The best of many runs on the same ground "
            "looks a little better than it is. Memory is the peak of "
            f"{'the device' if comparison.device.startswith('cuda') else 'the whole program'}. A quarter of the labels "
            "of each budget decided which state of a training was kept."
        ),
    ]
    if comparison.unjudged:
        names = ", ".join(f"'{name}'" for name in comparison.unjudged)
        parts.append(note(f"No label held out is of {names}: whether a run loses it is not measured."))
    if comparison.left_out:
        why = "Cancelled before" if comparison.is_cancelled else "There was no time for"
        parts.append(note(f"{why}: {', '.join(comparison.left_out)}."))
    limit = "none" if math.isinf(job.limit_s) else f"{job.limit_s / 60:g} minutes"
    parts += [
        heading("What was run"),
        table(
            [
                ("Model", f"{model}, {comparison.n_parameters:,} parameters"),
                ("Rasters", ", ".join(rasters)),
                ("Chips", f"{comparison.n_pool} to learn from, {comparison.n_held_out} held out"),
                ("Rehearsed", f"{comparison.n_rehearsed} chips of the source" if comparison.n_rehearsed else "nothing"),
                ("Steps, batch, seed", f"{job.n_steps}, {job.batch}, {job.seed}"),
                ("Time limit", limit),
                *machine_facts(comparison.device),
            ]
        ),
    ]
    return page(f"Which adaptation helps {model}", parts)


def recommendation(comparison: Comparison) -> list[str]:
    """What to do, in sentences."""
    source, best = comparison.source, comparison.best
    free = [run for run in comparison.finished if run.kind == METHOD]
    tuned = [run for run in comparison.finished if run.kind == TUNING]
    if best.miou <= source.miou:
        return [
            f"Keep the source model: its mean IoU of {source.miou:.3f} on ground held out was beaten by nothing that "
            "was tried. More labels, other methods or more steps may change that."
        ]
    said = [f"Best of all: {best.title}, mean IoU {best.miou:.3f}; the source model has {source.miou:.3f}."]
    if best.low <= source.miou:
        said.append(
            f"The interval of the best, {best.low:.3f} to {best.high:.3f}, includes the source model's value, so the "
            "gain may be chance: judge it on more ground before you rely on it."
        )
    if tuned:
        top = max(tuned, key=lambda run: run.miou)
        near = [run for run in tuned if run.budget == top.budget and run.miou >= top.miou - _MARGIN]
        light = min(near, key=lambda run: run.n_trainable or 0)
        if light.name != top.name:
            said.append(
                f"With as many labels, {light.name} comes within {top.miou - light.miou:.3f} of it and trains "
                f"{light.n_trainable:,} parameters instead of {top.n_trainable:,}."
            )
        enough = min((run for run in tuned if run.miou >= _CLOSE * top.miou), key=lambda run: run.budget)
        if enough.budget < top.budget:
            said.append(
                f"{enough.name} with {100 * enough.budget:g} % of the labels already reaches {enough.miou:.3f}: for "
                "places like these so many labels are enough."
            )
    if free:
        top_free = max(free, key=lambda run: run.miou)
        share = (top_free.miou - source.miou) / (best.miou - source.miou)
        if top_free.miou <= source.miou:
            said.append("No method without labels helped here; labels are needed.")
        elif best.kind == TUNING:
            said.append(
                f"Without any label, {top_free.name} reaches {top_free.miou:.3f}, {100 * share:.0f} % of the way from "
                "the source model to the best."
            )
    return said


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    head = ("Run", "Mean IoU", "95 % interval", "Labelled px", "Trained parameters", "Seconds", "Memory (MB)", "Remark")
    ranked = sorted(comparison.runs, key=lambda run: -math.inf if math.isnan(run.miou) else run.miou, reverse=True)
    return [head, *(_row(run) for run in ranked)]


def _row(run: Run) -> tuple[str, ...]:
    interval = "" if math.isnan(run.low) else f"{run.low:.3f} to {run.high:.3f}"
    return (
        run.title,
        "" if math.isnan(run.miou) else f"{run.miou:.3f}",
        interval,
        f"{run.n_labelled_px:,}",
        "" if run.n_trainable is None else f"{run.n_trainable:,}",
        f"{run.seconds:.1f}",
        f"{run.peak_mb:.0f}",
        run.remark,
    )


def _plot(comparison: Comparison) -> Figure:
    """One line for each choice of layers over the budgets; methods without labels where no label is used."""
    figure, axes = new_figure("Labels used", "Mean IoU")
    source = comparison.source
    axes.axhline(source.miou, color="#1a1a1a", linewidth=1, linestyle=":", label="source model")
    finished = comparison.finished
    budgets = sorted({run.budget for run in finished if run.kind == TUNING})
    places = {0.0: 0} | {budget: place for place, budget in enumerate(budgets, 1)}
    methods = [run for run in finished if run.kind == METHOD]
    names = list(dict.fromkeys(run.name for run in finished if run.kind == TUNING))
    for number, run in enumerate(methods):
        place = 0.6 * (number - (len(methods) - 1) / 2) / max(1, len(methods))
        colour, _ = look(number)
        axes.errorbar([place], [run.miou], yerr=_bars([run]), color=colour, fmt="s", capsize=2, label=plain(run.name))
    for number, name in enumerate(names):
        line = sorted((run for run in finished if run.kind == TUNING and run.name == name), key=lambda run: run.budget)
        shift = 0.5 * (number - (len(names) - 1) / 2) / max(1, len(names))
        colour, dash = look(number)
        axes.errorbar(
            [places[run.budget] + shift for run in line],
            [run.miou for run in line],
            yerr=_bars(line),
            color=colour,
            linestyle=dash,
            marker="o",
            capsize=2,
            label=plain(name),
        )
    axes.set_xticks(list(places.values()), ["none", *(f"{100 * budget:g} %" for budget in budgets)])
    figure.set_figheight(4.8)
    axes.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.16))
    return figure


def _bars(runs: Sequence[Run]) -> list[list[float]]:
    """Lengths of the bars below and above; 0 without an interval, and where resampling put the value outside."""
    below = [0.0 if math.isnan(run.low) else max(0.0, run.miou - run.low) for run in runs]
    above = [0.0 if math.isnan(run.high) else max(0.0, run.high - run.miou) for run in runs]
    return [below, above]


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value
