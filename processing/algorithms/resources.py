"""Files that come with the plugin and that the algorithms show: icons and styles."""

from __future__ import annotations

from pathlib import Path

_RESOURCES = Path(__file__).resolve().parents[2] / "plugin" / "resources"


def icon_path(name: str) -> str:
    """Return the file of an icon: the id of an algorithm, or `provider`."""
    return str(_RESOURCES / "icons" / f"{name}.svg")


def style_path(name: str) -> str:
    """Return the file of a style: `objects`, `masks` or `labels`."""
    return str(_RESOURCES / "styles" / f"{name}.qml")
