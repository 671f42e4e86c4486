"""Training from labelled rasters: chips as the labels say, a model that learned, a package that tells of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from rasterio.crs import CRS
from segadapt.models.augmentation import USUAL, augment
from segadapt.models.errors import Cancelled, CheckpointError, ModelError
from segadapt.models.semantic.card import IGNORE, SegmenterClass, read_card
from segadapt.models.semantic.package import load_extra, load_segmenter
from segadapt.models.semantic.prediction import predict_labels
from segadapt.models.semantic.segmenter import DEFAULT_ENCODER, published_licence
from segadapt.models.transfer.statistics import FEATURE_COVARIANCE, FEATURE_MEAN
from segadapt.processing.errors import JobError
from segadapt.processing.jobs import train_model as job
from segadapt.processing.jobs.class_scheme import ClassScheme, parse_value_names, scheme_of_card, scheme_of_labels
from segadapt.processing.jobs.labelled_chips import cut_chips
from segadapt.processing.jobs.model_rasters import (
    TargetRaster,
    open_for_model,
    read_labelled_chips,
    read_target_chips,
)
from segadapt.processing.jobs.model_report import training_report
from segadapt.processing.jobs.train_model import UNCHANGED, ModelOptions, train_model
from segadapt.processing.jobs.training_data import (
    LabelledRaster,
    place_of,
    read_training_chips,
    split_chips,
    with_places,
)
from segadapt.processing.raster.band_reader import open_bands

QUICK = ModelOptions(
    decoder="unet", weights="none", chip_px=32, n_steps=24, batch=8, held_out=0.3, augmentation=UNCHANGED, rate=3e-3
)


def box(left, top, right, bottom):
    """A rectangle in pixels of the rasters of `raster_factory`, on the map."""
    return shapely.box(590_000 + left / 2, 5_750_000 - bottom / 2, 590_000 + right / 2, 5_750_000 - top / 2)


@pytest.fixture
def houses(raster_factory):
    """(raster path, boxes in pixels, truth uint8 (rows, cols)) of a dark scene with bright houses."""

    def make(name="scene.tif", *, seed=0, side=160, n=40):
        random = np.random.default_rng(seed)
        pixels = random.integers(40, 80, (3, side, side)).astype(np.uint8)
        truth, boxes = np.zeros((side, side), np.uint8), []
        for _ in range(n):
            left, top = (int(place) for place in random.integers(0, side - 20, 2))
            boxes.append((left, top, left + 12, top + 16))
            pixels[:, top : top + 16, left : left + 12] = 200
            truth[top : top + 16, left : left + 12] = 1
        return raster_factory(pixels, name), boxes, truth

    return make


def labelled(path, boxes, name="house", **more):
    return LabelledRaster(path=path, polygons=tuple(box(*one) for one in boxes), names=(name,) * len(boxes), **more)


@pytest.mark.parametrize(("side", "n"), [(160, 5), (164, 6), (163, 5), (175, 6), (31, 1), (33, 1)])
def test_chips_reach_the_right_and_the_bottom_edge(houses, side, n):
    # Of 163 and 33 px the rest is too narrow for a tenth of a chip.
    path, boxes, truth = houses(side=side)
    chips = read_training_chips([labelled(path, boxes)], scheme_of_labels([labelled(path, boxes)]), chip_px=32)
    expected = {(col, row) for col in range(0, 32 * n, 32) for row in range(0, 32 * n, 32)}
    if side == 164:
        expected.remove((160, 160))
    assert set(map(tuple, chips.origins.tolist())) == expected
    for chip, valid, (col, row) in zip(chips.labels, chips.valid, chips.origins, strict=True):
        inside = truth[row : row + 32, col : col + 32]
        rows, cols = inside.shape
        np.testing.assert_array_equal(chip[:rows, :cols], inside)
        assert valid[:rows, :cols].all()
        assert valid.sum() == inside.size
        assert (chip[~valid] == IGNORE).all()


def test_what_hangs_over_an_extent_is_not_valid(houses):
    path, _, _ = houses()
    with open_bands(path) as reader:
        chips = cut_chips(reader, chip_px=32, bounds_px=(0, 0, 72, 40))
    assert chips.origins.tolist() == [[0, 0], [32, 0], [64, 0], [0, 32], [32, 32]]
    assert chips.valid.sum() == 64 * 40 + 8 * 32
    assert not chips.valid[2, :, 8:].any()


def test_labels_in_a_rest_too_narrow_for_a_chip_are_not_said_to_be_missing(houses):
    path, _, _ = houses(side=162)
    raster = LabelledRaster(path=path, polygons=(box(160, 10, 162, 60),), names=("house",), area=())
    with pytest.raises(JobError, match=r"No window of 32 px .* data on a tenth of it, and a label there"):
        read_training_chips([raster], scheme_of_labels([raster]), chip_px=32)


def test_polygons_of_one_class_leave_background(houses):
    path, boxes, truth = houses()
    raster = labelled(path, boxes, "")
    scheme = scheme_of_labels([raster], only_name="houses")
    assert [one.name for one in scheme.classes] == ["background", "houses"]
    chips = read_training_chips([raster], scheme, chip_px=32)
    assert len(chips) == 25
    for chip, (col, row) in zip(chips.labels, chips.origins, strict=True):
        np.testing.assert_array_equal(chip, truth[row : row + 32, col : col + 32])


def test_overlaps_are_unlabelled_and_unknown_ground_is_no_background(houses, recorder):
    path, _, _ = houses()
    raster = LabelledRaster(
        path=path,
        polygons=(box(0, 0, 20, 20), box(10, 0, 30, 20), box(40, 0, 50, 10), box(5, 5, 15, 15)),
        names=("roof", "tree", None, "roof"),
    )
    told = recorder()
    chips = read_training_chips(
        [raster], scheme_of_labels([raster], background="class"), chip_px=160, progress=told, least_classes=3
    )
    labels = chips.labels[0]
    assert labels[2, 2] == 1
    assert labels[2, 25] == 2
    assert labels[2, 35] == 0
    assert (labels[:20, 10:20] == IGNORE).all()
    assert (labels[:10, 40:50] == IGNORE).all()
    assert (labels == IGNORE).sum() == 200 + 100
    assert any("overlap" in text and "200 pixels" in text for text in told.texts)


def test_an_area_says_where_labels_are_complete(houses):
    path, _, _ = houses()
    raster = LabelledRaster(
        path=path, polygons=(box(0, 0, 10, 10), box(100, 100, 110, 110)), names=("a", "b"), area=(box(0, 0, 32, 32),)
    )
    scheme = scheme_of_labels([raster])
    chips = read_training_chips([raster], scheme, chip_px=160)
    values, counts = np.unique(chips.labels, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0: 32 * 32 - 100,
        1: 100,
        2: 100,
        IGNORE: 160 * 160 - 32 * 32 - 100,
    }


def test_an_empty_raster_in_a_completely_labelled_area_is_background(houses, recorder):
    (first, boxes, _), (second, _, _) = houses("a.tif"), houses("b.tif", seed=1)
    empty = LabelledRaster(path=second, area=(box(0, 0, 32, 64),))
    rasters = [labelled(first, boxes, area=()), empty]
    scheme = scheme_of_labels(rasters)
    chips = read_training_chips(rasters, scheme, chip_px=32)
    (own,) = np.unique(chips.labels[place_of(chips) == 1])
    assert own == scheme.background
    assert (place_of(chips) == 1).sum() == 2
    # What was drawn without a class is unknown there, too.
    drawn = LabelledRaster(path=second, polygons=(box(0, 0, 8, 8),), names=(None,), area=empty.area)
    assert read_training_chips([drawn], scheme, chip_px=32, least_classes=1).n_labelled_px() == 32 * 64 - 64
    for left_out, one_scheme in (
        (LabelledRaster(path=second, area=(box(900, 0, 950, 50),)), scheme),
        (LabelledRaster(path=second), scheme),
        (empty, ClassScheme(scheme.classes)),
    ):
        with pytest.raises(JobError, match=r"No label polygon with a class lies on b\.tif"):
            read_training_chips([left_out], one_scheme, chip_px=32)


def test_ground_beside_a_house_is_background_in_its_place_alone(houses):
    path, boxes, _ = houses()
    drawn = LabelledRaster(
        path=path,
        polygons=(box(0, 0, 60, 60), box(60, 0, 120, 60), box(0, 60, 60, 120), box(10, 10, 30, 30)),
        names=(None, None, None, "house"),
    )
    scheme = scheme_of_labels([labelled(path, boxes)])
    card = job._card(
        QUICK,
        scheme,
        names=("red", "green", "blue"),
        gsd_m=0.5,
        chips=read_training_chips([labelled(path, boxes)], scheme, chip_px=32),
        output=Path(path),
    )
    raster = with_places(drawn, is_rest_unknown=True)
    expected = np.full((160, 160), IGNORE, np.uint8)
    expected[:60, :60] = 0
    expected[10:30, 10:30] = 1
    for one in (scheme_of_card(card, [raster]), scheme_of_labels([raster])):
        np.testing.assert_array_equal(read_training_chips([raster], one, chip_px=160).labels[0], expected)
    # Who says that the rest is background is believed, but not of places that nobody looked at.
    raster = with_places(drawn, is_rest_unknown=False)
    expected[expected == IGNORE] = 0
    expected[:60, 60:120] = expected[60:120, :60] = IGNORE
    chips = read_training_chips([raster], scheme_of_card(card, [raster], background="class"), chip_px=160)
    np.testing.assert_array_equal(chips.labels[0], expected)
    # Where every place has a class, none is left to be background, and a new model knows none.
    both = replace(drawn, names=("house", "shed", "house", "house"))
    raster = with_places(both, is_rest_unknown=True)
    assert [one.name for one in scheme_of_labels([raster]).classes] == ["house", "shed"]
    with pytest.raises(JobError, match="'house' alone"):
        read_training_chips(
            [with_places(replace(drawn, names=("house",) * 4), is_rest_unknown=True)], scheme, chip_px=160
        )


def test_several_classes_alone_leave_the_rest_unlabelled(houses):
    path, _, _ = houses()
    raster = LabelledRaster(path=path, polygons=(box(0, 0, 10, 10), box(20, 0, 30, 10)), names=("b", "a"))
    scheme = scheme_of_labels([raster])
    assert [one.name for one in scheme.classes] == ["a", "b"]
    assert scheme.background is None
    assert read_training_chips([raster], scheme, chip_px=32).n_labelled_px() == 200


def test_one_class_is_one_however_its_name_is_written(houses, raster_factory):
    path, boxes, truth = houses()
    composed, apart = "G\u00c4RTEN", "ga\u0308rten"
    names = ("Road", "road", composed, apart, "BackGround", "background")
    raster = LabelledRaster(path=path, polygons=tuple(box(*one) for one in boxes[:6]), names=names)
    scheme = scheme_of_labels([raster])
    assert [one.name for one in scheme.classes] == ["BackGround", composed, "Road"]
    assert scheme.ids_of(names, where="") == [2, 2, 1, 1, 0, 0]
    labels = raster_factory(np.where(truth, 1, 2).astype(np.uint8)[None], "labels.tif")
    by_value = LabelledRaster(path=path, label_path=Path(labels))
    found = scheme_of_labels([by_value], value_names={1: "Roof", 2: "other"})
    assert found.values == {1: 0, 2: 1}
    with pytest.raises(JobError, match="one class alone"):
        scheme_of_labels([by_value], value_names={1: "Roof", 2: "roof"})


def test_label_rasters_take_names_from_text_file_or_values(houses, raster_factory):
    path, _, truth = houses()
    stored = np.where(truth, 255, 7).astype(np.uint8)[None]
    labels = raster_factory(stored, "labels.tif")
    raster = LabelledRaster(path=path, label_path=labels)
    with pytest.raises(JobError, match=r"one class alone.*255 counts only when named"):
        scheme_of_labels([raster])
    scheme = scheme_of_labels([raster], value_names=parse_value_names("255 = house,7=other"))
    assert [one.name for one in scheme.classes] == ["other", "house"]
    chips = read_training_chips([raster], scheme, chip_px=160)
    np.testing.assert_array_equal(chips.labels[0], truth)
    # A model trained so knows the values again.
    card = job._card(QUICK, scheme, names=("red", "green", "blue"), gsd_m=0.5, chips=chips, output=Path(labels))
    assert scheme_of_card(card, [raster], value_names=None).values == {7: 0, 255: 1}
    other = LabelledRaster(path=path, label_path=raster_factory(stored // 2, "other.tif"))
    with pytest.raises(JobError, match=r"value 3 .*no class of the model"):
        scheme_of_card(card, [other])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("nodata", [None, 9])
def test_ground_beyond_a_label_raster_is_unlabelled(houses, raster_factory, dtype, nodata):
    path, _, truth = houses()
    place = Affine(0.5, 0, 590_020, 0, -0.5, 5_750_000)
    stored = truth[:, 40:120].astype(dtype)[None]
    labels = raster_factory(stored, "labels.tif", transform=place, nodata=nodata, photometric="minisblack")
    raster = LabelledRaster(path=path, label_path=Path(labels))
    (chip,) = read_training_chips([raster], scheme_of_labels([raster]), chip_px=160).labels
    np.testing.assert_array_equal(chip[:, 40:120], truth[:, 40:120])
    assert (chip[:, :40] == IGNORE).all()
    assert (chip[:, 120:] == IGNORE).all()


@pytest.mark.parametrize("crs", [None, "EPSG:32633"])
def test_a_label_raster_lies_where_the_crs_that_the_user_sees_puts_it(houses, raster_factory, crs):
    path, _, truth = houses()
    shifted = Affine(0.5, 0, 590_020, 0, -0.5, 5_750_000)
    labels = raster_factory(truth[None, :, 40:], "labels.tif", crs=crs, transform=shifted, nodata=9)
    raster = LabelledRaster(path=path, label_path=Path(labels), label_crs_wkt=CRS.from_epsg(32631).to_wkt())
    (chip,) = read_training_chips([raster], scheme_of_labels([raster]), chip_px=160).labels
    np.testing.assert_array_equal(chip[:, 40:], truth[:, 40:])
    assert (chip[:, :40] == IGNORE).all()


def test_a_plain_picture_of_labels_lies_where_its_raster_does(houses, raster_factory):
    path, _, truth = houses()
    labels = raster_factory(truth[None], "labels.png", crs=None, transform=None, driver="PNG")
    raster = LabelledRaster(path=path, label_path=Path(labels), label_crs_wkt=CRS.from_epsg(32631).to_wkt())
    (chip,) = read_training_chips([raster], scheme_of_labels([raster]), chip_px=160).labels
    np.testing.assert_array_equal(chip, truth)


def test_labels_lie_right_where_pixels_are_not_square(raster_factory):
    """Pixels of 0.5 x 1 m on a grid of half a metre: each label pixel counts twice, one below the other."""
    truth = np.zeros((80, 160), np.uint8)
    truth[10:30, 20:50] = 1
    tall = Affine(0.5, 0, 590_000, 0, -1, 5_750_000)
    path = raster_factory(np.where(truth, 200, 60).astype(np.uint8)[None], transform=tall)
    placed = raster_factory(truth[None], "placed.tif", transform=tall)
    plain = raster_factory(truth[None], "plain.png", crs=None, transform=None, driver="PNG")
    ways = [LabelledRaster(path=path, label_path=Path(one)) for one in (placed, plain)]
    for raster in (*ways, labelled(path, [(20, 20, 50, 60)])):
        (chip,) = read_training_chips([raster], scheme_of_labels([raster]), chip_px=160, gsd_m=0.5).labels
        np.testing.assert_array_equal(chip, truth.repeat(2, axis=0))


def test_a_model_finds_its_bands_by_name_and_what_it_sees_is_said(houses, raster_factory, recorder):
    path, boxes, _ = houses()
    with open_bands(path) as reader:
        pixels, _ = reader.read(0, 0, 160, 160)
    named = raster_factory(
        np.stack([pixels[0], pixels[0] // 2, pixels[0] // 3, pixels[0] // 4]),
        "named.tif",
        photometric="minisblack",
        descriptions=("red", "green", "blue", "nir"),
    )
    raster = labelled(named, boxes)
    scheme = scheme_of_labels([raster])
    options = replace(QUICK, bands=(4, 1, 2), chip_px=160)
    bands, names, gsd_m = job._look_at([raster], options)
    told = recorder()
    chips = read_training_chips([raster], scheme, chip_px=160, names=names, bands=bands, gsd_m=gsd_m, progress=told)
    card = job._card(options, scheme, names=names, gsd_m=gsd_m, chips=chips, output=Path(named))
    sentence = "Bands of named.tif that the model sees: 4 as nir, 1 as red, 2 as green."
    assert sentence in told.texts
    for read in (
        lambda told: read_labelled_chips([raster], scheme, card, progress=told),
        lambda told: read_target_chips([TargetRaster(named)], card, progress=told),
    ):
        told = recorder()
        assert np.array_equal(read(told).pixels, chips.pixels)
        assert told.texts.count(sentence) == 1
    with open_for_model(card, named) as reader:
        assert reader.bands == (4, 1, 2)
    # Where the names say nothing, the first ones are taken, and said.
    told = recorder()
    read_labelled_chips([labelled(path, boxes)], scheme, card, progress=told)
    assert "Bands of scene.tif that the model sees: 1 as nir, 2 as red, 3 as green." in told.texts
    told = recorder()
    read_training_chips([labelled(path, boxes)], scheme, chip_px=160, names=("red", "green", "blue"), progress=told)
    assert not told.texts


def test_labels_that_do_not_fit_are_refused_with_a_sentence(houses, raster_factory):
    path, boxes, _ = houses()
    beside = LabelledRaster(path=path, polygons=(box(900, 900, 950, 950),), names=("house",))
    scheme = scheme_of_labels([beside])
    with pytest.raises(JobError, match=r"No label polygon .* lies on scene\.tif"):
        read_training_chips([beside], scheme, chip_px=32)
    with pytest.raises(JobError, match="hold 'shed', but the classes are background, house"):
        read_training_chips([labelled(path, boxes, "shed")], scheme, chip_px=32)
    with pytest.raises(JobError, match="'house' alone"):
        read_training_chips([labelled(path, boxes, area=())], scheme, chip_px=32)
    with pytest.raises(JobError, match="names no value"):
        parse_value_names("roof")
    with pytest.raises(JobError, match="value 0 is named twice, 'other' and 'roof'"):
        parse_value_names("0=other, 0=roof")
    empty = raster_factory(np.full((3, 64, 64), np.nan, np.float32), "nan.tif", nodata=np.nan)
    with pytest.raises((JobError, RuntimeError), match=r"nan\.tif"):
        read_training_chips([labelled(empty, boxes)], scheme, chip_px=32)
    real = raster_factory(np.zeros((1, 160, 160), np.float32), "real.tif")
    with pytest.raises(JobError, match="whole class ids"):
        scheme_of_labels([LabelledRaster(path=path, label_path=Path(real))])


def test_a_raster_without_labels_is_left_out_and_the_others_are_kept_apart(houses, recorder):
    first, second = houses("a.tif"), houses("b.tif", seed=1)
    rasters = [
        labelled(first[0], first[1]),
        LabelledRaster(path=second[0], polygons=(), names=()),
        labelled(second[0], second[1]),
    ]
    scheme, told = scheme_of_labels(rasters), recorder()
    chips = read_training_chips(rasters, scheme, chip_px=32, progress=told)
    assert np.unique(place_of(chips)).tolist() == [0, 2]
    assert any("b.tif is left out" in text for text in told.texts)
    kept, held = split_chips(chips, held_out=0.5, by="rasters")
    assert len(kept) == len(held) == 25
    assert not set(place_of(kept)) & set(place_of(held))
    kept, held = split_chips(chips, held_out=0.2)
    assert len(held) == 10
    assert not set(kept.blocks.tolist()) & set(held.blocks.tolist())
    one = chips.take(np.flatnonzero(place_of(chips) == 0))
    with pytest.raises(JobError, match="one raster alone"):
        split_chips(one, held_out=0.5, by="rasters")


def test_the_rasters_of_a_folder_are_one_place(houses, tmp_path, recorder):
    """Two cities of two tiles, one of them given by a roundabout way."""
    rasters = []
    for n, city in enumerate(("north", "north", "south", "south")):
        path, boxes, _ = houses(f"{city}_{n}.tif", seed=n)
        (folder := tmp_path / city).mkdir(exist_ok=True)
        moved = Path(path).rename(folder / Path(path).name)
        given = tmp_path / "south" / ".." / city / moved.name if n == 1 else moved
        rasters.append(labelled(str(given), boxes, area=(box(0, 0, 160, 160),)))
    scheme, told = scheme_of_labels(rasters), recorder()
    chips = read_training_chips(rasters, scheme, chip_px=32)
    for seed in range(4):
        kept, held = split_chips(chips, held_out=0.2, by="folders", rasters=rasters, seed=seed)
        assert {frozenset(place_of(part).tolist()) for part in (kept, held)} == {frozenset((0, 1)), frozenset((2, 3))}
    north = chips.take(np.flatnonzero(place_of(chips) < 2))
    with pytest.raises(JobError, match="north alone"):
        split_chips(north, held_out=0.5, by="folders", rasters=rasters)
    options = replace(QUICK, n_steps=1, split="folders")
    trained = train_model(rasters, scheme, tmp_path / "m.safetensors", options, device="cpu", progress=told)
    assert trained.n_chips == trained.n_held_out == 50
    assert {"Held out: north.", "Held out: south."} & set(told.texts)


def test_rasters_with_labels_share_the_chips_and_hand_on_what_they_have_too_few_for(houses):
    path, boxes, _ = houses()
    corner = (0, 0, 160, 20)
    few = labelled(houses("few.tif", seed=1)[0], [corner], area=(box(*corner),))
    bare = [LabelledRaster(path=houses(f"{n}.tif", seed=n)[0]) for n in range(5)]
    rasters = [labelled(path, boxes, area=(box(0, 0, 160, 160),)), *bare, few]
    scheme = scheme_of_labels(rasters)
    for n_most, expected in ((4, (2, 2)), (12, (7, 5)), (40, (25, 5))):
        places = place_of(read_training_chips(rasters, scheme, chip_px=32, n_most=n_most))
        assert (int((places == 0).sum()), int((places == 6).sum())) == expected
        assert np.array_equal(places, np.sort(places))


def test_small_targets_hand_on_what_they_have_too_few_for(houses):
    rasters = [houses("large.tif")[0], *(houses(f"{n}.tif", side=32, n=1, seed=n)[0] for n in range(3))]
    raster = labelled(rasters[0], [(0, 0, 20, 20)])
    scheme = scheme_of_labels([raster])
    card = job._card(
        QUICK,
        scheme,
        names=("red", "green", "blue"),
        gsd_m=0.5,
        chips=read_training_chips([raster], scheme, chip_px=32),
        output=Path("model"),
    )
    chips = read_target_chips([TargetRaster(path) for path in rasters], card, n_most=20)
    assert len(chips) == 20
    assert chips.origins[-3:].tolist() == [[0, 0]] * 3


def test_a_split_keeps_a_rare_class_on_both_sides_where_it_can(houses):
    path, boxes, _ = houses(side=320, n=4)
    rare = LabelledRaster(
        path=path,
        polygons=(*(box(*one) for one in boxes), box(0, 0, 5, 5), box(300, 300, 305, 305)),
        names=("house",) * 4 + ("well",) * 2,
        area=(box(0, 0, 320, 320),),
    )
    scheme = scheme_of_labels([rare])
    chips = read_training_chips([rare], scheme, chip_px=32)
    well = next(one.class_id for one in scheme.classes if one.name == "well")
    for seed in range(5):
        assert all((part.labels == well).any() for part in split_chips(chips, held_out=0.3, seed=seed))


def test_training_learns_and_the_package_tells_of_it(houses, tmp_path, recorder):
    path, boxes, _ = houses()
    raster, told = labelled(path, boxes, area=(box(0, 0, 160, 160),)), recorder()
    output = tmp_path / "houses.safetensors"
    trained = train_model([raster], scheme_of_labels([raster]), output, QUICK, device="cpu", progress=told)
    assert trained.evaluation is not None
    assert trained.evaluation.mean_iou > 0.85
    assert trained.n_chips + trained.n_held_out == 25
    card = read_card(output)
    assert card.bands == ("red", "green", "blue")
    assert card.gsd_m == pytest.approx(0.5, rel=1e-3)
    assert card.classes == (SegmenterClass(0, "background", (110, 110, 110)), SegmenterClass(1, "house", (213, 94, 0)))
    assert card.metrics["held_out"]["mean_iou"] == pytest.approx(trained.evaluation.mean_iou, abs=1e-4)
    assert card.history[-1]["event"] == "trained"
    assert card.history[-1]["rasters"] == ["scene.tif"]
    assert sum(card.statistics["class_shares"]) == pytest.approx(1, abs=1e-3)
    assert set(load_extra(output)) == {FEATURE_MEAN, FEATURE_COVARIANCE}
    assert any("Step 24 of 24" in text and "mean IoU" in text and "left" in text for text in told.texts)
    # What was saved is what was measured, on ground that it has not seen.
    other = houses("other.tif", seed=9)
    fresh = read_training_chips([labelled(other[0], other[1])], scheme_of_labels([raster]), chip_px=32)
    found = predict_labels(load_segmenter(output), fresh) == 1
    assert (found & (fresh.labels == 1)).sum() / (found | (fresh.labels == 1)).sum() > 0.75
    html = training_report(trained)
    assert "house" in html
    assert f"{trained.evaluation.mean_iou:.3f}" in html
    assert html.count("<img") >= 2
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_a_cancel_keeps_the_best_so_far_and_before_that_nothing(houses, tmp_path, recorder):
    path, boxes, _ = houses()
    raster, output = labelled(path, boxes), tmp_path / "model.safetensors"
    scheme = scheme_of_labels([raster])
    told = recorder(cancel_at="Step 3 of 24")
    trained = train_model([raster], scheme, output, QUICK, device="cpu", progress=told)
    assert trained.training.is_cancelled
    assert [check.step for check in trained.training.checks] == [2, 3]
    assert read_card(output).history[-1]["is_cancelled"] is True
    assert any("best so far" in text or "best state so far" in text for text in told.texts)
    output.unlink()
    with pytest.raises(Cancelled, match="nothing was saved"):
        train_model([raster], scheme, output, QUICK, device="cpu", progress=recorder(cancel_at="to learn from"))
    assert not output.exists()


@pytest.mark.parametrize(
    ("names", "given", "seen"),
    [
        (("red", "green", "blue", "nir"), None, (3, 2, 1, 4)),
        ((), None, (1, 2, 3, 4)),
        (("red", "green", "blue", "nir"), (1, 2, 3, 4), (1, 2, 3, 4)),
    ],
    ids=["names", "a raster without names", "numbers that are given"],
)
def test_a_new_model_sees_the_same_bands_of_all_rasters(houses, tmp_path, raster_factory, recorder, names, given, seen):
    """By their names where each raster has them, in whatever order; else by their numbers."""
    _, boxes, truth = houses()
    order = ("blue", "green", "red", "nir")
    pixels = np.stack([np.where(truth, base + 900, base + 100) for base in (0, 1000, 2000, 3000)]).astype(np.uint16)
    first = raster_factory(pixels, "a.tif", photometric="minisblack", descriptions=order)
    other = raster_factory(pixels[[2, 1, 0, 3]], "b.tif", photometric="minisblack", descriptions=names)
    rasters, told = [labelled(first, boxes), labelled(other, boxes)], recorder()
    options, output = replace(QUICK, n_steps=1, bands=given), tmp_path / "model.safetensors"
    card = train_model(rasters, scheme_of_labels(rasters), output, options, device="cpu", progress=told).card
    assert card.bands == order
    used = ", ".join(f"{band} as {name}" for band, name in zip(seen, order, strict=True))
    assert f"Bands of b.tif that the model sees: {used}." in told.texts
    lows = [0, 1000, 2000, 3000] if seen[0] == 3 else [1000, 1000, 1000, 3000]
    assert [round(low, -3) for low in card.training_stretch[:4]] == lows


def test_same_seed_same_model_and_any_bands(houses, tmp_path, raster_factory):
    _, boxes, truth = houses()
    pixels = np.stack([np.where(truth, 900, 100)] * 4 + [np.random.default_rng(0).integers(0, 900, truth.shape)])
    path = raster_factory(pixels.astype(np.uint16), "five.tif", photometric="minisblack", descriptions=["", "nir"])
    raster = labelled(path, boxes)
    options = ModelOptions(
        **{**vars(QUICK), "n_steps": 3, "bands": (2, 1, 5, 5), "held_out": 0.0, "augmentation": USUAL, "gsd_m": 1.0}
    )
    outputs = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for output in outputs:
        trained = train_model([raster], scheme_of_labels([raster]), output, options, device="cpu")
        assert trained.evaluation is None
        assert trained.card.metrics == {}
    first, second = (load_segmenter(output) for output in outputs)
    assert first.card.bands[0] == "nir"
    assert len(first.card.bands) == 4
    assert first.card.gsd_m == 1.0
    assert all(bool((a == second.state_dict()[name]).all()) for name, a in first.state_dict().items())


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_an_exported_model_sees_what_it_was_trained_on(houses, tmp_path, raster_factory, recorder, dtype):
    """Values that are no bytes are stretched by each raster's own; another program knows only those of the training."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from segadapt.models.semantic.onnx_export import export_onnx

    path, boxes, _ = houses()
    with open_bands(path) as reader:
        values = reader.read(0, 0, 160, 160)[0].astype(dtype) * 7 + 300
    deep = raster_factory(values, "deep.tif")
    output = tmp_path / "deep.safetensors"
    train_model([labelled(deep, boxes)], scheme_of_labels([labelled(deep, boxes)]), output, QUICK, device="cpu")
    model = load_segmenter(output)
    with open_for_model(model.card, deep) as reader:
        seen, _ = reader.read(0, 0, 32, 32)
        assert model.card.training_stretch == pytest.approx(reader.stretch.as_key())
    export_onnx(model, tmp_path / "deep.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "deep.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: values[None, :, :32, :32].astype(np.float32) / 255})
    with torch.inference_mode():
        wanted = model(torch.from_numpy(seen)[None].float()).softmax(1).numpy()
    assert np.abs(found - wanted).max() < 0.02
    # A raster of bytes is said to look different, one of the same depth is not.
    for target, is_said in ((path, True), (deep, False)):
        told = recorder()
        read_target_chips([TargetRaster(target)], model.card, progress=told)
        assert any("holds 8-bit values" in text for text in told.texts) == is_said


def test_published_weights_bring_their_normalisation_and_missing_ones_a_sentence(
    houses, tmp_path, monkeypatch, recorder
):
    path, boxes, _ = houses()
    raster = labelled(path, boxes)
    scheme = scheme_of_labels([raster])

    def missing(*_, **__):
        raise job.CheckpointError("no weights here.")

    monkeypatch.setattr(job, "load_published_encoder", missing)
    options = ModelOptions(**{**vars(QUICK), "n_steps": 1, "weights": "auto"})
    told = recorder()
    card = train_model([raster], scheme, tmp_path / "a.safetensors", options, device="cpu", progress=told).card
    assert card.mean == (127.5,) * 3
    assert card.history[-1]["weights"] == "none"
    assert any("random weights" in text for text in told.texts)
    with pytest.raises(job.CheckpointError):
        train_model(
            [raster], scheme, tmp_path / "b.safetensors", ModelOptions(**{**vars(options), "weights": "published"})
        )
    assert not (tmp_path / "b.safetensors").exists()


def test_a_light_head_on_frozen_features_of_any_encoder_is_trained_and_saved(houses, tmp_path):
    """With the weights that are at hand; others only with what the hub gives, as random features tell nothing."""
    path, boxes, _ = houses()
    raster, output = labelled(path, boxes), tmp_path / "light.safetensors"
    scheme = scheme_of_labels([raster])
    options = replace(QUICK, decoder="light", encoder=DEFAULT_ENCODER, weights="auto")
    trained = train_model([raster], scheme, output, options, device="cpu")
    assert trained.evaluation.mean_iou > 0.7
    assert trained.card.history[-1]["weights"] == "published"
    assert load_segmenter(output).card == trained.card
    # What the frozen weights were trained with.
    assert trained.card.mean == (127.5,) * 3
    with pytest.raises(CheckpointError, match="'resnet18' come from the Hugging Face Hub"):
        train_model([raster], scheme, output, replace(options, encoder="resnet18"), device="cpu", offline=True)


def test_the_licence_of_published_weights_is_kept(houses, tmp_path, monkeypatch):
    path, boxes, _ = houses()
    raster = labelled(path, boxes)
    monkeypatch.setattr(job, "load_published_encoder", lambda *_, **__: None)
    options = ModelOptions(**{**vars(QUICK), "n_steps": 1, "weights": "published"})
    trained = train_model([raster], scheme_of_labels([raster]), tmp_path / "m.safetensors", options, device="cpu")
    assert trained.card.history[-1]["weights_licence"] == "Apache-2.0"
    assert "published weights, licence Apache-2.0" in training_report(trained)
    assert published_licence("mobile_sam") == "Apache-2.0"
    assert published_licence("resnet18") == "apache-2.0"
    assert published_licence("nobody_knows_it") == "not stated"


def test_no_augmentation_changes_nothing():
    import torch

    pixels, labels = torch.rand(2, 3, 8, 8) * 255, torch.randint(0, 2, (2, 8, 8))
    same, kept = augment(pixels, labels, UNCHANGED, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(same, pixels, atol=1e-3)
    assert bool((kept == labels).all())


def test_a_class_that_is_not_held_out_is_named(houses, tmp_path, recorder):
    path, _, _ = houses()
    raster, told = labelled(path, [(2, 2, 12, 12)]), recorder()
    options = ModelOptions(**{**vars(QUICK), "n_steps": 1})
    train_model([raster], scheme_of_labels([raster]), tmp_path / "m.safetensors", options, device="cpu", progress=told)
    assert any("No chip to judge by holds 'house'" in text for text in told.texts)


def test_what_cannot_be_trained_is_said_before_anything_is_read(houses, tmp_path, monkeypatch):
    path, boxes, _ = houses(side=40, n=1)
    raster = labelled(path, boxes)
    scheme, output = scheme_of_labels([raster]), tmp_path / "model.safetensors"

    def fails(match, **changes):
        with pytest.raises((JobError, ModelError), match=match):
            train_model([raster], scheme, output, ModelOptions(**{**vars(QUICK), **changes}), device="cpu")

    fails("one block of ground", chip_px=64)
    fails("hardly anything of a chip of 512 px", chip_px=512)
    fails("of 1.5 held out is none", held_out=1.5)
    monkeypatch.setattr(job, "read_training_chips", None)
    fails("'resnet18' does not go with the decoder 'dpt'", decoder="dpt", encoder="resnet18")
    fails("takes no chips of 32 px", decoder="fpn", encoder="swin_tiny_patch4_window7_224")
    assert not output.exists()


_KILLED = """
import json, os, runpy, signal, sys, torch
runpy.run_path(sys.argv[1])
test = runpy.run_path(sys.argv[2])
from pathlib import Path
from segadapt.models import training_state
torch.set_num_threads(1)
training_state.Keeper.is_due = lambda _: True
write, n = training_state._write, []
def kill(state, file):
    if len(n) == 4:
        file.write_bytes(b"half a state")
        os.kill(os.getpid(), signal.SIGKILL)
    n.append(file)
    write(state, file)
training_state._write = kill
test["briefly"](sys.argv[3], json.loads(sys.argv[4]), Path(sys.argv[5]))
"""


def briefly(path, boxes, output, progress=None):
    """Eight steps with a check after each."""
    rasters = [labelled(path, boxes)]
    options = replace(QUICK, name="roofs", encoder="lcnet_035", n_steps=8, patience=None)
    return train_model(rasters, scheme_of_labels(rasters), output, options, device="cpu", progress=progress)


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_after_a_kill_training_goes_on_to_the_same_model(houses, tmp_path, recorder):
    """In a process that is killed while it writes the state after its fourth step."""
    path, boxes, _ = houses()
    out, told = tmp_path / "out", recorder()
    out.mkdir()
    conftest = Path(__file__).resolve().parents[1] / "conftest.py"
    command = [
        sys.executable,
        "-c",
        _KILLED,
        str(conftest),
        __file__,
        path,
        json.dumps(boxes),
        str(out / "m.safetensors"),
    ]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(out.iterdir())) == 3  # the state, half of the next one, and the lock of a process that is no more
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = briefly(path, boxes, out / "m.safetensors", told)
        whole = briefly(path, boxes, tmp_path / "whole.safetensors")
    finally:
        torch.set_num_threads(threads)
    assert "Going on from step 3 of 8 of a training that was stopped." in told.texts
    assert [file.name for file in out.iterdir()] == ["m.safetensors"]
    assert [check[:3] for check in again.training.checks] == [check[:3] for check in whole.training.checks]
    assert again.training.best_step == whole.training.best_step
    expected = load_segmenter(tmp_path / "whole.safetensors").state_dict()
    found = load_segmenter(out / "m.safetensors").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_temporary_output_keeps_nothing(houses, tmp_path, monkeypatch):
    monkeypatch.setattr("segadapt.models.training_state.Keeper.is_due", lambda _: True)
    path, boxes, _ = houses()
    (out := tmp_path / "out").mkdir()
    monkeypatch.setattr(job, "save_segmenter", lambda *_, **__: 1 / 0)
    rasters = [labelled(path, boxes)]
    options = replace(QUICK, encoder="lcnet_035", n_steps=2)
    for is_temporary, n_left in ((True, 0), (False, 1)):
        with pytest.raises(ZeroDivisionError):
            train_model(
                rasters,
                scheme_of_labels(rasters),
                out / "m.safetensors",
                options,
                device="cpu",
                is_temporary=is_temporary,
            )
        assert len(list(out.iterdir())) == n_left
