"""A cheap engine whose answers are known: the bright area (connected, on the decoder's grid) around the first point.

Loaded by path (see conftest.py), because tests are no package; needs `segadapt` in `sys.modules`.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from rasterio.features import rasterize, shapes
from segadapt.models.engine import MaskPrediction
from segadapt.models.promptable.decode import DecodedFeatures

BRIGHT = 128
CELLS = 256


class FakeEngine:
    """Has the attributes and methods of `InferenceEngine` that jobs use; `calls` counts what it was asked."""

    def __init__(self):
        self.card = SimpleNamespace(name="fake", input_px=1024)
        self.checkpoint_sha256 = "0" * 64
        self.device = "cpu"
        self.precision = "fp32"
        self.chip_sizes = []
        self.prompts = []

    @property
    def n_embedded(self):
        return len(self.chip_sizes)

    def embed(self, chips, *, progress=None):
        self.chip_sizes += [chip.shape[1:] for chip in chips]
        return [self._embed(chip) for chip in chips]

    def _embed(self, chip):
        step = self.card.input_px // CELLS
        bright = np.zeros((CELLS, CELLS), np.uint8)
        cells = chip[0, step // 2 :: step, step // 2 :: step] > BRIGHT  # the chip's value in the middle of each cell
        bright[: cells.shape[0], : cells.shape[1]] = cells
        found = [outline for outline, value in shapes(bright, mask=bright > 0, connectivity=4)]
        labels = np.zeros((CELLS, CELLS), np.int32)
        if found:
            numbered = [(outline, number) for number, outline in enumerate(found, 1)]
            labels = rasterize(numbered, out_shape=labels.shape, dtype="int32")
        embedding = torch.zeros(256, 64, 64, dtype=torch.float16)
        embedding.view(-1)[: CELLS * CELLS] = torch.from_numpy(labels.ravel().astype(np.float16))
        return embedding

    def predict(self, embedding, prompts, *, multimask=False):
        self.prompts += prompts
        labels = embedding.reshape(-1)[: CELLS * CELLS].reshape(CELLS, CELLS).numpy()
        n_masks = 3 if multimask else 1
        logits = np.full((len(prompts), n_masks, CELLS, CELLS), -8, np.float32)
        iou = np.zeros((len(prompts), n_masks), np.float32)
        for i, prompt in enumerate(prompts):
            label = labels[self._cell(prompt)]
            if label:
                # The best of several masks is the last one, so that taking the first one is noticed.
                logits[i, -1][labels == label] = 8
                iou[i, -1] = 0.95
        return MaskPrediction(logits, iou)

    def predict_features(self, embedding, prompts):
        """The masks as features: as many channels as masks carry their logits, in the decoder's order of cells."""
        one, three = self.predict(embedding, [prompts]), self.predict(embedding, [prompts], multimask=True)
        self.prompts.pop()
        logits = torch.from_numpy(np.concatenate([one.logits[0], three.logits[0]]))
        cells = logits.view(4, 64, 2, 2, 64, 2, 2).permute(1, 4, 2, 5, 3, 6, 0).reshape(1, CELLS * CELLS, 4)
        fine = torch.cat([cells, torch.zeros(1, CELLS * CELLS, 28)], dim=2)
        iou = torch.from_numpy(np.concatenate([one.iou[0], three.iou[0]]))[None]
        return DecodedFeatures(fine, torch.eye(32, 4)[None], iou)

    def _cell(self, prompt):
        if len(prompt.points_xy):
            x, y = prompt.points_xy[0]
        else:
            x, y = prompt.box_xyxy.reshape(2, 2).mean(axis=0)
        step = self.card.input_px / CELLS
        return min(CELLS - 1, int(y / step)), min(CELLS - 1, int(x / step))

    def close(self):
        pass
