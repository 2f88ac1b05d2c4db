"""Knapsacks with whole weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.errors import OptionError
from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole


@oracles.register
@dataclass(frozen=True)
class Knapsack(NamedOracle):
    """The most valuable set of items within a capacity, by dynamic programming; items of negative value are left out.

    Args:
        weights: Whole weights, positive.
        capacity: Whole capacity.

    Cost: O(items x capacity) per instance in time and, in bits, in memory.
    """

    weights: tuple[int, ...]
    capacity: int
    name: ClassVar[str] = "knapsack"
    sense: ClassVar[str] = "max"

    def __post_init__(self) -> None:
        for w in self.weights:
            whole("a weight", w, 1)
        whole("the capacity", self.capacity, 0)
        if not self.weights:
            raise OptionError("a knapsack needs items", got="none")

    @property
    def shape(self) -> tuple[int, ...]:
        """(items,)."""
        return (len(self.weights),)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        count, n = values.shape
        best = np.zeros((self.capacity + 1, count))
        taken = np.zeros((n, self.capacity + 1, count), bool)
        for i, w in enumerate(self.weights):
            if w > self.capacity:
                continue
            with_item = best[: self.capacity + 1 - w] + values[:, i]
            better = with_item > best[w:]
            taken[i, w:] = better
            best[w:] = np.where(better, with_item, best[w:])
        out = np.zeros((count, n))
        left, rows = np.full(count, self.capacity), np.arange(count)
        for i in range(n - 1, -1, -1):
            chosen = taken[i, left, rows]
            out[:, i] = chosen
            left = left - chosen * self.weights[i]
        return out
