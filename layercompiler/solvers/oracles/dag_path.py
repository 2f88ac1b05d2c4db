"""Shortest paths in directed graphs without cycles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import OptionError
from layercompiler.solvers.oracles.base import NamedOracle, oracles


@oracles.register
@dataclass(frozen=True)
class DagPath(NamedOracle):
    """The shortest path from a source to a target in a directed acyclic graph, as the indicator of its arcs; costs of any sign.

    Args:
        arcs: (tail, head) pairs; values and solutions follow their order.
        source: First node of the path.
        target: Last node.

    Cost: O(arcs) per instance, one vectorised step per level of the graph.
    """

    arcs: tuple[tuple[int, int], ...]
    source: int
    target: int
    name: ClassVar[str] = "shortest path (DAG)"

    @classmethod
    def grid(cls, rows: int, columns: int) -> DagPath:
        """Right and down arcs of a grid, corner to corner, in row order: a node's right arc before the down arcs of its row."""
        arcs: list[tuple[int, int]] = []
        for i in range(rows):
            first = i * columns
            arcs += [(first + j, first + j + 1) for j in range(columns - 1)]
            arcs += [(first + j, first + j + columns) for j in range(columns)] if i < rows - 1 else []
        return cls(tuple(arcs), 0, rows * columns - 1)

    def __post_init__(self) -> None:
        if not self.arcs or self.source == self.target:
            raise OptionError("a path needs arcs, and a target that is not the source", got=f"{len(self.arcs)} arcs")
        if self._plan is None:
            raise OptionError("the graph has a cycle, or no path leads from the source to the target", expected="a DAG with a path")

    @property
    def shape(self) -> tuple[int, ...]:
        """(arcs,)."""
        return (len(self.arcs),)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.array(self.arcs, dtype=np.intp).reshape(-1, 2)

    @cached_property
    def _plan(self) -> tuple[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] | None:
        """(nodes, levels): per level its nodes, their incoming arcs (padded with the dummy arc) and the tails of those."""
        tails, heads = self._ends.T
        nodes = int(max(self._ends.max(), self.source, self.target)) + 1
        level = np.zeros(nodes, int)
        for _ in range(nodes + 1):  # longest distance from a root; it settles within `nodes` rounds unless there is a cycle
            raised = level.copy()
            np.maximum.at(raised, heads, level[tails] + 1)
            if np.array_equal(raised, level):
                break
            level = raised
        else:
            return None
        reached = np.zeros(nodes, bool)
        reached[self.source] = True
        incoming: list[list[int]] = [[] for _ in range(nodes)]
        for e, head in enumerate(heads):
            incoming[head].append(e)
        plan = []
        for depth in range(1, level.max() + 1):
            members = [v for v in np.flatnonzero(level == depth) if v != self.source and any(reached[tails[e]] for e in incoming[v])]
            if not members:
                continue
            reached[members] = True
            width = max(len(incoming[v]) for v in members)
            into = np.full((len(members), width), len(tails), np.intp)
            for row, v in enumerate(members):
                into[row, : len(incoming[v])] = incoming[v]
            plan.append((np.array(members, np.intp), into, np.append(tails, 0)[into]))
        return (nodes, plan) if reached[self.target] else None

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        assert self._plan is not None
        nodes, plan = self._plan
        count, m = values.shape
        costs = np.empty((m + 1, count))
        costs[:m], costs[m] = values.T, np.inf
        distance = np.full((nodes, count), np.inf)
        distance[self.source] = 0.0
        via = np.zeros((nodes, count), np.intp)
        for members, into, tails in plan:
            best = distance[tails[:, 0]] + costs[into[:, 0]]
            arc = np.broadcast_to(into[:, :1], best.shape)
            for j in range(1, into.shape[1]):
                other = distance[tails[:, j]] + costs[into[:, j]]
                better = other < best
                best, arc = np.where(better, other, best), np.where(better, into[:, j : j + 1], arc)
            distance[members], via[members] = best, arc
        out = np.zeros((count, m))
        at, rows = np.full(count, self.target), np.arange(count)
        tails = self._ends[:, 0]
        while len(rows):
            arcs = via[at, rows]
            out[rows, arcs] = 1.0
            at = tails[arcs]
            live = at != self.source
            at, rows = at[live], rows[live]
        return out

    def equalities(self) -> Any:
        """Conservation of flow."""
        tails, heads = self._ends.T
        E = np.zeros((int(self._ends.max()) + 1, len(self.arcs)))
        np.add.at(E, (tails, np.arange(len(tails))), -1.0)
        np.add.at(E, (heads, np.arange(len(heads))), 1.0)
        return E
