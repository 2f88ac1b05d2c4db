"""SPO+."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Estimator, Oracle
from layercompiler.derivatives.perturbation.losses.base import Loss, inner, losses


@losses.register
@dataclass(frozen=True)
class SPOPlus(Loss):
    """SPO+, a convex upper bound of the regret: max_z <2u - t, z> - 2 <u, z*> + <t, z*>, with subgradient 2 (z(2u - t) - z*).

    z* is the solution for the true parameters; pass `solution=` too where it is known, and it is not solved for again.

    Source: Elmachtoub and Grigas 2022, equation (11).
    """

    name: ClassVar[str] = "spo_plus"
    needs: ClassVar[tuple[str, ...]] = ("true",)

    def evaluate(
        self, scores: np.ndarray, targets: dict[str, np.ndarray], oracle: Oracle, estimator: Estimator, rng: list[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Loss.evaluate`."""
        true = targets["true"]
        best = targets["solution"] if "solution" in targets else oracle(true)
        shifted = 2.0 * scores - true
        found = oracle(shifted)
        return inner(shifted, found - best), 2.0 * (found - best)
