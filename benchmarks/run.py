"""Measures SegAdapt side by side with the reference packages, in one run, on the same weights and chips.

    make bench                                          prints the tables
    make bench ARGS="--write docs/benchmarks.md"        and keeps them

Every pair is timed in turn (A B A B ...), so that a machine whose speed drifts slows both; the ratio of the medians
is what to read. On a machine with a CUDA card there is a table of all encoders too, the big ones with random
weights: their speed does not depend on the weights, their masks are not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from segadapt.benchmarks.measures import (
    Row,
    click_rows,
    engine_rows,
    everything_rows,
    gpu_rows,
    random_boxes,
    reference_predictor,
    sample_chip,
)
from segadapt.benchmarks.raster_speed import raster_rows


def child(part: str) -> dict[str, float]:
    """Run a part in a process of its own and return what it prints as JSON: for memory and for import times."""
    done = subprocess.run([sys.executable, __file__, "--child", part], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_child(part: str) -> None:
    """Body of `child`."""
    if part == "import":
        from qgis.core import QgsApplication

        app = QgsApplication([], False)
        app.initQgis()
        start = time.perf_counter()
        from segadapt import classFactory

        plugin = classFactory(None)
        plugin.initProcessing()
        print(json.dumps({"seconds": time.perf_counter() - start, "torch": float("torch" in sys.modules)}))
        plugin.unload()
        app.exitQgis()
        return
    chip, boxes = sample_chip(), random_boxes(64)
    if part == "ours":
        from segadapt.models.engine import open_engine
        from segadapt.models.prompts import Prompts

        engine = open_engine("mobile_sam")
        engine.predict(engine.embed([chip])[0], [Prompts(box_xyxy=box) for box in boxes])
    else:
        import torch

        box_tensor = torch.from_numpy(boxes)
        with torch.inference_mode():
            reference_predictor(chip, "cpu").predict_torch(None, None, boxes=box_tensor, multimask_output=False)
    # Not getrusage: a child begins with the peak of the process that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"MiB": int(peak.split()[1]) / 1024}))


def machine() -> str:
    """One line about the machine and the versions."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu}, {os.cpu_count()} cores, {gpu}; {versions}; {time.strftime('%Y-%m-%d')}"


def table(title: str, head: Row, rows: list[Row], note: str = "") -> str:
    """A Markdown table under a title."""
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(["", note] if note else []), ""])


def report(runs: int) -> str:
    """All tables."""
    import torch

    versus = ("what", "SegAdapt ms", "reference ms", "ratio")
    rows, agreement, how = engine_rows(runs)
    parts = [
        f"Machine: {machine()}.\n\n{how}\n",
        table("Engine against mobilesam-mirror 1.0 (eager fp32)", versus, rows),
    ]
    parts.append(
        table(
            "Masks of the chosen precision against fp32",
            ("prompts", "mean IoU", "median", "least", "masks"),
            agreement,
        )
    )
    parts.append(table("Click to polygon", ("what", "p50 ms", "p95 ms", "clicks"), click_rows(8 * runs)))
    parts.append(table("Everything", (*versus, "objects"), everything_rows()))
    ours, reference = child("ours")["MiB"], child("reference")["MiB"]
    parts.append(
        table(
            "Peak memory, one chip and 64 boxes",
            ("SegAdapt MiB", "reference MiB", "ratio"),
            [(f"{ours:.0f}", f"{reference:.0f}", f"{ours / reference:.2f}")],
        )
    )
    parts.append(
        table(
            "Whole rasters through a segmentation model",
            ("resolution of the raster", "windows", "speed relative to the model alone"),
            raster_rows(runs),
        )
    )
    imports = [child("import") for _ in range(3)]
    loaded = "torch was imported" if any(i["torch"] for i in imports) else "torch was not imported"
    parts.append(
        table(
            "Plugin import in QGIS",
            ("median ms",),
            [(f"{statistics.median(i['seconds'] for i in imports) * 1e3:.0f}",)],
            loaded + ".",
        )
    )
    if torch.cuda.is_available():
        parts.append(
            table(
                "Encoders on the GPU",
                ("model", "precision", "batch", "ms per chip", "chips per s"),
                gpu_rows(runs),
            )
        )
    return "\n".join(parts)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side (5)")
    parser.add_argument("--write", type=Path, help="Markdown file whose part below the marker is replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.child:
        run_child(arguments.child)
        return
    text = report(arguments.runs)
    print(text)
    if arguments.write:
        marker = "<!-- below: written by `make bench` -->\n"
        head = arguments.write.read_text().split(marker)[0] if arguments.write.exists() else "# Benchmarks\n\n"
        arguments.write.write_text(f"{head}{marker}\n{text}")


if __name__ == "__main__":
    main()
