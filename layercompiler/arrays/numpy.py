"""Array functions of numpy: values only, no derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special

from layercompiler.arrays.base import Arrays, Function
from layercompiler.errors import UnsupportedTransformError


class Numpy(Arrays):
    """Array functions of numpy."""

    name = "numpy"

    def new(self, value: Any, like: Any = None) -> np.ndarray:
        array = np.asarray(value)
        return array if array.dtype.kind in "biu" else array.astype(np.float64 if like is None else like.dtype, copy=False)

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value)

    def traced(self, *values: Any) -> bool:
        return False

    def stop_gradient(self, x: Any) -> Any:
        return x

    def segment_sum(self, values: Any, index: np.ndarray, count: int) -> np.ndarray:
        out = np.zeros((count, *values.shape[1:]), values.dtype)
        np.add.at(out, index, values)
        return out

    def softplus(self, x: Any) -> np.ndarray:
        return np.logaddexp(0.0, x)

    def ndtr(self, x: Any) -> np.ndarray:
        return scipy.special.ndtr(x)

    def logsumexp(self, x: Any, axis: int | tuple[int, ...], keepdims: bool = False) -> np.ndarray:
        top = np.max(x, axis=axis, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
        return out if keepdims else np.squeeze(out, axis=axis)

    def solve_triangular(self, L: Any, b: Any, *, lower: bool = True, transposed: bool = False) -> np.ndarray:
        if L.ndim == 2:
            return scipy.linalg.solve_triangular(L, b, lower=lower, trans=1 if transposed else 0, check_finite=False)
        return np.linalg.solve(L.swapaxes(-1, -2) if transposed else L, b)  # a batch in one call of LAPACK

    def cholesky(self, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            L = np.linalg.cholesky(A)
            return L, np.isfinite(L).all(axis=(-2, -1))  # type: ignore[reportReturnType]
        except np.linalg.LinAlgError:
            L, ok = np.full(A.shape, np.nan), np.zeros(A.shape[:-2], bool)
            for i in np.ndindex(*ok.shape):
                with suppress(np.linalg.LinAlgError):
                    L[i] = np.linalg.cholesky(A[i])
                    ok[i] = np.isfinite(L[i]).all()
            return L, ok

    def lu_factor(self, A: Any) -> tuple[Any, Any]:
        flat = A.reshape(-1, *A.shape[-2:])
        found = [scipy.linalg.lu_factor(a) for a in flat]
        LU = np.array([f[0] for f in found]).reshape(A.shape)
        return LU, np.array([f[1] for f in found], dtype=np.int32).reshape(A.shape[:-1])

    def lu_solve(self, LU: Any, pivots: Any, b: Any, *, transposed: bool = False) -> np.ndarray:
        flat = zip(LU.reshape(-1, *LU.shape[-2:]), pivots.reshape(-1, LU.shape[-1]), b.reshape(-1, *b.shape[-2:]), strict=True)
        return np.array([scipy.linalg.lu_solve((f, p), r, trans=int(transposed)) for f, p, r in flat]).reshape(b.shape)

    def implicit(self, rule: Any, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return rule.value(self, known, args)

    def vjp(self, f: Function, *args: Any) -> Any:
        raise _no_derivatives()

    def jvp(self, f: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Any:
        raise _no_derivatives()

    def vmap(self, f: Function, in_axes: Any = 0) -> Function:
        def mapped(*args: Any) -> np.ndarray:
            axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
            count = next(len(a) for a, axis in zip(args, axes, strict=True) if axis == 0)
            rows = [f(*(a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True))) for i in range(count)]
            return np.stack(rows)

        return mapped

    def jacobian(self, f: Function, x: Any) -> Any:
        raise _no_derivatives()

    def while_loop(self, condition: Function, body: Function, state: tuple[Any, ...]) -> tuple[Any, ...]:
        while condition(*state):
            state = body(*state)
        return state

    def compile(self, f: Function) -> Function:
        return f


def _no_derivatives() -> UnsupportedTransformError:
    return UnsupportedTransformError(
        "numpy has no automatic derivatives",
        expected="torch, jax or tensorflow tensors",
        got="numpy arrays",
        mend="call with tensors of one of these frameworks",
    )


ARRAYS = Numpy(np)
