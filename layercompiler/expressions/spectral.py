"""Functions of eigenvalues, singular values, determinants and inverses of square matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, mixed, register


def _pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    return mixed(node.size, patterns)


def _spectral(name: str, shape: Callable[[Shape], Shape], function: Callable[[Any, Any], Any]) -> Operation:
    def evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
        return function(xp, values[0])

    return Operation(name, lambda options, shapes, arrays: shape(shapes[0]), evaluate, _pattern)


def _symmetric(xp: Any, A: Any) -> Any:
    return 0.5 * (A + xp.matrix_transpose(A))


def _logdet(xp: Any, A: Any) -> Any:
    """Log of the determinant of the symmetric part; -inf where the determinant is not positive."""
    sign, value = xp.linalg.slogdet(_symmetric(xp, A))
    return xp.where(sign > 0, value, xp.full_like(value, -np.inf))


register(
    _spectral("logdet", lambda s: s[:-2], _logdet),
    _spectral("eigenvalues", lambda s: s[:-1], lambda xp, A: xp.linalg.eigvalsh(_symmetric(xp, A))),
    _spectral("singular_values", lambda s: (*s[:-2], min(s[-2:])), lambda xp, A: xp.linalg.svdvals(A)),
    _spectral("cholesky", lambda s: s, lambda xp, A: xp.linalg.cholesky(_symmetric(xp, A))),
    _spectral("inverse", lambda s: s, lambda xp, A: xp.linalg.inv(A)),
)
