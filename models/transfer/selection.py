"""Which regions of unlabelled chips to label, so that few labels teach much.

Regions are equal squares, or segments: what a person labels in one gesture. `entropy`: where the model is least sure.
`impurity`: RIPU's product of the region's mix of predicted classes and its uncertainty (Xie et al. 2022,
https://arxiv.org/abs/2111.12940). `diversity`: greedy k-centres of the regions' mean features, a core-set (Sener and
Savarese 2018, https://arxiv.org/abs/1708.00489). `hybrid`: k-centres among the regions of largest impurity. `clusters`:
CLUE's centres of as many clusters as there are regions to take, every region weighted by its entropy, so that what is
doubtful is asked for by what is typical of it (Prabhu et al. 2021, https://arxiv.org/abs/2010.08666); of 500 clusters
at most, which then take turns.
`random`: what the others have to beat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, sparse

from ..chips import Chips
from ..progress import NullProgress, Progress, raise_if_cancelled
from ..semantic.card import IGNORE
from ..semantic.prediction import autocast, device_of
from ..semantic.segmenter import Segmenter
from .base import TransferError

STRATEGIES = ("clusters", "hybrid", "impurity", "entropy", "diversity", "random")
"""How regions are chosen, the default first."""
REGION_PX = 16

Segments = npt.NDArray[np.int32]
"""(N, rows, cols): numbers of segments within each chip, 0 for none."""

# Regions with less left to label (without data, or labelled already) are not worth a gesture.
_LEAST_SHARE = 0.5
# The shortlist of `hybrid` holds so many times the budget: enough to differ, few enough to be doubtful.
_SHORTLIST = 4
# More clusters than these take minutes.
_MOST_CLUSTERS = 500


class Region(NamedTuple):
    """A region to label: a window of a chip, and the segment within it (0: the whole window).

    `n_px`: pixels to label. `class_id`: the class that the model sees most there. `score`, 0 to 1: what `hybrid` and
    `impurity` rank by, impurity times entropy; the entropy with the other strategies.
    """

    chip: int
    row: int
    col: int
    rows: int
    cols: int
    segment: int
    n_px: int
    class_id: int
    score: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """R regions and what the model makes of them.

    `windows`: int (R, 6), chip, row, col, rows, cols, segment. `n_px`: int (R,), pixels to label. `class_ids`: int
    (R,), most frequent class. `entropy`: (R,), mean over the pixels, relative to the largest possible: 0 to 1.
    `impurity`: (R,), entropy of the shares of predicted classes, likewise. `features`: float32 (R, D), mean of what
    the model's head sees. `known_features`: float32 (K, D), the same of what is labelled already.
    """

    windows: npt.NDArray[np.int64]
    n_px: npt.NDArray[np.int64]
    class_ids: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]
    impurity: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]
    known_features: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.windows)


def select_regions(
    model: Segmenter,
    chips: Chips,
    *,
    strategy: str = STRATEGIES[0],
    region_px: int = REGION_PX,
    budget_px: int | None = None,
    budget_regions: int | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
    segments: Segments | None = None,
    known: npt.NDArray[np.bool_] | None = None,
) -> list[Region]:
    """The regions to label, the most useful first; the chips' labels are never looked at.

    The budget is a number of pixels, of regions (gestures), or both. Without `segments` regions are squares with a
    side of `region_px`, smaller at the chips' edges. `known`: bool (N, rows, cols), what is labelled already; regions
    there are left out, and `hybrid` and `diversity` look for what differs from it. `seed` decides between equals.
    Raises `TransferError` for what `choose_regions` and `describe_regions` say, and `Cancelled`.
    """
    _check(strategy, budget_px, budget_regions)
    found = describe_regions(
        model, chips, region_px=region_px, batch=batch, progress=progress, segments=segments, known=known
    )
    return choose_regions(
        found, strategy=strategy, budget_px=budget_px, budget_regions=budget_regions, seed=seed, progress=progress
    )


def describe_regions(
    model: Segmenter,
    chips: Chips,
    *,
    region_px: int = REGION_PX,
    batch: int = 8,
    progress: Progress | None = None,
    segments: Segments | None = None,
    known: npt.NDArray[np.bool_] | None = None,
) -> Candidates:
    """Every region of the chips that has at least half of its pixels still to label.

    Raises `TransferError` for a region size under 1 and for segments of another shape than the chips, and `Cancelled`
    between batches.
    """
    progress = progress or NullProgress()
    if region_px < 1:
        raise TransferError(f"Regions of {region_px} px; give a side of 1 pixel or more.")
    for other, what in ((segments, "Segments"), (known, "Known places")):
        if other is not None and other.shape != chips.labels.shape:
            raise TransferError(f"{what} of shape {other.shape} for chips of {chips.labels.shape}; give one map each.")
    model.eval()
    squares = _square_numbers(chips.labels.shape[1], chips.labels.shape[2], region_px)
    parts: list[Candidates] = []
    for start in range(0, len(chips), batch):
        raise_if_cancelled(progress)
        pixels = torch.from_numpy(chips.pixels[start : start + batch]).to(device_of(model), torch.float32)
        with torch.inference_mode(), autocast(pixels.device):
            outputs = model.outputs(pixels)
        shares = torch.softmax(outputs.logits.float(), dim=1).cpu().numpy()
        features = outputs.features.float().cpu().numpy()
        for n in range(len(shares)):
            chip = start + n
            is_known = np.zeros_like(chips.valid[chip]) if known is None else known[chip]
            numbers = squares if segments is None else segments[chip]
            parts.append(
                describe_chip(
                    shares[n],
                    features[n],
                    numbers,
                    chip=chip,
                    usable=chips.valid[chip] & ~is_known,
                    known=chips.valid[chip] & is_known,
                    is_square=segments is None,
                )
            )
        progress.set_fraction(min(start + batch, len(chips)) / len(chips))
    return joined_candidates(parts)


def describe_chip(
    shares: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    numbers: npt.NDArray[np.int32],
    *,
    chip: int,
    usable: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    is_square: bool,
) -> Candidates:
    """The regions of one chip.

    `shares`: probabilities (C, rows, cols). `features`: (D, h, w), h and w at any scale. `numbers`: (rows, cols), the
    region of each pixel, 0 for none. `usable`, `known`: bool (rows, cols), pixels to label and labelled ones.
    """
    n_classes, rows, cols = shares.shape
    names, index = np.unique(numbers, return_inverse=True)
    index = index.reshape(rows, cols)
    n_regions = len(names)

    def per_region(mask: npt.NDArray[np.bool_], weights: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
        of_mask = None if weights is None else weights[mask]
        return np.bincount(index[mask], of_mask, minlength=n_regions).astype(np.float64)

    n_px, size = per_region(usable), per_region(np.ones_like(usable))
    labels = shares.argmax(axis=0)
    pixel_entropy = -(shares * np.log(shares.clip(1e-12))).sum(axis=0) / np.log(n_classes)
    counts = np.stack([per_region(usable & (labels == one)) for one in range(n_classes)], axis=1)
    n_or_one = n_px.clip(1)
    mix = counts / n_or_one[:, None]
    impurity = -(mix * np.log(mix.clip(1e-12))).sum(axis=1) / np.log(n_classes)

    cells = features.reshape(len(features), -1).T
    cell = (
        np.arange(rows)[:, None] * features.shape[1] // rows * features.shape[2]
        + np.arange(cols)[None] * features.shape[2] // cols
    )

    def mean_features(mask: npt.NDArray[np.bool_], n: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        shape = (n_regions, len(cells))
        member = sparse.csr_matrix((np.ones(int(mask.sum()), np.float32), (index[mask], cell[mask])), shape=shape)
        return np.asarray((member @ cells) / n.clip(1)[:, None], np.float32)

    boxes = ndimage.find_objects(index.astype(np.int32) + 1)
    windows = np.array(
        [
            (chip, r.start, c.start, r.stop - r.start, c.stop - c.start, 0 if is_square else name)
            for name, (r, c) in zip(names, boxes, strict=True)
        ],
        np.int64,
    )
    chosen = (names != 0) & (n_px > 0) & (n_px >= _LEAST_SHARE * size)
    n_known = per_region(known)
    return Candidates(
        windows[chosen],
        n_px[chosen].astype(np.int64),
        counts.argmax(axis=1)[chosen],
        (per_region(usable, pixel_entropy) / n_or_one)[chosen].clip(0, 1),
        impurity[chosen].clip(0, 1),
        mean_features(usable, n_px)[chosen],
        mean_features(known, n_known)[(names != 0) & (n_known > 0)],
    )


def choose_regions(
    found: Candidates,
    *,
    strategy: str = STRATEGIES[0],
    budget_px: int | None = None,
    budget_regions: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Region]:
    """Regions in the order of a strategy until the budget is spent; those that no longer fit are passed over.

    Raises `TransferError` for an unknown strategy, where there is nothing to label, and for a budget that is missing,
    larger than what there is to label, or smaller than the smallest region; `Cancelled` between centres.
    """
    _check(strategy, budget_px, budget_regions)
    progress = progress or NullProgress()
    if not len(found):
        raise TransferError("There is no region left to label; give images with data that are not labelled yet.")
    total = int(found.n_px.sum())
    if budget_px is not None and budget_px > total:
        raise TransferError(f"A budget of {budget_px} pixels, but only {total} can be labelled; give a smaller budget.")
    if budget_regions is not None and budget_regions > len(found):
        raise TransferError(
            f"A budget of {budget_regions} regions, but there are only {len(found)}; give a smaller budget or smaller "
            "regions."
        )
    smallest = int(found.n_px.min())
    if budget_px is not None and budget_px < smallest:
        raise TransferError(
            f"A budget of {budget_px} pixels is smaller than the smallest region of {smallest}; give a larger budget "
            "or smaller regions."
        )
    left_px = total if budget_px is None else budget_px
    left = len(found) if budget_regions is None else budget_regions
    scores = _scores(found, strategy)
    chosen: list[Region] = []
    for number in _order(found, strategy, budget_px=left_px, budget_regions=left, seed=seed):
        raise_if_cancelled(progress)
        if left < 1 or left_px < smallest:
            break
        if found.n_px[number] > left_px:
            continue
        left, left_px = left - 1, left_px - int(found.n_px[number])
        chip, row, col, rows, cols, segment = (int(value) for value in found.windows[number])
        n_px, class_id = int(found.n_px[number]), int(found.class_ids[number])
        chosen.append(Region(chip, row, col, rows, cols, segment, n_px, class_id, float(scores[number])))
    return chosen


def joined_candidates(parts: Sequence[Candidates]) -> Candidates:
    """All regions of `parts`, whose features must be of one model; none for no parts."""
    if not parts:
        nothing, features = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return Candidates(
            np.zeros((0, 6), np.int64),
            nothing,
            nothing,
            nothing.astype(np.float64),
            nothing.astype(np.float64),
            features,
            features,
        )

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return Candidates(*(all_of(one.name) for one in fields(Candidates)))


def labelled_by(chips: Chips, regions: Sequence[Region], *, segments: Segments | None = None) -> Chips:
    """The chips with their labels inside the regions only, `IGNORE` elsewhere: what somebody who labels them gives.

    `segments`: those that the regions were chosen from, if they are no squares. Raises `TransferError` without them.
    """
    labels = np.full_like(chips.labels, IGNORE)
    for one in regions:
        place = (one.chip, slice(one.row, one.row + one.rows), slice(one.col, one.col + one.cols))
        if one.segment and segments is None:
            raise TransferError("The regions are segments; give the maps of segments that they were chosen from.")
        inside = np.ones((one.rows, one.cols), np.bool_) if segments is None else segments[place] == one.segment
        labels[place][inside] = chips.labels[place][inside]
    return chips.with_labels(labels)


def _check(strategy: str, budget_px: int | None, budget_regions: int | None) -> None:
    if strategy not in STRATEGIES:
        raise TransferError(f"Unknown strategy '{strategy}'; choose from {', '.join(STRATEGIES)}.")
    budgets = [one for one in (budget_px, budget_regions) if one is not None]
    if not budgets or min(budgets) < 1:
        raise TransferError(f"A budget of {budgets[0] if budgets else 'nothing'}; give 1 pixel or region at least.")


def _scores(found: Candidates, strategy: str) -> npt.NDArray[np.float64]:
    return found.entropy * found.impurity if strategy in ("hybrid", "impurity") else found.entropy


def _order(found: Candidates, strategy: str, *, budget_px: int, budget_regions: int, seed: int) -> Iterator[int]:
    """Numbers of regions, the most useful first."""
    by_chance = np.random.default_rng(seed).permutation(len(found))
    if strategy == "random":
        return (int(number) for number in by_chance)
    if strategy == "diversity":
        return _centres(found, by_chance)
    if strategy == "clusters":
        n_wanted = min(budget_regions, max(1, round(budget_px / float(np.median(found.n_px)))))
        return _typical(found, n_wanted, seed=seed)
    scores = _scores(found, strategy)
    # Regions of one class have no impurity: among them the least sure comes first, then chance.
    ranked = by_chance[np.lexsort((-found.entropy[by_chance], -scores[by_chance]))]
    if strategy != "hybrid":
        return (int(number) for number in ranked)
    spent_px = np.cumsum(found.n_px[ranked])

    def n_for(times: int) -> int:
        return min(int(np.searchsorted(spent_px, times * budget_px)) + 1, times * budget_regions)

    # What the model has no doubt of is taken only where there is not enough else.
    n_short = min(n_for(_SHORTLIST), max(n_for(1), int((scores > 0).sum())))
    return _centres(found, ranked[:n_short])


def _centres(found: Candidates, choices: npt.NDArray[np.int64]) -> Iterator[int]:
    """Greedy k-centres among `choices`: the one farthest from those taken and known; without any the first."""
    # Distances from products are many times faster; about the mean they lose no digits that matter.
    middle = found.features.mean(axis=0)
    features = found.features[choices] - middle
    squares = (features**2).sum(axis=1)
    nearest = np.full(len(choices), np.inf, np.float32)

    def approach(centre: npt.NDArray[np.float32]) -> None:
        np.minimum(nearest, squares + (centre**2).sum() - 2 * (features @ centre), out=nearest)

    for known in found.known_features:
        approach(known - middle)
    for _ in range(len(choices)):
        place = int(nearest.argmax())
        approach(features[place])
        # Below every distance, which may be a little less than 0: never again.
        nearest[place] = -np.inf
        yield int(choices[place])


def _typical(found: Candidates, n_wanted: int, *, seed: int) -> Iterator[int]:
    """The region nearest to the centre of each cluster, the heaviest cluster first; then the next nearest, and so on.

    What is labelled already speaks for its cluster, which has had its first turn.
    """
    from sklearn.cluster import MiniBatchKMeans

    weights = found.entropy + 1e-6
    n_clusters = min(n_wanted + len(found.known_features), len(found), _MOST_CLUSTERS)
    # With the most clusters one start is as good as the best of three, which take longer than all that follows.
    n_starts = 1 if n_clusters == _MOST_CLUSTERS else 3
    means = MiniBatchKMeans(n_clusters, random_state=seed, n_init=n_starts, batch_size=4096)
    labels = means.fit_predict(found.features, sample_weight=weights)
    distances = ((found.features - means.cluster_centers_[labels]) ** 2).sum(axis=1)
    by_cluster = np.lexsort((distances, labels))
    turns = np.empty(len(found), np.int64)
    turns[by_cluster] = np.arange(len(found)) - np.searchsorted(labels[by_cluster], labels[by_cluster])
    if len(found.known_features):
        turns += np.isin(labels, means.predict(found.known_features))
    heaviest = np.bincount(labels, weights, minlength=n_clusters)[labels]
    return (int(number) for number in np.lexsort((labels, -heaviest, turns)))


def _square_numbers(rows: int, cols: int, side: int) -> npt.NDArray[np.int32]:
    n_across = -(-cols // side)
    numbers = np.arange(rows)[:, None] // side * n_across + np.arange(cols)[None] // side + 1
    return numbers.astype(np.int32)
