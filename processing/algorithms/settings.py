"""The user's settings that the algorithms follow; the plugin's settings page writes the same keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qgis.core import QgsSettings


@dataclass(frozen=True)
class EngineSettings:
    """Where the engine finds its parts: None stands for the default place, device "auto" for the best one."""

    environment: str | None
    checkpoint_folder: Path | None
    cache_folder: Path | None
    cache_gb: float
    device: str
    offline: bool


def read_settings() -> EngineSettings:
    """Read `segadapt/*` from QgsSettings; `SEGADAPT_OFFLINE=1` also means offline."""
    settings = QgsSettings()

    def text(key: str) -> str:
        return str(settings.value(f"segadapt/{key}", "") or "").strip()

    return EngineSettings(
        environment=text("environment") or None,
        checkpoint_folder=_folder(text("checkpoint_folder")),
        cache_folder=_folder(text("cache_folder")),
        cache_gb=float(settings.value("segadapt/cache_gb", 10.0)),
        device=text("device") or "auto",
        offline=os.environ.get("SEGADAPT_OFFLINE") == "1" or text("offline").lower() in ("true", "1"),
    )


def _folder(text: str) -> Path | None:
    return Path(text).expanduser() if text else None
