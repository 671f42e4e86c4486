"""The status line always says what is going on."""

from __future__ import annotations

import pytest
from segadapt.plugin.exchange import SceneInfo
from segadapt.plugin.status import Phase, Status

INFO = SceneInfo("scene", "MobileSAM", "cpu", "CPU: torch was built without CUDA.")
READY = {"phase": Phase.READY, "raster_name": "scene", "info": INFO, "is_tool_active": True}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status(), "Choose a raster layer"),
        (Status(Phase.CLOSED, "scene"), 'href="tool"'),
        (Status(Phase.OPENING, "scene", "MobileSAM"), "Loading MobileSAM for scene"),
        (
            Status(Phase.OPENING, "scene", sentence="Fetching mobile_sam.pt (41 MB)."),
            "Fetching mobile_sam.pt",
        ),
        (
            Status(Phase.FAILED, "scene", sentence="No CRS; assign one."),
            'No CRS; assign one. <a href="settings">',
        ),
        (Status(**READY), "Ready"),
        (Status(**READY, is_waiting=True), "Segmenting"),
        (Status(**READY, n_windows=3, n_encoded=1, n_waiting=2), "1 of 3"),
        (Status(**READY, n_windows=3, n_encoded=3, n_waiting=0), "The view is encoded"),
        # A click encoded the last ones, before it was their turn.
        (Status(**READY, n_windows=3, n_encoded=3, n_waiting=1), "The view is encoded"),
        (Status(**READY, n_windows=0, n_waiting=0), "The view is encoded"),
        (Status(**READY, n_windows=3, n_encoded=1, n_waiting=None), "Ready"),
        (Status(**READY, is_in_view=False), 'scene is not in the view. <a href="zoom">'),
        (Status(**{**READY, "is_tool_active": False}), 'href="tool"'),
    ],
)
def test_headline(status: Status, words: str) -> None:
    assert words in status.headline()


def test_names_are_escaped() -> None:
    assert "a&lt;b&gt;" in Status(Phase.CLOSED, "a<b>").headline()


@pytest.mark.parametrize(
    ("status", "bar"),
    [
        (Status(), None),
        (Status(Phase.OPENING), (0, 0)),
        (Status(Phase.OPENING, fraction=0.25), (25, 100)),
        (Status(**READY, n_windows=4, n_encoded=1, n_waiting=3), (1, 4)),
        (Status(**READY, n_windows=4, n_encoded=4, n_waiting=0), None),
        (Status(Phase.FAILED, sentence="no"), None),
    ],
)
def test_bar(status: Status, bar: tuple[int, int] | None) -> None:
    assert status.bar() == bar


def test_device_is_told_with_the_reason_once_it_is_known() -> None:
    assert Status(**READY).device_line() == "MobileSAM on CPU: torch was built without CUDA."
    assert Status(Phase.OPENING).device_line() == ""
