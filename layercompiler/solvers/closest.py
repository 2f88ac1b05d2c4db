"""Quadratic programs that cannot be satisfied: how far they are from it, and the closest one that can.

With C = [A; G], c = [b; h] and rows C x - s <= c (= in the equalities), the least violation s minimises |s|^2 / 2. Its dual is a
projection that always has a solution, and the solution is s itself:

    minimise 1/2 |s|^2 + c's   subject to   C's = 0,  s >= 0 in the inequalities

so s = 0 where the constraints can be satisfied, and else -s / c's is a certificate that they cannot. The closest program has
c + s in place of c. Rows with s_i != 0 hold with equality in all of its points. Likewise a direction of unboundedness is the d that
minimises 1/2 |d|^2 + q'd subject to Q d = 0, A d = 0, G d <= 0.

Source: Chiche, Gilbert 2016 (the closest feasible problem); Bambade et al. 2024 (QPLayer).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.kernels import DenseFactors, DenseQP, DenseSolution
from layercompiler.programs.cone import Data, Structure
from layercompiler.status import Status

FAR = 1e-9  # violation, beside the size of the right-hand side, from which on a program counts as infeasible
_LARGEST = 700  # order of the systems up to which these programs are solved


@dataclass(frozen=True)
class Least:
    """The least violation of a batch.

    Attributes:
        s: (B, m).
        violated: (B, m) bool, rows that hold with equality in every closest point: all equalities, and where s > 0.
        margin: (B,) distance to another set of violated rows.
        far: (B,) bool, not zero.
        ok: (B,) bool, solved.
    """

    s: np.ndarray
    violated: np.ndarray
    margin: np.ndarray
    far: np.ndarray
    ok: np.ndarray

    def take(self, index: np.ndarray) -> Least:
        """The instances `index`."""
        return Least(self.s[index], self.violated[index], self.margin[index], self.far[index], self.ok[index])


class Closest:
    """The programs above for one structure of zero and nonnegative cones.

    Args:
        structure: The pattern.
        equalities: Rows of the zero cone.
    """

    def __init__(self, structure: Structure, equalities: int) -> None:
        self.structure, self.p = structure, equalities

    @property
    def affordable(self) -> bool:
        """Whether the programs are small enough for dense matrices."""
        return self.structure.n + self.structure.m <= _LARGEST

    @cached_property
    def _projection(self) -> DenseQP:
        n, m, p = self.structure.n, self.structure.m, self.p
        rows, bounded = np.arange(m), np.arange(p, m)
        return DenseQP(m, n, m - p, Q=(rows, rows), G=(bounded - p, bounded))

    @cached_property
    def _fall(self) -> DenseQP:
        n, m, p = self.structure.n, self.structure.m, self.p
        return DenseQP(n, n + p, m - p, Q=(np.arange(n), np.arange(n)))

    @cached_property
    def _second(self) -> DenseQP:
        n, m, p = self.structure.n, self.structure.m, self.p
        s = self.structure
        return DenseQP(n, m, m - p, Q=(s.P_rows, s.P_cols))

    def rows(self, data: Data) -> np.ndarray:
        """C of every instance, (B or 1, m, n)."""
        s = self.structure
        out = np.zeros((len(data.A), s.m, s.n))
        out[:, s.A_rows, s.A_cols] = data.A
        return out

    def violation(self, data: Data, threads: int) -> Least:
        """The least violation of every instance."""
        n, m, p = self.structure.n, self.structure.m, self.p
        if m == 0:
            B = data.batch
            return Least(np.zeros((B, 0)), np.zeros((B, 0), bool), np.full(B, np.inf), np.zeros(B, bool), np.ones(B, bool))
        C, c = self.rows(data), data.b
        none = np.zeros((1, n)), np.full((1, m - p), -1.0), np.zeros((1, m - p))
        found = self._projection.solve(np.ones((1, m)), c, np.ascontiguousarray(C.swapaxes(1, 2)), *none, threads=threads)
        ok = found.status == Status.SOLVED
        least = _least(found.x, c, p, ok)
        return least if len(ok) == data.batch else least.take(np.zeros(data.batch, np.intp))

    def direction(self, data: Data, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The direction d (B, n) in which the objective falls without end, and where there is one (B,)."""
        s, n, p = self.structure, self.structure.n, self.p
        C, B = self.rows(data), data.batch
        Q = np.zeros((len(data.P), n, n))
        Q[:, s.P_rows, s.P_cols] = Q[:, s.P_cols, s.P_rows] = data.P
        wide = max(len(C), len(Q))
        rows = np.concatenate([np.broadcast_to(Q, (wide, n, n)), np.broadcast_to(C[:, :p], (wide, p, n))], axis=1)
        zero, q = np.zeros((1, n + s.m)), np.broadcast_to(data.q, (B, n))
        found = self._fall.solve(np.ones((1, n)), q, rows, zero[:, : n + p], C[:, p:], zero[:, : s.m - p], threads=threads)
        size = 1 + np.abs(q).max(axis=1, initial=0.0)
        return found.x, (found.status == Status.SOLVED) & (np.abs(found.x).max(axis=1, initial=0.0) > FAR * size)

    def least(self, data: Data, x: np.ndarray) -> Least:
        """The violation at points x, taken as the least."""
        return _least(_times(self.rows(data), x) - data.b, data.b, self.p, np.ones(len(x), bool))

    def solve(self, data: Data, least: Least, threads: int) -> ClosestPoints:
        """Solve the closest programs of a batch that is far from feasible."""
        m, p = self.structure.m, self.p
        operands, free = self._operands(data, least)
        found = self._second.solve(*operands, form="primal", threads=threads)
        y = found.y[:, :m] * least.violated
        y[:, p:] += found.y[:, m:] * free
        return self._points(found, least, found.x, y, found.v[:, m:], operands, free)

    def resume(self, data: Data, x: np.ndarray, v: np.ndarray, threads: int) -> ClosestPoints:
        """The same from its points (x, v), without solving."""
        m, p = self.structure.m, self.p
        least = self.least(data, x)
        violated = least.violated
        operands, free = self._operands(data, least)
        start = np.concatenate([v * violated, np.where(free, v[:, p:], -1.0)], axis=1)
        found = self._second.solve(*operands, start=(x, start), factor_only=True, threads=threads)
        y = np.where(violated, v, np.maximum(v, 0.0))
        return self._points(found, least, x, y, start[:, m:], operands, free)

    def _operands(self, data: Data, least: Least) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Of the second program, whose equalities are the violated rows, with zero rows for what is not; and the other inequalities."""
        p, C, K = self.p, self.rows(data), least.violated
        free = ~K[:, p:]
        alike = 1 if len(C) == 1 and (K == K[:1]).all() else len(K)  # one set of violated rows of one matrix is set up once
        G, h = C[:, p:] * free[:alike, :, None], np.where(free, data.b[:, p:], 1.0)
        return (data.P, data.q, C * K[:alike, :, None], np.where(K, data.b + least.s, 0.0), G, h), free

    def _points(
        self, found: DenseSolution, least: Least, x: np.ndarray, y: np.ndarray, v_in: np.ndarray, operands: Any, free: np.ndarray
    ) -> ClosestPoints:
        p, K = self.p, least.violated
        _, _, rows, _, G, h = operands
        range_ = Range(rows)
        nu = range_.coordinates(y * K)
        y = np.where(K, range_.apply(nu), y)
        v = y.copy()
        v[:, p:] = np.where(free & (v_in <= 0), np.minimum(_times(G, x) - h, 0.0), y[:, p:])
        margin = np.minimum(least.margin, found.margin)
        return ClosestPoints(
            x, y, v, found.status, found.norm, found.iterations, margin, least, range_, nu, found.factors, p, self.structure, operands
        )


class Range:
    """Orthogonal projection onto the range of B, of any rank: B pinv(B)."""

    def __init__(self, B: np.ndarray) -> None:
        self.B = B
        values, self.basis = np.linalg.eigh(np.matmul(B.swapaxes(1, 2), B))
        top = values[:, -1:]
        self.inverse = np.where(values > 1e-13 * top, 1 / np.where(values > 0, values, 1.0), 0.0)

    def gram(self, r: np.ndarray) -> np.ndarray:
        """pinv(B'B) r."""
        return _times(self.basis, self.inverse * _times(self.basis.swapaxes(1, 2), r))

    def apply(self, u: np.ndarray) -> np.ndarray:
        """B u."""
        return _times(self.B, u)

    def coordinates(self, w: np.ndarray) -> np.ndarray:
        """pinv(B) w, refined once, because B'B squares the condition."""
        u = self.gram(_times(self.B.swapaxes(1, 2), w))
        return u + self.gram(_times(self.B.swapaxes(1, 2), w - self.apply(u)))

    def project(self, w: np.ndarray) -> np.ndarray:
        """B pinv(B) w."""
        return self.apply(self.coordinates(w))


@dataclass(frozen=True)
class ClosestPoints:
    """Solutions of closest programs, and the linear system that differentiates them.

    With B the violated rows and N the active others: B'(B x - c) = 0, Q x + q + B'B nu + C_N'z = 0, C_N x = c_N; the multipliers of
    the violated rows are B nu, the smallest ones.

    Attributes:
        x: (B, n); `y` (B, m) multipliers; `v` (B, m), multipliers less slacks.
        y: See `x`.
        v: See `x`.
        status: (B,), with `norm`, `iterations` and `margin` as in `DenseSolution`.
        norm: See `status`.
        iterations: See `status`.
        margin: See `status`.
        least: The violation.
        range: The range of B.
        nu: (B, n).
        factors: Of the linear system.
        equalities: Rows of A.
        structure: The pattern.
        operands: Of the second program.
    """

    x: np.ndarray
    y: np.ndarray
    v: np.ndarray
    status: np.ndarray
    norm: np.ndarray
    iterations: np.ndarray
    margin: np.ndarray
    least: Least
    range: Range
    nu: np.ndarray
    factors: DenseFactors
    equalities: int
    structure: Structure
    operands: tuple[np.ndarray, ...]

    def linear(self, r: np.ndarray, h: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q u + B't_B + C_N't_N = r, B u = h projected onto the range of B, C_N u = h; t_B in that range."""
        K, p = self.least.violated, self.equalities
        m = K.shape[1]
        sides = np.concatenate([self.range.project(h * K), h[:, p:]], axis=1)
        u, t, residual = self.factors.solve(r, sides, threads=threads)
        out = t[:, :m] * K
        out[:, p:] += t[:, m:] * ~K[:, p:]
        return u, np.where(K, self.range.project(out * K), out), residual

    def least_squares(self, i: int, r: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`linear` of instance `i` where its system is singular: the solution of least norm."""
        K, p = self.least.violated[i], self.equalities
        n, m = len(r), len(K)
        active = K | (self.v[i] > 0)
        values, _, violated, _, others, _ = (a[min(i, len(a) - 1)] for a in self.operands)
        C, s = violated.copy(), self.structure
        C[p:] += others
        Q = np.zeros((n, n))
        Q[s.P_rows, s.P_cols] = Q[s.P_cols, s.P_rows] = values
        rows, sides = C[active], np.where(K, self.range.project((h * K)[None].repeat(len(self.x), 0))[i], h)[active]
        whole = np.block([[Q, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
        found = np.linalg.lstsq(whole, np.concatenate([r, sides]), rcond=1e-11)[0]
        t = np.zeros(m)
        t[active] = found[n:]
        return found[:n], t


def _least(s: np.ndarray, c: np.ndarray, p: int, ok: np.ndarray) -> Least:
    size = 1 + np.abs(c).max(axis=1, initial=0.0)[:, None]
    violated = np.concatenate([np.ones((len(s), p), bool), s[:, p:] > FAR * size], axis=1)
    s = np.where(violated, s, 0.0)
    margin = np.where(violated, s / size, np.inf)[:, p:].min(axis=1, initial=np.inf)
    return Least(s, violated, margin, ok & (np.abs(s) > FAR * size).any(axis=1), ok)


def _times(M: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ M[0].T if len(M) == 1 else np.matmul(M, x[:, :, None])[:, :, 0]
