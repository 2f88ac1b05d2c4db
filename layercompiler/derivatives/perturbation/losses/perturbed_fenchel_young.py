"""Perturbed Fenchel-Young loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.derivatives.perturbation.losses.base import Loss, inner, losses
from layercompiler.derivatives.perturbation.noise import Noise, Normal


@losses.register
@dataclass(frozen=True)
class PerturbedFenchelYoung(Loss):
    """Perturbed Fenchel-Young loss E max_z <u + T e, z> - <u, y>, up to a constant, with gradient E z(u + T e) - y.

    Args:
        samples: Draws of the noise.
        temperature: T; 0 gives the perceptron loss.
        noise: Distribution of e.

    Source: Berthet et al. 2020, section 4.
    """

    samples: int = 3
    temperature: float = 1.0
    noise: Noise = Normal()  # noqa: RUF009 (frozen)

    name: ClassVar[str] = "perturbed_fenchel_young"
    needs: ClassVar[tuple[str, ...]] = ("solution",)
    random: ClassVar[bool] = True  # type: ignore[misc]

    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Loss.evaluate`."""
        count, size = scores.shape
        part = (count // len(rng), self.samples, size)
        noise = np.concatenate([self.noise.sample(g, part) for g in rng])
        mask = oracle.mask()
        perturbed = scores[:, None] + self.temperature * (noise if mask is None else noise * mask)
        found = oracle(perturbed.reshape(-1, size)).reshape(count, self.samples, size)
        value = np.einsum("bsd,bsd->b", perturbed, found) / self.samples
        return value - inner(scores, targets["solution"]), found.mean(axis=1) - targets["solution"]
