"""Subsets of k elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole


@oracles.register
@dataclass(frozen=True)
class TopK(NamedOracle):
    """The indicator of the k largest of n values.

    Cost: O(n) per instance.
    """

    n: int
    k: int
    name: ClassVar[str] = "top-k"
    sense: ClassVar[str] = "max"

    def __post_init__(self) -> None:
        whole("k", self.k, 0, whole("n", self.n, 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.n,)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        out = np.zeros(values.shape)
        if self.k == self.n:
            out[:] = 1.0
        elif self.k:
            chosen = np.argpartition(values, self.n - self.k, axis=1)[:, self.n - self.k :]
            np.put_along_axis(out, chosen, 1.0, axis=1)
        return out

    def equalities(self) -> Any:
        """The sum is k."""
        return np.ones((1, self.n))
