"""The dual form: x and y are eliminated once, and a complementarity problem of the order of the inequalities remains.

With Q = L L', M = Q^-1 less its part on the equalities, R = G M G' (m, m):

    s = q + R z,   s in K, z in K, s'z = 0.

One iteration is one Cholesky factorization of R + W^2, W the Nesterov-Todd scaling, and no product with the data. It stops early, once the
rows show which of z and s vanishes: one or two Newton steps on the residual map (for polyhedra: solving at the active set) then reach
rounding. At v = z - s, with D the derivative of the projection and C its root, such a step is

    (C R C + I - D) w = -C q,   z = C w,   s = q + R z,

exact wherever D stays the same, since projections onto cones are positively homogeneous: Proj(v) = D v. The same factor solves every
linear system of the derivative.

Needs Q positive definite and A of full rank; pays where m is at most about 2n. Instances that lack this are left to the primal form.
Source: Mehrotra 1992; Amos and Kolter 2017 (the elimination); Vandenberghe 2010 (the scaling); Busseti, Moursi and Boyd 2019 (the step);
El-Bakry, Tapia and Zhang 1994 (which rows are active).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.solvers.interior_point.complementarity import Complementarity
from layercompiler.solvers.interior_point.program import (
    Point,
    Program,
    cholesky_solve,
    missing,
    point,
    put,
    select,
    times,
    times_transposed,
    triangular,
    unsolved,
)

EXACT = 1e-12  # relative residual that needs no further round
_FINEST = 1e-13  # relative remainder of a linear system that needs no further refinement
_ROUNDING = 1e-15
_REFINEMENTS = 3
# Before each try of a Newton step: tolerance where the active rows show, tolerance where they do not, and most iterations.
_ROUNDS = ((1e-2, 1e-9, 14), (0.0, 1e-11, 30))
_CURVED_ROUNDS = ((1e-4, 1e-9, 12), (1e-7, 1e-9, 12), (0.0, 1e-11, 25))


@dataclass(frozen=True)
class Elimination:
    """What eliminating x and y leaves: factors that every right-hand side goes through; leading size 1 where Q, A, G are shared."""

    program: Program
    L: Any
    W_A: Any  # L^-1 A'
    W_G: Any  # L^-1 G'
    La: Any  # factor of W_A'W_A
    V: Any  # La^-1 W_A'W_G
    R: Any
    ok: Any

    @classmethod
    def of(cls, program: Program) -> Elimination:
        """Factor Q, and the equalities in it."""
        xp, k, m = program.xp, program.A.shape[1], program.G.shape[1]
        L, ok = xp.cholesky(program.Q)
        if not k:
            W_G = triangular(xp, L, xp.matrix_transpose(program.G))
            R = xp.matmul(xp.matrix_transpose(W_G), W_G)
            return cls(program, L, L[:, :, :0], W_G, L[:, :0, :0], W_G[:, :0], R, ok)
        if program.A.shape[0] == program.G.shape[0] and m:
            W = triangular(xp, L, xp.matrix_transpose(xp.concat([program.A, program.G], axis=1)))
            W_A, W_G = W[:, :, :k], W[:, :, k:]
        else:
            W_A, W_G = (triangular(xp, L, xp.matrix_transpose(M)) for M in (program.A, program.G))
        R = xp.matmul(xp.matrix_transpose(W_G), W_G)
        S = xp.matmul(xp.matrix_transpose(W_A), W_A)
        La, full = xp.cholesky(S)
        # the pivots tell how far a row of A is from the span of those before it
        full = full & (xp.min(xp.linalg.diagonal(La) ** 2 / (xp.linalg.diagonal(S) + 1e-300), axis=-1) > 1e-12)
        V = triangular(xp, La, xp.matmul(xp.matrix_transpose(W_A), W_G))
        return cls(program, L, W_A, W_G, La, V, R - xp.matmul(xp.matrix_transpose(V), V), ok & full)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What a later call needs to solve with these factors."""
        return self.L, self.W_A, self.W_G, self.La, self.V

    def take(self, index: Any, program: Program) -> Elimination:
        """The instances `index`."""
        return Elimination(program, *(a if a.shape[0] == 1 else a[index] for a in (*self.arrays, self.R, self.ok)))

    def reduce(self, p: Any, b: Any, h: Any) -> tuple[Any, Any, Any]:
        """(u, t, q) of a right-hand side."""
        xp = self.program.xp
        u = triangular(xp, self.L, p)
        q = times_transposed(xp, self.W_G, u) + h
        if not b.shape[1]:
            return u, None, q
        t = triangular(xp, self.La, times_transposed(xp, self.W_A, u) + b)
        return u, t, q - times_transposed(xp, self.V, t)

    def expand(self, u: Any, t: Any, z: Any) -> tuple[Any, Any]:
        """X and y for given z."""
        xp = self.program.xp
        total = u + times(xp, self.W_G, z)
        if t is None:
            y = z[:, :0]
        else:
            y = triangular(xp, self.La, -t - times(xp, self.V, z), transposed=True)
            total = total + times(xp, self.W_A, y)
        return -triangular(xp, self.L, total, transposed=True), y


@dataclass(frozen=True)
class Linearized:
    """The factored system of the residual map at v, in the dual form."""

    form: Elimination
    v: Any
    Lt: Any  # factor of C R C + I - D
    ok: Any

    @classmethod
    def at(cls, form: Elimination, v: Any) -> Linearized:
        """Factor at v."""
        xp, cone = form.program.xp, form.program.cone
        if not cone.m:
            return cls(form, v, xp.matmul(v[:, :, None], v[:, None, :]), form.ok)
        D = cone.derivative(xp, v)
        if cone.groups:
            C = D.map(xp.sqrt)
            R = form.R + xp.zeros_like(v)[:, :, None]
            CR = cone.apply(xp, C, R)
            T = cone.apply(xp, C, xp.matrix_transpose(CR)) + cone.apply(xp, D.map(lambda d: 1.0 - d), xp.eye_like(v, cone.m) + 0.0 * R)
            T = xp.add_diagonal(T, 1e-15 * xp.abs(xp.linalg.diagonal(T)))
        else:
            act = D.linear
            T = xp.add_diagonal(form.R * (act[:, :, None] * act[:, None, :]), 1.0 - act)
        Lt, ok = xp.cholesky(T)
        return cls(form, v, Lt, ok & form.ok)

    def solve(self, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """(dx, dy, dz) with Q dx + A'dy + G'dz = r_x, A dx = r_y, G dx + ds = r_z, dz = D dv, ds = dz - dv."""
        xp, cone = self.form.program.xp, self.form.program.cone
        u, t, q = self.form.reduce(-r_x, r_y, r_z)
        if not cone.m:
            return *self.form.expand(u, t, q), q
        C = cone.derivative(xp, self.v)
        C = C.map(xp.sqrt) if cone.groups else C
        dz = cone.apply(xp, C, cholesky_solve(xp, self.Lt, -cone.apply(xp, C, q)))
        return *self.form.expand(u, t, dz), dz

    def refined(self, right: tuple[Any, Any, Any], turns: Any = 1, finest: float = _FINEST) -> tuple[tuple[Any, Any, Any], Any]:
        """(`solve` of a right-hand side and, up to `turns` times, of what is missing on the data; the relative remainder (B,))."""
        program, xp = self.form.program, self.form.program.xp

        def goes_on(dx: Any, dy: Any, dz: Any, r_x: Any, r_y: Any, r_z: Any, off: Any, turn: Any) -> Any:
            more = xp.any((off > finest) & self.ok)
            return turn < turns and bool(more) if isinstance(turn, int) else (turn < turns) & more

        def again(dx: Any, dy: Any, dz: Any, r_x: Any, r_y: Any, r_z: Any, off: Any, turn: Any) -> tuple[Any, ...]:
            step = self.solve(r_x, r_y, r_z)
            step = step if isinstance(turn, int) and turn == 0 else tuple(a + b for a, b in zip((dx, dy, dz), step, strict=True))
            if isinstance(turn, int) and turns == 1:  # nobody asks
                return *step, r_x, r_y, r_z, off, turn + 1
            left = missing(program, self.v, right, step)  # type: ignore[arg-type]
            return *step, *left, unsolved(xp, left, right), turn + 1

        zero = tuple(xp.zeros_like(r) for r in right)
        turn = xp.zeros_like(right[0][0, 0]) if xp.name in ("jax", "tensorflow") else 0
        found = xp.while_loop(goes_on, again, (*zero, *right, xp.full_like(right[0][:, 0], xp.inf), turn))
        return found[:3], found[6]

    def newton(self, turns: Any = 1) -> Point:
        """The Newton step from v on the residual map, its linear system solved and refined `turns` times."""
        program = self.form.program
        zero = program.xp.sum(self.v, axis=1, keepdims=True) * 0.0
        (x, y, z), _ = self.refined((zero - program.p, zero + program.b, zero + program.h), turns, _ROUNDING)
        return point(program, x, y, program.cone.join_parts(program.xp, z, program.h - times(program.xp, program.G, x), self.v > 0))


def solve(program: Program, compact: bool, every: int) -> tuple[Point, Linearized, Any]:
    """Solve in the dual form.

    Args:
        program: Numbers of a batch.
        compact: Whether instances that are not done may be collected into a smaller batch (not where shapes must be known beforehand).
        every: See `Complementarity.iterate`.

    Returns:
        The points (residual infinite where the form failed), the linearization that led to them, and iterations (B,).
    """
    xp, cone, B = program.xp, program.cone, program.batch
    form = Elimination.of(program)
    _, _, q = form.reduce(program.p, program.b, program.h)
    q = xp.broadcast_to(q, (B, cone.m))
    zeros = xp.sum(q, axis=1) * 0.0
    iterations = xp.astype(xp.where(xp.isfinite(zeros), zeros, xp.zeros_like(zeros)), xp.int32)
    if not cone.m:
        at = Linearized.at(form, q)
        return _usable(xp, at.newton(), at.ok), at, iterations
    problem = Complementarity.of(xp, cone, form.R, q)
    z, s, dead = problem.start()
    run = _by_compaction if compact else _in_one_loop
    return run(form, problem, z, s, dead | ~form.ok, iterations, every)


def _by_compaction(
    form: Elimination, problem: Complementarity, z: Any, s: Any, dead: Any, iterations: Any, every: int
) -> tuple[Point, Linearized, Any]:
    """Rounds on what is not done yet, as ever smaller batches."""
    xp, whole = form.program.xp, form
    best: tuple[Any, ...] = ()  # x, y, v, residual; v and the factor of the linearization
    index = None

    def record(rows: Any, found: Point, here: Linearized) -> None:
        nonlocal best
        new = (*found.arrays, here.v, here.Lt)
        if not best:
            best = new
            return
        keep = xp.nonzero(found.residual < best[3][rows])[0]
        best = tuple(put(xp, a, rows[keep], b[keep]) for a, b in zip(best, new, strict=True))

    for early, tolerance, limit in _CURVED_ROUNDS if problem.cone.groups else _ROUNDS:
        count = iterations if index is None else iterations[index]
        tolerances = (xp.full_like(z[0, 0], early), xp.full_like(z[0, 0], tolerance))
        z, s, count = problem.settle(z, s, dead, count, *tolerances, limit, every)
        iterations = count if index is None else put(xp, iterations, index, count)
        here = Linearized.at(form, problem.v(z, s))
        found = _usable(xp, here.newton(), here.ok)
        record(index, found, here)
        left = xp.nonzero((found.residual > EXACT) & ~dead)[0]
        if not len(left):
            break
        form = form.take(left, form.program.take(left))
        here = Linearized.at(form, found.v[left])
        index = left if index is None else index[left]
        record(index, _usable(xp, here.newton(_REFINEMENTS), here.ok), here)
        off = best[3][index] > EXACT
        if not bool(xp.any(off)):
            break
        keep = xp.nonzero(off)[0]
        index, left = index[keep], left[keep]
        z, s, dead, problem, form = z[left], s[left], dead[left], problem.take(left), form.take(keep, form.program.take(keep))
    return Point(*best[:4]), Linearized(whole, best[4], best[5], whole.ok), iterations


def _in_one_loop(
    form: Elimination, problem: Complementarity, z: Any, s: Any, dead: Any, iterations: Any, every: int
) -> tuple[Point, Linearized, Any]:
    """The same rounds on the whole batch, for compilers and devices: the loop's body is compiled once."""
    xp = form.program.xp
    eager = xp.name not in ("jax", "tensorflow")
    rounds = np.array(_CURVED_ROUNDS if problem.cone.groups else _ROUNDS)
    early, tolerances = (xp.new(a, z) for a in rounds.T[:2])
    limits = rounds[:, 2].astype(np.int32)
    limits = limits if eager else xp.astype(xp.new(limits), xp.int32)

    def goes_on(z: Any, s: Any, dead: Any, done: Any, iterations: Any, x: Any, y: Any, v: Any, residual: Any, *rest: Any) -> Any:
        more = xp.any(~done)
        return (rest[-1] < 2 * len(rounds)) and bool(more) if eager else (rest[-1] < 2 * len(rounds)) & more

    def body(z: Any, s: Any, dead: Any, done: Any, iterations: Any, x: Any, y: Any, v: Any, residual: Any, *rest: Any) -> tuple[Any, ...]:
        at, Lt, turn = rest
        fresh, k = turn % 2 == 0, turn // 2  # every other turn only repeats the Newton step
        limit = (int(limits[k]) if fresh else 0) if eager else xp.where(fresh, limits[k], xp.zeros_like(limits[k]))
        z, s, _, iterations, _ = problem.iterate((z, s, done, iterations), early[k], tolerances[k], limit, every)
        start = problem.v(z, s)
        here = Linearized.at(form, (start if fresh else v) if eager else xp.where(fresh, start, v))
        turns = (1 if fresh else _REFINEMENTS) if eager else xp.where(fresh, xp.ones_like(turn), _REFINEMENTS * xp.ones_like(turn))
        found = _usable(xp, here.newton(turns), here.ok)
        gain = (found.residual < residual) & ~done
        best = found.where(xp, gain, Point(x, y, v, residual))
        at, Lt = select(xp, gain, here.v, at), select(xp, gain, here.Lt, Lt)
        return z, s, dead, done | (best.residual <= EXACT) | dead, iterations, *best.arrays, at, Lt, turn + 1

    turn = 0 if eager else xp.zeros_like(iterations[0])
    n, k = form.L.shape[-1], form.La.shape[-1]
    worst = xp.full_like(z[:, 0], xp.inf)
    x, y = xp.broadcast_to(xp.zeros_like(z[:, :1]), (len(z), n)), xp.broadcast_to(xp.zeros_like(z[:, :1]), (len(z), k))
    none = xp.zeros_like(z)
    state = (z, s, dead, dead, iterations, x, y, none, worst, none, problem.R * 0.0 + none[:, :, None], turn)
    _, _, _, _, iterations, x, y, v, residual, at, Lt, _ = xp.while_loop(goes_on, body, state)
    return Point(x, y, v, residual), Linearized(form, at, Lt, form.ok), iterations


def _usable(xp: Any, found: Point, ok: Any) -> Point:
    """Points with an infinite residual instead of numbers that are not finite."""
    good = ok & xp.isfinite(found.residual) & xp.all(xp.isfinite(found.x), axis=1)
    zero = lambda a: select(xp, good, a, xp.zeros_like(a))  # noqa: E731
    return Point(zero(found.x), zero(found.y), zero(found.v), xp.where(good, found.residual, xp.full_like(found.residual, xp.inf)))
