"""The discrete program: a linear (or quadratic) program in the standard form some of whose variables are whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import ConeProgram, Data


@dataclass(frozen=True)
class MixedInteger:
    """The feasible set of a mixed-integer linear program: low <= A x <= high, lower <= x <= upper, x[integer] whole.

    Attributes:
        A: (m, n), CSR; rows with one entry have become bounds.
        low: (m,), -inf where there is none; likewise `high`.
        high: See `low`.
        lower: (n,), with `upper` the bounds of x.
        upper: See `lower`.
        integer: (n,) bool.
    """

    A: sp.csr_array
    low: np.ndarray
    high: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray

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

    @property
    def quadratic(self) -> bool:
        """Whether the objective has a quadratic part."""
        return len(self.cone.structure.P_rows) > 0

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
        return MixedInteger(sp.csr_array(A[keep]), low[keep], high[keep], lower, upper, whole)
