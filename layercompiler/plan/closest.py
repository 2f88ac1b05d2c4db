"""A solved batch in which programs that cannot be satisfied are answered by the closest one that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layercompiler.derivatives.data_gradient import Adjoint, Gradients
from layercompiler.derivatives.residual_map import Point
from layercompiler.errors import UnsupportedTransformError
from layercompiler.plan.evaluation import Bound, Evaluation, Tangent
from layercompiler.plan.parts import Parts
from layercompiler.programs.cone import Structure
from layercompiler.solvers.closest import ClosestPoints
from layercompiler.status import Info


class ClosestEvaluation(Evaluation):
    """`Evaluation` where the instances `index` are those of closest programs, whose right-hand sides move with all data.

    Args:
        problem: See `Evaluation`; likewise `bound`, `info`.
        bound: See `problem`.
        point: Points, with those of closest programs among them.
        linear: Linear system of the others, or None.
        info: See `problem`.
        index: Which instances.
        found: Their points.
        threads: Threads of compiled kernels.
    """

    def __init__(
        self,
        problem: Parts,
        bound: Bound,
        point: Point,
        linear: Any,
        info: Info,
        index: np.ndarray,
        found: ClosestPoints,
        threads: int,
    ) -> None:
        super().__init__(problem, bound, point, linear, info)
        self.index, self.found, self.threads = index, found, threads

    @property
    def linear(self) -> Any:
        """The linear systems of all instances."""
        if not isinstance(self._linear, _Mixed):
            others = len(self.index) + len(self.bad) < self.count
            near = (super().linear if others else None) if self._linear is None else self._linear
            self._linear: Any = _Mixed(near, self.index, self.found, self.threads, self.point.y.shape[1])
        return self._linear

    def _wide(self, x: np.ndarray | None, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the closest programs among zeros, in the coordinates of the program as written."""
        e, s = self.problem.elimination, self.problem.program.structure
        out_x, out_y = np.zeros((self.count, s.n)), np.zeros((self.count, s.m))
        for out, part, keep in ((out_x, x, e.keep_x), (out_y, y, e.keep_y)):
            if part is not None:
                out[np.ix_(self.index, keep)] = part
        return out_x, out_y

    def _adjoint(self, gx: np.ndarray, gy: np.ndarray, gv: np.ndarray | None) -> Adjoint:
        plain, found, e = super()._adjoint(gx, gy, gv), self.found, self.problem.elimination
        K, at = found.least.violated, np.ix_(self.index, e.keep_y)
        right, t = gy[at] * K, plain.t[at] * K
        across = right - found.range.project(right)
        rows = self._wide(None, found.least.s)[1], self._wide(None, -across)[1]
        cols = self._wide(found.range.coordinates(t), None)[0], self._wide(found.nu, None)[0]
        return _ClosestAdjoint(plain.x, plain.y, plain.u, plain.t, plain.value, tuple(zip(rows, cols, strict=True)))

    def vjp(self, cotangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.vjp`."""
        adjoint, chain = self._adjoint(*self._pull_outputs(self._cotangents(cotangents))), self.bound.chain
        return chain.to_parameters(chain.pull(adjoint.gradients(self.problem.program.structure), self._clean))

    def _push(self, channels: Sequence[np.ndarray | None]) -> Tangent:
        t, found = self._push_data(channels), self.found
        e, d = self.problem.elimination, self.bound.full
        K = found.least.violated
        nu, s = self._wide(found.nu, found.least.s)
        Px = self._P(t.P, self.x)
        r_x = Px + self._AT(t.A, self.y) + (0.0 if t.q is None else t.q)
        r_y = self._A(t.A, self.x) - (0.0 if t.b is None else t.b)
        turned = self._AT(t.A, s)[np.ix_(self.index, e.keep_x)]
        moved = self._wide(None, found.range.apply(found.range.gram(turned)) * K)[1]
        dx, dy = self._solve(-r_x, -r_y - moved)
        across = self._A(t.A, nu)[np.ix_(self.index, e.keep_y)] * K
        dy = dy + self._wide(None, (across - found.range.project(across)) * K)[1]
        value = t.value(self.x, Px) + np.sum((self._P(d.P, self.x) + d.q) * dx, axis=1)
        return replace(t, x=dx, y=dy, objective=value)

    def hvp(self, cotangents: Sequence[Any], tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Raise: there is no second order."""
        raise _no_second_order(self.index)

    def second(self, tangents1: Sequence[Any], tangents2: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Raise: there is no second order."""
        raise _no_second_order(self.index)


def _no_second_order(index: np.ndarray) -> UnsupportedTransformError:
    return UnsupportedTransformError(
        "closest programs have first derivatives only",
        where=f"infeasible instances {index[:8].tolist()}",
        mend="keep infeasible instances out of second derivatives",
    )


@dataclass(frozen=True)
class _ClosestAdjoint(Adjoint):
    """`Adjoint` whose gradient of A has further terms - a b'.

    Attributes:
        further: Pairs (a, b) of (B, m), (B, n).
    """

    further: tuple[tuple[np.ndarray, np.ndarray], ...]

    def gradients(self, s: Structure) -> Gradients:
        """See `Adjoint.gradients`."""
        P, q, d, A, b = super().gradients(s)
        plain: Callable[[], np.ndarray] = A

        def whole() -> np.ndarray:
            out = plain()
            for rows, cols in self.further:
                out -= rows[:, s.A_rows] * cols[:, s.A_cols]
            return out

        return P, q, d, whole, b


@dataclass(frozen=True)
class _Mixed:
    """The linear systems of a batch, some of them of closest programs."""

    near: Any
    index: np.ndarray
    found: ClosestPoints
    threads: int
    m: int

    def route(self) -> None:
        """No factors that the kernels know."""

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Linearization.solve`."""
        u, t, residual = np.zeros_like(r_x), np.zeros_like(h), np.zeros(len(r_x))
        if self.near is not None:
            a, b = r_x.copy(), h.copy()
            a[self.index], b[self.index] = 0.0, 0.0
            u, t, residual = self.near.solve(a, b, refine)
        u[self.index], t[self.index], residual[self.index] = self.found.linear(r_x[self.index], h[self.index], self.threads)
        return u, t, residual

    def solve_least_squares(self, i: int, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Linearization.solve_least_squares`."""
        at = np.flatnonzero(self.index == i)
        return self.found.least_squares(int(at[0]), r_x, h) if len(at) else self.near.solve_least_squares(i, r_x, h)
