"""Wires dock, map tool, scene and worker together, and takes all of it apart again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from qgis.core import QgsMapLayer, QgsRasterLayer, QgsSettings
from qgis.gui import QgsMapCanvas, QgsMessageBar
from qgis.PyQt.QtCore import QCoreApplication, QObject
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QFileDialog, QLineEdit

from ..models.registry import list_models
from ..processing.algorithms.settings import read_settings
from .actions import Actions
from .adapt_control import AdaptControl
from .backend import Backend
from .cache_overlay import CacheOverlay
from .cheat_sheet import CheatSheet
from .class_map_control import HINT as CLASS_MAP_HINT
from .class_map_control import ClassMapControl
from .class_panel import ClassPanel
from .classes import Classes
from .dock import MAP_AS_SHOWN, SegAdaptDock
from .edit_control import EditControl
from .engine_worker import EngineWorker
from .learning_control import LearningControl
from .modes import Mode
from .prompt_control import PromptControl
from .rendered_source import Look, offered_looks
from .scene_control import SceneControl
from .settings import COVERAGE, MODEL, write_setting
from .shape_panel import ShapePanel
from .similar_control import SimilarControl
from .status import CANCEL_LINK, RETRY_LINK, SETTINGS_LINK, TOOL_LINK, ZOOM_LINK
from .target import TargetChoice
from .tool_actions import ToolActions

# The same sentence again within this time tells nothing new.
_QUIET_S = 5.0
_REVIEW_HINT = (
    "Click on a candidate or draw across several to accept, with the right button to reject; A and R answer for the "
    "white one, Esc leaves."
)


class StatusBar(Protocol):
    """What is needed of QGIS's status bar."""

    def showMessage(self, text: str, timeout: int = 0) -> None:
        """Show a text."""

    def clearMessage(self) -> None:
        """Show none."""


class Controller(QObject):
    """Owns everything but the dock. `backend` computes; without `message_bar` sentences stay unsaid."""

    def __init__(
        self,
        canvas: QgsMapCanvas,
        dock: SegAdaptDock,
        *,
        backend: Backend,
        message_bar: QgsMessageBar | None,
        status_bar: StatusBar | None = None,
    ) -> None:
        super().__init__()
        self._canvas, self._dock = canvas, dock
        self._message_bar, self._status_bar = message_bar, status_bar
        self._last_notice = ("", 0.0)
        self._cheat_sheet: CheatSheet | None = None
        self.actions = Actions(self)
        self.classes = Classes(self)
        self.worker = EngineWorker(backend)
        self.scene = SceneControl(canvas, self.worker, self)
        self.target = TargetChoice(dock.target_combo, ask_path=self._ask_geopackage, parent=self, classes=self.classes)
        self.prompts = PromptControl(
            canvas,
            self.worker,
            scene=self.scene,
            target=self.target,
            classes=self.classes,
            shape_options=lambda: self.shape_panel.options,
            actions=self.actions,
            parent=self,
        )
        self._tool_actions = ToolActions(
            self.actions,
            prompts=self.prompts,
            classes=self.classes,
            activate=self.activate_tool,
            ask_fields=lambda: self.target.ask_fields(dock),
            parent=self,
        )
        self.edits = EditControl(
            canvas,
            prompts=self.prompts,
            target=self.target,
            classes=self.classes,
            actions=self.actions,
            parent=self,
        )
        # In the order of the pages, which is that of the menu.
        self.class_panel = ClassPanel(self.classes, self.actions)
        self.shape_panel = ShapePanel(self.actions)
        self.similar = SimilarControl(
            canvas,
            self.worker,
            scene=self.scene,
            target=self.target,
            actions=self.actions,
            parent=self,
            classes=self.classes,
            shape_options=lambda: self.shape_panel.options,
        )
        self.class_map = ClassMapControl(
            canvas,
            self.worker,
            scene=self.scene,
            actions=self.actions,
            class_choice=lambda: (self.classes.current, self.classes.colour(self.classes.current)),
            parent=self,
        )
        self.learning = LearningControl(
            self.worker,
            scene=self.scene,
            history=self.target.history,
            actions=self.actions,
            line=dock.learning_label,
            parent=self,
        )
        self.adaptation = AdaptControl(target=self.target, classes=self.classes, actions=self.actions, parent=self)
        self.coverage = CacheOverlay(canvas, self.scene, self)
        self._add_help()
        self._fill_dock()
        self._connect()
        self._on_model_chosen()
        self.prompts.redraw()
        self._tool_actions.restore_mode()

    def start(self, layer: QgsRasterLayer | None) -> None:
        """Begin with a raster layer, None to let the user choose."""
        if layer is not None and self.scene.source is None:
            self._dock.raster_combo.setLayer(layer)
        self._activate_on_raster()

    def activate_tool(self, is_wanted: bool) -> None:
        """Give the canvas our tool, or take it away."""
        tool = self.prompts.tool
        if not is_wanted:
            self._canvas.unsetMapTool(tool)
        elif self._canvas.mapTool() is not tool:
            # The same tool again would be deactivated in between, and stop encoding.
            self._canvas.setMapTool(tool)

    def _activate_on_raster(self) -> None:
        if self.scene.source is not None:
            self.activate_tool(True)

    def dispose(self) -> None:
        """Stop the worker, which frees the engine, and leave canvas, project and dock."""
        self._canvas.mapToolSet.disconnect(self._on_tool_set)
        self.coverage.dispose()
        self.adaptation.dispose()
        self.class_map.dispose()
        self.similar.dispose()
        self.prompts.dispose()
        self.scene.dispose()
        self.target.dispose()
        self.classes.dispose()
        if self._cheat_sheet is not None:
            self._cheat_sheet.destroyed.disconnect(self._on_cheat_sheet_gone)
            self._cheat_sheet.dismiss()
        self._show_hint()
        worker = self.worker
        for signal in (worker.opened, worker.answered, worker.previewed, worker.covered, worker.worked):
            signal.disconnect()
        for signal in (worker.progressed, worker.informed, worker.failed, worker.fell_back, worker.outdated):
            signal.disconnect()
        for signal in (worker.done, worker.task_progressed):
            signal.disconnect()
        if not self.worker.stop():
            # A thread object must outlive its thread, or Qt ends the program.
            self.worker.setParent(QCoreApplication.instance())
            self.worker.finished.connect(self.worker.deleteLater)

    def _add_help(self) -> None:
        coverage = self.actions.add(
            "coverage",
            "Show what is encoded",
            self._on_coverage_wanted,
            tip="Mark on the map where a click is answered at once",
            group="Help",
            icon="encoderaster",
            checkable=True,
        )
        coverage.setChecked(QgsSettings().value(f"segadapt/{COVERAGE}", False, type=bool))
        self.coverage.set_shown(coverage.isChecked())
        self.actions.add(
            "cheat_sheet",
            "Keys",
            self.show_cheat_sheet,
            tip="Show all keys on the map",
            shortcut="?",
            group="Help",
            icon="cheat_sheet",
        )

    def _fill_dock(self) -> None:
        dock = self._dock
        dock.set_actions(self.actions, modes=Mode)
        dock.show_models({card.name: card.title for card in list_models("promptable")})
        chosen = dock.model_combo.findData(QgsSettings().value(f"segadapt/{MODEL}", ""))
        dock.model_combo.setCurrentIndex(max(0, chosen))
        dock.add_page("Classes", self.class_panel, is_open=True)
        dock.add_page("Shape", self.shape_panel)
        dock.add_page("Find similar", self.similar.panel)
        dock.add_page("Class map", self.class_map.panel)
        dock.add_page("Learning", self.learning.panel)
        dock.add_page("Adapt", self.adaptation.panel)
        dock.settings_panel.show_settings(read_settings())

    def _connect(self) -> None:
        dock, prompts = self._dock, self.prompts
        prompts.tool.activated.connect(lambda: self.scene.set_tool_active(True))
        prompts.tool.deactivated.connect(lambda: self.scene.set_tool_active(False))
        # A tool that another takes the place of is told so while it still is the canvas's.
        self._canvas.mapToolSet.connect(self._on_tool_set)
        dock.raster_combo.layerChanged.connect(self._on_raster_chosen)
        dock.look_combo.currentIndexChanged.connect(self._on_look_chosen)
        dock.model_combo.currentIndexChanged.connect(self._on_model_chosen)
        dock.model_combo.currentIndexChanged.connect(lambda _i: write_setting(MODEL, dock.model_combo.currentData()))
        dock.status_label.linkActivated.connect(self._on_link)
        dock.settings_panel.changed.connect(self._on_setting_changed)
        # So that the next Enter accepts.
        self.class_panel.name_edit.returnPressed.connect(self._canvas.setFocus)
        self.class_panel.list.itemClicked.connect(self._on_class_clicked)
        self.classes.chosen.connect(prompts.redraw)
        self.classes.changed.connect(prompts.redraw)
        self.classes.changed.connect(self._show_colours)
        self.classes.renamed.connect(self.class_map.rename_class)
        self.class_map.classes_found.connect(self._on_classes_found)
        self.shape_panel.changed.connect(lambda _options: prompts.redraw())
        self._tool_actions.mode_chosen.connect(self._activate_on_raster)
        self.scene.changed.connect(self._on_scene_changed)
        self.scene.status_changed.connect(self._show_status)
        prompts.object_changed.connect(dock.object_label.setText)
        prompts.hinted.connect(self._show_hint)
        prompts.batch_progressed.connect(dock.show_batch)
        prompts.accepted.connect(lambda answer, wkb, _class_name: self.learning.learn(answer, wkb))
        prompts.exemplar_chosen.connect(self.similar.add_example)
        self.similar.accepted.connect(self.learning.learn_outline)
        prompts.click_takers.add(self.similar, hint=_REVIEW_HINT)
        prompts.click_takers.add(self.class_map, hint=CLASS_MAP_HINT)
        self.similar.changed.connect(prompts.show_possible)
        self.class_map.changed.connect(prompts.show_possible)
        self.adaptation.labelling_wanted.connect(self._on_labelling_wanted)
        self.adaptation.page_wanted.connect(lambda: self._show_page("Adapt"))
        self.class_panel.typing_wanted.connect(lambda: self._show_page("Classes"))
        self.actions["find_similar"].triggered.connect(lambda _state: self._on_similar_wanted())
        self.actions["class_map"].toggled.connect(self._on_class_map_wanted)
        for work in (prompts.has_work, self.similar.has_work, self.class_map.has_work):
            self.scene.protect(work)
        self.edits.edited.connect(dock.object_label.setText)
        pages = (self.learning, self.class_panel, self.similar, self.class_map, self.adaptation)
        sources = (self.scene, self._tool_actions, prompts, self.edits, *pages)
        for source in (*(part.notified for part in sources), self.target.failed):
            source.connect(self._notify)
        for informed in (self.target.informed, self.class_map.informed):
            informed.connect(self._inform)
        self.target.layer_changed.connect(prompts.redraw)

    def _show_page(self, title: str) -> None:
        self._dock.setUserVisible(True)
        self._dock.open_page(title)

    def _on_labelling_wanted(self, layer: QgsRasterLayer) -> None:
        """Let clicks and keys work on the image whose places are to be labelled."""
        if layer is not None and self.scene.layer is not layer:
            self._dock.raster_combo.setLayer(layer)
        self._activate_on_raster()

    def _on_similar_wanted(self) -> None:
        self._dock.open_page("Find similar")
        self.prompts.show_hint()

    def _on_class_map_wanted(self, is_on: bool) -> None:
        if is_on:
            self._dock.open_page("Class map")
            self._activate_on_raster()
        self.prompts.redraw()

    def show_cheat_sheet(self) -> None:
        """Lay all keys over the map."""
        if self._cheat_sheet is not None:
            self._cheat_sheet.dismiss()
        self._cheat_sheet = CheatSheet(self._canvas, self.actions)
        self._cheat_sheet.destroyed.connect(self._on_cheat_sheet_gone)

    def _on_cheat_sheet_gone(self) -> None:
        self._cheat_sheet = None

    def _on_raster_chosen(self, layer: QgsMapLayer | None) -> None:
        if layer is None and self._dock.raster_combo.currentText() == MAP_AS_SHOWN:
            self.scene.choose_map()
        else:
            self.scene.choose_layer(layer)
        self._activate_on_raster()

    def _on_look_chosen(self) -> None:
        if self.scene.layer is not None:
            self.scene.choose_layer(self.scene.layer, self._dock.look_combo.currentData())

    def _on_scene_changed(self) -> None:
        source, combo = self.scene.source, self._dock.raster_combo
        self.adaptation.suggest_image(self.scene.layer)
        layer = None if source is None else source.layer
        if combo.currentLayer() is not layer:
            combo.setLayer(layer)
        elif source is None and combo.currentText() == MAP_AS_SHOWN:
            combo.setCurrentIndex(0)  # the entry without a layer, which setLayer does not find from here
        if source is None:
            self._dock.show_looks((), chosen=Look.FILE)
        else:
            self.target.set_raster_crs(source.crs)
            self._dock.show_looks((source.look,) if layer is None else offered_looks(layer), chosen=source.look)

    def _on_class_clicked(self) -> None:
        # Not while its name is edited: the second click of a double click comes here, too.
        if not any(editor.isVisible() for editor in self.class_panel.list.findChildren(QLineEdit)):
            self._canvas.setFocus()

    def _show_colours(self) -> None:
        self.class_map.set_colours({name: self.classes.colour(name) for name in self.classes.names()})

    def _on_classes_found(self, colours: dict[str, QColor]) -> None:
        for name, colour in colours.items():
            self.classes.add(name, colour)
        self._show_colours()  # those that were here already keep theirs

    def _on_coverage_wanted(self, is_on: bool) -> None:
        write_setting(COVERAGE, is_on)
        self.coverage.set_shown(is_on)

    def _on_model_chosen(self) -> None:
        combo = self._dock.model_combo
        # "MobileSAM (needs no GPU)": what is in brackets helps to choose, and is too long for the status line.
        self.scene.choose_model(combo.currentData(), title=combo.currentText().partition(" (")[0])

    def _on_setting_changed(self, key: str, value: object) -> None:
        before = read_settings()
        write_setting(key, value)  # type: ignore[arg-type]  # the panel emits keys and values of this kind
        if read_settings() == before:
            return  # A field that was only looked into says so, too.
        self.scene.reset_when_free("The setting does not hold yet")

    def _on_link(self, link: str) -> None:
        if link == SETTINGS_LINK:
            self._dock.settings_panel.setCollapsed(False)
        elif link == RETRY_LINK:
            self.scene.open()
        elif link == CANCEL_LINK:
            self.activate_tool(False)
            self.scene.close()
        elif link == ZOOM_LINK:
            self.scene.zoom_to_layer()
        elif link == TOOL_LINK:
            self.activate_tool(True)

    def _show_status(self) -> None:
        status = self.scene.status
        self._dock.show_status(
            status.headline(), device=status.device_line(), cache=status.cache_line(), bar=status.bar()
        )

    def show_hint_again(self, message: str) -> None:
        """Say it again when the tip of a menu or a button that was in its place has gone (`message` is empty)."""
        if not message:
            self._show_hint()

    def _show_hint(self) -> None:
        """Say what the next click does, while it does something of ours."""
        text = self.prompts.hint if self._canvas.mapTool() is self.prompts.tool else ""
        self._dock.show_hint(text)
        if self._status_bar is not None:
            if text:
                self._status_bar.showMessage(text)
            else:
                self._status_bar.clearMessage()

    def _on_tool_set(self, *_tools: object) -> None:
        self._show_hint()

    def _notify(self, sentence: str) -> None:
        now = time.monotonic()
        if self._message_bar is None or (sentence == self._last_notice[0] and now - self._last_notice[1] < _QUIET_S):
            return
        self._last_notice = (sentence, now)
        self._message_bar.pushWarning("SegAdapt", sentence)

    def _inform(self, sentence: str) -> None:
        if self._message_bar is not None:
            self._message_bar.pushInfo("SegAdapt", sentence)

    def _ask_geopackage(self) -> Path | None:
        # Qt's own question whether to overwrite is switched off: an existing file is never overwritten.
        path, _ = QFileDialog.getSaveFileName(
            self._dock,
            "New GeoPackage",
            "",
            "GeoPackage (*.gpkg)",
            options=QFileDialog.Option.DontConfirmOverwrite,
        )
        return Path(path) if path else None
