"""The tasks of a review in the worker: a search on a small raster, and the ranking after answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from segadapt.models.errors import CheckpointError
from segadapt.models.progress import NullProgress
from segadapt.plugin.similar_tasks import Found, LearnAnswers, Search, SearchHandle

SETTINGS = SimpleNamespace(checkpoint_folder=None, offline=True)


class FakeSearch:
    """Two candidates; remembers how it was made."""

    def __init__(self, scene: Any, examples: Any, **options: Any) -> None:
        self.examples, self.options = examples, options
        self.job = options["job"]
        FakeSearch.made = self
        self._candidates = [SimpleNamespace(number=n, probability=p) for n, p in ((1, 0.7), (2, 0.01), (3, 0.4))]

    def steps(self, *, progress: Any) -> Any:
        yield None
        yield from self._candidates

    def outline(self, candidate: Any) -> Any:
        geometry = shapely.MultiPolygon([shapely.box(0, 0, candidate.number, 1)])
        if candidate.number == 3:
            geometry = shapely.MultiPolygon()
        return SimpleNamespace(
            number=candidate.number, geometry=geometry, score=0.9, stability=0.8, area_m2=5.0, probability=0.7
        )

    def update(self, accepted: Any, rejected: Any) -> Any:
        self.answers = accepted, rejected
        for candidate in self._candidates:
            candidate.probability += 0.2
        return self._candidates


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Any:
    from segadapt.models import backbone
    from segadapt.processing.jobs import similar

    def none_at_hand(**_options: Any) -> None:
        raise CheckpointError("No weights here.")

    monkeypatch.setattr(similar, "SimilarSearch", FakeSearch)
    monkeypatch.setattr(backbone, "open_backbone", none_at_hand)
    engine = SimpleNamespace(device="cpu", card=SimpleNamespace(name="fake"))
    reader = SimpleNamespace(to_pixels=lambda xy: np.array([(x, 100 - y) for x, y in xy], float))
    return SimpleNamespace(scene=SimpleNamespace(engine=engine, reader=reader))


def test_search_hands_out_what_is_likely_and_not_empty(segmenter: Any, tmp_path: Path) -> None:
    said: list[str] = []
    progress = SimpleNamespace(info=said.append)
    handle = SearchHandle()
    example = shapely.to_wkb(shapely.Polygon([(0, 0), (1, 0), (1, 1)]))
    task = Search(handle, (example,), SETTINGS, rejected=(example,), bounds_map=(10, 20, 30, 50))
    items = list(task.run(segmenter, progress))
    found = [item for item in items if item is not None]
    assert [(item.number, item.probability, item.model) for item in found] == [(1, 0.7, "fake")]
    assert isinstance(found[0], Found)
    assert shapely.from_wkb(found[0].wkb).area == 1
    assert items.count(None) >= 3
    assert handle.search is FakeSearch.made
    assert FakeSearch.made.job.bounds_px == (10, 50, 30, 80)
    assert [geometry.area for geometry in FakeSearch.made.examples] == [0.5]
    assert FakeSearch.made.options["backbone"] is None
    assert "No weights here." in said[0]


def test_answers_before_the_search_has_begun_teach_nothing(segmenter: Any) -> None:
    handle = SearchHandle()
    assert list(LearnAnswers(handle, (1,), ()).run(segmenter, NullProgress())) == []
    handle.search = FakeSearch(None, [], job=None)
    ranking, *_ = LearnAnswers(handle, (1,), (3,)).run(segmenter, NullProgress())
    assert ranking == pytest.approx({1: 0.9, 2: 0.21, 3: 0.6})
    assert handle.search.answers == ((1,), (3,))


def test_what_answers_make_likely_is_handed_out_once(segmenter: Any) -> None:
    handle = SearchHandle(FakeSearch(None, [], job=None))
    _, *items = LearnAnswers(handle, (1,), (), known=frozenset({1})).run(segmenter, NullProgress())
    assert [item.number for item in items if item is not None] == [2]
    _, *items = LearnAnswers(handle, (1,), (), known=frozenset({1, 2})).run(segmenter, NullProgress())
    assert [item for item in items if item is not None] == []
