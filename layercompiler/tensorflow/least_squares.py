"""Least squares as a function of eager TensorFlow tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.errors import DerivativeError, UnsupportedTransformError
from layercompiler.plan.least_squares import CompiledLeastSquares, Prepared
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.status import Status


class LeastSquaresLayer:
    """Parameters in, minimiser out, with exact first derivatives by `tf.GradientTape`; eager mode, backward "implicit" or "gauss_newton".

    Args:
        compiled: A `CompiledLeastSquares`.
    """

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        self.compiled = compiled
        if compiled.options.backward not in ("implicit", "gauss_newton"):
            raise UnsupportedTransformError(f"backward='{compiled.options.backward}' is not there in TensorFlow", expected="'implicit'")

    @property
    def prepared(self) -> Prepared:
        """The program and its solver."""
        return self.compiled.prepare("tensorflow")

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[Any, ...]:
        """Solve: parameters (batch..., *shape) in order or by name, starts by variable; one tensor per output.

        Raises:
            UnsupportedTransformError: Inside of tf.function.
        """
        if not tf.executing_eagerly():
            raise UnsupportedTransformError("least squares in TensorFlow runs in eager mode", mend="call it outside of tf.function")
        p = self.prepared
        given = [tf.convert_to_tensor(v) for v in p.arguments.bind(args, named)]
        dtype = given[0].dtype if given and given[0].dtype.is_floating else tf.float64
        start = {k: np.asarray(v) for k, v in (init or {}).items()}
        shapes: Any = [tuple(t.shape) for t in given]
        batch = p.batch_shape(shapes, start)
        theta = [tf.cast(t, tf.float64) for t in p.aligned(given, batch)]

        @tf.custom_gradient
        def run(*tensors: Any) -> Any:
            call = p.regular(tensors, p.start(batch, start), batch)
            result = p.solve(call)
            p.refuse(result, batch)
            solved = (result.status == Status.SOLVED)[:, None]
            factor, pivots, held = p.solver.factor(result.values, call.theta, call.shared, p.options.backward == "implicit")
            good = solved & (pivots > PIVOT)[:, None]
            shown = np.where(solved if p.on_error == "raise" else good, result.values, np.nan)

            def gradient(cotangent: Any) -> Any:
                if not tf.executing_eagerly():
                    raise UnsupportedTransformError("least squares in TensorFlow is differentiated in eager mode")
                g = p.solver.evaluation.lift(result.values, np.asarray(cotangent).reshape(call.count, -1))
                if p.on_error == "raise" and (~good[:, 0] & (np.abs(g).max(axis=1, initial=0.0) > 0)).any():
                    raise DerivativeError("the Hessian is not positive definite at the solution: there is no derivative")
                g = np.where(good if held is None else good & ~held, g, 0.0)
                u = np.where(good, factor.solve(g, 2), 0.0)
                found = p.solver.pull(result.values, u, call.theta, call.shared)
                pairs = zip(found, tensors, call.shared, p.program.parameters, strict=True)
                return [_fold(tf.reshape(f, (*(() if s else batch), *q.shape)), t) for f, t, s, q in pairs]

            return tf.reshape(tf.constant(shown), (*batch, -1)), gradient

        flat = run(*theta)
        return tuple(tf.cast(tf.reshape(flat[..., a:b], (*batch, *shape)), dtype) for a, b, shape in p.slices)


def _fold(gradient: Any, like: Any) -> Any:
    """Sum over broadcast dimensions."""
    if len(gradient.shape) < len(like.shape):
        return tf.reshape(gradient, like.shape)
    axes = [i for i, (a, b) in enumerate(zip(gradient.shape, like.shape, strict=True)) if a != b]
    return tf.reduce_sum(gradient, axes, keepdims=True) if axes else gradient
