"""Simplex and branch and bound for many costs over one small feasible set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import library

SOLVED, INFEASIBLE, UNBOUNDED, LOST, LATE = range(5)


@dataclass(frozen=True)
class SimplexSolution:
    """Minimisers (N, n), meaningful where `outcome` is SOLVED; outcomes (N,); nodes (N,) of branch and bound."""

    x: np.ndarray
    outcome: np.ndarray
    nodes: np.ndarray


class Simplex:
    """The feasible set low <= A x <= high, lower <= x <= upper, x[integer] whole, with a start basis made once.

    Args:
        A: (m, n), sparse.
        low: (m,); likewise `high`. Infinite where there is none.
        high: See `low`.
        lower: (n,), with `upper` the bounds of x.
        upper: See `lower`.
        integer: (n,) bool.
        isa: Instruction set; the best one of the machine by default.

    Raises:
        BuildError: The arrays do not fit each other, the relaxation is infeasible, or no start is found for it.

    Immutable and thread safe.

    Units and scaling: rows are scaled by powers of two, costs by the largest of each instance.

    Cost: dense, 8 (m + 1)(n + 1) bytes, and as many multiplications per pivot, less what equalities and zeros save.
    """

    def __init__(
        self,
        A: sp.csr_array,
        low: np.ndarray,
        high: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        integer: np.ndarray,
        *,
        isa: str | None = None,
    ) -> None:
        self._handle = None
        rows = sp.csr_array(A)
        m, self.n = len(low), len(lower)
        if rows.shape != (m, self.n) or not len(high) == m or not len(upper) == len(integer) == self.n or self.n == 0:
            raise BuildError("the arrays of the program do not fit each other", where="Simplex", got=f"{rows.shape}, {m}, {self.n}")
        if not (np.isfinite(rows.data).all() and (lower <= upper).all() and (low <= high).all()):
            raise BuildError("the simplex finds no start", where="Simplex", got="infeasible or not finite")
        counts = np.diff(rows.indptr)
        inside = rows.nnz == 0 or (rows.indices.min() >= 0 and rows.indices.max() < self.n)
        if not inside or (counts < 0).any() or rows.indptr[-1] > len(rows.data):
            raise BuildError("an index of A is out of range", where="Simplex", expected=f"columns in [0, {self.n})")
        largest = np.maximum(abs(rows).max(axis=1).toarray().ravel(), 1e-300) if m and rows.nnz else np.ones(m)
        scale = np.exp2(-np.round(np.log2(np.where(largest > 1e-290, largest, 1.0))))
        start, column = rows.indptr.astype(np.int64), rows.indices.astype(np.int32)
        value = rows.data * np.repeat(scale, counts)
        below, above = np.concatenate([lower, low * scale]), np.concatenate([upper, high * scale])
        whole = np.flatnonzero(integer).astype(np.int32)
        self._library, outcome, at = library.require(), np.zeros(1, np.int32), library.address
        kept = [np.ascontiguousarray(a) for a in (start, column, value, below, above, whole)]
        isa = library.instruction_set(isa)
        self._handle = self._library.lc_simplex_new(
            self.n, m, *(at(a) for a in kept[:5]), len(whole), at(kept[5]), isa.encode(), at(outcome)
        )
        if not self._handle:
            raise BuildError(
                "the simplex finds no start", where="Simplex", got=("", "infeasible", "", "numerical trouble", "", "malformed")[outcome[0]]
            )

    def solve(self, costs: np.ndarray, *, nodes: int = 20_000, time_limit: float = math.inf) -> SimplexSolution:
        """Minimise each row of costs, one after another from the start basis.

        Args:
            costs: (N, n), finite.
            nodes: Most nodes of branch and bound per instance.
            time_limit: Seconds for all.

        Returns:
            Minimisers, exact to a relative gap of 1e-9. An outcome other than SOLVED or LATE asks for another solver's word.

        Raises:
            ShapeError: The costs have another shape, or are not finite.
        """
        costs = np.ascontiguousarray(costs, dtype=float)
        if costs.ndim != 2 or costs.shape[1] != self.n or not np.isfinite(costs).all():
            raise ShapeError("the costs are malformed", expected=f"(N, {self.n}) finite numbers", got=str(costs.shape))
        count = len(costs)
        x, outcome, visited = np.empty((count, self.n)), np.empty(count, np.int8), np.empty(count, np.int32)
        at = library.address
        if self._library.lc_simplex_solve(self._handle, count, at(costs), at(x), at(outcome), at(visited), nodes, float(time_limit)):
            raise MemoryError("simplex")
        return SimplexSolution(x, outcome, visited)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_simplex_free(self._handle)
            self._handle = None
