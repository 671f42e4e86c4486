"""Memory and time do not grow with the raster: measured in processes of their own (Linux)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Not ru_maxrss: a process inherits that from the one that started it.
_PEAK = """
def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
"""

_READ = """
import json, runpy, sys, time
runpy.run_path(sys.argv[1])
from segadapt.processing.raster.reader import open_raster
from segadapt.processing.raster.windows import core_grid, lattice_window
start = time.perf_counter()
with open_raster(sys.argv[2]) as reader:
    opened_s = time.perf_counter() - start
    rows, cols = reader.shape
    for index in range(int(sys.argv[3])):
        x, y = (index * 0.618034 % 1) * cols, (index * 0.414214 % 1) * rows
        window = lattice_window(x, y, size_px=1024, shape=reader.shape)
        reader.read_chip(window)
        reader.valid_mask(window)
    stretch = reader.stretch.as_key()
    n_cells = sum(1 for _ in core_grid(reader.shape, size_px=1024, halo_px=128))
print(json.dumps({"opened_s": opened_s, "peak_mib": peak_mib(), "stretch": stretch, "n_cells": n_cells}))
"""

_WRITE = """
import json, runpy, sys
runpy.run_path(sys.argv[1])
import numpy as np
from affine import Affine
from segadapt.processing.raster.writer import LabelWriter
side = int(sys.argv[3])
with LabelWriter(sys.argv[2], shape=(side, side), transform=Affine.scale(1, -2), crs=None) as writer:
    for number in range(1, 601):
        row, col = int(number * 0.618034 % 1 * side), int(number * 0.414214 % 1 * side)
        writer.paint(np.ones((200, 200), bool), row_off=row, col_off=col, value=number, area_px=40_000)
    writer.commit()
print(json.dumps({"peak_mib": peak_mib()}))
"""


def _run(script: str, *arguments: object) -> dict:
    command = [sys.executable, "-c", _PEAK + script, str(CONFTEST), *map(str, arguments)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(measured)
    return measured


def _write(path: Path, side: int, **layout: object) -> Path:
    """Noise of 12 bits all over."""
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint16", "crs": "EPSG:32631"}
    strip = np.random.default_rng(0).integers(100, 4000, (3, 500, side), dtype=np.uint16)
    with rasterio.open(path, "w", transform=Affine.scale(0.5, -0.5), **profile, **layout) as dataset:
        for row in range(0, side, 500):
            dataset.write(strip, window=((row, row + 500), (0, side)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "share"),
    # Strips as wide as the raster fill the block cache, which those of the small one do not.
    [({"tiled": True, "blockxsize": 512, "blockysize": 512}, 1.1), ({}, 1.2)],
)
def test_peak_memory_of_10000_px_is_that_of_2000(tmp_path, layout, share):
    small = _run(_READ, _write(tmp_path / "small.tif", 2000, **layout), 40)
    large = _run(_READ, _write(tmp_path / "large.tif", 10_000, **layout), 40)
    (tmp_path / "large.tif").unlink()
    assert large["peak_mib"] < share * small["peak_mib"]
    assert large["stretch"] == pytest.approx(small["stretch"], abs=30)


def test_a_sparse_raster_of_100000_px_opens_fast_and_small(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "height": 100_000, "width": 100_000, "count": 3, "dtype": "uint16", "tiled": True}
    with rasterio.open(
        path, "w", sparse_ok=True, bigtiff="yes", crs="EPSG:32631", transform=Affine.scale(0.5, -0.5), **profile
    ) as dataset:
        values = np.random.default_rng(0).integers(500, 1500, (3, 1000, 1000), dtype=np.uint16)
        dataset.write(values, window=((60_000, 61_000), (20_000, 21_000)))
    measured = _run(_READ, path, 20)
    assert measured["opened_s"] < 5
    assert measured["peak_mib"] < 300
    assert measured["stretch"] == pytest.approx((520, 520, 520, 1480, 1480, 1480), abs=10)
    assert measured["n_cells"] == 130**2


@pytest.mark.slow
def test_a_full_raster_of_100000_rows_in_strips_opens_fast(tmp_path):
    """Strips as wide as the raster and no overviews: the whole would be 30 GB; a hole in the file stands for it."""
    path = tmp_path / "strips.bil"
    side = 100_000
    with path.open("wb") as file:
        file.truncate(side * side * 2)
    path.with_suffix(".hdr").write_text(
        f"NROWS {side}\nNCOLS {side}\nNBANDS 1\nNBITS 16\nPIXELTYPE UNSIGNEDINT\nBYTEORDER I\nLAYOUT BIL\n"
        "ULXMAP 0\nULYMAP 0\nXDIM 0.5\nYDIM 0.5\n"
    )
    start = time.perf_counter()
    measured = _run(_READ, path, 3)
    assert time.perf_counter() - start < 60
    assert measured["opened_s"] < 10
    assert measured["peak_mib"] < 300
    assert measured["stretch"] == [0.0] * 3 + [65535.0] * 3


def test_a_label_raster_of_100000_px_costs_what_a_small_one_does(tmp_path):
    small = _run(_WRITE, tmp_path / "small.tif", 2_000)
    large = _run(_WRITE, tmp_path / "large.tif", 100_000)
    assert large["peak_mib"] - small["peak_mib"] < 40  # the block cache, which the small one does not fill
    assert (tmp_path / "large.tif").stat().st_size < 20e6
