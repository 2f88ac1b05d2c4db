"""Small programs in the dual form: explicit inverses, so that a call of the array library does as much as it can.

One inverse of Q with all rows [A; G] leaves R = [A; G] Q^-1 [A; G]'. A tableau of it is swept at the equalities, then by the dual
active-set method; what it holds at the end, H = R_II^-1 at equalities and active rows, makes

    P = [[Q^-1 - Y'H Y, Y'H], [H Y, -H]],   Y = [A; G] Q^-1,

the inverse of the system of the active rows, with zeros for the others: the solution, its refinement and derivatives are products with it.

Needs what the dual form needs. Source: see `sweeping` and `dual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from layercompiler.solvers.interior_point import sweeping
from layercompiler.solvers.interior_point.elimination import FINEST, INDEPENDENT, NEWTON, stacked
from layercompiler.solvers.interior_point.program import Point, Program, missing, times, times_transposed, triangular, unsolved, vertex
from layercompiler.solvers.interior_point.symmetric import Symmetric

_ROWS = 24  # inequalities, from where block pivoting is faster
_ALL = 72  # variables and rows


def is_small(program: Program) -> bool:
    """Whether a program on the orthant is solved here."""
    m = program.cone.m
    return not program.cone.groups and 0 < m <= _ROWS and program.Q.shape[1] + program.A.shape[1] + m <= _ALL


@dataclass(frozen=True)
class Inverse:
    """The inverse of the system of the residual map at v.

    Attributes:
        program: The numbers.
        v: (B, m).
        inverse: (B or 1, n, n), that of Q.
        Y: (B or 1, k + m, n).
        T: (B, k + m, k + m + 1), the tableau: H = unit (2 I - T) unit.
        on: (B, k + m), the unit at equalities and active rows, else zero.
        ok: (B,), where it exists.
    """

    program: Program
    v: Any
    inverse: Any
    Y: Any
    T: Any
    on: Any
    ok: Any

    @property
    def factors(self) -> tuple[Any, ...]:
        """What a later call needs."""
        return self.inverse, self.Y, self.T, self.on

    def take(self, index: Any) -> Inverse:
        """The instances `index`."""
        inverse, Y = (a if a.shape[0] == 1 else a[index] for a in (self.inverse, self.Y))
        return Inverse(self.program.take(index), self.v[index], inverse, Y, self.T[index], self.on[index], self.ok[index])

    def solve(self, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """See `elimination.Linearized.solve`."""
        return _apply(self.program.xp, *self.factors, r_x, r_y, r_z)  # type: ignore[call-arg]

    def arrive(self, step: tuple[Any, Any, Any]) -> Point:
        """See `elimination.Linearized.arrive`."""
        return vertex(self.program, step, self.v > 0, self.ok)[0]

    def refined(self, right: tuple[Any, Any, Any], turns: int = 1, finest: float = FINEST) -> tuple[tuple[Any, Any, Any], Any]:
        """See `elimination.Linearized.refined`."""
        xp, program = self.program.xp, self.program
        B = max(self.T.shape[0], *(r.shape[0] for r in right))
        right = tuple(r if r.shape[0] == B else xp.broadcast_to(r, (B, r.shape[1])) for r in right)  # type: ignore[assignment]
        zero, off = tuple(xp.zeros_like(r) for r in right), xp.full_like(right[0][:, 0], xp.inf)
        fixed = (program.Q, program.A, program.G, self.v, *self.factors, self.ok, *right, xp.full_like(off[0], finest))
        (*step, _, _, _, off, _), _ = _rounds(xp, program.cone)((*fixed, *zero, *right, off, self.ok), turns, 0, 1)
        return tuple(step), off  # type: ignore[return-value]

    def newton(self, turns: int = 1) -> Point:
        """See `elimination.Linearized.newton`."""
        zero = self.program.xp.sum(self.v, axis=1, keepdims=True) * 0.0
        right = (zero - self.program.p, zero + self.program.b, zero + self.program.h)
        step, _ = self.refined(right, turns, NEWTON)
        return self.arrive(step)


def start(xp: Any, cone: Symmetric, *numbers: Any) -> tuple[Any, ...]:
    """Arrays (Y, Q^-1, units of the rows, where the factors exist) and the state in which sweeps begin."""
    Q, p, A, b, G, h = numbers
    B, k, m = Program(xp, cone, *numbers).batch, A.shape[1], G.shape[1]
    L, ok = xp.cholesky(Q)
    rows = xp.matrix_transpose(stacked(xp, A, G))
    V = triangular(xp, L, xp.concat([rows, xp.broadcast_to(xp.eye_like(Q, len(Q[0])), (len(rows), *Q.shape[1:]))], axis=2))
    V = xp.matmul(xp.matrix_transpose(V), V)
    R, Y, inverse = V[:, : k + m, : k + m], V[:, : k + m, k + m :], V[:, k + m :, k + m :]
    unit = xp.clip(xp.linalg.diagonal(R), 1e-30, None) ** -0.5
    val = unit * (times(xp, Y, p) + xp.concat([xp.broadcast_to(a, (B, a.shape[1])) for a in (b, h)], axis=1))
    T = xp.concat([xp.broadcast_to(R * (unit[:, :, None] * unit[:, None, :]), (B, k + m, k + m)), val[:, :, None]], axis=2)
    where, one, pivots = xp.eye_like(Q, k + m + 1), xp.ones_like(val), []
    for r in range(k):
        line = T[:, r] - where[r]
        pivots.append(T[:, r, r : r + 1])
        T = xp.axpy((line[:, : k + m] / -pivots[-1])[:, :, None], line[:, None, :], T)
    if k:  # tells how far a row of A is from the span of those before it
        ok = ok & xp.all(xp.concat(pivots, axis=1) > INDEPENDENT, axis=1)
    left, most = xp.linalg.diagonal(T[:, :, : k + m])[:, k:], k + m  # what the equalities leave of the length of a row
    again = xp.where(left > INDEPENDENT, left, one[:, k:]) ** -0.5
    size = xp.max(xp.abs(T[:, k:, most] * again), axis=1, keepdims=True)
    again = xp.concat([one[:, :k], again], axis=1)
    T = T * (again[:, :, None] * xp.concat([again, 1.0 / xp.clip(size, 1e-30, None)], axis=1)[:, None, :])
    ok = ok & (size[:, 0] < xp.inf)
    idle = xp.concat([one[:, :k] < 0, one[:, k:] > 0], axis=1)
    if k:
        T = T - xp.concat([xp.zeros_like(T[:, :, :most]), sweeping.NEVER * xp.astype(~idle, T.dtype)[:, :, None]], axis=2)
    return Y, inverse, unit * again, ok, *sweeping.begin(xp, T, idle, ok[:, None])


def finish(xp: Any, cone: Symmetric, tableau: Any, active: Any, Y: Any, inverse: Any, unit: Any, ok: Any, *numbers: Any) -> tuple[Any, ...]:
    """Arrays of the point, whether all are exact, what is missing there, and `Inverse.on`."""
    program = Program(xp, cone, *numbers)
    on = xp.where(active, unit, xp.zeros_like(unit))
    like = xp.zeros_like(unit[:, :1])
    step = _apply(xp, inverse, Y, tableau, on, like - program.p, like + program.b, like + program.h)
    found, left = vertex(program, step, active[:, program.A.shape[1] :], ok)
    return *found.arrays, xp.all(found.residual <= 1e-12), *left, on


def _apply(xp: Any, inverse: Any, Y: Any, T: Any, on: Any, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
    """The step of a right-hand side."""
    k = r_y.shape[1]
    w = on * (times(xp, Y, r_x) - xp.concat([r_y, r_z], axis=1))
    both = on * (2.0 * w - times(xp, T[:, :, :-1], w))
    return times(xp, inverse, r_x) - times_transposed(xp, Y, both), both[:, :k], both[:, k:]


@cache
def _rounds(xp: Any, cone: Symmetric) -> Any:
    """`_refine` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _refine(xp, cone, *held), 13, 20)


def _refine(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """A step with what is missing solved for; what is missing then, relative size of it, and where to go on."""
    Q, A, G, v, inverse, Y, T, on, ok = held[:9]
    right, finest, before, rest = held[9:12], held[12], held[13:16], held[16:19]
    step = tuple(a + b for a, b in zip(before, _apply(xp, inverse, Y, T, on, *rest), strict=True))
    left = missing(Program(xp, cone, Q, right[0], A, right[1], G, right[2]), v, right, step)  # type: ignore[arg-type]
    off = unsolved(xp, left, right)  # type: ignore[arg-type]
    return *step, *left, off, (off > finest) & ok
