"""The page "Adapt" of the dock: the steps from a model and an image to a map, one row each. Widgets only."""

from __future__ import annotations

from typing import NamedTuple

from qgis.core import QgsMapLayerProxyModel, QgsProviderRegistry
from qgis.gui import QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from .actions import Actions
from .adapt_words import ADAPT, JUDGE, MAP, SELECT, SHIFT, STEPS, TUNE, WARNING_COLOUR, Mark
from .buttons import action_button

CHOOSE_IMAGE, CHOOSE_LABELS = "Choose the image…", "Choose labels…"
NO_SOURCE, NO_SOURCE_LABELS = "No image of the source", "No labels of the source"

_TITLES = {
    SHIFT: "How far is this image from what the model knows?",
    ADAPT: "Adapt without labels",
    SELECT: "A few labels help most here",
    TUNE: "Learn from the labels",
    MAP: "Map the whole image",
    JUDGE: "How good is it?",
}
_STYLES = {
    Mark.DONE: "color: #2e8b57; font-weight: bold",
    Mark.NEXT: "color: palette(highlight)",
    Mark.FAILED: f"color: {WARNING_COLOUR}; font-weight: bold",
}
_RESOLUTION = 1000


class StepState(NamedTuple):
    """What a row shows: its sign, a sentence (HTML), whether it can be started, and whether it has a report.

    `fraction`: 0 to 1 while it runs, else None.
    """

    mark: Mark
    text: str
    is_possible: bool = True
    has_report: bool = False
    fraction: float | None = None


class Row(QWidget):
    """Sign, title, sentence (HTML), and what comes below them."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.mark = QLabel()
        self.mark.setAlignment(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop)
        self.mark.setFixedWidth(self.mark.fontMetrics().horizontalAdvance("MM"))
        self.title, self.text = _text(title), _text()
        self.text.setTextFormat(Qt.TextFormat.RichText)
        self.grid = QGridLayout(self)
        self.grid.setContentsMargins(0, 0, 0, 4)
        self.grid.setVerticalSpacing(3)
        self.grid.setHorizontalSpacing(4)
        self.grid.setColumnStretch(1, 1)
        self.grid.addWidget(self.mark, 0, 0)
        self.grid.addWidget(self.title, 0, 1)

    def show_mark(self, mark: Mark) -> None:
        """Show how the step stands; the one to do now is set off."""
        sign, word = mark.value
        self.mark.setText(sign)
        self.mark.setToolTip(word.capitalize())
        self.mark.setStyleSheet(_STYLES.get(mark, ""))
        font = self.title.font()
        font.setBold(mark in (Mark.NEXT, Mark.RUNNING))
        self.title.setFont(font)
        self.title.setAccessibleName(f"{self.title.text()} ({word})")


class StepRow(Row):
    """One step: sign, title, sentence, and the buttons, of actions that start or stop it and ask for its options."""

    report_wanted = pyqtSignal()

    def __init__(self, number: int, step: str, *, actions: Actions, field: QWidget | None = None) -> None:
        super().__init__(f"{number}  {_TITLES[step]}")
        self._actions, self._key, self._options_key = actions, *action_keys(step)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(self.bar.fontMetrics().height() // 2)
        self.bar.setMaximum(_RESOLUTION)
        self.button, self.options = (action_button(actions[key]) for key in (self._key, self._options_key))
        self.report = QLabel('<a href="report">Open report</a>')
        self.report.setToolTip("Open the page with all that was measured")
        links = Qt.TextInteractionFlag.LinksAccessibleByMouse | Qt.TextInteractionFlag.LinksAccessibleByKeyboard
        self.report.setTextInteractionFlags(links)
        self.report.linkActivated.connect(lambda _link: self.report_wanted.emit())
        for widget in (self.button, self.options, self.report):
            by_tab_only(widget)
        buttons = QHBoxLayout()
        buttons.setSpacing(6)
        buttons.addWidget(self.button)
        buttons.addWidget(self.options)
        buttons.addStretch(1)
        buttons.addWidget(self.report)
        for line, widget in enumerate((self.text, field, self.bar), 1):
            if widget is not None:
                self.grid.addWidget(widget, line, 1)
        self.grid.addLayout(buttons, 4, 1)

    def show_state(self, state: StepState, *, is_free: bool) -> None:
        """Show how the step stands; `is_free`: nothing runs, so that this could."""
        self.show_mark(state.mark)
        self.text.setText(state.text)
        is_running = state.mark is Mark.RUNNING
        self.bar.setVisible(is_running)
        self.bar.setMaximum(_RESOLUTION if state.fraction else 0)  # busy until something is known
        self.bar.setValue(round(_RESOLUTION * (state.fraction or 0)))
        self._actions.offer_stop(self._key, "Stop; everything stays as it was" if is_running else "")
        self._actions[self._key].setEnabled(is_running or (is_free and state.is_possible))
        self._actions[self._options_key].setEnabled(not is_running and state.is_possible)
        self.report.setVisible(state.has_report)


class AdaptPanel(QWidget):
    """Public widgets are filled and read by the control, of whose actions the buttons are."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model_file = QgsFileWidget()
        self.model_file.setStorageMode(QgsFileWidget.StorageMode.GetFile)
        self.model_file.setFilter("Segmentation model (*.safetensors)")
        self.model_file.setDialogTitle("Choose a segmentation model")
        self.model_file.lineEdit().setPlaceholderText("Choose a model…")
        self.model_file.setToolTip("A segmentation model that SegAdapt or a colleague made (.safetensors)")
        self.raster_combo = _layers(
            QgsMapLayerProxyModel.Filter.RasterLayer, CHOOSE_IMAGE, "The image to map: a raster file of the project"
        )
        self.source_combo = _layers(
            QgsMapLayerProxyModel.Filter.RasterLayer,
            NO_SOURCE,
            "An image of the place that the model was made for, rehearsed in steps 3 and 5 together with its labels; "
            "several go through Options…",
        )
        others = [name for name in QgsProviderRegistry.instance().providerList() if name != "gdal"]
        for combo in (self.raster_combo, self.source_combo):
            combo.setExcludedProviders(others)
        polygons = QgsMapLayerProxyModel.Filter.PolygonLayer
        self.labels_combo = _layers(
            polygons, CHOOSE_LABELS, "Polygons with a class to learn from: the places of step 4, or a layer of yours"
        )
        self.check_combo = _layers(
            polygons, CHOOSE_LABELS, "Polygons with a class to measure by: best on ground that the model never learned"
        )
        self.source_labels_combo = _layers(
            polygons, NO_SOURCE_LABELS, "Polygons with a class on the image of the place that the model was made for"
        )
        self.choice = Row("1  Choose the model and the image")
        self.train_button = action_button(actions["train"])
        by_tab_only(self.train_button)
        buttons = QHBoxLayout()
        buttons.addWidget(self.train_button)
        buttons.addStretch(1)
        hint = _text("At hand? What the model was made from makes learning safer:")
        source = (hint, self.source_combo, self.source_labels_combo)
        lines = (self.model_file, self.raster_combo, self.choice.text, *source)
        for line, widget in enumerate(lines, 1):
            self.choice.grid.addWidget(widget, line, 1)
        self.choice.grid.addLayout(buttons, len(lines) + 1, 1)
        fields = {TUNE: self.labels_combo, JUDGE: self.check_combo}
        self.rows = {
            step: StepRow(number, step, actions=actions, field=fields.get(step)) for number, step in enumerate(STEPS, 2)
        }
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.choice)
        for row in self.rows.values():
            column.addWidget(row)

    def show_choice(self, mark: Mark, text: str) -> None:
        """Show how the first step stands, and the card of the model (HTML)."""
        self.choice.show_mark(mark)
        self.choice.text.setText(text)
        self.train_button.setVisible(not self.model_file.filePath())


def action_keys(step: str) -> tuple[str, str]:
    """Return the keys of the actions that start a step, and ask for its options first."""
    return f"adapt_{step}", f"adapt_{step}_options"


def by_tab_only(widget: QWidget) -> None:
    """Let the tab key reach a widget, but no click: keys belong to the canvas."""
    widget.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if isinstance(widget, QAbstractButton):
        widget.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)


def _text(text: str = "") -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def _layers(kind: QgsMapLayerProxyModel.Filter, none: str, meaning: str) -> QgsMapLayerComboBox:
    combo = QgsMapLayerComboBox()
    combo.setFilters(kind)
    combo.setAllowEmptyLayer(True, none)
    combo.setLayer(None)
    # Names of layers may be of any length: the page does not grow with them.
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(len(none))
    combo.currentTextChanged.connect(lambda text: combo.setToolTip(f"{text}\n{meaning}"))
    combo.setToolTip(meaning)
    return combo
