"""The pages of all evaluations: headings, tables and pictures as one HTML text that needs nothing but itself.

Plots are SVG in `data:` addresses, which QGIS's results viewer shows too and which stay sharp on paper. They are made
by matplotlib's figures without pyplot, which would choose a window system.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import csv
import html
import io
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import JobError

_COLOURS = ("#1d6f8a", "#d9534f", "#8a6d1d", "#5b3f8c", "#3d7a36", "#444444")
_DASHES = ("-", "--", "-.", ":")
_STYLE = """
body { font-family: sans-serif; color: #1a1a1a; background: #ffffff; max-width: 60em; margin: 1.5em auto; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.6em; border-bottom: 1px solid #1d3b4f; }
table { border-collapse: collapse; margin: .6em 0; page-break-inside: avoid; }
th, td { border: 1px solid #b5b5b5; padding: .2em .6em; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; page-break-inside: avoid; }
p.note { color: #444444; font-size: .9em; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of `parts`, which are HTML already; the title is escaped."""
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{_text(title)}</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def write_report(text: str, path: Path) -> None:
    """Write a page, whole or not at all. Raises `JobError` where it cannot be written."""
    _write(text, path, what="report")


def write_csv(rows: Iterable[Sequence[object]], path: Path) -> None:
    """Write a table as CSV, whole or not at all. Raises `JobError` where it cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write(text.getvalue(), path, what="table")


def _write(text: str, path: Path, *, what: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise JobError(f"Cannot write the {what} {path} ({error.strerror}); choose another folder.") from error


def version() -> str:
    """The version of SegAdapt, from metadata.txt."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(Path(__file__).resolve().parents[2] / "metadata.txt", encoding="utf-8")
    return metadata.get("general", "version", fallback="unknown")


def machine_facts(device: str) -> list[tuple[str, str]]:
    """Rows of a table that say on what was measured; `device`: where the model ran."""
    return [
        ("SegAdapt", version()),
        (
            "Machine",
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; model on {device}",
        ),
        ("Software", f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"),
    ]


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty plot of the usual size with labelled axes and a grid."""
    figure = Figure(figsize=(7.2, 3.8), layout="tight")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def look(number: int) -> tuple[str, str]:
    """Colour and dash of the configuration `number`: apart without colours, too, for the first four."""
    return _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]


def plain(text: str) -> str:
    """Text as matplotlib shows it unchanged: no formula between dollars, no entry that a legend hides."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def picture(figure: Figure, description: str, *, is_photograph: bool = False) -> str:
    """An image of the page; photographs as PNG, because QtWebKit shows no images within images of SVG."""
    buffer = io.BytesIO()
    kind, mime = ("png", "image/png") if is_photograph else ("svg", "image/svg+xml")
    # Without date and with a fixed salt, the same results give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "segadapt"}):
        figure.savefig(buffer, format=kind, dpi=192, metadata=None if is_photograph else {"Date": None})
    width_px = round(figure.get_figwidth() * 96)
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img alt="{_text(description)}" width="{width_px}" src="data:{mime};base64,{code}"></p>'


def heading(text: str) -> str:
    """A heading of a part of the page."""
    return f"<h2>{_text(text)}</h2>"


def note(text: str) -> str:
    """A paragraph that explains, in small print."""
    return f'<p class="note">{_text(text)}</p>'


def table(rows: Sequence[tuple[str, ...]], *, has_head: bool = False) -> str:
    """A table whose first column, and with `has_head` first row, are heads; numbers then stand right."""
    lines = []
    for number, (first, *others) in enumerate(rows):
        is_head = has_head and number == 0
        cell, kind = ("th", "") if is_head else ("td", ' class="number"' if has_head else "")
        cells = "".join(f"<{cell}{kind}>{_text(other)}</{cell}>" for other in others)
        lines.append(f"<tr><th>{_text(first)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _text(text: str) -> str:
    return html.escape(str(text))
