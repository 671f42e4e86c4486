"""Segmentation models: an encoder of timm or of a promptable model, a decoder of segmentation-models-pytorch.

Decoders: FPN (Kirillov et al. 2019, https://arxiv.org/abs/1901.02446), U-Net (https://arxiv.org/abs/1505.04597),
UPerNet (https://arxiv.org/abs/1807.10221), SegFormer's (https://arxiv.org/abs/2105.15203), DPT for plain vision
transformers (https://arxiv.org/abs/2103.13413); `light`: a few convolutions on the frozen features of any
encoder of timm (DINOv2 and alike) or of a promptable model. Pixels go in as they are read, 0 to 255: the model
normalises them itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torch.nn import functional

from ..backbone import MODEL_NAME as LITE0
from ..backbone import build_network
from ..checkpoints import fetch_checkpoint, load_state_dict
from ..errors import CheckpointError, ModelError
from ..progress import NullProgress, Progress
from ..registry import create_promptable, get_card, list_models
from .card import SegmenterCard
from .tokens import TOKENS, StageTokens

DECODERS = ("fpn", "unet", "upernet", "segformer", "dpt", "light")
"""Decoders, the default first."""
DEFAULT_ENCODER = "tf_efficientnet_lite0"
"""timm's name of the encoder whose ImageNet weights are at hand offline."""
LEVELS = 256
"""Input values that a model tells apart: 8 bits."""
CELL_PX = 8
"""Chips are enlarged for frozen encoders until a cell of their features is so wide, twice for SAM's cells of 16 px.

That tells neighbouring houses apart.
"""

_SMP: dict[str, Any] = {
    "fpn": smp.FPN,
    "unet": smp.Unet,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
}
FPN_WIDTHS = "fpn_widths"
"""Where a card's options say how many channels the pyramid and the segmentation branches of FPN have (256 and 128)."""
_RGB = ("red", "green", "blue")
_PYRAMID_PX = 32
_LIGHT_CHANNELS = 128
# Of an encoder with several stages the deepest up to this stride is taken.
_MOST_STRIDE = 16


class Outputs(NamedTuple):
    """`logits` (B, C, rows, cols); `features` (B, D, h, w), what the last layer sees; `deep` (B, E), the chip.

    Where pixels were padded, `features` are cut to the cells that the pixels reach; `deep` is the mean of all.
    """

    logits: torch.Tensor
    features: torch.Tensor
    deep: torch.Tensor


class Segmenter(nn.Module):
    """A network with its card: pixels (B, bands, rows, cols) of 0 to 255, any size, to logits of the same size.

    `input_map` (bands, 256) sends every stored value to the value that the network sees (radiometric adaptation);
    at first each to itself. `tokens` refine what the encoder gives, where the card's options have some
    (`tokens`).
    """

    def __init__(self, card: SegmenterCard, network: Any) -> None:
        super().__init__()
        self.card = card
        self.network = network
        self.tokens: nn.Module | None = None
        self.input_map: torch.Tensor
        self._mean: torch.Tensor
        self._std: torch.Tensor
        identity = torch.arange(LEVELS, dtype=torch.float32).repeat(len(card.bands), 1)
        self.register_buffer("input_map", identity)
        self.register_buffer("_mean", torch.tensor(card.mean)[None, :, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(card.std)[None, :, None, None], persistent=False)
        self._is_mapped = False
        patch = getattr(getattr(self.encoder, "model", None), "patch_embed", None) if card.decoder == "dpt" else None
        # Whole cells of the coarsest stage of a pyramid; DPT makes one of patches by halving them.
        self._multiple_px = _PYRAMID_PX if patch is None else 2 * int(patch.patch_size[0])
        self._is_frozen = card.decoder == "light"
        if self._is_frozen:
            self.encoder.requires_grad_(False)

    @property
    def encoder(self) -> nn.Module:
        """The part that knows images."""
        encoder: nn.Module = self.network.encoder
        return encoder

    @property
    def decoder(self) -> nn.Module:
        """The part between encoder and head."""
        decoder: nn.Module = self.network.decoder
        return decoder

    @property
    def head(self) -> nn.Module:
        """The last layer, which knows the classes."""
        head: nn.Module = self.network.segmentation_head
        return head

    def set_input_map(self, levels: torch.Tensor) -> None:
        """Change the values that the network sees, (bands, 256) float of 0 to 255. Raises `ModelError`."""
        if levels.shape != self.input_map.shape or not bool(levels.isfinite().all()):
            raise ModelError(
                f"An input map of shape {tuple(levels.shape)} for {len(self.card.bands)} bands; give finite values, "
                f"(bands, {LEVELS})."
            )
        self.input_map = levels.to(self.input_map)
        self._is_mapped = not bool((self.input_map == torch.arange(LEVELS).to(self.input_map)).all())

    def add_tokens(self, *, n_tokens: int, rank: int) -> nn.Module:
        """Put tokens behind the encoder, in place, and return them; the answers stay what they were.

        The card is not changed: whoever saves the model writes `{"n": n_tokens, "rank": rank}` into its options under
        `tokens.TOKENS`. Raises `ModelError` for fewer than two tokens or a rank under one.
        """
        encoder: Any = self.encoder
        channels = [int(n) for n in encoder.out_channels]
        # The first stage of a pyramid is the image itself; where an encoder starts at a quarter of its size, an empty
        # stage of no channels fills the place in between.
        n_untouched = 0 if self.card.decoder in ("dpt", "light") else 1 + channels.count(0)
        channels = channels[n_untouched:]
        self.tokens = StageTokens(channels, n_untouched=n_untouched, n_tokens=n_tokens, rank=rank)
        return self.tokens

    def train(self, mode: bool = True) -> Segmenter:
        """Switch to training; a frozen encoder stays as it is."""
        super().train(mode)
        if self._is_frozen:
            self.encoder.eval()
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, rows, cols) of pixels (B, bands, rows, cols)."""
        logits: torch.Tensor = self.outputs(pixels).logits
        return logits

    def outputs(self, pixels: torch.Tensor) -> Outputs:
        """Logits with the features that they come from."""
        rows, cols = pixels.shape[2:]
        stages = self.encode(pixels)
        features = self.decode(stages)
        logits = self.network.segmentation_head(features)[:, :, :rows, :cols]
        below, right = self.padded(rows), self.padded(cols)
        features = features[:, :, : -(-features.shape[2] * rows // below), : -(-features.shape[3] * cols // right)]
        deep = (stages[0] if isinstance(stages, tuple) else stages)[-1].float().mean((2, 3))
        return Outputs(logits.float(), features, deep)

    def check_chips(self, px: int) -> None:
        """Raise `ModelError` where the network takes no chips of `px`: some transformers know one size only."""
        try:
            with torch.inference_mode():
                self(torch.zeros(1, len(self.card.bands), px, px, device=self._mean.device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"The encoder '{self.card.encoder}' with the decoder '{self.card.decoder}' takes no chips of {px} px "
                f"({error}); choose another size, or another encoder."
            ) from error

    def padded(self, px: int) -> int:
        """Rows or columns of the pixels that the encoder sees where a chip has `px`: whole cells."""
        return px + -px % self._multiple_px

    def encode(self, pixels: torch.Tensor) -> Any:
        """What the encoder makes of pixels, for `decode`."""
        rows, cols = pixels.shape[2:]
        below, right = self.padded(rows) - rows, self.padded(cols) - cols
        seen = self._mapped(pixels.float()) if self._is_mapped else pixels.float()
        seen = (seen - self._mean) / self._std
        if right or below:
            seen = functional.pad(seen, (0, right, 0, below), mode="replicate")
        stages = self.network.encoder(seen.contiguous(memory_format=torch.channels_last))
        return stages if self.tokens is None else self.tokens(stages)

    def decode(self, stages: Any) -> torch.Tensor:
        """Features (B, D, h, w) of what `encode` gave."""
        # DPT hands on the tokens beside the image, too.
        features: torch.Tensor = (
            self.network.decoder(*stages) if isinstance(stages, tuple) else self.network.decoder(stages)
        )
        return features

    def encoder_blocks(self) -> list[nn.Module]:
        """The encoder's blocks from the input to the deepest, for tuning the last ones."""
        model = getattr(self.encoder, "model", self.encoder)
        for name in ("blocks", "stages", "layers"):
            groups = getattr(model, name, None)
            if isinstance(groups, nn.Sequential | nn.ModuleList):
                return [block for group in groups for block in _inner_blocks(group)]
        return [block for child in model.children() for block in _inner_blocks(child)]

    def _mapped(self, pixels: torch.Tensor) -> torch.Tensor:
        """Look every value up, between two levels linearly: augmented pixels are not whole."""
        values = pixels.clamp(0, LEVELS - 1)
        low = values.floor().long()
        share = values - low
        bands = torch.arange(values.shape[1], device=values.device)[None, :, None, None]
        levels = self.input_map
        return levels[bands, low] * (1 - share) + levels[bands, (low + 1).clamp(max=LEVELS - 1)] * share

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take weights over, the input map too."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.set_input_map(self.input_map.clone())
        return result


class _LightNetwork(nn.Module):
    """A frozen encoder, a few convolutions and a head, named as in segmentation-models-pytorch."""

    def __init__(self, encoder: nn.Module, *, channels: int, stride: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = _OneStage(encoder, channels, stride)
        inner = _LIGHT_CHANNELS
        self.decoder = _LightDecoder(channels, inner)
        self.segmentation_head = smp.base.SegmentationHead(
            inner // 2, n_classes, kernel_size=1, upsampling=CELL_PX // 4
        )


class _OneStage(nn.Module):
    """An encoder with one output of `channels` at the stride of `stride` px as a list of stages."""

    def __init__(self, model: nn.Module, channels: int, stride: int) -> None:
        super().__init__()
        self.model = model
        self.out_channels = (channels,)
        self._zoom = stride / CELL_PX

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        found: Any = self.model(functional.interpolate(pixels, scale_factor=self._zoom, mode="bilinear"))
        if isinstance(found, torch.Tensor):
            return [found]
        (stage,) = found
        return [stage.movedim(-1, 1) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else stage]


class _LightDecoder(nn.Module):
    """Two enlargements with convolutions: (B, channels, h, w) to (B, inner / 2, 4 h, 4 w)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = _convolution(channels, inner, kernel=3)
        self.second = _convolution(inner, inner, kernel=3)
        self.third = _convolution(inner, inner // 2, kernel=3)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        x = self.first(stages[-1])
        x = self.second(functional.interpolate(x, scale_factor=2, mode="bilinear"))
        result: torch.Tensor = self.third(functional.interpolate(x, scale_factor=2, mode="bilinear"))
        return result


def _convolution(channels: int, out: int, *, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _inner_blocks(group: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a group of blocks, or the block itself."""
    inner = getattr(group, "blocks", group)
    if isinstance(inner, nn.Sequential | nn.ModuleList):
        yield from inner
    else:
        yield group


def build_segmenter(card: SegmenterCard) -> Segmenter:
    """The model of a card with random weights, on the CPU. Raises `ModelError` for a part that does not exist."""
    n_bands, n_classes = len(card.bands), len(card.classes)
    if card.decoder == "light":
        encoder, channels, stride = _frozen_encoder(card)
        network: Any = _LightNetwork(encoder, channels=channels, stride=stride, n_classes=n_classes)
    elif card.decoder in _SMP:
        try:
            # Plain transformers would else accept one size only.
            more: dict[str, Any] = {"dynamic_img_size": True} if card.decoder == "dpt" else {}
            if card.decoder == "fpn" and FPN_WIDTHS in card.options:
                pyramid, segmentation = card.options[FPN_WIDTHS]
                more = {"decoder_pyramid_channels": pyramid, "decoder_segmentation_channels": segmentation}
            network = _SMP[card.decoder](
                f"tu-{card.encoder}", encoder_weights=None, in_channels=n_bands, classes=n_classes, **more
            )
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise ModelError(
                f"The encoder '{card.encoder}' cannot be built with the decoder '{card.decoder}' ({error}); give the "
                "name of a timm model, a plain vision transformer only with 'dpt'."
            ) from error
    else:
        raise ModelError(f"Unknown decoder '{card.decoder}'; choose from {', '.join(DECODERS)}.")
    model = Segmenter(card, network)
    if TOKENS in card.options:
        model.add_tokens(n_tokens=int(card.options[TOKENS]["n"]), rank=int(card.options[TOKENS]["rank"]))
    return model.eval().to(memory_format=torch.channels_last)


def _frozen_encoder(card: SegmenterCard) -> tuple[nn.Module, int, int]:
    """The encoder under a light decoder, and the channels and the stride in pixels of its one output."""
    if card.encoder in {known.name for known in list_models("promptable")}:
        promptable: Any = create_promptable(card.encoder)
        if len(card.bands) != len(promptable.card.bands):
            raise ModelError(
                f"The frozen encoder '{card.encoder}' sees {len(promptable.card.bands)} bands, not {len(card.bands)}; "
                "choose three bands, or an encoder of timm."
            )
        return promptable.image_encoder, 256, 16
    try:
        with torch.device("meta"):
            features: Any = timm.create_model(card.encoder, features_only=True)
        stages = features.feature_info.info
        strides = [int(stage["reduction"]) for stage in stages]
        chosen = max(n for n, stride in enumerate(strides) if stride <= max(_MOST_STRIDE, min(strides)))
        options: dict[str, Any] = {"features_only": True, "out_indices": (chosen,), "in_chans": len(card.bands)}
        try:
            # Plain transformers would else accept one size only.
            encoder = timm.create_model(card.encoder, dynamic_img_size=True, **options)
        except TypeError:
            # Other networks do not know the option, and do not need it.
            encoder = timm.create_model(card.encoder, **options)
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise ModelError(
            f"The encoder '{card.encoder}' cannot be built for the decoder 'light' ({error}); give the name of a timm "
            "model with feature maps, or of a promptable model."
        ) from error
    return encoder, int(stages[chosen]["num_chs"]), strides[chosen]


def load_published_encoder(
    model: Segmenter,
    *,
    checkpoint_folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> None:
    """Give the encoder its published weights: ImageNet's, or the promptable model's own.

    EfficientNet-Lite0 and promptable models are looked for and fetched as every checkpoint here; other encoders come
    from the Hugging Face Hub through timm. The first convolution takes each band's weights from the colour of that
    name; other bands start from the mean of the colours, so that the sum over bands keeps its size. Raises
    `CheckpointError` where the weights cannot be had.
    """
    name, progress = model.card.encoder, progress or NullProgress()
    encoder: Any = model.encoder
    if name in {card.name for card in list_models("promptable")}:
        promptable: Any = create_promptable(name)
        path = fetch_checkpoint(get_card(name), folder=checkpoint_folder, offline=offline, progress=progress)
        promptable.load_weights(load_state_dict(path))
        encoder.model.load_state_dict(promptable.image_encoder.state_dict())
        return
    if name == DEFAULT_ENCODER:
        path = fetch_checkpoint(get_card(LITE0), folder=checkpoint_folder, offline=offline, progress=progress)
        published = build_network(load_state_dict(path)).state_dict()
    else:
        # Plain transformers are built whole for DPT, which takes what is between their blocks.
        published = _from_hub(name, offline=offline, features_only=model.card.decoder != "dpt")
    own = encoder.model.state_dict()
    first = _first_convolution(encoder.model)
    if first in published:
        published[first] = _for_bands(published[first], model.card.bands)
    fitting = {key: value for key, value in published.items() if key in own and value.shape == own[key].shape}
    missing = [key for key in own if key not in fitting]
    if missing:
        raise CheckpointError(
            f"The published weights of '{name}' lack {len(missing)} of {len(own)} tensors ({missing[0]}); choose "
            "another encoder or weights 'none'."
        )
    encoder.model.load_state_dict(fitting)


def published_licence(encoder: str) -> str:
    """Licence of the weights that `load_published_encoder` gives an encoder; "not stated" where nobody says so."""
    if encoder in {card.name for card in list_models("promptable")}:
        return get_card(encoder).licence
    if encoder == DEFAULT_ENCODER:
        return get_card(LITE0).licence
    stated = timm.models.get_pretrained_cfg(encoder)
    return str(stated.license) if stated is not None and stated.license else "not stated"


def _from_hub(name: str, *, offline: bool, features_only: bool) -> dict[str, torch.Tensor]:
    if offline:
        raise CheckpointError(
            f"The weights of '{name}' come from the Hugging Face Hub, and SegAdapt is offline; go online once, or "
            f"choose '{DEFAULT_ENCODER}'."
        )
    try:
        model: Any = timm.create_model(name, pretrained=True, features_only=features_only)
    except Exception as error:
        raise CheckpointError(
            f"The weights of '{name}' cannot be fetched from the Hugging Face Hub ({type(error).__name__}); check the "
            f"connection and the name, or choose '{DEFAULT_ENCODER}'."
        ) from error
    return dict(model.state_dict())


def _first_convolution(model: nn.Module) -> str:
    """Name of the weight that sees the bands."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return f"{name}.weight"
    raise ModelError("The encoder has no convolution that sees the bands; choose another one.")


def _for_bands(weight: torch.Tensor, bands: tuple[str, ...]) -> torch.Tensor:
    """(out, 3, k, k) for red, green, blue to (out, bands, k, k)."""
    if tuple(bands) == _RGB:
        return weight
    mean = weight.mean(1)
    columns = [weight[:, _RGB.index(band)] if band in _RGB else mean for band in bands]
    return torch.stack(columns, dim=1) * (3 / len(bands))
