"""How far an adaptation is: model, image, labels and the results of the steps, kept in the project file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qgis.core import QgsProject

from .adapt_words import ADAPT, JUDGE, MAP, STEPS, TUNE, Results

_SCOPE, _KEY = "SegAdapt", "adaptation"
_PATHS = ("OUTPUT", "KEPT", "REPORT", "MODEL")


@dataclass
class Story:
    """One model and one image. Ids are those of layers of the project, "" for none.

    `labels_id` holds what is learned from, `check_id` what models are measured by; `source_id` and `source_labels_id`
    are an image of the model's own place and its labels, to be rehearsed. `results`: by step; of those that make models
    the one whose model is newest comes last.
    """

    model: str = ""
    raster_id: str = ""
    labels_id: str = ""
    check_id: str = ""
    source_id: str = ""
    source_labels_id: str = ""
    results: dict[str, Results] = field(default_factory=dict)

    def record(self, step: str, results: Mapping[str, Any], *, model: str) -> Results:
        """Take in what a step gave with a model, without what cannot be stored, and return what is kept of it."""
        before = self.results.get(step, {})
        kept = {name: value for name, value in results.items() if isinstance(value, str | int | float | list)}
        kept["MODEL"] = model
        if step in (ADAPT, TUNE):
            # A model that did not get better changes neither the one of the round before nor which one is the newest.
            kept["KEPT"] = kept.get("OUTPUT", "") if kept.get("IS_ADAPTED") else before.get("KEPT", "")
            kept["ROUND"] = before.get("ROUND", 0) + 1
            if kept.get("IS_ADAPTED"):
                self.results.pop(step, None)
        self.results[step] = kept
        return kept

    @property
    def base(self) -> str:
        """The model that has seen no labels of the image: what labels are learned with, round after round."""
        return self.results.get(ADAPT, {}).get("KEPT") or self.model

    @property
    def newest(self) -> str:
        """The newest model that was kept, the source model where none was."""
        made = [result["KEPT"] for step, result in self.results.items() if step in (ADAPT, TUNE) and result.get("KEPT")]
        return made[-1] if made else self.model

    def is_outdated(self, step: str) -> bool:
        """Say whether a result was made with a model that a newer one has replaced."""
        return step in (MAP, JUDGE) and self.results.get(step, {}).get("MODEL", self.newest) != self.newest


class Stories:
    """All that was begun in a project, and which of it is at hand: another model or image has a story of its own."""

    def __init__(self) -> None:
        self._all: list[Story] = []
        self.current = Story()

    def choose(self, *, model: str, raster_id: str) -> None:
        """Go on with a model and an image, or begin with them."""
        if (model, raster_id) == (self.current.model, self.current.raster_id):
            return
        found = next((one for one in self._all if (one.model, one.raster_id) == (model, raster_id)), None)
        # Labels belong to the image, whatever the model; the place that a model was made for belongs to the model.
        same_image = self.current if raster_id == self.current.raster_id else Story()
        same_model = self.current if model == self.current.model else Story()
        self.current = found or Story(
            model,
            raster_id,
            same_image.labels_id,
            same_image.check_id,
            same_model.source_id,
            same_model.source_labels_id,
        )
        self.write()

    def write(self) -> None:
        """Keep everything in the project; files in its folder by their relative paths."""
        # The one at hand is the last. Stories are told apart by what they are, not by what is in them.
        self._all = [*(one for one in self._all if one is not self.current), self.current]
        told = [one for one in self._all if one is self.current or one.results]
        text = json.dumps([_with_paths(asdict(one), QgsProject.instance().writePath) for one in told])
        if text != QgsProject.instance().readEntry(_SCOPE, _KEY, "")[0]:
            QgsProject.instance().writeEntry(_SCOPE, _KEY, text)

    def read(self) -> None:
        """Take what the project holds, without results whose files are gone."""
        text, _ = QgsProject.instance().readEntry(_SCOPE, _KEY, "")
        try:
            stored = [_with_paths(one, QgsProject.instance().readPath) for one in json.loads(text or "[]")]
            self._all = [Story(**one) for one in stored]
        except (ValueError, TypeError, AttributeError):
            # Edited by hand or by another version: the steps can be done again, the project must open.
            self._all = []
        for one in self._all:
            one.results = {step: _existing(result) for step, result in one.results.items() if _is_whole(step, result)}
        self.current = self._all[-1] if self._all else Story()


def _with_paths(story: dict[str, Any], change: Any) -> dict[str, Any]:
    """The same with other paths."""
    results = {
        step: {
            name: change(value) if name in _PATHS and isinstance(value, str) and value else value
            for name, value in result.items()
        }
        for step, result in story["results"].items()
    }
    return {**story, "model": change(story["model"]) if story["model"] else "", "results": results}


def _is_whole(step: str, result: Results) -> bool:
    """Whether the file that a step made is there; a layer of regions is looked for in the project when it is shown."""
    return step in STEPS and (step not in (ADAPT, TUNE, MAP) or Path(result.get("OUTPUT", "")).is_file())


def _existing(result: Results) -> Results:
    gone = [name for name in ("KEPT", "REPORT") if result.get(name) and not Path(result[name]).is_file()]
    return {name: value for name, value in result.items() if name not in gone}
