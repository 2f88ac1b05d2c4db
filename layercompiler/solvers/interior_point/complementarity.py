"""The complementarity problem s = q + R z that the dual form leaves, and the predictor-corrector steps that solve it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from layercompiler.solvers.interior_point.program import cholesky_solve, put, select, times
from layercompiler.solvers.interior_point.symmetric import Symmetric

_RIDGE = 1e-13  # on the unit diagonal of R
_SHARE = 0.995  # of the way to the boundary


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
    def of(cls, xp: Any, cone: Symmetric, R: Any, q: Any) -> Complementarity:
        """Scale R (B or 1, m, m) and q (B, m)."""
        diagonal = xp.linalg.diagonal(R)
        linear, parts = cone.split(diagonal)
        parts = [xp.max(p, axis=2, keepdims=True) + xp.zeros_like(p) for p in parts]
        row = 1.0 / xp.sqrt(xp.clip(cone.join(xp, linear, parts), 1e-30, None))
        q = q * row
        scale = xp.clip(xp.max(xp.abs(q), axis=1), 1e-30, None)[:, None]
        R = xp.add_diagonal(R * (row[:, :, None] * row[:, None, :]), xp.full_like(row, _RIDGE))
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
