"""The benchmark of adaptation: a run that was stopped goes on, and its tables say what the rows say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from segadapt.benchmarks import study
from segadapt.benchmarks.study import Size, Study
from segadapt.benchmarks.study_tables import append_row, overview, rows_of, tables
from segadapt.models.chips import Chips
from segadapt.models.transfer import shift


def row(what: str, mean_iou: float, **more: Any) -> dict[str, Any]:
    """A row as the study writes it."""
    return {"row": what, "mean_iou": mean_iou, "low": mean_iou - 0.1, "high": mean_iou + 0.1, "seconds": 5.0, **more}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of one test chip that was killed while it wrote its second row."""
    labels = np.zeros((1, 8, 8), np.uint8)
    test = Chips(
        np.zeros((1, 3, 8, 8), np.uint8), labels, labels == 0, np.zeros(1, np.int64), np.zeros((1, 2), np.int64)
    )
    monkeypatch.setattr(study, "_confusion", lambda *_: np.diag([3, 1]))
    rows = [json.dumps(row(what, 0.5)) for what in ("first", "second")]
    (tmp_path / "pair_0.jsonl").write_text(f"{rows[0]}\n{rows[1][:20]}")
    pair: Any = SimpleNamespace(name="pair", test=test, gsd_m=0.5)
    return Study(pair, 0, Size(), tmp_path, "cpu", "")


def test_a_run_that_was_killed_goes_on_where_it_was(begun: Study, tmp_path: Path) -> None:
    """The row that was cut short is measured again, and neither it nor the next one is lost."""
    measured = []
    for what in ("first", "second", "third"):
        begun.run(what, lambda what=what: (measured.append(what), {"fact": what}))  # type: ignore[misc]
    assert measured == ["second", "third"]
    rows = rows_of(tmp_path / "pair_0.jsonl")
    assert [(one["row"], one["mean_iou"], one.get("fact")) for one in rows] == [
        ("first", 0.5, None),
        ("second", 1.0, "second"),
        ("third", 1.0, "third"),
    ]


@pytest.mark.parametrize(
    ("name", "told", "n_won", "points"),
    [
        ("masked_consistency, source rehearsed", "on all where labelled rasters of the source were rehearsed", 6, 3.1),
        ("masked_consistency", "on five without them", 5, 2.6),
        ("self_training, source rehearsed", "self_training with them on all", 6, 2.2),
        ("self_training, source rehearsed, 3 times the steps", "with 240 steps in place of 80 on five", 5, 4.3),
        ("self_training", "without them on four", 4, 0.8),
        ("quantile", "", 1, -2.1),
    ],
)
def test_what_is_advised_is_what_was_measured(name: str, told: str, n_won: int, points: float) -> None:
    """How often a row was above the source model, and by how much, as *Measure domain shift* and the help say it."""
    gains: dict[str, list[float]] = {}
    for file in (Path(__file__).parents[1] / "docs" / "study").glob("*.jsonl"):
        scores = {one["row"]: one["mean_iou"] for one in rows_of(file)}
        gains.setdefault(file.stem[:-2], []).append(100 * (scores[name] - scores["source only"]))
    means = [float(np.mean(of_pair)) for of_pair in gains.values()]
    assert (len(means), sum(gain > 0 for gain in means)) == (6, n_won)
    assert round(float(np.mean(means)), 1) == points
    if told:
        said = shift._MEASURED[shift._MEASURED.index(told) :]
        assert said.partition("(")[2].startswith(f"{points:g}")


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """The lines of two seeds."""
    for seed in (0, 1):
        file = tmp_path / f"banepa_{seed}.jsonl"
        append_row(row("source only", 0.4), file)
        append_row(row("full labels", 0.6 + 0.1 * seed), file)
        append_row(row("quantile", 0.45 + 0.1 * seed, kept=True), file)
        append_row(row("entropy", 0.35 + 0.1 * seed, kept=False), file)
        append_row(row("reinhard", 0.38, kept=seed == 0), file)
        append_row(row("fourier, source rehearsed", 0.395, kept=True), file)
    # A seed that is not far enough to be compared.
    append_row(row("source only", 0.9), tmp_path / "banepa_2.jsonl")
    return list(tables(["banepa"], tmp_path))


def test_the_share_of_the_gap_is_that_of_the_means(table: list[str]) -> None:
    """0.4 to 0.65: 0.5 closes two fifths of it."""
    assert table[0].endswith("Seeds: 2. Time 1.00 is 5 s.")
    (line,) = [line for line in table if line.startswith("| quantile |")]
    assert line == "| quantile | 0.500 | 0.450 to 0.550 | 0.400 to 0.600 | 40 % | 2 of 2 | 1.00 |"


def test_a_gap_that_is_hardly_there_has_no_share(tmp_path: Path) -> None:
    """A share of it says nothing."""
    for what, mean_iou in (("source only", 0.6), ("full labels", 0.62), ("quantile", 0.61)):
        append_row(row(what, mean_iou), tmp_path / "banepa_0.jsonl")
    (line,) = [line for line in tables(["banepa"], tmp_path) if line.startswith("| quantile |")]
    assert line.split("|")[5].strip() == ""


def test_verdicts_of_the_rule_are_counted(table: list[str]) -> None:
    """Half a point less is no harm, two points are."""
    said = "\n".join(table)
    assert (
        "Of 2 results with the source rehearsed the rule of no harm kept 2, 0 better than the source model and 0 worse "
        "by more than a point; of 0 refused 0 were better."
    ) in said
    assert (
        "Of 6 results without the rule of no harm kept 3, 2 better than the source model and 1 worse by more than a "
        "point; of 3 refused 1 were better."
    ) in said


def test_the_overview_tells_gains_and_what_the_rule_leaves_of_them(table: list[str], tmp_path: Path) -> None:
    """Reinhard loses two points on both seeds and is refused on one of them."""
    assert table
    append_row(row("source only", 0.5), tmp_path / "zanzibar_0.jsonl")
    append_row(row("full labels", 0.7), tmp_path / "zanzibar_0.jsonl")
    append_row(row("quantile", 0.44, kept=False), tmp_path / "zanzibar_0.jsonl")
    lines = list(overview(["banepa", "zanzibar"], tmp_path))
    assert lines[0] == "| points of mean IoU | banepa | zanzibar | mean | under the rule of no harm |"
    assert "| source only | 0.400 | 0.500 | 0.450 |  |" in lines
    assert "| quantile | +10.0 | -6.0 | +2.0 | +5.0 |" in lines
    assert "| reinhard | -2.0 |  | -2.0 | -1.0 |" in lines
