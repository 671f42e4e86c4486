"""Pre-training on the target: the encoder learns its look by filling in pixels that were hidden.

The masks of RingMo (Sun et al. 2022, https://doi.org/10.1109/TGRS.2022.3194732).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..augmentation import WEAK
from ..progress import Progress
from ..semantic.card import IGNORE
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from ..training import Descent, draw, set_training
from .adapting import drawn, network_values, seeded, steps_left, usable_chips, with_data_as_labels
from .base import SHARE, Limits, Method, Problem, TransferError, register_method
from .masked_consistency import patch_mask


@register_method("masked_image")
@dataclass(frozen=True)
class MaskedImage(Method):
    """Reconstruct masked pixels from the encoder's deepest features; a first stage, another method must follow.

    RingMo's PIMask leaves some pixels of every masked patch visible (the share `left`), so that small objects do not
    vanish. `patch_px`, `ratio`: as in `MaskedConsistency`. `steps`: share of the problem's steps that are taken. The
    decoder, one layer with the learning rate `rate`, is thrown away; the encoder learns at `encoder_rate` times it.
    """

    title = "Masked image pre-training (PIMask)"
    summary = "Lets the encoder get used to the target by filling in hidden pixels; only before another method."
    reference = "Sun et al. 2022, RingMo, https://doi.org/10.1109/TGRS.2022.3194732"
    limits: ClassVar[Limits] = dict.fromkeys(("ratio", "left", "steps"), SHARE)

    patch_px: int = 32
    ratio: float = 0.6
    left: float = 0.25
    steps: float = 0.25
    rate: float = 1e-3
    encoder_rate: float = 0.02

    def adapt(self, model: Segmenter, problem: Problem, progress: Progress) -> None:
        """Adapt the encoder. Raises `TransferError` for one that is frozen."""
        learning = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
        if not learning:
            raise TransferError(
                f"The encoder of '{model.card.name}' is frozen, so that it cannot be pre-trained; choose another "
                "method without masked_image."
            )
        device = device_of(model)
        with network_values(model, problem) as seen, seeded(problem.seed, device) as generator:
            target, usable = with_data_as_labels(seen.target), usable_chips(seen.target)
            mean = torch.tensor(model.card.mean, device=device)[None, :, None, None]
            std = torch.tensor(model.card.std, device=device)[None, :, None, None]
            decoder = _pixel_decoder(model, torch.from_numpy(target.pixels[:1]).to(device))
            rates = ((decoder.parameters(), self.rate), (learning, self.rate * self.encoder_rate))
            descent = Descent(torch.optim.AdamW([{"params": part, "lr": rate} for part, rate in rates]), model)
            n_steps = max(1, round(self.steps * problem.n_steps))
            for _ in steps_left(
                problem,
                progress,
                n_steps=n_steps,
                model=model,
                generator=generator,
                decoder=decoder,
                descent=descent,
            ):
                set_training(model, freeze_statistics=True)
                pixels, labels = draw(target, drawn(problem.batch, usable, generator), WEAK, generator, device)
                is_hidden = self._hidden(pixels, generator)
                with autocast(device):
                    stages = model.encode(torch.where(is_hidden[:, None], mean, pixels))
                drawing = decoder(_deepest(stages))[..., : pixels.shape[-2], : pixels.shape[-1]]
                error = (drawing - (pixels - mean) / std).abs().mean(1)
                is_counted = is_hidden & (labels != IGNORE)
                descent.step((error * is_counted).sum() / is_counted.sum().clamp(min=1))

    def _hidden(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shape = (len(pixels), *pixels.shape[-2:])
        patches = patch_mask(shape, patch_px=self.patch_px, ratio=self.ratio, generator=generator)
        return (patches & (torch.rand(shape, generator=generator) >= self.left)).to(pixels.device)


def _deepest(stages: Any) -> torch.Tensor:
    """The deepest features (B, D, h, w) of what the encoder made."""
    deepest: torch.Tensor = (stages[0] if isinstance(stages, tuple) else stages)[-1]
    return deepest.float()


def _pixel_decoder(model: Segmenter, pixels: torch.Tensor) -> nn.Module:
    """As SimMIM's head: each deepest cell draws its own pixels (B, bands, rows, cols) like those given."""
    with torch.no_grad(), autocast(pixels.device):
        deepest = _deepest(model.encode(pixels))
    n_bands, zoom = pixels.shape[1], model.padded(pixels.shape[-1]) // deepest.shape[-1]
    return nn.Sequential(nn.Conv2d(deepest.shape[1], n_bands * zoom * zoom, 1), nn.PixelShuffle(zoom)).to(pixels.device)
