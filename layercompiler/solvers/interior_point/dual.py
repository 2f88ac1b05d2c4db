"""The dual form: x and y are eliminated once, and a complementarity problem of the order of the inequalities remains.

With Q = L L', M = Q^-1 less its part on the equalities, R = G M G' (m, m):

    s = q + R z,   s in K, z in K, s'z = 0.

On the orthant block principal pivoting solves nearly all instances with factors of the active rows alone. The others, and all with
second-order cones, take an interior point: one iteration is one Cholesky factorization of R + W^2, W the Nesterov-Todd scaling, and no
product with the data. It stops early, once the rows show which of z and s vanishes: one or two Newton steps on the residual map (for
polyhedra: pivoting from there) then reach rounding. At v = z - s, with D the derivative of the projection and C its root, such a step is

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

from layercompiler.solvers.interior_point import small
from layercompiler.solvers.interior_point.complementarity import Complementarity, State, traced
from layercompiler.solvers.interior_point.elimination import Elimination, Linearized, unordered
from layercompiler.solvers.interior_point.pivoting import pivot, pivot_all
from layercompiler.solvers.interior_point.program import Point, Program, put, select, size_for, vertex
from layercompiler.solvers.interior_point.sweeping import run, sweep
from layercompiler.solvers.interior_point.symmetric import Symmetric

EXACT = 1e-12  # relative residual that needs no further round
POOR = 1e-10  # above it another form is tried
_REFINEMENTS = 3
_NARROW = 64  # rows, up to where the dual active-set method alone is about as fast as block pivoting
# Before each try of a Newton step: tolerance where the active rows show, tolerance where they do not, and most iterations.
_ROUNDS = ((1e-2, 1e-9, 20), (0.0, 1e-11, 30))
_CURVED_ROUNDS = ((1e-4, 1e-9, 12), (1e-7, 1e-9, 12), (0.0, 1e-11, 25))


@dataclass(frozen=True)
class Found:
    """What the dual form found.

    Attributes:
        point: Residual infinite where the form failed.
        at: The linearization that led to it.
        iterations: (B,).
        exact: Whether it is known that all residuals are at most `EXACT`.
    """

    point: Point
    at: Linearized | small.Inverse
    iterations: Any
    exact: bool = False


def solve(program: Program, compact: bool, every: int, near: bool = True) -> Found:
    """Solve in the dual form.

    Args:
        program: Numbers of a batch.
        compact: Whether instances that are not done may be collected into a smaller batch (not where shapes must be known beforehand).
        every: See `Complementarity.iterate`.
        near: Whether the numbers are near the core, so that many small steps are better than few large ones.
    """
    xp, cone, B = program.xp, program.cone, program.batch
    if not cone.m:
        form = Elimination.of(program)
        zeros = xp.zeros_like(xp.broadcast_to(program.h, (B, 0)))
        at = Linearized.at(form, zeros)
        return Found(at.newton(), at, xp.astype(xp.zeros_like(program.p[:, 0]), xp.int32))
    if not compact:
        return _swept(program) if near and not cone.groups else _in_one_loop(program, every)
    if cone.groups:
        return _by_compaction(program, every)
    return (_by_sweeps if small.is_small(program) else _by_pivoting)(program)


def _prepare(xp: Any, cone: Symmetric, *numbers: Any) -> tuple[Any, ...]:
    """Arrays of (form, R, ok, u, t, q, scale)."""
    program = Program(xp, cone, *numbers)
    form = Elimination.of(program)
    u, t, q = form.reduce(program.p, program.b, program.h)
    q = xp.broadcast_to(q, (program.batch, cone.m))
    problem = Complementarity.of(xp, cone, form.R, q, form.row)
    return *form.arrays, form.R, form.ok, u, t, problem.q, problem.scale


def _begin(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """Arrays of the state in which an interior point starts."""
    R, q, row, scale, ok, count = held
    return Complementarity(xp, cone, R, q, row, scale).start(ok, count).arrays


def _arrive(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """The Newton step from a first guess: arrays of the point, whether all are exact, and more.

    On the orthant the guess is what `Linearized` holds besides the form, and what is missing at the point follows; with other cones it is
    z and s, and what `Linearized` holds besides the form follows.
    """
    numbers, (*factors, row, R, ok), (u, t, q, scale, *at) = held[:6], held[6:14], held[14:]
    form = Elimination(Program(xp, cone, *numbers), *factors, row, R, ok)  # type: ignore[call-arg]
    if not cone.groups:
        here = Linearized(form, *at)  # type: ignore[call-arg]
        found, left = vertex(form.program, here.solve_reduced(u, t, q * scale), here.v > 0, here.ok)
        return *found.arrays, xp.all(found.residual <= EXACT), *left
    here = Linearized.at(form, Complementarity(xp, cone, R, q, row, scale).v(*at))
    found = here.arrive(here.solve_reduced(u, t, q * scale))
    return *found.arrays, xp.all(found.residual <= EXACT), here.v, here.order, here.Lt


def _again(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """On the orthant, a Newton step more for points that are not exact: arrays of the better points, and whether all are exact now.

    What is missing at the points comes after them, and at last the arguments of `Linearized`, or of `small.Inverse`, besides the program.
    """
    numbers, (x, y, v, residual), left, able, at = held[:6], held[6:10], held[10:13], held[13], held[14:]
    program = Program(xp, cone, *numbers)
    if len(at) == 5:
        here: Linearized | small.Inverse = small.Inverse(program, v, *at)
    else:
        here = Linearized(Elimination(program, *at[:8]), *at[8:])  # type: ignore[call-arg]
    step = (x, y, xp.clip(v, 0.0, None))
    found = here.arrive(tuple(a + b for a, b in zip(step, here.solve(*left), strict=True)))  # type: ignore[arg-type]
    better = able & ~(residual <= EXACT) & (found.residual < residual)
    best = found.where(xp, better, Point(x, y, v, residual))
    return *best.arrays, xp.all(best.residual <= EXACT)


def _sides(xp: Any, active: Any, like: Any) -> Any:
    """A v (B, m) with these active rows."""
    return xp.where(active, xp.ones_like(like), -xp.ones_like(like))


def _by_sweeps(program: Program) -> Found:
    """Small ones: the dual active-set method, and refinement."""
    xp, cone, numbers = program.xp, program.cone, program.arrays
    Y, inverse, unit, ok, *state = traced(small.start, xp, cone)(*numbers)
    Y, inverse = xp.dense(Y), xp.dense(inverse)
    tableau, active, sure, count = run(xp, tuple(state))
    *best, exact, r_x, r_y, r_z, on = traced(small.finish, xp, cone)(tableau, active, Y, inverse, unit, ok, *numbers)
    able = ok & sure[:, 0]
    if not bool(exact):
        *best, exact = traced(_again, xp, cone)(*numbers, *best, r_x, r_y, r_z, able, inverse, Y, tableau, on, ok)
    here = small.Inverse(program, best[2], inverse, Y, tableau, on, ok)
    return Found(Point(*best), here, count, True) if bool(exact) else _polished(xp, best, here, able, count)


def _polished(xp: Any, best: list[Any], here: Any, able: Any, count: Any) -> Found:
    """What was found, refined where it is not exact and `able` (B,)."""
    near = xp.nonzero(~(best[3] <= EXACT) & able)[0]
    if len(near):
        found = here.take(near).newton(_REFINEMENTS)
        keep = xp.nonzero(found.residual < best[3][near])[0]
        best = [put(xp, a, near[keep], b[keep]) for a, b in zip(best, found.arrays, strict=True)]
    return Found(Point(*best), here, count)


def _by_pivoting(program: Program) -> Found:
    """On the orthant: block pivoting, the dual active-set method for what it leaves, and refinement."""
    xp, cone, numbers = program.xp, program.cone, program.arrays
    held = traced(_prepare, xp, cone)(*numbers)
    form, q = Elimination(program, *held[:8]), held[10]
    able = xp.broadcast_to(form.ok, (program.batch,))
    active, sure, count = (sweep if cone.m <= _NARROW else _pivoted)(xp, form.R, q, able)
    here = Linearized.collected(form, _sides(xp, active, q))
    at = (here.v, here.order, here.Lt, here.ok)
    *best, exact, r_x, r_y, r_z = traced(_arrive, xp, cone)(*numbers, *held[:12], *at)
    if not bool(exact):
        *best, exact = traced(_again, xp, cone)(*numbers, *best, r_x, r_y, r_z, able & sure, *held[:8], *at)
    return Found(Point(*best), here, count, True) if bool(exact) else _polished(xp, best, here, able & sure, count)


def _pivoted(xp: Any, R: Any, q: Any, able: Any) -> tuple[Any, Any, Any]:
    """See `pivot`; the dual active-set method for what it leaves."""
    active, sure, count = pivot(xp, R, q, q < 0, able)
    left = xp.nonzero(~sure & able)[0]
    if not len(left):
        return active, sure, count
    more = size_for(len(left), 4) - len(left)
    wide = xp.concat([left, xp.broadcast_to(left[:1], (more,))])
    found = sweep(xp, R if R.shape[0] == 1 else R[wide], q[wide], able[wide])
    rows, known, steps = (a[: len(left)] for a in found)
    return put(xp, active, left, rows), put(xp, sure, left, known), put(xp, count, left, count[left] + steps)


def _swept(program: Program) -> Found:
    """On the orthant, for compilers: the dual active-set method alone, and refinement."""
    xp, cone = program.xp, program.cone
    held = _prepare(xp, cone, *program.arrays)
    form, q = Elimination(program, *held[:8]), held[10]
    active, sure, count = sweep(xp, form.R, q, xp.broadcast_to(form.ok, (program.batch,)))
    here = Linearized.at(form, _sides(xp, active, q))
    return Found(Linearized(form, here.v, here.order, here.Lt, here.ok & sure).newton(_REFINEMENTS), here, count)


def _by_compaction(program: Program, every: int) -> Found:
    """With second-order cones: rounds of the interior point and Newton steps on what is not done yet, as ever smaller batches."""
    xp, cone, numbers = program.xp, program.cone, program.arrays
    held = traced(_prepare, xp, cone)(*numbers)
    form = whole = Elimination(program, *held[:8])
    q, scale = held[10:12]
    problem = Complementarity(xp, cone, form.R, q, form.row, scale)
    state = State(*traced(_begin, xp, cone)(*problem.arrays, form.ok, xp.astype(xp.zeros_like(q[:, 0]), xp.int32)))
    index = None
    best: Any = ()  # x, y, v, residual; v, order and factor of the linearization
    iterations = state.count

    def record(rows: Any, here: Linearized) -> None:
        nonlocal best
        found = here.newton(_REFINEMENTS)
        keep = xp.nonzero(found.residual < best[3][rows])[0]
        held = (*found.arrays, here.v, here.order, here.Lt)
        best = tuple(put(xp, a, rows[keep], b[keep]) for a, b in zip(best, held, strict=True))

    for early, tolerance, limit in _CURVED_ROUNDS:
        like = state.z[0, 0]
        state = problem.settle(state, xp.full_like(like, early), xp.full_like(like, tolerance), limit, every)
        if index is None:
            iterations = state.count
            *point, exact, at, order, Lt = traced(_arrive, xp, cone)(*numbers, *held[:12], state.z, state.s)
            best = (*point, at, order, Lt)
            if bool(exact):
                return Found(Point(*point), Linearized(whole, at, order, Lt, whole.ok), iterations, True)
            index = xp.nonzero(form.ok)[0]
            form, problem, state = form.take(index, program.take(index)), problem.take(index), state.take(index)
        else:
            iterations = put(xp, iterations, index, state.count)
            record(index, Linearized.at(form, problem.v(state.z, state.s)))
        near = xp.nonzero((best[3][index] > EXACT) & xp.isfinite(best[3][index]))[0]
        if len(near):
            part = form.take(near, form.program.take(near))
            record(index[near], Linearized.at(part, best[2][index[near]]))
        left = xp.nonzero((best[3][index] > EXACT) & xp.all(xp.isfinite(state.z), axis=1))[0]
        if not len(left):
            break
        form, problem, state = form.take(left, form.program.take(left)), problem.take(left), state.take(left)
        index = index[left]
        state = problem.at(state.z, state.s, xp.ones_like(state.active), state.count)
    *point, at, order, Lt = best
    return Found(Point(*point), Linearized(whole, at, order, Lt, whole.ok), iterations)


def _in_one_loop(program: Program, every: int) -> Found:
    """The same rounds on the whole batch, for compilers and devices: the loop's body is compiled once."""
    xp, cone = program.xp, program.cone
    held = _prepare(xp, cone, *program.arrays)
    form = Elimination(program, *held[:8])
    q, scale = held[10:12]
    problem = Complementarity(xp, cone, form.R, q, form.row, scale)
    eager = xp.name not in ("jax", "tensorflow")
    pivoting = not cone.groups
    rounds = np.array(((0.0, 0.0, 0), *_ROUNDS) if pivoting else _CURVED_ROUNDS)
    first = 1 if pivoting else 0  # round of the interior point
    early, tolerances = (xp.new(a, q) for a in rounds.T[:2])
    limits = rounds[:, 2].astype(np.int32)
    limits = limits if eager else xp.astype(xp.new(limits), xp.int32)

    def goes_on(z: Any, s: Any, r: Any, able: Any, count: Any, x: Any, y: Any, v: Any, residual: Any, *rest: Any) -> Any:
        more = xp.any(able & ~(residual <= EXACT))
        return (rest[-1] < len(rounds)) and bool(more) if eager else (rest[-1] < len(rounds)) & more

    def body(*held: Any) -> tuple[Any, ...]:
        *now, x, y, v, residual, at, Lt, k = held
        now = xp.cond(k == first, lambda *a: problem.start(form.ok, a[4]).arrays, lambda *a: a, *now)
        z, s, r, able, count = now
        active = able & ~(residual <= EXACT)
        limit = int(limits[k]) if eager else limits[k]
        state, _ = problem.iterate(State(z, s, r, active, count), early[k], tolerances[k], limit, every)
        count = state.count
        if pivoting:
            rows, sure, passes, new = pivot_all(xp, form.R, q, ((state.z > state.s) & (k > 0)) | ((q < 0) & (k == 0)), active, every)
            here = Linearized(form, _sides(xp, rows, q), unordered(xp, q), new, form.ok & sure)
            count = count + passes
        else:
            here = Linearized.at(form, problem.v(state.z, state.s))
        found = here.newton(_REFINEMENTS)
        gain = (found.residual < residual) & active
        best = found.where(xp, gain, Point(x, y, v, residual))
        at, Lt = select(xp, gain, here.v, at), select(xp, gain, here.Lt, Lt)
        return state.z, state.s, state.r, able, count, *best.arrays, at, Lt, k + 1

    n, k = form.L.shape[-1], form.La.shape[-1]
    worst = xp.full_like(q[:, 0], xp.inf)
    count = xp.astype(xp.zeros_like(q[:, 0]), xp.int32)
    x, y = xp.broadcast_to(xp.zeros_like(q[:, :1]), (len(q), n)), xp.broadcast_to(xp.zeros_like(q[:, :1]), (len(q), k))
    none, turn = xp.zeros_like(q), 0 if eager else xp.zeros_like(count[0])
    able = xp.broadcast_to(form.ok, (len(q),))
    state = (none + 1.0, none + 1.0, none, able, count, x, y, none, worst, none, problem.R * 0.0 + none[:, :, None], turn)
    _, _, _, _, count, x, y, v, residual, at, Lt, _ = xp.while_loop(goes_on, body, state)
    return Found(Point(x, y, v, residual), Linearized(form, at, unordered(xp, q), Lt, form.ok), count)
