"""The coded errors of layercompiler: each says what went wrong, where, what was expected, and how to mend it.

Every class is also the natural builtin (ValueError, ImportError, ...), so code that catches builtins keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from layercompiler.status import Solution


class LayerCompilerError(Exception):
    """Root of every error that layercompiler raises on purpose.

    Args:
        what: One sentence that says what is wrong.
        where: The user's own name of the parameter, constraint or file, and the batch indices.
        expected: What was expected, beside `got`.
        got: What was found.
        mend: How to repair it.
    """

    code: ClassVar[str] = "LC-000"

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", mend: str = "") -> None:
        self.what, self.where, self.expected, self.got, self.mend = what, where, expected, got, mend
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"{self.what} ({self.code})"]
        lines += [f"  where: {self.where}"] if self.where else []
        found = [f"expected {self.expected}"] * bool(self.expected) + [f"got {self.got}"] * bool(self.got)
        lines += ["  " + ", ".join(found)] if found else []
        lines += [f"  mend: {self.mend}"] if self.mend else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The `mend` of an unknown name: the known one that is most like it, or else `otherwise`."""
    names = list(known)
    close = [n for n in names if n.lower() == name.lower()] or difflib.get_close_matches(name, names, 1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def _rebuild(cls: type[LayerCompilerError], state: dict[str, Any]) -> LayerCompilerError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["what"],)
    return error


class BuildError(LayerCompilerError, ValueError):
    """A problem cannot be compiled."""

    code = "LC-BUILD"


class NotAProblemError(BuildError, TypeError):
    """What was handed to `export` or `compile` is not a problem."""

    code = "LC-BUILD-PROBLEM"


class NotDCPError(BuildError):
    """The problem is not convex by the rules of disciplined convex (or geometric) programming."""

    code = "LC-BUILD-DCP"


class NotDPPError(BuildError):
    """The problem is convex for fixed parameters, but its parameters do not enter affinely."""

    code = "LC-BUILD-DPP"


class ParameterMismatchError(BuildError):
    """The listed parameters or outputs do not belong to the problem, or a constant has no value."""

    code = "LC-BUILD-PARAMETERS"


class IntegerVariableError(BuildError):
    """The problem has boolean or integer variables and needs a discrete estimator."""

    code = "LC-BUILD-INTEGER"


class UnsupportedConeError(BuildError, NotImplementedError):
    """The problem needs a cone or a feature that no registered engine or derivative supports."""

    code = "LC-BUILD-CONE"


class UnsupportedExpressionError(BuildError, NotImplementedError):
    """A nonlinear expression holds something that cannot be compiled; the error names the subexpression.

    Example:
        `cp.sum_squares(cp.ceil(x))` fails, because the atom is constant almost everywhere; use a smooth approximation.
    """

    code = "LC-BUILD-EXPRESSION"


class NotLeastSquaresError(BuildError):
    """A nonconvex problem is not a nonlinear least-squares problem; the error names the term.

    Example:
        `cp.Minimize(cp.sum(cp.nlp.sin(x)))` fails, because the term has no square; `cp.sum_squares(cp.nlp.sin(x))` is one.
    """

    code = "LC-BUILD-LEAST-SQUARES"


class UnsupportedResidualError(BuildError, NotImplementedError):
    """A residual function looks at the numbers of its arguments: it branches on them, or takes them out of the framework.

    Example:
        `lambda x: x - 1 if x[0] > 0 else x` fails; `lambda x: torch.where(x[0] > 0, x - 1, x)` does the same.
    """

    code = "LC-BUILD-RESIDUAL"


class InputError(LayerCompilerError, ValueError):
    """An argument of a call is wrong."""

    code = "LC-INPUT"


class OptionError(InputError):
    """An option or a name (solver, framework, setting) is unknown or out of range."""

    code = "LC-INPUT-OPTION"


class ShapeError(InputError):
    """The number or the shapes of the arguments are wrong."""

    code = "LC-INPUT-SHAPE"


class DtypeError(InputError, TypeError):
    """The element type of an argument is not a real number type."""

    code = "LC-INPUT-DTYPE"


class ParameterDomainError(InputError):
    """A parameter value violates the attribute it was declared with (nonneg, symmetric, PSD, ...)."""

    code = "LC-INPUT-DOMAIN"


class NonFiniteInputError(InputError):
    """A parameter value holds NaN or an infinity."""

    code = "LC-INPUT-NONFINITE"


class SolveError(LayerCompilerError, RuntimeError):
    """One or more instances of a batch could not be solved; `solution` carries the results of all of them.

    Attributes:
        solution: The whole batch, NaN where an instance failed; `solution.status` names each.
        indices: Batch indices (tuples) of the failed instances.
    """

    code = "LC-SOLVE"

    def __init__(self, what: str, *, solution: Solution | None = None, indices: tuple[tuple[int, ...], ...] = (), **parts: str) -> None:
        super().__init__(what, **parts)
        self.solution, self.indices = solution, indices


class DerivativeError(LayerCompilerError, RuntimeError):
    """The linear system of the derivative could not be solved to the residual it needs."""

    code = "LC-DERIVATIVE"


class UnsupportedTransformError(LayerCompilerError, NotImplementedError):
    """A derivative order or a framework transform that this layer does not support; never a silent zero."""

    code = "LC-TRANSFORM"


class MissingDependencyError(LayerCompilerError, ImportError):
    """An optional package is not installed."""

    code = "LC-MISSING"


class StoreError(LayerCompilerError, ValueError):
    """A saved layer is damaged, unsafe or of another format version."""

    code = "LC-STORE"
