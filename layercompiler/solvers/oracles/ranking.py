"""Rankings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole


@oracles.register
@dataclass(frozen=True)
class Ranking(NamedOracle):
    """The ranks 1..n of n values, n for the largest: the permutation vector z that maximises <values, z>.

    Args:
        n: Number of values.
        normalized: Divide the ranks by n.

    Source: Rolinek et al. 2020, "Optimizing rank-based metrics with blackbox differentiation".
    """

    n: int
    normalized: bool = False
    name: ClassVar[str] = "ranking"
    sense: ClassVar[str] = "max"

    def __post_init__(self) -> None:
        whole("n", self.n, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.n,)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        out = np.empty(values.shape)
        ranks = np.arange(1.0, self.n + 1) / (self.n if self.normalized else 1.0)
        np.put_along_axis(out, np.argsort(values, axis=1, kind="stable"), np.broadcast_to(ranks, values.shape), axis=1)
        return out

    def equalities(self) -> Any:
        """The sum of the ranks."""
        return np.ones((1, self.n))
