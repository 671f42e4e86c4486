"""The object in hand in words, for the dock. Pure text, no Qt."""

from __future__ import annotations

from .session import Session


def object_text(session: Session) -> str:
    """Return the prompts, the choice among masks, score and area; or what is missing."""
    answer = session.answer
    if session.is_empty:
        return "No prompt yet."
    if answer is None:
        return f"{_prompts_text(session)} · …"
    if not answer.wkb:
        return "The model finds no object here; click elsewhere, or drag a box."
    parts = [_prompts_text(session), f"score {answer.score:.2f}", area_text(answer.area_m2)]
    n_options = session.step.n_options
    if n_options > 1:
        parts.insert(1, f"mask {session.step.chosen + 1} of {n_options} (Tab)")
    return " · ".join(parts)


def area_text(area_m2: float) -> str:
    """Return an area in m² or, from ten of them on, in hectares."""
    text = f"{area_m2 / 1e4:,.2f} ha" if area_m2 >= 1e5 else f"{area_m2:,.0f} m²"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _prompts_text(session: Session) -> str:
    step = session.step
    n_on = sum(step.labels) + sum(step.scribble_labels)
    n_off = len(step.labels) + len(step.scribble_labels) - n_on
    parts = ["polygon"] if step.outline_wkb else []
    parts += ["box"] if step.box_map is not None else []
    parts += [f"{n_on} on the object"] if n_on else []
    parts += [f"{n_off} off it"] if n_off else []
    return ", ".join(parts)
