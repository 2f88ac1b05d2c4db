"""Shapes under leading batch dimensions: every array is (batch..., *own shape), and batches broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.expressions.node import Shape


def batch_of(x: Any, rank: int) -> tuple[int, ...]:
    """The batch shape of an array of own rank `rank`; -1 for a size that is not known while tracing."""
    shape = tuple(-1 if n is None else int(n) for n in x.shape)
    return shape[: len(shape) - rank]


def lift(xp: Any, x: Any, own: Shape, rank: int) -> Any:
    """(batch..., *own) to (batch..., 1..., *own) with own rank `rank`, for broadcasting under a batch."""
    if rank == len(own) or len(x.shape) == len(own):
        return x  # without a batch, numpy's own rule does it
    return xp.reshape(x, (*batch_of(x, len(own)), *(1,) * (rank - len(own)), *own))


def align(xp: Any, values: Sequence[Any], shapes: Sequence[Shape]) -> list[Any]:
    """All values lifted to the largest own rank among them."""
    rank = max(len(s) for s in shapes)
    return [lift(xp, x, own, rank) for x, own in zip(values, shapes, strict=True)]


def flatten(xp: Any, x: Any, own: Shape) -> Any:
    """(batch..., *own) to (batch..., size), in C order."""
    return x if len(own) == 1 else xp.reshape(x, (*batch_of(x, len(own)), int(np.prod(own, dtype=np.int64))))


def unflatten(xp: Any, x: Any, shape: Shape) -> Any:
    """(batch..., size) to (batch..., *shape), in C order."""
    return x if len(shape) == 1 else xp.reshape(x, (*batch_of(x, 1), *shape))


def spread(xp: Any, values: Sequence[Any], shapes: Sequence[Shape]) -> list[Any]:
    """Values whose batch shapes are made equal, for operations that do not broadcast (concatenation)."""
    batches = [batch_of(x, len(own)) for x, own in zip(values, shapes, strict=True)]
    if len(set(batches)) == 1:
        return list(values)
    if all(-1 not in b for b in batches):
        full = np.broadcast_shapes(*batches)
        return [xp.broadcast_to(x, (*full, *own)) for x, own in zip(values, shapes, strict=True)]
    zero = None  # sizes that are known at run time only: broadcasting by adding zeros
    for x, own in zip(values, shapes, strict=True):
        one = xp.zeros_like(flatten(xp, x, own)[..., :1])
        zero = one if zero is None else zero + one
    return [unflatten(xp, flatten(xp, x, own) + zero, own) for x, own in zip(values, shapes, strict=True)]


def negative(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the end, so that they mean the same under a batch."""
    return tuple(int(a) - rank if a >= 0 else int(a) for a in axes)
