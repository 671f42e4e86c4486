"""What `segadapt:evaluateinteractive` hands out: numbers by the names of its outputs, and the rows of its table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qgis.core import QgsFields, QgsGeometry

from .outputs import DOUBLE, INTEGER, TEXT, from_shapely, make_fields
from .raster_algorithm import RasterAlgorithm

if TYPE_CHECKING:
    from ..jobs.click_curves import ObjectCurve
    from ..jobs.evaluate_class_map import ClassMapCurve
    from ..jobs.evaluate_interactive import InteractiveEvaluation

TARGETS = (0.80, 0.85, 0.90)
"""IoUs to which clicks are counted."""
AT_CLICKS = (1, 3, 5, 10)
"""Numbers of clicks after which IoUs are told."""


def noc(target: float) -> str:
    """Name of the output with the clicks to an IoU `target`, 0 to 1."""
    return f"NOC{100 * target:.0f}"


def object_numbers(evaluation: InteractiveEvaluation) -> dict[str, float]:
    """The numbers of the configuration that was asked for, which is the last; those not measured are left out."""
    summary = evaluation.results[-1].summary
    numbers: dict[str, float] = {RasterAlgorithm.COUNT: summary.n_objects}
    for target in TARGETS:
        numbers[noc(target)] = summary[f"noc_{100 * target:g}"].value
    for number in AT_CLICKS:
        if number <= evaluation.job.n_clicks:
            numbers[f"MIOU{number}"] = summary[f"miou_{number}"].value
    return numbers


def map_numbers(curve: ClassMapCurve) -> dict[str, float]:
    """The same numbers of a class map."""
    clicks = {noc(target): curve.clicks_to(target) for target in TARGETS}
    reached = {name: number for name, number in clicks.items() if number is not None}
    mious = {f"MIOU{number}": curve.mious[number - 1] for number in AT_CLICKS if number <= len(curve.mious)}
    return {RasterAlgorithm.COUNT: len(curve.class_ious), **reached, **mious}


def object_fields(n_clicks: int) -> QgsFields:
    """Fields of the table of objects; their names are public."""
    return make_fields(
        {
            "configuration": TEXT,
            "place": INTEGER,
            "object_id": TEXT,
            "class": TEXT,
            "area_px": INTEGER,
            "clicks": INTEGER,
            **{f"clicks_{100 * target:.0f}": INTEGER for target in TARGETS},
            **{f"iou_{number}": DOUBLE for number in range(1, n_clicks + 1)},
            "seconds": DOUBLE,
            "learning_s": DOUBLE,
        }
    )


def object_outline(curve: ObjectCurve) -> QgsGeometry:
    """The reference polygon of an object."""
    geometry = from_shapely(curve.truth)
    geometry.convertToMultiType()
    return geometry


def object_values(curve: ObjectCurve, *, configuration: str) -> dict[str, Any]:
    """Attributes of an object, by field."""
    import numpy as np

    return {
        "configuration": configuration,
        "place": curve.order + 1,
        "object_id": curve.reference_id,
        "class": curve.class_name,
        "area_px": curve.area_px,
        "clicks": curve.n_clicks,
        **{f"clicks_{100 * target:.0f}": curve.clicks_to(target) for target in TARGETS},
        **{f"iou_{number}": value for number, value in enumerate(curve.ious, 1)},
        "seconds": float(np.median(curve.click_s)),
        "learning_s": curve.learn_s,
    }
