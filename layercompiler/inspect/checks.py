"""One question: are the solutions and the derivatives of this layer right, for these values?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.inspect.gradients import Gradients, gradients
from layercompiler.inspect.kkt import Residuals, residuals


@dataclass(frozen=True)
class Check:
    """What `check` found; `print` it.

    Attributes:
        residuals: Optimality conditions of each instance.
        gradients: Derivatives against finite differences.
        tolerance: Accepted relative residual.
    """

    residuals: Residuals
    gradients: Gradients
    tolerance: float

    @property
    def ok(self) -> bool:
        """Every instance is optimal and no derivative is wrong."""
        worst = self.residuals.worst
        return bool(np.all(worst <= self.tolerance)) and self.gradients.ok

    def __str__(self) -> str:
        """The report."""
        return "\n".join([str(self.residuals), str(self.gradients), "all is well" if self.ok else "SOMETHING IS WRONG"])


def check(compiled: Any, *args: Any, tolerance: float = 1e-8, gradient_tolerance: float = 1e-5, seed: int = 0, **named: Any) -> Check:
    """Check solutions and derivatives at given parameter values.

    Args:
        compiled: A `CompiledProblem`, or a layer of any framework.
        args: One array per parameter, (batch..., *shape), by position; `named` by name.
        tolerance: Accepted relative residual of the optimality conditions.
        gradient_tolerance: Accepted relative error of the derivatives.
        seed: Of the random directions.
        named: Parameters by name.

    Returns:
        The report.

    Raises:
        SolveError: An instance has no solution and the layer was exported with on_error="raise".

    Cost:
        About 14 solves of the batch per parameter.
    """
    compiled = getattr(compiled, "compiled", compiled)
    arrays = [_host(a) for a in compiled.arguments(args, named)]
    found = residuals(compiled.evaluate(arrays))
    return Check(found, gradients(compiled, arrays, tolerance=gradient_tolerance, seed=seed), tolerance)


def _host(value: Any) -> np.ndarray:
    """A numpy array of a tensor of any framework."""
    detached = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(detached)
