"""The page of an evaluation: complete, self-contained, safe with any text, the same for the same results."""

from __future__ import annotations

import base64
import errno
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import shapely
from segadapt.processing.errors import JobError
from segadapt.processing.jobs.evaluate_interactive import (
    Configuration,
    EvaluateInteractive,
    evaluate_interactive,
    plain_options,
)
from segadapt.processing.jobs.page import write_csv, write_report
from segadapt.processing.jobs.report import interactive_report, measure_label
from segadapt.processing.jobs.simulated_analyst import Reference
from shapely.geometry import box

METADATA = (Path(__file__).resolve().parents[2] / "metadata.txt").read_text(encoding="utf-8")
VERSION = re.search(r"^version=(.+)$", METADATA, re.MULTILINE)[1]

NASTY = "<script>alert('$x_1$ & \"y\"')</script>"
HOUSES = [box(40 + 60 * i, 40 + 60 * j, 72 + 60 * i, 64 + 60 * j) for i in range(3) for j in range(3)]
# Halves of houses, whose answers are never right; the last one is right at once.
HALVES = [*(box(*house.bounds[:3], house.bounds[1] + 12) for house in HOUSES[:-1]), HOUSES[-1]]


@pytest.fixture
def evaluation(paint_scene, open_scene, fake_engine):
    scene = open_scene(paint_scene((256, 256), HOUSES), fake_engine)
    references = [
        Reference(shapely.transform(outline, scene.reader.to_map), f"{NASTY} {i}", "_class")
        for i, outline in enumerate(HALVES)
    ]
    configurations = (Configuration("_plain $", plain_options(window_px=256)), Configuration(NASTY, plain_options()))
    job = EvaluateInteractive(configurations=configurations, n_clicks=6, n_first=4, n_resamples=50)
    return scene, evaluate_interactive(scene, [*references, Reference(box(0, 0, 1, 1), "far")], job)


class Page(HTMLParser):
    """Texts of the page, its tags in order, and sources of images; raises where a tag is not closed."""

    VOID = frozenset({"meta", "img", "br", "!doctype"})

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.images, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page_of(evaluation):
    scene, found = evaluation
    return interactive_report(found, scene.reader, title=f"Title {NASTY}", device="cpu", layer=NASTY)


def test_the_page_tells_everything(evaluation):
    page = Page(page_of(evaluation))
    text = "\n".join(page.texts)
    for expected in (
        "9 of 10 polygons",
        "1 outside the raster",
        "fake (fp32)",
        "at most 6 clicks per object, targets 80 / 85 / 90 % IoU",
        "mean IoU after 1 click",
        "clicks to IoU 85 %",
        "objects that never reach 90 %",
        "seconds per click, 95th percentile",
        "After the first 4 objects",
        "Difference to '_plain $', object by object",
        VERSION,
    ):
        assert expected in text
    _, found = evaluation
    interval = found.results[0].summary["miou_5"]
    assert f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" in text
    assert "after 10 clicks" not in text  # six were allowed
    assert page.tags.count("h2") >= 9
    # What the user wrote is text, whatever it looks like.
    assert "script" not in page.tags
    assert f"Title {NASTY}" in page.texts
    assert NASTY in page.texts


def test_plots_are_pictures_within_the_page(evaluation):
    text = page_of(evaluation)
    page = Page(text)
    assert [image["src"].partition(";")[0] for image in page.images] == ["data:image/svg+xml"] * 4 + ["data:image/png"]
    assert all(image["alt"] for image in page.images)
    svg = base64.b64decode(page.images[0]["src"].partition(",")[2]).decode()
    assert svg.lstrip().startswith("<?xml")
    # Nothing is fetched: no address beside names of XML.
    outside = re.sub(r"data:[^\"]+", "", text)
    assert "http" not in outside
    assert not re.search(r'href="http|@import|url\(http', svg)
    # The same results make the same page.
    assert page_of(evaluation) == text


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    write_report("<p>ü</p>", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>ü</p>"
    with pytest.raises(JobError, match="choose another folder"):
        write_report("text", tmp_path / "missing" / "page.html")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(JobError, match="choose another folder"):
        write_report("text", tmp_path / "file" / "page.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(JobError, match="Cannot write the report"):
        write_report("text", tmp_path / "folder.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html", "page.html"]


@pytest.mark.parametrize(("write", "content"), [(write_report, "<p>new</p>"), (write_csv, [["new", 1]])])
def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch, write, content):
    path = tmp_path / "result"
    path.write_text("older")

    def write_half(part, text, **options):
        with part.open("w", **options) as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(JobError, match=r"Cannot write the .* \(No space left.*\); choose another folder\."):
        write(content, path)
    assert [(file, file.read_text()) for file in tmp_path.iterdir()] == [(path, "older")]


def test_labels_are_words():
    assert measure_label("miou_3") == "mean IoU after 3 clicks"
    assert measure_label("noc_by_area_85") == "clicks to IoU 85 %, by area"
    assert measure_label("click_median_s") == "seconds per click, median"
