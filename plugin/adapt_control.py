"""Walks an analyst through domain adaptation: what each step is given, where its result goes, what the page says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qgis.core import QgsMapLayer, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, QTimer, QUrl, pyqtSignal
from qgis.PyQt.QtGui import QColor, QDesktopServices

from ..models.semantic.card import PackageError, SegmenterCard, read_card
from .actions import Actions
from .adapt_panel import AdaptPanel, StepState, action_keys
from .adapt_run import AlgorithmRun, open_dialog
from .adapt_steps import (
    ALGORITHMS,
    TRAIN,
    add_map,
    bands_of,
    layer_name,
    made_layer,
    mean_ious,
    n_labelled,
    new_file,
    parameters,
    pixel_m,
    places_of,
    raster_of,
    vector_layer,
)
from .adapt_story import Stories, Story
from .adapt_words import (
    ADAPT,
    JUDGE,
    MAP,
    SELECT,
    SHIFT,
    STEPS,
    TO_DO,
    TUNE,
    Mark,
    Results,
    card_line,
    done_text,
    fits,
    not_needed_text,
    plain,
    warning,
)
from .class_style import OWN_LAYER, show_class
from .classes import Classes
from .crs import CoordinateError
from .editing import add_copies
from .feature_sink import SinkError
from .field_mapping import default_mapping, remember_mapping
from .target import TargetChoice

_SETTLE_MS = 150
_NO_CLASS_COLOUR = QColor("#ffffff")

_COMMANDS = {
    SHIFT: ("Measure how far the image is", "Measure", "Measure how far the image is; takes a minute or so"),
    ADAPT: ("Adapt without labels", "Adapt", "Let the model get used to the image; takes minutes"),
    SELECT: (
        "Show places to label",
        "Show places",
        "Mark the places to label, in a layer that clicks and the class key K write to",
    ),
    TUNE: ("Learn from the labels", "Learn", "Let the model learn from all labels so far; takes minutes"),
    MAP: ("Map the whole image", "Make the map", "Map the image with the newest model that was kept"),
    JUDGE: ("Compare the models", "Compare", "Measure the model that you began with and the newest one on labels"),
}
"""What starts a step: in the menu, on its button, and in the tip."""

RunFactory = Callable[[str, Mapping[str, Any]], AlgorithmRun]
OpenDialog = Callable[[str, Mapping[str, Any], Callable[[dict[str, Any]], None]], None]


class AdaptControl(QObject):
    """`notified` carries a sentence for the message bar; `labelling_wanted` the image whose places are to be labelled.

    `page_wanted`: what the page says is to be seen.
    `make_run` and `open_dialog` start algorithms: in the background, and in Processing's dialog.
    """

    notified = pyqtSignal(str)
    labelling_wanted = pyqtSignal(object)
    page_wanted = pyqtSignal()

    def __init__(
        self,
        *,
        target: TargetChoice,
        classes: Classes,
        actions: Actions,
        parent: QObject,
        make_run: RunFactory = AlgorithmRun,
        open_dialog: OpenDialog = open_dialog,
    ) -> None:
        super().__init__(parent)
        self._target, self._classes = target, classes
        self.make_run, self.open_dialog = make_run, open_dialog
        self._add_actions(actions)
        self.panel = AdaptPanel(actions)
        self._stories = Stories()
        self._card: SegmenterCard | None = None
        self._card_problem = ""
        self._run: AlgorithmRun | None = None
        self._running, self._fraction, self._said = "", 0.0, ""
        self._running_story: Story | None = None
        self._failures: dict[str, str] = {}
        self._watched: QgsVectorLayer | None = None
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self.show)
        panel = self.panel
        panel.model_file.fileChanged.connect(lambda _path: self._on_chosen())
        # Only what the user picks counts: when a layer goes, a combo box takes another one by itself.
        panel.raster_combo.activated.connect(lambda _index: self._on_chosen())
        for combo in (panel.labels_combo, panel.check_combo, panel.source_combo, panel.source_labels_combo):
            combo.activated.connect(lambda _index: self._on_layers_chosen())
        for step, row in panel.rows.items():
            row.report_wanted.connect(partial(self._open_report, step))
        project = QgsProject.instance()
        project.readProject.connect(self._read)
        project.cleared.connect(self._read)
        project.layersRemoved.connect(self._on_removed)
        self._read()

    def dispose(self) -> None:
        """End what runs and let go of the project."""
        self._abandon()
        self._settle.stop()
        self._watch(None)
        project = QgsProject.instance()
        project.readProject.disconnect(self._read)
        project.cleared.disconnect(self._read)
        project.layersRemoved.disconnect(self._on_removed)

    @property
    def story(self) -> Story:
        """What was done with the model and the image that are chosen."""
        return self._stories.current

    def suggest_image(self, layer: QgsMapLayer | None) -> None:
        """Take the image that is segmented by clicks, where none was chosen yet."""
        if isinstance(layer, QgsRasterLayer) and layer.providerType() == "gdal" and raster_of(self.story) is None:
            self.panel.raster_combo.setLayer(layer)
            self._on_chosen()

    def show(self) -> None:
        """Show how everything stands."""
        raster = raster_of(self.story)
        n_wanted = 0 if self._card is None else len(self._card.bands)
        n_bands = None if raster is None else bands_of(raster, wanted=n_wanted)
        if not self.story.model:
            text = "A model that was made for other images, and the image to map."
        elif self._card is None:
            text = warning(self._card_problem)
        else:
            line, problem = card_line(self._card, n_bands=n_bands, gsd_m=None if raster is None else pixel_m(raster))
            text = plain(line) + (f"<br>{warning(problem)}" if problem else "")
        is_chosen = self._card is not None and raster is not None
        self.panel.show_choice(Mark.DONE if is_chosen else Mark.NEXT, text)
        if self._card is not None and n_bands is not None:
            is_chosen = fits(self._card, n_bands=n_bands)
        states = {step: self._state(step, is_chosen=is_chosen) for step in STEPS}
        following = next((step for step in STEPS if is_chosen and states[step].mark is Mark.LATER), "")
        if following and not self._running:
            states[following] = states[following]._replace(mark=Mark.NEXT)
        for step, state in states.items():
            self.panel.rows[step].show_state(state, is_free=not self._running)

    def _add_actions(self, actions: Actions) -> None:
        add = partial(actions.add, group="Adapt")
        tip = "Bring a segmentation model to another image, step by step"
        add("adapt", "Adapt a model", self.page_wanted.emit, tip=tip, icon="adaptmodel")
        tip = "Make a model from images and labels of a place that you know"
        add("train", "Train a model…", self._train, tip=tip, label="Train one first…")
        for step, (text, label, tip) in _COMMANDS.items():
            key, options_key = action_keys(step)
            add(key, text, partial(self._on_pressed, step), tip=tip, label=label)
            all_of_it = f"See and change everything before '{label}'"
            add(options_key, f"{text}: options…", partial(self._on_options, step), tip=all_of_it, label="Options…")

    def _state(self, step: str, *, is_chosen: bool) -> StepState:
        story = self.story
        result = story.results.get(step)
        labels = vector_layer({TUNE: story.labels_id, JUDGE: story.check_id}.get(step, ""))
        is_possible = is_chosen and (step not in (TUNE, JUDGE) or n_labelled(labels) > 0)
        if step == SELECT and result is not None and vector_layer(result.get("LAYER", "")) is None:
            result = None
        has_report = result is not None and bool(result.get("REPORT"))
        if self._running == step and self._running_story is story:
            text = plain(self._said or "Begins…")
            return StepState(Mark.RUNNING, text, is_possible, has_report, self._fraction)
        if step in self._failures:
            return StepState(Mark.FAILED, warning(self._failures[step]), is_possible, has_report)
        if result is not None:
            text = done_text(step, result, n_with_class=n_labelled(vector_layer(story.labels_id)))
            if step == JUDGE and story.check_id == story.labels_id and TUNE in story.results:
                text += " That is too kind: the model learned from these labels."
            if not story.is_outdated(step):
                return StepState(Mark.DONE, plain(text), is_possible, has_report)
            return StepState(Mark.LATER, plain(f"{text} There is a newer model now."), is_possible, has_report)
        if words := not_needed_text(step, story.results):
            return StepState(Mark.NOT_NEEDED, plain(words), is_possible)
        return StepState(Mark.LATER, plain(TO_DO[step]), is_possible)

    def _on_pressed(self, step: str) -> None:
        if self._run is not None:
            self._run.stop()
            self._said = "Stops…"
            self.show()
            return
        given = self._given(step)
        if given is None:
            return
        run = self.make_run(ALGORITHMS[step], given)
        self._run, self._running, self._running_story = run, step, self.story
        self._fraction, self._said = 0.0, ""
        self._failures.pop(step, None)
        run.progressed.connect(self._on_progress)
        run.informed.connect(self._on_said)
        run.ended.connect(partial(self._on_ended, self.story, step, given))
        self.show()
        run.start()

    def _on_options(self, step: str) -> None:
        given = self._given(step)
        if given is not None:
            self.open_dialog(ALGORITHMS[step], given, partial(self._take, self.story, step, given))

    def _given(self, step: str) -> dict[str, Any] | None:
        try:
            return parameters(step, self.story)
        except OSError as error:
            self.notified.emit(f"There is no folder for results ({error}); save the project in one that has room.")
            return None

    def _on_progress(self, fraction: float) -> None:
        self._fraction = fraction
        self._settle.start()

    def _on_said(self, line: str) -> None:
        self._said = line
        self._settle.start()

    def _on_ended(self, story: Story, step: str, given: dict[str, Any], results: dict[str, Any], sentence: str) -> None:
        self._run, self._running = None, ""
        if sentence:
            self._failures[step] = sentence
            self.show()
        else:
            self._take(story, step, given, results)

    def _take(self, story: Story, step: str, given: dict[str, Any], results: dict[str, Any]) -> None:
        """Take in what a step gave, however it was run."""
        self._failures.pop(step, None)
        if step == JUDGE:
            results = {**results, "IOUS": mean_ious(results.get("TABLE", ""))}
        result = story.record(step, results, model=given.get("MODEL") or given["MODELS"][-1])
        if step == MAP:
            add_map(result, name=f"Map of {layer_name(story.raster_id)}")
        elif step == SELECT:
            self._take_places(story, result)
        self._stories.write()
        self._show_layers()
        self.show()

    def _take_places(self, story: Story, result: Results) -> None:
        """Make the places the target of clicks; those of later rounds join the layer of the first."""
        made = made_layer(result.get("OUTPUT", ""))
        labels = places_of(story)
        if made is None:
            self._failures[SELECT] = f"The layer {result.get('OUTPUT', '')} cannot be opened; look at Processing's log."
            return
        if labels is None:
            made.setName(f"Places to label in {layer_name(story.raster_id)}")
            made.setCustomProperty(OWN_LAYER, True)
            # Chosen: that it has no fields for how an object came about is no news.
            remember_mapping(made, default_mapping(made))
            labels = made
            QgsProject.instance().addMapLayer(made)
        elif made is not labels:
            try:
                self._target.set_layer(labels)
                self._target.do(lambda layer: add_copies(layer, made))
            except (SinkError, CoordinateError) as error:
                self._failures[SELECT] = str(error)
                return
            if vector_layer(made.id()) is not None:  # the dialog has added it
                QgsProject.instance().removeMapLayer(made.id())
        result["LAYER"] = story.labels_id = labels.id()
        story.check_id = story.check_id or labels.id()
        for one in self._card.classes if self._card is not None else ():
            if one.name not in self._classes.names():
                self._classes.add(one.name, QColor(*one.colour))
        show_class(labels, "", colour=_NO_CLASS_COLOUR)
        for name in self._classes.names():
            show_class(labels, name, colour=self._classes.colour(name))
        self._target.set_layer(labels)
        self.labelling_wanted.emit(QgsProject.instance().mapLayer(story.raster_id))

    def _train(self) -> None:
        try:
            given = {"OUTPUT": new_file(Story(), "model", ".safetensors")}
        except OSError:
            given = {}  # the dialog asks
        self.open_dialog(TRAIN, given, lambda results: self.panel.model_file.setFilePath(results["OUTPUT"]))

    def _open_report(self, step: str) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(self.story.results[step]["REPORT"]))

    def _on_chosen(self) -> None:
        layer = self.panel.raster_combo.currentLayer()
        self._stories.choose(model=self.panel.model_file.filePath(), raster_id="" if layer is None else layer.id())
        self._failures.clear()
        self._read_card()
        self._show_layers()
        self.show()

    def _on_layers_chosen(self) -> None:
        panel, story = self.panel, self.story
        combos = (panel.labels_combo, panel.check_combo, panel.source_combo, panel.source_labels_combo)
        ids = ("" if layer is None else layer.id() for layer in (combo.currentLayer() for combo in combos))
        story.labels_id, story.check_id, story.source_id, story.source_labels_id = ids
        self._stories.write()
        self._watch(panel.labels_combo.currentLayer())
        self.show()

    def _read(self, *_document: object) -> None:
        """Show what the project holds."""
        self._abandon()
        self._failures.clear()
        self._stories.read()
        self.panel.model_file.blockSignals(True)
        self.panel.model_file.setFilePath(self.story.model)
        self.panel.model_file.blockSignals(False)
        self._read_card()
        self._show_layers()
        self.show()

    def _read_card(self) -> None:
        self._card, self._card_problem = None, ""
        if self.story.model:
            try:
                self._card = read_card(Path(self.story.model))
            except PackageError as error:
                self._card_problem = str(error)

    def _show_layers(self) -> None:
        panel, story = self.panel, self.story
        shown = (
            (panel.raster_combo, raster_of(story)),
            (panel.labels_combo, vector_layer(story.labels_id)),
            (panel.check_combo, vector_layer(story.check_id)),
            (panel.source_combo, QgsProject.instance().mapLayer(story.source_id)),
            (panel.source_labels_combo, vector_layer(story.source_labels_id)),
        )
        for combo, layer in shown:
            combo.setLayer(layer)
            if layer is None:
                combo.setCurrentIndex(0)  # where it says what to choose; a layer that was taken away leaves it blank
        self._watch(vector_layer(self.story.labels_id))

    def _watch(self, layer: QgsVectorLayer | None) -> None:
        """Count anew whenever something of the labels changes."""
        if layer is self._watched:
            return
        for is_new, one in ((False, self._watched), (True, layer)):
            if one is not None and not sip.isdeleted(one):
                for signal in (one.afterCommitChanges, one.attributeValueChanged, one.featureAdded, one.afterRollBack):
                    signal.connect(self._on_labelled) if is_new else signal.disconnect(self._on_labelled)
        self._watched = layer

    def _on_labelled(self, *_change: object) -> None:
        self._settle.start()

    def _on_removed(self, _layer_ids: list[str]) -> None:
        self._show_layers()
        self.show()

    def _abandon(self) -> None:
        if self._run is not None:
            self._run.abandon()
            self._run, self._running = None, ""
