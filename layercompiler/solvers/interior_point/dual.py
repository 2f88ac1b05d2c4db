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
from functools import cache
from typing import Any

import numpy as np

from layercompiler.solvers.interior_point.program import (
    Point,
    Program,
    cholesky_solve,
    missing,
    point,
    select,
    times,
    times_transposed,
    triangular,
    unsolved,
)
from layercompiler.solvers.interior_point.symmetric import Symmetric

EXACT = 1e-12  # relative residual that needs no further round
_FINEST = 1e-13  # relative remainder of a linear system that needs no further refinement
_ROUNDING = 1e-15
_REFINEMENTS = 3
_SHARE = 0.995  # of the way to the boundary
# Before each try of a Newton step: tolerance where the active rows show, tolerance where they do not, and most iterations.
_ROUNDS = ((1e-2, 1e-9, 14), (0.0, 1e-11, 30))
_CURVED_ROUNDS = ((1e-4, 1e-9, 12), (1e-7, 1e-9, 12), (0.0, 1e-11, 25))
_RIDGE = 1e-13  # on the unit diagonal of R


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


@dataclass(frozen=True)
class Complementarity:
    """The problem s = q + R z in units where R has a unit diagonal (per cone) and q a largest entry of one."""

    xp: Any
    cone: Symmetric
    R: Any
    q: Any
    row: Any  # z = scale z_here / row... see `unscale`
    scale: Any

    @classmethod
    def of(cls, form: Elimination, q: Any) -> Complementarity:
        """Scale."""
        xp, cone = form.program.xp, form.program.cone
        diagonal = xp.linalg.diagonal(form.R)
        linear, parts = cone.split(diagonal)
        parts = [xp.max(p, axis=2, keepdims=True) + xp.zeros_like(p) for p in parts]
        row = 1.0 / xp.sqrt(xp.clip(cone.join(xp, linear, parts), 1e-30, None))
        q = q * row
        scale = xp.clip(xp.max(xp.abs(q), axis=1), 1e-30, None)[:, None]
        R = xp.add_diagonal(form.R * (row[:, :, None] * row[:, None, :]), xp.full_like(row, _RIDGE))
        return cls(xp, cone, R, q / scale, row, scale)

    def take(self, index: Any) -> Complementarity:
        """The instances `index`."""
        arrays = (a if a.shape[0] == 1 else a[index] for a in (self.R, self.q, self.row, self.scale))
        return Complementarity(self.xp, self.cone, *arrays)

    def v(self, z: Any, s: Any) -> Any:
        """Z - s in the units of the program, with the active set that shows in these units."""
        return self.cone.join_parts(self.xp, self.scale * z * self.row, self.scale * s / self.row, z > s)

    def start(self) -> tuple[Any, Any, Any]:
        """(z, s, dead): the solution of s = q + R z with z = -s, moved into the cone."""
        xp, cone = self.xp, self.cone
        L, ok = xp.cholesky(xp.add_diagonal(self.R, xp.ones_like(self.row)))
        z = cholesky_solve(xp, L, -self.q)
        e = xp.new(cone.identity, z)
        out, back = cone.shift(xp, z)[:, None], cone.shift(xp, -z)[:, None]
        zero = xp.zeros_like(out)
        s = -z + e * (xp.where(back > -1e-8, back + 1.0, zero))
        z = z + e * (xp.where(out > -1e-8, out + 1.0, zero))
        dead = ~ok | ~xp.all(xp.isfinite(z), axis=1)
        return select(xp, dead, e + xp.zeros_like(z), z), select(xp, dead, e + xp.zeros_like(z), s), dead

    def iterate(self, state: tuple[Any, ...], early: Any, tolerance: Any, limit: Any, every: int, least: int = 0) -> tuple[Any, ...]:
        """Predictor-corrector steps until at most `least` instances go on.

        Args:
            state: z and s (B, m); idle (B,) what is left alone; iterations (B,).
            early: Tolerance of s'z / degree and of s - q - R z for instances whose active rows show.
            tolerance: The same for the others.
            limit: Most iterations.
            every: Whether all are done is asked only then: on a device a question costs a synchronization.
            least: See above.

        Returns:
            (z, s, active, iterations, number of steps); an instance that no step could be taken for is not active.
        """
        xp, cone, R = self.xp, self.cone, self.R
        z, s, idle, iterations = state
        r = self.q + times(xp, R, z) - s
        move = _mover(xp, cone)

        def goes_on(z: Any, s: Any, r: Any, active: Any, iterations: Any, turn: Any) -> Any:
            if isinstance(turn, int):
                return turn < limit and (turn % every != 0 or int(xp.sum(active)) > least)
            return (turn < limit) & xp.any(active)

        def step(z: Any, s: Any, r: Any, active: Any, iterations: Any, turn: Any) -> tuple[Any, ...]:
            return *move(R, z, s, r, active, iterations, early, tolerance), turn + 1

        turn = xp.zeros_like(iterations[0]) if xp.name in ("jax", "tensorflow") else 0
        active = ~idle & ~(_distance(xp, cone, z, s, r) < tolerance)
        z, s, _, active, iterations, turn = xp.while_loop(goes_on, step, (z, s, r, active, iterations, turn))
        return z, s, active, iterations, turn

    def settle(self, z: Any, s: Any, idle: Any, count: Any, early: Any, tolerance: Any, limit: int, every: int) -> tuple[Any, ...]:
        """`iterate` to the end, halving the batch as instances are done: (z, s, iterations)."""
        xp, problem, rows, whole = self.xp, self, None, None
        while True:
            half = len(z) // 2
            z, s, active, count, turns = problem.iterate((z, s, idle, count), early, tolerance, limit, every, half)
            here = (z, s, count)
            whole = here if rows is None else tuple(put(xp, a, rows, b) for a, b in zip(whole, here, strict=True))  # type: ignore[arg-type]
            limit -= turns
            if limit <= 0 or not bool(xp.any(active)):
                return whole
            first = xp.argsort(xp.astype(~active, xp.int8))[:half]  # sizes that do not depend on numbers
            rows = first if rows is None else rows[first]
            problem, z, s, idle, count = problem.take(first), z[first], s[first], ~active[first], count[first]


@cache
def _mover(xp: Any, cone: Symmetric) -> Any:
    """The function of one step; in torch recorded once, since Python would cost as much as the numbers."""
    step = _curved_step if cone.groups else _flat_step

    def move(*held: Any) -> tuple[Any, ...]:
        return step(xp, cone, *held)

    return xp.trace(move) if xp.name == "torch" else move


def _distance(xp: Any, cone: Symmetric, z: Any, s: Any, r: Any) -> Any:
    """(B,), how far from a solution."""
    return xp.maximum(xp.sum(s * z, axis=1) / cone.degree, xp.max(xp.abs(r), axis=1))


def _flat_step(xp: Any, cone: Symmetric, R: Any, z: Any, s: Any, r: Any, active: Any, count: Any, early: Any, tolerance: Any) -> Any:
    """A step on the orthant, in the relative steps f = -dz / z and g = -ds / s; g = 1 - f for the predictor.

    Instances that are done take steps of length zero; where the factorization fails numbers stop to be numbers.
    """
    L, ok = xp.cholesky(xp.add_diagonal(R, s / z))
    f = cholesky_solve(xp, L, s + r) / z
    g = 1.0 - f
    a = 1.0 / xp.clip(xp.max(xp.maximum(f, g), axis=1, keepdims=True), 1.0, None)
    sz = s * z
    mu = xp.sum(sz, axis=1, keepdims=True)
    sigma = (xp.sum(sz * (1.0 - a * f) * (1.0 - a * g), axis=1, keepdims=True) / mu) ** 3
    e = 1.0 + f * g - (sigma * mu / cone.degree) / sz
    f = cholesky_solve(xp, L, s * e + r) / z
    g = e - f
    a = _SHARE / xp.clip(xp.max(xp.maximum(f, g), axis=1, keepdims=True), _SHARE, None)
    active = active & ok & (a > 0)[:, 0]  # no where it is not a number
    a = xp.where(active[:, None], a, xp.zeros_like(a))
    f, g = 1.0 - a * f, 1.0 - a * g
    z, s, r = z * f, s * g, (1.0 - a) * r
    left = _distance(xp, cone, z, s, r)
    done = (left < tolerance) | ((left < early) & cone.settled(xp, f, g))
    return z, s, r, active & ~done, count + xp.astype(active, count.dtype)


def _curved_step(xp: Any, cone: Symmetric, R: Any, z: Any, s: Any, r: Any, active: Any, count: Any, early: Any, tolerance: Any) -> Any:
    """A step on any cone."""
    mu = xp.sum(s * z, axis=1, keepdims=True)
    W = cone.scaling(xp, s, z)
    L, ok = xp.cholesky(cone.add_square(xp, R, W))
    dz = -cholesky_solve(xp, L, s + r)
    ds = -s - cone.square(xp, W, dz)
    a = _length(xp, cone, z, s, dz, ds, 1.0)
    sigma = (xp.sum((s + a * ds) * (z + a * dz), axis=1, keepdims=True) / mu) ** 3
    u = cone.corrector(xp, W, s, z, ds, dz, sigma * mu / cone.degree)
    dz = -cholesky_solve(xp, L, u + r)
    ds = -u - cone.square(xp, W, dz)
    a = _length(xp, cone, z, s, dz, ds, _SHARE)
    active = active & ok & (mu > 0)[:, 0] & (a > 0)[:, 0]  # not where it is not a number
    go = active[:, None]
    shows = cone.settled(xp, dz / z, ds / s)
    z, s, r = xp.where(go, z + a * dz, z), xp.where(go, s + a * ds, s), xp.where(go, (1.0 - a) * r, r)
    left = _distance(xp, cone, z, s, r)
    done = (left < tolerance) | ((left < early) & shows)
    return z, s, r, active & ~done, count + xp.astype(active, count.dtype)


def _length(xp: Any, cone: Symmetric, z: Any, s: Any, dz: Any, ds: Any, share: float) -> Any:
    """(B, 1), the share of the way to the boundary, at most one."""
    inverse = xp.maximum(cone.inverse_step(xp, z, dz), cone.inverse_step(xp, s, ds))
    return (1.0 / xp.clip(inverse / share, 1.0, None))[:, None]


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
    problem = Complementarity.of(form, q)
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
    return Point(*best[:4]), Linearized(whole, *best[4:], whole.ok), iterations


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


def put(xp: Any, a: Any, index: Any, value: Any) -> Any:
    """A copy of a with rows `index` replaced (frameworks whose arrays can be written to)."""
    out = xp.asarray(a, copy=True)
    out[index] = value
    return out
