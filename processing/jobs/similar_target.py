"""What a search looks for, and by what a mask is judged to be one: likeness, size, shape, the model's own opinion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...models.similarity import FloatArray, Judge, Prototypes
from .similar_windows import MaskTraits

# Above any predicted IoU, so that its shortfall has a logarithm.
_SCORE_CEILING = 1.02
# Spread of the logarithms of area and elongation, and of the fill, among objects of one kind, before enough examples
# tell: half to twice the area and more. It counts as much as this many examples.
_SPREADS = (0.7, 0.35, 0.12)
_PRIOR_EXAMPLES = 5
# Deviations beyond this many standard deviations are equally wrong.
_LARGEST_DEVIATION = 3.0
MEASURES = ("score", "stability", "similarity", "contrast", "smaller", "larger", "elongation", "fill", "rejected")
"""What a candidate is judged by; see `Target.measures`."""


@dataclass(frozen=True, eq=False)
class Target:
    """What is looked for: prototypes, the similarity of the raster at large, and the examples' size and shape."""

    prototypes: Prototypes
    mean: float
    deviation: float
    shape: npt.NDArray[np.float64]  # (3,) means of log area, log elongation, fill
    spread: npt.NDArray[np.float64]  # (3,)

    @staticmethod
    def fit(wanted: MaskTraits, *, rejected: FloatArray, background: FloatArray, at_large: FloatArray) -> Target:
        """The target from the traits of objects that are wanted, and from descriptors (N, C).

        Those of what was rejected, of what lies around the examples, and of the raster `at_large`.
        """
        prototypes = Prototypes.fit(wanted.inside, background=background, rejected=rejected)
        shapes = np.stack([wanted.log_area, wanted.log_elongation, wanted.fill], axis=1)
        centre = shapes.mean(axis=0)
        squares = _PRIOR_EXAMPLES * np.square(_SPREADS) + np.square(shapes - centre).sum(axis=0)
        similarity = prototypes.similarity(at_large)
        return Target(
            prototypes,
            float(similarity.mean()),
            float(similarity.std()) + 1e-6,
            centre,
            np.sqrt(squares / (_PRIOR_EXAMPLES + len(shapes))),
        )

    def similarity(self, descriptors: FloatArray) -> FloatArray:
        """Similarity of descriptors (..., C) in standard deviations of the raster above its mean."""
        found: FloatArray = (self.prototypes.similarity(descriptors) - self.mean) / self.deviation
        return found

    def measures(self, traits: MaskTraits) -> npt.NDArray[np.float64]:
        """`MEASURES` of N masks, (N, 9).

        Predicted IoU (its shortfall, logarithmically: 0.98 and 0.96 differ more than 0.6 and 0.5); stability;
        similarity; how much more similar than what lies around; how much smaller and how much larger than the
        examples, differently elongated and filled, in squared spreads; likeness to the rejected.
        """
        similarity = self.similarity(traits.inside)
        shapes = np.stack([traits.log_area, traits.log_elongation, traits.fill], axis=1)
        off = ((shapes - self.shape) / self.spread).clip(-_LARGEST_DEVIATION, _LARGEST_DEVIATION)
        columns: npt.NDArray[np.float64] = np.stack(
            [
                -np.log(_SCORE_CEILING - traits.score),
                traits.stability,
                similarity,
                similarity - self.similarity(traits.around),
                np.minimum(off[:, 0], 0) ** 2,
                np.maximum(off[:, 0], 0) ** 2,
                off[:, 1] ** 2,
                off[:, 2] ** 2,
                self.prototypes.resemblance_to_rejected(traits.inside),
            ],
            axis=1,
        ).astype(np.float64)
        return columns


# Began as a logistic regression of masks around peaks (IoU with a building at least 0.5) on two places of the reference
# data, Kampala and Nairobi at 30 cm, with 1 to 10 examples each; rounded, and the weights of similarity and size raised
# by hand after trials on Kampala, as was that of the rejected, which no batch knows. Banepa and Zanzibar had no part.
GENERAL_JUDGE = Judge(np.array([0.6, 3.5, 0.7, 0.4, -0.35, -0.05, -0.15, -0.1, -6.0]), -5.7)
