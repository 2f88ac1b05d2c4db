"""Implicit problems as functions of jax arrays, compiled once per shape."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from layercompiler.errors import SolveError
from layercompiler.implicit.certificate import Certificate
from layercompiler.implicit.layer import Layer
from layercompiler.implicit.problem import solver_of


class ImplicitLayer:
    """An implicit problem as a function; outside of `jit` it raises for instances without a solution, inside they are NaN."""

    def __init__(self, problem: Any) -> None:
        self.problem, self.core = problem, Layer(problem, "jax")
        self._jitted = jax.jit(lambda theta, init, named: self.core(*theta, init=init, **named))

    def __call__(self, *theta: Any, init: Any = None, **named: Any) -> Any:
        """See `layercompiler.implicit.layer.Layer.__call__`."""
        leaves = jax.tree_util.tree_leaves((theta, init, named))
        if solver_of(self.problem) is not None or not all(isinstance(v, (jax.Array, np.ndarray, float, int)) for v in leaves):
            return self.core(*theta, init=init, **named)
        result = self._jitted(theta, init, named)
        if getattr(self.problem, "on_error", "") == "raise":
            found = jax.tree_util.tree_leaves(result)
            if not any(isinstance(v, jax.core.Tracer) for v in found) and any(np.isnan(v).any() for v in found):
                raise SolveError(
                    "an instance has no solution to the tolerance", mend="raise maxiter of the solver, or pass on_error='flag'"
                )
        return result

    def certificate(self, *theta: Any, **options: Any) -> Certificate:
        """See `layercompiler.implicit.layer.Layer.certificate`."""
        return self.core.certificate(*theta, **options)

    def __repr__(self) -> str:
        return repr(self.core)
