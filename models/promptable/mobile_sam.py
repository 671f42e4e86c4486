"""MobileSAM: the prompt encoder and mask decoder of SAM behind a TinyViT image encoder.

Zhang et al. 2023, "Faster Segment Anything" (https://arxiv.org/abs/2306.14289). The encoder is timm's TinyViT
with the last stage's stride removed (so that 1024 px become 64 x 64 cells, as SAM's decoder wants) and SAM's
neck on top; `_timm_key` brings the published weights to timm's names.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.tiny_vit import Attention, ConvNorm, TinyVit
from torch import nn

from ..card import ModelCard
from .sam import EMBEDDING_CHANNELS, SamModel

# ChaoningZhang/MobileSAM mobile_sam/build_sam.py: the 5 M-parameter TinyViT.
_EMBED_DIMS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)


class TinyVitEncoder(nn.Module):
    """(B, 3, 1024, 1024) normalised pixels -> (B, 256, 64, 64) embedding."""

    def __init__(self) -> None:
        super().__init__()
        vit = TinyVit(
            num_classes=0,
            embed_dims=_EMBED_DIMS,
            depths=_DEPTHS,
            num_heads=_HEADS,
            window_sizes=_WINDOWS,
            drop_path_rate=0.0,
        )
        last: Any = vit.stages[-1]
        last.downsample.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = vit.patch_embed, vit.stages
        channels = EMBEDDING_CHANNELS
        self.neck = nn.Sequential(
            nn.Conv2d(_EMBED_DIMS[-1], channels, kernel_size=1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode a batch of padded, normalised chips."""
        embedding: torch.Tensor = self.neck(self.stages(self.patch_embed(pixels)))
        return embedding

    def prepare_for_inference(self, device: torch.device) -> None:
        """Fold batch normalisations into convolutions and choose the attention kernel: the same numbers, faster."""
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(module, name, child.fuse())  # type: ignore[no-untyped-call]
            if isinstance(module, Attention) and device.type == "cpu":
                # Measured on CPU: SDPA with a bias takes torch's slow path there, 20 % of the encoder's time.
                module.fused_attn = False


def build_mobile_sam(card: ModelCard) -> SamModel:
    """Return MobileSAM with random weights; `SamModel.load_weights` takes the published state dict."""
    return SamModel(card, TinyVitEncoder(), convert_key=_timm_key)


def _timm_key(key: str) -> str | None:
    """Name in timm of a published weight; None for what the model does not use (a classifier, index tables)."""
    if key.startswith(("image_encoder.head.", "image_encoder.norm_head.")) or key.endswith("attention_bias_idxs"):
        return None
    if not key.startswith("image_encoder."):
        return key
    # The published code downsamples at the end of a stage, timm at the start of the next one.
    key = re.sub(r"\.layers\.(\d)\.downsample\.", lambda m: f".stages.{int(m[1]) + 1}.downsample.", key)
    key = key.replace(".layers.", ".stages.")
    key = key.replace(".patch_embed.seq.0.", ".patch_embed.conv1.").replace(
        ".patch_embed.seq.2.", ".patch_embed.conv2."
    )
    return re.sub(r"\.c\.weight$", ".conv.weight", key)
