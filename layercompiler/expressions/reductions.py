"""Operations along axes: sums, products, extrema, norms' inner parts, and their cumulative relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.expressions.layout import batch_of, negative
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, boolean, mixed, positions, register


def _shape(options: tuple[Any, ...], shapes: Sequence[Shape], arrays: tuple[np.ndarray, ...]) -> Shape:
    axes, keep = options[0], options[1]
    return tuple(1 if a in axes else n for a, n in enumerate(shapes[0]) if keep or a not in axes)


def _pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    axes = node.options[0]
    kept = tuple(1 if a in axes else n for a, n in enumerate(shapes[0]))
    target = np.broadcast_to(positions(kept), shapes[0]).reshape(-1)
    return boolean(_selector(target, np.arange(len(target)), (node.size, len(target))) @ patterns[0])


def _selector(target: np.ndarray, source: np.ndarray, shape: tuple[int, int]) -> Any:
    return sp.csr_array((np.ones(len(target), np.int32), (target, source)), shape=shape)


def _reduction(name: str, function: Callable[..., Any]) -> Operation:
    """`function` takes (xp, x, axes, keep, *further options); axes are negative."""

    def evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
        axes, keep, *rest = node.options
        return (
            function(xp, values[0], negative(axes, len(shapes[0])), keep, *rest)
            if axes
            else function(xp, values[0][..., None], (-1,), False, *rest)
        )

    return Operation(name, _shape, evaluate, _pattern)


def _last(xp: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, int]:
    """The reduced axes merged into one last axis, and how many there were; for functions that know one axis only."""
    if axes == (-1,):
        return x, 1
    rank = len(x.shape)
    moved = sorted(a % rank for a in axes)
    kept = [a for a in range(rank) if a not in moved]
    y = xp.permute_dims(x, (*kept, *moved))
    return xp.reshape(y, (*batch_of(y, len(moved)), -1)), len(moved)


def _restored(xp: Any, y: Any, axes: tuple[int, ...], keep: bool, rank: int) -> Any:
    if not keep:
        return y
    for a in sorted(a % rank for a in axes):
        y = xp.expand_dims(y, axis=a)
    return y


def _along_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction over the last axis as one over any axes."""

    def reduction(xp: Any, x: Any, axes: tuple[int, ...], keep: bool, *rest: Any) -> Any:
        return _restored(xp, function(xp, _last(xp, x, axes)[0], *rest), axes, keep, len(x.shape))

    return reduction


def _largest(xp: Any, x: Any, k: float) -> Any:
    """Sum of the k largest entries of the last axis; a fraction of the next one where k is not whole."""
    whole = int(np.floor(k))
    n, ordered = int(x.shape[-1]), xp.sort(x, axis=-1)
    total = xp.sum(ordered[..., max(n - whole, 0) :], axis=-1)
    return total + (k - whole) * ordered[..., n - whole - 1] if k > whole and whole < n else total


def _cumulative(name: str, function: Callable[[Any, Any, int], Any]) -> Operation:
    def evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
        return function(xp, values[0], node.options[0] - len(shapes[0]))

    def pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
        lines = np.moveaxis(positions(shapes[0]), node.options[0], -1).reshape(-1, shapes[0][node.options[0]])
        later, earlier = np.tril_indices(lines.shape[1])
        target, source = lines[:, later].reshape(-1), lines[:, earlier].reshape(-1)
        return boolean(_selector(target, source, (node.size, node.size)) @ patterns[0])

    return Operation(name, lambda options, shapes, arrays: shapes[0], evaluate, pattern)


def _cumulative_maximum(xp: Any, x: Any, axis: int) -> Any:
    """Largest entry up to each one, by all pairs: quadratic in the length, but differentiable in every framework."""
    y = xp.moveaxis(x, axis, -1)
    n = int(y.shape[-1])
    seen = xp.new(np.tri(n, dtype=bool))
    pairs = xp.where(seen, y[..., None, :], xp.full_like(y[..., None, :], -np.inf))
    return xp.moveaxis(xp.max(pairs, axis=-1), -1, axis)


def _sort_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    return mixed(node.size, patterns)


register(
    Operation(
        "sort",
        lambda options, shapes, arrays: shapes[0],
        lambda xp, node, shapes, values, arrays: xp.sort(values[0], axis=-1),
        _sort_pattern,
    ),
    _reduction("sum", lambda xp, x, axes, keep: xp.sum(x, axis=axes, keepdims=keep)),
    _reduction("prod", _along_one(lambda xp, x: xp.prod(x, axis=-1))),
    _reduction("max", _along_one(lambda xp, x: xp.max(x, axis=-1))),
    _reduction("min", _along_one(lambda xp, x: xp.min(x, axis=-1))),
    _reduction("logsumexp", lambda xp, x, axes, keep: xp.logsumexp(x, axes, keep)),
    _reduction("sum_largest", _along_one(_largest)),
    _cumulative("cumsum", lambda xp, x, axis: xp.cumsum(x, axis)),
    _cumulative("cumprod", lambda xp, x, axis: xp.cumprod(x, axis)),
    _cumulative("cummax", _cumulative_maximum),
)
