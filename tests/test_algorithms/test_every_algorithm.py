"""What holds for each algorithm of the provider, whatever it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qgis.core")

from qgis.core import QgsProcessingAlgorithm, QgsProcessingParameterEnum
from qgis.PyQt.QtCore import QRect
from qgis.PyQt.QtGui import QIcon
from segadapt.processing.algorithms import ALGORITHMS
from segadapt.processing.algorithms.chain import CHAINS
from segadapt.processing.algorithms.raster_algorithm import WINDOWS
from segadapt.processing.algorithms.resources import icon_path

pytestmark = pytest.mark.qgis

# Ids and parameter names are public: models, scripts and command lines of users hold them.
PUBLIC = {
    "domainshift": (
        {"RASTERS", "MODEL", "SEED", "DEVICE", "REPORT"},
        {"REPORT", "SHIFT", "FRECHET", "PROXY_A", "BAND_SHIFT", "CLASS_SHIFT", "AGREEMENT", "LEVEL", "RECOMMENDED"},
    ),
    "adaptmodel": (
        {"RASTERS", "MODEL", "METHODS", "CHAIN", "STEPS", "SEGMENTS", "SOURCE_WEIGHT", "SOURCE", "LABELS"}
        | {"CLASS_FIELD", "LABEL_RASTERS", "CLASS_NAMES", "BACKGROUND", "AREA", "BATCH", "SEED", "DEVICE"}
        | {"OUTPUT", "REPORT"},
        {"OUTPUT", "REPORT", "IS_ADAPTED", "AGREEMENT_BEFORE", "AGREEMENT_AFTER"},
    ),
    "segmentfromprompts": (
        {"INPUT", "PROMPTS", "PROMPT_FIELD", "OBJECT_FIELD", "CLASS_FIELD", "MODEL", "BANDS", "DEVICE"}
        | {"WINDOW", "MULTIMASK", "ADAPTER", "SIMPLIFY", "MIN_AREA", "STRETCH", "OUTPUT"},
        {"OUTPUT", "COUNT"},
    ),
    "segmenteverything": (
        {
            "INPUT",
            "EXTENT",
            "MODEL",
            "BANDS",
            "DEVICE",
            "POINTS_PER_SIDE",
            "SCORE_THRESHOLD",
            "STABILITY_THRESHOLD",
        }
        | {"OVERLAP_THRESHOLD", "WINDOW", "SIMPLIFY", "MIN_AREA", "STRETCH", "OUTPUT", "LABELS"},
        {"OUTPUT", "LABELS", "COUNT"},
    ),
    "findsimilar": (
        {"INPUT", "EXEMPLARS", "REJECTED", "EXTENT", "METHOD", "MODEL", "BANDS", "DEVICE", "STRETCH", "WINDOW"}
        | {"THRESHOLD", "SIMPLIFY", "MIN_AREA", "OUTPUT"},
        {"OUTPUT", "COUNT"},
    ),
    "classmap": (
        {"INPUT", "CLICKS", "CLASS_FIELD", "CLASS_MODEL", "EXTENT", "HEAD", "SNAP", "MODEL", "BANDS", "DEVICE"}
        | {"STRETCH", "WINDOW", "OUTPUT", "POLYGONS", "SAVED_MODEL", "ENTROPY"},
        {"OUTPUT", "POLYGONS", "SAVED_MODEL", "ENTROPY", "COUNT"},
    ),
    "encoderaster": (
        {"INPUT", "EXTENT", "MODEL", "BANDS", "DEVICE", "WINDOW", "STRETCH"},
        {"ENCODED", "FOLDER"},
    ),
    "segmentraster": (
        {"INPUT", "MODEL", "BANDS", "EXTENT", "OVERLAP", "FLIPS", "BATCH", "DEVICE", "SCHEDULER", "OUTPUT"}
        | {"WINDOW", "PROBABILITIES", "CONFIDENCE", "ENTROPY", "POLYGONS"},
        {"OUTPUT", "PROBABILITIES", "CONFIDENCE", "ENTROPY", "POLYGONS", "COUNT", "SECONDS"},
    ),
    "checkpoint": ({"MODEL", "FILE"}, {"FILE", "SHA256"}),
    "evaluateinteractive": (
        {"INPUT", "REFERENCE", "PROTOCOL", "CLASS_FIELD", "MODEL", "BANDS", "DEVICE", "STRETCH", "WINDOW"}
        | {
            "ADAPTATION",
            "ADAPTER",
            "ADAPTER_FILE",
            "CASCADE",
            "REPAIR",
            "RECTANGLES",
            "PER_CLICK",
            "PER_OBJECT",
            "ACCEPT",
            "BASELINE",
            "CLICKS",
            "OBJECTS",
        }
        | {"MIN_PIXELS", "SEED", "TABLE", "REPORT"},
        {"TABLE", "REPORT", "COUNT", "NOC80", "NOC85", "NOC90", "MIOU1", "MIOU3", "MIOU5", "MIOU10"},
    ),
    "distillmodel": (
        {"MODEL", "MORE_MODELS", "RASTERS", "STUDENT", "STEPS", "DEVICE", "SEED", "OUTPUT", "REPORT"}
        | {"BATCH", "LEAST_AGREEMENT"},
        {"OUTPUT", "REPORT", "SPEEDUP", "AGREEMENT", "IS_KEPT"},
    ),
    "trainmodel": (
        {"RASTERS", "LABELS", "CLASS_FIELD", "LABEL_RASTERS", "CLASS_NAMES", "BACKGROUND", "AREA", "DECODER"}
        | {"ENCODER", "WEIGHTS", "GSD", "BANDS", "CHIP", "EPOCHS", "STEPS", "BATCH", "RATE", "HELD_OUT", "SPLIT"}
        | {"PATIENCE", "AUGMENT", "LOSS", "BALANCE", "MAX_CHIPS", "NAME", "LICENCE", "SEED", "DEVICE", "OUTPUT"}
        | {"REPORT"},
        {"OUTPUT", "REPORT", "MEAN_IOU", "ACCURACY", "COUNT"},
    ),
    "evaluatemodel": (
        {"MODELS", "RASTERS", "LABELS", "CLASS_FIELD", "LABEL_RASTERS", "CLASS_NAMES", "BACKGROUND", "AREA", "BANDS"}
        | {"CHIP", "FLIPS", "TOLERANCE", "MAX_CHIPS", "SEED", "DEVICE", "TABLE", "REPORT"},
        {"TABLE", "REPORT", "MEAN_IOU", "MEAN_IOU_LOW", "MEAN_IOU_HIGH", "ACCURACY", "MEAN_F1", "BOUNDARY_F1"}
        | {"CALIBRATION_ERROR", "COUNT", "BEST"},
    ),
    "exportmodel": ({"MODEL", "CHIP", "OUTPUT"}, {"OUTPUT"}),
    "selectsamples": (
        {
            "RASTERS",
            "MODEL",
            "STRATEGY",
            "REGIONS",
            "REGION_SIZE",
            "BUDGET",
            "BUDGET_UNIT",
            "LABELLED",
            "DEVICE",
            "SEED",
            "OUTPUT",
        },
        {"OUTPUT", "COUNT", "AREA_M2"},
    ),
    "compareadaptation": (
        {"MODEL", "RASTERS", "LABELS", "CLASS_FIELD", "LABEL_RASTERS", "CLASS_NAMES", "BACKGROUND", "AREA", "METHODS"}
        | {"LAYERS", "BUDGETS", "TIME_LIMIT", "STEPS", "HELD_OUT", "MAX_CHIPS", "SEED", "DEVICE", "OUTPUT", "TABLE"}
        | {"BATCH"}
        | {"REPORT", "SOURCE", "SOURCE_LABELS", "SOURCE_CLASS_FIELD", "SOURCE_LABEL_RASTERS", "SOURCE_AREA"},
        {"OUTPUT", "TABLE", "REPORT", "BEST", "MEAN_IOU", "MEAN_IOU_BEFORE", "COUNT"},
    ),
    "finetunemodel": (
        {
            "MODEL",
            "RASTERS",
            "LABELS",
            "CLASS_FIELD",
            "LABEL_RASTERS",
            "CLASS_NAMES",
            "BACKGROUND",
            "AREA",
            "BATCH",
            "LAYERS",
            "RANK",
        }
        | {"BLOCKS", "TOKENS", "STEPS", "HELD_OUT", "ADAPTER_ONLY", "SEED", "DEVICE", "OUTPUT", "REPORT"}
        | {"SOURCE", "SOURCE_LABELS", "SOURCE_CLASS_FIELD", "SOURCE_LABEL_RASTERS", "SOURCE_AREA"},
        {"OUTPUT", "REPORT", "IS_ADAPTED", "MEAN_IOU_BEFORE", "MEAN_IOU_AFTER", "N_TRAINABLE"},
    ),
}


def test_provider_lists_the_public_algorithms(provider: Any) -> None:
    """Provider id and algorithm ids are those of the documentation."""
    assert provider.id() == "segadapt"
    chains = {stem.replace("_", "") for stem in CHAINS}  # test_chains.py looks at them
    assert {algorithm.name() for algorithm in provider.algorithms()} == set(PUBLIC) | chains
    assert not provider.icon().isNull()
    assert Path(provider.svgIconPath()).is_file()


@pytest.mark.parametrize("path", sorted(Path(icon_path("provider")).parent.iterdir()), ids=lambda path: path.stem)
def test_every_icon_lies_on_a_light_plate(path: Path, provider: Any) -> None:
    """Dark lines would be lost in a dark theme: they are drawn on a plate of their own, and nothing beside it."""
    image = QIcon(str(path)).pixmap(240, 240).toImage()
    assert image.pixelColor(120, 11).name() == "#e8eef1"
    plate = QRect(10, 10, 220, 220)
    drawn = [(x, y) for x in range(240) for y in range(240) if image.pixelColor(x, y).alpha() > 127]
    assert [place for place in drawn if not plate.contains(*place)] == []


@pytest.mark.parametrize("algorithm_class", ALGORITHMS)
class TestEveryAlgorithm:
    """One instance of each class, as QGIS makes it."""

    @pytest.fixture
    def algorithm(self, algorithm_class: type, provider: Any) -> Any:
        """The registered algorithm, whose parameters are declared."""
        return provider.algorithm(algorithm_class().name())

    def test_names_are_public(self, algorithm: Any) -> None:
        """Parameters and outputs are exactly those that were promised."""
        parameters, outputs = PUBLIC[algorithm.name()]
        assert {p.name() for p in algorithm.parameterDefinitions()} == parameters
        assert {o.name() for o in algorithm.outputDefinitions()} == outputs

    def test_ids_are_lowercase(self, algorithm: Any) -> None:
        """Ids are never translated and hold letters only."""
        assert algorithm.name().isalpha()
        assert algorithm.name().islower()
        assert algorithm.groupId().islower()
        assert algorithm.displayName()
        assert algorithm.group()

    def test_every_parameter_has_label_and_help(self, algorithm: Any) -> None:
        """The help of a parameter is its tooltip and a paragraph of the help panel."""
        text = algorithm.shortHelpString()
        assert text.startswith(algorithm.summary())
        for parameter in algorithm.parameterDefinitions():
            assert parameter.description() != parameter.name()
            assert parameter.help().endswith(".")
            assert f"{parameter.description()}: {parameter.help()}" in text
        described = {d.name() for d in (*algorithm.parameterDefinitions(), *algorithm.outputDefinitions())}
        assert set(algorithm.helps()) == described

    def test_icon_is_its_own(self, algorithm: Any) -> None:
        """Each has a drawing that renders at the size of the toolbox."""
        assert Path(algorithm.svgIconPath()).stem == algorithm.name()
        image = algorithm.icon().pixmap(24, 24).toImage()
        colours = {image.pixelColor(x, y).name() for x in range(24) for y in range(24)}
        assert len(colours) > 4

    def test_runs_in_a_thread(self, algorithm: Any) -> None:
        """Nothing forces the work onto the main thread, and it can be cancelled."""
        assert not algorithm.flags() & QgsProcessingAlgorithm.FlagNoThreading
        assert algorithm.flags() & QgsProcessingAlgorithm.FlagCanCancel

    def test_choices_go_by_name(self, algorithm: Any) -> None:
        """A list that grows must not change what a script means."""
        for parameter in algorithm.parameterDefinitions():
            if isinstance(parameter, QgsProcessingParameterEnum):
                assert parameter.usesStaticStrings()
                assert parameter.defaultValue() == parameter.options()[0]

    def test_create_gives_a_fresh_instance(self, algorithm: Any) -> None:
        """State of one job never reaches the next."""
        copy = algorithm.create()
        assert copy is not algorithm
        assert copy.id() == algorithm.id()


def test_windows_are_those_of_the_jobs() -> None:
    """The enum repeats the sizes, because their module needs the environment."""
    from segadapt.processing.raster.windows import WINDOW_SIZES_PX

    assert list(WINDOWS) == ["auto", *map(str, WINDOW_SIZES_PX)]
