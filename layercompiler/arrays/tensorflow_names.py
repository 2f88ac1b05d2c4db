"""The array API standard's names for TensorFlow; what TensorFlow calls the same and means the same is looked up, the rest is listed.

`tf.experimental.numpy` has most names but promotes dtypes and scalars in ways of its own, so it is the last resort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Axis = int | Sequence[int] | None


class _Linalg:
    """`xp.linalg`."""

    matmul = staticmethod(tf.matmul)
    inv = staticmethod(tf.linalg.inv)
    det = staticmethod(tf.linalg.det)
    eigvalsh = staticmethod(tf.linalg.eigvalsh)
    trace = staticmethod(tf.linalg.trace)

    @staticmethod
    def solve(A: Any, b: Any) -> Any:
        return tf.linalg.solve(A, b[..., None])[..., 0] if len(b.shape) == 1 else tf.linalg.solve(A, b)

    @staticmethod
    def cholesky(A: Any) -> Any:
        return tf.linalg.cholesky(A)

    @staticmethod
    def eigh(A: Any) -> tuple[Any, Any]:
        return tf.linalg.eigh(A)

    @staticmethod
    def slogdet(A: Any) -> tuple[Any, Any]:
        return tf.linalg.slogdet(A)

    @staticmethod
    def svdvals(A: Any) -> Any:
        return tf.linalg.svd(A, compute_uv=False)

    @staticmethod
    def qr(A: Any) -> tuple[Any, Any]:
        return tf.linalg.qr(A)

    @staticmethod
    def svd(A: Any, full_matrices: bool = True) -> tuple[Any, Any, Any]:
        s, u, v = tf.linalg.svd(A, full_matrices=full_matrices)
        return u, s, tf.linalg.matrix_transpose(v)

    @staticmethod
    def diagonal(A: Any, offset: int = 0) -> Any:
        return tf.linalg.diag_part(A, k=offset)

    @staticmethod
    def outer(a: Any, b: Any) -> Any:
        return a[:, None] * b[None, :]

    @staticmethod
    def vector_norm(x: Any, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Any:
        if ord == 2:
            return tf.sqrt(tf.reduce_sum(x * x, axis, keepdims))
        return tf.norm(x, ord=ord, axis=axis, keepdims=keepdims)

    @staticmethod
    def matrix_norm(A: Any) -> Any:
        return tf.sqrt(tf.reduce_sum(A * A, (-2, -1)))


_SAME = {  # the same meaning under another name
    **{name: getattr(tf, f"reduce_{name}") for name in ("sum", "prod", "max", "min", "mean", "any", "all")},
    **{f"arc{name}": getattr(tf, f"a{name}") for name in ("sin", "cos", "tan")},
    **{f"a{name}": getattr(tf, f"a{name}") for name in ("sin", "cos", "tan")},
    **{name: getattr(tf, name) for name in ("concat", "stack", "matmul", "einsum", "broadcast_to", "zeros_like", "ones_like", "where")},
    **{name: getattr(tf, name) for name in ("expand_dims", "squeeze", "reshape", "sign", "argsort", "equal", "not_equal")},
    **{f"is{name}": getattr(tf.math, f"is_{name}") for name in ("nan", "finite", "inf")},
    "remainder": tf.math.floormod,
    "power": tf.pow,
    "atan2": tf.atan2,
    "arctan2": tf.atan2,
    "matrix_transpose": tf.linalg.matrix_transpose,
}


class Names:
    """Array API names on TensorFlow."""

    float32, float64, int32, int64, bool = tf.float32, tf.float64, tf.int32, tf.int64, tf.bool
    pi, inf, nan = 3.141592653589793, float("inf"), float("nan")
    linalg = _Linalg()
    newaxis = None

    def __getattr__(self, name: str) -> Any:
        if name in _SAME:
            return _SAME[name]
        for place in (tf.math, tf.experimental.numpy):
            if hasattr(place, name):
                return getattr(place, name)
        raise AttributeError(f"TensorFlow has no array function {name!r}")

    @staticmethod
    def asarray(x: Any, dtype: Any = None, copy: Any = None) -> Any:
        x = x if tf.is_tensor(x) else np.asarray(x)  # Python floats are float64, as in numpy
        return tf.convert_to_tensor(x) if dtype is None else tf.cast(x, dtype)

    @staticmethod
    def astype(x: Any, dtype: Any, copy: Any = None) -> Any:
        return tf.cast(x, dtype)

    @staticmethod
    def zeros(shape: Any, dtype: Any = tf.float64) -> Any:
        return tf.zeros(shape, dtype)

    @staticmethod
    def ones(shape: Any, dtype: Any = tf.float64) -> Any:
        return tf.ones(shape, dtype)

    @staticmethod
    def full(shape: Any, value: Any, dtype: Any = tf.float64) -> Any:
        return tf.fill(shape, tf.convert_to_tensor(value, dtype))

    @staticmethod
    def full_like(x: Any, value: Any) -> Any:
        return tf.zeros_like(x) + tf.convert_to_tensor(value, x.dtype)

    @staticmethod
    def eye(n: int, m: int | None = None, dtype: Any = tf.float64) -> Any:
        return tf.eye(n, m, dtype=dtype)

    @staticmethod
    def arange(*args: Any, dtype: Any = None) -> Any:
        return tf.range(*args, dtype=dtype)

    @staticmethod
    def linspace(start: Any, stop: Any, num: int, dtype: Any = tf.float64) -> Any:
        return tf.linspace(tf.cast(start, dtype), tf.cast(stop, dtype), num)

    @staticmethod
    def permute_dims(x: Any, axes: Sequence[int]) -> Any:
        return tf.transpose(x, axes)

    @staticmethod
    def moveaxis(x: Any, source: Any, destination: Any) -> Any:
        return tf.experimental.numpy.moveaxis(x, source, destination)

    @staticmethod
    def take(x: Any, index: Any, axis: int = 0) -> Any:
        return tf.gather(x, index, axis=axis)

    @staticmethod
    def take_along_axis(x: Any, index: Any, axis: int = -1) -> Any:
        return tf.experimental.numpy.take_along_axis(x, index, axis)

    @staticmethod
    def sort(x: Any, axis: int = -1, descending: bool = False) -> Any:
        return tf.sort(x, axis, "DESCENDING" if descending else "ASCENDING")

    @staticmethod
    def argmax(x: Any, axis: int = -1) -> Any:
        return tf.argmax(x, axis)

    @staticmethod
    def argmin(x: Any, axis: int = -1) -> Any:
        return tf.argmin(x, axis)

    @staticmethod
    def cumulative_sum(x: Any, axis: int = -1) -> Any:
        return tf.cumsum(x, axis)

    @staticmethod
    def cumsum(x: Any, axis: int = -1) -> Any:
        return tf.cumsum(x, axis)

    @staticmethod
    def clip(x: Any, lower: Any = None, upper: Any = None) -> Any:
        x = x if lower is None else tf.maximum(*_alike(x, lower))
        return x if upper is None else tf.minimum(*_alike(x, upper))

    @staticmethod
    def maximum(a: Any, b: Any) -> Any:
        return tf.maximum(*_alike(a, b))

    @staticmethod
    def minimum(a: Any, b: Any) -> Any:
        return tf.minimum(*_alike(a, b))

    @staticmethod
    def vecdot(a: Any, b: Any, axis: int = -1) -> Any:
        return tf.reduce_sum(a * b, axis)

    @staticmethod
    def tril(x: Any, k: int = 0) -> Any:
        return tf.experimental.numpy.tril(x, k)

    @staticmethod
    def triu(x: Any, k: int = 0) -> Any:
        return tf.experimental.numpy.triu(x, k)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Numbers take the dtype of the tensor beside them."""
    if not tf.is_tensor(a) and tf.is_tensor(b):
        a = tf.convert_to_tensor(a, b.dtype)  # a cast would go through float32
    if not tf.is_tensor(b) and tf.is_tensor(a):
        b = tf.convert_to_tensor(b, a.dtype)
    return a, b
