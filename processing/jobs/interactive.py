"""One click, one answer: what the map tool asks of a raster while the user draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import torch
from affine import Affine
from rasterio.features import rasterize
from shapely.geometry.base import BaseGeometry

from ...models.adaptation.adapter import Adapter, AdapterCard, load_adapter, save_adapter
from ...models.adaptation.clicks import respect_clicks, without_specks
from ...models.adaptation.mask_offset import MaskOffset
from ...models.adaptation.online import Look, OnlineAdapter, look, run_to_end
from ...models.adaptation.rectangles import is_left_free, straightened
from ...models.adaptation.refiner import RefinerInput
from ...models.adaptation.shipped import SHIPPED_NAME, shipped_refiner
from ...models.prompts import LOW_RES_PX, Prompts
from ..errors import JobError
from ..raster.windows import Bounds, SquareWindow, fitting_size_px
from .answers import Answer, answer_options, chip_prompts, first_window, make_answer, next_window
from .click_windows import click_window_px, correction_window
from .objects import ObjectPrompts
from .prompt_request import MaskOption, PreviousAnswer, PromptRequest, PromptResult, Seen, prompts_inside
from .scene import Scene
from .segment import outline_mask

_MOST_WINDOWS = 6
# Feeding an answer back changes nothing more (CFR, Wang et al. 2023, https://arxiv.org/abs/2308.13174).
_SETTLED = 0.99
# A mask that agrees so well with its rectangle is not offered beside it.
_SAME_SHAPE = 0.97
_LONGEST_TRAIL = 8
# A window this many times as large as the object needs shows it too coarsely.
_SMALL_IN = 4


@dataclass(frozen=True, kw_only=True)
class InteractiveOptions:
    """What may help to answer; each can be left out, which the evaluation does in turn.

    `window_px`: side of the first window of an object, None to choose it (`click_window_px`, or what the request says);
    `fixed_window`: stay in it. `adapter`: use the adapter that ships with SegAdapt for this model, if there is one, or
    that of `adapter_path`. `cascade`: how often an answer is fed back with the same prompts. `repair`: turn over what
    contradicts a click, and take specks out. `rectangles`: what is nearly rectangular becomes a rectangle. `per_click`:
    a few gradient steps where clicks are contradicted. `per_object`: learn from accepted objects.
    """

    window_px: int | None = None
    fixed_window: bool = False
    adapter: bool = True
    adapter_path: Path | None = None
    cascade: int = 0
    repair: bool = True
    rectangles: bool = True
    per_click: bool = True
    per_object: bool = True

    @property
    def is_plain(self) -> bool:
        """The model alone, as published: the reference that the evaluation compares with."""
        parts = (self.adapter, self.cascade, self.repair, self.rectangles, self.per_click, self.per_object)
        return not any(parts)


@dataclass(frozen=True)
class LearningReport:
    """What became of an accepted object: `iou_before` and `iou_after` are means over what is remembered."""

    is_kept: bool
    n_objects: int
    iou_before: float
    iou_after: float
    sentence: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """What was learned and loaded on a raster; it stays as it is, an object more makes another one.

    `n_learned`: accepted objects learned from since the model was as shipped or loaded; `loaded_name`: of the adapter
    that was loaded, "" for none; `pixel_map`: side of a pixel in map units. It lies in the memory of the CPU, so that
    it outlives the device that it was learned on.
    """

    online: OnlineAdapter
    pixel_map: float
    n_learned: int = 0
    loaded_name: str = ""


class InteractiveSegmenter:
    """Answers prompts on one scene and learns from what the analyst accepts. One thread at a time.

    `knowledge`: what it goes on with; each object that is learned from leaves the one before as it was.
    """

    def __init__(self, scene: Scene, options: InteractiveOptions | None = None) -> None:
        self.scene, self.options = scene, options or InteractiveOptions()
        engine = scene.engine
        self._half = engine.precision == "bf16"
        self._shipped = shipped_refiner(engine.card.name, engine.checkpoint_sha256) if self.options.adapter else None
        self._base_name = SHIPPED_NAME if self._shipped is not None else ""
        # Sizes in m2, or in pixels where nobody knows how large they are.
        gsd_m = scene.reader.gsd_m or math.inf
        self._is_metric = math.isfinite(gsd_m)
        self._pixel_size = gsd_m**2 if self._is_metric else 1.0
        self.reset()
        if self.options.adapter and self.options.adapter_path is not None:
            self.load(self.options.adapter_path)

    @property
    def n_learned(self) -> int:
        """Accepted objects learned from, as in `Knowledge`."""
        return self.knowledge.n_learned

    @property
    def loaded_name(self) -> str:
        """Of the adapter that was loaded, as in `Knowledge`."""
        return self.knowledge.loaded_name

    @property
    def adapter_name(self) -> str:
        """What is laid over the model: shipped, loaded, learned here; "" for nothing."""
        learned = f"learned from {self.n_learned}" if self.n_learned else ""
        return " + ".join(name for name in (self.loaded_name or self._base_name, learned) if name)

    def answer(self, request: PromptRequest, *, only_if_encoded: bool = False) -> PromptResult | None:
        """Answer a request.

        The window of the previous answer is used again while all prompts lie inside it, or a closer one for a small
        object, and its logits are fed back. An object that its window cuts is looked at again in a larger one. With
        `only_if_encoded`, for the preview under the mouse, the answer comes from one window that is in the cache
        already, or is None where it is not or where the prompts lie outside the raster. Raises `JobError` for prompts
        outside the raster or without a foreground.
        """
        prompts = prompts_inside(self.scene, request, is_preview=only_if_encoded)
        if prompts is None:
            return None
        window, previous = self._window(request, prompts, is_preview=only_if_encoded)
        if only_if_encoded and not self.scene.is_encoded(window):
            return None
        found = self._ask(window, prompts, request, previous, most=1 if only_if_encoded else None)
        if not only_if_encoded and not self.options.fixed_window:
            found = self._whole(found, prompts, request)
        trail = previous.trail if previous is not None and previous.window == found[0].answer.window else ()
        options = [self._option(one, request, trail) for one in found]
        return PromptResult(
            request_id=request.request_id,
            **{name: getattr(options[0], name) for name in MaskOption.__dataclass_fields__},
            options=tuple(options) if len(options) > 1 else (),
            adapter=self.adapter_name,
        )

    def next_window(self, result: PromptResult) -> SquareWindow:
        """The window in which the next click about an answer is likely to be looked at: worth encoding ahead."""
        previous = result.as_previous()
        return self._near(previous, _bounds_px(previous)).window

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
        self._know(self._online.copy(), n_learned=self.n_learned + 1, loaded_name=self.loaded_name)
        if result.trail[0].is_choice:
            first = result.trail[0]
            cell_px = first.window.size_px / LOW_RES_PX
            truth, cell_size = self._truth(first, accepted), self._pixel_size * cell_px**2
            self._online.learn_choice(first.seen, truth, cell_px=cell_px, cell_size=cell_size)
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
        self._know(OnlineAdapter(self._shipped, half=self._half, is_metric=self._is_metric))

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
            trained_on=tuple(filter(None, (self.loaded_name or self._base_name, Path(self.scene.reader.path).name))),
            n_objects=self.n_learned,
            licence="of its maker",
            made_on=datetime.now(timezone.utc).date().isoformat(),
            raster=self._raster_digest(),
        )
        save_adapter(Adapter(card, self._online.tensors()), path)

    def load(self, path: Path) -> None:
        """Use an adapter that was saved, here or elsewhere. Raises `CheckpointError` where it does not fit.

        Where objects lie beside what the model sees is taken from an adapter of this raster only.
        """
        engine = self.scene.engine
        adapter = load_adapter(path, base_model=engine.card.name, base_sha256=engine.checkpoint_sha256)
        online = self._online.copy()
        online.load(adapter, is_same_raster=adapter.card.raster == self._raster_digest())
        self._know(online, loaded_name=adapter.card.name)

    def take_over(self, knowledge: Knowledge) -> None:
        """Go on with all that was learned and loaded on the same raster, for the same model.

        In pixels of another size, as a web map has them in another view, it is learned anew where objects lie; where
        only one of the two has pixels of a known size, everything is.
        """
        if knowledge.online.is_metric != self._is_metric:
            return
        if math.isclose(knowledge.pixel_map, self._pixel_map):
            self.knowledge = knowledge
            self._online.half = self._half
        else:
            online = knowledge.online.copy()
            online.half, online.offset = self._half, MaskOffset()
            self._know(online, n_learned=knowledge.n_learned, loaded_name=knowledge.loaded_name)

    @property
    def _online(self) -> OnlineAdapter:
        return self.knowledge.online

    @property
    def _pixel_map(self) -> float:
        transform = self.scene.reader.transform
        return math.hypot(transform.a, transform.d)

    def _know(self, online: OnlineAdapter, *, n_learned: int = 0, loaded_name: str = "") -> None:
        self.knowledge = Knowledge(
            online=online, pixel_map=self._pixel_map, n_learned=n_learned, loaded_name=loaded_name
        )

    def _window(
        self, request: PromptRequest, prompts: ObjectPrompts, *, is_preview: bool
    ) -> tuple[SquareWindow, PreviousAnswer | None]:
        previous = request.previous
        if previous is not None and previous.window.contains_bounds(prompts.bounds_px):
            near = self._near(previous, prompts.bounds_px)
            previous = near if not is_preview or self.scene.is_encoded(near.window) else previous
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

    def _near(self, previous: PreviousAnswer, prompts_bounds_px: Bounds) -> PreviousAnswer:
        """The answer before as it looks in the window in which it is corrected."""
        if self.options.fixed_window or not (previous.logits > 0).any():
            return previous
        found = correction_window(self.scene.reader, previous.window, _bounds_px(previous), prompts_bounds_px)
        return previous if found == previous.window else previous.seen_from(found)

    def _ask(
        self,
        window: SquareWindow,
        prompts: ObjectPrompts,
        request: PromptRequest,
        previous: PreviousAnswer | None,
        *,
        most: int | None = None,
    ) -> list[_Found]:
        """The masks that are offered, the best first; `most` of them, None for all.

        The last one is the best as the model drew it, where it became a rectangle that looks otherwise.
        """
        logits = None if previous is None else previous.logits
        asked = chip_prompts(prompts, window, scene=self.scene, logits=logits)
        if self.options.is_plain:
            options = answer_options(self.scene, window, asked, multimask=request.multimask)
            return [_Found(one, None) for one in options[:most]]
        cells = asked.in_cells(self.scene.input_px)
        embedding = self.scene.embedding(window)
        chosen = None if request.multimask else 0
        view = look(self.scene.engine, embedding, cells, chosen=chosen)
        is_choice = request.multimask and asked.is_ambiguous
        cell_size = self._pixel_size * (window.size_px / LOW_RES_PX) ** 2
        views = view.alternatives(self._online.choice, cell_size=cell_size) if is_choice else [view]
        is_free = self._is_free(request.previous, cells)
        found = [self._settled(view, window, embedding, is_free=is_free) for view in views[:most]]
        best = found[0]
        if not is_choice or most is not None or best.free is None:
            return found
        if _agreement(*map(torch.from_numpy, (best.free, best.answer.logits))) < _SAME_SHAPE:
            free = make_answer(self.scene, window, best.free, score=best.answer.score)
            found.append(replace(best, answer=free, free=None, is_free=True))
        return found

    def _is_free(self, previous: PreviousAnswer | None, cells: Prompts) -> bool:
        """Whether no rectangle is wanted: the free mask was chosen, or an outline that is none was drawn."""
        if previous is not None or cells.mask_logits is None:
            return previous is not None and previous.is_free
        return is_left_free(cells.mask_logits > 0, threshold=self._online.rectangles.threshold)

    def _settled(self, view: Look, window: SquareWindow, embedding: torch.Tensor, *, is_free: bool) -> _Found:
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
        free = None
        if self.options.rectangles and not is_free:
            threshold = self._online.rectangles.threshold
            straight = straightened(logits, cells.mask_logits, cells.points_xy, cells.labels, threshold=threshold)
            if straight is not logits:
                # A side between two cells may leave the middle of a clicked one out.
                free, logits = logits, respect_clicks(straight, cells.points_xy, cells.labels)
        answer = make_answer(self.scene, window, logits, score=float(view.iou[view.chosen]))
        return _Found(answer, view.seen, is_choice, free, is_free)

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
            is_free=found.is_free,
        )

    def _raster_digest(self) -> str:
        """What tells the raster from others, without its path."""
        return hashlib.sha256(self.scene.reader.identity.encode()).hexdigest()[:16]

    def _truth(self, one: Seen, geometry: BaseGeometry) -> torch.Tensor:
        """The accepted object (1, 128, 128) in the crop of an answer, 0 or 1."""
        scale = one.window.size_px / LOW_RES_PX
        outline = shapely.transform(geometry, self.scene.reader.to_pixels)
        to_window = Affine.translation(one.window.col_off, one.window.row_off) @ Affine.scale(scale)
        burned = rasterize([outline], out_shape=(LOW_RES_PX, LOW_RES_PX), transform=to_window)
        return one.seen.crop.cut(torch.from_numpy(burned.astype(np.float32))[None]).round()


@dataclass(frozen=True, eq=False)
class _Found:
    """`free`: logits (256, 256) that the answer was made a rectangle of, None where it was not.

    `is_free`: as in `PreviousAnswer`.
    """

    answer: Answer
    seen: RefinerInput | None
    is_choice: bool = False
    free: npt.NDArray[np.float32] | None = None
    is_free: bool = False


def segment_prompts(
    scene: Scene, request: PromptRequest, *, only_if_encoded: bool = False, options: InteractiveOptions | None = None
) -> PromptResult | None:
    """Answer one request without learning; see `InteractiveSegmenter.answer`."""
    return InteractiveSegmenter(scene, options).answer(request, only_if_encoded=only_if_encoded)


def _bounds_px(answer: PreviousAnswer) -> Bounds:
    """Left, top, right, bottom of a mask in raster pixels; NaN for none."""
    mask, scale = answer.logits > 0, answer.window.size_px / LOW_RES_PX
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return math.nan, math.nan, math.nan, math.nan
    left, top = answer.window.col_off, answer.window.row_off
    return (
        left + scale * float(cols[0]),
        top + scale * float(rows[0]),
        left + scale * float(cols[-1] + 1),
        top + scale * float(rows[-1] + 1),
    )


def _agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    union = ((first > 0) | (second > 0)).sum()
    return float(((first > 0) & (second > 0)).sum() / union) if union else 1.0
