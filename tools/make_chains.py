"""Writes the model-designer chains that ship with the plugin, `plugin/resources/models/*.model3`.

Run it in QGIS's Python with the project's environment after a parameter of an algorithm was added that a chain should
hand on, and commit what it writes:

    export QT_QPA_PLATFORM=offscreen QT_HASH_SEED=0 PYTHONPATH=.link
    "$(python3 processing/environment.py path)/bin/python" tools/make_chains.py

The seed keeps Qt from shuffling the attributes in the files. Use the oldest QGIS that the plugin supports (3.22):
newer ones read its files, but not the other way round.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qgis.analysis import QgsNativeAlgorithms
from qgis.core import QgsApplication
from segadapt.processing.algorithms.chain import CHAINS
from segadapt.processing.algorithms.resources import model_path
from segadapt.processing.provider import SegAdaptProvider
from segadapt.tools.chain_writer import ChainWriter, Source, fixed, given, result


def select_to_evaluate() -> ChainWriter:
    """Select, label, tune, segment, evaluate."""
    chain = ChainWriter(
        "Select, label, tune, segment, evaluate",
        "The whole way with few labels: selects the regions of a raster whose labels teach a segmentation model most, "
        "takes the labels within them, fine-tunes the model, maps the raster with it, and compares it with the source "
        "model on the ground that it did not learn from. The labels are those of a reference, or what you drew: run "
        "Select samples to label with the same budget and seed first, which gives the same regions, label "
        "them and some ground to test on, and name that ground as test area.",
    )
    select, tune, evaluate = "segadapt:selectsamples", "segadapt:finetunemodel", "segadapt:evaluatemodel"
    chain.ask("INPUT", of=("segadapt:segmentraster", "INPUT"))
    chain.ask("MODEL", of=(select, "MODEL"), label="Source model")
    chain.ask(
        "LABELS",
        of=(evaluate, "LABELS"),
        is_optional=False,
        text="Polygons of the classes, in any CRS: complete within the selected regions and on the ground to test on.",
    )
    chain.ask(
        "CLASS_FIELD",
        of=(evaluate, "CLASS_FIELD"),
        is_optional=False,
        parent="LABELS",
        text="Field of the polygons that holds the name of the class; polygons without a value are unknown ground.",
    )
    chain.ask("BUDGET", of=(select, "BUDGET"))
    chain.ask("BUDGET_UNIT", of=(select, "BUDGET_UNIT"))
    chain.ask("STRATEGY", of=(select, "STRATEGY"))
    chain.ask("REGION_SIZE", of=(select, "REGION_SIZE"), is_advanced=True)
    chain.ask(
        "TEST_AREA",
        of=(evaluate, "AREA"),
        label="Test area",
        text="Polygons within which the labels are complete, to compare the models there; the regions that were "
        "learned from are left out. Without it the whole raster.",
    )
    source = _ask_source(chain)
    chain.ask("LAYERS", of=(tune, "LAYERS"), label="Layers that learn")
    chain.ask("STEPS", of=(tune, "STEPS"), label="Steps of learning")
    chain.ask("SEED", of=(tune, "SEED"), is_advanced=True)
    chain.ask("DEVICE", of=(tune, "DEVICE"), is_advanced=True)
    shared = {"SEED": given("SEED"), "DEVICE": given("DEVICE")}
    chain.step(
        "select",
        select,
        "Select samples to label",
        {
            "RASTERS": given("INPUT"),
            **{name: given(name) for name in ("MODEL", "BUDGET", "BUDGET_UNIT", "STRATEGY", "REGION_SIZE")},
            **shared,
        },
        outputs={"OUTPUT": ("REGIONS", "Regions", "The regions that were selected, by rank.")},
    )
    chain.step("mend", "native:fixgeometries", "Mend labels", {"INPUT": given("LABELS")})
    chain.step("label", "native:clip", "Labels of the regions", {"INPUT": result("mend"), "OVERLAY": result("select")})
    chain.step(
        "tune",
        tune,
        "Fine-tune model",
        {
            "MODEL": given("MODEL"),
            "RASTERS": given("INPUT"),
            "LABELS": result("label"),
            "CLASS_FIELD": given("CLASS_FIELD"),
            "AREA": result("select"),
            "LAYERS": given("LAYERS"),
            "STEPS": given("STEPS"),
            **source,
            **shared,
        },
        outputs={
            "OUTPUT": (
                "TUNED_MODEL",
                "Fine-tuned model",
                "The fine-tuned model, or the source model where tuning did harm (.safetensors).",
            ),
            "REPORT": (
                "TUNING_REPORT",
                "Report on fine-tuning",
                "Page on what was learned and what that brought on labels held out.",
            ),
        },
    )
    chain.step(
        "segment",
        "segadapt:segmentraster",
        "Segment raster",
        {"INPUT": given("INPUT"), "MODEL": result("tune"), "DEVICE": given("DEVICE")},
        outputs={
            "OUTPUT": ("CLASSES", "Classes", "Raster of the classes that the fine-tuned model sees; 255 is nodata.")
        },
    )
    chain.step(
        "outside",
        "native:difference",
        "Labels beside the regions",
        {"INPUT": result("mend"), "OVERLAY": result("select")},
    )
    # Regions have no class, which makes them unknown ground; without ranks nobody takes them for places to draw in.
    chain.step(
        "learned",
        "native:deletecolumn",
        "Regions that were learned from",
        {"INPUT": result("select"), "COLUMN": fixed(["rank"])},
    )
    chain.step(
        "test", "native:mergevectorlayers", "Labels to test on", {"LAYERS": [result("outside"), result("learned")]}
    )
    chain.step(
        "evaluate",
        evaluate,
        "Evaluate both models",
        {
            "MODELS": [given("MODEL"), result("tune")],
            "RASTERS": given("INPUT"),
            "LABELS": result("test"),
            "CLASS_FIELD": given("CLASS_FIELD"),
            "AREA": given("TEST_AREA"),
            **shared,
        },
        outputs={
            "REPORT": (
                "EVALUATION_REPORT",
                "Report on both models",
                "Page that compares the source model and the fine-tuned one.",
            ),
            "TABLE": (
                "EVALUATION_TABLE",
                "Table of both models",
                "Table with one row for each model and class (.csv).",
            ),
        },
    )
    return chain


def adapt_to_compare() -> ChainWriter:
    """Adapt, segment, compare."""
    chain = ChainWriter(
        "Adapt, segment, compare",
        "The whole way without labels: measures how far a raster is from what a segmentation model knows, adapts the "
        "model to it, maps the raster with both models, and shows where the maps differ. Where adapting did harm, the "
        "source model is kept, and the maps are the same.",
    )
    adapt, segment = "segadapt:adaptmodel", "segadapt:segmentraster"
    chain.ask("INPUT", of=(segment, "INPUT"))
    chain.ask("MODEL", of=(adapt, "MODEL"), label="Source model")
    chain.ask("METHODS", of=(adapt, "METHODS"))
    rehearsed, labels, class_field = _ask_source(chain).values()
    chain.ask("STEPS", of=(adapt, "STEPS"))
    chain.ask("SEED", of=(adapt, "SEED"), is_advanced=True)
    chain.ask("DEVICE", of=(adapt, "DEVICE"), is_advanced=True)
    images = {"RASTERS": given("INPUT"), "MODEL": given("MODEL"), "SEED": given("SEED"), "DEVICE": given("DEVICE")}
    chain.step(
        "measure",
        "segadapt:domainshift",
        "Measure domain shift",
        images,
        outputs={
            "REPORT": (
                "SHIFT_REPORT",
                "Report on the shift",
                "Page on how far the raster is from what the source model knows.",
            )
        },
    )
    chain.step(
        "adapt",
        adapt,
        "Adapt model without labels",
        {
            **images,
            "METHODS": given("METHODS"),
            "STEPS": given("STEPS"),
            "SOURCE": rehearsed,
            "LABELS": labels,
            "CLASS_FIELD": class_field,
        },
        after="measure",
        outputs={
            "OUTPUT": (
                "ADAPTED_MODEL",
                "Adapted model",
                "The adapted model, or the source model where adapting did harm.",
            ),
            "REPORT": ("ADAPTATION_REPORT", "Report on adaptation", "Page on what was done and measured."),
        },
    )
    before = {"INPUT": given("INPUT"), "MODEL": given("MODEL"), "DEVICE": given("DEVICE")}
    chain.step(
        "before",
        segment,
        "Segment with the source model",
        before,
        after="adapt",
        outputs={
            "OUTPUT": (
                "SOURCE_CLASSES",
                "Classes of the source model",
                "Raster of the classes that the source model sees; 255 is nodata.",
            )
        },
    )
    chain.step(
        "after",
        segment,
        "Segment with the adapted model",
        {**before, "MODEL": result("adapt")},
        outputs={
            "OUTPUT": (
                "ADAPTED_CLASSES",
                "Classes of the adapted model",
                "Raster of the classes that the adapted model sees; 255 is nodata.",
            )
        },
    )
    chain.step(
        "variety",
        "native:cellstatistics",
        "Number of classes per pixel",
        {
            "INPUT": [result("before"), result("after")],
            "STATISTIC": fixed(11),  # variety
            "IGNORE_NODATA": fixed(False),
            "REFERENCE_LAYER": result("before"),
            "OUTPUT_NODATA_VALUE": fixed(-9999),
        },
    )
    chain.step(
        "changes",
        "native:reclassifybytable",
        "Where the maps differ",
        {
            "INPUT_RASTER": result("variety"),
            "RASTER_BAND": fixed(1),
            "TABLE": fixed(["1", "1", "0", "2", "2", "1"]),
            "NO_DATA": fixed(255),
            "RANGE_BOUNDARIES": fixed(2),  # ends of ranges belong to them
            "NODATA_FOR_MISSING": fixed(False),
            "DATA_TYPE": fixed(0),  # byte
        },
        outputs={
            "OUTPUT": (
                "CHANGES",
                "Changes",
                "Raster of the pixels whose class changed: 1 changed, 0 same; 255 is nodata.",
            )
        },
    )
    chain.step(
        "count",
        "native:rasterlayerzonalstats",
        "Changes by class",
        {
            "INPUT": result("changes"),
            "BAND": fixed(1),
            "ZONES": result("before"),
            "ZONES_BAND": fixed(1),
            "REF_LAYER": fixed(0),
        },
        outputs={
            "OUTPUT_TABLE": (
                "CHANGE_TABLE",
                "Changes by class",
                "Table with one row for each class of the source model (zone): number of pixels (count), how many of "
                "them changed (sum), and their share (mean).",
            )
        },
    )
    return chain


def _ask_source(chain: ChainWriter) -> dict[str, Source]:
    """Ask for labelled rasters of the source, under the names of *Fine-tune model*; returns what was given."""
    tune = "segadapt:finetunemodel"
    chain.ask("SOURCE", of=(tune, "SOURCE"))
    chain.ask("SOURCE_LABELS", of=(tune, "SOURCE_LABELS"))
    chain.ask("SOURCE_CLASS_FIELD", of=(tune, "SOURCE_CLASS_FIELD"), parent="SOURCE_LABELS")
    return {name: given(name) for name in ("SOURCE", "SOURCE_LABELS", "SOURCE_CLASS_FIELD")}


def main() -> int:
    """Write both files; returns the exit status."""
    application = QgsApplication([], False)
    application.initQgis()
    registry = application.processingRegistry()
    registry.addProvider(QgsNativeAlgorithms(registry))
    registry.addProvider(SegAdaptProvider())
    for stem, chain in zip(CHAINS, (select_to_evaluate(), adapt_to_compare()), strict=True):
        chain.save(Path(model_path(stem)))
        print(model_path(stem))
    application.exitQgis()
    return 0


if __name__ == "__main__":
    sys.exit(main())
