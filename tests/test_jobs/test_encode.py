"""Filling the cache: what is there is not encoded again."""

from __future__ import annotations

import numpy as np
import pytest
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.encode import encode_raster
from segadapt.processing.raster.windows import lattice_window, lattice_windows


def test_every_window_of_the_extent_once(paint_scene, open_scene, fake_engine, recorder):
    scene = open_scene(paint_scene((1500, 1300), []), fake_engine)
    progress = recorder()
    encoded = encode_raster(scene, window_px=512, progress=progress)
    assert (encoded.n_new, encoded.n_windows) == (25, 25)
    assert fake_engine.n_embedded == 25
    assert progress.fractions == sorted(progress.fractions)
    assert progress.fractions[-1] == 1
    for x in range(0, 1300, 50):
        for y in range(0, 1500, 50):
            assert scene.is_encoded(lattice_window(x, y, size_px=512, shape=(1500, 1300)))


def test_goes_on_where_a_cancelled_run_stopped(paint_scene, open_scene, fake_engine, recorder, tmp_path):
    path = paint_scene((1500, 1300), [])
    scene = open_scene(path, fake_engine, cache_folder=tmp_path / "kept")
    with pytest.raises(Cancelled):
        encode_raster(scene, window_px=512, progress=recorder(cancel_after=2))
    n_before = fake_engine.n_embedded
    assert 0 < n_before < 25
    later = open_scene(path, fake_engine, cache_folder=tmp_path / "kept")
    assert encode_raster(later, window_px=512).n_new == 25 - n_before
    assert encode_raster(later, window_px=512).n_new == 0
    assert fake_engine.n_embedded == 25


def test_extent_limits_the_windows(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((1500, 1300), []), fake_engine)
    bounds = (300.5, 300, 420, 900)
    expected = lattice_windows(bounds, size_px=512, shape=(1500, 1300))
    assert encode_raster(scene, bounds, window_px=512).n_new == len(expected) < 25
    assert all(scene.is_encoded(window) for window in expected)


def test_same_embedding_as_one_by_one(paint_scene, open_scene, engine, tmp_path):
    path = paint_scene((300, 600), [])
    batch, single = (open_scene(path, engine, cache_folder=tmp_path / name) for name in ("batch", "single"))
    assert encode_raster(batch, window_px=512).n_new == 2
    for window in lattice_windows((0, 0, 600, 300), size_px=512, shape=(300, 600)):
        assert bool((batch.embedding(window) == single.embedding(window)).all())


@pytest.mark.parametrize("bounds", [(-50, -50, -10, -10), (1300, 0, 1400, 100), (np.nan, 0, 10, 10)])
def test_extent_beside_the_raster(paint_scene, open_scene, fake_engine, bounds):
    scene = open_scene(paint_scene((1500, 1300), []), fake_engine)
    with pytest.raises(JobError, match=r"shares nothing with the 1300 x 1500 pixels .*choose an extent"):
        encode_raster(scene, bounds)


def test_windows_without_data_are_skipped(raster_factory, open_scene, fake_engine):
    pixels = np.zeros((1, 1024, 2048), np.uint8)
    pixels[:, :, :200] = 90
    scene = open_scene(raster_factory(pixels, nodata=0), fake_engine)
    encoded = encode_raster(scene, window_px=512)
    assert encoded.n_windows == 3 * 7
    assert encoded.n_new == fake_engine.n_embedded == 3
