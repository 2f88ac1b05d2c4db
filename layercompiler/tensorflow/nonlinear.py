"""Nonlinear problems of a modelling language as functions of TensorFlow tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from layercompiler import arrays
from layercompiler.plan.arguments import starts
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.plan.nonlinear import CompiledNonlinear
from layercompiler.tensorflow.layer import _tensor
from layercompiler.tensorflow.least_squares import LeastSquaresLayer

_XP = arrays.get("tensorflow")


class NonlinearLayer:
    """Parameters in, outputs out, differentiable by `tf.GradientTape`; see `LeastSquaresLayer` for what is supported.

    Args:
        compiled: A `CompiledNonlinear`.
    """

    def __init__(self, compiled: CompiledNonlinear) -> None:
        self.compiled = compiled
        self.inner = LeastSquaresLayer(compiled.inner)

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[Any, ...]:
        """Solve for parameters (batch..., *shape) in order or by name, starts by variable; one tensor per output.

        Raises:
            InputError: An argument is wrong.
            SolveError: An instance did not converge and the layer is told to raise.
        """
        return self._run(args, named, init, lambda theta, start: self.inner(*theta, init=start))

    def solve(
        self, *args: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve in eager mode, and tell what happened to each instance; never raises for those that did not converge.

        `callback` as in `LeastSquaresLayer.solve`.
        """
        found: list[LeastSquaresSolution] = []

        def solve(theta: Any, start: Any) -> tuple[Any, ...]:
            found.append(self.inner.solve(*theta, init=start, callback=callback))
            return found[0].outputs

        return self.compiled.solution(self._run(args, named, init, solve, True), found[0])

    def report(self) -> str:
        """What the compiler found, and how it is solved and differentiated."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"layercompiler.tensorflow.NonlinearLayer({self.compiled.describe()})"

    def _run(self, args: Any, named: Any, init: Any, solve: Callable[..., Any], told: bool = False) -> tuple[Any, ...]:
        compiled = self.compiled
        given = [_tensor(v, name) for v, name in zip(compiled.arguments.bind(args, named), compiled.parameters, strict=True)]
        dtype = next((t.dtype for t in given if t.dtype.is_floating), tf.float64)
        host = starts(init)
        values = self.compiled.call(_XP, [tf.cast(t, tf.float64) for t in given], host, solve, told)
        return tuple(tf.cast(v, dtype) for v in values)
