"""Files that come with the plugin and that the algorithms show: icons, styles and model-designer chains."""

from __future__ import annotations

from pathlib import Path

_RESOURCES = Path(__file__).resolve().parents[2] / "plugin" / "resources"


def icon_path(name: str) -> str:
    """Return the file of an icon: the id of an algorithm, or `provider`."""
    return str(_RESOURCES / "icons" / f"{name}.svg")


def style_path(name: str) -> str:
    """Return the file of a style: `objects`, `masks` or `labels`."""
    return str(_RESOURCES / "styles" / f"{name}.qml")


def model_path(name: str) -> str:
    """Return the file of a model-designer chain by its name without the ending."""
    return str(_RESOURCES / "models" / f"{name}.model3")
