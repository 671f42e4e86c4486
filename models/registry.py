"""Find a model by name: its card at once, the module itself only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .card import Family, ModelCard
from .catalogue import CARDS
from .errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    from .promptable.base import PromptableModel

_CARDS: dict[str, ModelCard] = {}


def register_card(card: ModelCard) -> None:
    """Add a model. Raises `ModelError` where the name is taken, so that no card silently replaces another."""
    if card.name in _CARDS:
        raise ModelError(f"A model named '{card.name}' is registered already; choose another name.")
    _CARDS[card.name] = card


def list_models(family: Family | None = None) -> list[ModelCard]:
    """Cards in catalogue order, of one family or of all."""
    return [card for card in _CARDS.values() if family in (None, card.family)]


def get_card(name: str) -> ModelCard:
    """Return the card of a model. Raises `UnknownModelError` that lists the names there are."""
    try:
        return _CARDS[name]
    except KeyError:
        raise UnknownModelError(f"Unknown model '{name}'; choose from {', '.join(_CARDS)}.") from None


def create_promptable(name: str) -> PromptableModel:
    """Build a promptable model with random weights, on the CPU, in evaluation mode.

    Raises `UnknownModelError` for a name without a card and `ModelError` for a model of another family.
    """
    card = get_card(name)
    if card.family != "promptable" or card.builder is None:
        names = ", ".join(c.name for c in list_models("promptable"))
        raise ModelError(f"'{name}' takes no prompts; choose from {names}.")
    module_name, function_name = card.builder.split(":")
    model: PromptableModel = getattr(import_module(f".{module_name}", __package__), function_name)(card)
    return model


for _card in CARDS:
    register_card(_card)
