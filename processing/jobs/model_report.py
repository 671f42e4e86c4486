"""Pages about segmentation models: how one was trained, and how good one or several are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ...models.augmentation import Augmentation
from ...models.semantic.card import IGNORE, SegmenterCard
from .chip_pictures import coloured, draw, legend, shown
from .evaluate_model import Evaluation, EvaluationOptions, difference
from .page import heading, look, machine_facts, new_figure, note, page, picture, plain, table
from .train_model import UNCHANGED, Trained

_MOST_IN_MATRIX = 12
"""Classes up to which the cells of a confusion matrix hold numbers."""
_LOSSES = {
    "cross_entropy_dice": "cross-entropy and Dice",
    "cross_entropy": "cross-entropy",
    "focal": "focal loss (Lin et al. 2017)",
}


def training_report(trained: Trained) -> str:
    """The page of a trained model: what it is, how training went, how good it is where it was not trained."""
    card, evaluation = trained.card, trained.evaluation
    parts = [
        heading("What was trained"),
        table(_training_facts(trained)),
        heading("How training went"),
        picture(_loss_plot(trained), "Loss and mean IoU against steps"),
        heading("Classes"),
        table(_class_rows(trained), has_head=True),
    ]
    if evaluation is None:
        parts.append(note("Nothing was held out, so that how good the model is is not known."))
    else:
        parts += [
            note(
                f"Measured on {trained.n_held_out} chips that were not learned from. The state that is best on them "
                "was kept, so that the numbers are a little too good; evaluate the model on other ground, too."
            ),
            heading("On the chips held out"),
            table(_measures([evaluation]), has_head=True),
            note(_intervals([evaluation])),
            *_pictures(evaluation),
        ]
    return page(f"Training of {card.name}", parts)


def evaluation_report(
    evaluations: Sequence[Evaluation],
    options: EvaluationOptions,
    *,
    device: str,
    rasters: Sequence[str] = (),
    labels: str = "",
) -> str:
    """The page of one or several judged models, side by side; `rasters`, `labels`: names for the head of the page."""
    names = [one.name for one in evaluations]
    parts = [
        heading("What was evaluated"),
        table(
            [
                ("Rasters", ", ".join(rasters)),
                ("Labels", labels),
                ("Windows", ", ".join(dict.fromkeys(str(one.n_chips) for one in evaluations))),
                ("Compared at", ", ".join(dict.fromkeys(map(_grid, evaluations)))),
                ("Mirror images", "mean over four" if options.flips else "none"),
                ("Outlines", f"right within {options.tolerance_px} px"),
                ("Seed", str(options.seed)),
                *machine_facts(device),
            ]
        ),
        heading("Measures"),
        table(_measures(evaluations), has_head=True),
        note(_intervals(evaluations)),
    ]
    if len(evaluations) > 1:
        parts += [heading(f"Difference to '{names[0]}'"), *_differences(evaluations, seed=options.seed)]
    parts += [
        heading("IoU by class"),
        table(_by_class(evaluations, _iou_of), has_head=True),
        note(_intervals(evaluations)),
        heading("F1 by class"),
        table(_by_class(evaluations, lambda one, n: _number(one.f1[n])), has_head=True),
        heading("Outline F-score by class"),
        table(_by_class(evaluations, lambda one, n: _number(one.boundary[n])), has_head=True),
        heading("Calibration"),
        picture(_reliability(evaluations), "Share of right pixels against confidence"),
        note("On the diagonal a model is right as often as it says. Below it, it is too sure of itself."),
    ]
    for one in evaluations:
        parts += [heading(one.name), table(_card_facts(one.card)), *_pictures(one)]
    return page("Evaluation of segmentation models", parts)


def _training_facts(trained: Trained) -> list[tuple[str, ...]]:
    card, options, event = trained.card, trained.options, trained.card.history[-1]
    how = "stopped by the user" if trained.training.is_cancelled else "to the end"
    return [
        *_card_facts(card),
        ("Rasters", ", ".join(trained.rasters)),
        ("Chips", f"{trained.n_chips} to learn from, {trained.n_held_out} held out, by {options.split}"),
        ("Encoder starts from", _start(event)),
        ("Steps", f"{event['n_steps']} of {options.batch} chips ({how}), the state of step {event['best_step']} kept"),
        ("Learning rate", f"{options.rate:g}"),
        ("Loss", _LOSSES[options.loss]),
        ("Augmentation", _changes(options.augmentation)),
        ("Class balance", "rare classes weigh more" if options.is_balanced else "none"),
        ("Seconds", f"{event['seconds']}"),
        ("Seed", str(options.seed)),
        *machine_facts(trained.device),
    ]


def _start(event: Mapping[str, object]) -> str:
    if event["weights"] != "published":
        return "random weights"
    return f"published weights, licence {event['weights_licence']}"


def _changes(augmentation: Augmentation) -> str:
    return "none" if augmentation == UNCHANGED else "flips, right angles, scale, radiometry"


def _card_facts(card: SegmenterCard) -> list[tuple[str, ...]]:
    return [
        ("Model", f"{card.decoder} on {card.encoder}"),
        ("Bands", ", ".join(card.bands)),
        ("Resolution", "that of each raster" if card.gsd_m is None else f"{card.gsd_m:.3g} m"),
        ("Window", f"{card.chip_px} px"),
        ("Licence", card.licence),
        ("History", "; ".join(f"{entry.get('event')} on {entry.get('date')}" for entry in card.history) or "none"),
    ]


def _grid(one: Evaluation) -> str:
    return "the resolution of each raster" if one.gsd_m is None else f"{one.gsd_m:.3g} m per pixel"


def _class_rows(trained: Trained) -> list[tuple[str, ...]]:
    total = max(1, sum(trained.class_px))
    rows: list[tuple[str, ...]] = [("class", "share of labels", "IoU", "F1", "outline F-score")]
    one = trained.evaluation
    for n, entry in enumerate(trained.card.classes):
        scores = ("", "", "") if one is None else (_number(one.ious[n]), _number(one.f1[n]), _number(one.boundary[n]))
        rows.append((entry.name, f"{100 * trained.class_px[n] / total:.2f} %", *scores))
    return rows


def _intervals(evaluations: Sequence[Evaluation]) -> str:
    if all(math.isnan(one.interval[0]) for one in evaluations):
        return "Without intervals: that takes two blocks of ground with labels of all classes."
    return "95 % intervals in brackets: blocks of ground drawn with replacement."


def _measures(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    return [
        ("", *(one.name for one in evaluations)),
        ("mean IoU", *(_with_interval(one.mean_iou, *one.interval) for one in evaluations)),
        ("mean F1", *(_number(one.mean_f1) for one in evaluations)),
        ("outline F-score", *(_number(one.mean_boundary) for one in evaluations)),
        ("accuracy", *(_number(one.accuracy) for one in evaluations)),
        ("calibration error", *(_number(one.calibration.error) for one in evaluations)),
        ("labelled pixels", *(f"{int(one.confusion.sum())}" for one in evaluations)),
        ("blocks of ground", *(str(len(one.blocks)) for one in evaluations)),
        ("seconds of the model", *(f"{one.seconds:.1f}" for one in evaluations)),
    ]


def _differences(evaluations: Sequence[Evaluation], *, seed: int) -> list[str]:
    rows: list[tuple[str, ...]] = [("model", "mean IoU", "95 % interval")]
    for one in evaluations[1:]:
        found = difference(evaluations[0], one, seed=seed)
        if found is None:
            rows.append((one.name, f"{one.mean_iou - evaluations[0].mean_iou:+.3f}", "other windows, not paired"))
        else:
            rows.append((one.name, f"{found[0]:+.3f}", f"[{found[1]:+.3f}, {found[2]:+.3f}]"))
    return [
        table(rows, has_head=True),
        note("Both models on the same drawn blocks: where the interval does not hold 0, the difference is not chance."),
    ]


def _iou_of(one: Evaluation, class_id: int) -> str:
    low, high = one.class_intervals[class_id]
    return _with_interval(one.ious[class_id], low, high)


def _by_class(evaluations: Sequence[Evaluation], score_of: Callable[[Evaluation, int], str]) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(entry.name for one in evaluations for entry in one.card.classes))
    rows = [("class", *(one.name for one in evaluations))]
    for name in names:
        cells = []
        for one in evaluations:
            ids = [entry.class_id for entry in one.card.classes if entry.name == name]
            cells.append(score_of(one, ids[0]) if ids else "no such class")
        rows.append((name, *cells))
    return rows


def _pictures(one: Evaluation) -> list[str]:
    parts = [
        picture(_matrix(one), "Confusion matrix"),
        note("Rows: the truth; a row sums to 100 %. Columns: the answer."),
    ]
    if one.worst:
        parts += [
            picture(_worst(one), "Windows with the most wrong pixels", is_photograph=True),
            note("The windows with the largest share of wrong pixels: image, truth, answer. White: unlabelled."),
        ]
    places = [(window.where, window.error) for window in one.worst if window.where is not None]
    if places:
        rows = [(str(number), *where, f"{100 * error:.0f} %") for number, (where, error) in enumerate(places, 1)]
        parts += [
            table([("window", "raster", "map coordinates of its centre", "wrong pixels"), *rows], has_head=True),
            note("In the order of the pictures. Type coordinates into QGIS's coordinate box to go there."),
        ]
    return parts


def _loss_plot(trained: Trained) -> Figure:
    figure, axes = new_figure("step", "loss")
    checks = trained.training.checks
    steps = [check.step for check in checks]
    axes.plot(steps, [check.loss for check in checks], look(0)[1], color=look(0)[0], marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.yaxis.label.set_color(look(0)[0])
    if trained.evaluation is not None:
        score = axes.twinx()
        colour, dash = look(1)
        score.plot(steps, [check.score for check in checks], dash, color=colour, marker="s", markersize=3)
        score.set_ylim(0, 1)
        score.set_ylabel("mean IoU on the chips held out", color=colour)
    axes.axvline(trained.training.best_step, color="#444444", linewidth=0.8, linestyle=":")
    return figure


def _matrix(one: Evaluation) -> Figure:
    confusion = one.confusion.astype(np.float64)
    n = len(confusion)
    sums = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(100 * confusion, sums, out=np.zeros_like(confusion), where=sums > 0)
    side = min(9.0, 2.2 + 0.55 * n)
    figure = Figure(figsize=(side + 1.2, side), layout="tight")
    axes = figure.add_subplot()
    # Cells as polygons: QtWebKit shows no images within images of SVG.
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=100, edgecolors="#b5b5b5", linewidth=0.5)
    axes.invert_yaxis()
    names = [plain(entry.name) for entry in one.card.classes]
    axes.set_xticks(np.arange(n) + 0.5, names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(np.arange(n) + 0.5, names, fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if n <= _MOST_IN_MATRIX:
        for row, col in np.ndindex(n, n):
            colour = "#ffffff" if shares[row, col] > 60 else "#1a1a1a"
            axes.text(col + 0.5, row + 0.5, f"{shares[row, col]:.0f}", ha="center", va="center", color=colour)
    return figure


def _reliability(evaluations: Sequence[Evaluation]) -> Figure:
    figure, axes = new_figure("confidence", "share of right pixels")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for number, one in enumerate(evaluations):
        colour, dash = look(number)
        axes.plot(
            one.calibration.confidence,
            one.calibration.accuracy,
            dash,
            color=colour,
            marker="o",
            markersize=3,
            label=plain(f"{one.name} (error {one.calibration.error:.3f})"),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper left")
    return figure


def _worst(one: Evaluation) -> Figure:
    figure = Figure(figsize=(7.2, 2.5 * len(one.worst) + 0.6), layout="tight")
    axes = figure.subplots(len(one.worst), 3, squeeze=False)
    for row, window in zip(axes, one.worst, strict=True):
        draw(row[0], shown(window.pixels), title="image")
        draw(row[1], coloured(window.truth, one.card), title="truth")
        draw(row[2], coloured(window.answer, one.card), title=f"answer, {100 * window.error:.0f} % wrong")
    used = sorted({int(n) for window in one.worst for n in np.union1d(window.truth, window.answer)} - {IGNORE})
    legend(figure, [one.card.classes[n] for n in used[:_MOST_IN_MATRIX]])
    return figure


def _with_interval(value: float, low: float, high: float) -> str:
    return _number(value) + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.3f}"
