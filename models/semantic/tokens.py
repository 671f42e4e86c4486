"""Learnable tokens that refine what an encoder makes of an image, while the encoder itself stays as it is.

Rein (Wei et al. 2024, "Stronger, Fewer, & Superior", https://arxiv.org/abs/2312.04265; CrossEarth's code for remote
sensing): every cell of a feature map looks at a few tokens and is moved by what it finds there. Rein sits between the
layers of a plain transformer with one width; here it sits behind each stage of the encoder, and its matrices are of
low rank because the stages of a pyramid differ in width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ModelError

TOKENS = "tokens"
"""Where a card's options say that a model has tokens, and what their tensors' names start with."""
N_TOKENS, RANK = 16, 8


class StageTokens(nn.Module):
    """Tokens for each stage of an encoder of the widths `channels`, behind `n_untouched` stages that have none.

    At first the features pass as they are. Raises `ModelError` for fewer than two tokens or a rank under one.
    """

    def __init__(
        self, channels: Sequence[int], *, n_untouched: int, n_tokens: int = N_TOKENS, rank: int = RANK
    ) -> None:
        super().__init__()
        if n_tokens < 2 or rank < 1:
            raise ModelError(f"{n_tokens} tokens of rank {rank}; give at least 2 tokens and a rank of 1.")
        self._n_untouched = n_untouched
        self.stages = nn.ModuleList(_Tokens(width, n_tokens=n_tokens, rank=rank) for width in channels)

    def forward(self, stages: Any) -> Any:
        """What the encoder gave, refined: a list of maps (B, channels, h, w), or a tuple that starts with one."""
        maps = stages[0] if isinstance(stages, tuple) else stages
        refined = [
            *maps[: self._n_untouched],
            *(tokens(x) for tokens, x in zip(self.stages, maps[self._n_untouched :], strict=True)),
        ]
        return (refined, *stages[1:]) if isinstance(stages, tuple) else refined


class _Tokens(nn.Module):
    """`F + scale * MLP(softmax(F T' / sqrt(C)) W T + F)`; a cell may look at the first token to take nothing."""

    def __init__(self, channels: int, *, n_tokens: int, rank: int) -> None:
        super().__init__()
        self.token_a = nn.Parameter(torch.randn(n_tokens, rank) / rank**0.5)
        self.token_b = nn.Parameter(torch.randn(rank, channels))
        self.values = nn.Linear(rank, channels)
        self.down = nn.Linear(channels, rank)
        self.up = nn.Linear(rank, channels)
        self.scale = nn.Parameter(torch.tensor(1.0))
        # As with low-rank products: nothing is moved at first. Rein scales by 0.001 instead, and then needs tens of
        # thousands of steps.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = x.flatten(2).mT
        tokens = self.token_a @ self.token_b
        looks = (cells @ tokens.mT * x.shape[1] ** -0.5).softmax(-1)
        found = looks[..., 1:] @ self.values(self.token_a[1:])
        moved = self.up(torch.relu(self.down(found + cells)))
        refined: torch.Tensor = x + self.scale * moved.mT.reshape(x.shape)
        return refined
