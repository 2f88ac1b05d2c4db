"""The complementarity problem s = q + R z that the dual form leaves, and the predictor-corrector steps that solve it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from layercompiler.solvers.interior_point.program import cholesky_solve, put, select, times
from layercompiler.solvers.interior_point.symmetric import APART, Symmetric

_RIDGE = 1e-13  # on the unit diagonal of R
_SHARE = 0.995  # of the way to the boundary
_FEW = 8  # instances that are not worth collecting


@dataclass(frozen=True)
class State:
    """Where a batch is on its way.

    Attributes:
        z: (B, m), inside the cone; `s` (B, m) too.
        s: See `z`.
        r: (B, m), q + R z - s.
        active: (B,), what goes on.
        count: (B,), iterations.
    """

    z: Any
    s: Any
    r: Any
    active: Any
    count: Any

    @property
    def arrays(self) -> tuple[Any, ...]:
        """(z, s, r, active, count)."""
        return self.z, self.s, self.r, self.active, self.count

    def take(self, index: Any) -> State:
        """The instances `index`."""
        return State(*(a[index] for a in self.arrays))


@dataclass(frozen=True)
class Complementarity:
    """The problem s = q + R z, R with a unit diagonal (per cone) and q with a largest entry of one.

    Attributes:
        xp: Array functions.
        cone: The cone.
        R: (B or 1, m, m).
        q: (B, m).
        row: (B or 1, m), z of the program is scale row z, and s is scale s / row.
        scale: (B, 1).
    """

    xp: Any
    cone: Symmetric
    R: Any
    q: Any
    row: Any
    scale: Any

    @classmethod
    def of(cls, xp: Any, cone: Symmetric, R: Any, q: Any, row: Any) -> Complementarity:
        """Scale q (B, m)."""
        scale = xp.clip(xp.max(xp.abs(q), axis=1, keepdims=True), 1e-30, None)
        return cls(xp, cone, R, q / scale, row, scale)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """(R, q, row, scale)."""
        return self.R, self.q, self.row, self.scale

    def take(self, index: Any) -> Complementarity:
        """The instances `index`."""
        return Complementarity(self.xp, self.cone, *(a if a.shape[0] == 1 else a[index] for a in self.arrays))

    def v(self, z: Any, s: Any) -> Any:
        """Z - s in the units of the program, with the active set that shows in these units."""
        return self.cone.join_parts(self.xp, self.scale * z * self.row, self.scale * s / self.row, z > s)

    def start(self, able: Any, count: Any) -> State:
        """The solution of s = q + R z with z = -s, moved into the cone; active where `able` (B,) and it exists."""
        xp, cone = self.xp, self.cone
        L, ok = xp.cholesky(xp.add_diagonal(self.R, xp.ones_like(self.row)))
        z = cholesky_solve(xp, L, -self.q)
        e = xp.new(cone.identity, z)
        out, back = cone.shift(xp, z)[:, None], cone.shift(xp, -z)[:, None]
        zero = xp.zeros_like(out)
        s = -z + e * (xp.where(back > -1e-8, back + 1.0, zero))
        z = z + e * (xp.where(out > -1e-8, out + 1.0, zero))
        good = ok & able & xp.all(xp.isfinite(z), axis=1)
        z, s = select(xp, good, z, e + xp.zeros_like(z)), select(xp, good, s, e + xp.zeros_like(z))
        return self.at(z, s, good, count)

    def at(self, z: Any, s: Any, active: Any, count: Any) -> State:
        """The state at z and s."""
        return State(z, s, self.q + times(self.xp, self.R, z) - s, active, count)

    def iterate(self, state: State, early: Any, tolerance: Any, limit: Any, every: int, least: int = 0) -> tuple[State, Any]:
        """Predictor-corrector steps until at most `least` instances go on.

        Args:
            state: Where to begin.
            early: Tolerance of s'z / degree and of s - q - R z for instances whose active rows show.
            tolerance: The same for the others.
            limit: Most iterations.
            every: Whether all are done is asked only then: on a device a question costs a synchronization.
            least: See above.

        Returns:
            (state, number of steps); an instance that no step could be taken for is not active.
        """
        xp = self.xp
        held = (self.R, early, tolerance, *state.arrays)
        if xp.name not in ("jax", "tensorflow"):
            arrays, turns = _steps(xp, self.cone)(held, limit, least, every)
            return State(*arrays), turns

        def goes_on(z: Any, s: Any, r: Any, active: Any, count: Any, turn: Any) -> Any:
            return (turn < limit) & xp.any(active)

        def step(*now: Any) -> tuple[Any, ...]:
            return *_step(xp, self.cone, self.R, early, tolerance, *now[:-1]), now[-1] + 1

        *arrays, turns = xp.while_loop(goes_on, step, (*state.arrays, xp.zeros_like(state.count[0])))
        return State(*arrays), turns

    def settle(self, state: State, early: Any, tolerance: Any, limit: int, every: int) -> State:
        """`iterate` to the end; the instances that take longer than three quarters of the others go on by themselves."""
        xp, problem, rows, whole = self.xp, self, None, None
        while True:
            few = len(state.z) // 4 if len(state.z) >= _FEW else 0
            state, turns = problem.iterate(state, early, tolerance, limit, every, few)
            if rows is None:
                whole = state
            else:
                whole = State(*(put(xp, a, rows, b) for a, b in zip(whole.arrays, state.arrays, strict=True)))  # type: ignore[union-attr]
            limit -= turns
            if not few or limit <= 0 or not bool(xp.any(state.active)):
                return whole
            first = xp.argsort(xp.astype(~state.active, xp.int8))[:few]  # sizes that do not depend on numbers
            rows = first if rows is None else rows[first]
            problem, state = problem.take(first), state.take(first)


@cache
def traced(function: Any, xp: Any, cone: Symmetric) -> Any:
    """function(xp, cone, ...) as a function of the rest; in torch recorded once, since Python would cost as much as the numbers."""

    def call(*held: Any) -> tuple[Any, ...]:
        return function(xp, cone, *held)

    return xp.trace(call) if xp.name == "torch" else call


@cache
def _steps(xp: Any, cone: Symmetric) -> Any:
    """`_step` in a loop, see `Arrays.repeated`: the state begins with its fourth argument, and the seventh says who goes on."""
    return xp.repeated(lambda *held: _step(xp, cone, *held), 3, 6)


def _step(xp: Any, cone: Symmetric, *held: Any) -> tuple[Any, ...]:
    return (_curved_step if cone.groups else _flat_step)(xp, cone, *held)


def _distance(xp: Any, cone: Symmetric, z: Any, s: Any, r: Any) -> Any:
    """(B, 1), how far from a solution."""
    return xp.maximum(xp.sum(s * z, axis=1, keepdims=True) / cone.degree, xp.max(xp.abs(r), axis=1, keepdims=True))


def _flat_step(xp: Any, cone: Symmetric, R: Any, early: Any, tolerance: Any, z: Any, s: Any, r: Any, active: Any, count: Any) -> Any:
    """A step on the orthant, in the relative steps f = -dz / z and g = -ds / s; g = 1 - f for the predictor.

    Instances that are done take steps of length zero; where the factorization fails numbers stop to be numbers.
    """
    L, ok = xp.cholesky(xp.add_diagonal(R, s / z + _RIDGE))
    sz = s * z
    f = cholesky_solve(xp, L, s + r) / z
    fg = f - f * f
    mu = xp.sum(sz, axis=1, keepdims=True)
    # over f and g: max(f, 1 - f) = 1/2 + |f - 1/2|, and (1 - a f)(1 - a g) = 1 - a + a^2 f g
    a = 1.0 / (0.5 + xp.clip(xp.max(xp.abs(f - 0.5), axis=1, keepdims=True), 0.5, None))
    sigma = (1.0 - a * (1.0 - a * (xp.sum(sz * fg, axis=1, keepdims=True) / mu))) ** 3
    e = 1.0 + fg - (sigma * mu / cone.degree) / sz
    f = cholesky_solve(xp, L, s * e + r) / z
    g = e - f
    a = _SHARE / xp.clip(xp.max(xp.maximum(f, g), axis=1, keepdims=True), _SHARE, None)
    go = active[:, None] & ok[:, None] & (a > 0)  # no where it is not a number
    a = xp.where(go, a, xp.zeros_like(a))
    shows = a * xp.min(xp.abs(f - g), axis=1, keepdims=True) > APART
    z, s, r = z - a * (z * f), s - a * (s * g), r - a * r
    left = _distance(xp, cone, z, s, r)
    done = left < xp.where(shows, xp.maximum(early, tolerance), tolerance)
    go = go[:, 0]
    return z, s, r, go & ~done[:, 0], count + xp.astype(go, count.dtype)


def _curved_step(xp: Any, cone: Symmetric, R: Any, early: Any, tolerance: Any, z: Any, s: Any, r: Any, active: Any, count: Any) -> Any:
    """A step on any cone."""
    mu = xp.sum(s * z, axis=1, keepdims=True)
    W = cone.scaling(xp, s, z)
    L, ok = xp.cholesky(xp.add_diagonal(cone.add_square(xp, R, W), xp.full_like(z, _RIDGE)))
    dz = -cholesky_solve(xp, L, s + r)
    ds = -s - cone.square(xp, W, dz)
    a = _length(xp, cone, z, s, dz, ds, 1.0)
    sigma = (xp.sum((s + a * ds) * (z + a * dz), axis=1, keepdims=True) / mu) ** 3
    u = cone.corrector(xp, W, s, z, ds, dz, sigma * mu / cone.degree)
    dz = -cholesky_solve(xp, L, u + r)
    ds = -u - cone.square(xp, W, dz)
    a = _length(xp, cone, z, s, dz, ds, _SHARE)
    go = (active & ok)[:, None] & (mu > 0) & (a > 0)  # not where it is not a number
    shows = cone.settled(xp, dz / z, ds / s)[:, None]
    z, s, r = xp.where(go, z + a * dz, z), xp.where(go, s + a * ds, s), xp.where(go, (1.0 - a) * r, r)
    left = _distance(xp, cone, z, s, r)
    done = (left < tolerance) | ((left < early) & shows)
    go = go[:, 0]
    return z, s, r, go & ~done[:, 0], count + xp.astype(go, count.dtype)


def _length(xp: Any, cone: Symmetric, z: Any, s: Any, dz: Any, ds: Any, share: float) -> Any:
    """(B, 1), the share of the way to the boundary, at most one."""
    inverse = xp.maximum(cone.inverse_step(xp, z, dz), cone.inverse_step(xp, s, ds))
    return (1.0 / xp.clip(inverse / share, 1.0, None))[:, None]
