"""SAM's mask decoder as one pass of matrix products, for many objects against one embedding.

The parameters stay in `segment_anything`'s modules; only the order of the arithmetic differs, and the answers
agree to rounding (`tests/test_models/test_parity.py`). Three rearrangements save most of the time:

* attention between T tokens (about 7) and 4096 image cells never projects the cells: the projection matrix moves
  to the side of the tokens, `(q Wk) x^T` instead of `q (x Wk^T)^T`;
* a bias of the keys shifts all scores of a query alike, so softmax drops it;
* a transposed convolution with kernel 2 and stride 2 is a matrix product per cell; the 4 x 4 sub-cells of a
  cell are put in their places once, at the end, on the masks that were asked for.

Letters: N objects, T tokens, S = 64 * 64 image cells, C = 256 channels, H heads of d channels, M masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own custom

_CELLS = 64  # rows and columns of the embedding
_UP = 4  # low-resolution cells of the logits per embedding cell and axis


def decode_masks(
    decoder: Any,
    cells: torch.Tensor,
    cells_pe: torch.Tensor,
    sparse: torch.Tensor,
    *,
    multimask: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode N objects.

    `cells`: (N or 1, S, C) embedding plus dense prompt, row-major; `cells_pe`: (1, S, C) its positional encoding;
    `sparse`: (N, P, C) embedded points and boxes. Returns logits (N, M, 256, 256) and predicted IoU (N, M) with
    M = 3 when `multimask`, else 1.
    """
    wanted = range(1, decoder.num_mask_tokens) if multimask else range(1)
    decoded = decode_features(decoder, cells, cells_pe, sparse, wanted=wanted)
    return place_cells(decoded.fine @ decoded.hyper), decoded.iou


class DecodedFeatures(NamedTuple):
    """What the masks are made of: `place_cells(fine @ hyper)` are the logits.

    `fine`: (N, S * 16, 32) image features, four times finer than the embedding; `hyper`: (N, 32, M) one direction
    per mask; `iou`: (N, M) predicted IoU.
    """

    fine: torch.Tensor
    hyper: torch.Tensor
    iou: torch.Tensor


def decode_features(
    decoder: Any, cells: torch.Tensor, cells_pe: torch.Tensor, sparse: torch.Tensor, *, wanted: Sequence[int]
) -> DecodedFeatures:
    """Decode N objects for the masks `wanted` (0 the single one, 1 to 3 those of an ambiguous prompt)."""
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (1 + masks, C)
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)  # (N, T, C)
    queries, cells = _two_way(decoder.transformer, tokens, cells, cells_pe)
    hyper = torch.stack([decoder.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in wanted], dim=2)
    iou = decoder.iou_prediction_head(queries[:, 0])[:, list(wanted)]
    return DecodedFeatures(_upscale(decoder.output_upscaling, cells), hyper, iou)


def place_cells(values: torch.Tensor) -> torch.Tensor:
    """Bring values of the finest cells, (N, S * 16, c) in the decoder's order, to a picture (N, c, 256, 256)."""
    n, _, channels = values.shape
    # Axes: rows, columns of the cell; row, column of the half cell; row, column of the quarter cell.
    picture = values.view(n, _CELLS, _CELLS, 2, 2, 2, 2, channels).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return picture.reshape(n, channels, _CELLS * _UP, _CELLS * _UP)


def _two_way(
    transformer: Any, tokens: torch.Tensor, cells: torch.Tensor, cells_pe: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _self_attention(layer.self_attn, queries, queries)
        else:
            queries = queries + _self_attention(layer.self_attn, queries + tokens, queries)
        queries = layer.norm1(queries)
        keys = cells + cells_pe
        queries = layer.norm2(
            queries + _tokens_to_cells(layer.cross_attn_token_to_image, queries + tokens, keys, cells)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        cells = layer.norm4(cells + _cells_to_tokens(layer.cross_attn_image_to_token, keys, queries + tokens, queries))
    attention = _tokens_to_cells(transformer.final_attn_token_to_image, queries + tokens, cells + cells_pe, cells)
    return transformer.norm_final_attn(queries + attention), cells


def _heads(projected: torch.Tensor, n_heads: int) -> torch.Tensor:
    return projected.view(*projected.shape[:-1], n_heads, -1).transpose(1, 2)  # (N, T, H * d) -> (N, H, T, d)


def _self_attention(attention: Any, queries: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    heads = attention.num_heads
    mixed = F.scaled_dot_product_attention(
        _heads(attention.q_proj(queries), heads),
        _heads(attention.k_proj(queries), heads),
        _heads(attention.v_proj(values), heads),
    )
    projected: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def _tokens_to_cells(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of the tokens (N, T, C) to the cells; `keys`, `values`: (N or 1, S, C)."""
    heads = attention.num_heads
    queries = _heads(attention.q_proj(queries), heads)  # (N, H, T, d)
    scale = queries.shape[-1] ** -0.5
    key_weight = attention.k_proj.weight.unflatten(0, (heads, -1))  # (H, d, C)
    folded = (queries * scale @ key_weight).flatten(1, 2)  # (N, H * T, C)
    weights = (folded @ keys.transpose(1, 2)).softmax(-1)  # (N, H * T, S)
    mixed = (weights @ values).unflatten(1, (heads, -1))  # (N, H, T, C)
    value_weight = attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # (H, C, d)
    projected = (mixed @ value_weight).transpose(1, 2).flatten(2) + attention.v_proj.bias  # (N, T, H * d)
    out: torch.Tensor = attention.out_proj(projected)
    return out


def _cells_to_tokens(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of the cells to the tokens; `queries`: (N or 1, S, C), `keys`, `values`: (N, T, C)."""
    heads = attention.num_heads
    keys = _heads(attention.k_proj(keys), heads)  # (N, H, T, d)
    keys = keys * keys.shape[-1] ** -0.5
    query_weight = attention.q_proj.weight.unflatten(0, (heads, -1))  # (H, d, C)
    query_bias = attention.q_proj.bias.unflatten(0, (heads, -1)).unsqueeze(-1)  # (H, d, 1)
    folded = (keys @ query_weight).flatten(1, 2)  # (N, H * T, C)
    scores = folded @ queries.transpose(1, 2) + (keys @ query_bias).flatten(1, 2)  # (N, H * T, S)
    weights = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)  # over the tokens of each head
    values = _heads(attention.v_proj(values), heads)  # (N, H, T, d)
    out_weight = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (H, d, C)
    # The weights of a head sum to one, so each head may carry its share of the output's bias.
    folded_values = (values @ out_weight + attention.out_proj.bias / heads).flatten(1, 2)  # (N, H * T, C)
    out: torch.Tensor = weights.transpose(1, 2) @ folded_values
    return out


def _upscale(upscaling: Any, cells: torch.Tensor) -> torch.Tensor:
    """Upsample cells (N, S, C) four times: (N, S * 16, 32), the 16 parts of a cell one after another."""
    first, norm, gelu, second, last_gelu = upscaling
    fine = _transposed_convolution(first, cells)  # (N, S, 4, 64)
    fine = gelu(F.layer_norm(fine, fine.shape[-1:], norm.weight, norm.bias, norm.eps))
    finest: torch.Tensor = last_gelu(_transposed_convolution(second, fine))  # (N, S, 4, 4, 32)
    return finest.flatten(1, 3)


def _transposed_convolution(convolution: Any, x: torch.Tensor) -> torch.Tensor:
    """Kernel 2, stride 2 on channels-last cells: (..., c_in) -> (..., 4, c_out), sub-cells row-major."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * c_out, c_in)
    fine: torch.Tensor = F.linear(x, weight, convolution.bias.repeat(4))
    return fine.view(*x.shape[:-1], 4, -1)
