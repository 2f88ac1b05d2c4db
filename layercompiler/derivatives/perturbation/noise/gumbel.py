"""Gumbel noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.noise.base import Noise, noises


@noises.register
@dataclass(frozen=True)
class Gumbel(Noise):
    """Standard Gumbel noise; the perturbed maximum over one-hot vectors is then a sample of the softmax.

    Source: Papandreou and Yuille 2011.
    """

    name: ClassVar[str] = "gumbel"

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """-log of exponential draws."""
        out = rng.standard_exponential(shape)
        np.log(out, out=out)
        return np.negative(out, out=out)

    def score(self, noise: np.ndarray) -> np.ndarray:
        """1 - exp(-e)."""
        return 1.0 - np.exp(-noise)
