"""The one protocol of promptable models: encode a chip once, ask it many things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from ..card import ModelCard
from ..prompts import Prompts
from .decode import DecodedFeatures


class PromptableModel(Protocol):
    """What `InferenceEngine` and the adaptation methods need of a promptable model (an `nn.Module`)."""

    card: ModelCard

    def load_weights(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take weights in the published layout. Raises `CheckpointError` that names the keys which do not fit."""

    def prepare_for_inference(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to the device and bring the encoder to the fastest form that gives the same answers."""

    def embed(self, chips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Encode chips: each (3, rows, cols) uint8 with rows, cols <= card.input_px, padded right and below.

        Returns (B, 256, 64, 64) on the model's device.
        """

    def predict(
        self, embedding: torch.Tensor, prompts: Sequence[Prompts], *, multimask: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts of N objects against one embedding (256, 64, 64).

        Returns logits (N, M, 256, 256) over the padded chip and predicted IoU (N, M); M is 3 with `multimask`, else 1.
        """

    def predict_features(self, embedding: torch.Tensor, prompts: Prompts) -> DecodedFeatures:
        """Decode one object down to the features of all four masks; index 0 is the mask without ambiguity."""
