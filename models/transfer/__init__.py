"""From a source domain to a target domain: how far it is, and methods to get there, without labels or with few.

Each method without labels has a file of its own; importing this package registers them.
"""

from . import (
    entropy,
    entropy_diversity,
    fourier,
    masked_consistency,
    masked_image,
    norm_statistics,
    quantile,
    reinhard,
    self_training,
)

__all__ = [
    "entropy",
    "entropy_diversity",
    "fourier",
    "masked_consistency",
    "masked_image",
    "norm_statistics",
    "quantile",
    "reinhard",
    "self_training",
]
