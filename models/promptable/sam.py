"""The Segment Anything family: an image encoder, a prompt encoder and a mask decoder.

Kirillov et al. 2023 (https://arxiv.org/abs/2304.02643). The modules are those of the `segment-anything` package,
so that its checkpoints fit; `decode.decode_masks` does the decoder's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from ..card import ModelCard
from ..errors import CheckpointError
from ..prompts import Prompts
from .decode import DecodedFeatures, decode_features, decode_masks

EMBEDDING_CHANNELS = 256
_CELLS = 64


@runtime_checkable
class PreparableEncoder(Protocol):
    """An encoder that has a faster form for inference."""

    def prepare_for_inference(self, device: torch.device) -> None:
        """Take that form; irreversible."""


class SamModel(nn.Module):
    """A promptable model (`base.PromptableModel`) with SAM's decoder behind any encoder to (B, 256, 64, 64).

    `convert_key` maps a key of the published state dict to ours, or to None where the weight is not used.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    cells_pe: torch.Tensor

    def __init__(
        self, card: ModelCard, image_encoder: nn.Module, *, convert_key: Callable[[str], str | None] = str
    ) -> None:
        super().__init__()
        self.card = card
        self.image_encoder = image_encoder
        self._convert_key = convert_key
        # Sizes: facebookresearch/segment-anything build_sam.py, the same for every member of the family.
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(_CELLS, _CELLS),
            input_image_size=(card.input_px, card.input_px),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
        self.register_buffer("pixel_mean", torch.tensor(card.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(card.std).view(-1, 1, 1), persistent=False)
        self.register_buffer("cells_pe", torch.zeros(1, _CELLS**2, EMBEDDING_CHANNELS), persistent=False)
        self.eval()

    def load_weights(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take weights in the published layout.

        Raises `CheckpointError` naming the first keys that are missing, unknown or of another shape.
        """
        converted = {new: value for key, value in state_dict.items() if (new := self._convert_key(key)) is not None}
        own = self.state_dict()
        wrong = sorted(own.keys() ^ converted.keys())
        wrong += sorted(key for key in own.keys() & converted.keys() if own[key].shape != converted[key].shape)
        if wrong:
            raise CheckpointError(
                f"The weights do not fit {self.card.name}: {len(wrong)} keys differ ({', '.join(wrong[:3])}); "
                f"choose the file {self.card.checkpoint.file_name}."
            )
        self.load_state_dict(converted)
        dense_pe = self.prompt_encoder.get_dense_pe().detach()  # (1, C, 64, 64)
        self.cells_pe.copy_(dense_pe.flatten(2).transpose(1, 2))

    def prepare_for_inference(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to `device` for answers without gradients, the encoder in `dtype`, the rest in fp32."""
        self.requires_grad_(False)
        if isinstance(self.image_encoder, PreparableEncoder):
            self.image_encoder.prepare_for_inference(device)
        self.to(device)
        # Channels-last convolutions were measured faster on CPU (fp32 and bf16) for the TinyViT encoder.
        self.image_encoder.to(dtype=dtype).to(memory_format=torch.channels_last)

    def embed(self, chips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Encode chips, each (3, rows, cols) uint8; rows, cols <= 1024. Returns (B, 256, 64, 64), the encoder's dtype.

        Each chip is normalised, then padded with zeros right and below to the input size, as in the reference.
        """
        side = self.card.input_px
        dtype = next(self.image_encoder.parameters()).dtype
        batch = torch.zeros(len(chips), 3, side, side, dtype=dtype, device=self.pixel_mean.device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for row, chip in zip(batch, chips, strict=True):
            pixels = chip.to(self.pixel_mean.device, torch.float32)
            row[:, : chip.shape[1], : chip.shape[2]] = (pixels - self.pixel_mean) / self.pixel_std
        embedding: torch.Tensor = self.image_encoder(batch)
        return embedding

    def predict(
        self, embedding: torch.Tensor, prompts: Sequence[Prompts], *, multimask: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts of N objects that all give the same kinds and numbers of prompts.

        `embedding`: (256, 64, 64). Returns float32 logits (N, M, 256, 256) and predicted IoU (N, M).
        """
        sparse, cells = self._prompted(embedding, prompts)
        return decode_masks(self.mask_decoder, cells, self.cells_pe, sparse, multimask=multimask)

    def predict_features(self, embedding: torch.Tensor, prompts: Prompts) -> DecodedFeatures:
        """Decode one object down to the features of all four masks (0 the single one, 1 to 3 the alternatives)."""
        sparse, cells = self._prompted(embedding, [prompts])
        every = range(self.mask_decoder.num_mask_tokens)
        return decode_features(self.mask_decoder, cells, self.cells_pe, sparse, wanted=every)

    def _prompted(self, embedding: torch.Tensor, prompts: Sequence[Prompts]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedded points and boxes (N, P, C), and the cells (N or 1, S, C) with the previous masks on them."""
        sparse = self._embed_sparse(prompts)
        # Rows of channels first, in the embedding's own half precision: the copy is the costly part.
        return sparse, embedding.to(sparse.device).flatten(1).t().contiguous().float() + self._embed_dense(prompts)

    def _embed_sparse(self, prompts: Sequence[Prompts]) -> torch.Tensor:
        """Points and boxes -> (N, P, C). A padding point stands in where there is no box, as in the reference."""
        device = self.cells_pe.device
        points = torch.from_numpy(np.stack([p.points_xy for p in prompts])).to(device)
        labels = torch.from_numpy(np.stack([p.labels for p in prompts])).to(device)
        has_box = prompts[0].box_xyxy is not None
        encoder = self.prompt_encoder
        parts = []
        if points.shape[1]:
            # The reference counts whole pixels and adds half a pixel; our points already name places.
            parts.append(encoder._embed_points(points - 0.5, labels, pad=not has_box))
        if has_box:
            boxes = torch.from_numpy(np.stack([p.box_xyxy for p in prompts if p.box_xyxy is not None])).to(device)
            parts.append(encoder._embed_boxes(boxes - 0.5))
        if not parts:
            return torch.zeros(len(prompts), 0, EMBEDDING_CHANNELS, device=device)
        return torch.cat(parts, dim=1)

    def _embed_dense(self, prompts: Sequence[Prompts]) -> torch.Tensor:
        """Previous masks -> (N, S, C), or the learned 'no mask' (1, 1, C) for all objects at once."""
        masks = [p.mask_logits for p in prompts if p.mask_logits is not None]
        encoder = self.prompt_encoder
        if not masks:
            none: torch.Tensor = encoder.no_mask_embed.weight.view(1, 1, -1)
            return none
        stacked = torch.from_numpy(np.stack(masks)).to(self.cells_pe.device, torch.float32)
        dense: torch.Tensor = encoder._embed_masks(stacked.unsqueeze(1))
        return dense.flatten(2).transpose(1, 2)


def _vit(card: ModelCard, *, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> SamModel:
    encoder = ImageEncoderViT(
        depth=depth,
        embed_dim=dim,
        img_size=card.input_px,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_blocks,
        window_size=14,
        out_chans=EMBEDDING_CHANNELS,
    )
    return SamModel(card, encoder)


def build_sam_vit_b(card: ModelCard) -> SamModel:
    """Return SAM with the ViT-B encoder, random weights."""
    return _vit(card, dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))


def build_sam_vit_l(card: ModelCard) -> SamModel:
    """Return SAM with the ViT-L encoder, random weights."""
    return _vit(card, dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))


def build_sam_vit_h(card: ModelCard) -> SamModel:
    """Return SAM with the ViT-H encoder, random weights."""
    return _vit(card, dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
