"""Solves inside of a framework: loops that jax traces and compiles, and steps that automatic derivatives pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.solvers.least_squares import descent
from layercompiler.solvers.least_squares.descent import RUNNING, Instances, State
from layercompiler.solvers.least_squares.evaluation import stages
from layercompiler.solvers.least_squares.solver import NEWTON, POLISHED, ROUGH, STAGE, Solver
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


def run(solver: Solver, values: Any, theta: Sequence[Any], shared: Sequence[bool]) -> tuple[Any, ...]:
    """(values, status, measure, cost, largest gradient, iterations, smallest pivot of the exact Hessian) by traced loops."""
    xp, options = solver.xp, solver.options
    for widen in stages(solver.program)[:-1]:
        graded = instances(solver, theta, shared, widen)
        values = _descend(graded, descent.start(graded, values, options, solver.method), solver, options.tolerance, STAGE).values
    bound = instances(solver, theta, shared)
    state = descent.start(bound, values, options, solver.method)
    targets = (max(ROUGH, options.tolerance), options.tolerance) if options.polish else (options.tolerance,)
    for target in targets:
        state = _descend(bound, state, solver, target, options.max_iterations)
        if options.polish:
            state = _polish(bound, state, solver)
        again = (state.measure > options.tolerance) & (state.status == int(Status.SOLVED))
        state = state._replace(status=xp.where(again, xp.full_like(state.status, RUNNING), state.status))
    status, measure = descent.finish(bound, state, options.tolerance)
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


def unrolled(solver: Solver, values: Any, theta: Sequence[Any], shared: Sequence[bool], count: int) -> Any:
    """Values after Gauss-Newton steps that derivatives pass through; damped a little, so that singular steps stay finite."""
    xp = solver.xp
    bound = instances(solver, theta, shared)
    values = xp.new(values) if isinstance(values, np.ndarray) else values
    for _ in range(count):
        p = bound.evaluate(values)
        scale = xp.where(p.diagonal > 0, p.diagonal, xp.ones_like(p.diagonal))
        H = dense(xp, solver.structure, p.entries, 1e-9 * scale)
        step = xp.linalg.solve(H, -p.gradient[..., None])[..., 0]
        values = bound.retract(values, step)
    return values
