"""The live class map: clicks and scribbles of the map tool become a map of classes on the canvas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qgis.core import QgsGeometry, QgsPointXY, QgsWkbTypes
from qgis.gui import QgsMapCanvas, QgsRubberBand
from qgis.PyQt.QtCore import QObject, QTimer, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QFileDialog

from ..processing.algorithms.settings import read_settings
from .actions import Actions
from .class_map_export import MODEL_FILES, ClassMapExport
from .class_map_overlay import PIECES, ClassMapItem, DrawnStroke
from .class_map_panel import ClassMapPanel
from .class_map_rest import MapRest, RestOfMap
from .class_map_tasks import (
    AddStroke,
    FindNext,
    LoadClassModel,
    LoadedModel,
    MapHandle,
    MapPicture,
    MapStroke,
    MapTask,
    MapView,
    NextPlace,
    RedoStroke,
    RenameClass,
    SetColours,
    SetOptions,
    TakeUpStrokes,
    UndoStroke,
)
from .crs import CoordinateError
from .engine_worker import EngineWorker
from .exchange import Failure, Point
from .rendered_source import LayerSource
from .scene_control import SceneControl
from .stroke_file import StrokeFile, StrokeFileError

ClassChoice = Callable[[], "tuple[str, QColor]"]
"""Name and colour of the class at hand."""

HINT = "Click or scribble on places of the class at hand; number keys choose it, N shows the next place, L leaves."
_SETTLE_MS = 250
# White with dark edges: seen on light and dark classes alike.
_OUTLINE, _OUTLINE_EDGE = QColor("#ffffff"), QColor(0, 0, 0, 200)
# The view is zoomed out until the next place fills no more than a third of it.
_SURROUNDINGS = 3.0


class ClassMapControl(QObject):
    """Owns mode, overlay and panel. `changed`: undo may do something else now.

    `notified` carries a sentence about what cannot be, `informed` one about what is done; `classes_found` the colours
    by name of the classes of clicks that are taken up again.
    """

    notified = pyqtSignal(str)
    informed = pyqtSignal(str)
    changed = pyqtSignal()
    classes_found = pyqtSignal(dict)

    def __init__(
        self,
        canvas: QgsMapCanvas,
        worker: EngineWorker,
        *,
        scene: SceneControl,
        actions: Actions,
        class_choice: ClassChoice,
        parent: QObject | None,
    ) -> None:
        super().__init__(parent)
        self._canvas, self._worker, self._scene = canvas, worker, scene
        self._class_choice = class_choice
        self.item = ClassMapItem(canvas)
        self._band = QgsRubberBand(canvas, QgsWkbTypes.GeometryType.PolygonGeometry)
        self._band.setFillColor(QColor(0, 0, 0, 0))
        self._band.setStrokeColor(_OUTLINE)
        self._band.setSecondaryStrokeColor(_OUTLINE_EDGE)
        self._band.setWidth(3)
        self._handle: MapHandle | None = None
        self._picture: MapPicture | None = None
        self._file: StrokeFile | None = None
        self._said = ""
        """Why the clicks could not be stored when it was said last."""
        self._visited: list[Point] = []
        self._under_way: list[MapTask] = []
        """Clicks, undos and redos that no picture shows yet."""
        self._n_dropped = 0
        """How many clicks and scribbles `Begin anew` took back, until one is made or comes back."""
        self._view_task: MapView | None = None
        self._rest = RestOfMap(worker, do=self._do, parent=self)
        self._rest.changed.connect(self._show)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        add = partial(actions.add, group="Class map")
        tip = "Clicks and scribbles name places of a class, and the whole view is mapped"
        self.mode_action = add(
            "class_map", "Class map", self.set_mode, tip=tip, shortcut="L", icon="classmap", checkable=True
        )
        tip = "Go to the place where the class map is most in doubt"
        self.next_action = add("next_place", "Next place", self.show_next, tip=tip, shortcut="N")
        tip = "Take the last click or scribble of the class map back"
        self._undo_action = add("map_undo", "Undo in the class map", self.undo, tip=tip, label="Undo")
        tip = "Take all clicks and scribbles of the class map back, and begin anew; undo brings all of them back"
        clear = partial(self._change, UndoStroke, is_all=True)
        self._clear_action = add("map_clear", "Begin the class map anew", clear, tip=tip, label="Begin anew")
        tip = "Whole segments of the image get one class, which draws clean borders"
        add("map_snap", "Snap to segments", None, tip=tip, checkable=True)
        self.export = ClassMapExport(worker, actions=actions, do=self._do, window=canvas, parent=self)
        tip = "Map with a saved model; possible before the first click"
        self._load_action = add("map_load", "Load class map model…", self._ask_model, tip=tip, label="Load model…")
        self.panel = ClassMapPanel(actions)
        self._connect()
        self._show()

    def dispose(self) -> None:
        """Leave the canvas."""
        self._settle.stop()
        self._rest.stop()
        self._canvas.extentsChanged.disconnect(self._settle.start)
        self._canvas.destinationCrsChanged.disconnect(self._draw)
        self.item.clear()
        if self._canvas.scene() is not None:  # gone already where QGIS closes
            self._canvas.scene().removeItem(self.item)
            self._canvas.scene().removeItem(self._band)

    @property
    def picture(self) -> MapPicture | None:
        """What was last drawn."""
        return self._picture

    @property
    def undo_text(self) -> str:
        """What `undo` takes back while the class map is on, "" for nothing."""
        if not self.wants_clicks():
            return ""
        n_strokes = 0 if self._picture is None else self._picture.n_strokes
        if self._under_way or n_strokes:
            return "click"
        return "beginning anew" if self._n_dropped else ""

    @property
    def redo_text(self) -> str:
        """What `redo` brings back while the class map is on, "" for nothing."""
        if self._under_way:
            has_undone = isinstance(self._under_way[-1], UndoStroke | RedoStroke)
        else:
            has_undone = self._picture is not None and self._picture.n_undone > 0
        return "click" if self.wants_clicks() and has_undone else ""

    def has_work(self) -> bool:
        """Say whether there are clicks that would be lost with the scene."""
        return self._picture is not None and self._picture.n_strokes > 0

    def wants_clicks(self) -> bool:
        """Say whether clicks and scribbles of the tool belong to the class map."""
        return bool(self.mode_action.isChecked())

    def set_mode(self, is_on: bool) -> None:
        """Begin or leave the class map; what was clicked stays."""
        self.mode_action.setChecked(is_on)
        if is_on:
            self._encode_view()
        else:
            self._settle.stop()
            self._rest.stop()
            self._cancel_view()
            self._hide_place()
        self._draw()
        self._show()

    def click(self, point_raster: Point, is_foreground: bool) -> None:
        """Name the place (raster's CRS) as being of the class at hand."""
        self.scribble([point_raster], is_foreground)

    def scribble(self, points_raster: Sequence[Point], is_foreground: bool) -> None:
        """Name a line of places; the class map knows no background, only other classes."""
        if not is_foreground:
            self.notified.emit("The class map has no 'not this': choose the class that is there and click with it.")
            return
        name, colour = self._class_choice()
        if not name:
            self.notified.emit("No class is chosen; name one in the panel, or press the number of one.")
            return
        self._hide_place()
        self._change(AddStroke, stroke=MapStroke(tuple(points_raster), name, colour.getRgb()[:3]))
        self._encode_view()

    def undo(self) -> None:
        """Take the last click or scribble back, or all of them as they were before the map was begun anew."""
        if self._n_dropped and not self._under_way:
            self._change(RedoStroke, n_strokes=self._n_dropped)
        else:
            self._change(UndoStroke)
        self._encode_view()

    def redo(self) -> None:
        """Bring the click or scribble back that was taken back last."""
        self._change(RedoStroke)
        self._encode_view()

    def rename_class(self, old: str, new: str) -> None:
        """Follow a class that has another name now."""
        self._follow(RenameClass, old=old, new=new)

    def set_colours(self, colours: Mapping[str, QColor]) -> None:
        """Follow the colours of the classes, by name."""
        self._follow(SetColours, colours={name: colour.getRgb()[:3] for name, colour in colours.items()})

    def show_next(self) -> None:
        """Take the canvas to the place that is most in doubt."""
        if self._picture is None or not self._picture.has_map:
            self.notified.emit("There is no class map to be in doubt; press L and click on places of two classes.")
            return
        self._do(FindNext, visited_map=tuple(self._visited))

    def load_model(self, path: Path) -> None:
        """Map with a saved model, in place of what was clicked."""
        self.set_mode(True)
        if any(isinstance(task, TakeUpStrokes) for task in self._under_way):
            self.notified.emit("The raster has clicks from before, which a model would replace; begin anew first.")
            return
        if self._do(LoadClassModel, path=path) is not None:
            self._encode_view()  # anew: what is under way describes the view for the map before

    def _connect(self) -> None:
        self.export.informed.connect(self.informed)
        self.export.notified.connect(self.notified)
        self.export.changed.connect(self._show)
        self.export.progressed.connect(self.panel.progress_bar.setValue)
        for changed in (self.panel.snap_box.toggled, self.panel.head_combo.currentIndexChanged):
            changed.connect(lambda _value: self._follow(SetOptions, **self._options()))
        self._settle.timeout.connect(self._encode_view)
        self._canvas.extentsChanged.connect(self._settle.start)
        self._canvas.destinationCrsChanged.connect(self._draw)
        self._scene.changed.connect(self._on_scene_changed)
        self._scene.ready.connect(self._encode_view)
        self._worker.worked.connect(self._on_worked)
        self._worker.done.connect(self._on_done)
        self._worker.failed.connect(self._on_failed)

    def _do(self, kind: type[Any], **values: Any) -> Any:
        """Hand a task to the worker; None where no raster is open."""
        mapping, source = self._scene.mapping, self._scene.source
        if mapping is None or source is None or not self._scene.is_ready:
            self.notified.emit("The raster is not open yet; choose one and wait a moment.")
            return None
        try:
            view = mapping.view()
        except CoordinateError as error:
            self.notified.emit(str(error))
            return None
        if self._handle is None:
            self._handle = MapHandle(read_settings(), **self._options())
            self._take_up(source)
        self._rest.stop()
        task = kind(self._handle, view, **values)
        self._worker.do(task)
        return task

    def _take_up(self, source: LayerSource) -> None:
        """Begin with the clicks that are stored of the raster."""
        self._file = StrokeFile(source)
        try:
            strokes = self._file.read()
        except StrokeFileError as error:
            self.notified.emit(str(error))
            return
        if strokes:
            self._change(TakeUpStrokes, strokes=strokes)

    def _store(self, picture: MapPicture) -> None:
        """Keep the clicks for another session."""
        try:
            if self._file is not None:
                self._file.write(picture.strokes)
        except StrokeFileError as error:
            if str(error) != self._said:  # not after each click
                self.notified.emit(str(error))
            self._said = str(error)
        else:
            self._said = ""

    def _follow(self, kind: type[Any], **values: Any) -> None:
        """Hand a task to the worker where a class map is begun."""
        if self._handle is not None and self._scene.is_ready:
            self._do(kind, **values)

    def _options(self) -> dict[str, Any]:
        return {"head": self.panel.head, "is_snapped": self.panel.snap_box.isChecked()}

    def _ask_model(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.panel, "Load class map model", "", MODEL_FILES)
        if path:
            self.load_model(Path(path))

    def _change(self, kind: type[MapTask], **values: Any) -> None:
        """Hand over what changes the clicks."""
        task = self._do(kind, **values)
        if task is not None:
            self._under_way.append(task)
            self._show()

    def _encode_view(self) -> None:
        if not self.wants_clicks() or not self._scene.is_ready:
            return
        self._cancel_view()
        self._view_task = self._do(MapView)
        self._show()

    def _cancel_view(self) -> None:
        if self._view_task is not None:
            self._worker.cancel(self._view_task)
            self._view_task = None

    def _on_worked(self, task: Any, item: Any) -> None:
        if not isinstance(task, MapTask) or task.handle is not self._handle:
            return
        if isinstance(item, MapPicture):
            n_before = 0 if self._picture is None else self._picture.n_strokes
            if isinstance(task, UndoStroke) and task.is_all and n_before:
                self._n_dropped = n_before
            elif item.n_strokes or not item.n_undone:
                self._n_dropped = 0
            self._picture = item
            self._store(item)
            self._under_way = [one for one in self._under_way if one is not task]
            if self.wants_clicks() and not item.n_missing:
                self._rest.start_soon()
            self._draw()
            if isinstance(task, TakeUpStrokes):
                self.informed.emit(_taken_up(item.n_strokes, n_stored=len(task.strokes)))
                self.classes_found.emit({stroke.class_name: QColor(*stroke.colour) for stroke in item.strokes})
        elif isinstance(task, FindNext):
            self._go_to(item)
        elif isinstance(item, LoadedModel):
            self.panel.show_options(item.head, is_snapped=item.is_snapped)
            self.informed.emit(item.sentence)
        elif isinstance(item, str):
            self.informed.emit(item)
        self._show()

    def _on_done(self, task: Any) -> None:
        if task is self._view_task:
            self._view_task = None
            self._show()

    def _on_failed(self, failure: Failure) -> None:
        if not isinstance(failure.task, MapTask) or isinstance(failure.task, MapRest):
            return  # nobody asked for the rest; the click that needs it gets the sentence
        if failure.task is self._view_task:
            self._view_task = None
        if isinstance(failure.task, TakeUpStrokes):
            # Another time: a map without these clicks would be stored in their place.
            self._handle, self._under_way = None, []
        self._under_way = [one for one in self._under_way if one is not failure.task]
        self.notified.emit(failure.sentence)
        self._show()

    def _on_scene_changed(self) -> None:
        self._handle = self._picture = self._view_task = self._file = None
        self._rest.forget()
        self.export.forget()
        self._visited.clear()
        self._under_way.clear()
        self._n_dropped = 0
        self._hide_place()
        self._draw()
        self._show()
        self._settle.start()

    def _go_to(self, place: NextPlace | None) -> None:
        mapping = self._scene.mapping
        if place is None or mapping is None:
            self.notified.emit("No place is left that is in doubt; encode more of the raster, or click elsewhere.")
            return
        self._visited.append(place.centre_map)
        try:
            centre = mapping.point_to_canvas(place.centre_map)
            outline = mapping.to_canvas(QgsGeometry.fromPolygonXY([[QgsPointXY(*p) for p in place.outline_map]]))
        except CoordinateError as error:
            self.notified.emit(str(error))
            return
        self._band.setToGeometry(outline, None)
        box = outline.boundingBox()
        needed = _SURROUNDINGS * max(box.width(), box.height(), 1e-9) / self._canvas.mapUnitsPerPixel()
        if needed > min(self._canvas.width(), self._canvas.height()):
            self._canvas.zoomByFactor(needed / min(self._canvas.width(), self._canvas.height()))
        self._canvas.setCenter(centre)
        self._canvas.refresh()

    def _hide_place(self) -> None:
        self._band.reset(QgsWkbTypes.GeometryType.PolygonGeometry)

    def _draw(self) -> None:
        picture, mapping = self._picture, self._scene.mapping
        if picture is None or mapping is None or not self.wants_clicks() or not picture.labels.size:
            self.item.clear()
            return
        try:
            net = [[mapping.point_to_canvas(p) for p in line] for line in _net(picture.corners_map)]
            strokes = [
                DrawnStroke([mapping.point_to_canvas(p) for p in stroke.points_map], stroke.colour)
                for stroke in picture.strokes
            ]
        except CoordinateError as error:
            self.item.clear()
            self.notified.emit(str(error))
            return
        self.item.show_labels(picture.labels, colours=picture.colours, net=net, strokes=strokes)

    def _show(self) -> None:
        picture, panel = self._picture, self.panel
        n_strokes = 0 if picture is None else picture.n_strokes
        panel.status_label.setText(self._status(n_strokes))
        self._undo_action.setEnabled(n_strokes + self._n_dropped > 0)
        self._clear_action.setEnabled(n_strokes > 0)
        self._load_action.setEnabled(not n_strokes and not self._under_way)
        panel.progress_bar.setVisible(self.export.is_writing)
        # The head of a saved model stays what it is.
        panel.head_combo.setEnabled(picture is None or not picture.is_loaded)
        self.export.show(has_map=picture is not None and picture.has_map)
        self.next_action.setEnabled(self.wants_clicks())
        self.changed.emit()

    def _status(self, n_strokes: int) -> str:
        if not self.wants_clicks():
            return "Press L, choose a class and click on places of it."
        picture = self._picture
        taught = _counted(n_strokes)
        if picture is not None and picture.is_loaded:
            taught = "A saved model maps; the first click begins a map of your own"
        missing = picture.n_missing if picture is not None else 0
        if missing:
            return f"{taught} · {missing} {'window' if missing == 1 else 'windows'} of the view to be described"
        return taught + self._rest.status if picture is not None and picture.has_map else HINT


def _counted(n_strokes: int) -> str:
    return "1 click or scribble" if n_strokes == 1 else f"{n_strokes} clicks and scribbles"


def _taken_up(n_strokes: int, *, n_stored: int) -> str:
    """Say what became of the strokes that were stored."""
    n_outside = n_stored - n_strokes
    outside = f"{_counted(n_outside)} outside the raster as it is now {'is' if n_outside == 1 else 'are'} dropped"
    if not n_strokes:
        return f"Of the class map of an earlier session nothing is left: {outside}."
    rest = f"; {outside}" if n_outside else ""
    return f"Taken up again on this raster: {_counted(n_strokes)}; 'Begin anew' takes them back{rest}."


def _net(corners: tuple[Point, Point, Point, Point]) -> list[list[Point]]:
    """Points of the picture's pieces, row by row, in the raster's CRS: a raster is an affine picture."""
    (x0, y0), (x1, y1), _, (x3, y3) = corners
    return [
        [
            (x0 + (x1 - x0) * col / PIECES + (x3 - x0) * row / PIECES,
             y0 + (y1 - y0) * col / PIECES + (y3 - y0) * row / PIECES)
            for col in range(PIECES + 1)
        ]
        for row in range(PIECES + 1)
    ]  # fmt: skip
