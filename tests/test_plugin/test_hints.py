"""What the next click does, in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from segadapt.plugin.hints import hint_text

NAMES = ("point", "box", "scribble", "polygon", "refine", "exemplar", "cut", "merge")


def hint(name: str = "point", **changes: Any) -> str:
    usual = {
        "is_begun": False,
        "is_drawing": False,
        "is_correction": False,
        "class_name": "",
        "raster_name": "scene",
        "target_name": "'roofs'",
        "is_batch": False,
        "taken_hint": "",
    }
    return hint_text(SimpleNamespace(value=SimpleNamespace(name=name)), **{**usual, **changes})  # type: ignore[arg-type]


def test_every_mode_says_something_of_its_own() -> None:
    sentences = {hint(name) for name in NAMES}
    assert len(sentences) == len(NAMES)
    assert all(sentence.endswith(".") for sentence in sentences)


@pytest.mark.parametrize("name", ["point", "box", "scribble", "polygon"])
def test_it_names_class_and_raster_and_then_the_target(name: str) -> None:
    assert "a 'tank' in 'scene'" in hint(name, class_name="tank")
    assert "an object in 'scene'" in hint(name)
    assert "as a 'tank' into 'roofs'" in hint(name, class_name="tank", is_begun=True)


def test_a_polygon_that_is_corrected_goes_nowhere_else() -> None:
    for name in ("refine", "point"):
        assert "'roofs'" not in hint(name, is_begun=True, is_correction=True)
    assert "into 'roofs'" in hint("refine", is_begun=True)  # its own layer is read-only


def test_edits_do_not_care_about_the_object_in_the_making() -> None:
    for name in ("exemplar", "cut", "merge"):
        assert hint(name, is_begun=True) == hint(name)


def test_without_a_target_layer_objects_go_into_a_new_one_and_there_is_nothing_to_edit() -> None:
    assert "into a new layer" in hint(is_begun=True, target_name="")
    for name in ("cut", "merge"):
        assert hint(name, target_name="").startswith(f"There is no target layer to {name} in yet")


def test_what_is_being_drawn_is_gone_on_with() -> None:
    assert "opposite corner" in hint("box", is_drawing=True)
    assert "closes the polygon" in hint("polygon", is_drawing=True, is_begun=True)
    assert hint("box", is_drawing=True, taken_hint="Elsewhere.") == "Elsewhere."


def test_batch_and_other_takers_of_clicks_go_first_and_without_raster_there_is_nothing() -> None:
    assert "Esc stops" in hint(is_batch=True, taken_hint="Elsewhere.")
    assert hint(taken_hint="Elsewhere.", is_begun=True) == "Elsewhere."
    assert hint(raster_name="") == ""
