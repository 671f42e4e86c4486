"""What is seen of a review of similar objects: the page in the dock, and the candidates on the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qgis.core import QgsGeometry, QgsRectangle, QgsSettings, QgsWkbTypes
from qgis.gui import QgsMapCanvas, QgsRubberBand
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QSlider, QVBoxLayout, QWidget

from .actions import Actions
from .buttons import ActionBox, action_button
from .settings import ACCEPT_ABOVE, VIEW_ONLY, remember_box, write_setting
from .similar_review import Review

ANSWERS = "accept_candidate", "reject_candidate"
"""Actions for the candidate that is asked about."""

# Viridis in five steps, from unlikely to likely: told apart without colour vision, by brightness.
_COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_FILL_ALPHA = 70
# A candidate is in sight where it lies in this much of the view.
_SIGHT = 0.8
# An object that is larger than the view is shown with this much around it.
_SURROUNDINGS = 3.0


class CandidateOverlay:
    """Candidates on the canvas, coloured by probability, the one that is asked about in white; examples dashed.

    One rubber band per colour: a thousand bands of one polygon each
    would slow down every repaint.
    """

    def __init__(self, canvas: QgsMapCanvas) -> None:
        self._canvas = canvas
        self._bands = [_band(canvas, QColor(colour), width_px=2) for colour in _COLOURS]
        self._examples = _band(canvas, QColor("#ffd400"), width_px=2, style=Qt.PenStyle.DashLine, alpha=0)
        self._current = _band(canvas, QColor("white"), width_px=4, alpha=0)

    def show_review(
        self, review: Review | None, *, current: int | None, to_canvas: Callable[[QgsGeometry], QgsGeometry]
    ) -> None:
        """Draw the open candidates of a review, None for none, and the `current` one. Raises what `to_canvas` does."""
        binned: list[list[QgsGeometry]] = [[] for _ in _COLOURS]
        asked = []
        if review is not None:
            for number in review.queue():
                colour = min(int(review.probabilities[number] * len(_COLOURS)), len(_COLOURS) - 1)
                binned[colour].append(to_canvas(review.geometries[number]))
            if current is not None:
                asked.append(to_canvas(review.geometries[current]))
        for band, geometries in zip(self._bands, binned, strict=True):
            _show(band, geometries)
        _show(self._current, asked)

    def look_at(self, bounds: QgsRectangle) -> None:
        """Let the canvas show a place (CRS of the canvas) that it does not show, or not well."""
        view = self._canvas.extent()
        if max(bounds.width() / view.width(), bounds.height() / view.height()) > _SIGHT:
            surroundings = QgsRectangle(bounds)
            surroundings.scale(_SURROUNDINGS)
            self._canvas.setExtent(surroundings)
        else:
            view.scale(_SIGHT)
            if view.contains(bounds):
                return
            self._canvas.setCenter(bounds.center())
        self._canvas.refresh()

    def show_examples(self, geometries: Sequence[QgsGeometry]) -> None:
        """Draw the examples, in the CRS of the canvas."""
        _show(self._examples, geometries)

    @property
    def n_parts(self) -> list[int]:
        """Number of polygons drawn per colour, from unlikely to likely."""
        return [band.numberOfVertices() and len(band.asGeometry().asGeometryCollection()) for band in self._bands]

    @property
    def current(self) -> QgsGeometry:
        """The outline in white."""
        return self._current.asGeometry()

    def dispose(self) -> None:
        """Leave the canvas."""
        if self._canvas.scene() is not None:
            for band in (*self._bands, self._examples, self._current):
                self._canvas.scene().removeItem(band)


class SimilarPanel(QWidget):
    """The page in the dock, of the actions of `SimilarControl`. `above_changed` carries a probability, 0 to 1."""

    above_changed = pyqtSignal(float)

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._actions = actions
        self.example_label = _label("No example yet: accept an object, or press X on one.")
        self.status_label = _label("")
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setMaximumHeight(8)
        self.progress_bar.setMaximum(1000)
        self.view_only_check = ActionBox(actions["view_only"])
        remember_box(self.view_only_check, VIEW_ONLY, default=False)
        search, answer = ("find_similar", "stop_search", "forget_examples"), (*ANSWERS, "leave_review")
        self.buttons = {key: action_button(actions[key]) for key in (*search, *answer, "accept_all")}
        self.above_slider = QSlider(Qt.Orientation.Horizontal)
        self.above_slider.setRange(0, 100)
        self.above_slider.setValue(QgsSettings().value(f"segadapt/{ACCEPT_ABOVE}", 80, type=int))
        self.above_slider.setToolTip("Least probability of the candidates that are accepted at once")
        self.above_slider.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.above_slider.valueChanged.connect(partial(write_setting, ACCEPT_ABOVE))
        self.above_slider.valueChanged.connect(lambda value: self.above_changed.emit(value / 100))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for row in (
            (self.example_label,),
            (self.view_only_check,),
            [self.buttons[key] for key in search],
            (self.progress_bar,),
            (self.status_label,),
            [self.buttons[key] for key in answer],
            (self.above_slider,),
            (self.buttons["accept_all"],),
        ):
            line = QHBoxLayout()
            for widget in row:
                line.addWidget(widget)
            column.addLayout(line)

    @property
    def above(self) -> float:
        """Least probability of what is accepted at once, 0 to 1."""
        return float(self.above_slider.value() / 100)

    def show_state(
        self,
        review: Review | None,
        *,
        current: int | None,
        n_examples: int,
        is_reviewing: bool,
        is_searching: bool,
        is_accepting: bool,
    ) -> None:
        """Say how far a review is (None: there is none), and enable what can be done.

        `current`: number of the candidate that is asked about; `n_examples`: those chosen with X.
        """
        if n_examples:
            self.example_label.setText(f"{n_examples} {'example' if n_examples == 1 else 'examples'} chosen with X.")
        else:
            self.example_label.setText("Examples: the accepted objects of the class, or what you choose with X.")
        n_above = 0 if review is None else len(review.above(self.above))
        for key, is_possible in (
            ("stop_search", is_searching),
            ("forget_examples", n_examples > 0),
            *((key, current is not None) for key in ANSWERS),
            ("leave_review", is_reviewing),
            ("accept_all", n_above > 0 and not is_accepting),
        ):
            self._actions[key].setEnabled(is_possible)
        self._actions["accept_all"].setIconText(f"Accept all from {self.above:.2f} ({n_above})")
        self.progress_bar.setVisible(is_searching)
        self.status_label.setText("" if review is None else review.text(current=current, is_searching=is_searching))


def _band(
    canvas: QgsMapCanvas,
    colour: QColor,
    *,
    width_px: int,
    style: Qt.PenStyle = Qt.PenStyle.SolidLine,
    alpha: int = _FILL_ALPHA,
) -> QgsRubberBand:
    band = QgsRubberBand(canvas, QgsWkbTypes.GeometryType.PolygonGeometry)
    fill = QColor(colour)
    fill.setAlpha(alpha)
    band.setStrokeColor(colour)
    band.setFillColor(fill)
    band.setWidth(width_px)
    band.setLineStyle(style)
    return band


def _show(band: QgsRubberBand, geometries: Sequence[QgsGeometry]) -> None:
    if geometries:
        parts = [part for geometry in geometries for part in geometry.asGeometryCollection()]
        band.setToGeometry(QgsGeometry.collectGeometry(parts), None)
    else:
        band.reset(QgsWkbTypes.GeometryType.PolygonGeometry)


def _label(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label
