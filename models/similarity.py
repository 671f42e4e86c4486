"""Which places of a raster look like given examples: dense features, prototypes, and what was learned from answers.

The features of a cell are SAM's neck and, where it is at hand, the semantic backbone: SAM's tell objects apart, the
backbone's tell kinds apart. Each is taken relative to the mean of the raster and brought to unit length before they
are joined, so that what all cells of a raster share (its haze, its season) says nothing. PerSAM and PerSAM-F (Zhang et
al. 2023, "Personalize Segment Anything Model with One Shot", https://arxiv.org/abs/2305.03048) are written from their
description and serve as the baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from sklearn.cluster import KMeans
from torch.nn import functional

from .errors import EngineError
from .prompts import LOW_RES_PX, Prompts

CELLS = 64
"""Rows and columns of features per window, those of SAM's embedding."""

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_MOST_PROTOTYPES = 4
# The background around an example is counter-evidence only in part: in a dense town it holds the neighbours.
_NEGATIVE_SHARE = 0.25
_LEAST_NORM = 1e-6
# How far answers move the judge. They are no fair sample, as they come from the top of the list: from 0.3 on what is
# not answered yet gets worse probabilities than without learning (docs/similar.md).
_ANSWERS_SPREAD = 0.15


def unit(features: npt.ArrayLike) -> FloatArray:
    """Vectors (..., C) brought to length 1; a vector of zeros stays."""
    vectors = np.asarray(features, np.float32)
    scaled: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _LEAST_NORM)
    return scaled


class CentreEstimate:
    """The mean feature of a raster, from windows spread over it; each window is added once."""

    def __init__(self) -> None:
        self._sums: list[npt.NDArray[np.float64]] = []
        self._n_cells = 0

    def add(self, parts: Sequence[FloatArray], valid: BoolArray) -> None:
        """Take the parts (CELLS, CELLS, C_i) of one window where `valid` (CELLS, CELLS) is set."""
        sums = [part[valid].sum(axis=0, dtype=np.float64) for part in parts]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._n_cells += int(valid.sum())

    def space(self) -> FeatureSpace:
        """What was found. Raises `EngineError` where no window held data."""
        if not self._n_cells:
            raise EngineError("The raster holds no data where similar objects are looked for; choose another extent.")
        return FeatureSpace(tuple((total / self._n_cells).astype(np.float32) for total in self._sums))


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """How parts of features are joined: `centres` (C_i,) are taken off, one per part."""

    centres: tuple[FloatArray, ...]

    def describe(self, parts: Sequence[FloatArray]) -> FloatArray:
        """Join parts (..., C_i) to descriptors (..., sum of C_i) of unit length, every part with the same weight."""
        joined = [unit(part - centre) for part, centre in zip(parts, self.centres, strict=True)]
        return unit(np.concatenate(joined, axis=-1))


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What is looked for and what is not: unit vectors `positive` (P, C), `negative` (N, C), `rejected` (R, C).

    The last positive one is the mean of all examples.
    """

    positive: FloatArray
    negative: FloatArray
    rejected: FloatArray

    @classmethod
    def fit(cls, examples: FloatArray, *, background: FloatArray, rejected: FloatArray) -> Prototypes:
        """From one descriptor (E, C) per example object, cells (B, C) around them, and objects (R, C) refused.

        Up to four prototypes each, by k-means; no background and no refused objects are fine.
        """
        kinds = np.concatenate([representatives(examples), unit(examples.mean(axis=0))[None]])
        return cls(kinds, representatives(background), representatives(rejected))

    def similarity(self, descriptors: FloatArray) -> FloatArray:
        """How much descriptors (..., C) look like the examples, about -1 to 1, as (...).

        The mean of the cosines to the nearest and to the mean example: the nearest alone follows an odd one, the
        mean alone forgets a second kind. Less a share of the cosine to the nearest background.
        """
        cosines = descriptors @ self.positive.T
        found: FloatArray = (cosines.max(axis=-1) + cosines[..., -1]) / 2
        return found - _NEGATIVE_SHARE * self._nearest(descriptors, self.negative)

    def resemblance_to_rejected(self, descriptors: FloatArray) -> FloatArray:
        """How much nearer descriptors (..., C) are to a refused object than to any example: a cosine, 0 for not at all.

        Only by how much: what was refused is often a badly outlined object of the kind looked for.
        """
        excess = self._nearest(descriptors, self.rejected) - (descriptors @ self.positive.T).max(axis=-1)
        nearer: FloatArray = np.maximum(excess, 0) * (len(self.rejected) > 0)
        return nearer

    @staticmethod
    def _nearest(descriptors: FloatArray, vectors: FloatArray) -> FloatArray:
        if not len(vectors):
            return np.zeros(descriptors.shape[:-1], np.float32)
        nearest: FloatArray = np.maximum((descriptors @ vectors.T).max(axis=-1), 0)
        return nearest


def representatives(vectors: FloatArray) -> FloatArray:
    """Unit vectors (K, C), K at most four, that stand for vectors (N, C); so few stand for themselves."""
    distinct, counts = np.unique(vectors, axis=0, return_counts=True)
    if len(distinct) <= _MOST_PROTOTYPES:
        return unit(distinct)
    found = KMeans(_MOST_PROTOTYPES, n_init=3, random_state=0).fit(distinct, sample_weight=counts)
    return unit(found.cluster_centers_)


@dataclass(frozen=True, eq=False)
class Judge:
    """Turns the measures of a candidate into a probability: logistic regression around what holds in general.

    `weights` (D,) and `bias` apply to measures (..., D). `learn` is a maximum a posteriori estimate with a normal prior
    around the general weights, so that it is usable before the first answer and moves with each; scikit-learn's
    penalty pulls to zero instead, hence the few lines of Newton's method.
    """

    weights: npt.NDArray[np.float64]
    bias: float

    def logit(self, measures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Log odds (...) of measures (..., D)."""
        found: npt.NDArray[np.float64] = measures @ self.weights + self.bias
        return found

    def probability(self, measures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Probability (...), 0 to 1, that measures (..., D) are those of an object looked for."""
        found: npt.NDArray[np.float64] = expit(self.logit(measures))
        return found

    def learn(
        self, measures: npt.NDArray[np.float64], is_wanted: BoolArray, *, spread: float = _ANSWERS_SPREAD
    ) -> Judge:
        """The judge after answers: measures (N, D) and whether each was accepted (N,).

        `spread`: standard deviation of the prior around the present weights and bias.
        """
        if not len(measures):
            return self
        x = np.column_stack([measures, np.ones(len(measures))])
        prior = np.append(self.weights, self.bias)
        found = prior.copy()
        target = is_wanted.astype(np.float64)

        def loss(w: npt.NDArray[np.float64]) -> float:
            z = x @ w
            return float((np.logaddexp(0, z) - target * z).sum() + 0.5 * ((w - prior) ** 2).sum() / spread**2)

        # Convex and tiny; with halved steps Newton's method cannot run away.
        for _ in range(50):
            p = expit(x @ found)
            gradient = x.T @ (p - target) + (found - prior) / spread**2
            hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(len(prior)) / spread**2
            step = np.linalg.solve(hessian, gradient)
            scale, before = 1.0, loss(found)
            while loss(found - scale * step) > before and scale > 1e-6:
                scale /= 2
            found = found - scale * step
            if np.abs(step).max() * scale < 1e-6:
                break
        return Judge(found[:-1], float(found[-1]))


def cell_shares(mask: BoolArray) -> FloatArray:
    """Share (CELLS, CELLS) of each cell that a mask (256, 256) of the decoder's grid covers, 0 to 1."""
    step = LOW_RES_PX // CELLS
    shares: FloatArray = mask.reshape(CELLS, step, CELLS, step).mean(axis=(1, 3), dtype=np.float32)
    return shares


def mask_descriptor(descriptors: FloatArray, shares: FloatArray) -> FloatArray:
    """Unit descriptor (C,) of a mask: mean of cells (CELLS, CELLS, C) weighted by `shares` (CELLS, CELLS)."""
    rows, cols = np.nonzero(shares)
    return unit(shares[rows, cols] @ descriptors[rows, cols])


def persam_target(feature: FloatArray, shares: FloatArray, *, with_maximum: bool) -> FloatArray:
    """PerSAM's target embedding, unit (C,), from features (CELLS, CELLS, C) of the example under `shares`.

    The mean over the mask; PerSAM-F (`with_maximum`) averages it with the maximum per channel (persam_f.py).
    """
    inside = shares > 0
    target = feature[inside].mean(axis=0)
    return unit(0.5 * target + 0.5 * feature[inside].max(axis=0) if with_maximum else target)


def guided_decode(
    model: Any, embedding: torch.Tensor, prompts: Sequence[Prompts], *, guidance: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """PerSAM's first pass: one mask per object, the decoder led to what resembles the example.

    `model`: a `SamModel`; `embedding`: (256, 64, 64); prompts of one kind. `guidance` (4096,), the normalised
    similarity through a sigmoid, is added to the attention of the tokens to the image before a second softmax, and
    `target` (256,), the mean feature of the example, to every token before each layer. Returns logits
    (N, 1, 256, 256) and predicted IoU (N, 1).
    """
    decoder, transformer = model.mask_decoder, model.mask_decoder.transformer
    cells_pe = model.cells_pe
    cells = embedding.to(cells_pe.device).flatten(1).t().float() + model._embed_dense(prompts)  # (1 or N, S, C)
    sparse = model._embed_sparse(prompts)
    cells = cells.expand(len(sparse), -1, -1)
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    # Added in place there, hence to the tokens' positional encoding too, and twice before the second layer.
    tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1) + target
    queries = tokens
    for number, layer in enumerate(transformer.layers):
        if number:
            queries = queries + target
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            queries = queries + layer.self_attn(q=queries + tokens, k=queries + tokens, v=queries)
        queries = layer.norm1(queries)
        keys = cells + cells_pe
        attention = layer.cross_attn_token_to_image
        queries = layer.norm2(queries + _guided_attention(attention, queries + tokens, keys, cells, guidance))
        queries = layer.norm3(queries + layer.mlp(queries))
        cells = layer.norm4(cells + layer.cross_attn_image_to_token(q=keys, k=queries + tokens, v=queries))
    last = transformer.final_attn_token_to_image
    queries = transformer.norm_final_attn(queries + last(q=queries + tokens + target, k=cells + cells_pe, v=cells))
    fine = decoder.output_upscaling(cells.transpose(1, 2).reshape(len(sparse), -1, CELLS, CELLS))  # (N, 32, 256, 256)
    hyper = decoder.output_hypernetworks_mlps[0](queries[:, 1])
    logits = torch.einsum("nc,nchw->nhw", hyper, fine)
    return logits[:, None], decoder.iou_prediction_head(queries[:, 0])[:, :1]


def _guided_attention(
    attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, guidance: torch.Tensor
) -> torch.Tensor:
    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:-1], attention.num_heads, -1).transpose(1, 2)

    q, k, v = heads(attention.q_proj(queries)), heads(attention.k_proj(keys)), heads(attention.v_proj(values))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    weights = (weights + guidance).softmax(-1)
    mixed: torch.Tensor = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return mixed


def mixing_weights(logits: FloatArray, mask: BoolArray, *, n_steps: int = 1000) -> FloatArray:
    """PerSAM-F's three mask weights (3,), which sum to one, from the example.

    `logits` (3, 256, 256): the three masks that the decoder offers at the example; `mask` (256, 256): the example.
    AdamW at 1e-3 with a cosine schedule, dice plus focal loss (alpha 0.25, gamma 2), weights from 1/3 (persam_f.py).
    """
    offered = torch.from_numpy(np.ascontiguousarray(logits)).flatten(1)
    target = torch.from_numpy(np.ascontiguousarray(mask)).flatten().float()
    free = torch.full((2,), 1 / 3, requires_grad=True)
    optimizer = torch.optim.AdamW([free], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    with torch.enable_grad():
        for _ in range(n_steps):
            mixed = torch.cat([1 - free.sum(0, keepdim=True), free]) @ offered
            loss = _dice_loss(mixed, target) + _focal_loss(mixed, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            schedule.step()
    first, second = free.detach().tolist()
    return np.array([1 - first - second, first, second], np.float32)


def _dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def _focal_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    agreement = p * target + (1 - p) * (1 - target)
    balance = 0.25 * target + 0.75 * (1 - target)
    return (balance * cross_entropy * (1 - agreement) ** 2).mean()
