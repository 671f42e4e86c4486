"""What a value of the foreground field means."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import NULL
from segadapt.processing.algorithms.prompt_source import parse_foreground
from segadapt.processing.errors import JobError

pytestmark = pytest.mark.qgis


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "Foreground", " positive ", "FG"])
def test_foreground(value: Any) -> None:
    """All spellings of yes."""
    assert parse_foreground(value) is True


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "False", "background", "negative", "bg"])
def test_background(value: Any) -> None:
    """All spellings of no."""
    assert parse_foreground(value) is False


@pytest.mark.parametrize("value", [2, 0.5, -1, "", "maybe", None, NULL])
def test_anything_else_is_named(value: Any) -> None:
    """A guess would turn an object inside out."""
    with pytest.raises(JobError, match=f"^'{value}' in the prompt field is neither"):
        parse_foreground(value)
