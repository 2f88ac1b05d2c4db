"""Perturbed optimizers: the exact gradient of a smoothed solution, by its score-function estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Estimator, Oracle, estimators
from layercompiler.derivatives.perturbation.noise import Noise, Normal
from layercompiler.errors import OptionError


@estimators.register
@dataclass(frozen=True)
class Perturbed(Estimator):
    """Perturbed optimizer: y(u) = E z(u + T e) is smooth, and its vector-Jacobian product is E <z, dy> s(e) / T.

    s is the score of the noise.

    The estimate is unbiased for f(E z); each sample of "all" outputs counts as an estimate of the mean. It differentiates the
    distribution of the noise and never the solver, so parameters may also enter the constraints.

    The variance grows with the number d of perturbed scores: with fewer samples than d the direction is mostly noise, which training has
    to average over many steps. Where the best solution is known, `losses.PerturbedFenchelYoung` is the loss for perturbed optimizers: its
    gradient is a difference of solutions, of low variance. The projection helps where many equalities are known.

    Args:
        baseline: "leave-one-out" subtracts from each sample's <z, dy> the mean of the others (a control variate, unbiased); a single
            sample has no others, and the solution without noise stands in for them, at the price of one more solve. "none" does not.
        project: As in `Identity`; the exact gradient lies in that subspace, so projecting removes noise and adds no bias.

    Source:
        Berthet et al. 2020, proposition 3.1; Abernethy et al. 2016.
    """

    samples: int = 10
    noise: Noise | None = Normal()  # noqa: RUF009 (frozen)
    baseline: str = "leave-one-out"
    project: str = "auto"

    name: ClassVar[str] = "perturbed"
    constraints: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.random:
            raise OptionError(f"{type(self).__name__} needs noise and a positive temperature", mend="use DBB or Identity without noise")
        if self.baseline not in ("leave-one-out", "none"):
            raise OptionError("unknown baseline", expected="'leave-one-out' or 'none'", got=repr(self.baseline))

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """See `Estimator.pull`."""
        rewards = np.einsum("bsd,bd->bs", draw.solutions, cotangents.sum(axis=1), optimize=True)
        if self.baseline == "leave-one-out" and self.samples == 1:
            rewards = rewards - np.einsum("bd,bd->b", oracle(scores), cotangents[:, 0])[:, None]
        return oracle.project(self.weighted(draw.noise, rewards), self.project)

    def weighted(self, noise: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Mean over the samples of (reward - baseline) s(e) / T, (B, d), for rewards (B, S)."""
        assert self.noise is not None
        samples = rewards.shape[1]
        if self.baseline == "leave-one-out" and samples > 1:
            rewards = (rewards - rewards.mean(axis=1, keepdims=True)) * (samples / (samples - 1))
        return np.einsum("bsd,bs->bd", self.noise.score(noise), rewards, optimize=True) / (samples * self.temperature)
