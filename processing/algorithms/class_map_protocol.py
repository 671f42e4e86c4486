"""The protocol of `segadapt:evaluateinteractive` for class maps: clicks on all classes against the map of the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgis.core import QgsGeometry, QgsPointXY, QgsProcessingContext, QgsWkbTypes

from ...models.progress import StepProgress, raise_if_cancelled
from ..errors import JobError
from .feedback import FeedbackProgress
from .outputs import DOUBLE, INTEGER, TEXT, feature_output, make_fields
from .settings import EngineSettings

if TYPE_CHECKING:
    from ..jobs.evaluate_class_map import ClassMapCurve
    from ..jobs.scene import Scene
    from ..jobs.simulated_analyst import Reference
    from .raster_algorithm import RasterAlgorithm

_ENCODED = 0.6


def evaluate_class_clicks(
    algorithm: RasterAlgorithm,
    parameters: dict[str, Any],
    context: QgsProcessingContext,
    references: Sequence[Reference],
    scene: Scene,
    *,
    layer: str,
    window_px: int | None,
    n_clicks: int,
    seed: int,
    table: str,
    report: Path | None,
    progress: FeedbackProgress,
    settings: EngineSettings,
) -> tuple[ClassMapCurve, str]:
    """Click a class map of the raster, write the clicks and the page; returns the curve and where the clicks are.

    `layer` is what the page calls the references, `table` the name of the output parameter for the clicks.
    Raises `JobError` for references without classes or on no pixel and for a raster too large to be clicked as one,
    and `Cancelled`; nothing is written then.
    """
    from ...models.backbone import open_backbone
    from ..jobs.class_map import ClassMapOptions, ClassMapper
    from ..jobs.class_map_truth import Thinned, class_map_page, drawn_truth, interval_of, thinning
    from ..jobs.evaluate_class_map import EvaluateClassMap, evaluate_class_map
    from ..jobs.page import write_report

    names = sorted({one.class_name for one in references if one.class_name})
    if len(names) < 2:
        raise JobError(
            f"A class map needs two classes or more, and the reference has {len(names)}; choose the field that names "
            "the class."
        )
    backbone = open_backbone(
        device=scene.engine.device,
        checkpoint_folder=settings.checkpoint_folder,
        offline=settings.offline,
        progress=progress,
    )
    mapper = ClassMapper(scene, backbone, options=ClassMapOptions(window_px=window_px))
    ids = {name: mapper.add_class(name).class_id for name in names}
    step = thinning(scene.reader.shape)
    truth = drawn_truth(references, ids, scene.reader, step=step)
    cells = mapper.missing()
    for number, cell in enumerate(cells, 1):
        raise_if_cancelled(progress)
        mapper.encode(cell)
        if mapper.is_too_large():
            # What memory does not hold would be encoded anew after every click. The first window says so.
            rows, cols = scene.reader.shape
            raise JobError(
                f"A raster of {cols} x {rows} px is too large for clicks on the whole of it; cut a part out."
            )
        progress.set_fraction(_ENCODED * number / len(cells))
    job = EvaluateClassMap(n_clicks=n_clicks, seed=seed)
    thinned = Thinned(mapper, step)
    curve = evaluate_class_map(thinned, truth, job, progress=StepProgress(progress, _ENCODED, 1.0))
    by_id = {class_id: name for name, class_id in ids.items()}
    provenance = scene.provenance()
    facts = [
        ("Raster", provenance.get("SEGADAPT_RASTER", "")),
        ("References", f"{layer}, {len(references)} polygons of {len(names)} classes"),
        ("Model", f"{provenance.get('SEGADAPT_MODEL', '')} and {backbone.card.name}"),
        ("Compared at", "every pixel" if step == 1 else f"every {step}. pixel"),
        ("Seed", str(job.seed)),
    ]
    page = class_map_page(
        curve,
        by_id,
        facts,
        title=algorithm.tr("Clicks for a class map: {}").format(layer),
        interval=interval_of(truth, thinned.labels(), seed=job.seed),
        device=scene.engine.device,
    )
    with feature_output(
        algorithm,
        parameters,
        context,
        name=table,
        crs=algorithm.raster_crs,
        fields=make_fields({"click": INTEGER, "class": TEXT, "miou": DOUBLE, "seconds": DOUBLE}),
        provenance=provenance,
        kind=QgsWkbTypes.Point,
    ) as output:
        for number, (click, miou, seconds) in enumerate(zip(curve.clicks, curve.mious, curve.click_s, strict=True), 1):
            east, north = scene.reader.transform @ (click.x * step + 0.5, click.y * step + 0.5)
            values = {"click": number, "class": by_id[click.class_id], "miou": miou, "seconds": seconds}
            output.add(QgsGeometry.fromPointXY(QgsPointXY(east, north)), values)
    if report is not None:
        write_report(page, report)
    return curve, output.destination
