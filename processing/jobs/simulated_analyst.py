"""An analyst who knows the truth: clicks where the answer is most wrong, accepts, and has the segmenter learn.

The rule of the clicks is `clicker.next_click`; answers are fed back and windows kept as in the map tool.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from shapely.geometry import MultiPolygon
from shapely.geometry.base import BaseGeometry

from ..errors import JobError
from ..raster.rasterize import PixelBounds, burn, joined, pixel_bounds
from ..raster.reader import RasterReader
from ..raster.windows import SquareWindow
from .click_curves import ObjectCurve
from .clicker import BoolMask, NoErrorLeftError, iou, next_click
from .interactive import InteractiveSegmenter
from .prompt_request import PromptRequest, PromptResult
from .scene import Scene

ACCEPT_ANSWER, ACCEPT_REFERENCE = "answer", "reference"


@dataclass(frozen=True, eq=False)
class Reference:
    """A polygon or multipolygon in the raster's CRS that is taken for the truth."""

    geometry: BaseGeometry
    reference_id: str
    class_name: str = ""


@dataclass(frozen=True, eq=False)
class Target:
    """A reference that is evaluated: its number, its place in the raster, how many of its pixels it covers."""

    index: int
    reference: Reference
    bounds_px: PixelBounds
    area_px: int


class SimulatedAnalyst:
    """Clicks on one object after another, as the map tool's session would hand the clicks on.

    An object is accepted at an IoU of `enough`, or given up after `n_clicks`. `accepts`: what the segmenter then learns
    from, `ACCEPT_ANSWER` or `ACCEPT_REFERENCE`. `view_window_px`: window proposed for a new object, None for none.
    """

    def __init__(
        self,
        segmenter: InteractiveSegmenter,
        scene: TimedScene,
        *,
        n_clicks: int,
        enough: float,
        accepts: str,
        view_window_px: int | None,
    ) -> None:
        self._segmenter, self._scene = segmenter, scene
        self._n_clicks, self._enough, self._accepts = n_clicks, enough, accepts
        self._view_window_px = view_window_px
        self._n_requests = 0
        self.n_kept = self.n_undone = 0

    def click_once(self, target: Target) -> None:
        """Make the first click on an object, and forget it."""
        attempt = _Attempt(target, self._scene.reader)
        attempt.click()
        self._answer(attempt)

    def segment(self, target: Target, order: int) -> ObjectCurve:
        """Click until the object is good enough or given up, then let the segmenter learn."""
        attempt = _Attempt(target, self._scene.reader)
        ious: list[float] = []
        click_s: list[float] = []
        while len(ious) < self._n_clicks and (not ious or ious[-1] < self._enough):
            try:
                attempt.click()
            except NoErrorLeftError:  # every wrong pixel was clicked, so the model will not have it
                break
            click_s.append(self._answer(attempt))
            ious.append(attempt.iou())
        ious += ious[-1:] * (self._n_clicks - len(ious))
        return ObjectCurve(
            index=target.index,
            order=order,
            reference_id=target.reference.reference_id,
            class_name=target.reference.class_name,
            area_px=target.area_px,
            ious=tuple(ious),
            click_s=tuple(click_s),
            learn_s=self._learn(attempt),
            truth=target.reference.geometry,
            outline=attempt.outline,
        )

    def _answer(self, attempt: _Attempt) -> float:
        """Have the present clicks answered; the seconds that took, without encoding."""
        self._n_requests += 1
        options = self._segmenter.options
        request = PromptRequest(
            request_id=self._n_requests,
            points_map=tuple(attempt.points_map),
            labels=tuple(attempt.labels),
            window_px=options.window_px or self._view_window_px,
            previous=None if attempt.result is None else attempt.result.as_previous(),
        )
        encoded_before_s, start = self._scene.encode_s, time.perf_counter()
        try:
            attempt.result = self._segmenter.answer(request)
        except JobError:
            # A click too far away for any window: the map tool says so and takes it back.
            attempt.take_back()
        return max(0.0, time.perf_counter() - start - (self._scene.encode_s - encoded_before_s))

    def _learn(self, attempt: _Attempt) -> float:
        """Accept the object; the seconds of learning from it."""
        accepts_reference = self._accepts == ACCEPT_REFERENCE
        if not self._segmenter.options.per_object or attempt.result is None:
            return 0.0
        if attempt.outline.is_empty and not accepts_reference:
            return 0.0  # nothing to accept
        start = time.perf_counter()
        report = self._segmenter.learn(attempt.result, attempt.truth_geometry if accepts_reference else None)
        if math.isfinite(report.iou_before):  # or nothing was tried
            self.n_kept += report.is_kept
            self.n_undone += not report.is_kept
        return time.perf_counter() - start


class _Attempt:
    """One object: the truth, the clicks so far and the answer to them."""

    def __init__(self, target: Target, reader: RasterReader) -> None:
        self._target, self._reader = target, reader
        self._clicked_px: list[tuple[int, int]] = []
        self.points_map: list[tuple[float, float]] = []
        self.labels: list[int] = []
        self.result: PromptResult | None = None

    @property
    def truth_geometry(self) -> BaseGeometry:
        """The reference."""
        return self._target.reference.geometry

    @property
    def outline(self) -> MultiPolygon:
        """The present answer in the raster's CRS."""
        return MultiPolygon() if self.result is None else self.result.geometry

    def click(self) -> None:
        """Add the next click. Raises `NoErrorLeftError` where there is none."""
        truth, mask, (left, top, _, _) = self._masks()
        clicked = np.zeros(truth.shape, np.bool_)
        for x, y in self._clicked_px:
            # Outside the crop, which holds truth and answer, there is no error.
            if 0 <= y - top < truth.shape[0] and 0 <= x - left < truth.shape[1]:
                clicked[y - top, x - left] = True
        click = next_click(truth, mask, clicked=clicked)
        x, y = click.x + left, click.y + top
        self._clicked_px.append((x, y))
        x_map, y_map = self._reader.to_map([(x + 0.5, y + 0.5)])[0]
        self.points_map.append((float(x_map), float(y_map)))
        self.labels.append(int(click.is_foreground))

    def take_back(self) -> None:
        """Forget the last click as a prompt; it is not made again."""
        self.points_map.pop()
        self.labels.pop()

    def iou(self) -> float:
        """IoU of the present answer with the truth, wherever the answer reaches."""
        truth, mask, _ = self._masks()
        return iou(truth, mask)

    def _masks(self) -> tuple[BoolMask, BoolMask, PixelBounds]:
        """Truth and answer on the raster's pixels in bounds that hold both whole."""
        transform = self._reader.transform
        bounds = joined(self._target.bounds_px, pixel_bounds(self.outline, transform))
        return (
            burn(self.truth_geometry, transform, bounds_px=bounds),
            burn(self.outline, transform, bounds_px=bounds),
            bounds,
        )


class TimedScene(Scene):
    """A scene that knows how long it encoded: that is the wait for a view, not for a click."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.reader, scene.engine, scene.cache)
        self.n_encoded, self.encode_s = 0, 0.0

    def embedding(self, window: SquareWindow) -> torch.Tensor:
        """The embedding of a window, timed where it must be computed."""
        if self.is_encoded(window):
            return super().embedding(window)
        start = time.perf_counter()
        embedding = super().embedding(window)
        self.n_encoded += 1
        self.encode_s += time.perf_counter() - start
        return embedding
