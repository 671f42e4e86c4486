"""Adaptation with few labels: some layers learn from them, the rest of the model stays what the source taught it.

Which layers is the question that the user's own data answer: the head alone, head and decoder, the normalisation
(as in BitFit, https://arxiv.org/abs/2106.10199, and "Parameter-efficient tuning of batch norm",
https://arxiv.org/abs/2003.00152), low-rank products (`low_rank`), tokens (`tokens`), the last blocks, or everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ..chips import Chips
from ..progress import Progress
from ..semantic.card import IGNORE
from ..semantic.package import changed_tensors, merged
from ..semantic.prediction import device_of
from ..semantic.segmenter import Segmenter
from ..semantic.tokens import N_TOKENS, RANK, TOKENS
from ..training import Check, Training, TrainingOptions, fit, score_of
from ..training_state import Keeper
from .adapting import NORMS, seeded
from .base import TransferError
from .low_rank import inject_low_rank, low_rank_layers, low_rank_tensors

LAYERS = ("decoder", "head", "norm", "lora", "tokens", "last_blocks", "full")
"""What may learn, the default first."""
LORA_LAYERS = ("all", "last")

# Rate, and the encoder's rate relative to it: few new parameters may move fast, published weights must not.
_RATES = {
    "head": (5e-3, 1.0),
    "decoder": (1e-3, 1.0),
    "norm": (3e-3, 1.0),
    "lora": (2e-3, 1.0),
    "tokens": (1e-2, 1.0),
    "last_blocks": (1e-3, 0.3),
    "full": (1e-3, 0.3),
}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What learns.

    `layers`: "head"; "decoder" (with the head); "norm" (scale and offset of every normalisation, every bias, the
    head); "lora" (products of `rank` beside the encoder's layers, of all or of the last `n_blocks` blocks by
    `lora_layers`, and the head); "tokens" (`n_tokens` of `rank` behind each stage, and the head); "last_blocks" (the
    encoder's last `n_blocks` blocks, decoder and head); "full". An encoder that is frozen by its card takes only
    low-rank products and tokens. `is_statistics_frozen`: batch normalisation goes on with the source's averages,
    which few chips would spoil.
    """

    layers: str = LAYERS[0]
    rank: int = RANK
    lora_layers: str = LORA_LAYERS[0]
    n_blocks: int = 4
    n_tokens: int = N_TOKENS
    is_statistics_frozen: bool = True

    def __post_init__(self) -> None:
        """Check the choices. Raises `TransferError`."""
        if self.layers not in LAYERS:
            raise TransferError(f"Unknown layers '{self.layers}'; choose from {', '.join(LAYERS)}.")
        if self.lora_layers not in LORA_LAYERS:
            raise TransferError(f"LoRA on '{self.lora_layers}' layers; choose from {', '.join(LORA_LAYERS)}.")
        if self.rank < 1 or self.n_blocks < 1:
            raise TransferError(f"A rank of {self.rank} and {self.n_blocks} blocks; give at least 1 of each.")


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What came of it.

    `model`: the model to use, in evaluation mode; its card names tokens where it has them. `adapter`: only what
    changed, for `package.save_segmenter`. `before`, `after`: mean IoU on the labels that judge, of the source model and
    of the best state reached. `is_accepted`: whether it rose; if not, `model` is the source model and `adapter` is
    empty. `n_trainable`: parameters that learned, of `n_parameters`.
    """

    model: Segmenter
    adapter: dict[str, torch.Tensor]
    training: Training
    n_trainable: int
    n_parameters: int
    before: float
    after: float
    is_accepted: bool


def usual_training(layers: str, *, n_steps: int = 200, batch: int = 8, seed: int = 0) -> TrainingOptions:
    """How these layers are trained: each with rates of its own. Raises `TransferError` for unknown layers."""
    if layers not in _RATES:
        raise TransferError(f"Unknown layers '{layers}'; choose from {', '.join(LAYERS)}.")
    rate, encoder_rate = _RATES[layers]
    return TrainingOptions(n_steps=n_steps, batch=batch, rate=rate, encoder_rate=encoder_rate, seed=seed, patience=None)


def fine_tune(
    model: Segmenter,
    chips: Chips,
    held_out: Chips,
    options: FineTuning | None = None,
    training: TrainingOptions | None = None,
    *,
    judging: Chips | None = None,
    replay: Chips | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> FineTuned:
    """Adapt a copy of `model` to the labelled ones of `chips`; the model itself is not changed.

    Of the states checked on `held_out` the best is kept, and only if it beats the source model (no harm) on `judging`,
    labels that chose nothing; without these on `held_out`, too. `replay`: labelled chips of the source domain to
    rehearse. `keeper`: as for `fit`. A cancel ends it early, with the best state so far. Raises `TransferError` where
    `held_out` has no label, `ChipError` where `chips` has none.
    """
    options = options or FineTuning()
    training = training or usual_training(options.layers)
    if not held_out.n_labelled_px():
        raise TransferError("None of the chips held out has a label; label more places, so that some can be held out.")
    with seeded(training.seed, device_of(model)):
        learner, chosen, layers = _prepared(model, options)
        chosen = [parameter for parameter in chosen if parameter.requires_grad]
        went = fit(
            learner,
            chips.take(np.flatnonzero((chips.labels != IGNORE).any(axis=(1, 2)))),
            held_out,
            training,
            parameters=chosen,
            freeze_statistics=options.is_statistics_frozen,
            replay=replay,
            keeper=keeper,
            progress=progress,
            on_check=on_check,
        )
    judging = judging or held_out
    before = score_of(model, judging)
    adapter = _adapter(model, learner, layers)
    adapted = _with_adapter(model, adapter, options)
    after = score_of(adapted, judging)
    is_accepted = after > before
    return FineTuned(
        model=adapted if is_accepted else model,
        adapter=adapter if is_accepted else {},
        training=went,
        n_trainable=sum(parameter.numel() for parameter in chosen),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        before=before,
        after=after,
        is_accepted=is_accepted,
    )


def _prepared(model: Segmenter, options: FineTuning) -> tuple[Segmenter, list[nn.Parameter], list[str]]:
    """A copy that can learn, the parameters that shall, and the names of layers with low-rank products."""
    learner = copy.deepcopy(model)
    head = list(learner.head.parameters())
    if options.layers == "head":
        return learner, head, []
    if options.layers == "decoder":
        return learner, [*learner.decoder.parameters(), *head], []
    if options.layers == "norm":
        return learner, _unique([*_norms_and_biases(learner), *head]), []
    if options.layers == "lora":
        n_blocks = options.n_blocks if options.lora_layers == "last" else None
        layers = low_rank_layers(learner, n_blocks=n_blocks)
        factors = inject_low_rank(learner, layers, rank=options.rank)
        learner.to(device_of(model))
        return learner, [*factors, *head], layers
    if options.layers == "tokens":
        return learner, [*_add_tokens(learner, options).parameters(), *head], []
    if options.layers == "last_blocks":
        blocks = learner.encoder_blocks()[-options.n_blocks :]
        inner = [parameter for block in blocks for parameter in block.parameters()]
        return learner, [*inner, *learner.decoder.parameters(), *head], []
    return learner, list(learner.parameters()), []


def _norms_and_biases(model: Segmenter) -> list[nn.Parameter]:
    of_norms = [p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)]
    return [*of_norms, *(p for name, p in model.named_parameters() if name.endswith(".bias"))]


def _unique(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())


def _add_tokens(model: Segmenter, options: FineTuning) -> nn.Module:
    """The tokens of a model; one that has none yet gets some, and their place on its card."""
    if model.tokens is not None:
        return model.tokens
    tokens = model.add_tokens(n_tokens=options.n_tokens, rank=options.rank)
    model.to(device_of(model))
    said = {"n": options.n_tokens, "rank": options.rank}
    model.card = replace(model.card, options={**model.card.options, TOKENS: said})
    return tokens


def _adapter(model: Segmenter, learner: Segmenter, layers: list[str]) -> dict[str, torch.Tensor]:
    """What differs between the source model and what learned, on the CPU."""
    before = model.state_dict()
    if not layers:
        return {name: value.detach().cpu() for name, value in changed_tensors(before, learner.state_dict()).items()}
    # The encoder's own weights did not move; its products are told apart from the rest by their layers.
    rest = {name: value for name, value in learner.state_dict().items() if name in before}
    return low_rank_tensors(learner, layers) | {
        name: value.detach().cpu() for name, value in changed_tensors(before, rest).items()
    }


def _with_adapter(model: Segmenter, adapter: dict[str, torch.Tensor], options: FineTuning) -> Segmenter:
    """A copy with the adapter laid over, as it comes back from a package."""
    adapted = copy.deepcopy(model)
    if options.layers == "tokens":
        _add_tokens(adapted, options)
    own = {name: value.cpu() for name, value in model.state_dict().items()}
    adapted.load_state_dict(merged(own, adapter))
    return adapted.eval()
