"""Regret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.derivatives.perturbation.losses.base import Loss, inner, losses


@losses.register
@dataclass(frozen=True)
class Regret(Loss):
    """Regret <t, z(t) - z(u)>, what deciding by the prediction costs; its gradient is estimated by the layer's estimator.

    With noise, z(u) is the mean of the samples.
    """

    name: ClassVar[str] = "regret"
    needs: ClassVar[tuple[str, ...]] = ("true",)
    random: ClassVar[bool] = True  # type: ignore[misc]

    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Loss.evaluate`."""
        true = targets["true"]
        best = targets["solution"] if "solution" in targets else oracle(true)
        draw = estimator.draw(scores, oracle, rng)
        value = inner(true, best - draw.solutions.mean(axis=1))
        samples = draw.solutions.shape[1]
        dy = -true[:, None] if estimator.output == "mean" else np.repeat(-true[:, None] / samples, samples, axis=1)
        return value, estimator.pull(scores, draw, dy, oracle)
