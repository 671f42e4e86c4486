"""Scenes whose objects are known, a cheap engine and the real one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from segadapt.models.embeddings import EmbeddingCache
from segadapt.models.engine import open_engine
from segadapt.processing.jobs.scene import Scene
from segadapt.processing.raster.reader import open_raster


def load_fake_engine():
    """The class, from the file beside this one."""
    spec = importlib.util.spec_from_file_location("segadapt_fake_engine", Path(__file__).with_name("fake_engine.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeEngine


@pytest.fixture
def fake_engine():
    # Without a network to compute, threads only get into each other's way.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_fake_engine()()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def engine():
    """MobileSAM with its published weights."""
    engine = open_engine("mobile_sam", device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def open_scene(tmp_path):
    """`open_scene(path, engine)`: a scene with a cache of its own; closed after the test."""
    opened = []

    def open_(path, engine, *, cache_folder=None, **options):
        reader = open_raster(path, **options)
        opened.append(reader)
        return Scene(reader, engine, EmbeddingCache(cache_folder or tmp_path / "cache"))

    yield open_
    for reader in opened:
        reader.close()


@pytest.fixture
def paint_scene(raster_factory):
    """`paint_scene((rows, cols), shapes)`: dark textured ground with bright shapes (shapely, raster pixels)."""

    def paint(shape, outlines, *, texture=6, **profile):
        from rasterio.features import rasterize

        ground = np.random.default_rng(0).normal((70, 85, 60), texture, (*shape, 3))
        if outlines:
            ground[rasterize(outlines, out_shape=shape) > 0] = (210, 190, 180)
        return raster_factory(np.clip(ground, 0, 255).astype(np.uint8).transpose(2, 0, 1), **profile)

    return paint


@pytest.fixture
def iou():
    """IoU of a geometry on the map with a truth in raster pixels."""

    def iou_(scene, geometry, truth_px):
        truth = shapely.transform(truth_px, scene.reader.to_map)
        return geometry.intersection(truth).area / geometry.union(truth).area

    return iou_


class Recorder:
    """Progress that remembers; cancelled after `cancel_after` questions, or once a text with `cancel_at` was told."""

    def __init__(self, cancel_after=None, *, cancel_at=None):
        self.fractions, self.texts, self._left, self._cancel_at = [], [], cancel_after, cancel_at

    def set_fraction(self, fraction):
        self.fractions.append(fraction)

    def info(self, text):
        self.texts.append(text)

    def is_cancelled(self):
        if self._left is None:
            return self._cancel_at is not None and any(self._cancel_at in text for text in self.texts)
        self._left -= 1
        return self._left < 0


@pytest.fixture
def recorder():
    return Recorder
