"""The plugin as QGIS sees it: what `initGui` makes, `unload` unmakes, in reverse order."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QMenu, QToolBar

from ..processing.algorithms.raster_algorithm import DEVICES
from ..processing.algorithms.resources import icon_path
from ..processing.provider import SegAdaptProvider
from .actions import Actions
from .backend import SceneBackend
from .buttons import menu_button
from .controller import Controller
from .dock import SegAdaptDock
from .qt_compat import QAction
from .sample_scene import load_sample_scene

_MENU = "SegAdapt"


class SegAdaptPlugin:
    """Adds the Processing provider; `iface` is None in `qgis_process`, which only calls `initProcessing`."""

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._provider: SegAdaptProvider | None = None
        self._dock_action: QAction | None = None
        self._sample_action: QAction | None = None
        self._dock: SegAdaptDock | None = None
        self._controller: Controller | None = None
        self._toolbar: QToolBar | None = None
        self._menus: list[QMenu] = []

    def initProcessing(self) -> None:
        """Register the provider; QGIS may call this before `initGui`, which calls it again."""
        if self._provider is None:
            provider = SegAdaptProvider()
            # QGIS deletes what it refuses, which it does where another copy of the plugin was faster.
            if QgsApplication.processingRegistry().addProvider(provider):
                self._provider = provider

    def initGui(self) -> None:
        """Add provider, menu entries and toolbar button; dock and actions are made when it is first opened."""
        self.initProcessing()
        window = self._iface.mainWindow()
        self._dock_action = QAction(QIcon(icon_path("provider")), "Segment by clicks (SegAdapt)", window)
        self._dock_action.setObjectName("SegAdaptDockAction")
        self._dock_action.setCheckable(True)
        self._dock_action.setStatusTip("Open or close the panel of SegAdapt")
        self._dock_action.triggered.connect(self.show_dock)
        self._sample_action = QAction("Load sample scene", window)
        self._sample_action.setObjectName("SegAdaptSampleAction")
        self._sample_action.setStatusTip("Add a small aerial image to try SegAdapt on, and open the panel on it")
        self._sample_action.triggered.connect(self.load_sample)
        self._iface.addToolBarIcon(self._dock_action)
        self._iface.addPluginToMenu(_MENU, self._dock_action)
        self._iface.addPluginToMenu(_MENU, self._sample_action)
        for action in (self._dock_action, self._sample_action):
            action.setToolTip(action.statusTip())
            self._iface.registerMainWindowAction(action, "")

    def unload(self) -> None:
        """Take everything away: end the worker, free the engine, remove dock, entries and provider."""
        if self._controller is not None:
            self._iface.mainWindow().statusBar().messageChanged.disconnect(self._controller.show_hint_again)
            self._remove_actions(self._controller.actions)
            self._controller.dispose()
            self._controller = None
        if self._dock is not None:
            self._iface.removeDockWidget(self._dock)
            self._dock.deleteLater()
            self._dock = None
        if self._sample_action is not None:
            self._iface.unregisterMainWindowAction(self._sample_action)
            self._iface.removePluginMenu(_MENU, self._sample_action)
            self._sample_action.deleteLater()
            self._sample_action = None
        if self._dock_action is not None:
            self._iface.unregisterMainWindowAction(self._dock_action)
            self._iface.removePluginMenu(_MENU, self._dock_action)
            self._iface.removeToolBarIcon(self._dock_action)
            self._dock_action.deleteLater()
            self._dock_action = None
        if self._provider is not None:
            # The registry deletes the provider.
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None

    @property
    def dock(self) -> SegAdaptDock | None:
        """The dock, None before it was opened."""
        return self._dock

    @property
    def controller(self) -> Controller | None:
        """What runs the dock, None before it was opened."""
        return self._controller

    def show_dock(self, is_wanted: bool = True) -> None:
        """Open or hide the dock; opened, it starts with the active raster layer."""
        if self._controller is None or self._dock is None:
            self._make_dock()
        if self._dock is None or self._controller is None:
            return
        if not is_wanted:
            self._dock.close()
            return
        self._dock.setUserVisible(True)
        if self._dock_action is not None:
            self._dock_action.setChecked(True)
        self._controller.start(self._likely_raster())

    def load_sample(self) -> None:
        """Add the sample scene, zoom to it and open the dock on it."""
        try:
            raster = load_sample_scene(QgsProject.instance())
        except FileNotFoundError as error:
            self._iface.messageBar().pushWarning("SegAdapt", str(error))
            return
        self.show_dock()
        if self._dock is not None and self._controller is not None:
            self._dock.raster_combo.setLayer(raster)
            self._controller.scene.zoom_to_layer()

    def _make_dock(self) -> None:
        self._dock = SegAdaptDock(DEVICES, self._iface.mainWindow())
        self._controller = Controller(
            self._iface.mapCanvas(),
            self._dock,
            backend=SceneBackend(),
            message_bar=self._iface.messageBar(),
            status_bar=self._iface.statusBarIface(),
        )
        self._show_actions(self._controller.actions)
        self._iface.mainWindow().statusBar().messageChanged.connect(self._controller.show_hint_again)
        self._iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self._dock)
        self._dock.closed.connect(self._on_dock_closed)

    def _show_actions(self, actions: Actions) -> None:
        """Put every action into menu, shortcut list and toolbar, where a menu at the end has those without an icon."""
        self._toolbar = self._iface.addToolBar(_MENU)
        self._toolbar.setObjectName("SegAdaptToolBar")
        for title, members in actions.groups().items():
            menu = QMenu(title, self._iface.mainWindow())
            menu.setToolTipsVisible(True)
            menu.addActions(members)
            self._iface.addPluginToMenu(_MENU, menu.menuAction())
            self._menus.append(menu)
            if on_toolbar := [action for action in members if action in actions.on_toolbar]:
                self._toolbar.addActions(on_toolbar)
                self._toolbar.addSeparator()
            for action in members:
                # Here QGIS puts the shortcut that the user chose in the place of ours.
                self._iface.registerMainWindowAction(action, action.shortcut().toString())
        others = {
            title: [action for action in members if action not in actions.on_toolbar]
            for title, members in actions.groups().items()
        }
        self._toolbar.addWidget(menu_button("More", others, tip="All other actions of SegAdapt, by page"))

    def _remove_actions(self, actions: Actions) -> None:
        for members in actions.groups().values():
            for action in members:
                self._iface.unregisterMainWindowAction(action)
        for menu in self._menus:
            self._iface.removePluginMenu(_MENU, menu.menuAction())
            menu.deleteLater()
        self._menus.clear()
        if self._toolbar is not None:
            self._iface.mainWindow().removeToolBar(self._toolbar)
            self._toolbar.deleteLater()
            self._toolbar = None

    def _on_dock_closed(self) -> None:
        if self._dock_action is not None:
            self._dock_action.setChecked(False)
        if self._controller is not None:
            self._controller.activate_tool(False)

    def _likely_raster(self) -> QgsRasterLayer | None:
        """Return the active layer if it can be segmented, else the topmost visible one that can."""
        candidates = [self._iface.activeLayer(), *self._iface.mapCanvas().layers()]
        rasters = [layer for layer in candidates if isinstance(layer, QgsRasterLayer)]
        # A file rather than a web map: it is what most people came for.
        files = [layer for layer in rasters if layer.providerType() == "gdal"]
        return next(iter(files or rasters), None)
