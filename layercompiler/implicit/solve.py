"""From a residual map and a solver to a differentiable solution: the path that every front end of implicit functions takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.arrays import Arrays, of
from layercompiler.derivatives.factors import Factor
from layercompiler.derivatives.rule import Settings, explicit
from layercompiler.derivatives.solves import Auto, LinearSolve
from layercompiler.errors import OptionError, SolveError, UnsupportedTransformError

POLICIES = ("raise", "warn", "flag")


@dataclass(frozen=True)
class Policy:
    """How derivatives are computed and what happens to instances that fail.

    Args:
        linear_solve: Linear solve of the derivative; None for `Auto`.
        structure: Facts known of the Jacobian of the residual by the unknown.
        batch: Number of leading batch dimensions of the unknown that the residual treats as independent instances.
        tolerance: A point with |F| above tolerance * (1 + |y|) is not a root; None skips the check.
        on_error: "raise"; "warn"; or "flag": NaN outputs and zero derivatives for the failed instance. Traced code (jit, tf.function)
            cannot raise: there "raise" gives NaN. A singular linear system of a derivative raises, unless it is "flag".
    """

    linear_solve: LinearSolve | None = None
    structure: frozenset[str] = frozenset()
    batch: int = 0
    tolerance: float | None = 1e-5
    on_error: str = "raise"

    def __post_init__(self) -> None:
        if self.on_error not in POLICIES:
            raise OptionError("unknown value of on_error", expected=f"one of {POLICIES}", got=repr(self.on_error))


def norms(xp: Arrays, a: Any, batch: int) -> Any:
    """Euclidean norm of every instance, batch shape."""
    axes = tuple(range(batch, len(a.shape)))
    return xp.sqrt(xp.sum(a * a, axis=axes)) if axes else xp.abs(a)


def differentiable(
    xp: Arrays, F: Callable[..., Any], y: Any, theta: tuple[Any, ...], policy: Policy, factor: Factor | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """The point y, checked to be a root of F(y, *theta), as a differentiable function of theta and of what F captures; all these."""
    f, found, value, tape = xp.captures(F, (y, *theta))
    y = xp.stop_gradient(y)
    bad = None
    if policy.tolerance is not None:
        size = norms(xp, value, policy.batch)
        bad = _report(xp, ~(size <= policy.tolerance * (1 + norms(xp, y, policy.batch))), size, policy)
    theta = (*theta, *found)
    settings = Settings(policy.linear_solve or Auto(), policy.structure, "flag" if policy.on_error == "flag" else "raise")
    attached = explicit(xp, f, y, theta, settings, policy.batch, factor, tape)
    if bad is None:
        return attached, theta
    bad = xp.reshape(bad, (*bad.shape, *(1,) * (len(y.shape) - policy.batch)))
    return xp.where(bad, xp.zeros_like(y) + float("nan"), attached), theta


def _report(xp: Arrays, bad: Any, size: Any, policy: Policy) -> Any:
    """Raise or warn where there are numbers; the mask where outputs become NaN, or None."""
    if xp.traced(bad):
        return None if policy.on_error == "warn" else bad
    found = xp.numpy(bad)
    if not found.any():
        return None
    worst = float(np.max(np.where(found, xp.numpy(size), 0.0)))
    text = f"the point is not a root: |F| is {worst:.1e}" + (f" at {int(found.sum())} of {found.size} instances" if found.ndim else "")
    if policy.on_error == "warn":
        warnings.warn(text + "; its derivative is that of no solution", RuntimeWarning, stacklevel=4)
        return None
    if policy.on_error == "flag":
        return bad
    indices = tuple(tuple(int(i) for i in row) for row in np.argwhere(found))
    raise SolveError(
        text,
        indices=indices,
        expected=f"|F| at most {policy.tolerance:.0e} (1 + |y|)",
        mend="let the solver run to a smaller tolerance, pass tolerance=..., or on_error='warn'",
    )


@dataclass(frozen=True)
class Constant:
    """Values that come with a solution and have no derivative that anyone could know: asking for it raises (`Arrays.implicit`)."""

    message: str
    own: tuple[int, ...] = ()

    def value(self, xp: Arrays, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The value itself."""
        return known[0]

    def residual(self, y: Any, *args: Any) -> Any:
        """Never zero on purpose: there is no equation."""
        xp = of(y)
        return y + sum(xp.sum(a) for a in args) * 0.0

    def solve(self, xp: Arrays, y: Any, args: tuple[Any, ...], b: Any, transposed: bool) -> Any:
        """NaN forwards; an error backwards."""
        mend = "compute it from the solution outside of the solver, or with has_aux on F"
        if xp.name == "jax":
            return xp.refuse(b, self.message, mend)
        if transposed:
            raise UnsupportedTransformError(self.message, mend=mend)
        return xp.zeros_like(b) + float("nan")

    def mapped(self, xp: Arrays, axes: tuple[int | None, ...]) -> Constant:
        """Nothing depends on the batch."""
        return self


def refusing(xp: Arrays, value: Any, theta: tuple[Any, ...]) -> Any:
    """A nest of arrays as constants whose derivative by theta is refused."""
    leaves, build = xp.tree(value)
    rule = Constant("the solver's auxiliary output has no known derivative")
    arrays = tuple(t for t in theta if xp.is_floating(t))
    return build([xp.implicit(rule, (leaf,), arrays) if xp.is_array(leaf) and xp.is_floating(leaf) and arrays else leaf for leaf in leaves])
