"""Linear solves of the (damped) normal equations on the host: compiled LDL' on lanes, or numpy and qdldl where it was not built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler import kernels
from layercompiler.solvers.least_squares.structure import Structure

# A pivot of the equilibrated matrix below this is taken for zero: the matrix is singular to working precision.
PIVOT = 1e-12
DENSE = 200


class Factor(ABC):
    """Factors of a batch of positive definite matrices.

    Attributes:
        pivots: (B,) smallest pivot of the equilibrated matrix; where it is below `PIVOT` the matrix is not positive definite.
    """

    pivots: np.ndarray

    @abstractmethod
    def solve(self, rhs: np.ndarray, refine: int = 0) -> np.ndarray:
        """Solve for (B, n), with steps of iterative refinement."""


class Normal(ABC):
    """Symbolic phase for matrices with the entries of a structure, plus a diagonal."""

    name: str

    @abstractmethod
    def factor(self, entries: np.ndarray, diagonal: np.ndarray) -> Factor:
        """Factor the matrices of entries (B, entries) + diag(diagonal (B, n))."""


class Lanes(Normal):
    """One instance per SIMD lane, one symbolic factorisation."""

    name = "lanes"

    def __init__(self, structure: Structure) -> None:
        n = structure.n
        every = np.arange(n)
        rows, cols = np.concatenate([structure.rows, every]), np.concatenate([structure.cols, every])
        self.ldl = kernels.LDL(n, rows, cols, np.ones(n, np.int8))

    def factor(self, entries: np.ndarray, diagonal: np.ndarray) -> Factor:
        """See `Normal.factor`."""
        return LanesFactor(self.ldl.factor(np.concatenate([entries, diagonal], axis=1), eps=1e-14))


class LanesFactor(Factor):
    """Factors on lanes."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor
        self.pivots = factor.pivots

    def solve(self, rhs: np.ndarray, refine: int = 0) -> np.ndarray:
        """See `Factor.solve`."""
        return self.factor.solve(rhs, refine=refine)[0]


class Plain(Normal):
    """One instance at a time: LAPACK for small systems (or all, where `dense`), qdldl for sparse ones."""

    name = "plain"

    def __init__(self, structure: Structure, dense: bool = False) -> None:
        self.n, self.dense = structure.n, dense or structure.n <= DENSE
        every = np.arange(self.n)
        self.rows, self.cols = np.concatenate([structure.rows, every]), np.concatenate([structure.cols, every])

    def factor(self, entries: np.ndarray, diagonal: np.ndarray) -> Factor:
        """See `Normal.factor`."""
        values = np.concatenate([entries, diagonal], axis=1)
        matrices = [sp.csc_matrix((v, (self.rows, self.cols)), (self.n, self.n)) for v in values]
        return _PlainFactor(matrices, self.dense)


class _PlainFactor(Factor):
    def __init__(self, matrices: list[Any], dense: bool) -> None:
        self.full, self.solvers, pivots = [], [], []
        for upper in matrices:
            K = (upper + sp.triu(upper, 1).T).tocsc()
            d = K.diagonal()
            scale = 1 / np.sqrt(np.where((d > 0) & np.isfinite(d), d, 1.0))
            S = sp.diags(scale)
            scaled = (S @ K @ S).tocsc()
            solve, pivot = _cholesky(scaled) if dense else _qdldl(scaled)
            self.full.append(K)
            self.solvers.append(lambda r, s=solve, c=scale: c * s(c * r))
            pivots.append(pivot)
        self.pivots = np.array(pivots)

    def solve(self, rhs: np.ndarray, refine: int = 0) -> np.ndarray:
        out = np.empty_like(rhs)
        for i, (K, solve) in enumerate(zip(self.full, self.solvers, strict=True)):
            x = solve(rhs[i])
            for _ in range(refine):
                x = x + solve(rhs[i] - K @ x)
            out[i] = x
        return out


def _cholesky(K: Any) -> tuple[Any, float]:
    A = K.toarray()
    try:
        L = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        return (lambda r: np.full_like(r, np.nan)), -1.0
    from scipy.linalg import cho_solve

    return (lambda r: cho_solve((L, True), r, check_finite=False)), float((np.diag(L) ** 2).min(initial=np.inf))


def _qdldl(K: Any) -> tuple[Any, float]:
    import qdldl

    try:
        solver = qdldl.Solver(sp.triu(K, format="csc"), upper=True)
    except (ValueError, RuntimeError):
        return (lambda r: np.full_like(r, np.nan)), -1.0
    return solver.solve, float(solver.factors()[1].min(initial=np.inf))
