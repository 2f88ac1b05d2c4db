"""Noise-contrastive estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.derivatives.perturbation.losses.base import Loss, inner, losses


@losses.register
@dataclass(frozen=True)
class NCE(Loss):
    """Noise-contrastive estimation: the mean of <u, z> - <u, y> over a pool of solutions; no solves.

    Source: Mulamba et al. 2021, equation (5).
    """

    name: ClassVar[str] = "nce"
    needs: ClassVar[tuple[str, ...]] = ("solution", "pool")

    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Loss.evaluate`."""
        gradient = targets["pool"].mean(axis=0) - targets["solution"]
        return inner(scores, gradient), gradient
