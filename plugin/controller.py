"""Wires dock, map tool, scene and worker together, and takes all of it apart again."""

from __future__ import annotations

import time
from pathlib import Path

from qgis.core import QgsRasterLayer
from qgis.gui import QgsMapCanvas, QgsMessageBar
from qgis.PyQt.QtCore import QCoreApplication, QObject, Qt
from qgis.PyQt.QtGui import QColor, QIcon
from qgis.PyQt.QtWidgets import QFileDialog

from ..models.registry import list_models
from ..processing.algorithms.resources import icon_path
from ..processing.algorithms.settings import read_settings
from .backend import Backend
from .class_style import ClassColours
from .dock import SegAdaptDock
from .engine_worker import EngineWorker
from .prompt_control import PromptControl
from .qt_compat import QAction
from .scene_control import SceneControl
from .settings import write_setting
from .status import CANCEL_LINK, RETRY_LINK, SETTINGS_LINK, TOOL_LINK, ZOOM_LINK
from .target import TargetChoice

# The same sentence again within this time tells nothing new.
_QUIET_S = 5.0


class Controller(QObject):
    """Owns everything but the dock. `backend` computes; without `message_bar` sentences stay unsaid."""

    def __init__(
        self, canvas: QgsMapCanvas, dock: SegAdaptDock, *, backend: Backend, message_bar: QgsMessageBar | None
    ) -> None:
        super().__init__()
        self._canvas, self._dock, self._message_bar = canvas, dock, message_bar
        self._last_notice = ("", 0.0)
        self._colours = ClassColours()
        self.worker = EngineWorker(backend)
        self.scene = SceneControl(canvas, self.worker, self)
        self.target = TargetChoice(dock.target_combo, ask_path=self._ask_geopackage, parent=self)
        self.prompts = PromptControl(
            canvas,
            self.worker,
            scene=self.scene,
            target=self.target,
            class_choice=self._class_choice,
            parent=self,
        )
        self.tool_action = QAction(QIcon(icon_path("segmentfromprompts")), "Segment by clicks", self)
        self.tool_action.setCheckable(True)
        self.prompts.tool.setAction(self.tool_action)
        dock.tool_button.setDefaultAction(self.tool_action)
        for card in list_models("promptable"):
            dock.model_combo.addItem(card.title, card.name)
            dock.model_combo.setItemData(dock.model_combo.count() - 1, card.title, Qt.ItemDataRole.ToolTipRole)
        dock.settings_panel.show_settings(read_settings())
        self._connect()
        self._on_model_chosen()
        self._on_class_named()

    def start(self, layer: QgsRasterLayer | None) -> None:
        """Begin with a raster layer, None to let the user choose."""
        if layer is not None and self._dock.raster_combo.currentLayer() is None:
            self._dock.raster_combo.setLayer(layer)
        if self.scene.layer is not None:
            self.activate_tool(True)

    def activate_tool(self, is_wanted: bool) -> None:
        """Give the canvas our tool, or take it away."""
        if is_wanted:
            self._canvas.setMapTool(self.prompts.tool)
        else:
            self._canvas.unsetMapTool(self.prompts.tool)

    def dispose(self) -> None:
        """Stop the worker, which frees the engine, and leave canvas, project and dock."""
        self.prompts.dispose()
        self.scene.dispose()
        self.target.dispose()
        for signal in (self.worker.opened, self.worker.answered, self.worker.previewed, self.worker.encoded):
            signal.disconnect()
        for signal in (self.worker.progressed, self.worker.informed, self.worker.failed):
            signal.disconnect()
        if not self.worker.stop():
            # A thread object must outlive its thread, or Qt ends the program.
            self.worker.setParent(QCoreApplication.instance())
            self.worker.finished.connect(self.worker.deleteLater)

    def _connect(self) -> None:
        dock = self._dock
        self.tool_action.triggered.connect(self.activate_tool)
        self.prompts.tool.activated.connect(lambda: self.scene.set_tool_active(True))
        self.prompts.tool.deactivated.connect(lambda: self.scene.set_tool_active(False))
        dock.raster_combo.layerChanged.connect(self._on_raster_chosen)
        dock.model_combo.currentIndexChanged.connect(self._on_model_chosen)
        dock.class_combo.editTextChanged.connect(self._on_class_named)
        # So that the next Enter accepts.
        dock.class_combo.lineEdit().returnPressed.connect(self._canvas.setFocus)
        dock.colour_button.colorChanged.connect(self._on_colour_chosen)
        dock.commanded.connect(self.prompts.command)
        dock.status_label.linkActivated.connect(self._on_link)
        dock.settings_panel.changed.connect(self._on_setting_changed)
        self.scene.changed.connect(self._on_scene_changed)
        self.scene.status_changed.connect(self._show_status)
        self.prompts.object_changed.connect(lambda text, enabled: dock.show_object(text, enabled=enabled))
        self.prompts.accepted.connect(self._on_accepted)
        for source in (self.scene.notified, self.prompts.notified, self.target.failed):
            source.connect(self._notify)

    def _on_raster_chosen(self, layer: QgsRasterLayer | None) -> None:
        self.scene.choose_layer(layer)
        if layer is not None:
            self.activate_tool(True)

    def _on_scene_changed(self) -> None:
        layer = self.scene.layer
        if self._dock.raster_combo.currentLayer() is not layer:
            self._dock.raster_combo.setLayer(layer)
        if layer is not None:
            self.target.set_raster_crs(layer.crs())

    def _on_model_chosen(self) -> None:
        combo = self._dock.model_combo
        # "MobileSAM (light; ...)": what is in brackets helps to choose, and is too long for the status line.
        self.scene.choose_model(combo.currentData(), title=combo.currentText().partition(" (")[0])

    def _class_choice(self) -> tuple[str, QColor]:
        return self._dock.class_combo.currentText().strip(), self._dock.colour_button.color()

    def _on_class_named(self) -> None:
        self._dock.colour_button.setColor(self._colours.colour(self._class_choice()[0]))
        self.prompts.show_class()

    def _on_colour_chosen(self, _colour: QColor) -> None:
        self.prompts.show_class()

    def _on_accepted(self, class_name: str) -> None:
        self._colours.remember(class_name, self._dock.colour_button.color())
        combo = self._dock.class_combo
        if class_name and combo.findText(class_name) < 0:
            combo.addItem(class_name)

    def _on_setting_changed(self, key: str, value: object) -> None:
        write_setting(key, value)  # type: ignore[arg-type]  # the panel emits keys and values of this kind
        self.scene.reset()

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
        self._dock.show_status(status.headline(), device=status.device_line(), bar=status.bar())

    def _notify(self, sentence: str) -> None:
        now = time.monotonic()
        if self._message_bar is None or (sentence == self._last_notice[0] and now - self._last_notice[1] < _QUIET_S):
            return
        self._last_notice = (sentence, now)
        self._message_bar.pushWarning("SegAdapt", sentence)

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
