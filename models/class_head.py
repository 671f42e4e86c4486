"""Light heads on frozen dense features: from a few labelled places to a class for every place, at once.

`FeatureSpace` brings the features of a unit (a cell or a segment of an image) to a common scale and to few
dimensions. A head is fitted anew after every click: a ridge regression in closed form (DISCA's idea, Lenczner et al.
2020, https://arxiv.org/abs/2009.11250, without its gradient steps), a logistic regression on the same kernel features,
or class tokens in the manner of SLiMe (Khani et al. 2024, https://arxiv.org/abs/2309.03179) without its diffusion
model: only one vector per class is learned, against the attention that frozen features pay to it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional

from .errors import ModelError

FloatArray = npt.NDArray[np.float32]

HEADS = ("ridge", "logistic", "tokens")
"""Kinds of heads, the default first."""

MOST_SUPPORTS = 128
"""Labelled places that the kernel compares with; more of them are learned from, but not compared with."""

_FORMAT, _VERSION = "segadapt-class-map", 1
# Chosen on tiles 1 to 3 of the Dubai scenes (benchmarks/class_map.py); half and double change the mIoU by under 1.
_GAMMA, _RIDGE = 0.25, 0.1
_DIMENSIONS = 96
_LOGISTIC_C = 30.0
_TOKEN_STEPS, _TOKEN_RATE, _TOKEN_SCALE, _CONTEXT_TEMPERATURE = 100, 0.1, 6.0, 0.1
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_USUAL_TEMPERATURE = 2.0


class ClassHeadError(ModelError, ValueError):
    """A head that cannot be fitted, or a file that holds none."""


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """An affine map of features: `(raw - mean) @ basis`; `mean` float32 (C,), `basis` float32 (C, D)."""

    mean: FloatArray
    basis: FloatArray

    @property
    def digest(self) -> str:
        """Sixteen hex digits that tell one space from another."""
        return hashlib.sha256(self.mean.tobytes() + self.basis.tobytes()).hexdigest()[:16]

    def project(self, raw: npt.NDArray[Any]) -> FloatArray:
        """(N, C) features to (N, D) float32."""
        projected: FloatArray = (raw.astype(np.float32) - self.mean) @ self.basis
        return projected


def fit_feature_space(
    raw: npt.NDArray[Any], groups: Sequence[tuple[int, float]], *, dimensions: int = _DIMENSIONS
) -> FeatureSpace:
    """Find the space of an image from a sample of its units, (N, C).

    `groups` are (channels, weight) of what is concatenated in C: channels are brought to unit variance, and a group to
    a variance of weight squared, so that wide groups do not drown narrow ones. Principal components then keep the
    distances (nothing is whitened: that was measured to cost 2 mIoU) and save memory; the mean squared norm stays that
    of the groups. Raises `ClassHeadError` for a sample of fewer than two units or another width.
    """
    if len(raw) < 2 or raw.shape[1] != sum(channels for channels, _ in groups):
        raise ClassHeadError(f"A sample of shape {raw.shape} describes no image; give features of at least two units.")
    values = raw.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scale = np.concatenate([np.full(channels, weight / np.sqrt(channels)) for channels, weight in groups])
    # A channel that never varies here says nothing here, and must not be blown up elsewhere.
    scale = scale / np.maximum(deviation, 1e-3 + 0.05 * np.abs(mean))
    scaled = (values - mean) * scale
    covariance = scaled.T @ scaled / len(scaled)
    variances, vectors = np.linalg.eigh(covariance)
    kept = slice(None, -dimensions - 1, -1)
    vectors = vectors[:, kept]
    # Signs of eigenvectors are arbitrary; fixed ones make two runs alike.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    lost = np.sqrt(variances.sum() / max(float(variances[kept].sum()), 1e-12))
    return FeatureSpace(mean.astype(np.float32), (scale[:, None] * vectors * lost).astype(np.float32))


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head ready to judge: `classes` (K,) ids in ascending order, `supports` (M, D), `weights`, `temperature`.

    `weights` are (M, K) for the kernel heads and (D, K) for tokens.
    """

    kind: str
    classes: npt.NDArray[np.uint8]
    supports: FloatArray
    weights: FloatArray
    temperature: float

    def columns(self, units: npt.NDArray[Any], *, start: int = 0) -> FloatArray:
        """What the weights are applied to: similarity (N, M - start) to the supports from `start` on; tokens: (N, D).

        Columns of the kernel depend on the supports alone, so that those of earlier clicks can be kept.
        """
        if self.kind == "tokens":
            return _unit(units.astype(np.float32))
        return kernel(units, self.supports[start:])

    def scores(self, columns: npt.NDArray[Any]) -> FloatArray:
        """Scores (N, K) for columns (N, M)."""
        return (torch.from_numpy(columns) @ torch.from_numpy(self.weights)).numpy()

    def probabilities(self, scores: FloatArray) -> FloatArray:
        """Scores (..., K) to probabilities (..., K) that sum to 1."""
        return torch.softmax(torch.from_numpy(scores) * self.temperature, dim=-1).numpy()


def kernel(units: npt.NDArray[Any], supports: FloatArray) -> FloatArray:
    """Similarity (N, M) in 0..1 of units (N, D) and supports (M, D): exp(-gamma |difference|^2)."""
    # torch's conversion of float16 is several times as fast as numpy's.
    left, right = torch.from_numpy(units).float(), torch.from_numpy(supports)
    squares = (left * left).sum(1, keepdim=True) + (right * right).sum(1)
    distances = torch.addmm(squares, left, right.T, beta=1.0, alpha=-2.0).clamp_(min=0.0)
    return distances.mul_(-_GAMMA).exp_().numpy()


def fit_head(
    kind: str,
    units: FloatArray,
    class_ids: npt.NDArray[np.uint8],
    *,
    context: FloatArray | None = None,
) -> FittedHead:
    """Learn from labelled units (N, D) and their classes (N,), each class with the same weight in all.

    `context` (M, D): units without labels, through which tokens propagate their attention. Raises `ClassHeadError`
    for an unknown kind or no units. With a single class everything is of it.
    """
    if kind not in HEADS:
        raise ClassHeadError(f"Unknown head '{kind}'; choose from {', '.join(HEADS)}.")
    if not len(units):
        raise ClassHeadError("No place has a class yet; click on one.")
    units = np.ascontiguousarray(units, np.float32)
    classes, members = np.unique(class_ids, return_inverse=True)
    if kind == "tokens":
        return _fit_tokens(units, classes, members, context)
    return (_fit_ridge if kind == "ridge" else _fit_logistic)(units, classes, members)


def _fit_ridge(units: FloatArray, classes: npt.NDArray[np.uint8], members: npt.NDArray[np.intp]) -> FittedHead:
    """W = (Phi' S Phi + lambda K)^-1 Phi' S Y, one class against the rest; S balances the classes.

    Phi is the kernel between units and supports, K that among supports: where every unit is a support, this is
    kernel ridge regression exactly.
    """
    supports = _supports(units)
    phi = kernel(units, supports).astype(np.float64)
    targets = 2.0 * (members[:, None] == np.arange(len(classes))) - 1.0
    counts = np.bincount(members)
    balance = (len(members) / len(classes) / counts)[members]
    weighted = phi.T * balance
    gram = kernel(supports, supports).astype(np.float64)
    normal = weighted @ phi + _RIDGE * gram + 1e-6 * np.eye(len(supports))
    solved = np.linalg.solve(normal, weighted)
    weights = solved @ targets
    fitted = phi @ weights
    # Leave one out in closed form: what the others say of a unit, for an honest temperature.
    reach = np.einsum("ij,ji->i", phi, solved)
    left_out = targets - (targets - fitted) / np.maximum(1.0 - reach, 1e-3)[:, None]
    return FittedHead("ridge", classes, supports, weights.astype(np.float32), _temperature(left_out, members, counts))


def _fit_logistic(units: FloatArray, classes: npt.NDArray[np.uint8], members: npt.NDArray[np.intp]) -> FittedHead:
    supports = _supports(units)
    if len(classes) == 1:
        return FittedHead("logistic", classes, supports, np.zeros((len(supports), 1), np.float32), 1.0)
    from sklearn.linear_model import LogisticRegression

    # In coordinates where the kernel is the inner product, so that the penalty is that of the ridge.
    values, vectors = np.linalg.eigh(kernel(supports, supports).astype(np.float64))
    whiten = vectors / np.sqrt(np.maximum(values, 1e-4))
    model = LogisticRegression(C=_LOGISTIC_C, class_weight="balanced", max_iter=200, tol=1e-3, fit_intercept=False)
    model.fit(kernel(units, supports) @ whiten, members)
    weights = whiten @ model.coef_.T
    if len(classes) == 2:
        weights = np.c_[-weights / 2, weights / 2]
    return FittedHead("logistic", classes, supports, weights.astype(np.float32), 1.0)


def _fit_tokens(
    units: FloatArray,
    classes: npt.NDArray[np.uint8],
    members: npt.NDArray[np.intp],
    context: FloatArray | None,
) -> FittedHead:
    """SLiMe's two losses on the tokens: cross entropy of the attention, and error of the propagated attention."""
    directions = torch.from_numpy(_unit(units))
    targets = torch.from_numpy(members.astype(np.int64))
    one_hot = functional.one_hot(targets, len(classes)).float()
    counts = one_hot.sum(0)
    balance = (len(members) / len(classes) / counts)[targets]
    around = directions if context is None or not len(context) else torch.from_numpy(_unit(context))
    affinity = torch.softmax(directions @ around.T / _CONTEXT_TEMPERATURE, dim=1)
    start = functional.normalize((one_hot.T @ directions) / counts[:, None], dim=1)
    with torch.enable_grad():
        tokens = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([tokens], lr=_TOKEN_RATE)
        for _ in range(_TOKEN_STEPS):
            attention = _TOKEN_SCALE * directions @ tokens.T
            propagated = affinity @ torch.softmax(_TOKEN_SCALE * around @ tokens.T, dim=1)
            loss = (functional.cross_entropy(attention, targets, reduction="none") * balance).mean()
            loss = loss + len(classes) * (((propagated - one_hot) ** 2).mean(1) * balance).mean()
            loss = loss + 0.01 * (tokens**2).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    weights = (_TOKEN_SCALE * tokens.detach().T).contiguous().numpy()
    return FittedHead("tokens", classes, np.zeros((0, units.shape[1]), np.float32), weights, 1.0)


def _supports(units: FloatArray) -> FloatArray:
    """The units themselves, or as many of them as may be, spread over all: each the farthest from those before."""
    if len(units) <= MOST_SUPPORTS:
        return units
    chosen = [0]
    distances = ((units - units[0]) ** 2).sum(axis=1)
    while len(chosen) < MOST_SUPPORTS:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, ((units - units[chosen[-1]]) ** 2).sum(axis=1))
    return units[sorted(chosen)]


def _temperature(scores: npt.NDArray[np.float64], members: npt.NDArray[np.intp], counts: npt.NDArray[np.intp]) -> float:
    """The temperature under which left-out places get the likeliest probabilities, each class counting alike."""
    if len(counts) < 2 or counts.min() < 2:
        return _USUAL_TEMPERATURE
    weight = (1.0 / counts)[members]

    def loss(temperature: float) -> float:
        logits = temperature * scores
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits[np.arange(len(members)), members] - np.log(np.exp(logits).sum(axis=1))
        return float(-(weight * log_p).sum())

    return min(_TEMPERATURES, key=loss)


def _unit(units: npt.NDArray[Any]) -> FloatArray:
    values = units.astype(np.float32, copy=False)
    directions: FloatArray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return directions


@dataclass(frozen=True, eq=False)
class ClassModel:
    """A head with all that it needs to judge another raster.

    `card` is what can be read and shown without the numbers: classes (`{"id", "name", "colour"}`), bands, stretch,
    gsd_m, window_px, hashes of the networks, head kind, whether it votes in segments, history, version, licence.
    """

    space: FeatureSpace
    head: FittedHead
    card: Mapping[str, Any]


def save_class_model(model: ClassModel, path: Path) -> None:
    """Write one safetensors file with the card in its metadata, whole or not at all. Raises `ClassHeadError`."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in _tensors(model).items()}
    numbers = {"kind": model.head.kind, "temperature": model.head.temperature}
    card = json.dumps({"format": _FORMAT, "version": _VERSION, "head": numbers, **model.card}, sort_keys=True)
    content = save(tensors, metadata={"card": card, "sha256": _digest(card, _tensors(model))})
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ClassHeadError(
            f"{path} cannot be written ({error.strerror or error}); choose a folder that you may write to."
        ) from error


def is_class_model(path: Path) -> bool:
    """Say whether a file is a class map model, damaged or not, by its card alone."""
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {}).get("card", ""))
    except (OSError, SafetensorError, ValueError):
        return False
    return isinstance(card, dict) and card.get("format") == _FORMAT


def load_class_model(path: Path) -> ClassModel:
    """Read what `save_class_model` wrote. Raises `ClassHeadError` for any other or a damaged file; runs no code."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise ClassHeadError(f"There is no file {path}; choose a class map model that was saved.") from None
    except (OSError, SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    text = metadata.get("card", "")
    try:
        card = json.loads(text)
    except ValueError as error:
        raise _damaged(path, "its card is not readable") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        raise ClassHeadError(f"{path} is no class map model of SegAdapt; choose one that was saved as such.")
    if card.get("version", 0) > _VERSION:
        raise ClassHeadError(f"{path} was made by a newer SegAdapt (format {card['version']}); update the plugin.")
    if metadata.get("sha256") != _digest(text, tensors):
        raise _damaged(path, "its content is not what was saved")
    try:
        numbers = card.pop("head")
        head = FittedHead(
            numbers["kind"], tensors["classes"], tensors["supports"], tensors["weights"], float(numbers["temperature"])
        )
        return ClassModel(FeatureSpace(tensors["mean"], tensors["basis"]), head, card)
    except (KeyError, TypeError) as error:
        raise _damaged(path, f"{error} is missing") from error


def _damaged(path: Path, reason: str) -> ClassHeadError:
    return ClassHeadError(f"{path} is damaged ({reason}); save the class map model again or get another copy.")


def _tensors(model: ClassModel) -> dict[str, npt.NDArray[Any]]:
    head = model.head
    return {
        "mean": model.space.mean,
        "basis": model.space.basis,
        "classes": head.classes,
        "supports": head.supports,
        "weights": head.weights,
    }


def _digest(card: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"|{name}|{value.dtype}|{value.shape}|".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
