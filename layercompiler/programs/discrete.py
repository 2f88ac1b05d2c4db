"""The discrete program: a linear (or quadratic) program in the standard form some of whose variables are whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import ConeProgram, Data


@dataclass(frozen=True)
class MixedInteger:
    """What instances of a program share: low <= A x <= high, lower <= x <= upper, x[integer] whole, and x'Px / 2 in the objective.

    Attributes:
        A: (m, n), CSR; rows with one entry have become bounds.
        low: (m,), -inf where there is none; likewise `high`.
        high: See `low`.
        lower: (n,), with `upper` the bounds of x.
        upper: See `lower`.
        integer: (n,) bool.
        quadratic: P, (n, n), symmetric and positive semidefinite; None where the objective is linear.
    """

    A: sp.csr_array
    low: np.ndarray
    high: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray
    quadratic: sp.csr_array | None = None

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.lower)

    @property
    def m(self) -> int:
        """Number of rows."""
        return len(self.low)

    def violation(self, x: np.ndarray) -> np.ndarray:
        """Largest violation of a row (relative to its size) or a bound, (N,), for points (N, n)."""
        with np.errstate(invalid="ignore"):
            rows = (self.A @ x.T).T
            size = 1.0 + np.abs(np.where(np.isfinite(self.low), self.low, self.high))
            parts = [np.zeros((len(x), 1)), (self.low - rows) / size, (rows - self.high) / size, self.lower - x, x - self.upper]
            return np.concatenate(parts, axis=1).max(axis=1)


@dataclass(frozen=True)
class DiscreteProgram:
    """A parametrised program with whole variables.

    Attributes:
        cone: The program in standard form, with zero and nonnegative cones; whole variables are relaxed there.
        integer: (n,) bool, variables that are whole.
        boolean: (n,) bool, variables that are 0 or 1.
    """

    cone: ConeProgram
    integer: np.ndarray
    boolean: np.ndarray

    @property
    def costs_only(self) -> bool:
        """Whether parameters enter the linear cost and nothing else."""
        return not (self.cone.A.blocks or self.cone.b.blocks or self.cone.P.blocks)

    @cached_property
    def quadratic(self) -> sp.csr_array | None:
        """P where the objective has a quadratic part; it has no parameters."""
        s, values = self.cone.structure, self.cone.P.constant
        if not values.any():
            return None
        upper = sp.csr_array((values, (s.P_rows, s.P_cols)), shape=(s.n, s.n))
        return sp.csr_array(upper + sp.triu(upper, 1).T)

    def value(self, thetas: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
        """The objective as the user wrote it, (N,), at points (N, n), for channel values (1 or N, size)."""
        data = self.cone.bind(thetas, len(x))
        found = (data.q * x).sum(axis=1) + np.broadcast_to(data.d[:, 0], (len(x),))
        if self.quadratic is not None:
            found = found + 0.5 * (x * (self.quadratic @ x.T).T).sum(axis=1)
        return self.cone.value.sign * found

    @cached_property
    def fixed(self) -> MixedInteger:
        """The feasible set with all parameters zero: that of every instance where only the costs have parameters."""
        return self.feasible(self.cone.A.constant, self.cone.b.constant)

    def instance(self, data: Data, i: int) -> MixedInteger:
        """The feasible set of instance `i`."""
        _, _, _, A, b = data.one(i)
        return self.feasible(A, b)

    def feasible(self, entries: np.ndarray, b: np.ndarray) -> MixedInteger:
        """The feasible set for the entries of A and b: zero rows are equalities, nonnegative ones Ax <= b."""
        s = self.cone.structure
        A = sp.csr_array((entries, (s.A_rows, s.A_cols)), shape=(s.m, s.n))
        A.eliminate_zeros()
        zero = sum(cone.dim * count for cone, count in s.cones.blocks if cone.name == "zero")
        low, high = np.where(np.arange(s.m) < zero, b, -np.inf), b.copy()
        lower, upper = np.where(self.boolean, 0.0, -np.inf), np.where(self.boolean, 1.0, np.inf)
        single = np.flatnonzero(np.diff(A.indptr) == 1)
        columns, values = A.indices[A.indptr[single]], A.data[A.indptr[single]]
        first, second = low[single] / values, high[single] / values
        np.maximum.at(lower, columns, np.minimum(first, second))
        np.minimum.at(upper, columns, np.maximum(first, second))
        whole = self.integer | self.boolean
        lower[whole], upper[whole] = np.ceil(lower[whole] - 1e-9), np.floor(upper[whole] + 1e-9)
        keep = np.ones(s.m, bool)
        keep[single] = False
        return MixedInteger(sp.csr_array(A[keep]), low[keep], high[keep], lower, upper, whole, self.quadratic)
