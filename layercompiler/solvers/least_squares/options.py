"""Settings of a nonlinear least-squares solve."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from layercompiler.errors import OptionError, nearest

METHODS = ("levenberg_marquardt", "gauss_newton", "dogleg")
BACKWARD = ("implicit", "gauss_newton", "truncated", "unrolled", "dlm")
LINEAR = ("auto", "lanes", "schur", "cg", "dense", "plain")


@dataclass(frozen=True)
class LeastSquaresOptions:
    """How to solve a least-squares program and how to differentiate it.

    Attributes:
        max_iterations: Of the descent; refinement by Newton steps comes on top.
        tolerance: A point is converged where no component of the gradient exceeds this, relative to the lengths of its column of
            the Jacobian and of the residual (the cosine between them): a number without units.
        damping: First damping of Levenberg-Marquardt, relative to the diagonal where `ellipsoidal`.
        adaptive: Whether the damping follows the gain ratio, for each instance by itself. Fixed damping accepts steps that lower the cost.
        ellipsoidal: Damp each column by the square of its length, instead of all alike.
        radius: First trust radius of the dogleg, in units of scaled steps; None for the length of the first Cauchy step times ten.
        polish: Refine converged points by Newton steps with the exact Hessian, to a gradient near rounding.
        linear: How steps and derivatives solve their systems on the host: "lanes" (compiled sparse LDL', an instance per SIMD lane),
            "schur" (elimination of block-diagonal variables, such as the points of a bundle adjustment), "cg" (conjugate gradients,
            preconditioned by the diagonal blocks, for systems whose factors are too large), "dense" (LAPACK), "plain" (LAPACK, or qdldl
            where sparse), or "auto". jax always solves dense systems in its own arrays, and refuses others.
        eliminate: Variables that "schur" eliminates: a name or several; None for all that can be.
        backward: "implicit" (exact), "gauss_newton" (approximate: it drops the second derivatives of the residuals, and is off by as
            much as they matter: some percent at large residuals), "truncated" (or "truncated(5)": through `truncation` Gauss-Newton steps
            at the solution, damped where second derivatives would lead them away: the first terms of a series whose sum is exact),
            "unrolled" (through all steps that were taken, their dampings, trust radii and active bounds held: near the exact one by as
            much as the steps came near the solution), "dlm" (a difference along one direction, approximate). All return the solution
            with its own status, and none differentiates an instance in silence that did not converge, or whose Hessian is not positive
            definite. Steps that are unrolled go all the way to the tolerance without Newton's method, which only polishes what came there.
        truncation: Steps of "truncated"; none have the derivative zero.
        epsilon: Relative size of the difference of "dlm".
        trace: Record the residuals once for each shape of the inputs (torch), so that Python's overhead is paid once.
        check_domain: Raise at a call whose parameters are outside of what they were declared or are used as: radii of robust losses are
            positive, scales are not negative, elements of groups are elements, parameters of CVXPY have their attributes. Inside of a
            transform, where there is nothing to raise for, and for radii without this check, such an instance is not solved.
    """

    max_iterations: int = 100
    tolerance: float = 1e-8
    damping: float = 1e-3
    adaptive: bool = True
    ellipsoidal: bool = True
    radius: float | None = None
    polish: bool = True
    linear: str = "auto"
    eliminate: str | tuple[str, ...] | None = None
    backward: str = "implicit"
    truncation: int = 5
    epsilon: float = 1e-4
    trace: bool = True
    check_domain: bool = True

    def __post_init__(self) -> None:
        spelled = re.fullmatch(r"truncated\s*\(\s*(?:k\s*=\s*)?(\d+)\s*\)", str(self.backward))
        if spelled:
            object.__setattr__(self, "backward", "truncated")
            object.__setattr__(self, "truncation", int(spelled[1]))
        if self.eliminate is not None:
            object.__setattr__(self, "eliminate", (self.eliminate,) if isinstance(self.eliminate, str) else tuple(self.eliminate))
            if self.linear not in ("auto", "schur"):
                raise OptionError(
                    "only Schur complements eliminate variables", where="eliminate", expected="linear='schur'", got=self.linear
                )
            object.__setattr__(self, "linear", "schur")
        for name, allowed in (("backward", BACKWARD), ("linear", LINEAR)):
            if getattr(self, name) not in allowed:
                raise OptionError(f"unknown value of '{name}'", expected=f"one of {list(allowed)}", got=repr(getattr(self, name)))
        for name in ("tolerance", "damping", "epsilon"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise OptionError(f"option '{name}' is out of range", expected="a finite number >= 0", got=repr(value))
        for name in ("max_iterations", "truncation"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 0):
                raise OptionError(f"option '{name}' is out of range", expected="a whole number >= 0", got=repr(value))

    @classmethod
    def of(cls, value: LeastSquaresOptions | dict[str, Any] | None) -> LeastSquaresOptions:
        """Options of a value, a dict of fields, or nothing.

        Raises:
            OptionError: An unknown field or a value out of range.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        names = [f.name for f in fields(cls)]
        if not isinstance(value, dict):
            raise OptionError("options are LeastSquaresOptions or a dict of their fields", got=type(value).__name__)
        for name in value:
            if name not in names:
                mend = nearest(name, names, "see layercompiler.LeastSquaresOptions")
                raise OptionError(f"unknown option '{name}'", where="options", expected=f"some of {names}", got=repr(name), mend=mend)
        return cls(**value)
