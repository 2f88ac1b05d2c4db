"""Well-known problems among mixed-integer programs, recognised only where the pattern leaves no doubt.

Each test proves that the feasible set is the one of the oracle, from all numbers of the program; where any differs, there is no match.
"""

from __future__ import annotations

import numpy as np

from layercompiler.errors import OptionError
from layercompiler.programs.discrete import MixedInteger
from layercompiler.solvers.oracles.assignment import Assignment
from layercompiler.solvers.oracles.base import NamedOracle
from layercompiler.solvers.oracles.dag_path import DagPath
from layercompiler.solvers.oracles.top_k import TopK

Match = tuple[NamedOracle, np.ndarray]


def recognize(program: MixedInteger) -> Match | None:
    """An oracle with the same minimisers, and which entry of its solution each variable is; None where none is certain."""
    if program.n == 0 or program.quadratic is not None or not np.array_equal(program.low, program.high) or (program.lower != 0).any():
        return None
    for test in (_top_k, _assignment, _path):
        found = test(program)
        if found is not None:
            return found
    return None


def _top_k(program: MixedInteger) -> Match | None:
    if program.m != 1 or (program.upper != 1).any() or program.A.nnz != program.n:
        return None
    coefficient = program.A.data[0]
    k = program.low[0] / coefficient
    if (program.A.data != coefficient).any() or k != round(k) or not 0 <= k <= program.n:
        return None
    return TopK(program.n, int(k)), np.arange(program.n)


def _assignment(program: MixedInteger) -> Match | None:
    n = round(program.n**0.5)
    if n < 2 or n * n != program.n or program.m != 2 * n or (program.upper < 1).any():
        return None
    A = program.A
    if (A.data != 1).any() or (program.low != 1).any() or (np.diff(A.indptr) != n).any():
        return None
    columns = A.tocsc()
    columns.sort_indices()
    if (np.diff(columns.indptr) != 2).any():
        return None
    pairs = columns.indices.reshape(-1, 2)
    side = np.full(2 * n, -1)  # the rows must split into two sides, each variable in one row of either
    for row in range(2 * n):
        if side[row] < 0:
            side[row], todo = 0, [row]
            while todo:
                r = todo.pop()
                for s in pairs[(pairs == r).any(axis=1)].sum(axis=1) - r:
                    if side[s] < 0:
                        side[s] = 1 - side[r]
                        todo.append(int(s))
                    elif side[s] == side[r]:
                        return None
    if side.sum() != n or len({tuple(p) for p in pairs}) != n * n:
        return None
    place = np.empty(2 * n, int)
    place[side == 0], place[side == 1] = np.arange(n), np.arange(n)
    first = np.where(side[pairs[:, 0]] == 0, pairs[:, 0], pairs[:, 1])
    second = pairs.sum(axis=1) - first
    return Assignment(n), place[first] * n + place[second]


def _path(program: MixedInteger) -> Match | None:
    if (program.upper < 1).any():
        return None
    columns = program.A.tocsc()
    columns.sort_indices()
    ends, b = np.flatnonzero(program.low), program.low
    if len(ends) != 2 or b[ends].sum() != 0 or (np.abs(b[ends]) != 1).any() or (np.diff(columns.indptr) != 2).any():
        return None
    values = columns.data.reshape(-1, 2)
    if (np.abs(values) != 1).any() or (values.sum(axis=1) != 0).any():
        return None
    rows = columns.indices.reshape(-1, 2)
    # flow leaves where the coefficient has the sign that b has at the source; either orientation gives the same set of paths
    tails = np.where(values[:, 0] < 0, rows[:, 0], rows[:, 1])
    heads = rows.sum(axis=1) - tails
    source, target = (int(v) for v in (ends if b[ends[0]] < 0 else ends[::-1]))
    try:
        arcs = tuple((int(u), int(v)) for u, v in zip(tails, heads, strict=True))
        return DagPath(arcs, source, target), np.arange(program.n)
    except OptionError:
        return None  # a cycle, or no path: the solver will say so
