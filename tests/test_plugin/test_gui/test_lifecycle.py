"""Layers go, projects close, settings change, plugins reload: nothing hangs or crashes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsCoordinateReferenceSystem, QgsProject, QgsRasterLayer, QgsSettings
from qgis.gui import QgsStatusBar
from qgis.PyQt import sip
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QAbstractButton, QToolBar, QToolButton, QWidget
from segadapt.plugin.buttons import ActionBox
from segadapt.plugin.prompt_tool import Command
from segadapt.plugin.status import Phase

ROOT = Path(__file__).resolve().parents[3]


def threads_of(gui: Any) -> bool:
    return bool(gui.controller.worker.isRunning())


def test_layer_removed_in_mid_encode(gui: Any) -> None:
    gui.backend.encode_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "encode 0" in gui.backend.calls)
    QgsProject.instance().removeMapLayer(gui.layer.id())
    assert gui.dock.raster_combo.currentLayer() is None
    assert "Choose a raster layer" in gui.status
    gui.backend.encode_gate.set()
    gui.wait_for(lambda: not gui.backend.is_open)
    assert "encode 1" not in gui.backend.calls
    assert threads_of(gui)
    assert gui.notices == []


def test_layer_removed_while_an_answer_is_under_way(gui: Any, at: Any) -> None:
    gui.start()
    gui.backend.gate.clear()
    gui.click(at(300, 400))
    gui.wait_for(lambda: gui.backend.prompts)
    QgsProject.instance().removeMapLayer(gui.layer.id())
    gui.backend.gate.set()
    gui.wait_for(lambda: not gui.backend.is_open)
    QTest.qWait(50)
    assert gui.session.is_empty
    assert gui.overlay.mask.isEmpty()
    assert gui.overlay.n_markers == 0


def test_removing_the_raster_does_not_go_on_with_another(gui: Any, raster_path: Path) -> None:
    other = QgsRasterLayer(str(raster_path), "other", "gdal")
    QgsProject.instance().addMapLayer(other)
    gui.start()
    QgsProject.instance().removeMapLayer(gui.layer.id())
    QTest.qWait(50)
    assert gui.controller.scene.layer is None
    assert gui.dock.raster_combo.currentLayer() is None
    gui.dock.raster_combo.setLayer(other)
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    assert gui.controller.scene.layer is other


def test_project_closed_in_mid_encode(gui: Any) -> None:
    gui.backend.encode_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "encode 0" in gui.backend.calls)
    QgsProject.instance().clear()
    gui.backend.encode_gate.set()
    gui.wait_for(lambda: not gui.backend.is_open)
    assert gui.controller.scene.status.phase is Phase.NO_RASTER


def test_unload_in_mid_encode_joins_the_worker_and_frees_the_engine(gui: Any, at: Any) -> None:
    gui.backend.encode_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "encode 0" in gui.backend.calls)
    n_items = len(gui.canvas.scene().items())
    gui.backend.encode_gate.set()
    gui.dispose()
    assert gui.controller.worker.isFinished()
    assert gui.backend.is_closed
    assert gui.backend.calls[-1] == "close"
    assert gui.canvas.mapTool() is not gui.prompts.tool
    assert len(gui.canvas.scene().items()) < n_items
    # Nothing of ours listens any more.
    gui.canvas.extentsChanged.emit()
    gui.canvas.destinationCrsChanged.emit()


def test_unload_stops_a_download(gui: Any) -> None:
    gui.backend.open_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "Fetching weights" in gui.status)
    gui.dispose()
    assert gui.controller.worker.isFinished()
    assert not gui.backend.open_gate.is_set()


def test_a_download_can_be_cancelled_from_the_status_line(gui: Any) -> None:
    gui.backend.open_gate.clear()
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: "Fetching weights" in gui.status)
    gui.dock.status_label.linkActivated.emit("cancel")
    assert "Start segmenting" in gui.status
    gui.wait_for(lambda: "close_scene" in gui.backend.calls)
    gui.backend.open_gate.set()
    gui.dock.status_label.linkActivated.emit("tool")
    gui.wait_for(lambda: gui.controller.scene.is_ready)


def test_missing_weights_are_a_sentence_with_links_and_can_be_tried_again(gui: Any, errors: Any) -> None:
    gui.backend.fail["open"] = errors["raster"]("No weights of 'mobile_sam'; import the file.")
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == ["No weights of 'mobile_sam'; import the file."]
    assert 'href="settings"' in gui.status
    gui.dock.status_label.linkActivated.emit("settings")
    assert not gui.dock.settings_panel.isCollapsed()
    gui.dock.status_label.linkActivated.emit("retry")
    gui.wait_for(lambda: gui.controller.scene.is_ready)


def test_a_raster_without_crs_is_a_sentence_and_assigning_one_opens_it(gui: Any) -> None:
    gui.layer.setCrs(QgsCoordinateReferenceSystem())
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == ["'scene' has no CRS; assign one with Layer > Set CRS of Layer(s)."]
    assert gui.backend.calls == []
    gui.layer.setCrs(QgsCoordinateReferenceSystem("EPSG:32631"))
    gui.wait_for(lambda: gui.controller.scene.is_ready)


def test_an_encode_that_fails_is_a_sentence_and_clicks_still_work(gui: Any, at: Any, errors: Any) -> None:
    gui.backend.fail["encode"] = errors["raster"]("scene.tif cannot be read; is it truncated?")
    gui.dock.raster_combo.setLayer(gui.layer)
    gui.wait_for(lambda: gui.notices)
    assert gui.notices == ["scene.tif cannot be read; is it truncated?"]
    gui.click(at(300, 400))
    assert gui.wait_for_answer().score == 0.9


def test_settings_are_stored_and_open_the_scene_again(gui: Any, tmp_path: Path) -> None:
    gui.start()
    panel = gui.dock.settings_panel
    panel.checkpoint_folder.setFilePath(str(tmp_path))
    assert QgsSettings().value("segadapt/checkpoint_folder") == str(tmp_path)
    gui.wait_for(lambda: gui.backend.calls.count("open") == 2)
    panel.changed.emit("device", "cpu")
    assert QgsSettings().value("segadapt/device") == "cpu"
    gui.wait_for(lambda: gui.controller.scene.is_ready and gui.backend.calls.count("open") == 3)


def test_a_setting_that_stays_as_it_is_changes_nothing_and_another_waits_for_what_is_begun(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    panel = gui.dock.settings_panel
    panel.cache_gb.editingFinished.emit()  # looked into, and left
    assert gui.notices == []
    panel.changed.emit("device", "cpu")
    assert QgsSettings().value("segadapt/device") == "cpu"
    assert gui.notices == [
        "The setting does not hold yet, for the sake of what you have begun; finish that and move the map."
    ]
    assert not gui.session.is_empty
    assert gui.backend.calls.count("open") == 1


def test_changing_the_model_opens_the_scene_again_and_waits_for_what_is_begun(gui: Any, at: Any, make_gui: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.dock.model_combo.setCurrentIndex(gui.dock.model_combo.findData("sam_vit_b"))
    assert "does not answer yet, for the sake of what you have begun" in gui.notices[0]
    assert not gui.session.is_empty
    gui.prompts.command(Command.DROP)
    gui.canvas.setCenter(at(500, 512))
    gui.wait_for(lambda: gui.backend.calls.count("open") == 2)
    gui.wait_for(lambda: gui.controller.scene.is_ready)
    gui.dock.model_combo.setCurrentIndex(0)
    gui.wait_for(lambda: gui.backend.calls.count("open") == 3)
    gui.dock.model_combo.setCurrentIndex(gui.dock.model_combo.findData("sam_vit_b"))
    gui.dispose()
    assert make_gui(gui.backend).dock.model_combo.currentData() == "sam_vit_b"  # remembered


class FakeIface:
    """The part of QgisInterface that the plugin uses, on the window of `gui`."""

    def __init__(self, gui: Any) -> None:
        self._gui = gui
        self.menu: list[str] = []
        self.in_menu: list[Any] = []
        self.toolbar: list[str] = []
        self.shortcuts: dict[str, str] = {}
        self.status_bar = QgsStatusBar()

    def mainWindow(self) -> Any:
        return self._gui.window

    def mapCanvas(self) -> Any:
        return self._gui.canvas

    def messageBar(self) -> Any:
        return self._gui.message_bar

    def statusBarIface(self) -> Any:
        return self.status_bar

    def addToolBar(self, name: str) -> Any:
        return self._gui.window.addToolBar(name)

    def registerMainWindowAction(self, action: Any, shortcut: str) -> bool:
        self.shortcuts[action.objectName()] = shortcut
        return True

    def unregisterMainWindowAction(self, action: Any) -> bool:
        return self.shortcuts.pop(action.objectName(), None) is not None

    def activeLayer(self) -> Any:
        return self._gui.layer

    def addDockWidget(self, area: Any, dock: Any) -> None:
        self._gui.window.addDockWidget(area, dock)

    def removeDockWidget(self, dock: Any) -> None:
        self._gui.window.removeDockWidget(dock)

    def addPluginToMenu(self, _menu: str, action: Any) -> None:
        self.menu.append(action.text())
        self.in_menu += action.menu().actions() if action.menu() is not None else [action]

    def removePluginMenu(self, _menu: str, action: Any) -> None:
        self.menu.remove(action.text())

    def addToolBarIcon(self, action: Any) -> None:
        self.toolbar.append(action.text())

    def removeToolBarIcon(self, action: Any) -> None:
        self.toolbar.remove(action.text())


@pytest.fixture
def make_plugin(monkeypatch: pytest.MonkeyPatch, backend: Any) -> Iterator[Callable[[Any], Any]]:
    """A factory of plugins with the fake engine; what a failed test leaves is unloaded."""
    module = importlib.import_module("segadapt.plugin.plugin")
    monkeypatch.setattr(module, "SceneBackend", lambda: backend)
    made: list[Any] = []

    def make(iface: Any) -> Any:
        made.append(module.SegAdaptPlugin(iface))
        return made[-1]

    yield make
    for plugin in made:
        plugin.unload()


@pytest.fixture
def iface(gui: Any) -> FakeIface:
    return FakeIface(gui)


def test_plugin_unmakes_what_it_makes_and_loads_again(
    gui: Any, backend: Any, iface: FakeIface, make_plugin: Any
) -> None:
    registry = QgsApplication.processingRegistry()
    for round_ in (1, 2):
        plugin = make_plugin(iface)
        plugin.initGui()
        assert iface.menu == ["Segment by clicks (SegAdapt)", "Load sample scene"]
        assert iface.toolbar == ["Segment by clicks (SegAdapt)"]
        assert registry.providerById("segadapt") is not None
        assert plugin.dock is None  # nothing is made before it is wanted
        plugin.show_dock()
        gui.wait_for(lambda: plugin.controller.scene.is_ready)  # noqa: B023
        assert gui.canvas.mapTool() is plugin.controller.prompts.tool
        assert iface.menu[2:] == list(plugin.controller.actions.groups())
        assert iface.shortcuts["SegAdapt_accept"] == "Return"
        (toolbar,) = gui.window.findChildren(QToolBar, "SegAdaptToolBar")
        assert plugin.controller.actions["box"] in toolbar.actions()
        more = next(button for button in toolbar.findChildren(QToolButton) if button.text() == "More")
        on_toolbar = {action.objectName() for action in (*toolbar.actions(), *leaves(more.menu()))} - {""}
        assert on_toolbar == iface.shortcuts.keys() - {"SegAdaptDockAction", "SegAdaptSampleAction"}
        assert [page.text() for page in more.menu().actions()] == [
            title
            for title, members in plugin.controller.actions.groups().items()
            if not set(members) <= set(plugin.controller.actions.on_toolbar)
        ]
        dock, worker = plugin.dock, plugin.controller.worker
        plugin.unload()
        QTest.qWait(20)
        assert worker.isFinished()
        assert backend.calls.count("close") == round_
        assert iface.menu == iface.toolbar == []
        assert registry.providerById("segadapt") is None
        assert sip.isdeleted(dock)
        assert sip.isdeleted(toolbar)
        assert iface.shortcuts == {}
        assert iface.status_bar.currentMessage() == ""


def leaves(menu: Any) -> Iterator[Any]:
    """The actions of all pages of a menu."""
    for page in menu.actions():
        yield from page.menu().actions()


def is_of_qgis(button: QAbstractButton) -> bool:
    """Whether a button is part of a field, a group box or a dock as QGIS and Qt make them."""
    names = {type(ancestor).__name__ for ancestor in ancestors(button)}
    is_arrow = button.metaObject().className() == "QgsGroupBoxCollapseButton"
    return is_arrow or button.objectName().startswith("qt_dockwidget") or bool(names & {"QgsFileWidget", "QLineEdit"})


def ancestors(widget: QWidget) -> Iterator[QWidget]:
    while (widget := widget.parentWidget()) is not None:
        yield widget


def test_every_button_of_the_dock_is_an_action_of_menu_and_shortcut_list(
    gui: Any, iface: FakeIface, make_plugin: Any
) -> None:
    plugin = make_plugin(iface)
    plugin.initGui()
    plugin.show_dock()
    settings = plugin.dock.settings_panel
    buttons = [
        button
        for button in plugin.dock.findChildren(QAbstractButton)
        if not is_of_qgis(button) and not settings.isAncestorOf(button)
    ]
    assert len(buttons) > 50
    for button in buttons:
        action = button.action if isinstance(button, ActionBox) else getattr(button, "defaultAction", lambda: None)()
        assert action in iface.in_menu, button.text()
        assert button.toolTip() == action.toolTip() != action.text()
        assert button.isEnabled() == action.isEnabled()
        assert action.objectName() in iface.shortcuts
    texts = [action.text() for action in iface.in_menu]
    assert len(set(texts)) == len(texts)  # QGIS's list shows nothing else


def test_the_hint_comes_back_after_the_tip_of_a_button(gui: Any, iface: FakeIface, make_plugin: Any) -> None:
    window_bar = gui.window.statusBar()
    iface.status_bar.setParentStatusBar(window_bar)  # as in QGIS
    plugin = make_plugin(iface)
    plugin.initGui()
    plugin.show_dock()
    gui.wait_for(lambda: plugin.controller.scene.is_ready)
    hint = iface.status_bar.currentMessage()
    assert hint.startswith("Click on an object")
    window_bar.showMessage("What a button does")
    assert iface.status_bar.currentMessage() == "What a button does"
    window_bar.clearMessage()
    assert iface.status_bar.currentMessage() == hint
    plugin.unload()
    window_bar.showMessage("What a button does")
    window_bar.clearMessage()
    assert iface.status_bar.currentMessage() == ""


def test_plugin_without_gui_adds_the_provider_only(make_plugin: Any, qgis_app: Any) -> None:
    plugin = make_plugin(None)
    plugin.initProcessing()
    plugin.initProcessing()
    assert QgsApplication.processingRegistry().providerById("segadapt") is not None
    plugin.unload()
    assert QgsApplication.processingRegistry().providerById("segadapt") is None


def test_hiding_the_dock_takes_the_tool_away(gui: Any, iface: FakeIface, make_plugin: Any) -> None:
    plugin = make_plugin(iface)
    plugin.initGui()
    plugin.show_dock()
    gui.wait_for(lambda: plugin.controller.scene.is_ready)
    plugin.dock.close()
    gui.wait_for(lambda: gui.canvas.mapTool() is not plugin.controller.prompts.tool)
    plugin.show_dock()
    assert gui.canvas.mapTool() is plugin.controller.prompts.tool


def test_sample_scene_is_loaded_once_and_opened(gui: Any, iface: FakeIface, make_plugin: Any) -> None:
    plugin = make_plugin(iface)
    plugin.initGui()
    plugin.load_sample()
    gui.wait_for(lambda: plugin.controller.scene.is_ready)
    raster = plugin.controller.scene.layer
    assert raster.name() == "Rotterdam 50 cm (sample)"
    assert gui.canvas.extent().contains(raster.extent())
    n_layers = len(QgsProject.instance().mapLayers())
    plugin.load_sample()
    assert len(QgsProject.instance().mapLayers()) == n_layers


def test_importing_the_plugin_imports_neither_torch_nor_rasterio() -> None:
    code = (
        "import importlib.util, pkgutil, sys\n"
        "import qgis.core, qgis.gui\n"  # some of which newer versions of QGIS import themselves
        "others = set(sys.modules)\n"
        f"spec = importlib.util.spec_from_file_location('segadapt', r'{ROOT / '__init__.py'}',"
        f" submodule_search_locations=[r'{ROOT}'])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['segadapt'] = module\n"
        "spec.loader.exec_module(module)\n"
        "import segadapt.plugin\n"
        "for found in pkgutil.iter_modules(segadapt.plugin.__path__, 'segadapt.plugin.'):\n"
        "    importlib.import_module(found.name)\n"
        "heavy = {'numpy', 'torch', 'rasterio', 'shapely', 'geopandas', 'timm', 'scipy', 'skimage', 'sklearn'}\n"
        "heavy &= sys.modules.keys() - others\n"
        "print(' '.join(sorted(heavy)), end='')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
