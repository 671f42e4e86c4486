"""Finding the objects that look like an example, on scenes with two kinds of roofs."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
import torch
from rasterio.features import rasterize
from segadapt.models.errors import Cancelled
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import persam, similar
from segadapt.processing.jobs.similar import SimilarJob, SimilarSearch, find_similar

RED, BLUE = (220, 70, 60), (150, 190, 230)
REDS = [shapely.box(x, y, x + 44, y + 36) for x, y in ((40, 50), (200, 60), (380, 40), (60, 330), (330, 400))]
BLUES = [shapely.box(x, y, x + 44, y + 36) for x, y in ((180, 220), (400, 230))]
SIDE_PX = 512


class ColourEngine:
    """The fake engine of the other tests, whose features are the colours of the cells."""

    def __init__(self, fake):
        self._fake = fake
        fake._embed = self._embed(fake._embed)

    def __getattr__(self, name):
        return getattr(self._fake, name)

    @staticmethod
    def _embed(embed):
        def embed_with_colours(chip):
            embedding = embed(chip)
            colours = torch.zeros(3, 1024, 1024)
            colours[:, : chip.shape[1], : chip.shape[2]] = torch.from_numpy(chip.astype(np.float32))
            # Far larger than the labels in the first channels.
            embedding[250:253] = 100 * torch.nn.functional.avg_pool2d(colours, 16)
            return embedding

        return embed_with_colours


@pytest.fixture
def colour_engine(fake_engine):
    return ColourEngine(fake_engine)


@pytest.fixture
def roofs_path(raster_factory):
    ground = np.random.default_rng(0).normal((70, 85, 60), 5, (SIDE_PX, SIDE_PX, 3))
    for outlines, colour in ((REDS, RED), (BLUES, BLUE)):
        ground[rasterize(outlines, out_shape=(SIDE_PX, SIDE_PX)) > 0] = colour
    return raster_factory(np.clip(ground, 0, 255).astype(np.uint8).transpose(2, 0, 1))


@pytest.fixture
def scene(open_scene, roofs_path, colour_engine):
    return open_scene(roofs_path, colour_engine)


def on_map(scene, outlines):
    return [shapely.transform(outline, scene.reader.to_map) for outline in outlines]


def kind_of(candidate):
    """Which roof a candidate is: ("red" or "blue", number), None for anything else."""
    found = shapely.box(*candidate.mask.bounds)
    for name, outlines in (("red", REDS), ("blue", BLUES)):
        for number, outline in enumerate(outlines):
            if found.intersection(outline).area / found.union(outline).area > 0.8:
                return name, number
    return None


def test_ranks_its_own_kind_first_and_gives_each_object_once(scene):
    search = SimilarSearch(scene, on_map(scene, REDS[:1]))
    given = list(search.run())
    kinds = [kind_of(candidate) for candidate in search.ranked()]
    assert len(kinds) == len(set(kinds))
    assert set(kinds[:5]) == {("red", number) for number in range(5)}
    assert [candidate.number for candidate in given] == list(range(1, len(given) + 1))
    likely = [candidate.probability for candidate in search.ranked()]
    assert likely == sorted(likely, reverse=True)
    assert likely[4] > 0.5


def test_outlines_above_the_threshold_are_on_the_map(scene, iou):
    found = list(find_similar(scene, on_map(scene, REDS[:2]), job=SimilarJob(threshold=0.5)))
    for roof in REDS:
        assert max(iou(scene, each.geometry, roof) for each in found) > 0.9
    assert all(each.probability >= 0.5 for each in found)
    assert all(each.area_m2 > 0 for each in found)
    assert len(list(find_similar(scene, on_map(scene, REDS[:2]), job=SimilarJob(threshold=1.0)))) == 0


def test_answers_rank_again_without_the_model(scene, colour_engine):
    search = SimilarSearch(scene, on_map(scene, REDS[:1] + BLUES[:1]))  # a wrong example among them
    list(search.run())
    before = {candidate.number: candidate.probability for candidate in search.candidates}
    blue = next(candidate for candidate in search.candidates if kind_of(candidate) == ("blue", 1))
    red = next(candidate for candidate in search.candidates if kind_of(candidate) == ("red", 3))
    n_asked, n_embedded = len(colour_engine.prompts), colour_engine.n_embedded
    start = time.perf_counter()
    ranked = search.update([red.number], [blue.number])
    assert time.perf_counter() - start < 1.0  # 5 ms on a quiet machine
    assert (len(colour_engine.prompts), colour_engine.n_embedded) == (n_asked, n_embedded)
    assert blue.probability < before[blue.number]
    assert ranked == search.ranked()
    assert [kind_of(candidate)[0] for candidate in ranked[:5]] == ["red"] * 5
    # Answers are not added up: all of them are given each time, none means none.
    search.update([], [])
    assert {c.number: c.probability for c in search.candidates} == pytest.approx(before)


def test_rejected_polygons_push_their_like_down(scene):
    plain, warned = (
        SimilarSearch(scene, on_map(scene, REDS[:1] + BLUES[:1]), rejected=on_map(scene, rejected))
        for rejected in ((), BLUES[1:])
    )
    list(plain.run()), list(warned.run())

    def of_blues(search):
        return max((c.probability for c in search.candidates if kind_of(c) and kind_of(c)[0] == "blue"), default=0)

    assert of_blues(warned) < of_blues(plain)


@pytest.fixture
def slabs_scene(raster_factory, open_scene, colour_engine):
    """Red roofs, and red slabs beside them that differ by their shape alone."""
    ground = np.random.default_rng(0).normal((70, 85, 60), 5, (SIDE_PX, SIDE_PX, 3))
    ground[rasterize(REDS + SLABS, out_shape=(SIDE_PX, SIDE_PX)) > 0] = RED
    return open_scene(raster_factory(np.clip(ground, 0, 255).astype(np.uint8).transpose(2, 0, 1)), colour_engine)


SLABS = [shapely.box(x, y, x + 92, y + 17) for x, y in ((130, 190), (350, 200), (40, 250), (160, 460))]


def likely(search, outlines):
    """The probabilities of the candidates that are these objects."""
    found = [shapely.box(*candidate.mask.bounds) for candidate in search.candidates]
    return [
        max(
            (c.probability for c, box in zip(search.candidates, found, strict=True) if overlap(box, one) > 0.8),
            default=0,
        )
        for one in outlines
    ]


def overlap(one, other):
    return one.intersection(other).area / one.union(other).area


def test_rejected_polygons_teach_by_what_else_than_looks_they_differ(slabs_scene):
    plain, warned = (
        SimilarSearch(slabs_scene, on_map(slabs_scene, REDS[:2]), rejected=on_map(slabs_scene, rejected))
        for rejected in ((), SLABS[:2])
    )
    list(plain.run()), list(warned.run())
    assert min(likely(plain, SLABS[2:])) > 0.5  # they look the same
    assert max(likely(warned, SLABS[2:])) < 0.5 < min(likely(warned, REDS))


def test_stays_inside_the_bounds(scene):
    search = SimilarSearch(scene, on_map(scene, REDS[:1]), job=SimilarJob(bounds_px=(300, 0, 512, 200)))
    list(search.run())
    assert {kind_of(candidate) for candidate in search.candidates if candidate.probability > 0.5} == {("red", 2)}


def test_examples_decide_the_window(scene):
    assert SimilarSearch(scene, on_map(scene, REDS[:1])).window_px == 256
    large = shapely.box(10, 10, 160, 60)
    assert SimilarSearch(scene, on_map(scene, [large])).window_px == 512
    assert SimilarSearch(scene, on_map(scene, REDS[:1]), job=SimilarJob(window_px=512)).window_px == 512


def test_gives_way_and_can_be_cancelled(scene, recorder):
    steps = list(SimilarSearch(scene, on_map(scene, REDS[:1])).steps())
    assert steps.count(None) > 8  # at least one per window
    search = SimilarSearch(scene, on_map(scene, REDS[:1]))
    progress = recorder(cancel_after=3)
    with pytest.raises(Cancelled):
        list(search.run(progress=progress))
    done = recorder()
    list(search.run(progress=done))
    assert done.fractions[-1] == 1
    assert done.fractions == sorted(done.fractions)


def test_streams_without_keeping(scene, monkeypatch):
    kept = []

    class Watched(SimilarSearch):
        def outline(self, candidate):
            kept.append(len(self.candidates))
            return super().outline(candidate)

    monkeypatch.setattr(similar, "SimilarSearch", Watched)
    assert len(list(find_similar(scene, on_map(scene, REDS[:1])))) >= 5
    assert max(kept) == 1


@pytest.mark.parametrize(
    ("examples", "job", "sentence"),
    [
        ([], {}, "There is no example"),
        ([shapely.box(-90, -90, -50, -50)], {}, "lies outside the raster"),
        (REDS[:1], {"bounds_px": (600, 0, 700, 100)}, "shares nothing with"),
        (REDS[:1], {"method": "magic"}, "'magic' is no method"),
        (REDS[:1], {"window_px": 300}, "window of 300 px"),
        (REDS[:1], {"threshold": 1.5}, "threshold is 1.5"),
        (REDS[:1], {"tolerance": -1.0}, "must not be negative"),
    ],
)
def test_what_cannot_be_searched_is_a_sentence(scene, examples, job, sentence):
    with pytest.raises(JobError, match=sentence):
        SimilarSearch(scene, on_map(scene, examples), job=SimilarJob(**job))


def test_nodata_is_not_looked_at(raster_factory, open_scene, colour_engine, roofs_path):
    import rasterio

    with rasterio.open(roofs_path) as dataset:
        pixels = dataset.read()
    mask = np.zeros((SIDE_PX, SIDE_PX), np.bool_)
    mask[:256, :256] = True
    scene = open_scene(raster_factory(pixels, "part.tif", mask=mask), colour_engine)
    search = SimilarSearch(scene, on_map(scene, REDS[:1]))
    list(search.run())
    assert {kind_of(candidate) for candidate in search.candidates} <= {("red", 0), ("red", 1), ("blue", 0), None}
    assert all(max(c.mask.bounds[2:]) <= 256 for c in search.candidates)


def test_one_example_for_the_trained_baseline(scene, monkeypatch):
    monkeypatch.setattr(persam, "mixing_weights", lambda logits, mask: np.array([0, 0, 1], np.float32))
    search = SimilarSearch(scene, on_map(scene, REDS[:1]), job=SimilarJob(method="persam_f"))
    list(search.run())
    ranked = search.ranked()
    assert {kind_of(candidate) for candidate in ranked[:5]} == {("red", number) for number in range(5)}
    assert search.update([ranked[0].number], [ranked[1].number]) == ranked  # it learns nothing


@pytest.mark.slow
def test_training_free_baseline_with_the_real_model(open_scene, raster_factory, engine):
    pixels = np.full((3, 256, 256), 70, np.uint8)
    roofs = [shapely.box(40, 50, 84, 86), shapely.box(150, 150, 194, 186)]
    pixels[:, rasterize(roofs, out_shape=(256, 256)) > 0] = 210
    scene = open_scene(raster_factory(pixels), engine)
    search = SimilarSearch(scene, on_map(scene, roofs[:1]), job=SimilarJob(method="persam"))
    list(search.run())
    found = [shapely.box(*candidate.mask.bounds) for candidate in search.ranked()]
    for roof in roofs:
        assert max(each.intersection(roof).area / each.union(roof).area for each in found) > 0.8
