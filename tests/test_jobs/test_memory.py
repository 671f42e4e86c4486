"""Memory does not grow with the raster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from segadapt.processing.jobs.encode import encode_raster
from segadapt.processing.jobs.everything import EverythingJob, segment_everything

TILE = 1000

# Run in a process of its own: peak memory is that of a process. argv: conftest, fake engine, raster, folder, job.
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

load("checkout", sys.argv[1])
engine = load("fake_engine", sys.argv[2]).FakeEngine()
# MobileSAM and its work on one chip take 450 MB. Less than that is taken here, so that the share by which memory may
# grow is not one of the cheap engine's.
model = bytearray(b"x") * (300 << 20)
from segadapt.models.embeddings import EmbeddingCache
from segadapt.processing.jobs.encode import encode_raster
from segadapt.processing.jobs.everything import EverythingJob, segment_everything
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.raster.reader import open_raster

with open_raster(sys.argv[3]) as reader:
    # As large as a small raster needs: the cache's memory is a setting, not what is measured here.
    scene = Scene(reader, engine, EmbeddingCache(Path(sys.argv[4]), memory_bytes=16 << 20, disk_bytes=64 << 20))
    if sys.argv[5] == "encode":
        count = encode_raster(scene).n_new
    else:
        labels_path = Path(sys.argv[4]) / "labels.tif"
        job = EverythingJob(points_per_side=8, largest_window_px=2048, labels_path=labels_path)
        count = sum(1 for _ in segment_everything(scene, job))
# Not ru_maxrss: that starts with the peak of the process which started this one.
peak_kib = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"count": count, "peak_kib": peak_kib}))
"""


def write_tiles(path, side):
    """A raster of `side` px: tiles with a grid of 16 bright squares each."""
    tile = np.random.default_rng(0).integers(50, 70, (TILE, TILE)).astype(np.uint8)
    for row in range(40, TILE, 250):
        for col in range(40, TILE, 250):
            tile[row : row + 170, col : col + 170] = 220
    profile = {"driver": "GTiff", "count": 3, "width": side, "height": side, "dtype": "uint8", "tiled": True}
    with rasterio.open(
        path, "w", **profile, crs="EPSG:32631", transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000)
    ) as dataset:
        for row in range(0, side, TILE):
            for col in range(0, side, TILE):
                dataset.write(np.stack([tile] * 3), window=Window(col, row, TILE, TILE))
    return path


def measure(raster, folder, job):
    here = Path(__file__)
    folder.mkdir(exist_ok=True)
    arguments = [here.parents[1] / "conftest.py", here.with_name("fake_engine.py"), raster, folder, job]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("job", ["encode", "everything"])
def test_peak_of_a_raster_25_times_as_large(tmp_path, job):
    small = measure(write_tiles(tmp_path / "small.tif", 2000), tmp_path / "small", job)
    large = measure(write_tiles(tmp_path / "large.tif", 10_000), tmp_path / "large", job)
    if job == "everything":
        assert (small["count"], large["count"]) == (4 * 16, 100 * 16)
    else:
        assert (small["count"], large["count"]) == (3 * 3, 19 * 19)
    assert large["peak_kib"] < 1.1 * small["peak_kib"]


@pytest.fixture
def huge(tmp_path):
    """A sparse raster of 100,000 x 100,000 px with a few squares in one corner of it."""
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 1, "width": 100_000, "height": 100_000, "dtype": "uint8", "tiled": True}
    with rasterio.open(
        path,
        "w",
        **profile,
        nodata=0,
        sparse_ok=True,
        bigtiff="YES",
        crs="EPSG:32631",
        transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000),
    ) as dataset:
        ground = np.full((1, 600, 600), 60, np.uint8)
        ground[0, 100:160, 100:200] = 220
        ground[0, 400:440, 300:350] = 220
        dataset.write(ground, window=Window(80_000, 90_000, 600, 600))
    assert path.stat().st_size < 10_000_000
    return str(path)


def test_part_of_a_huge_sparse_raster(huge, open_scene, fake_engine, tmp_path):
    scene = open_scene(huge, fake_engine)
    bounds = (79_000, 89_500, 81_500, 91_500)
    job = EverythingJob(bounds_px=bounds, window_px=512, points_per_side=16, labels_path=tmp_path / "labels.tif")
    found = list(segment_everything(scene, job))
    assert sorted(round(segmented.geometry.area / 0.25, -2) for segmented in found) == [2000, 6000]
    assert fake_engine.n_embedded <= 16
    with rasterio.open(tmp_path / "labels.tif") as labels:
        assert labels.shape == (100_000, 100_000)
        assert set(np.unique(labels.read(1, window=Window(80_000, 90_000, 600, 600)))) == {0, 1, 2}
    assert (tmp_path / "labels.tif").stat().st_size < 10_000_000
    n_before = fake_engine.n_embedded
    assert encode_raster(scene, bounds, window_px=512).n_new == fake_engine.n_embedded - n_before


def test_walk_over_nothing_can_be_cancelled(huge, open_scene, fake_engine, recorder):
    from segadapt.models.errors import Cancelled

    scene = open_scene(huge, fake_engine)
    with pytest.raises(Cancelled):
        list(segment_everything(scene, EverythingJob(window_px=1024), progress=recorder(cancel_after=20)))
    with pytest.raises(Cancelled):
        encode_raster(scene, window_px=1024, progress=recorder(cancel_after=3))
    assert fake_engine.n_embedded == 0
