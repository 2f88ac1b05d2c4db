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
from layercompiler.solvers.interior_point.program import TINY, Point, Program, missing, point, times, times_transposed, triangular, unsolved
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
        H: (B, k + m, k + m).
        ok: (B,), where it exists.
    """

    program: Program
    v: Any
    inverse: Any
    Y: Any
    H: Any
    ok: Any

    @property
    def factors(self) -> tuple[Any, ...]:
        """What a later call needs."""
        return self.inverse, self.Y, self.H

    def take(self, index: Any) -> Inverse:
        """The instances `index`."""
        inverse, Y = (a if a.shape[0] == 1 else a[index] for a in (self.inverse, self.Y))
        return Inverse(self.program.take(index), self.v[index], inverse, Y, self.H[index], self.ok[index])

    def solve(self, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """See `elimination.Linearized.solve`."""
        return _apply(self.program.xp, self.inverse, self.Y, self.H, r_x, r_y, r_z)

    def arrive(self, step: tuple[Any, Any, Any]) -> Point:
        """See `elimination.Linearized.arrive`."""
        return _arrive(self.program, step, self.v > 0, self.ok)

    def refined(self, right: tuple[Any, Any, Any], turns: int = 1, finest: float = FINEST) -> tuple[tuple[Any, Any, Any], Any]:
        """See `elimination.Linearized.refined`."""
        xp, program = self.program.xp, self.program
        B = max(self.H.shape[0], *(r.shape[0] for r in right))
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
    unit = 1.0 / xp.sqrt(xp.clip(xp.linalg.diagonal(R), 1e-30, None))
    R, w = R * (unit[:, :, None] * unit[:, None, :]), times(xp, Y, p)
    val = xp.broadcast_to(unit * xp.concat([xp.broadcast_to(a, (B, a.shape[1])) for a in (w[:, :k] + b, w[:, k:] + h)], axis=1), (B, k + m))
    where = xp.eye_like(Q, k + m)
    for r in range(k):
        line, pivot = R[:, r], R[:, r, r : r + 1]
        independent = pivot > INDEPENDENT  # tells how far a row of A is from the span of those before it
        ok, pivot = ok & independent[:, 0], xp.where(independent, pivot, xp.ones_like(pivot))
        val = val - val[:, r : r + 1] / pivot * line
        line = line - where[r]
        R = R - (line / pivot)[:, :, None] * line[:, None, :]
    left = xp.linalg.diagonal(R)[:, k:]  # what the equalities leave of the length of a row
    again = xp.concat([xp.ones_like(R[:, :k, 0]), 1.0 / xp.sqrt(xp.where(left > INDEPENDENT, left, xp.ones_like(left)))], axis=1)
    R, val, unit = R * (again[:, :, None] * again[:, None, :]), val * again, unit * again
    ok = xp.broadcast_to(ok & xp.isfinite(xp.sum(val, axis=1)), (B,))
    val, one = val[:, k:], xp.ones_like(val)
    val = val / xp.clip(xp.max(xp.abs(val), axis=1, keepdims=True), 1e-30, None)
    val = xp.concat([xp.full_like(one[:, :k], xp.inf), val], axis=1)  # equalities stand in nobody's way
    side = xp.concat([-one[:, :k], one[:, k:]], axis=1)
    return Y, inverse, unit, ok, *sweeping.begin(xp, R, val, side, ok[:, None])


def finish(xp: Any, cone: Symmetric, tableau: Any, side: Any, Y: Any, inverse: Any, unit: Any, ok: Any, *numbers: Any) -> tuple[Any, ...]:
    """Arrays of the point, whether all are exact, and H."""
    program = Program(xp, cone, *numbers)
    on = xp.where(side < 0, unit + xp.zeros_like(side), xp.zeros_like(side))
    H = (2.0 * xp.eye_like(Y, on.shape[1]) - tableau) * (on[:, :, None] * on[:, None, :])
    like = xp.zeros_like(side[:, :1])
    step = _apply(xp, inverse, Y, H, like - program.p, like + program.b, like + program.h)
    found = _arrive(program, step, side[:, program.A.shape[1] :] < 0, ok)
    return *found.arrays, xp.all(found.residual <= 1e-12), H


def _apply(xp: Any, inverse: Any, Y: Any, H: Any, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
    """The step of a right-hand side."""
    k = r_y.shape[1]
    both = times(xp, H, times(xp, Y, r_x) - xp.concat([r_y, r_z], axis=1))
    return times(xp, inverse, r_x) - times_transposed(xp, Y, both), both[:, :k], both[:, k:]


def _arrive(program: Program, step: tuple[Any, Any, Any], active: Any, ok: Any) -> Point:
    """See `elimination.Linearized.arrive`."""
    xp, (x, y, z) = program.xp, step
    s = program.h - times(xp, program.G, x)
    return point(program, x, y, xp.where(active, xp.clip(z, TINY, None), -xp.clip(s, 0.0, None))).usable(xp, ok)


@cache
def _rounds(xp: Any, cone: Symmetric) -> Any:
    """`_refine` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _refine(xp, cone, *held), 12, 19)


def _refine(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """A step with what is missing solved for; what is missing then, relative size of it, and where to go on."""
    Q, A, G, v, inverse, Y, H, ok = held[:8]
    right, finest, before, rest = held[8:11], held[11], held[12:15], held[15:18]
    step = tuple(a + b for a, b in zip(before, _apply(xp, inverse, Y, H, *rest), strict=True))
    left = missing(Program(xp, cone, Q, right[0], A, right[1], G, right[2]), v, right, step)  # type: ignore[arg-type]
    off = unsolved(xp, left, right)  # type: ignore[arg-type]
    return *step, *left, off, (off > finest) & ok
