"""Take the pictures of the documentation: the real plugin in a real QGIS, with the real model, on the sample scene.

`python3 tools/screenshots.py` starts QGIS under Xvfb with a profile of its own and runs this file in it (`--code`);
there it clicks like a user and writes docs/screenshots/*.jpg. Needs what `make setup` installs, and xvfb-run; the
pictures of the class map need an aerial image of `SEGADAPT_DATA` (default ../shared/data), that of adaptation the
model that the sample scene brings; they are left out without.

Objects are corrected, and candidates answered for, as the outlines say that the sample scene and the tests bring:
nothing is retouched. Each run begins with an empty cache, so that a picture does not depend on the run before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

WAIT_S = 600.0
"""A first start loads the model, and the machine may be busy."""

ROOT_VARIABLE = "SEGADAPT_SCREENSHOTS_OF"
"""Says to the copy of this file that QGIS runs, which knows no `__file__`, where the checkout is."""

MOST_BYTES = 250_000
"""Pictures are compressed to that."""

FINEST_ZOOM = 19
"""Of the web map."""

DOCK_PX = 410
"""So wide that no entry of the dock is cut off."""

COLOURS = {
    "building": "#ff9d1e",
    "grass": "#a6e04a",
    "tree": "#1f9e4c",
    "vehicle": "#b497ff",
    "traffic island": "#ff5fc4",
}
"""Of the classes of the sample scene."""

GOOD_ENOUGH, MOST_CORRECTIONS = 0.85, 2
"""An object is corrected by so many clicks, or until its IoU with the reference is that."""
SAME_OBJECT, MOST_ANSWERS = 0.5, 12
"""IoU from which on a candidate is one of the buildings, and when the analyst has answered enough."""

MOST_PLACES = 8
"""So often the analyst goes to the next place at most, until one is far from the edge of the aerial image."""

AERIAL = "chico_2020_21"
AERIAL_CLICKS = {
    "grass": ("#9be04a", ((150, 30), (215, 95), (163, 114))),
    "tree": ("#0f7a3a", ((110, 80), (20, 60), (205, 130), (80, 178), (84, 213), (167, 208), (243, 207))),
    "roof": ("#e6502e", ((65, 22), (62, 29), (79, 34), (100, 183), (126, 190), (33, 231), (148, 231), (48, 196))),
    "paved": ("#8f8fa8", ((60, 72), (150, 152), (43, 151), (8, 168), (141, 194), (91, 251), (42, 30))),
    "bare ground": ("#f0cf80", ((215, 172), (212, 22), (124, 147), (95, 55))),
}
"""Colour and places, in pixels of the image, of each class: fewer than 30."""

SAMPLE_MODEL = "plugin/resources/sample/buildings_60cm.safetensors"
ADAPTATION_STEPS = 40
"""Of adapting and of learning from labels, as in the demo."""

Wait = Callable[[], Any]


def main() -> int:
    """Run QGIS in a fresh profile and return its exit status."""
    root = Path(__file__).resolve().parents[1]
    qgis = shutil.which("qgis.bin") or shutil.which("qgis")
    if qgis is None:
        sys.stderr.write("QGIS is not installed; run `make setup` first.\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "segadapt"
        scratch = Path(folder) / "scratch"
        home.mkdir()
        scratch.mkdir()
        for heavy in _heavy_folders():
            (home / heavy.name).symlink_to(heavy)
        profile = Path(folder) / "profiles" / "default"
        (profile / "python" / "plugins").mkdir(parents=True)
        (profile / "python" / "plugins" / "segadapt").symlink_to(root)
        (profile / "QGIS").mkdir()
        (profile / "QGIS" / "QGIS3.ini").write_text(
            "[PythonPlugins]\nsegadapt=true\n[qgis]\nshowTips=false\ncheckVersion=false\n"
            "[core]\nNewsFeed\\httpsfeedqgisorg\\disabled=true\n"
        )
        environment = {
            **os.environ,
            # QGIS takes the first python3 there for its own; that of pyenv or conda has no qgis.
            "PATH": f"{Path(qgis).parent}{os.pathsep}{os.environ['PATH']}",
            "QGIS_CUSTOM_CONFIG_PATH": folder,
            "SEGADAPT_HOME": str(home),
            # QGIS marks layers below it as temporary, which the layer of the accepted objects is not.
            "TMPDIR": str(scratch),
            ROOT_VARIABLE: str(root),
        }
        command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", qgis, "--nologo", "--noversioncheck"]
        command += ["--code", str(Path(__file__).resolve())]
        return subprocess.run(command, env=environment, timeout=4 * WAIT_S, check=False).returncode


def _heavy_folders() -> list[Path]:
    """Weights and environments of the user, without which everything would be fetched anew."""
    home = os.environ.get("SEGADAPT_HOME")
    share = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    data = Path(home).expanduser() if home else share / "segadapt"
    return [path.resolve() for path in (data / "checkpoints", *data.glob("env-*")) if path.is_dir()]


class Photographer:
    """Runs a script in QGIS's own event loop; each step yields what to wait for before the next."""

    def __init__(self, iface: Any, root: Path) -> None:
        from qgis.PyQt.QtCore import QTimer
        from qgis.utils import plugins

        self._iface, self._root = iface, root
        self._plugin = plugins["segadapt"]
        self._canvas = iface.mapCanvas()
        self._steps = self._script()
        self._wait: Wait = lambda: True
        self._deadline = time.monotonic() + WAIT_S
        self._timer = QTimer()
        self._timer.timeout.connect(self._step)
        self._timer.start(50)

    def _step(self) -> None:
        try:
            if self._wait():
                self._wait = next(self._steps)
                self._deadline = time.monotonic() + WAIT_S
            elif time.monotonic() > self._deadline:
                notices = [item.text() for item in self._iface.messageBar().items()]
                raise TimeoutError(f"Waited {WAIT_S:.0f} s; the dock says: {self._status()} {notices}")
        except StopIteration:
            self._leave(0)
        except Exception:
            # An exception in a slot would only open a dialog that nobody can close.
            traceback.print_exc()
            self._leave(1)

    def _leave(self, status: int) -> None:
        self._timer.stop()
        self._plugin.unload()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # QGIS would ask whether to save the edited layer

    def _script(self) -> Iterator[Wait]:
        self._tidy_window()
        yield _seconds(1.0)
        self._plugin.load_sample()
        self._tidy_dock()
        yield _seconds(0.5)
        # Before anything is encoded: the scene is not open yet, and cannot be asked to be shown.
        self._canvas.setExtent(self._plugin.controller.scene.layer.extent())
        yield from self._show_encoding()
        yield lambda: "is encoded" in self._status()
        objects = self._reference()
        yield from self._offer_masks(objects)
        yield from self._scribble(objects)
        yield from self._accept_all(objects)
        yield from self._review(objects)
        yield from self._show_help()
        yield from self._show_web_map()
        yield from self._map_classes()
        yield from self._adapt()

    def _show_encoding(self) -> Iterator[Wait]:
        """What is encoded, when half of the view is."""
        coverage = self._plugin.controller.actions["coverage"]
        coverage.trigger()
        scene = self._plugin.controller.scene
        yield lambda: 2 * scene.status.n_encoded >= (scene.status.n_windows or WAIT_S)
        yield from self._take("8-encoded")
        coverage.trigger()

    def _offer_masks(self, objects: dict[str, Any]) -> Iterator[Wait]:
        """Click where a mask may mean a part or the whole."""
        self._show(objects["church_roof"].geometry().buffer(45, 8))
        yield from self._encoded()
        for name in ("church_roof", "hall_annex", "terrace_orange", "house_flat"):
            self._click(objects[name].geometry().pointOnSurface().asPoint(), is_foreground=True)
            yield self._answered
            if self._prompts().session.step.n_options > 1:
                break
            self._press(_key("Escape"))
        yield from self._take("1-masks")
        self._press(_key("Tab"))
        self._press(_key("Escape"))

    def _scribble(self, objects: dict[str, Any]) -> Iterator[Wait]:
        """Draw over an object, and beside it."""
        outline = objects["terrace_east"].geometry()
        self._show(outline.buffer(25, 8))
        yield from self._encoded()
        self._press(_key("S"))
        middle = outline.orientedMinimumBoundingBox()[0].buffer(-2.5, 2).simplify(3)
        corners = list(middle.vertices())[:4]
        corners.sort(key=lambda vertex: vertex.x())
        first, last = (_halfway(*corners[:2]), _halfway(*corners[2:]))
        self._draw([first, _halfway(first, last), last])
        yield self._answered
        yield from self._take("2-scribble")
        self._press(_key("Escape"))
        self._press(_key("P"))

    def _accept_all(self, objects: dict[str, Any]) -> Iterator[Wait]:
        """Box every object of the reference, correct it by clicks and accept it with its class."""
        controller = self._plugin.controller
        controller.shape_panel.min_area_m2.setValue(4.0)
        controller.scene.zoom_to_layer()
        yield from self._encoded()
        for feature in objects.values():
            controller.classes.choose(str(feature["class"]))
            controller.classes.set_colour(str(feature["class"]), _colour(COLOURS[str(feature["class"])]))
            self._drag(feature.geometry().boundingBox().buffered(1.5))
            yield self._answered
            for _ in range(MOST_CORRECTIONS):
                outline = self._prompts().outline()
                if _iou(outline, feature.geometry()) >= GOOD_ENOUGH:
                    break
                place, is_foreground = _worst(outline, feature.geometry())
                self._click(place, is_foreground=is_foreground)
                yield self._answered
            self._press(_key("Return"))
            yield _seconds(0.5)
            if not self._prompts().session.is_empty:
                sys.stdout.write(f"{feature['object_id']} is not accepted: {self._dock().object_label.text()}\n")
                self._press(_key("Escape"))
        yield lambda: "Nothing learned" not in controller.learning.panel.report.text()
        yield _seconds(3.0)
        self._show_pages("Classes", "Learning")
        yield from self._take("3-objects")

    def _review(self, objects: dict[str, Any]) -> Iterator[Wait]:
        """Look for the other buildings, answer for some of them, and show the rest as they are ranked then."""
        controller = self._plugin.controller
        controller.classes.choose("building")
        self._press(_key("F"))
        similar = controller.similar
        yield lambda: similar.review is not None and not similar.panel.buttons["stop_search"].isEnabled()
        buildings = [one.geometry() for one in objects.values() if one["class"] == "building"] + self._others()
        answers = ""
        while len(answers) < MOST_ANSWERS and similar.current is not None:
            outline = similar.review.geometries[similar.current]
            is_one = any(_iou(outline, building) >= SAME_OBJECT for building in buildings)
            answers += "A" if is_one else "R"
            self._press(_key(answers[-1]))
            yield _seconds(1.0)
        sys.stdout.write(f"The candidates are answered for: {answers}\n")
        controller.scene.zoom_to_layer()
        self._show_pages("Find similar")
        yield _seconds(3.0)
        yield from self._take("4-review")
        self._press(_key("Escape"))

    def _show_help(self) -> Iterator[Wait]:
        from qgis.PyQt.QtWidgets import QFrame

        self._show_pages("Scene", "Classes")
        self._plugin.controller.show_cheat_sheet()
        yield from self._take("7-keys")
        self._press(_key("Escape"), self._canvas.findChild(QFrame, "SegAdaptCheatSheet"))

    def _show_web_map(self) -> Iterator[Wait]:
        """Tiles of the sample scene, as a web map serves them, and one object of it."""
        from qgis.core import QgsCoordinateReferenceSystem, QgsProject, QgsRasterLayer

        folder = Path(tempfile.mkdtemp(prefix="segadapt_tiles_"))
        _write_tiles(Path(self._raster_path()), folder)
        server, port = _serve(folder)
        url = f"type=xyz&url=http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.png&zmin=14&zmax={FINEST_ZOOM}"
        layer = QgsRasterLayer(url, "Web map (tiles)", "wms")
        QgsProject.instance().addMapLayer(layer)
        for other in QgsProject.instance().mapLayers().values():
            QgsProject.instance().layerTreeRoot().findLayer(other).setItemVisibilityChecked(other is layer)
        controller = self._plugin.controller
        old = controller.scene.layer
        place = self._reference()["roundabout_island"].geometry()
        controller.classes.choose("traffic island")
        QgsProject.instance().setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
        self._canvas.setExtent(controller.scene.mapping.to_canvas(place.buffer(45, 8)).boundingBox())
        self._dock().raster_combo.setLayer(layer)
        yield lambda: controller.scene.layer is layer and controller.scene.is_ready
        from qgis.core import QgsCoordinateTransform

        moved = type(place)(place)
        moved.transform(QgsCoordinateTransform(old.crs(), layer.crs(), QgsProject.instance()))
        yield from self._encoded()
        self._drag(moved.boundingBox().buffered(2))
        yield self._answered
        yield from self._take("9-webmap")
        self._press(_key("Escape"))
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    def _map_classes(self) -> Iterator[Wait]:
        """A few clicks per class on an aerial image, and where the map is most in doubt."""
        from qgis.core import QgsGeometry, QgsProject, QgsRasterLayer

        path = Path(os.environ.get("SEGADAPT_DATA", "../shared/data")) / "naip_trees" / f"{AERIAL}.tif"
        path = self._root / path  # stays what it is where it is absolute
        if not path.exists():
            sys.stdout.write(f"{path} is not there: no pictures of the class map.\n")
            return
        QgsProject.instance().clear()
        layer = QgsRasterLayer(str(path.resolve()), f"NAIP {AERIAL}", "gdal")
        QgsProject.instance().addMapLayer(layer)
        QgsProject.instance().setCrs(layer.crs())
        self._canvas.setExtent(layer.extent())
        self._dock().raster_combo.setLayer(layer)
        controller = self._plugin.controller
        controller.activate_tool(True)
        yield lambda: controller.scene.is_ready
        controller.scene.zoom_to_layer()
        yield from self._encoded()
        self._press(_key("L"))
        self._show_pages("Classes", "Class map")
        n_clicks = 0
        for name, (colour, places) in AERIAL_CLICKS.items():
            controller.classes.choose(name)
            controller.classes.set_colour(name, _colour(colour))
            for x, y in places:
                extent = layer.extent()
                px = layer.rasterUnitsPerPixelX()
                point = QgsGeometry.fromWkt(f"POINT({extent.xMinimum() + x * px} {extent.yMaximum() - y * px})")
                n_clicks += 1
                self._click(point.asPoint(), is_foreground=True)
                yield partial(self._has_strokes, n_clicks)
        yield _seconds(1.0)
        yield lambda: controller.class_map.picture.n_missing == 0
        sys.stdout.write(f"The class map is made of {n_clicks} clicks.\n")
        yield from self._take("5-classmap")
        self._canvas.zoomByFactor(0.5)
        yield _seconds(1.0)
        for _ in range(MOST_PLACES):
            self._press(_key("N"))
            yield _seconds(2.0)
            if layer.extent().contains(self._canvas.extent()):
                break
        else:
            sys.stdout.write("No next place is far from the edge: look at 6-guidance.\n")
        yield from self._take("6-guidance")
        self._press(_key("L"))

    def _adapt(self) -> Iterator[Wait]:
        """A model of buildings from elsewhere, from the measure of distance to the map of the sample scene."""
        from qgis.core import QgsProject

        model = self._root / SAMPLE_MODEL
        if not model.exists():
            sys.stdout.write(f"{model} is not there: no picture of adaptation.\n")
            return
        QgsProject.instance().clear()
        self._plugin.load_sample()
        controller = self._plugin.controller
        yield lambda: controller.scene.is_ready
        QgsProject.instance().setCrs(controller.scene.layer.crs())  # that of the aerial image stays otherwise
        controller.scene.zoom_to_layer()
        page = controller.adaptation
        make_run = page.make_run
        page.make_run = lambda name, given: make_run(
            name, {**given, **({"STEPS": ADAPTATION_STEPS} if name in ("adaptmodel", "finetunemodel") else {})}
        )
        self._show_pages("Adapt")
        page.panel.model_file.setFilePath(str(model))
        for step in ("shift", "adapt", "select"):
            yield from self._run_step(step)
        self._label_places()
        yield page.panel.rows["tune"].button.isEnabled
        for step in ("tune", "map"):
            yield from self._run_step(step)
        for layer in QgsProject.instance().mapLayers().values():
            if layer.name().startswith("Map of"):
                layer.setOpacity(0.45)
                layer.triggerRepaint()
        yield _seconds(3.0)
        bar = self._dock().page("Adapt").y()
        self._dock().findChild(_scroll_area()).verticalScrollBar().setValue(bar)
        yield from self._take("10-adapt")

    def _run_step(self, step: str) -> Iterator[Wait]:
        row = self._plugin.controller.adaptation.panel.rows[step]
        row.button.click()
        yield lambda: row.button.text() != "Stop"
        sys.stdout.write(f"{row.title.text()}: {row.text.text()}\n")

    def _label_places(self) -> None:
        """Give the places the class that the outlines know there."""
        controller = self._plugin.controller
        layer = controller.target.layer()
        buildings = [one.geometry() for one in self._reference().values() if one["class"] == "building"]
        buildings += self._others()
        chosen: dict[str, list[int]] = {}
        background = next(name for name in controller.classes.names() if name != "building")
        for place in layer.getFeatures():
            middle = place.geometry().pointOnSurface()
            is_building = any(outline.contains(middle) for outline in buildings)
            chosen.setdefault("building" if is_building else background, []).append(place.id())
        for name, feature_ids in chosen.items():
            controller.classes.choose(name)
            layer.selectByIds(feature_ids)
            self._press(_key("K"))
        layer.removeSelection()

    def _has_strokes(self, n_strokes: int) -> bool:
        picture = self._plugin.controller.class_map.picture
        return picture is not None and int(picture.n_strokes) == n_strokes

    def _encoded(self) -> Iterator[Wait]:
        yield _seconds(1.5)
        yield lambda: "is encoded" in self._status()

    def _tidy_window(self) -> None:
        from qgis.PyQt.QtWidgets import QDockWidget

        window = self._iface.mainWindow()
        window.showNormal()
        window.setGeometry(0, 0, 1600, 1000)
        for dock in window.findChildren(QDockWidget):
            dock.setVisible(dock.objectName() == "Layers")

    def _tidy_dock(self) -> None:
        from qgis.PyQt.QtCore import Qt

        self._iface.mainWindow().resizeDocks([self._dock()], [DOCK_PX], Qt.Orientation.Horizontal)

    def _show_pages(self, *titles: str) -> None:
        """Fold all pages of the dock but these."""
        for title in ("Scene", "Classes", "Shape", "Find similar", "Class map", "Learning", "Adapt"):
            self._dock().page(title).setCollapsed(title not in titles)

    def _take(self, name: str) -> Iterator[Wait]:
        yield lambda: not self._canvas.isDrawing()
        yield _seconds(0.5)
        folder = self._root / "docs" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.jpg"
        picture = self._iface.mainWindow().grab().toImage()
        for quality in range(88, 40, -6):
            if not picture.save(str(path), "JPG", quality):
                raise OSError(f"Cannot write {path}")
            if path.stat().st_size <= MOST_BYTES:
                break
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()

    def _reference(self) -> dict[str, Any]:
        return {feature["object_id"]: feature for feature in self._table("reference").getFeatures()}

    def _others(self) -> list[Any]:
        """Buildings that the reference leaves out, in the raster's CRS."""
        from qgis.core import QgsGeometry, QgsPointXY

        layer = self._plugin.controller.scene.layer
        left, top = layer.extent().xMinimum(), layer.extent().yMaximum()
        side_x, side_y = layer.rasterUnitsPerPixelX(), layer.rasterUnitsPerPixelY()
        drawn = json.loads((self._root / "tests/test_plugin/test_gui/sample_buildings.json").read_text())
        return [
            QgsGeometry.fromPolygonXY([[QgsPointXY(left + x * side_x, top - y * side_y) for x, y in one["outline"]]])
            for one in drawn["objects"]
        ]

    def _table(self, name: str) -> Any:
        from qgis.core import QgsProject

        layers = QgsProject.instance().mapLayers().values()
        return next(layer for layer in layers if layer.source().endswith(f"layername={name}"))

    def _dock(self) -> Any:
        return self._plugin.dock

    def _prompts(self) -> Any:
        return self._plugin.controller.prompts

    def _status(self) -> str:
        return "" if self._dock() is None else self._dock().status_label.text()

    def _answered(self) -> bool:
        return self._prompts().session.answer is not None

    def _show(self, geometry: Any) -> None:
        mapping = self._plugin.controller.scene.mapping
        self._canvas.setExtent(mapping.to_canvas(geometry).boundingBox())
        self._canvas.refresh()

    def _pixel(self, point: Any) -> Any:
        from qgis.PyQt.QtCore import QPoint

        mapping = self._plugin.controller.scene.mapping
        place = self._canvas.getCoordinateTransform().transform(mapping.point_to_canvas((point.x(), point.y())))
        return QPoint(round(place.x()), round(place.y()))

    def _raster_path(self) -> str:
        return str(self._plugin.controller.scene.layer.source())

    def _draw(self, points: list[Any]) -> None:
        """Drag along a line."""
        from qgis.PyQt.QtCore import QEvent, QPointF, Qt
        from qgis.PyQt.QtGui import QMouseEvent
        from qgis.PyQt.QtTest import QTest
        from qgis.PyQt.QtWidgets import QApplication

        viewport, left, none = self._canvas.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        places = [self._pixel(point) for point in points]
        QTest.mousePress(viewport, left, none, places[0])
        for place in places:
            # QTest.mouseMove forgets the button on some platforms.
            QApplication.sendEvent(viewport, QMouseEvent(QEvent.Type.MouseMove, QPointF(place), left, left, none))
        QTest.mouseRelease(viewport, left, none, places[-1])

    def _click(self, point: Any, *, is_foreground: bool) -> None:
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtTest import QTest

        button = Qt.MouseButton.LeftButton if is_foreground else Qt.MouseButton.RightButton
        QTest.mouseClick(self._canvas.viewport(), button, Qt.KeyboardModifier.NoModifier, self._pixel(point))

    def _drag(self, box: Any) -> None:
        from qgis.core import QgsPointXY

        first, last = QgsPointXY(box.xMinimum(), box.yMaximum()), QgsPointXY(box.xMaximum(), box.yMinimum())
        self._draw([first, _halfway(first, last), last])

    def _press(self, key: Any, widget: Any = None) -> None:
        from qgis.PyQt.QtTest import QTest

        QTest.keyClick(widget or self._canvas, key)


def _key(name: str) -> Any:
    from qgis.PyQt.QtCore import Qt

    return getattr(Qt.Key, f"Key_{name}")


def _colour(name: str) -> Any:
    from qgis.PyQt.QtGui import QColor

    return QColor(name)


def _scroll_area() -> Any:
    from qgis.PyQt.QtWidgets import QScrollArea

    return QScrollArea


def _halfway(first: Any, second: Any) -> Any:
    from qgis.core import QgsPointXY

    return QgsPointXY((first.x() + second.x()) / 2, (first.y() + second.y()) / 2)


def _iou(first: Any, second: Any) -> float:
    """IoU of two polygons in one CRS."""
    union = first.combine(second).area()
    return float(first.intersection(second).area() / union) if union else 0.0


def _worst(outline: Any, truth: Any) -> tuple[Any, bool]:
    """Where an outline is wrong over the largest area: the deepest point there, and whether it is on the object."""
    parts = [
        (part, is_foreground)
        for wrong, is_foreground in ((truth.difference(outline), True), (outline.difference(truth), False))
        for part in wrong.asGeometryCollection()
    ]
    largest, is_foreground = max(parts, key=lambda item: item[0].area())
    return largest.poleOfInaccessibility(0.25)[0].asPoint(), is_foreground


def _serve(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Serve a folder as a web map does; a process of its own, as QGIS may hold Python's lock while it waits."""
    command = [shutil.which("python3") or "python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    command += ["--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    # "Serving HTTP on 127.0.0.1 port 12345 (http://...) ..."
    line = server.stdout.readline() if server.stdout is not None else ""
    return server, int(line.split(" port ")[1].split()[0])


def _write_tiles(raster: Path, folder: Path) -> None:
    """Cut a raster into 8-bit tiles of Web Mercator, FOLDER/z/x/y.png."""
    from osgeo import gdal
    from osgeo_utils import gdal2tiles  # type: ignore[import-untyped]

    bytes_path = folder / "bytes.tif"
    eight_bits = gdal.Translate(
        "", str(raster), format="MEM", bandList=[1, 2, 3], outputType=gdal.GDT_Byte, scaleParams=[[10, 600, 0, 255]] * 3
    )
    # On the very grid of the finest tiles: each tile would be resampled by itself otherwise, with a seam to the next.
    side_m = 40_075_016.685578488 / 256 / 2**FINEST_ZOOM
    gdal.Warp(
        str(bytes_path), eight_bits, dstSRS="EPSG:3857", xRes=side_m, yRes=side_m, targetAlignedPixels=True,
        resampleAlg="cubic", dstAlpha=True,
    )  # fmt: skip
    options = ["-q", "--xyz", "-z", f"14-{FINEST_ZOOM}", "-w", "none"]
    gdal2tiles.main(["gdal2tiles", *options, str(bytes_path), str(folder)])


def _seconds(duration_s: float) -> Wait:
    end = time.monotonic() + duration_s
    return lambda: time.monotonic() > end


def run_in_qgis() -> None:
    """Start the script inside QGIS; the photographer lives as long as QGIS does."""
    from qgis.utils import iface

    iface.segadapt_photographer = Photographer(iface, Path(os.environ[ROOT_VARIABLE]))


if os.environ.get(ROOT_VARIABLE):
    run_in_qgis()
elif __name__ == "__main__":
    sys.exit(main())
