"""Solvers of roots and fixed points on flat arrays (batch..., event...): every instance converges on its own.

Each is a value with `run(xp, G, y0, batch) -> Result`, where G is the residual (Newton, Broyden, Bisection) or the map T (Picard,
Anderson). Instances that have converged stand still, and rest where that saves time (`layercompiler.implicit.compaction`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layercompiler.arrays import Arrays
from layercompiler.derivatives import factors, krylov
from layercompiler.derivatives.factors import Factor
from layercompiler.derivatives.operator import jacobian
from layercompiler.derivatives.solves import LinearSolve, solve
from layercompiler.implicit.compaction import loop

Map = Callable[[Any], Any]


@dataclass(frozen=True)
class Result:
    """What a solver found.

    Attributes:
        y: The point, (batch..., event...).
        residual: Norm of the residual there, (batch..., 1...).
        iterations: Iterations of the whole batch.
        factor: A factorisation of dF/dy at or near y, if the solver has one.
    """

    y: Any
    residual: Any
    iterations: Any
    factor: Factor | None = None


class Solver(ABC):
    """A solver as a value; `kind` says what it iterates: "root" (F), "fixed" (T) or "minimum" (f)."""

    kind = "root"

    @abstractmethod
    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """Solve from y."""


def norm(xp: Arrays, a: Any, batch: int) -> Any:
    """Norms per instance, (batch..., 1...)."""
    return xp.norm(a, tuple(range(batch, len(a.shape))))


@dataclass(frozen=True)
class Newton(Solver):
    """Newton's method with halving of the step while the residual grows.

    Args:
        tol: Stop when |F| <= tol * (1 + |y|).
        maxiter: Most iterations.
        linear_solve: None for a dense LU of every instance's Jacobian, whose last factor serves the derivative; or a linear solve.
    """

    tol: float = 1e-12
    maxiter: int = 50
    linear_solve: LinearSolve | None = None

    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """See `Solver.run`."""
        kept: list[Factor] = []

        def direction(G: Map, y: Any, F: Any) -> tuple[Any, Factor | None]:
            A = jacobian(xp, G, y, batch)
            if self.linear_solve is None:
                factor = factors.lu(xp, A.blocks)
                return A.shaped(factor.solve(xp, A.flat(F))), factor
            return solve(self.linear_solve, A, F, on_error="warn"), None

        def moving(k: Any, y: Any, F: Any, e: Any, *factor: Any) -> Any:
            return e > self.tol * (1 + norm(xp, y, batch))

        def step(G: Map, k: Any, y: Any, F: Any, e: Any, *_: Any) -> tuple[Any, ...]:
            d, factor = direction(G, y, F)
            active = moving(k, y, F, e)

            def worse(i: Any, t: Any, new: Any, F: Any, fresh: Any) -> Any:
                return (i < 30) & xp.any(active & ~(fresh < e))

            def halve(i: Any, t: Any, new: Any, F: Any, fresh: Any) -> tuple[Any, ...]:
                t = xp.where(active & ~(fresh < e), 0.5 * t, t)
                return (i + 1, t, *trial(t))

            def trial(t: Any) -> tuple[Any, Any, Any]:
                new = xp.where(active, y - t * d, y)
                value = G(new)
                return new, value, norm(xp, value, batch)

            one = xp.ones_like(e)
            _, _, new, value, fresh = xp.while_loop(worse, halve, (xp.zero, one, *trial(one)))
            better = fresh < e  # a step that never got better is rounding: stay
            new, value = xp.where(better, new, y), xp.where(better, value, F)
            stuck = active & ~better
            return (
                k + 1 + xp.where(xp.all(stuck | ~active), xp.new(self.maxiter), xp.new(0)),
                new,
                value,
                xp.where(better, fresh, e),
                *_arrays(factor),
            )

        F = G(y)
        start = (xp.zero, y, F, norm(xp, F, batch))
        if self.linear_solve is None:
            kept.append(direction(G, y, F)[1])  # type: ignore[arg-type]
        found = loop(xp, G, moving, step, (*start, *_arrays(kept[0] if kept else None)), batch, self.maxiter)
        return Result(found[1], found[3], found[0], Factor("lu", tuple(found[4:])) if kept else None)


def _arrays(factor: Factor | None) -> tuple[Any, ...]:
    return () if factor is None else factor.arrays


@dataclass(frozen=True)
class Picard(Solver):
    """Plain iteration y <- (1 - damping) y + damping T(y).

    Args:
        tol: Stop when |T(y) - y| <= tol * (1 + |y|).
        maxiter: Most iterations.
        damping: Step length.
    """

    tol: float = 1e-10
    maxiter: int = 1000
    damping: float = 1.0
    kind = "fixed"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """See `Solver.run`."""

        def moving(k: Any, y: Any, g: Any, e: Any, active: Any) -> Any:
            return active

        def state(G: Map, k: Any, y: Any) -> tuple[Any, ...]:
            g = G(y)
            e = norm(xp, g - y, batch)
            return k, y, g, e, e > self.tol * (1 + norm(xp, y, batch))

        def step(G: Map, k: Any, y: Any, g: Any, e: Any, active: Any) -> tuple[Any, ...]:
            new = g if self.damping == 1.0 else xp.axpy(self.damping, g - y, y)
            return state(G, k + 1, xp.held(active, new, y) if batch else new)

        k, y, _, e, _ = loop(xp, G, moving, step, state(G, xp.zero, y), batch, self.maxiter)
        return Result(y, e, k)


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration of depth m: the best affine combination of the last m + 1 points, per instance.

    Args:
        tol: Stop when |T(y) - y| <= tol * (1 + |y|).
        maxiter: Most iterations.
        depth: Number of remembered differences.
        ridge: Regularisation of the small least-squares problem, relative to its largest diagonal entry.
        damping: Mixing of the extrapolated point with its image.

    Source: Walker & Ni 2011, "Anderson acceleration for fixed-point iterations" (the unconstrained form).
    """

    tol: float = 1e-10
    maxiter: int = 200
    depth: int = 5
    ridge: float = 1e-12
    damping: float = 1.0
    kind = "fixed"

    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """See `Solver.run`."""
        m = self.depth

        def rows(a: Any) -> Any:
            return xp.reshape(a, (*a.shape[:batch], 1, -1))

        def moving(k: Any, y: Any, g: Any, dG: Any, dF: Any, e: Any) -> Any:
            return e > self.tol * (1 + norm(xp, y, batch))

        def step(G: Map, k: Any, y: Any, g: Any, dG: Any, dF: Any, e: Any) -> tuple[Any, ...]:
            f = rows(g - y)
            gram = xp.matmul(dF, xp.matrix_transpose(dF))
            scale = xp.max(xp.linalg.diagonal(gram), axis=-1)[..., None, None]
            gram = gram + xp.eye_like(y, m) * (self.ridge * scale + 1e-300 + xp.where(scale > 0, xp.zeros_like(scale), xp.ones_like(scale)))
            weights = xp.linalg.solve(gram, xp.matmul(dF, xp.matrix_transpose(f)))
            mixed = rows(g) - xp.matmul(xp.matrix_transpose(weights), dG)
            if self.damping != 1.0:
                mixed = mixed - (1 - self.damping) * (f - xp.matmul(xp.matrix_transpose(weights), dF))
            new = xp.reshape(mixed, tuple(y.shape))
            new = xp.where(xp.isfinite(new), new, g)
            new = xp.where(e > self.tol * (1 + norm(xp, y, batch)), new, y)
            value = G(new)
            dG = xp.concat([dG[..., 1:, :], rows(value - g)], axis=batch)
            dF = xp.concat([dF[..., 1:, :], rows(value - new) - f], axis=batch)
            return k + 1, new, value, dG, dF, norm(xp, value - new, batch)

        g = G(y)
        empty = xp.concat([xp.zeros_like(rows(y))] * m, axis=batch)
        k, y, _, _, _, e = loop(xp, G, moving, step, (xp.zero, y, g, empty, empty, norm(xp, g - y, batch)), batch, self.maxiter)
        return Result(y, e, k)


@dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's good method with a dense inverse Jacobian per instance, started at the identity.

    Args:
        tol: Stop when |F| <= tol * (1 + |y|).
        maxiter: Most iterations.
    """

    tol: float = 1e-10
    maxiter: int = 200

    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """See `Solver.run`."""

        def column(a: Any) -> Any:
            return xp.reshape(a, (*a.shape[:batch], -1, 1))

        def moving(k: Any, y: Any, F: Any, B: Any, e: Any) -> Any:
            return e > self.tol * (1 + norm(xp, y, batch))

        def step(G: Map, k: Any, y: Any, F: Any, B: Any, e: Any) -> tuple[Any, ...]:
            d = xp.reshape(-xp.matmul(B, column(F)), tuple(y.shape))
            d = xp.where(e > self.tol * (1 + norm(xp, y, batch)), d, xp.zeros_like(d))
            value = G(y + d)
            s, Bq = column(d), xp.matmul(B, column(value - F))
            row = xp.matmul(xp.matrix_transpose(s), B)
            below = xp.matmul(xp.matrix_transpose(s), Bq)
            B = B + krylov.safe(xp, xp.matmul(s - Bq, row), below)
            return k + 1, y + d, value, B, norm(xp, value, batch)

        F = G(y)
        n = 1
        for s in y.shape[batch:]:
            n *= int(s)
        B = xp.eye_like(y, n) + xp.zeros_like(xp.reshape(y, (*y.shape[:batch], n, 1)))
        k, y, _, _, e = loop(xp, G, moving, step, (xp.zero, y, F, B, norm(xp, F, batch)), batch, self.maxiter)
        return Result(y, e, k)


@dataclass(frozen=True)
class Bisection(Solver):
    """Bisection, entry by entry, of residuals whose i-th entry depends on the i-th unknown only and changes sign over [lower, upper].

    Args:
        lower: Left ends, broadcast over the unknown.
        upper: Right ends.
        maxiter: Number of halvings; 60 exhaust float64.
    """

    lower: Any = 0.0
    upper: Any = 1.0
    maxiter: int = 60

    def run(self, xp: Arrays, G: Map, y: Any, batch: int) -> Result:
        """See `Solver.run`."""
        low, high = xp.zeros_like(y) + self.lower, xp.zeros_like(y) + self.upper
        rising = G(high) > G(low)

        def step(k: Any, low: Any, high: Any) -> tuple[Any, ...]:
            middle = 0.5 * (low + high)
            right = (G(middle) > 0) == rising
            return k + 1, xp.where(right, low, middle), xp.where(right, middle, high)

        k, low, high = xp.while_loop(lambda k, low, high: k < self.maxiter, step, (xp.zero, low, high))
        y = 0.5 * (low + high)
        return Result(y, norm(xp, G(y), batch), k)
