"""Actions, their keys, the panel that shows them, and the dock that is made from them."""

from __future__ import annotations

from typing import Any

import pytest
from qgis.core import QgsProject, QgsSettings, QgsVectorLayer
from qgis.gui import QgsGui, QgsMapToolPan
from qgis.PyQt.QtCore import QEvent, Qt
from qgis.PyQt.QtGui import QKeyEvent, QKeySequence
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QShortcut,
    QSlider,
    QStyle,
    QStyleOptionComboBox,
    QWidget,
)
from segadapt.plugin.actions import Actions
from segadapt.plugin.cheat_sheet import CheatSheet
from segadapt.plugin.class_map_control import HINT as CLASS_MAP_HINT
from segadapt.plugin.dock import MAP_AS_SHOWN, SegAdaptDock
from segadapt.plugin.exchange import Coverage
from segadapt.plugin.field_mapping import FieldMappingDialog
from segadapt.plugin.modes import Mode
from segadapt.plugin.rendered_source import Look

NO_KEYS, SHIFT = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ShiftModifier
CTRL, KEYPAD = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.KeypadModifier


def pressed(key: Any, keys: Any = NO_KEYS) -> QKeyEvent:
    return QKeyEvent(QEvent.Type.KeyPress, key, keys)


@pytest.fixture
def actions(qgis_app: Any) -> Actions:
    actions = Actions()
    for key, shortcut in (("box", "B"), ("accept", "Return"), ("redo", "Ctrl+Shift+Z"), ("help", "?"), ("none", "")):
        actions.add(key, key.title(), None, tip="…", shortcut=shortcut, also=("Ctrl+Y",) if key == "redo" else ())
    return actions


@pytest.mark.parametrize(
    ("key", "keys", "name"),
    [
        (Qt.Key.Key_B, NO_KEYS, "box"),
        (Qt.Key.Key_B, SHIFT, None),
        (Qt.Key.Key_B, CTRL, None),
        (Qt.Key.Key_Return, NO_KEYS, "accept"),
        (Qt.Key.Key_Enter, KEYPAD, "accept"),
        (Qt.Key.Key_Z, CTRL | SHIFT, "redo"),
        (Qt.Key.Key_Z, CTRL, None),
        (Qt.Key.Key_Y, CTRL, "redo"),
        (Qt.Key.Key_Question, SHIFT, "help"),
        (Qt.Key.Key_Question, NO_KEYS, "help"),
        (Qt.Key.Key_Shift, SHIFT, None),
        (Qt.Key.Key_A, NO_KEYS, None),
    ],
)
def test_which_action_a_key_is_for(actions: Actions, key: Any, keys: Any, name: str | None) -> None:
    assert actions.of_key(pressed(key, keys)) is (None if name is None else actions[name])


def test_a_shortcut_that_the_user_chose_is_obeyed(actions: Actions) -> None:
    actions["box"].setShortcut(QKeySequence("F8"))
    assert actions.of_key(pressed(Qt.Key.Key_F8)) is actions["box"]
    assert actions.of_key(pressed(Qt.Key.Key_B)) is None


def test_a_key_is_given_once(actions: Actions) -> None:
    with pytest.raises(ValueError, match="'box' already"):
        actions.add("box", "Box", None, tip="…")


def test_slots_get_the_state_only_of_checkable_actions(actions: Actions) -> None:
    got: list[Any] = []
    actions.add("plain", "Plain", lambda: got.append("plain"), tip="…").trigger()
    actions.add("on", "On", got.append, tip="…", checkable=True).trigger()
    assert got == ["plain", True]


def test_every_action_says_what_it_does_and_no_two_have_the_same_key(gui: Any) -> None:
    members = [action for group in gui.controller.actions.groups().values() for action in group]
    names = [action.objectName() for action in members]
    assert len(set(names)) == len(names)
    assert all(action.statusTip().strip() for action in members)
    assert all(action.toolTip() != action.text() for action in members)
    keys = [action.shortcut().toString() for action in members if not action.shortcut().isEmpty()]
    assert len(set(keys)) == len(keys)


def test_qgis_lists_the_shortcuts_and_their_change_is_obeyed(gui: Any) -> None:
    manager = QgsGui.shortcutsManager()
    action = gui.controller.actions["box"]
    assert manager.registerAction(action, action.shortcut().toString())
    assert manager.defaultKeySequence(action) == "B"
    manager.setKeySequence(action, "J")
    try:
        gui.start()
        gui.key(Qt.Key.Key_J)
        assert gui.prompts.tool.mode is Mode.BOX
    finally:
        manager.setKeySequence(action, "B")
        manager.unregisterAction(action)


def test_our_keys_do_not_reach_the_main_window_while_the_tool_is_active(gui: Any) -> None:
    fired: list[str] = []
    QShortcut(QKeySequence("S"), gui.window).activated.connect(lambda: fired.append("snap"))
    gui.start()
    gui.key(Qt.Key.Key_S)
    assert fired == []
    gui.controller.activate_tool(False)
    gui.key(Qt.Key.Key_S)
    assert fired == ["snap"]


def sheets(gui: Any) -> list[CheatSheet]:
    return [sheet for sheet in gui.canvas.findChildren(CheatSheet) if sheet.isVisible()]


def test_the_cheat_sheet_shows_every_key_and_any_key_closes_it_without_acting(gui: Any, at: Any) -> None:
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_Question, SHIFT)
    (sheet,) = sheets(gui)
    shown = {label.text() for label in sheet.findChildren(QLabel)}
    for group in gui.controller.actions.groups().values():
        for action in group:
            if not action.shortcut().isEmpty() and "class_" not in action.objectName():
                assert action.shortcut().toString(QKeySequence.SequenceFormat.NativeText) in shown
    assert "1 to 9" in shown
    assert gui.canvas.rect().contains(sheet.geometry())
    QTest.keyClick(sheet, Qt.Key.Key_Shift)
    assert sheets(gui) == [sheet]
    QTest.keyClick(sheet, Qt.Key.Key_Return)
    assert sheets(gui) == []
    assert gui.canvas.hasFocus()
    assert gui.controller.target.layer() is None  # Return accepted nothing
    assert not gui.session.is_empty


def test_the_cheat_sheet_closes_with_a_click_and_with_the_plugin(gui: Any) -> None:
    gui.start()
    gui.controller.show_cheat_sheet()
    gui.controller.show_cheat_sheet()
    (sheet,) = sheets(gui)
    QTest.mouseClick(sheet, Qt.MouseButton.LeftButton)
    assert sheets(gui) == []
    gui.controller.show_cheat_sheet()
    gui.dispose()
    assert sheets(gui) == []


def test_the_status_bar_says_what_the_next_click_does(gui: Any, at: Any) -> None:
    shown: list[str] = []

    class StatusBar:
        def showMessage(self, text: str, timeout: int = 0) -> None:
            shown.append(text)

        def clearMessage(self) -> None:
            shown.append("")

    gui.controller._status_bar = StatusBar()
    gui.start()
    assert shown[-1].startswith("Click on an object in 'scene'")
    gui.controller.classes.choose("tank")
    assert shown[-1].startswith("Click on a 'tank' in 'scene'")
    gui.key(Qt.Key.Key_G)
    assert shown[-1].startswith("Click around a 'tank'")
    gui.key(Qt.Key.Key_P)
    gui.click(at(300, 400))
    assert shown[-1] == (
        "Click to add, right click to take away; Enter puts it as a 'tank' into a new layer, Esc drops it."
    )
    other = QgsMapToolPan(gui.canvas)
    gui.canvas.setMapTool(other)
    assert shown[-1] == ""
    gui.controller.activate_tool(True)
    assert shown[-1].startswith("Click to add")
    gui.controller.activate_tool(False)
    assert shown[-1] == ""
    assert "Choose a raster" in gui.dock.hint_label.text()


def test_the_next_click_is_told_while_a_box_or_a_polygon_is_drawn(gui: Any, at: Any) -> None:
    gui.start()
    for key, hint in ((Qt.Key.Key_B, "Click on the opposite corner"), (Qt.Key.Key_G, "Click on the next corner")):
        gui.key(key)
        before = gui.dock.hint_label.text()
        gui.click(at(300, 400))
        assert gui.dock.hint_label.text().startswith(hint)
        gui.key(Qt.Key.Key_Escape)
        assert gui.dock.hint_label.text() == before


def test_a_check_box_and_its_action_are_one(gui: Any) -> None:
    box, action = gui.controller.learning.panel.is_on, gui.controller.actions["learning"]
    assert box.isChecked()
    assert action.isChecked()
    action.trigger()
    assert not box.isChecked()
    assert not QgsSettings().value("segadapt/learning", type=bool)
    assert gui.dock.learning_label.text() == "Learning is off"
    box.click()
    assert action.isChecked()
    action.setEnabled(False)
    assert not box.isEnabled()


def test_a_key_for_an_action_without_one_works_in_the_whole_window_and_once(gui: Any) -> None:
    action = gui.controller.actions["coverage"]
    gui.window.menuBar().addMenu("SegAdapt").addAction(action)  # as the plugin does
    gui.wait_for(gui.window.menuBar().isVisible)
    triggered: list[bool] = []
    action.triggered.connect(triggered.append)
    action.setShortcut(QKeySequence("Ctrl+Alt+J"))
    gui.dock.setFocus()
    QTest.keyClick(gui.dock, Qt.Key.Key_J, CTRL | Qt.KeyboardModifier.AltModifier)
    assert triggered == [True]
    gui.start()
    gui.key(Qt.Key.Key_J, CTRL | Qt.KeyboardModifier.AltModifier)
    assert triggered == [True, False]


def test_add_and_rename_class_open_their_page(gui: Any) -> None:
    page, panel, actions = gui.dock.page("Classes"), gui.controller.class_panel, gui.controller.actions
    page.setCollapsed(True)
    actions["add_class"].trigger()
    assert not page.isCollapsed()
    assert panel.name_edit.hasFocus()
    QTest.keyClicks(panel.name_edit, "roof")
    actions["add_class"].trigger()
    assert gui.controller.classes.current == "roof"
    page.setCollapsed(True)
    actions["rename_class"].trigger()
    (editor,) = panel.list.findChildren(QLineEdit)
    QTest.keyClicks(editor, "house")
    QTest.keyClick(editor, Qt.Key.Key_Return)
    gui.wait_for(lambda: gui.controller.classes.names() == ["house"])
    gui.controller.classes.choose("")
    assert not actions["rename_class"].isEnabled()


def test_everything_in_the_dock_that_can_be_used_has_a_tool_tip(gui: Any) -> None:
    for widget in gui.dock.widget().findChildren(QWidget):
        is_arrow = widget.metaObject().className() == "QgsGroupBoxCollapseButton"
        if isinstance(widget, QAbstractButton | QComboBox | QLineEdit | QAbstractSpinBox | QSlider) and not is_arrow:
            assert tool_tip(widget), widget.objectName() or widget


def tool_tip(widget: QWidget | None) -> str:
    """What Qt shows: the tip of the widget, or of what it is part of."""
    return "" if widget is None else widget.toolTip() or tool_tip(widget.parentWidget())


def test_buttons_of_the_dock_are_the_actions(gui: Any, at: Any) -> None:
    gui.start()
    actions = gui.controller.actions
    assert actions["point"].isChecked()
    actions["box"].trigger()
    assert gui.prompts.tool.mode is Mode.BOX
    assert not actions["point"].isChecked()
    gui.controller.activate_tool(False)
    actions["scribble"].trigger()
    assert gui.canvas.mapTool() is gui.prompts.tool


def shown_px(combo: QComboBox) -> int:
    """The width of the text that a combo box has room for."""
    option = QStyleOptionComboBox()
    option.initFrom(combo)
    return (
        combo.style()
        .subControlRect(QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, combo)
        .width()
    )


def test_no_entry_of_the_dock_is_cut_off(gui: Any) -> None:
    gui.start()
    dock = gui.dock
    dock.show_looks(tuple(Look), chosen=Look.FILE)
    gui.window.resizeDocks([dock], [1], Qt.Orientation.Horizontal)
    QTest.qWait(50)
    assert dock.width() == dock.minimumSizeHint().width()
    cut = {
        combo.itemText(index)
        for combo in (dock.raster_combo, dock.look_combo, dock.model_combo, dock.target_combo)
        for index in range(combo.count())
        if combo.fontMetrics().horizontalAdvance(combo.itemText(index)) > shown_px(combo)
    }
    assert cut == set()


def test_a_name_that_is_cut_off_is_in_the_tool_tip(gui: Any) -> None:
    name = "the outlines of all buildings of the northern half of the town"
    layer = QgsVectorLayer("MultiPolygon?crs=EPSG:32631", name, "memory")
    QgsProject.instance().addMapLayer(layer)
    width = gui.dock.minimumSizeHint().width()
    gui.dock.target_combo.setLayer(layer)
    assert gui.dock.target_combo.toolTip().startswith(f"{name}\nWhere accepted objects go")
    assert gui.dock.minimumSizeHint().width() == width


def test_pages_are_remembered_and_fit_a_narrow_dock(gui: Any) -> None:
    gui.window.resize(900, 1000)
    gui.window.resizeDocks([gui.dock], [300], Qt.Orientation.Horizontal)
    for title in ("Scene", "Classes", "Shape", "Find similar", "Learning"):
        gui.dock.open_page(title)
    QTest.qWait(50)
    letter_px = QApplication.fontMetrics().averageCharWidth()
    assert gui.dock.width() <= max(300, 45 * letter_px)
    scroll = gui.dock._scroll
    assert scroll.widget().width() <= scroll.viewport().width()
    for button in gui.dock.buttons.values():
        assert button.visibleRegion().boundingRect().height() == button.height()  # always there, never scrolled away
    assert QgsSettings().value("segadapt/pages/Shape", type=bool)
    gui.dock.page("Classes").setCollapsed(True)
    other = SegAdaptDock(("auto",))
    try:
        assert not other.add_page("Shape", QWidget()).isCollapsed()
        assert other.add_page("Classes", QWidget(), is_open=True).isCollapsed()
        assert other.add_page("Something new", QWidget()).isCollapsed()
    finally:
        other.deleteLater()


def test_the_map_as_shown_can_be_segmented_and_another_look_chosen(gui: Any) -> None:
    gui.start()
    combo, scene = gui.dock.raster_combo, gui.controller.scene
    assert scene.source.look is Look.FILE
    assert [gui.dock.look_combo.itemData(row) for row in range(gui.dock.look_combo.count())][:1] == [Look.FILE]
    gui.dock.look_combo.setCurrentIndex(gui.dock.look_combo.findData(Look.RENDERED))
    assert scene.source.look is Look.RENDERED
    combo.setCurrentIndex(combo.findText(MAP_AS_SHOWN))
    combo.activated.emit(combo.currentIndex())  # as a user's choice does
    assert scene.source.look is Look.MAP
    assert combo.currentText() == MAP_AS_SHOWN
    assert "The map as shown" in gui.dock.hint_label.text()
    assert not gui.dock.look_combo.isEnabled()
    QgsProject.instance().removeMapLayer(gui.layer.id())
    assert scene.source is None
    assert combo.currentText() != MAP_AS_SHOWN


def test_what_is_encoded_is_shown_on_demand_and_remembered(gui: Any, make_gui: Any, backend: Any) -> None:
    gui.start()
    gui.controller.actions["coverage"].trigger()
    assert QgsSettings().value("segadapt/coverage", type=bool)
    gui.dispose()
    again = make_gui(backend)
    assert again.controller.actions["coverage"].isChecked()
    again.controller.actions["coverage"].trigger()
    assert not QgsSettings().value("segadapt/coverage", type=bool)


def test_find_similar_opens_its_page_and_gets_the_exemplars(gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gui.backend, "run_task", lambda task, progress: iter(()))  # the real one loads a model
    gui.start()
    gui.click(at(300, 400))
    gui.wait_for_answer()
    gui.key(Qt.Key.Key_X)
    assert gui.controller.similar.n_examples == 1
    gui.key(Qt.Key.Key_F)
    assert not gui.dock.page("Find similar").isCollapsed()


def test_the_class_map_takes_clicks_and_undo_while_it_is_on(gui: Any, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(gui.backend, "run_task", lambda task, progress: done.append(type(task).__name__) or iter(()))
    gui.start()
    gui.controller.classes.choose("water")
    gui.key(Qt.Key.Key_L)
    assert gui.dock.hint_label.text() == CLASS_MAP_HINT
    assert not gui.dock.page("Class map").isCollapsed()
    gui.click(at(300, 400))
    gui.wait_for(lambda: "AddStroke" in done)
    assert gui.session.is_empty
    gui.key(Qt.Key.Key_Z, CTRL)
    gui.wait_for(lambda: "UndoStroke" in done)
    gui.key(Qt.Key.Key_L)
    gui.click(at(300, 400))
    gui.wait_for_answer()
    assert gui.dock.hint_label.text() != CLASS_MAP_HINT


def test_the_cache_is_told_beside_the_device(gui: Any) -> None:
    gui.backend.covered = Coverage((), 12, 40_000_000)
    assert not gui.dock.cache_label.isVisible()
    gui.start()
    gui.wait_for(lambda: gui.dock.cache_label.text() == "Cache: 12 windows, 40 MB")
    assert gui.dock.cache_label.isVisible()


def test_fields_are_asked_for_the_target_layer(gui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gui.start()
    gui.dock.fields_button.click()
    assert gui.notices == ["There is no target layer yet; a new one gets all fields."]
    asked: list[Any] = []
    monkeypatch.setattr(FieldMappingDialog, "exec", lambda dialog: asked.append(dialog.parent()))
    layer = QgsVectorLayer("MultiPolygon?crs=EPSG:32631&field=kind:string", "mine", "memory")
    QgsProject.instance().addMapLayer(layer)
    gui.dock.target_combo.setLayer(layer)
    gui.dock.target_combo.activated.emit(gui.dock.target_combo.currentIndex())
    gui.controller.actions["fields"].trigger()
    assert asked == [gui.dock]
