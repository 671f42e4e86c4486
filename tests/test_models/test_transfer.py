"""Every method without labels on a small domain shift whose truth is known, the no-harm rule, and how far it is.

The source: ground, roofs and ponds of 64 px chips. The target: the same kind of scenes through haze of another colour
for each band, blurred, with noise. What the source's model gets right of it is little, and each method has to win back
a part that was found to be typical of it.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from segadapt.models.chips import Chips, joined_chips, unlabelled_chips
from segadapt.models.errors import Cancelled
from segadapt.models.metrics import mean_iou
from segadapt.models.progress import NullProgress
from segadapt.models.semantic.card import IGNORE, SegmenterCard, SegmenterClass
from segadapt.models.semantic.prediction import evaluate_chips
from segadapt.models.semantic.segmenter import build_segmenter, load_published_encoder
from segadapt.models.training import Descent, TrainingOptions, fit
from segadapt.models.transfer import agreement as no_harm
from segadapt.models.transfer.adapting import mean_where, norm_parameters, usable_chips, whole_chips
from segadapt.models.transfer.agreement import Agreement, changed_most, judge, measure_agreement, surest_kept
from segadapt.models.transfer.base import Problem, TransferError, get_method, list_methods, make_method
from segadapt.models.transfer.chain import adapt_in_order, is_rehearsed, names_of, source_weight
from segadapt.models.transfer.entropy import Entropy
from segadapt.models.transfer.fourier import restyled
from segadapt.models.transfer.masked_consistency import patch_mask
from segadapt.models.transfer.masked_image import MaskedImage
from segadapt.models.transfer.norm_statistics import NormStatistics, estimate
from segadapt.models.transfer.pseudo_labels import aligned, class_mix, pseudo_labels, rare_first
from segadapt.models.transfer.quantile import Quantile
from segadapt.models.transfer.reinhard import Reinhard
from segadapt.models.transfer.self_training import SelfTraining
from segadapt.models.transfer.shift import advise, frechet_distance, measure_shift, proxy_a_distance
from segadapt.models.transfer.statistics import source_statistics

SIDE = 64
CLASSES = (
    SegmenterClass(0, "ground", (110, 110, 110)),
    SegmenterClass(1, "roof", (213, 94, 0)),
    SegmenterClass(2, "pond", (0, 114, 178)),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scenes(n, seed):
    """Pixels float (n, 3, side, side) and labels."""
    random = np.random.default_rng(seed)
    labels = np.zeros((n, SIDE, SIDE), np.uint8)
    pixels = np.zeros((n, 3, SIDE, SIDE))
    for i in range(n):
        ground = ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 3)
        base = np.array([105, 115, 85])[:, None, None] + random.normal(0, 6)
        pixels[i] = base + ground / ground.std() * 14 + random.normal(0, 5, (3, SIDE, SIDE))
        for class_id, colour, n_objects in (
            (1, (175, 160, 150), random.integers(1, 3)),
            (2, (45, 60, 70), random.integers(0, 2)),
        ):
            for _ in range(n_objects):
                height, width = random.integers(14, 26, 2)
                y, x = random.integers(0, SIDE - height), random.integers(0, SIDE - width)
                labels[i, y : y + height, x : x + width] = class_id
                rough = ndimage.gaussian_filter(random.normal(size=(height, width)), 1)
                pixels[i, :, y : y + height, x : x + width] = (
                    np.array(colour)[:, None, None]
                    + random.normal(0, 8)
                    + rough / rough.std() * 6
                    + random.normal(0, 5, (3, height, width))
                )
    return pixels.clip(0, 255), labels


def shifted(pixels, seed):
    """The same scenes as another sensor sees them through haze."""
    random = np.random.default_rng(seed)
    changed = 255 * (pixels / 255) ** 1.8
    changed = changed * np.array([0.6, 0.45, 0.7])[:, None, None] + np.array([90, 60, 10])[:, None, None]
    changed = ndimage.gaussian_filter(changed, (0, 0, 1.0, 1.0)) + random.normal(0, 8, pixels.shape)
    return changed.clip(0, 255)


def chips_of(pixels, labels):
    n = len(pixels)
    valid = np.ones(labels.shape, np.bool_)
    return Chips(pixels.astype(np.uint8), labels, valid, np.arange(n, dtype=np.int64) // 2, np.zeros((n, 2), np.int64))


def make_card(**changes):
    values = {
        "name": "scenes",
        "decoder": "fpn",
        "encoder": "tf_efficientnet_lite0",
        "bands": ("red", "green", "blue"),
        "classes": CLASSES,
        "gsd_m": 0.5,
        "chip_px": SIDE,
        "mean": (127.0,) * 3,
        "std": (64.0,) * 3,
        "licence": "test",
        "made_on": "2026-01-01",
        "segadapt_version": "0",
    }
    return SegmenterCard(**(values | changes))


@pytest.fixture(scope="module")
def world(_one_thread):
    """A model of the source, chips of both domains, and how good the model is on either."""
    source = chips_of(*scenes(32, 0))
    pixels, labels = scenes(24, 1)
    target = chips_of(shifted(pixels, 5), labels)
    test_pixels, test_labels = scenes(16, 2)
    torch.manual_seed(0)
    model = build_segmenter(make_card())
    load_published_encoder(model)
    fit(model, source, None, TrainingOptions(n_steps=24, batch=4, n_checks=1, rate=2e-3, patience=None))
    statistics, tensors = source_statistics(model, source)
    model.card = replace(model.card, statistics=statistics)
    test = chips_of(shifted(test_pixels, 6), test_labels)
    at_home = chips_of(test_pixels, test_labels)
    return SimpleNamespace(
        model=model,
        source=source,
        target=target.unlabelled(),
        test=test,
        at_home=at_home,
        tensors=tensors,
        best=quality(model, at_home),
        lost=quality(model, test),
        agreement=measure_agreement(model, test),
    )


def quality(model, chips):
    return mean_iou(evaluate_chips(model, chips))


def adapted(world, names, *, n_steps=16, with_source=False, source_weight=0.0, **more):
    """What the methods come to, nothing taken back."""
    model = copy.deepcopy(world.model)
    problem = Problem(
        target=world.target,
        source=world.source if with_source else None,
        statistics=world.tensors,
        n_steps=n_steps,
        batch=4,
        source_weight=source_weight,
        **more,
    )
    adapt_in_order(model, problem, names_of(names), NullProgress())
    return model


def test_the_shift_costs_half(world):
    assert world.best > 0.8
    assert world.lost < 0.5


# The least share of what was lost that each has to win back; more than the first methods of a chain, or new averages in
# those of entropy, win alone (`quantile` 0.69, `norm_statistics` 0.65).
@pytest.mark.parametrize(
    ("names", "least", "with_source"),
    [
        ("quantile", 0.5, False),
        ("reinhard", 0.4, False),
        ("norm_statistics", 0.4, False),
        ("quantile+norm_statistics", 0.7, False),
        ("fourier", 0.45, True),
        ("entropy", 0.74, False),
        ("entropy_diversity", 0.78, False),
        ("quantile+self_training", 0.85, False),
        ("quantile+masked_consistency", 0.85, False),
        ("masked_image+quantile+entropy_diversity", 0.9, False),
    ],
)
def test_a_method_wins_back_what_the_shift_costs(world, names, least, with_source):
    model = adapted(world, names, with_source=with_source)
    assert not model.training
    won = (quality(model, world.test) - world.lost) / (world.best - world.lost)
    assert won > least
    # And the rule that knows no labels keeps it.
    after = measure_agreement(model, world.test)
    assert judge(world.agreement, after, world.model.card).is_kept


@pytest.mark.parametrize("name", ["self_training", "masked_consistency"])
def test_the_default_without_the_source_wins_back_what_a_milder_shift_costs(world, name):
    """Nothing is mapped first, and the weights go two thirds of the way back: through haze of which 65 % is there."""
    seen, unseen = scenes(24, 1), scenes(16, 2)
    target, test = (chips_of(0.35 * pixels + 0.65 * shifted(pixels, 5), labels) for pixels, labels in (seen, unseen))
    lost = quality(world.model, test)
    assert lost < world.best - 0.1
    model = copy.deepcopy(world.model)
    problem = Problem(target=target.unlabelled(), statistics=world.tensors, n_steps=16, batch=4)
    assert source_weight(problem, [name]) == pytest.approx(2 / 3)
    adapt_in_order(model, problem, [name], NullProgress())
    # About half of it here.
    assert (quality(model, test) - lost) / (world.best - lost) > 0.3
    agreements = [measure_agreement(one, test) for one in (world.model, model)]
    assert judge(*agreements, world.model.card, kept=surest_kept(world.model, model, test)).is_kept


def two_sides(n, seed):
    """Chips of 32 px, a bright and a dark side with a straight border anywhere, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    pixels = random.normal(0, 8, (n, 3, 32, 32))
    for i in range(n):
        angle = random.uniform(0, 2 * np.pi)
        pixels[i] += np.where(np.cos(angle) * x + np.sin(angle) * y > random.uniform(-6, 6), 170, 90)
    return unlabelled_chips(pixels.clip(0, 255).astype(np.uint8))


def drawing_errors(model, known, unseen):
    """Squared error of hidden pixels of `unseen`, drawn by ridge regression on the deepest features, and by the mean.

    The regression is fitted anew on `known` for each model, so that only what the encoder knows makes a difference.
    """
    sides = []
    for seed, chips in enumerate((known, unseen)):
        pixels = torch.from_numpy(chips.pixels).float()
        hidden = MaskedImage()._hidden(pixels, torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            deepest = model.encode(torch.where(hidden[:, None], 127.0, pixels))[-1].flatten(1)
        sides.append((deepest, (pixels - 127) / 64, hidden))
    (features, drawn, _), (others, truth, hidden) = sides
    middle, spread = features.mean(0), features.std(0) + 1e-6
    first, second = (torch.cat([(some - middle) / spread, torch.ones(len(some), 1)], 1) for some in (features, others))
    weights = torch.linalg.solve(first.T @ first + 100 * torch.eye(first.shape[1]), first.T @ drawn.flatten(1))
    guesses = ((second @ weights).reshape(truth.shape), drawn.mean(0, keepdim=True))
    return [float(((guess - truth) ** 2).mean(1)[hidden].mean()) for guess in guesses]


def test_filling_in_pixels_teaches_the_encoder_how_the_target_is_built(world):
    """Hidden pixels of chips that it never saw are drawn better from its features than before, and than by the mean.

    That is all that is shown, and with an encoder that learns faster than usual, so that few steps will do. That
    labels come out better is not: on the scenes above a chain wins back as much without this stage.
    """
    known, unseen = two_sides(512, 0), two_sides(128, 1)
    before, _ = drawing_errors(world.model, known, unseen)
    model = copy.deepcopy(world.model)
    pretraining = MaskedImage(steps=1.0, encoder_rate=0.3)
    pretraining.adapt(model, Problem(target=known, n_steps=40, batch=8), NullProgress())
    after, of_mean = drawing_errors(model.eval(), known, unseen)
    assert after < 0.85 * before
    assert after < 0.75 * of_mean


def test_every_method_is_tested_here():
    tested = {"quantile", "reinhard", "norm_statistics", "fourier", "entropy", "entropy_diversity"}
    assert {method.name for method in list_methods()} == tested | {
        "self_training",
        "masked_consistency",
        "masked_image",
    }
    for method in list_methods():
        assert method.title
        assert method.summary.endswith(".")
        assert "http" in method.reference or "arXiv" in method.reference or "Gonzalez" in method.reference
        # A file each, which says where the method comes from.
        assert method.__module__.endswith(f".{method.name}")
        said = sys.modules[method.__module__].__doc__
        assert "https://" in said or "Gonzalez" in said


def test_self_training_goes_on_from_sure_answers(world):
    """Started from mapped values, it is better than what it starts from, and with rehearsal too."""
    start = quality(adapted(world, "quantile"), world.test)
    assert quality(adapted(world, "quantile+self_training", n_steps=10, with_source=True), world.test) > start


def test_a_rate_beyond_numbers_is_said(world):
    """Any rate can be typed into a chain; the gradients are numbers still when the weights are none."""
    with pytest.raises(TransferError, match="no numbers any more; choose a smaller rate"):
        adapted(world, "self_training(rate=1e30)", n_steps=4)


def test_a_class_that_is_hardly_found_does_not_take_over(world):
    model = adapted(world, "self_training", n_steps=10)
    shares = measure_agreement(model, world.test).shares
    assert shares[2] < 0.3


def test_the_target_in_its_own_light_is_left_as_good(world):
    """Without a shift nothing is to be won, and hardly anything may be lost."""
    for method in (Quantile(), Reinhard(), NormStatistics()):
        model = copy.deepcopy(world.model)
        method.adapt(model, Problem(target=world.at_home.unlabelled(), batch=4), NullProgress())
        assert quality(model, world.at_home) > world.best - 0.06


def test_labels_of_the_target_are_not_looked_at(world):
    lying = world.target.with_labels(np.full_like(world.target.labels, 2))
    states = []
    for target in (world.target, lying):
        model = copy.deepcopy(world.model)
        SelfTraining().adapt(model, Problem(target=target, n_steps=1, batch=4), NullProgress())
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_methods_follow_the_seed(world):
    states = [adapted(world, "entropy", n_steps=2, seed=seed).state_dict() for seed in (0, 0, 1)]
    same, other = (
        all(torch.equal(value, one[name]) for name, value in states[0].items()) for one in (states[1], states[2])
    )
    assert same
    assert not other


class _Impatient:
    def __init__(self, n):
        self.n = n

    def set_fraction(self, fraction):
        pass

    def info(self, text):
        pass

    def is_cancelled(self):
        self.n -= 1
        return self.n < 0


def test_a_cancel_leaves_averages_as_they_were(world):
    model = copy.deepcopy(world.model)
    with pytest.raises(Cancelled):
        NormStatistics().adapt(model, Problem(target=world.target, batch=4), _Impatient(2))
    after = model.state_dict()
    averages = [name for name in after if "running_" in name]
    assert len(averages) > 40
    assert all(torch.equal(after[name], world.model.state_dict()[name]) for name in averages)


@pytest.mark.parametrize(("n", "batch", "sizes"), [(9, 4, [3, 3, 3]), (8, 4, [4, 4]), (5, 2, [3, 2]), (3, 1, [1] * 3)])
def test_averages_come_from_equal_batches(world, monkeypatch, n, batch, sizes):
    model, seen = copy.deepcopy(world.model), []
    monkeypatch.setattr(model, "forward", lambda pixels: seen.append(len(pixels)))
    estimate(model, world.target.take(range(n)), alpha=1.0, batch=batch, seed=0, progress=NullProgress())
    assert seen == sizes


def test_averages_of_chips_that_leave_one_value():
    """Of chips of 32 px the deepest cell is the only one."""
    model = build_segmenter(make_card(encoder="lcnet_050"))
    chips = unlabelled_chips(np.random.default_rng(0).integers(0, 255, (3, 3, 32, 32)).astype(np.uint8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TransferError, match="One chip of 32 x 32 px at a time"):
        NormStatistics().adapt(model, Problem(target=chips, batch=1), NullProgress())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)
    NormStatistics().adapt(model, Problem(target=chips, batch=2), NullProgress())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)


def torn(chips):
    """The chips without data in their last quarter."""
    pixels, valid, first = chips.pixels.copy(), chips.valid.copy(), 3 * SIDE // 4
    pixels[..., first:], valid[..., first:] = 0, False
    return Chips(pixels, chips.labels, valid, chips.blocks, chips.origins)


def test_what_has_no_data_does_not_count():
    values = torch.arange(12.0).reshape(1, 3, 2, 2)
    counted = torch.tensor([[[True, False], [True, False]]])
    assert mean_where(values, counted).tolist() == [1.0, 5.0, 9.0]
    assert mean_where(values[:, 0], counted).item() == 1.0
    assert mean_where(values[:, 0], ~torch.zeros_like(counted)).item() == 1.5
    assert mean_where(values, torch.zeros_like(counted)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["entropy", "entropy_diversity", "masked_image", "fourier"])
def test_no_gradient_comes_from_pixels_without_data(world, monkeypatch, method):
    """The loss of chips that have none anywhere is that of the source alone."""
    losses = []
    monkeypatch.setattr(Descent, "step", lambda self, loss: losses.append(loss.item()))
    monkeypatch.setattr("segadapt.models.transfer.fourier.segmentation_loss", lambda *args, **more: 0)
    empty = replace_valid(world.target, np.zeros_like(world.target.valid))
    for target in (world.target, empty):
        model = copy.deepcopy(world.model)
        get_method(method)().adapt(
            model, Problem(target=target, source=world.source, n_steps=1, batch=2), NullProgress()
        )
    assert losses[0] != 0
    assert losses[1] == 0


def test_whole_chips_come_first_where_there_are_enough(world):
    target = world.target
    ragged = torn(target)
    mixed = joined_chips([ragged, target.take(range(8))])
    assert whole_chips(mixed) == list(range(24, 32))
    assert whole_chips(joined_chips([ragged, target.take(range(7))])) == list(range(31))
    assert whole_chips(target) == usable_chips(target)
    # So that nothing of the ragged ones is in the averages, and in the features of either domain.
    means = []
    for chips in (mixed, target.take(range(8))):
        model = copy.deepcopy(world.model)
        estimate(model, chips, alpha=1.0, batch=8, seed=0, progress=NullProgress())
        means.append(model.encoder.model.bn1.running_mean)
    assert torch.allclose(*means, atol=1e-5)
    source = world.source.take(range(8))
    alone = source_statistics(world.model, source)[1]
    for name, value in source_statistics(world.model, joined_chips([source, torn(world.source)]))[1].items():
        assert torch.allclose(value, alone[name], atol=1e-5), name
    one, other = (
        measure_shift(world.model, chips, statistics=world.tensors) for chips in (mixed, target.take(range(8)))
    )
    assert one.frechet == pytest.approx(other.frechet)


def test_a_drawing_lies_over_the_chip_that_was_padded(world, monkeypatch):
    """Each deepest cell draws its own 32 px, where the chip ends within one, too."""
    zooms, shuffle = [], torch.nn.functional.pixel_shuffle
    monkeypatch.setattr(torch.nn.functional, "pixel_shuffle", lambda x, zoom: zooms.append(zoom) or shuffle(x, zoom))
    chips = unlabelled_chips(world.target.pixels[:2, :, :50, :40])
    MaskedImage(steps=1).adapt(copy.deepcopy(world.model), Problem(target=chips, n_steps=1, batch=2), NullProgress())
    assert zooms == [32]


def test_what_a_method_needs_is_said(world):
    problem = Problem(target=world.target, n_steps=1)
    with pytest.raises(TransferError, match="labelled chips of the source"):
        get_method("fourier")().adapt(copy.deepcopy(world.model), problem, NullProgress())
    plain = build_segmenter(make_card())
    with pytest.raises(TransferError, match="which values its source had"):
        Quantile().adapt(plain, problem, NullProgress())
    transformer = build_segmenter(make_card(decoder="dpt", encoder="vit_tiny_patch16_224"))
    for module in transformer.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean = None
    with pytest.raises(TransferError, match="no batch normalisation"):
        NormStatistics().adapt(transformer, problem, NullProgress())
    no_data = replace_valid(world.target, np.zeros_like(world.target.valid))
    with pytest.raises(TransferError, match="no pixel with data"):
        Quantile().adapt(copy.deepcopy(world.model), Problem(target=no_data), NullProgress())
    one = world.target
    two = Chips(one.pixels[:, :2], one.labels, one.valid, one.blocks, one.origins)
    with pytest.raises(TransferError, match="3 bands, the target 2"):
        Problem(target=two, source=world.source)
    with pytest.raises(TransferError, match="one map of segments"):
        Problem(target=world.target, segments=np.zeros((1, 2, 2), np.int32))
    with pytest.raises(TransferError, match="No method"):
        names_of(" + ")
    with pytest.raises(TransferError, match="'tent'"):
        names_of("quantile+tent")


def test_options_of_methods_are_read_from_the_text():
    text = " norm_statistics ( alpha = .5 , n_passes=2) + quantile() + self_training(rate=1e-4, odds=1e+1, ema=0.98)"
    names = names_of(text)
    # In one way of writing, what is as usual left out; read again it is the same.
    assert names == ("norm_statistics(alpha=0.5, n_passes=2)", "quantile", "self_training(odds=10.0, rate=0.0001)")
    assert names_of("+".join(names)) == names
    assert make_method(names[0]) == NormStatistics(alpha=0.5, n_passes=2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("norm_statistics(beta=1)", "'norm_statistics' has no option 'beta'; it has alpha, n_passes"),
        ("reinhard(alpha=1)", "'reinhard' has no option 'alpha'; it has none"),
        ("norm_statistics(0.5)", "no option '0.5'"),
        ("norm_statistics(alpha=half)", "'alpha' of 'norm_statistics' is 'half'; give a number, as in norm_statistics"),
        ("norm_statistics(alpha=nan)", "'nan'"),
        ("norm_statistics(alpha)", "is ''; give a number"),
        ("norm_statistics(n_passes=1.5)", "'1.5'; give a whole number"),
        ("norm_statistics(n_passes=0)", "is 0; give a number of at least 1"),
        ("norm_statistics(alpha=2)", "is 2; give a number from 0 to 1"),
        ("self_training(rate=-1)", "is -1; give a number of at least 0"),
        ("norm_statistics(alpha=0, alpha=1)", "given twice"),
        ("norm_statistics(alpha=0.5", "have no end"),
        ("norm_statistics(alpha=0.5)more", "have no end"),
    ],
)
def test_options_that_make_no_sense_are_said(text, sentence):
    with pytest.raises(TransferError) as error:
        names_of(f"quantile+{text}")
    assert sentence in str(error.value)


@pytest.mark.parametrize("is_most", [False, True])
@pytest.mark.parametrize("method", list_methods())
def test_options_may_be_at_their_limits(world, method, is_most):
    """So that no number that is let through ends in an error of arithmetic."""
    options = {}
    for option in fields(method):
        limits = method.limits.get(option.name, (1 if isinstance(option.default, int) else 0, math.inf))
        options[option.name] = min(limits[is_most], 3 * option.default)
    model, source = copy.deepcopy(world.model), world.source.take([0, 1])
    problem = Problem(target=world.target.take([0, 1]), source=source, n_steps=1, batch=2)
    method(**options).adapt(model, problem, NullProgress())
    assert all(weights.isfinite().all() for weights in model.state_dict().values())


def test_an_option_changes_what_comes_out(world):
    assert torch.equal(
        adapted(world, "norm_statistics(alpha=0)").encoder.model.bn1.running_mean,
        world.model.encoder.model.bn1.running_mean,
    )
    assert not is_rehearsed(Problem(target=world.target, source=world.source), ["quantile(strength=0.5)"])
    assert source_weight(Problem(target=world.target), ["quantile(strength=0.5)"]) == 0


def replace_valid(chips, valid):
    return Chips(chips.pixels, chips.labels, valid, chips.blocks, chips.origins)


def test_entropy_tunes_normalisation_alone(world):
    model = copy.deepcopy(world.model)
    Entropy().adapt(model, Problem(target=world.target, n_steps=2, batch=4), NullProgress())
    before, after = dict(world.model.named_parameters()), dict(model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    for name in changed:
        assert before[name].ndim == 1, name


def test_layer_norms_are_tuned_where_there_are_no_averages():
    """The affine variant for transformers."""
    torch.manual_seed(0)
    model = build_segmenter(make_card(decoder="dpt", encoder="vit_tiny_patch16_224"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    pixels, labels = scenes(4, 3)
    Entropy(margin=1.0).adapt(model, Problem(target=chips_of(pixels, labels), n_steps=1, batch=2), NullProgress())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("norm" in name and "encoder" in name for name in changed)
    of_norms = {id(parameter) for parameter in norm_parameters(model)}
    assert all(id(parameter) in of_norms for name, parameter in model.named_parameters() if name in changed)


def test_low_frequencies_change_sides():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 60 + 40
    styles = torch.rand(2, 3, 16, 16, generator=generator) * 60 + 150
    changed = restyled(pixels, styles, beta=0.0)
    assert torch.allclose(changed.mean((2, 3)), styles.mean((2, 3)), atol=2.0)
    # All but the mean stays.
    assert torch.allclose(
        changed - changed.mean((2, 3), keepdim=True), pixels - pixels.mean((2, 3), keepdim=True), atol=0.1
    )
    assert torch.allclose(restyled(pixels, pixels, beta=0.2), pixels, atol=0.01)


def test_masks_hide_the_share_that_was_asked_for():
    generator = torch.Generator().manual_seed(0)
    mask = patch_mask((50, 64, 40), patch_px=64, ratio=0.5, generator=generator)
    assert mask.shape == (50, 64, 40)
    assert 0.45 < mask.float().mean() < 0.55
    # Whole patches of a quarter of the smaller side.
    assert (mask[:, :10, :10].float().mean((1, 2)) % 1 == 0).all()


def test_pseudo_labels_know_thresholds_data_and_segments():
    answer = torch.tensor([[[[0.9, 0.6, 0.55, 0.2]], [[0.1, 0.4, 0.45, 0.8]]]])
    valid = torch.tensor([[[True, True, True, True]]])
    limits = torch.tensor([0.7, 0.7])
    assert pseudo_labels(answer, limits, valid=valid).tolist() == [[[0, IGNORE, IGNORE, 1]]]
    hidden = torch.tensor([[[False, True, True, True]]])
    assert pseudo_labels(answer, limits, valid=hidden).tolist() == [[[IGNORE, IGNORE, IGNORE, 1]]]
    # A segment is of one mind: unsure pixels get its label; a mixed one is dropped; outside, pixels decide.
    one = torch.tensor([[[1, 1, 1, 0]]])
    assert pseudo_labels(answer, limits, valid=valid, segments=one).tolist() == [[[0, 0, 0, 1]]]
    # Half way from chance (0.5) to a threshold of 0.7 is 0.6.
    for chances, label in (([0.65, 0.56], 0), ([0.65, 0.54], IGNORE)):
        pair = torch.tensor([[[chances], [[1 - chance for chance in chances]]]]).reshape(1, 2, 1, 2)
        all_valid = torch.ones(1, 1, 2, dtype=torch.bool)
        found = pseudo_labels(pair, limits, valid=all_valid, segments=torch.ones(1, 1, 2, dtype=torch.long))
        assert found.tolist() == [[[label, label]]]
    mixed = torch.tensor([[[0, 0, 2, 2]]])
    assert pseudo_labels(answer, limits, valid=valid, segments=mixed).tolist() == [[[0, IGNORE, IGNORE, IGNORE]]]


def test_factors_lift_a_class():
    answer = torch.full((1, 2, 1, 1), 0.5)
    assert aligned(answer, torch.tensor([1.0, 3.0]))[0, :, 0, 0].tolist() == [0.25, 0.75]


def test_rare_classes_come_first():
    shares = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    chances = rare_first(shares, temperature=0.5)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[2] > 0.6
    assert rare_first(np.zeros((3, 2)), temperature=0.5) == pytest.approx([1 / 3] * 3)


def test_class_mix_pastes_whole_classes():
    generator = torch.Generator().manual_seed(0)
    pixels, other = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    other_labels = torch.full((1, 4, 4), IGNORE)
    other_labels[0, :2], other_labels[0, 2] = 1, 2
    mixed, mixed_labels = class_mix(pixels, labels, other, other_labels, generator=generator)
    pasted = mixed[0, 0] == 1
    assert set(mixed_labels[0][pasted].tolist()) in ({1}, {2})
    assert not pasted[3].any()
    assert (mixed_labels[0][~pasted] == 0).all()


# The no-harm rule.


def test_a_model_that_collapses_scores_nothing(world):
    collapsed = copy.deepcopy(world.model)
    with torch.no_grad():
        collapsed.head[0].bias += torch.tensor([50.0, 0.0, 0.0])
    after = measure_agreement(collapsed, world.at_home)
    assert after.score == 0.0
    before = measure_agreement(world.model, world.at_home)
    assert before.score > 0.9
    verdict = judge(before, after, world.model.card)
    assert not verdict.is_kept
    assert "'ground' rose from" in verdict.reason


def test_a_class_that_becomes_another_is_noticed(world):
    """Two classes change places: sure, in agreement with itself and with the image, of the same sizes, and wrong."""
    swapped = copy.deepcopy(world.model)
    with torch.no_grad():
        swapped.head[0].weight[[1, 2]] = swapped.head[0].weight[[2, 1]].clone()
        swapped.head[0].bias[[1, 2]] = swapped.head[0].bias[[2, 1]].clone()
    kept = surest_kept(world.model, swapped, world.at_home)
    assert kept[0] > 0.95
    assert max(kept[1:]) < 0.1
    before = measure_agreement(world.model, world.at_home)
    assert measure_agreement(swapped, world.at_home).score == pytest.approx(before.score, abs=1e-3)
    verdict = judge(before, before, world.model.card, kept=kept)
    assert not verdict.is_kept
    assert "surest to be 'roof', the adapted one calls only" in verdict.reason
    assert judge(before, before, world.model.card, kept=kept, is_rehearsed=True).is_kept


def test_what_stays_as_it_was_is_kept(world):
    same = surest_kept(world.model, copy.deepcopy(world.model), world.at_home)
    assert all(share == 1 for share in same if not np.isnan(share))
    before = measure_agreement(world.model, world.at_home)
    assert judge(before, before, world.model.card, kept=same).is_kept
    # Mapped values are not learned from own answers.
    mapped = copy.deepcopy(world.model)
    mapped.set_input_map(255 - mapped.input_map)
    assert surest_kept(world.model, mapped, world.target)[0] == 1
    # Rare classes do not decide.
    assert judge(before, before, world.model.card, kept=[float("nan")] * 3).is_kept


def test_what_is_said_beside_missing_data_does_not_count(world, monkeypatch):
    """A model that sees nothing but where the data end agrees with itself, and has understood nothing."""

    def edges(model, pixels):
        is_empty = (pixels.sum(1, keepdim=True) == 0).float()
        return torch.nn.functional.max_pool2d(is_empty, 9, 1, 4)[:, 0].numpy().astype(np.uint8)

    monkeypatch.setattr(no_harm, "_answer", edges)
    pixels, valid = world.at_home.pixels.clip(1), np.ones_like(world.at_home.valid)
    pixels[..., :20], valid[..., :20] = 0, False
    assert measure_agreement(world.model, unlabelled_chips(pixels, valid=valid)).score == 0.0
    # Where there is nothing but edges, they have to do.
    valid[..., 26:] = False
    assert measure_agreement(world.model, unlabelled_chips(pixels, valid=valid)).shares[0] > 0


def test_a_model_that_guesses_agrees_by_chance(world):
    torch.manual_seed(1)
    noisy = copy.deepcopy(world.model)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    segments = np.arange(16 * SIDE * SIDE, dtype=np.int32).reshape(16, SIDE, SIDE) // 64 % 8 + 1
    good = measure_agreement(world.model, world.at_home, segments=segments)
    bad = measure_agreement(noisy, world.at_home, segments=segments)
    assert bad.score < good.score
    assert not judge(good, bad, world.model.card).is_kept


def test_alignment_is_one_where_segments_explain_all(world):
    from segadapt.models.semantic.prediction import predict_labels

    chips = world.at_home
    own = predict_labels(world.model, chips).astype(np.int32) + 1
    assert measure_agreement(world.model, chips, segments=own).alignment == pytest.approx(1.0)
    one = np.ones_like(own)
    assert measure_agreement(world.model, chips.take([0]), segments=one[:1]).alignment == pytest.approx(0.0, abs=1e-9)


def agreement(score, *shares):
    return Agreement(score, float("nan"), shares)


def test_who_rehearses(world):
    with_source = Problem(target=world.target, source=world.source)
    assert is_rehearsed(with_source, ["quantile", "masked_consistency"])
    assert not is_rehearsed(with_source, ["quantile", "entropy"])
    assert not is_rehearsed(Problem(target=world.target), ["self_training"])


def test_two_thirds_of_what_was_learned_is_taken_back_and_one_third_where_the_source_is_rehearsed(world):
    """Weights lie between, averages too; the map of values is no weight."""
    chain, few = "quantile+entropy", {"n_steps": 2}
    before = world.model.state_dict()
    whole = adapted(world, chain, **few).state_dict()
    mixed = adapted(world, chain, source_weight=None, **few).state_dict()
    assert torch.equal(mixed["input_map"], whole["input_map"])
    assert not torch.equal(mixed["input_map"], before["input_map"])
    numbers = {name: value for name, value in whole.items() if value.is_floating_point() and name != "input_map"}
    moved = [name for name, value in numbers.items() if not torch.equal(value, before[name])]
    assert any(name.endswith("running_mean") for name in moved)
    for name in moved:
        torch.testing.assert_close(mixed[name], torch.lerp(whole[name], before[name], 2 / 3))
    problem = Problem(target=world.target)
    assert source_weight(problem, ["quantile", "norm_statistics"]) == 0
    assert source_weight(replace(problem, source=world.source), ["self_training"]) == pytest.approx(1 / 3)
    assert source_weight(replace(problem, source_weight=0.25), ["self_training"]) == 0.25
    with pytest.raises(TransferError, match="0 to 1"):
        replace(problem, source_weight=1.5)


def test_the_rule_in_numbers(world):
    card = make_card(statistics={"class_shares": [0.8, 0.15, 0.05]})
    before = agreement(0.5, 0.9, 0.09, 0.01)
    assert judge(before, agreement(0.5, 0.85, 0.1, 0.05), card).is_kept
    assert "fell from 0.500 to 0.499" in judge(before, agreement(0.499, 0.85, 0.1, 0.05), card).reason
    # A class may come back to what the source had, and beyond a little.
    assert judge(before, agreement(0.6, 0.7, 0.22, 0.08), card).is_kept
    assert "'pond' rose from 1.0 % to 50.0 %" in judge(before, agreement(0.6, 0.3, 0.2, 0.5), card).reason
    assert "'roof' fell from 9.0 % to 0.5 %" in judge(before, agreement(0.6, 0.97, 0.005, 0.025), card).reason
    # Further where labels of the source keep what a class means.
    further = agreement(0.6, 0.74, 0.14, 0.12)
    assert "'pond' rose from 1.0 % to 12.0 %" in judge(before, further, card).reason
    assert judge(before, further, card, is_rehearsed=True).is_kept
    assert not judge(before, agreement(0.6, 0.7, 0.14, 0.16), card, is_rehearsed=True).is_kept
    # Nobody knows what the source had: all classes could be there.
    assert judge(before, agreement(0.6, 0.3, 0.2, 0.5), make_card()).is_kept
    nothing = agreement(0.0, 1.0, 0.0, 0.0)
    assert not judge(nothing, nothing, make_card()).is_kept


def test_the_criterion_is_deterministic_and_wants_data(world):
    chips = world.test.take([0, 1, 2])
    scores = [measure_agreement(world.model, chips, batch=batch).score for batch in (2, 2, 3)]
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], abs=1e-3)
    with pytest.raises(TransferError, match="no pixel with data"):
        measure_agreement(world.model, replace_valid(chips, np.zeros_like(chips.valid)))
    with pytest.raises(TransferError, match="one map per chip"):
        measure_agreement(world.model, chips, segments=np.zeros((1, SIDE, SIDE), np.int32))
    with pytest.raises(Cancelled):
        measure_agreement(world.model, chips, progress=_Impatient(0))


def test_windows_that_changed_come_in_order():
    before = np.zeros((3, 2, 2), np.uint8)
    after = before.copy()
    after[1, 0, 0] = 1
    after[2] = 1
    assert list(changed_most(before, after, n=5)) == [2, 1]
    assert list(changed_most(before, after, n=1)) == [2]


# How far it is.


def test_a_shift_is_far_and_its_absence_near(world):
    near = measure_shift(world.model, world.at_home, statistics=world.tensors)
    far = measure_shift(world.model, world.test, statistics=world.tensors)
    assert near.overall < 0.2
    assert far.overall > 0.5
    assert near.frechet < 0.3 < 1.0 < far.frechet
    assert near.proxy_a < 0.6 < 1.2 < far.proxy_a
    assert near.bands < 0.2 < 0.8 < far.bands
    assert near.shares < 0.05 < 0.1 < far.shares
    assert far.frechet_halves < 0.2
    said_near, said_far = advise(world.model, near), advise(world.model, far)
    assert said_near.level == "near"
    assert said_far.level == "far"
    assert said_far.methods == ("quantile", "quantile+masked_consistency", "masked_consistency", "self_training")
    assert any("Map them first" in sentence for sentence in said_far.sentences)
    # No further in its values than the pairs of the study, on which mapping them lost.
    as_studied = advise(world.model, replace(far, band_distances=(0.45, 0.3, 0.32)))
    assert as_studied.methods == ("masked_consistency", "self_training")
    assert not any("Map them first" in sentence for sentence in as_studied.sentences)
    for methods in (said_near.methods, said_far.methods):
        for method in methods:
            assert names_of(method)


def test_a_model_that_maps_values_is_not_told_to_map_them(world):
    shift = measure_shift(adapted(world, "quantile"), world.test, statistics=world.tensors)
    assert shift.bands < 0.2
    assert not any("Map them first" in sentence for sentence in advise(world.model, shift).sentences)


def test_without_statistics_little_is_known(world):
    plain = copy.deepcopy(world.model)
    plain.card = replace(plain.card, statistics={})
    shift = measure_shift(plain, world.test)
    assert np.isnan(shift.overall)
    advice = advise(plain, shift)
    assert advice.level == "unknown"
    assert all(names_of(method) for method in advice.methods)
    wrong = {"feature_mean": torch.zeros(3), "feature_covariance": torch.eye(3)}
    with pytest.raises(TransferError, match="describes 3 features"):
        measure_shift(plain, world.test, statistics=wrong)


def test_frechet_distance_of_known_distributions():
    mean, covariance = np.zeros(3), np.diag([1.0, 4.0, 9.0])
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + 2, covariance) == pytest.approx(12.0)
    # Deviations 1, 2, 3 against 2, 4, 6: the sum of squared differences.
    assert frechet_distance(mean, covariance, mean, 4 * covariance) == pytest.approx(1 + 4 + 9)


def test_proxy_a_distance_of_known_distributions():
    random = np.random.default_rng(1)
    groups = np.arange(400) % 2
    same = random.standard_normal((400, 6))
    assert proxy_a_distance(np.zeros(6), np.eye(6), same, groups=groups) < 0.25
    assert proxy_a_distance(np.zeros(6), np.eye(6), same + 3, groups=groups) > 1.9
