"""Fenchel-Young loss of the squared norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.derivatives.perturbation.losses.base import Loss, inner, losses


@losses.register
@dataclass(frozen=True)
class FenchelYoung(Loss):
    """Fenchel-Young loss of the regulariser R |m|^2 / 2 over the convex hull of the solutions (SparseMAP).

        max_m <u, m> - R |m|^2 / 2  -  <u, y> + R |y|^2 / 2,    with gradient m(u) - y

    m(u) is the projection of u / R onto the hull, by Frank-Wolfe with exact line search.

    Args:
        weight: R.
        iterations: Solves per call; the error of m falls as 1 / iterations.

    Source: Blondel, Martins, Niculae 2020; Niculae et al. 2018.
    """

    weight: float = 1.0
    iterations: int = 20

    name: ClassVar[str] = "fenchel_young"
    needs: ClassVar[tuple[str, ...]] = ("solution",)

    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Loss.evaluate`."""
        y = targets["solution"]
        m = oracle(scores)
        for _ in range(self.iterations):
            slope = scores - self.weight * m
            way = oracle(slope) - m
            length = self.weight * inner(way, way)
            step = np.clip(inner(slope, way) / np.where(length > 0, length, 1.0), 0.0, 1.0)
            if not step.any():
                break
            m = m + step[:, None] * way
        value = inner(scores, m - y) + 0.5 * self.weight * (inner(y, y) - inner(m, m))
        return value, m - y
