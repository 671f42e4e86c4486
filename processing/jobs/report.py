"""An evaluation as one HTML page: what was run, the measures with their intervals, plots, the worst objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import shapely
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from shapely.geometry.base import BaseGeometry

from ..raster.geodesy import apply_affine
from ..raster.rasterize import joined, pixel_bounds
from ..raster.reader import RasterReader
from ..raster.windows import SquareWindow
from .click_curves import Interval, ObjectCurve, Summary, mean_curve, measure_names, percent
from .evaluate_interactive import ConfigurationResult, InteractiveEvaluation
from .page import heading, look, machine_facts, new_figure, note, page, picture, plain, table

_N_WORST = 6
_CHIP_PX = 256
_LARGEST_CHIP_PX = 2048
_TRUTH, _ANSWER = "#ffd23f", "#00e5ff"


def interactive_report(
    evaluation: InteractiveEvaluation, reader: RasterReader, *, title: str, device: str, layer: str = ""
) -> str:
    """The page of an evaluation: HTML text. `reader`: the raster, for pictures of the worst objects.

    `title` heads the page; `device`: where the model ran; `layer`: name of the references. All text is escaped.
    """
    job, results = evaluation.job, evaluation.results
    targets = job.targets
    names = [result.configuration.name for result in results]
    parts = [
        heading("What was run"),
        table(_facts(evaluation, device=device, layer=layer)),
        heading("Measures"),
        _measures(names, [result.summary for result in results], measure_names(targets, n_clicks=job.n_clicks)),
        note(
            f"Value and 95 % interval ({job.n_resamples} bootstrap resamples of the objects). Clicks to an IoU count "
            f"{job.n_clicks} where it was not reached. Seconds are from click to answer, without encoding."
        ),
    ]
    after = [result.after_first for result in results]
    if all(summary is not None for summary in after):
        parts += [
            heading(f"After the first {job.n_first} objects"),
            _measures(names, [s for s in after if s], measure_names(targets, n_clicks=job.n_clicks)),
        ]
    if evaluation.differences:
        parts += [
            heading(f"Difference to '{names[0]}', object by object"),
            _measures(
                list(evaluation.differences),
                list(evaluation.differences.values()),
                measure_names(targets, n_clicks=job.n_clicks),
                is_difference=True,
            ),
            note("Intervals of paired differences: where one does not hold 0, the difference is not chance."),
        ]
    parts += [heading("Configurations"), table(_options(results), has_head=True)]
    target = targets[len(targets) // 2]
    parts += [
        heading("IoU against clicks"),
        picture(_curve_plot(results, evaluation), "Mean IoU after each click, with its interval"),
        heading(f"Clicks to an IoU of {percent(target)} %"),
        picture(_histogram(results, target, job.n_clicks), "Number of objects by number of clicks"),
        heading("IoU against area"),
        picture(_area_plot(results, reader), "IoU of each object against its area"),
        heading("From object to object"),
        picture(_learning_plot(results, target, job.n_clicks), "Running mean of clicks over the objects"),
        heading("Worst objects"),
        picture(_worst_plot(results[-1], reader), "The objects with the lowest mean IoU", is_photograph=True),
        note(
            f"Those of '{names[-1]}' with the lowest mean IoU over all clicks, as they were given up or accepted. "
            "Yellow: reference. Blue, dashed: answer."
        ),
    ]
    return page(title, parts)


def _facts(evaluation: InteractiveEvaluation, *, device: str, layer: str) -> list[tuple[str, ...]]:
    job, origin = evaluation.job, evaluation.provenance
    n_objects = len(evaluation.results[0].curves)
    left_out = "; ".join(f"{count} {reason}" for reason, count in evaluation.excluded.items())
    goal = " / ".join(percent(target) for target in job.targets)
    return [
        ("Raster", origin.get("SEGADAPT_RASTER", "")),
        ("Bands", origin.get("SEGADAPT_BANDS", "")),
        ("Stretch", f"{origin.get('SEGADAPT_STRETCH_LOW', '')} to {origin.get('SEGADAPT_STRETCH_HIGH', '')}"),
        ("References", f"{layer} {n_objects} of {evaluation.n_references} polygons".strip()),
        ("Left out", left_out or "none"),
        ("Model", f"{origin.get('SEGADAPT_MODEL', '')} ({origin.get('SEGADAPT_PRECISION', '')})"),
        ("Weights (sha256)", origin.get("SEGADAPT_WEIGHTS_SHA256", "")),
        ("Analyst", f"RITM clicker, at most {job.n_clicks} clicks per object, targets {goal} % IoU"),
        ("Accepted objects", "the last answer" if job.accepts == "answer" else "the reference outline"),
        ("Seed", str(job.seed)),
        *machine_facts(device),
    ]


def _options(results: Sequence[ConfigurationResult]) -> list[tuple[str, ...]]:
    """Rows: each option, then what the configurations did beside answering."""
    names = [field.name for field in fields(results[0].configuration.options)]
    rows = [("", *(result.configuration.name for result in results))]
    for name in names:
        rows.append((name, *(str(getattr(result.configuration.options, name)) for result in results)))
    rows.append(("objects learned", *(str(result.n_kept) for result in results)))
    rows.append(("objects that would have done harm", *(str(result.n_undone) for result in results)))
    rows.append(("seconds of learning per object", *(_mean_learning(result) for result in results)))
    rows.append(("windows encoded", *(str(result.n_encoded) for result in results)))
    rows.append(("seconds per encoded window", *(_mean_encoding(result) for result in results)))
    return rows


def _mean_learning(result: ConfigurationResult) -> str:
    return f"{np.mean([curve.learn_s for curve in result.curves]):.2f}"


def _mean_encoding(result: ConfigurationResult) -> str:
    return f"{result.encode_s / result.n_encoded:.2f}" if result.n_encoded else "all were in the cache"


_LABELS = {
    "miou": "mean IoU after {} clicks",
    "noc": "clicks to IoU {} %",
    "nof": "objects that never reach {} %",
    "noc_by_area": "clicks to IoU {} %, by area",
}
_DIGITS = {"miou": 3, "click": 3, "nof": 0}


def measure_label(name: str) -> str:
    """A measure of `click_curves.Summary` in words."""
    if name.startswith("click_"):
        return "seconds per click, " + {"click_median_s": "median", "click_p95_s": "95th percentile"}[name]
    kind, _, number = name.rpartition("_")
    return "mean IoU after 1 click" if name == "miou_1" else _LABELS[kind].format(number)


def _measures(
    names: Sequence[str], summaries: Sequence[Summary], measures: Iterable[str], *, is_difference: bool = False
) -> str:
    rows = [("", *names), ("objects", *(str(summary.n_objects) for summary in summaries))]
    for measure in measures:
        rows.append((measure_label(measure), *(_interval(s[measure], measure, is_difference) for s in summaries)))
    return table(rows, has_head=True)


def _interval(interval: Interval, measure: str, is_difference: bool) -> str:
    digits = next((digits for start, digits in _DIGITS.items() if measure.startswith(start)), 2)
    if np.isnan(interval.value):
        return "not measured"
    sign = "+" if is_difference else ""
    return f"{interval.value:{sign}.{digits}f} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def _curve_plot(results: Sequence[ConfigurationResult], evaluation: InteractiveEvaluation) -> Figure:
    figure, axes = new_figure("click", "mean IoU")
    clicks = np.arange(1, evaluation.job.n_clicks + 1)
    for number, result in enumerate(results):
        mean, low, high = mean_curve(result.curves, seed=evaluation.job.seed, n_resamples=evaluation.job.n_resamples)
        colour, dash = look(number)
        axes.fill_between(clicks, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(clicks, mean, dash, color=colour, marker="o", markersize=3, label=_plain(result))
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    return figure


def _histogram(results: Sequence[ConfigurationResult], target: float, n_clicks: int) -> Figure:
    figure, axes = new_figure(f"clicks to an IoU of {percent(target)} %", "objects")
    width = 0.8 / len(results)
    places = np.arange(1, n_clicks + 2)  # the last one: never
    for number, result in enumerate(results):
        reached = [curve.clicks_to(target) or n_clicks + 1 for curve in result.curves]
        counts = np.bincount(reached, minlength=n_clicks + 2)[1:]
        offset = (number - (len(results) - 1) / 2) * width
        axes.bar(places + offset, counts, width, color=look(number)[0], label=_plain(result))
    axes.set_xticks(places, [*map(str, places[:-1]), "never"], fontsize=8)
    axes.legend(loc="upper center")
    return figure


def _area_plot(results: Sequence[ConfigurationResult], reader: RasterReader) -> Figure:
    in_metres = reader.gsd_m is not None
    number = min(3, len(results[0].curves[0].ious))
    plural = "s" if number > 1 else ""
    figure, axes = new_figure(f"area ({'m²' if in_metres else 'pixels'})", f"IoU after {number} click{plural}")
    factor = reader.gsd_m**2 if reader.gsd_m is not None else 1.0
    for place, result in enumerate(results):
        areas = [curve.area_px * factor for curve in result.curves]
        ious = [curve.ious[number - 1] for curve in result.curves]
        marker = "o^svDx"[place % 6]
        axes.scatter(areas, ious, 14, color=look(place)[0], marker=marker, alpha=0.7, label=_plain(result))
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.legend(loc="lower right")
    return figure


def _learning_plot(results: Sequence[ConfigurationResult], target: float, n_clicks: int) -> Figure:
    figure, axes = new_figure("objects done", f"clicks to {percent(target)} %, running mean")
    for number, result in enumerate(results):
        clicks = np.array([curve.clicks_to(target) or n_clicks for curve in result.curves], np.float64)
        counts = np.arange(1, len(clicks) + 1)
        colour, dash = look(number)
        axes.plot(counts, np.cumsum(clicks) / counts, dash, color=colour, label=_plain(result))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    return figure


def _worst_plot(result: ConfigurationResult, reader: RasterReader) -> Figure:
    worst = sorted(result.curves, key=lambda curve: float(np.mean(curve.ious)))[:_N_WORST]
    figure = Figure(figsize=(8.4, 2.9 * -(-len(worst) // 3)))
    for number, curve in enumerate(worst, 1):
        axes = figure.add_subplot(-(-len(worst) // 3), 3, number)
        _draw_object(axes, curve, reader)
    figure.tight_layout()
    return figure


def _draw_object(axes: Axes, curve: ObjectCurve, reader: RasterReader) -> None:
    window = _chip_window(curve, reader)
    out_px = min(_CHIP_PX, window.size_px)
    pixels = reader.read_chip(window, out_px=out_px).pixels
    scale = out_px / window.size_px
    axes.imshow(np.moveaxis(pixels, 0, -1), interpolation="nearest", extent=(0, pixels.shape[2], pixels.shape[1], 0))
    for geometry, colour, dash in ((curve.truth, _TRUTH, "-"), (curve.outline, _ANSWER, "--")):
        for ring in _rings_px(geometry, reader):
            x, y = ((ring - (window.col_off, window.row_off)) * scale).T
            axes.plot(x, y, dash, color=colour, linewidth=1.4)
    axes.set_xlim(0, pixels.shape[2])
    axes.set_ylim(pixels.shape[1], 0)
    axes.set_axis_off()
    name = plain(" ".join(part for part in (curve.class_name, curve.reference_id) if part))
    plural = "s" if curve.n_clicks > 1 else ""
    axes.set_title(f"{name[:28]}\nIoU {curve.ious[-1]:.2f} after {curve.n_clicks} click{plural}", fontsize=8)


def _chip_window(curve: ObjectCurve, reader: RasterReader) -> SquareWindow:
    """A window with a power of two of pixels around truth and answer, or around the truth of a vast answer."""
    truth = pixel_bounds(curve.truth, reader.transform)
    bounds = joined(truth, pixel_bounds(curve.outline, reader.transform))
    if max(bounds[2] - bounds[0], bounds[3] - bounds[1]) > _LARGEST_CHIP_PX:
        bounds = truth
    size_px = 64
    while size_px < 1.3 * max(bounds[2] - bounds[0], bounds[3] - bounds[1]) and size_px < _LARGEST_CHIP_PX:
        size_px *= 2
    rows, cols = reader.shape
    col_off = min((bounds[0] + bounds[2] - size_px) // 2, cols - size_px)
    row_off = min((bounds[1] + bounds[3] - size_px) // 2, rows - size_px)
    return SquareWindow(max(0, col_off), max(0, row_off), size_px)


def _rings_px(geometry: BaseGeometry, reader: RasterReader) -> list[npt.NDArray[np.float64]]:
    rings = [ring for part in shapely.get_parts(geometry) for ring in shapely.get_rings(part)]
    return [apply_affine(~reader.transform, shapely.get_coordinates(ring)) for ring in rings]


def _plain(result: ConfigurationResult) -> str:
    return plain(result.configuration.name)
