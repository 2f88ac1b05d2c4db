"""Shortest tours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole


@oracles.register
@dataclass(frozen=True)
class Tour(NamedOracle):
    """The shortest tour through n <= 12 cities for n by n costs, as a matrix with a one for every step from row to column.

    The costs need not be symmetric; their diagonal is ignored.

    Cost: O(n^2 2^n) per instance, vectorised over the batch; blocks keep the tables below about 100 MB.

    Source: Held and Karp 1962.
    """

    n: int
    name: ClassVar[str] = "shortest tour"

    def __post_init__(self) -> None:
        whole("n", self.n, 2, 12)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return (self.n, self.n)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        block = max(1, 100_000_000 // (9 * self.n * 2**self.n))
        parts = [self._block(values[i : i + block]) for i in range(0, len(values), block)]
        return np.concatenate(parts) if parts else np.zeros(values.shape)

    def _block(self, values: np.ndarray) -> np.ndarray:
        n, count = self.n, len(values)
        m = n - 1  # city n - 1 is the start; the others form the subsets
        costs = np.ascontiguousarray(values.reshape(count, n, n).transpose(1, 2, 0))
        full = (1 << m) - 1
        length = np.full((full + 1, m, count), np.inf)  # shortest way from the start through a subset, ending at j
        before = np.zeros((full + 1, m, count), np.int8)
        for j in range(m):
            length[1 << j, j] = costs[m, j]
        subsets = np.arange(full + 1)
        sizes = np.array([bin(s).count("1") for s in subsets])
        for size in range(2, m + 1):
            of_size = subsets[sizes == size]
            for j in range(m):
                masks = of_size[(of_size >> j) & 1 == 1]
                ways = length[masks ^ (1 << j)]
                ways += costs[:m, j]
                last = ways.argmin(axis=1)
                before[masks, j] = last
                length[masks, j] = np.take_along_axis(ways, last[:, None], axis=1)[:, 0]
        rows = np.arange(count)
        at = (length[full] + costs[:m, m]).argmin(axis=0)
        out = np.zeros((count, n, n))
        out[rows, at, m] = 1.0
        mask = np.full(count, full)
        for _ in range(m - 1):
            came = before[mask, at, rows].astype(np.intp)
            out[rows, came, at] = 1.0
            mask, at = mask ^ (1 << at), came
        out[rows, m, at] = 1.0
        return out.reshape(count, n * n)

    def equalities(self) -> Any:
        """One step out of and into every city, none on the diagonal."""
        eye, ones = np.eye(self.n), np.ones((1, self.n))
        diagonal = np.zeros((self.n, self.n * self.n))
        diagonal[np.arange(self.n), np.arange(self.n) * (self.n + 1)] = 1.0
        return np.concatenate([np.kron(eye, ones), np.kron(ones, eye), diagonal])
