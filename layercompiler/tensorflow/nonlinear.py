"""Nonlinear problems of a modelling language as functions of eager TensorFlow tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler import arrays
from layercompiler.plan.nonlinear import CompiledNonlinear
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
            UnsupportedTransformError: Inside of tf.function.
        """
        given = [tf.convert_to_tensor(v) for v in self.compiled.arguments.bind(args, named)]
        dtype = next((t.dtype for t in given if t.dtype.is_floating), tf.float64)
        host = None if init is None else {name: np.asarray(value) for name, value in init.items()}
        theta = [tf.cast(t, tf.float64) for t in given]
        values = self.compiled.call(_XP, theta, host, lambda theta, start: self.inner(*theta, init=start))
        return tuple(tf.cast(v, dtype) for v in values[:-1])

    def __repr__(self) -> str:
        return f"layercompiler.tensorflow.NonlinearLayer({self.compiled.describe()})"
