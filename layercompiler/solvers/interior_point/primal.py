"""The primal form: systems of the order of the variables, in a homogeneous embedding that ends in a solution or in a certificate.

    Qx + A'y + G'z + p tau = 0,   Ax = b tau,   Gx + s = h tau,   p'x + b'y + h'z + kappa = -x'Qx / tau

Every iteration factors H = Q + rho I + A'A + G' W^-2 G, and the equalities in it; Q may be semidefinite or zero, rows may depend on each
other: the small rho and delta that this needs are undone by refinement on the system without them. It is for what the dual form cannot do
(linear programs, many more rows than variables, infeasible and degenerate instances), and more robust, at several times the cost.

Source: Andersen, Roos and Terlaky 2003; Goulart and Chen 2024 (the embedding with a quadratic objective); Schwan et al. 2023 (rho, delta).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.solvers.interior_point.program import (
    Point,
    Program,
    cholesky_solve,
    point,
    residuals,
    select,
    times,
    times_transposed,
    triangular,
)
from layercompiler.solvers.interior_point.scaling import Equilibrated
from layercompiler.status import Status

CONVEX = 1e-6  # over the largest entry of Q: a smaller negative curvature is rounding
_RHO = 1e-10  # on Q, whose largest entry is at most one in these units
_DELTA = 1e-8
_DELTA_Y = (
    1e-10  # on the equalities, whose Schur complement is at most one; kept in the embedding: dependent rows may contradict each other
)
_TOLERANCE = 1e-9
_INFEASIBLE = 1e-8
_CERTAIN = 1e-6
_LIMIT = 80
_REFINEMENTS = 40
_ROUNDING = 1e-15
_SMALLEST = 1e-12
_RANK = 1e-11


@dataclass(frozen=True)
class Condensed:
    """Factors of [[Q, A', G'], [A, 0, 0], [G, 0, -Omega^-1]] with Omega eliminated.

    Attributes:
        program: The numbers.
        L: Factor of Q + rho I + A'A + G' Omega G.
        V: L^-1 A'.
        S: Factor of V'V.
        ok: (B,).
    """

    program: Program
    L: Any
    V: Any
    S: Any
    ok: Any

    @classmethod
    def of(cls, program: Program, weighted: Any) -> Condensed:
        """Factor, for weighted = Omega G (B, m, n)."""
        xp, k = program.xp, program.A.shape[1]
        H = program.Q + xp.matmul(xp.matrix_transpose(program.G), weighted)
        if k:
            H = H + xp.matmul(xp.matrix_transpose(program.A), program.A)
        H = 0.5 * (H + xp.matrix_transpose(H))
        H = xp.add_diagonal(H, _RHO + 1e-14 * xp.linalg.diagonal(H))
        L, ok = xp.cholesky(H)
        if not k:
            return cls(program, L, L[:, :, :0], L[:, :0, :0], ok)
        V = triangular(xp, L, xp.matrix_transpose(program.A) + 0.0 * L[:, :, :1])
        S = xp.matmul(xp.matrix_transpose(V), V)
        S, full = xp.cholesky(xp.add_diagonal(S, _DELTA_Y + 0.0 * xp.linalg.diagonal(S)))
        return cls(program, L, V, S, ok & full)

    def solve(self, r_x: Any, r_y: Any) -> tuple[Any, Any]:
        """(dx, dy) of the system with the inequalities already folded into r_x."""
        xp = self.program.xp
        if not r_y.shape[1]:
            return cholesky_solve(xp, self.L, r_x), r_y
        t = triangular(xp, self.L, r_x + times_transposed(xp, self.program.A, r_y))
        dy = cholesky_solve(xp, self.S, times_transposed(xp, self.V, t) - r_y)
        return triangular(xp, self.L, t - times(xp, self.V, dy), transposed=True), dy


@dataclass(frozen=True)
class Linearized:
    """The factored system of the residual map at v, in the primal form and in the units of the equilibration.

    Attributes:
        scaling: The units.
        v: (B, m), in the units of the given program.
        factor: With Omega = D (I - D + delta)^-1.
        ok: (B,).
    """

    scaling: Equilibrated
    v: Any
    factor: Condensed

    @classmethod
    def at(cls, scaling: Equilibrated, v: Any) -> Linearized:
        """Factor at v."""
        program = scaling.program
        xp, cone = program.xp, program.cone
        here = cls(scaling, v, None)  # type: ignore[arg-type]
        wide = program.G + xp.zeros_like(v)[:, :, None]
        weighted = cone.apply(xp, here._derivative().map(lambda d: d / (1.0 - d + _DELTA)), wide) if cone.m else wide
        return cls(scaling, v, Condensed.of(program, weighted))

    @property
    def ok(self) -> Any:
        """(B,), where the factorization exists."""
        return self.factor.ok

    def _derivative(self) -> Any:
        program, scaling = self.scaling.program, self.scaling
        z = program.cone.project(program.xp, self.v)
        return program.cone.derivative(program.xp, z / (scaling.cost * scaling.row_G) - (z - self.v) * scaling.row_G)

    def solve(self, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """See `dual.Linearized.solve`; refined until the residual stops to fall, as rho and delta need."""
        scaling, program = self.scaling, self.scaling.program
        xp, cone = program.xp, program.cone
        Q, A, G = program.Q, program.A, program.G
        r_x, r_y, r_z = r_x * scaling.column / scaling.cost, r_y * scaling.row_A, r_z * scaling.row_G
        D: Any = self._derivative() if cone.m else None
        function = lambda f, x: cone.apply(xp, D.map(f), x) if cone.m else x  # noqa: E731
        root, rest = lambda d: xp.sqrt(d), lambda d: 1.0 - d
        push = lambda d: xp.sqrt(d) / (1.0 - d + _DELTA)  # noqa: E731
        over = lambda d: 1.0 / (1.0 - d + _DELTA)  # noqa: E731
        r_w = function(root, r_z)

        def missing(dx: Any, dy: Any, w: Any) -> tuple[Any, Any, Any, Any]:
            e_x = r_x - times(xp, Q, dx) - times_transposed(xp, A, dy) - times_transposed(xp, G, function(root, w))
            e_y = r_y - times(xp, A, dx)
            e_w = r_w - function(root, times(xp, G, dx)) + function(rest, w)
            return e_x, e_y, e_w, _big(xp, e_x, e_y, e_w)

        def goes_on(dx: Any, dy: Any, w: Any, e_x: Any, e_y: Any, e_w: Any, norm: Any, going: Any, turn: Any) -> Any:
            more = xp.any(going)
            return (turn < _REFINEMENTS) & (bool(more) if isinstance(turn, int) else more)

        def step(dx: Any, dy: Any, w: Any, e_x: Any, e_y: Any, e_w: Any, norm: Any, going: Any, turn: Any) -> tuple[Any, ...]:
            cx, cy = self.factor.solve(e_x + times_transposed(xp, G, function(push, e_w)), e_y)
            cw = function(over, function(root, times(xp, G, cx)) - e_w)
            new = dx + cx, dy + cy, w + cw
            left = missing(*new)
            falls = going & (left[3] < norm)
            state = [select(xp, falls, a, b) for a, b in zip((*new, *left), (dx, dy, w, e_x, e_y, e_w, norm), strict=True)]
            return *state, falls & (left[3] < 0.9 * norm) & (left[3] > _ROUNDING * right), turn + 1

        zero = xp.zeros_like(r_x), xp.zeros_like(r_y), xp.zeros_like(r_z)
        start = missing(*zero)
        right = start[3]
        turn = xp.astype(xp.zeros_like(right[0]), xp.int32) if xp.name in ("jax", "tensorflow") else 0
        dx, dy, w, *_ = xp.while_loop(goes_on, step, (*zero, *start, right > 0, turn))
        return scaling.column * dx, scaling.cost * scaling.row_A * dy, scaling.cost * scaling.row_G * function(root, w)

    def newton(self, given: Program, x: Any, y: Any) -> Point:
        """The Newton step from (x, y, v) on the residual map.

        It solves for the change: where duals are not unique the one of least norm is taken, and signs stay as they are.
        """
        xp, cone = given.xp, given.cone
        z = cone.project(xp, self.v)
        dx, dy, dz = self.solve(*residuals(given, x, y, z, z - self.v)[:3])
        x, y = x + dx, y + dy
        return point(given, x, y, cone.join_parts(xp, z + dz, given.h - times(xp, given.G, x), self.v > 0))


def least_squares(scaling: Equilibrated, v: Any, right: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Least-squares solution of least norm (in the units of the equilibration) of a singular system at v, by its eigenvectors."""
    program = scaling.program
    xp, cone = program.xp, program.cone
    here = Linearized(scaling, v, None)  # type: ignore[arg-type]
    r_x, r_y, r_z = right[0] * scaling.column / scaling.cost, right[1] * scaling.row_A, right[2] * scaling.row_G
    n, k, m = r_x.shape[1], r_y.shape[1], r_z.shape[1]
    wide = xp.zeros_like(r_x)[:, :, None]
    Q, A, G = program.Q + wide, program.A + xp.zeros_like(r_x)[:, None, :], program.G + xp.zeros_like(r_x)[:, None, :]
    if m:
        D = here._derivative()
        C = D.map(xp.sqrt)
        CG, corner, r_z = (
            cone.apply(xp, C, G),
            -cone.apply(xp, D.map(lambda d: 1.0 - d), xp.eye_like(v, m) + 0.0 * v[:, :, None]),
            cone.apply(xp, C, r_z),
        )
    else:
        CG, corner = G, xp.matmul(G, xp.matrix_transpose(G))
    turned = xp.matrix_transpose
    zero = lambda rows, columns: xp.zeros_like(wide[:, :1]) + xp.zeros_like(r_x[:, :1, None]) * xp.new(_zeros(rows, columns), r_x)  # noqa: E731
    K = xp.concat(
        [
            xp.concat([Q, turned(A), turned(CG)], axis=2),
            xp.concat([A, zero(k, k), zero(k, m)], axis=2),
            xp.concat([CG, zero(m, k), corner], axis=2),
        ],
        axis=1,
    )
    values, vectors = xp.linalg.eigh(K)
    size = xp.max(xp.abs(values), axis=1)[:, None]
    inverse = xp.where(xp.abs(values) > _RANK * size, 1.0 / xp.where(values == 0, xp.ones_like(values), values), xp.zeros_like(values))
    found = times(xp, vectors, inverse * times_transposed(xp, vectors, xp.concat([r_x, r_y, r_z], axis=1)))
    dx, dy, w = found[:, :n], found[:, n : n + k], found[:, n + k :]
    dz = cone.apply(xp, C, w) if m else w
    return scaling.column * dx, scaling.cost * scaling.row_A * dy, scaling.cost * scaling.row_G * dz


def _zeros(rows: int, columns: int) -> np.ndarray:
    return np.zeros((1, rows, columns))


@dataclass(frozen=True)
class Embedded:
    """What the embedding ended in: a rough point, or a certificate, in the units of the given program; status (B,) int8."""

    scaling: Equilibrated
    x: Any
    y: Any
    z: Any
    s: Any
    v: Any
    status: Any
    iterations: Any


def solve(given: Program, idle: Any, every: int, limit: int | None = None) -> Embedded:
    """Solve in the homogeneous embedding.

    Args:
        given: Numbers of a batch.
        idle: (B,) instances to leave alone.
        every: See `Complementarity.iterate`.
        limit: Most iterations.
    """
    limit = limit or _LIMIT
    scaling = Equilibrated.of(given)
    program = scaling.program
    xp, cone, m = program.xp, program.cone, given.cone.m
    B = given.batch
    p, b, h = (xp.broadcast_to(a, (B, a.shape[1])) for a in (program.p, program.b, program.h))
    program = Program(xp, cone, program.Q, p, program.A, b, program.G, h)
    e = xp.broadcast_to(xp.new(cone.identity, p)[None], (B, m))
    counter = xp.astype(xp.zeros_like(p[0, 0]), xp.int32) if xp.name in ("jax", "tensorflow") else 0
    tall = xp.zeros_like(p)[:, :, None]  # (B, n, 1): batched factors even where the data are shared

    def factor(W: Any) -> Any:
        weighted = (
            cone.square(xp, W, program.G + xp.zeros_like(h)[:, :, None], inverse=True) if m else program.G + xp.zeros_like(h)[:, :, None]
        )
        return Condensed.of(Program(xp, cone, program.Q + tall, p, program.A, b, program.G, h), weighted)

    def system(F: Condensed, W: Any, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """[[Q, A', G'], [A, 0, 0], [G, 0, -W^2]] (dx, dy, dz) = r, refined."""
        square = lambda a, inverse=False: cone.square(xp, W, a, inverse) if m else a  # noqa: E731

        def again(dx: Any, dy: Any, dz: Any, turn: Any) -> tuple[Any, ...]:
            e_x = r_x - times(xp, program.Q, dx) - times_transposed(xp, program.A, dy) - times_transposed(xp, program.G, dz)
            e_y = r_y - times(xp, program.A, dx) + _DELTA_Y * dy
            e_z = r_z - times(xp, program.G, dx) + square(dz)
            cx, cy = F.solve(e_x + times_transposed(xp, program.G, square(e_z, True)), e_y)
            return dx + cx, dy + cy, dz + square(times(xp, program.G, cx) - e_z, True), turn + 1

        zero = xp.zeros_like(r_x), xp.zeros_like(r_y), xp.zeros_like(r_z)
        return xp.while_loop(lambda _x, _y, _z, turn: turn < 3, again, (*zero, counter))[:3]

    def measure(x: Any, y: Any, z: Any, s: Any, tau: Any, kappa: Any) -> tuple[Any, ...]:
        Qx, Ay, Gz = times(xp, program.Q, x), times_transposed(xp, program.A, y), times_transposed(xp, program.G, z)
        Ax, Gx = times(xp, program.A, x), times(xp, program.G, x)
        xQx, cost, gain = _dot(xp, x, Qx), _dot(xp, p, x), _dot(xp, b, y) + _dot(xp, h, z)
        r_x, r_y, r_z = Qx + Ay + Gz + p * tau, Ax - b * tau, Gx + s - h * tau
        r_t = kappa + cost + gain + xQx / tau
        return r_x, r_y, r_z, r_t, (Qx, Ay, Gz, Ax, Gx, xQx, cost, gain)

    def judge(x: Any, y: Any, z: Any, s: Any, tau: Any, kappa: Any) -> Any:
        """Status codes, -1 for undecided."""
        r_x, r_y, r_z, _, (Qx, Ay, Gz, Ax, Gx, xQx, cost, gain) = measure(x, y, z, s, tau, kappa)
        t = tau[:, 0]
        big = lambda *a: _big(xp, *a)  # noqa: E731
        primal = xp.maximum(big(r_y), big(r_z)) <= _TOLERANCE * (t + xp.maximum(big(Ax, b * tau), big(Gx, s, h * tau)))
        dual = big(r_x) <= _TOLERANCE * (t + big(Qx, Ay, Gz, p * tau))
        value, bound = (0.5 * xQx / tau + cost)[:, 0] / t, (-0.5 * xQx / tau - gain)[:, 0] / t
        gap = xp.abs(value - bound) <= _TOLERANCE * (1.0 + xp.minimum(xp.abs(value), xp.abs(bound)))
        none = (-gain[:, 0] > 0) & (big(Ay + Gz) <= _INFEASIBLE * xp.clip(-gain[:, 0], 1e-300, None))
        free = (-cost[:, 0] > 0) & (
            xp.maximum(big(Qx), xp.maximum(big(Ax), big(Gx + s))) <= _INFEASIBLE * xp.clip(-cost[:, 0], 1e-300, None)
        )
        code = xp.where(none, xp.full_like(t, float(Status.PRIMAL_INFEASIBLE)), xp.full_like(t, -1.0))
        code = xp.where(free, xp.full_like(t, float(Status.DUAL_INFEASIBLE)), code)
        return xp.where(primal & dual & gap, xp.zeros_like(t), code)

    def goes_on(x: Any, y: Any, z: Any, s: Any, tau: Any, kappa: Any, code: Any, iterations: Any, turn: Any) -> Any:
        active = code == -1.0
        if isinstance(turn, int):
            return turn < limit and (turn % every != 0 or bool(xp.any(active)))
        return (turn < limit) & xp.any(active)

    def step(x: Any, y: Any, z: Any, s: Any, tau: Any, kappa: Any, code: Any, iterations: Any, turn: Any) -> tuple[Any, ...]:
        active = code == -1.0
        r_x, r_y, r_z, r_t, (_, _, _, _, _, _, _, _) = measure(x, y, z, s, tau, kappa)
        W: Any = cone.scaling(xp, s, z) if m else None
        F = factor(W)
        mu = (_dot(xp, s, z) + tau * kappa) / (cone.degree + 1)
        x2, y2, z2 = system(F, W, -p, b, h)
        xi = x / tau
        Qxi = times(xp, program.Q, xi)
        curved = x2 - xi
        W2z2 = cone.square(xp, W, z2) if m else z2
        below = -(_dot(xp, curved, times(xp, program.Q, curved)) + _dot(xp, z2, W2z2) + kappa / tau)

        def direction(share: Any, u: Any, u_t: Any) -> tuple[Any, ...]:
            x1, y1, z1 = system(F, W, -share * r_x, -share * r_y, -share * r_z + u)
            above = -share * r_t + u_t / tau - _dot(xp, p + 2.0 * Qxi, x1) - _dot(xp, b, y1) - _dot(xp, h, z1)
            dtau = above / below
            dx, dy, dz = x1 + dtau * x2, y1 + dtau * y2, z1 + dtau * z2
            ds = -u - (cone.square(xp, W, dz) if m else dz)
            return dx, dy, dz, ds, dtau, -(u_t + kappa * dtau) / tau

        def length(dz: Any, ds: Any, dtau: Any, dkappa: Any, share: float) -> Any:
            inverse = xp.maximum(-dtau / tau, -dkappa / kappa)[:, 0]
            if m:
                inverse = xp.maximum(inverse, xp.maximum(cone.inverse_step(xp, z, dz), cone.inverse_step(xp, s, ds)))
            return (1.0 / xp.clip(inverse / share, 1.0, None))[:, None]

        one = xp.ones_like(tau)
        dx, dy, dz, ds, dtau, dkappa = direction(one, s, tau * kappa)
        a = length(dz, ds, dtau, dkappa, 1.0)
        sigma = (1.0 - a) ** 3
        u = cone.corrector(xp, W, s, z, ds, dz, sigma * mu) if m else s
        dx, dy, dz, ds, dtau, dkappa = direction(1.0 - sigma, u, tau * kappa + dtau * dkappa - sigma * mu)
        a = length(dz, ds, dtau, dkappa, 0.99)
        broken = active & ~(F.ok & xp.isfinite(a[:, 0]) & xp.all(xp.isfinite(dx), axis=1) & (a[:, 0] > 1e-10))
        moved = (active & ~broken)[:, None]
        go = lambda value, d: value + xp.where(moved, a * d, xp.zeros_like(d))  # noqa: E731
        x, y, z, s, tau, kappa = go(x, dx), go(y, dy), go(z, dz), go(s, ds), go(tau, dtau), go(kappa, dkappa)
        # the embedding is a cone of points: none of them may wander to zero or infinity
        unit = 1.0 / xp.maximum(xp.maximum(tau, kappa), xp.full_like(tau, _SMALLEST))
        unit = xp.where(moved, unit, one)
        x, y, z, s, tau, kappa = (unit * a_ for a_ in (x, y, z, s, tau, kappa))
        now = judge(x, y, z, s, tau, kappa)
        code = xp.where(active, xp.where(broken, xp.full_like(now, float(Status.INACCURATE)), now), code)
        return x, y, z, s, tau, kappa, code, iterations + xp.astype(active, iterations.dtype), turn + 1

    one = xp.ones_like(p[:, :1])
    start = Condensed.of(Program(xp, cone, program.Q + tall, p, program.A, b, program.G, h), program.G + xp.zeros_like(h)[:, :, None])
    x, y = start.solve(-p + times_transposed(xp, program.G, h), b)
    z = times(xp, program.G, x) - h
    s = -z
    if m:
        out, back = cone.shift(xp, z)[:, None], cone.shift(xp, s)[:, None]
        zero = xp.zeros_like(out)
        s, z = s + e * xp.where(back > -1e-8, back + 1.0, zero), z + e * xp.where(out > -1e-8, out + 1.0, zero)
    bad = ~xp.all(xp.isfinite(x), axis=1) | ~start.ok
    x, y = select(xp, bad, xp.zeros_like(x), x), select(xp, bad, xp.zeros_like(y), y)
    z, s = select(xp, bad, e + xp.zeros_like(z), z), select(xp, bad, e + xp.zeros_like(s), s)
    code = xp.where(idle, xp.full_like(one[:, 0], float(Status.FAILED)), judge(x, y, z, s, one, one))
    iterations = xp.astype(xp.zeros_like(one[:, 0]), xp.int32)
    x, y, z, s, tau, _, code, iterations, _ = xp.while_loop(goes_on, step, (x, y, z, s, one, one, code, iterations, counter))
    certain = (code == 1.0) | (code == 2.0)
    t = xp.where(certain, one[:, 0], tau[:, 0])[:, None]
    active = z > s
    x, y, z, s = scaling.column * x / t, scaling.cost * scaling.row_A * y / t, scaling.cost * scaling.row_G * z / t, s / t / scaling.row_G
    code = xp.where(code == -1.0, xp.full_like(code, float(Status.ITERATION_LIMIT)), code)
    status = xp.where(certain & ~certified(given, x, y, z, s, code), xp.full_like(code, float(Status.INACCURATE)), code)
    return Embedded(scaling, x, y, z, s, cone.join_parts(xp, z, s, active), xp.astype(status, xp.int8), iterations)


def certified(program: Program, x: Any, y: Any, z: Any, s: Any, code: Any) -> Any:
    """(B,), whether a certificate of infeasibility (code 1: primal, 2: dual) holds on the data.

    Primal infeasible: z in K, A'y + G'z = 0, b'y + h'z < 0. Dual infeasible: Qx = 0, Ax = 0, -Gx in K, p'x < 0.
    """
    xp = program.xp
    gain, cost = -(_dot(xp, program.b, y) + _dot(xp, program.h, z)), -_dot(xp, program.p, x)
    push = times_transposed(xp, program.A, y) + times_transposed(xp, program.G, z)
    primal = (gain[:, 0] > 0) & (_big(xp, push) <= _CERTAIN * (gain[:, 0] + _big(xp, y, z)))
    drift = _big(xp, times(xp, program.Q, x), times(xp, program.A, x), times(xp, program.G, x) + s)
    return xp.where(code == 1.0, primal, (cost[:, 0] > 0) & (drift <= _CERTAIN * (cost[:, 0] + _big(xp, x))))


def _dot(xp: Any, a: Any, b: Any) -> Any:
    return xp.sum(a * b, axis=1, keepdims=True)


def _big(xp: Any, *terms: Any) -> Any:
    """(B,), the largest magnitude in the terms."""
    joined = xp.concat([xp.abs(t) for t in terms], axis=1)
    return xp.max(joined, axis=1) if joined.shape[1] else 0.0 * xp.sum(joined, axis=1)
