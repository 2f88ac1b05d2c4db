"""The negative identity as Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Estimator, Oracle, estimators
from layercompiler.derivatives.perturbation.noise import Noise
from layercompiler.errors import OptionError

PROJECTIONS = ("auto", "none", "mean", "sphere", "standard", "equalities")


@estimators.register
@dataclass(frozen=True)
class Identity(Estimator):
    """Identity: the Jacobian of z(u) = argmax <u, z> is replaced by the identity, and the gradient projected; no further solve is needed.

    Args:
        project: What no solution depends on is taken out of the gradient. "mean": its mean (right where all solutions have equally
            many ones); "sphere": its part along u (the scale of u); "standard": both; "equalities": its part in the row space of the
            equality constraints, the largest such subspace that linear constraints prove; "none"; "auto": "equalities" for a
            compiled problem or an oracle that knows its own, else "none".

    Source:
        Sahoo, Paulus, Vlastelica, Musil, Kuleshov, Martius 2023; projection on equalities: all z - z' lie in their null space, and so
        does every gradient of a distribution over solutions.
    """

    noise: Noise | None = None
    project: str = "auto"

    name: ClassVar[str] = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.project not in PROJECTIONS:
            raise OptionError("unknown projection", expected=f"one of {list(PROJECTIONS)}", got=repr(self.project))

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """See `Estimator.pull`."""
        gradient = cotangents.sum(axis=1)
        if self.project in ("mean", "standard"):
            gradient = gradient - gradient.mean(axis=1, keepdims=True)
        if self.project in ("sphere", "standard"):
            u = scores - scores.mean(axis=1, keepdims=True) if self.project == "standard" else scores
            length = np.linalg.norm(u, axis=1, keepdims=True)
            u = u / np.where(length > 0, length, 1.0)
            gradient = (gradient - (gradient * u).sum(axis=1, keepdims=True) * u) / np.where(length > 0, length, 1.0)
        return oracle.project(gradient, self.project)
