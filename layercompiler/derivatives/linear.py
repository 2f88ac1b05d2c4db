"""Linear solves for batches of symmetric quasi-definite matrices of one pattern: a symbolic phase, factors, refined solutions.

Every solve scales the matrix symmetrically by powers of two until its rows are even, adds eps * sign to the diagonal, refines against the
matrix without it, and returns its own relative residual, measured in the scaled rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler import kernels
from layercompiler.programs.pattern import Pattern

# Small enough that two or three refinements remove it, large enough that a zero pivot does not lose the factorisation:
# measured on the corpus, 1e-9 loses up to nine digits on vertices, 1e-7 none.
EPSILON = 1e-7
_DENSE_LIMIT = 160
_SWEEPS = 4  # of scaling


class Factor(ABC):
    """Factors of a batch of matrices."""

    @abstractmethod
    def solve(self, rhs: np.ndarray, *, refine: int = 6, tol: float = 1e-14) -> tuple[np.ndarray, np.ndarray]:
        """Solve K x = rhs, (B, N) each, refined; also the relative residuals (B,)."""


class LinearSolve(ABC):
    """Symbolic phase of one pattern (upper triangle, COO, row <= col) with the expected sign of each pivot."""

    name: str
    flops: float  # operations of one factorisation, roughly

    @abstractmethod
    def factor(self, values: np.ndarray, eps: float = EPSILON) -> Factor:
        """Factor K + eps diag(signs) for entry values (B, nnz)."""


def linear_solve(size: int, rows: np.ndarray, cols: np.ndarray, signs: np.ndarray, name: str = "auto") -> LinearSolve:
    """The linear solve for a pattern: compiled LDL' on lanes where it is built, else dense for small and qdldl for sparse ones."""
    if name == "lanes" or (name == "auto" and kernels.available()):
        return Lanes(size, rows, cols, signs)
    if name == "dense" or (name == "auto" and size <= _DENSE_LIMIT):
        return Dense(size, rows, cols, signs)
    return Sparse(size, rows, cols, signs)


class Lanes(LinearSolve):
    """LDL' with one instance per SIMD lane (`layercompiler.kernels`)."""

    name = "lanes"

    def __init__(self, size: int, rows: np.ndarray, cols: np.ndarray, signs: np.ndarray) -> None:
        self.ldl = kernels.LDL(size, rows, cols, signs)
        self.flops = float(self.ldl.flops)

    def factor(self, values: np.ndarray, eps: float = EPSILON) -> Any:
        """See `LinearSolve.factor`."""
        return self.ldl.factor(np.ascontiguousarray(values), eps=eps)


class Dense(LinearSolve):
    """Batched inverses of the regularised matrix, refined; for small systems where no compiler was at hand."""

    name = "dense"

    def __init__(self, size: int, rows: np.ndarray, cols: np.ndarray, signs: np.ndarray) -> None:
        self.size, self.rows, self.cols, self.signs = size, rows, cols, signs.astype(float)
        self.flops = 2.0 * size**3

    def factor(self, values: np.ndarray, eps: float = EPSILON) -> Factor:
        """See `LinearSolve.factor`."""
        K = np.zeros((len(values), self.size, self.size))
        K[:, self.rows, self.cols] = values
        K[:, self.cols, self.rows] = values
        scale = evenness(K)
        K *= scale[:, :, None] * scale[:, None, :]
        regular = K.copy()
        diagonal = np.arange(self.size)
        regular[:, diagonal, diagonal] += eps * self.signs
        bad = ~np.isfinite(regular).all(axis=(1, 2))
        regular[bad] = np.eye(self.size)
        try:
            inverse = np.linalg.inv(regular)
        except np.linalg.LinAlgError:
            inverse = np.stack([np.linalg.pinv(k) for k in regular])
        inverse[bad] = np.nan
        return _DenseFactor(K, inverse, scale)


class _DenseFactor(Factor):
    def __init__(self, K: np.ndarray, inverse: np.ndarray, scale: np.ndarray) -> None:
        self.K, self.inverse, self.scale = K, inverse, scale

    def solve(self, rhs: np.ndarray, *, refine: int = 3, tol: float = 1e-14) -> tuple[np.ndarray, np.ndarray]:
        inverse, product = (lambda r, a=a: np.matmul(a, r[:, :, None])[:, :, 0] for a in (self.inverse, self.K))
        x, error = refined(inverse, product, rhs * self.scale, refine, tol)
        return x * self.scale, error


class Sparse(LinearSolve):
    """qdldl, one instance at a time."""

    name = "qdldl"

    def __init__(self, size: int, rows: np.ndarray, cols: np.ndarray, signs: np.ndarray) -> None:
        all_rows = np.concatenate([rows, np.arange(size)])
        all_cols = np.concatenate([cols, np.arange(size)])
        keys, self.slot = np.unique(all_cols * size + all_rows, return_inverse=True)
        self.indices = (keys % size).astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(keys // size, minlength=size))]).astype(np.int32)
        self.size, self.nnz, self.signs = size, len(keys), signs.astype(float)
        off = rows != cols
        self.pattern = Pattern(np.concatenate([rows, cols[off]]), np.concatenate([cols, rows[off]]), (size, size))
        self.flops = 10.0 * self.nnz * np.sqrt(self.nnz)  # the fill is known only to qdldl
        self.mirror = np.concatenate([np.arange(len(rows)), np.flatnonzero(off)])

    def factor(self, values: np.ndarray, eps: float = EPSILON) -> Factor:
        """See `LinearSolve.factor`."""
        import qdldl

        rows, cols = self.pattern.rows[: values.shape[1]], self.pattern.cols[: values.shape[1]]
        scale = np.ones((len(values), self.size))
        for _ in range(_SWEEPS):
            top, sizes = np.zeros(scale.shape), np.abs(values) * scale[:, rows] * scale[:, cols]
            for ends in (rows, cols):
                np.maximum.at(top.T, ends, sizes.T)
            scale *= _toward_one(top)
        values = values * scale[:, rows] * scale[:, cols]
        packed = np.zeros((len(values), self.nnz))
        entries = self.slot[: values.shape[1]]
        packed[:, entries] = values
        packed[:, self.slot[values.shape[1] :]] += eps * self.signs
        solvers = []
        for row in packed:
            matrix = sp.csc_matrix((row, self.indices, self.indptr), shape=(self.size, self.size))
            solvers.append(qdldl.Solver(matrix, upper=True) if np.isfinite(row).all() else None)
        return _SparseFactor(self, values, solvers, scale)


class _SparseFactor(Factor):
    def __init__(self, plan: Sparse, values: np.ndarray, solvers: list[Any], scale: np.ndarray) -> None:
        self.plan, self.values, self.solvers, self.scale = plan, values[:, plan.mirror], solvers, scale

    def solve(self, rhs: np.ndarray, *, refine: int = 3, tol: float = 1e-14) -> tuple[np.ndarray, np.ndarray]:
        def inverse(r: np.ndarray) -> np.ndarray:
            return np.stack([np.full(len(row), np.nan) if s is None else s.solve(row) for s, row in zip(self.solvers, r, strict=True)])

        x, error = refined(inverse, lambda x: self.plan.pattern.product(self.values, x), rhs * self.scale, refine, tol)
        return x * self.scale, error


def evenness(K: np.ndarray) -> np.ndarray:
    """(B, N) powers of two s with which the largest entry of every row of s K s, (B, N, N), is near one."""
    scale = np.ones(K.shape[:2])
    for _ in range(_SWEEPS):
        scale *= _toward_one((np.abs(K) * scale[:, :, None] * scale[:, None, :]).max(axis=2, initial=0.0))
    return scale


def _toward_one(top: np.ndarray) -> np.ndarray:
    """The powers of two nearest to top^-1/2; all ones for an instance whose rows are even."""
    usable = np.isfinite(top) & (top > 0)
    uneven = (usable & ((top > 16.0) | (top < 0.0625))).any(axis=1, keepdims=True)
    return np.where(usable & uneven, np.exp2(np.rint(-0.5 * np.log2(np.where(usable, top, 1.0)))), 1.0)


def refined(inverse: Any, product: Any, rhs: np.ndarray, refine: int, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Iterative refinement that keeps, per instance, the iterate with the smallest residual."""
    scale = np.maximum(np.abs(rhs).max(axis=1, initial=0.0), 1e-300)
    with np.errstate(all="ignore"):
        best = inverse(rhs)
        residual = rhs - product(best)
        error = np.abs(residual).max(axis=1, initial=0.0) / scale
        for _ in range(refine):
            if np.all(~(error > tol)):
                break
            trial = best + inverse(residual)
            trial_residual = rhs - product(trial)
            trial_error = np.abs(trial_residual).max(axis=1, initial=0.0) / scale
            better = trial_error < error
            if not better.any():
                break
            best = np.where(better[:, None], trial, best)
            residual = np.where(better[:, None], trial_residual, residual)
            error = np.where(better, trial_error, error)
    return best, error
