"""What is measured: each function here makes the rows of one table of `run.py`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = Path(__file__).resolve().parents[1] / "plugin/resources/sample/rotterdam_50cm.tif"
PROMPTS = SAMPLE.with_name("rotterdam.gpkg")
Row = tuple[str, ...]


def seconds(work: Callable[[], Any]) -> float:
    """Run once and return the seconds it took."""
    import torch

    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], Any], reference: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Median seconds of both, run alternately after one warm-up each."""
    seconds(ours), seconds(reference)
    pairs = [(seconds(ours), seconds(reference)) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def compared(what: str, ours_s: float, reference_s: float) -> Row:
    """One row of the comparison: milliseconds and ratio."""
    return what, f"{ours_s * 1e3:.0f}", f"{reference_s * 1e3:.0f}", f"{ours_s / reference_s:.2f}"


def sample_chip() -> np.ndarray[Any, Any]:
    """(3, 1024, 1024) uint8: the middle of the sample scene, 512 source pixels enlarged twice."""
    from segadapt.processing.raster.reader import open_raster
    from segadapt.processing.raster.windows import SquareWindow

    with open_raster(str(SAMPLE)) as reader:
        return reader.read_chip(SquareWindow(44, 44, 512)).pixels


def random_boxes(n: int) -> np.ndarray[Any, Any]:
    """(n, 4) boxes of 30 to 150 px inside the chip, seed 0."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(20, 850, (n, 2))
    return np.hstack([corners, corners + rng.uniform(30, 150, (n, 2))]).astype(np.float32)


def reference_predictor(chip: np.ndarray[Any, Any], device: str) -> Any:
    """`SamPredictor` of mobilesam-mirror with the published weights, eager fp32, the chip set."""
    import mobile_sam
    from segadapt.models.checkpoints import fetch_checkpoint, load_state_dict
    from segadapt.models.registry import get_card

    model = mobile_sam.sam_model_registry["vit_t"]()
    model.load_state_dict(load_state_dict(fetch_checkpoint(get_card("mobile_sam"))))
    predictor = mobile_sam.SamPredictor(model.eval().to(device))
    predictor.set_image(chip.transpose(1, 2, 0))
    return predictor


def engine_rows(runs: int) -> tuple[list[Row], list[Row], str]:
    """Encode and decode, ours against the reference; and what reduced precision does to the masks."""
    import torch
    from segadapt.models.engine import open_engine
    from segadapt.models.prompts import Prompts

    chip = sample_chip()
    engine, exact = open_engine("mobile_sam"), open_engine("mobile_sam", precision="fp32")
    reference = reference_predictor(chip, engine.device)
    picture = np.ascontiguousarray(chip.transpose(1, 2, 0))
    embedding = engine.embed([chip])[0]
    click = Prompts(points_xy=np.array([[500.5, 400.5]]), labels=np.array([1]))
    boxes = random_boxes(64)
    boxed = [Prompts(box_xyxy=box) for box in boxes]
    box_tensor = torch.from_numpy(boxes).to(engine.device)

    def reference_boxes() -> None:
        reference.predict_torch(None, None, boxes=box_tensor, multimask_output=False)

    def reference_click() -> None:
        reference.predict(np.array([[500, 400]]), np.array([1]))

    rows = [
        compared(
            "encode one 1024 px chip",
            *in_turn(lambda: engine.embed([chip]), lambda: reference.set_image(picture), runs),
        ),
        compared(
            "encode, fp32 on both sides",
            *in_turn(lambda: exact.embed([chip]), lambda: reference.set_image(picture), runs),
        ),
        compared(
            "one click, three masks",
            *in_turn(lambda: engine.predict(embedding, [click], multimask=True), reference_click, 4 * runs),
        ),
        compared(
            "64 boxes, one mask each",
            *in_turn(lambda: engine.predict(embedding, boxed), reference_boxes, max(1, runs // 3)),
        ),
    ]
    agreement = mask_agreement(engine, exact)
    how = f"{engine.card.name}. {engine.device_reason} Encoder in {engine.precision}, decoder in fp32."
    return rows, agreement, how


def mask_agreement(engine: Any, exact: Any) -> list[Row]:
    """IoU of the masks of the chosen precision with those of fp32, for the sample scene's hand-made prompts.

    Each object in the 256 px window that `segmentfromprompts` would give it: its box, and its first point with all
    three masks.
    """
    import geopandas
    from segadapt.models.prompts import Prompts
    from segadapt.processing.raster.reader import open_raster
    from segadapt.processing.raster.windows import fitting_size_px, lattice_window

    boxes = geopandas.read_file(PROMPTS, layer="prompt_boxes").set_index("object_id").geometry
    points = geopandas.read_file(PROMPTS, layer="prompt_points").query("label == 1").groupby("object_id").first()
    ious: dict[str, list[float]] = {"boxes of objects": [], "first clicks, mask by mask of three": []}
    with open_raster(str(SAMPLE)) as reader:
        for object_id, outline in boxes.items():
            left, bottom, right, top = outline.bounds
            corners = reader.to_pixels([(left, top), (right, bottom)])
            size_px = fitting_size_px(float(np.ptp(corners, axis=0).max()))
            window = lattice_window(*map(float, corners.mean(axis=0)), size_px=size_px, shape=reader.shape)
            chip = reader.read_chip(window).pixels
            offset, scale = (window.col_off, window.row_off), 1024 / window.size_px
            click = reader.to_pixels([(points.geometry[object_id].x, points.geometry[object_id].y)])
            box = Prompts(box_xyxy=((corners - offset) * scale).ravel().astype(np.float32))
            point = Prompts(points_xy=((click - offset) * scale).astype(np.float32), labels=np.array([1]))
            embeddings = [(each, each.embed([chip])[0]) for each in (engine, exact)]
            for kind, prompt in zip(tuple(ious), (box, point), strict=True):
                ours, truth = (
                    e.predict(emb, [prompt], multimask=prompt.is_ambiguous).logits > 0 for e, emb in embeddings
                )
                common, union = (ours & truth).sum((2, 3)), (ours | truth).sum((2, 3))
                ious[kind] += list((common / np.maximum(union, 1))[union > 0])
    ious |= _random_agreement(engine, exact)
    return [
        (kind, f"{np.mean(values):.4f}", f"{np.median(values):.4f}", f"{min(values):.4f}", str(len(values)))
        for kind, values in ious.items()
    ]


def _random_agreement(engine: Any, exact: Any) -> dict[str, list[float]]:
    """The same for prompts that mean no object: 64 random boxes, and a grid of 64 clicks, on one chip."""
    from segadapt.models.prompts import Prompts

    chip, label = sample_chip(), np.array([1])
    boxes = [Prompts(box_xyxy=box) for box in random_boxes(64)]
    places = [(x, y) for x in range(64, 1024, 128) for y in range(64, 1024, 128)]
    clicks = [Prompts(points_xy=np.array([place]), labels=label) for place in places]
    embeddings = [(each, each.embed([chip])[0]) for each in (engine, exact)]
    ious: dict[str, list[float]] = {}
    for kind, prompts in (("random boxes", boxes), ("grid of clicks, mask by mask of three", clicks)):
        multimask = prompts is clicks
        ours, truth = (e.predict(emb, prompts, multimask=multimask).logits > 0 for e, emb in embeddings)
        common, union = (ours & truth).sum((2, 3)), (ours | truth).sum((2, 3))
        ious[kind] = list((common / np.maximum(union, 1))[union > 0])
    return ious


def click_rows(n_clicks: int) -> list[Row]:
    """From a click in map coordinates to a polygon, warm (window in the cache) and cold; p50 and p95 in ms."""
    from segadapt.models.embeddings import EmbeddingCache
    from segadapt.models.engine import open_engine
    from segadapt.models.prompts import Prompts
    from segadapt.processing.jobs.interactive import segment_prompts
    from segadapt.processing.jobs.prompt_request import PromptRequest
    from segadapt.processing.jobs.scene import Scene
    from segadapt.processing.raster.reader import open_raster
    from segadapt.processing.raster.windows import SquareWindow

    engine = open_engine("mobile_sam")
    rng = np.random.default_rng(1)
    with open_raster(str(SAMPLE)) as reader, tempfile.TemporaryDirectory() as folder:
        scene = Scene(reader, engine, EmbeddingCache(Path(folder)))
        places = [tuple(xy) for xy in reader.to_map(rng.uniform(150, 450, (n_clicks, 2)))]
        embedding = scene.embedding(SquareWindow(0, 0, 512))
        one = [Prompts(points_xy=np.array([[500, 500]]), labels=np.array([1]))]

        def ask(place: Any, asked: Scene) -> None:
            segment_prompts(asked, PromptRequest(request_id=0, points_map=(place,), labels=(1,), window_px=512))

        for place in places:
            ask(place, scene)
        warm = [seconds(lambda place=place: ask(place, scene)) for place in places]  # type: ignore[misc]
        alone = [seconds(lambda: engine.predict(embedding, one, multimask=True)) for _ in places]
        cold = []
        for i, place in enumerate(places[: max(4, n_clicks // 5)]):
            empty = Scene(reader, engine, EmbeddingCache(Path(folder) / f"cold{i}"))
            cold.append(seconds(lambda place=place, empty=empty: ask(place, empty)))  # type: ignore[misc]
    return [
        (what, f"{np.median(values) * 1e3:.0f}", f"{np.quantile(values, 0.95) * 1e3:.0f}", str(len(values)))
        for what, values in (
            ("warm: window in the cache", warm),
            ("decode alone", alone),
            ("cold: nothing cached", cold),
        )
    ]


def everything_rows() -> list[Row]:
    """Seconds per megapixel: a raster of 1024 x 1024 px, 16 x 16 points. Ours reads it and makes polygons as well."""
    import mobile_sam
    import rasterio
    from segadapt.models.embeddings import EmbeddingCache
    from segadapt.models.engine import open_engine
    from segadapt.processing.jobs.everything import EverythingJob, segment_everything
    from segadapt.processing.jobs.scene import Scene
    from segadapt.processing.raster.reader import open_raster

    engine, chip = open_engine("mobile_sam"), sample_chip()
    generator = mobile_sam.SamAutomaticMaskGenerator(
        reference_predictor(chip, engine.device).model, points_per_side=16, min_mask_region_area=0
    )
    picture = np.ascontiguousarray(chip.transpose(1, 2, 0))
    found: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chip.tif"
        profile = {"driver": "GTiff", "width": 1024, "height": 1024, "count": 3, "dtype": "uint8"}
        transform = rasterio.Affine(0.25, 0, 500_000, 0, -0.25, 5_700_000)
        with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile) as dataset:
            dataset.write(chip)
        with open_raster(str(path)) as reader:
            scene = Scene(reader, engine, EmbeddingCache(Path(folder) / "cache"))
            job = EverythingJob(window_px=1024, points_per_side=16)
            ours = seconds(lambda: found.append(len(list(segment_everything(scene, job)))))
    reference = seconds(lambda: found.append(len(generator.generate(picture))))
    megapixels = 1024**2 / 1e6
    row = compared("per megapixel", ours / megapixels, reference / megapixels)
    return [(*row, f"{found[0]} / {found[1]}")]


def gpu_rows(runs: int) -> list[Row]:
    """Chips per second of every encoder on a CUDA card, batch 1 and 8; the ViT encoders with random weights."""
    import torch
    from segadapt.models.device import DTYPES, choose_precision
    from segadapt.models.registry import create_promptable, list_models

    rows: list[Row] = []
    chip = torch.from_numpy(sample_chip())
    precision = choose_precision("auto", "cuda:0")
    for card in list_models("promptable"):
        model = create_promptable(card.name)
        model.prepare_for_inference(torch.device("cuda:0"), DTYPES[precision])
        for batch in (1, 8):
            chips = [chip] * batch
            with torch.inference_mode():
                model.embed(chips), model.embed(chips)
                taken = statistics.median(seconds(lambda m=model, c=chips: m.embed(c)) for _ in range(runs))  # type: ignore[misc]
            rows.append((card.name, precision, str(batch), f"{taken / batch * 1e3:.1f}", f"{batch / taken:.1f}"))
    return rows
