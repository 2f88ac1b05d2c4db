"""Jacobians and Hessians of graphs of scalars with few operations: the nodes between columns and outputs are eliminated one by one.

Forward mode carries all columns through every node, and reverse mode all outputs. Here, a node leaves the graph of partial derivatives
when that is cheap: products of what comes to it with what goes on take its place. A function of few numbers in the middle of a residual
(of a distance, an angle, a relative pose) is thus differentiated by these few. Second derivatives are edges between nodes, one for each
pair, and are pushed towards the columns by the same rule.

Source: Griewank and Walther, "Evaluating Derivatives", 2008, sections 9.2 and 10.3; Gower and Mello, "A new framework for the
computation of Hessians", 2012.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from layercompiler.expressions.scalars import Scalars

Seeds = dict[int, dict[int, int]]


class _Linearized:
    """Partial derivatives between columns (tuples), nodes and outputs (tuples), and second derivatives between nodes."""

    def __init__(self, graph: Scalars, outputs: Sequence[int], seeds: Seeds) -> None:
        self.graph = graph
        self.into: dict[Any, dict[Any, int]] = {}  # by node: what it depends on, and partial derivatives
        self.onto: dict[Any, set[Any]] = {}
        self.across: dict[Any, dict[Any, int]] = {}  # second derivatives of pairs, both ways
        needed, stack = set(), list(outputs)
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(() if k in seeds else graph.arguments[k])
        self.nodes = sorted(needed)
        for k in self.nodes:
            if k in seeds:
                self.connect(k, {("column", c): d for c, d in seeds[k].items()})
            elif any(a in self.into for a in graph.arguments[k]):
                edges: dict[int, int] = {}
                for a, partial in graph.partials(k):
                    if a in self.into:
                        edges[a] = graph.call("add", edges[a], partial) if a in edges else partial
                self.connect(k, edges)

    def connect(self, k: Any, edges: dict[Any, int]) -> None:
        if edges:
            self.into[k] = edges
            for a in edges:
                self.onto.setdefault(a, set()).add(k)

    def cross(self, a: Any, b: Any, d: int) -> None:
        """Add to the second derivative by a and b."""
        if d == self.graph.zero:
            return
        for x, y in {(a, b), (b, a)}:
            edges = self.across.setdefault(x, {})
            edges[y] = self.graph.call("add", edges[y], d) if y in edges else d

    def price(self, k: Any) -> int:
        pairs = self.across.get(k, {})
        n = len(self.into[k])
        return n * (len(self.onto.get(k, ())) + len(pairs)) + (n * (n - 1) // 2 if k in pairs else 0)

    def eliminate(self) -> None:
        """Every node that is neither a column nor an output."""
        heap = [(self.price(k), k) for k in self.into if not isinstance(k, tuple)]
        heapq.heapify(heap)
        while heap:
            cost, k = heapq.heappop(heap)
            if k not in self.into or cost != self.price(k):
                continue
            for other in self._leave(k):
                if other in self.into and not isinstance(other, tuple):
                    heapq.heappush(heap, (self.price(other), other))

    def _leave(self, k: int) -> set[Any]:
        """Eliminate a node; its neighbors."""
        graph, chain = self.graph, self.graph.chain
        before, after, pairs = self.into.pop(k), self.onto.pop(k, set()), self.across.pop(k, {})
        for a in before:
            self.onto[a].discard(k)
        for b in after:
            edges = self.into[b]
            on = edges.pop(k)
            for a, d in before.items():
                term = chain(on, d)
                if term != graph.zero:
                    edges[a] = graph.call("add", edges[a], term) if a in edges else term
                    self.onto[a].add(b)
        own = pairs.pop(k, None)
        for j, weight in pairs.items():
            del self.across[j][k]
            for a, d in before.items():
                term = chain(weight, d)
                self.cross(a, j, graph.call("add", term, term) if a == j else term)
        if own is not None:
            numbered = list(before.items())
            for i, (a, d) in enumerate(numbered):
                term = chain(own, d)
                for b, other in numbered[i:]:
                    self.cross(a, b, chain(term, other))
        return {*before, *after, *pairs}


def jacobian(graph: Scalars, outputs: Sequence[int], seeds: Seeds) -> list[dict[int, int]]:
    """As `Scalars.forward`."""
    linear = _Linearized(graph, outputs, seeds)
    for i, k in enumerate(outputs):
        if k in linear.into:
            linear.connect(("output", i), {k: graph.one})
    linear.eliminate()
    return [{c: d for (_, c), d in linear.into.get(("output", i), {}).items() if d != graph.zero} for i in range(len(outputs))]


def hessian(graph: Scalars, output: int, seeds: Seeds) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """(gradient by columns, its derivatives {(j, i): of entry i along column j}); these are symmetric where directions commute."""
    linear = _Linearized(graph, [output], seeds)
    adjoint = graph.adjoints({output: graph.one}, seeds)
    for k in linear.nodes:
        if k in linear.into and k in adjoint and k not in seeds:
            _bend(linear, k, adjoint[k])
    linear.eliminate()
    gradient: dict[int, int] = {}
    second: dict[tuple[int, int], int] = {}

    def add(j: int, i: int, term: int) -> None:
        if term != graph.zero:
            second[j, i] = graph.call("add", second[j, i], term) if (j, i) in second else term

    for (_, i), edges in linear.across.items():
        for (_, j), d in edges.items():
            add(j, i, d)
    for k, columns in seeds.items():
        if k not in adjoint:
            continue
        for (i, d), along in zip(columns.items(), graph.forward(list(columns.values()), seeds), strict=True):
            gradient[i] = graph.call("add", gradient.get(i, graph.zero), graph.call("mul", adjoint[k], d))
            for j, bent in along.items():
                add(j, i, graph.call("mul", adjoint[k], bent))
    return gradient, second


def _bend(linear: _Linearized, k: int, weight: int) -> None:
    """The second derivatives of one operation, times the derivative of the output by it."""
    graph, moving = linear.graph, linear.into
    name, arguments = graph.operation[k], graph.arguments[k]
    if name in ("add", "sub", "neg", "select", "min", "max"):
        return
    partials: dict[int, int] = {}
    for a, partial in graph.partials(k):
        if a in moving:
            partials[a] = graph.call("add", partials[a], partial) if a in partials else partial
    local = {a: {a: graph.one} for a in set(arguments)} | {k: partials}
    own = list(partials)
    for a, along in zip(own, graph.forward([partials[a] for a in own], local), strict=True):
        for b, d in along.items():
            if b in partials and own.index(b) >= own.index(a):
                linear.cross(a, b, graph.chain(weight, d))
