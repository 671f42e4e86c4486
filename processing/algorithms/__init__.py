"""The algorithms of the provider, one thin file each. Importing them needs QGIS, but no torch or rasterio."""

from .checkpoint import CheckpointAlgorithm
from .encode_raster import EncodeRasterAlgorithm
from .segment_everything import SegmentEverythingAlgorithm
from .segment_from_prompts import SegmentFromPromptsAlgorithm

ALGORITHMS = [
    SegmentFromPromptsAlgorithm,
    SegmentEverythingAlgorithm,
    EncodeRasterAlgorithm,
    CheckpointAlgorithm,
]
