"""Dense numbers of a batch of cone programs, in array functions, and how well a point solves them.

    minimise 1/2 x'Qx + p'x   subject to   Ax = b,   Gx + s = h,  s in K

with K a product of the orthant and second-order cones, duals y of the equalities and z in K of the others. As everywhere in the package
v = z - s holds both: z = Proj_K(v), s = z - v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layercompiler.solvers.interior_point.symmetric import Symmetric

TINY = 1e-30


@dataclass(frozen=True)
class Program:
    """Numbers of a batch; every array has leading size B, or 1 where the batch shares it.

    Attributes:
        xp: Array functions of the framework.
        cone: K.
        Q: (B, n, n), symmetric positive semidefinite.
        p: (B, n).
        A: (B, k, n); `b` (B, k).
        b: See `A`.
        G: (B, m, n); `h` (B, m).
        h: See `G`.
    """

    xp: Any
    cone: Symmetric
    Q: Any
    p: Any
    A: Any
    b: Any
    G: Any
    h: Any

    @property
    def arrays(self) -> tuple[Any, ...]:
        """(Q, p, A, b, G, h)."""
        return self.Q, self.p, self.A, self.b, self.G, self.h

    @property
    def batch(self) -> int:
        """Number of instances."""
        return max(a.shape[0] for a in self.arrays)

    def with_arrays(self, arrays: Any) -> Program:
        """The same with other numbers."""
        return Program(self.xp, self.cone, *arrays)

    def take(self, index: Any) -> Program:
        """The instances `index`."""
        return self.with_arrays([a if a.shape[0] == 1 else a[index] for a in self.arrays])


@dataclass(frozen=True)
class Point:
    """A batch of primal-dual points: x (B, n), y (B, k), v = z - s (B, m), and the relative residual (B,) of the optimality conditions."""

    x: Any
    y: Any
    v: Any
    residual: Any

    def where(self, xp: Any, condition: Any, other: Point) -> Point:
        """Per instance this point where `condition` (B,) holds, else the other."""
        return Point(*(select(xp, condition, a, b) for a, b in zip(self.arrays, other.arrays, strict=True)))

    @property
    def arrays(self) -> tuple[Any, ...]:
        """(x, y, v, residual)."""
        return self.x, self.y, self.v, self.residual

    def usable(self, xp: Any, ok: Any) -> Point:
        """This point with an infinite residual, and zeros, where it is not `ok` (B,) or not finite."""
        good = ok & (self.residual < xp.inf)  # which a number that is not finite spoils
        zero = lambda a: select(xp, good, a, xp.zeros_like(a))  # noqa: E731
        return Point(zero(self.x), zero(self.y), zero(self.v), xp.where(good, self.residual, xp.full_like(self.residual, xp.inf)))

    def better(self, xp: Any, other: Point) -> Point:
        """Per instance the one with the smaller residual."""
        return self.where(xp, ~(other.residual < self.residual), other)


def residuals(program: Program, x: Any, y: Any, z: Any, s: Any) -> tuple[Any, Any, Any, Any]:
    """(r_x, r_y, r_z, norm): what is missing in stationarity, equalities and inequalities, and its size relative to the terms.

    The relative residual (B,) is the larger of stationarity and feasibility, each over its largest term; not a number where one is not.
    """
    xp = program.xp
    Qx, Ay, Gz = times(xp, program.Q, x), times_transposed(xp, program.A, y), times_transposed(xp, program.G, z)
    Ax, Gx = times(xp, program.A, x), times(xp, program.G, x)
    r_x, r_y, r_z = -(Qx + program.p + Ay + Gz), program.b - Ax, program.h - Gx - s
    # terms that vanish leave the norm to the others
    top, bottom = _largest(xp, x, Qx, program.p, Ay, Gz), _largest(xp, x, Ax, program.b, Gx, s, program.h)
    norm = xp.maximum(_largest(xp, x, r_x) / (top + TINY), _largest(xp, x, r_y, r_z) / (bottom + TINY))
    return r_x, r_y, r_z, norm


def missing(program: Program, v: Any, right: tuple[Any, Any, Any], step: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """What a step (dx, dy, dz) leaves of a right-hand side of the linear system at v, as a right-hand side again.

    The system is Q dx + A'dy + G'dz = r_x, A dx = r_y, G dx + ds = r_z with (I - D) dz + D ds = 0, D the derivative of the projection.
    """
    xp, cone = program.xp, program.cone
    (r_x, r_y, r_z), (dx, dy, dz) = right, step
    e_x = r_x - times(xp, program.Q, dx) - times_transposed(xp, program.A, dy) - times_transposed(xp, program.G, dz)
    e_y, e_z = r_y - times(xp, program.A, dx), r_z - times(xp, program.G, dx)
    if not cone.m:
        return e_x, e_y, e_z
    D = cone.derivative(xp, v)
    if not cone.groups:
        return e_x, e_y, D.linear * e_z
    ratio = D.map(lambda d: xp.where(d > 0, (1.0 - d) / xp.where(d > 0, d, xp.ones_like(d)), xp.zeros_like(d)))
    return e_x, e_y, cone.apply(xp, ratio, dz) + cone.apply(xp, D.map(lambda d: xp.astype(d > 0, d.dtype)), e_z)


def unsolved(xp: Any, left: tuple[Any, Any, Any], right: tuple[Any, Any, Any]) -> Any:
    """(B,), the size of what is missing relative to the right-hand side; not finite where that is not."""
    return _largest(xp, left[0], *left) / (_largest(xp, left[0], *right) + TINY)


def point(program: Program, x: Any, y: Any, v: Any) -> Point:
    """A point with its residual."""
    xp = program.xp
    z = program.cone.project(xp, v)
    norm = residuals(program, x, y, z, z - v)[3]
    return Point(x, y, v, xp.where(norm < xp.inf, norm, xp.full_like(norm, xp.inf)))


def vertex(program: Program, step: tuple[Any, Any, Any], active: Any, ok: Any) -> tuple[Point, tuple[Any, Any, Any]]:
    """On the orthant, the point of a solution (x, y, z) for these active rows (B, m), and what `missing` finds there.

    The active rows stay as they are: a wrong sign shows in the residual. See `Point.usable` for `ok`.
    """
    xp, (x, y, z) = program.xp, step
    z, raw = xp.where(active, xp.clip(z, TINY, None), xp.zeros_like(z)), program.h - times(xp, program.G, x)
    s = xp.where(active, xp.zeros_like(z), xp.clip(raw, 0.0, None))
    r_x, r_y, _, norm = residuals(program, x, y, z, s)
    return Point(x, y, z - s, norm).usable(xp, ok), (r_x, r_y, xp.where(active, raw, xp.zeros_like(z)))


def times(xp: Any, M: Any, x: Any) -> Any:
    """M x for M (B or 1, k, n) and x (B, n)."""
    if M.shape[0] == 1 and x.shape[0] != 1:
        return xp.matmul(x, M[0].T)
    return xp.matvec(M, x)


def times_transposed(xp: Any, M: Any, y: Any) -> Any:
    """M'y for M (B or 1, k, n) and y (B, k)."""
    if M.shape[0] == 1 and y.shape[0] != 1:
        return xp.matmul(y, M[0])
    return xp.matmul(y[..., None, :], M)[..., 0, :]


def triangular(xp: Any, L: Any, b: Any, transposed: bool = False) -> Any:
    """Solve L x = b or L'x = b for L (B or 1, n, n) and b (B, n) or (B, n, k)."""
    if b.ndim == 2:
        if L.shape[0] == 1:
            return xp.solve_triangular(L[0], b.T, transposed=transposed).T
        return xp.solve_triangular(L, b[..., None], transposed=transposed)[..., 0]
    if L.shape[0] == 1 and b.shape[0] != 1:
        B, n, k = b.shape
        wide = xp.permute_dims(b, (1, 0, 2)).reshape(n, B * k)
        return xp.permute_dims(xp.solve_triangular(L[0], wide, transposed=transposed).reshape(n, B, k), (1, 0, 2))
    return xp.solve_triangular(L, b, transposed=transposed)


def cholesky_solve(xp: Any, L: Any, b: Any) -> Any:
    """Solve L L'x = b for L (B or 1, n, n) and b (B, n)."""
    if L.shape[0] == 1 and b.shape[0] != 1:
        return xp.cholesky_solve(L[0], b.T).T
    return xp.cholesky_solve(L, b[..., None])[..., 0]


def _largest(xp: Any, like: Any, *terms: Any) -> Any:
    """(B,), the largest magnitude in the terms (B or 1, k), zero where there is none."""
    B = like.shape[0]
    terms = tuple(t if t.shape[0] == B else xp.broadcast_to(t, (B, t.shape[1])) for t in terms if t.shape[1])
    if not terms:
        return xp.zeros_like(like[:, 0])
    return xp.max(xp.abs(terms[0] if len(terms) == 1 else xp.concat(terms, axis=1)), axis=1)


def select(xp: Any, condition: Any, a: Any, b: Any) -> Any:
    """Per instance a or b, for a condition (B,)."""
    return xp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)


def put(xp: Any, a: Any, index: Any, value: Any) -> Any:
    """A copy of a with rows `index` replaced (frameworks whose arrays can be written to)."""
    out = xp.asarray(a, copy=True)
    out[index] = value
    return out


def size_for(count: int, steps: int = 2) -> int:
    """The next size with `steps` sizes from one power of two to the next: what is recorded is recorded by size, so sizes should be few."""
    step = max(1 << max(count - 1, 0).bit_length(), 2 * steps) // (2 * steps)
    return -(-count // step) * step
