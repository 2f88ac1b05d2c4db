"""Products of two arguments: matrix products, Kronecker products, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.expressions.layout import batch_of, flatten, lift
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, boolean, positions, register, union


def _matmul_shape(options: tuple[Any, ...], shapes: Sequence[Shape], arrays: tuple[np.ndarray, ...]) -> Shape:
    a, b = (np.broadcast_to(np.zeros(()), s) for s in shapes)
    return np.matmul(a, b).shape


def _matmul(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    A, b = values
    (left, right), plain = shapes, [len(v.shape) == len(s) for v, s in zip(values, shapes, strict=True)]
    if len(left) == 1 and len(right) == 1:
        return xp.sum(A * b, axis=-1)
    if len(right) == 1 and len(left) == 2:
        if plain[0]:  # one matrix for the whole batch: a single product of matrices
            return b @ xp.matrix_transpose(A) if not plain[1] else (A @ b[:, None])[:, 0]
        return (A @ b[..., None])[..., 0]
    if len(left) == 1 and len(right) == 2:
        if plain[1]:
            return A @ b if not plain[0] else (A[None, :] @ b)[0]
        return (A[..., None, :] @ b)[..., 0, :]
    if len(right) == 1:
        return (A @ lift(xp, b[..., None], (right[0], 1), len(left)))[..., 0]
    if len(left) == 1:
        return (lift(xp, A[..., None, :], (1, left[0]), len(right)) @ b)[..., 0, :]
    rank = max(len(left), len(right))
    return lift(xp, A, left, rank) @ lift(xp, b, right, rank)


def _terms(left: Shape, right: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each scalar product of a matrix product: flat positions of target, left and right factor."""
    a = positions(left) if len(left) > 1 else positions(left)[None, :]
    b = positions(right) if len(right) > 1 else positions(right)[:, None]
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    full = (*lead, m, n, k)
    target = np.broadcast_to(np.arange(int(np.prod((*lead, m, n), dtype=int))).reshape(*lead, m, n, 1), full)
    left_at = np.broadcast_to(a[..., :, None, :], full)
    right_at = np.broadcast_to(np.swapaxes(b, -1, -2)[..., None, :, :], full)
    return target.reshape(-1), left_at.reshape(-1), right_at.reshape(-1)


def bilinear_pattern(
    target: np.ndarray, at: Sequence[np.ndarray], size: int, patterns: Sequence[Pattern], constants: Sequence[Any]
) -> Pattern:
    """Pattern of sums of products, given the positions of target and factors of each; products with a constant zero do not count."""
    live = np.ones(len(target), bool)
    for index, value in zip(at, constants, strict=True):
        if value is not None:
            live &= value.reshape(-1)[index] != 0
    parts = []
    for index, pattern in zip(at, patterns, strict=True):
        if pattern.nnz:
            selector = sp.csr_array((np.ones(int(live.sum()), np.int32), (target[live], index[live])), shape=(size, pattern.shape[0]))
            parts.append(boolean(boolean(selector) @ pattern.astype(np.int32)))
    return union(parts) if parts else sp.csr_array((size, patterns[0].shape[1]), dtype=np.int8)


def _matmul_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    target, left, right = _terms(*shapes)
    return bilinear_pattern(target, (left, right), node.size, patterns, constants)


def _kron_shape(options: tuple[Any, ...], shapes: Sequence[Shape], arrays: tuple[np.ndarray, ...]) -> Shape:
    return shapes[0][0] * shapes[1][0], shapes[0][1] * shapes[1][1]


def _kron(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    A, B = values
    y = A[..., :, None, :, None] * B[..., None, :, None, :]
    return xp.reshape(y, (*batch_of(y, 4), *node.shape))


def _kron_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    full = (shapes[0][0], shapes[1][0], shapes[0][1], shapes[1][1])
    left = np.broadcast_to(positions(shapes[0])[:, None, :, None], full).reshape(-1)
    right = np.broadcast_to(positions(shapes[1])[None, :, None, :], full).reshape(-1)
    return bilinear_pattern(np.arange(node.size), (left, right), node.size, patterns, constants)


def _convolve_shape(options: tuple[Any, ...], shapes: Sequence[Shape], arrays: tuple[np.ndarray, ...]) -> Shape:
    return (shapes[0][0] + shapes[1][0] - 1,)


def _convolve(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    """Full convolution of vectors: the second, padded, gathered into a Toeplitz matrix."""
    a, b = (flatten(xp, v, s) for v, s in zip(values, shapes, strict=True))
    n, m = shapes[0][0], shapes[1][0]
    lag = np.arange(n + m - 1)[:, None] - np.arange(n)[None, :]
    index = np.where((lag >= 0) & (lag < m), lag, m)
    padded = xp.concat([b, xp.zeros_like(b[..., :1])], axis=-1)
    toeplitz = xp.reshape(xp.take(padded, xp.new(index.reshape(-1)), axis=-1), (*batch_of(b, 1), n + m - 1, n))
    return xp.sum(toeplitz * a[..., None, :], axis=-1)


def _convolve_pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    i, j = (k.reshape(-1) for k in np.meshgrid(np.arange(shapes[0][0]), np.arange(shapes[1][0]), indexing="ij"))
    return bilinear_pattern(i + j, (i, j), node.size, patterns, constants)


register(
    Operation("matmul", _matmul_shape, _matmul, _matmul_pattern),
    Operation("kron", _kron_shape, _kron, _kron_pattern),
    Operation("convolve", _convolve_shape, _convolve, _convolve_pattern),
)
