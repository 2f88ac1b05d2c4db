"""What a loss is: a value and an exact or estimated gradient of the scores, both from solutions of the problem.

Everything here works on scores u, which are maximised: u = -c for a cost c; t are the scores of the true costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.registry import Registry


class Loss(ABC):
    """A loss of predicted scores, one value per instance; see `layer.loss`.

    A new loss is one file with a subclass that is registered with `@losses.register`.

    Attributes:
        needs: Names of its targets: "true" (parameters, as the layer takes them), "solution" (one per instance, as the layer
            returns them), "pool" (solutions on an axis before their shape, shared by the batch).
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    random: bool = False

    @abstractmethod
    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values (B,) and gradients (B, d).

        Args:
            scores: (B, d).
            targets: (B, d) by name; the pool (P, d).
            oracle: The problem.
            estimator: That of the layer, for losses that have no gradient of their own.
            rng: Generators of the batch.
        """


losses: Registry[Loss] = Registry(
    "loss", __package__ or "", ("spo_plus", "fenchel_young", "perturbed_fenchel_young", "nce", "map_contrastive", "regret")
)


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of rows."""
    return np.einsum("bd,bd->b", a, b)
