"""What an estimator is: draw solutions, and pull cotangents of the solutions back to the scores.

Everything here works on scores u, one row per instance: a solution is z(u) = argmax <u, z> over the feasible set, and a problem
that minimises a cost c has u = -c. With f the loss downstream and dy = df/dz, an estimator answers with an estimate of
d E f(z(u)) / du.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from layercompiler.derivatives.perturbation.noise import Gumbel, Noise
from layercompiler.errors import OptionError
from layercompiler.registry import Registry


class Oracle(Protocol):
    """What an estimator may ask of a problem."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """A maximiser per row of scores (N, d), as (N, d'); rows that could not be solved are NaN."""
        ...

    def project(self, gradient: np.ndarray, kind: str) -> np.ndarray:
        """Gradients (B, d) without the directions that move no solution; `kind` as in `Identity.project`."""
        ...

    def mask(self) -> np.ndarray | None:
        """(d,) bool, the entries of the scores that may be perturbed; None for all."""
        ...


@dataclass(frozen=True)
class Draw:
    """Sampled solutions (B, S, d') and the noise (B, S, d) behind them; the noise is (B, S, 0) where there is none."""

    solutions: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimator of the gradient of a discrete solution.

    Args:
        samples: Perturbed solutions per instance.
        noise: Distribution of the perturbations; None for none.
        temperature: Factor of the noise.
        output: "mean" of the samples, or "all" of them on an axis after the batch.

    A new estimator is one file with a subclass that defines `pull` and is registered with `@estimators.register`.
    """

    samples: int = 1
    noise: Noise | None = Gumbel()  # noqa: RUF009 (frozen)
    temperature: float = 1.0
    output: str = "mean"

    name: ClassVar[str]
    constraints: ClassVar[bool] = False  # valid where parameters enter the constraints, too

    def __post_init__(self) -> None:
        if isinstance(self.samples, bool) or int(self.samples) != self.samples or self.samples < 1:
            raise OptionError(f"{type(self).__name__} needs a whole number of samples", expected="at least 1", got=repr(self.samples))
        if self.output not in ("mean", "all"):
            raise OptionError("unknown output of an estimator", expected="'mean' or 'all'", got=repr(self.output))
        if not self.temperature >= 0:
            raise OptionError("the temperature must not be negative", got=repr(self.temperature))
        if not (self.noise is None or isinstance(self.noise, Noise)):
            raise OptionError("the noise is neither a Noise nor None", expected="such as Gumbel()", got=type(self.noise).__name__)

    @property
    def random(self) -> bool:
        """Whether draws need a seed."""
        return self.noise is not None and self.temperature > 0

    def draw(self, scores: np.ndarray, oracle: Oracle, rng: list[np.random.Generator]) -> Draw:
        """Sample solutions by perturb-and-MAP.

        Args:
            scores: (B, d).
            oracle: The problem.
            rng: One generator for the whole batch, or one for each of equal consecutive parts of it.
        """
        count, size = scores.shape
        if not self.random:
            solutions = oracle(scores)
            wide = np.broadcast_to(solutions[:, None], (count, self.samples, solutions.shape[1]))
            return Draw(wide, np.zeros((count, self.samples, 0)))
        assert self.noise is not None
        part = (count // len(rng), self.samples, size)
        noise = self.noise.sample(rng[0], part) if len(rng) == 1 else np.concatenate([self.noise.sample(g, part) for g in rng])
        mask = oracle.mask()
        if mask is not None:
            noise *= mask
        perturbed = (noise if self.temperature == 1.0 else self.temperature * noise) + scores[:, None]
        return Draw(oracle(perturbed.reshape(-1, size)).reshape(count, self.samples, -1), noise)

    @abstractmethod
    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """Estimate the gradient of the scores.

        Args:
            scores: (B, d).
            draw: What `draw` answered for them.
            cotangents: (B, 1, d') for the mean of the samples, (B, S, d') for all of them.
            oracle: The problem.

        Returns:
            (B, d); rows of instances with NaN in the draw are set to zero by the caller.
        """

    def combined(self, per_sample: np.ndarray) -> np.ndarray:
        """(B, S, d) gradients of each sample to (B, d): the mean for mean outputs, the sum for all of them."""
        return per_sample.mean(axis=1) if self.output == "mean" else per_sample.sum(axis=1)


estimators: Registry[Estimator] = Registry(
    "estimator", __package__ or "", ("imle", "adaptive", "perturbed", "blackbox", "identity", "straight_through", "score")
)


def largest(cotangents: np.ndarray) -> np.ndarray:
    """Largest magnitude of each instance's cotangents, (B, 1, 1); 1 where all are zero."""
    top = np.abs(cotangents).max(axis=(1, 2), keepdims=True, initial=0.0)
    return np.where(top > 0, top, 1.0)
