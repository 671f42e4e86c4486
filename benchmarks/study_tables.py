"""The tables of the study, from the rows that it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from segadapt.benchmarks.study_data import PAIRS
from segadapt.models.transfer.agreement import Agreement
from segadapt.models.transfer.shift import DomainShift

# A share of a smaller gap says nothing.
_LEAST_GAP = 0.03
# What a result may lose before it counts as harm.
_HARM = 0.01


def append_row(row: dict[str, Any], path: Path) -> None:
    """Add a row to a file, on a line of its own where a kill cut the last one short."""
    is_torn = path.exists() and not path.read_text().endswith("\n")
    with path.open("a") as file:
        file.write(("\n" if is_torn else "") + json.dumps(row) + "\n")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a file; lines that a kill cut short do not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def overview(names: Sequence[str], out: Path) -> Iterator[str]:
    """Markdown lines: what each row gains on each pair, in points of mean IoU against the source model.

    Means over the seeds, then over the pairs that have the row; last with what the rule of no harm refused as nothing
    gained, where it judged.
    """
    found = {name: by_seed for name in names if (by_seed := _by_seed(name, out))}
    yield "| points of mean IoU | " + " | ".join(found) + " | mean | under the rule of no harm |"
    yield "|---" * (len(found) + 3) + "|"
    for what in dict.fromkeys(key for by_seed in found.values() for rows in by_seed for key in rows):
        seeds = [[rows for rows in by_seed if what in rows] for by_seed in found.values()]
        if what == "source only":
            values = [np.mean([rows[what]["mean_iou"] for rows in by_seed]) for by_seed in seeds]
            yield "| " + " | ".join([what, *(f"{value:.3f}" for value in (*values, np.mean(values))), ""]) + " |"
            continue
        gains = [np.array([rows[what]["mean_iou"] - rows["source only"]["mean_iou"] for rows in one]) for one in seeds]
        kept = [[rows[what].get("kept") for rows in one] for one in seeds]
        cells = [f"{100 * one.mean():+.1f}" if one.size else "" for one in gains]
        cells.append(f"{100 * np.mean([one.mean() for one in gains if one.size]):+.1f}")
        ruled = [one * verdicts for one, verdicts in zip(gains, kept, strict=True) if one.size and None not in verdicts]
        cells.append(f"{100 * np.mean([one.mean() for one in ruled]):+.1f}" if ruled else "")
        yield f"| {what} | " + " | ".join(cells) + " |"


def tables(names: Sequence[str], out: Path) -> Iterator[str]:
    """Markdown lines: for each pair the mean over the seeds of each row, their spread, the share of the gap closed."""
    for name in names:
        by_seed = _by_seed(name, out)
        if not by_seed:
            continue
        seconds = np.mean([rows["source only"]["seconds"] for rows in by_seed])
        yield f"**{PAIRS[name].__doc__}** Seeds: {len(by_seed)}.{_shift(by_seed)} Time 1.00 is {seconds:.0f} s."
        yield ""
        yield "| | mean IoU | smallest to largest | interval by blocks | of the gap | kept | time |"
        yield "|---|---|---|---|---|---|---|"
        for what in dict.fromkeys(key for rows in by_seed for key in rows):
            yield _line(what, [rows for rows in by_seed if what in rows])
        yield ""
        for sentence in _verdicts(by_seed):
            yield sentence
            yield ""


def _by_seed(name: str, out: Path) -> list[dict[str, dict[str, Any]]]:
    """The rows of each seed of a pair by their names, of the seeds that are far enough to be compared."""
    by_seed = [{row["row"]: row for row in rows_of(file)} for file in sorted(out.glob(f"{name}_[0-9]*.jsonl"))]
    return [rows for rows in by_seed if {"source only", "full labels"} <= set(rows)]


def _shift(by_seed: Sequence[dict[str, Any]]) -> str:
    """How far *Measure domain shift* finds the target, in a sentence; empty where that was not measured."""
    measured = [rows["source only"]["shift"] for rows in by_seed if "shift" in rows["source only"]]
    if not measured:
        return ""
    found = [DomainShift(**{**one, "agreement": Agreement(**one["agreement"])}) for one in measured]
    overall, agreement = np.mean([(one.overall, one.agreement.score) for one in found], axis=0)
    return f" Domain shift: {overall:.2f}; agreement of the source model: {agreement:.2f}."


def _verdicts(by_seed: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How often the rule of no harm was right, a sentence for results with rehearsal and one for those without."""
    for name, is_rehearsed in (("with the source rehearsed", True), ("without", False)):
        judged = [
            (row["kept"], row["mean_iou"] - rows["source only"]["mean_iou"])
            for rows in by_seed
            for what, row in rows.items()
            if "kept" in row and ("rehearsed" in what) == is_rehearsed
        ]
        if not judged:
            continue
        kept = [gain for is_kept, gain in judged if is_kept]
        refused = [gain for is_kept, gain in judged if not is_kept]
        yield (
            f"Of {len(judged)} results {name} the rule of no harm kept {len(kept)}, "
            f"{sum(gain > 0 for gain in kept)} better than the source model and "
            f"{sum(gain < -_HARM for gain in kept)} worse by more than a point; of {len(refused)} refused "
            f"{sum(gain > 0 for gain in refused)} were better."
        )


def _line(what: str, by_seed: list[dict[str, Any]]) -> str:
    rows = [rows[what] for rows in by_seed]
    values = np.array([row["mean_iou"] for row in rows])
    low = np.array([rows["source only"]["mean_iou"] for rows in by_seed])
    high = np.array([rows["full labels"]["mean_iou"] for rows in by_seed])
    times = [row["seconds"] / rows["source only"]["seconds"] for row, rows in zip(rows, by_seed, strict=True)]
    kept = f"{sum(row['kept'] for row in rows)} of {len(rows)}" if "kept" in rows[0] else ""
    gap = high.mean() - low.mean()
    closed = f"{100 * (values.mean() - low.mean()) / gap:.0f} %" if gap > _LEAST_GAP else ""
    more = f" ({np.mean([row['speedup'] for row in rows]):.1f} times as fast)" if "speedup" in rows[0] else ""
    interval = f"{np.mean([row['low'] for row in rows]):.3f} to {np.mean([row['high'] for row in rows]):.3f}"
    return (
        f"| {what}{more} | {values.mean():.3f} | {values.min():.3f} to {values.max():.3f} | {interval} | {closed} | "
        f"{kept} | {np.mean(times):.2f} |"
    )
