"""The dock: widgets and their layout. What they mean is the controller's business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from qgis.core import QgsMapLayerProxyModel
from qgis.gui import QgsCollapsibleGroupBox, QgsDockWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import QEvent, QObject, QSize, Qt
from qgis.PyQt.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .actions import Actions
from .buttons import action_button
from .modes import Mode
from .prompt_tool import Command
from .rendered_source import Look
from .settings import read_page, write_page
from .settings_panel import SettingsPanel

AUTOSAVED, NEW_SCRATCH, NEW_GEOPACKAGE = "New autosaved layer", "New scratch layer", "New GeoPackage…"
CHOOSE_RASTER, MAP_AS_SHOWN = "Choose a raster…", "The map as shown"
_HINT = "Choose a raster, then click on an object: its outline follows. Enter keeps it."


class _Pages(QScrollArea):
    """Scrolls under the wheel wherever the pointer is: no field of a page changes in passing."""

    def keep_wheel_from(self, page: QWidget) -> None:
        """Let combo boxes and sliders of a page never take the wheel, and numbers only once they were clicked into."""
        for kind in (QComboBox, QSlider, QAbstractSpinBox):
            for field in page.findChildren(kind):
                if field.focusPolicy() == Qt.FocusPolicy.WheelFocus:
                    field.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
                field.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Pass the wheel on to the page."""
        is_field = isinstance(watched, QComboBox | QSlider | QAbstractSpinBox)
        has_said_so = isinstance(watched, QAbstractSpinBox) and watched.hasFocus()
        if event.type() == QEvent.Type.Wheel and is_field and not has_said_so:
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))


class SegAdaptDock(QgsDockWidget):
    """The public widgets are filled and read by the controller; `set_actions` gives the buttons their meaning.

    On top what is needed at every object, always visible; below it pages that can be folded away.
    """

    def __init__(self, devices: tuple[str, ...], parent: QWidget | None = None) -> None:
        super().__init__("SegAdapt", parent)
        self.setObjectName("SegAdaptDock")
        self.setAllowedAreas(Qt.DockWidgetArea.LeftDockWidgetArea | Qt.DockWidgetArea.RightDockWidgetArea)
        self._make_choices()
        self._make_object()
        self._make_status()
        self._pages: dict[str, QgsCollapsibleGroupBox] = {}
        self._pages_column = QVBoxLayout()
        self.settings_panel = SettingsPanel(devices)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self._pages_column)
        column.addWidget(self.settings_panel)
        column.addStretch(1)
        self._scroll = _Pages()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QFrame.Shape.NoFrame)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setWidget(content)
        self._scroll.keep_wheel_from(self.settings_panel)
        whole = QWidget()
        rows = QVBoxLayout(whole)
        rows.setContentsMargins(6, 6, 6, 6)
        rows.addWidget(self.tool_button)
        rows.addLayout(self._mode_row)
        rows.addWidget(self._object_frame())
        rows.addWidget(self._status_frame())
        rows.addWidget(self._scroll, 1)
        self.setWidget(whole)
        self.add_page("Scene", self._scene_page(), is_open=True)

    def add_page(self, title: str, widget: QWidget, *, is_open: bool = False) -> QgsCollapsibleGroupBox:
        """Add a page that can be folded away, and return it; whether it is open is remembered by its title."""
        page = QgsCollapsibleGroupBox(title)
        page.setObjectName(f"SegAdaptPage{title.title().replace(' ', '')}")
        # QGIS would remember one state for every project and profile alike, under a name of its own.
        page.setSaveCollapsedState(False)
        column = QVBoxLayout(page)
        column.setContentsMargins(6, 0, 6, 0)
        column.addWidget(widget)
        if isinstance(widget.layout(), QFormLayout):
            # In a narrow dock a field goes below its label.
            widget.layout().setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
            widget.layout().setContentsMargins(0, 0, 0, 0)
        page.setCollapsed(not read_page(title, default=is_open))
        page.collapsedStateChanged.connect(lambda is_collapsed: self._on_folded(title, is_open=not is_collapsed))
        self._pages[title] = page
        self._pages_column.addWidget(page)
        self._scroll.keep_wheel_from(page)
        self._fit()
        return page

    def page(self, title: str) -> QgsCollapsibleGroupBox:
        """Return a page by its title. Raises KeyError."""
        return self._pages[title]

    def open_page(self, title: str) -> None:
        """Unfold a page and bring it into view."""
        page = self._pages[title]
        page.setCollapsed(False)
        self._scroll.ensureWidgetVisible(page, 0, 0)

    def set_actions(self, actions: Actions, *, modes: Iterable[Mode]) -> None:
        """Let the buttons trigger actions, whose state and tips they show."""
        self.tool_button.setDefaultAction(actions["tool"])
        for command, button in self.buttons.items():
            button.setDefaultAction(actions[command.value])
        self.next_mask_button.setDefaultAction(actions["next_mask"])
        self.fields_button.setDefaultAction(actions["fields"])
        for key in (*(mode.value.name for mode in modes), "cheat_sheet"):
            button = QToolButton()
            button.setAutoRaise(True)
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.setIconSize(self._icon_size())
            button.setDefaultAction(actions[key])
            self._mode_row.addWidget(button)
        self._mode_row.addStretch(1)
        self._fit()

    def show_models(self, titles: Mapping[str, str]) -> None:
        """Offer models: their names and titles."""
        for name, title in titles.items():
            self.model_combo.addItem(title, name)
        _make_room(self.model_combo, titles.values())

    def show_looks(self, looks: Sequence[Look], *, chosen: Look) -> None:
        """Offer ways to look at the raster; nothing where there is no choice. Emits nothing."""
        self.look_combo.blockSignals(True)
        self.look_combo.clear()
        for look in looks:
            self.look_combo.addItem(_title(look), look)
        self.look_combo.setCurrentIndex(max(0, self.look_combo.findData(chosen)))
        self.look_combo.blockSignals(False)
        self.look_combo.setEnabled(len(looks) > 1)

    def show_hint(self, text: str) -> None:
        """Say what the next click does."""
        self.hint_label.setText(text or _HINT)

    def show_batch(self, n_done: int, n_planned: int) -> None:
        """Show how far a batch is; nothing once it is done."""
        self.batch_bar.setVisible(n_done < n_planned)
        self.batch_bar.setMaximum(max(1, n_planned))
        self.batch_bar.setValue(n_done)

    def show_status(self, headline: str, *, device: str, cache: str, bar: tuple[int, int] | None) -> None:
        """Say what is going on; `headline` is HTML, `bar` value and maximum of the progress bar."""
        self.status_label.setText(headline)
        for label, text in ((self.device_label, device), (self.cache_label, cache)):
            label.setText(text)
            label.setVisible(bool(text))
        self.progress_bar.setVisible(bar is not None)
        if bar is not None:
            self.progress_bar.setMaximum(bar[1])
            self.progress_bar.setValue(bar[0])

    def _make_choices(self) -> None:
        self.tool_button = QToolButton()
        self.tool_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.tool_button.setIconSize(self._icon_size())
        self.tool_button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.tool_button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._mode_row = QHBoxLayout()
        self._mode_row.setSpacing(0)
        self.raster_combo = QgsMapLayerComboBox()
        self.raster_combo.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.raster_combo.setAllowEmptyLayer(True, CHOOSE_RASTER)
        self.raster_combo.setAdditionalItems([MAP_AS_SHOWN])
        _explain(self.raster_combo, "What to segment: a file, a web map, or all visible layers as they look now")
        self.look_combo = QComboBox()
        self.look_combo.setToolTip("What the model sees of the raster")
        self.model_combo = QComboBox()
        self.model_combo.setToolTip("What finds the outlines")
        self.target_combo = QgsMapLayerComboBox()
        self.target_combo.setFilters(
            QgsMapLayerProxyModel.Filter.PolygonLayer | QgsMapLayerProxyModel.Filter.WritableLayer
        )
        _explain(
            self.target_combo,
            "Where accepted objects go: a new GeoPackage that saves itself, or another layer, which keeps its fields",
        )
        self.fields_button = action_button()
        self.fields_button.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        for combo in (self.raster_combo, self.look_combo, self.model_combo, self.target_combo):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        _make_room(self.raster_combo, (CHOOSE_RASTER, MAP_AS_SHOWN))
        _make_room(self.look_combo, map(_title, Look))
        _make_room(self.target_combo, (AUTOSAVED, NEW_SCRATCH, NEW_GEOPACKAGE))

    def _scene_page(self) -> QWidget:
        page = QWidget()
        form = QFormLayout(page)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Raster", self.raster_combo)
        form.addRow("Look at", self.look_combo)
        form.addRow("Model", self.model_combo)
        row = QHBoxLayout()
        row.addWidget(self.target_combo, 1)
        row.addWidget(self.fields_button)
        form.addRow("Save to", row)
        return page

    def _make_object(self) -> None:
        self.hint_label = QLabel(_HINT)
        self.hint_label.setWordWrap(True)
        self.object_label = QLabel()
        self.object_label.setWordWrap(True)
        strong = self.object_label.font()
        strong.setBold(True)
        self.object_label.setFont(strong)
        self.batch_bar = _thin_bar()
        self.batch_bar.setVisible(False)
        self.buttons = {command: action_button() for command in Command}
        self.next_mask_button = action_button()

    def _object_frame(self) -> QFrame:
        frame = _framed()
        row = QHBoxLayout()
        for command in (Command.UNDO, Command.REDO, Command.DROP):
            row.addWidget(self.buttons[command])
        first_row = QHBoxLayout()
        first_row.addWidget(self.buttons[Command.ACCEPT], 2)
        first_row.addWidget(self.next_mask_button, 1)
        column = QVBoxLayout(frame)
        column.addWidget(self.hint_label)
        column.addWidget(self.object_label)
        column.addWidget(self.batch_bar)
        column.addLayout(first_row)
        column.addLayout(row)
        return frame

    def _make_status(self) -> None:
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.status_label.setTextFormat(Qt.TextFormat.RichText)
        self.device_label, self.learning_label, self.cache_label = _small_label(), _small_label(), _small_label()
        self.cache_label.setToolTip("What is encoded already, of all rasters, and need not be encoded again")
        self.progress_bar = _thin_bar()

    def _status_frame(self) -> QFrame:
        frame = _framed()
        column = QVBoxLayout(frame)
        column.addWidget(self.status_label)
        column.addWidget(self.progress_bar)
        column.addWidget(self.device_label)
        column.addWidget(self.learning_label)
        column.addWidget(self.cache_label)
        return frame

    def _on_folded(self, title: str, *, is_open: bool) -> None:
        write_page(title, is_open=is_open)
        self._fit()

    def _icon_size(self) -> QSize:
        side = round(1.3 * self.fontMetrics().height())
        return QSize(side, side)

    def _fit(self) -> None:
        """Scroll downwards only: the dock is never narrower than its pages."""
        content = self._scroll.widget()
        bar_px = self._scroll.verticalScrollBar().sizeHint().width()
        self._scroll.setMinimumWidth(content.minimumSizeHint().width() + bar_px)


def _title(look: Look) -> str:
    return look.value[:1].upper() + look.value[1:]


def _make_room(combo: QComboBox, texts: Iterable[str]) -> None:
    """Never cut these off. Names of layers may be of any length: their combo box does not grow with them."""
    metrics = combo.fontMetrics()
    # The size policy adds room for an icon, which none of these has.
    widest_px = max(map(metrics.horizontalAdvance, texts)) - combo.iconSize().width()
    combo.setMinimumContentsLength(math.ceil(widest_px / metrics.horizontalAdvance("X")))
    # Qt would keep the smaller minimum that it may have computed already.
    combo.setMinimumWidth(combo.sizeHint().width())


def _explain(combo: QgsMapLayerComboBox, meaning: str) -> None:
    """Say what a combo box is for, and the whole name that is chosen, of which it may show a part."""
    combo.currentTextChanged.connect(lambda text: combo.setToolTip(f"{text}\n{meaning}"))
    combo.setToolTip(meaning)


def _framed() -> QFrame:
    frame = QFrame()
    frame.setFrameShape(QFrame.Shape.StyledPanel)
    return frame


def _small_label() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    small = label.font()
    small.setPointSizeF(0.85 * small.pointSizeF())
    label.setFont(small)
    return label


def _thin_bar() -> QProgressBar:
    bar = QProgressBar()
    bar.setTextVisible(False)
    bar.setMaximumHeight(bar.fontMetrics().height() // 2)
    return bar
