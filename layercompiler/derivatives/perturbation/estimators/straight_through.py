"""Straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Estimator, Oracle, estimators


@estimators.register
@dataclass(frozen=True)
class StraightThrough(Estimator):
    """Straight-through: sampled solutions forward, the cotangent itself backward.

    Source:
        Bengio, Leonard, Courville 2013.
    """

    name: ClassVar[str] = "straight_through"

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """See `Estimator.pull`."""
        return cotangents.sum(axis=1)
