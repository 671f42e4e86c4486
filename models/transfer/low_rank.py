"""Low-rank adaptation (LoRA) of the encoder by `peft`: small products beside frozen weights, folded in afterwards.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Linear layers take it in transformers, 1x1 convolutions, which are
linear layers over every pixel, in convolutional encoders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..semantic.package import LORA_A, LORA_B
from ..semantic.segmenter import Segmenter
from .base import TransferError

_NAME = "default"
_PREFIX = "network.encoder."


def low_rank_layers(model: Segmenter, *, n_blocks: int | None = None) -> list[str]:
    """Names within the encoder of the layers that can take a low-rank product; of the last `n_blocks` blocks only.

    Raises `TransferError` where there is none.
    """
    within = {id(inner) for block in model.encoder_blocks()[-(n_blocks or 0) :] for inner in block.modules()}
    found = [
        name
        for name, module in model.encoder.named_modules()
        if (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.kernel_size == (1, 1)))
        and getattr(module, "groups", 1) == 1
        and (n_blocks is None or id(module) in within)
    ]
    if not found:
        raise TransferError(
            f"The encoder '{model.card.encoder}' has no linear layer or 1x1 convolution there; choose the layers norm."
        )
    return found


def inject_low_rank(model: Segmenter, layers: list[str], *, rank: int) -> list[nn.Parameter]:
    """Put products of `rank` beside the encoder's `layers`, in place, and return their factors, which learn.

    At first the products are zero. The model can be trained, but only `low_rank_tensors` can be saved. Raises
    `TransferError` for a rank under 1.
    """
    if rank < 1:
        raise TransferError(f"A rank of {rank}; give 1 or more, 8 is usual.")
    from peft import LoraConfig, inject_adapter_in_model

    # The scale alpha / rank is 1, so that the product itself is what is added.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=layers)
    encoder: Any = model.encoder
    inject_adapter_in_model(config, encoder, adapter_name=_NAME)
    return [parameter for name, parameter in model.encoder.named_parameters() if ".lora_" in name]


def low_rank_tensors(model: Segmenter, layers: list[str]) -> dict[str, torch.Tensor]:
    """The factors under the names that a package gives them: (rank, in) and (out, rank) of each layer's weight."""
    tensors: dict[str, torch.Tensor] = {}
    for name in layers:
        layer: Any = model.encoder.get_submodule(name)
        first, second = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
        tensors[f"{_PREFIX}{name}.weight{LORA_A}"] = first.detach().flatten(1).cpu().clone()
        tensors[f"{_PREFIX}{name}.weight{LORA_B}"] = second.detach().flatten(1).cpu().clone()
    return tensors
