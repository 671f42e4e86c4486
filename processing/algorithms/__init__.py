"""The algorithms of the provider, one thin file each. Importing them needs QGIS, but no torch or rasterio."""

from .adapt_model import AdaptModelAlgorithm
from .checkpoint import CheckpointAlgorithm
from .class_map import ClassMapAlgorithm
from .compare_adaptation import CompareAdaptationAlgorithm
from .distill_model import DistillModelAlgorithm
from .domain_shift import DomainShiftAlgorithm
from .encode_raster import EncodeRasterAlgorithm
from .evaluate_interactive import EvaluateInteractiveAlgorithm
from .evaluate_model import EvaluateModelAlgorithm
from .export_model import ExportModelAlgorithm
from .find_similar import FindSimilarAlgorithm
from .fine_tune_model import FineTuneModelAlgorithm
from .segment_everything import SegmentEverythingAlgorithm
from .segment_from_prompts import SegmentFromPromptsAlgorithm
from .segment_raster import SegmentRasterAlgorithm
from .select_samples import SelectSamplesAlgorithm
from .train_model import TrainModelAlgorithm

ALGORITHMS = [
    SegmentFromPromptsAlgorithm,
    SegmentEverythingAlgorithm,
    FindSimilarAlgorithm,
    ClassMapAlgorithm,
    EncodeRasterAlgorithm,
    DomainShiftAlgorithm,
    AdaptModelAlgorithm,
    CheckpointAlgorithm,
    EvaluateInteractiveAlgorithm,
    DistillModelAlgorithm,
    TrainModelAlgorithm,
    SegmentRasterAlgorithm,
    EvaluateModelAlgorithm,
    ExportModelAlgorithm,
    SelectSamplesAlgorithm,
    CompareAdaptationAlgorithm,
    FineTuneModelAlgorithm,
]
