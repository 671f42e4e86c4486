"""A light model that answers as one or several large ones do, learned on rasters without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from ...models.chips import split_by_block
from ...models.device import choose_device
from ...models.progress import NullProgress, Progress, StepProgress, raise_if_cancelled
from ...models.semantic.card import SegmenterCard, replaces, with_event
from ...models.semantic.package import load_extra, load_segmenter, package_sha256, save_segmenter
from ...models.training_state import Keeper
from ...models.transfer.agreement import Verdict, moved_too_far
from ...models.transfer.distillation import (
    SMALL_DECODER,
    SMALL_ENCODER,
    Distillation,
    Distilled,
    coarseness,
    distil,
    new_student,
    student_card,
)
from ..errors import JobError
from .model_rasters import TargetRaster, read_target_chips
from .page import heading, machine_facts, new_figure, note, page, picture, table, version, write_report
from .unchanged_model import save_unchanged

STUDENTS = ("light", "coarse", "fine")
"""A light network at half the resolution; the teacher's own at half the resolution; a light one at the teacher's."""

LEAST_AGREEMENT = 0.62
"""On ground that they did not learn from, students with 94 % of the teacher's accuracy agree with it to 0.63 and more.

Measured on NAIP's trees, the hardest pair of the study, where one with 88 % agrees to 0.60; on Zanzibar's buildings one
with 66 % agrees to 0.53. The study's own numbers, 0.73 and more, are of ground that its students saw.
"""
_HELD_OUT = 0.2
_MOST_CHIPS = 1200
_LEAST_CHIPS = 10
_READ, _LEARN = 0.1, 0.95


@dataclass(frozen=True, kw_only=True)
class DistillModel:
    """What is distilled.

    `teachers`: packages, one or more of the same bands, classes and resolution. `student`: one of `STUDENTS`. `device`:
    as for `choose_device`. `least_agreement`: a student below this mean IoU with its teachers, 0 to 1, is not kept; 0
    keeps every student. `is_temporary`: every run has another output, so that none can go on with the training of
    another.
    """

    teachers: Sequence[Path]
    rasters: Sequence[TargetRaster]
    output: Path
    student: str = STUDENTS[0]
    least_agreement: float = LEAST_AGREEMENT
    options: Distillation = field(default_factory=Distillation)
    device: str = "auto"
    is_temporary: bool = False

    def __post_init__(self) -> None:
        """Check what is given. Raises `JobError`."""
        if not self.teachers or not self.rasters:
            raise JobError("Distilling needs one or more models and one or more rasters; choose some.")
        if self.student not in STUDENTS:
            raise JobError(f"There is no student '{self.student}'; choose from {', '.join(STUDENTS)}.")
        if any(replaces(self.output, teacher) for teacher in self.teachers):
            raise JobError(f"The student would overwrite its teacher {self.output}; choose another file.")
        if not 0 <= self.least_agreement <= 1:
            raise JobError(f"An agreement of {self.least_agreement:g} does not exist; give a number from 0 to 1.")

    def verdict(self, result: Distilled, card: SegmenterCard) -> Verdict:
        """Whether the student may take the place of its teacher, whose card is `card`.

        Classes may not vanish or take over by the rule for models that learn without labels. The rest of that rule
        would refuse students of usual quality: with 94 % of the accuracy they may agree with themselves a little less,
        and keep two thirds of what a teacher was surest of where objects are small.
        """
        if not self.least_agreement:
            return Verdict(True, "Every student is kept, as was asked for.")
        if result.agreement < self.least_agreement:
            return Verdict(
                False,
                f"A mean IoU of {result.agreement:.3f} with the teacher is less than the {self.least_agreement:g} that "
                "is asked for.",
            )
        change = moved_too_far(result.teacher_shares, result.student_shares, card)
        kept = f"Its mean IoU with the teacher is {result.agreement:.3f}, and no class was lost."
        return Verdict(not change, change or kept)


def distill_model(
    job: DistillModel, *, report_path: Path | None = None, progress: Progress | None = None
) -> tuple[Distilled, Verdict]:
    """Distil and save the student at `output`; a fifth of the blocks of ground is kept to compare both.

    To do no harm, the first teacher is saved there unchanged where the verdict is not to keep the student. After a kill
    or an error a call for the same job goes on with the training. Raises `JobError` for too little ground,
    `ModelError` for models that do not go together, `RasterError`, `Cancelled`; no model is written then.
    """
    progress = progress or NullProgress()
    choice = choose_device(job.device)
    progress.info(choice.reason)
    teachers = [load_segmenter(path).to(choice.name) for path in job.teachers]
    card = replace(_card_of(job, teachers[0].card), made_on=datetime.now(timezone.utc).date().isoformat())
    # Before any raster is read.
    factor = max(coarseness(teacher.card, card) for teacher in teachers)
    # A chip of a size that the student's pixels do not divide is made a little larger.
    seen = replace(teachers[0].card, chip_px=-(-card.chip_px // factor) * factor)
    chips = read_target_chips(
        job.rasters,
        seen,
        n_most=_MOST_CHIPS,
        seed=job.options.seed,
        progress=StepProgress(progress, 0.0, _READ),
    )
    if len(chips) < _LEAST_CHIPS:
        raise JobError(
            f"The rasters hold {len(chips)} chips of {seen.chip_px} px, too few for a student to learn from; give "
            f"more or larger rasters, at least {_LEAST_CHIPS} chips."
        )
    learned, held_out = split_by_block(chips, held_out=_HELD_OUT, seed=job.options.seed)
    progress.info(f"{len(learned)} chips to learn from, {len(held_out)} to compare both models on.")
    student = new_student(card, seed=job.options.seed).to(choice.name)
    with Keeper(job.output, version=version(), is_temporary=job.is_temporary, progress=progress) as keeper:
        result = distil(
            teachers,
            student,
            learned,
            held_out,
            job.options,
            keeper=keeper,
            progress=StepProgress(progress, _READ, _LEARN),
        )
        raise_if_cancelled(progress)
        digests = [package_sha256(path) for path in job.teachers]
        model = result.model
        model.card = with_event(
            replace(
                model.card,
                metrics={"agreement": round(result.agreement, 4), "speedup": round(result.speedup, 2)},
                segadapt_version=version(),
            ),
            "saved as a student",
            sha256_of_teachers=digests,
            rasters=[Path(raster.path).name for raster in job.rasters],
        )
        verdict = job.verdict(result, teachers[0].card)
        text = _report(job, result, verdict, teacher=seen, n_chips=(len(learned), len(held_out)), device=choice.name)
        if verdict.is_kept:
            save_segmenter(model, job.output)
        else:
            save_unchanged(teachers[0].cpu(), job.teachers[0], job.output, extra=load_extra(job.teachers[0]))
        if report_path is not None:
            write_report(text, report_path)
    progress.info(
        f"The student agrees with its teacher on {100 * result.same:.1f} % of the pixels (mean IoU "
        f"{result.agreement:.3f}) and maps the same ground {result.speedup:.1f} times faster."
    )
    if not verdict.is_kept:
        progress.info(_refusal(job, verdict))
    progress.set_fraction(1.0)
    return result, verdict


def _refusal(job: DistillModel, verdict: Verdict) -> str:
    return (
        f"{verdict.reason} So {job.teachers[0].name} is saved unchanged in the student's place, to do no harm; give "
        "more steps, more rasters, or a student of the teacher's network ('coarse')."
    )


def _card_of(job: DistillModel, teacher: SegmenterCard) -> SegmenterCard:
    if job.student == "coarse":
        if teacher.gsd_m is None:
            raise JobError(
                f"'{teacher.name}' does not know its resolution, so its student cannot have half of it; choose 'light'."
            )
        return student_card(teacher, encoder=teacher.encoder, decoder=teacher.decoder)
    if job.student == "fine":
        return student_card(teacher, encoder=SMALL_ENCODER, decoder=SMALL_DECODER, coarser=1)
    return student_card(teacher)


def _report(
    job: DistillModel,
    result: Distilled,
    verdict: Verdict,
    *,
    teacher: SegmenterCard,
    n_chips: tuple[int, int],
    device: str,
) -> str:
    student = result.model.card
    names = ", ".join(path.name for path in job.teachers)
    rows = [
        ("", "Teacher" if len(job.teachers) == 1 else "Teachers together", "Student"),
        ("Network", f"{teacher.decoder} on {teacher.encoder}", f"{student.decoder} on {student.encoder}"),
        ("Metres per pixel", _metres(teacher), _metres(student)),
        ("Parameters", f"{result.n_teacher_parameters:,}", f"{result.n_student_parameters:,}"),
        ("Milliseconds for the ground of a chip", f"{1e3 * result.teacher_s:.1f}", f"{1e3 * result.student_s:.1f}"),
    ]
    figure, axes = new_figure("Step", "Loss")
    n_steps, n = job.options.n_steps, len(result.losses)
    axes.plot([(place + 1) * n_steps / n for place in range(n)], result.losses)
    return page(
        f"Distillation: {job.output.name}",
        [
            heading("What was lost, and how much faster it is"),
            note(
                f"The student was kept. {verdict.reason}"
                if verdict.is_kept
                else f"The student was not kept. {_refusal(job, verdict)}"
            ),
            table(
                [
                    ("Same class", f"{100 * result.same:.1f} % of the pixels"),
                    ("Mean IoU of the student's labels against the teacher's", f"{result.agreement:.3f}"),
                    ("Speed for the same ground", f"{result.speedup:.1f} times the teacher's"),
                ]
            ),
            table(_shares(result), has_head=True),
            note(
                f"Compared on {n_chips[1]} chips of {teacher.chip_px} px in blocks of ground that the student did not "
                "learn from, at the teacher's resolution. Agreement is not accuracy: where the teacher is wrong, a "
                "good student is wrong as well; evaluate both with labels where you have some. Seconds are medians of "
                "the model alone, one window at a time in turns, windows of as many pixels for both."
            ),
            heading("Both models"),
            table(rows, has_head=True),
            heading("How it learned"),
            picture(figure, "Loss against step"),
            heading("What was run"),
            table(
                [
                    ("Teachers", names),
                    ("Rasters", ", ".join(Path(raster.path).name for raster in job.rasters)),
                    ("Student", job.student),
                    ("Chips", f"{n_chips[0]} to learn from, {n_chips[1]} to compare on"),
                    ("Steps, batch, seed", f"{n_steps}, {job.options.batch}, {job.options.seed}"),
                    ("Temperature", f"{job.options.temperature:g}"),
                    *machine_facts(device),
                ]
            ),
        ],
    )


def _shares(result: Distilled) -> list[tuple[str, ...]]:
    shares = zip(result.model.card.class_names, result.teacher_shares, result.student_shares, strict=True)
    return [
        ("Class", "Share in the teacher's map", "In the student's"),
        *((name, f"{100 * was:.1f} %", f"{100 * now:.1f} %") for name, was, now in shares),
    ]


def _metres(card: SegmenterCard) -> str:
    return "unknown" if card.gsd_m is None else f"{card.gsd_m:g}"
