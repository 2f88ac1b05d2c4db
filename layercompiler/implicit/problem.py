"""What people write: roots, fixed points, minimisers, declarative nodes and unrolled algorithms, as frozen values that `export` compiles.

Functions are either written for array functions, f(xp, y, *theta), and then serve every framework, or natively in one, f(y, *theta).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from layercompiler.arrays import Arrays
from layercompiler.derivatives.solves import Auto, LinearSolve
from layercompiler.errors import BuildError
from layercompiler.implicit import maps
from layercompiler.implicit.arguments import Unknown, bound
from layercompiler.implicit.compaction import Instances
from layercompiler.implicit.descent import LBFGS, BlockCoordinate, Gradient, MirrorDescent
from layercompiler.implicit.iterations import Anderson, Newton, Result, Solver

Function = Callable[..., Any]


@dataclass(frozen=True)
class Lowered:
    """A problem over flat arrays: residual F(y, *theta), a run of its solver, and how the solution is handed out.

    Attributes:
        residual: What is differentiated.
        run: (y0, *theta) -> Result.
        recover: Flat solution -> outputs; None for the structure of the unknown.
        structure: Facts known of dF/dy.
        linear_solve: The linear solve that fits, where the user names none.
    """

    residual: Function
    run: Callable[..., Result]
    recover: Function | None = None
    structure: frozenset[str] = frozenset()
    linear_solve: LinearSolve | None = None


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What every implicit problem has.

    Args:
        init: Where the solver starts and what the unknown looks like: an array, a nest of arrays, or a function (xp, *theta) -> either.
        batch: Number of leading dimensions of the unknown that are independent instances.
        linear_solve: Linear solve of the derivative; None to choose.
        structure: Facts known of dF/dy.
        tolerance: A point with |F| above tolerance * (1 + |y|) is not a solution.
        on_error: "raise", "warn" or "flag", for instances without a solution.
    """

    init: Any = None
    batch: int = 0
    linear_solve: LinearSolve | None = None
    structure: tuple[str, ...] = ()
    tolerance: float | None = 1e-6
    on_error: str = "raise"
    layer_kind: ClassVar[str] = "implicit.ImplicitLayer"


@dataclass(frozen=True)
class Root(_Settings):
    """The root of F(y, *theta) = 0.

        layer = lc.export(lc.Root(lambda xp, y, theta: y**3 + theta * y - 1.0, init=np.ones(3)), "torch")

    Args:
        F: The residual, of the structure of y; with `has_aux` it returns (residual, aux), and aux is differentiated like y.
        solver: `Newton`, `Broyden`, `Bisection`, or any function solver(init, *theta) -> y.
        has_aux: Whether F has auxiliary outputs.
    """

    F: Function
    solver: Any = Newton()  # noqa: RUF009 - a frozen value
    has_aux: bool = False

    def lower(self, xp: Arrays, unknown: Unknown, F: Function) -> Lowered:
        """F over flat arrays."""
        return Lowered(F, lambda y, *theta: self.solver.run(xp, Instances(F, theta), y, unknown.batch))


@dataclass(frozen=True)
class FixedPoint(_Settings):
    """The fixed point y = T(y, *theta).

    Args:
        T: The map, of the structure of y. Parameters of a torch module that T uses are differentiated without being listed.
        solver: `Anderson`, `Picard`, `Broyden` or `Newton` (on y - T(y)), or any function solver(init, *theta) -> y.
        has_aux: Whether T returns (value, aux).
    """

    T: Function
    solver: Any = Anderson()  # noqa: RUF009
    has_aux: bool = False

    def lower(self, xp: Arrays, unknown: Unknown, T: Function) -> Lowered:
        """y - T(y) over flat arrays."""
        F = maps.fixed_point(T)
        G = T if getattr(self.solver, "kind", "") == "fixed" else F
        run = lambda y, *theta: self.solver.run(xp, Instances(G, theta), y, unknown.batch)  # noqa: E731
        return Lowered(F, run, linear_solve=Auto(probe=False, contraction=True))


@dataclass(frozen=True)
class Argmin(_Settings):
    """The minimiser of f(y, *theta), free, constrained, composite or over simplices.

    What is checked is that y is stationary. Where f is not convex the solver may end in another stationary point than a minimum, whose
    derivative it is then.

    Args:
        f: The objective: one number per instance.
        eq: Equality constraints eq(y, *theta) = 0, (batch..., p). With constraints the outputs are (y, multipliers of eq, of ineq).
        ineq: Inequality constraints ineq(y, *theta) <= 0, (batch..., q).
        prox: Proximal operator prox(v, t, *theta) of a further term.
        projection: Projection project(v, *theta) onto a constraint set.
        geometry: "euclidean", or "kl" for products of simplices over the last dimension.
        solver: `LBFGS`, `Gradient`, `MirrorDescent`, `BlockCoordinate`, `Newton`; any function solver(init, *theta) -> y; None to choose.
        step: Step length in the fixed-point map of the derivative, which does not depend on it.
    """

    f: Function
    eq: Function | None = None
    ineq: Function | None = None
    prox: Function | None = None
    projection: Function | None = None
    geometry: str = "euclidean"
    solver: Any = None
    step: float = 1.0

    def __post_init__(self) -> None:
        given = [n for n in ("prox", "projection") if getattr(self, n) is not None]
        if self.geometry not in ("euclidean", "kl"):
            raise BuildError("unknown geometry", expected="'euclidean' or 'kl'", got=repr(self.geometry))
        if len(given) > 1 or (given and (self.eq or self.ineq or self.geometry == "kl")):
            raise BuildError("constraints in two forms", expected="one of eq/ineq, prox, projection, geometry='kl'", got=", ".join(given))

    def lower(self, xp: Arrays, unknown: Unknown, f: Function) -> Lowered:
        """The optimality map that fits."""
        if self.eq or self.ineq:
            return self._constrained(xp, unknown, f)
        batch, solver, slope = unknown.batch, self.solver, maps.gradient(xp, f)
        prox: Function | None = None
        if self.geometry == "kl":
            F, default = maps.mirror_descent(xp, f, self.step), MirrorDescent(step=self.step)
        elif self.prox or self.projection:
            given = bound(self.prox or self.projection, xp)  # type: ignore[arg-type]
            prox = given if self.prox else lambda v, t, *theta: given(v, *theta)
            F, default = maps.proximal_gradient(xp, f, prox, self.step), Gradient()
        else:
            F, default = maps.stationary(xp, f), LBFGS()
        solver = solver or default

        def run(y: Any, *theta: Any) -> Result:
            if solver.kind != "minimum":
                return solver.run(xp, Instances(F, theta), y, batch)
            options: dict[str, Any] = {"f": Instances(f, theta)}
            if isinstance(solver, (Gradient, BlockCoordinate)) and prox is not None:
                options["prox"] = Instances(prox, theta, (1.0,))
            return solver.run(xp, Instances(slope, theta), y, batch, **options)

        return Lowered(F, run, None, frozenset({"symmetric"}) if prox is None and self.geometry != "kl" else frozenset())

    def _constrained(self, xp: Arrays, unknown: Unknown, f: Function) -> Lowered:
        if not unknown.single or len(unknown.shapes[0]) != unknown.batch + 1:
            raise BuildError("constrained problems take one vector as the unknown", expected="(batch..., n)", got=str(unknown.shapes))
        eq, ineq = (None if g is None else bound(g, xp) for g in (self.eq, self.ineq))
        n = unknown.sizes[0]
        sizes: list[tuple[int, int, int]] = []

        def count(y: Any, theta: tuple[Any, ...]) -> tuple[int, int, int]:
            if not sizes:
                shape = [0 if g is None else int(g(y[..., :n], *theta).shape[-1]) for g in (eq, ineq)]
                sizes.append((n, shape[0], shape[1]))
            return sizes[0]

        def F(z: Any, *theta: Any) -> Any:
            return maps.kkt(xp, f, eq, ineq, count(z, theta))(z, *theta)

        def run(y: Any, *theta: Any) -> Result:
            _, p, q = count(y, theta)
            z = xp.concat([y, xp.zeros_like(y[..., :1]) + xp.zeros_like(xp.new([0.0] * p, y))] if p else [y], axis=-1)
            z = xp.concat([z, xp.zeros_like(y[..., :1]) + xp.new([1.0] * q, y)], axis=-1) if q else z
            solver = self.solver or Newton(maxiter=100)
            result = None
            for mu in (1e-1, 1e-3, 1e-6, 1e-10, 0.0) if q else (0.0,):
                G = maps.smoothed_kkt(xp, f, eq, ineq, (n, p, q), mu)
                result = solver.run(xp, Instances(G, theta), z, unknown.batch)
                z = result.y
            return Result(z, result.residual, result.iterations) if result else Result(z, 0.0, 0)

        def recover(z: Any) -> tuple[Any, ...]:
            _, p, _ = sizes[0]
            return unknown.unflatten(z[..., :n]), z[..., n : n + p], z[..., n + p :]

        return Lowered(F, run, recover)


@dataclass(frozen=True)
class Declarative(_Settings):
    """A deep declarative node: min objective(y, *theta) s.t. eq = 0, ineq <= 0, A y = b, for y (batch, n).

    Args:
        objective: One number per instance, (batch,).
        eq: Equality constraints, (batch, p).
        ineq: Inequality constraints <= 0, (batch, q).
        linear: (A, b) of linear equality constraints, or a function of theta that gives it; A (p, n) or (batch, p, n).
        solver: As of `Argmin`.
        duals: Whether the multipliers are outputs too.

    Source: Gould, Hartley & Campbell 2021, "Deep declarative networks".
    """

    objective: Function
    eq: Function | None = None
    ineq: Function | None = None
    linear: Any = None
    solver: Any = None
    duals: bool = False
    batch: int = field(default=1, kw_only=True)

    def argmin(self, xp: Arrays) -> Argmin:
        """The minimisation problem that it is."""
        eq = None if self.eq is None else bound(self.eq, xp)
        linear = None if self.linear is None else bound(self.linear, xp) if callable(self.linear) else lambda *_: self.linear

        def equalities(y: Any, *theta: Any) -> Any:
            parts = [] if eq is None else [eq(y, *theta)]
            if linear is not None:
                A, b = (v if not isinstance(v, (list, tuple)) and arrays_alike(xp, v) else xp.new(v, y) for v in linear(*theta))
                parts.append(xp.sum(A * y[..., None, :], axis=-1) - b)
            return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

        needed = eq is not None or linear is not None
        shared = {n: getattr(self, n) for n in ("init", "batch", "linear_solve", "structure", "tolerance", "on_error")}
        return Argmin(self.objective, equalities if needed else None, self.ineq, solver=self.solver, **shared)


def arrays_alike(xp: Arrays, value: Any) -> bool:
    """Whether a value is an array of the framework itself, not of numpy."""
    return xp.is_array(value) and type(value).__module__.split(".")[0] != "numpy"


@dataclass(frozen=True)
class Unrolled:
    """n steps of an algorithm, y <- step(y, *theta), differentiated through the steps.

    Args:
        step: step(y, *theta), or step(y, weights, *theta) if `learn` is given.
        n: Number of steps.
        learn: Weights of the steps: a nest of arrays whose leading dimension is n (one slice per step), learned in the layer.
        init: Where it starts: an array, a nest, or a function (xp, *theta) -> either.
        truncate: Differentiate only the last steps; None for all.

    Source: Gregor & LeCun 2010 (LISTA) for learned steps.
    """

    step: Function
    n: int
    learn: Any = None
    init: Any = None
    truncate: int | None = None
    layer_kind: ClassVar[str] = "implicit.ImplicitLayer"


def solver_of(problem: Any) -> Any:
    """The solver of a problem if it is a function of the user's, else None."""
    solver = getattr(problem, "solver", None)
    return solver if callable(solver) and not isinstance(solver, Solver) else None
