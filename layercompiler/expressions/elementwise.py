"""Elementwise operations, with numpy broadcasting of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from layercompiler.expressions.layout import align
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, positions, register, rows, union


def _shape(options: tuple[Any, ...], shapes: Sequence[Shape], arrays: tuple[np.ndarray, ...]) -> Shape:
    return np.broadcast_shapes(*shapes)


def _pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    return union([rows(p, np.broadcast_to(positions(s), node.shape)) for s, p in zip(shapes, patterns, strict=True)])


def _product_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    zero = np.zeros(node.shape, bool)
    for value in constants:
        if value is not None:
            zero |= np.broadcast_to(value == 0, node.shape)
    parts = [rows(p, np.where(zero, -1, np.broadcast_to(positions(s), node.shape))) for s, p in zip(shapes, patterns, strict=True)]
    return union(parts)


def _elementwise(name: str, function: Callable[..., Any], pattern: Any = _pattern) -> Operation:
    """`function` takes (xp, options, *values)."""

    def evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
        return function(xp, node.options, *align(xp, values, shapes))

    return Operation(name, _shape, evaluate, pattern)


def _unary(name: str) -> Operation:
    def evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
        return getattr(xp, name)(values[0])

    return Operation(name, _shape, evaluate, _pattern)


def _power(xp: Any, options: tuple[Any, ...], x: Any) -> Any:
    p = float(options[0])
    if p == 2:
        return x * x
    if p == 0.5:
        return xp.sqrt(x)
    if p == -1:
        return 1.0 / x
    if p == int(p) and 2 < abs(p) <= 8:  # products have derivatives of every order at zero and for negative x in every framework
        y = reduce(lambda a, b: a * b, [x] * int(abs(p)))
        return y if p > 0 else 1.0 / y
    return x**p


def _norm_of(xp: Any, options: tuple[Any, ...], s: Any) -> Any:
    """S ** (1/p) with the zero subgradient at s = 0, where a norm has a kink."""
    inside = s > 0
    safe = xp.where(inside, s, xp.ones_like(s))
    return xp.where(inside, xp.sqrt(safe) if options[0] == 2 else safe ** (1.0 / float(options[0])), xp.zeros_like(s))


def _huber(xp: Any, options: tuple[Any, ...], x: Any, M: Any) -> Any:
    """x^2 within |x| <= M, 2 M |x| - M^2 beyond; written with the clipped part so that it has a derivative in M too."""
    size = xp.abs(x)
    return xp.where(size <= M, x * x, 2.0 * M * size - M * M)


def _log_of_positive(xp: Any, x: Any) -> tuple[Any, Any, Any]:
    positive = x > 0
    safe = xp.where(positive, x, xp.ones_like(x))
    return positive, safe, xp.log(safe)


def _entropy(xp: Any, options: tuple[Any, ...], x: Any) -> Any:
    """-x log x, 0 at 0 and -inf below."""
    positive, safe, log = _log_of_positive(xp, x)
    outside = xp.where(x == 0, xp.zeros_like(x), xp.full_like(x, -np.inf))
    return xp.where(positive, -safe * log, outside)


def _relative_entropy(xp: Any, options: tuple[Any, ...], x: Any, y: Any) -> Any:
    """X log(x / y), 0 where x = 0 <= y, inf outside."""
    positive, x_safe, x_log = _log_of_positive(xp, x)
    y_positive, _, y_log = _log_of_positive(xp, y)
    zero = xp.zeros_like(x_log * y_log)
    outside = xp.where((x == 0) & (y >= 0), zero, zero + np.inf)
    return xp.where(positive & y_positive, x_safe * (x_log - y_log), outside)


def _divergence(xp: Any, options: tuple[Any, ...], x: Any, y: Any) -> Any:
    """X log(x / y) - x + y."""
    return _relative_entropy(xp, options, x, y) - x + y


def _length(xp: Any, options: tuple[Any, ...], x: Any) -> Any:
    """X itself; NaN below zero, where there is no interval."""
    return xp.where(x >= 0, x, xp.full_like(x, np.nan))


def _fraction(xp: Any, options: tuple[Any, ...], x: Any, length: Any) -> Any:
    """X / length, 0 where there is no length."""
    point = length == 0
    return xp.where(point, xp.zeros_like(x), x / xp.where(point, xp.ones_like(length), length))


register(
    _elementwise("length", _length),
    _elementwise("fraction", _fraction),
    _elementwise("add", lambda xp, options, *x: reduce(lambda a, b: a + b, x)),
    _elementwise("multiply", lambda xp, options, a, b: a * b, _product_pattern),
    _elementwise("divide", lambda xp, options, a, b: a / b),
    _elementwise("negative", lambda xp, options, x: -x),
    _elementwise("scale", lambda xp, options, x: options[0] * x),
    _elementwise("maximum", lambda xp, options, *x: reduce(xp.maximum, x)),
    _elementwise("minimum", lambda xp, options, *x: reduce(xp.minimum, x)),
    _elementwise("power", _power),
    _elementwise("raise", lambda xp, options, x, p: x**p),
    _elementwise("root", _norm_of),
    _elementwise("huber", _huber),
    _elementwise("entropy", _entropy),
    _elementwise("relative_entropy", _relative_entropy),
    _elementwise("divergence", _divergence),
    *(_unary(n) for n in ("exp", "log", "log1p", "sin", "cos", "tan", "sinh", "tanh", "asinh", "atanh", "abs", "softplus", "ndtr")),
)
