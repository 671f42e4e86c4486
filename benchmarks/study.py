"""The study of docs/adaptation.md: how far each way of adapting goes, on real pairs of domains, with three seeds.

    make study                                  all pairs, three seeds
    make study ARGS="--pairs banepa --seeds 0"  one pair, one seed
    make study ARGS="--rows 'source|student'"   rows whose names match a regular expression
    make study ARGS="--table"                   the tables of what is there

Each row is written when it is measured, into one file for each pair and seed; a run that was stopped goes on where it
was. A GPU is used where there is one, with more steps; several `--jobs` share it, as small networks leave it idle.
`--encoder` names any encoder of timm.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segadapt.benchmarks.study_data import CHIP_PX, DATA, PAIRS, Pair
from segadapt.benchmarks.study_tables import append_row, overview, rows_of, tables
from segadapt.models.chips import Chips, joined_chips, split_by_block
from segadapt.models.metrics import bootstrap_interval, class_ious, confusion_matrix, mean_iou
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import SegmenterCard, SegmenterClass
from segadapt.models.semantic.package import load_extra, load_segmenter, save_segmenter
from segadapt.models.semantic.prediction import device_of, evaluate_chips
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, Segmenter, build_segmenter, load_published_encoder
from segadapt.models.training import TrainingOptions, fit
from segadapt.models.transfer.agreement import Agreement, judge, measure_agreement, surest_kept
from segadapt.models.transfer.base import Problem
from segadapt.models.transfer.chain import adapt_in_order, names_of
from segadapt.models.transfer.distillation import Distillation, distil, new_student, speeds_of, student_card
from segadapt.models.transfer.fine_tuning import FineTuning, fine_tune, usual_training
from segadapt.models.transfer.selection import REGION_PX, labelled_by, select_regions
from segadapt.models.transfer.shift import measure_shift
from segadapt.models.transfer.statistics import source_statistics
from segadapt.processing.jobs.adapt_model import AdaptJob
from segadapt.processing.jobs.chip_segments import superpixels
from segadapt.processing.jobs.domain_shift import MOST_CHIPS
from segadapt.processing.jobs.select_samples import USUAL_REGION_PX
from torch.nn import functional

# Chains, and whether labelled chips of the source are rehearsed.
METHODS = (
    ("quantile", False),
    ("reinhard", False),
    ("norm_statistics", False),
    ("entropy", False),
    ("entropy_diversity", False),
    ("self_training", False),
    ("masked_consistency", False),
    ("masked_image+self_training", False),
    ("fourier", True),
    ("self_training", True),
    ("masked_consistency", True),
    ("masked_image+self_training", True),
)
BUDGETS = (0.001, 0.005, 0.01, 0.05)
STRATEGIES = ("random", "clusters", "hybrid")
# What is varied beside strategies and budgets starts from this.
USUAL_BUDGET, USUAL_STRATEGY = 0.01, "clusters"
# The row that starts from an adapted model: by what. And what is varied in how far its weights go, without the source
# and with it.
FIRST = "masked_consistency"
SOURCE_WEIGHTS = ((3 / 4, False), (2 / 3, False), (1 / 2, False), (0.0, False), (2 / 3, True), (1 / 3, True))
# What is also run with more steps, and how many times as many.
LONGER, LONGER_BY = ("self_training", "masked_consistency"), 3
# The method whose pseudo-labels are also cleaned by segments.
CLEANED = "self_training"
# Which layers learn beside all of them: from few labels, and from all.
LAYERS = ("decoder", "head", "norm", "lora", "tokens", "last_blocks")
LAYERS_OF_ALL_LABELS = ("decoder", "head")
# Side of the squares that *Select samples* takes; the other rows have smaller ones.
SHIPPED_PX = USUAL_REGION_PX["squares"]


@dataclass(frozen=True)
class Size:
    """How much is computed: steps of training on the source, of adaptation, of fine-tuning and of distillation.

    `strategies`: how the samples of each budget are chosen.
    """

    source: int = 300
    adapt: int = 80
    tune: int = 80
    distil: int = 900
    encoder: str = DEFAULT_ENCODER
    strategies: tuple[str, ...] = STRATEGIES[:2]

    def times(self, factor: int) -> Size:
        """The same with `factor` times the steps."""
        return replace(
            self,
            source=self.source * factor,
            adapt=self.adapt * factor,
            tune=self.tune * factor,
            distil=self.distil * factor,
        )


class Study:
    """The rows of one pair and seed."""

    def __init__(self, pair: Pair, seed: int, size: Size, out: Path, device: str, wanted: str) -> None:
        self.pair, self.seed, self.size, self.device = pair, seed, size, device
        self._wanted = re.compile(wanted)
        self._out = out
        self._path = out / f"{pair.name}_{seed}.jsonl"
        self._done = {row["row"] for row in rows_of(self._path)}
        self._source: Segmenter | None = None
        self.statistics: dict[str, torch.Tensor] = {}
        self._judged: tuple[Any, Agreement] | None = None

    @property
    def source(self) -> Segmenter:
        """The model of the source domain, trained once for all pairs with that source."""
        if self._source is None:
            path = self._out / f"source_{self.pair.source_name}_{self.seed}.safetensors"
            # Pairs with one source train it once: whoever comes second waits.
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._train_source(path)
            self._source = load_segmenter(path).to(self.device)
            self.statistics = load_extra(path)
        return self._source

    def new_model(self, *, is_published: bool = True) -> Segmenter:
        """A model with the encoder's published weights or random ones; decoder and head follow the seed."""
        pixels = self.pair.source.pixels
        card = SegmenterCard(
            name=self.pair.source_name,
            decoder="fpn",
            encoder=self.size.encoder,
            bands=self.pair.bands,
            classes=tuple(SegmenterClass(n, *one) for n, one in enumerate(self.pair.classes)),
            gsd_m=self.pair.gsd_m,
            chip_px=CHIP_PX,
            mean=tuple(pixels.mean((0, 2, 3)).tolist()),
            std=tuple(pixels.std((0, 2, 3)).tolist()),
            licence="for the study alone",
            made_on=time.strftime("%Y-%m-%d"),
            segadapt_version="study",
        )
        torch.manual_seed(self.seed)
        model = build_segmenter(card)
        if is_published:
            load_published_encoder(model)
        return model.to(self.device)

    def run(self, what: str, measure: Callable[[], tuple[Segmenter, dict[str, Any]]]) -> None:
        """Measure a row on the test chips, unless it is there or not wanted."""
        if what in self._done or not self._wanted.search(what):
            return
        start = time.perf_counter()
        model, facts = measure()
        taken = time.perf_counter() - start
        blocks = [
            _confusion(model, self.pair.test.take(np.flatnonzero(self.pair.test.blocks == block)), self.pair.gsd_m)
            for block in np.unique(self.pair.test.blocks)
        ]
        total = np.sum(blocks, axis=0)
        low, high = bootstrap_interval(blocks)
        row = {
            "row": what,
            "mean_iou": mean_iou(total),
            "low": low,
            "high": high,
            "ious": class_ious(total).tolist(),
            "seconds": taken,
            **facts,
        }
        append_row(row, self._path)
        print(f"{self.pair.name} {self.seed}: {what}: {row['mean_iou']:.3f} in {taken:.0f} s", flush=True)

    def _train_source(self, path: Path) -> None:
        model = self.new_model()
        start = time.perf_counter()
        fit(
            model,
            self.pair.source,
            self.pair.held_out,
            TrainingOptions(n_steps=self.size.source, n_checks=5, patience=None, seed=self.seed),
        )
        on_card, tensors = source_statistics(model, self.pair.source)
        seconds = {"seconds": time.perf_counter() - start}
        model.card = replace(model.card, statistics=on_card, metrics=seconds)
        save_segmenter(model, path, extra=tensors)

    def rows(self) -> None:
        """Measure everything, in the order of the tables."""
        self.run("source only", self._source_only)
        self.run("full labels", lambda: self._tuned(self.pair.pool))
        self.run("target alone", self._target_alone)
        for chain, is_rehearsed in METHODS:
            name = f"{chain}, source rehearsed" if is_rehearsed else chain
            self.run(name, partial(self._unlabelled, chain, is_rehearsed=is_rehearsed))
        for weight, is_rehearsed in SOURCE_WEIGHTS:
            name = f"{FIRST}, source rehearsed" if is_rehearsed else FIRST
            self.run(
                f"{name}, {100 - 100 * weight:.0f} % of the way",
                partial(self._unlabelled, FIRST, is_rehearsed=is_rehearsed, source_weight=weight),
            )
        for chain in LONGER:
            self.run(
                f"{chain}, source rehearsed, {LONGER_BY} times the steps",
                partial(self._unlabelled, chain, is_rehearsed=True, factor=LONGER_BY),
            )
        for budget in BUDGETS:
            for strategy in self.size.strategies:
                self.run(f"{strategy} {100 * budget:g} %", partial(self._few, budget, strategy))
        self.run("student", self._student)
        for name, is_rehearsed in ((CLEANED, False), (f"{CLEANED}, source rehearsed", True)):
            cleaned = partial(self._unlabelled, CLEANED, is_rehearsed=is_rehearsed, is_cleaned=True)
            self.run(f"{name}, cleaned by segments", cleaned)
        self.run("target alone, from random weights", lambda: self._target_alone(is_published=False))
        usual = f"{USUAL_STRATEGY} {100 * USUAL_BUDGET:g} %"
        self.run(f"{usual}, adapted first", self._adapted_then_few)
        self.run(f"{usual}, squares of {SHIPPED_PX} px", lambda: self._few(region_px=SHIPPED_PX))
        self.run(f"{usual}, segments", lambda: self._few(is_segments=True))
        for layers in LAYERS:
            self.run(f"{usual}, {layers}", partial(self._few, layers=layers))
        self.run(
            f"{usual}, {LAYERS[0]}, squares of {SHIPPED_PX} px, nothing rehearsed",
            lambda: self._few(layers=LAYERS[0], region_px=SHIPPED_PX, is_rehearsed=False),
        )
        for layers in LAYERS_OF_ALL_LABELS:
            self.run(f"full labels, {layers}", partial(self._tuned, self.pair.pool, layers=layers))

    def _source_only(self) -> tuple[Segmenter, dict[str, Any]]:
        """The source model, and how far *Measure domain shift* finds the target from it."""
        chips = self.pair.unlabelled
        chips = chips.take(np.unique(np.linspace(0, len(chips) - 1, MOST_CHIPS).round()).astype(np.intp))
        shift = measure_shift(
            self.source, chips, statistics=self.statistics, segments=superpixels(chips), seed=self.seed
        )
        return self.source, {"seconds": self.source.card.metrics["seconds"], "shift": asdict(shift)}

    def _tuned(
        self, chips: Chips, *, start: Segmenter | None = None, layers: str = "full", is_rehearsed: bool = True
    ) -> tuple[Segmenter, dict[str, Any]]:
        """`layers` learn from the labels, usually all of them and with the source's chips rehearsed.

        No label is held out: the smallest budgets have none to spare, and no state is chosen.
        """
        done = fine_tune(
            start or self.source,
            chips,
            chips,
            FineTuning(layers=layers),
            replace(usual_training(layers, n_steps=self.size.tune, seed=self.seed), n_checks=1),
            replay=self.pair.source if is_rehearsed else None,
        )
        return done.model, {"trainable": done.n_trainable, "labelled_px": chips.n_labelled_px()}

    def _unlabelled(self, chain: str, *, is_rehearsed: bool, **more: Any) -> tuple[Segmenter, dict[str, Any]]:
        """Adapt, and judge on ground that was not learned from, as *Adapt model* does."""
        start = time.perf_counter()
        chips, judged = split_by_block(self.pair.unlabelled, held_out=AdaptJob.held_out, seed=self.seed)
        adapted = self._adapt(chain, chips, is_rehearsed=is_rehearsed, **more)
        seconds = time.perf_counter() - start
        if self._judged is None:
            segments = superpixels(judged)
            self._judged = segments, measure_agreement(self.source, judged, segments=segments)
        segments, before = self._judged
        after = measure_agreement(adapted, judged, segments=segments)
        kept = surest_kept(self.source, adapted, judged)
        verdict = judge(before, after, self.source.card, is_rehearsed=is_rehearsed, kept=kept)
        return adapted, {
            "kept": verdict.is_kept,
            "before": asdict(before),
            "after": asdict(after),
            "surest_kept": kept,
            "seconds": seconds,
        }

    def _adapt(
        self,
        chain: str,
        chips: Chips,
        *,
        is_rehearsed: bool,
        source_weight: float | None = None,
        is_cleaned: bool = False,
        factor: int = 1,
    ) -> Segmenter:
        adapted = copy.deepcopy(self.source)
        problem = Problem(
            target=chips,
            source=self.pair.source if is_rehearsed else None,
            statistics=self.statistics,
            segments=superpixels(chips) if is_cleaned else None,
            n_steps=self.size.adapt * factor,
            seed=self.seed,
            # All the way with rehearsal: how much less is worth has rows of its own.
            source_weight=0.0 if is_rehearsed and source_weight is None else source_weight,
        )
        adapt_in_order(adapted, problem, names_of(chain), NullProgress())
        return adapted

    def _adapted_then_few(self) -> tuple[Segmenter, dict[str, Any]]:
        return self._few(start=self._adapt(FIRST, self.pair.unlabelled, is_rehearsed=True))

    def _few(
        self,
        budget: float = USUAL_BUDGET,
        strategy: str = USUAL_STRATEGY,
        *,
        start: Segmenter | None = None,
        region_px: int = REGION_PX,
        is_segments: bool = False,
        **tuning: Any,
    ) -> tuple[Segmenter, dict[str, Any]]:
        pool = self.pair.pool
        start = start or self.source
        segments = superpixels(pool, size_px=region_px**2) if is_segments else None
        regions = select_regions(
            start,
            pool.unlabelled(),
            strategy=strategy,
            region_px=region_px,
            segments=segments,
            budget_px=round(budget * int(pool.valid.sum())),
            seed=self.seed,
        )
        model, facts = self._tuned(labelled_by(pool, regions, segments=segments), start=start, **tuning)
        return model, {"regions": len(regions), **facts}

    def _target_alone(self, *, is_published: bool = True) -> tuple[Segmenter, dict[str, Any]]:
        model = self.new_model(is_published=is_published)
        options = TrainingOptions(n_steps=2 * self.size.tune, n_checks=1, patience=None, seed=self.seed)
        fit(model, self.pair.pool, None, options)
        return model, {"labelled_px": self.pair.pool.n_labelled_px()}

    def _student(self) -> tuple[Segmenter, dict[str, Any]]:
        """A light student of the model fine-tuned with all labels, taught on unlabelled chips of the target."""
        teacher, _ = self._tuned(self.pair.pool)
        card = student_card(teacher.card)
        done = distil(
            [teacher],
            new_student(card, seed=self.seed).to(self.device),
            joined_chips([self.pair.unlabelled, self.pair.source.unlabelled()]),
            self.pair.pool.unlabelled(),
            Distillation(n_steps=self.size.distil, seed=self.seed),
        )
        # A light model is for machines without a GPU, which would wait for its many small layers anyway.
        teacher_s, student_s = speeds_of([copy.deepcopy(one).cpu() for one in (teacher, done.model)], self.pair.pool)
        return done.model, {"speedup": teacher_s / student_s, "agreement": done.agreement}


def _confusion(model: Segmenter, chips: Chips, gsd_m: float | None) -> Any:
    """Confusion matrix on chips of `gsd_m`; a model of a coarser resolution sees means of pixels."""
    if model.card.gsd_m == gsd_m or gsd_m is None or model.card.gsd_m is None:
        return evaluate_chips(model, chips)
    factor = round(model.card.gsd_m / gsd_m)
    pixels = torch.from_numpy(chips.pixels).to(device_of(model)).float()
    with torch.inference_mode():
        logits = model(functional.avg_pool2d(pixels, factor))
        labels = functional.interpolate(logits, scale_factor=factor, mode="bilinear").argmax(1)
    return confusion_matrix(chips.labels, labels.cpu().numpy().astype(np.uint8), n_classes=len(model.card.classes))


def measure(name: str, seed: int, size: Size, out: Path, device: str, wanted: str) -> None:
    """All rows of one pair and seed, on one thread: more processes beside each other are faster than more threads."""
    torch.set_num_threads(1)
    Study(PAIRS[name](), seed, size, out, device, wanted).rows()


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("study-output"), help="folder of rows and source models")
    parser.add_argument("--jobs", type=int, help="processes beside each other (default: one per core, on a GPU 1)")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="name of a timm encoder")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=Size.strategies)
    parser.add_argument("--more", type=int, default=0, help="factor of all steps (default: 1, on a GPU 4)")
    parser.add_argument("--rows", default="", help="regular expression: only rows with such names")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size(encoder=chosen.encoder, strategies=tuple(chosen.strategies))
    size = size.times(chosen.more or (4 if device == "cuda" else 1))
    if not chosen.table:
        if not DATA.is_dir():
            parser.exit(2, f"No labelled imagery in {DATA}; set SEGADAPT_DATA to its folder (docs/adaptation.md).\n")
        jobs = chosen.jobs or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            started = [
                pool.submit(measure, name, seed, size, chosen.out, device, chosen.rows)
                for seed in chosen.seeds
                for name in chosen.pairs
            ]
            for one in started:
                one.result()
    print("\n".join([*overview(chosen.pairs, chosen.out), "", *tables(chosen.pairs, chosen.out)]))


if __name__ == "__main__":
    main()
