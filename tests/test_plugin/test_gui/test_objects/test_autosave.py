"""Every accept is on the disk at once, whatever ends QGIS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsCategorizedSymbolRenderer, QgsFeature, QgsProject, QgsVectorLayer, QgsWkbTypes
from qgis.PyQt.QtGui import QColor
from segadapt.plugin.class_style import OWN_LAYER
from segadapt.plugin.classes import Classes
from segadapt.plugin.target import AUTOSAVED, NEW_SCRATCH

N_ACCEPTS = 5


def test_the_first_accept_makes_a_geopackage_and_says_where(target: Any, shapes: Any, tmp_path: Path) -> None:
    assert target.combo.currentText() == AUTOSAVED
    layer = target.accept(shapes.rectangle(0, 0), n_clicks=3, seconds=4.26)
    path = Path(layer.source().split("|")[0])
    assert path.parent == tmp_path / "home" / "objects"
    assert path.name.startswith("segadapt_2")
    assert target.news == [f"Objects are saved in {path} after each accept."]
    assert target.combo.currentLayer() is layer
    assert not layer.isEditable()
    (saved,) = target.saved()
    values = {name: saved[name] for name in shapes.names}
    assert len(values.pop("object_id")) == 12
    date = values.pop("date")
    assert time.strftime("%Y-%m-%dT") in date
    assert date[-6] in "+-"
    assert values.pop("area_m2") == pytest.approx(100.0, rel=2e-3)
    assert values.pop("perimeter_m") == pytest.approx(40.0, rel=1e-3)
    assert values == {
        "class": "roof", "score": 0.9, "stability": 0.95, "clicks": 3, "seconds": 4.3, "model": "fake", "adapter": "",
    }  # fmt: skip


def test_a_saved_project_gets_the_file_beside_it(target: Any, shapes: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert QgsProject.instance().write(str(tmp_path / "work" / "mine.qgz"))
    layer = target.accept(shapes.rectangle(0, 0))
    assert Path(layer.source().split("|")[0]).parent == tmp_path / "work"


def test_a_project_folder_that_takes_nothing_is_passed_over(target: Any, shapes: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert QgsProject.instance().write(str(tmp_path / "work" / "mine.qgz"))
    (tmp_path / "work" / "mine.qgz").unlink()
    (tmp_path / "work").rmdir()
    (tmp_path / "work").write_text("a file, where a folder was")
    layer = target.accept(shapes.rectangle(0, 0))
    assert Path(layer.source().split("|")[0]).parent == tmp_path / "home" / "objects"


def test_nowhere_to_write_keeps_the_object(target: Any, shapes: Any, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, where a folder should be")
    with pytest.raises(RuntimeError, match=rf"take '{NEW_SCRATCH}' as target"):
        target.accept(shapes.rectangle(0, 0))
    assert target.choice.layer() is None
    assert not target.choice.history.can_undo


def test_two_files_of_one_second_have_two_names(target: Any, shapes: Any) -> None:
    first = target.accept(shapes.rectangle(0, 0)).source()
    target.choice.set_layer(None)
    second = target.accept(shapes.rectangle(0, 0)).source()
    assert first != second


def test_the_project_remembers_its_target(target: Any, shapes: Any, tmp_path: Path) -> None:
    layer_id = target.accept(shapes.rectangle(0, 0)).id()
    project = QgsProject.instance()
    assert project.write(str(tmp_path / "mine.qgz"))
    project.clear()
    assert target.choice.layer() is None
    assert target.combo.currentText() == AUTOSAVED
    assert project.read(str(tmp_path / "mine.qgz"))
    assert target.layer.id() == layer_id
    assert target.layer.customProperty(OWN_LAYER)
    target.accept(shapes.rectangle(20, 0))
    assert len(target.saved()) == 2


def test_the_file_has_its_style_and_form_wherever_it_is_opened(target: Any, shapes: Any) -> None:
    target.accept(shapes.rectangle(0, 0), "roof")
    target.accept(shapes.rectangle(20, 0), "tree")
    target.accept(shapes.rectangle(40, 0), "")
    target.classes.set_colour("tree", QColor("#102030"))
    again = QgsVectorLayer(target.layer.source(), "elsewhere", "ogr")
    others = Classes()
    assert isinstance(again.renderer(), QgsCategorizedSymbolRenderer)
    QgsProject.instance().clear()
    assert others.read_layer(again) == 2
    assert others.names() == ["roof", "tree"]
    assert others.colour("tree") == QColor("#102030")
    others.dispose()
    for index, field in enumerate(again.fields()):
        if field.name() != "fid":
            assert field.alias()
            assert again.editFormConfig().readOnly(index) == (field.name() != "class")


def test_a_layer_of_the_users_is_saved_and_left_as_it_was(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "tree"))
    target.choice.set_layer(layer)
    style = layer.renderer().type()
    target.accept(shapes.rectangle(50, 0))
    assert not layer.isEditable()
    assert len(target.saved()) == 2
    assert layer.renderer().type() == style


def test_a_layer_that_is_being_edited_is_not_committed(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "tree"))
    target.choice.set_layer(layer)
    assert layer.startEditing()
    (tree,) = layer.getFeatures()
    layer.changeGeometry(tree.id(), shapes.rectangle(0, 0, 5, 5))
    target.accept(shapes.rectangle(50, 0))
    target.accept(shapes.rectangle(70, 0))
    assert layer.isEditable()
    assert layer.featureCount() == 3
    assert target.areas() == [100.0]  # neither his edit nor our objects are in the file
    said = "'objects' is being edited: objects go into its edit session and are safe once you save it."
    assert target.problems == [said]  # once
    layer.undoStack().undo()  # each accept is one command of his
    assert layer.featureCount() == 2
    assert layer.commitChanges()
    target.accept(shapes.rectangle(90, 0))  # from now on saved again
    assert target.areas() == [25.0, 100.0, 100.0]


def test_a_layer_in_a_transaction_group_is_not_committed(target: Any, shapes: Any, gpkg: Any) -> None:
    layer = gpkg((shapes.rectangle(0, 0), "tree"))
    project = QgsProject.instance()
    project.setAutoTransaction(True)
    try:
        target.choice.set_layer(layer)
        target.accept(shapes.rectangle(50, 0))
        assert layer.isEditable()
        assert layer.dataProvider().transaction() is not None
        assert layer.featureCount() == 2
        assert len(target.problems) == 1
        assert "is being edited" in target.problems[0]
        assert layer.commitChanges()
        assert len(target.saved()) == 2
    finally:
        layer.rollBack()
        project.removeAllMapLayers()
        project.setAutoTransaction(False)


def test_the_file_is_held_open_only_while_it_is_the_target(target: Any, shapes: Any, gpkg: Any) -> None:
    """Held, it has SQLite's write-ahead log beside it; let go, the file is one again."""
    path = Path(target.accept(shapes.rectangle(0, 0)).source().split("|")[0])
    logs = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
    assert all(log.exists() for log in logs)
    target.choice.set_layer(gpkg((shapes.rectangle(0, 0), "roof")))
    assert not any(log.exists() for log in logs)
    target.accept(shapes.rectangle(20, 0))
    assert len(target.saved()) == 2
    assert len(_saved_features(str(path))) == 1


def test_a_scratch_layer_is_possible(target: Any, shapes: Any) -> None:
    target.pick(NEW_SCRATCH)
    layer = target.accept(shapes.rectangle(0, 0))
    assert layer.providerType() == "memory"
    assert layer.featureCount() == 1
    assert target.news == []
    assert layer.hasSpatialIndex()


def test_accepts_do_not_slow_down(target: Any, shapes: Any) -> None:
    """The last accepts take no longer than the first ones; twice as long on a machine that is busy by then."""
    seconds = []
    for number in range(30):
        start = time.perf_counter()
        target.accept(shapes.rectangle(20 * number, 0))
        seconds.append(time.perf_counter() - start)
    first, last = sorted(seconds[2:12])[5], sorted(seconds[-10:])[5]
    assert last < 2 * first + 0.02
    assert len(target.saved()) == 30


KILLED = """
import os, signal, sys
from qgis.core import QgsCoordinateReferenceSystem, QgsGeometry, QgsProject
from qgis.gui import QgsMapCanvas, QgsMapLayerComboBox
from qgis.PyQt.QtCore import QObject
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QApplication
from qgis.testing import start_app
app = start_app()
from segadapt.plugin.exchange import Answer
from segadapt.plugin.target import TargetChoice
canvas, combo, owner = QgsMapCanvas(), QgsMapLayerComboBox(), QObject()
canvas.show()
choice = TargetChoice(combo, ask_path=lambda: None, parent=owner)
choice.set_raster_crs(QgsCoordinateReferenceSystem("EPSG:32631"))
for n in range(int(sys.argv[1])):
    x = 590000 + 20 * n
    ring = f"{x} 5750000,{x + 10} 5750000,{x + 10} 5750010,{x} 5750010,{x} 5750000"
    wkb = bytes(QgsGeometry.fromWkt(f"MultiPolygon((({ring})))").asWkb())
    layer = choice.accept(Answer(n, wkb, 0.9, 0.9, 100.0, "fake"), class_name="roof", colour=QColor("red"))
    canvas.setLayers([layer])
    canvas.setExtent(layer.extent())
    QApplication.processEvents()
    print(layer.source().split("|")[0], flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _saved_features(path: str) -> list[QgsFeature]:
    layer = QgsVectorLayer(path, "after the crash", "ogr")
    assert layer.isValid()
    assert layer.wkbType() == QgsWkbTypes.Type.MultiPolygon
    return list(layer.getFeatures())


def _start(n: int, end: str, tmp_path: Path) -> subprocess.Popen[str]:
    import segadapt

    link = Path(segadapt.__file__).parent / ".link"
    link.mkdir(exist_ok=True)
    if not (link / "segadapt").exists():
        (link / "segadapt").symlink_to("..")
    environment = {
        **os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": str(link), "SEGADAPT_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "-c", KILLED, str(n), end]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    )


def test_killed_qgis_has_saved_every_object(tmp_path: Path, qgis_app: Any) -> None:
    with _start(N_ACCEPTS, "kill", tmp_path) as process:
        assert process.stdout is not None
        paths = [line.strip() for line in process.stdout if line.strip().endswith(".gpkg")]
    assert process.returncode == -signal.SIGKILL
    assert len(paths) == N_ACCEPTS
    features = _saved_features(paths[0])
    assert len(features) == N_ACCEPTS
    assert all(feature.geometry().isGeosValid() for feature in features)
    assert {feature["class"] for feature in features} == {"roof"}


def test_killed_in_the_midst_of_an_accept_loses_that_one_at_most(tmp_path: Path, qgis_app: Any) -> None:
    with _start(10_000, "never", tmp_path) as process:
        assert process.stdout is not None
        paths: list[str] = []
        for line in process.stdout:
            if line.strip().endswith(".gpkg"):
                paths.append(line.strip())
            if len(paths) == 7:
                time.sleep(0.013)  # somewhere within an accept
                process.send_signal(signal.SIGKILL)
                break
        paths += [line.strip() for line in process.stdout if line.strip().endswith(".gpkg")]
    features = _saved_features(paths[0])
    assert len(paths) <= len(features) <= len(paths) + 1
    assert all(feature.geometry().isGeosValid() for feature in features)
