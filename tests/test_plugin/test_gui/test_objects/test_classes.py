"""Classes: names, colours, keys, the project's memory, and the list in the dock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsCategorizedSymbolRenderer, QgsFillSymbol, QgsProject, QgsRendererCategory, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QColor, QIcon, QPixmap
from qgis.PyQt.QtTest import QTest
from segadapt.plugin.actions import Actions
from segadapt.plugin.class_panel import ClassPanel
from segadapt.plugin.class_style import palette_colour, symbol_colour
from segadapt.plugin.classes import Classes
from segadapt.plugin.editing import set_class


@pytest.fixture
def classes(qgis_new_project: None) -> Iterator[Classes]:
    classes = Classes()
    yield classes
    classes.dispose()


def test_every_class_gets_another_colour() -> None:
    taken: list[QColor] = []
    for _ in range(60):
        taken.append(palette_colour(taken=taken))
    assert len({colour.name() for colour in taken}) == 60


def test_keys_choose_the_first_nine(classes: Classes) -> None:
    chosen: list[str] = []
    classes.chosen.connect(chosen.append)
    for number in range(1, 12):
        classes.add(f"class {number}")
    assert classes.choose_number(9)
    assert not classes.choose_number(10)
    assert not classes.choose_number(0)
    assert classes.current == "class 9"
    assert chosen == ["class 9"]
    assert classes.number("class 1") == 1
    assert classes.number("class 10") is None
    assert classes.number("") is None
    classes.set_order(["class 10"])
    assert classes.number("class 10") == 1
    assert classes.number("class 1") == 2


def test_a_name_that_is_typed_becomes_a_class(classes: Classes) -> None:
    expected = classes.colour(" roof ")
    classes.choose(" roof ")
    assert classes.names() == ["roof"]
    assert classes.current == "roof"
    assert classes.colour("roof") == expected
    classes.choose("")
    assert classes.current == ""
    assert classes.names() == ["roof"]


def test_two_classes_never_become_one(classes: Classes) -> None:
    for name in ("roof", "tree", "road"):
        classes.add(name)
    classes.choose("tree")
    colour = classes.colour("tree")
    assert classes.rename("tree", "road") == "There is a class 'road' already; choose another name for 'tree'."
    assert classes.rename("tree", "  ") == "A class needs a name; 'tree' keeps its own."
    assert classes.names() == ["roof", "tree", "road"]
    assert classes.rename("tree", "bush") == ""
    assert classes.names() == ["roof", "bush", "road"]
    assert classes.current == "bush"
    assert classes.colour("bush") == colour


def test_the_project_remembers_classes(classes: Classes, tmp_path: Path) -> None:
    classes.add("tree", QColor("#00ff00"))
    classes.add('Dach „grün", <3')
    classes.set_colour("", QColor("#123456"))
    names = classes.names()
    project = QgsProject.instance()
    assert project.write(str(tmp_path / "a.qgz"))
    project.clear()
    assert classes.names() == []
    assert classes.colour("") != QColor("#123456")
    classes.choose("other project")
    assert project.read(str(tmp_path / "a.qgz"))
    assert classes.names() == names
    assert classes.colour("tree") == QColor("#00ff00")
    assert classes.colour("") == QColor("#123456")
    assert classes.current == ""


@pytest.mark.parametrize("stored", ["{", "[]", '{"classes": [["roof"]]}', '{"classes": 3}', '{"classes": [["a", 3]]}'])
def test_a_spoilt_memory_is_no_harm(classes: Classes, stored: str, tmp_path: Path) -> None:
    project = QgsProject.instance()
    project.writeEntry("SegAdapt", "classes", stored)
    assert project.write(str(tmp_path / "a.qgz"))
    assert project.read(str(tmp_path / "a.qgz"))
    classes.add("roof")
    assert "roof" in classes.names()


def test_classes_of_a_layer_are_taken_over_with_their_colours(classes: Classes, add_layer: Any) -> None:
    layer = add_layer("Polygon?crs=EPSG:32631", "kind")
    fill = QgsFillSymbol.createSimple({"color": "10,20,30,255", "outline_style": "no", "outline_color": "1,1,1,0"})
    line = QgsFillSymbol.createSimple({"color": "0,0,0,0", "outline_color": "200,100,50,255"})
    categories = [
        QgsRendererCategory("roof", fill, "Roof"),
        QgsRendererCategory("tree", line, "Tree"),
        QgsRendererCategory(7, line.clone(), "number"),
        QgsRendererCategory(None, line.clone(), "others"),
    ]
    layer.setRenderer(QgsCategorizedSymbolRenderer("kind", categories))
    classes.add("tree", QColor("red"))
    assert classes.read_layer(layer) == 1
    assert classes.names() == ["tree", "roof"]
    assert classes.colour("roof").name() == "#0a141e"
    assert classes.colour("tree") == QColor("red")  # what the user chose stays


def shown(layer: QgsVectorLayer) -> dict[str, str]:
    """Colours by class."""
    categories = layer.renderer().categories()  # kept: a symbol dies with its category
    return {category.value(): symbol_colour(category.symbol()).name() for category in categories}


def test_a_layer_of_ours_follows_names_and_colours(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    target.accept(shapes.rectangle(20, 0), "tree")
    target.classes.set_colour("roof", QColor("#102030"))
    assert shown(layer)["roof"] == "#102030"
    assert target.classes.rename("roof", "house") == ""
    assert [feature["class"] for feature in target.saved()] == ["house", "tree"]
    assert target.choice.history.undo() == "Undone: class house for 1 object."
    assert [feature["class"] for feature in target.saved()] == ["roof", "tree"]


def test_classes_given_and_renamed_have_their_colours_on_the_map_and_in_the_file(target: Any, shapes: Any) -> None:
    layer = target.accept(shapes.rectangle(0, 0), "roof")
    target.accept(shapes.rectangle(20, 0), "tree")
    (roof, _tree) = target.saved()
    target.classes.add("pond", QColor("#102030"))
    target.choice.do(lambda layer: set_class(layer, [roof.id()], "pond"))
    target.classes.rename("tree", "bush")
    expected = {"pond": "#102030", "bush": target.classes.colour("bush").name()}
    assert shown(layer).items() >= expected.items()
    assert list(shown(layer))[-1] == ""  # all others come last
    again = QgsVectorLayer(layer.source(), "again", "ogr")
    assert shown(again).items() >= expected.items()


@pytest.fixture
def panel(classes: Classes) -> Iterator[ClassPanel]:
    actions = Actions()
    panel = ClassPanel(classes, actions)
    panel.show()
    yield panel
    panel.close()


def rows(panel: ClassPanel) -> list[str]:
    return [panel.list.item(row).text() for row in range(panel.list.count())]


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
def test_swatches_have_the_pixels_of_the_screen(
    panel: ClassPanel, classes: Classes, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    """As many as the screen shows in a row's height, and the key in the middle of them."""
    pixmaps: list[QPixmap] = []

    class Kept(QIcon):
        def __init__(self, pixmap: QPixmap) -> None:
            super().__init__(pixmap)
            pixmaps.append(pixmap)

    monkeypatch.setattr("segadapt.plugin.class_panel.QIcon", Kept)
    monkeypatch.setattr(ClassPanel, "devicePixelRatioF", lambda _: ratio)
    classes.choose("roof")
    side_px = round(panel.list.iconSize().height() * ratio)
    assert [(one.devicePixelRatio(), one.width(), one.height()) for one in pixmaps[-2:]] == [
        (ratio, side_px, side_px)
    ] * 2
    image = pixmaps[-1].toImage()
    plain = image.pixelColor(0, 0)
    places = [(x, y) for x in range(side_px) for y in range(side_px) if image.pixelColor(x, y) != plain]
    for along in zip(*places, strict=True):
        assert (min(along) + max(along)) / 2 == pytest.approx(side_px / 2, abs=0.15 * side_px)
    assert max(y for _, y in places) - min(y for _, y in places) > 0.4 * side_px


def test_the_list_adds_chooses_and_removes(panel: ClassPanel, classes: Classes) -> None:
    for name in ("roof", "tree"):
        QTest.keyClicks(panel.name_edit, name)
        QTest.keyClick(panel.name_edit, Qt.Key.Key_Return)
    assert rows(panel) == ["(no class)", "roof", "tree"]
    assert classes.current == "tree"
    place = panel.list.visualItemRect(panel.list.item(1)).center()
    QTest.mouseClick(panel.list.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    assert classes.current == "roof"
    classes.choose_number(2)
    assert panel.list.currentItem().text() == "tree"
    QTest.mouseClick(panel.buttons["remove_class"], Qt.MouseButton.LeftButton)
    assert rows(panel) == ["(no class)", "roof"]
    assert classes.current == ""
    assert not panel.buttons["remove_class"].isEnabled()


def test_the_list_renames_and_says_why_not(panel: ClassPanel, classes: Classes) -> None:
    said: list[str] = []
    panel.notified.connect(said.append)
    classes.add("roof")
    classes.add("tree")
    panel.list.item(1).setText("house")
    assert classes.names() == ["house", "tree"]
    panel.list.item(1).setText("tree")
    assert classes.names() == ["house", "tree"]
    assert rows(panel) == ["(no class)", "house", "tree"]
    assert len(said) == 1
    assert "'tree' already" in said[0]


def test_the_list_recolours_and_reorders(panel: ClassPanel, classes: Classes) -> None:
    classes.add("roof")
    classes.choose("tree")
    panel.recolour(QColor("#ff0000"))
    assert classes.colour("tree") == QColor("#ff0000")
    image = panel.list.item(2).icon().pixmap(16, 16).toImage()
    assert image.pixelColor(0, 0).name() == "#ff0000"
    item = panel.list.takeItem(2)  # as a drag does: the row moves, then the order is read
    panel.list.insertItem(1, item)
    panel._read_order()
    assert classes.names() == ["tree", "roof"]
