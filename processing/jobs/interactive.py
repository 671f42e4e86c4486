"""One click, one answer: what the map tool asks of a raster while the user draws."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import torch
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ...models.adaptation.adapter import Adapter, AdapterCard, load_adapter, save_adapter
from ...models.adaptation.clicks import respect_clicks, without_specks
from ...models.adaptation.online import Look, OnlineAdapter, look, run_to_end
from ...models.adaptation.refiner import RefinerInput
from ...models.adaptation.shipped import SHIPPED_NAME, shipped_refiner
from ...models.prompts import FOREGROUND, LOW_RES_PX
from ..errors import JobError
from ..raster.reader import RasterReader
from ..raster.windows import Bounds, SquareWindow, fitting_size_px
from .answers import Answer, answer_options, chip_prompts, first_window, make_answer, next_window
from .click_windows import click_window_px, map_bounds_px
from .objects import ObjectPrompts, scribble_points
from .placed_mask import intersection
from .scene import Scene
from .segment import outline_mask

_MOST_WINDOWS = 6
# Feeding an answer back changes nothing more (CFR, Wang et al. 2023, https://arxiv.org/abs/2308.13174).
_SETTLED = 0.99
_LONGEST_TRAIL = 8
# A window this many times as large as the object needs shows it too coarsely.
_SMALL_IN = 4


@dataclass(frozen=True, eq=False)
class PreviousAnswer:
    """The answer that the user is refining: its window and low-resolution logits, float32 (256, 256).

    `trail`: what the refiner saw on the way, which `InteractiveSegmenter.learn` needs; empty elsewhere.
    """

    window: SquareWindow
    logits: npt.NDArray[np.float32]
    trail: tuple[Seen, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRequest:
    """What the user has drawn for one object so far.

    `points_map`: (x, y) in the raster's CRS; `labels`: 1 foreground, 0 background, one per point. `box_map`:
    xmin, ymin, xmax, ymax in the raster's CRS, or None. `scribbles_map`: lines along the object or beside it, with
    `scribble_labels`. `outline`: a polygon in the raster's CRS to start from. `window_px`: side of the window for a new
    object, None for `click_window_px`. `previous`: the answer to the prompts before the last one, None for a new
    object or after an undo. `multimask`: take the best of three masks for a single click. `tolerance` in map
    units and `min_area_m2` as in `SegmentOptions`.
    """

    request_id: int
    points_map: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box_map: Bounds | None = None
    scribbles_map: tuple[tuple[tuple[float, float], ...], ...] = ()
    scribble_labels: tuple[int, ...] = ()
    outline: BaseGeometry | None = None
    window_px: int | None = None
    previous: PreviousAnswer | None = None
    multimask: bool = True
    tolerance: float = 0.0
    min_area_m2: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskOption:
    """One of the masks that the model offers for an ambiguous prompt; fields as in `PromptResult`."""

    geometry: MultiPolygon
    score: float
    stability: float
    area_m2: float
    window: SquareWindow
    logits: npt.NDArray[np.float32]
    trail: tuple[Seen, ...] = ()

    def as_previous(self) -> PreviousAnswer:
        """What the next request about the same object takes along."""
        return PreviousAnswer(self.window, self.logits, self.trail)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptResult(MaskOption):
    """The answer to the request of the same id.

    `geometry` is in the raster's CRS and empty where the model found nothing. `score`: predicted IoU;
    `stability`: IoU of the mask between thresholds one above and one below; `area_m2`: on the ellipsoid, NaN
    without a CRS. `window` and `logits` make the `PreviousAnswer` of the next request. `options`: all masks that the
    model offers, the answer first, for an ambiguous prompt; else empty. `adapter`: name of what was laid over the
    model, "" for nothing.
    """

    request_id: int
    options: tuple[MaskOption, ...] = ()
    adapter: str = ""


@dataclass(frozen=True, kw_only=True)
class InteractiveOptions:
    """What may help to answer; each can be left out, which the evaluation does in turn.

    `window_px`: side of the first window of an object, None to choose it (`click_window_px`, or what the request says);
    `fixed_window`: stay in it. `adapter`: use the adapter that ships with SegAdapt for this model, if there is one, or
    that of `adapter_path`. `cascade`: how often an answer is fed back with the same prompts. `repair`: turn over what
    contradicts a click, and take specks out. `per_click`: a few gradient steps where clicks are contradicted.
    `per_object`: learn from accepted objects.
    """

    window_px: int | None = None
    fixed_window: bool = False
    adapter: bool = True
    adapter_path: Path | None = None
    cascade: int = 0
    repair: bool = True
    per_click: bool = True
    per_object: bool = True

    @property
    def is_plain(self) -> bool:
        """The model alone, as published: the reference that the evaluation compares with."""
        return not (self.adapter or self.cascade or self.repair or self.per_click or self.per_object)


@dataclass(frozen=True)
class LearningReport:
    """What became of an accepted object: `iou_before` and `iou_after` are means over what is remembered."""

    is_kept: bool
    n_objects: int
    iou_before: float
    iou_after: float
    sentence: str


@dataclass(frozen=True, eq=False)
class Seen:
    """What the refiner saw of an answer, in which window, and whether it was one of three for a single click."""

    window: SquareWindow
    seen: RefinerInput
    is_choice: bool


class InteractiveSegmenter:
    """Answers prompts on one scene and learns from what the analyst accepts. One thread at a time."""

    def __init__(self, scene: Scene, options: InteractiveOptions | None = None) -> None:
        self.scene, self.options = scene, options or InteractiveOptions()
        self.n_learned = 0
        self._loaded_name = ""
        engine, half = scene.engine, scene.engine.precision == "bf16"
        shipped = shipped_refiner(engine.card.name, engine.checkpoint_sha256) if self.options.adapter else None
        self._base_name = SHIPPED_NAME if shipped is not None else ""
        self._online = OnlineAdapter(shipped, half=half)
        if self.options.adapter and self.options.adapter_path is not None:
            self.load(self.options.adapter_path)

    @property
    def adapter_name(self) -> str:
        """What is laid over the model: shipped, loaded, learned here; "" for nothing."""
        learned = f"learned from {self.n_learned}" if self.n_learned else ""
        return " + ".join(name for name in (self._loaded_name or self._base_name, learned) if name)

    def answer(self, request: PromptRequest, *, only_if_encoded: bool = False) -> PromptResult | None:
        """Answer a request.

        The window of the previous answer is used again while all prompts lie inside it, and its logits are fed
        back. An object that its window cuts is looked at again in a larger one. With `only_if_encoded`, for the
        preview under the mouse, the answer comes from one window that is in the cache already, or is None where
        it is not or where the prompts lie outside the raster. Raises `JobError` for prompts outside the raster or
        without a foreground.
        """
        prompts = _prompts_inside(self.scene, request, is_preview=only_if_encoded)
        if prompts is None:
            return None
        window, previous = self._window(request, prompts)
        if only_if_encoded and not self.scene.is_encoded(window):
            return None
        found = self._ask(window, prompts, request, previous)
        if not only_if_encoded and not self.options.fixed_window:
            found = self._whole(found, prompts, request)
        trail = previous.trail if previous is not None and previous.window == found[0].answer.window else ()
        options = [self._option(one, request, trail) for one in (found[:1] if only_if_encoded else found)]
        return PromptResult(
            request_id=request.request_id,
            **{name: getattr(options[0], name) for name in MaskOption.__dataclass_fields__},
            options=tuple(options) if len(options) > 1 else (),
            adapter=self.adapter_name,
        )

    def learn(self, result: PromptResult, geometry: BaseGeometry | None = None) -> LearningReport:
        """Take in an accepted object; `geometry` is its final outline in the raster's CRS, None for the answer's."""
        return run_to_end(self.learning(result, geometry))

    def learning(
        self, result: PromptResult, geometry: BaseGeometry | None = None
    ) -> Generator[None, None, LearningReport]:
        """Do as `learn`, and yield between steps, so that prompts can be answered in between."""
        accepted = result.geometry if geometry is None else geometry
        if not self.options.per_object or not result.trail or accepted.is_empty:
            return LearningReport(False, self.n_learned, math.nan, math.nan, "Nothing was learned from this object.")
        self.n_learned += 1
        if result.trail[0].is_choice:
            first = result.trail[0]
            cell_px = first.window.size_px / LOW_RES_PX
            self._online.learn_choice(first.seen, self._truth(first, accepted), cell_px=cell_px)
        corrections = [one for one in result.trail if one.seen.is_correction]
        if not corrections:
            sentence = f"Object {self.n_learned} needed no correction; its size and place were noted."
            return LearningReport(False, self.n_learned, math.nan, math.nan, sentence)
        # The first corrections teach most, where clicks can be saved, and the last: what the analyst wanted.
        chosen = [*corrections[:2], corrections[-1]] if len(corrections) > 3 else corrections
        truths = [self._truth(one, accepted) for one in chosen]
        learned = yield from self._online.learning([one.seen for one in chosen], truths)
        verb = "Learned from" if learned.is_kept else "Looked at, but found nothing worth keeping in,"
        sentence = (
            f"{verb} object {self.n_learned}: agreement with the accepted objects "
            f"{learned.iou_before:.3f} before, {learned.iou_after:.3f} after."
        )
        return LearningReport(learned.is_kept, self.n_learned, learned.iou_before, learned.iou_after, sentence)

    def reset(self) -> None:
        """Forget what was learned and loaded; the shipped adapter stays."""
        self.n_learned, self._loaded_name = 0, ""
        self._online.reset()

    def save(self, path: Path) -> None:
        """Write what was learned as an adapter. Raises `JobError` where nothing was, `CheckpointError` on failure."""
        if not self.n_learned:
            raise JobError(f"Nothing was learned yet that could go to {path}; accept some objects first.")
        engine = self.scene.engine
        card = AdapterCard(
            name=path.stem,
            base_model=engine.card.name,
            base_sha256=engine.checkpoint_sha256,
            method="mask refiner, choice and offset of masks, learned from accepted objects",
            trained_on=tuple(filter(None, (self._loaded_name or self._base_name, Path(self.scene.reader.path).name))),
            n_objects=self.n_learned,
            licence="of its maker",
            made_on=datetime.now(timezone.utc).date().isoformat(),
        )
        save_adapter(Adapter(card, self._online.tensors()), path)

    def load(self, path: Path) -> None:
        """Use an adapter that was saved, here or elsewhere. Raises `CheckpointError` where it does not fit."""
        engine = self.scene.engine
        adapter = load_adapter(path, base_model=engine.card.name, base_sha256=engine.checkpoint_sha256)
        self._online.load(adapter)
        self._loaded_name = adapter.card.name

    def _window(self, request: PromptRequest, prompts: ObjectPrompts) -> tuple[SquareWindow, PreviousAnswer | None]:
        previous = request.previous
        if previous is not None and previous.window.contains_bounds(prompts.bounds_px):
            return previous.window, previous
        left, top, right, bottom = prompts.bounds_px
        extent_px = max(right - left, bottom - top)
        size_px = self.options.window_px or request.window_px or click_window_px(self.scene.reader)
        if extent_px > size_px / 2:
            size_px = fitting_size_px(extent_px)
        elif prompts.box_xyxy is not None:
            size_px = min(size_px, fitting_size_px(extent_px))
        window = first_window(prompts, self.scene.reader.shape, window_px=size_px)
        if window is None:
            raise JobError(f"The prompts lie {extent_px:.0f} px apart, too far for one window; start a new object.")
        return window, None

    def _ask(
        self, window: SquareWindow, prompts: ObjectPrompts, request: PromptRequest, previous: PreviousAnswer | None
    ) -> list[_Found]:
        """All masks that are offered, the best first."""
        logits = None if previous is None else previous.logits
        asked = chip_prompts(prompts, window, scene=self.scene, logits=logits)
        if self.options.is_plain:
            return [_Found(one, None) for one in answer_options(self.scene, window, asked, multimask=request.multimask)]
        cells = asked.in_cells(self.scene.input_px)
        embedding = self.scene.embedding(window)
        chosen = None if request.multimask else 0
        view = look(self.scene.engine, embedding, cells, chosen=chosen)
        is_choice = request.multimask and asked.is_ambiguous
        cell_px = window.size_px / LOW_RES_PX
        views = view.alternatives(self._online.choice, cell_px=cell_px) if is_choice else [view]
        return [self._settled(view, window, embedding) for view in views]

    def _settled(self, view: Look, window: SquareWindow, embedding: torch.Tensor) -> _Found:
        """The answer from one mask: refined, fed back, and brought to agree with the clicks."""
        cells, is_choice = view.cells, view.chosen > 0
        cell_px = window.size_px / LOW_RES_PX
        refined = self._online.refined(view, cell_px=cell_px)
        for _ in range(self.options.cascade):
            before = refined
            view = look(self.scene.engine, embedding, replace(cells, mask_logits=before.numpy()), chosen=0)
            refined = self._online.refined(view, cell_px=cell_px)
            if _agreement(before, refined) > _SETTLED:
                break
        if self.options.per_click:
            refined = self._online.adjusted(view, refined, points=cells.points_xy, labels=cells.labels)
        logits = refined.numpy()
        if self.options.repair:
            logits = respect_clicks(logits, cells.points_xy, cells.labels)
            logits = without_specks(logits, cells.points_xy, cells.labels)
        answer = make_answer(self.scene, window, logits, score=float(view.iou[view.chosen]))
        return _Found(answer, view.seen, is_choice)

    def _whole(self, found: list[_Found], prompts: ObjectPrompts, request: PromptRequest) -> list[_Found]:
        """Look closer at an object that is small in its window; follow one that its window cuts into larger ones."""
        found = self._closer(found, prompts, request)
        for _ in range(_MOST_WINDOWS):
            window = next_window(found[0].answer, prompts, self.scene.reader.shape)
            if window is None:
                break
            larger = self._ask(window, prompts, request, None)
            if not larger[0].answer.mask.n_pixels:
                break
            found = larger
        return found

    def _closer(self, found: list[_Found], prompts: ObjectPrompts, request: PromptRequest) -> list[_Found]:
        """Zoom in to the window of a click where a wider view brought a wider window for a small object."""
        mask, window = found[0].answer.mask, found[0].answer.window
        left, top, right, bottom = mask.bounds
        size_px = max(click_window_px(self.scene.reader), fitting_size_px(max(right - left, bottom - top)))
        if request.previous is not None or not mask.n_pixels or window.size_px < _SMALL_IN * size_px:
            return found
        closer = first_window(prompts, self.scene.reader.shape, window_px=size_px)
        if closer is None or closer.size_px >= window.size_px:
            return found
        again = self._ask(closer, prompts, request, None)
        return again if again[0].answer.mask.n_pixels else found

    def _option(self, found: _Found, request: PromptRequest, trail: tuple[Seen, ...]) -> MaskOption:
        answer = found.answer
        geometry, area = outline_mask(
            self.scene, answer.mask, tolerance=request.tolerance, min_area_m2=request.min_area_m2
        )
        seen = () if found.seen is None else (Seen(answer.window, found.seen, found.is_choice),)
        return MaskOption(
            geometry=geometry,
            score=answer.score,
            stability=answer.stability,
            area_m2=area,
            window=answer.window,
            logits=answer.logits,
            trail=(*trail[-_LONGEST_TRAIL:], *seen),
        )

    def _truth(self, one: Seen, geometry: BaseGeometry) -> torch.Tensor:
        """The accepted object (1, 128, 128) in the crop of an answer, 0 or 1."""
        scale = one.window.size_px / LOW_RES_PX
        outline = shapely.transform(geometry, self.scene.reader.to_pixels)
        to_window = Affine.translation(one.window.col_off, one.window.row_off) @ Affine.scale(scale)
        burned = rasterize([outline], out_shape=(LOW_RES_PX, LOW_RES_PX), transform=to_window)
        return one.seen.crop.cut(torch.from_numpy(burned.astype(np.float32))[None]).round()


@dataclass(frozen=True, eq=False)
class _Found:
    answer: Answer
    seen: RefinerInput | None
    is_choice: bool = False


def segment_prompts(
    scene: Scene, request: PromptRequest, *, only_if_encoded: bool = False, options: InteractiveOptions | None = None
) -> PromptResult | None:
    """Answer one request without learning; see `InteractiveSegmenter.answer`."""
    return InteractiveSegmenter(scene, options).answer(request, only_if_encoded=only_if_encoded)


def _agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    union = ((first > 0) | (second > 0)).sum()
    return float(((first > 0) & (second > 0)).sum() / union) if union else 1.0


def _prompts_inside(scene: Scene, request: PromptRequest, *, is_preview: bool) -> ObjectPrompts | None:
    """The prompts in raster pixels; None for a preview that cannot be given."""
    rows, cols = scene.reader.shape
    points_xy, labels = _points(scene.reader, request)
    inside = ((points_xy >= 0) & (points_xy < (cols, rows))).all(axis=1)
    outline: Any = None
    if request.outline is not None and not request.outline.is_empty:
        outline = shapely.transform(request.outline, scene.reader.to_pixels)
    box = None
    if request.box_map is not None or outline is not None:
        drawn = map_bounds_px(scene.reader, request.box_map) if request.box_map is not None else outline.bounds
        clipped = intersection(drawn, (0, 0, cols, rows))
        box = clipped if clipped[2] > clipped[0] and clipped[3] > clipped[1] else None
    if box is not None or FOREGROUND in labels[inside]:
        return ObjectPrompts("", "", points_xy[inside], labels[inside], box, outline if box is not None else None)
    if is_preview:
        return None
    if FOREGROUND in labels or request.box_map is not None or outline is not None:
        raise JobError("The prompt lies outside the raster; click on its image.")
    raise JobError("Background prompts alone do not say what the object is; add a foreground point or a box.")


def _points(reader: RasterReader, request: PromptRequest) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Clicks and points along scribbles in raster pixels (N, 2), and their labels (N,)."""
    parts = [reader.to_pixels(np.reshape(request.points_map, (-1, 2)))]
    labels = list(request.labels)
    for line_map, label in zip(request.scribbles_map, request.scribble_labels, strict=True):
        places = scribble_points(shapely.LineString(reader.to_pixels(line_map)))
        parts.append(places)
        labels += [label] * len(places)
    return np.concatenate(parts), np.array(labels, np.int64)
