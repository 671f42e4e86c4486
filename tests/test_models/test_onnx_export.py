"""ONNX files: another runtime gives the same probabilities, and Deepness finds what it needs to know."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from segadapt.models.errors import Cancelled
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import PackageError, SegmenterCard, SegmenterClass, card_from_json
from segadapt.models.semantic.onnx_export import CARD_KEY, export_onnx
from segadapt.models.semantic.segmenter import build_segmenter

onnxruntime = pytest.importorskip("onnxruntime")
SIDE = 64


def make_model(**changes):
    bands = changes.pop("bands", ("red", "green", "blue"))
    card = SegmenterCard(
        name="test",
        decoder=changes.pop("decoder", "unet"),
        encoder=changes.pop("encoder", "lcnet_035"),
        bands=bands,
        classes=(
            SegmenterClass(0, "other", (90, 90, 90)),
            SegmenterClass(1, "Dach", (230, 85, 13)),
            SegmenterClass(2, "tree", (0, 120, 0)),
        ),
        gsd_m=0.3,
        chip_px=SIDE,
        mean=(120.0,) * len(bands),
        std=(30.0,) * len(bands),
        licence="CC0",
        made_on="2026-01-01",
        segadapt_version="0",
    )
    torch.manual_seed(0)
    return build_segmenter(replace(card, **changes))


def probabilities(model, pixels):
    """In full precision: on some machines `prediction.probabilities` takes less."""
    with torch.inference_mode():
        return model(pixels.float()).softmax(1)


def answer(path, shares):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: shares})
    return found


def metadata(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map, session


def chips(n, n_bands=3, side=SIDE):
    return np.random.default_rng(1).integers(0, 256, (n, n_bands, side, side)).astype(np.uint8)


@pytest.mark.parametrize(
    ("decoder", "encoder"),
    [
        ("unet", "lcnet_035"),
        ("fpn", "tf_efficientnet_lite0"),
        ("upernet", "lcnet_035"),
        ("segformer", "lcnet_035"),
        ("dpt", "vit_tiny_patch16_224"),
        ("light", "vit_tiny_patch16_224"),
        ("light", "lcnet_035"),
    ],
)
def test_another_runtime_gives_the_same_probabilities(tmp_path, decoder, encoder):
    model = make_model(decoder=decoder, encoder=encoder)
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    pixels = chips(3)
    found = answer(path, pixels.astype(np.float32) / 255)
    wanted = probabilities(model, torch.from_numpy(pixels)).numpy()
    assert found.shape == (3, 3, SIDE, SIDE)
    assert np.ptp(wanted) > 0.01
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(answer(path, pixels[:1].astype(np.float32) / 255) - wanted[:1]).max() < 1e-3


def test_an_adapted_model_keeps_its_input_map_and_tokens(tmp_path):
    model = make_model(bands=("red", "green", "blue", "nir"))
    model.add_tokens(n_tokens=4, rank=2)
    for tokens in model.tokens.stages:
        torch.nn.init.normal_(tokens.up.weight)
    model.eval()
    plain = probabilities(model, torch.from_numpy(chips(2, 4)))
    model.set_input_map(255 * (model.input_map / 255) ** 2)
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    wanted = probabilities(model, torch.from_numpy(chips(2, 4)))
    assert (wanted - plain).abs().max() > 0.01
    found = answer(path, chips(2, 4).astype(np.float32) / 255)
    assert np.abs(found - wanted.numpy()).max() < 1e-3


@pytest.mark.parametrize("name", ["stretch", "training_stretch"])
def test_the_stretch_of_the_card_is_in_the_graph(tmp_path, name):
    """Stored values of 16 bits, divided by 255 as Deepness does; a band without a range becomes mid-grey."""
    from segadapt.processing.raster.stretch import Stretch

    low, high = (100.0, 0.0, 7.0), (4000.0, 3000.0, 7.0)
    model = make_model(**{name: (*low, *high)})
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    stored = np.random.default_rng(0).integers(0, 5000, (1, 3, SIDE, SIDE)).astype(np.uint16)
    stored[:, 2] = 7
    pixels = Stretch(low, high).apply(stored[0])
    assert 0 < pixels[0].mean() < 255
    wanted = probabilities(model, torch.from_numpy(pixels)[None]).numpy()
    # 128 or 127 for half of 255, by the rounding of the runtime.
    assert np.abs(answer(path, stored.astype(np.float32) / 255) - wanted).max() < 5e-3


def test_deepness_finds_what_it_reads(tmp_path):
    model = make_model()
    path = tmp_path / "model.onnx"
    export_onnx(model, path, tile_px=96)
    found, session = metadata(path)
    values = {key: json.loads(value) for key, value in found.items()}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {"0": "other", "1": "Dach", "2": "tree"}
    assert values["resolution"] == 30.0
    assert values["tile_size"] == 96
    assert values["standardization_mean"] == [0.0, 0.0, 0.0]
    assert values["standardization_std"] == [1.0, 1.0, 1.0]
    assert values["seg_thresh"] == 0.0
    assert 0 < values["tiles_overlap"] < 50
    assert session.get_inputs()[0].shape == ["batch", 3, 96, 96]
    assert session.get_outputs()[0].shape[1:] == [3, 96, 96]
    assert card_from_json(found[CARD_KEY], path=path) == model.card


def test_a_model_without_a_resolution_says_none(tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(make_model(gsd_m=None), path)
    assert "resolution" not in metadata(path)[0]


def test_nothing_is_changed_or_left_behind(tmp_path):
    model = make_model(decoder="upernet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(PackageError, match="16 px are too small"):
        export_onnx(model, tmp_path / "small.onnx", tile_px=16)
    with pytest.raises(PackageError, match="cannot be written"):
        export_onnx(model, tmp_path / "none" / "model.onnx")


class _StopAt(NullProgress):
    def __init__(self, fraction):
        self.fraction, self.reached = fraction, 0.0

    def set_fraction(self, fraction):
        self.reached = fraction

    def is_cancelled(self):
        return self.reached >= self.fraction


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_cancel_before_and_after_the_graph_writes_nothing(tmp_path, fraction):
    older = tmp_path / "model.onnx"
    older.write_bytes(b"older")
    progress = _StopAt(fraction)
    with pytest.raises(Cancelled):
        export_onnx(make_model(), older, progress=progress)
    assert progress.reached == fraction
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(older, b"older")]
