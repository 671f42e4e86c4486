"""Take the pictures of the documentation: the real plugin in a real QGIS, with the real model, on the sample scene.

`python3 tools/screenshots.py` starts QGIS under Xvfb with a profile of its own and runs this file in it (`--code`);
there it clicks like a user and writes docs/screenshots/*.png. Needs what `make setup` installs, and xvfb-run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WAIT_S = 200.0
"""A first start loads the model, and the machine may be busy."""

FOLDER_VARIABLE = "SEGADAPT_SCREENSHOTS"
"""Says to the copy of this file that QGIS runs where the pictures go."""

Wait = Callable[[], Any]


def main() -> int:
    """Run QGIS in a fresh profile and return its exit status."""
    root = Path(__file__).resolve().parents[1]
    qgis = shutil.which("qgis.bin") or shutil.which("qgis")
    if qgis is None:
        sys.stderr.write("QGIS is not installed; run `make setup` first.\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
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
            FOLDER_VARIABLE: str(root / "docs" / "screenshots"),
        }
        command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", qgis, "--nologo", "--noversioncheck"]
        command += ["--code", str(Path(__file__).resolve())]
        return subprocess.run(command, env=environment, timeout=2 * WAIT_S, check=False).returncode


class Photographer:
    """Runs a script in QGIS's own event loop; each step yields what to wait for before the next."""

    def __init__(self, iface: Any, folder: Path) -> None:
        from qgis.PyQt.QtCore import QTimer
        from qgis.utils import plugins

        self._iface, self._folder = iface, folder
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
                raise TimeoutError(f"Waited {WAIT_S:.0f} s; the dock says: {self._status()}")
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
        yield lambda: "Loading" in self._status()
        yield from self._take("1-loading")
        yield lambda: "is encoded" in self._status()
        objects = self._reference()
        self._show(objects["church_roof"].geometry().buffer(45, 8))
        yield _seconds(1.0)
        yield lambda: "is encoded" in self._status()
        self._move(objects["church_roof"].geometry().pointOnSurface().asPoint())
        yield lambda: not self._prompts().overlay.hover.isEmpty()
        yield from self._take("2-hover")
        yield from self._segment_by_clicks()
        yield from self._segment_all(objects)

    def _segment_by_clicks(self) -> Iterator[Wait]:
        """The prompts of one object of the sample, as its author placed them."""
        for feature in self._points("church_roof"):
            self._click(feature.geometry().asPoint(), is_foreground=bool(feature["label"]))
            yield self._answered
        yield from self._take("3-clicks")
        self._plugin.controller.classes.choose("church")
        self._press_enter()
        yield _seconds(0.3)

    def _segment_all(self, objects: dict[str, Any]) -> Iterator[Wait]:
        """Box every object, leave the last one open, and show how the layer grows."""
        self._plugin.controller.scene.zoom_to_layer()
        yield _seconds(1.0)
        yield lambda: "is encoded" in self._status()
        names = [name for name in objects if name != "church_roof"]
        for name in names:
            self._drag(objects[name].geometry().boundingBox().buffered(1.5))
            yield self._answered
            self._plugin.controller.classes.choose(str(objects[name]["class"]))
            if name == names[-1]:
                break
            self._press_enter()
            yield _seconds(0.2)
        yield from self._take("4-boxes")

    def _tidy_window(self) -> None:
        from qgis.PyQt.QtWidgets import QDockWidget

        window = self._iface.mainWindow()
        window.showNormal()
        window.setGeometry(0, 0, 1600, 1000)
        for dock in window.findChildren(QDockWidget):
            dock.setVisible(dock.objectName() == "Layers")

    def _take(self, name: str) -> Iterator[Wait]:
        yield lambda: not self._canvas.isDrawing()
        yield _seconds(0.5)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.png"
        if not self._iface.mainWindow().grab().save(str(path)):
            raise OSError(f"Cannot write {path}")
        sys.stdout.write(f"{path}\n")

    def _reference(self) -> dict[str, Any]:
        return {feature["object_id"]: feature for feature in self._table("reference").getFeatures()}

    def _points(self, object_id: str) -> list[Any]:
        features = list(self._table("prompt_points").getFeatures())
        return [feature for feature in features if feature["object_id"] == object_id]

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

    def _move(self, point: Any) -> None:
        from qgis.PyQt.QtTest import QTest

        QTest.mouseMove(self._canvas.viewport(), self._pixel(point))

    def _click(self, point: Any, *, is_foreground: bool) -> None:
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtTest import QTest

        button = Qt.MouseButton.LeftButton if is_foreground else Qt.MouseButton.RightButton
        QTest.mouseClick(self._canvas.viewport(), button, Qt.KeyboardModifier.NoModifier, self._pixel(point))

    def _drag(self, box: Any) -> None:
        from qgis.core import QgsPointXY
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtTest import QTest

        viewport, left = self._canvas.viewport(), Qt.MouseButton.LeftButton
        first = self._pixel(QgsPointXY(box.xMinimum(), box.yMaximum()))
        last = self._pixel(QgsPointXY(box.xMaximum(), box.yMinimum()))
        QTest.mousePress(viewport, left, Qt.KeyboardModifier.NoModifier, first)
        QTest.mouseMove(viewport, (first + last) / 2)
        QTest.qWait(30)
        QTest.mouseMove(viewport, last)
        QTest.qWait(30)
        QTest.mouseRelease(viewport, left, Qt.KeyboardModifier.NoModifier, last)

    def _press_enter(self) -> None:
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtTest import QTest

        QTest.keyClick(self._canvas, Qt.Key.Key_Return)


def _seconds(duration_s: float) -> Wait:
    end = time.monotonic() + duration_s
    return lambda: time.monotonic() > end


def run_in_qgis() -> None:
    """Start the script inside QGIS; the photographer lives as long as QGIS does."""
    from qgis.utils import iface

    iface.segadapt_photographer = Photographer(iface, Path(os.environ[FOLDER_VARIABLE]))


if os.environ.get(FOLDER_VARIABLE):
    run_in_qgis()
elif __name__ == "__main__":
    sys.exit(main())
