"""Score-function estimator (REINFORCE) for any function of the solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Oracle, estimators
from layercompiler.derivatives.perturbation.estimators.perturbed import Perturbed
from layercompiler.errors import UnsupportedTransformError


@estimators.register
@dataclass(frozen=True)
class ScoreFunction(Perturbed):
    """Score function: d E f(z) / du = E (f(z) - baseline) s(e) / T, unbiased for any f, also one that has no derivative.

    It needs the values of f, so it works through `layer.expect(f, ...)` and not through the cotangents of the layer's outputs.

    Source:
        Williams 1992; Kool, van Hoof, Welling 2019 for the leave-one-out baseline.
    """

    output: str = "all"
    name: ClassVar[str] = "score_function"

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """Not defined.

        Raises:
            UnsupportedTransformError: Always.
        """
        raise UnsupportedTransformError(
            "the score function estimator needs the values of the loss, not its derivative",
            mend="call layer.expect(f, *parameters), or use Perturbed, which takes the derivative",
        )
