"""Minimum spanning trees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import OptionError
from layercompiler.solvers.oracles.base import NamedOracle, oracles


@oracles.register
@dataclass(frozen=True)
class SpanningTree(NamedOracle):
    """The spanning tree of least total cost, as the indicator of its edges; costs of any sign.

    Args:
        edges: (u, v) pairs of a connected graph without double edges; values and solutions follow their order.

    Cost: Prim's algorithm on the dense graph, O(nodes^2) per instance, vectorised over the batch.
    """

    edges: tuple[tuple[int, int], ...]
    name: ClassVar[str] = "minimum spanning tree"

    @classmethod
    def complete(cls, nodes: int) -> SpanningTree:
        """All pairs u < v in lexicographic order."""
        return cls(tuple((u, v) for u in range(nodes) for v in range(u + 1, nodes)))

    def __post_init__(self) -> None:
        seen = {frozenset(e) for e in self.edges}
        if not self.edges or len(seen) != len(self.edges) or any(len(e) != 2 for e in seen) or not self._connected():
            raise OptionError("a spanning tree needs a connected graph without loops and double edges", got=f"{len(self.edges)} edges")

    def _connected(self) -> bool:
        reached, nodes = {self.edges[0][0]}, {v for e in self.edges for v in e}
        while True:
            more = {v for e in self.edges if reached & set(e) for v in e} - reached
            if not more:
                return reached == nodes == set(range(self._nodes))
            reached |= more

    @property
    def shape(self) -> tuple[int, ...]:
        """(edges,)."""
        return (len(self.edges),)

    @cached_property
    def _nodes(self) -> int:
        return 1 + max(max(e) for e in self.edges)

    @cached_property
    def _table(self) -> np.ndarray:
        """(nodes, nodes) edge between two nodes; the dummy edge where there is none."""
        table = np.full((self._nodes, self._nodes), len(self.edges), np.intp)
        for e, (u, v) in enumerate(self.edges):
            table[u, v] = table[v, u] = e
        return table

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        count, m = values.shape
        costs = np.concatenate([values, np.full((count, 1), np.inf)], axis=1)
        rows = np.arange(count)
        out = np.zeros((count, m))
        outside = np.ones((count, self._nodes), bool)
        outside[:, 0] = False
        edge = np.broadcast_to(self._table[0], (count, self._nodes)).copy()
        cost = np.take_along_axis(costs, edge, axis=1)
        for _ in range(self._nodes - 1):
            node = np.where(outside, cost, np.inf).argmin(axis=1)
            out[rows, edge[rows, node]] = 1.0
            outside[rows, node] = False
            reach = self._table[node]
            there = np.take_along_axis(costs, reach, axis=1)
            better = there < cost
            edge, cost = np.where(better, reach, edge), np.where(better, there, cost)
        return out

    def equalities(self) -> Any:
        """A tree has nodes - 1 edges."""
        return np.ones((1, len(self.edges)))
