"""Models as ONNX files for other programs, with the metadata that the QGIS plugin Deepness reads.

Deepness (https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX model") feeds stored values divided by
255 as float32 (batch, bands, rows, cols), squares of one size, and takes the class of the largest output. All that lies
between is in the graph: stretch (that of the training rasters where each raster has its own), input map, normalisation
and the softmax at the end.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ..progress import NullProgress, Progress, raise_if_cancelled
from .card import PackageError, SegmenterCard
from .segmenter import CELL_PX, LEVELS, Segmenter

SUFFIX = ".onnx"
INPUT, OUTPUT = "input", "output"
"""Names of the graph's input and output."""
CARD_KEY = "segadapt_card"
"""Metadata key under which the whole card goes along as JSON."""
TILES_OVERLAP_PERCENT = 15
OPSET = 17

_LEAST_TILE_PX = 32
_TOP = LEVELS - 1.0


def export_onnx(model: Segmenter, path: Path, *, tile_px: int | None = None, progress: Progress | None = None) -> None:
    """Write `model` as an ONNX file, whole or not at all.

    Input: float32 (batch, bands, `tile_px`, `tile_px`), stored values divided by 255; batch is free. Output: class
    probabilities (batch, classes, `tile_px`, `tile_px`), 0 to 1. `tile_px`: the card's chips without. The model is not
    changed. Raises `PackageError` for tiles that are too small, for a network that ONNX cannot express, and where the
    file cannot be written; `Cancelled` before it is.
    """
    side = model.card.chip_px if tile_px is None else tile_px
    if side < _LEAST_TILE_PX:
        raise PackageError(f"Tiles of {side} px are too small for a network; give at least {_LEAST_TILE_PX}.")
    progress = progress or NullProgress()
    progress.set_fraction(0.1)
    raise_if_cancelled(progress)
    content = _graph(model, side)
    progress.set_fraction(0.9)
    raise_if_cancelled(progress)
    for key, value in deepness_metadata(model.card, tile_px=side).items():
        entry = content.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    entry = content.metadata_props.add()
    entry.key, entry.value = CARD_KEY, model.card.to_json()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.SerializeToString())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise PackageError(
            f"{path} cannot be written ({error.strerror or error}); choose a folder that you may write to, with space."
        ) from error


def deepness_metadata(card: SegmenterCard, *, tile_px: int) -> dict[str, Any]:
    """What Deepness reads of a model, by key; each value goes into the file as JSON.

    `resolution` is in centimetres per pixel and left out where the card has none; nothing is left to standardise; with
    a threshold of 0 the largest probability decides, as it does here.
    """
    metadata: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(one.class_id): one.name for one in card.classes},
        "tile_size": tile_px,
        "tiles_overlap": TILES_OVERLAP_PERCENT,
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }
    if card.gsd_m is not None:
        metadata["resolution"] = round(100 * card.gsd_m, 3)
    return metadata


class _Exported(nn.Module):
    """From what Deepness feeds to probabilities."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self._model = model
        card = model.card
        known = card.stretch or card.training_stretch
        stretch = known or (*(0.0 for _ in card.bands), *(_TOP for _ in card.bands))
        low, high = torch.tensor(stretch, dtype=torch.float32).reshape(2, 1, -1, 1, 1)
        # A constant band becomes mid-grey, as in `processing.raster.stretch`.
        is_flat = high <= low
        self._low, self._span = torch.where(is_flat, low - 0.5, low), torch.where(is_flat, 1.0, high - low)
        self._is_stretched = known is not None

    def forward(self, shares: torch.Tensor) -> torch.Tensor:
        values = shares * _TOP
        if self._is_stretched:
            values = ((values - self._low) * (_TOP / self._span)).clamp(0, _TOP).round()
        probabilities: torch.Tensor = self._model(values).softmax(1)
        return probabilities


class _FixedPool(nn.Module):
    """Adaptive average pooling of maps of one size, as two products that ONNX has."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size: Any = pool.output_size
        self._rows: int | None
        self._cols: int | None
        self._rows, self._cols = (size, size) if isinstance(size, int) else size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, cols = int(x.shape[2]), int(x.shape[3])
        return _means(self._rows or rows, rows) @ x @ _means(self._cols or cols, cols).T


def _means(n_out: int, n_in: int) -> torch.Tensor:
    """(n_out, n_in): which cells an output is the mean of, as torch chooses them."""
    weights = torch.zeros(n_out, n_in)
    for place in range(n_out):
        start, end = place * n_in // n_out, -(-(place + 1) * n_in // n_out)
        weights[place, start:end] = 1 / (end - start)
    return weights


def _graph(model: Segmenter, side: int) -> onnx.ModelProto:
    exported = _Exported(_exportable(model, side)).eval()
    # torch writes to buffers, too, whatever its annotations say.
    export: Any = torch.onnx.export
    example = torch.zeros(2, len(model.card.bands), side, side)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), _transposing():
            # The exporter that needs nothing but torch is called legacy, and sizes are meant to be constants.
            warnings.simplefilter("ignore")
            export(
                exported,
                (example,),
                buffer,
                opset_version=OPSET,
                dynamo=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
    except torch.onnx.OnnxExporterError as error:
        raise PackageError(
            f"'{model.card.name}' ({model.card.decoder} on {model.card.encoder}) cannot be written as ONNX "
            f"({str(error).splitlines()[0][:200]}); export a student of it (distillmodel) instead."
        ) from error
    graph = onnx.load_model_from_string(buffer.getvalue())
    # Deepness wants to see squares.
    for place, length in enumerate((len(model.card.classes), side, side), 1):
        graph.graph.output[0].type.tensor_type.shape.dim[place].dim_value = length
    onnx.checker.check_model(graph)
    return graph


def _exportable(model: Segmenter, side: int) -> Segmenter:
    """A copy on the CPU without what ONNX lacks: pooling of any size, and positions that follow the size."""
    own = copy.deepcopy(model).cpu().float()
    for parent in list(own.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(parent, name, _FixedPool(child))
    network: Any = own.encoder
    # Behind a light decoder timm wraps a plain transformer once more.
    transformer: Any = network.model if own.card.decoder == "dpt" else getattr(network.model, "model", None)
    if getattr(transformer, "dynamic_img_size", False):
        from timm.layers.pos_embed import resample_abs_pos_embed

        patch, n_prefix = int(transformer.patch_embed.patch_size[0]), int(transformer.num_prefix_tokens)
        cells = own.padded(side) // (patch if own.card.decoder == "dpt" else CELL_PX)
        positions = transformer.pos_embed.detach()
        resampled = resample_abs_pos_embed(positions, new_size=[cells, cells], num_prefix_tokens=n_prefix)
        transformer.pos_embed = nn.Parameter(resampled, requires_grad=False)
        # As timm builds transformers for one size.
        transformer.dynamic_img_size = False
        transformer.patch_embed.flatten, transformer.patch_embed.strict_img_size = True, False
    return own


@contextlib.contextmanager
def _transposing() -> Iterator[None]:
    """Teach the exporter `Tensor.mT`, which tokens use."""

    def transposed(graph: Any, x: Any) -> Any:
        n = int(x.type().dim())
        return graph.op("Transpose", x, perm_i=[*range(n - 2), n - 1, n - 2])

    exporter: Any = torch.onnx
    exporter.register_custom_op_symbolic("aten::mT", transposed, OPSET)
    try:
        yield
    finally:
        exporter.unregister_custom_op_symbolic("aten::mT", OPSET)
