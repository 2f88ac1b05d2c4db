"""Conjugate gradients, preconditioned by the diagonal blocks of the elements: for systems whose factors would fill memory."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from layercompiler.solvers.least_squares.elimination import backward, cholesky, elements, forward
from layercompiler.solvers.least_squares.linear import Factor, Normal
from layercompiler.solvers.least_squares.structure import Structure

TOLERANCE = 1e-13  # relative residual at which an instance is done
_ACCEPTED = 1e-8  # above which the answer counts as none


class Conjugate(Normal):
    """One instance at a time, without factors: nothing is stored but the entries and the small diagonal blocks."""

    name = "cg"

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        element = elements(structure)
        widths = np.bincount(element) if len(element) else np.zeros(0, int)
        first = {}
        for c, e in enumerate(element.tolist()):
            first.setdefault(e, c)
        inside = np.flatnonzero(element[structure.rows] == element[structure.cols])
        self.blocks = []
        for width in np.unique(widths[widths > 0]).tolist():
            members = np.flatnonzero(widths == width)
            starts = np.array([first[e] for e in members.tolist()])
            number = np.full(len(widths), -1)
            number[members] = np.arange(len(members))
            mine = inside[number[element[structure.rows[inside]]] >= 0]
            g = number[element[structure.rows[mine]]]
            place = g, structure.rows[mine] - starts[g], structure.cols[mine] - starts[g]
            self.blocks.append((starts[:, None] + np.arange(width), mine, place))

    def factor(self, entries: np.ndarray, diagonal: np.ndarray) -> Factor:
        """See `Normal.factor`."""
        return _ConjugateFactor(self, entries, diagonal)


class _ConjugateFactor(Factor):
    """Factors that are none: pivots are the smallest eigenvalues of the preconditioned matrix that Lanczos' process sees.

    The process starts at random numbers, so that a negative eigenvalue shows; where a solve does not get to a small residual, its
    instance counts as singular.
    """

    def __init__(self, normal: Conjugate, entries: np.ndarray, diagonal: np.ndarray) -> None:
        s = normal.structure
        self.matrices, self.conditioners, smallest = [], [], []
        for v, d in zip(entries, diagonal, strict=True):
            upper = sp.csr_matrix((v, (s.rows, s.cols)), (s.n, s.n))
            self.matrices.append((upper + sp.triu(upper, 1).T + sp.diags(d)).tocsr())
            blocks = []
            for columns, mine, (g, i, j) in normal.blocks:
                C = np.zeros((*columns.shape, columns.shape[1]))
                C[g, i, j] = C[g, j, i] = v[mine]
                C[:, np.arange(columns.shape[1]), np.arange(columns.shape[1])] += d[columns]
                L, least = cholesky(C / np.sqrt(_positive(C))[:, :, None] / np.sqrt(_positive(C))[:, None, :])
                smallest.append(least.min(initial=np.inf))
                blocks.append((columns, L, np.sqrt(_positive(C))))
            self.conditioners.append(blocks)
        least = np.array(smallest).reshape(len(entries), -1).min(axis=1, initial=np.inf)
        start = np.random.default_rng(0).standard_normal(s.n)
        self.pivots = np.where(least > 0, least, -1.0)
        for b in np.flatnonzero(least > 0):
            self.pivots[b] = min(self.pivots[b], self._one(int(b), start)[1])

    def solve(self, rhs: np.ndarray, refine: int = 0) -> np.ndarray:
        out = np.full_like(rhs, np.nan)
        for b in np.flatnonzero(self.pivots > 0):
            x, least = self._one(int(b), rhs[b])
            for _ in range(refine):
                x = x + self._one(int(b), rhs[b] - self.matrices[b] @ x)[0]
            gap = np.abs(rhs[b] - self.matrices[b] @ x).max(initial=0.0)
            if not gap <= _ACCEPTED * np.abs(rhs[b]).max(initial=0.0):
                self.pivots[b] = -1.0
                continue
            out[b] = x
            self.pivots[b] = min(self.pivots[b], least)
        return out

    def _precondition(self, b: int, r: np.ndarray) -> np.ndarray:
        z = np.empty_like(r)
        for columns, L, scale in self.conditioners[b]:
            z[columns] = backward(L, forward(L, (r[columns] / scale)[..., None]))[..., 0] / scale
        return z

    def _one(self, b: int, rhs: np.ndarray) -> tuple[np.ndarray, float]:
        """The solution, and the smallest eigenvalue of Lanczos' tridiagonal matrix (of the preconditioned matrix, near one where good)."""
        A, x, r = self.matrices[b], np.zeros_like(rhs), np.array(rhs)
        z = self._precondition(b, r)
        p, rz = z, float(r @ z)
        goal, alphas, betas = TOLERANCE * np.abs(rhs).max(initial=0.0), [], []
        for _ in range(4 * len(rhs) + 20):
            if np.abs(r).max(initial=0.0) <= goal or not np.isfinite(rz):
                break
            q = A @ p
            curvature = float(p @ q)
            if not curvature > 0:
                return x, -1.0
            a = rz / curvature
            x, r = x + a * p, r - a * q
            z = self._precondition(b, r)
            rz, before = float(r @ z), rz
            alphas.append(a)
            betas.append(rz / before)
            p = z + betas[-1] * p
        if not alphas:
            return x, np.inf
        a, beta = np.array(alphas), np.array(betas)
        main = 1 / a + np.concatenate([[0.0], beta[:-1] / a[:-1]])
        off = np.sqrt(np.maximum(beta[:-1], 0)) / a[:-1]
        from scipy.linalg import eigvalsh_tridiagonal

        return x, float(eigvalsh_tridiagonal(main, off, select="i", select_range=(0, 0))[0])


def _positive(C: np.ndarray) -> np.ndarray:
    d = np.einsum("gii->gi", C)
    return np.where((d > 0) & np.isfinite(d), d, 1.0)
