"""The page "Adapt": what each step is given, what becomes of its result, and what the user sees of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsFeature,
    QgsGeometry,
    QgsProject,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QObject, QPoint, QRect, Qt, pyqtSignal
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QAbstractButton, QLabel
from segadapt.models.semantic.card import CARD_KEY, SegmenterCard, SegmenterClass
from segadapt.plugin.adapt_run import STOPPED
from segadapt.plugin.adapt_words import ADAPT, JUDGE, MAP, SELECT, SHIFT, STEPS, TUNE, Mark

CLASSES = (SegmenterClass(0, "ground", (110, 110, 110)), SegmenterClass(1, "roof", (213, 94, 0)))


def make_card(**changes: Any) -> SegmenterCard:
    values: dict[str, Any] = {
        "name": "roofs", "decoder": "fpn", "encoder": "tf_efficientnet_lite0", "bands": ("red", "green", "blue"),
        "classes": CLASSES, "gsd_m": 0.5, "chip_px": 64, "mean": (105.0,) * 3, "std": (40.0,) * 3,
        "stretch": (0.0, 0.0, 0.0, 255.0, 255.0, 255.0), "licence": "test", "made_on": "2026-01-01",
        "segadapt_version": "0",
    }  # fmt: skip
    return SegmenterCard(**{**values, **changes})


def write_package(path: Path, **changes: Any) -> Path:
    """A package with a card and no weights: the page reads no more."""
    header = json.dumps({"__metadata__": {CARD_KEY: make_card(**changes).to_json()}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


class FakeRun(QObject):
    """Does nothing until the test says what came out."""

    progressed = pyqtSignal(float)
    informed = pyqtSignal(str)
    ended = pyqtSignal(dict, str)

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.given = name, given
        self.is_abandoned = False

    def start(self) -> None:
        for name in ("REPORT", "OUTPUT"):
            if self.given.get(name):
                Path(self.given[name]).touch()

    def stop(self) -> None:
        self.ended.emit({}, STOPPED)

    def abandon(self) -> None:
        self.is_abandoned = True


class Page:
    """The page in the dock, and hands for it."""

    def __init__(self, gui: Any) -> None:
        self.gui, self.control = gui, gui.controller.adaptation
        self.panel = self.control.panel
        self.runs: list[FakeRun] = []
        self.control.make_run = self._make_run
        gui.dock.open_page("Adapt")

    def _make_run(self, name: str, given: dict[str, Any]) -> FakeRun:
        self.runs.append(FakeRun(name, given))
        return self.runs[-1]

    def pick(self, combo: Any, layer: Any) -> None:
        """Choose a layer as a user does."""
        combo.setLayer(layer)
        combo.activated.emit(combo.currentIndex())

    def choose(self, model: Path, raster: QgsRasterLayer | None = None) -> None:
        self.panel.model_file.setFilePath(str(model))
        self.pick(self.panel.raster_combo, raster or self.gui.layer)

    def run(self, step: str, **results: Any) -> dict[str, Any]:
        """Press the button of a step, let its run end like that, and return what it was given."""
        self.panel.rows[step].button.click()
        run = self.runs[-1]
        files = {name: run.given[name] for name in ("OUTPUT", "REPORT", "TABLE") if name in run.given}
        run.ended.emit({**files, **results}, "")
        return run.given

    def text(self, step: str) -> str:
        return str(self.panel.rows[step].text.text())

    def marks(self) -> dict[str, Mark]:
        signs = {mark.value[0]: mark for mark in Mark}
        return {step: signs[self.panel.rows[step].mark.text()] for step in STEPS}

    def possible(self) -> set[str]:
        return {step for step in STEPS if self.panel.rows[step].button.isEnabled()}


@pytest.fixture
def page(gui: Any) -> Page:
    return Page(gui)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_package(tmp_path / "roofs.safetensors")


FAR = {"LEVEL": "far", "SHIFT": 0.7, "RECOMMENDED": "quantile+self_training"}
BETTER = {"IS_ADAPTED": True, "AGREEMENT_BEFORE": 0.6, "AGREEMENT_AFTER": 0.8}
WORSE = {"IS_ADAPTED": False, "AGREEMENT_BEFORE": 0.6, "AGREEMENT_AFTER": 0.5}
TAUGHT = {"IS_ADAPTED": True, "MEAN_IOU_BEFORE": 0.4, "MEAN_IOU_AFTER": 0.7}


def write_places(path: str, xs: tuple[float, ...]) -> None:
    """Squares as `selectsamples` writes them, without a class."""
    fields = "&field=rank:integer&field=score:double&field=area_m2:double&field=class:string&field=model:string"
    layer = QgsVectorLayer(f"MultiPolygon?crs=EPSG:32631{fields}", "places", "memory")
    for rank, x in enumerate(xs, 1):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromWkt(f"MultiPolygon((({x} 0,{x} 9,{x + 9} 9,{x + 9} 0,{x} 0)))"))
        feature.setAttributes([rank, 0.5, 81.0, None, "roofs"])
        layer.dataProvider().addFeature(feature)
    options = QgsVectorFileWriter.SaveVectorOptions()
    QgsVectorFileWriter.writeAsVectorFormatV3(layer, path, QgsProject.instance().transformContext(), options)


def select(page: Page, *xs: float) -> dict[str, Any]:
    """Let the places be chosen at these x."""
    page.panel.rows[SELECT].button.click()
    run = page.runs[-1]
    Path(run.given["OUTPUT"]).unlink()
    write_places(run.given["OUTPUT"], xs)
    run.ended.emit({"OUTPUT": run.given["OUTPUT"], "COUNT": len(xs), "AREA_M2": 81.0 * len(xs)}, "")
    return run.given


def give_class(page: Page, name: str, feature_ids: list[int]) -> None:
    """Select places and press K."""
    layer = page.gui.controller.target.layer()
    page.gui.controller.classes.choose(name)
    layer.selectByIds(feature_ids)
    page.gui.controller.actions["set_class"].trigger()
    layer.removeSelection()


def ids(layer: QgsVectorLayer) -> list[int]:
    return sorted(feature.id() for feature in layer.getFeatures())


def test_first_the_model_and_the_image_are_chosen(page: Page, model: Path, tmp_path: Path) -> None:
    assert page.possible() == set()
    assert set(page.marks().values()) == {Mark.LATER}
    assert not page.panel.train_button.isHidden()
    page.panel.model_file.setFilePath(str(tmp_path / "none.safetensors"))
    assert "There is no file" in page.panel.choice.text.text()
    assert page.possible() == set()
    page.choose(model)
    assert page.panel.choice.text.text() == "ground, roof · 3 bands · 50 cm per pixel"
    assert page.panel.choice.mark.text() == Mark.DONE.value[0]
    assert page.panel.train_button.isHidden()
    assert page.possible() == {SHIFT, ADAPT, SELECT, MAP}  # there are no labels yet
    assert page.marks() == {**dict.fromkeys(STEPS, Mark.LATER), SHIFT: Mark.NEXT}


def test_what_does_not_fit_the_image_is_said(page: Page, tmp_path: Path) -> None:
    page.choose(write_package(tmp_path / "fine.safetensors", gsd_m=0.1))
    assert "The image is coarser (50 cm) than what the model knows (10 cm)" in page.panel.choice.text.text()
    assert MAP in page.possible()
    four = {"bands": ("red", "green", "blue", "infrared"), "mean": (100.0,) * 4, "std": (9.0,) * 4, "stretch": None}
    page.choose(write_package(tmp_path / "four.safetensors", **four))
    assert "has 3 of the 4 bands that the model needs (red, green, blue, infrared)" in page.panel.choice.text.text()
    assert page.possible() == set()


def test_an_image_with_a_palette_has_three_bands_for_a_model_of_three(page: Page, model: Path, tmp_path: Path) -> None:
    import rasterio

    path = tmp_path / "palette.tif"
    with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8") as dataset:
        dataset.write_colormap(1, {0: (10, 20, 30, 255), 1: (200, 190, 180, 255)})
    layer = QgsRasterLayer(str(path), "palette", "gdal")
    QgsProject.instance().addMapLayer(layer)
    page.choose(model, layer)
    assert page.panel.choice.text.text() == "ground, roof · 3 bands · 50 cm per pixel"
    assert MAP in page.possible()
    two = {"bands": ("red", "infrared"), "mean": (100.0,) * 2, "std": (9.0,) * 2, "stretch": None}
    page.choose(write_package(tmp_path / "two.safetensors", **two), layer)
    assert "has 1 of the 2 bands" in page.panel.choice.text.text()
    assert page.possible() == set()


def test_the_image_that_is_segmented_is_suggested(page: Page, gui: Any) -> None:
    assert page.panel.raster_combo.currentLayer() is None
    gui.start()
    assert page.panel.raster_combo.currentLayer() is gui.layer
    assert page.control.story.raster_id == gui.layer.id()


def test_each_step_is_given_what_the_one_before_found(page: Page, model: Path, gui: Any) -> None:
    page.choose(model)
    raster = gui.layer.id()
    given = page.run(SHIFT, **FAR)
    assert page.runs[-1].name == "domainshift"
    assert (given["RASTERS"], given["MODEL"]) == ([raster], str(model))
    assert "Far: 0.70" in page.text(SHIFT)
    assert page.marks()[ADAPT] is Mark.NEXT
    adapting = page.run(ADAPT, **BETTER)
    assert adapting["METHODS"] == "quantile+self_training"
    assert adapting["OUTPUT"].endswith("scene adapted.safetensors")
    assert page.text(ADAPT) == "Kept: agreement 0.60 → 0.80."
    mapping = page.run(MAP)
    assert (mapping["INPUT"], mapping["MODEL"]) == (raster, adapting["OUTPUT"])
    assert page.marks()[MAP] is Mark.DONE
    # Another round is no better: the first one holds, and the map need not be made again.
    again = page.run(ADAPT, **WORSE)
    assert again["OUTPUT"] != adapting["OUTPUT"]
    assert again["MODEL"] == str(model)
    assert page.text(ADAPT).startswith("Not kept")
    assert page.control.story.newest == adapting["OUTPUT"]
    assert page.marks()[MAP] is Mark.DONE
    better = page.run(ADAPT, **BETTER)
    assert page.control.story.newest == better["OUTPUT"]
    assert page.marks()[MAP] is not Mark.DONE
    assert "There is a newer model now." in page.text(MAP)


def test_what_the_model_was_made_from_is_rehearsed(page: Page, model: Path, gui: Any, raster_path: Path) -> None:
    home = QgsRasterLayer(str(raster_path), "home", "gdal")
    labels = QgsVectorLayer("Polygon?crs=EPSG:32631&field=class:string", "roofs at home", "memory")
    QgsProject.instance().addMapLayers([home, labels])
    combos = (page.panel.source_combo, page.panel.source_labels_combo)
    assert [combo.currentText() for combo in combos] == ["No image of the source", "No labels of the source"]
    page.choose(model)
    page.pick(page.panel.source_combo, home)
    assert "SOURCE" not in page.run(ADAPT, **WORSE)  # an image without labels teaches nothing
    page.pick(page.panel.source_labels_combo, labels)
    given = page.run(ADAPT, **WORSE)
    assert (given["SOURCE"], given["LABELS"], given["CLASS_FIELD"]) == ([home.id()], labels.id(), "class")
    select(page, 0.0, 20.0)
    give_class(page, "roof", ids(gui.controller.target.layer()))
    gui.wait_for(lambda: TUNE in page.possible())
    given = page.run(TUNE, **TAUGHT)
    assert given["LABELS"] == gui.controller.target.layer().id()
    assert (given["SOURCE"], given["SOURCE_LABELS"]) == ([home.id()], labels.id())
    assert given["SOURCE_CLASS_FIELD"] == "class"
    # It belongs to the model, and stays with it on another image.
    page.pick(page.panel.raster_combo, home)
    assert page.panel.source_combo.currentLayer() is home
    assert page.control.story.labels_id == ""
    page.pick(page.panel.raster_combo, gui.layer)
    QgsProject.instance().removeMapLayer(home.id())
    assert page.panel.source_combo.currentLayer() is None
    assert "SOURCE" not in page.run(ADAPT, **WORSE)


def test_a_near_image_needs_no_adaptation(page: Page, model: Path) -> None:
    page.choose(model)
    page.run(SHIFT, LEVEL="near", SHIFT=0.1, RECOMMENDED="quantile")
    assert page.marks() == {
        SHIFT: Mark.DONE, ADAPT: Mark.NOT_NEEDED, SELECT: Mark.NOT_NEEDED, TUNE: Mark.NOT_NEEDED, MAP: Mark.NEXT,
        JUDGE: Mark.LATER,
    }  # fmt: skip
    assert ADAPT in page.possible()  # who wants to can


def test_what_runs_is_shown_and_can_be_stopped(page: Page, model: Path, gui: Any) -> None:
    page.choose(model)
    row = page.panel.rows[ADAPT]
    row.button.click()
    assert page.possible() == {ADAPT}
    assert (row.button.text(), page.marks()[ADAPT]) == ("Stop", Mark.RUNNING)
    assert not row.bar.isHidden()
    page.runs[-1].progressed.emit(0.25)
    page.runs[-1].informed.emit("Step 50 of 200: loss <0.4")
    gui.wait_for(lambda: "Step 50 of 200: loss &lt;0.4" in page.text(ADAPT))
    assert row.bar.value() == row.bar.maximum() // 4
    row.button.click()
    assert (row.button.text(), page.marks()[ADAPT]) == ("Adapt", Mark.FAILED)
    assert STOPPED in page.text(ADAPT)
    assert row.bar.isHidden()
    row.button.click()
    page.runs[-1].ended.emit({}, "The raster has no data.")
    assert "The raster has no data." in page.text(ADAPT)
    assert ADAPT not in page.control.story.results
    page.run(ADAPT, **BETTER)
    assert page.marks()[ADAPT] is Mark.DONE


def test_a_result_goes_to_the_image_that_it_was_made_for(page: Page, model: Path, gui: Any, raster_path: Path) -> None:
    other = QgsRasterLayer(str(raster_path), "other", "gdal")
    QgsProject.instance().addMapLayer(other)
    page.choose(model)
    page.panel.rows[SHIFT].button.click()
    page.pick(page.panel.raster_combo, other)
    assert page.marks()[SHIFT] is Mark.NEXT or page.marks()[SHIFT] is Mark.LATER
    page.runs[-1].ended.emit(FAR, "")
    assert SHIFT not in page.control.story.results
    page.pick(page.panel.raster_combo, gui.layer)
    assert page.control.story.results[SHIFT]["LEVEL"] == "far"
    QgsProject.instance().removeMapLayer(gui.layer.id())
    assert page.panel.raster_combo.currentLayer() is None
    assert page.possible() == set()


def test_places_are_labelled_with_the_interactive_tool_round_by_round(page: Page, model: Path, gui: Any) -> None:
    page.choose(model)
    given = select(page, 0.0, 20.0, 40.0)
    assert "LABELLED" not in given
    layer = gui.controller.target.layer()
    assert layer.name() == "Places to label in scene"
    assert layer in QgsProject.instance().mapLayers().values()
    assert gui.controller.classes.names() == ["ground", "roof"]
    assert gui.controller.classes.colour("roof").getRgb()[:3] == (213, 94, 0)
    assert gui.controller.scene.layer is gui.layer
    assert gui.canvas.mapTool() is gui.controller.prompts.tool
    assert TUNE not in page.possible()
    give_class(page, "roof", ids(layer)[:2])
    gui.wait_for(lambda: "2 have a class" in page.text(SELECT))
    assert {TUNE, JUDGE} <= page.possible()
    assert page.panel.labels_combo.currentLayer() is layer
    taught = page.run(TUNE, **TAUGHT)
    assert (taught["LABELS"], taught["CLASS_FIELD"], taught["MODEL"]) == (layer.id(), "class", str(model))
    assert page.text(TUNE).startswith("Round 1. Kept: mean IoU 0.40 → 0.70")
    # The next round is chosen with the new model, joins the layer, and learning begins anew from all labels.
    given = select(page, 60.0)
    assert (given["MODEL"], given["LABELLED"]) == (taught["OUTPUT"], layer.id())
    assert gui.controller.target.layer() is layer
    assert layer.featureCount() == 4
    assert {feature["model"] for feature in layer.getFeatures()} == {"roofs"}
    again = page.run(TUNE, **TAUGHT)
    assert again["MODEL"] == str(model)
    assert page.text(TUNE).startswith("Round 2.")
    assert page.control.story.newest == again["OUTPUT"]
    assert gui.notices == []


def test_an_adaptation_that_is_refused_leaves_the_taught_model_the_newest(page: Page, model: Path) -> None:
    page.choose(model)
    page.run(ADAPT, **BETTER)
    select(page, 0.0, 20.0)
    give_class(page, "roof", ids(page.gui.controller.target.layer()))
    page.gui.wait_for(lambda: TUNE in page.possible())
    taught = page.run(TUNE, **TAUGHT)
    page.run(ADAPT, **WORSE)
    assert page.control.story.newest == taught["OUTPUT"]
    again = page.run(ADAPT, **BETTER)
    assert page.control.story.newest == again["OUTPUT"]


def test_models_are_compared_on_labels(page: Page, model: Path, gui: Any) -> None:
    page.choose(model)
    select(page, 0.0, 20.0)
    give_class(page, "roof", ids(gui.controller.target.layer()))
    gui.wait_for(lambda: JUDGE in page.possible())
    taught = page.run(TUNE, **TAUGHT)
    page.panel.rows[JUDGE].button.click()
    run = page.runs[-1]
    assert run.given["MODELS"] == [str(model), taught["OUTPUT"]]
    assert run.given["LABELS"] == page.control.story.labels_id
    table = "model,class,iou\nroofs,roof,0.3\nroofs,(all),0.41\nnew,roof,0.7\nnew,(all),0.69\n"
    Path(run.given["TABLE"]).write_text(table, encoding="utf-8")
    run.ended.emit({"TABLE": run.given["TABLE"], "MEAN_IOU": 0.41}, "")
    assert "Mean IoU 0.41 before, 0.69 now. That is too kind" in page.text(JUDGE)
    truth = QgsVectorLayer("Polygon?crs=EPSG:32631&field=class:string", "truth", "memory")
    QgsProject.instance().addMapLayer(truth)
    page.pick(page.panel.check_combo, truth)
    assert "too kind" not in page.text(JUDGE)
    assert page.control.story.labels_id != truth.id()


def test_a_layer_of_the_user_is_learned_from_but_not_written_to(page: Page, model: Path, gui: Any) -> None:
    mine = QgsVectorLayer("Polygon?crs=EPSG:32631&field=kind:string", "mine", "memory")
    feature = QgsFeature(mine.fields())
    feature.setGeometry(QgsGeometry.fromWkt("Polygon((0 0,0 9,9 9,0 0))"))
    mine.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(mine)
    page.choose(model)
    page.pick(page.panel.labels_combo, mine)
    assert TUNE in page.possible()
    page.panel.rows[TUNE].button.click()
    assert (page.runs[-1].given["LABELS"], page.runs[-1].given["CLASS_FIELD"]) == (mine.id(), "")
    page.runs[-1].stop()
    assert "LABELLED" not in select(page, 20.0)
    assert mine.featureCount() == 1
    assert gui.controller.target.layer() is not mine


def test_options_open_the_dialog_and_its_results_count(page: Page, model: Path) -> None:
    opened: list[Any] = []
    page.control.open_dialog = lambda *call: opened.append(call)
    page.panel.train_button.click()
    name, given, take = opened.pop()
    assert name == "trainmodel"
    take({"OUTPUT": str(model)})
    assert page.panel.model_file.filePath() == str(model)
    page.choose(model)
    page.panel.rows[ADAPT].options.click()
    name, given, take = opened.pop()
    assert (name, given["MODEL"]) == ("adaptmodel", str(model))
    take({**BETTER, "OUTPUT": str(model.with_name("other.safetensors"))})
    assert page.control.story.newest == str(model.with_name("other.safetensors"))
    assert page.runs == []


def test_reports_are_opened(page: Page, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    page.choose(model)
    label = page.panel.rows[SHIFT].report
    assert label.isHidden()
    given = page.run(SHIFT, **FAR)
    assert not label.isHidden()
    label.linkActivated.emit("report")
    assert opened == [given["REPORT"]]


def test_everything_is_in_the_project(page: Page, model: Path, gui: Any, tmp_path: Path) -> None:
    project = QgsProject.instance()
    path = tmp_path / "projekt" / "one.qgs"
    path.parent.mkdir()
    project.write(str(path))
    page.choose(model)
    page.run(SHIFT, **FAR)
    adapting = page.run(ADAPT, **BETTER)
    assert Path(adapting["OUTPUT"]).parent == path.parent / "adaptation"
    select(page, 0.0, 20.0)
    mapping = page.run(MAP)
    project.write(str(path))
    page.panel.rows[SHIFT].button.click()
    project.clear()
    assert page.runs[-1].is_abandoned
    assert page.panel.model_file.filePath() == ""
    assert page.possible() == set()
    Path(mapping["OUTPUT"]).unlink()
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    assert project.read(str(moved / "one.qgs"))
    assert page.panel.model_file.filePath() == str(model)
    assert page.panel.raster_combo.currentText() == "scene"
    assert "2 places" in page.text(SELECT)
    assert page.control.story.newest == str(moved / "adaptation" / Path(adapting["OUTPUT"]).name)
    marks = page.marks()
    assert {step for step in STEPS if marks[step] is Mark.DONE} == {SHIFT, ADAPT, SELECT}
    assert not project.isDirty()
    project.writeEntry("SegAdapt", "adaptation", "[3")
    page.control._read()
    assert page.panel.model_file.filePath() == ""


def test_no_folder_to_write_to_is_said(page: Page, model: Path, gui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segadapt.plugin.adapt_steps.folders", lambda: iter([Path("/proc/none")]))
    page.choose(model)
    page.panel.rows[ADAPT].button.click()
    assert page.runs == []
    assert "There is no folder for results" in gui.notices[0]


def test_nothing_is_cut_off_and_the_tab_key_reaches_everything(page: Page, model: Path, gui: Any) -> None:
    gui.window.resize(1000, 700)
    page.choose(model)
    page.run(SHIFT, **FAR)
    page.run(ADAPT, **WORSE)
    page.panel.rows[SELECT].button.click()
    gui.window.resizeDocks([gui.dock], [200], Qt.Orientation.Horizontal)
    QTest.qWait(50)
    for widget in page.panel.findChildren(QAbstractButton) + page.panel.findChildren(QLabel):
        if widget.isVisibleTo(page.panel) and not page.panel.model_file.isAncestorOf(widget):
            place = QRect(widget.mapTo(page.panel, QPoint(0, 0)), widget.size())
            assert page.panel.rect().contains(place), widget.text()
            if isinstance(widget, QLabel) and widget.wordWrap():
                assert widget.height() >= widget.heightForWidth(widget.width()), widget.text()
            else:
                assert widget.width() >= widget.sizeHint().width(), widget.text()
    scroll = gui.dock._scroll
    assert scroll.widget().width() <= scroll.viewport().width()
    for row in page.panel.rows.values():
        assert all(one.focusPolicy() == Qt.FocusPolicy.TabFocus for one in (row.button, row.options, row.report))
    row = page.panel.rows[SHIFT]
    row.options.setFocus(Qt.FocusReason.TabFocusReason)
    QTest.keyClick(row.options, Qt.Key.Key_Tab)
    assert row.report.hasFocus()
    page.runs[-1].stop()
    page.panel.rows[MAP].button.setFocus(Qt.FocusReason.TabFocusReason)
    QTest.keyClick(page.panel.rows[MAP].button, Qt.Key.Key_Space)
    assert page.runs[-1].name == "segmentraster"


def test_the_menu_opens_the_page(gui: Any) -> None:
    gui.dock.page("Adapt").setCollapsed(True)
    gui.controller.actions["adapt"].trigger()
    assert not gui.dock.page("Adapt").isCollapsed()
