"""What the page "Adapt" says, in words that need no knowledge of methods. Pure text, no Qt."""

from __future__ import annotations

import html
import math
from enum import Enum
from typing import Any

from ..models.semantic.card import SegmenterCard

SHIFT, ADAPT, SELECT, TUNE, MAP, JUDGE = STEPS = ("shift", "adapt", "select", "tune", "map", "judge")
"""The steps after the choice of model and image, in their order."""

Results = dict[str, Any]
"""Outputs of an algorithm by name, and what the page adds: `MODEL` that was used, `KEPT` the model that is valid."""

IS_STOPPED = "IS_STOPPED"
"""Among the results of a run that was stopped and has saved the best so far."""

NEAR = "near"

WARNING_COLOUR = "#b8560f"
"""Reads well on light and on dark."""

_METHODS = {
    "quantile": "matching its colours",
    "reinhard": "matching its brightness and contrast",
    "norm_statistics": "getting used to its look",
    "self_training": "learning from the model's own sure answers",
    "entropy": "growing surer of it",
    "entropy_diversity": "growing surer of it",
    "masked_consistency": "learning from its own sure answers, also behind masks",
    "masked_image": "getting used to its patterns",
    "fourier": "showing the old images in its colours",
}
_LEVELS = {NEAR: "Near", "moderate": "Some way off", "far": "Far"}
# The model sees less than it was trained on from so much coarser pixels on.
_COARSER = 1.5


class Mark(Enum):
    """How a step stands: the sign in front of it, and the word for it."""

    LATER = ("○", "to do")
    NEXT = ("▶", "to do next")
    RUNNING = ("…", "running")
    DONE = ("✓", "done")
    NOT_NEEDED = ("-", "not needed")
    FAILED = ("!", "did not work")


TO_DO = {
    SHIFT: "Compares its colours, and what the model sees in it, with the images that the model was trained on.",
    ADAPT: "The model gets used to the image by itself. The result is kept only if it is better.",
    SELECT: "Marks the places whose classes would teach the model most.",
    TUNE: "The model learns from the places that you gave a class. The result is kept only if it is better.",
    MAP: "Gives every pixel its class, as a new layer of the project.",
    JUDGE: "Compares the models, before and now, where you know the truth.",
}


def card_line(card: SegmenterCard, *, n_bands: int | None, gsd_m: float | None) -> tuple[str, str]:
    """Describe a model in a line, and say in a sentence what does not fit an image; "" where all does.

    `n_bands` of the image, None without one; `gsd_m`: its metres per pixel, None where they are not known.
    """
    names = ", ".join(card.class_names)
    scale = f"{_metres(card.gsd_m)} per pixel" if card.gsd_m else "any resolution"
    line = f"{names} · {len(card.bands)} {'band' if len(card.bands) == 1 else 'bands'} · {scale}"
    problems = []
    if n_bands is not None and n_bands < len(card.bands):
        wanted = ", ".join(card.bands)
        problems.append(f"The image has {n_bands} of the {len(card.bands)} bands that the model needs ({wanted}).")
    elif n_bands is not None and n_bands > len(card.bands) != 3:
        problems.append(
            f"Of the image's {n_bands} bands those called {', '.join(card.bands)} are used where it has them all, else "
            f"the first {len(card.bands)}."
        )
    if card.gsd_m and gsd_m and gsd_m > _COARSER * card.gsd_m:
        problems.append(
            f"The image is coarser ({_metres(gsd_m)}) than what the model knows ({_metres(card.gsd_m)}): "
            "small things may be missed."
        )
    return line, " ".join(problems)


def fits(card: SegmenterCard, *, n_bands: int) -> bool:
    """Say whether an image has enough bands for a model."""
    return n_bands >= len(card.bands)


def method_words(chain: str) -> str:
    """Say what a chain of methods does, e.g. "quantile+self_training"."""
    return ", then ".join(_METHODS.get(name, name.replace("_", " ")) for name in chain.split("+"))


def done_text(step: str, result: Results, *, n_with_class: int = 0) -> str:
    """Say what a step gave. `n_with_class`: how many of the places have a class."""
    if step == SHIFT:
        return _shift_text(result)
    if step == ADAPT:
        change = f"agreement {_change(result, 'AGREEMENT_BEFORE', 'AGREEMENT_AFTER')}"
        return _verdict(change, is_kept=bool(result.get("IS_ADAPTED")))
    if step == SELECT:
        asked = (
            f"{int(result.get('COUNT', 0))} places ({result.get('AREA_M2', 0.0):,.0f} m²), {n_with_class} have a class."
        )
        return f"{asked} Choose a class (keys 1 to 9), point at a place and press K, or outline every object in it."
    if step == TUNE:
        change = f"mean IoU {_change(result, 'MEAN_IOU_BEFORE', 'MEAN_IOU_AFTER')} on labels held out"
        verdict = _verdict(change, is_kept=bool(result.get("IS_ADAPTED")))
        stopped = "Stopped, with the best so far. " if result.get(IS_STOPPED) else ""
        return f"Round {result.get('ROUND', 1)}. {stopped}{verdict}"
    if step == MAP:
        return "The map is in the project."
    ious = result.get("IOUS") or [result.get("MEAN_IOU", math.nan)]
    if len(ious) == 1:
        return f"Mean IoU {ious[0]:.2f}."
    return f"Mean IoU {ious[0]:.2f} before, {ious[-1]:.2f} now."


def not_needed_text(step: str, results: dict[str, Results]) -> str:
    """Say why a step can be left out, "" where it is needed."""
    if step in (ADAPT, SELECT, TUNE) and SELECT not in results and results.get(SHIFT, {}).get("LEVEL") == NEAR:
        return "Probably not needed: the model knows images like this one."
    return ""


def plain(text: str) -> str:
    """Escape a text for a label that reads HTML."""
    return html.escape(text, quote=False)


def warning(text: str) -> str:
    """A text as HTML in the colour of warnings."""
    return f'<span style="color: {WARNING_COLOUR}">{plain(text)}</span>'


def _shift_text(result: Results) -> str:
    advice = method_words(str(result.get("RECOMMENDED", "")))
    level = str(result.get("LEVEL", ""))
    if level not in _LEVELS:
        return f"Cannot be told: the model does not say what it was trained on. Worth trying: {advice}."
    how_far = f"{_LEVELS[level]}: {_number(result.get('SHIFT'))} (0 is the same, 1 another world)."
    return how_far if level == NEAR else f"{how_far} Worth trying: {advice}."


def _verdict(change: str, *, is_kept: bool) -> str:
    if is_kept:
        return f"Kept: {change}."
    return f"Not kept, as it was no better ({change}); the model stays as it was."


def _change(result: Results, before: str, after: str) -> str:
    return f"{_number(result.get(before))} → {_number(result.get(after))}"


def _number(value: Any) -> str:
    is_known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.2f}" if is_known else "unknown"


def _metres(length_m: float) -> str:
    return f"{100 * length_m:.3g} cm" if length_m < 1 else f"{length_m:.3g} m"
