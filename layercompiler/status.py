"""Status of every instance, and the `Solution` that a solve returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np


class Status(IntEnum):
    """What became of one instance, decided by our own residuals and never by an engine's word alone."""

    SOLVED = 0
    PRIMAL_INFEASIBLE = 1
    DUAL_INFEASIBLE = 2
    ITERATION_LIMIT = 3
    TIME_LIMIT = 4
    INACCURATE = 5
    NONFINITE_INPUT = 6
    FAILED = 7
    STALLED = 8
    INDEFINITE = 9
    NOT_CONVEX = 10
    CONVERGED = 0

    @property
    def message(self) -> str:
        """The status as a person reads it."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "solved",
    Status.PRIMAL_INFEASIBLE: "primal infeasible (no point satisfies the constraints)",
    Status.DUAL_INFEASIBLE: "dual infeasible (the objective is unbounded)",
    Status.ITERATION_LIMIT: "iteration limit reached",
    Status.TIME_LIMIT: "time limit reached",
    Status.INACCURATE: "the residual stayed above the accepted tolerance",
    Status.NONFINITE_INPUT: "a parameter value is NaN, infinite or outside of its domain",
    Status.FAILED: "the engine failed",
    Status.STALLED: "no step lowers the cost any more, and the gradient is not small",
    Status.NOT_CONVEX: "the matrix of the quadratic objective is not positive semidefinite",
    Status.INDEFINITE: "stationary, but the Hessian is not positive definite: no derivative",
}


@dataclass(frozen=True)
class Info:
    """Per-instance facts of one solve; every array has the batch shape.

    Attributes:
        status: `Status` codes, int8.
        residual: Relative residual ||F|| of the optimality conditions after refinement, computed from the data.
        iterations: Iterations of the engine.
        refinements: Newton steps taken on the residual map.
        degenerate: True where the matrix of the residual map is singular or nearly so; the derivative is then the
            minimum-norm element.
        unique: False where the outputs that read the primal solution can have other values at other solutions. Weakly active
            inequalities that pin a null space down are reckoned with; at a kink of a cone that is no product of rays every null
            vector counts. Programs too large for dense null spaces are judged by the linear system at the solution.
        engine: Name of the engine that solved each instance (an array of strings).
        time: Wall time of the whole call, in seconds.
    """

    status: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray
    refinements: np.ndarray
    degenerate: np.ndarray
    unique: np.ndarray
    engine: np.ndarray
    time: float

    @property
    def ok(self) -> np.ndarray:
        """True where the instance is solved; batch shape, bool."""
        return self.status == Status.SOLVED


class LateInfo(Info):
    """`Info` whose `degenerate` and `unique` are found out when they are first asked for: they can cost more than the solve.

    Args:
        flags: Returns the two.
        **facts: The other attributes.
    """

    def __init__(self, flags: Callable[[], Sequence[np.ndarray]] | None = None, **facts: Any) -> None:
        for name, value in facts.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_flags", flags)

    def __getattr__(self, name: str) -> Any:
        flags = self.__dict__.get("_flags")
        if name not in ("degenerate", "unique") or flags is None:
            raise AttributeError(name)
        for key, value in zip(("degenerate", "unique"), flags(), strict=True):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "_flags", None)  # and what it held
        return self.__dict__[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Info, tuple(getattr(self, f.name) for f in fields(Info))


@dataclass(frozen=True)
class Solution:
    """The answer of `solve`: named values, duals, optimal value, and what happened to each instance.

    Attributes:
        outputs: The layer's outputs in their order, each of shape (batch..., *shape).
        values: Outputs by name.
        value: Optimal value of the problem as the user wrote it, batch shape.
        info: Per-instance facts.
        warm_start: A value to hand to a later `solve(..., warm_start=...)`; its content is private.
    """

    outputs: tuple[np.ndarray, ...]
    values: Mapping[str, np.ndarray]
    value: np.ndarray
    info: Info
    warm_start: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping does not pickle, and errors that cross processes carry solutions
        return Solution, (self.outputs, dict(self.values), self.value, self.info, self.warm_start)

    @property
    def status(self) -> np.ndarray:
        """`Status` codes, batch shape, int8."""
        return self.info.status

    @property
    def residual(self) -> np.ndarray:
        """Relative residual of the optimality conditions, batch shape."""
        return self.info.residual
