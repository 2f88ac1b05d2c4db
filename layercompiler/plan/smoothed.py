"""A solved batch whose derivatives are those of the barrier-smoothed problem, see `layercompiler.derivatives.smoothing`."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from layercompiler.derivatives.residual_map import Point
from layercompiler.derivatives.system import Linearization
from layercompiler.errors import OptionError
from layercompiler.plan.evaluation import Bound, Evaluation
from layercompiler.programs.cone import Structure
from layercompiler.solvers import Options
from layercompiler.status import Solution


def check(structure: Structure, options: Options) -> None:
    """Raise where a program cannot be smoothed as its options ask for."""
    kinds = {cone.name for cone, _ in structure.cones.blocks}
    if options.smoothing and not kinds <= {"zero", "nonnegative"}:
        raise OptionError(
            "smoothed derivatives are there for linear and quadratic programs",
            where="option 'smoothing'",
            expected="zero and nonnegative cones",
            got=f"cones {sorted(kinds)}",
            mend="leave smoothing at 0",
        )


def smoothed(evaluation: Evaluation, options: Options) -> Evaluation:
    """The evaluation with the derivatives that the options ask for."""
    if not options.smoothing:
        return evaluation
    check(evaluation.problem.structure, options)
    return SmoothedEvaluation(evaluation, options.smoothing)


class SmoothedEvaluation(Evaluation):
    """Outputs of a solved batch, and derivatives at the center of its barrier problem, which is found when they are asked for.

    Args:
        exact: The solved batch.
        mu: Weight of the barrier.
    """

    def __init__(self, exact: Evaluation, mu: float) -> None:
        self.exact, self.mu = exact, mu
        self.problem, self.info, self.batch, self.count, self.bad = exact.problem, exact.info, exact.batch, exact.count, exact.bad
        self.outputs, self.z = exact.outputs, exact.z

    def solution(self) -> Solution:
        """See `Evaluation.solution`."""
        return self.exact.solution()

    @cached_property
    def bound(self) -> Bound:  # type: ignore[override]
        """The numbers in the units of the program, in which the barrier is defined."""
        bound = self.exact.bound
        return replace(bound, scaled=bound.reduction.data, scaling=None)

    @cached_property
    def _center(self) -> tuple[Point, Linearization]:
        exact = self.exact
        x, v = exact.point.x, exact.point.v
        scaling = exact.bound.scaling
        if scaling is not None:
            y, s = exact.point.y * scaling.y, (exact.point.y - v) * scaling.s
            x, v = x * scaling.x, y - s
        return self.problem.smoothed_map(self.mu).center(self.bound.scaled, x, v, self.bad)

    @property
    def point(self) -> Point:  # type: ignore[override]
        """The center."""
        return self._center[0]

    @property
    def linear(self) -> Linearization:  # type: ignore[override]
        """The linear system at the center."""
        return self._center[1]

    @cached_property
    def _expanded(self) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            return self.bound.reduction.expand(self.point.x, self.point.y)

    @property
    def x(self) -> np.ndarray:  # type: ignore[override]
        """(count, n), the center."""
        return self._expanded[0]

    @property
    def y(self) -> np.ndarray:  # type: ignore[override]
        """(count, m), its duals."""
        return self._expanded[1]

    @cached_property
    def _flat(self) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        return tuple(self._read(o) for o in self.problem.outputs)
