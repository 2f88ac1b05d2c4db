"""Linear assignment."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole


@oracles.register
@dataclass(frozen=True)
class Assignment(NamedOracle):
    """The permutation matrix of least total cost, for n by n costs; scipy's solver, in threads for large batches."""

    n: int
    name: ClassVar[str] = "assignment"

    def __post_init__(self) -> None:
        whole("n", self.n, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, n)."""
        return (self.n, self.n)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        n, count = self.n, len(values)
        costs = values.reshape(count, n, n)
        columns = np.empty((count, n), np.intp)

        def fill(part: range) -> None:
            for i in part:
                columns[i] = linear_sum_assignment(costs[i])[1]

        workers = min(os.cpu_count() or 1, 8)
        if workers > 1 and count * n**2 > 100_000:
            with ThreadPoolExecutor(workers) as pool:  # results land in their own rows: the order does not matter
                list(pool.map(fill, [range(w * count // workers, (w + 1) * count // workers) for w in range(workers)]))
        else:
            fill(range(count))
        out = np.zeros((count, n, n))
        np.put_along_axis(out, columns[:, :, None], 1.0, axis=2)
        return out.reshape(count, n * n)

    def equalities(self) -> Any:
        """Sums of rows and of columns."""
        eye, ones = np.eye(self.n), np.ones((1, self.n))
        return np.concatenate([np.kron(eye, ones), np.kron(ones, eye)])
