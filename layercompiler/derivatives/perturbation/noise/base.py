"""What a noise distribution is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from layercompiler.errors import UnsupportedTransformError
from layercompiler.registry import Registry


class Noise(ABC):
    """Independent perturbations of the scores, drawn from an explicit generator.

    A new distribution is one file with a subclass that defines `sample`, and `score` where its density is smooth.
    """

    name: ClassVar[str]

    @abstractmethod
    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw float64 perturbations of a shape."""

    def score(self, noise: np.ndarray) -> np.ndarray:
        """Minus the derivative of the log density, -d log p(e) / de, at each entry.

        Raises:
            UnsupportedTransformError: The density has no usable derivative.
        """
        raise UnsupportedTransformError(
            f"{self.name} noise has no score function",
            expected="noise with a smooth density",
            got=self.name,
            mend="use Normal() or Gumbel() with this estimator",
        )


noises: Registry[Noise] = Registry("noise", __package__ or "", ("sum_of_gamma", "gumbel", "normal"))


def generator(seed: np.ndarray) -> np.random.Generator:
    """A generator from the words of a seed: the same words give the same numbers in every framework."""
    words = np.ascontiguousarray(seed).astype(np.int64).ravel()
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([int(w) & 0xFFFFFFFFFFFFFFFF for w in words])))
