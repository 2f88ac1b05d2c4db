"""Eliminating x and y: factors of the data, and the linear systems of the residual map that are solved with them.

With Q = L L', E = L^-1 A' and W = L^-1 G', the Schur complement of the equalities in [E, W]'[E, W] leaves R = G M G' (m, m).
It is kept in units where its diagonal is one: N R N for N = diag(row), so z = N z_here and s = s_here / N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from layercompiler.solvers.interior_point.pivoting import active_rows, collect
from layercompiler.solvers.interior_point.program import (
    Point,
    Program,
    cholesky_solve,
    missing,
    point,
    times,
    times_transposed,
    triangular,
    unsolved,
    vertex,
)
from layercompiler.solvers.interior_point.symmetric import Symmetric

FINEST = 1e-13  # relative remainder of a linear system that needs no further refinement
NEWTON = 1e-14  # the same for a Newton step
INDEPENDENT = 1e-12  # the square of a row's distance from the span of the rows before it, relative to its length


@dataclass(frozen=True)
class Elimination:
    """What eliminating x and y leaves: factors that every right-hand side goes through; leading size 1 where Q, A, G are shared.

    Attributes:
        program: The numbers.
        L: Factor of Q.
        E: L^-1 A', (n, k).
        W: L^-1 G', (n, m).
        La: Factor of E'E.
        V: La^-1 E'W, (k, m).
        row: (m,), the units: alike within a second-order cone.
        R: (m, m), in these units.
        ok: (B,), where the factors exist.
    """

    program: Program
    L: Any
    E: Any
    W: Any
    La: Any
    V: Any
    row: Any
    R: Any
    ok: Any

    @classmethod
    def of(cls, program: Program) -> Elimination:
        """Factor Q, and the equalities in it."""
        xp, k, cone = program.xp, program.A.shape[1], program.cone
        L, ok = xp.cholesky(program.Q)
        E, W = (triangular(xp, L, xp.matrix_transpose(a)) for a in (program.A, program.G))
        R, La, V = xp.matmul(xp.matrix_transpose(W), W), E[:, :k], E[:, :k]
        if k:
            across = xp.matrix_transpose(E)
            La = xp.matmul(across, E)
            length = xp.linalg.diagonal(La)
            La, full = xp.cholesky(La)
            # the pivots tell how far a row of A is from the span of those before it
            ok = ok & full & (xp.min(xp.linalg.diagonal(La) ** 2 / (length + 1e-300), axis=-1) > INDEPENDENT)
            V = triangular(xp, La, xp.matmul(across, W))
            R = xp.less(R, xp.matrix_transpose(V), V)
        linear, parts = cone.split(xp.linalg.diagonal(R))
        parts = [xp.max(p, axis=2, keepdims=True) + xp.zeros_like(p) for p in parts]
        row = 1.0 / xp.sqrt(xp.clip(cone.join(xp, linear, parts), 1e-30, None))
        return cls(program, L, E, W, La, V, row, R * row[:, :, None] * row[:, None, :], ok)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What a later call needs to solve with these factors."""
        return self.L, self.E, self.W, self.La, self.V, self.row

    def take(self, index: Any, program: Program) -> Elimination:
        """The instances `index`."""
        return Elimination(program, *(a if a.shape[0] == 1 else a[index] for a in (*self.arrays, self.R, self.ok)))

    def reduce(self, p: Any, b: Any, h: Any) -> tuple[Any, Any, Any]:
        """(u, t, q) of a right-hand side, q in the units of R."""
        xp, k = self.program.xp, b.shape[1]
        u = triangular(xp, self.L, p)
        w = times_transposed(xp, self.W, u) + h
        if not k:
            return u, b, self.row * w
        t = triangular(xp, self.La, times_transposed(xp, self.E, u) + b)
        return u, t, self.row * (w - times_transposed(xp, self.V, t))

    def expand(self, u: Any, t: Any, z: Any) -> tuple[Any, Any, Any]:
        """X, y and z of the program for given z in the units of R."""
        xp = self.program.xp
        z = self.row * z
        y, u = z[:, :0], u + times(xp, self.W, z)
        if t.shape[1]:
            y = -triangular(xp, self.La, t + times(xp, self.V, z), transposed=True)
            u = u + times(xp, self.E, y)
        return -triangular(xp, self.L, u, transposed=True), y, z


@dataclass(frozen=True)
class Linearized:
    """The factored system of the residual map at v, in the dual form.

    Attributes:
        form: Factors of the data.
        v: (B, m).
        order: (B, m), active rows first, where they have been collected; else (B, 0).
        Lt: Factor of C R C + I - D, or of its first (a, a) in this order: the rest is the identity.
        ok: (B,), where it exists.
    """

    form: Elimination
    v: Any
    order: Any
    Lt: Any
    ok: Any

    @classmethod
    def at(cls, form: Elimination, v: Any) -> Linearized:
        """Factor at v."""
        xp, cone = form.program.xp, form.program.cone
        if not cone.m:
            return cls(form, v, unordered(xp, v), xp.matmul(v[:, :, None], v[:, None, :]), form.ok)
        D = cone.derivative(xp, v)
        if cone.groups:
            C = D.map(xp.sqrt)
            R = form.R + xp.zeros_like(v)[:, :, None]
            CR = cone.apply(xp, C, R)
            T = cone.apply(xp, C, xp.matrix_transpose(CR)) + cone.apply(xp, D.map(lambda d: 1.0 - d), xp.eye_like(v, cone.m) + 0.0 * R)
            T = xp.add_diagonal(T, 1e-15 * xp.abs(xp.linalg.diagonal(T)))
        else:
            T = active_rows(xp, form.R, D.linear)
        Lt, ok = xp.cholesky(T)
        return cls(form, v, unordered(xp, v), Lt, ok & form.ok)

    @classmethod
    def collected(cls, form: Elimination, v: Any) -> Linearized:
        """`at` on the orthant, with the factor of the active rows alone."""
        act = form.program.xp.astype(v > 0, v.dtype)
        order, Lt, ok = collect(form.program.xp, form.R, act)
        return cls(form, v, order, Lt, ok & form.ok)

    @property
    def factors(self) -> tuple[Any, ...]:
        """What a later call needs to solve with."""
        return *self.form.arrays, self.order, self.Lt

    def solve(self, r_x: Any, r_y: Any, r_z: Any) -> tuple[Any, Any, Any]:
        """(dx, dy, dz) with Q dx + A'dy + G'dz = r_x, A dx = r_y, G dx + ds = r_z, dz = D dv, ds = dz - dv."""
        return self.solve_reduced(*self.form.reduce(-r_x, r_y, r_z))

    def solve_reduced(self, u: Any, t: Any, q: Any) -> tuple[Any, Any, Any]:
        """`solve`, of a right-hand side that went through `Elimination.reduce`."""
        xp, cone = self.form.program.xp, self.form.program.cone
        if not cone.m:
            return self.form.expand(u, t, q)
        C = cone.derivative(xp, self.v)
        if self.order.shape[1]:
            order = self.order[:, : self.Lt.shape[-1]]
            on = xp.gather(C.linear, order, 1)
            dz = xp.spread(on * cholesky_solve(xp, self.Lt, -on * xp.gather(q, order, 1)), order, cone.m)
            return self.form.expand(u, t, dz)
        C = C.map(xp.sqrt) if cone.groups else C
        dz = cone.apply(xp, C, cholesky_solve(xp, self.Lt, -cone.apply(xp, C, q)))
        return self.form.expand(u, t, dz)

    def refined(self, right: tuple[Any, Any, Any], turns: Any = 1, finest: float = FINEST) -> tuple[tuple[Any, Any, Any], Any]:
        """(`solve` of a right-hand side and, up to `turns` times, of what is missing on the data; the relative remainder (B,))."""
        program, xp = self.form.program, self.form.program.xp
        zero, off = tuple(xp.zeros_like(r) for r in right), xp.full_like(right[0][:, 0], xp.inf)
        fixed = (program.Q, program.A, program.G, *self.form.arrays, self.v, self.order, self.Lt, self.ok, *right)
        if xp.name not in ("jax", "tensorflow"):
            fixed = (*fixed, xp.full_like(off[0], finest))
            (*step, _, _, _, off, _), _ = _rounds(xp, program.cone)((*fixed, *zero, *right, off, self.ok), int(turns), 0, 1)
            return tuple(step), off  # type: ignore[return-value]

        def goes_on(dx: Any, dy: Any, dz: Any, r_x: Any, r_y: Any, r_z: Any, off: Any, going: Any, turn: Any) -> Any:
            return (turn < turns) & xp.any(going)

        def again(*state: Any) -> tuple[Any, ...]:
            return *_refine(xp, program.cone, *fixed, finest, *state[:-1]), state[-1] + 1

        found = xp.while_loop(goes_on, again, (*zero, *right, off, self.ok, xp.zeros_like(right[0][0, 0])))
        return found[:3], found[6]

    def newton(self, turns: Any = 1) -> Point:
        """The Newton step from v on the residual map, its linear system solved and refined `turns` times."""
        program = self.form.program
        zero = program.xp.sum(self.v, axis=1, keepdims=True) * 0.0
        step, _ = self.refined((zero - program.p, zero + program.b, zero + program.h), turns, NEWTON)
        return self.arrive(step)

    def arrive(self, step: tuple[Any, Any, Any]) -> Point:
        """The point of a Newton step, with an infinite residual and zeros where it is not finite or the factors do not exist."""
        program, xp = self.form.program, self.form.program.xp
        if not program.cone.groups:
            return vertex(program, step, self.v > 0, self.ok)[0]
        x, y, z = step
        s = program.h - times(xp, program.G, x)
        return point(program, x, y, program.cone.join_parts(xp, z, s, self.v > 0)).usable(xp, self.ok)

    def take(self, index: Any) -> Linearized:
        """The instances `index`."""
        form = self.form.take(index, self.form.program.take(index))
        return Linearized(form, self.v[index], self.order[index], self.Lt if self.Lt.shape[0] == 1 else self.Lt[index], self.ok[index])


@cache
def _rounds(xp: Any, cone: Symmetric) -> Any:
    """`_refine` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _refine(xp, cone, *held), 17, 24)


def _refine(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    """A step (dx, dy, dz) with what is missing solved for; what is missing then, relative size of it, and where to go on."""
    Q, A, G, L, E, W, La, V, row, v, order, Lt, ok = held[:13]
    right, finest, dx, dy, dz, r_x, r_y, r_z = held[13:16], *held[16:23]
    program = Program(xp, cone, Q, right[0], A, right[1], G, right[2])
    here = Linearized(Elimination(program, L, E, W, La, V, row, L, ok), v, order, Lt, ok)  # R is not needed any more
    step = tuple(a + b for a, b in zip((dx, dy, dz), here.solve(r_x, r_y, r_z), strict=True))
    left = missing(program, v, right, step)  # type: ignore[arg-type]
    off = unsolved(xp, left, right)  # type: ignore[arg-type]
    return *step, *left, off, (off > finest) & ok


def unordered(xp: Any, v: Any) -> Any:
    """(B, 0), the order of rows that have not been collected."""
    return xp.astype(xp.zeros_like(v[:, :0]), xp.int64)


def stacked(xp: Any, A: Any, G: Any) -> Any:
    """[A; G], shared only where both are."""
    if not A.shape[1] or not G.shape[1]:
        return G if not A.shape[1] else A
    if A.shape[0] != G.shape[0]:
        B = max(A.shape[0], G.shape[0])
        A, G = xp.broadcast_to(A, (B, *A.shape[1:])), xp.broadcast_to(G, (B, *G.shape[1:]))
    return xp.concat([A, G], axis=1)
