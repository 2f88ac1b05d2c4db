"""Solving a batch: the dual form where it applies, the primal form for what is left, and the linear solves of the derivative.

Everything here is per instance and in units of the given program; statuses come from our own residuals and certificates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.solvers.interior_point import dual, elimination, primal, small
from layercompiler.solvers.interior_point.program import Point, Program, missing, put, select, unsolved
from layercompiler.status import Status

_ACCURATE = 1e-9  # of a linear system of the derivative
_REFINEMENTS = 3
_STEPS = 3  # Newton steps after the embedding
_LEAST_SQUARES = 1500  # largest order of a system that falls back to least squares


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        definite: Q may be positive definite, so that the dual form is worth a try.
        compact: See `dual.solve`.
        every: See `Complementarity.iterate`.
        tolerance: Relative residual up to which an instance counts as solved.
        limit: Most iterations; where it is given, the primal form alone is used.
        on_host: Of a numpy function, the array (B, k) that it is to return and its arguments: that array. Where it is given, numpy solves
            the instances that the dual form fails on: they are rare, and the primal form takes long to compile.
    """

    definite: bool = True
    compact: bool = True
    every: int = 1
    tolerance: float = 1e-8
    limit: int | None = None
    on_host: Callable[..., Any] | None = None

    @classmethod
    def of(cls, xp: Any, like: Any, definite: bool, tolerance: float) -> Settings:
        """What suits the framework and the device of an array."""
        if xp.name in ("jax", "tensorflow"):
            return cls(definite, False, 1, tolerance)
        on_host = xp.name == "numpy" or like.device.type == "cpu"
        return cls(definite, on_host, 1 if on_host else 4, tolerance)


@dataclass(frozen=True)
class Solved:
    """A solved batch.

    Attributes:
        point: x, y, v and residuals; a certificate where the status says infeasible or unbounded.
        status: (B,) int8.
        iterations: (B,).
        by_dual: (B,), where `factors` serve the derivative.
        factors: Of the dual form, empty where it was not tried.
        good: Whether it is known that all are solved.
    """

    point: Point
    status: Any
    iterations: Any
    by_dual: Any
    factors: tuple[Any, ...]
    good: bool = False


def pays(n: int, m: int, definite: bool) -> bool:
    """Whether the dual form is worth a try: it needs Q definite, and factors matrices of the order of the rows."""
    return definite and m <= 2 * n + 8


def solve(program: Program, settings: Settings) -> Solved:
    """Solve a batch."""
    xp, B = program.xp, program.batch
    n, m = program.Q.shape[1], program.cone.m
    if settings.limit is not None or not pays(n, m, settings.definite):
        zero = xp.zeros_like(program.p[:, 0]) if program.p.shape[0] == B else xp.broadcast_to(xp.zeros_like(program.p[:, 0]), (B,))
        never, finite = xp.astype(zero, xp.bool), _finite(program)
        fresh = _embed(program, xp.broadcast_to(~finite, (B,)), settings)
        return Solved(Point(*fresh[:4]), _nonfinite(xp, finite, fresh[4]), fresh[5], never, ())
    formed = dual.solve(program, settings.compact, settings.every, settings.on_host is not None)
    found, iterations, factors = formed.point, formed.iterations, formed.at.factors
    by_dual = found.residual <= dual.POOR
    if formed.exact:
        return Solved(found, xp.astype(xp.zeros_like(iterations), xp.int8), iterations, by_dual, factors, True)
    finite = _finite(program)
    status = xp.astype(xp.where(by_dual, xp.zeros_like(found.residual), xp.full_like(found.residual, float(Status.FAILED))), xp.int8)
    left = ~by_dual & finite
    held = (*found.arrays, status, iterations)
    if settings.compact:
        index = xp.nonzero(left)[0]
        if len(index):
            fresh = _embed(program.take(index), xp.zeros_like(left[index]), settings)
            held = tuple(put(xp, a, index, b) for a, b in zip(held, fresh, strict=True))
    else:
        embed = _embed_on_host if settings.on_host else _embed
        fresh = xp.cond(xp.any(left), lambda *_: embed(program, ~left, settings), lambda *a: a, *held)
        held = tuple(select(xp, left, b, a) for a, b in zip(held, fresh, strict=True))
    return Solved(Point(*held[:4]), _nonfinite(xp, finite, held[4]), held[5], by_dual, factors)


def _embed(program: Program, idle: Any, settings: Settings) -> tuple[Any, ...]:
    """(x, y, v, residual, status, iterations) by the primal form and Newton steps."""
    xp = program.xp
    end = primal.solve(program, idle, settings.every, settings.limit)
    solvable = (end.status != Status.PRIMAL_INFEASIBLE) & (end.status != Status.DUAL_INFEASIBLE)

    def goes_on(x: Any, y: Any, v: Any, residual: Any, turn: Any) -> Any:
        more = xp.any(solvable & ~(residual <= dual.EXACT))
        return turn < _STEPS and bool(more) if isinstance(turn, int) else (turn < _STEPS) & more

    def step(x: Any, y: Any, v: Any, residual: Any, turn: Any) -> tuple[Any, ...]:
        found = primal.Linearized.at(end.scaling, v).newton(program, x, y)
        return *Point(x, y, v, residual).better(xp, found).arrays, turn + 1

    turn = xp.zeros_like(end.iterations[0]) if xp.name in ("jax", "tensorflow") else 0
    best = Point(*xp.while_loop(goes_on, step, (end.x, end.y, end.v, xp.full_like(end.x[:, 0], xp.inf), turn))[:4])
    _, convex = xp.cholesky(xp.add_diagonal(end.scaling.program.Q, primal.CONVEX + 0.0 * end.scaling.program.p))
    good = solvable & (best.residual <= settings.tolerance)
    code = xp.where(
        good, xp.zeros_like(end.status), xp.where(end.status == 0, xp.full_like(end.status, int(Status.INACCURATE)), end.status)
    )
    # A stationary point of an objective that is not convex is no solution.
    code = xp.where(convex | idle, code, xp.full_like(code, int(Status.NOT_CONVEX)))
    keep = solvable & (xp.isfinite(best.residual))
    none = xp.full_like(best.residual, xp.inf)
    x, y, v = select(xp, keep, best.x, end.x), select(xp, keep, best.y, end.y), select(xp, keep, best.v, end.z - end.s)
    return x, y, v, xp.where(keep, best.residual, none), code, end.iterations


def _embed_on_host(program: Program, idle: Any, settings: Settings) -> tuple[Any, ...]:
    """`_embed`, by numpy."""
    xp, cone = program.xp, program.cone
    n, k = program.Q.shape[1], program.A.shape[1]

    def solve_rows(idle: np.ndarray, *numbers: np.ndarray) -> np.ndarray:
        rows, found = np.flatnonzero(~idle), np.zeros((len(idle), n + k + cone.m + 3))
        if len(rows):
            part = Program(arrays.get("numpy"), cone, *numbers).take(rows)
            with np.errstate(all="ignore"):
                x, y, v, *facts = _embed(part, np.zeros(len(rows), bool), Settings(settings.definite, tolerance=settings.tolerance))
            found[rows] = np.concatenate([x, y, v, *(np.asarray(f, float)[:, None] for f in facts)], axis=1)
        return found

    assert settings.on_host is not None
    like = xp.zeros_like(xp.broadcast_to(program.p[:, :1], (len(idle), n + k + cone.m + 3)))
    found = settings.on_host(solve_rows, like, idle, *program.arrays)
    x, y, v, facts = found[:, :n], found[:, n : n + k], found[:, n + k : -3], found[:, -3:]
    return x, y, v, facts[:, 0], xp.astype(facts[:, 1], xp.int8), xp.astype(facts[:, 2], xp.int32)


def _finite(program: Program) -> Any:
    """(B,), where every number is finite."""
    xp = program.xp
    total = xp.zeros_like(program.p[:, 0])
    for a in program.arrays:
        total = total + xp.sum(a, axis=tuple(range(1, a.ndim)))
    return xp.isfinite(total) if total.shape[0] == program.batch else xp.broadcast_to(xp.isfinite(total), (program.batch,))


def _nonfinite(xp: Any, finite: Any, status: Any) -> Any:
    return xp.where(finite, status, xp.full_like(status, int(Status.NONFINITE_INPUT)))


def linear_solve(
    program: Program, v: Any, by_dual: Any, factors: tuple[Any, ...], right: tuple[Any, Any, Any], settings: Settings
) -> tuple[Any, Any, Any]:
    """Solve the linear system of the residual map at v; see `program.missing` for the system.

    The factors that the solve left behind serve where they may; their result is refined and checked on the data, and what is not accurate
    to 1e-9 goes to the primal form, then to the least-squares solution of least norm.

    Returns:
        (dx, dy, dz); NaN where the system cannot be solved.
    """
    xp = program.xp
    if not factors:
        return _robust(program, v, right, settings)
    if len(factors) == 4:
        step, off = small.Inverse(program, v, *factors, by_dual).refined(right, _REFINEMENTS)
    else:
        form = elimination.Elimination(program, *factors[:6], factors[0], by_dual)  # type: ignore[call-arg]  # R is not needed any more
        step, off = elimination.Linearized(form, v, factors[6], factors[7], by_dual).refined(right, _REFINEMENTS)
    poor = ~by_dual | ~(off <= _ACCURATE)
    if settings.compact:
        if bool(xp.any(poor)):
            index = xp.nonzero(poor)[0]
            fresh = _robust(program.take(index), v if v.shape[0] == 1 else v[index], tuple(r[index] for r in right), settings)  # type: ignore[arg-type]
            step = tuple(put(xp, a, index, b) for a, b in zip(step, fresh, strict=True))
        return step  # type: ignore[return-value]
    robust = _robust_on_host if settings.on_host else _robust
    fresh = xp.cond(xp.any(poor), lambda *r: robust(program, v, r, settings, poor), lambda *_: step, *right)  # type: ignore[arg-type]
    return tuple(select(xp, poor, b, a) for a, b in zip(step, fresh, strict=True))  # type: ignore[return-value]


def _robust_on_host(program: Program, v: Any, right: tuple[Any, Any, Any], settings: Settings, which: Any) -> tuple[Any, Any, Any]:
    """`_robust` for some instances, by numpy."""
    xp, cone = program.xp, program.cone
    n, k = right[0].shape[1], right[1].shape[1]

    def solve_rows(which: np.ndarray, v: np.ndarray, both: np.ndarray, *numbers: np.ndarray) -> np.ndarray:
        rows, found = np.flatnonzero(which), np.zeros_like(both)
        if len(rows):
            part = Program(arrays.get("numpy"), cone, *numbers).take(rows)
            some = both[rows, :n], both[rows, n : n + k], both[rows, n + k :]
            with np.errstate(all="ignore"):
                found[rows] = np.concatenate(_robust(part, v if len(v) == 1 else v[rows], some, settings), axis=1)
        return found

    assert settings.on_host is not None
    both = xp.concat(right, axis=1)
    found = settings.on_host(solve_rows, both, which, v, both, *program.arrays)
    return found[:, :n], found[:, n : n + k], found[:, n + k :]


def _robust(program: Program, v: Any, right: tuple[Any, Any, Any], settings: Settings, which: Any = None) -> tuple[Any, Any, Any]:
    xp = program.xp
    scaling = primal.Equilibrated.of(program)
    step = primal.Linearized.at(scaling, v).solve(*right)
    poor = ~(unsolved(xp, missing(program, v, right, step), right) <= _ACCURATE)

    def last(*held: Any) -> tuple[Any, ...]:
        if sum(a.shape[1] for a in right) > _LEAST_SQUARES:
            return tuple(xp.full_like(a, xp.nan) for a in held)
        return primal.least_squares(scaling, v, right)

    fresh = xp.cond(xp.any(poor), last, lambda *a: a, *step)
    return tuple(select(xp, poor, b, a) for a, b in zip(step, fresh, strict=True))  # type: ignore[return-value]
