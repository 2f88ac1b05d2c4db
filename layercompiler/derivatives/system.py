"""The symmetric linear system of the residual map, assembled for a batch on one fixed pattern.

With D the derivative of the projection onto K* at v = y - s and S = D^(1/2), Newton steps, tangents and adjoints all solve

    [[P, A'S], [S A, -(I - D)]] [u; sigma] = [r_x; S h],     t = S sigma,

which is bounded, symmetric, and needs no inverse of D (source: cone-program derivatives of Agrawal et al. 2019 and
Busseti, Moursi, Boyd 2019, written symmetrically). Each cone states factors T and N with T N-block equivalent to S and
-(I - D) on a fixed sparse pattern (`layercompiler.cones`), so the symbolic phase is done once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.cones import ProductProjection
from layercompiler.derivatives.linear import LinearSolve, evenness, linear_solve
from layercompiler.derivatives.rotation import Rotation, Turned
from layercompiler.errors import DerivativeError
from layercompiler.programs.cone import Data, Structure
from layercompiler.programs.pattern import Segments


class System:
    """Pattern and assembly plan of the linear system for one structure.

    Args:
        structure: The pattern of the program.
        samples: Data at two random parameter values, from which constant and isotropic entries are recognised.
        linear: Name of the linear solve, see `layercompiler.derivatives.linear`.
    """

    def __init__(self, structure: Structure, samples: Data, linear: str = "auto") -> None:
        self.structure = structure
        self.rotation = Rotation.of(structure, samples)
        A_rows, A_cols = self.rotation.A_rows, self.rotation.A_cols
        n, m = structure.n, structure.m
        T_row, T_tau, N_row, N_col, signs = [], [], [], [], [np.ones(n, np.int8)]
        self.blocks: list[tuple[Any, int, bool]] = []
        row, unknown = 0, n
        for g, (cone, count) in enumerate(structure.cones.blocks):
            rotated = self.rotation.rotates(g)
            e = _Diagonal(cone.dim) if rotated else cone.expansion
            at = np.arange(count)[:, None]
            T_row.append((row + at * cone.dim + e.T_rows).ravel())
            T_tau.append((unknown + at * e.size + e.T_cols).ravel())
            N_row.append((unknown + at * e.size + e.N_rows).ravel())
            N_col.append((unknown + at * e.size + e.N_cols).ravel())
            signs.append(np.tile(e.signs, count))
            self.blocks.append((cone, count, rotated))
            row, unknown = row + cone.dim * count, unknown + e.size * count
        self.n, self.m, self.size = n, m, unknown
        self.T_row, self.T_tau = _join(T_row), _join(T_tau)
        self.by_tau = Segments.of(self.T_tau - n, unknown - n)
        self.by_row = Segments.of(self.T_row, m)
        # A'T: every entry of A meets every entry of T in its row.
        order = np.argsort(self.T_row, kind="stable")
        start = np.searchsorted(self.T_row[order], np.arange(m + 1))
        count = np.diff(start)[A_rows]
        self.A_index = np.repeat(np.arange(len(A_rows)), count)
        within = np.arange(len(self.A_index)) - np.repeat(np.cumsum(count) - count, count)
        self.T_index = order[start[A_rows[self.A_index]] + within]
        keys = A_cols[self.A_index] * (unknown + 1) + self.T_tau[self.T_index]
        unique, target = np.unique(keys, return_inverse=True)
        self.coupling = Segments.of(target, len(unique))
        if self.coupling.simple and self.coupling.order is not None:  # fold the permutation into the gathers
            self.A_index, self.T_index = self.A_index[self.coupling.order], self.T_index[self.coupling.order]
            self.coupling = Segments.of(np.arange(len(unique)), len(unique))
        P_rows, P_cols = structure.P_rows, structure.P_cols
        self.rows = np.concatenate([P_rows, unique // (unknown + 1), *N_row]).astype(np.intp)
        self.cols = np.concatenate([P_cols, unique % (unknown + 1), *N_col]).astype(np.intp)
        self.signs = np.concatenate(signs).astype(np.int8)
        self.probe = np.random.default_rng(0).uniform(0.5, 1.5, unknown) * np.where(np.arange(unknown) % 2, 1.0, -1.0)
        self.linear: LinearSolve = linear_solve(unknown, self.rows, self.cols, self.signs, linear)

    def factor(self, data: Data, projection: ProductProjection) -> Linearization:
        """Assemble and factor the systems of a batch at the projections of v = y - s."""
        T, N = [], []
        B = len(projection.y)
        for (_, _, rotated), part in zip(self.blocks, projection.parts, strict=True):
            if rotated:
                t, nn = np.sqrt(part.beta), part.beta - 1.0
            else:
                t, nn = part.expansion_values()
            T.append(t.reshape(len(t), -1))
            N.append(nn.reshape(len(nn), -1))
        T_values = _concatenate(T, B)
        turned = self.rotation.turn(data, projection)
        A = self.rotation.matrix(data, turned, B)
        coupling = self.coupling.sum(A[:, self.A_index] * T_values[:, self.T_index])
        values = _concatenate([self.rotation.quadratic(data, turned), coupling, *N], B)
        return Linearization(self, T_values, values, self.linear.factor(values), turned)


@dataclass(frozen=True)
class _Diagonal:
    """Expansion of a cone whose derivative is diagonal in the coordinates at hand."""

    size: int

    @property
    def T_rows(self) -> np.ndarray:
        return np.arange(self.size)

    T_cols = N_rows = N_cols = T_rows

    @property
    def signs(self) -> np.ndarray:
        return -np.ones(self.size, np.int8)


@dataclass(frozen=True)
class Linearization:
    """The factored systems of a batch; each right-hand side is one triangular solve."""

    system: System
    T: np.ndarray
    values: np.ndarray
    factor: Any
    turned: Turned

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solve for (u, t): (B, n), (B, m) to (B, n), (B, m), and the relative residuals (B,)."""
        rhs = self._right(r_x, h)
        solution, residual = self.factor.solve(rhs, refine=refine)
        return *self._left(solution), residual

    def route(self) -> None:
        """No factors that the kernels know."""

    def singular(self) -> np.ndarray:
        """(B,) bool: a fixed random right-hand side cannot be reached, so the matrix is singular up to the regularisation."""
        rhs = np.repeat(self.system.probe[None], len(self.values), axis=0)
        with np.errstate(all="ignore"):
            return ~(self.factor.solve(rhs, refine=3)[1] <= 1e-8)

    def _right(self, r_x: np.ndarray, h: np.ndarray) -> np.ndarray:
        s = self.system
        r_x, h = s.rotation.right(r_x, h, self.turned)
        out = np.empty((len(r_x), s.size))
        out[:, : s.n] = r_x
        out[:, s.n :] = s.by_tau.sum(self.T * h[:, s.T_row])
        return out

    def _left(self, solution: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = self.system
        t = s.by_row.sum(self.T * solution[:, s.T_tau])
        return s.rotation.left(solution[:, : s.n], t, self.turned)

    def solve_least_squares(self, i: int, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Minimum-norm least-squares solution of instance `i`, for singular systems; (n,), (m,) to (n,), (m,)."""
        K = self.dense(i)
        one = self.one(i)
        rhs = one._right(r_x[None], h[None])[0]
        scale = evenness(K[None])[0]  # what decides the rank must not be the units
        even, _, rank, _ = np.linalg.lstsq(K * scale[:, None] * scale, rhs * scale, rcond=1e-11)
        solution = even * scale if rank == len(K) else np.linalg.lstsq(K, rhs, rcond=1e-11)[0]
        u, t = one._left(solution[None])
        return u[0], t[0]

    def one(self, i: int) -> Linearization:
        """Instance `i` alone, without its factor."""
        pick = lambda a: a if len(a) == 1 else a[i : i + 1]  # noqa: E731
        turned = tuple((pick(Q), pick(scale)) for Q, scale in self.turned)
        return Linearization(self.system, pick(self.T), pick(self.values), None, turned)

    def dense(self, i: int) -> np.ndarray:
        """The matrix of instance `i`, (size, size)."""
        s = self.system
        K = np.zeros((s.size, s.size))
        K[s.rows, s.cols] = K[s.cols, s.rows] = self.values[min(i, len(self.values) - 1)]
        return K


@dataclass(frozen=True)
class Refused:
    """In place of a linearization that would be too large: solutions stand without it, derivatives do not.

    Attributes:
        reason: What is raised.
        count: Number of instances.
    """

    reason: DerivativeError
    count: int

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raise."""
        raise self.reason

    def route(self) -> None:
        """No factors."""

    def singular(self) -> np.ndarray:
        """Unknown, so not claimed."""
        return np.zeros(self.count, bool)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.intp) if parts else np.zeros(0, np.intp)


def _concatenate(parts: list[np.ndarray], batch: int) -> np.ndarray:
    """Side by side, with shared parts (leading size 1) repeated."""
    width = sum(p.shape[1] for p in parts)
    out = np.empty((batch, width))
    at = 0
    for p in parts:
        out[:, at : at + p.shape[1]] = p
        at += p.shape[1]
    return out
