"""The product with a constant sparse matrix, as a gather of equally many entries per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.expressions.graph import Builder
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import Operation, Pattern, boolean, register


def sparse_product(builder: Builder, matrix: Any, vector: int) -> int | None:
    """The node matrix @ vector, or None where the matrix is too full for this to pay (then use a dense product).

    Rows are padded to the longest one, so that one gather, one product and one sum over the last axis do it, in every framework and
    under every transformation.
    """
    A: Any = sp.csr_array(matrix)
    A.sum_duplicates()
    width = int(np.diff(A.indptr).max(initial=0))
    if width == 0 or 4 * width > A.shape[1] or width * A.shape[0] > 4 * A.nnz + 64:
        return None
    count = np.diff(A.indptr)
    place = np.arange(width)[None, :] < count[:, None]
    index, value = np.zeros(place.shape, np.int64), np.zeros(place.shape)
    index[place], value[place] = A.indices, A.data
    return builder.call("sparse_matmul", vector, arrays=(index, value))


def _evaluate(xp: Any, node: Node, shapes: Sequence[Shape], values: Sequence[Any], arrays: tuple[Any, ...]) -> Any:
    index, value = arrays
    taken = xp.take(values[0], xp.reshape(index, (-1,)), axis=-1)
    return xp.sum(xp.reshape(taken, (*taken.shape[:-1], *node.arrays[0].shape)) * value, axis=-1)


def _pattern(node: Node, shapes: Sequence[Shape], patterns: Sequence[Pattern], constants: Sequence[Any]) -> Pattern:
    index, value = node.arrays
    row = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    live = value != 0
    selector = sp.csr_array((np.ones(int(live.sum()), np.int32), (row[live], index[live])), shape=(len(index), shapes[0][0]))
    return boolean(selector @ patterns[0].astype(np.int32))


register(Operation("sparse_matmul", lambda options, shapes, arrays: (len(arrays[0]),), _evaluate, _pattern))
