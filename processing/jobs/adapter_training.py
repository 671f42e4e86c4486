"""Fine-tunes the mask refiner on labelled places by simulated clicks: the adapter for Earth observation.

The analyst is simulated (`clicker`); encoder and decoder stay as they are, so that a place is encoded once. Examples
are the states that such an analyst meets: an answer to the first correction or a later one, the clicks so far, and the
truth. The answer to the first prompt is not among them: what the object is, a place teaches for itself only. Clicks
follow from the answers that they correct, so that after a first round the analyst is simulated again with what was
learned, and both rounds are learned from (DAgger, Ross et al. 2011, https://arxiv.org/abs/1011.0686). Answers are shown
as the tool shows them, repaired and straightened: a refiner that had never seen a rectangle before a correction lost on
places with many of them half of what rectangles won (docs/interactive.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
import torch
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from ...models.adaptation.clicks import respect_clicks, without_specks
from ...models.adaptation.online import example_loss, look
from ...models.adaptation.rectangles import USUAL_THRESHOLD, straightened
from ...models.adaptation.refiner import MaskRefiner, RefinerInput
from ...models.engine import InferenceEngine
from ...models.masks import logits_from_mask
from ...models.progress import NullProgress, Progress, raise_if_cancelled
from ...models.prompts import BACKGROUND, FOREGROUND, LOW_RES_PX, Prompts
from ..raster.windows import SquareWindow, lattice_window
from .clicker import NoErrorLeftError, iou, next_click
from .scene import Scene

_BATCH = 16
_RATE, _DECAY = 2e-3, 1e-3
# Analysts do not hit the middle: the first click moves by this part of the object's size (standard deviation).
_JITTER = 0.1
# One object in this many starts with a box, and one in as many with a rough outline.
_BOX_EVERY, _OUTLINE_EVERY = 6, 9


@dataclass(frozen=True, eq=False)
class LabelledObject:
    """An object in the window of its first click.

    `embedding` (256, 64, 64) of the window, `truth` (256, 256) bool on the cells of its logits; `place` names where.
    """

    place: str
    window: SquareWindow
    embedding: torch.Tensor
    truth: npt.NDArray[np.bool_]


def labelled_objects(
    scene: Scene, outlines: Iterable[BaseGeometry], *, place: str, window_px: int, min_px: int = 30
) -> Iterator[LabelledObject]:
    """The objects of a scene (`outlines` in the raster's CRS), each in the window that a click into its middle gets.

    Left out are objects below `min_px` pixels and those that the window or the raster cuts.
    """
    rows, cols = scene.reader.shape
    scale = window_px / LOW_RES_PX
    for outline in outlines:
        shape_px = shapely.transform(outline, scene.reader.to_pixels)
        left, top, right, bottom = shape_px.bounds
        if shape_px.is_empty or shape_px.area < min_px or min(left, top) < 1 or right > cols - 1 or bottom > rows - 1:
            continue
        middle = shapely.maximum_inscribed_circle(shape_px).coords[0]
        window = lattice_window(*middle, size_px=window_px, shape=scene.reader.shape)
        if not window.contains_bounds(shape_px.bounds):
            continue
        to_window = Affine.translation(window.col_off, window.row_off) @ Affine.scale(scale)
        truth = rasterize([shape_px], out_shape=(LOW_RES_PX, LOW_RES_PX), transform=to_window).astype(np.bool_)
        if truth.any():
            yield LabelledObject(place, window, scene.embedding(window), truth)


@dataclass(frozen=True, eq=False)
class Example:
    """One answer on the way: what the refiner saw, the truth (1, 128, 128) in its crop, and where."""

    place: str
    seen: RefinerInput
    truth: torch.Tensor


def simulate(
    engine: InferenceEngine,
    found: LabelledObject,
    *,
    refiner: MaskRefiner | None,
    n_clicks: int,
    rng: np.random.Generator | None = None,
    half: bool = False,
) -> tuple[list[Example], list[float]]:
    """Click an object `n_clicks` times; returns the states and the IoU after each click.

    With `rng` as in training: the first click is not exact, and some objects start with a box or an outline.
    """
    examples: list[Example] = []
    ious: list[float] = []
    mask, clicked = np.zeros_like(found.truth), np.zeros_like(found.truth)
    points, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    box = _rough_box(found.truth, rng) if rng is not None and rng.integers(_BOX_EVERY) == 0 else None
    previous: npt.NDArray[np.float32] | None = None
    if rng is not None and box is None and rng.integers(_OUTLINE_EVERY) == 0:
        previous = logits_from_mask(np.roll(found.truth, rng.integers(-4, 5, 2), (0, 1)), window_px=LOW_RES_PX)
        mask = previous > 0
    for n in range(n_clicks):
        # A box says where the object is without a click.
        if box is None or n:
            try:
                click = next_click(found.truth, mask, clicked=clicked)
            except NoErrorLeftError:
                ious += [ious[-1]] * (n_clicks - n) if ious else []
                break
            x, y = (click.x, click.y) if n or rng is None else _moved(click.x, click.y, found.truth, rng)
            clicked[y, x] = True
            points = np.vstack([points, np.array([[x + 0.5, y + 0.5]], np.float32)])
            labels = np.append(labels, FOREGROUND if click.is_foreground else BACKGROUND)
        view = look(engine, found.embedding, Prompts(points, labels, box, previous))
        truth = view.seen.crop.cut(torch.from_numpy(found.truth).float()[None]).round()
        if view.seen.is_correction:
            examples.append(Example(found.place, view.seen, truth))
        previous = _settled(view.refined(refiner, half=half).numpy(), previous, points, labels)
        mask = previous > 0
        ious.append(iou(found.truth, mask))
    return examples, ious


def _settled(
    logits: npt.NDArray[np.float32],
    previous: npt.NDArray[np.float32] | None,
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """The answer as the tool gives it: the refiner then sees before a correction what it will see in use."""
    logits = without_specks(respect_clicks(logits, points, labels), points, labels)
    straight = straightened(logits, previous, points, labels, threshold=USUAL_THRESHOLD)
    return logits if straight is logits else respect_clicks(straight, points, labels)


def train_in_rounds(
    engine: InferenceEngine,
    objects: Sequence[LabelledObject],
    *,
    n_rounds: int,
    n_clicks: int,
    n_steps: int,
    half: bool = False,
    first: Sequence[Example] = (),
    report: Callable[[int, float], None] | None = None,
) -> MaskRefiner:
    """Simulate and fit `n_rounds` times, each time with the refiner of the round before, `n_steps` steps each.

    Returns it on the CPU; it learns where the engine is.

    `first`: the states of the first round, where `simulate` has made them: without a refiner they are the same whatever
    else is learned from.
    """
    rng = np.random.default_rng(0)
    examples = list(first)
    refiner: MaskRefiner | None = None
    for n in range(n_rounds):
        if n or not examples:
            for one in objects:
                examples += simulate(engine, one, refiner=refiner, n_clicks=n_clicks, rng=rng, half=half)[0]
        refiner = fit(
            examples, n_steps=n_steps, seed=n, refiner=refiner, half=half, device=engine.device, report=report
        )
    if refiner is None:
        raise ValueError(f"{n_rounds} rounds train nothing; give at least one.")
    return refiner.cpu()


def fit(
    examples: Sequence[Example],
    *,
    n_steps: int,
    seed: int = 0,
    refiner: MaskRefiner | None = None,
    half: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    report: Callable[[int, float], None] | None = None,
) -> MaskRefiner:
    """Train a refiner, places equally often; `refiner` to go on with one. Raises `Cancelled`.

    `report` gets the step and the mean loss of the last 50 steps.
    """
    progress = progress or NullProgress()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    refiner = (refiner or MaskRefiner()).to(device)
    by_place = [[e for e in examples if e.place == place] for place in sorted({e.place for e in examples})]
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=n_steps)
    losses: list[float] = []
    refiner.train()
    for step in range(n_steps):
        raise_if_cancelled(progress)
        places = rng.integers(len(by_place), size=_BATCH)
        batch = [by_place[place][rng.integers(len(by_place[place]))] for place in places]
        batch = [_varied(example, rng) for example in batch]
        optimizer.zero_grad()
        loss = example_loss(refiner, [e.seen for e in batch], torch.stack([e.truth for e in batch]), half=half)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_fraction((step + 1) / n_steps)
        if report is not None and (step + 1) % 50 == 0:
            report(step + 1, float(np.mean(losses[-50:])))
    return refiner.eval()


def _varied(example: Example, rng: np.random.Generator) -> Example:
    """The example turned and mirrored: there are few places, and none has an up."""
    n_turns, is_mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def turned(picture: torch.Tensor) -> torch.Tensor:
        picture = torch.rot90(picture, n_turns, (1, 2))
        return picture.flip(2) if is_mirrored else picture

    seen = replace(example.seen, inputs=turned(example.seen.inputs), base=turned(example.seen.base))
    return Example(example.place, seen, turned(example.truth))


def _moved(x: int, y: int, truth: npt.NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    spread = max(1.0, _JITTER * float(np.sqrt(truth.sum())))
    moved_x, moved_y = (np.array([x, y]) + rng.normal(0, spread, 2)).round().astype(int).clip(0, LOW_RES_PX - 1)
    return (int(moved_x), int(moved_y)) if truth[moved_y, moved_x] else (x, y)


def _rough_box(truth: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    rows, cols = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    box = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], np.float32) + rng.normal(0, 1.5, 4)
    box = box.astype(np.float32).clip(0, LOW_RES_PX)
    return np.maximum(box, np.array([0, 0, box[0] + 2, box[1] + 2], np.float32))
