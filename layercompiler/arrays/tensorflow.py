"""Array functions of TensorFlow: the array API standard under its own names, and transformations by gradient tapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.arrays import tensorflow_implicit
from layercompiler.arrays.base import Arrays, Function
from layercompiler.arrays.tensorflow_names import Names
from layercompiler.errors import UnsupportedTransformError


class TensorFlow(Arrays):
    """Array functions of TensorFlow."""

    name = "tensorflow"

    def new(self, value: Any, like: Any = None) -> tf.Tensor:
        array = np.asarray(value)
        return tf.constant(array) if array.dtype.kind in "biu" else tf.constant(array, tf.float64 if like is None else like.dtype)

    def numpy(self, value: Any) -> np.ndarray:
        if self.traced(value):
            raise UnsupportedTransformError("a symbolic tensor has no numbers", mend="call this outside of tf.function")
        return np.asarray(value)

    def traced(self, *values: Any) -> bool:
        return not tf.executing_eagerly()

    def stop_gradient(self, x: Any) -> Any:
        return tf.stop_gradient(x)

    def segment_sum(self, values: Any, index: Any, count: int) -> Any:
        return tf.math.unsorted_segment_sum(values, index, count)

    def softplus(self, x: Any) -> Any:
        return tf.math.softplus(x)

    def ndtr(self, x: Any) -> Any:
        return 0.5 * tf.math.erfc(x * -(0.5**0.5))

    def logsumexp(self, x: Any, axis: int | tuple[int, ...], keepdims: bool = False) -> Any:
        return tf.reduce_logsumexp(x, axis, keepdims)

    def solve_triangular(self, L: Any, b: Any, *, lower: bool = True, transposed: bool = False) -> Any:
        return tf.linalg.triangular_solve(L, b, lower=lower, adjoint=transposed)

    def cholesky(self, A: Any) -> tuple[Any, Any]:
        L = tf.linalg.cholesky(A)  # on the CPU TensorFlow raises where A is not positive definite
        return L, tf.reduce_all(tf.math.is_finite(tf.linalg.diag_part(L)), -1)

    def lu_factor(self, A: Any) -> tuple[Any, Any]:
        return tuple(tf.linalg.lu(A))

    def lu_solve(self, LU: Any, pivots: Any, b: Any, *, transposed: bool = False) -> Any:
        if not transposed:
            return tf.linalg.lu_solve(LU, pivots, b)
        lower = tf.linalg.set_diag(LU, tf.ones_like(LU[..., 0]))
        x = tf.linalg.triangular_solve(lower, tf.linalg.triangular_solve(LU, b, lower=False, adjoint=True), adjoint=True)
        return tf.gather(x, tf.argsort(pivots, axis=-1), axis=-2, batch_dims=len(LU.shape) - 2)

    def host(self, f: Any, like: Any, *args: Any) -> Any:
        args = tuple(tf.stop_gradient(a) for a in args)
        if tf.executing_eagerly():
            return self.new(f(*(a.numpy() for a in args)), like)
        result = tf.stop_gradient(tf.numpy_function(f, args, like.dtype))
        result.set_shape(like.shape)
        return result

    def implicit(self, rule: Any, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return tensorflow_implicit.implicit(self, rule, known, args)

    def vjp(self, f: Function, *args: Any) -> Any:
        args = tuple(tf.identity(a) for a in args)  # an argument passed twice counts twice
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(args)
            value = f(*args)

        def pull(cotangent: Any) -> tuple[Any, ...]:
            return tuple(tape.gradient(value, args, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO))

        return value, pull

    def jvp(self, f: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Any:
        # The pullback is linear in its cotangent; its own pullback is the derivative. A ForwardAccumulator would be lost under
        # a reverse tape over tf.function.
        value, pull = self.vjp(f, *args)

        def pulled(cotangent: Any) -> Any:
            return sum(tf.reduce_sum(c * t) for c, t in zip(pull(cotangent), tangents, strict=True))

        with tf.GradientTape() as tape:
            probe = tf.zeros_like(value)
            tape.watch(probe)
            inner = pulled(probe)
        return value, tape.gradient(inner, probe, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def vmap(self, f: Function, in_axes: Any = 0) -> Function:
        def mapped(*args: Any) -> Any:
            axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
            moving = [i for i, axis in enumerate(axes) if axis == 0]

            def one(rows: Any) -> Any:
                full = list(args)
                for i, row in zip(moving, rows, strict=True):
                    full[i] = row
                return f(*full)

            return tf.vectorized_map(one, tuple(args[i] for i in moving))

        return mapped

    def jacobian(self, f: Function, x: Any) -> Any:
        with tf.GradientTape(persistent=not tf.executing_eagerly()) as tape:
            tape.watch(x)
            value = f(x)
        return tape.jacobian(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def while_loop(self, condition: Function, body: Function, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(tf.while_loop(condition, body, tuple(state)))

    def cond(self, condition: Any, yes: Function, no: Function, *args: Any) -> Any:
        return tf.cond(condition, lambda: yes(*args), lambda: no(*args))

    def compile(self, f: Function) -> Function:
        return tf.function(f)

    def trace(self, f: Function) -> Function:
        return tf.function(f, autograph=False)  # what it traces has no branches to rewrite, and errors pass as they are


ARRAYS = TensorFlow(Names())
