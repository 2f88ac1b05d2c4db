"""Operations that move entries: one gather, carried out by the cheapest means that the index allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.expressions.graph import Builder
from layercompiler.expressions.layout import batch_of, flatten, spread, unflatten
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, positions, register, rows


def gather(builder: Builder, source: int, index: np.ndarray) -> int:
    """The node with entries source.flat[index] (C order) in the shape of `index`; zero where the index is -1.

    A gather of a gather is one gather of the first source.
    """
    index = np.ascontiguousarray(index, dtype=np.int64).reshape(np.shape(index))
    node = builder.nodes[source]
    inner = _index_of(builder, node)
    if inner is not None:
        flat = np.append(inner.reshape(-1), -1)
        source, index = node.arguments[0], flat[index]
        node = builder.nodes[source]
    shape = node.shape
    if index.shape == shape and np.array_equal(index, positions(shape)):
        return source
    if index.size == node.size and np.array_equal(index.reshape(-1), np.arange(node.size)):
        return builder.call("reshape", source, options=(index.shape,))
    steps = np.diff(index.reshape(-1))
    if index.size and np.all(index >= 0) and (index.size == 1 or (steps[0] > 0 and np.all(steps == steps[0]))):
        step = int(steps[0]) if index.size > 1 else 1
        start = int(index.flat[0])
        return builder.call("slice", source, options=(start, start + (index.size - 1) * step + 1, step, index.shape))
    if index.size and index.min() < 0:
        source = builder.call("pad", gather(builder, source, np.arange(node.size)))
        index = np.where(index < 0, node.size, index)
    return builder.call("gather", source, arrays=(index,))


def concatenate(builder: Builder, sources: Sequence[int]) -> int:
    """The flat entries (C order) of several nodes, one after the other."""
    flat = [gather(builder, k, np.arange(builder.nodes[k].size)) for k in sources]
    return flat[0] if len(flat) == 1 else builder.call("concatenate", *flat)


def _index_of(builder: Builder, node: Node) -> np.ndarray | None:
    if node.operation == "gather":
        return node.arrays[0]
    if node.operation == "reshape":
        return positions(node.shape)
    if node.operation == "slice":
        start, stop, step, shape = node.options
        return np.arange(start, stop, step).reshape(shape)
    if node.operation == "permute":
        return np.transpose(positions(builder.nodes[node.arguments[0]].shape), node.options[0])
    return None


def _gather(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    flat = flatten(xp, values[0], shapes[0])
    return unflatten(xp, xp.take(flat, xp.reshape(arrays[0], (-1,)), axis=-1), node.shape)


def _pad(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    return xp.concat([values[0], xp.zeros_like(values[0][..., :1])], axis=-1)


def _slice(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    start, stop, step, shape = node.options
    return unflatten(xp, flatten(xp, values[0], shapes[0])[..., start:stop:step], shape)


def _reshape(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    return xp.reshape(values[0], (*batch_of(values[0], len(shapes[0])), *node.shape))


def _permute(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    leading = len(values[0].shape) - len(shapes[0])
    return xp.permute_dims(values[0], (*range(leading), *(leading + a for a in node.options[0])))


def _concatenate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    return xp.concat(spread(xp, values, shapes), axis=-1)


def _concatenate_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    import scipy.sparse as sp

    return sp.csr_array(sp.vstack(patterns, format="csr"))


def _broadcast(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    x, own, rank = values[0], shapes[0], len(node.shape)
    batch = batch_of(x, len(own))
    lifted = xp.reshape(x, (*batch, *(1,) * (rank - len(own)), *own))
    if -1 in batch:
        return lifted + xp.zeros(node.shape, dtype=x.dtype)
    return xp.broadcast_to(lifted, (*batch, *node.shape))


register(
    Operation(
        "gather",
        lambda options, shapes, arrays: arrays[0].shape,
        _gather,
        lambda node, shapes, patterns, constants: rows(patterns[0], node.arrays[0]),
    ),
    Operation(
        "pad",
        lambda options, shapes, arrays: (shapes[0][0] + 1,),
        _pad,
        lambda node, shapes, patterns, constants: rows(patterns[0], np.append(np.arange(shapes[0][0]), -1)),
    ),
    Operation(
        "slice",
        lambda options, shapes, arrays: options[3],
        _slice,
        lambda node, shapes, patterns, constants: rows(patterns[0], np.arange(*node.options[:3])),
    ),
    Operation("reshape", lambda options, shapes, arrays: options[0], _reshape, lambda node, shapes, patterns, constants: patterns[0]),
    Operation(
        "permute",
        lambda options, shapes, arrays: tuple(shapes[0][a] for a in options[0]),
        _permute,
        lambda node, shapes, patterns, constants: rows(patterns[0], np.transpose(positions(shapes[0]), node.options[0])),
    ),
    Operation("concatenate", lambda options, shapes, arrays: (sum(s[0] for s in shapes),), _concatenate, _concatenate_pattern),
    Operation(
        "broadcast",
        lambda options, shapes, arrays: options[0],
        _broadcast,
        lambda node, shapes, patterns, constants: rows(patterns[0], np.broadcast_to(positions(shapes[0]), node.shape)),
    ),
)
