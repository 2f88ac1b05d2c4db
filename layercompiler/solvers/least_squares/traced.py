"""Solves inside of a framework: loops that jax traces and compiles, and steps that automatic derivatives pass through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercompiler.solvers.least_squares import descent
from layercompiler.solvers.least_squares.descent import RUNNING, Instances, State, Step
from layercompiler.solvers.least_squares.evaluation import stages
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.solver import AGREE, NEWTON, POLISHED, ROUGH, STAGE, Solver, arrived
from layercompiler.status import Status


def dense(xp: Any, structure: Any, entries: Any, diagonal: Any) -> Any:
    """(B, n, n) symmetric matrices of entries and a diagonal."""
    n = structure.n
    moved = xp.permute_dims(xp.concat([entries, diagonal], axis=1), (1, 0))
    every = np.arange(n)
    upper = xp.segment_sum(moved, np.concatenate([structure.rows * n + structure.cols, every * (n + 1)]), n * n)
    upper = xp.reshape(xp.permute_dims(upper, (1, 0)), (-1, n, n))
    off = upper * xp.new(np.triu(np.ones((n, n)), 1), upper)
    return upper + xp.matrix_transpose(off)


def solve(xp: Any, structure: Any, entries: Any, diagonal: Any, rhs: Any, refine: int) -> tuple[Any, Any]:
    """Solution of the equilibrated system by Cholesky, and its smallest pivots; a matrix that is not definite gives -1."""
    H = dense(xp, structure, entries, diagonal)
    d = xp.einsum("bii->bi", H)
    scale = 1 / xp.sqrt(xp.where(d > 0, d, xp.ones_like(d)))
    S = H * scale[:, :, None] * scale[:, None, :]
    L = xp.linalg.cholesky(S)
    pivots = xp.min(xp.einsum("bii->bi", L) ** 2, axis=1)
    good = xp.isfinite(pivots) & (pivots > 0)

    def back(r: Any) -> Any:
        column = (r * scale)[..., None]
        return xp.solve_triangular(L, xp.solve_triangular(L, column), transposed=True)[..., 0] * scale

    x = back(rhs)
    for _ in range(refine):
        x = x + back(rhs - xp.matmul(H, x[..., None])[..., 0])
    return x, xp.where(good, pivots, -xp.ones_like(d[:, 0]))


def instances(solver: Solver, theta: Sequence[Any], shared: Sequence[bool], widen: float = 1.0) -> Instances:
    """Functions of the framework's own arrays."""
    xp, e, s = solver.xp, solver.evaluation, solver.structure
    return Instances(
        xp,
        lambda values: e.linearize(values, theta, shared, widen),
        lambda values: e.hessian(values, theta, shared),
        e.retract,
        lambda entries, diagonal, rhs, refine: solve(xp, s, entries, diagonal, rhs, refine),
        s,
    )


def run(
    solver: Solver, values: Any, theta: Sequence[Any], shared: Sequence[bool], loop: Callable[..., State] | None = None
) -> tuple[Any, ...]:
    """(values, status, measure, cost, largest gradient, iterations, smallest pivot of the exact Hessian) by traced loops.

    An instance for which a given Jacobian is not the derivative has failed. A `loop` descends in the place of this module's own, all the
    way: Newton steps then only polish what came within the tolerance by itself.
    """
    xp, options = solver.xp, solver.options
    descend = loop or _descend
    for widen in stages(solver.program)[:-1]:
        graded = instances(solver, theta, shared, widen)
        values = descend(graded, descent.start(graded, values, options, solver.method), solver, options.tolerance, STAGE).values
    bound = instances(solver, theta, shared)
    state = descent.start(bound, values, options, solver.method)
    rough = options.polish and loop is None
    came = state
    for target in (max(ROUGH, options.tolerance), options.tolerance) if rough else (options.tolerance,):
        state = descend(bound, state, solver, target, options.max_iterations)
        came = state
        if options.polish:
            state = _polish(bound, state, solver)
        again = (state.measure > options.tolerance) & (state.status == int(Status.SOLVED))
        state = state._replace(status=xp.where(again, xp.full_like(state.status, RUNNING), state.status))
    status, measure = descent.finish(bound, state, options.tolerance)
    if loop is not None:
        status = arrived(bound, came, status, options.tolerance)
    if solver.given:
        wrong = solver.gap(state.values, state.gradient, theta, shared) > AGREE
        status = xp.where(wrong & (status == int(Status.SOLVED)), xp.full_like(status, int(Status.FAILED)), status)
    held = bound.held(state.values, state.gradient)
    gradient = state.gradient if held is None else xp.where(held, xp.zeros_like(state.gradient), state.gradient)
    exact = bound.masked(bound.hessian(state.values), held)
    zero = xp.zeros_like(state.gradient)
    _, pivots = bound.solve(exact, zero if held is None else xp.where(held, zero + 1, zero), zero, 0)
    return state.values, status, measure, state.cost, xp.max(xp.abs(gradient), axis=1), state.iterations, pivots


def _descend(bound: Instances, state: State, solver: Solver, target: float, limit: int) -> State:
    xp = solver.xp

    def running(*flat: Any) -> Any:
        s = State(*flat)
        return xp.any((s.status == RUNNING) & (s.iterations < limit))

    state = State(
        *xp.while_loop(
            running, lambda *flat: tuple(descent.advance(bound, State(*flat), solver.options, solver.method, target)), tuple(state)
        )
    )
    done = (state.status == RUNNING) & (state.measure <= target)
    return state._replace(status=xp.where(done, xp.zeros_like(state.status), state.status))


def _polish(bound: Instances, state: State, solver: Solver) -> State:
    xp = solver.xp
    near = (state.measure <= ROUGH) & (state.status != int(Status.FAILED))
    kept = state.status
    part = state._replace(status=xp.where(near, xp.full_like(kept, RUNNING), xp.zeros_like(kept)))

    def running(count: Any, *flat: Any) -> Any:
        s = State(*flat)
        return (count < NEWTON) & xp.any((s.status == RUNNING) & (s.measure > POLISHED))

    _, *flat = xp.while_loop(running, lambda c, *f: (c + 1, *descent.refine(bound, State(*f), POLISHED)), (xp.new(np.int64(0)), *part))
    part = State(*flat)
    return part._replace(status=xp.where(near, xp.zeros_like(kept), kept))


def converging(solver: Solver, bound: Instances, values: Any) -> Step:
    """The Gauss-Newton step at a solution, damped where steps would lead away from it: where the second derivatives outweigh the matrix.

    Steps with the matrix G + lambda D contract by the eigenvalues of 1 - (G + lambda D)^-1 H: below one as H is definite, and above
    -1/2 as 3/2 (G + lambda D) - H is. lambda is zero where it may be.
    """
    xp = bound.xp
    p = bound.evaluate(values)
    held = bound.held(values, p.gradient)
    D = xp.where(p.diagonal > 0, p.diagonal, xp.ones_like(p.diagonal))
    unit = xp.zeros_like(D) if held is None else xp.where(held, xp.ones_like(D), xp.zeros_like(D))
    rest = 1.5 * bound.masked(p.entries, held) - bound.masked(bound.hessian(values), held)
    zero = xp.zeros_like(p.cost)

    def short(damping: Any) -> Any:
        return ~(bound.solve(rest, 1.5 * damping[:, None] * D + unit, xp.zeros_like(D), 0)[1] > PIVOT)

    def raised(damping: Any) -> Any:
        return xp.where(short(damping) & (damping < 1e9), xp.maximum(2 * damping, zero + 1 / 16), damping)

    damping, _ = xp.while_loop(lambda now, last: xp.any(now != last), lambda now, last: (raised(now), now), (raised(zero), zero))
    return Step(values, damping[:, None] * D + unit, held, zero + 1, None, damping < 1e9)


def follow(solver: Solver, bound: Instances, x: Any, step: Step) -> Any:
    """The point after a step from x, which is where the step began: differentiable in x and in the parameters of `bound`."""
    xp = solver.xp
    x = step.values + (x - xp.stop_gradient(x))  # rounding does not add up from step to step
    p = bound.evaluate(x)
    gradient = p.gradient if step.held is None else xp.where(step.held, xp.zeros_like(p.gradient), p.gradient)
    H = dense(xp, solver.structure, bound.masked(p.entries, step.held), step.scale)
    H = xp.where(step.accept[:, None, None], H, xp.eye_like(H, H.shape[-1]))  # that of a step which was not taken may be singular
    moved = step.newton[:, None] * xp.linalg.solve(H, -gradient[..., None])[..., 0]
    if step.slope is not None:
        moved = moved - step.slope * gradient
    # an instance that rejected the step stays, and a step that led it out of the domain may have no derivative
    moved = xp.where(step.accept[:, None], moved, xp.zeros_like(moved))
    return xp.where(step.accept[:, None], bound.retract(x, moved), x)
