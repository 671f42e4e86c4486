"""The dock: widgets and their layout. What they mean is the controller's business."""

from __future__ import annotations

from qgis.core import QgsMapLayerProxyModel, QgsProviderRegistry
from qgis.gui import QgsColorButton, QgsDockWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .prompt_tool import Command
from .settings_panel import SettingsPanel

NEW_SCRATCH, NEW_GEOPACKAGE = "New scratch layer", "New GeoPackage…"
_HINT = (
    "<b>Left click</b> the object · <b>right click</b> what is not part of it · <b>drag</b> a box · "
    "<b>Enter</b> accepts · <b>Esc</b> drops · <b>Ctrl+Z</b> takes a click back"
)
_BUTTONS = (
    (Command.ACCEPT, "Accept", "Add the mask to the target layer (Enter)"),
    (Command.UNDO, "Undo", "Take the newest prompt back (Ctrl+Z)"),
    (Command.REDO, "Redo", "Bring the prompt back (Ctrl+Shift+Z)"),
    (Command.DROP, "Drop", "Forget this object (Esc)"),
)


class SegAdaptDock(QgsDockWidget):
    """Signals carry what the user chose; the public widgets are filled and read by the controller."""

    commanded = pyqtSignal(object)

    def __init__(self, devices: tuple[str, ...], parent: QWidget | None = None) -> None:
        super().__init__("SegAdapt", parent)
        self.setObjectName("SegAdaptDock")
        self.setAllowedAreas(Qt.DockWidgetArea.LeftDockWidgetArea | Qt.DockWidgetArea.RightDockWidgetArea)
        self._make_choices()
        self._make_object()
        self._make_status()
        self.settings_panel = SettingsPanel(devices)
        content = QWidget()
        column = QVBoxLayout(content)
        column.addWidget(self.tool_button)
        column.addLayout(self._choices_form())
        column.addWidget(self._object_frame())
        column.addWidget(self._status_frame())
        column.addWidget(self.settings_panel)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        # Scrolls downwards only: never narrower than what it holds.
        scroll.setMinimumWidth(content.minimumSizeHint().width() + scroll.verticalScrollBar().sizeHint().width())
        self.setWidget(scroll)

    def show_object(self, text: str, *, enabled: set[Command]) -> None:
        """Describe the mask, and enable what can be done with it."""
        self.object_label.setText(text)
        for command, button in self.buttons.items():
            button.setEnabled(command in enabled)

    def show_status(self, headline: str, *, device: str, bar: tuple[int, int] | None) -> None:
        """Say what is going on; `headline` is HTML, `bar` value and maximum of the progress bar."""
        self.status_label.setText(headline)
        self.device_label.setText(device)
        self.device_label.setVisible(bool(device))
        self.progress_bar.setVisible(bar is not None)
        if bar is not None:
            self.progress_bar.setMaximum(bar[1])
            self.progress_bar.setValue(bar[0])

    def _make_choices(self) -> None:
        self.tool_button = QToolButton()
        self.tool_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.tool_button.setMinimumHeight(32)
        self.tool_button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.raster_combo = QgsMapLayerComboBox()
        self.raster_combo.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        others = [key for key in QgsProviderRegistry.instance().providerList() if key != "gdal"]
        self.raster_combo.setExcludedProviders(others)
        self.raster_combo.setAllowEmptyLayer(True, "Choose a raster file…")
        self.raster_combo.setToolTip("Raster layer to segment: a file that GDAL reads, with a CRS")
        self.model_combo = QComboBox()
        self.class_combo = QComboBox()
        self.class_combo.setEditable(True)
        self.class_combo.lineEdit().setPlaceholderText("Name of the class, e.g. building")
        self.colour_button = QgsColorButton()
        self.colour_button.setToolTip("Colour of the class")
        self.target_combo = QgsMapLayerComboBox()
        self.target_combo.setFilters(
            QgsMapLayerProxyModel.Filter.PolygonLayer | QgsMapLayerProxyModel.Filter.WritableLayer
        )
        self.target_combo.setAdditionalItems([NEW_SCRATCH, NEW_GEOPACKAGE])
        self.target_combo.setToolTip("Where accepted objects go; an existing polygon layer keeps its fields")
        for combo in (self.raster_combo, self.model_combo, self.class_combo, self.target_combo):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(12)

    def _choices_form(self) -> QFormLayout:
        class_row = QHBoxLayout()
        class_row.addWidget(self.class_combo, 1)
        class_row.addWidget(self.colour_button)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Raster", self.raster_combo)
        form.addRow("Model", self.model_combo)
        form.addRow("Class", class_row)
        form.addRow("Save to", self.target_combo)
        return form

    def _make_object(self) -> None:
        self.object_label = QLabel()
        self.object_label.setWordWrap(True)
        strong = self.object_label.font()
        strong.setBold(True)
        self.object_label.setFont(strong)
        self.buttons: dict[Command, QPushButton] = {}
        for command, text, tip in _BUTTONS:
            button = QPushButton(text)
            button.setToolTip(tip)
            button.setEnabled(False)
            # Keys belong to the canvas: a button with the focus would take Enter for itself.
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.clicked.connect(lambda _checked=False, command=command: self.commanded.emit(command))
            self.buttons[command] = button

    def _object_frame(self) -> QFrame:
        frame = _framed()
        hint = QLabel(_HINT)
        hint.setWordWrap(True)
        row = QHBoxLayout()
        for command in (Command.UNDO, Command.REDO, Command.DROP):
            row.addWidget(self.buttons[command])
        column = QVBoxLayout(frame)
        column.addWidget(hint)
        column.addWidget(self.object_label)
        column.addWidget(self.buttons[Command.ACCEPT])
        column.addLayout(row)
        return frame

    def _make_status(self) -> None:
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.status_label.setTextFormat(Qt.TextFormat.RichText)
        self.device_label = QLabel()
        self.device_label.setWordWrap(True)
        small = self.device_label.font()
        small.setPointSizeF(0.85 * small.pointSizeF())
        self.device_label.setFont(small)
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setMaximumHeight(8)

    def _status_frame(self) -> QFrame:
        frame = _framed()
        column = QVBoxLayout(frame)
        column.addWidget(self.status_label)
        column.addWidget(self.progress_bar)
        column.addWidget(self.device_label)
        return frame


def _framed() -> QFrame:
    frame = QFrame()
    frame.setFrameShape(QFrame.Shape.StyledPanel)
    return frame
