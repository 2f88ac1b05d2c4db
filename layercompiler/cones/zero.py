"""The zero cone {0}: equality rows. Its dual is the whole line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.cones.base import Cone, Expansion, Projection

_ONE = np.zeros(1, np.intp)
_NONE = np.zeros(0, np.intp)


@dataclass(frozen=True)
class Zero(Cone):
    """One equality row."""

    name = "zero"
    dim = 1

    @property
    def expansion(self) -> Expansion:
        """T = 1, N empty."""
        return Expansion(_ONE, _ONE, _NONE, _NONE, -np.ones(1, np.int8))

    def project_dual(self, v: np.ndarray) -> Projection:
        """The identity."""
        return _ZeroProjection(v)


class _ZeroProjection(Projection):
    def __init__(self, v: np.ndarray) -> None:
        self.v = self.y = v

    @property
    def smooth(self) -> np.ndarray:
        return np.ones(self.v.shape[:2], bool)

    def apply(self, u: np.ndarray) -> np.ndarray:
        return u

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.zeros_like(u)

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(self.v.shape), np.zeros((*self.v.shape[:2], 0))
