"""The second half of the demo: a building model of other places is adapted to the scene, which then is mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MODEL_FILE = "buildings_60cm.safetensors"
RESULTS = ("adapted.safetensors", "adaptation.html", "buildings_before.tif", "buildings_after.tif")
# Chosen on this scene, as the settings of the demo's other half; 40 steps take a minute on a CPU.
_METHOD, _STEPS = "masked_consistency", 40
_BUILDING = 1


class Mapped(NamedTuple):
    """How a map fits the hand-drawn outlines: share of the building pixels found, and of the others left alone."""

    title: str
    found: float
    left_alone: float

    @property
    def balanced(self) -> float:
        """The mean of both."""
        return (self.found + self.left_alone) / 2


def adapt_and_map(
    run: Callable[[str, str, dict[str, Any]], dict[str, Any]],
    folder: Path,
    *,
    scene: Path,
    reference: Path,
    device: str,
) -> tuple[bool, list[Mapped]]:
    """Adapt the model, map the scene before and after; whether the adapted model was kept, and how both maps fit.

    `run` takes a title, an algorithm and its parameters. The outlines are only looked at afterwards.
    """
    model = scene.with_name(MODEL_FILE)
    adapted = folder / "adapted.safetensors"
    result = run(
        "Adaptation without labels",
        "adaptmodel",
        {
            "RASTERS": [str(scene)],
            "MODEL": str(model),
            "METHODS": _METHOD,
            "STEPS": _STEPS,
            "DEVICE": device,
            "OUTPUT": str(adapted),
            "REPORT": str(folder / "adaptation.html"),
        },
    )
    maps = []
    for title, package in (("before", model), ("after", adapted)):
        output = folder / f"buildings_{title}.tif"
        run(
            f"Map {title}",
            "segmentraster",
            {"INPUT": str(scene), "MODEL": str(package), "DEVICE": device, "OUTPUT": str(output)},
        )
        maps.append(_fit(f"Map {title}", output, reference))
    return bool(result["IS_ADAPTED"]), maps


def _fit(title: str, path: Path, reference: Path) -> Mapped:
    import geopandas
    import rasterio
    from rasterio.features import geometry_mask

    table = geopandas.read_file(reference, layer="reference")
    with rasterio.open(path) as labels:
        is_building = labels.read(1) == _BUILDING
        table = table.to_crs(labels.crs)

        def inside(outlines: Any) -> npt.NDArray[np.bool_]:
            mask: npt.NDArray[np.bool_] = geometry_mask(
                list(outlines), out_shape=labels.shape, transform=labels.transform, invert=True
            )
            return mask

        buildings = inside(table[table["class"] == "building"].geometry)
        others = inside(table[table["class"] != "building"].geometry) & ~buildings
    return Mapped(title, float(is_building[buildings].mean()), float((~is_building[others]).mean()))
