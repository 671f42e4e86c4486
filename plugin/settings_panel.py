"""The settings inside the dock: widgets only."""

from __future__ import annotations

from qgis.gui import QgsCollapsibleGroupBox, QgsFileWidget
from qgis.PyQt.QtCore import pyqtSignal
from qgis.PyQt.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFormLayout, QWidget

from ..processing.algorithms.settings import EngineSettings


class SettingsPanel(QgsCollapsibleGroupBox):
    """Folders, device and cache. `changed` carries the key and the new value."""

    changed = pyqtSignal(str, object)

    def __init__(self, devices: tuple[str, ...], parent: QWidget | None = None) -> None:
        super().__init__("Settings", parent)
        self.environment = self._folder("environment", "Default (made by make setup)")
        self.checkpoint_folder = self._folder("checkpoint_folder", "Default")
        self.device = QComboBox()
        self.device.addItems(devices)
        self.cache_gb = QDoubleSpinBox()
        self.cache_gb.setRange(0.5, 10_000)
        self.cache_gb.setDecimals(1)
        self.cache_gb.setSuffix(" GB")
        self.offline = QCheckBox("Never use the network")
        form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.setContentsMargins(6, 0, 6, 0)
        form.addRow("Environment", self.environment)
        form.addRow("Weights", self.checkpoint_folder)
        form.addRow("Device", self.device)
        form.addRow("Cache", self.cache_gb)
        form.addRow(self.offline)
        self.environment.setToolTip("Folder of the Python environment with torch and rasterio")
        self.checkpoint_folder.setToolTip("Folder with the models' weights, looked into before anything is downloaded")
        self.offline.setToolTip("Download nothing: weights that are missing have to be put into their folder")
        self.device.setToolTip("Where models run; auto takes the fastest device that passes a self-test")
        self.cache_gb.setToolTip("Disk space for embeddings; the oldest are removed first")
        self.device.textActivated.connect(lambda text: self.changed.emit("device", text))
        self.cache_gb.editingFinished.connect(lambda: self.changed.emit("cache_gb", self.cache_gb.value()))
        self.offline.clicked.connect(lambda is_on: self.changed.emit("offline", is_on))
        self.setCollapsed(True)

    def show_settings(self, settings: EngineSettings) -> None:
        """Show values without emitting `changed`."""
        self.blockSignals(True)
        self.environment.setFilePath(settings.environment or "")
        self.checkpoint_folder.setFilePath(str(settings.checkpoint_folder or ""))
        self.device.setCurrentText(settings.device)
        self.cache_gb.setValue(settings.cache_gb)
        self.offline.setChecked(settings.offline)
        self.blockSignals(False)

    def _folder(self, key: str, placeholder: str) -> QgsFileWidget:
        widget = QgsFileWidget()
        widget.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        widget.lineEdit().setPlaceholderText(placeholder)
        widget.fileChanged.connect(lambda path: self.changed.emit(key, path))
        return widget
