"""The nonnegative ray, self-dual: Proj(v) = max(v, 0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.base import KINK, Cone, Expansion, Projection

_ONE = np.zeros(1, np.intp)


@dataclass(frozen=True)
class Nonnegative(Cone):
    """One inequality row."""

    name = "nonnegative"
    dim = 1

    @property
    def expansion(self) -> Expansion:
        """T = d, N = -(1 - d) with d = 1 where v > 0, else 0."""
        return Expansion(_ONE, _ONE, _ONE, _ONE, -np.ones(1, np.int8))

    def project_dual(self, v: np.ndarray) -> Projection:
        """max(v, 0) of v (B, count, 1); not differentiable at 0, where the derivative given is 0."""
        return _NonnegativeProjection(v)


class _NonnegativeProjection(Projection):
    def __init__(self, v: np.ndarray) -> None:
        self.v, self.y = v, np.maximum(v, 0.0)

    @property
    def smooth(self) -> np.ndarray:
        return np.abs(self.v[..., 0]) > KINK

    def apply(self, u: np.ndarray) -> np.ndarray:
        return np.where(self.v > 0, u, 0.0)

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.zeros_like(u)

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        d = (self.v > 0).astype(float)
        return d, d - 1.0
