"""Relative motions among the nodes of a residual: derivatives by their own tangents, not by those of the two elements.

A motion between two poses is moved by twelve tangents, yet in six ways only. Moving a and b along the tangents u and v moves P = a^-1 b
along -Ad(P^-1) u + v, so that residuals are differentiated in six directions, and what they give is turned once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler.arrays import get
from layercompiler.expressions.scalars import Scalars, TooLargeError

MANY = 4  # elements of one factor beyond which relative motions are not looked for

Row = dict[int, int]  # columns and nodes
Pairs = dict[tuple[int, int], int]


@dataclass(frozen=True)
class Motion:
    """a^-1 b of two elements, given by the nodes `a` and `b` and the first columns of their tangents."""

    manifold: Any
    nodes: np.ndarray
    a: int
    b: int
    adjoint: np.ndarray  # Ad(P^-1)


@dataclass
class Frames:
    """Directions beyond the columns, and how columns move them.

    Attributes:
        turns: By direction: derivatives by columns.
        brackets: By direction j: (i, k, c), the bracket of directions j and i has the number c along direction k; for directions whose
            derivatives by some columns change along j.
        turned: Those columns.
    """

    graph: Scalars
    turns: dict[int, Row] = field(default_factory=dict)
    brackets: dict[int, list[tuple[int, int, float]]] = field(default_factory=dict)
    turned: set[int] = field(default_factory=set)

    def add(self, motion: Motion, start: int) -> None:
        """The directions from `start` on are the tangent of a motion."""
        m, graph = motion.manifold, self.graph
        self.turned |= set(range(motion.a, motion.a + m.dof))
        every = np.eye(m.dof)
        for j, row in enumerate(motion.adjoint):
            turn = {motion.a + c: graph.call("neg", int(k)) for c, k in enumerate(row) if int(k) != graph.zero}
            self.turns[start + j] = turn | {motion.b + j: graph.one}
            table = m.bracket(get("numpy"), every[j], every)
            self.brackets[start + j] = [(start + int(i), start + int(k), float(table[i, k])) for i, k in np.argwhere(table)]

    def row(self, derivatives: Row) -> Row:
        """Derivatives by columns from those by columns and directions."""
        out: Row = {}
        for column, d in derivatives.items():
            for c, turn in self._turn(column).items():
                self._add(out, c, self.graph.call("mul", turn, d))
        return out

    def pairs(self, second: Pairs, gradient: Row, wanted: set[int]) -> Pairs:
        """Second derivatives (column i, column c), i <= c, from those of entry q of the gradient along p, {(p, q): ..}.

        Without a gradient, the directions are taken for constant.
        """
        graph, half, out = self.graph, {}, {}
        for bent in (False, True):
            given = dict(second)
            for j, table in self.brackets.items() if bent else ():  # Ad(P^-1) u changes along j by -[j, Ad(P^-1) u]
                for i, k, c in table:
                    if k in gradient:
                        self._add(given, (j, i), graph.call("mul", graph.constant(-c), gradient[k]))
            for (p, q), d in given.items():
                for c, turn in self._turn(q).items():
                    if c in wanted and (c in self.turned) == bent:
                        self._add(half, (p, c), graph.call("mul", turn, d))
        for (p, c), d in half.items():
            for i, turn in self._turn(p).items():
                if i <= c and i in wanted:
                    self._add(out, (i, c), graph.call("mul", turn, d))
        return {pair: d for pair, d in out.items() if d != graph.zero}

    def _turn(self, column: int) -> Row:
        return self.turns.get(column, {column: self.graph.one})

    def _add(self, out: dict[Any, int], key: Any, term: int) -> None:
        if term != self.graph.zero:
            out[key] = self.graph.call("add", out[key], term) if key in out else term


def motions(graph: Scalars, xp: Any, elements: Sequence[tuple[Any, np.ndarray, int]]) -> list[Motion]:
    """Relative motions that the graph has computed.

    Args:
        graph: Nodes of a residual.
        xp: What spells functions out.
        elements: (manifold, nodes, first column of the tangent) of each, its rotation of length one.
    """
    found = []
    for m, a, u in elements if len(elements) <= MANY else ():
        for other, b, v in elements:
            if u != v and other.name == m.name and (P := _known(graph, xp, m, a, b)) is not None:
                (adjoint,), _, _ = xp.spell(lambda x, m=m: (m.adjoint(xp, m.inverse(xp, x)),), [m.identity()], [P], graph)
                found.append(Motion(m, P, u, v, adjoint))
    return found


def _known(graph: Scalars, xp: Any, m: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The nodes of a^-1 b if the graph has them all: equal nodes are one, and no new ones are allowed."""
    limit, graph.limit = graph.limit, len(graph.operation)
    try:
        (nodes,), _, _ = xp.spell(lambda x, y: (m.compose(xp, m.inverse(xp, x), y),), [m.identity(), m.identity()], [a, b], graph)
    except TooLargeError:
        return None
    finally:
        graph.limit = limit
    return nodes
