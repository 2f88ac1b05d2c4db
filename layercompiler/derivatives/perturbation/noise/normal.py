"""Normal noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.noise.base import Noise, noises


@noises.register
@dataclass(frozen=True)
class Normal(Noise):
    """Standard normal noise. Source: Berthet et al. 2020."""

    name: ClassVar[str] = "normal"

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal draws."""
        return rng.standard_normal(shape)

    def score(self, noise: np.ndarray) -> np.ndarray:
        """The noise itself."""
        return noise
