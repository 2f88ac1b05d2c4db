"""What every function here begins with: operands of one framework and one dtype, and norms that have a derivative at zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.errors import DtypeError, ShapeError


def operands(*values: Any) -> tuple[Any, ...]:
    """(xp, *values): array functions, and the values as floating arrays of the first framework tensor's dtype.

    Numbers, lists and numpy arrays stand beside tensors of any framework.

    Raises:
        DtypeError: Tensors of two frameworks, or a first tensor that holds no floating numbers.
    """
    xp = arrays.of(*values)
    if xp.name == "numpy":
        host = [v if isinstance(v, (int, float)) else np.asarray(v) for v in values]
        kind = np.result_type(*host)
        kind = kind if np.issubdtype(kind, np.floating) else np.result_type(kind, np.float64)
        return (xp, *(np.asarray(v, kind) for v in host))
    ours = [arrays.of(v) is xp for v in values]
    like = values[ours.index(True)]
    if "float" not in str(like.dtype):
        raise DtypeError("the tensor holds no floating numbers", expected="float32 or float64", got=str(like.dtype))
    return xp, *(_cast(xp, v, like) if own else xp.new(np.asarray(v, float), like) for v, own in zip(values, ours, strict=True))


def _cast(xp: Any, value: Any, like: Any) -> Any:
    return value if value.dtype == like.dtype else xp.astype(value, like.dtype)


def infeasible(xp: Any, empty: Any, out: Any) -> Any:
    """NaN where the set is empty."""
    return xp.where(empty, xp.full_like(out, xp.nan), out)


def norm(xp: Any, x: Any) -> Any:
    """(..., 1) Euclidean norm of the last axis, without overflow; its derivative at zero is zero."""
    largest = xp.stop_gradient(xp.max(xp.abs(x), axis=-1, keepdims=True))
    largest = xp.where(largest > 0, largest, xp.ones_like(largest))
    square = xp.sum((x / largest) ** 2, axis=-1, keepdims=True)
    root = xp.sqrt(xp.where(square > 0, square, xp.ones_like(square)))
    return xp.where(square > 0, largest * root, xp.zeros_like(root))


def square_matrices(x: Any) -> int:
    """The order of matrices (..., n, n).

    Raises:
        ShapeError: They are not square.
    """
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError("the matrices are not square", expected="(..., n, n)", got=str(tuple(x.shape)))
    return int(x.shape[-1])


def transposed(xp: Any, x: Any) -> Any:
    """The last two axes exchanged."""
    return xp.matrix_transpose(x)


def product(xp: Any, A: Any, x: Any) -> Any:
    """A x for A (..., m, n) and x (..., n), batches broadcast."""
    return xp.sum(A * x[..., None, :], axis=-1)
