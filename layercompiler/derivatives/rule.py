"""The one derivative rule: a root of F, whoever found it, becomes a differentiable function of what F depends on.

    F(y, theta) = 0    =>    dy/dtheta = -(dF/dy)^-1 dF/dtheta

`attach` is a Newton step from the root with a value of zero, y <- y - (dF/dy)^-1 F(y, theta), written so that its Jacobian is taken at
its own result: every derivative of it, forwards, backwards, mapped, of any order, is then that of the root itself. Residual maps of cone
programs, KKT systems, stationary points and fixed points are all instances.

    xp = arrays.of(theta)
    y = attach(xp, lambda y, theta: theta * y + y**3 - 1.0, y_found, (theta,))

A solver that factorised dF/dy hands its factor over: `attach(..., factor=lu(xp, J))`, see `derivatives.factors.Factor`.

Sources: Christianson 1994 (reverse accumulation and implicit functions); Blondel et al. 2022 (modular implicit differentiation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from layercompiler.arrays import Arrays, of
from layercompiler.derivatives.factors import Factor
from layercompiler.derivatives.operator import Operator, jacobian
from layercompiler.derivatives.solves import Auto, LinearSolve, solve
from layercompiler.errors import OptionError, ShapeError

Residual = Callable[..., Any]
STRUCTURES = frozenset({"symmetric", "psd", "negative"})


@dataclass(frozen=True)
class Settings:
    """How the linear systems of a derivative are solved.

    Args:
        linear_solve: The linear solve of forward and backward mode.
        structure: Facts known of dF/dy: "symmetric", "psd" (symmetric, positive semidefinite), "negative" (-dF/dy is psd).
        on_error: What happens to an instance whose system has no acceptable solution: "raise", "warn" or "flag" (zero derivative).
    """

    linear_solve: LinearSolve = field(default_factory=Auto)
    structure: frozenset[str] = frozenset()
    on_error: str = "raise"


def attach(
    xp: Arrays,
    F: Residual,
    y: Any,
    theta: Iterable[Any] = (),
    *,
    linear_solve: LinearSolve | None = None,
    batch: int = 0,
    structure: Iterable[str] = (),
    factor: Factor | None = None,
    on_error: str = "raise",
) -> Any:
    """The root y of F as a differentiable function of theta, and of every tensor that F captures.

    Args:
        xp: Array functions of the framework.
        F: F(y, *theta), of the shape of y, zero at the root. If `batch` is not 0, F treats its leading dimensions as independent
            instances: F(y)[i] depends on y[i] only.
        y: The root, (batch..., event...), found by any means; taken as a constant.
        theta: Arrays that F takes after y; those of a floating type are differentiated.
        linear_solve: How to solve with dF/dy; by default `Auto`.
        batch: Number of leading batch dimensions of y.
        structure: Facts known of dF/dy, see `Settings`.
        factor: A factorisation of dF/dy at or near y, over the flattened event dimensions.
        on_error: "raise", "warn" or "flag" for linear systems without an acceptable solution.

    Returns:
        y, with derivatives of every order, in forward and reverse mode, under vmap.

    Raises:
        DerivativeError: While differentiating: the Jacobian is singular.
        ShapeError: F(y) has not the shape of y.

    Cost: one evaluation of F here; one linear solve per tangent or cotangent.
    """
    theta = tuple(xp.asarray(t) if not hasattr(t, "dtype") else t for t in theta)
    f, found, _, tape = xp.captures(F, (y, *theta))
    settings = Settings(linear_solve or Auto(), frozenset(structure), on_error)
    return explicit(xp, f, y, (*theta, *found), settings, batch, factor, tape)


def explicit(
    xp: Arrays, F: Residual, y: Any, theta: tuple[Any, ...], settings: Settings, batch: int, factor: Factor | None, tape: Any = None
) -> Any:
    """As `attach`, for F that captures nothing, and with the tape of its evaluation at (y, *theta), if there is one (`Arrays.captures`)."""
    unknown = settings.structure - STRUCTURES
    if unknown:
        raise OptionError("unknown structure of a Jacobian", expected=f"of {sorted(STRUCTURES)}", got=str(sorted(unknown)))
    if settings.on_error not in ("raise", "warn", "flag"):
        raise OptionError("unknown value of on_error", expected="'raise', 'warn' or 'flag'", got=repr(settings.on_error))
    kept = () if factor is None else tuple(xp.stop_gradient(a) for a in factor.arrays)
    args = (*theta, *kept)
    own = tuple(range(len(theta), len(args)))
    shape = None if factor is None else (factor.kind, factor.sign)
    return xp.implicit(Root(F, batch, settings, shape, own, tape), (xp.stop_gradient(y),), args)


@dataclass(frozen=True)
class Root:
    """The root of F as an implicit function (`arrays.base.Implicit`); arrays of a factor ride behind the arguments."""

    F: Residual
    batch: int
    settings: Settings
    factor: tuple[str, int] | None
    own: tuple[int, ...]
    tape: Any = None

    def value(self, xp: Arrays, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The root that was found."""
        return known[0]

    def residual(self, y: Any, *args: Any) -> Any:
        """F(y, *theta)."""
        value = self.F(y, *args[: len(args) - len(self.own)])
        if tuple(value.shape) != tuple(y.shape):
            raise ShapeError("F(y) has not the shape of y", expected=str(tuple(y.shape)), got=str(tuple(value.shape)))
        return value

    def solve(self, xp: Arrays, y: Any, args: tuple[Any, ...], b: Any, transposed: bool) -> Any:
        """J^-1 b or J'^-1 b, differentiable."""
        if xp.name != "jax":
            count = len(args) - len(self.own)
            kept = tuple(range(1 + count, 1 + len(args)))
            return xp.implicit(Linear(self, transposed, (0, *kept, 1 + len(args))), (), (y, *args, b))
        _, push = xp.linearize(lambda v: self.residual(v, *args), y)

        def numbers(matvec: Any, vecmat: Any, r: Any, flipped: bool) -> Any:
            A = Operator(xp, r, self.batch, matvec, vecmat, self.settings.structure)
            return self.numbers(xp, A, y, args, r, flipped)

        return xp.linear_solve(push, b, numbers)

    def pulled(self, xp: Arrays, y: Any, args: tuple[Any, ...], b: Any) -> Any:
        """J'^-1 b on numbers."""
        return self.numbers(xp, self.operator(xp, y, args).T, y, args, b, True)

    def numbers(self, xp: Arrays, A: Operator, y: Any, args: tuple[Any, ...], b: Any, transposed: bool) -> Any:
        """Solve on numbers with A, which is J or, if `transposed`, J'."""
        count = len(args) - len(self.own)
        factor = None if self.factor is None else Factor(self.factor[0], args[count:], self.factor[1])
        make = getattr(self.settings.linear_solve, "preconditioner", None)
        if make is not None:
            M = make(y, *args[:count])
            A.preconditioner = _transpose(xp, M, b) if transposed else M
        return solve(self.settings.linear_solve, A, b, factor=factor, transposed=transposed, on_error=self.settings.on_error)

    def mapped(self, xp: Arrays, axes: tuple[int | None, ...]) -> Root:
        """The rule over one more leading batch dimension."""
        F, lanes = self.F, axes[: len(axes) - len(self.own)]
        return replace(self, F=lambda y, *theta: xp.vmap(F, (0, *lanes))(y, *theta), batch=self.batch + 1, tape=None)

    def operator(self, xp: Arrays, y: Any, args: tuple[Any, ...]) -> Operator:
        """J on numbers."""
        if self.tape is None:
            return jacobian(xp, lambda v: self.residual(v, *args), y, self.batch, self.settings.structure)
        matvec = self.tape.vecmat if self.settings.structure else self.tape.matvec  # symmetric, so the cheaper direction serves
        return Operator(xp, y, self.batch, matvec, self.tape.vecmat, self.settings.structure)


@dataclass(frozen=True)
class Linear:
    """The solution of J x = b or J'x = b as an implicit function of (y, *args, b): a linear system is a root too."""

    root: Root
    transposed: bool
    own: tuple[int, ...]

    def value(self, xp: Arrays, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The solution, on numbers."""
        y, *rest, b = args
        A = self.root.operator(xp, y, tuple(rest))
        return self.root.numbers(xp, A.T if self.transposed else A, y, tuple(rest), b, self.transposed)

    def residual(self, y: Any, *args: Any) -> Any:
        """J x - b, for x in the place of y."""
        x, (y, *rest, b) = y, args
        xp = of(x, b)

        def F(v: Any) -> Any:
            return self.root.residual(v, *rest)

        product = xp.vjp(F, y)[1](x)[0] if self.transposed else xp.jvp(F, (y,), (x,))[1]
        return product - b

    def solve(self, xp: Arrays, y: Any, args: tuple[Any, ...], b: Any, transposed: bool) -> Any:
        """The system is linear: its Jacobian is J itself."""
        return self.root.solve(xp, args[0], args[1:-1], b, self.transposed != transposed)

    def mapped(self, xp: Arrays, axes: tuple[int | None, ...]) -> Linear:
        """The rule over one more leading batch dimension."""
        return replace(self, root=self.root.mapped(xp, axes[1:-1]))


def _transpose(xp: Arrays, M: Callable[[Any], Any], like: Any) -> Callable[[Any], Any]:
    _, pull = xp.vjp(M, xp.zeros_like(like))
    return lambda v: pull(v)[0]
